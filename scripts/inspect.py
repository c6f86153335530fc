"""Say what is in a dataset: the same as `mbrl inspect`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
