"""Where `mlflow run` runs an entry point: `-b host` in this Python, `-b docker` in the image, checked first."""
