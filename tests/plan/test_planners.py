"""The three searches: optima that are known, and the faults of published planners (each has a test)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from probes import DoubleIntegrator
from torch import Tensor

from mbrl.dynamics.oracle import OracleModel
from mbrl.evaluate import Evaluator
from mbrl.nets import generator
from mbrl.plan.objective import ModelReturns
from mbrl.plan.planners import CEM, ICEM, MPPI, colouring, low_pass, path_weights, truncated_normal
from mbrl.plan.policy import PlanningPolicy
from mbrl.rollout.filters import FilterChain
from mbrl.types import Plan, Planner

PLANNERS: list[Any] = [CEM(6, 64, 3), ICEM(6, 64, 3), MPPI(6, 64, 2)]
ids = lambda planner: type(planner).__name__  # noqa: E731
every = pytest.mark.parametrize("planner", PLANNERS, ids=ids)


@dataclass
class Watched:
    """A function of sequences that remembers what it was asked, and what it said."""

    of: Callable[[Tensor], Tensor]
    asked: list[Tensor] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)

    def __call__(self, sequences: Tensor) -> Tensor:
        self.asked.append(sequences.clone())
        self.said.append(self.of(sequences))
        return self.said[-1].clone()


def bowl(centre: float = 0.4) -> Callable[[Tensor], Tensor]:
    """-1 at all actions equal to the centre, and less elsewhere."""
    return lambda sequences: -1.0 - (sequences - centre).square().sum((-2, -1))


def flat(sequences: Tensor) -> Tensor:
    return torch.zeros(sequences.shape[:3])


def search(
    planner: Planner, returns: Callable[[Tensor], Tensor], lanes: int = 2, seeds: int = 1, steps: int = 1
) -> tuple[Tensor, Plan]:
    """Some steps of fresh lanes with two action dimensions: the last solution and plan."""
    sources = [generator(seed, "test") for seed in range(seeds)]
    plan = planner.begin(seeds, lanes, 2)
    for t in range(steps):
        found, plan = planner(returns, plan, torch.full((seeds, lanes), t == 0), sources)
    return found, plan


# -- noise -------------------------------------------------------------------------------------------------------------


def test_truncated_normal_is_normal_and_cut() -> None:
    noise = truncated_normal(torch.linspace(0, 1 - 1e-7, 100_001))
    assert noise.abs().max() <= 2.0
    assert noise[50_000].abs() < 1e-3
    assert float(noise.std()) == pytest.approx(0.8796, abs=1e-3)  # of a normal cut at 2
    assert float((noise < 1.0).float().mean()) == pytest.approx((0.841345 - 0.022750) / 0.9545, abs=1e-3)


@pytest.mark.parametrize("horizon", [1, 2, 7, 30])
@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_coloured_noise_has_variance_1_at_every_step(horizon: int, colour: float) -> None:
    matrix = colouring(horizon, colour)
    torch.testing.assert_close((matrix @ matrix.mT).diagonal(), torch.ones(horizon))


def test_colour_is_persistence() -> None:
    torch.testing.assert_close(colouring(30, 0.0), torch.eye(30), atol=1e-6, rtol=0)
    neighbours = [float((m := colouring(30, colour))[3] @ m[4]) for colour in (0.0, 1.0, 2.0)]
    assert neighbours == sorted(neighbours)
    assert neighbours[2] > 0.8
    spectrum = torch.fft.rfft(colouring(30, 2.0), dim=0).abs().square().mean(1)
    assert float(spectrum[2] / spectrum[4]) == pytest.approx(4.0, rel=1e-3)  # f^-2


def test_low_pass_noise_is_an_autoregression_of_variance_1() -> None:
    matrix = low_pass(20, 0.7)
    covariance = matrix @ matrix.mT
    gap = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    torch.testing.assert_close(covariance, 0.3**gap)
    torch.testing.assert_close(low_pass(5, 1.0), torch.eye(5))


# -- faults of published planners --------------------------------------------------------------------------------------


@every
def test_std_spreads_the_population(planner: Any) -> None:
    """mbrl-lib's MPPI overwrote its scaled noise by unscaled one: its sigma did nothing."""
    spreads = []
    for std in (0.1, 0.3):
        seen = Watched(flat)
        search(replace(planner, std=std, population=500), seen)
        spreads.append(float(seen.asked[0].std()))
    assert spreads[1] / spreads[0] == pytest.approx(3.0, rel=0.1)
    assert spreads[0] == pytest.approx(0.1, rel=0.15)


