from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_data
from rich.console import Console
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.edge.detector import EdgeWatch
from mbrl.learn.backups import LowerConfidenceBound, Minimum, RandomPair
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.train import Draws, Schedule, Training, TrainingDiverged
from mbrl.types import Backup, Batch, Metrics, StateDict, Transition

PLAN = Schedule(
    updates=60, batch_size=16, real_ratio=0.25, rollout_every=20, rollout_lanes=30, log_every=10, evaluate_every=25,
    checkpoint_seconds=math.inf,
)  # fmt: skip
DATA = random_data(200)
MODELS: dict[tuple[int, ...], GaussianEnsemble] = {}


def model(seeds: tuple[int, ...]) -> GaussianEnsemble:
    """A fitted model; fitted once per choice of seeds."""
    if seeds not in MODELS:
        MODELS[seeds] = GaussianEnsemble(3, 2, seeds, members=2, elites=2, hidden=(16,), max_epochs=2, batch_size=64)
        MODELS[seeds].fit(DATA)
    return MODELS[seeds]


class Watched(SAC):
    """Notes the share of real rows of every update's batch, and how far the run is."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.real: list[list[float]] = []
        self.progress: list[float] = []

    def update(self, batch: Batch, noise: Tensor, progress: Tensor) -> Metrics:
        self.real.append(batch.transition.real.float().mean(-1).tolist())
        self.progress.append(progress.item())
        return super().update(batch, noise, progress)


class Run:
    """A training run of real parts, and what it asked of its surroundings."""

    def __init__(
        self, folder: Path, plan: Schedule = PLAN, *, seeds: tuple[int, ...] = (0, 1), data: Transition = DATA,
        stop_at: int | None = None, **learner: Any,
    ) -> None:  # fmt: skip
        folder.mkdir(exist_ok=True)
        self.evaluated: list[int] = []
        self.saved: dict[int, StateDict] = {}
        self.learner = Watched(3, 2, seeds, hidden=(16,), **learner)
        parts = Imagination(
            model(seeds), PolicyActions(), RandomElite(),
            FilterChain(clip=Clip(DATA), penalise=Penalise(max_aleatoric, 0.5)), 2, 20,
        )  # fmt: skip
        self.logger = RunLogger(folder, seeds=seeds, total_updates=plan.updates, console=Console(quiet=True))
        self.training = Training(
            learner=self.learner, table=ReplayTable(data, 3 * plan.rollout_lanes, len(seeds)), imagination=parts,
            schedule=plan, logger=self.logger, evaluate=self.evaluate, save=self.save,
            should_stop=lambda: stop_at is not None and self.training.step >= stop_at,
        )  # fmt: skip

    def evaluate(self, step: int) -> Mapping[str, float]:
        self.evaluated.append(step)
        self.logger.log_event(step, {"eval/score": float(step)})
        return {"eval/score": float(step)}

    def save(self, step: int, state: StateDict) -> None:
        self.saved[step] = copy.deepcopy(state)

    def end(self) -> StateDict:
        return self.saved[self.training.schedule.updates]


def equal(one: Any, other: Any) -> bool:
    """Whether two nested states are bitwise the same."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_runs_reports_evaluates_and_saves(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.training.run()
    assert run.training.step == 60
    assert run.evaluated == [25, 50, 60]
    assert list(run.saved) == [60]
    assert run.learner.progress == pytest.approx([i / 60 for i in range(60)])
    assert run.learner.real == [[0.25, 0.25]] * 60
    assert run.training.table.written.tolist() == [3 * 2 * 30] * 2  # three rollouts of two steps; two fill the ring
    assert run.training.run()  # a complete run has nothing left to do
    assert run.evaluated == [25, 50, 60]


def test_rows_of_the_log(tmp_path: Path) -> None:
    Run(tmp_path).training.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [10, 20, 25, 30, 40, 50, 60]
    assert [row["update"] for row in rows if "eval/score" in row] == [25, 50, 60]
    assert all(math.isfinite(row["learner/q"]) for row in rows)
    imagined = [row for row in rows if "rollout/kept" in row]
    assert [row["update"] for row in imagined] == [10, 25, 50]  # imagined before 1, 21 and 41
    assert [row for row in rows if "edge/void" in row] == imagined
    for row in imagined:
        assert row["edge/void"] == row["edge/void/seed_1"] == 0.5  # two steps, of which the second leads to the void
        assert row["edge/penalty_last"] > 0
        ratios = [row[f"edge/penalty_last/seed_{s}"] / row[f"edge/penalty_within/seed_{s}"] for s in (0, 1)]
        assert row["edge/penalty_ratio"] == pytest.approx(sum(ratios) / 2, rel=1e-5)


