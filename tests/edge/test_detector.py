from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from probes import Counter, transitions
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.edge.detector import (
    EdgeWatch,
    ValueBound,
    effective_penalty,
    lane_auroc,
    last_row,
    log_spread,
    runaway_warning,
    runaways,
    void_rows,
    void_share,
)
from mbrl.edge.measure import auroc
from mbrl.learn.sac import SAC
from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite


def flags(*lanes: str) -> Tensor:
    """Lanes as words of 0 and 1, a letter a step: (1, L, N) bool."""
    return torch.tensor([[letter == "1" for letter in lane] for lane in lanes]).T.unsqueeze(0)


# -- spread ------------------------------------------------------------------------------------------------------------


def test_penalty_and_spread_by_hand() -> None:
    q = torch.tensor([[1.0, -2.0], [2.0, -2.0], [6.0, -2.0]])  # three critics, two states
    assert effective_penalty(q).tolist() == [2.0, 0.0]
    assert log_spread(q)[0].item() == pytest.approx(0.5 * math.log((4 + 1 + 9) / 3))
    assert log_spread(q)[1].item() < -80  # no spread at all, and still a number


def test_of_two_critics_the_spread_is_the_penalty_s_logarithm() -> None:
    q = torch.randn(3, 2, 50)
    torch.testing.assert_close(log_spread(q), effective_penalty(q).log(), rtol=1e-4, atol=1e-5)


def test_one_critic_has_no_penalty() -> None:
    assert effective_penalty(torch.randn(2, 1, 5)).tolist() == [[0.0] * 5] * 2


# -- which states ------------------------------------------------------------------------------------------------------


def test_void_of_lanes_that_all_run_to_the_end() -> None:
    keep, terminal = flags("11111", "11111"), flags("00000", "00000")
    assert void_share(keep, terminal).tolist() == [pytest.approx(1 / 5)]
    assert void_rows(keep, terminal).nonzero().tolist() == [[0, 4, 0], [0, 4, 1]]


@pytest.mark.parametrize(
    ("keep", "terminal", "share"),
    [
        (["11111", "11000"], ["00000", "01000"], 1 / 6),  # a terminal row bootstraps nothing
        (["11111", "11000"], ["00000", "00000"], 2 / 7),  # a lane that is cut asks the void where it was cut
        (["11000"], ["01000"], 0.0),
        (["11111"], ["00001"], 0.0),
        (["10000"], ["00000"], 1.0),
        (["10000"], ["10000"], 0.0),  # nothing bootstraps
        (["00000"], ["00000"], 0.0),  # nothing is stored
    ],
)
def test_void_of_lanes_that_end(keep: list[str], terminal: list[str], share: float) -> None:
    assert void_share(flags(*keep), flags(*terminal)).tolist() == [pytest.approx(share)]


def test_void_is_of_each_seed() -> None:
    keep = torch.cat([flags("111"), flags("100")])
    assert void_share(keep, torch.zeros_like(keep)).tolist() == pytest.approx([1 / 3, 1.0])


def test_where_lanes_end() -> None:
    keep, terminal = flags("111", "110", "110", "000"), flags("000", "010", "000", "000")
    at, in_void = last_row(keep, terminal)
    assert at.tolist() == [[2, 1, 1, 0]]
    assert in_void.tolist() == [[True, False, True, False]]


# -- how well it tells -------------------------------------------------------------------------------------------------


def brute_force(positive: Tensor, negative: Tensor) -> float:
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive.tolist(), negative.tolist())
    ]
    return sum(wins) / len(wins)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    # Few different numbers: many ties.
    positive, negative = torch.randint(6, (3, 17)).float(), torch.randint(5, (3, 29)).float()
    found = auroc(positive, negative)
    assert found.tolist() == pytest.approx([brute_force(p, n) for p, n in zip(positive, negative, strict=True)])


