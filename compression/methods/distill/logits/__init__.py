"""Training on the logits of teachers."""
