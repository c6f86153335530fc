"""What several test modules need beside fixtures."""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import TextIO

import pytest

LINTERS = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="hadolint and shellcheck have wheels for Linux x86-64 only, where the dev extra brings them",
)


def absl_handler() -> logging.StreamHandler[TextIO]:
    """What absl, which rliable and tensorboard import, logs with."""
    from absl import logging as absl_logging

    handler: logging.StreamHandler[TextIO] = absl_logging.get_absl_handler().python_handler
    return handler


def load_script(name: str) -> ModuleType:
    """A Python file of `scripts/reproduce` as a module."""
    path = Path(__file__).parents[1] / "scripts" / "reproduce" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reproduce_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
