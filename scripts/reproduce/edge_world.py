"""The edge of reach in a continuous world: which critics do not run away? A Markdown table, figures, and all numbers.

    python scripts/reproduce/edge_world.py FOLDER [--variants base patch ...] [--seeds 5] [--updates 10000] [--quick]

Every variant is trained with the framework's own loop on the exact world of `mbrl.edge.world`: 500 lanes of 5 steps
every 200 updates, a ring of 5 such rollouts, no real rows. FOLDER gets `edge_world.json`, with all numbers, and two
figures, `values.png` and `curves.png`. A variant whose numbers are in `edge_world.json` already is not run again. One
minute a variant on one CPU core with two critics, six with ten.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mbrl.capture import EAGER, Choice, has_compiler
from mbrl.checkpoint import atomic_write
from mbrl.data.ring import ReplayTable
from mbrl.edge import world
from mbrl.edge.detector import effective_penalty
from mbrl.edge.measure import auroc, auroc_interval, mean_interval
from mbrl.edge.world import OraclePatch, RandomPrior, World, in_ring, starts, true_step
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.nets import generator, rand
from mbrl.plots import save_figure
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import FilterChain
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.train import Schedule, Training
from mbrl.types import Metrics

EPOCH, LANES, RETAIN, PROBES = 200, 500, 5, 1000


class Scaled:
    """Observations divided by 6, as normalised data would be: does layer normalisation live off large coordinates?"""

    def size(self, obs_dim: int) -> int:
        return obs_dim

    def __call__(self, obs: Tensor) -> Tensor:
        return obs / (world.REACH + 1)


# Name -> learner and what is said to it beside the common settings.
VARIANTS: dict[str, tuple[type[SAC], dict[str, Any]]] = {
    "base": (SAC, {}),
    "patch": (OraclePatch, {}),
    "one-norm": (SAC, {"critics": 1, "layer_norm": True}),
    "norm": (SAC, {"layer_norm": True}),
    "norm-10": (SAC, {"critics": 10, "layer_norm": True}),
    "min-10": (SAC, {"critics": 10}),
    "ravl-10-1": (SAC, {"critics": 10, "regularisers": [Diversity(1.0)]}),
    "ravl-10-10": (SAC, {"critics": 10, "regularisers": [Diversity(10.0)]}),
    "ravl-10-100": (SAC, {"critics": 10, "regularisers": [Diversity(100.0)]}),
    "ravl-norm": (SAC, {"critics": 10, "layer_norm": True, "regularisers": [Diversity(1.0)]}),
    "min-50": (SAC, {"critics": 50}),
    "prior-3": (RandomPrior, {"critics": 5, "prior_scale": 3.0}),
    "prior-10": (RandomPrior, {"critics": 5, "prior_scale": 10.0}),
    "base-scaled": (SAC, {"encoder": Scaled()}),
    "patch-scaled": (OraclePatch, {"encoder": Scaled()}),
    "norm-scaled": (SAC, {"layer_norm": True, "encoder": Scaled()}),
    "norm-10-scaled": (SAC, {"critics": 10, "layer_norm": True, "encoder": Scaled()}),
}
LABELS = {
    "base": "base, N = 2",
    "patch": "OraclePatch, N = 2",
    "one-norm": "layer norm, N = 1",
    "norm": "layer norm, N = 2",
    "norm-10": "layer norm, N = 10",
    "min-10": "RAVL, N = 10, eta = 0",
    "ravl-10-1": "RAVL, N = 10, eta = 1",
    "ravl-10-10": "RAVL, N = 10, eta = 10",
    "ravl-10-100": "RAVL, N = 10, eta = 100",
    "ravl-norm": "layer norm, N = 10, eta = 1",
    "min-50": "RAVL, N = 50, eta = 0",
    "prior-3": "random priors of std 3, N = 5",
    "prior-10": "random priors of std 10, N = 5",
    "base-scaled": "base, N = 2, s / 6",
    "patch-scaled": "OraclePatch, N = 2, s / 6",
    "norm-scaled": "layer norm, N = 2, s / 6",
    "norm-10-scaled": "layer norm, N = 10, s / 6",
}
MAIN = ("base", "patch", "ravl-10-1", "norm-10")
NUMBERS = ("q", "ring", "reward", "trapped")


class Silent:
    """A logger that keeps nothing: what is reported is measured here, epoch by epoch."""

    def add(self, metrics: Metrics, prefix: str = "") -> None: ...

    def log_event(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self, step: int) -> dict[str, float]:
        return {}


def settings() -> dict[str, Any]:
    """Of every learner: small networks, and a fixed temperature so that nothing but the critics differs."""
    return {
        "hidden": (64, 64), "discount": world.DISCOUNT, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4,
        "temperature_learning_rate": 0.0, "initial_temperature": 0.05, "cosine_actor": False,
    }  # fmt: skip


def measure(learner: SAC, step: int) -> dict[str, Tensor]:
    """What the learner believes and does, (S) each.

    `q`: mean over critics and the states and actions of a fresh imagined rollout; `ring`: share of its next states in
    the ring; `reward`: true reward a step of the mean action over 50 steps; `trapped`: share of those who end in the
    trap.
    """
    sources = [generator(seed, "edge world", "measure", step) for seed in learner.seeds]
    obs = world.START * (2 * rand((LANES, 2), sources) - 1)
    lane, values, ring = obs, [], []
    for _ in range(world.LENGTH):
        noise = torch.stack([torch.randn((LANES, 2), generator=source) for source in sources])
        action = learner.sample(lane, noise)
        values.append(learner.q(lane, action).mean((-2, -1)))
        lane = true_step(lane, action)[0]
        ring.append(in_ring(lane).float().mean(-1))
    total = torch.zeros(len(sources))
    for _ in range(world.HORIZON):
        obs, reward = true_step(obs, learner.act(obs))
        total += reward.mean(-1) / world.HORIZON
    trapped = (world.distance(obs) > world.REACH).float().mean(-1)
    return {"q": torch.stack(values).mean(0), "ring": torch.stack(ring).mean(0), "reward": total, "trapped": trapped}


def probes() -> tuple[Tensor, Tensor]:
    """States uniform in the reach and in the ring: (PROBES, 2) each."""
    source = generator("edge world", "probes")
    wide = (2 * torch.rand((20 * PROBES, 2), generator=source) - 1) * (world.REACH + 1)
    edge = in_ring(wide)
    return wide[~edge][:PROBES], wide[edge][:PROBES]


def value(learner: SAC, states: Tensor) -> tuple[Tensor, Tensor]:
    """min_i Q_i at the policy's mean action, and mean_i Q_i - min_i Q_i: states (N, 2) -> (S, N) each."""
    obs = states.expand(len(learner.seeds), -1, -1)
    q = learner.q(obs, learner.act(obs))
    return q.amin(-2), effective_penalty(q)


