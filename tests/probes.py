"""Tiny problems whose values are known in closed form, and a toy model whose rollouts can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.learn.sac import SAC
from mbrl.nets import generator, randn
from mbrl.types import Batch, Prediction, Transition


def transitions(
    obs: Sequence[float] | Tensor,
    action: Sequence[float] | Tensor,
    reward: Sequence[float] | Tensor,
    next_obs: Sequence[float] | Tensor,
    terminal: Sequence[bool] | Tensor,
) -> Transition:
    """Real rows of a problem with one observation and one action dimension, from columns of length N."""

    def column(values: Sequence[float] | Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1)

    end = torch.as_tensor(terminal)
    return Transition(
        column(obs), column(action), column(reward)[:, 0], column(next_obs), end, torch.ones_like(end, dtype=torch.bool)
    )


def random_data(rows: int, obs_dim: int = 3, action_dim: int = 2, seed: int = 0) -> Transition:
    """Rows of a smooth system with a little noise, no terminals: for tests that need any dataset at all."""
    source = generator("probes", seed)
    obs = torch.randn(rows, obs_dim, generator=source)
    action = torch.rand(rows, action_dim, generator=source) * 2 - 1
    change = 0.1 * torch.tanh(obs) + 0.2 * action.sum(-1, keepdim=True)
    next_obs = obs + change + 0.05 * torch.randn(rows, obs_dim, generator=source)
    reward = obs[:, 0] - 0.1 * action.square().sum(-1)
    never = torch.zeros(rows, dtype=torch.bool)
    return Transition(obs, action, reward, next_obs, never, ~never)


# -- problems with known values ----------------------------------------------------------------------------------------


def everywhere(obs: float, reward: float, next_obs: float, terminal: bool, actions: int = 33) -> Transition:
    """The same step for actions all over [-1, 1], so that critics know the value of whatever a policy does."""
    same = torch.ones(actions)
    return transitions(obs * same, torch.linspace(-1, 1, actions), reward * same, next_obs * same, [terminal] * actions)


def joined(*parts: Transition) -> Transition:
    """All rows of all parts."""
    return Transition(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def constant_value() -> Transition:
    """One state, one step, reward 1: Q = 1."""
    return everywhere(0.0, 1.0, 0.0, True)


def observed_value() -> Transition:
    """The one step's reward is the observation, -1 or 1: Q(s) = s."""
    return joined(everywhere(-1.0, -1.0, 0.0, True), everywhere(1.0, 1.0, 0.0, True))


def two_steps() -> Transition:
    """State 0 leads to state 1 for nothing, state 1 ends with reward 1: Q(1) = 1, Q(0) = discount."""
    return joined(everywhere(0.0, 0.0, 1.0, False), everywhere(1.0, 1.0, 0.0, True))


def endless() -> Transition:
    """One state that leads to itself with reward 1, and never ends: Q = 1 / (1 - discount), though rows run out."""
    return everywhere(0.0, 1.0, 0.0, False)


def better_action(best: float = 0.5, rows: int = 256) -> Transition:
    """One state, one step, reward -(a - best)^2 for actions all over [-1, 1]: the best action is `best`, Q(a) known."""
    action = torch.linspace(-1, 1, rows)
    flat = torch.zeros(rows)
    return transitions(flat, action, -(action - best).square(), flat, torch.ones(rows, dtype=torch.bool))


def repeat(data: Transition, rows: int, seeds: int) -> Transition:
    """The rows of `data` over and over, (S, rows, .)."""
    index = torch.arange(rows) % data.reward.shape[0]
    return Transition(*(x[index].expand(seeds, *x[index].shape).clone() for x in data))


def train(learner: SAC, data: Transition, updates: int, *, rows: int | None = None, key: str = "probe") -> None:
    """Update on all of a probe's rows at once (or `rows`, by repetition), with noise of the probe's own."""
    seeds = learner.seeds
    batch = Batch(repeat(data, rows or max(32, data.reward.shape[0]), len(seeds)), 0)
    size = batch.transition.reward.shape[-1]
    sources = [generator(seed, key) for seed in seeds]
    for i in range(updates):
        learner.update(batch, randn((learner.noise_size(size),), sources), torch.tensor(i / updates))


def value(learner: SAC, obs: float, action: float = 0.0) -> Tensor:
    """Critics' values (S, E) of one observation and action."""
    count = len(learner.seeds)
    return learner.q(torch.full((count, 1, 1), obs), torch.full((count, 1, 1), action))[..., 0]


# -- a model for rollouts that can be computed by hand -----------------------------------------------------------------


@dataclass
class Counter:
    """A toy model: member e predicts next_obs = obs + action + e and reward = first observation, with std `noise`."""

    elites: Tensor
    members: int = 1
    action_dim: int = 1
    noise: float = 0.0

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (S, N, 1), action (S, N, 1) -> mean, std (S, E, N, 2)."""
        step = torch.arange(float(self.members)).view(-1, 1, 1)
        next_obs = (obs + action).unsqueeze(-3) + step
        mean = torch.cat([next_obs, obs[..., :1].unsqueeze(-3).expand_as(next_obs)], -1)
        return Prediction(mean, torch.full_like(mean, self.noise))


def kinked_data(rows: int, seed: int = 0) -> Transition:
    """A smooth system with a sudden, strong push where the first observation is above 1: like a contact."""
    data = random_data(rows, seed=seed)
    push = torch.where(data.obs[:, :1] > 1.0, 2.0 * torch.sign(data.obs), torch.zeros_like(data.obs))
    return data._replace(next_obs=data.next_obs + push)


@dataclass
class DoubleIntegrator:
    """The LQR problem of position p and velocity v: x' = x + 0.3 (v, a), reward -(p'^2 + 0.1 v'^2 + 0.2 a^2)."""

    elites: Tensor
    members: int = 1
    action_dim: int = 1

    A = torch.tensor([[1.0, 0.3], [0.0, 1.0]])
    B = torch.tensor([[0.0], [0.3]])
    Q = torch.diag(torch.tensor([1.0, 0.1]))
    R = 0.2

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (S, N, 2), action (S, N, 1) -> mean, std (S, 1, N, 3)."""
        following = obs @ self.A.mT + action @ self.B.mT
        reward = -((following @ self.Q) * following).sum(-1) - self.R * action[..., 0].square()
        mean = torch.cat([following, reward.unsqueeze(-1)], -1).unsqueeze(-3)
        return Prediction(mean, torch.zeros_like(mean))

    def best_return(self, obs: Tensor, horizon: int) -> Tensor:
        """obs (*, 2) -> (*): the Riccati recursion; the bounds of the actions must not matter."""
        cost = torch.zeros(2, 2)
        for _ in range(horizon):
            after = self.Q + cost
            gain = (self.B.mT @ after @ self.A) / (self.R + self.B.mT @ after @ self.B)
            closed = self.A - self.B @ gain
            cost = closed.mT @ after @ closed + self.R * gain.mT @ gain
        return -((obs @ cost) * obs).sum(-1)
