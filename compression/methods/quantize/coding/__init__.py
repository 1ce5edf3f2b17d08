"""Entropy coding of quantized weights."""
