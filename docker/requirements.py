"""What pyproject.toml asks for, one requirement a line: `python requirements.py EXTRA,EXTRA`.

Installing these before the source is copied keeps them in a layer of their own. The build backend is among them, so
that the package is built without fetching anything more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomllib


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """Build backend, dependencies, and those of the `extras`.

    Raises:
        KeyError: there is no such extra.
    """
    content = tomllib.loads(pyproject)
    optional = content["project"]["optional-dependencies"]
    wanted = [requirement for extra in extras for requirement in optional[extra]]
    return [*content["build-system"]["requires"], *content["project"]["dependencies"], *wanted]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text(), sys.argv[1].split(","))))
