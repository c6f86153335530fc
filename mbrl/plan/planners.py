"""Three searches over action sequences: the cross-entropy method, its improved variant iCEM, and MPPI.

A planner is a frozen set of numbers. What it remembers between steps is a `mbrl.types.Plan`, which the caller holds, so
that nothing of one episode can reach the next; all lanes of all seeds are searched side by side. Sequences live in
[-1, 1]. A sequence whose return is not finite is worth less than any other: published code writes a number near 0 for
it, which wins wherever returns are negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mbrl.nets import rand, randn
from mbrl.types import Plan, SequenceReturns

Solution = Literal["mean", "best"]

CUT = 2.0
"""Stds at which the cross-entropy method's normal distribution is cut off (PETS)."""


# -- pure parts --------------------------------------------------------------------------------------------------------


def settled(returns: Tensor) -> Tensor:
    """Returns (*) with all that is not finite, +inf included, made -inf."""
    return returns.masked_fill(~returns.isfinite(), -math.inf)


def moved_on(sequence: Tensor) -> Tensor:
    """Sequences (*, H, A) a step later: the first action is gone, the last one is mid-range."""
    return torch.cat([sequence[..., 1:, :], torch.zeros_like(sequence[..., :1, :])], -2)


def fresh(seeds: int, lanes: int, horizon: int, action_dim: int, kept: int, device: torch.device | str) -> Plan:
    """The plan of lanes that know nothing, with room for `kept` sequences."""
    solution = torch.zeros((seeds, lanes, horizon, action_dim), device=device)
    room = torch.zeros((seeds, lanes, kept, horizon, action_dim), device=device)
    return Plan(solution, room, torch.zeros((seeds, lanes), dtype=torch.bool, device=device))


def restarted(plan: Plan, reset: Tensor) -> Plan:
    """The plan with the lanes in `reset` (S, N) made to know nothing; new tensors, the old ones stay as they are."""
    forget = reset[..., None, None]
    return Plan(
        plan.solution.masked_fill(forget, 0.0), plan.kept.masked_fill(forget.unsqueeze(-1), 0.0), plan.known & ~reset
    )


