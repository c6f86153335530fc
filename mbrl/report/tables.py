"""From runs to numbers: which runs are pooled, and what every task and method comes to, from `returns.npz` alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mbrl.report.runs import Method, Run, methods_of, short_names
from mbrl.rundir import FloatArray, final_performance, real_steps


@dataclass(frozen=True)
class Task:
    """What numbers must share to stand in one row: data, environment, horizon, and whether real steps are made.

    Attributes:
        label: dataset and environment version, and what else tells it from the other tasks of the report.
        dataset: dataset string.
        dataset_hash: of its content.
        env: that scores the policies.
        horizon: of its episodes, in steps.
        real_steps: that an online run makes; None offline.
        reference: returns of score 0 and score 100; None where results are raw returns.
        reference_source: where these are from.
        behaviour_return: mean return of the dataset's complete episodes; None if it has none.
    """

    label: str
    dataset: str
    dataset_hash: str
    env: str
    horizon: int | None
    real_steps: int | None
    reference: tuple[float, float] | None
    reference_source: str | None
    behaviour_return: float | None

    @property
    def setting(self) -> str:
        """`offline` or `online`."""
        return "offline" if self.real_steps is None else "online"

    @property
    def behaviour_score(self) -> float | None:
        """The behaviour mean on the scale of the scores."""
        if self.reference is None or self.behaviour_return is None:
            return None
        minimum, maximum = self.reference
        return 100 * (self.behaviour_return - minimum) / (maximum - minimum)


@dataclass(frozen=True)
class Protocol:
    """How a run was scored: when, and with how many episodes."""

    updates: tuple[int, ...]
    episodes: int

    def __str__(self) -> str:
        return (
            f"{how_many(len(self.updates), 'evaluation')} up to update {self.updates[-1]:,}, "
            f"{how_many(self.episodes, 'episode')} each"
        )


@dataclass(frozen=True)
class SeedResult:
    """One seed of one run.

    Attributes:
        run: where it comes from.
        seed: its number.
        final_return: mean of the last 10 evaluations and their episodes.
        best_return: of its best evaluation, which only the true environment can tell: an oracle's choice.
        best_update: when that was.
        curve_return: mean over episodes, (K,).
        final_score, best_score, curve_score: the same, normalised; None without reference returns.
    """

    run: Run
    seed: int
    final_return: float
    best_return: float
    best_update: int
    curve_return: FloatArray
    final_score: float | None
    best_score: float | None
    curve_score: FloatArray | None

    def value(self, name: str) -> float | None:
        """`final_return`, `best_return`, `final_score` or `best_score`."""
        found: float | None = getattr(self, name)
        return found


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and sample standard deviation over seeds (n - 1).

    The deviation is None of a single seed, and where a value is not finite; the mean is not finite then either.
    """

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per seed."""
        if not all(math.isfinite(value) for value in values):
            return cls(math.nan, None)
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


@dataclass(frozen=True)
class Cell:
    """One method on one task under one protocol; `results` has every seed once, in order."""

    task: Task
    method: str
    protocol: Protocol
    results: tuple[SeedResult, ...]

    def spread(self, name: str) -> Spread | None:
        """Of a `SeedResult` value over seeds; None unless all of them have it."""
        values = [value for result in self.results if (value := result.value(name)) is not None]
        return Spread.of(values) if len(values) == len(self.results) else None

    @property
    def scored(self) -> bool:
        """Whether there are normalised scores."""
        return all(result.final_score is not None for result in self.results)

    def curves(self, scored: bool) -> FloatArray:
        """Scores or raw returns of every evaluation, mean over episodes, (seeds, K)."""
        return np.stack([result.curve_score if scored else result.curve_return for result in self.results])  # type: ignore[misc]

    @property
    def steps(self) -> FloatArray:
        """(K,) what the curve stands over: updates, or of an online run real steps."""
        updates = np.asarray(self.protocol.updates, np.float64)
        plan = self.results[0].run.online
        return updates if plan is None else real_steps(updates, plan)


@dataclass(frozen=True)
class Report:
    """All that is shown.

    Attributes:
        runs: all that were found.
        names: of each run's method, in the order of `runs`.
        described: name -> all settings of a method whose name leaves some out.
        tasks: rows, offline ones first.
        methods: columns.
        cells: by label of the task, and method.
        notes: what a reader must know about how runs were pooled, one sentence each.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    described: dict[str, Method]
    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    notes: tuple[str, ...]

    def scored(self, task: Task) -> bool:
        """Whether all the task's cells have normalised scores."""
        return all(cell.scored for cell in self.of_task(task))

    def of_task(self, task: Task) -> list[Cell]:
        """The task's cells, in the order of methods."""
        return [self.cells[task.label, method] for method in self.methods if (task.label, method) in self.cells]


