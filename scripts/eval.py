"""Score a trained policy again: the same as `mbrl eval`."""

import sys

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
