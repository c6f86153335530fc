"""What sequences are worth: values that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from probes import Counter, random_data
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import generator
from mbrl.plan.objective import ModelReturns, critics_value
from mbrl.plan.planners import CEM, ICEM, MPPI
from mbrl.plan.policy import PlanningPolicy
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Plan, Prediction


def counter(members: int = 1, noise: float = 0.0) -> Counter:
    """Member e: next_obs = obs + action + e, reward = obs."""
    return Counter(torch.arange(members).unsqueeze(0), members, noise=noise)


def sources(seeds: int = 1) -> list[torch.Generator]:
    return [generator(seed, "objective") for seed in range(seeds)]


def worth(returns: ModelReturns, start: float, *sequences: list[float]) -> Tensor:
    """Of one lane: (P,)."""
    actions = torch.tensor(sequences)[None, None, :, :, None]
    return returns(torch.tensor([[[start]]]), actions, sources())[0, 0]


def above(limit: float) -> FilterChain:
    return FilterChain(terminate=Terminate(lambda obs, action, next_obs: next_obs[..., 0] > limit))


def test_the_sum_of_rewards() -> None:
    returns = ModelReturns(counter(), FilterChain())
    # From 1: rewards 1, 1.5, 1 and 1, 0, -1.
    torch.testing.assert_close(worth(returns, 1.0, [0.5, -0.5, 0.0], [-1.0, -1.0, 1.0]), torch.tensor([3.5, 0.0]))


def test_nothing_counts_after_the_end() -> None:
    """Else a hopper plans through falls."""
    returns = ModelReturns(counter(), above(1.2), bootstrap=lambda obs: 100.0 + obs[..., 0])
    # The first one's second step begins where the task has ended; the other one lives to 1 + 0.1.
    torch.testing.assert_close(worth(returns, 1.0, [0.5, 1.0], [0.1, 0.0]), torch.tensor([1.0, 2.1 + 101.1]))


def test_discount_and_value_at_the_end() -> None:
    returns = ModelReturns(counter(), FilterChain(), discount=0.5, bootstrap=lambda obs: 8.0 * obs[..., 0])
    torch.testing.assert_close(worth(returns, 1.0, [0.5, 0.5, 0.0]), torch.tensor([1 + 0.75 + 0.5 + 0.125 * 16.0]))


def test_a_penalty_comes_off_every_step() -> None:
    model = counter(noise=1.0)  # the norm of the stds of next_obs and reward is sqrt(2)
    plain = ModelReturns(model, FilterChain())
    charged = ModelReturns(model, FilterChain(penalise=Penalise(max_aleatoric, 0.5)))
    off = worth(plain, 1.0, [0.5, 0.0, 0.0]) - worth(charged, 1.0, [0.5, 0.0, 0.0])
    torch.testing.assert_close(off, torch.tensor([3 * 0.5 * math.sqrt(2.0)]))


def test_particles_follow_their_members() -> None:
    model = counter(members=2)
    kept = ModelReturns(model, FilterChain(), propagation="fixed_model", particles=2)
    # Member 0 stays at 0, member 1 goes 0, 1, 2, 3.
    torch.testing.assert_close(worth(kept, 0.0, [0.0] * 4), torch.tensor([3.0]))
    mean = ModelReturns(model, FilterChain(), propagation="expectation", particles=7)
    torch.testing.assert_close(worth(mean, 0.0, [0.0] * 4), torch.tensor([3.0]))  # 0, 0.5, 1, 1.5
    one = ModelReturns(model, FilterChain(), propagation="fixed_model", particles=1)
    drawn = worth(one, 0.0, *[[0.0] * 4] * 64)
    assert set(drawn.tolist()) == {0.0, 6.0}
    mixed = worth(ModelReturns(model, FilterChain()), 0.0, *[[0.0] * 4] * 64)
    assert len(set(mixed.tolist())) > 3


def test_all_sequences_of_a_lane_meet_the_same_noise() -> None:
    returns = ModelReturns(counter(noise=1.0), FilterChain(), particles=3, chunk=4)  # several chunks
    obs, same = torch.zeros(1, 2, 1), torch.zeros(1, 2, 5, 4, 1)
    worths = returns(obs, same, sources())
    torch.testing.assert_close(worths, worths[..., :1].expand_as(worths))
    assert (worths[0, 0, 0] - worths[0, 1, 0]).abs() > 0.01  # lanes differ
    shifted = same.clone()
    shifted[:, :, 1, 0] = 0.5  # three rewards are higher by a half
    again = returns(obs, shifted, sources())
    torch.testing.assert_close(again[..., 1] - again[..., 0], torch.full((1, 2), 1.5))


@dataclass
class Exploding:
    """Pushed to the right it is not a number from the second step on; to the left it costs 1 a step."""

    elites: Tensor = field(default_factory=lambda: torch.zeros(1, 1, dtype=torch.long))
    members: int = 1
    action_dim: int = 1

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        next_obs = torch.where(obs > 0.5, math.nan, obs + action)
        mean = torch.cat([next_obs, -torch.ones_like(obs)], -1).unsqueeze(-3)
        return Prediction(mean, torch.zeros_like(mean))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("planner", [CEM(4, 50, 3), ICEM(4, 50, 3), MPPI(4, 50, 3)], ids=lambda x: type(x).__name__)
def test_a_diverging_rollout_is_no_way_out(planner: Any, clipped: bool) -> None:
    """A clip gives such rows the reward 0 and ends the lane: better than -1 a step, if it counted."""
    data = random_data(20, obs_dim=1, action_dim=1)
    filters = FilterChain(clip=Clip(data) if clipped else None)
    returns = ModelReturns(Exploding(), filters)
    assert worth(returns, 0.0, [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]).isnan().tolist() == [True, False]
    source = sources()
    plan: Plan = planner.begin(1, 1, 1)
    found, _ = planner(returns.at(torch.zeros(1, 1, 1), source), plan, torch.ones(1, 1, dtype=torch.bool), source)
    assert worth(returns, 0.0, found[0, 0, :, 0].tolist()).isfinite().all()


def test_what_ends_before_it_diverges_is_a_return() -> None:
    filters = FilterChain(terminate=Terminate(lambda obs, action, next_obs: next_obs[..., 0] > 0.5))
    assert worth(ModelReturns(Exploding(), filters), 0.0, [1.0, 0.0, 0.0]).tolist() == [-1.0]


@pytest.mark.parametrize("propagation", ["random_model", "fixed_model", "expectation"])
@pytest.mark.parametrize(("population", "particles"), [(1, 1), (7, 2), (5, 4)])
def test_any_population_with_any_ensemble(propagation: Any, population: int, particles: int) -> None:
    """PETS' equal split wants the population to be a multiple of the members (mbrl-lib raises)."""
    model = GaussianEnsemble(3, 2, [0, 1], members=5, elites=3, hidden=[8])
    view = model.elite_view()
    sequences = 2 * torch.rand(2, 2, population, 4, 2) - 1
    obs = torch.randn(2, 2, 3)
    for parts in ({"model": model}, {"model": view}, {"model": view, "simulator": view}):
        returns = ModelReturns(**parts, filters=FilterChain(), propagation=propagation, particles=particles, chunk=6)
        worths = returns(obs, sequences, sources(2))
        assert worths.shape == (2, 2, population)
        assert worths.isfinite().all()


