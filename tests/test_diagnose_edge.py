"""The diagnosis of the edge, on a planted one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from probes import Counter
from torch import Tensor

from mbrl.diagnose_edge import VALUE_STEPS, edge_finding, long_rollouts
from mbrl.learn.sac import SAC
from mbrl.nets import generator, squash
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric


class Planted(SAC):
    """Always acts 1, with density 1/e; critics that agree at first and, above 3.5, say 0, 1, 2, ...

    Where they agree Q is 2.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(1, 1, (0, 1), hidden=(4,), discount=0.5, initial_temperature=0.25, **settings)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return torch.ones_like(noise)

    def sample_with_density(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(noise), -torch.ones_like(noise[..., 0])

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        critics = self.critics[0].shape[1]
        disagreement = torch.where(obs[..., 0] > 3.5, 1.0, 0.0).unsqueeze(-2) * torch.arange(float(critics)).view(-1, 1)
        return 2.0 + disagreement


def imagination(length: int = 4, noise: float = 0.0, **filters: Any) -> Imagination:
    """Lanes go 0, 1, 2, ...; the reward is where they are."""
    model = Counter(torch.zeros(2, 1, dtype=torch.long), noise=noise)
    return Imagination(model, PolicyActions(), RandomElite(), FilterChain(**filters), length, 1000)


def above(limit: float) -> Terminate:
    return Terminate(lambda obs, action, next_obs: next_obs[..., 0] > limit)


STARTS, REWARD = torch.zeros(10, 1), torch.tensor([0.0, 1.0])


def test_a_planted_edge_is_told_without_error() -> None:
    finding = edge_finding(imagination(), Planted(critics=3), STARTS, REWARD, (1.5, 10.0))
    found = finding.numbers
    assert (found["length"], found["critics"], found["void"]) == (4, 3, [0.25, 0.25])
    for spread in ("penalty", "log_spread"):
        assert found[spread]["auroc"] == [1.0, 1.0]
        assert found[spread]["low"] == found[spread]["high"] == [1.0, 1.0]
        assert found[spread]["auroc_row_before"] == [1.0, 1.0]
    penalty = found["penalty"]
    assert penalty["dataset"]["mean"] == penalty["within"]["median"] == [0.0, 0.0]
    assert penalty["edge"]["mean"] == penalty["edge"]["median"] == [1.0, 1.0]
    assert found["log_spread"]["edge"]["mean"] == pytest.approx([0.5 * math.log(2 / 3)] * 2)
    assert found["values"]["above_bound"] == [1.0, 0.0]
    assert len(finding.tables) == 2
    assert list(finding.figures) == ["edge"]


def test_within_reach_critics_that_disagree_alike_tell_nothing() -> None:
    found = edge_finding(imagination(length=3), Planted(critics=2), STARTS, REWARD, (9.0, 9.0)).numbers
    assert found["penalty"]["auroc"] == [0.5, 0.5]  # all states are below 3.5, and all ties


def test_lanes_that_all_end_have_no_edge() -> None:
    found = edge_finding(
        imagination(terminate=above(1.5)), Planted(critics=2), STARTS, REWARD, (9.0, 9.0)
    ).numbers  # fmt: skip
    assert found["void"] == [0.0, 0.0]
    assert all(math.isnan(value) for value in (*found["penalty"]["auroc"], *found["penalty"]["edge"]["median"]))


def test_one_critic_is_said_and_left_out() -> None:
    finding = edge_finding(imagination(), Planted(critics=1), STARTS, REWARD, (9.0, 9.0))
    assert "penalty" not in finding.numbers
    assert finding.numbers["void"] == [0.25, 0.25]
    (table,) = finding.tables
    assert "one critic" in str(table.caption)


def test_returns_are_those_of_the_model() -> None:
    # Rewards 0, 1, 2, ... with discount 1/2: sum of t / 2^t = 2. Entropy of every later step, 1 nat at 0.25: 0.25.
    values = edge_finding(imagination(), Planted(critics=2), STARTS, REWARD, (9.0, 9.0)).numbers["values"]
    assert values["steps"] == VALUE_STEPS
    assert values["return"] == pytest.approx([2.0, 2.0])
    assert values["stored_return"] == pytest.approx([2.25, 2.25])
    assert values["tail"] == pytest.approx([0.0, 0.0])
    assert values["q"] == values["q_minimum"] == [2.0, 2.0]
    assert values["difference"] == pytest.approx([-0.25, -0.25])


def test_returns_stop_where_the_task_ends() -> None:
    starts = torch.zeros(2, 5, 1)
    learner = Planted(critics=2, soft_backup=False)
    sources = [generator(seed) for seed in (0, 1)]
    found = long_rollouts(imagination(terminate=above(2.5)), learner, starts, sources, steps=8)
    assert found.paid.tolist() == [[0.5 * 1 + 0.25 * 2] * 5] * 2
    assert torch.equal(found.paid, found.stored)
    assert not found.alive.any()
    assert not found.tail.any()


def test_what_comes_after_the_last_step_is_estimated() -> None:
    # Six steps; the last two, rewards 4 and 5, go on for ever as 4.5: 4.5 / (1 - 1/2) / 2^6.
    found = long_rollouts(
        imagination(), Planted(critics=2, soft_backup=False), torch.zeros(2, 5, 1), [generator(0), generator(1)], 6
    )
    assert found.tail[0, 0].item() == pytest.approx(9.0 / 64)
    assert found.alive[0, 0].item() == pytest.approx(1 / 64)


def test_the_run_s_penalty_is_part_of_what_is_stored() -> None:
    parts = imagination(noise=3.0, penalise=Penalise(max_aleatoric, 0.1))
    learner = Planted(critics=2, soft_backup=False)
    found = long_rollouts(parts, learner, torch.zeros(2, 5, 1), [generator(0), generator(1)], 30)
    penalty = 0.1 * 18**0.5 * 2.0 * (1 - 0.5**30)
    torch.testing.assert_close(found.paid - found.stored, torch.full((2, 5), penalty), rtol=1e-4, atol=1e-4)


def test_a_sample_and_its_density_are_the_policy_s() -> None:
    learner = SAC(3, 2, (0, 1), hidden=(8,))
    obs, noise = torch.randn(2, 6, 3), torch.randn(2, 6, 2)
    action, density = learner.sample_with_density(obs, noise)
    torch.testing.assert_close(action, learner.sample(obs, noise))
    expected = squash(*learner._policy(learner.actor, obs), noise)[1]
    torch.testing.assert_close(density, expected)
