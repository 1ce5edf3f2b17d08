"""Compression of a transformer block by block: its blocks, the walk through them, statistics, and folded scales."""
