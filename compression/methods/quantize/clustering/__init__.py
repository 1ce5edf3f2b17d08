"""Clustering: weights that share a few values, and the coded file of such a model."""
