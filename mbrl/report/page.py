"""A report as one HTML page that needs nothing else: tables that sort, curves that answer to a pointer."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.finding import COLOURS
from mbrl.report import views
from mbrl.report.aggregates import METRICS, Aggregate, Improvement
from mbrl.report.tables import Cell, Report, Task
from mbrl.report.text import over_tasks
from mbrl.report.views import Entry, View
from mbrl.rundir import FloatArray, to_json

COLOURS_ON_DARK = ("#6fb1f2", "#f2a154", "#7ccf8e", "#c78fe0", "#f07f88", "#b0b6bd", "#5fdbe8", "#d9c25f")
"""The colours of `mbrl.finding`, lighter."""

_ONE_LINE = 36
"""Columns of words up to this length are not broken."""

FOLDER = Path(__file__).parent


def plotly_script() -> str:
    """The code of plotly.js, which draws the curves.

    Raises:
        ModuleNotFoundError: plotly is not installed; says how to get it.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--html draws with plotly, which is not installed ({error}): pip install 'offline-mbrl[report]'"
        ) from error
    return str(get_plotlyjs())


def page(
    report: Report,
    found: Sequence[Aggregate],
    improved: Sequence[Improvement],
    *,
    published: bool,
    command: str,
    plotly: str,
) -> str:
    """The whole page.

    Args:
        report: tables of runs.
        found: aggregates over tasks.
        improved: pairs of methods.
        published: whether published figures stand beside.
        command: that asked for it.
        plotly: the code of plotly.js.
    """
    how = f"<pre><code>{html.escape(command)}</code></pre>" + _list(views.how_it_was_computed(report))
    sections = [
        ("leaderboard", "Leaderboard", _leaderboard(report, published)),
        ("over-tasks", "Over tasks", _over_tasks(report, found, improved)),
        ("curves", "Learning curves", _curves(report)),
        ("tasks", "Task by task", "".join(_folded(views.task_view(report, task), report) for task in report.tasks)),
        ("published", "Published on the same datasets", _published(report) if published else ""),
        ("runs", "Runs and their status", _runs(report)),
        ("how", "How it was computed", how),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    data = {
        "colours": {"light": COLOURS, "dark": COLOURS_ON_DARK},
        "methods": report.methods,
        "curves": [_curve_data(report, task) for task in report.tasks],
        "aggregates": [_aggregate_data(one) for one in found if one.estimates],
    }
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mbrl report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data: blob:">
<style>{_colour_rules()}{(FOLDER / "page.css").read_text(encoding="utf-8")}</style>
</head><body>
<header><h1>Report</h1><p class="lead">{html.escape(views.summary_line(report))}</p><nav>{links}</nav></header>
<main>{_notes(report)}{body}</main>
<script type="application/json" id="report-data">{to_json(data).replace("<", chr(92) + "u003c")}</script>
<script>{plotly}</script>
<script>{(FOLDER / "page.js").read_text(encoding="utf-8")}</script>
</body></html>
"""


def _colour_rules() -> str:
    def rule(colours: Iterable[str]) -> str:
        return ":root{" + "".join(f"--method-{i}:{colour};" for i, colour in enumerate(colours)) + "}"

    return f"{rule(COLOURS)}@media screen and (prefers-color-scheme: dark){{{rule(COLOURS_ON_DARK)}}}"


def _notes(report: Report) -> str:
    notes = [*report.notes, *views.warnings(report)]
    return f'<div class="notes"><strong>Before you read on</strong>{_list(notes)}</div>' if notes else ""


def _leaderboard(report: Report, published: bool) -> str:
    if not report.tasks:
        return "<p>No run counts yet: the table of runs says why, and what to do.</p>"
    described = views.methods_view(report)
    legend = "" if described is None else _table(described, report)
    return _table(views.leaderboard(report, published=published), report, titled=False) + legend


def _over_tasks(report: Report, found: Sequence[Aggregate], improved: Sequence[Improvement]) -> str:
    if not report.tasks:
        return ""
    parts = []
    drawn = 0
    for view, aggregate in itertools.zip_longest(over_tasks(report, found, improved), found):
        parts.append(_table(view, report))
        if aggregate is not None and aggregate.estimates:
            parts.append(_aggregate_charts(drawn))
            drawn += 1
    if why := views.why_no_aggregate(report):
        parts.append(f'<p class="why">{html.escape(why[0].upper() + why[1:])}.</p>')
    return "".join(parts)


def _aggregate_charts(index: int) -> str:
    panels = "".join(
        f'<figure><figcaption>{name}</figcaption><div class="chart" data-chart="metric" data-index="{index}" '
        f'data-metric="{name}"></div></figure>'
        for name in METRICS
    )
    return (
        f'<div class="legend"></div><div class="panels four">{panels}</div><figure><figcaption>performance profile: '
        f'share of runs with a score above the threshold</figcaption><div class="chart" data-chart="profile" '
        f'data-index="{index}"></div></figure>'
    )


def _curves(report: Report) -> str:
    panels = "".join(
        f'<figure><figcaption>{_title(task.label)}</figcaption><div class="chart" data-chart="curve" '
        f'data-index="{index}"></div></figure>'
        for index, task in enumerate(report.tasks)
    )
    if not panels:
        return ""
    return (
        "<p>Mean over seeds; the band reaches from the lowest to the highest seed; dashed: the mean of the dataset's "
        "episodes. A click on a method hides it.</p>"
        f'<div class="legend"></div><div class="panels two">{panels}</div>'
    )


def _published(report: Report) -> str:
    view = views.published_view(report)
    return "" if view is None else _table(view, report, titled=False)


def _runs(report: Report) -> str:
    missing, there = (views.runs_view(report, counted=counted) for counted in (False, True))
    return (_table(missing, report) if missing.rows else "") + (_folded(there, report) if there.rows else "")


def _folded(view: View, report: Report) -> str:
    """A table behind its title, which may have many neighbours."""
    return (
        f"<details><summary>{_title(view.title)} <small>({len(view.rows)} rows)</small></summary>"
        f"{_table(view, report, titled=False)}</details>"
    )


def _title(text: str) -> str:
    """A label of a task in two parts: what it is, and smaller where it was evaluated."""
    name, comma, rest = text.partition(", evaluated in ")
    return html.escape(name) + (f'<span class="where">evaluated in {html.escape(rest)}</span>' if comma else "")


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(view: View, report: Report, *, titled: bool = True) -> str:
    title = f"<h3>{html.escape(view.title)}</h3>" if titled else ""
    if not view.rows:
        return title + _list(view.notes)

    def kind(index: int) -> str:
        if index >= view.names:
            return "number published" if index in view.published else "number"
        longest = max(len(row[index].text) for row in view.rows)
        return "words short" if longest <= _ONE_LINE else "words"

    heads = "".join(
        f'<th scope="col" class="{kind(i)}"{_hint(head)}><button type="button">{_dot(head, report)}'
        f"{html.escape(head.text)}</button></th>"
        for i, head in enumerate(view.heads)
    )
    rows = "".join(
        "<tr>" + "".join(_field(entry, kind(i), report, i == 0) for i, entry in enumerate(row)) + "</tr>"
        for row in view.rows
    )
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"{title}{table}{_list(view.notes)}"


def _field(entry: Entry, kind: str, report: Report, first: bool) -> str:
    text = _title(entry.text)
    if entry.code and text:
        text = f"<code>{text}</code>"
    order = "" if entry.order is None or not math.isfinite(entry.order) else f' data-order="{entry.order!r}"'
    tag = "th scope=row" if first else "td"
    strong = " strong" if entry.strong else ""
    return f'<{tag} class="{kind}{strong}"{order}{_hint(entry)}>{_dot(entry, report)}{text}</{tag.split()[0]}>'


def _hint(entry: Entry) -> str:
    return f' title="{html.escape(entry.hint, quote=True)}"' if entry.hint else ""


def _dot(entry: Entry, report: Report) -> str:
    if entry.text not in report.methods:
        return ""
    return f'<i class="dot" style="background:var(--method-{report.methods.index(entry.text) % len(COLOURS)})"></i>'


# -- what the charts are drawn from ------------------------------------------------------------------------------------


def _curve_data(report: Report, task: Task) -> dict[str, Any]:
    cells = report.of_task(task)
    scored = report.scored(task)
    return {
        "x": "updates" if task.setting == "offline" else "real steps",
        "y": "normalised score" if scored else "raw return",
        "behaviour": task.behaviour_score if scored else task.behaviour_return,
        "lines": [{"method": report.methods.index(cell.method), **_line(cell, scored)} for cell in cells],
    }


@np.errstate(invalid="ignore")  # inf - inf is nan, a gap in the line
def _line(cell: Cell, scored: bool) -> dict[str, Any]:
    curves = cell.curves(scored)
    return {
        "steps": cell.steps,
        "mean": _short(curves.mean(0)),
        "low": _short(curves.min(0)),
        "high": _short(curves.max(0)),
        "seeds": len(curves),
    }


def _aggregate_data(found: Aggregate) -> dict[str, Any]:
    return {
        "methods": list(found.estimates),
        "metrics": {
            name: [[one[name].value, one[name].low, one[name].high] for one in found.estimates.values()]
            for name in METRICS
        },
        "thresholds": _short(found.thresholds),
        "profiles": [_short(found.profiles[method]) for method in found.estimates],
    }


def _short(values: FloatArray) -> FloatArray:
    """As many digits as a chart can show: the page stays small."""
    short: FloatArray = np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[np.float64])(values)
    return short
