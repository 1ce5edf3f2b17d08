"""MLflow Project entry point `decompose`: `compression decompose` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["decompose", *sys.argv[1:]])
