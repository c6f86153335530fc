"""The loop: imagine every so often, update on real and imagined rows, report, evaluate, save.

Offline all real rows are there from the beginning. Online an `Experience` adds some, each before its updates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mbrl.capture import EAGER, Choice, Step, capture
from mbrl.data.ring import ReplayTable
from mbrl.edge.detector import EdgeWatch
from mbrl.nets import generator, rand, randn
from mbrl.rollout.imagine import Imagination
from mbrl.types import Learner, Logger, Metrics, StateDict, Stateful


@dataclass(frozen=True)
class Schedule:
    """How long, how much, how often. All intervals count updates.

    Attributes:
        updates: of the whole run; the actor's learning rate schedule ends with it.
        batch_size: rows per update and seed.
        real_ratio: share of real rows in a batch (rounded down, as published).
        rollout_every: imagine afresh this often, first before the first update.
        rollout_lanes: start states per seed each time.
        log_every: a row of metrics this often.
        evaluate_every: an evaluation this often, and one at the end.
        checkpoint_seconds: save the state of the run this often, at the next update.
    """

    updates: int
    batch_size: int = 256
    real_ratio: float = 0.05
    rollout_every: int = 1000
    rollout_lanes: int = 50_000
    log_every: int = 1000
    evaluate_every: int = 5000
    checkpoint_seconds: float = 300.0

    @property
    def real_rows(self) -> int:
        """Rows of a batch that come from the dataset; the others are imagined."""
        return int(self.batch_size * self.real_ratio + 1e-9)  # 0.29 * 100 is below 29

    @property
    def intervals(self) -> tuple[int, ...]:
        """Numbers of updates that one call of several updates must divide."""
        return self.updates, self.rollout_every, self.log_every, self.evaluate_every

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "rollout_every", "rollout_lanes", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.real_ratio <= 1:
            raise ValueError(f"real_ratio={self.real_ratio} must lie between 0 and 1")


class Draws:
    """All randomness of the updates: row picks and noise, drawn a block at a time from (seed, block) alone.

    An update's numbers do not depend on where a run was interrupted, nor on which seeds run beside it, and a
    checkpoint needs no generator state.
    """

    BLOCK = 40  # at most, and always a multiple of the updates in one call
    NUMBERS = 1_000_000  # about as many a seed: a block of MOBILE's noise would be 30 to 140 MB otherwise

    def __init__(self, seeds: Sequence[int], batch_size: int, noise_size: int, device: torch.device | str) -> None:
        self.seeds, self.batch_size, self.noise_size, self.device = tuple(seeds), batch_size, noise_size, device
        self.block = min(self.BLOCK, max(4, self.NUMBERS // max(noise_size, 1) // 4 * 4))
        self._drawn = -1
        self._uniform = self._noise = torch.empty(0)

    def __call__(self, update: int, count: int = 1) -> tuple[Tensor, Tensor]:
        """Numbers of `count` updates: uniform (S, count, B) float64 and standard normal (S, count, noise_size)."""
        block, row = divmod(update, self.block)
        if block != self._drawn:
            sources = [generator(seed, "updates", block, device=self.device) for seed in self.seeds]
            self._uniform = rand((self.block, self.batch_size), sources, dtype=torch.float64)
            self._noise = randn((self.block, self.noise_size), sources)
            self._drawn = block
        return self._uniform[:, row : row + count], self._noise[:, row : row + count]


class TrainingDiverged(RuntimeError):
    """A loss or value is not finite any more."""


class Progress(Protocol):
    """A progress bar, or whatever tells people how far it is."""

    def update(self, advance: int, **fields: Any) -> None:
        """`advance` more updates done."""
        ...


def without_prefix(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores as a progress bar has room for them."""
    return {name.split("/")[-1]: value for name, value in scores.items()}


class Experience(Stateful, Protocol):
    """Real steps that are made while training goes on; see `mbrl.online`."""

    steps: int  # real ones that every seed has made

    @property
    def updates_per_step(self) -> int:
        """Updates between two real steps; one call of several updates must divide it."""
        ...

    def advance(self, update: int) -> bool:
        """Make what comes before update `update`, if it is not done yet; False: asked to stop before it was done."""
        ...


