"""A refrigerator: one temperature, one compressor, and data from one narrow controller.

A small system on which a model that was fitted on one behaviour policy fails under others, after the description of
MOREC's own refrigerator task (Luo et al. 2024), whose equations and constants are not published: these are ours. With
temperature T in degrees and compressor power u in [0, 1],

    f(T, u) = T + 0.05 (25 - T) - 3 u (0.5 + 0.5 sigmoid((T + 5) / 5)),   T' = f(T, u) + N(0, 0.02^2),

and the reward is -|T' - 4|. Nothing is terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ENV = "mbrl.data.refrigerator:Refrigerator-v0"
NOISE = 0.02
TARGET = 4.0
EPISODES, STEPS = 100, 20
START = (2.0, 10.0)
HORIZON = 50


def refrigerator_step(temperature: Floats, power: Floats) -> Floats:
    """f(T, u), without noise; both of one shape."""
    cold = 0.5 + 0.5 / (1.0 + np.exp(-(temperature + 5.0) / 5.0))  # a compressor is weaker in the cold
    following: Floats = temperature + 0.05 * (25.0 - temperature) - 3.0 * power * cold
    return following


def control(temperature: Floats, target: float) -> Floats:
    """A proportional controller: u = clip(0.45 + 0.15 (T - target), 0, 1)."""
    return np.clip(0.45 + 0.15 * (temperature - target), 0.0, 1.0)


UNSEEN: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "target -6": lambda temperature, noise: control(temperature, -6.0),
    "target 14": lambda temperature, noise: control(temperature, 14.0),
    "u = 0": lambda temperature, noise: np.full_like(temperature, 0.0),
    "u = 0.25": lambda temperature, noise: np.full_like(temperature, 0.25),
    "u = 1": lambda temperature, noise: np.full_like(temperature, 1.0),
    "uniform": lambda temperature, noise: noise,
}
"""Policies that the data hold nothing of: temperature (N,) and uniform noise (N,) in [0, 1) -> power (N,)."""


def refrigerator_log() -> dict[str, npt.NDArray[np.generic]]:
    """100 episodes of 20 steps that keep to 4 degrees, as arrays with D4RL's names, episode after episode.

    The power is clip(0.45 + 0.15 (T - 4) + N(0, 0.05^2), 0, 1).

    As in the built-in pendulum, states are rounded to float32 and noise is made of uniform numbers alone (sums of
    twelve), so that every machine makes the same file.
    """
    source = np.random.Generator(np.random.PCG64(20_260_102))
    temperature = source.uniform(*START, EPISODES).astype(np.float32).astype(np.float64)
    rows: list[Floats] = []
    for _ in range(STEPS):
        noise = source.uniform(0.0, 1.0, (2, EPISODES, 12)).sum(-1) - 6.0
        # Noise of 0.05 in units of power, on the temperature that the controller reads.
        power = control(temperature + 0.05 / 0.15 * noise[0], TARGET).astype(np.float32).astype(np.float64)
        following = (refrigerator_step(temperature, power) + NOISE * noise[1]).astype(np.float32).astype(np.float64)
        rows.append(np.stack([temperature, power, -np.abs(following - TARGET), following], -1))
        temperature = following
    obs, action, reward, next_obs = np.stack(rows, 1).reshape(-1, 4).astype(np.float32).T
    timeouts = np.zeros((EPISODES, STEPS), np.bool_)
    timeouts[:, -1] = True
    return {
        "observations": obs[:, None],
        "actions": action[:, None],
        "rewards": reward,
        "next_observations": next_obs[:, None],
        "terminals": np.zeros(EPISODES * STEPS, np.bool_),
        "timeouts": timeouts.reshape(-1),
        "action_low": np.zeros(1, np.float32),
        "action_high": np.ones(1, np.float32),
        "env_id": np.array(ENV),
    }


class Refrigerator(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):  # type: ignore[misc]
    """The same system for Gymnasium: observation (1,) the temperature, action (1,) the power."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.temperature = TARGET

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start anywhere in the range where the data start."""
        super().reset(seed=seed)
        self.temperature = float(self.np_random.uniform(*START))
        return self._observation(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step with noise."""
        power = np.clip(np.asarray(action, np.float64)[0], 0.0, 1.0)
        noise = NOISE * self.np_random.standard_normal()
        self.temperature = float(refrigerator_step(np.float64(self.temperature), power)) + noise
        return self._observation(), -abs(self.temperature - TARGET), False, False, {}

    def _observation(self) -> npt.NDArray[np.float32]:
        return np.array([self.temperature], np.float32)


gymnasium.register(ENV.rpartition(":")[2], entry_point=Refrigerator, max_episode_steps=HORIZON)
