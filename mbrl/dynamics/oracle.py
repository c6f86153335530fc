"""The true next state of any observation, from the simulator: what diagnoses measure models against, and a model.

A simulator is set to the state that an observation describes and makes one step. That is exact for locomotion tasks,
whose observation lacks nothing but the horizontal position, on which neither dynamics nor reward depend, except where
an observed velocity has been clipped to +-10.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.data.builtin import pendulum_obs, pendulum_step
from mbrl.data.refrigerator import TARGET, refrigerator_step
from mbrl.evaluate import EvaluationError, make_env
from mbrl.types import Prediction

Floats = npt.NDArray[np.float64]

LOCOMOTION = ("HopperEnv", "Walker2dEnv", "HalfCheetahEnv")
SHOWN_VELOCITY = {"HopperEnv": 10.0, "Walker2dEnv": 10.0}
"""Where observed velocities are clipped, and at what."""


class TrueStep(NamedTuple):
    """What the simulator says of N states and actions."""

    states: Floats  # (N, D) full states, to go on from
    next_obs: npt.NDArray[Any]  # (N, O)
    reward: Floats  # (N,)
    terminated: npt.NDArray[np.bool_]  # (N,)


class Oracle:
    """One environment that is set to states at will.

    Args:
        env: as for `mbrl.evaluate.make_env`: Hopper, Walker2d and HalfCheetah of any version, with or without x in the
            observation; Pendulum; the built-in refrigerator, whose noise is left out.
        env_kwargs: keyword arguments of the environment.
        action_low: (A,) what -1 stands for in environment units; default: the environment's bounds.
        action_high: (A,) what 1 stands for.

    Raises:
        EvaluationError: it cannot be set to an observation.
    """

    def __init__(
        self,
        env: str,
        env_kwargs: Mapping[str, Any] | None = None,
        *,
        action_low: npt.NDArray[Any] | None = None,
        action_high: npt.NDArray[Any] | None = None,
    ) -> None:
        made = make_env(env, env_kwargs)
        self._env: Any = made.unwrapped
        low = made.action_space.low if action_low is None else action_low
        high = made.action_space.high if action_high is None else action_high
        self._middle, self._half = (np.asarray(high, float) + low) / 2, (np.asarray(high, float) - low) / 2
        self._kind = type(self._env).__name__
        if self._kind not in (*LOCOMOTION, "PendulumEnv", "Refrigerator"):
            made.close()
            raise EvaluationError(
                f"env={env}: the full state is not known from an observation; it is for Hopper, Walker2d, HalfCheetah, "
                "Pendulum and the built-in refrigerator"
            )
        self._env.reset(seed=0)

    def states(self, obs: npt.NDArray[Any]) -> Floats:
        """Full states (N, D) that observations (N, O) describe; a hidden x is 0."""
        obs = np.asarray(obs, np.float64)
        if self._kind == "PendulumEnv":
            return np.stack([np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]], -1)
        if self._kind in LOCOMOTION and obs.shape[-1] < self._env.model.nq + self._env.model.nv:
            return np.concatenate([np.zeros_like(obs[:, :1]), obs], -1)
        return obs

    def hides(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Observations (N, O) that show a clipped velocity: the state (N,) is not known from them."""
        limit = SHOWN_VELOCITY.get(self._kind)
        if limit is None:
            return np.zeros(len(obs), bool)
        found: npt.NDArray[np.bool_] = (np.abs(obs[:, -self._env.model.nv :]) >= limit).any(-1)
        return found

    def step(self, states: Floats, action: npt.NDArray[Any]) -> TrueStep:
        """One step of each: states (N, D), action (N, A) in [-1, 1]. A state does not remember what was before it."""
        actions = np.clip(
            self._middle + self._half * np.asarray(action, np.float64),
            self._env.action_space.low,
            self._env.action_space.high,
        )
        if self._kind == "PendulumEnv":
            following, reward = pendulum_step(states, actions[:, 0], self._env.g)  # all at once: planners ask millions
            return TrueStep(following, pendulum_obs(following), reward, np.zeros(len(states), np.bool_))
        rows = [self._one(state, act) for state, act in zip(states, actions, strict=True)]
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        return TrueStep(columns[0], columns[1].astype(np.float64), columns[2], columns[3].astype(np.bool_))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _one(self, state: Floats, action: Floats) -> tuple[Floats, npt.NDArray[Any], float, bool]:
        env = self._env
        if self._kind == "Refrigerator":
            following = refrigerator_step(state, action)
            return following, following, -abs(float(following[0]) - TARGET), False
        positions = env.model.nq
        env.set_state(state[:positions], state[positions:])
        env.data.qacc_warmstart[:] = 0.0  # else the contact solver would remember the row before
        obs, reward, terminated, _, _ = env.step(action)
        return np.concatenate([env.data.qpos, env.data.qvel]), obs, float(reward), bool(terminated)


