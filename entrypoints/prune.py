"""MLflow Project entry point `prune`: `compression prune` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["prune", *sys.argv[1:]])
