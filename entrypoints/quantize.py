"""MLflow Project entry point `quantize`: `compression quantize` with the parameters of `mlflow run`."""

import sys

from compression.cli import main

if __name__ == "__main__":
    main(["quantize", *sys.argv[1:]])
