"""A continuous world with an edge of reach, exactly: its step, its ring, its environment and the oracle's patch.

States are points of the plane and actions displacements in [-1, 1]^2. Starts are uniform in [-1, 1]^2 and imagined
lanes have k = 5 steps, so that with rho the largest absolute coordinate

    rho <= 5        is within reach: such a state can be the first state of an imagined step;
    5 < rho <= 6    is the ring, the edge of reach: such states occur as a lane's last next state alone, where a value
                    is asked for that no update ever sets.

    s' = s + a,    r(s, a) = min(1, rho(s) / 3.5) within reach and -1 outside it,

and in truth the outside is a trap: who is there stays there. No imagined step begins outside, so that a model without
the trap is the exact one. With discount 0.99 no value is above 100 (not counting an entropy bonus), and 100 is reached
by walking to rho >= 3.5 and staying there; the value of the trap is -100.

The idea of a small world in which everything is known but the edge is RAVL's (Sims et al. 2024, arXiv 2402.12527); the
paper's own world is published as a picture, and these equations and constants are ours. A reward that grows outwards is
needed: with an optimum well inside, nothing goes wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.learn.sac import SAC
from mbrl.nets import Params, generator, init_mlp, q_values
from mbrl.types import Batch, Prediction, Transition

Floats = npt.NDArray[np.float32]

ENV = "mbrl.edge.world:EdgeWorld-v0"
LENGTH = 5  # k, steps of an imagined lane
START = 1.0  # starts are uniform in [-START, START]^2
REACH = START + LENGTH - 1
PLATEAU = 3.5  # rho from which on the reward within reach is 1
DISCOUNT = 0.99
BOUND = 1.0 / (1.0 - DISCOUNT)  # no value is above it
TRAP = -BOUND  # the value outside
HORIZON = 50


def distance(state: Tensor) -> Tensor:
    """rho, the largest absolute coordinate: state (*, 2) -> (*)."""
    return state.abs().amax(-1)


def reward(state: Tensor) -> Tensor:
    """r of the state in which an action is taken, whatever it is: state (*, 2) -> (*)."""
    rho = distance(state)
    return torch.where(rho <= REACH, (rho / PLATEAU).clamp(max=1.0), torch.full_like(rho, -1.0))


def in_ring(state: Tensor) -> Tensor:
    """Whether a state is at the edge of reach, REACH < rho <= REACH + 1: state (*, 2) -> (*) bool."""
    rho = distance(state)
    return (rho > REACH) & (rho <= REACH + 1.0)


def true_step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """One true step: state (*, 2), action (*, 2) in [-1, 1] -> next state (*, 2) and reward (*)."""
    inside = (distance(state) <= REACH).unsqueeze(-1)
    return torch.where(inside, state + action, state), reward(state)


def starts(rows: int, seed: int = 0) -> Transition:
    """A dataset that is start states and no more: its steps stand still. Use it with `real_ratio=0`."""
    uniform = torch.rand((rows, 2), generator=generator("edge world", seed))
    obs = START * (2.0 * uniform - 1.0)
    never = torch.zeros(rows, dtype=torch.bool)
    return Transition(obs, torch.zeros_like(obs), reward(obs), obs, never, ~never)


class World:
    """The world as a model without error and without spread; for a member and an elite there is one.

    Args:
        seeds: S.
        device: where the answers live.
    """

    members = 1
    action_dim = 2

    def __init__(self, seeds: int, device: torch.device | str = "cpu") -> None:
        self.elites = torch.zeros((seeds, 1), dtype=torch.long, device=device)

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (S, N, 2), action (S, N, 2) -> mean (S, 1, N, 3) and a std of 0."""
        following, earned = true_step(obs, action)
        mean = torch.cat([following, earned.unsqueeze(-1)], -1).unsqueeze(-3)
        return Prediction(mean, torch.zeros_like(mean))


class OraclePatch(SAC):
    """SAC that is told the true value of the next state at the edge of reach, and there alone (Sims et al. 2024).

    In this world every state of the ring lies in the trap, whose value is `TRAP` whatever is done.
    """

    def target(
        self, batch: Batch, noise: Tensor, penalty: Tensor | None = None, chance: Tensor | None = None
    ) -> Tensor:
        """The Bellman target (S, B) of `SAC`, and r + gamma * TRAP where the next state is in the ring."""
        step = batch.transition
        patched = step.reward + self.discount * TRAP
        return torch.where(in_ring(step.next_obs), patched, super().target(batch, noise, penalty, chance))


class RandomPrior(SAC):
    """SAC whose critics are f_e + scale * p_e: p_e is a fixed random network of its own (Osband et al. 2018).

    Where nothing is learnt the critics differ as their priors do, whatever the learnt parts extrapolate to. It is here
    for the comparison: it did not hold (LOG.md).

    Args:
        prior_scale: the std of a prior over the reach, in units of value.
        settings: as for `SAC`.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, seeds: Sequence[int], *, prior_scale: float, **settings: Any
    ) -> None:
        super().__init__(obs_dim, action_dim, seeds, **settings)
        sources = [generator(seed, "learner", "priors") for seed in self.seeds]
        sizes = [obs_dim + action_dim, *settings["hidden"], 1]
        self.priors = init_mlp(sizes, sources, (self.critics[0].shape[1],))
        probe = REACH * (2.0 * torch.rand((2000, obs_dim), generator=generator("edge world", "priors")) - 1.0)
        spread, centre = torch.std_mean(q_values(self.priors, probe, torch.zeros(2000, action_dim)), -1, keepdim=True)
        factor = (prior_scale / spread).unsqueeze(-1)  # (S, E, 1, 1): the last layer is linear
        self.priors[-1] = (self.priors[-1] - centre.unsqueeze(-1)) * factor
        self.priors[-2] = self.priors[-2] * factor
        self._values = lambda critics, z, action: q_values(critics, z, action) + q_values(self.priors, z, action)

    def critic_loss(
        self, critics: Params, z: Tensor, action: Tensor, target: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As in `SAC`, of the sum of what is learnt and what is fixed; without regularisers."""
        q = self._values(critics, z, action)
        loss = (q - target.unsqueeze(-2)).square().mean(-1).sum(-1)
        return loss.sum(), (loss, q)


class EdgeWorld(gymnasium.Env[Floats, Floats]):  # type: ignore[misc]
    """The true world for Gymnasium, trap included: observation (2,), action (2,) in [-1, 1]."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.state = torch.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start where imagination does."""
        super().reset(seed=seed)
        self.state = torch.from_numpy(self.np_random.uniform(-START, START, 2).astype(np.float32))
        return self.state.numpy().copy(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """One true step; the trap is no end of the episode."""
        move = torch.as_tensor(np.asarray(action, np.float32)).clamp(-1.0, 1.0)
        self.state, earned = true_step(self.state, move)
        return self.state.numpy().copy(), float(earned), False, False, {}


gymnasium.register(ENV.rpartition(":")[2], entry_point=EdgeWorld, max_episode_steps=HORIZON)
