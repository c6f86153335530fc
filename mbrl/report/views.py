"""What a report says, as tables of text: the terminal, Markdown and the page show the same ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

import mbrl
from mbrl.report.aggregates import METRICS, REPETITIONS, SEED, Aggregate, Estimate, Improvement
from mbrl.report.published import Column, columns_for
from mbrl.report.runs import Run
from mbrl.report.tables import Cell, Report, Spread, Task, how_many, number, with_spread
from mbrl.rundir import FINAL_EVALUATIONS

NOTHING = "–"
FINAL = f"last {FINAL_EVALUATIONS}"
BEST = "best, an oracle's choice"


@dataclass(frozen=True)
class Entry:
    """One field of a table: what is written and sorted by, whether it stands out, and what a pointer is told."""

    text: str
    order: float | None = None
    strong: bool = False
    hint: str = ""
    code: bool = False


@dataclass(frozen=True)
class View:
    """A table. Every row has as many entries as `heads`; the first `names` columns hold words, the others numbers."""

    title: str
    heads: tuple[Entry, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    names: int = 1
    published: frozenset[int] = field(default_factory=frozenset)  # columns of other people's figures


def summary_line(report: Report) -> str:
    """How much there is, in a sentence."""
    inside = sum(run.counts for run in report.runs)
    rest = len(report.runs) - inside
    line = (
        f"{how_many(len(report.runs), 'run')}, {inside} in the tables: {how_many(len(report.tasks), 'task')}, "
        f"{how_many(len(report.methods), 'method')}, "
        f"{how_many(sum(len(cell.results) for cell in report.cells.values()), 'trained seed')}"
    )
    return f"{line}; {rest} not counted, see the runs below" if rest else line


def warnings(report: Report) -> list[str]:
    """Of the runs that count: what a reader must know before the tables."""
    return [f"{run.path}: {warning}" for run in report.runs if run.counts for warning in run.warnings]


def published_in(report: Report) -> list[tuple[Column, dict[str, tuple[float, float | None]]]]:
    """Published columns that have a figure for a task of the report, each with label -> (score, spread).

    A figure belongs to the very dataset, learned from offline, over its benchmark's horizon of 1000 steps. Beside a
    smoke run there is none.
    """
    if any(run.smoke for run in report.runs):
        return []
    tasks = [task for task in report.tasks if task.setting == "offline" and task.reference and task.horizon == 1000]
    found = []
    for column in columns_for(task.dataset for task in tasks):
        figures = {
            task.label: (column.scores[task.dataset], column.spreads.get(task.dataset))
            for task in tasks
            if task.dataset in column.scores
        }
        found.append((column, figures))
    return found


def leaderboard(report: Report, *, published: bool) -> View:
    """Tasks x methods: score of the last evaluations, raw return where there are no references.

    Beside them, if `published`, what was published for the algorithms of the report on the same datasets.
    """
    algorithms = {run.algo for run in report.runs if run.counts}
    beside = [one for one in published_in(report) if one[0].algorithm in algorithms] if published else []
    heads = [Entry("task"), Entry("unit"), Entry("dataset's mean"), *(Entry(method) for method in report.methods)]
    heads += [Entry(f"{c.method}, {c.source.name}", hint=c.citation) for c, _ in beside]
    rows = []
    for task in report.tasks:
        cells = {cell.method: cell for cell in report.of_task(task)}
        scored = report.scored(task)
        spreads = {m: cell.spread("final_score" if scored else "final_return") for m, cell in cells.items()}
        highest = _highest(list(spreads.values()))
        row = [Entry(task.label), Entry("score" if scored else "raw return"), _behaviour(task, scored)]
        for method in report.methods:
            spread = spreads.get(method)
            if spread is None:
                row.append(Entry(NOTHING, hint="not run"))
                continue
            hint = how_many(len(cells[method].results), "seed") + f"; {cells[method].protocol}"
            row.append(Entry(with_spread(spread, scored), spread.mean, spread.mean == highest, hint))
        row += [_figure(figures.get(task.label), column) for column, figures in beside]
        rows.append(tuple(row))
    notes = [f"mean of the {FINAL} evaluations, ± standard deviation over seeds; in bold: the highest mean of a row"]
    if beside:
        notes += published_notes([column for column, _ in beside], report)
    ours = 3 + len(report.methods)
    return View("Leaderboard", tuple(heads), tuple(rows), tuple(notes), 2, frozenset(range(ours, len(heads))))


def _behaviour(task: Task, scored: bool) -> Entry:
    value = task.behaviour_score if scored else task.behaviour_return
    if value is None:
        return Entry(NOTHING)
    return Entry(f"{value:.1f}" if scored else number(value), value)


def _figure(found: tuple[float, float | None] | None, column: Column) -> Entry:
    if found is None:
        return Entry(NOTHING, hint="no figure in this source")
    score, spread = found
    text = _printed(score) + ("" if spread is None else f" ± {_printed(spread)}")
    return Entry(text, score, hint=column.citation)


def _printed(value: float) -> str:
    """With the digits that sources print: one, or two where they have them."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def published_notes(columns: Sequence[Column], report: Report) -> list[str]:
    """Where figures are from, and how they differ from the runs."""
    datasets = {dataset for column in columns for dataset in column.scores}
    ours = sorted({task.env for task in report.tasks if task.dataset in datasets})
    theirs = sorted({column.environment for column in columns})
    notes = [
        f"published figures were scored in {', '.join(theirs)}, these runs in {', '.join(ours)}: an environment of "
        "another version is another task, and protocols differ too"
    ]
    by_source: dict[tuple[str, str, str], list[str]] = {}
    for column in columns:
        by_source.setdefault((column.source.name, column.citation, column.source.url), []).append(column.method)
    return notes + [f"{name} ({', '.join(m)}): {citation}, {url}" for (name, citation, url), m in by_source.items()]


