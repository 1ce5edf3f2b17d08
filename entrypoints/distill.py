"""MLflow Project entry point `distill`: `compression distill` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
