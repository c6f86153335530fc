"""A report in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mbrl.report import views
from mbrl.report.aggregates import Aggregate, Improvement
from mbrl.report.runs import Run
from mbrl.report.tables import Report, SeedResult, seed_results
from mbrl.report.views import View

COLUMNS = (
    "counted", "status", "reason", "task", "setting", "dataset", "dataset_hash", "env", "horizon", "real_steps",
    "method", "settings", "seed", "evaluations", "episodes", "last_update", "final_return", "best_return",
    "best_update", "final_score", "best_score", "behaviour_return_mean", "reference_minimum", "reference_maximum",
    "run", "mbrl", "commit",
)  # fmt: skip


def over_tasks(report: Report, found: Sequence[Aggregate], improved: Sequence[Improvement]) -> Iterator[View]:
    """Aggregates, then pairs."""
    for aggregate in found:
        yield views.aggregate_view(aggregate)
    for setting in dict.fromkeys(one.setting for one in improved):
        yield views.improvement_view([one for one in improved if one.setting == setting], setting)


def show(
    console: Console, report: Report, found: Sequence[Aggregate], improved: Sequence[Improvement], *, published: bool
) -> None:
    """The terminal's version: task by task, then over tasks, then what does not count."""
    console.print(Text(views.summary_line(report), style="bold"))
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for warning in views.warnings(report):
        console.print(Text(f"warning: {warning}", style="yellow"))
    for task in report.tasks:
        _print(console, views.task_view(report, task))
    board = views.leaderboard(report, published=published)
    if board.published and _width(console, _table(board, narrow=True)).minimum <= console.width:
        _print(console, board)
    elif board.published:
        _print(console, views.leaderboard(report, published=False))
        console.print(Text("  published figures need a wider terminal: --html and --markdown have them", style="dim"))
    for view in over_tasks(report, found, improved):
        _print(console, view)
    if why := views.why_no_aggregate(report):
        console.print(Text(f"\n{why}"))
    described = views.methods_view(report)
    if described is not None:
        _print(console, described)
    left_out = [run for run in report.runs if not run.counts]
    if left_out:
        console.print(Text("\nRuns that do not count", style="bold"))
    for run in left_out:
        row = Text(f"{run.status:<12} ", style="yellow")
        row.append(str(run.path), style="bold")
        row.append(f": {views.reason(run)}", style="default")
        console.print(row)
        if run.way_on:
            console.print(Text(f"{'':<13}{run.way_on}", style="cyan"))


def _print(console: Console, view: View) -> None:
    if view.rows:
        table = _table(view)
        if _width(console, table).maximum > console.width:
            table = _table(view, narrow=True)
        least = _width(console, table).minimum
        if least > console.width:
            table.width = least  # wider than the terminal, which breaks the line: better than to lose digits
        console.print(table, crop=False)
    else:
        console.print(Text(f"\n{view.title}", style="bold"))
    for note in view.notes:
        console.print(Text(f"  {note}", style="dim"))


def _table(view: View, *, narrow: bool = False) -> Table:
    """Words may be broken, numbers never; if `narrow`, heads take more lines and intervals one of their own."""
    table = Table(box=box.SIMPLE_HEAD, title=view.title, title_justify="left", title_style="bold", padding=(0, 1))
    if narrow:
        table.padding, table.pad_edge = (0, 1, 0, 0), False
    rows = [[entry.text for entry in row] for row in view.rows]
    for index, head in enumerate(view.heads):
        if index < view.names:
            table.add_column(Text(head.text), overflow="fold")
            continue
        lines = [head.text]
        if narrow:
            for texts in rows:
                texts[index] = texts[index].replace(" [", "\n[")
            lines = head.text.split()
        width = max(len(line) for line in [*lines, *(line for texts in rows for line in texts[index].split("\n"))])
        lines = textwrap.wrap(head.text, width, break_long_words=False, break_on_hyphens=False)
        table.add_column(Text("\n".join(lines)), justify="right", no_wrap=True, min_width=width)
    for row, texts in zip(view.rows, rows, strict=True):
        table.add_row(
            *(Text(text, style="bold" if entry.strong else "") for entry, text in zip(row, texts, strict=True))
        )
    return table


