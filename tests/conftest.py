"""Shared by all tests. That this file exists also puts `tests/` on the import path, for `probes`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import absl_handler

from mbrl.data.builtin import pendulum_log

# The networks of the tests are tiny, and several test processes may share the cores: more threads only wait.
torch.set_num_threads(1)

# It closes the standard error that it has found at its import, which is pytest's, when Hydra sets up logging again.
absl_handler().stream = sys.__stderr__


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of the pendulum, as a user's own file: no environment id in it."""
    path = tmp_path_factory.mktemp("data") / "log.npz"
    rows = {k: v[:400] for k, v in pendulum_log(controlled=True).items() if v.ndim and not k.startswith("action_")}
    np.savez(path, **rows)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of a module keep and find fitted models."""
    return tmp_path_factory.mktemp("store")
