import sys

from compression.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
