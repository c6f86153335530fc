"""Planners on the pendulum's swing-up with its true dynamics: returns and time per step, as a Markdown table.

    python scripts/reproduce/planners.py [--seeds 10] [--rows NAME ...] [--quick]

Episodes of 200 steps that start where Gymnasium's Pendulum-v1 starts for the seeds 0, 1, ..., all of them side by side;
deterministic on one machine. Ten seeds are the least: with short horizons some starts never swing up. Some five minutes
on one core; time per step is that of one episode, a tenth of what all ten take together.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from mbrl.dynamics.oracle import OracleModel
from mbrl.evaluate import make_env
from mbrl.nets import generator, rand
from mbrl.plan.objective import ModelReturns
from mbrl.plan.planners import CEM, ICEM, MPPI
from mbrl.plan.policy import PlanningPolicy
from mbrl.rollout.filters import FilterChain
from mbrl.types import Planner, Policy

STEPS = 200
IN_RETURNS = {"temperature": 1.0, "rescale": False, "control_cost": 1.0}
"""MPPI as published: lambda in units of the return."""

ROWS: dict[str, tuple[str, Planner | None]] = {
    "cem-30": ("CEM H30 N350x5", CEM(30, 350, 5)),
    "cem-30-small": ("CEM H30 N100x3", CEM(30, 100, 3)),
    "icem-30": ("iCEM H30 N100x3 colour 2", ICEM(30, 100, 3)),
    "mppi-30": ("MPPI H30 N350x1 sigma 1, lambda 1", MPPI(30, 350, 1, **IN_RETURNS)),
    "mppi-30-narrow": ("MPPI same, sigma 0.2", MPPI(30, 350, 1, std=0.2, **IN_RETURNS)),
    "mppi-30-free": ("MPPI H30 sigma 1, lambda 1, no control cost", MPPI(30, 350, 1, 1.0, 0.7, 1.0, False, 0.0)),
    "mppi-30-free-narrow": ("MPPI same, sigma 0.2", MPPI(30, 350, 1, 0.2, 0.7, 1.0, False, 0.0)),
    "mppi-30-rescaled": ("MPPI H30 sigma 1, lambda 0.1 stds (default)", MPPI(30, 350, 1)),
    "cem-15": ("CEM H15 N350x5", CEM(15, 350, 5)),
    "icem-15": ("iCEM H15 N100x3 colour 2", ICEM(15, 100, 3)),
    "icem-15-white": ("iCEM H15 N100x3 colour 0", ICEM(15, 100, 3, colour=0.0)),
    "mppi-15": ("MPPI H15 N350x1 sigma 1, lambda 1", MPPI(15, 350, 1, **IN_RETURNS)),
    "mppi-15-narrow": ("MPPI same, sigma 0.2", MPPI(15, 350, 1, std=0.2, **IN_RETURNS)),
    "mppi-15-free-narrow": (
        "MPPI H15 sigma 0.2, lambda 1, no control cost",
        MPPI(15, 350, 1, 0.2, 0.7, 1.0, False, 0.0),
    ),
    "mppi-15-rescaled": ("MPPI H15 sigma 1, lambda 0.1 stds (default)", MPPI(15, 350, 1)),
    "random": ("random actions", None),
}


def random_policy(seeds: Sequence[int]) -> Policy:
    """Uniform actions."""
    sources = [generator(seed, "random actions") for seed in seeds]
    return lambda obs: 2.0 * rand((1, 1), sources) - 1.0


def play(planner: Planner | None, seeds: Sequence[int], steps: int) -> tuple[torch.Tensor, float]:
    """One episode of every seed: returns (S,), and milliseconds per step of one episode."""
    env = make_env("Pendulum-v1")
    obs = torch.from_numpy(np.stack([env.reset(seed=seed)[0] for seed in seeds])).unsqueeze(1)  # (S, 1, 3)
    env.close()
    model = OracleModel(3, 1, seeds, env="Pendulum-v1")
    policy = random_policy(seeds)
    if planner is not None:
        returns = ModelReturns(model, FilterChain(), simulator=model, propagation="expectation", chunk=1 << 20)
        policy = PlanningPolicy(planner, returns, action_dim=1, seeds=seeds, lanes=1)
    total = torch.zeros(len(seeds))
    began = time.monotonic()
    for _ in range(steps):
        reached = model.predict(obs, policy(obs)).mean[:, 0]
        obs = reached[..., :-1]
        total += reached[:, 0, -1]
    model.close()
    return total, 1000.0 * (time.monotonic() - began) / (steps * len(seeds))


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="2 seeds and 5 steps: does it run?")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    seeds, steps = (range(2), 5) if given.quick else (range(given.seeds), STEPS)
    print("| planner | return, mean ± s.e. | worst start | ms per step |\n|---|---|---|---|")
    for name in given.rows:
        label, planner = ROWS[name]
        returns, milliseconds = play(planner, seeds, steps)
        error = float(returns.std()) / math.sqrt(len(seeds))
        cells = [label, f"{returns.mean():.0f} ± {error:.0f}", f"{returns.min():.0f}", f"{milliseconds:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
