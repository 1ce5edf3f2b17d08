"""MLflow Project entry point `study`: `compression study` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
