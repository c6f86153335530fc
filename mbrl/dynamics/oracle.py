"""The true next state of any observation, from the simulator: what diagnoses measure models against.

A simulator is set to the state that an observation describes and makes one step. That is exact for locomotion tasks,
whose observation lacks nothing but the horizontal position, on which neither dynamics nor reward depend, except where
an observed velocity has been clipped to +-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mbrl.data.refrigerator import TARGET, refrigerator_step
from mbrl.evaluate import EvaluationError, make_env

Floats = npt.NDArray[np.float64]

LOCOMOTION = ("HopperEnv", "Walker2dEnv", "HalfCheetahEnv")


class TrueStep(NamedTuple):
    """What the simulator says of N states and actions."""

    states: Floats  # (N, D) full states, to go on from
    next_obs: Floats  # (N, O)
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

    def step(self, states: Floats, action: npt.NDArray[Any]) -> TrueStep:
        """One step of each: states (N, D), action (N, A) in [-1, 1]. A state does not remember what was before it."""
        actions = np.clip(
            self._middle + self._half * np.asarray(action, np.float64),
            self._env.action_space.low,
            self._env.action_space.high,
        )
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
        if self._kind == "PendulumEnv":
            env.state = state
            obs, reward, terminated, _, _ = env.step(action)
            return np.asarray(env.state), obs, float(reward), bool(terminated)
        positions = env.model.nq
        env.set_state(state[:positions], state[positions:])
        env.data.qacc_warmstart[:] = 0.0  # else the contact solver would remember the row before
        obs, reward, terminated, _, _ = env.step(action)
        return np.concatenate([env.data.qpos, env.data.qvel]), obs, float(reward), bool(terminated)
