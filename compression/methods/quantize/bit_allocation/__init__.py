"""Bit allocation: what each bit width of each layer costs, and which layer gets which."""
