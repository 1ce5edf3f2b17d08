"""Graph rewriting: what a model computes stays, but its layers quantize better or run on integer kernels."""
