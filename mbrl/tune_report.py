"""What a study has found: its trials as a table, the best one, figures, and a line of words for each finding."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf

from mbrl.checkpoint import atomic_write
from mbrl.finding import COLOURS, tidy
from mbrl.plots import save_figure
from mbrl.rundir import read_json
from mbrl.score.quality import rank_correlation
from mbrl.tune import trial_folder

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FloatArray = npt.NDArray[np.float64]

BLUE, ORANGE, GREY, RED = COLOURS[0], COLOURS[1], COLOURS[5], COLOURS[4]
PALE_TO_DARK = LinearSegmentedColormap.from_list("pale to dark", ["#c9dcf0", "#5b93cc", BLUE, "#0a2747"])
FEW = 10
"""Below so many finished trials nothing is said of variables: it would be about noise."""


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have a value."""
    return [trial for trial in trials if trial.value is not None]


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial of the highest value, of equal ones the first; None if none has a value."""
    done = finished(trials)
    return max(done, key=value_of) if done else None


def value_of(trial: FrozenTrial) -> float:
    """Of a finished trial."""
    assert trial.value is not None
    return trial.value


def what_is_measured(folder: Path, trials: Sequence[FrozenTrial], objective: str) -> str:
    """What a value is, for an axis."""
    if objective == "model":
        return "pessimistic return in the judge's worlds"
    best = best_of(trials)
    scored = best is not None and summary_of(folder, best).get("final_score_mean") is not None
    return "score" if scored else "return"


# -- tables ------------------------------------------------------------------------------------------------------------


def write_tables(folder: Path, trials: Sequence[FrozenTrial]) -> None:
    """`trials.csv` in the study's folder: one row per trial."""
    variables = list(dict.fromkeys(key for trial in trials for key in trial.params))
    names = ["trial", "state", "value", "best_so_far", *variables, "final_return", "final_score", "seconds", "started",
             "ended", "taken_over", "run_dir", "error"]  # fmt: skip
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, names)
    table.writeheader()
    best = -math.inf
    for trial in trials:
        if trial.value is not None:
            best = max(best, trial.value)
        summary = summary_of(folder, trial)
        table.writerow(
            {
                "trial": trial.number,
                "state": {"COMPLETE": "finished", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
                "value": trial.value,
                "best_so_far": best if math.isfinite(best) else None,
                **trial.params,
                "final_return": summary.get("final_return_mean"),
                "final_score": summary.get("final_score_mean"),
                "seconds": summary.get("wall_seconds"),
                "started": trial.datetime_start and trial.datetime_start.isoformat(timespec="seconds"),
                "ended": trial.datetime_complete and trial.datetime_complete.isoformat(timespec="seconds"),
                "taken_over": trial.user_attrs.get("adopted", 0),
                "run_dir": trial_folder(folder, trial.number).name,
                "error": trial.user_attrs.get("error"),
            }
        )
    write_text(folder / "trials.csv", file.getvalue())


def write_best(folder: Path, best: FrozenTrial, objective: str, overrides: Sequence[str], command: str) -> None:
    """`best.yaml` in the study's folder: the best trial, the words of its run, and what to do next."""
    node = {
        "trial": best.number,
        "value": best.value,
        "objective": objective,
        "params": best.params,
        "run_dir": trial_folder(folder, best.number).name,
        "overrides": list(overrides),
        "command": command,
    }
    write_text(folder / "best.yaml", OmegaConf.to_yaml(OmegaConf.create(node)))


def summary_of(folder: Path, trial: FrozenTrial) -> dict[str, Any]:
    """`summary.json` of a trial's run; {} if there is none yet."""
    path = trial_folder(folder, trial.number) / "summary.json"
    return read_json(path) if path.exists() else {}


def write_text(path: Path, text: str) -> None:
    """Atomically."""
    atomic_write(path, lambda file: file.write(text.encode()))


# -- words -------------------------------------------------------------------------------------------------------------


def findings(trials: Sequence[FrozenTrial], objective: str, folder: Path) -> list[str]:
    """A line each; also written to `findings.txt`."""
    lines = list(_findings(trials, objective, folder))
    write_text(folder / "findings.txt", "\n".join(lines) + "\n")
    return lines


def _findings(trials: Sequence[FrozenTrial], objective: str, folder: Path) -> list[str]:
    done = finished(trials)
    best = best_of(trials)
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    lines = []
    if failed:
        lines.append(
            f"{len(failed)} of {len(trials)} trials failed, the last one by: {failed[-1].user_attrs.get('error')}"
        )
    if best is None:
        return [*lines, "no trial has finished"]
    values = np.array([value_of(trial) for trial in done])
    params = ", ".join(f"{key} {value}" for key, value in best.params.items())
    lines.append(
        f"best: trial {best.number} with {best.value:.4g} (the median trial has {np.median(values):.4g}): {params}"
    )
    if len(done) < FEW:
        return [*lines, f"{len(done)} finished trials are too few to say what each variable does"]
    quarter = sorted(done, key=value_of, reverse=True)[: len(done) // 4]
    for key, what in best.distributions.items():
        lines.append(describe_variable(key, what, done, quarter))
        edge = at_edge(what, best.params[key])
        if edge:
            lines.append(f"{key}: the best trial lies at the {edge} end of its range: a wider one may hold better")
    shares = importances(done)
    if shares:
        said = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        lines.append(f"what sets the best quarter apart (PED-ANOVA, rough for {len(done)} trials): {said}")
    if objective == "model":
        true = [(value_of(t), summary_of(folder, t).get("final_return_mean")) for t in done]
        known = [(judged, value) for judged, value in true if value is not None]
        if len(known) >= FEW:
            rank = spearman(*(np.array(column, np.float64) for column in zip(*known, strict=True)))
            lines.append(
                f"the judge's values and the true returns of {len(known)} trials have a rank correlation of {rank:+.2f}"
            )
    lines.append(
        "the best of many noisy trials looks better than it is: train it with new seeds before believing the number"
    )
    return lines


def describe_variable(
    key: str, what: BaseDistribution, done: Sequence[FrozenTrial], quarter: Sequence[FrozenTrial]
) -> str:
    """Where the best quarter of the trials lies, and how a numeric variable and the value go together."""
    numbers = numeric(what)
    if not numbers:
        groups: dict[str, list[float]] = {}
        for trial in done:
            groups.setdefault(str(trial.params[key]), []).append(value_of(trial))
        order = sorted(groups, key=lambda name: -float(np.median(groups[name])))
        return f"{key}: median value " + ", ".join(
            f"{np.median(groups[name]):.4g} with {name} ({len(groups[name])} trials)" for name in order
        )
    rank = spearman(np.array([float(t.params[key]) for t in done]), np.array([value_of(t) for t in done]))
    low, high = (extreme(float(t.params[key]) for t in quarter) for extreme in (min, max))
    return (
        f"{key}: the best {len(quarter)} trials lie between {low:.4g} and {high:.4g} of {what.low:.4g} to "  # type: ignore[attr-defined]
        f"{what.high:.4g}; rank correlation with the value {rank:+.2f}"  # type: ignore[attr-defined]
    )


def numeric(what: BaseDistribution) -> bool:
    """Whether a variable is a number from a range."""
    return hasattr(what, "low")


def at_edge(what: BaseDistribution, value: Any) -> str | None:
    """`lower` or `upper` where a number lies within 3 % of its range's end, as the range is scaled."""
    if not numeric(what) or what.low == what.high:  # type: ignore[attr-defined]
        return None
    place = position(what, value)
    return "lower" if place < 0.03 else "upper" if place > 0.97 else None


def position(what: BaseDistribution, value: Any) -> float:
    """Where in [0, 1] a value lies: on the range's scale, or by the order of choices."""
    if not numeric(what):
        choices = list(what.choices)  # type: ignore[attr-defined]
        return choices.index(value) / max(len(choices) - 1, 1)
    scale: Callable[[float], float] = math.log if what.log else float  # type: ignore[attr-defined]
    low, high = scale(what.low), scale(what.high)  # type: ignore[attr-defined]
    return (scale(value) - low) / (high - low) if high > low else 0.5


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Rank correlation; 0 where one of the two never changes. Equal values share their mean rank."""
    return float(rank_correlation(torch.from_numpy(x), torch.from_numpy(y)))


def importances(done: Sequence[FrozenTrial]) -> dict[str, float]:
    """Shares of the variables in telling the best quarter of the trials from the rest (Watanabe et al. 2023).

    PED-ANOVA, since Optuna's other evaluators need scikit-learn. {} where there is nothing to tell.
    """
    import optuna

    if len(done) < FEW or len(done[0].params) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(done)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items()}


# -- figures -----------------------------------------------------------------------------------------------------------


def write_figures(folder: Path, trials: Sequence[FrozenTrial], objective: str) -> list[Path]:
    """`history.png`, `slices.png`, `parallel.png`, and with enough trials `importances.png`."""
    done = finished(trials)
    if not done:
        return []
    measured = what_is_measured(folder, trials, objective)
    figures = {
        "history": history(trials, measured),
        "slices": slices(trials, measured),
        "parallel": parallel(done, measured),
    }
    shares = importances(done)
    if shares:
        figures["importances"] = importance_bars(shares, len(done))
    return [save_figure(tidy(figure), folder / f"{name}.png") for name, figure in figures.items()]


def history(trials: Sequence[FrozenTrial], measured: str) -> Figure:
    """Value of every trial in order, and the best so far."""
    done = finished(trials)
    numbers, values = np.array([t.number for t in done]), np.array([value_of(t) for t in done])
    best = best_of(trials)
    assert best is not None
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    limits = robust_limits(values)
    random = np.array([bool(t.user_attrs.get("random")) for t in done])
    below = values < limits[0]
    for which, label, fill in ((random, "random trial", "white"), (~random, "guided trial", BLUE)):
        if which.any():
            shown = which & ~below
            axes.scatter(numbers[shown], values[shown], s=26, color=fill, edgecolor=BLUE, label=label, zorder=3)
    if below.any():
        off_scale(axes, numbers[below], limits, label=f"below {limits[0]:.4g}")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=ORANGE, linewidth=1.8, label="best so far")
    failed = [t.number for t in trials if t.state.name == "FAIL"]
    if failed:
        axes.scatter(failed, [values.min()] * len(failed), marker="x", color=RED, s=30, label="failed", zorder=4)
    axes.set_ylim(*limits)
    axes.set_xlabel("trial")
    axes.set_ylabel(measured, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"best of {len(done)} finished trials: {best.value:.4g} (trial {best.number})", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def off_scale(axes: Any, x: FloatArray, limits: tuple[float, float], label: str | None = None) -> None:
    """Marks on the lower edge for trials that lie below it."""
    height = limits[0] + 0.015 * (limits[1] - limits[0])
    axes.scatter(x, np.full(len(x), height), marker="v", s=30, color=GREY, label=label, zorder=3)


def robust_limits(values: FloatArray) -> tuple[float, float]:
    """Limits in which the trials that matter can be told apart: a few very bad ones stand on the lower edge."""
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    if low < middle - 4 * (high - middle) and high > middle:
        low = middle - 4 * (high - middle)
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def slices(trials: Sequence[FrozenTrial], measured: str) -> Figure:
    """Value against each variable by itself; later trials are darker."""
    done = finished(trials)
    best = best_of(trials)
    assert best is not None
    variables = best.distributions
    columns = min(2 if len(variables) in (2, 4) else 3, len(variables))
    rows = math.ceil(len(variables) / columns)
    figure = Figure(figsize=(4.6 * columns, 0.7 + 3.1 * rows), layout="constrained")
    values = np.array([value_of(t) for t in done])
    limits = robust_limits(values)
    below = values < limits[0]
    order = np.array([t.number for t in done], np.float64)
    for place, (key, what) in enumerate(variables.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        if numeric(what):
            x = np.array([float(t.params[key]) for t in done])
            if what.log:  # type: ignore[attr-defined]
                axes.set_xscale("log")
            star = float(best.params[key])
        else:
            choices = [str(choice) for choice in what.choices]  # type: ignore[attr-defined]
            centre = np.array([choices.index(str(t.params[key])) for t in done], np.float64)
            x = centre + 0.24 * np.sin(12.9898 * (order + 1))  # so that equal ones do not hide each other
            star = float(x[[t.number for t in done].index(best.number)])
            for i in range(len(choices)):
                if (centre == i).any():
                    axes.hlines(
                        max(float(np.median(values[centre == i])), limits[0]),
                        i - 0.33,
                        i + 0.33,
                        color=GREY,
                        linewidth=1.5,
                    )
            names = [name.replace("_", "\n", 1) if len(choices) > 3 else name for name in choices]
            axes.set_xticks(range(len(choices)), names, fontsize=8)
        points = axes.scatter(x[~below], values[~below], c=order[~below], cmap=PALE_TO_DARK, vmin=0, vmax=order.max(),
                              s=30, edgecolor=BLUE, linewidth=0.5, zorder=3)  # fmt: skip
        if below.any():
            off_scale(axes, x[below], limits)
        axes.scatter([star], [value_of(best)], marker="*", s=150, color=ORANGE, zorder=4)
        axes.set_ylim(*limits)
        axes.set_xlabel(key, fontsize=9)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    bar = figure.colorbar(points, ax=figure.axes, pad=0.01, aspect=40)
    bar.set_label("trial", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel(measured, fontsize=9)
    figure.suptitle(
        "one variable at a time (star: the best trial; line: median of a choice; triangle: below the axis)", fontsize=11
    )
    return figure


def importance_bars(shares: dict[str, float], count: int) -> Figure:
    """Shares as bars."""
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names, widths = list(shares)[::-1], list(shares.values())[::-1]
    axes.barh(names, widths, color=BLUE, height=0.6)
    for place, width in enumerate(widths):
        axes.text(width + 0.01, place, f"{width:.0%}", va="center", fontsize=9)
    axes.set_xlim(0, max(widths) * 1.12 + 0.02)
    axes.set_xlabel(f"share in setting the best quarter apart (PED-ANOVA, {count} trials)", fontsize=9)
    axes.set_title("which variables matter", fontsize=11)
    return figure


def parallel(done: Sequence[FrozenTrial], measured: str) -> Figure:
    """A line for each trial across all variables, coloured by its value; the best one on top."""
    best = best_of(done)
    assert best is not None
    variables = best.distributions
    values = np.array([value_of(t) for t in done])
    low = float(np.quantile(values, 0.1))  # a few very bad trials must not take all shades
    colour = ScalarMappable(Normalize(low, best.value), PALE_TO_DARK)
    figure = Figure(figsize=(2.1 + 2.3 * len(variables), 4.6), layout="constrained")
    axes = figure.add_subplot()
    x = [float(place) for place in range(len(variables))]
    for trial in sorted(done, key=value_of):
        y = [position(what, trial.params[key]) for key, what in variables.items()]
        if trial.number == best.number:
            axes.plot(x, y, color=ORANGE, linewidth=2.6)
        else:
            axes.plot(x, y, color=colour.to_rgba(np.array(value_of(trial))), linewidth=1.1, alpha=0.9)
    for place, what in zip(x, variables.values(), strict=True):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for at, name in axis_labels(what):
            axes.text(place + 0.03, at, name, fontsize=8, va="center",
                      bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.0})  # fmt: skip
    axes.set_xticks(x, list(variables), fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(variables) - 1 + 0.45)
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(colour, ax=axes, pad=0.01, aspect=40, extend="min")
    bar.set_label(measured, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axes.set_title(f"every trial (orange: the best, trial {best.number})", fontsize=11)
    return figure


def axis_labels(what: BaseDistribution) -> list[tuple[float, str]]:
    """Heights in [0, 1] and words beside an axis."""
    if not numeric(what):
        return [(position(what, choice), str(choice)) for choice in what.choices]  # type: ignore[attr-defined]
    low, high = what.low, what.high  # type: ignore[attr-defined]
    middle = math.sqrt(low * high) if what.log else (low + high) / 2  # type: ignore[attr-defined]
    if isinstance(low, int):
        middle = round(middle)
    return [(position(what, number), f"{number:.3g}") for number in dict.fromkeys((low, middle, high))]
