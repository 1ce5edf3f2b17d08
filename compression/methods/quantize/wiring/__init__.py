"""How layers follow one another: batch norms to fold, sums to round, inputs to quantize."""
