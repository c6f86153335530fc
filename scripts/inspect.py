"""Say what is in a dataset: the same as `mbrl inspect`."""

import sys

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
