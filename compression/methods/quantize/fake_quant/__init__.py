"""Fake quantization: training with weights and inputs rounded in the forward pass, and what it is converted to."""
