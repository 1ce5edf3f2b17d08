"""MLflow Project entry point `train`: `compression train` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
