"""The adversary of the discriminators: a conditional Gaussian of the next state, and the world in which it acts.

Seen from the dynamics reward, the model is an agent: its state is (obs, action), its action the next observation, and
its environment the behaviour policy, which answers a next observation by an action. All tensors are scaled, see
`mbrl.score.discriminator.Coordinates`; actions are as in the data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.dynamics.ensemble import soft_clamp
from mbrl.nets import Params, gaussian_policy, mlp, squash
from mbrl.score.discriminator import Coordinates

LOGVAR_MIN, LOGVAR_MAX = -16.0, 0.5  # soft bounds of the generator's log-variance


def change(params: Params, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The generator: scaled obs (S, B, O) and action (S, B, A) -> mean and log-variance of the change (S, B, O)."""
    mean, raw = mlp(params, torch.cat([obs, action], -1), F.silu).chunk(2, -1)
    return mean, soft_clamp(raw, raw.new_tensor(LOGVAR_MIN), raw.new_tensor(LOGVAR_MAX))


def log_density(mean: Tensor, logvar: Tensor, value: Tensor) -> Tensor:
    """Of a diagonal Gaussian, (*, B) from (*, B, O), in nats."""
    return -0.5 * ((value - mean).square() * (-logvar).exp() + logvar + math.log(2 * math.pi)).sum(-1)


def policy_log_density(params: Params, obs: Tensor, action: Tensor) -> Tensor:
    """Of logged actions (S, B, A) under a tanh-Gaussian policy at scaled obs (S, B, O): (S, B).

    An action on the bound has no pre-image under tanh; it counts as one just inside.
    """
    mean, log_std = gaussian_policy(params, obs)
    before = torch.atanh(action.clamp(-0.9999, 0.9999))
    return squash(mean, log_std, (before - mean) / log_std.exp())[1]


class Rollout(NamedTuple):
    """H generated steps from n starts, flattened to M = H * n rows."""

    obs: Tensor  # (S, M, O) scaled
    action: Tensor  # (S, M, A) scaled
    delta: Tensor  # (S, M, O) scaled, what was generated
    alive: Tensor  # (S, M) bool: all states before were near the data

    def inputs(self) -> Tensor:
        """What a discriminator sees: (S, M, X)."""
        return torch.cat([self.obs, self.action, self.delta], -1)


@torch.no_grad()
def roll(
    generator: Params, behaviour: Params, scale: Coordinates, obs: Tensor, action: Tensor, noise: Tensor
) -> tuple[Rollout, Rollout]:
    """Let generator and behaviour policy answer each other; a lane that leaves the data is dead from then on.

    Args:
        generator: (S, in, out).
        behaviour: (S, in, out).
        scale: of the networks' inputs.
        obs: scaled starts (S, n, O).
        action: at the starts, as in the data (S, n, A).
        noise: standard normal (S, H, n, O+A).

    Returns:
        The rollout; and the last states and actions, M = n, with `alive` as they are left and no change.
    """
    alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
    steps = []
    for eps in noise.unbind(1):
        seen = scale.action(action)
        mean, logvar = change(generator, obs, seen)
        delta = mean + (0.5 * logvar).exp() * eps[..., : obs.shape[-1]]
        steps.append((obs, seen, delta, alive))
        following = scale.step(obs, delta)
        alive = alive & scale.inside(following)
        # A dead lane stays where it was, so that its numbers stay finite.
        obs = torch.where(alive.unsqueeze(-1), following, obs)
        action = squash(*gaussian_policy(behaviour, obs), eps[..., obs.shape[-1] :])[0]
    whole = Rollout(*(torch.stack(column, 1).flatten(1, 2) for column in zip(*steps, strict=True)))
    return whole, Rollout(obs, scale.action(action), torch.zeros_like(obs), alive)


def advantages(reward: Tensor, value: Tensor, follows: Tensor, discount: float = 0.99, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimate (Schulman et al. 2016): sum of (discount * trace)^k delta_{t+k}.

    Args:
        reward: (S, H, n).
        value: (S, H+1, n), the last one of the states after the rollout.
        follows: (S, H, n) bool: the lane is alive after the step; the value of a state that has left the data is 0.
        discount: gamma.
        trace: lambda.

    Returns:
        (S, H, n).
    """
    result = torch.empty_like(reward)
    ahead = torch.zeros_like(reward[:, 0])
    for t in range(reward.shape[1] - 1, -1, -1):
        error = reward[:, t] + discount * value[:, t + 1] * follows[:, t] - value[:, t]
        ahead = error + discount * trace * ahead * follows[:, t]
        result[:, t] = ahead
    return result


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where `mask` is True: (S, B) -> (S,)."""
    return (x * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def clipped_objective(log_ratio: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """PPO (Schulman et al. 2017, equation 7) for every row: min(r A, clip(r, 1 - clip, 1 + clip) A)."""
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
