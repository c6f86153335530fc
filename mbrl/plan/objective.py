"""What action sequences are worth under a model: its rewards until the task ends, averaged over particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mbrl.nets import rand, randn
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import ElitesMean, RandomElite
from mbrl.types import DynamicsModel, Learner, SequenceReturns, Simulator

Propagation = Literal["random_model", "fixed_model", "expectation"]


class ModelReturns:
    """Returns of action sequences, imagined.

        J = 1/R sum_r [ sum_{t<H} discount^t r_t + discount^H V(s_H) ]

    where nothing counts after the task has ended (PETS, Chua et al. 2018, section 5; the last term is ours). A particle
    whose state or reward is not finite, or that a filter drops, makes the whole return NaN, which planners take for
    the worst there is. All sequences of a lane meet the same noise, so that they differ by what they do.

    Args:
        model: all its elites may answer.
        filters: clip, terminate, penalise: as in imagination.
        simulator: answers for each row with one elite, 1/K of the work, where no filter looks at the spread.
        propagation: `random_model`, another elite at every step (TS1 of PETS); `fixed_model`, every particle keeps its
            own (TS-infinity); `expectation`, the elites' mean without noise.
        particles: R, at least 1; for `expectation` it is 1 whatever is said.
        discount: per step, in (0, 1].
        bootstrap: V, obs (S, M, O) -> (S, M), for particles that live at the end; None: the sum ends there.
        chunk: rows that go through all steps together, about. A CPU wants what its cache holds.

    Raises:
        ValueError: an unknown propagation, or a number out of range.
    """

    def __init__(
        self,
        model: DynamicsModel,
        filters: FilterChain,
        *,
        simulator: Simulator | None = None,
        propagation: Propagation = "random_model",
        particles: int = 1,
        discount: float = 1.0,
        bootstrap: Callable[[Tensor], Tensor] | None = None,
        chunk: int = 5120,
    ) -> None:
        if propagation not in get_args(Propagation):
            raise ValueError(f"propagation={propagation} is unknown; it is {', '.join(get_args(Propagation))}")
        if particles < 1 or chunk < 1 or not 0.0 < discount <= 1.0:
            raise ValueError(
                f"particles={particles} and chunk={chunk} must be at least 1, and discount={discount} in (0, 1]"
            )
        mean = propagation == "expectation"
        spread = any(not isinstance(part, Clip | Terminate) for part in filters.filters)
        # Actions are given here; of the imagination only its steps are asked.
        self.imagination = Imagination(
            model, PolicyActions(), ElitesMean() if mean else RandomElite(), filters, length=0, chunk=chunk,
            simulator=None if mean or spread else simulator,
        )  # fmt: skip
        self.propagation, self.particles = propagation, 1 if mean else particles
        self.discount, self.bootstrap = discount, bootstrap

    def at(self, obs: Tensor, sources: Sequence[torch.Generator]) -> SequenceReturns:
        """The function that a planner asks, of states (S, N, O)."""
        return lambda sequences: self(obs, sequences, sources)

    @torch.no_grad()
    def __call__(self, obs: Tensor, sequences: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """obs (S, N, O), sequences (S, N, P, H, A), one generator per seed -> (S, N, P), NaN for failures."""
        lanes, population, horizon = sequences.shape[1:4]
        outputs = obs.shape[-1] + 1
        size = self.imagination.select.noise_size(outputs)
        noise = randn((horizon, self.particles, lanes, 1, size), sources)
        width = max(1, self.imagination.chunk // (self.particles * lanes))
        parts = [
            self._roll(obs, sequences[:, :, begin : begin + width], noise, sources)
            for begin in range(0, population, width)
        ]
        return torch.cat(parts, -1)

    def _roll(self, obs: Tensor, sequences: Tensor, noise: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """As `__call__`, with the noise (S, H, R, N, 1, .) already drawn."""
        seeds, lanes, population, horizon = sequences.shape[:4]
        shape = (seeds, self.particles, lanes, population)

        def rows(x: Tensor) -> Tensor:
            """(S, R or 1, N, P or 1, D) -> (S, R * N * P, D)."""
            return x.expand(*shape, x.shape[-1]).reshape(seeds, math.prod(shape[1:]), x.shape[-1])

        # Who sorts particles by this gives each its own share of the elites.
        rank = torch.arange(self.particles, device=obs.device).view(-1, 1, 1)
        uniform = ((rank + rand(shape[1:], sources)) / self.particles).flatten(1)  # (S, M)
        state = rows(obs[:, None, :, None])
        total = torch.zeros_like(state[..., 0])
        alive = torch.ones_like(total, dtype=torch.bool)
        failed = ~alive
        for t in range(horizon):
            if self.propagation == "random_model" and t > 0:
                uniform = rand(shape[1:], sources).flatten(1)
            step = self.imagination.guess(state, rows(sequences[:, None, :, :, t]), alive, rows(noise[:, t]), uniform)
            finite = step.next_obs.isfinite().all(-1) & step.reward.isfinite()
            step = self.imagination.filters(step, t)
            failed |= alive & ~(finite & step.keep)
            total += torch.where(alive, self.discount**t * step.reward, 0.0)
            state, alive = step.next_obs, step.alive
        if self.bootstrap is not None:
            total += torch.where(alive, self.discount**horizon * self.bootstrap(state), 0.0)
        return total.masked_fill(failed, torch.nan).view(shape).mean(1)


def critics_value(learner: Learner) -> Callable[[Tensor], Tensor]:
    """V(s) = min_i Q_i(s, mean action of the policy), obs (S, M, O) -> (S, M)."""
    return lambda obs: learner.q(obs, learner.act(obs)).amin(-2)
