"""Learning from a teacher's layers: which are compared, what they give, how far they are apart."""
