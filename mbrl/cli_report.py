"""`mbrl report RUN_DIRS...`: what runs came to, in tables, curves and files."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mbrl.report import text
from mbrl.report.aggregates import aggregates, improvements, rliable_missing
from mbrl.report.runs import collect
from mbrl.report.tables import tabulate


def arguments() -> argparse.ArgumentParser:
    """What `mbrl report` takes."""
    parser = argparse.ArgumentParser(
        "mbrl report",
        description="Tables over tasks, methods and seeds from the saved returns of runs: mean of the last evaluations "
        "and best evaluation, IQM, optimality gap and probability of improvement with bootstrap intervals, learning "
        "curves, and which runs are missing. Nothing in a run is changed; docs/report.md says how it is computed.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_DIR", help="a run, or a folder with runs anywhere below it (a sweep)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="one self-contained page with sortable tables and curves"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables as Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one row for each task, method and seed")
    parser.add_argument(
        "--no-published", action="store_true", help="no published scores beside runs on the same benchmark dataset"
    )
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="said at the head of the report; may be repeated"
    )
    return parser


def make_report(words: Sequence[str]) -> int:
    """Read, compute, print, write; the exit status."""
    parsed = arguments().parse_args(words)
    if parsed.html is not None:
        from mbrl.report.page import page, plotly_script  # said before anything is computed

        script = plotly_script()
    console = Console(soft_wrap=True, highlight=False)
    report = tabulate(collect(parsed.runs))
    report = dataclasses.replace(report, notes=(*parsed.note, *report.notes))
    published = not parsed.no_published
    found, improved = aggregates(report), improvements(report)
    text.show(Console(highlight=False), report, found, improved, published=published)
    if missing := rliable_missing():
        console.print(Text(f"no probability of improvement: {missing}", style="yellow"))
    command = shlex.join(["mbrl", "report", *words])
    files: list[tuple[Path, str]] = []
    if parsed.html is not None:
        files.append((parsed.html, page(report, found, improved, published=published, command=command, plotly=script)))
    if parsed.markdown is not None:
        files.append((parsed.markdown, text.markdown(report, found, improved, published=published, command=command)))
    if parsed.csv is not None:
        files.append((parsed.csv, text.tidy_csv(report)))
    for path, content in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        console.print(Text(f"written: {path}"))
    return 0
