"""What several test modules need beside fixtures."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TextIO

import pytest

LINTERS = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="hadolint and shellcheck have wheels for Linux x86-64 only, where the dev extra brings them",
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="sends signals to processes, as POSIX has them")


def absl_handler() -> logging.StreamHandler[TextIO]:
    """What absl, which rliable and tensorboard import, logs with."""
    from absl import logging as absl_logging

    handler: logging.StreamHandler[TextIO] = absl_logging.get_absl_handler().python_handler
    return handler


def load_script(name: str, folder: str = "scripts/reproduce") -> ModuleType:
    """A Python file of a folder of scripts as a module."""
    path = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


def search_path() -> str:
    """PATH with what is installed beside the interpreter before everything else."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def started(words: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`mbrl` in a process and a process group of its own, as a terminal starts it; what it says goes into a file.

    However the test ends, what is then left of the group is killed.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mbrl", *words], env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Wait for something that a process brings about."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended before, with {process.returncode}"
        assert time.monotonic() < limit, f"not within {seconds} seconds"
        time.sleep(0.002)
