"""Over tasks: IQM, mean, median, optimality gap, performance profiles and probability of improvement, with intervals.

All by rliable (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"): intervals
are 95 % percentiles of a bootstrap over seeds, stratified by task. A score of 100 is the reference's; the optimality
gap is the mean of what is missing to it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbrl.report.tables import Cell, Report, Task, how_many
from mbrl.rundir import FloatArray

REPETITIONS = 2000
SEED = 0
METRICS = ("IQM", "mean", "median", "optimality gap")
BENCHMARKS = {"d4rl": "D4RL", "minari": "Minari", "neorl": "NeoRL", "neorl2": "NeoRL-2", "builtin": "built-in tasks"}


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; no interval where there is one seed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Aggregate:
    """One benchmark's scores, of all its methods on all its tasks as far as there are no gaps.

    Attributes:
        title: the benchmark, and the version of its environments.
        tasks: that are aggregated.
        seeds: per method, how many on each of the tasks.
        estimates: per method and metric.
        thresholds: (P,) of the profiles.
        profiles: per method (3, P): share of runs above each threshold, and its interval; NaN where there is none.
        notes: what was left out and why, one sentence each; the reason where nothing could be computed.
    """

    title: str
    tasks: tuple[Task, ...]
    seeds: Mapping[str, int]
    estimates: Mapping[str, Mapping[str, Estimate]]
    thresholds: FloatArray
    profiles: Mapping[str, FloatArray]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Improvement:
    """How probable it is that a run of `x` returns more than one of `y`, averaged over their common tasks.

    `probability` is None, and `tasks` 0, where no common task has finite returns of both; `notes` name those left out.
    """

    x: str
    y: str
    setting: str
    tasks: int
    probability: Estimate | None
    notes: tuple[str, ...]


def _rliable() -> tuple[Any, Any]:
    """Its bootstrap and its metrics."""
    from absl import logging
    from rliable import library, metrics

    # rliable brings absl, whose handler keeps what standard error was at its import, and closes it when logging is set
    # up again, as Hydra does: a notebook's or a test's output would be gone.
    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return library, metrics


def rliable_missing() -> str:
    """Empty if rliable can be imported; else what to do."""
    try:
        _rliable()
    except ImportError as error:
        return f"rliable cannot be imported ({error}): pip install 'offline-mbrl[report]'"
    return ""


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """The global generator of numpy, from a fixed seed, and then as it was.

    rliable 1.2 draws from it whatever `random_state` it is given.
    """
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def benchmark_of(task: Task) -> str:
    """What tasks must share for their scores to be averaged: benchmark, environment version, offline or online."""
    scheme = task.dataset.partition(":")[0] if ":" in task.dataset else ""
    name = BENCHMARKS.get(scheme, "own data")
    version = re.search(r"-v\d+$", task.env)
    words = f"{name}, environments {version.group()[1:]}" if version else f"{name}, {task.env}"
    return words if task.setting == "offline" else f"{words}, online"


def aggregates(report: Report) -> list[Aggregate]:
    """One for each benchmark that has scores."""
    groups: dict[str, list[Task]] = {}
    for task in report.tasks:
        if report.scored(task):
            groups.setdefault(benchmark_of(task), []).append(task)
    return [aggregate(report, title, tasks) for title, tasks in groups.items()]


def aggregate(report: Report, title: str, tasks: Sequence[Task]) -> Aggregate:
    """Of one benchmark."""
    methods, common, notes = largest_block(report, tasks)
    missing = rliable_missing()
    if missing or not common:
        notes.append(missing or "nothing to aggregate: no method has finite scores on any task")
        return Aggregate(title, tuple(common), {}, {}, np.empty(0), {}, tuple(notes))
    matrices = {}
    for method in methods:
        matrices[method], said = score_matrix([report.cells[task.label, method] for task in common], "final_score")
        notes += said
        if len(matrices[method]) == 1:
            notes.append(f"{method}: one seed, so no interval")
    highest = max(100.0, *(float(matrix.max()) for matrix in matrices.values()))
    lowest = min(0.0, *(float(matrix.min()) for matrix in matrices.values()))
    thresholds = np.linspace(lowest, highest, 101)
    estimates, profiles = {}, {}
    for method, matrix in matrices.items():
        known = np.stack(
            intervals(lambda scores: np.append(summary_metrics(scores), profile(scores, thresholds)), matrix)
        )
        estimates[method] = {name: _estimate(*known[:, i]) for i, name in enumerate(METRICS)}
        profiles[method] = known[:, len(METRICS) :]
    seeds = {method: len(matrix) for method, matrix in matrices.items()}
    return Aggregate(title, tuple(common), seeds, estimates, thresholds, profiles, tuple(notes))


def largest_block(report: Report, tasks: Sequence[Task]) -> tuple[list[str], list[Task], list[str]]:
    """Methods and tasks that have no gap between them, and what was left out for that.

    Candidates are the tasks of every method, and those that two methods share, each with all methods that have them.
    The one with most cells is taken, of equally many the one with more tasks, then the first.
    """
    usable = {
        method: frozenset(task.label for task in tasks if _finite(report.cells.get((task.label, method))))
        for method in report.methods
        if any((task.label, method) in report.cells for task in tasks)
    }
    candidates = dict.fromkeys([*usable.values(), *(x & y for x, y in itertools.combinations(usable.values(), 2))])
    blocks = [(labels, [method for method in usable if labels <= usable[method]]) for labels in candidates]
    labels, inside = max(blocks, key=lambda block: (len(block[0]) * len(block[1]), len(block[0])))
    notes = []
    for method in usable:
        if method not in inside:
            ran = sum((task.label, method) in report.cells for task in tasks)
            why = f"it was run on {ran} of the {len(tasks)} tasks"
            if len(usable[method]) < ran:
                why += f", with finite returns on {len(usable[method])}"
            notes.append(f"{method} is left out: {why}, and it takes all methods on all tasks")
    for task in tasks:
        lacking = [method for method in inside if task.label not in usable[method]]
        absent = [method for method in lacking if (task.label, method) not in report.cells]
        diverged = [method for method in lacking if method not in absent]
        why = " and ".join(
            f"{words} {', '.join(who)}"
            for words, who in (("not run with", absent), ("no finite returns with", diverged))
            if who
        )
        if why:
            notes.append(f"{task.label} is left out: {why}")
    return inside, [task for task in tasks if task.label in labels], notes


def score_matrix(cells: Sequence[Cell], name: str) -> tuple[FloatArray, list[str]]:
    """(seeds, tasks) of one method, and what was left out: every task gives as many seeds as the one with the fewest.

    Which seeds those are is settled by their numbers, the lowest first, never by what they returned.
    """
    count = min(len(cell.results) for cell in cells)
    columns = [[result.value(name) for result in cell.results[:count]] for cell in cells]
    more = sum(len(cell.results) > count for cell in cells)
    notes = []
    if more:
        notes.append(
            f"{cells[0].method}: {how_many(count, 'seed')} of every task, as many as its task with the "
            f"fewest has; {more} of {len(cells)} tasks have more, of which those with the lowest numbers enter"
        )
    return np.array(columns, np.float64).T, notes


def summary_metrics(scores: FloatArray) -> FloatArray:
    """`METRICS` of scores (seeds, tasks)."""
    _, metrics = _rliable()

    return np.array(
        [
            metrics.aggregate_iqm(scores),
            metrics.aggregate_mean(scores),
            metrics.aggregate_median(scores),
            metrics.aggregate_optimality_gap(scores, gamma=100.0),
        ]
    )


def profile(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Share of all runs (seeds, tasks) above each threshold."""
    above: FloatArray = (scores[..., None] > thresholds).mean((0, 1))
    return above


