"""Bit-widths: what each costs, and which layer gets which."""
