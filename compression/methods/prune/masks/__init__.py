"""Pruning by masks: weights are set to zero, and the shapes stay."""
