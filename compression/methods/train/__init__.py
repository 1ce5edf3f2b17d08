"""Training of the model itself: baselines, and the recovery after a step that cost quality."""
