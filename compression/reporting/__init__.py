"""What came out: the report of a run, pages over many, claims, Pareto fronts, figures."""
