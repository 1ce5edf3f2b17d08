"""Structured pruning: units (channels, heads, neurons) that go together, their importance, and their removal."""
