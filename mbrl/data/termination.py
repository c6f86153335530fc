"""When an imagined episode ends: one pure function per family of tasks (`mbrl.types.Termination`).

Every function takes obs (*, N, O), action (*, N, A), next_obs (*, N, O) in environment units (never normalised) and
returns terminal (*, N) bool, on the device of `next_obs`. A comparison with NaN is false, so a prediction that is not a
number is never healthy where a family has a condition at all.

Environments decide on their full state, and an observation can hold less of it. Gymnasium's Hopper and Walker2d clip
observed velocities to [-10, 10] and all locomotion tasks leave out the horizontal position, so the clauses on those
entries cannot fire on a real observation; a model, however, can predict anything, and there they do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbrl.types import Termination


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    return (low < x) & (x < high)


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """No state is terminal: episodes end by their time limit alone."""
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)


def hopper(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: all finite, height o'[0] > 0.7, |angle o'[1]| < 0.2 and -100 < o'[1:] < 100.

    Source: Hopper-v2 to v5 (`is_healthy`). The bound is two-sided: `abs(x < 100)`, which several published codes have,
    takes the absolute value of a truth value and never fires for x below -100.
    """
    height, angle = next_obs[..., 0], next_obs[..., 1]
    bounded = _inside(next_obs[..., 1:], -100.0, 100.0).all(-1)
    return ~(next_obs.isfinite().all(-1) & (height > 0.7) & _inside(angle, -0.2, 0.2) & bounded)


def walker2d(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 0.8 < height o'[0] < 2, |angle o'[1]| < 1 and all of o' in (-100, 100).

    Source: Walker2d-v2 to v5 (`is_healthy`) for height and angle. The bound on the rest is that of OfflineRL-Kit,
    MOBILE and MOREC; observed velocities are clipped to 10, so only a diverged prediction meets it.
    """
    height, angle = next_obs[..., 0], next_obs[..., 1]
    bounded = _inside(next_obs, -100.0, 100.0).all(-1)
    return ~(_inside(height, 0.8, 2.0) & _inside(angle, -1.0, 1.0) & bounded)


def halfcheetah(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: all of o' in (-100, 100).

    Source: OfflineRL-Kit, MOBILE and MOREC. The environment itself never ends an episode; the bound stops rollouts that
    have left every state it can reach.
    """
    return ~_inside(next_obs, -100.0, 100.0).all(-1)


def ant(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: all finite and 0.2 <= height o'[0] <= 1.

    Source: Ant-v2 to v5 (`is_healthy`). x and y are not observed, so that they be finite cannot be decided here.
    """
    return ~(next_obs.isfinite().all(-1) & (next_obs[..., 0] >= 0.2) & (next_obs[..., 0] <= 1.0))


def humanoid(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 1 < height o'[0] < 2. Source: Humanoid-v4 and v5 (`is_healthy`)."""
    return ~_inside(next_obs[..., 0], 1.0, 2.0)


def inverted_pendulum(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: all finite and |pole angle o'[1]| <= 0.2. Source: InvertedPendulum-v4 and v5 (`step`)."""
    return ~(next_obs.isfinite().all(-1) & (next_obs[..., 1].abs() <= 0.2))


def inverted_double_pendulum(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: the tip of the second pole is higher than 1.

    Source: InvertedDoublePendulum-v4 and v5 (`step`). The tip is not observed but follows from the sines o'[1:3] and
    cosines o'[3:5] of the two hinges and the poles' length of 0.6.
    """
    sine_1, sine_2, cosine_1, cosine_2 = next_obs[..., 1:5].unbind(-1)
    tip = 0.6 * (cosine_1 + cosine_1 * cosine_2 - sine_1 * sine_2)
    return ~(tip > 1.0)


pendulum = never
"""Pendulum-v1, the swing-up, has no terminal state."""


def neorl_hopper(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: height o'[1] > 0.7, |angle o'[2]| < 0.2 and -100 < o'[3:] < 100; x is o'[0].

    Source: NeoRL Hopper-v3 (`Hopper-v3_done.py`); NeoRL-2 RandomFrictionHopper has the same rule.
    """
    height, angle = next_obs[..., 1], next_obs[..., 2]
    bounded = _inside(next_obs[..., 3:], -100.0, 100.0).all(-1)
    return ~(_inside(height, 0.7, torch.inf) & _inside(angle, -0.2, 0.2) & bounded)


def neorl_walker2d(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 0.8 < height o'[1] < 2, |angle o'[2]| < 1 and -100 < o'[3:] < 100; x is o'[0].

    Source: NeoRL Walker2d-v3 (`Walker2d-v3_done.py`).
    """
    height, angle = next_obs[..., 1], next_obs[..., 2]
    bounded = _inside(next_obs[..., 3:], -100.0, 100.0).all(-1)
    return ~(_inside(height, 0.8, 2.0) & _inside(angle, -1.0, 1.0) & bounded)


def pen(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Terminal: the pen has been dropped, its height o'[26] < 0.075. Source: D4RL `pen_v0.py` (`step`)."""
    return ~(next_obs[..., 26] >= 0.075)


def antmaze(goal: tuple[float, float]) -> Termination:
    """Terminal: the ant's o'[:2] is less than 0.25 from `goal` (x, y).

    Source: ADMPO and unifloral. D4RL draws the goal anew in every episode, does not observe it, and ends the episode
    within 0.5; `goal` is the mean of that draw, so this rule is an approximation.
    """

    def reached(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        distance = torch.hypot(next_obs[..., 0] - goal[0], next_obs[..., 1] - goal[1])
        return distance < 0.25

    return reached


def simglucose(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Terminal: glucose o'[0] below 40 or above 600. Source: NeoRL-2 `simglucose_terminated.py`.

    The flags in the data are not exactly this rule: of the 111 terminal rows of the published training set 76 are below
    40 and the others below 41; no row outside the bounds is unflagged.
    """
    return ~((next_obs[..., 0] >= 40.0) & (next_obs[..., 0] <= 600.0))


def rocket_recovery(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Terminal: |height o'[1]| <= 0.05. Source: NeoRL-2 `rocketrecovery_terminated.py`."""
    return ~(next_obs[..., 1].abs() > 0.05)
