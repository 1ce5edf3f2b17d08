"""Tuning with Optuna: fields given in a recipe are fixed, fields left out are searched.

`config` has the options, `space` the search space, `cache` models that trials share, `trial` the objective function,
`worker` the loop over trials, `selection` the Pareto front, `study_figures` the figures, and `tune` runs it all.
"""
