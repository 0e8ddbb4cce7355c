"""What a person holds: one screen on which a codebook answers, live and as a file."""
