"""MLflow Project entry point `report`: `compression report` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
