from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate, Truncate, tensors
from mbrl.rollout.uncertainty import HEURISTICS, ensemble_std, ll_variance, loo_kl, max_aleatoric, max_pairwise
from mbrl.types import Filter, Imagined, Prediction, Selected, Transition


def step(next_obs: Tensor, *, alive: Tensor | None = None, reward: Tensor | None = None) -> Imagined:
    """An imagined step of lanes (S, N) that live, unless told which, towards next_obs (S, N, O)."""
    lead, obs_dim = next_obs.shape[:-1], next_obs.shape[-1]
    yes = torch.ones(lead, dtype=torch.bool)
    prediction = Prediction(torch.randn(lead[0], 4, lead[1], obs_dim + 1), torch.rand(lead[0], 4, lead[1], obs_dim + 1))
    alive = yes if alive is None else alive
    reward = torch.ones(lead) if reward is None else reward
    return Imagined(
        obs=torch.zeros_like(next_obs), action=torch.zeros(*lead, 1), next_obs=next_obs, reward=reward,
        terminal=~yes, alive=alive, keep=alive, score=torch.zeros(lead), prediction=prediction,
        selected=Selected(next_obs, reward, torch.zeros(lead), torch.zeros(lead, dtype=torch.long)),
    )  # fmt: skip


def data(low: float = -1.0, high: float = 3.0) -> Transition:
    obs = torch.tensor([[low, 0.0], [high, 0.0]])
    end = torch.zeros(2, dtype=torch.bool)
    return Transition(obs, torch.zeros(2, 1), torch.zeros(2), obs.flip(0), end, ~end)


def above_one(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] > 1.0


