"""Does an uncertainty know where the model is wrong? The six heuristics against the truth (Lu et al. 2022).

A heuristic is judged on steps whose true outcome is known: held-out rows, rows of another dataset of the same system,
and above all the steps that a policy makes inside the model, each of which the simulator is asked about. Those wander
off the data as far as that policy in that model does, which is where a penalty has to hold.

An error is the root mean square over the observation's dimensions in units of the std of the data's one-step changes:
of the `mean`, the average of the elites' means, or of the `sample` that imagination goes on with, which has the
predicted noise in it. Intervals are bootstrapped over trajectories, since the steps of one resemble each other, and of
the mean over seeds; they hold nothing of how another fit would turn out, for which there are the numbers `per_seed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from torch import Tensor

from mbrl.dynamics.ensemble import scaler
from mbrl.edge.measure import auroc
from mbrl.finding import COLOURS, Finding, quiet_table, tidy
from mbrl.nets import generator, rand, randn
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import DISAGREEMENTS, HEURISTICS, Uncertainty
from mbrl.score.quality import correlation, rank_correlation
from mbrl.types import Guess, Metrics, Prediction, Transition

if TYPE_CHECKING:
    from mbrl.diagnose import Case

STARTS, STEPS = 100, 25
"""Trajectories per seed and the steps that are judged together, as published."""

DEPTH = 50
"""Steps of the curves over depth."""

RESAMPLES = 200
"""Of a bootstrap interval."""

WRONG = 0.9
"""Errors above this quantile are those that a detector has to find."""

FEWEST = 20
"""Trajectories that must be left for a number of one step of all of them."""

TARGETS = ("mean", "sample")
"""What the error is of."""

MEASURES = ("spearman", "pearson", "log_pearson", "auroc")
REFERENCE = "max_aleatoric"
"""MOPO's own, which the others are compared with."""


@dataclass(frozen=True)
class Steps:
    """T steps of each of L trajectories, and what came of them; rows are L*T, a trajectory's steps together.

    Attributes:
        name: for tables.
        obs: (S, L*T, O).
        action: (S, L*T, A).
        truth: the true next observation (S, L*T, O); anything where it is not known.
        known: (S, L, T) bool: the trajectory had not ended, and its true outcome is known.
        guess: of all members that a penalty asks.
        elites: (S, K) indices of them that are the simulator.
    """

    name: str
    obs: Tensor
    action: Tensor
    truth: Tensor
    known: Tensor
    guess: Guess
    elites: Tensor

    def error(self, scale: Tensor, of: str) -> Tensor:
        """Of the elites' mean or of the sample, see above: scale (S, 1, O) -> (S, L, T), float64."""
        said = self.guess.next_obs
        if of == "mean":
            said = Prediction(self.guess.mean, self.guess.std).of(self.elites).mean.mean(-3)[..., :-1]
        return ((said - self.truth) / scale).square().mean(-1).sqrt().double().view(self.known.shape)

    @cached_property
    def doubt(self) -> Tensor:
        """What every applicable heuristic says: (S, H, L, T), float64."""
        said = torch.stack([measure(self.guess) for measure in applicable(self.guess.mean.shape[-3])], 1)
        return said.double().view(*said.shape[:2], *self.known.shape[1:])


def applicable(members: int) -> list[Uncertainty]:
    """Heuristics that so many members have: one has no disagreement."""
    return [measure for measure in HEURISTICS if members > 1 or measure not in DISAGREEMENTS]


def names(members: int) -> list[str]:
    """Theirs."""
    return [measure.__name__ for measure in applicable(members)]


# -- steps whose outcome is known --------------------------------------------------------------------------------------