def published_view(report: Report) -> View | None:
    """All published figures on the datasets of the report: methods x tasks, for these are many; None without any."""
    found = published_in(report)
    if not found:
        return None
    tasks = [task for task in report.tasks if any(task.label in figures for _, figures in found)]
    about = ("published method", "source", "seeds", "scored in")
    heads = tuple(Entry(word) for word in (*about, *(task.dataset for task in tasks)))
    rows = tuple(
        (
            Entry(column.method),
            Entry(f"{column.source.name}, {column.where}", hint=column.citation),
            Entry(NOTHING if column.seeds is None else str(column.seeds), column.seeds),
            Entry(column.environment),
            *(_figure(figures.get(task.label), column) for task in tasks),
        )
        for column, figures in found
    )
    sources = dict.fromkeys(column.source for column, _ in found)
    protocols = dict.fromkeys(f"{c.source.name}, {c.where}: {c.protocol}" for c, _ in found)
    notes = [
        "normalised scores as printed; seeds are – where the source was not read for them",
        *(f"{source.name}: {source.title} ({source.year}), {source.url}" for source in sources),
        *protocols,
    ]
    return View("Published on the same datasets", heads, rows, tuple(notes), 4, frozenset(range(4, len(heads))))


def task_view(report: Report, task: Task) -> View:
    """One task: every method with return and score, last and best, and the dataset's own mean."""
    cells = report.of_task(task)
    scored = any(cell.scored for cell in cells)
    heads = ["method", "seeds", f"return, {FINAL}", f"return, {BEST}"]
    heads += [f"score, {FINAL}", f"score, {BEST}"] if scored else []
    names = ["final_return", "best_return", *(["final_score", "best_score"] if scored else [])]
    best = {name: _highest([cell.spread(name) for cell in cells]) for name in names}
    rows = []
    for cell in cells:
        seeds = ", ".join(str(result.seed) for result in cell.results)
        row = [Entry(cell.method), Entry(str(len(cell.results)), len(cell.results), hint=f"seeds {seeds}")]
        for name in names:
            spread = cell.spread(name)
            strong = spread is not None and spread.mean == best[name]
            row.append(_spread_entry(spread, name.endswith("score"), strong))
        rows.append(tuple(row))
    own = [Entry("the dataset's episodes, mean"), Entry(NOTHING), _behaviour(task, False), Entry(NOTHING)]
    rows.append(tuple([*own, _behaviour(task, True), Entry(NOTHING)] if scored else own))
    return View(task.label, tuple(Entry(head) for head in heads), tuple(rows), tuple(_task_notes(task, cells)))