def test_watching_the_edge_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Run(tmp_path / "a")
    watched.training.run()
    monkeypatch.setattr(EdgeWatch, "__call__", lambda self, rows, keep: None)
    blind = Run(tmp_path / "b")
    blind.training.run()
    assert equal(blind.end(), watched.end())


def test_every_row_is_reported_before_a_divergence_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    told: list[tuple[int, float]] = []
    run.training.report = lambda step, row: told.append((step, row["learner/q"]))
    run.training.run()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert told == [(row["update"], row["learner/q"]) for row in rows]
    wrong = Run(tmp_path / "b", data=broken())
    wrong.training.report = lambda step, row: told.append((-step, 0.0))
    with pytest.raises(TrainingDiverged):
        wrong.training.run()
    assert told[-1] == (-10, 0.0)


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (0.05, 0.0), (0.99, 15 / 16), (1.0, 1.0)])
def test_share_of_real_rows_is_rounded_down(tmp_path: Path, ratio: float, share: float) -> None:
    plan = Schedule(updates=3, batch_size=16, real_ratio=ratio, rollout_lanes=20)
    run = Run(tmp_path, plan)
    run.training.run()
    assert run.learner.real == [[share, share]] * 3


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="updates=0 must be at least 1"):
        Schedule(updates=0)
    with pytest.raises(ValueError, match=r"real_ratio=1.5 must lie between 0 and 1"):
        Schedule(updates=1, real_ratio=1.5)


# -- stop and go -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 19, 20, 25, 39, 40, 47, 59])
def test_a_resumed_run_equals_the_uninterrupted_bitwise(tmp_path: Path, stop: int) -> None:
    straight = Run(tmp_path / "a")
    straight.training.run()
    first = Run(tmp_path / "b", stop_at=stop)
    assert not first.training.run()
    assert list(first.saved) == [stop]
    assert first.training.step == stop
    second = Run(tmp_path / "c")
    second.training.load_state_dict(first.saved[stop])
    assert second.training.run()
    assert equal(second.end(), straight.end())
    assert first.evaluated + second.evaluated == straight.evaluated
    assert first.learner.progress + second.learner.progress == straight.learner.progress


@pytest.mark.parametrize("backup", [Minimum(), LowerConfidenceBound(2.0), RandomPair()], ids=lambda b: type(b).__name__)
def test_many_critics_are_resumed_bitwise(backup: Backup, tmp_path: Path) -> None:
    many: dict[str, Any] = {"critics": 10, "backup": backup, "regularisers": [Diversity(1.0)]}
    straight, first = Run(tmp_path / "a", **many), Run(tmp_path / "b", stop_at=27, **many)
    straight.training.run()
    assert not first.training.run()
    second = Run(tmp_path / "c", **many)
    second.training.load_state_dict(first.saved[27])
    assert second.training.run()
    assert equal(second.end(), straight.end())


def test_saving_at_every_update_changes_nothing(tmp_path: Path) -> None:
    straight, saving = Run(tmp_path / "a"), Run(tmp_path / "b", dataclasses.replace(PLAN, checkpoint_seconds=0.0))
    straight.training.run()
    saving.training.run()
    assert list(saving.saved) == list(range(1, 61))
    assert equal(saving.end(), straight.end())


def test_a_seed_trains_the_same_in_any_company(tmp_path: Path) -> None:
    # Stacked matmuls round differently: 1e-4 after 60 updates with imagined rows of a model fitted in a stack, too.
    together, alone = Run(tmp_path / "a", seeds=(0, 1)), Run(tmp_path / "b", seeds=(1,))
    together.training.run()
    alone.training.run()
    for ours, theirs in zip(together.learner.actor, alone.learner.actor, strict=True):
        torch.testing.assert_close(ours[1], theirs[0], rtol=1e-3, atol=1e-4)


