"""Make a dataset: the same as `mbrl collect`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