class OracleModel:
    """The simulator as a dynamics model: one member without any doubt (`dynamics=oracle`).

    It is what the methods are after, and what tells their faults apart: with it there is no model error, every penalty
    made of the model's spread is 0, and what still goes wrong is the learner's (Sims et al. 2024). There is nothing to
    fit. Lanes that show a clipped velocity go on from the full state that the simulator was left in, so that rollouts
    are exact but for starts that hide one.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: S.
        env: as for `Oracle`.
        env_kwargs: keyword arguments of the environment.
        action_low: (A,) what -1 stands for in environment units; default: the environment's bounds.
        action_high: (A,) what 1 stands for.
        workers: processes that step; 1 is this one. Results do not depend on it.
        device: of the tensors; the simulator is on the CPU.

    Raises:
        EvaluationError: the environment cannot be set to an observation.
        ValueError: its spaces are not the dataset's.
    """

    members = 1
    elite_count = 1

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        env: str,
        env_kwargs: Mapping[str, Any] | None = None,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        workers: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.obs_dim, self.action_dim, self.seeds = obs_dim, action_dim, tuple(seeds)
        self.device = torch.device(device)
        self.elites = torch.zeros((len(self.seeds), 1), dtype=torch.long, device=self.device)
        self.change_std = torch.ones((len(self.seeds), 1, 1, obs_dim + 1), device=self.device)
        bounds = {
            name: None if bound is None else np.asarray(bound, float)
            for name, bound in (("action_low", action_low), ("action_high", action_high))
        }
        self.oracle = Oracle(env, env_kwargs, **bounds)
        self.workers = workers
        self._recipe = (env, dict(env_kwargs or {}), bounds)
        self._pool: ProcessPoolExecutor | None = None  # started when first asked: a run may yet be refused
        self._left: tuple[npt.NDArray[np.float32], Floats] | None = None  # what was last said, and the full states

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (S, N, O), action (S, N, A) -> the true next observation and reward (S, 1, N, O+1); std 0."""
        seen = obs.detach().reshape(-1, obs.shape[-1]).cpu().numpy()
        states = self.oracle.states(seen)
        if self._left is not None and len(self._left[0]) == len(seen):
            said, left = self._left
            follows = self.oracle.hides(seen) & (said == seen).all(-1)
            states[follows] = left[follows]
        done = self._step(states, action.detach().reshape(-1, action.shape[-1]).cpu().numpy())
        next_obs = done.next_obs.astype(np.float32)
        self._left = next_obs, done.states
        columns = np.concatenate([next_obs, done.reward[:, None].astype(np.float32)], -1)
        mean = torch.from_numpy(columns).to(obs).view(*obs.shape[:-1], -1).unsqueeze(-3)
        return Prediction(mean, torch.zeros_like(mean))

    def predict_one(self, obs: Tensor, action: Tensor, uniform: Tensor) -> Prediction:
        """The same: there is only one truth."""
        return self.predict(obs, action)

    def elite_view(self) -> OracleModel:
        """Itself."""
        return self

    def close(self) -> None:
        """End the worker processes."""
        self.oracle.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _step(self, states: Floats, action: npt.NDArray[Any]) -> TrueStep:
        workers = min(self.workers, len(states))  # everybody has something to do
        if workers <= 1:
            return self.oracle.step(states, action)
        if self._pool is None:
            # Not forked: torch and MuJoCo hold threads and locks.
            self._pool = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=self._recipe
            )
        shares = [np.array_split(rows, workers) for rows in (states, action)]
        parts = list(self._pool.map(_work, *shares))
        return TrueStep(*(np.concatenate(column) for column in zip(*parts, strict=True)))


_own: Oracle | None = None
"""The simulator of a worker process."""


def _begin(env: str, env_kwargs: Mapping[str, Any], bounds: Mapping[str, Any]) -> None:
    global _own
    _own = Oracle(env, env_kwargs, **bounds)


def _work(states: Floats, action: npt.NDArray[Any]) -> TrueStep:
    assert _own is not None
    return _own.step(states, action)