# -- draws -------------------------------------------------------------------------------------------------------------


def test_draws_are_functions_of_seed_and_update() -> None:
    draws = Draws((0, 1), 8, 5, "cpu")
    assert draws.block == Draws.BLOCK
    forward = [tuple(x.clone() for x in draws(update)) for update in range(2 * Draws.BLOCK + 3)]
    for update in (0, 1, Draws.BLOCK - 1, Draws.BLOCK, 2 * Draws.BLOCK + 2, 3):  # in any order, from fresh
        uniform, noise = Draws((0, 1), 8, 5, "cpu")(update)
        assert torch.equal(uniform, forward[update][0])
        assert torch.equal(noise, forward[update][1])
        only = Draws((1,), 8, 5, "cpu")(update)
        assert torch.equal(only[0][0], forward[update][0][1])  # whoever else runs
        assert torch.equal(only[1][0], forward[update][1][1])
    everything = {tuple(uniform[s, 0].tolist()) for uniform, _ in forward for s in range(2)}
    assert len(everything) == 2 * len(forward)  # no update and no seed shares its rows with another
    uniform, noise = forward[0]
    assert uniform.dtype == torch.float64
    assert uniform.shape == (2, 1, 8)
    assert noise.shape == (2, 1, 5)


@pytest.mark.parametrize(("noise_size", "block"), [(0, 40), (25, 40), (26, 36), (90, 8), (10_000, 4)])
def test_much_noise_is_drawn_for_fewer_updates_at_once(
    noise_size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Draws, "NUMBERS", 1000)
    draws = Draws((0, 1), 8, noise_size, "cpu")
    assert draws.block == block
    several = [x.clone() for x in draws(block, 4)]
    for i in range(4):
        alone = Draws((1,), 8, noise_size, "cpu")(block + i)
        assert torch.equal(several[0][1, i], alone[0][0, 0])
        assert torch.equal(several[1][1, i], alone[1][0, 0])


def test_draws_of_several_updates_are_those_of_each() -> None:
    draws = Draws((0, 1), 8, 5, "cpu")
    for first in (0, 8, Draws.BLOCK - 4, Draws.BLOCK):
        several = [x.clone() for x in draws(first, 4)]
        for i in range(4):
            for ours, one in zip(several, draws(first + i), strict=True):
                assert torch.equal(ours[:, i : i + 1], one)


def test_rollouts_are_functions_of_seed_and_update(tmp_path: Path) -> None:
    training = Run(tmp_path).training
    rings = []
    for step in (0, 20, 0):
        training.step = step
        training.table.written.zero_()
        training.imagine()
        rings.append([training.table.imagined(s).obs.clone() for s in range(2)])
    for s in range(2):
        assert torch.equal(rings[0][s], rings[2][s])
        assert not torch.equal(rings[0][s][:30], rings[1][s][:30])  # start states are drawn anew
    assert not torch.equal(rings[0][0][:30], rings[0][1][:30])  # and by each seed


# -- divergence --------------------------------------------------------------------------------------------------------


def broken(rows: int = 200) -> Transition:
    reward = DATA.reward.clone()
    reward[:rows] = math.nan
    return DATA._replace(reward=reward)


def test_divergence_is_reported_with_usual_causes(tmp_path: Path) -> None:
    run = Run(tmp_path, data=broken())
    with pytest.raises(
        TrainingDiverged, match=r"learner/critic_loss.* not finite at update 10\. Usual causes"
    ) as caught:
        run.training.run()
    assert "The last checkpoint is from before" in str(caught.value)


def test_a_diverged_learner_is_neither_saved_nor_scored(tmp_path: Path) -> None:
    # The metrics are looked at only at update 1000: a save on the clock before that must not be of broken weights.
    often = dataclasses.replace(PLAN, log_every=1000, checkpoint_seconds=0.0)
    run = Run(tmp_path / "a", often, data=broken())
    with pytest.raises(TrainingDiverged, match="weights not finite at update 1"):
        run.training.run()
    assert run.saved == {}
    seldom = dataclasses.replace(PLAN, log_every=1000)
    run = Run(tmp_path / "b", seldom, data=broken())
    with pytest.raises(TrainingDiverged, match="weights not finite at update 25"):
        run.training.run()
    assert run.evaluated == []
