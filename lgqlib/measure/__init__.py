"""Numbers of images, codes and latents: arrays in, small dataclasses out."""