def _highest(spreads: Sequence[Spread | None]) -> float:
    """The mean that stands out; infinity, which no mean equals, unless at least two are finite."""
    means = [spread.mean for spread in spreads if spread is not None and math.isfinite(spread.mean)]
    return max(means) if len(means) > 1 else math.inf


def _spread_entry(spread: Spread | None, score: bool, strong: bool) -> Entry:
    return Entry(with_spread(spread, score), None if spread is None else spread.mean, strong)


def _task_notes(task: Task, cells: Sequence[Cell]) -> list[str]:
    protocols: dict[str, list[str]] = {}
    for cell in cells:
        protocols.setdefault(str(cell.protocol), []).append(cell.method)
    horizon = "" if task.horizon is None else f", horizon {task.horizon:,} steps"
    notes = [f"scored in {task.env}{horizon}"]
    if len(protocols) == 1:
        notes.append(f"protocol: {next(iter(protocols))}")
    else:
        notes.append("protocols differ: " + "; ".join(f"{', '.join(who)}: {what}" for what, who in protocols.items()))
    if task.reference is None:
        notes.append("raw returns: there are no reference returns to normalise by")
    else:
        low, high = task.reference
        notes.append(f"score 0 is a return of {low:g}, score 100 one of {high:g}: {task.reference_source}")
    if task.real_steps is not None:
        notes.append(f"online: {task.real_steps:,} real steps were made in training")
    return notes


# -- over tasks --------------------------------------------------------------------------------------------------------


def aggregate_view(found: Aggregate) -> View:
    """IQM, mean, median, optimality gap of every method."""
    heads = (Entry("method"), Entry("seeds"), *(Entry(name) for name in METRICS))
    rows = tuple(
        (
            Entry(method),
            Entry(str(found.seeds[method]), found.seeds[method]),
            *(_estimate_entry(estimates[name], 1) for name in METRICS),
        )
        for method, estimates in found.estimates.items()
    )
    names = [task.label.partition(", evaluated in ")[0] for task in found.tasks]
    notes = (f"tasks: {'; '.join(names)}",) if found.tasks else ()
    return View(f"{found.title}: {how_many(len(found.tasks), 'task')}", heads, rows, (*notes, *found.notes))


def why_no_aggregate(report: Report) -> str:
    """Empty if every task has scores; else what is left out of the aggregates, and why."""
    raw = [task.label for task in report.tasks if not report.scored(task)]
    if not raw:
        return ""
    return (
        f"not aggregated: {'; '.join(raw)}. Raw returns of different tasks have no common scale, so their average says "
        "nothing; it takes reference returns for score 0 and 100. The probability of improvement needs none"
    )


def improvement_view(found: Sequence[Improvement], setting: str) -> View:
    """P(X > Y) of pairs."""
    heads = (Entry("X"), Entry("Y"), Entry("P(X > Y)"), Entry("tasks"))
    rows = tuple(
        (Entry(one.x), Entry(one.y), _estimate_entry(one.probability, 2), Entry(str(one.tasks), one.tasks))
        for one in found
    )
    notes = ["the share of pairs of seeds in which X returns more than Y on a task, ties by half, mean over the tasks"]
    notes += dict.fromkeys(note for one in found for note in one.notes)
    if any(one.probability is not None and one.probability.low is None for one in found):
        notes.append("no interval where a method has one seed")
    return View(f"Probability of improvement, {setting} tasks", heads, rows, tuple(notes), 2)


def _estimate_entry(estimate: Estimate | None, digits: int) -> Entry:
    if estimate is None:
        return Entry(NOTHING, hint="no common task with finite returns of both")
    text = f"{estimate.value:.{digits}f}"
    if estimate.low is not None:
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return Entry(text, estimate.value)


# -- runs and method ---------------------------------------------------------------------------------------------------


