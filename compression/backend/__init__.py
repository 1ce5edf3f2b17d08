"""MLflow project backends: `mlflow run -b host` runs an entry point in this Python, `-b docker` in the image."""
