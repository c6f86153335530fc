"""Compare runs in tables and curves: the same as `mbrl report`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
