"""Pictures of one run, from the files in its directory alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mbrl.checkpoint import atomic_write
from mbrl.log import read_metrics
from mbrl.rundir import FloatArray, RunDirectory, read_json, real_steps

_BLUE, _GREY, _ORANGE = "#1f5fa8", "#666666", "#c8640a"
_COLUMNS = 3


def learning_curve(run_dir: Path) -> Path:
    """Return against updates, or of an online run against real steps -> `learning_curve.png`.

    Thin lines are seeds (means over episodes), the thick line is their mean, the band their range; for a single seed
    the band is the range over its episodes. Dashed: mean and best return of the dataset's episodes. The right axis has
    scores, if the task has reference returns.

    Raises:
        ValueError: the run has no evaluation.
    """
    run = RunDirectory.open(run_dir)
    if not run.updates:
        raise ValueError(f"{run_dir}: no evaluation in returns.npz, so there is no learning curve; see model_curve")
    summary = read_json(run.path / "summary.json") if (run.path / "summary.json").exists() else {}
    known = {**run.meta, **summary}
    updates, returns = np.asarray(run.updates, np.float64), run.returns
    by_seed = returns.mean(-1)

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    online = run.meta.get("online")
    if online is not None:
        updates = real_steps(updates, online)
    _curve(axes, updates, by_seed, returns[:, 0] if len(run.seeds) == 1 else by_seed, run.seeds)
    for key, text, style in (
        ("behaviour_return_max", "dataset, best episode", (0, (1, 1.5))),
        ("behaviour_return_mean", "dataset, mean episode", (0, (5, 3))),
    ):
        if known.get(key) is not None:
            axes.axhline(known[key], color=_ORANGE, linestyle=style, linewidth=1.3, label=text)
    axes.set_xlabel("updates" if online is None else "real steps")
    axes.set_ylabel("return")
    if (scale := _score_scale(returns, run.scores)) is not None:
        slope, offset = scale

        def score_of(value: Any) -> Any:
            return slope * value + offset

        def return_of(score: Any) -> Any:
            return (score - offset) / slope

        score_axis = axes.secondary_yaxis("right", functions=(score_of, return_of))
        score_axis.set_ylabel("normalised score")
        score_axis.tick_params(color=_GREY, labelsize=9)
    axes.set_title(known.get("label") or run.path.resolve().name, fontsize=11)
    # Below the axes: inside, it hides a curve sooner or later.
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save_figure(figure, run.path / "learning_curve.png")


def model_curve(run_dir: Path) -> Path:
    """All logged metrics against updates -> `model_curve.png`; what there is to see where no simulator is.

    The model's own estimates come first, then rollouts, then the learner. What kept one value all the time is left out.

    Raises:
        ValueError: there are no metrics.
    """
    run = RunDirectory.open(run_dir)
    rows = read_metrics(run.path)
    names = dict.fromkeys(name for row in rows for name in row)
    shown = [n for n in names if n != "update" and "/seed_" not in n and not n.startswith("time/")]
    shown = [name for name in shown if not _constant(rows, [name, *(f"{name}/seed_{s}" for s in run.seeds)])] or shown
    shown.sort(key=lambda name: (name.startswith("learner/"), name.startswith(("rollout/", "edge/"))))
    if not shown:
        raise ValueError(f"{run.path / 'metrics.jsonl'}: no metrics to plot")
    updates = np.array([row["update"] for row in rows], np.float64)

    def column(name: str) -> FloatArray:
        return np.array([math.nan if row.get(name) is None else row[name] for row in rows], np.float64)

    height = math.ceil(len(shown) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 0.6 + 2.3 * height), layout="constrained")
    for position, name in enumerate(shown, start=1):
        axes = figure.add_subplot(height, _COLUMNS, position)
        seeds = [column(f"{name}/seed_{seed}") for seed in run.seeds if f"{name}/seed_{seed}" in names]
        by_seed = np.stack(seeds or [column(name)], 1)
        there = np.isfinite(by_seed).any(1)
        _curve(axes, updates[there], by_seed[there], by_seed[there], run.seeds)
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"{run.meta.get('label') or run.path.resolve().name}: the model's and the learner's own view")
    figure.supxlabel("updates", fontsize=10)
    return save_figure(figure, run.path / "model_curve.png")


def _constant(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> bool:
    """Whether each of these metrics was logged several times and always with the same number."""
    columns = [[row[name] for row in rows if name in row] for name in names]
    return all(len(column) != 1 and len(set(column)) <= 1 and None not in column for column in columns)


def _curve(axes: Any, updates: FloatArray, by_seed: FloatArray, spread: FloatArray, seeds: Sequence[int]) -> None:
    """One curve: updates (K,), by_seed (K, S), spread (K, anything) whose range is the band."""
    marker = "o" if len(updates) == 1 else None
    seeded = by_seed.shape[1] > 1
    label = f"mean of {len(seeds)} seeds" if seeded else f"mean, seed {seeds[0]}"
    axes.plot(updates, by_seed.mean(1), color=_BLUE, linewidth=2.2, marker=marker, label=label, zorder=3)
    if seeded:
        axes.plot(updates, by_seed, color=_BLUE, alpha=0.4, linewidth=0.8, marker=marker)
    if spread.shape[1] > 1:
        label = f"range over {spread.shape[1]} {'seeds' if seeded else 'episodes'}"
        band = {"color": _BLUE, "alpha": 0.13, "linewidth": 0, "label": label}
        axes.fill_between(updates, spread.min(1), spread.max(1), **band)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=_GREY, labelsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.margins(x=0.01)


def _score_scale(returns: FloatArray, scores: FloatArray | None) -> tuple[float, float] | None:
    """`(slope, offset)` of score = slope * return + offset, read off the run's lowest and highest return."""
    if scores is None:
        return None
    low, high = int(np.argmin(returns)), int(np.argmax(returns))
    span = returns.flat[high] - returns.flat[low]
    if not span > 0:
        return None
    slope = float((scores.flat[high] - scores.flat[low]) / span)
    return (slope, float(scores.flat[low] - slope * returns.flat[low])) if slope > 0 else None


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Write a PNG atomically."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
    return path