@torch.no_grad()
def logged_steps(case: Case, name: str, rows: Transition) -> Steps:
    """Rows (S, N, .) of a dataset, each a trajectory of one step, with the logged actions."""
    rows = Transition(*(x.to(case.model.device) for x in rows))
    model, sources = case.imagination.model, case.sources(f"penalties {name}")
    lanes = rows.obs.shape[1]
    ask = Imagination(model, PolicyActions(), RandomElite(), case.filters, 1, lanes)
    alive = torch.ones_like(rows.terminal)
    noise = randn((lanes, rows.obs.shape[-1] + 1), sources)
    guess = ask.guess(rows.obs, rows.action, alive, noise, rand((lanes,), sources)).guess
    return Steps(name, rows.obs, rows.action, rows.next_obs, alive.unsqueeze(-1), guess, model.elites)


def held_out_steps(case: Case) -> Steps:
    """The rows that the model was not fitted on."""
    data = case.problem.dataset.transitions
    rows = case.ensemble.split(len(data.reward)).holdout.cpu()
    return logged_steps(case, "held-out rows", Transition(*(x[rows] for x in data)))


@torch.no_grad()
def rollout_steps(case: Case, starts: int = STARTS, depth: int = DEPTH) -> Steps | None:
    """The policy in the model: deterministic actions from states of the data, next states sampled from a random elite.

    A trajectory ends where the task says so of the imagined state; steps from states that hide a clipped velocity,
    which the simulator can not be set to, are not known. None without a policy or a simulator.
    """
    learner, oracle = case.learner, case.oracle
    if learner is None or oracle is None:
        return None
    model, sources = case.imagination.model, case.sources("penalties rollouts")
    data = case.problem.dataset.transitions
    pick = (rand((starts,), sources, dtype=torch.float64) * len(data.obs)).long().cpu()
    obs = data.obs[pick].to(case.model.device)
    alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
    ask = Imagination(model, PolicyActions(), RandomElite(), case.filters, depth, starts)
    met: list[tuple[Tensor, ...]] = []
    guesses: list[Guess] = []
    for t in range(depth):
        step = ask.step(obs, alive, lambda seen, noise: learner.act(seen), sources, t)
        shown = ~torch.from_numpy(oracle.hides(obs.flatten(0, 1).cpu().numpy())).to(obs.device).view(alive.shape)
        met.append((obs, step.action, alive & shown & step.selected.next_obs.isfinite().all(-1)))
        guesses.append(step.guess)
        obs, alive = step.next_obs, step.alive
    stacked_obs, action, known = (torch.stack(column, 2) for column in zip(*met, strict=True))
    mean, std, drawn, member = zip(*guesses, strict=True)
    guess = Guess(
        torch.stack(mean, 3).flatten(2, 3), torch.stack(std, 3).flatten(2, 3),
        torch.stack(drawn, 2).flatten(1, 2), torch.stack(member, 2).flatten(1, 2),
    )  # fmt: skip
    truth = torch.zeros_like(stacked_obs)
    truth[known] = case.true_next(oracle, stacked_obs[known], action[known])
    flat_obs, flat_action, flat_truth = (x.flatten(1, 2) for x in (stacked_obs, action, truth))
    return Steps("steps of the policy", flat_obs, flat_action, flat_truth, known, guess, model.elites)


def first(steps: Steps, depth: int) -> Steps:
    """Only the first so many steps of every trajectory."""
    known = steps.known.clone()
    known[..., depth:] = False
    return replace(steps, known=known)


# -- numbers -----------------------------------------------------------------------------------------------------------


def agreement(doubt: Tensor, error: Tensor) -> Metrics:
    """How well each of H numbers tells n errors: doubt (H, n), error (n), float64 -> (H) each.

    `spearman` is of ranks, `pearson` of the numbers, `log_pearson` of their logarithms, since both have long tails;
    `auroc` is for finding errors of the last tenth.
    """
    wrong = error >= error.quantile(WRONG)
    least = torch.finfo(torch.float32).tiny
    return {
        "spearman": rank_correlation(doubt, error),
        "pearson": correlation(doubt, error),
        "log_pearson": correlation(doubt.clamp(min=least).log(), error.clamp(min=least).log()),
        "auroc": auroc(doubt[:, wrong], doubt[:, ~wrong]),
    }


