"""Train a policy offline: the same as `mbrl train`."""

import sys

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
