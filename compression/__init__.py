"""A model-compression lab: one command compresses a network, measures it before and after, and logs to MLflow."""

__version__ = "0.2.0"
