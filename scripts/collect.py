"""Make a dataset: the same as `mbrl collect`."""

import sys

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
