"""What the fits of all scores share: their loop, their report, a schedule, and rows drawn for stacked seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbrl.capture import gradients
from mbrl.dynamics.ensemble import FitStopped
from mbrl.nets import Params, generator, rand
from mbrl.optim import Adam, copy_tensors
from mbrl.types import Metrics, StateDict

REPORT_EVERY = 100  # steps of `train_network`


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


Loss = Callable[[list[Tensor]], tuple[Tensor, Tensor]]
"""Parameters -> sum over seeds, and the loss of each seed (S,)."""


def train_network(
    params: Params,
    loss_on: Callable[[Sequence[torch.Generator]], Loss],
    *,
    purpose: str,
    seeds: Sequence[int],
    learning_rate: float,
    steps: int,
    on_progress: Callable[[ScoreReport], None] | None,
    should_stop: Callable[[], bool],
    resume: Mapping[str, Any] | None,
) -> None:
    """Adam on one stacked network, in place; the learning rate falls to 2 % along a half cosine.

    Args:
        params: (S, in, out) each.
        loss_on: draws a minibatch from the generators, one per seed, and returns the loss on it.
        purpose: names the stream of random numbers, which are functions of seed and step alone.
        seeds: of the stack.
        learning_rate: at the start.
        steps: of the whole fit.
        on_progress: see `run_steps`, as for the next.
        should_stop: asked before every step.
        resume: what a report's `state()` returned; the result is bitwise that of an uninterrupted fit.
    """
    device = params[0].device
    optimiser = Adam(params, learning_rate)
    done = 0
    if resume is not None:
        done = int(resume["step"])
        copy_tensors(params, resume["params"])
        optimiser.load_state_dict(resume["optimiser"])

    def state() -> StateDict:
        return {"step": done, "params": params, "optimiser": optimiser.state_dict()}

    def step(number: int) -> Metrics:
        nonlocal done
        sources = [generator(seed, "score", purpose, number, device=device) for seed in seeds]
        grads, loss = gradients(loss_on(sources), params)
        optimiser.step(grads, cosine(number, steps, 0.02, device))
        done = number + 1
        return {"loss": loss}

    run_steps(
        step, state, first=done, total=steps, every=REPORT_EVERY, on_progress=on_progress, should_stop=should_stop
    )


def cosine(done: int, total: int, last: float, device: torch.device) -> Tensor:
    """Factor of the learning rate, (): from 1 to `last` along a half cosine."""
    share = 0.5 * (1.0 + math.cos(math.pi * done / total))
    return torch.tensor(last + (1.0 - last) * share, device=device)


def draw(count: int, rows: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Positions below `rows`, drawn with replacement: (S, count), row s from generator s."""
    return (rand((count,), generators, dtype=torch.float64) * rows).long()
