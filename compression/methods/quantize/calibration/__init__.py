"""Calibration: which layers are quantized, and the ranges of their weights and activations."""