def run(name: str, seeds: int, updates: int) -> dict[str, Any]:
    """Train one variant and measure it: curves (epochs, S), final numbers, and a picture of values."""
    make, special = VARIANTS[name]
    learner = make(2, 2, range(seeds), **(settings() | special))
    curves: dict[str, list[list[float]]] = {key: [] for key in ("update", *NUMBERS)}

    def evaluate(step: int) -> dict[str, float]:
        measured = measure(learner, step)
        curves["update"].append([step])
        for key in NUMBERS:
            curves[key].append(measured[key].tolist())
        return {key: float(x.mean()) for key, x in measured.items()}

    began = time.monotonic()
    # Compiling costs 40 seconds of a core, and halves the 30 ms that an update of five times ten critics takes.
    pays = special.get("critics", 2) >= 10 and updates >= 5000 and has_compiler()
    training = Training(
        learner=learner,
        table=ReplayTable(starts(10_000), LANES * world.LENGTH * RETAIN, seeds),
        imagination=Imagination(World(seeds), PolicyActions(), RandomElite(), FilterChain(), world.LENGTH, LANES),
        schedule=Schedule(
            updates, real_ratio=0.0, rollout_every=EPOCH, rollout_lanes=LANES, log_every=EPOCH, evaluate_every=EPOCH
        ),
        logger=Silent(),
        evaluate=evaluate,
        save=lambda step, state: None,
        choice=Choice("compile", 4, "ten critics or more") if pays else EAGER,
    )
    training.run()
    inner, edge = probes()
    inner_value, inner_penalty = value(learner, inner)
    edge_value, edge_penalty = value(learner, edge)
    detector = None
    if special.get("critics", 2) > 1:
        area = auroc_interval(edge_penalty, inner_penalty, generator("edge world", "bootstrap"), resamples=200)
        detector = {"auroc": area, "per_seed": auroc(edge_penalty, inner_penalty).tolist()}
    axis = torch.linspace(-7, 7, 57)
    plane = torch.cartesian_prod(axis, axis)
    return {
        "label": LABELS[name],
        "updates": updates,
        "seeds": seeds,
        "seconds": time.monotonic() - began,
        "curves": curves,
        "detector": detector,
        "penalty_reach": inner_penalty.median(-1).values.tolist(),
        "penalty_ring": edge_penalty.median(-1).values.tolist(),
        "value_reach": inner_value.mean(-1).tolist(),
        "value_ring": edge_value.mean(-1).tolist(),
        # Of the first seed, x first; 1 digit is enough for a picture.
        "values": [round(v, 1) for v in value(learner, plane)[0][0].tolist()],
    }


