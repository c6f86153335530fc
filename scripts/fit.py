"""Fit only the dynamics and reward models: the same as `mbrl fit`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
