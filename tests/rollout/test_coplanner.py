"""Planned actions: against the plain loop, in the limits where the answer is known, and where data have a hole."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.cli import main
from mbrl.data.ring import ReplayTable
from mbrl.data.termination import never
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.nets import generator, randn
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.coplanner import UncertaintyPlanner
from mbrl.rollout.estimate import model_estimate
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric, member_std, member_variance
from mbrl.types import Prediction, Transition

ONES = torch.ones(1, 1, 1, 2)
MODELS: dict[tuple[int, ...], GaussianEnsemble] = {}


def fitted(*seeds: int) -> GaussianEnsemble:
    """Three members, two elites, on data of 3 observations and 2 actions."""
    if seeds not in MODELS:
        MODELS[seeds] = GaussianEnsemble(3, 2, seeds, members=3, elites=2, hidden=(16,), max_epochs=2)
        MODELS[seeds].fit(random_data(300))
    return MODELS[seeds]


def noisy(obs: Tensor, noise: Tensor) -> Tensor:
    return torch.tanh(0.3 * obs[..., :1] + noise)


def only(obs: Tensor, noise: Tensor) -> Tensor:
    return torch.tanh(noise)


def beyond(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] > 0.8


def planner(model: Any, termination: Any = never, scale: Tensor | None = None, **settings: Any) -> UncertaintyPlanner:
    unit = model.change_std if scale is None else scale
    return UncertaintyPlanner(model.members, termination, unit, **settings)


def asked(
    parts: UncertaintyPlanner, model: Any, lanes: int, *seeds: int, obs_dim: int = 3, action_dim: int = 2
) -> tuple[Tensor, Tensor]:
    """Observations and noise for so many lanes of every seed."""
    sources = [generator(seed, "coplanner") for seed in seeds]
    size = parts.noise_size(obs_dim, action_dim)
    return randn((lanes, obs_dim), sources), randn((lanes, size), sources)


@dataclass
class Line:
    """Members agree where action <= 0 and are `action` apart per member where it is above: obs' = obs + action + that.

    The reward is `paid(obs, action)` and every member's; std `noise` on all outputs.
    """

    members: int = 3
    noise: float = 0.0
    paid: Any = lambda obs, action: torch.zeros_like(obs)
    action_dim: int = 1
    widest: int = 0
    elites: Tensor = field(default_factory=lambda: torch.tensor([[0, 1, 2]]))

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        self.widest = max(self.widest, obs.shape[1])
        apart = torch.arange(float(self.members)).view(-1, 1, 1) * action.clamp(min=0).unsqueeze(1)
        next_obs = (obs + action).unsqueeze(1) + apart
        mean = torch.cat([next_obs, self.paid(obs, action).unsqueeze(1).expand_as(next_obs)], -1)
        return Prediction(mean, torch.full_like(mean, self.noise))


# -- the plain loop ----------------------------------------------------------------------------------------------------


def one_by_one(
    obs: Tensor, noise: Tensor, model: GaussianEnsemble, *, candidates: int, horizon: int, rate: float, kind: str,
    standardise: bool, mask: bool, discounts: tuple[float, float],
) -> Tensor:  # fmt: skip
    """What a reader of the paper would write: one lane, one candidate, one step at a time; seed 0 only."""
    members, outputs = model.members, 4
    unit = model.change_std[0, 0, 0] if standardise else torch.ones(outputs)
    chosen = []
    for lane in range(obs.shape[1]):
        numbers = noise[0, lane].view(candidates, horizon, -1)
        rated = []
        for own in numbers:
            state, worth, gone, first = obs[0, lane], 0.0, False, None
            for h in range(horizon):
                z, which, rest = own[h, :2], own[h, 2], own[h, 3:]
                action = noisy(state, z)
                first = action if first is None else first
                said = model.predict(state.view(1, 1, -1), action.view(1, 1, -1))
                mean, std = said.mean[0, :, 0], said.std[0, :, 0]
                uniform = 0.5 * (1.0 + math.erf(float(which) / math.sqrt(2.0)))
                elite = int(model.elites[0, int(uniform * 2)])
                if kind == "sample_std":
                    samples = mean + std * rest.view(members, outputs)
                    reached, spread = samples[elite], ((samples / unit).var(0, correction=0)).sqrt().mean()
                else:
                    reached = mean[elite] + std[elite] * rest
                    variance = (mean / unit).var(0, correction=0)
                    spread = variance.mean() if kind == "mean_variance" else variance.sqrt().mean()
                if not (gone and mask):
                    worth += discounts[0] ** h * float(reached[-1]) + rate * discounts[1] ** h * float(spread)
                gone = gone or bool(reached[0] > 0.8)
                state = reached[:-1]
            rated.append((worth, first))
        chosen.append(max(rated, key=lambda pair: pair[0])[1])
    return torch.stack(chosen)[None]


@pytest.mark.parametrize("kind", ["sample_std", "mean_variance", "mean_std"])
@pytest.mark.parametrize(("rate", "standardise", "mask"), [(-2.0, True, True), (1e6, False, True), (-1e6, True, False)])
def test_it_is_the_plain_loop(kind: Any, rate: float, standardise: bool, mask: bool) -> None:
    model = fitted(0)
    parts = planner(
        model, beyond, candidates=4, horizon=3, rate=rate, uncertainty=kind, standardise=standardise,
        mask_terminal=mask, reward_discount=0.9, uncertainty_discount=0.8,
    )  # fmt: skip
    obs, noise = asked(parts, model, 24, 0)
    action, notes = parts(obs, noisy, model, noise)
    expected = one_by_one(
        obs, noise, model, candidates=4, horizon=3, rate=rate, kind=kind, standardise=standardise, mask=mask,
        discounts=(0.9, 0.8),
    )  # fmt: skip
    torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
    assert 0 < notes["plan_first"].mean() < 1
    assert beyond(obs, action, obs).any()  # some lanes end at once


# -- limits ------------------------------------------------------------------------------------------------------------


def test_one_candidate_is_the_policy_bit_for_bit() -> None:
    data, tables = random_data(200), []
    model = fitted(0)
    for actions in (PolicyActions(), planner(model, candidates=1, horizon=7, rate=-9.0)):
        table = ReplayTable(data, 400, 1)
        filters = FilterChain(clip=Clip(data), penalise=Penalise(max_aleatoric, 1.0))
        metrics = Imagination(model, actions, RandomElite(), filters, 4, 64).fill(
            table, 100, noisy, [generator(0, "rollout")]
        )
        tables.append(table.rows)
        assert "plan_first" not in metrics
    assert torch.equal(tables[0], tables[1])


@pytest.mark.parametrize("kind", ["sample_std", "mean_variance", "mean_std"])
def test_an_extreme_rate_takes_the_least_or_the_most_doubtful(kind: Any) -> None:
    model = fitted(0)
    for rate, agrees in ((-1e7, torch.le), (1e7, torch.ge)):
        parts = planner(model, candidates=6, horizon=2, rate=rate, uncertainty=kind)
        obs, noise = asked(parts, model, 64, 0)
        _, notes = parts(obs, noisy, model, noise)
        assert agrees(notes["plan_uncertainty"], notes["plan_uncertainty_all"]).all()
    # And it is the very minimum: of two candidates min + max is twice the mean.
    least, most = (planner(model, candidates=2, horizon=2, rate=rate, uncertainty=kind) for rate in (-1e7, 1e7))
    obs, noise = asked(least, model, 64, 0)
    low, high = (parts(obs, noisy, model, noise)[1] for parts in (least, most))
    torch.testing.assert_close(low["plan_uncertainty"] + high["plan_uncertainty"], 2 * low["plan_uncertainty_all"])


def test_without_a_rate_and_with_one_step_the_best_reward_is_taken() -> None:
    model = Line(paid=lambda obs, action: -(action - 0.3).abs())
    parts = planner(model, scale=ONES, candidates=5, horizon=1, rate=0.0)
    obs, noise = asked(parts, model, 50, 0, obs_dim=1, action_dim=1)
    action, _ = parts(obs, only, model, noise)
    proposed = torch.tanh(noise.view(1, 50, 5, -1)[..., :1])  # (S, n, K, 1)
    nearest = (proposed - 0.3).abs().argmin(2, keepdim=True)
    assert torch.equal(action, proposed.gather(2, nearest).squeeze(2))


def test_a_planted_action_without_disagreement_is_shunned_or_sought() -> None:
    model = Line()
    shares = []
    for rate in (-1.0, 1.0):
        parts = planner(model, scale=ONES, candidates=8, horizon=1, rate=rate, uncertainty="mean_std")
        obs, noise = asked(parts, model, 200, 0, obs_dim=1, action_dim=1)
        action, notes = parts(obs, only, model, noise)
        agree = noise.view(1, 200, 8, -1)[..., 0] <= 0
        both = agree.any(-1) & ~agree.all(-1)
        assert both.sum() > 190
        shares.append((action[..., 0] <= 0)[both].float().mean().item())
        if rate < 0:
            assert notes["plan_uncertainty"][both].max() == 0
    assert shares == [1.0, 0.0]


def test_rewards_after_the_end_count_only_as_published() -> None:
    # Above 0.5 the task ends; two steps later there would be much to earn there.
    def end(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[..., 0] > 0.5

    model = Line(members=1, paid=lambda obs, action: 1.0 + 10.0 * (obs > 0.5), elites=torch.tensor([[0]]))
    found = {}
    for mask in (True, False):
        parts = planner(model, end, ONES, candidates=6, horizon=3, rate=0.0, mask_terminal=mask)
        _, noise = asked(parts, model, 100, 0, obs_dim=1, action_dim=1)
        obs = torch.zeros(1, 100, 1)
        action, _ = parts(obs, lambda obs, z: torch.where(obs > 0.5, -z.abs() * 0, torch.tanh(z)), model, noise)
        ends = torch.tanh(noise.view(1, 100, 6, 3, -1)[..., 0, 0]) > 0.5
        both = ends.any(-1) & ~ends.all(-1)
        assert both.sum() > 50
        found[mask] = (action[..., 0] > 0.5)[both].float().mean().item()
    assert found[False] == 1.0
    assert found[True] < 0.2  # the others of those lanes end two steps later in every candidate


def test_what_is_not_a_number_is_taken_last() -> None:
    model = Line(paid=lambda obs, action: torch.where(action > -0.5, math.nan, action))
    parts = planner(model, scale=ONES, candidates=6, horizon=2, rate=0.0)
    obs, noise = asked(parts, model, 200, 0, obs_dim=1, action_dim=1)
    action, _ = parts(obs, lambda obs, z: torch.tanh(z), model, noise)
    actions = torch.tanh(noise.view(1, 200, 6, 2, -1)[..., 0])
    numbers = (actions <= -0.5).all(-1).any(-1)
    assert numbers.sum() > 20
    assert (action[numbers] <= -0.5).all()
    assert action.isfinite().all()


def test_units_by_hand() -> None:
    said = torch.tensor([[[[0.0, 0.0]], [[2.0, 8.0]]]])  # two members: std 1 and 4
    assert member_std(said).item() == 2.5
    assert member_variance(said).item() == 8.5
    assert member_std(said, torch.tensor([[1.0, 4.0]])).item() == 1.0
    assert member_variance(said, torch.tensor([[0.5, 4.0]])).item() == 2.5


# -- lanes, seeds, chunks ----------------------------------------------------------------------------------------------


def test_lanes_are_planned_each_for_itself() -> None:
    model = fitted(0)
    parts = planner(model, beyond, candidates=3, horizon=3)
    obs, noise = asked(parts, model, 96, 0)
    order = torch.randperm(96)
    action, notes = parts(obs, noisy, model, noise)
    moved, said = parts(obs[:, order], noisy, model, noise[:, order])
    torch.testing.assert_close(moved, action[:, order], rtol=0, atol=0)
    torch.testing.assert_close(said["plan_uncertainty"], notes["plan_uncertainty"][:, order])


def test_chunks_change_nothing_and_bound_what_the_model_sees() -> None:
    found = []
    for chunk in (10_000, 400, 1):
        model = Line(noise=0.1)
        parts = planner(model, scale=ONES, candidates=5, horizon=3, chunk=chunk)
        obs, noise = asked(parts, model, 333, 0, obs_dim=1, action_dim=1)
        found.append(parts(obs, only, model, noise))
        assert model.widest == {10_000: 333 * 5, 400: 64 * 5, 1: 32 * 5}[chunk]
    for action, notes in found[1:]:
        torch.testing.assert_close(action, found[0][0], rtol=0, atol=0)
        torch.testing.assert_close(notes["plan_uncertainty"], found[0][1]["plan_uncertainty"])


def test_stacked_seeds_are_separate_ones() -> None:
    both = planner(fitted(0, 1), beyond, candidates=3, horizon=3)
    obs, noise = asked(both, fitted(0, 1), 64, 0, 1)
    action, notes = both(obs, noisy, fitted(0, 1), noise)
    for i in (0, 1):
        alone = planner(fitted(i), beyond, candidates=3, horizon=3)
        single, said = alone(obs[i : i + 1], noisy, fitted(i), noise[i : i + 1])
        torch.testing.assert_close(single, action[i : i + 1], rtol=0, atol=1e-6)
        for name in said:
            torch.testing.assert_close(said[name], notes[name][i : i + 1], rtol=1e-4, atol=1e-5)


def test_one_real_step_of_every_seed() -> None:
    """As an online loop asks: one observation a seed, an optimistic rate, no filters."""
    model, learner = fitted(0, 1), SAC(3, 2, [0, 1], hidden=(8,))
    parts = planner(model, rate=1.0)
    obs, noise = asked(parts, model, 1, 0, 1)
    action, notes = parts(obs, learner.sample, model, noise)
    assert action.shape == (2, 1, 2)
    assert {name: value.shape for name, value in notes.items()} == dict.fromkeys(notes, (2, 1))
    elites = model.elite_view()
    fewer = UncertaintyPlanner(elites.members, never, model.change_std)
    assert fewer.noise_size(3, 2) < parts.noise_size(3, 2)
    assert fewer(obs, learner.sample, elites, asked(fewer, elites, 1, 0, 1)[1])[0].shape == (2, 1, 2)


# -- in imagination ----------------------------------------------------------------------------------------------------


def test_imagination_asks_in_blocks_and_logs_means_over_living_lanes() -> None:
    model, data = Line(noise=0.05), Transition(*[x[:, :1] if x.dim() > 1 else x for x in random_data(200)])
    parts = planner(model, scale=ONES, candidates=4, horizon=2, chunk=160)
    assert parts.lanes == 32
    end = Terminate(lambda obs, action, next_obs: next_obs[..., 0] > 1.0)
    imagination = Imagination(model, parts, RandomElite(), FilterChain(terminate=end), 3, 500)
    table = ReplayTable(data, 3000, 1)
    metrics = imagination.fill(table, 300, only, [generator(0, "rollout")])
    assert model.widest == 320  # the lanes themselves, whole vectors; never all candidates
    assert imagination.rows_at_once(300) == 300
    assert Imagination(model, parts, RandomElite(), FilterChain(), 3, 500).rows_at_once(10) == 40
    assert {name: value.shape for name, value in metrics.items()} == dict.fromkeys(metrics, (1,))
    assert 0.05 < metrics["plan_first"].item() < 0.6
    assert metrics["plan_uncertainty"] < metrics["plan_uncertainty_all"]
    assert metrics["plan_spread"] > 0.2
    assert metrics["plan_shift"] > 0.2
    rows = table.imagined(0)
    assert len(rows.reward) > 300
    torch.testing.assert_close(rows.next_obs, rows.obs + rows.action, rtol=0, atol=3.0)


def test_notes_of_dead_lanes_are_not_in_the_mean() -> None:
    class Told(PolicyActions):
        def __call__(self, obs: Tensor, *given: Any) -> Any:
            return super().__call__(obs, *given)[0], {"seen": obs[..., 0]}

    # From 0 by 1 each step; above 1.5 lanes end: living lanes are seen at 0 and 1.
    flat = torch.zeros(5, 1)
    data = Transition(flat, flat, flat[:, 0], flat, flat[:, 0] > 1, flat[:, 0] == 0)
    end = Terminate(lambda obs, action, next_obs: next_obs[..., 0] > 1.5)
    model = Line(members=1, elites=torch.tensor([[0]]))
    model.predict = lambda obs, action: Prediction(  # type: ignore[method-assign]
        torch.cat([obs + action, obs], -1).unsqueeze(1), torch.zeros(1, 1, obs.shape[1], 2)
    )
    parts = Imagination(model, Told(), RandomElite(), FilterChain(terminate=end), 5, 100)
    metrics = parts.fill(ReplayTable(data, 100, 1), 7, lambda obs, z: torch.ones_like(z), [generator(0, "x")])
    assert metrics["seen"].item() == 0.5


def test_the_estimate_of_a_policy_is_of_the_policy() -> None:
    model, learner = fitted(0), SAC(3, 2, [0], hidden=(8,))
    starts = random_data(20).obs
    ways = [
        model_estimate(learner, Imagination(model, actions, RandomElite(), FilterChain(), 1, 100), starts, 3, 0)
        for actions in (PolicyActions(), planner(model))
    ]
    assert torch.equal(ways[0]["return"], ways[1]["return"])


# -- the unit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [False, True])
def test_a_model_knows_the_unit_of_its_data_also_when_fitted_again(standardise: bool) -> None:
    data = random_data(300)
    model = GaussianEnsemble(
        3, 2, [0, 1], members=2, elites=1, hidden=(8,), max_epochs=1, standardise_targets=standardise
    )
    assert (model.change_std == 1).all()
    unit = model.change_std  # what a planner holds
    for factor in (1.0, 10.0):
        grown = data._replace(next_obs=data.obs + factor * (data.next_obs - data.obs))
        model.fit(grown)
        assert model.change_std is unit
        train = model.split(300).train[1]
        columns = torch.cat([grown.next_obs - grown.obs, grown.reward[:, None]], -1)[train]
        torch.testing.assert_close(unit[1, 0, 0], columns.std(0, correction=0))
    other = GaussianEnsemble(3, 2, [0, 1], members=2, elites=1, hidden=(8,), standardise_targets=standardise)
    kept = other.change_std
    other.load_state_dict(model.state_dict())
    assert other.change_std is kept
    assert torch.equal(kept, unit)
    former = {name: tensor for name, tensor in model.state_dict().items() if name != "change_std"}
    other.load_state_dict(former)  # from before the name
    assert torch.equal(kept, unit if standardise else torch.ones_like(unit))


def test_units_of_the_data_do_not_matter_when_standardised() -> None:
    model = fitted(0)
    scaled = GaussianEnsemble(3, 2, [0], members=3, elites=2, hidden=(16,))
    scaled.load_state_dict(model.state_dict())
    scaled.change_std.mul_(1000.0)
    for standardise, same in ((True, False), (False, True)):
        plain, large = (
            planner(m, candidates=4, horizon=1, rate=-2.0, standardise=standardise) for m in (model, scaled)
        )
        obs, noise = asked(plain, model, 64, 0)
        first, second = (p(obs, noisy, model, noise)[1]["plan_uncertainty_all"] for p in (plain, large))
        torch.testing.assert_close(second, first if same else first / 1000.0)


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uncertainty=variance is unknown; it is sample_std, mean_variance, mean_std"):
        UncertaintyPlanner(3, never, ONES, uncertainty="variance")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"rate=-2 weighs how much several members of the model differ, and it has one"
    ):
        UncertaintyPlanner(1, never, ONES)
    UncertaintyPlanner(1, never, ONES, rate=0.0)
    UncertaintyPlanner(1, never, ONES, candidates=1)


# -- where data have a hole --------------------------------------------------------------------------------------------


def test_rollouts_go_round_a_hole_or_into_it() -> None:
    path = Path(__file__).resolve().parents[2] / "scripts" / "reproduce" / "coplanner_hole.py"
    hole = runpy.run_path(str(path))
    found = hole["rolled"](hole["fitted"](), (-5.0, -1.0, 0.0, 1.0, 5.0))
    doubt, crossed = [one.doubt for one in found], [one.crossed for one in found]
    assert doubt == sorted(doubt), doubt
    assert doubt[0] < 0.9 * doubt[2], doubt
    assert doubt[2] < 0.97 * doubt[4], doubt
    assert crossed[0] < crossed[1] < crossed[2], crossed
    assert crossed[0] < 0.5 * crossed[2], crossed


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["filter=[coplanner]"], ["filter=[morec,ravl,coplanner]", "score.steps=20"]])
def test_a_run(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    tiny = [
        "task=refrigerator", "updates=20", "batch_size=16", "log_every=20", "eval.every=20", "eval.episodes=1",
        "learner.hidden=[16]", "dynamics.hidden=[16]", "dynamics.max_epochs=2", "rollout.length=3", "seeds=2",
        "rollout.actions.candidates=3", "rollout.actions.horizon=2", "progress=false",
    ]  # fmt: skip
    assert main(["train", *words, *tiny, f"store={tmp_path / 'store'}", f"run_dir={path}"]) == 0
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    said = next(row for row in rows if "rollout/plan_first" in row)
    names = {"plan_spread", "plan_shift", "plan_first", "plan_uncertainty", "plan_uncertainty_all"}
    assert {f"rollout/{name}" for name in names} <= set(said)
    assert said["rollout/plan_uncertainty"] < said["rollout/plan_uncertainty_all"]
    assert 0 < said["rollout/plan_first"] < 1
