"""Masks: weights that become zero, and stay where they are: how many, which, and when."""
