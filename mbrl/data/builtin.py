"""Datasets that need no download: generated on first use from a fixed seed, then cached.

`builtin:pendulum` is a mixed, mediocre log of Gymnasium's `Pendulum-v1`: uniform and smooth random torques, and a weak,
noisy swing-up controller that succeeds sometimes. `builtin:pendulum-random` has uniform random torques alone.
`builtin:refrigerator` is described in `mbrl.data.refrigerator`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbrl.data.refrigerator import refrigerator_log

Floats = npt.NDArray[np.float64]

VERSION = 1
EPISODES = 200
STEPS = 200
MAX_TORQUE = 2.0
BUILTIN = ("pendulum", "pendulum-random", "refrigerator")


def cache_folder() -> Path:
    """`$MBRL_CACHE`, else `~/.cache/mbrl`."""
    return Path(os.environ.get("MBRL_CACHE") or Path.home() / ".cache" / "mbrl")


def builtin_file(name: str) -> Path:
    """The cached .npz of a dataset in `BUILTIN`, made now if it is not there.

    The file appears whole or not at all, so that several processes may ask at once.
    """
    path = cache_folder() / "builtin" / f"{name}-v{VERSION}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz.part")
        try:
            with os.fdopen(handle, "wb") as file:
                log = refrigerator_log() if name == "refrigerator" else pendulum_log(controlled=name == "pendulum")
                np.savez(file, **log)  # type: ignore[arg-type]
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def pendulum_step(state: Floats, torque: Floats, gravity: float = 10.0) -> tuple[Floats, Floats]:
    """Gymnasium's `Pendulum-v1`, many at once.

    Args:
        state: (N, 2) angle (0 is upright, unbounded) and angular velocity.
        torque: (N,) in [-2, 2].
        gravity: the environment's `g`.

    Returns:
        Next state (N, 2) and reward (N,).
    """
    angle, velocity = state.T
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    reward = -(wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = np.clip(velocity + (1.5 * gravity * np.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    return np.stack([angle + velocity * 0.05, velocity], 1), reward


def pendulum_obs(state: Floats) -> npt.NDArray[np.float32]:
    """state (N, 2) -> cos, sin of the angle and angular velocity (N, 3)."""
    angle, velocity = state.T
    return np.stack([np.cos(angle), np.sin(angle), velocity], 1).astype(np.float32)


def pendulum_log(controlled: bool) -> dict[str, npt.NDArray[np.generic]]:
    """200 episodes of 200 steps, as arrays with D4RL's names, episode after episode; no row is terminal.

    States are rounded to float32 after every step and noise is made of uniform numbers alone: a difference in the last
    bit of another machine's sine is then rounded away instead of growing, and the content hash stays the same.
    """
    source = np.random.Generator(np.random.PCG64(20_260_101))
    high = np.array([np.pi, 1.0])
    state = _rounded(source.uniform(-high, high, (EPISODES, 2)))
    kind = np.arange(EPISODES) % 10
    gain = source.uniform(0.15, 0.7, EPISODES)
    smooth = source.uniform(-1.0, 1.0, EPISODES)
    rows: dict[str, list[npt.NDArray[np.generic]]] = {"obs": [], "action": [], "reward": [], "next_obs": []}
    for _ in range(STEPS):
        uniform = source.uniform(-MAX_TORQUE, MAX_TORQUE, EPISODES)
        smooth = 0.9 * smooth + source.uniform(-1.0, 1.0, EPISODES)
        torque = uniform
        if controlled:
            weak = gain * swing_up(state) + 0.5 * uniform
            torque = np.select([kind < 3, kind < 6], [uniform, smooth], weak)
        action = np.clip(torque, -MAX_TORQUE, MAX_TORQUE).astype(np.float32)
        following, reward = pendulum_step(state, action.astype(np.float64))
        following = _rounded(following)
        rows["obs"].append(pendulum_obs(state))
        rows["action"].append(action[:, None])
        rows["reward"].append(reward.astype(np.float32))
        rows["next_obs"].append(pendulum_obs(following))
        state = following
    # Step-major lists -> episode-major rows.
    obs, action_rows, reward_rows, next_obs = (
        np.concatenate(np.stack(columns, 1))
        for columns in (rows["obs"], rows["action"], rows["reward"], rows["next_obs"])
    )
    timeouts = np.zeros((EPISODES, STEPS), np.bool_)
    timeouts[:, -1] = True
    return {
        "observations": obs,
        "actions": action_rows,
        "rewards": reward_rows,
        "next_observations": next_obs,
        "terminals": np.zeros(EPISODES * STEPS, np.bool_),
        "timeouts": timeouts.reshape(-1),
        "action_low": np.array([-MAX_TORQUE], np.float32),
        "action_high": np.array([MAX_TORQUE], np.float32),
        "env_id": np.array("Pendulum-v1"),
    }


def swing_up(state: Floats) -> Floats:
    """Pump energy until the pendulum can reach the top, then balance: state (N, 2) -> torque (N,), not clipped."""
    angle, velocity = state.T
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    missing_energy = 15.0 * (1.0 - np.cos(angle)) - 0.5 * velocity**2
    pump = np.clip(missing_energy, -1.0, 1.0) * np.where(velocity >= 0, MAX_TORQUE, -MAX_TORQUE)
    balance = -(10.0 * wrapped + 2.0 * velocity)
    torque: Floats = np.where(np.abs(wrapped) < 0.5, balance, pump)
    return torque


def _rounded(state: Floats) -> Floats:
    return state.astype(np.float32).astype(np.float64)
