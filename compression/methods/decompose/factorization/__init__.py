"""What the decompositions share: ranks, costs, factors, and what is reported of them."""
