from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.nets import generator, rand
from mbrl.types import Transition


def numbered(table: ReplayTable, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Packed imagined rows (S, count, width) whose reward is a number of their own, and those numbers (S, count)."""
    numbers = (torch.arange(table.seeds).unsqueeze(-1) * 100_000 + first + torch.arange(count)).float()
    obs = numbers.unsqueeze(-1).expand(*numbers.shape, table.obs_dim)
    action = -numbers.unsqueeze(-1).expand(*numbers.shape, table.action_dim)
    rows = torch.zeros(*numbers.shape, table.width)
    imagined = torch.zeros_like(numbers, dtype=torch.bool)
    table.pack(Transition(obs, action, numbers, obs + 0.5, numbers % 3 == 0, imagined), rows)
    return rows, numbers


def contents(table: ReplayTable, seed: int) -> list[float]:
    return sorted(table.imagined(seed).reward.tolist())


@pytest.mark.parametrize("capacity", [1, 7, 32])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_ring_holds_what_a_bounded_deque_holds(capacity: int, seeds: int, density: float) -> None:
    data = random_data(11)
    table = ReplayTable(data, capacity, seeds)
    real = table.rows[:11].clone()
    reference: list[deque[float]] = [deque(maxlen=capacity) for _ in range(seeds)]
    source = torch.Generator().manual_seed(capacity + seeds)
    for i in range(25):  # many times around
        count = int(torch.randint(1, capacity + 1, (), generator=source))
        keep = torch.rand(seeds, count, generator=source) < density
        rows, numbers = numbered(table, 1 + 1000 * i, count)
        table.write(rows, keep)
        for s in range(seeds):
            reference[s].extend(numbers[s, keep[s]].tolist())
            assert contents(table, s) == sorted(reference[s])
            held = table.imagined(s)  # whole rows, not only their numbers
            assert torch.equal(held.obs, held.reward.unsqueeze(-1).expand(-1, 3))
            assert torch.equal(held.action, -held.reward.unsqueeze(-1).expand(-1, 2))
            assert torch.equal(held.next_obs, held.obs + 0.5)
            assert torch.equal(held.terminal, held.reward % 3 == 0)
            assert not held.real.any()
        assert torch.equal(table.rows[:11], real)


def test_rings_of_other_seeds_are_not_touched() -> None:
    table = ReplayTable(random_data(5), 4, 3)
    rows, numbers = numbered(table, 1, 4)
    keep = torch.tensor([[False] * 4, [True] * 4, [True, False, False, True]])
    table.write(rows, keep)
    assert contents(table, 0) == []
    assert contents(table, 1) == numbers[1].tolist()
    assert contents(table, 2) == [numbers[2, 0].item(), numbers[2, 3].item()]
    assert table.written.tolist() == [0, 4, 2]


def test_a_sample_never_shows_the_waste_row() -> None:
    table = ReplayTable(random_data(5), 3, 2)
    rows, numbers = numbered(table, 1, 3)
    table.write(rows, torch.tensor([[True, False, True], [False, True, False]]))
    batch, _ = table.sample(rand((500,), [generator(s, "t") for s in (0, 1)], dtype=torch.float64), 0)
    assert set(batch.reward[0].tolist()) == {numbers[0, 0].item(), numbers[0, 2].item()}
    assert set(batch.reward[1].tolist()) == {numbers[1, 1].item()}


def test_packing_is_exact() -> None:
    data = random_data(50, obs_dim=5, action_dim=3)
    data = data._replace(terminal=torch.rand(50) < 0.5)
    table = ReplayTable(data, 1, 1)
    assert table.width == 16  # 2 * 5 + 3 + 3, one cache line
    for ours, theirs in zip(table.unpack(table.rows[:50]), data, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_real_rows_come_first_and_both_kinds_are_uniform() -> None:
    data = random_data(20)
    table = ReplayTable(data, 10, 2)
    for i in range(3):  # the ring is full and has wrapped
        rows, _ = numbered(table, 1 + 10 * i, 7)
        table.write(rows, torch.ones(2, 7, dtype=torch.bool))
    uniform = rand((8000,), [generator(s, "t") for s in (0, 1)], dtype=torch.float64)
    batch, real_rows = table.sample(uniform, 3000)
    assert real_rows == 3000
    assert batch.real[:, :3000].all()
    assert not batch.real[:, 3000:].any()
    for s in range(2):
        for values, possible in (
            (batch.reward[s, :3000], data.reward),
            (batch.reward[s, 3000:], table.imagined(s).reward),
        ):
            counts = (values.unsqueeze(-1) == possible).sum(0).float()
            assert counts.sum().item() == len(values)
            expected = len(values) / len(possible)
            chi_square = ((counts - expected).square() / expected).sum().item()
            assert chi_square < 45  # 19 or 9 degrees of freedom: 99.9 % lie below 43.8
    assert not torch.equal(batch.reward[0, :3000], batch.reward[1, :3000])  # seeds pick rows of their own


def test_the_ends_of_the_uniform_range_are_rows() -> None:
    data = random_data(1000)
    table = ReplayTable(data, 3, 1)
    almost_one = 1.0 - 2.0**-53
    batch, _ = table.sample(torch.tensor([[0.0, almost_one]], dtype=torch.float64), 2)
    assert torch.equal(batch.obs[0], data.obs[[0, 999]])
    assert torch.equal(table.starts(torch.tensor([[almost_one]], dtype=torch.float64))[0], data.obs[999:])


def test_an_empty_ring_falls_back_to_the_dataset_seed_by_seed() -> None:
    table = ReplayTable(random_data(20), 4, 2)
    rows, _ = numbered(table, 1, 2)
    table.write(rows, torch.tensor([[False, False], [True, True]]))
    batch, _ = table.sample(torch.rand(2, 40, dtype=torch.float64), 5)
    assert batch.real[0].all()
    assert batch.real[1].tolist() == [True] * 5 + [False] * 35


def test_starts_are_observations_of_the_dataset() -> None:
    data = random_data(30)
    table = ReplayTable(data, 4, 2)
    starts = table.starts(rand((400,), [generator(s, "t") for s in (0, 1)], dtype=torch.float64))
    assert starts.shape == (2, 400, 3)
    match = (starts.unsqueeze(-2) == data.obs).all(-1)  # (S, 400, 30)
    assert match.sum(-1).eq(1).all()
    assert match.any(1).all()  # every row is picked by every seed
    assert not torch.equal(starts[0], starts[1])


def test_state_round_trip() -> None:
    data = random_data(9)
    table = ReplayTable(data, 6, 2)
    steps = [numbered(table, 1 + 10 * i, 5)[0] for i in range(4)]
    keeps = [torch.rand(2, 5) < 0.6 for _ in range(4)]
    for rows, keep in zip(steps[:2], keeps[:2], strict=True):
        table.write(rows, keep)
    state = copy.deepcopy(table.state_dict())
    other = ReplayTable(data, 6, 2)
    other.load_state_dict(state)
    uniform = torch.rand(2, 64, dtype=torch.float64)
    for rows, keep in zip(steps[2:], keeps[2:], strict=True):
        table.write(rows, keep)
        other.write(rows, keep)
        for ours, theirs in zip(table.sample(uniform, 8).transition, other.sample(uniform, 8).transition, strict=True):
            assert torch.equal(ours, theirs)


def test_a_state_that_does_not_fit_is_refused() -> None:
    table = ReplayTable(random_data(9), 6, 2)
    rows, _ = numbered(table, 1, 6)
    table.write(rows, torch.ones(2, 6, dtype=torch.bool))
    state = table.state_dict()
    with pytest.raises(ValueError, match="another number of seeds or other dimensions"):
        ReplayTable(random_data(9), 6, 3).load_state_dict(state)
    with pytest.raises(ValueError, match="another number of seeds or other dimensions"):
        ReplayTable(random_data(9, obs_dim=4), 6, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="another capacity than 5"):
        ReplayTable(random_data(9), 5, 2).load_state_dict(state)


def test_more_rows_than_the_ring_holds_are_refused() -> None:
    table = ReplayTable(random_data(9), 4, 1)
    rows, _ = numbered(table, 1, 5)
    with pytest.raises(ValueError, match="5 rows at once do not fit a ring of 4"):
        table.write(rows, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="capacity=0"):
        ReplayTable(random_data(9), 0, 1)
