"""What the fits of all scores share: their loop, their report, a schedule, and rows drawn for stacked seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.dynamics.ensemble import FitStopped
from mbrl.nets import rand
from mbrl.types import Metrics, StateDict


@dataclass(frozen=True)
class ScoreReport:
    """What is known on the way of a fit; handed to the caller's `on_progress`."""

    done: int  # steps done
    total: int  # steps of the whole fit
    metrics: Metrics  # (S,) each, of the last step
    state: Callable[[], StateDict]  # everything needed to go on from here


def run_steps(
    step: Callable[[int], Metrics],
    state: Callable[[], StateDict],
    *,
    first: int,
    total: int,
    every: int,
    on_progress: Callable[[ScoreReport], None] | None,
    should_stop: Callable[[], bool],
) -> None:
    """Steps `first` to `total` of a fit, with a report every `every` steps, at the end and before a stop.

    Raises:
        FloatingPointError: a metric is not finite at a report.
        FitStopped: `should_stop` said so; what was done has been reported.
    """
    metrics: Metrics = {}

    def report(done: int) -> None:
        for name, value in metrics.items():
            if not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"the score's {name} became {value.tolist()} at step {done} of {total}; look for extreme values "
                    "with `mbrl inspect`, or lower score.learning_rate"
                )
        if on_progress is not None:
            on_progress(ScoreReport(done, total, metrics, state))

    for done in range(first, total):
        if should_stop():
            if done > first:
                report(done)
            raise FitStopped
        metrics = step(done)
        if (done + 1) % every == 0 or done + 1 == total:
            report(done + 1)


def cosine(done: int, total: int, last: float, device: torch.device) -> Tensor:
    """Factor of the learning rate, (): from 1 to `last` along a half cosine."""
    share = 0.5 * (1.0 + math.cos(math.pi * done / total))
    return torch.tensor(last + (1.0 - last) * share, device=device)


def draw(count: int, rows: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Positions below `rows`, drawn with replacement: (S, count), row s from generator s."""
    return (rand((count,), generators, dtype=torch.float64) * rows).long()
