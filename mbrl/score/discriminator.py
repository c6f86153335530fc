"""Discriminators of real and generated transitions, stacked, and the dynamics reward that their history makes.

Luo et al. 2024 (MOREC, "Reward-consistent dynamics models"). What the reward is at use is that of the released code;
how the discriminators are trained was never released, and is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.dynamics.ensemble import scaler
from mbrl.nets import Params, criticise, q_values
from mbrl.score.rows import EnsembleRows

REACH = 0.8  # the data's observations lie in +- this, in the released scaling
LEFT = 1.5  # a generated state beyond this, in the same scaling, is no longer followed
LEAST_GAP = 1e-3  # between mean logits of real and generated rows: a snapshot below has nothing to say


class Coordinates(NamedTuple):
    """The scaling of what networks see, (S, 1, .) each: (x - centre) / scale."""

    obs_centre: Tensor
    obs_scale: Tensor
    action_centre: Tensor
    action_scale: Tensor
    delta_scale: Tensor
    low: Tensor  # scaled observations below this have left the data
    high: Tensor

    def obs(self, obs: Tensor) -> Tensor:
        """obs (S, N, O), scaled."""
        return (obs - self.obs_centre) / self.obs_scale

    def action(self, action: Tensor) -> Tensor:
        """action (S, N, A), scaled."""
        return (action - self.action_centre) / self.action_scale

    def delta(self, delta: Tensor) -> Tensor:
        """Change of the observation (S, N, O), scaled; it has no centre."""
        return delta / self.delta_scale

    def step(self, obs: Tensor, delta: Tensor) -> Tensor:
        """The next observation, scaled, from scaled obs and delta (S, N, O)."""
        return obs + delta * (self.delta_scale / self.obs_scale)

    def inside(self, obs: Tensor) -> Tensor:
        """Whether scaled obs (S, N, O) is near the data: (S, N) bool."""
        return ((obs >= self.low) & (obs <= self.high)).all(-1)


def coordinates(rows: EnsembleRows, inputs: str) -> Coordinates:
    """Measure the scaling on each seed's training rows; what is constant there is left at scale 1.

    Args:
        rows: of the ensemble.
        inputs: `minmax`, the released one: observations to +-0.8 and actions to +-1 by their extremes, changes as
            differences of scaled observations; `standardised`: mean and standard deviation, changes by their own.
    """
    parts = [_coordinates(rows.obs[row], rows.action[row], rows.delta[row], inputs) for row in rows.row]
    return Coordinates(*(torch.stack(x).unsqueeze(-2) for x in zip(*parts, strict=True)))


def _coordinates(obs: Tensor, action: Tensor, delta: Tensor, inputs: str) -> Coordinates:
    obs_centre, half = middle(obs)
    reach = half / REACH
    low, high = obs_centre - LEFT * reach, obs_centre + LEFT * reach
    if inputs == "minmax":
        obs_scale, delta_scale = reach, reach
        action_centre, action_scale = middle(action)
    else:
        obs_centre, obs_scale = scaler(obs)
        action_centre, action_scale = scaler(action)
        delta_scale = scaler(delta)[1]
    low, high = (low - obs_centre) / obs_scale, (high - obs_centre) / obs_scale
    return Coordinates(obs_centre, obs_scale, action_centre, action_scale, delta_scale, low, high)


def middle(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half width of the range of columns (N, D), (D,) each; the half width of a constant one is 1."""
    low, high = columns.amin(0), columns.amax(0)
    half = 0.5 * (high - low)
    return 0.5 * (high + low), torch.where(half <= 1e-6, torch.ones_like(half), half)


def logits(params: Params, x: Tensor) -> Tensor:
    """Discriminators (S, T, in, out) on x = [obs, action, delta], scaled, (S, B, X) -> (S, T, B).

    A discriminator is a critic that sees nothing but an action: the stacked forward pass is the same one.
    """
    return q_values(params, x[..., :0], x)


def discriminator_loss(params: Params, real: Tensor, generated: Tensor, entropy_weight: float) -> Tensor:
    """Binary cross-entropy, less the entropy of the discriminator's opinion, which keeps it from certainty.

    Args:
        params: (S, T, in, out), ReLU.
        real: (S, B, X).
        generated: (S, B, X).
        entropy_weight: 0.001 in the released code.

    Returns:
        (S, T): mean over the rows of each kind.
    """
    both = logits(params, torch.cat([real, generated], -2))
    on_real, on_generated = both.split([real.shape[-2], generated.shape[-2]], -1)
    entropy = F.softplus(both) - both * torch.sigmoid(both)
    return F.softplus(-on_real).mean(-1) + F.softplus(on_generated).mean(-1) - entropy_weight * entropy.mean(-1)


def gradient_penalty(params: Params, x: Tensor) -> Tensor:
    """Mean of max(0, |dlogit/dx| - 1)^2 over rows x (S, B, X), differentiable in the parameters: (S, T).

    The one-sided form of Gulrajani et al. 2017. The gradient is that of an explicit reverse sweep, so that no double
    backward pass is needed.
    """
    slope = criticise(params, x[..., :0], x).action_gradient().square().sum(-1)
    # The root has no derivative at 0, where the penalty is 0 anyway.
    return F.relu(slope.clamp(min=1e-12).sqrt() - 1.0).square().mean(-1)


def dynamics_reward(logit: Tensor, learner: Tensor, expert: Tensor, d_clip: float = 1.0) -> Tensor:
    """The released `prob_mean_clip` reward of a history of discriminators.

    Each logit is clipped to what its discriminator gave generated (`learner`) and real (`expert`) transitions on
    average, brought to [-1, 1], and made a probability; the reward is -log(1 - p), p their mean.

    Args:
        logit: (S, T, N).
        learner: (S, T).
        expert: (S, T). A discriminator that hardly tells one from the other is left out; without any the reward is 0.
        d_clip: upper limit of the probability.

    Returns:
        (S, N), between 0.3133 and 1.3133; log 2 in the middle.
    """
    usable = (expert - learner >= LEAST_GAP).unsqueeze(-1)
    learner, expert = learner.unsqueeze(-1), expert.unsqueeze(-1)
    level = 2.0 * (logit.clamp(learner, expert) - learner) / (expert - learner + 1e-7) - 1.0
    belief = torch.where(usable, torch.sigmoid(level).clamp(max=d_clip), 0.0)
    p = belief.sum(-2) / usable.sum(-2).clamp(min=1)
    return -torch.log(1.0 - p + 1e-9)
