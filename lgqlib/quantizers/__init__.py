"""Quantizers behind one contract."""
