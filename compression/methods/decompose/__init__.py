"""Layers as products of smaller layers."""
