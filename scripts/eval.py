"""Score a trained policy again: the same as `mbrl eval`."""

import sys

sys.path.pop(0)  # this folder, whose inspect.py would hide the standard library's

from mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
