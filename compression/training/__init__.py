"""How a model is trained: the loop, its checkpoints, and the context that methods work in."""