def tabulate(runs: Sequence[Run]) -> Report:
    """Pool runs of one task, method and protocol over their seeds."""
    made = methods_of(runs)
    short = short_names(list(dict.fromkeys(made)))
    names = [short[method] for method in made]
    described = {name: method for method, name in sorted(short.items(), key=lambda one: one[1]) if name != str(method)}
    counted = [(run, name) for run, name in zip(runs, names, strict=True) if run.counts]
    tasks = name_tasks([run for run, _ in counted])
    pools: dict[tuple[Task, str], dict[Protocol, list[SeedResult]]] = defaultdict(lambda: defaultdict(list))
    for (run, name), task in zip(counted, tasks, strict=True):
        pools[task, name][Protocol(run.updates, run.returns.shape[-1])] += seed_results(run)
    cells: dict[tuple[str, str], Cell] = {}
    notes = list(dict.fromkeys(run.smoke for run in runs if run.smoke))
    for (task, name), by_protocol in pools.items():
        elsewhere = [other for key, other in pools.items() if key[1] == name and key[0] != task]
        usual = _usual_protocol(by_protocol, elsewhere)
        if len(by_protocol) > 1:
            notes.append(
                f"{name} on {task.label}: these runs were scored by different protocols, so they are kept apart: "
                + "; ".join(f"{protocol} ({_paths(results)})" for protocol, results in by_protocol.items())
                + f"; {name} are those with {usual}"
            )
        for protocol, results in by_protocol.items():
            method = name if protocol == usual else f"{name} [{protocol}]"
            kept, doubles = without_doubles(results)
            for double, instead in doubles:
                notes.append(
                    f"{method} on {task.label}: seed {double.seed} was run more than once; {instead.run.path}, which "
                    f"started last, counts, and {double.run.path} does not: the same seed is no second sample"
                )
            notes += _mixed_code(method, task, kept)
            cells[task.label, method] = Cell(task, method, protocol, tuple(kept))
    order = sorted(set(tasks), key=lambda task: (task.setting, task.label))
    columns = tuple(sorted({method for _, method in cells}))
    return Report(tuple(runs), tuple(names), described, tuple(order), columns, cells, tuple(notes))


def _usual_protocol(
    pools: Mapping[Protocol, Sequence[SeedResult]], elsewhere: Sequence[Mapping[Protocol, Sequence[SeedResult]]]
) -> Protocol:
    """Whose pool has the method's bare name: that of most of its other tasks, else of most seeds, else the longest.

    One stray run of another protocol must not rename the others, or their task is none of the method's any more.
    """

    def rank(protocol: Protocol) -> tuple[int, int, int]:
        seeds = {result.seed for result in pools[protocol]}
        return sum(protocol in other for other in elsewhere), len(seeds), protocol.updates[-1]

    return max(pools, key=rank)


def _paths(results: Sequence[SeedResult]) -> str:
    return ", ".join(dict.fromkeys(str(result.run.path) for result in results))


def _mixed_code(method: str, task: Task, results: Sequence[SeedResult]) -> list[str]:
    commits = dict.fromkeys(str((r.run.meta.get("git") or {}).get("commit") or "")[:12] or "unknown" for r in results)
    if len(commits) < 2:
        return []
    return [f"{method} on {task.label}: its seeds were run with different commits: {', '.join(commits)}"]