class Distrust:
    """Distrusts rows whose next observation is above a limit: not kept, the lane ends, no terminal."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, step: Imagined, t: int) -> Imagined:
        good = step.next_obs[..., 0] <= self.limit
        return step._replace(keep=step.keep & good, alive=step.alive & good)


class Revive:
    """Against the contract: raises what others have lowered."""

    def __call__(self, step: Imagined, t: int) -> Imagined:
        return step._replace(keep=torch.ones_like(step.keep), alive=torch.ones_like(step.alive))


ALL: list[Filter] = [
    Clip(data()),
    Clip(data(), math.inf),
    Terminate(above_one),
    *(Penalise(uncertainty, 1.0) for uncertainty in HEURISTICS),
    Truncate(torch.ones(2), threshold=1.0),
    Truncate(torch.ones(2), signal="max_std", threshold=1.0),
    Truncate(torch.ones(2), signal="score", threshold=0.5),
    FilterChain(clip=Clip(data()), terminate=Terminate(above_one)),
]


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_contract(part: Filter) -> None:
    next_obs = torch.randn(3, 50, 2) * 4
    next_obs[0, :5] = math.nan
    alive = torch.rand(3, 50) < 0.7
    keep = alive & (torch.rand(3, 50) < 0.7)
    before = step(next_obs, alive=alive)._replace(keep=keep)
    copies = [x.clone() for x in tensors(before)]
    after = part(before, 0)
    for then, now, copy in zip(tensors(before), tensors(after), copies, strict=True):
        assert now.shape == then.shape
        assert now.dtype == then.dtype
        torch.testing.assert_close(then, copy, rtol=0, atol=0, equal_nan=True)  # pure
    assert not (after.alive & ~alive).any()
    assert not (after.keep & ~keep).any()
    if not isinstance(part, Terminate | FilterChain):
        assert not after.terminal.any()


def test_clip_keeps_next_observations_in_the_widened_range() -> None:
    next_obs = torch.tensor([[[-9.0, 0.0], [-1.5, 0.0], [2.0, 0.0], [9.0, 5.0]]])
    assert Clip(data(), 0.5)(step(next_obs), 0).next_obs[0].tolist() == [
        [-3.0, 0.0],
        [-1.5, 0.0],
        [2.0, 0.0],
        [5.0, 0.0],
    ]
    assert Clip(data(), 0.0)(step(next_obs), 0).next_obs[0, :, 0].tolist() == [-1.0, -1.0, 2.0, 3.0]


def test_clip_knows_the_range_of_next_observations_too() -> None:
    rows = data()
    rows = rows._replace(next_obs=rows.next_obs + 10.0)
    assert Clip(rows, 0.0)(step(torch.full((1, 1, 2), 99.0)), 0).next_obs[0, 0].tolist() == [13.0, 10.0]


def test_an_infinite_margin_clips_nothing_but_what_is_not_finite() -> None:
    next_obs = torch.tensor([[[-1e9, 7.0], [math.inf, 0.0], [2.0, -7.0]]])
    out = Clip(data(), math.inf)(step(next_obs), 0)
    assert out.next_obs[0].tolist() == [[-1e9, 7.0], [0.0, 0.0], [2.0, -7.0]]
    assert out.keep[0].tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_dropped_and_their_lane_ends(bad: float) -> None:
    next_obs = torch.tensor([[[0.5, 0.0], [bad, 0.0], [0.5, 0.0]]])
    reward = torch.tensor([[1.0, 1.0, bad]])
    out = Clip(data())(step(next_obs, reward=reward), 0)
    assert out.keep[0].tolist() == [True, False, False]
    assert out.alive[0].tolist() == [True, False, False]
    assert not out.terminal.any()  # distrust, not an end
    assert torch.isfinite(out.next_obs).all()
    assert torch.isfinite(out.reward).all()


def test_terminate_marks_the_row_and_ends_the_lane_but_keeps_the_row() -> None:
    out = Terminate(above_one)(step(torch.tensor([[[0.5, 0.0], [1.5, 0.0]]])), 0)
    assert out.terminal[0].tolist() == [False, True]
    assert out.alive[0].tolist() == [True, False]
    assert out.keep[0].tolist() == [True, True]


def test_penalise_takes_the_coefficient_times_the_uncertainty_off_the_reward() -> None:
    before = step(torch.zeros(2, 6, 2))
    out = Penalise(max_aleatoric, 2.5)(before, 0)
    assert torch.equal(out.reward, 1.0 - 2.5 * max_aleatoric(before.prediction))
    for name in ("next_obs", "terminal", "alive", "keep", "score"):
        assert torch.equal(getattr(out, name), getattr(before, name))
    assert not Penalise(max_aleatoric, 1.0).needs_members
    assert Penalise(max_pairwise, 1.0).needs_members
    assert Penalise(loo_kl, 1.0).needs_members
    assert Penalise(ll_variance, 1.0).needs_members
    assert not Penalise(ensemble_std, 1.0).needs_members  # the noise is in it


def test_a_penalty_is_of_what_was_taken_before_it_was_clipped() -> None:
    before = step(torch.full((1, 5, 2), 50.0))
    chain = FilterChain(clip=Clip(data(), 0.0), penalise=Penalise(ll_variance, 1.0))
    torch.testing.assert_close(chain(before, 0).reward, 1.0 - ll_variance(before.guess))


def test_a_penalty_in_units_of_its_median_on_held_out_rows() -> None:
    std = torch.tensor([[1.0, 2.0, 6.0], [10.0, 30.0, 20.0]])  # three lanes of two seeds
    held_out = step(torch.zeros(2, 3, 2))
    held_out = held_out._replace(
        prediction=Prediction(torch.zeros(2, 4, 3, 3), std.view(2, 1, 3, 1).expand(2, 4, 3, 3) / math.sqrt(3.0))
    )
    penalise = Penalise(max_aleatoric, 0.5, "median")
    assert penalise.asks_held_out
    assert not Penalise(max_aleatoric, 0.5).asks_held_out
    assert FilterChain(clip=Clip(data()), penalise=penalise).to_calibrate() == [penalise]
    assert FilterChain(clip=Clip(data()), penalise=Penalise(max_aleatoric, 0.5)).to_calibrate() == []
    with pytest.raises(RuntimeError, match="call `calibrate`"):
        penalise(held_out, 0)
    penalise.calibrate(held_out)
    assert penalise.unit is not None
    torch.testing.assert_close(penalise.unit, torch.tensor([[2.0], [20.0]]))
    expected = 1.0 - 0.5 * torch.tensor([[0.5, 1.0, 3.0], [0.5, 1.5, 1.0]])
    torch.testing.assert_close(penalise(held_out, 0).reward, expected)


@pytest.mark.parametrize("uncertainty", HEURISTICS, ids=lambda form: form.__name__)
def test_in_that_unit_every_median_is_one(uncertainty: Any) -> None:
    held_out = step(torch.randn(2, 101, 2), reward=torch.zeros(2, 101))
    penalise = Penalise(uncertainty, 1.0, "median")
    penalise.calibrate(held_out)
    torch.testing.assert_close((-penalise(held_out, 0).reward).quantile(0.5, -1), torch.ones(2))


def test_a_median_of_zero_is_no_unit() -> None:
    held_out = step(torch.zeros(1, 5, 2))
    sure = Prediction(torch.zeros_like(held_out.prediction.mean), held_out.prediction.std)
    with pytest.raises(ValueError, match=r"the median of max_pairwise over held-out rows is \[0.0\], which is no unit"):
        Penalise(max_pairwise, 1.0, "median").calibrate(held_out._replace(prediction=sure))


def test_termination_sees_the_clipped_state() -> None:
    # 2.0 would be an end; the data's range is [-1, 0.5], so that it is believed to be 0.5, which is none.
    chain = FilterChain(terminate=Terminate(above_one), clip=Clip(data(-1.0, 0.5), 0.0))
    out = chain(step(torch.full((1, 1, 2), 2.0)), 0)
    assert out.next_obs[0, 0].tolist() == [0.5, 0.0]
    assert not out.terminal.any()


def test_penalty_does_not_depend_on_who_is_cut() -> None:
    before = step(torch.tensor([[[0.5, 0.0], [2.0, 0.0], [0.7, 0.0]]]))
    chain = FilterChain(truncate=Distrust(0.6), penalise=Penalise(max_aleatoric, 1.0), terminate=Terminate(above_one))
    out = chain(before, 0)
    torch.testing.assert_close(out.reward, 1.0 - max_aleatoric(before.prediction))
    assert out.keep[0].tolist() == [True, False, False]
    assert out.terminal[0].tolist() == [False, True, False]


def test_truncation_comes_after_termination_and_never_writes_terminal() -> None:
    names: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, step: Imagined, t: int) -> Imagined:
            names.append(f"{self.name}{t}")
            return step

    chain = FilterChain(
        others=[Named("o"), Named("p")], truncate=Named("truncate"), penalise=Named("penalise"),
        terminate=Named("terminate"), clip=Named("clip"),
    )  # fmt: skip
    chain(step(torch.zeros(1, 1, 2)), 3)
    assert names == ["clip3", "terminate3", "penalise3", "truncate3", "o3", "p3"]
    out = FilterChain(truncate=Distrust(0.0))(step(torch.full((1, 2, 2), 0.5)), 0)
    assert not out.terminal.any()
    assert not out.keep.any()


def test_no_filter_brings_back_what_another_has_dropped() -> None:
    next_obs = torch.tensor([[[0.5, 0.0], [math.nan, 0.0], [0.9, 0.0], [0.2, 0.0]]])
    dead = torch.tensor([[True, True, True, False]])
    chain = FilterChain(clip=Clip(data()), truncate=Distrust(0.6), others=[Revive()])
    out = chain(step(next_obs, alive=dead), 0)
    assert out.alive[0].tolist() == [True, False, False, False]
    assert out.keep[0].tolist() == [True, False, False, False]


def test_a_filter_that_changes_a_shape_is_refused() -> None:
    class Squeeze:
        def __call__(self, step: Imagined, t: int) -> Imagined:
            return step._replace(reward=step.reward.unsqueeze(-1))

    with pytest.raises(
        ValueError, match=r"filter Squeeze changed a shape: .*'reward': \(1, 3\).*'reward': \(1, 3, 1\)"
    ):
        FilterChain(others=[Squeeze()])(step(torch.zeros(1, 3, 2)), 0)


def test_an_empty_chain_believes_everything() -> None:
    before = step(torch.randn(2, 5, 3))
    for then, now in zip(tensors(before), tensors(FilterChain()(before, 0)), strict=True):
        assert torch.equal(then, now)


# -- truncation --------------------------------------------------------------------------------------------------------


def scored(scores: list[float]) -> Imagined:
    """Lanes of one seed with these scores."""
    return step(torch.zeros(1, len(scores), 2))._replace(score=torch.tensor([scores]))


def test_rows_with_a_low_score_are_dropped_and_their_lane_ends() -> None:
    out = Truncate(torch.ones(2), signal="score", threshold=0.6)(scored([0.59, 0.6, 1.3, math.nan]), 0)
    assert out.keep[0].tolist() == [False, True, True, False]
    assert out.alive[0].tolist() == [False, True, True, False]
    assert not out.terminal.any()


def test_an_end_of_the_task_is_kept_however_low_its_score() -> None:
    chain = FilterChain(terminate=Terminate(above_one), truncate=Truncate(torch.ones(2), signal="score", threshold=0.6))
    before = step(torch.tensor([[[2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]]))._replace(score=torch.tensor([[0.1, 0.1, 0.9]]))
    out = chain(before, 5)
    assert out.terminal[0].tolist() == [True, False, True]
    assert out.keep[0].tolist() == [True, False, True]
    assert out.alive[0].tolist() == [False, False, False]


def test_the_first_steps_are_not_cut() -> None:
    truncate = Truncate(torch.ones(2), signal="score", threshold=0.6, minimum_length=2)
    assert [bool(truncate(scored([0.1]), t).keep.any()) for t in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("signal", ["max_std", "candidate_spread"])
def test_free_signals_cut_where_the_model_spreads(signal: Any) -> None:
    before = step(torch.zeros(1, 3, 2))
    std = torch.tensor([0.1, 0.5, 2.0]).view(1, 1, 3, 1).expand(1, 4, 3, 3)
    before = before._replace(prediction=Prediction(torch.zeros_like(std), std))
    out = Truncate(torch.ones(2), signal=signal, threshold=1.0)(before, 0)
    assert out.keep[0].tolist() == [True, True, False]


def test_a_quantile_of_held_out_rows_is_each_seeds_threshold() -> None:
    truncate = Truncate(torch.ones(2), signal="score", quantile=0.25)
    with pytest.raises(RuntimeError, match="call `calibrate`"):
        truncate(scored([0.0]), 0)
    scores = torch.stack([torch.arange(101.0), torch.arange(101.0) + 1000.0])
    held_out = step(torch.zeros(2, 101, 2))._replace(score=scores)
    truncate.calibrate(held_out)
    assert truncate.threshold() == [25.0, 1025.0]
    assert truncate(held_out, 0).keep.sum(-1).tolist() == [76, 76]
    spread = Truncate(torch.ones(2), quantile=0.25)
    held_out = held_out._replace(
        prediction=Prediction(torch.zeros(2, 4, 101, 3), scores.view(2, 1, 101, 1).expand(2, 4, 101, 3))
    )
    spread.calibrate(held_out)
    assert spread.threshold() == [75.0, 1075.0]
    assert spread(held_out, 0).keep.sum(-1).tolist() == [76, 76]


def test_a_given_threshold_is_not_calibrated() -> None:
    truncate = Truncate(torch.ones(2), signal="score", threshold=0.6, quantile=0.25)
    truncate.calibrate(scored([5.0, 6.0]))
    assert truncate.threshold() == [pytest.approx(0.6)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"signal": "doubt"}, "signal=doubt is unknown; it is score, max_std, candidate_spread"),
        ({"quantile": 5}, "quantile=5 must lie between 0 and 1, or rollout.truncate.threshold be given"),
        ({"quantile": None}, "quantile=None must lie between 0 and 1"),
    ],
)
def test_truncations_that_mean_nothing_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Truncate(torch.ones(2), **words)
