"""Pruning: weights, channels, heads or layers that matter least are taken away."""