@np.errstate(invalid="ignore")  # inf - inf is nan, which the tables call not finite
def seed_results(run: Run) -> list[SeedResult]:
    """What each seed of a run came to."""
    final = final_performance(run.returns, run.scores, run.seeds)["per_seed"]
    results = []
    for index, seed in enumerate(run.seeds):
        curve = run.returns[:, index].mean(-1)
        curve_score = None if run.scores is None else run.scores[:, index].mean(-1)
        results.append(
            SeedResult(
                run,
                seed,
                final[index]["final_return_mean"],
                float(curve.max()),
                run.updates[int(curve.argmax())],
                curve,
                final[index]["final_score_mean"],
                None if curve_score is None else float(curve_score.max()),
                curve_score,
            )
        )
    return results


def without_doubles(results: Sequence[SeedResult]) -> tuple[list[SeedResult], list[tuple[SeedResult, SeedResult]]]:
    """Every seed once, from the run that started last; and the others, each with the one that counts instead."""
    newest: dict[int, SeedResult] = {}
    by_age = sorted(results, key=lambda result: (str(result.run.meta.get("started") or ""), str(result.run.path)))
    for result in by_age:
        newest[result.seed] = result
    others = [(result, newest[result.seed]) for result in by_age if result is not newest[result.seed]]
    return [newest[seed] for seed in sorted(newest)], others


def name_tasks(runs: Sequence[Run]) -> list[Task]:
    """The task of each run. Two with one label get what tells them apart added to it."""
    tasks = [_task(run) for run in runs]
    return [replace(task, label=task.label + _distinction(task, tasks)) for task in tasks]


def _task(run: Run) -> Task:
    reference, horizon = run.meta.get("reference"), run.meta.get("horizon")
    behaviour = run.meta.get("behaviour_return_mean")
    plan = run.online
    return Task(
        label=run.label + ("" if plan is None else f", online with {plan['steps']:,} real steps"),
        dataset=str(run.meta.get("dataset") or ""),
        dataset_hash=str(run.meta.get("dataset_hash") or ""),
        env=str(run.meta.get("env") or "unknown environment"),
        horizon=None if horizon is None else int(horizon),
        real_steps=None if plan is None else int(plan["steps"]),
        reference=None if reference is None else (float(reference[0]), float(reference[1])),
        reference_source=run.meta.get("reference_source"),
        behaviour_return=None if behaviour is None else float(behaviour),
    )


def _distinction(task: Task, tasks: Sequence[Task]) -> str:
    same = [other for other in tasks if other.label == task.label]
    words = ""
    if len({other.env for other in same}) > 1:
        words += f", in {task.env}"
    if len({other.horizon for other in same}) > 1:
        words += f", horizon {task.horizon}"
    if len({other.reference for other in same}) > 1:
        words += ", raw returns" if task.reference is None else ", scores {:g} to {:g}".format(*task.reference)
    if len({(other.dataset_hash, other.dataset, other.behaviour_return) for other in same}) > 1:
        words += f", data {task.dataset_hash[:8]}"
    return words


def how_many(count: int, word: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def number(value: float, like: float | None = None) -> str:
    """A return or score for people: as many digits as tell something beside `like`, the mean it belongs to."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value if like is None else like)
    return f"{value:,.0f}" if size >= 10_000 else f"{value:,.1f}" if size >= 100 else f"{value:.2f}"


def with_spread(spread: Spread | None, score: bool = False) -> str:
    """`mean ± std`; scores with one digit after the point, as everywhere."""
    if spread is None:
        return "–"
    if score:
        mean = f"{spread.mean:.1f}" if math.isfinite(spread.mean) else "not finite"
        return mean if spread.std is None else f"{mean} ± {spread.std:.1f}"
    mean = number(spread.mean)
    return mean if spread.std is None else f"{mean} ± {number(spread.std, spread.mean)}"
