"""MLflow Project entry point `tune`: `compression tune` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
