"""What is believed of an imagined step. Every filter is a pure function of the step; their order is fixed here.

A filter may lower `alive` (the lane ends after this step) and `keep` (the row does not enter the ring), never raise
them. Only `Terminate` writes `terminal`: with reward 1 and value 100, a row cut by distrust would be worth 1 if it were
stored terminal, 100 if stored truncated, and nothing if dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mbrl.rollout.uncertainty import DISAGREEMENTS, Uncertainty, max_aleatoric, mixture_spread
from mbrl.types import Calibrated, Filter, Imagined, Termination, Transition


class Clip:
    """Keep imagined observations within the data's range, widened by `margin` times its width on both sides.

    Velocities that a model makes up are unbounded otherwise. A row that is not even finite is dropped.

    Args:
        data: the dataset, rows (N, .); without rows there is no range.
        margin: 0 is the range itself; infinity leaves everything but non-finite rows alone (the published MOPO).
    """

    def __init__(self, data: Transition, margin: float = 0.5) -> None:
        if not len(data.obs):  # no range: only what is not finite is dropped
            self.low = data.obs.new_full(data.obs.shape[-1:], -math.inf)
            self.high = -self.low
            return
        low = torch.minimum(data.obs.amin(0), data.next_obs.amin(0))
        high = torch.maximum(data.obs.amax(0), data.next_obs.amax(0))
        # Not margin * 0 in a constant dimension, which is NaN for an infinite margin.
        reach = torch.full_like(low, math.inf) if math.isinf(margin) else margin * (high - low)
        self.low, self.high = low - reach, high + reach

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """Same step with next_obs (S, N, O) inside the range."""
        finite = torch.isfinite(step.next_obs).all(-1) & torch.isfinite(step.reward)
        next_obs = torch.where(finite.unsqueeze(-1), step.next_obs.clamp(self.low, self.high), step.obs)
        reward = torch.where(finite, step.reward, torch.zeros_like(step.reward))
        return step._replace(next_obs=next_obs, reward=reward, keep=step.keep & finite, alive=step.alive & finite)


class Terminate:
    """The task's own end: marks the row terminal and ends the lane."""

    def __init__(self, termination: Termination) -> None:
        self.termination = termination

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """The only filter that writes `terminal`."""
        terminal = self.termination(step.obs, step.action, step.next_obs)
        return step._replace(terminal=terminal, alive=step.alive & ~terminal)


class Penalise:
    """MOPO: reward - coefficient * uncertainty (Yu et al. 2020, equation 2).

    Args:
        uncertainty: of a step.
        coefficient: the weight.
        scale: `median` divides the uncertainty by its median over held-out rows, which `calibrate` finds for every
            seed: coefficients of uncertainties in different units then compare (Lu et al. 2022 give no such unit; it
            is ours). None leaves it in its own unit.

    Raises:
        RuntimeError: from a call, where there is a scale and `calibrate` has not been called.
    """

    def __init__(self, uncertainty: Uncertainty, coefficient: float, scale: Literal["median"] | None = None) -> None:
        self.uncertainty = uncertainty
        self.coefficient = coefficient
        self.scale = scale
        self.name = uncertainty.__name__
        self.unit: Tensor | None = None  # (S, 1) once calibrated

    @property
    def needs_members(self) -> bool:
        """Whether the uncertainty is a disagreement, which a single model does not have."""
        return self.uncertainty in DISAGREEMENTS

    @property
    def asks_held_out(self) -> bool:
        """Whether the unit is found on held-out rows."""
        return self.scale is not None

    def calibrate(self, held_out: Imagined) -> None:
        """Set the unit of every seed to the median uncertainty of its held-out steps (S, N).

        Raises:
            ValueError: a median that nothing can be divided by.
        """
        unit = self.uncertainty(held_out.guess).quantile(0.5, dim=-1, keepdim=True)
        if not bool((unit.isfinite() & (unit > 0)).all()):
            raise ValueError(
                f"rollout.penalise.scale=median: the median of {self.name} over held-out rows is "
                f"{unit.flatten().tolist()}, which is no unit; leave the scale out (rollout.penalise.scale=null)"
            )
        self.unit = unit

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """Only `reward` changes; a row whose uncertainty is not even finite is dropped."""
        penalty = self.coefficient * self.uncertainty(step.guess)
        if self.scale is not None:
            if self.unit is None:
                raise RuntimeError("a penalty in units of its median needs held-out steps first: call `calibrate`")
            penalty = penalty / self.unit
        finite = torch.isfinite(penalty)
        reward = torch.where(finite, step.reward - penalty, step.reward)
        return step._replace(reward=reward, keep=step.keep & finite, alive=step.alive & finite)


Signal = Literal["score", "max_std", "candidate_spread"]


