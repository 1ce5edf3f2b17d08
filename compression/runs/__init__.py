"""A run, from what was asked to what it leaves: settings, baseline, the chain of steps, results."""
