"""MLflow Project entry point `compress`: `compression compress` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["compress", *sys.argv[1:]])