@pytest.mark.parametrize(
    ("positive", "negative", "value"),
    [([2.0, 3.0], [0.0, 1.0], 1.0), ([0.0], [1.0, 2.0], 0.0), ([1.0, 1.0], [1.0], 0.5), ([1.0], [0.0, 1.0, 2.0], 0.5)],
)
def test_auroc_by_hand(positive: list[float], negative: list[float], value: float) -> None:
    assert auroc(torch.tensor(positive), torch.tensor(negative)).item() == value


def test_auroc_of_nothing_is_not_a_number() -> None:
    assert math.isnan(auroc(torch.empty(0), torch.ones(3)).item())
    assert math.isnan(auroc(torch.ones(3), torch.empty(0)).item())


def test_auroc_of_lanes_counts_what_is_known_and_says_how_sure_it_is() -> None:
    positive, negative = torch.randn(60) + 1.0, torch.randn(4, 60).round(decimals=1)
    here, there = torch.rand(60) < 0.7, torch.rand(4, 60) < 0.8
    value, low, high = lane_auroc(positive, negative, here, there, generator(0))
    assert value == pytest.approx(brute_force(positive[here], negative[there]))
    assert low < value < high
    assert (low, high) == lane_auroc(positive, negative, here, there, generator(0))[1:]
    many = torch.randn(600) + 1.0, torch.randn(4, 600)
    _, closer, nearer = lane_auroc(*many, torch.ones(600).bool(), torch.ones(4, 600).bool(), generator(0))
    assert nearer - closer < 0.6 * (high - low)


def test_auroc_of_lanes_without_an_edge() -> None:
    found = lane_auroc(torch.ones(5), torch.ones(2, 5), torch.zeros(5).bool(), torch.ones(2, 5).bool(), generator(0))
    assert all(math.isnan(number) for number in found)


# -- while training goes on --------------------------------------------------------------------------------------------


class Planted(SAC):
    """Always acts 1; three critics that disagree by 0, 0.25, 0.5, and above 3.5 by 0, 1, 2."""

    def __init__(self, seeds: tuple[int, ...] = (0,), **settings: Any) -> None:
        super().__init__(1, 1, seeds, critics=3, hidden=(4,), **settings)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return torch.ones_like(noise)

    def sample_with_density(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(noise), -torch.ones_like(noise[..., 0])

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        spread = torch.where(obs[..., 0] > 3.5, 1.0, 0.25)
        return spread.unsqueeze(-2) * torch.arange(3.0).view(-1, 1)


def watched(lanes: int, length: int, chunk: int = 1000, limit: float = math.inf, seeds: int = 1) -> EdgeWatch:
    """Lanes that go 0, 1, 2, ... and end beyond `limit`."""
    table = ReplayTable(transitions([0.0], [0.0], [0.0], [0.0], [False]), lanes * length, seeds)
    filters = FilterChain(terminate=Terminate(lambda obs, action, next_obs: next_obs[..., 0] > limit))
    model = Counter(torch.zeros(seeds, 1, dtype=torch.long))
    parts = Imagination(model, PolicyActions(), RandomElite(), filters, length, chunk)
    learner = Planted(tuple(range(seeds)))
    watch = EdgeWatch(learner, [generator(seed, "edge") for seed in range(seeds)])
    parts.fill(table, lanes, learner.sample, [generator(seed, "rollout") for seed in range(seeds)], watch)
    return watch


def numbers(watch: EdgeWatch) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in watch.metrics().items()}


@pytest.mark.parametrize("chunk", [7, 1000])
def test_a_planted_edge_is_seen(chunk: int) -> None:
    found = numbers(watched(lanes=40, length=4, chunk=chunk, seeds=2))
    assert found["void"] == [0.25, 0.25]
    assert found["penalty_last"] == [1.0, 1.0]
    assert found["penalty_within"] == [0.25, 0.25]
    assert found["penalty_ratio"] == [4.0, 4.0]


def test_terminal_ends_are_not_an_edge() -> None:
    found = numbers(watched(lanes=10, length=4, limit=2.5))
    assert found["void"] == [0.0]
    assert math.isnan(found["penalty_last"][0])
    assert found["penalty_within"] == [0.25]