@dataclass
class Training:
    """One run: `run()` goes from the present step to the end, or until asked to stop.

    Attributes:
        learner: what is trained.
        table: real and imagined rows.
        imagination: how rows are imagined.
        schedule: how long, how much, how often.
        logger: collects metrics.
        evaluate: score the policy of the given update, perhaps while training goes on, and log the result itself; the
            newest numbers that are known.
        save: called with the state of the run.
        should_stop: asked after every update; a stop is saved like a checkpoint.
        progress: told about every log interval.
        choice: how updates run, see `mbrl.capture.choose`.
        report: given every row of metrics, and the update it is of.
        experience: real steps on the way; None where all real rows are the dataset's.
        step: updates done.
    """

    learner: Learner
    table: ReplayTable
    imagination: Imagination
    schedule: Schedule
    logger: Logger
    evaluate: Callable[[int], Mapping[str, float]]
    save: Callable[[int, StateDict], None]
    should_stop: Callable[[], bool] = lambda: False
    progress: Progress | None = None
    choice: Choice = EAGER
    report: Callable[[int, Mapping[str, float]], None] = lambda step, row: None
    experience: Experience | None = None
    step: int = 0

    def __post_init__(self) -> None:
        # The count of updates as the captured unit sees it: on the device, so that a replayed graph can advance it.
        self._done = torch.zeros((), device=self.table.rows.device)
        self._captured: Step | None = None

    def run(self, until: int | None = None) -> bool:
        """Train to the end, or to update `until`; False if it was asked to stop and has saved, else True.

        Raises:
            TrainingDiverged: a metric or a weight is not finite; the last checkpoint is from before.
        """
        plan, learner = self.schedule, self.learner
        device = self.table.rows.device
        draws = Draws(learner.seeds, plan.batch_size, learner.noise_size(plan.batch_size), device)
        choice = self.choice
        if self._captured is None:
            self._captured = capture(self.updates, choice.mode)
        self._done.fill_(self.step)
        end = plan.updates if until is None else min(until, plan.updates)
        last_save = time.monotonic()
        reported = self.step

        while self.step < end:
            if not self._live():
                self.save(self.step, self.state_dict())
                return False
            if self.step % plan.rollout_every == 0 and plan.real_rows < plan.batch_size:
                self.imagine()
            if self.step % choice.steps:  # a resumed run that had other settings: back to a whole call
                count, run = 1, self.updates
            else:
                count, run = choice.steps, self._captured
            self.logger.add(run(*draws(self.step, count)), "learner")
            self.step += count

            finished = self.step == plan.updates
            if finished or self.step % plan.evaluate_every == 0 or self.step % plan.log_every == 0:
                scores: Mapping[str, float] = {}
                if finished or self.step % plan.evaluate_every == 0:
                    self._require_finite()
                    scores = self.evaluate(self.step)
                if self.experience is not None:
                    self.logger.log_event(self.step, {"online/steps": float(self.experience.steps)})
                self._report(self.logger.flush(self.step), self.step - reported, scores)
                reported = self.step
            if finished or self.should_stop() or time.monotonic() - last_save > plan.checkpoint_seconds:
                self._require_finite()
                self.save(self.step, self.state_dict())
                last_save = time.monotonic()
                if not finished and self.should_stop():
                    return False
        return True

    def _live(self) -> bool:
        """Let everything happen that comes before the present update; False if asked to stop before it was done."""
        experience = self.experience
        if experience is None or self.step % experience.updates_per_step:
            return True
        return experience.advance(self.step)

    def updates(self, uniform: Tensor, noise: Tensor) -> Metrics:
        """The captured unit: as many updates as uniform (S, count, B) and noise (S, count, n) have numbers for.

        Returns the mean of the updates' metrics.
        """
        total: Metrics = {}
        count = uniform.shape[1]
        for i in range(count):
            batch = self.table.sample(uniform[:, i], self.schedule.real_rows)
            metrics = self.learner.update(batch, noise[:, i], self._done / self.schedule.updates)
            self._done.add_(1)
            total = {name: value + total[name] if total else value for name, value in metrics.items()}
        return {name: value / count for name, value in total.items()} if count > 1 else total

    def imagine(self) -> None:
        """Fill the ring afresh; which states and what noise depends on (seed, step) alone."""
        device = self.table.rows.device
        sources, watching = (
            [generator(seed, purpose, self.step, device=device) for seed in self.learner.seeds]
            for purpose in ("rollout", "edge")
        )
        watch = EdgeWatch(self.learner, watching)
        metrics = self.imagination.fill(self.table, self.schedule.rollout_lanes, self.learner.sample, sources, watch)
        self.logger.add(metrics, "rollout")
        self.logger.add(watch.metrics(), "edge")

    def _report(self, row: Mapping[str, float], advance: int, scores: Mapping[str, float]) -> None:
        self.report(self.step, row)
        wrong = [name for name, value in row.items() if name.startswith("learner/") and not math.isfinite(value)]
        if wrong:
            raise self._diverged(", ".join(wrong))
        if self.progress is not None:
            shown = {"q": row.get("learner/q"), "critic loss": row.get("learner/critic_loss")}
            self.progress.update(advance, **shown, **without_prefix(scores))

    def _require_finite(self) -> None:
        """Before the learner is scored or saved: metrics are only looked at when they are reported."""
        finite = torch.stack([torch.isfinite(w).all() for w in self.learner.weights()])
        if not bool(finite.all()):
            raise self._diverged("weights")

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} not finite at update {self.step}. Usual causes: rewards on a large scale, a model that runs away "
            "(a larger penalty or shorter rollouts would hold it), a learning rate too high. "
            "The last checkpoint is from before."
        )

    def state_dict(self) -> StateDict:
        """Learner, own and imagined rows, step, and where experience stands."""
        state: StateDict = {
            "learner": self.learner.state_dict(),
            "table": self.table.state_dict(),
            "step": self.step,
        }
        return state if self.experience is None else state | {"experience": self.experience.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place."""
        self.learner.load_state_dict(state["learner"])
        self.table.load_state_dict(state["table"])
        self.step = int(state["step"])
        if self.experience is not None:
            self.experience.load_state_dict(state["experience"])
