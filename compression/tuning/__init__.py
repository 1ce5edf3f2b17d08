"""Optuna over any recipe: what is written in it is fixed, what is left out is searched.

`plan` is what was asked, `space` what is searched, `cache` what trials share, `trial` one attempt, `worker` the loop
over them, `chosen` what comes of it, `pictures` how it looks, `tune` the whole.
"""