def methods_view(report: Report) -> View | None:
    """All settings of the methods whose names leave some out; None if no name does."""
    if not report.described:
        return None
    rows = tuple((Entry(name), Entry(str(method))) for name, method in report.described.items())
    notes = ("`tuned`: the value that configs/tuned has for the algorithm and the task",)
    return View("Methods", (Entry("name"), Entry("settings in which the runs differ")), rows, notes, 2)


def runs_view(report: Report, *, counted: bool) -> View:
    """Runs that are in the tables, or those that are not, with their status and the way on."""
    rows = []
    for run, name in zip(report.runs, report.names, strict=True):
        if run.counts == counted:
            row = [
                Entry(str(run.path), code=True),
                Entry(run.label if run.meta else NOTHING),
                Entry(name),
                Entry(", ".join(str(seed) for seed in run.seeds) or NOTHING),
                Entry(run.status),
            ]
            way_on = Entry(run.way_on, code=run.way_on.startswith("mbrl"))
            rows.append((*row, _remarks(run)) if counted else (*row, Entry(reason(run)), way_on))
    heads = ["run", "task", "method", "seeds", "status", *(["remarks"] if counted else ["why", "way on"])]
    title = "Runs in the tables" if counted else "Runs that do not count"
    return View(title, tuple(Entry(head) for head in heads), tuple(rows), (), len(heads))


def _remarks(run: Run) -> Entry:
    facts = [f"evaluated up to update {run.updates[-1]:,}"]
    if run.meta.get("resumed"):
        facts.append(f"resumed {run.meta['resumed']}x")
    return Entry("; ".join([*facts, *run.warnings]))


def reason(run: Run) -> str:
    """Why a run does not count, and what else is known of it."""
    facts = [run.not_counted]
    if run.estimate is not None:
        facts.append(f"the model's own estimate, which is no return: {number(run.estimate)}")
    return "; ".join([*facts, *run.warnings])


def how_it_was_computed(report: Report) -> list[str]:
    """The rules behind the numbers, and what the runs were made with."""
    lines = [
        "Every number comes from the returns.npz of the runs: raw undiscounted returns and, where the task has "
        "reference returns, normalised scores of every evaluation, seed and episode.",
        f"“{FINAL}” is the mean over the last {FINAL_EVALUATIONS} evaluations of a seed (all, if it has fewer) and "
        "their episodes; tables have its mean over seeds and the standard deviation over seeds (n - 1; none of one).",
        f"“{BEST}”: each seed's evaluation with the highest mean return. Whoever has only the dataset cannot make that "
        "choice, and the highest of many noisy evaluations is above what the policy is worth.",
        "Runs are pooled over seeds if they share dataset, environment, horizon, references, algorithm, filters and "
        "every key that was set on a command line and differs between the runs given.",
        f"Aggregates: rliable {_version('rliable')}, over seeds x tasks with the same number of seeds on every task; "
        f"95 % percentile intervals of {REPETITIONS:,} bootstrap draws, stratified by task, from seed {SEED}. They "
        "tell of other seeds on the same tasks, not of other tasks, and are too narrow with few seeds.",
        "The optimality gap is the mean of max(0, 100 - score).",
        f"Made by mbrl {mbrl.__version__}.",
    ]
    counted = [run for run in report.runs if run.counts]
    for name in ("mbrl", "torch", "gymnasium", "mujoco", "python"):
        lines += _tally(f"{name} of the runs", [(run.meta.get("versions") or {}).get(name) for run in counted])
    lines += _tally("Commit of the runs", [_commit(run) for run in counted])
    return lines


def _commit(run: Run) -> str | None:
    git = run.meta.get("git") or {}
    commit = git.get("commit")
    return None if commit is None else f"{commit[:12]}{' with changes' if git.get('modified') else ''}"


def _tally(title: str, values: Sequence[str | None]) -> list[str]:
    counts = Counter(value or "unknown" for value in values)
    if not counts:
        return []
    if len(counts) == 1:
        return [f"{title}: {next(iter(counts))}"]
    return [f"{title}: {', '.join(f'{value} ({count})' for value, count in counts.most_common())}"]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"
