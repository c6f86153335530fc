"""Train a policy offline: the same as `mbrl train`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
