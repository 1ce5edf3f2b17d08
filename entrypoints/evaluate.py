"""MLflow Project entry point `evaluate`: `compression evaluate` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