def _width(console: Console, table: Table) -> Measurement:
    """How wide it must be for no number and no word to be broken, and how wide for every row to be one line."""
    return Measurement.get(console, console.options.update(width=10_000), table)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(
    report: Report,
    found: Sequence[Aggregate],
    improved: Sequence[Improvement],
    *,
    published: bool,
    command: str,
) -> str:
    """The whole report but for its curves."""
    parts = ["# Report", views.summary_line(report) + "."]
    before = [("note", note) for note in report.notes] + [("warning", words) for words in views.warnings(report)]
    if before:
        parts.append("\n".join(f"- **{kind}**: {_escape(words)}" for kind, words in before))
    if report.tasks:
        parts.append(_section(views.leaderboard(report, published=published), 2))
    described = views.methods_view(report)
    if described is not None:
        parts.append(_section(described, 2))
    parts.append("## Over tasks")
    parts += [_section(view, 3) for view in over_tasks(report, found, improved)]
    if why := views.why_no_aggregate(report):
        parts.append(_escape(f"{why[0].upper()}{why[1:]}."))
    parts.append("## Task by task")
    parts += [_section(views.task_view(report, task), 3) for task in report.tasks]
    beside = views.published_view(report) if published else None
    if beside is not None:
        parts.append(_section(beside, 2))
    for counted in (False, True):
        view = views.runs_view(report, counted=counted)
        if view.rows:
            parts.append(_section(view, 2))
    parts.append(f"## How it was computed\n\n```bash\n{command}\n```")
    parts.append("\n".join(f"- {_escape(line)}" for line in views.how_it_was_computed(report)))
    return "\n\n".join(parts) + "\n"


def _section(view: View, depth: int) -> str:
    parts = [f"{'#' * depth} {_escape(view.title)}"]
    if view.rows:
        lines = [_line([head.text for head in view.heads])]
        lines.append("|" + "|".join("---" if i < view.names else "--:" for i in range(len(view.heads))) + "|")
        for row in view.rows:
            lines.append("| " + " | ".join(_entry(entry) for entry in row) + " |")
        parts.append("\n".join(lines))
    if view.notes:
        parts.append("\n".join(f"- {_escape(note)}" for note in view.notes))
    return "\n\n".join(parts)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(text) for text in texts) + " |"


def _entry(entry: views.Entry) -> str:
    if entry.code and entry.text:
        return "`" + entry.text.replace("|", "\\|") + "`"
    return f"**{_escape(entry.text)}**" if entry.strong else _escape(entry.text)


def _escape(text: str) -> str:
    """As text: no column, emphasis or tag of Markdown."""
    for mark in ("\\", "|", "*", "_", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


# -- CSV ---------------------------------------------------------------------------------------------------------------


def tidy_csv(report: Report) -> str:
    """One row for each seed of each run: also of those that do not count, with what they have."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    settings = {name: str(method) for name, method in report.described.items()}
    counted = {(str(result.run.path), result.seed): cell for cell in report.cells.values() for result in cell.results}
    for run, name in zip(report.runs, report.names, strict=True):
        results = {result.seed: result for result in seed_results(run)} if run.updates else {}
        for seed in run.seeds or (None,):
            cell = None if seed is None else counted.get((str(run.path), seed))
            row = _about(run) | {"seed": seed, "method": name if cell is None else cell.method}
            row |= {"settings": settings.get(name, name), "counted": "no" if cell is None else "yes"}
            if cell is not None:
                row["task"] = cell.task.label
            elif run.counts:
                row["reason"] = "the same seed was run again later"
            if seed in results:
                row |= _numbers(run, results[seed])
            writer.writerow(row)
    return file.getvalue()


def _numbers(run: Run, result: SeedResult) -> dict[str, Any]:
    return {
        "evaluations": len(run.updates),
        "episodes": run.returns.shape[-1],
        "last_update": run.updates[-1],
        "final_return": result.final_return,
        "best_return": result.best_return,
        "best_update": result.best_update,
        "final_score": result.final_score,
        "best_score": result.best_score,
    }


def _about(run: Run) -> dict[str, Any]:
    meta = run.meta
    reference = meta.get("reference")
    low, high = reference if isinstance(reference, list) and len(reference) == 2 else (None, None)
    return {
        "status": run.status,
        "reason": run.not_counted,
        "task": run.label if meta else None,
        "setting": None if not meta else "offline" if run.online is None else "online",
        "dataset": meta.get("dataset"),
        "dataset_hash": meta.get("dataset_hash"),
        "env": meta.get("env"),
        "horizon": meta.get("horizon"),
        "real_steps": None if run.online is None else run.online.get("steps"),
        "behaviour_return_mean": meta.get("behaviour_return_mean"),
        "reference_minimum": low,
        "reference_maximum": high,
        "run": str(run.path),
        "mbrl": (meta.get("versions") or {}).get("mbrl"),
        "commit": (meta.get("git") or {}).get("commit"),
    }