def truncated_normal(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) as standard normal ones cut off at +-`CUT`, by the inverse distribution function."""
    outside = math.erfc(CUT / math.sqrt(2.0))
    return (math.sqrt(2.0) * torch.erfinv((1.0 - outside) * (2.0 * uniform - 1.0))).clamp(-CUT, CUT)


def colouring(horizon: int, colour: float) -> Tensor:
    """A matrix (H, H) that gives white noise along time the power spectrum f^-colour, at variance 1 (Timmer 1995).

    0 is white, 1 pink, 2 red: actions that stay on one side for longer, and reach further. Frequency 0 counts as the
    lowest other one.
    """
    frequency = torch.fft.fftfreq(horizon, dtype=torch.float64).abs()
    scale = frequency.clamp(min=1.0 / horizon) ** (-colour / 2.0)
    scale = scale / scale.square().mean().sqrt()
    white = torch.eye(horizon, dtype=torch.float64)
    matrix: Tensor = torch.fft.ifft(scale.unsqueeze(-1) * torch.fft.fft(white, dim=0), dim=0)
    return matrix.real.float()


def low_pass(horizon: int, fresh_share: float) -> Tensor:
    """A matrix (H, H) that makes white noise e into n_0 = e_0, n_t = (1-b) n_{t-1} + sqrt(1 - (1-b)^2) e_t.

    Args:
        horizon: H.
        fresh_share: b in (0, 1]; 1 leaves the noise white. The variance is 1 at every step whatever it is.
    """
    carry = 1.0 - fresh_share
    gap = torch.arange(horizon).unsqueeze(-1) - torch.arange(horizon)
    matrix = torch.where(gap >= 0, torch.tensor(carry) ** gap.clamp(min=0), 0.0)
    matrix[:, 1:] *= math.sqrt(1.0 - carry**2)
    return matrix


def take(sequences: Tensor, index: Tensor) -> Tensor:
    """Sequences (S, N, P, H, A) at index (S, N, k): (S, N, k, H, A)."""
    return torch.take_along_dim(sequences, index[..., None, None], 2)


class Best(NamedTuple):
    """The best sequence of all that were tried."""

    value: Tensor  # (S, N)
    sequence: Tensor  # (S, N, H, A)

    def among(self, sequences: Tensor, values: Tensor) -> Best:
        """This, or something better of sequences (S, N, P, H, A) with values (S, N, P)."""
        value, index = values.max(-1, keepdim=True)
        better = value.squeeze(-1) > self.value
        found = take(sequences, index).squeeze(2)
        return Best(
            torch.where(better, value.squeeze(-1), self.value),
            torch.where(better[..., None, None], found, self.sequence),
        )


class Bell(NamedTuple):
    """Independent normal distributions of all actions of a sequence."""

    mean: Tensor  # (S, N, H, A)
    variance: Tensor  # (S, N, H, A)

    def towards(self, elites: Tensor, values: Tensor, momentum: float) -> Bell:
        """Moved to the moments of elites (S, N, k, H, A), of which those count whose values (S, N, k) are finite.

        momentum old + (1 - momentum) new; the variance is the unbiased one. Where no elite counts, nothing moves.
        """
        weight = values.isfinite().to(elites.dtype)[..., None, None]
        count = weight.sum(2)
        mean = (weight * elites).sum(2) / count.clamp(min=1.0)
        variance = (weight * (elites - mean.unsqueeze(2)).square()).sum(2) / (count - 1.0).clamp(min=1.0)
        still = torch.where(count > 0, momentum, 1.0)
        return Bell(
            still * self.mean + (1.0 - still) * mean,
            still * self.variance + (1.0 - still) * variance,
        )


def begun(plan: Plan, reset: Tensor, std: float) -> tuple[Plan, Bell, Best]:
    """The search of a step before its first iteration: round the plan's solution, and nothing tried yet."""
    plan = restarted(plan, reset)
    bell = Bell(plan.solution, torch.full_like(plan.solution, std**2))
    return plan, bell, Best(torch.full_like(bell.mean[..., 0, 0], -math.inf), bell.mean)


def refined(
    bell: Bell, best: Best, sequences: Tensor, returns: SequenceReturns, elites: int, momentum: float
) -> tuple[Bell, Best, Tensor]:
    """An iteration of the cross-entropy method on sequences (S, N, P, H, A); also its elites, best first."""
    values = settled(returns(sequences))
    top, index = values.topk(elites, -1)
    chosen = take(sequences, index)
    return bell.towards(chosen, top, momentum), best.among(sequences, values), chosen


# -- planners ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method as in PETS (Chua et al. 2018, section 5 and appendix A.2).

    Attributes:
        horizon: H.
        population: sequences of an iteration.
        iterations: refinements of a step's search.
        elite_share: of the population whose moments are taken.
        momentum: of mean and variance.
        std: of every action at first; narrowed near the bounds, so that 2 stds stay within them.
        solution: `mean` of the distribution at the end, or the `best` sequence tried: noisier where returns are, but
            never worse than anything that was seen, where a mean of two ways round an obstacle is.
    """

    horizon: int = 15
    population: int = 350
    iterations: int = 5
    elite_share: float = 0.1
    momentum: float = 0.1
    std: float = 0.5
    solution: Solution = "mean"

    def __post_init__(self) -> None:
        check(self.horizon, self.population, self.iterations, self.std)

    def begin(self, seeds: int, lanes: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan of lanes that know nothing."""
        return fresh(seeds, lanes, self.horizon, action_dim, 0, device)

    def __call__(
        self, returns: SequenceReturns, plan: Plan, reset: Tensor, sources: Sequence[torch.Generator]
    ) -> tuple[Tensor, Plan]:
        """See `mbrl.types.Planner`."""
        plan, bell, best = begun(plan, reset, self.std)
        lanes, horizon, action_dim = bell.mean.shape[1:]
        elites = math.ceil(self.elite_share * self.population)
        for _ in range(self.iterations):
            room = (1.0 - bell.mean.abs()) / CUT  # the nearer bound is `CUT` such stds away
            std = bell.variance.sqrt().minimum(room).unsqueeze(2)
            noise = truncated_normal(rand((lanes, self.population, horizon, action_dim), sources))
            sequences = (bell.mean.unsqueeze(2) + std * noise).clamp(-1.0, 1.0)
            bell, best, _ = refined(bell, best, sequences, returns, elites, self.momentum)
        found = bell.mean if self.solution == "mean" else best.sequence
        return found, Plan(moved_on(found), plan.kept, torch.ones_like(plan.known))