def test_the_elites_alone_answer() -> None:
    model = GaussianEnsemble(3, 2, [0], members=4, elites=2, hidden=[8])
    model.elites = torch.tensor([[3, 1]])
    model._settle()
    obs, sequences = torch.randn(1, 2, 3), 2 * torch.rand(1, 2, 6, 3, 2) - 1
    mean = [
        ModelReturns(m, FilterChain(), propagation="expectation")(obs, sequences, sources())
        for m in (model, model.elite_view())
    ]
    torch.testing.assert_close(*mean)


def test_critics_value_is_the_least_of_the_policys_action() -> None:
    class Learner:
        def act(self, obs: Tensor) -> Tensor:
            return obs[..., :1] / 2

        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return torch.stack([obs[..., 0] + action[..., 0], obs[..., 0] * 0 + 1.0], -2)

    value = critics_value(Learner())(torch.tensor([[[4.0], [0.2]]]))  # type: ignore[arg-type]
    torch.testing.assert_close(value, torch.tensor([[1.0, 0.3]]))


@pytest.mark.parametrize("wrong", [{"particles": 0}, {"discount": 0.0}, {"propagation": "mean"}, {"chunk": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelReturns(counter(), FilterChain(), **wrong)


def test_a_planning_policy_begins_once_and_fills_up() -> None:
    """The evaluator shows more lanes than there are episodes; only those are planned for."""
    resets: list[Tensor] = []

    class Watched(CEM):
        def __call__(self, returns: Any, plan: Plan, reset: Tensor, sources: Any) -> tuple[Tensor, Plan]:
            resets.append(reset.clone())
            return super().__call__(returns, plan, reset, sources)

    steps: list[int] = []
    policy = PlanningPolicy(
        Watched(3, 20, 2), ModelReturns(counter(), FilterChain()), action_dim=1, seeds=[0], lanes=2,
        on_step=lambda: steps.append(1),
    )  # fmt: skip
    for _ in range(2):
        action = policy(torch.zeros(1, 32, 1))
        assert action.shape == (1, 32, 1)
        assert (action[:, :2] > 0.3).all()  # reward is where one is
        assert (action[:, 2:] == 0).all()
    assert [r.tolist() for r in resets] == [[[True, True]], [[False, False]]]
    assert len(steps) == 2