def improvement_probability(x: FloatArray, y: FloatArray) -> FloatArray:
    """P(X > Y) of (seeds, tasks) each, ties by half, mean over tasks: rliable's, without a test at every draw.

    It depends on the order of the runs of a task alone, so raw returns of different tasks may stand side by side.
    """
    pairs = np.sign(x[:, None] - y[None, :])
    return np.array([((1 + pairs) / 2).mean()])


def intervals(function: Callable[..., FloatArray], *matrices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The function of the matrices, (n,), and both ends of its interval; NaN ends where a matrix has one seed."""
    bootstrap, _ = _rliable()

    value = function(*matrices)
    if min(len(matrix) for matrix in matrices) < 2:
        nothing = np.full_like(value, np.nan)
        return value, nothing, nothing
    data: Any = matrices[0] if len(matrices) == 1 else list(matrices)
    with same_draws():
        _, found = bootstrap.get_interval_estimates({"": data}, function, reps=REPETITIONS)
    return value, found[""][0], found[""][1]


def improvements(report: Report) -> list[Improvement]:
    """Of every pair of methods that share a task, from raw returns."""
    if rliable_missing():
        return []
    found = []
    for setting in dict.fromkeys(task.setting for task in report.tasks):
        for x, y in itertools.combinations(report.methods, 2):
            both = [
                (report.cells[task.label, x], report.cells[task.label, y])
                for task in report.tasks
                if task.setting == setting and (task.label, x) in report.cells and (task.label, y) in report.cells
            ]
            if not both:
                continue
            left_out = tuple(
                f"{cell.task.label} is left out of {x} against {y}: no finite returns with {cell.method}"
                for pair in both
                for cell in pair
                if not _finite(cell)
            )
            both = [pair for pair in both if _finite(pair[0]) and _finite(pair[1])]
            if not both:
                found.append(Improvement(x, y, setting, 0, None, left_out))
                continue
            of_x, notes_x = score_matrix([pair[0] for pair in both], "final_return")
            of_y, notes_y = score_matrix([pair[1] for pair in both], "final_return")
            value, low, high = intervals(improvement_probability, of_x, of_y)
            notes = (*left_out, *notes_x, *notes_y)
            found.append(Improvement(x, y, setting, len(both), _estimate(value[0], low[0], high[0]), notes))
    return found


def _finite(cell: Cell | None) -> bool:
    return cell is not None and all(math.isfinite(result.final_return) for result in cell.results)


def _estimate(value: float, low: float, high: float) -> Estimate:
    known = math.isfinite(low)
    return Estimate(float(value), float(low) if known else None, float(high) if known else None)