@every
def test_sequences_stay_within_bounds(planner: Any) -> None:
    """iCEM's were unbounded once (mbrl-lib, issue 172)."""
    seen = Watched(bowl(1.0))
    search(replace(planner, std=2.0), seen, steps=3)
    assert max(float(x.abs().max()) for x in seen.asked) <= 1.0
    assert float(torch.stack([x.std() for x in seen.asked]).min()) > 0.0


def test_icem_tries_as_many_sequences_as_it_says() -> None:
    planner = ICEM(6, 100, 4, elite_share=0.1, decay=1.5, keep=0.3)
    assert (planner.elites, planner.kept) == (10, 3)
    assert planner.sizes() == [103, 69, 47, 33]
    seen = Watched(bowl())
    search(planner, seen, steps=2)
    assert [x.shape[2] for x in seen.asked] == planner.sizes() * 2
    assert ICEM(6, 100, 6, decay=3.0).sizes()[-1] == 20 + 3 + 1  # twice the elites at least


def test_icem_tries_good_sequences_again() -> None:
    planner = ICEM(6, 60, 3)
    seen = Watched(bowl())
    search(planner, seen, lanes=1, steps=2)
    kept = planner.kept
    for i in (1, 2, 4, 5):  # within a step: the best of the iteration before
        best = seen.said[i - 1][0, 0].topk(kept).indices
        again = seen.asked[i][0, 0, planner.sizes()[i % 3] - kept - (i % 3 == 2) :][:kept]
        torch.testing.assert_close(again, seen.asked[i - 1][0, 0, best])
    best = seen.said[2][0, 0].topk(kept).indices  # in the next step: moved on, with another last action
    moved = seen.asked[3][0, 0, -kept:]
    torch.testing.assert_close(moved[:, :-1], seen.asked[2][0, 0, best, 1:])
    assert (moved[:, -1] != 0).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@every
def test_what_is_not_finite_never_wins(planner: Any, wrong: float) -> None:
    """NaN as a number near 0 wins wherever returns are negative (mbrl-lib, FDM): on the pendulum, always."""

    def half(sequences: Tensor) -> Tensor:
        values = -10.0 - (sequences - 0.5).square().sum((-2, -1))
        return torch.where(sequences[..., 0, 0] > 0.1, wrong, values)

    found, _ = search(planner, half, steps=3)
    assert found.isfinite().all()
    assert (found[..., 0, 0] <= 0.1).all()
    assert (found[..., 1, 1] > 0.1).all()  # where it may, it goes for the optimum


@every
def test_where_nothing_is_finite_the_plan_stays(planner: Any) -> None:
    found, plan = search(planner, lambda sequences: torch.full(sequences.shape[:3], math.nan), steps=2)
    torch.testing.assert_close(found, torch.zeros_like(found))
    assert all(x.isfinite().all() for x in plan)


