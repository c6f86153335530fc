"""Shared by all tests. That this file exists also puts `tests/` on the import path, for `probes`."""

from __future__ import annotations

import pytest
import torch

# The networks of the tests are tiny, and several test processes may share the cores: more threads only wait.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
