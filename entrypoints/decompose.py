import sys

from compression.cli import main

if __name__ == "__main__":
    main(["decompose", *sys.argv[1:]])
