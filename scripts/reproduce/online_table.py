"""What real steps buy: a Markdown table and a figure of several online runs of one task.

    python online_table.py FIGURE_FOLDER RUN_DIR ...

For every run: the final return (mean of the last evaluations) with a 95 % t-interval over seeds; the return after as
many real steps as the shortest run made; and the real steps after which a seed's evaluation first reached a level, for
three levels: 50, 80 and 95 % of the way from the worst evaluation of all runs to the best mean. A seed that never did
counts with the run's length, which makes the mean a lower bound. The slope of Q (its local Lipschitz constant, per std
of the observation) and the value-aware model error are the last ones logged (docs/lipschitz.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from mbrl.edge.measure import mean_interval
from mbrl.plots import save_figure
from mbrl.rundir import real_steps

FRACTIONS = (0.5, 0.8, 0.95)
FLATNESS = ("lipschitz/local_mean", "lipschitz/value_error", "lipschitz/value_error_relative")
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """One run: real steps (K,), returns of every seed (K, S)."""

    name: str
    steps: FloatArray
    returns: FloatArray
    minutes: float
    flatness: dict[str, float]  # the last measured `lipschitz/...`, means over seeds

    @classmethod
    def of(cls, run: Path) -> Curve:
        """Read a run directory."""
        meta = json.loads((run / "meta.json").read_text())
        online = meta["online"]
        with np.load(run / "returns.npz") as file:
            steps = real_steps(file["updates"], online)
            returns = file["returns"].mean(-1)
        seconds = (
            json.loads((run / "summary.json").read_text())["wall_seconds"] if (run / "summary.json").exists() else 0
        )
        flatness: dict[str, float] = {}
        for line in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else ():
            found = {key.partition("/")[2]: value for key, value in json.loads(line).items() if key in FLATNESS}
            flatness |= {key: value for key, value in found.items() if value is not None}
        return cls(run.name, steps, returns, seconds / 60, flatness)


def interval(values: FloatArray, digits: int = 0) -> str:
    """`mean ± half a 95 % t-interval` of one number a seed."""
    mean, half = mean_interval(torch.as_tensor(values))
    return f"{mean:.{digits}f}" if len(values) == 1 else f"{mean:.{digits}f} ± {half:.{digits}f}"


def reached(curve: Curve, level: float) -> tuple[FloatArray, int]:
    """Real steps (S,) of each seed's first evaluation at or above `level`; the run's length, and a count, if never."""
    above = curve.returns >= level
    ever = above.any(0)
    first = np.where(ever, curve.steps[above.argmax(0)], curve.steps[-1])
    return first, int((~ever).sum())


def table(curves: Sequence[Curve]) -> list[str]:
    """The rows, in the order given."""
    worst = min(float(c.returns.min()) for c in curves)
    best = max(float(c.returns.mean(1).max()) for c in curves)
    levels = [worst + share * (best - worst) for share in FRACTIONS]
    common = min(float(c.steps[-1]) for c in curves)
    heads = [f"steps to {level:.0f}" for level in levels]
    flat = ["slope of Q", "value error", "of the mean value"]
    names = ["run", "real steps", "final return", f"return after {common:,.0f} steps", *heads, *flat, "minutes"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for curve in curves:
        at = int(np.searchsorted(curve.steps, common, side="right")) - 1
        cells = [
            curve.name,
            f"{curve.steps[-1]:,.0f}",
            interval(curve.returns[-10:].mean(0)),
            interval(curve.returns[max(at - 2, 0) : at + 1].mean(0)) if at >= 0 else "-",
        ]
        for level in levels:
            steps, never = reached(curve, level)
            cells.append(interval(steps) + (f" ({never} of {len(steps)} never)" if never else ""))
        for key in FLATNESS:
            value = curve.flatness.get(key.partition("/")[2])
            cells.append("-" if value is None else f"{value:.3g}")
        lines.append(f"| {' | '.join([*cells, f'{curve.minutes:.0f}'])} |")
    return lines


def figure(curves: Sequence[Curve], title: str) -> Figure:
    """Mean return against real steps, with the 95 % t-interval over seeds as a band."""
    picture = Figure(figsize=(9, 5), layout="constrained")
    axes = picture.add_subplot()
    for curve in curves:
        mean = curve.returns.mean(1)
        (line,) = axes.plot(curve.steps, mean, label=curve.name, linewidth=1.6)
        if curve.returns.shape[1] > 1:
            half = np.array([mean_interval(torch.as_tensor(row))[1] for row in curve.returns])
            axes.fill_between(curve.steps, mean - half, mean + half, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("real steps")
    axes.set_ylabel("return")
    axes.set_title(title)
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    picture.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return picture


def main(words: Sequence[str]) -> int:
    """Print the table and write the figure; a run without an evaluation is named and left out."""
    folder, runs = Path(words[0]), [Path(word) for word in words[1:]]
    curves = []
    for run in runs:
        if (run / "returns.npz").exists():
            curves.append(Curve.of(run))
        else:
            print(f"{run} has no evaluation yet: left out", file=sys.stderr)
    if not curves:
        print("no run has an evaluation", file=sys.stderr)
        return 1
    order = ["sac", "mbpo", "coplanner", "coplanner_rollouts", "coplanner_explore", "single"]
    curves.sort(key=lambda c: (order.index(c.name) if c.name in order else len(order), c.name))
    print("\n".join(table(curves)))
    print(f"figure: {save_figure(figure(curves, folder.resolve().name), folder / 'online.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