def judge(steps: Steps, scale: Tensor, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Target -> heuristic -> measure -> `value`, the mean over seeds; `low` and `high`, 95 %; `per_seed`.

    Of `spearman` also `over_reference`, its difference to that of `max_aleatoric`, as value, low and high: both are
    resampled together. Beside the targets `rows`, how many steps are known for each seed.
    """
    doubt = steps.doubt
    found: dict[str, Any] = {"rows": steps.known.flatten(1).sum(-1).tolist()}
    for target in TARGETS:
        error = steps.error(scale, target)
        here = [_agreements(doubt[s], error[s], steps.known[s], resamples, s) for s in range(len(error))]
        rows: dict[str, Any] = {}
        found[target] = rows
        for h, name in enumerate(names(steps.guess.mean.shape[-3])):
            rows[name] = {}
            for measure in MEASURES:
                seeds = torch.stack([once[measure][:, h] for once in here])  # (S, 1 + R), the data themselves first
                rows[name][measure] = _interval(seeds.mean(0)) | {"per_seed": seeds[:, 0].tolist()}
            ahead = torch.stack([once["spearman"][:, h] - once["spearman"][:, 0] for once in here]).mean(0)
            rows[name]["spearman"]["over_reference"] = _interval(ahead)
    return found


def _agreements(doubt: Tensor, error: Tensor, known: Tensor, resamples: int, seed: int) -> Metrics:
    """`agreement` of the trajectories as they are and drawn anew: doubt (H, L, T), error (L, T) -> (1 + R, H) each."""
    doubt, error, known = doubt.cpu(), error.cpu(), known.cpu()
    source, lanes = generator(seed, "penalties", "bootstrap"), len(error)
    drawn = [torch.arange(lanes), *(torch.randint(lanes, (lanes,), generator=source) for _ in range(resamples))]
    each = []
    for lane in drawn:
        use = known[lane]
        each.append(agreement(doubt[:, lane][:, use], error[lane][use]))
    return {name: torch.stack([one[name] for one in each]) for name in MEASURES}


def _interval(values: Tensor) -> dict[str, float]:
    """values (1 + R), the first one of the data themselves."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return {"value": float(values[0]), "low": low, "high": high}


def medians(steps: Steps) -> Tensor:
    """Of every heuristic over a seed's known steps: (S, H), float64, the unit of curves."""
    return _medians(steps.doubt, steps.known)


def _medians(values: Tensor, known: Tensor) -> Tensor:
    """Over the known entries of each seed: values (S, *, L, T), known (S, L, T) -> (S, *)."""
    return torch.stack([seed[..., use].quantile(0.5, dim=-1) for seed, use in zip(values, known, strict=True)])


def by_depth(steps: Steps, scale: Tensor, near: Steps) -> dict[str, Any]:
    """What becomes of errors and doubts as a trajectory goes on, step by step, means over seeds.

    Args:
        steps: of trajectories.
        scale: of errors, (S, 1, O).
        near: held-out rows, whose medians are the units.

    Returns:
        `left`, the share of trajectories; `error`, the median error of each target, and `error_growth`, the same in its
        unit; and for every heuristic `median` and `high` (99th percentile) in its unit and `spearman` with the error of
        the mean among the steps of this depth alone, which tells one that ranks from one that only grows. NaN where
        fewer than `FEWEST` trajectories are left.
    """
    doubt, known = steps.doubt, steps.known
    errors = {target: steps.error(scale, target) for target in TARGETS}
    unit = medians(near)
    usual = {target: _medians(near.error(scale, target), near.known) for target in TARGETS}

    def median(values: Tensor) -> Tensor:
        return values.quantile(0.5)

    def high(values: Tensor) -> Tensor:
        return values.quantile(0.99)

    found: dict[str, Any] = {
        "left": known.double().mean((0, 1)).tolist(),
        "error": {target: _each_depth(known, median, error) for target, error in errors.items()},
        "error_growth": {
            target: _each_depth(known, median, error / usual[target].view(-1, 1, 1)) for target, error in errors.items()
        },
    }
    for h, name in enumerate(names(steps.guess.mean.shape[-3])):
        scaled = doubt[:, h] / unit[:, h, None, None]
        found[name] = {
            "median": _each_depth(known, median, scaled),
            "high": _each_depth(known, high, scaled),
            "spearman": _each_depth(known, rank_correlation, doubt[:, h], errors["mean"]),
        }
    return found


def _each_depth(known: Tensor, number: Callable[..., Tensor], *columns: Tensor) -> list[float]:
    """`number` of the known entries of each of columns (S, L, T), at every depth, averaged over seeds."""
    found = []
    for t in range(known.shape[-1]):
        uses = [(s, use) for s, use in enumerate(known[..., t]) if int(use.sum()) >= FEWEST]
        values = [float(number(*(column[s, use, t] for column in columns))) for s, use in uses]
        found.append(float(np.mean(values)) if values else float("nan"))
    return found


def effect_of_members(
    case: Case, steps: Steps, scale: Tensor, counts: Sequence[int], subsets: int = 10
) -> dict[str, dict[str, list[float]]]:
    """What smaller ensembles would say of the same steps: random subsets of the members.

    A subset is an ensemble of its own: its mean is judged, and the sample is one of its members'.

    Returns:
        heuristic -> a list over `counts` of `spearman` and `log_pearson` with the error of the mean, and of `size`, the
        median doubt over that of all members; and `error` -> `median`, of the mean's error. Means over subsets and
        seeds.
    """
    everyone = steps.guess.mean.shape[-3]
    known = steps.known.flatten(1)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ("error", *names(everyone))}

    def ensemble(count: int, draw: int = 0) -> Steps:
        sources = case.sources(f"penalties subset {count} {draw}")
        return subset(steps, rand((everyone,), sources).argsort(-1)[:, :count], sources)

    full = medians(ensemble(everyone))
    for count in counts:
        collected: dict[tuple[str, str], list[float]] = {}
        for draw in range(subsets if count < everyone else 1):
            smaller = ensemble(count, draw)
            doubt, error = smaller.doubt, smaller.error(scale, "mean")
            size = medians(smaller) / full
            for s, use in enumerate(known):
                wrong = error[s].flatten()[use]
                collected.setdefault(("error", "median"), []).append(float(wrong.quantile(0.5)))
                agreed = agreement(doubt[s].flatten(1)[:, use], wrong)
                for h, name in enumerate(names(count)):
                    for what in ("spearman", "log_pearson"):
                        collected.setdefault((name, what), []).append(float(agreed[what][h]))
                    collected.setdefault((name, "size"), []).append(float(size[s, h]))
        for (name, what), values in collected.items():
            found[name].setdefault(what, []).append(float(np.mean(values)))
    return found


