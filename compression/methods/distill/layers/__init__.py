"""Training on the layers of a teacher: which are compared, what they output, and losses between them."""
