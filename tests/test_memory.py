"""The memory plan: its parts are what the tensors take, and what cannot fit is refused with the way out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mbrl.data.ring import ReplayTable
from mbrl.memory import MemoryPlan, available_memory, plan_memory
from mbrl.types import Transition

CPU = torch.device("cpu")
SIZES = {"obs_dim": 11, "action_dim": 3, "members": 7, "hidden": 200, "lanes": 1000, "device": CPU}


def test_a_seed_is_counted_with_its_ring() -> None:
    small = plan_memory(rows=1000, capacity=10_000, seeds=1, **SIZES)
    large = plan_memory(rows=1000, capacity=1_010_000, seeds=1, **SIZES)
    assert large.per_seed - small.per_seed == 1_000_000 * 32 * 4  # 28 numbers a row, padded to two cache lines
    assert large.shared == small.shared


def test_the_ring_is_as_large_as_planned() -> None:
    zeros = torch.zeros(10, 11)
    data = Transition(zeros, torch.zeros(10, 3), zeros[:, 0], zeros, zeros[:, 0] > 0, zeros[:, 0] == 0)
    one, two = (ReplayTable(data, 5000, seeds).rows.nbytes for seeds in (1, 2))
    planned = plan_memory(rows=10, capacity=5000, seeds=1, **SIZES).per_seed
    without = plan_memory(rows=10, capacity=0, seeds=1, **SIZES).per_seed
    assert two - one == pytest.approx(planned - without, rel=0.001)


def test_how_many_seeds_fit() -> None:
    plan = MemoryPlan(shared=100, per_seed=30, seeds=3, available=200)
    assert plan.needed == 190
    assert plan.fitting == 3
    plan.check()
    with pytest.raises(MemoryError, match=r"3 seeds would fit; lower seeds="):
        dataclasses.replace(plan, seeds=4).check()
    dataclasses.replace(plan, seeds=4, available=None).check()


def test_free_memory_is_known_here() -> None:
    free = available_memory(CPU)
    assert free is None or 2**20 < free < 2**50
