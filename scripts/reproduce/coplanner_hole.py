"""Do planned rollouts go round a hole in the data, or seek it? The table of docs/coplanner.md; half a minute.

    python scripts/reproduce/coplanner_hole.py [--uncertainty mean_std] [--epochs 40] [--batch-size 64]

A point in the square [-1, 1]^2 moves by 0.1 a and drifts a little; the data have nothing within 0.4 of the middle. Five
nets of 2 x 64 are fitted, and 256 lanes of 5 steps begin on the left of the hole, with a policy that pushes nowhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.data.termination import never
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import generator
from mbrl.rollout.coplanner import Doubt, UncertaintyPlanner
from mbrl.rollout.filters import FilterChain
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import member_std
from mbrl.types import Transition

RADIUS, LANES, STEPS = 0.4, 256, 5
RATES = (-5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0)


class Rolled(NamedTuple):
    """What rollouts at one rate came to."""

    rate: float
    doubt: float  # mean disagreement of the members' means, in stds of the data's changes
    crossed: float  # share of lanes that enter the disc


def holed_data(rows: int = 2000) -> Transition:
    """Uniform states but for the disc, uniform actions; the reward draws a little to (0.8, 0)."""
    source = generator("hole")
    obs = torch.rand(rows, 2, generator=source) * 2 - 1
    obs = obs[obs.norm(dim=-1) > RADIUS]
    action = torch.rand(len(obs), 2, generator=source) * 2 - 1
    drift = torch.stack([torch.sin(4 * obs[:, 1]), torch.cos(4 * obs[:, 0])], -1)
    next_obs = obs + 0.1 * action + 0.05 * drift
    reward = -0.05 * (obs - torch.tensor([0.8, 0.0])).norm(dim=-1)
    end = torch.zeros(len(obs), dtype=torch.bool)
    return Transition(obs, action, reward, next_obs, end, ~end)


def fitted(epochs: int = 40, batch_size: int = 64) -> GaussianEnsemble:
    """The five nets."""
    model = GaussianEnsemble(
        2, 2, [0], members=5, elites=5, hidden=(64, 64), max_epochs=epochs, batch_size=batch_size, learning_rate=2e-3,
        patience=None, loss="beta_nll", standardise_targets=True,
    )  # fmt: skip
    model.fit(holed_data())
    return model


def nowhere(obs: Tensor, noise: Tensor) -> Tensor:
    """A policy without a direction."""
    return torch.tanh(noise)


def rolled(model: GaussianEnsemble, rates: Iterable[float] = RATES, uncertainty: Doubt = "mean_std") -> list[Rolled]:
    """Rollouts at every rate, from the same starts with the same noise."""
    starts = torch.stack([torch.full((LANES,), -0.6), torch.linspace(-0.3, 0.3, LANES)], -1)[None]
    found = []
    for rate in rates:
        actions = UncertaintyPlanner(
            model.members, never, model.change_std, horizon=3, rate=rate, uncertainty=uncertainty
        )
        imagination = Imagination(model, actions, RandomElite(), FilterChain(), STEPS, LANES)
        obs, alive, sources = starts, torch.ones(1, LANES, dtype=torch.bool), [generator(0, "rollout")]
        total, inside = 0.0, torch.zeros(1, LANES, dtype=torch.bool)
        for t in range(STEPS):
            step = imagination.step(obs, alive, nowhere, sources, t)
            obs = step.next_obs
            total += member_std(step.prediction.mean, model.change_std.squeeze(1)).mean().item()
            inside |= obs.norm(dim=-1) < RADIUS
        found.append(Rolled(rate, total / STEPS, inside.float().mean().item()))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uncertainty", default="mean_std")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = rolled(fitted(arguments.epochs, arguments.batch_size), uncertainty=arguments.uncertainty)
    print("| rate | " + " | ".join(f"{one.rate:g}" for one in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    print("| disagreement | " + " | ".join(f"{one.doubt:.4f}" for one in found) + " |")
    print("| enters the disc | " + " | ".join(f"{one.crossed:.2f}" for one in found) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
