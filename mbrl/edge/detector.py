"""Telling the edge of reach: where critics are bootstrapped from, and are never trained.

The next state of an imagined lane's last row is a target's input and nobody's own: no update says anything about its
value (Sims et al. 2024, "The edge-of-reach problem in offline model-based reinforcement learning"). A policy that
maximises Q seeks such states, and errors there reach all values before them. Critics that agree where they are trained
need not agree there: their spread is the detector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.nets import randn
from mbrl.types import Learner, Metrics, Transition

# -- spread ------------------------------------------------------------------------------------------------------------


def effective_penalty(q: Tensor) -> Tensor:
    """What the minimum over critics takes off their mean: mean_i Q_i - min_i Q_i, critics (*, E, N) -> (*, N) >= 0."""
    return q.mean(-2) - q.amin(-2)


def log_spread(q: Tensor) -> Tensor:
    """log std_i Q_i over the critics themselves, not as a sample of more: (*, E, N) -> (*, N).

    Of two critics it is the logarithm of `effective_penalty`.
    """
    std = q.std(-2, correction=0)
    return std.clamp(min=torch.finfo(std.dtype).tiny).log()


# -- which states ------------------------------------------------------------------------------------------------------


def void_rows(keep: Tensor, terminal: Tensor) -> Tensor:
    """Rows whose target asks the void: stored, not terminal, and their next state is the start of no stored row.

    That is the last stored row of a lane, whether the lane ended by its length or by distrust.

    Args:
        keep: (*, L, N) bool, the row of step t is stored.
        terminal: (*, L, N) bool.

    Returns:
        (*, L, N) bool.
    """
    follows = torch.zeros_like(keep)
    follows[..., :-1, :] = keep[..., 1:, :]
    return keep & ~terminal & ~follows


def void_share(keep: Tensor, terminal: Tensor) -> Tensor:
    """Share of the stored rows with a bootstrapped target that ask the void: (*, L, N) bool both -> (*)."""
    bootstraps = (keep & ~terminal).sum((-2, -1))
    return void_rows(keep, terminal).sum((-2, -1)) / bootstraps.clamp(min=1)


def last_row(keep: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
    """Where a lane ends: the step of its last stored row (*, N), and whether that row asks the void (*, N) bool.

    A lane that has stored nothing says step 0 and False.
    """
    step = torch.arange(1, keep.shape[-2] + 1, device=keep.device).unsqueeze(-1)
    last = (keep * step).amax(-2) - 1
    at = last.clamp(min=0)
    ended = terminal.gather(-2, at.unsqueeze(-2)).squeeze(-2)
    return at, (last >= 0) & ~ended


# -- how well it tells -------------------------------------------------------------------------------------------------


def lane_auroc(
    positive: Tensor,
    negative: Tensor,
    positive_known: Tensor,
    negative_known: Tensor,
    source: torch.Generator,
    resamples: int = 300,
) -> tuple[float, float, float]:
    """`mbrl.edge.measure.auroc` of states that come in lanes, with a 95 % interval over resampled lanes.

    States of one lane resemble each other, so whole lanes are drawn again, with their positive and negative states.

    Args:
        positive: (N,) one score a lane.
        negative: (T, N) several scores a lane.
        positive_known: (N,) bool, which are there.
        negative_known: (T, N) bool.
        source: of the resampling, on the CPU.
        resamples: of the bootstrap.

    Returns:
        Value, low, high; NaN where there are no pairs.
    """
    positive, negative = positive.detach().cpu(), negative.detach().cpu()
    there, known = positive_known.cpu().double(), negative_known.cpu().double()
    lanes = len(positive)
    wins = torch.zeros(lanes, lanes, dtype=torch.float64)  # of a lane's positive over a lane's negatives
    for scores, counted in zip(negative, known, strict=True):
        above = positive.unsqueeze(1) > scores
        equal = positive.unsqueeze(1) == scores
        wins += (above.double() + 0.5 * equal.double()) * counted
    wins *= there.unsqueeze(1)
    picks = torch.randint(lanes, (resamples, lanes), generator=source)
    weights = torch.zeros(resamples, lanes, dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    weights = torch.cat([torch.ones(1, lanes, dtype=torch.float64), weights])
    values = ((weights @ wins) * weights).sum(-1) / ((weights @ there) * (weights @ known.sum(0)))
    drawn = values[1:][torch.isfinite(values[1:])]
    if not len(drawn):
        return float(values[0]), math.nan, math.nan
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values[0]), low, high


# -- while training goes on --------------------------------------------------------------------------------------------


class EdgeWatch:
    """Looks at rows as they are imagined: what the critics think where lanes end, and within reach.

    All lanes count for the share of bootstraps into the void; the critics are asked about the first `LANES` lanes of a
    seed and at most `STEPS` inputs of a lane, which costs less than two updates. Nothing syncs with the host.

    Args:
        learner: its stochastic policy and critics are asked.
        generators: one per seed, of nobody else: training must not depend on being watched.
    """

    LANES = 256
    STEPS = 8

    def __init__(self, learner: Learner, generators: Sequence[torch.Generator]) -> None:
        self.learner, self.generators = learner, generators
        self.lanes, self.critics = 0, 0
        device = generators[0].device
        self.rows = torch.zeros((2, len(generators)), device=device)  # that ask the void, that bootstrap
        self.states = torch.zeros((4, len(generators)), device=device)  # sum and number, at the end and within reach

    @torch.no_grad()
    def __call__(self, rows: Transition, keep: Tensor) -> None:
        """Lanes that are imagined: rows (S, L, N, .), keep (S, L, N) bool."""
        asking = void_rows(keep, rows.terminal)
        self.rows += torch.stack([asking.sum((-2, -1)), (keep & ~rows.terminal).sum((-2, -1))])
        room = slice(0, self.LANES - self.lanes)
        if room.stop:
            self.ask(Transition(*(x[:, :, room] for x in rows)), keep[:, :, room])

    def ask(self, rows: Transition, keep: Tensor) -> None:
        """The critics' spread at rows' inputs and where lanes end: rows (S, L, N, .), keep (S, L, N) bool."""
        lanes = keep.shape[-1]
        self.lanes += lanes
        stride = math.ceil(keep.shape[1] / self.STEPS)
        last, in_void = last_row(keep, rows.terminal)
        index = last[:, None, :, None].expand(-1, 1, -1, rows.next_obs.shape[-1])
        states = torch.cat([rows.next_obs.gather(1, index), rows.obs[:, ::stride]], 1).flatten(1, 2)
        noise = randn((states.shape[1], rows.action.shape[-1]), self.generators)
        q = self.learner.q(states, self.learner.sample(states, noise))
        self.critics = q.shape[-2]
        penalty = effective_penalty(q).unflatten(-1, (-1, lanes))
        end, within, inputs = penalty[:, 0] * in_void, penalty[:, 1:], keep[:, ::stride]
        self.states += torch.stack(
            [end.sum(-1), in_void.sum(-1), (within * inputs).sum((-2, -1)), inputs.sum((-2, -1))]
        )

    def metrics(self) -> Metrics:
        """(S,) each: `void`, and with several critics `penalty_last`, `penalty_within` and `penalty_ratio`.

        A penalty is NaN where there are no such states.
        """
        void, bootstraps = self.rows
        found = {"void": void / bootstraps.clamp(min=1)}
        if self.critics > 1:
            last, within = self.states[0] / self.states[1], self.states[2] / self.states[3]
            ratio = last / within.clamp(min=torch.finfo(within.dtype).tiny)
            found |= {"penalty_last": last, "penalty_within": within, "penalty_ratio": ratio}
        return found


# -- values that run away ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueBound:
    """What no policy can be worth, given the rewards of a dataset.

    The bound of true values is (max(r_max, 0) + gamma alpha H_max) / (1 - gamma): the largest reward in every step (or
    an end, which is worth 0) and, with a soft backup, the entropy of the uniform policy on [-1, 1]^A, H_max = A log 2.
    A tenth of the largest absolute reward is added to the reward, since a model may predict a little more than the
    data have, and critics err a little.

    alpha falls while a run goes on, and values take 1 / ((1 - gamma) tau) updates to forget what entropy was worth;
    so the temperature counts as its present value, or the first one decayed at that rate, whichever is larger.

    Attributes:
        reward: per step, the tolerance included.
        discount: gamma.
        entropy: per step and unit of temperature, in nats; 0 without a soft backup.
        temperature: alpha at the first update.
        target_rate: tau.
    """

    reward: float
    discount: float
    entropy: float
    temperature: float
    target_rate: float

    @classmethod
    def of(
        cls,
        reward: Tensor,
        discount: float,
        *,
        entropy: float = 0.0,
        temperature: float = 0.0,
        target_rate: float = 1.0,
    ) -> ValueBound:
        """From the rewards (N,) of the data."""
        largest = max(float(reward.max()), 0.0) + 0.1 * float(reward.abs().max())
        return cls(largest, discount, entropy, temperature, target_rate)

    def at(self, update: int, temperature: float) -> float:
        """The bound at an update, whose temperature is given; infinity without a discount."""
        if self.discount >= 1.0:
            return math.inf
        forgotten = math.exp(-(1.0 - self.discount) * self.target_rate * update)
        alpha = max(temperature, self.temperature * forgotten)
        return (self.reward + self.discount * alpha * self.entropy) / (1.0 - self.discount)


@dataclass(frozen=True)
class Runaway:
    """A seed whose mean Q has passed the bound."""

    seed: int
    q: float
    bound: float


def runaways(row: Mapping[str, float], seeds: Sequence[int], update: int, bound: ValueBound) -> list[Runaway]:
    """The seeds whose mean Q in a row of metrics is above the bound."""
    found = []
    for seed in seeds:
        suffix = f"/seed_{seed}" if len(seeds) > 1 else ""
        limit = bound.at(update, row.get(f"learner/temperature{suffix}", 0.0))
        q = row.get(f"learner/q{suffix}", -math.inf)
        if q > limit:
            found.append(Runaway(seed, q, limit))
    return found


def runaway_warning(found: Sequence[Runaway], update: int) -> str:
    """What to say of values that run away, and what to try."""
    which = ", ".join(f"{one.q:.4g} above {one.bound:.4g} (seed {one.seed})" for one in found)
    return (
        f"at update {update:,} mean Q is larger than any policy's value can be by the rewards of the data: {which}. "
        "Q runs away. Either imagined rollouts bootstrap from states at the edge of reach, where nothing is ever "
        "trained, or a critic diverges. What to try: filter=[ravl] (value pessimism), more critics "
        "(learner.critics=10), longer rollouts (fewer end in the void) or shorter ones (less model error), a lower "
        "learner.critic_learning_rate. `mbrl diagnose` of this run says how much is due to the edge"
    )
