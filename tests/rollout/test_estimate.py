from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from probes import Counter, random_data
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.estimate import PessimisticReturn, model_estimate, pessimistic_return
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Prediction


def always_one(seeds: tuple[int, ...]) -> SAC:
    """A learner whose deterministic action is tanh(20) = 1 everywhere, and whose critics say 7."""
    learner = SAC(1, 1, seeds, hidden=(4,))
    for params, value in ((learner.actor, 20.0), (learner.critics, 7.0)):
        for p in params:
            p.zero_()
        params[-1][..., 0] = value
    return learner


def above(limit: float) -> Terminate:
    return Terminate(lambda obs, action, next_obs: next_obs[..., 0] > limit)


def toy(noise: float = 0.0, seeds: int = 1, **filters: object) -> Imagination:
    model = Counter(torch.zeros(seeds, 1, dtype=torch.long), noise=noise)
    return Imagination(model, PolicyActions(), RandomElite(), FilterChain(**filters), 1, 1000)  # type: ignore[arg-type]


def test_return_and_length_by_hand() -> None:
    # From 0: rewards 0, 1, 2, 3 (the observation); from 2: 2, 3, 4, 5.
    starts = torch.tensor([[0.0], [2.0]])
    found = model_estimate(always_one((0, 1)), toy(seeds=2), starts, 4, 0)
    assert found["return"].tolist() == [10.0, 10.0]
    assert found["length"].tolist() == [4.0, 4.0]
    assert found["uncertainty"].tolist() == [0.0, 0.0]
    assert found["q_start"].tolist() == [7.0, 7.0]


def test_lanes_end_at_terminals() -> None:
    # Above 2.5 is the end: from 0 after three steps (0 + 1 + 2), from 2 after one (2).
    starts = torch.tensor([[0.0], [2.0]])
    found = model_estimate(always_one((0,)), toy(terminate=above(2.5)), starts, 50, 0)
    assert found["return"].item() == pytest.approx((3.0 + 2.0) / 2)
    assert found["length"].item() == pytest.approx(2.0)


def test_penalties_are_left_out_and_doubt_is_reported() -> None:
    parts = toy(noise=0.5, penalise=Penalise(max_aleatoric, 1000.0))
    starts = torch.zeros(200, 1)
    found = model_estimate(always_one((0,)), parts, starts, 2, 0)
    assert found["return"].item() == pytest.approx(1.0, abs=0.15)
    assert found["uncertainty"].item() == pytest.approx(0.5 * 2**0.5)
    assert [type(f).__name__ for f in parts.filters.filters] == ["Penalise"]  # the training's own chain is untouched


def test_every_evaluation_has_noise_of_its_own_and_can_be_repeated() -> None:
    learner, starts = always_one((0, 1)), torch.zeros(20, 1)
    returns = [model_estimate(learner, toy(noise=0.5, seeds=2), starts, 3, n)["return"] for n in (0, 0, 1)]
    assert torch.equal(returns[0], returns[1])
    assert not torch.equal(returns[0], returns[2])
    assert returns[0][0] != returns[0][1]


def test_with_real_parts() -> None:
    data = random_data(300)
    model = GaussianEnsemble(3, 2, (0, 1), members=3, elites=2, hidden=(16,), max_epochs=2, batch_size=64)
    model.fit(data)
    parts = Imagination(model, PolicyActions(), RandomElite(), FilterChain(clip=Clip(data)), 5, 100)
    learner = SAC(3, 2, (0, 1), hidden=(16,))
    before: list[Tensor] = [p.clone() for p in learner.actor + learner.critics]
    found = model_estimate(learner, parts, data.obs[:50], 10, 3)
    assert {name: tuple(value.shape) for name, value in found.items()} == dict.fromkeys(
        ("return", "length", "uncertainty", "q_start"), (2,)
    )
    assert found["length"].tolist() == [10.0, 10.0]
    assert all(torch.isfinite(value).all() for value in found.values())
    assert all(torch.equal(p, q) for p, q in zip(before, learner.actor + learner.critics, strict=True))


def worlds(noise: float = 0.0) -> Callable[[Tensor, Tensor], Prediction]:
    """Two members at lanes of their own: the next state is obs + action, plus 1 in the second; reward = observation."""

    def predict(obs: Tensor, action: Tensor) -> Prediction:
        shift = torch.tensor([0.0, 1.0]).view(2, 1, 1)
        mean = torch.cat([obs + action + shift, obs], -1)
        return Prediction(mean, torch.full_like(mean, noise))

    return predict


def judged(
    policies: tuple[float, ...], chain: FilterChain, *, noise: float = 0.0, pessimism: float = 1.0
) -> PessimisticReturn:
    """Policies that always do the same thing, from observations 0 and 2, over four steps."""
    return pessimistic_return(
        lambda obs: torch.tensor(policies).view(-1, 1, 1).expand(*obs.shape[:-1], 1),
        worlds(noise), chain, torch.tensor([[0.0], [2.0]]), 4,
        seeds=len(policies), members=2, pessimism=pessimism, source=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_a_bound_over_worlds_by_hand() -> None:
    # Action 1, first member: 0+1+2+3 and 2+3+4+5, mean 10; second, steps of 2: 0+2+4+6 and 2+4+6+8, mean 16.
    # Action 0: 0 and 8, mean 4; second, steps of 1: 10.
    found = judged((1.0, 0.0), FilterChain())
    assert found.by_member.tolist() == [[10.0, 16.0], [4.0, 10.0]]
    assert found.bound.tolist() == [13.0 - 3.0, 7.0 - 3.0]
    assert judged((1.0,), FilterChain(), pessimism=2.0).bound.tolist() == [13.0 - 6.0]


def test_worlds_end_by_the_task_s_own_rule() -> None:
    # Above 2.5 is the end. First member: 0+1+2, and 2 at once; second: 0+2, and 2 at once.
    assert judged((1.0,), FilterChain(terminate=above(2.5))).by_member.tolist() == [[2.5, 2.0]]


def test_policies_meet_the_same_noise() -> None:
    same = judged((1.0, 1.0), FilterChain(), noise=0.5)
    assert torch.equal(same.by_member[0], same.by_member[1])
    assert torch.equal(judged((0.0, 1.0), FilterChain(), noise=0.5).by_member[1], same.by_member[1])
    assert not torch.equal(same.by_member, judged((1.0, 1.0), FilterChain()).by_member)