@every
def test_a_plan_is_not_written_to_and_shares_nothing(planner: Any) -> None:
    """A view of the mean, kept as the past action, became the future one by a shift in place (mbrl-lib)."""
    _, plan = search(planner, bowl())
    before = Plan(*(x.clone() for x in plan))
    found, after = planner(bowl(), plan, torch.zeros(1, 2, dtype=torch.bool), [generator(5)])
    for x, y in zip(plan, before, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    kept = after.solution.clone()
    found.fill_(7.0)
    for x in plan:
        x.fill_(True)
    torch.testing.assert_close(after.solution, kept, rtol=0, atol=0)


@every
def test_the_next_search_begins_a_step_later(planner: Any) -> None:
    ramp = lambda sequences: -(sequences - torch.linspace(-0.9, 0.9, 6).unsqueeze(-1)).square().sum((-2, -1))  # noqa: E731
    found, plan = search(replace(planner, population=300, iterations=6, std=0.4), ramp)
    assert (plan.solution[..., :-1, :] - found[..., 1:, :]).abs().max() < 0.25  # iCEM goes on from its mean
    assert (plan.solution[..., -1, :] == 0).all()
    assert found[0, 0, 0, 0] < -0.5
    assert plan.solution[0, 0, 0, 0] > found[0, 0, 0, 0] + 0.1
    assert plan.known.all()


@every
def test_nothing_of_an_episode_reaches_the_next(planner: Any) -> None:
    """mbrl-lib's reset forgets the shifted solution, but not MPPI's mean and iCEM's elites."""
    _, plan = search(planner, bowl(0.9), steps=3)
    source = lambda: [generator(9)]  # noqa: E731
    both = torch.tensor([[True, False]])
    one, other = Watched(bowl(-0.2)), Watched(bowl(-0.2))
    mixed, after = planner(one, plan, both, source())
    fresh, new = planner(other, planner.begin(1, 2, 2), torch.ones_like(both), source())
    for asked, expected in zip(one.asked, other.asked, strict=True):
        torch.testing.assert_close(asked[:, 0], expected[:, 0])
    torch.testing.assert_close(mixed[:, 0], fresh[:, 0])
    torch.testing.assert_close(after.solution[:, 0], new.solution[:, 0])
    torch.testing.assert_close(after.kept[:, 0], new.kept[:, 0])
    assert (mixed[:, 1] - fresh[:, 1]).abs().max() > 0.05


@every
def test_a_seed_does_not_depend_on_those_beside_it(planner: Any) -> None:
    """The scale of returns, where it is taken at all, is of one lane's population."""

    def returns(sequences: Tensor) -> Tensor:
        unit = torch.tensor([1.0, 1000.0])[: sequences.shape[0], None, None]
        return unit * bowl()(sequences)

    both, _ = search(planner, returns, seeds=2, steps=2)
    alone, _ = search(planner, bowl(), seeds=1, steps=2)
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize("planner", [CEM(6, 40, 3, solution="best"), ICEM(6, 40, 3)], ids=ids)
def test_the_best_sequence_is_no_worse_than_any_seen(planner: Any) -> None:
    rough = lambda sequences: (40.0 * sequences).sin().sum((-2, -1)) - sequences.square().sum((-2, -1))  # noqa: E731
    seen = Watched(rough)
    found, _ = search(planner, seen)
    best = torch.cat(seen.said, -1).amax(-1)
    torch.testing.assert_close(rough(found.unsqueeze(2)).squeeze(2), best)


def test_a_mean_of_two_ways_may_be_none() -> None:
    two_ways = lambda sequences: -(sequences.abs() - 0.8).square().sum((-2, -1))  # noqa: E731
    value = {}
    for solution in ("mean", "best"):
        found, _ = search(CEM(1, 64, 1, momentum=0.0, solution=solution), two_ways, lanes=8)
        value[solution] = float(two_ways(found.unsqueeze(2)).min())
    assert value["best"] > -0.1
    assert value["mean"] < -0.5


# -- MPPI --------------------------------------------------------------------------------------------------------------


def test_mppi_in_stds_does_not_know_the_unit_of_reward() -> None:
    scaled = lambda sequences: 1000.0 * bowl()(sequences) + 500.0  # noqa: E731
    one, _ = search(MPPI(6, 64, 2), bowl())
    same, _ = search(MPPI(6, 64, 2), scaled)
    torch.testing.assert_close(one, same, atol=1e-4, rtol=1e-4)
    in_units = MPPI(6, 64, 2, temperature=1.0, rescale=False)
    assert (search(in_units, bowl())[0] - search(in_units, scaled)[0]).abs().max() > 0.1


def test_path_weights_by_hand() -> None:
    none = torch.zeros(3)
    values = torch.tensor([0.0, 2.0, -math.inf])
    weights = path_weights(values, 2.0, False, none)
    torch.testing.assert_close(weights, torch.tensor([1.0, math.e, 0.0]) / (1 + math.e))
    in_stds = path_weights(values, 2.0, True, none)  # the std of 0 and 2 is 1
    torch.testing.assert_close(in_stds, weights.new_tensor([1.0, math.e, 0.0]) / (1 + math.e))
    charged = path_weights(values, 2.0, False, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(charged, torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(path_weights(torch.full((3,), 4.0), 0.1, True, none), torch.full((3,), 1 / 3))
    assert (path_weights(torch.full((3,), -math.inf), 0.1, True, none) == 0).all()


def test_the_control_cost_draws_the_plan_to_0() -> None:
    plain = MPPI(6, 512, 1, std=0.3, temperature=1.0, rescale=False)
    start = Plan(torch.full((1, 1, 6, 2), 0.5), torch.zeros(1, 1, 0, 6, 2), torch.ones(1, 1, dtype=torch.bool))
    stay = torch.zeros(1, 1, dtype=torch.bool)
    free, _ = plain(flat, start, stay, [generator(0)])
    charged, _ = replace(plain, control_cost=1.0)(flat, start, stay, [generator(0)])
    assert float(free.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(charged.mean()) < 0.4


@pytest.mark.parametrize(
    "make",
    [
        lambda: CEM(0),
        lambda: ICEM(population=1),
        lambda: MPPI(iterations=0),
        lambda: CEM(std=0.0),
        lambda: MPPI(temperature=0.0),
        lambda: MPPI(fresh_share=0.0),
    ],
)
def test_impossible_numbers_are_refused(make: Callable[[], Planner]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


# -- optima that are known ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planner", "off"),
    [(CEM(6, 200, 8), 0.005), (ICEM(6, 100, 12, colour=0.0), 0.02), (MPPI(6, 300, 12, std=0.2), 0.05)],
    ids=ids,
)
def test_the_bottom_of_a_bowl(planner: Any, off: float) -> None:
    found, _ = search(planner, bowl(0.4))
    assert (bowl(0.4)(found.unsqueeze(2)) > -1.0 - off).all()


LQR = [(CEM(8, 350, 5), 1750), (ICEM(8, 70, 11, decay=1.1, colour=0.0), 1750 // 3), (MPPI(8, 350, 5, std=0.2), 1750)]


@pytest.mark.parametrize(("planner", "evaluations"), LQR, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lqr_within_two_percent(planner: Any, evaluations: int, seed: int) -> None:
    """A double integrator from four starts, in one search; iCEM has a third of the evaluations."""
    model = DoubleIntegrator(torch.zeros(1, 1, dtype=torch.long))
    starts = torch.tensor([[[0.4, 0.0], [0.0, 0.4], [-0.3, 0.3], [0.2, 0.2]]])
    returns = ModelReturns(model, FilterChain(), propagation="expectation")
    sources = [generator(seed, "lqr")]
    seen = Watched(returns.at(starts, sources))
    found, _ = planner(seen, planner.begin(1, 4, 1), torch.ones(1, 4, dtype=torch.bool), sources)
    assert sum(x.shape[2] for x in seen.asked) <= evaluations
    best = model.best_return(starts, 8)
    value = returns(starts, found.unsqueeze(2), sources).squeeze(2)
    assert (value <= best * (1 - 1e-5)).all()  # returns are negative
    assert (value >= 1.02 * best).all(), value / best


@pytest.mark.parametrize("planner", [CEM(25, 64, 2), ICEM(25, 48, 2), MPPI(25, 256, 1)], ids=ids)
def test_the_pendulum_swings_up(planner: Any) -> None:
    """The whole table is scripts/reproduce/planners.py; random actions return about -500 in 80 steps."""
    evaluator = Evaluator("Pendulum-v1", episodes=3, seeds=[0], horizon=80)
    model = OracleModel(3, 1, [0], env="Pendulum-v1")
    returns = ModelReturns(model, FilterChain(), simulator=model, propagation="expectation")
    done = evaluator(PlanningPolicy(planner, returns, action_dim=1, seeds=[0], lanes=3), 0)
    evaluator.close()
    assert done.returns.mean() > -250
    assert done.returns.min() > -400
