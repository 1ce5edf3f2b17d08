"""Fake quantization: layers that round while they train."""
