"""Calibration: which layers are quantized, and the quantization parameters of their weights and inputs."""
