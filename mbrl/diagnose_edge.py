"""The edge of reach of a run: what its critics think where imagined lanes end, and whether the model bears them out.

Three questions, none of which needs a simulator. Do the critics disagree more at states that are bootstrapped from and
never trained (`mbrl.edge.detector`) than within reach? Which share of the targets asks such states? Is Q what the model
pays for the policy?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from mbrl.edge.detector import effective_penalty, lane_auroc, last_row, log_spread, void_share
from mbrl.edge.measure import auroc
from mbrl.finding import COLOURS, Finding, quiet_table, tidy
from mbrl.learn.sac import SAC
from mbrl.nets import generator, rand, randn
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination

LANES = 500
"""Rollouts per seed of the run's own length."""

VALUE_LANES, VALUE_STEPS = 200, 300
"""Long rollouts per seed whose return Q is compared with, and their length."""

SLICE = 4096
"""States per seed that the critics are asked about at once."""


@dataclass(frozen=True)
class Lanes:
    """Rollouts as in training, of L steps."""

    states: Tensor  # (S, L+1, N, O) the start, and what every step led to
    keep: Tensor  # (S, L, N) bool: the row of this step would be stored
    terminal: Tensor  # (S, L, N) bool


@dataclass(frozen=True)
class Values:
    """Q at starts, and what a long rollout of each is worth under the model; discounted sums, (S, N) each.

    Attributes:
        q: the critics' values (S, E, N) of the start and the action taken there.
        paid: rewards as the model predicts them.
        stored: what the critics are trained on: rewards less the run's own penalty, plus the entropy of every later
            step where the backup is soft.
        tail: of `stored`, after the last step: the mean of a living lane's last third, for ever; 0 where it has ended.
        alive: the share of `tail`'s weight that is left, gamma^steps or 0.
    """

    q: Tensor
    paid: Tensor
    stored: Tensor
    tail: Tensor
    alive: Tensor


@torch.no_grad()
def rollouts(imagination: Imagination, learner: SAC, starts: Tensor, sources: Sequence[torch.Generator]) -> Lanes:
    """Imagine from starts (S, N, O) as training does: its actions, selector, filters and length."""
    obs, alive = starts, torch.ones(starts.shape[:-1], dtype=torch.bool, device=starts.device)
    states, keep, terminal = [obs], [], []
    for t in range(imagination.length):
        step = imagination.step(obs, alive, learner.sample, sources, t)
        obs, alive = step.next_obs, step.alive
        states.append(obs)
        keep.append(step.keep)
        terminal.append(step.terminal)
    return Lanes(torch.stack(states, 1), torch.stack(keep, 1), torch.stack(terminal, 1))


