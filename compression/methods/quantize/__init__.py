"""Quantization: every method only chooses numbers; compression.quantized holds them, computes and deploys."""
