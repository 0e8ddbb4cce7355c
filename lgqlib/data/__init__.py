"""Images: where they come from, how they lie on the disk, and batches of them."""
