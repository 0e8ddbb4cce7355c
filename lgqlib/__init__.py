"""Learnable Geometric Quantization: the model, the training loop, and what shows a codebook."""

__version__ = "0.1.0"