def subset(steps: Steps, members: Tensor, sources: Sequence[torch.Generator]) -> Steps:
    """The same steps as an ensemble of only `members` (S, k) would tell them, all of them elites."""
    said = Prediction(steps.guess.mean, steps.guess.std).of(members)
    rows, outputs = said.mean.shape[-2:]
    elites = torch.arange(members.shape[-1], device=members.device).expand_as(members)
    taken = RandomElite()(
        steps.obs, steps.action, said, elites, randn((rows, outputs), sources), rand((rows,), sources)
    )
    return replace(steps, guess=Guess(*said, taken.next_obs, taken.member), elites=elites)


# -- far from the data -------------------------------------------------------------------------------------------------


def nearest(queries: Tensor, rows: Tensor, own: Tensor | None = None) -> Tensor:
    """Distance of queries (Q, D) to the nearest of rows (N, D): (Q); `own` (Q) are rows that a query does not count."""
    found = []
    for begin in range(0, len(queries), 512):
        apart = torch.cdist(queries[begin : begin + 512], rows)
        if own is not None:
            apart.scatter_(-1, own[begin : begin + 512].unsqueeze(-1), float("inf"))
        found.append(apart.amin(-1))
    return torch.cat(found)


def average_precision(doubt: Tensor, positive: Tensor) -> Tensor:
    """Sum over thresholds of precision times what recall gains: doubt (H, n), positive (n) bool -> (H).

    Equal numbers are one threshold. The share of positives is what a coin would have; NaN without any.
    """
    found = []
    for row in doubt:
        ordered, order = row.sort(descending=True)
        hits = positive[order].double().cumsum(0)
        last = torch.ones_like(positive)
        last[:-1] = ordered[:-1] != ordered[1:]
        at = torch.nonzero(last).flatten()
        caught = hits[at]
        gained = torch.diff(caught, prepend=caught.new_zeros(1))
        found.append((gained * caught / (at + 1)).sum() / positive.sum())
    return torch.stack(found)


