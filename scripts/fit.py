"""Fit only the dynamics and reward models: the same as `mbrl fit`."""

import sys

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