class Truncate:
    """Ends a lane whose step is not believed, and drops that step (MOREC, Luo et al. 2024, with its score).

    A row that ends the task is kept whatever the signal says, and `terminal` is never written.

    Args:
        scale: (O,) standard deviation of the data's one-step changes, the unit of `candidate_spread`.
        signal: `score`, of the state that the selector chose: low is doubtful. `max_std`, the largest norm of a
            member's predicted std, and `candidate_spread`, the std of the members' mixture: high is doubtful, and both
            are there without a score.
        threshold: where doubt begins; None: see `quantile`.
        quantile: share of held-out rows that is more doubtful than the threshold, which `calibrate` then finds.
        minimum_length: the first so many steps of a lane are never cut.

    Raises:
        ValueError: an unknown signal, a quantile outside [0, 1], or neither threshold nor quantile.
        RuntimeError: from a call, where the threshold is a quantile and `calibrate` has not been called.
    """

    def __init__(
        self,
        scale: Tensor,
        *,
        signal: Signal = "candidate_spread",
        threshold: float | None = None,
        quantile: float | None = 0.05,
        minimum_length: int = 0,
    ) -> None:
        if signal not in get_args(Signal):
            raise ValueError(f"rollout.truncate.signal={signal} is unknown; it is {', '.join(get_args(Signal))}")
        if threshold is None and (quantile is None or not 0 <= quantile <= 1):
            raise ValueError(
                f"rollout.truncate.quantile={quantile} must lie between 0 and 1, or rollout.truncate.threshold be given"
            )
        self.scale, self.signal = scale, signal
        self.quantile = quantile if threshold is None else None
        self.minimum_length = minimum_length
        # Inside, high is doubtful always; (S, 1) once calibrated.
        self.limit = None if threshold is None else scale.new_tensor([[-threshold if signal == "score" else threshold]])

    def doubt(self, step: Imagined) -> Tensor:
        """The signal (S, N), high where the step is doubtful."""
        if self.signal == "score":
            return -step.score
        if self.signal == "max_std":
            return max_aleatoric(step.prediction)
        return mixture_spread(step.prediction, self.scale)

    @property
    def asks_held_out(self) -> bool:
        """Whether the threshold is found on held-out rows."""
        return self.quantile is not None

    def calibrate(self, held_out: Imagined) -> None:
        """Set the threshold of every seed to the quantile of its held-out steps (S, N); a given one stays."""
        if self.quantile is not None:
            self.limit = self.doubt(held_out).quantile(1.0 - self.quantile, dim=-1, keepdim=True)

    def threshold(self) -> list[float]:
        """The threshold as the signal has it, of every seed or one for all."""
        limit = self._limit()
        values: list[float] = (-limit if self.signal == "score" else limit).flatten().tolist()
        return values

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """Only `keep` and `alive` change."""
        if t < self.minimum_length:
            return step
        good = step.terminal | (self.doubt(step) <= self._limit())  # a doubt that is not a number is a doubt
        return step._replace(keep=step.keep & good, alive=step.alive & good)

    def _limit(self) -> Tensor:
        if self.limit is None:
            raise RuntimeError("a truncation by quantile needs held-out steps first: call `calibrate`")
        return self.limit


class FilterChain:
    """Filters in their one right order: clip, terminate, penalise, truncate, then any others as given.

    The order is code and not configuration, because a termination must see the clipped state, a penalty must not
    depend on who is cut, and a truncation must see both.
    """

    def __init__(
        self,
        *,
        clip: Filter | None = None,
        terminate: Filter | None = None,
        penalise: Filter | None = None,
        truncate: Filter | None = None,
        others: Sequence[Filter] = (),
    ) -> None:
        named = (clip, terminate, penalise, truncate)
        self.filters = [f for f in named if f is not None] + list(others)

    def to_calibrate(self) -> list[Calibrated]:
        """Those that need held-out rows first."""
        return [part for part in self.filters if isinstance(part, Calibrated) and part.asks_held_out]

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """Apply all, and hold each to its contract: same shapes, dead lanes stay dead, dropped rows stay out."""
        for part in self.filters:
            done = part(step, t)
            name = type(part).__name__
            if [x.shape for x in tensors(done)] != [x.shape for x in tensors(step)]:
                raise ValueError(f"filter {name} changed a shape: {shapes(step)} became {shapes(done)}")
            step = (
                done
                if isinstance(part, Terminate)
                else done._replace(terminal=step.terminal)._replace(
                    alive=done.alive & step.alive, keep=done.keep & step.keep
                )
            )
        return step


def tensors(step: Imagined) -> list[Tensor]:
    """The fields of a step that filters may change."""
    return [step.obs, step.action, step.next_obs, step.reward, step.terminal, step.alive, step.keep, step.score]


def shapes(step: Imagined) -> dict[str, tuple[int, ...]]:
    """Field name -> shape, for messages."""
    return {name: tuple(x.shape) for name, x in zip(step._fields, tensors(step), strict=False)}