def out_of_data(
    case: Case, inside: Steps, outside: Sequence[Steps], rows: int = 20_000, asked: int = 2000, quantile: float = 0.99
) -> dict[str, Any]:
    """Does a doubt find what is far from the data?

    Far is a state and action whose nearest neighbour among the data, in stds of each, is further than the 99th
    percentile of what the data's own rows have. Both are measured against the same random rows of the dataset.

    Args:
        case: the run.
        inside: held-out rows, most of them near.
        outside: steps to be found among them, each set for itself.
        rows: of the dataset that neighbours are sought among.
        asked: of them that say what is near.
        quantile: see above.

    Returns:
        `threshold`; and for every set `share` of it that is far, and heuristic -> `auroc` and `average_precision` for
        what is far in the set and the held-out rows together, with `auroc_set` for telling the set from those rows;
        lists over seeds.
    """
    data = case.problem.dataset.transitions
    columns = torch.cat([data.obs, data.action], -1)
    mean, std = scaler(columns)
    source = generator(0, "penalties", "neighbours")
    pick = torch.randperm(len(columns), generator=source)[:rows]
    table = (columns[pick] - mean) / std
    own = torch.arange(min(asked, len(table)))
    limit = float(nearest(table[own], table, own).double().quantile(quantile))

    def far(steps: Steps, s: int) -> Tensor:
        use = steps.known[s].flatten()
        asked_rows = torch.cat([steps.obs[s, use], steps.action[s, use]], -1).cpu()
        return nearest((asked_rows - mean) / std, table) > limit

    def said(steps: Steps, s: int) -> Tensor:
        return steps.doubt[s][:, steps.known[s]].cpu()

    found: dict[str, Any] = {"threshold": limit}
    seeds = range(len(case.seeds))
    near = [(far(inside, s), said(inside, s)) for s in seeds]
    for steps in outside:
        there = [(far(steps, s), said(steps, s)) for s in seeds]
        row: dict[str, Any] = {"share": [float(is_far.double().mean()) for is_far, _ in there]}
        for h, name in enumerate(names(steps.guess.mean.shape[-3])):
            area, precision, apart = [], [], []
            for (near_far, near_doubt), (is_far, doubt) in zip(near, there, strict=True):
                positive, both = torch.cat([near_far, is_far]), torch.cat([near_doubt[h], doubt[h]])
                area.append(float(auroc(both[positive], both[~positive])))
                precision.append(float(average_precision(both.unsqueeze(0), positive)))
                apart.append(float(auroc(doubt[h], near_doubt[h])))
            row[name] = {"auroc": area, "average_precision": precision, "auroc_set": apart}
        found[steps.name] = row
    return found


# -- the diagnosis -----------------------------------------------------------------------------------------------------


def change_scale(case: Case) -> Tensor:
    """Std of the data's one-step changes, the unit of errors: (S, 1, O)."""
    return case.ensemble.change_std[:, 0, :, :-1]