@torch.no_grad()
def opinions(learner: SAC, states: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
    """The critics at states (S, M, O) and the policy's samples there: (S, E, M)."""
    parts = []
    for obs in states.split(SLICE, 1):
        noise = randn((obs.shape[1], learner.action_dim), sources)
        parts.append(learner.q(obs, learner.sample(obs, noise)))
    return torch.cat(parts, -1)


@torch.no_grad()
def long_rollouts(
    imagination: Imagination, learner: SAC, starts: Tensor, sources: Sequence[torch.Generator], steps: int = VALUE_STEPS
) -> Values:
    """The stochastic policy in the model from starts (S, N, O), with no end but the task's own."""
    filters = imagination.filters.filters
    world = FilterChain(others=[part for part in filters if isinstance(part, Clip | Terminate)])
    penalties = [part for part in filters if isinstance(part, Penalise)]
    plain = dataclasses.replace(imagination, actions=PolicyActions(), filters=world)
    alpha = learner.log_temperature.exp().unsqueeze(-1) if learner.soft_backup else torch.zeros(1, device=starts.device)
    densities: list[Tensor] = []

    def policy(obs: Tensor, noise: Tensor) -> Tensor:
        action, density = learner.sample_with_density(obs, noise)
        densities.append(density)
        return action

    obs, alive = starts, torch.ones(starts.shape[:-1], dtype=torch.bool, device=starts.device)
    paid, stored, late = (torch.zeros(alive.shape, device=starts.device) for _ in range(3))
    q = torch.empty(0)
    tail_steps = max(1, steps // 3)
    for t in range(steps):
        step = plain.step(obs, alive, policy, sources, t)
        if t == 0:
            q = learner.q(obs, step.action)
        lessened = step
        for penalise in penalties:
            lessened = penalise(lessened, t)
        # A value holds the entropy of later actions only: its own has been taken.
        bonus = -alpha * densities.pop() if t else torch.zeros_like(paid)
        reward = torch.where(alive, step.reward, 0.0)
        worth = torch.where(alive, lessened.reward + bonus, 0.0)
        paid += learner.discount**t * reward
        stored += learner.discount**t * worth
        if t >= steps - tail_steps:
            late += worth
        densities.clear()
        obs, alive = step.next_obs, step.alive
    weight = learner.discount**steps * alive
    return Values(q, paid, stored, weight * late / tail_steps / (1.0 - learner.discount), weight)


def edge_finding(
    imagination: Imagination, learner: SAC, observations: Tensor, reward: Tensor, bound: Sequence[float]
) -> Finding:
    """All numbers, tables and the figure.

    Args:
        imagination: as in training, its thresholds found.
        learner: the newest policy with its critics.
        observations: (N, O) of the dataset, on the device; rollouts begin there.
        reward: (N,) of the dataset.
        bound: of every seed, what no policy can be worth; see `mbrl.edge.detector.ValueBound`.
    """
    sources = [generator(seed, "diagnose", "edge", device=observations.device) for seed in learner.seeds]

    def starts(lanes: int) -> Tensor:
        return observations[(rand((lanes,), sources, dtype=torch.float64) * len(observations)).long()]

    lanes = rollouts(imagination, learner, starts(LANES), sources)
    q = opinions(learner, lanes.states.flatten(1, 2), sources)
    worth = long_rollouts(imagination, learner, starts(VALUE_LANES), sources)
    critics = q.shape[-2]
    numbers: dict[str, Any] = {
        "length": imagination.length,
        "critics": critics,
        "void": void_share(lanes.keep, lanes.terminal).tolist(),
        "values": value_numbers(worth, reward, learner.discount, bound),
    }
    figure = Figure(figsize=(12.5, 3.8) if critics > 1 else (4.4, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 3 if critics > 1 else 1, squeeze=False)[0]
    tables = []
    if critics > 1:
        spreads = {
            name: spread(q).unflatten(-1, (-1, LANES))
            for name, spread in (("penalty", effective_penalty), ("log_spread", log_spread))
        }
        numbers |= {name: spread_numbers(spread, lanes, learner.seeds) for name, spread in spreads.items()}
        draw_spread(panels[0], panels[1], spreads["penalty"], lanes)
        tables.append(spread_table(numbers, learner.seeds))
    draw_values(panels[-1], worth, bound)
    table = value_table(numbers, learner.seeds)
    if critics == 1:
        table.caption = "one critic disagrees with nobody: there is no spread to tell the edge by (learner.critics=2)"
    return Finding(numbers, [*tables, table], {"edge": tidy(figure)})


def at_the_edge(spread: Tensor, lanes: Lanes) -> tuple[Tensor, Tensor, Tensor]:
    """A spread (S, L+1, N) at lanes' ends, at the input of their last row, and which of them ask the void: (S, N)."""
    last, in_void = last_row(lanes.keep, lanes.terminal)
    index = last.unsqueeze(1)
    return spread.gather(1, index + 1).squeeze(1), spread.gather(1, index).squeeze(1), in_void


def spread_numbers(spread: Tensor, lanes: Lanes, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean and median of a spread (S, L+1, N) by kind of state, and how well it tells them apart; lists over seeds."""
    end, before, in_void = at_the_edge(spread, lanes)
    inputs = spread[:, :-1]
    found: dict[str, Any] = {}
    kinds = {"dataset": (inputs[:, 0], lanes.keep[:, 0]), "within": (inputs, lanes.keep), "edge": (end, in_void)}
    for name, (values, there) in kinds.items():
        groups = [values[s][there[s]] for s in range(len(seeds))]
        found[name] = {
            "mean": [float(group.mean()) for group in groups],
            "median": [float(group.median()) if len(group) else float("nan") for group in groups],
        }
    told = [
        lane_auroc(end[s], inputs[s], in_void[s], lanes.keep[s], generator(seed, "diagnose", "edge bootstrap"))
        for s, seed in enumerate(seeds)
    ]
    found |= {
        name: list(values) for name, values in zip(("auroc", "low", "high"), zip(*told, strict=True), strict=True)
    }
    found["auroc_row_before"] = [float(auroc(end[s][in_void[s]], before[s][in_void[s]])) for s in range(len(seeds))]
    return found


def value_numbers(worth: Values, reward: Tensor, discount: float, bound: Sequence[float]) -> dict[str, Any]:
    """Means over starts of Q and of returns, and their difference; lists over seeds."""
    mean_q = worth.q.mean(-2)
    difference = mean_q - worth.stored - worth.tail
    limit = torch.tensor(list(bound), device=mean_q.device).unsqueeze(-1)
    left = worth.alive.mean(-1) / (1.0 - discount)
    found = {
        "q": mean_q.mean(-1),
        "q_minimum": worth.q.amin(-2).mean(-1),
        "return": worth.paid.mean(-1),
        "stored_return": worth.stored.mean(-1),
        "tail": worth.tail.mean(-1),
        "tail_low": left * float(reward.min()),
        "tail_high": left * float(reward.max()),
        "difference": difference.mean(-1),
        "standard_error": difference.std(-1) / difference.shape[-1] ** 0.5,
        "above_bound": (mean_q > limit).float().mean(-1),
    }
    return {name: value.tolist() for name, value in found.items()} | {"bound": list(bound), "steps": VALUE_STEPS}


def spread_table(numbers: dict[str, Any], seeds: Sequence[int]) -> Table:
    """A row per seed: the critics' disagreement by kind of state."""
    table = quiet_table(
        f"critics' disagreement (mean - smallest of {numbers['critics']}, medians); edge: where lanes of "
        f"{numbers['length']} steps end"
    )
    for heading in (
        "seed", "dataset", "within reach", "edge", "AUROC edge against within, 95 %", "against the row before",
        "AUROC of log std", "bootstraps into the void",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    penalty, spread = numbers["penalty"], numbers["log_spread"]
    for s, seed in enumerate(seeds):
        table.add_row(
            str(seed),
            *(f"{penalty[kind]['median'][s]:.4g}" for kind in ("dataset", "within", "edge")),
            f"{penalty['auroc'][s]:.3f} [{penalty['low'][s]:.3f}, {penalty['high'][s]:.3f}]",
            f"{penalty['auroc_row_before'][s]:.3f}",
            f"{spread['auroc'][s]:.3f}",
            f"{numbers['void'][s]:.1%}",
        )
    return table


def value_table(numbers: dict[str, Any], seeds: Sequence[int]) -> Table:
    """A row per seed: Q against what the model pays."""
    values = numbers["values"]
    table = quiet_table(
        f"Q at the dataset's states against discounted returns of {values['steps']} model steps; as stored: less the "
        "run's penalty, plus entropy"
    )
    headings = ("seed", "Q", "return", "as stored", "and after that", "Q - as stored - after", "bound", "Q above it")
    for heading in headings:
        table.add_column(heading, justify="right")
    for s, seed in enumerate(seeds):
        table.add_row(
            str(seed),
            *(f"{values[name][s]:.4g}" for name in ("q", "return", "stored_return", "tail")),
            f"{values['difference'][s]:+.4g} +- {1.96 * values['standard_error'][s]:.2g}",
            f"{values['bound'][s]:.4g}",
            f"{values['above_bound'][s]:.1%}",
        )
    return table


def draw_spread(histogram: Any, boxes: Any, penalty: Tensor, lanes: Lanes) -> None:
    """The effective penalty (S, L+1, N): histograms within reach and at the edge, and boxes by step."""
    end, _, in_void = at_the_edge(penalty, lanes)
    within, edge = penalty[:, :-1][lanes.keep].cpu().numpy(), end[in_void].cpu().numpy()
    floor = max(float(np.quantile(within, 0.001)), 1e-12) if len(within) else 1e-12
    every = np.concatenate([within, edge]).clip(min=floor)
    bins = np.geomspace(floor, max(float(every.max(initial=floor)), 1.001 * floor), 40)
    for values, name, colour in ((within, "within reach", COLOURS[0]), (edge, "edge", COLOURS[4])):
        if len(values):
            weights = np.full(len(values), 1.0 / len(values))
            histogram.hist(values.clip(min=floor), bins, weights=weights, color=colour, alpha=0.55, label=name)
    histogram.set_xscale("log")
    histogram.set_xlabel("mean Q - smallest Q")
    histogram.set_ylabel("share of states")
    histogram.legend(fontsize=8, frameon=False)
    length = lanes.keep.shape[1]
    steps = sorted({int(step) for step in np.linspace(0, length - 1, min(length, 10))})
    groups = [penalty[:, t][lanes.keep[:, t]].cpu().numpy() for t in steps] + [edge]
    shown = [(place, group) for place, group in enumerate(groups) if len(group)]
    drawn = boxes.boxplot(
        [group.clip(min=floor) for _, group in shown], positions=[place for place, _ in shown], showfliers=False,
        whis=(5, 95), widths=0.6, patch_artist=True, medianprops={"color": "#222222"}, manage_ticks=False,
    )  # fmt: skip
    for patch, (place, _) in zip(drawn["boxes"], shown, strict=True):
        patch.set(facecolor=COLOURS[4 if place == len(steps) else 0], alpha=0.55)
    boxes.set_xticks(range(len(groups)), [*map(str, steps), "edge"])
    boxes.set_yscale("log")
    boxes.set_xlabel("imagined steps before the state")
    boxes.set_ylabel("mean Q - smallest Q")


def draw_values(axes: Any, worth: Values, bound: Sequence[float]) -> None:
    """Q against what the model pays, a point for each start."""
    whole, q = (x.cpu().numpy() for x in (worth.stored + worth.tail, worth.q.mean(-2)))
    for s, (x, y) in enumerate(zip(whole, q, strict=True)):
        axes.plot(x, y, ".", color=COLOURS[s % len(COLOURS)], markersize=3, alpha=0.6)
    both = np.concatenate([whole.ravel(), q.ravel()])
    both = both[np.isfinite(both)]
    if len(both):
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color="#666666", linewidth=0.8, linestyle="--", label="equal")
        # A bound that is far above everything would only squeeze the points.
        if min(bound) < ends[1] + 0.5 * (ends[1] - ends[0]):
            axes.axhline(min(bound), color=COLOURS[4], linewidth=0.8, label="no policy's value")
        axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("return under the model, as stored")
    axes.set_ylabel("mean Q of the critics")