@dataclass(frozen=True)
class ICEM:
    """The cross-entropy method with coloured noise, memory and a shrinking population (Pinneri et al. 2020, iCEM).

    Attributes:
        horizon: H.
        population: fresh sequences of the first iteration.
        iterations: refinements of a step's search.
        elite_share: of the first population whose moments are taken.
        momentum: of mean and variance.
        std: of every action at first; what leaves the bounds is clipped.
        colour: exponent of the noise's spectrum along time, 0 is white. Which is best hangs on how often a task wants
            the action reversed.
        decay: an iteration has so many times fewer fresh sequences than the one before, but twice the elites at least.
        keep: share of the elites that is tried again in the next iteration, and in the next step.
        solution: as for `CEM`; in the last iteration the mean itself is tried, too.
    """

    horizon: int = 15
    population: int = 100
    iterations: int = 3
    elite_share: float = 0.1
    momentum: float = 0.1
    std: float = 0.5
    colour: float = 2.0
    decay: float = 1.3
    keep: float = 0.3
    solution: Solution = "best"

    def __post_init__(self) -> None:
        check(self.horizon, self.population, self.iterations, self.std)

    @property
    def elites(self) -> int:
        """How many sequences give the moments."""
        return math.ceil(self.elite_share * self.population)

    @property
    def kept(self) -> int:
        """How many of them are tried again."""
        return math.ceil(self.keep * self.elites)

    def sizes(self) -> list[int]:
        """Sequences that are tried in each iteration: fresh ones, kept ones, and in the last one the mean."""
        shrunk = [int(self.population * self.decay**-i) for i in range(self.iterations)]
        last = self.iterations - 1
        return [max(size, 2 * self.elites) + self.kept + (i == last) for i, size in enumerate(shrunk)]

    def begin(self, seeds: int, lanes: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan of lanes that know nothing."""
        return fresh(seeds, lanes, self.horizon, action_dim, self.kept, device)

    def __call__(
        self, returns: SequenceReturns, plan: Plan, reset: Tensor, sources: Sequence[torch.Generator]
    ) -> tuple[Tensor, Plan]:
        """See `mbrl.types.Planner`."""
        plan, bell, best = begun(plan, reset, self.std)
        lanes, horizon, action_dim = bell.mean.shape[1:]
        colour = colouring(horizon, self.colour).to(bell.mean)
        kept = plan.kept
        for i, size in enumerate(self.sizes()):
            last = i == self.iterations - 1
            noise = colour @ randn((lanes, size - last, horizon, action_dim), sources)
            sequences = (bell.mean.unsqueeze(2) + bell.variance.sqrt().unsqueeze(2) * noise).clamp(-1.0, 1.0)
            fresh_ones, spare = sequences.split([size - last - self.kept, self.kept], 2)
            if i == 0:  # kept ones have no last action yet, and a lane that knows nothing has none of them
                old = torch.cat([kept[..., :-1, :], spare[..., -1:, :]], -2)
                kept = torch.where(plan.known[..., None, None, None], old, spare)
            tried = [fresh_ones, kept] + ([bell.mean.unsqueeze(2)] if last else [])
            bell, best, elites = refined(bell, best, torch.cat(tried, 2), returns, self.elites, self.momentum)
            kept = elites[:, :, : self.kept]
        found = bell.mean if self.solution == "mean" else best.sequence
        return found, Plan(moved_on(bell.mean), moved_on(kept), torch.ones_like(plan.known))


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral control, information-theoretic (Williams et al. 2017, algorithm 2).

        w_k ~ exp(R_k / (scale temperature) - control_cost u^T C^-1 n_k),   u <- u + sum_k w_k n_k

    with noise n_k of covariance C: a first-order low-pass filter along time times `std`. Noise is what is left of it
    once actions are clipped, so that nobody pays for what was never done.

    Attributes:
        horizon: H.
        population: sequences of an iteration.
        iterations: updates of u; the paper has one.
        std: of the noise, at every step and in every iteration.
        fresh_share: of the noise at each step, see `low_pass`; 1 is the paper's white noise.
        temperature: lambda. Small is greedy.
        rescale: count returns in stds over the population, so that `temperature` means the same in every task;
            otherwise it is in units of the return.
        control_cost: 1 charges noise that goes further in the direction of u as the paper derives it, which draws u to
            0; 0 charges nothing.
    """

    horizon: int = 15
    population: int = 350
    iterations: int = 1
    std: float = 1.0
    fresh_share: float = 0.7
    temperature: float = 0.1
    rescale: bool = True
    control_cost: float = 0.0

    def __post_init__(self) -> None:
        check(self.horizon, self.population, self.iterations, self.std)
        if not 0.0 < self.fresh_share <= 1.0:
            raise ValueError(f"fresh_share={self.fresh_share} must lie in (0, 1]")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature={self.temperature} must be more than 0")

    def begin(self, seeds: int, lanes: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan of lanes that know nothing."""
        return fresh(seeds, lanes, self.horizon, action_dim, 0, device)

    def __call__(
        self, returns: SequenceReturns, plan: Plan, reset: Tensor, sources: Sequence[torch.Generator]
    ) -> tuple[Tensor, Plan]:
        """See `mbrl.types.Planner`."""
        plan = restarted(plan, reset)
        mean = plan.solution
        lanes, horizon, action_dim = mean.shape[1:]
        filtered = low_pass(horizon, self.fresh_share).to(mean)
        whitened = torch.linalg.inv(filtered)
        for _ in range(self.iterations):
            white = randn((lanes, self.population, horizon, action_dim), sources)
            sequences = (mean.unsqueeze(2) + self.std * (filtered @ white)).clamp(-1.0, 1.0)
            values = settled(returns(sequences))
            noise = sequences - mean.unsqueeze(2)
            charge = ((whitened @ mean).unsqueeze(2) * (whitened @ noise)).sum((-2, -1)) / self.std**2
            weight = path_weights(values, self.temperature, self.rescale, self.control_cost * charge)
            mean = mean + (weight[..., None, None] * noise).sum(2)
        return mean, Plan(moved_on(mean), plan.kept, torch.ones_like(plan.known))


def path_weights(values: Tensor, temperature: float, rescale: bool, charge: Tensor) -> Tensor:
    """MPPI's weights of a population (*, P), 0 for values of -inf; all 0 where there is nothing else.

    Args:
        values: (*, P), finite or -inf.
        temperature: in stds of the finite values of a population with `rescale`, else in units of the values.
        rescale: see above.
        charge: (*, P), taken off what is exponentiated.
    """
    finite = values.isfinite()
    known = torch.where(finite, values, 0.0)
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(finite, known - known.sum(-1, keepdim=True) / count, 0.0)
    scale = torch.ones_like(centred[..., :1])
    if rescale:
        std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        scale = torch.where(std > 0, std, scale)
    exponent = (centred / (temperature * scale) - charge).masked_fill(~finite, -math.inf)
    return exponent.softmax(-1).nan_to_num(0.0)


def check(horizon: int, population: int, iterations: int, std: float) -> None:
    """Numbers that no planner can do without.

    Raises:
        ValueError: one is too small.
    """
    if min(horizon, iterations) < 1 or population < 2:
        raise ValueError(
            f"horizon={horizon} and iterations={iterations} must be at least 1, and population={population} at least 2"
        )
    if not std > 0.0:
        raise ValueError(f"std={std} must be more than 0")