def penalties(case: Case) -> Finding:
    """Which uncertainty ranks the model's errors: on held-out rows, and along the policy's rollouts in the model."""
    scale, held_out, rolled = change_scale(case), held_out_steps(case), rollout_steps(case)
    sets = [held_out] if rolled is None else [held_out, first(rolled, STEPS)]
    judged = {steps.name: judge(steps, scale) for steps in sets}
    heuristics = names(held_out.guess.mean.shape[-3])
    numbers: dict[str, Any] = {
        "median": dict(zip(heuristics, medians(held_out).T.tolist(), strict=True)),
        **judged,
    }
    if rolled is not None:
        numbers["by_depth"] = by_depth(rolled, scale, held_out)
    figure = Figure(figsize=(4.6 + (7.6 if rolled is not None else 0), 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 1 if rolled is None else 3, squeeze=False)[0]
    draw_ranks(panels[0], judged)
    if rolled is not None:
        draw_depth(panels[1], panels[2], numbers["by_depth"])
    tables = [agreement_table(name, found) for name, found in judged.items()]
    return Finding(numbers, tables, {"penalties": tidy(figure)})


HEADINGS = ("Spearman", "of a sample's", "Pearson", "of logarithms", "AUROC, worst tenth")


def agreement_rows(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Heuristic -> what `HEADINGS` name: with the error of the mean but for the second."""

    def shown(number: Mapping[str, float]) -> str:
        return f"{number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"

    return {
        name: [
            shown(row["spearman"]), shown(found["sample"][name]["spearman"]),
            *(shown(row[measure]) for measure in MEASURES[1:]),
        ]
        for name, row in found["mean"].items()
    }  # fmt: skip


def agreement_table(name: str, found: Mapping[str, Any]) -> Table:
    """For the screen."""
    table = quiet_table(f"penalties against the true error, 95 % over trajectories: {name}")
    table.add_column("penalty")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for heuristic, cells in agreement_rows(found).items():
        table.add_row(heuristic, *cells)
    return table


SETS = ("black", "#17becf", "#a08a2c", "#999999", "#d98cb3")
"""Colours of sets of steps: not those of heuristics."""


def draw_ranks(axes: Any, judged: Mapping[str, Mapping[str, Any]], measure: str = "spearman") -> None:
    """Every heuristic's Spearman with its interval, for every set of steps; hollow for the error of a sample."""
    heuristics = list(next(iter(judged.values()))["mean"])
    place = np.arange(len(heuristics), dtype=float)
    for i, (colour, (name, found)) in enumerate(zip(SETS, judged.items(), strict=False)):
        for j, target in enumerate(TARGETS):
            rows = [found[target][heuristic][measure] for heuristic in heuristics]
            value, low, high = (np.array([row[key] for row in rows]) for key in ("value", "low", "high"))
            shift = 0.8 * ((2 * i + j + 0.5) / (2 * len(judged)) - 0.5)
            axes.errorbar(
                value, place + shift, xerr=np.abs(np.stack([value - low, high - value])), fmt="o", color=colour,
                markersize=4, linewidth=1, markerfacecolor="white" if target == "sample" else colour,
                label=f"{name}, {target}",
            )  # fmt: skip
    axes.set_yticks(place, heuristics, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Spearman with the true error" if measure == "spearman" else measure)
    axes.legend(fontsize=6.5, frameon=False)


def draw_depth(sizes: Any, ranks: Any, curves: Mapping[str, Any]) -> None:
    """Median doubts and the median error over depth, and how well doubts rank within a step."""
    heuristics = [name for name in curves if name not in ("left", "error", "error_growth")]
    depth = np.arange(1, len(curves["left"]) + 1)
    for colour, name in zip(COLOURS, heuristics, strict=False):
        sizes.plot(depth, curves[name]["median"], color=colour, label=name, linewidth=1.4)
        ranks.plot(depth, curves[name]["spearman"], color=colour, linewidth=1.4)
    grown = curves["error_growth"]["mean"]
    sizes.plot(depth, grown, color="black", linestyle="--", linewidth=1.4, label="error of the mean")
    sizes.set_yscale("log")
    sizes.set_ylabel("median / held-out median")
    ranks.set_ylabel("Spearman within the step")
    for axes in (sizes, ranks):
        axes.set_xlabel("imagined steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    sizes.legend(fontsize=6.5, frameon=False)