def test_long_rollouts_of_many_lanes_are_looked_at_in_part() -> None:
    watch = watched(lanes=700, length=20, chunk=300)
    assert watch.rows[:, 0].tolist() == [700, 700 * 20]  # every lane counts for the share
    assert watch.states[1].tolist() == [256]
    assert watch.states[3].tolist() == [256 * 7]  # inputs 0, 3, ..., 18
    inside = 2 / 7  # of those below 3.5: 0 and 3
    assert numbers(watch)["penalty_within"] == pytest.approx([inside * 0.25 + (1 - inside)])


def test_one_critic_has_only_the_share() -> None:
    learner = SAC(1, 1, (0,), critics=1, hidden=(4,))
    watch = EdgeWatch(learner, [generator(0)])
    rows = ReplayTable(transitions([0.0], [0.0], [0.0], [0.0], [False]), 8, 1)
    parts = Imagination(Counter(torch.tensor([[0]])), PolicyActions(), RandomElite(), FilterChain(), 2, 10)
    parts.fill(rows, 4, learner.sample, [generator(0)], watch)
    assert numbers(watch) == {"void": [0.5]}


# -- values that run away ----------------------------------------------------------------------------------------------


def test_bound_by_hand() -> None:
    bound = ValueBound.of(torch.tensor([-1.0, 3.0]), 0.9)
    assert bound.at(0, 5.0) == pytest.approx((3.0 + 0.3) / 0.1)  # no soft backup: no entropy
    soft = ValueBound.of(torch.tensor([-1.0, 3.0]), 0.9, entropy=2.0, temperature=0.5, target_rate=0.01)
    assert soft.at(0, 0.0) == pytest.approx((3.3 + 0.9 * 0.5 * 2.0) / 0.1)
    assert soft.at(1000, 0.0) == pytest.approx((3.3 + 0.9 * 0.5 * math.exp(-1.0) * 2.0) / 0.1)
    assert soft.at(10**9, 0.0) == pytest.approx(33.0)
    assert soft.at(10**9, 0.7) == pytest.approx((3.3 + 0.9 * 0.7 * 2.0) / 0.1)


def test_without_a_discount_there_is_no_bound() -> None:
    assert ValueBound.of(torch.tensor([1.0]), 1.0).at(0, 0.0) == math.inf


def test_where_all_rewards_are_negative_an_end_is_the_best() -> None:
    assert ValueBound.of(torch.tensor([-10.0, -9.0]), 0.9).at(0, 0.0) == pytest.approx(1.0 / 0.1)


def test_runaways_are_found_by_seed() -> None:
    bound = ValueBound.of(torch.tensor([1.0]), 0.9)  # 11
    row = {"learner/q": 100.0, "learner/q/seed_4": 10.9, "learner/q/seed_5": 11.1}
    assert [(one.seed, one.q) for one in runaways(row, (4, 5), 7, bound)] == [(5, 11.1)]
    assert [(one.seed, one.q) for one in runaways(row, (4,), 7, bound)] == [(4, 100.0)]
    assert runaways({}, (4,), 7, bound) == []
    assert runaways({"learner/q": math.nan}, (4,), 7, bound) == []
    assert len(runaways({"learner/q": math.inf}, (4,), 7, bound)) == 1


def test_the_temperature_is_each_seed_s_own() -> None:
    bound = ValueBound.of(torch.tensor([1.0]), 0.9, entropy=1.0)
    row = {"learner/q/seed_0": 15.0, "learner/q/seed_1": 15.0}
    row |= {"learner/temperature/seed_0": 1.0, "learner/temperature/seed_1": 0.1}
    assert [one.seed for one in runaways(row, (0, 1), 0, bound)] == [1]  # 11 + 9 and 11 + 0.9


def test_the_warning_names_what_to_try() -> None:
    bound = ValueBound.of(torch.tensor([1.0]), 0.9)
    said = runaway_warning(runaways({"learner/q": 1234.0}, (3,), 2000, bound), 2000)
    for word in ("update 2,000", "1234 above 11 (seed 3)", "filter=[ravl]", "learner.critics", "edge", "diverges"):
        assert word in said