def interval(values: Sequence[float], digits: int) -> str:
    """`mean +- half width` of the 95 % t interval over seeds."""
    mean, half = mean_interval(torch.tensor(values))
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """The Markdown table of the last epoch."""
    lines = [
        "| critics | mean Q (bound 100) | ring, % | true reward a step | starts that end in the trap, % "
        "| min Q, ring - reach | AUROC of the penalty |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results.values():
        last = {key: result["curves"][key][-1] for key in NUMBERS}
        gap = [a - b for a, b in zip(result["value_ring"], result["value_reach"], strict=True)]
        detector = "-"
        if result["detector"]:
            mean, low, high = result["detector"]["auroc"]
            detector = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        cells = [
            result["label"], interval(last["q"], 0), interval([100 * x for x in last["ring"]], 2),
            interval(last["reward"], 2), interval([100 * x for x in last["trapped"]], 0),
            interval(gap, 1), detector,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_values(results: Mapping[str, dict[str, Any]], path: Path) -> None:
    """min_i Q_i at the policy's action over the plane, seed 0, each panel on its own scale."""
    shown = [name for name in MAIN if name in results] or list(results)[:4]
    figure = Figure(figsize=(3.0 * len(shown), 3.0), layout="constrained")
    for ax, name in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        values = np.asarray(results[name]["values"]).reshape(57, 57).T
        image = ax.imshow(values, origin="lower", extent=(-7, 7, -7, 7), cmap="viridis")
        figure.colorbar(image, ax=ax, shrink=0.8)
        for half in (world.REACH, world.REACH + 1):
            ax.add_patch(Rectangle((-half, -half), 2 * half, 2 * half, fill=False, edgecolor="red", linewidth=0.9))
        ax.set_title(results[name]["label"], fontsize=9)
        ax.tick_params(labelsize=7)
    save_figure(figure, path, dpi=90)


def draw_curves(results: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Mean Q, ring share and true reward against updates: means over seeds, bands of 95 % t intervals."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = {"q": "mean Q", "ring": "next states in the ring", "reward": "true reward a step"}
    for i, result in enumerate(results.values()):
        updates = np.asarray(result["curves"]["update"])[:, 0]
        for ax, key in zip(axes, titles, strict=True):
            pairs = np.array([mean_interval(torch.tensor(row)) for row in result["curves"][key]])
            style = {"color": f"C{i % 10}", "linestyle": "--" if i >= 10 else "-"}
            ax.plot(updates, pairs[:, 0], label=result["label"] if key == "q" else None, linewidth=1.3, **style)
            ax.fill_between(
                updates, pairs[:, 0] - pairs[:, 1], pairs[:, 0] + pairs[:, 1], color=style["color"], alpha=0.15, lw=0
            )
            ax.set_title(titles[key], fontsize=10)
            ax.tick_params(labelsize=8)
            ax.set_xlabel("updates", fontsize=9)
    axes[0].axhline(world.BOUND, color="black", linestyle=":", linewidth=1)
    axes[0].set_ylim(-50, 250)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path, dpi=90)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...; trained side by side")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="2 seeds and 400 updates: does it run?")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    seeds, updates = (2, 400) if given.quick else (given.seeds, given.updates)
    given.folder.mkdir(parents=True, exist_ok=True)
    file = given.folder / "edge_world.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for name in given.variants:
        known = results.get(name, {})
        if (known.get("seeds"), known.get("updates")) != (seeds, updates):
            results[name] = run(name, seeds, updates)
            atomic_write(file, partial(write_json, results))
            print(f"{name}: {results[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    results = {name: results[name] for name in VARIANTS if name in results}
    print(table(results))
    draw_values(results, given.folder / "values.png")
    draw_curves(results, given.folder / "curves.png")
    return 0


def write_json(results: Mapping[str, dict[str, Any]], file: Any) -> None:
    file.write(json.dumps(results).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
