"""Pruning: the weights, channels, heads or layers that matter least are masked or removed."""
