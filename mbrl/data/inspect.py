"""`mbrl inspect`: what is in a dataset, and what is wrong with it."""

from __future__ import annotations

import html as html_escape
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mbrl.data.sources import Dataset, load_dataset
from mbrl.data.validate import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One dimension of the observations or actions, in environment units."""

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    at_bound: float  # share of rows at the smallest or largest value; of an action: at its bounds


def inspect_dataset(spec: str, *, html: Path | None, action_bounds: tuple[Array, Array] | None = None) -> None:
    """Print a report of a dataset, and write it as one self-contained page with figures if `html` is given.

    Args:
        spec: a dataset string, as `load_dataset` takes it.
        html: where to write the page; nothing is fetched when it is opened.
        action_bounds: as for `load_dataset`.

    Raises:
        DatasetError: the dataset cannot be used.
    """
    dataset = load_dataset(spec, action_bounds=action_bounds)
    facts, columns = summary(dataset), describe_columns(dataset)
    console = Console()
    console.print(Text(dataset.name, style="bold"))
    overview = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        overview.add_row(Text(name, style="cyan"), Text(value))
    console.print(overview)
    if len(dataset.episode_returns):
        console.print(Text("\nreturns of complete episodes", style="bold"))
        console.print(Text(histogram(dataset.episode_returns)))
    table = Table(title="columns, in environment units", title_justify="left")
    for heading in ("", "min", "max", "mean", "std", "at bound"):
        table.add_column(heading, justify="right" if heading else "left")
    for column in columns:
        style = "yellow" if column.minimum == column.maximum else ""
        table.add_row(*_cells(column), style=style)
    console.print(table)
    if dataset.warnings:
        console.print(Text("faults", style="bold yellow"))
        for warning in dataset.warnings:
            console.print(Text(f"- {warning}"))
    else:
        console.print(Text("no faults found", style="green"))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(dataset, facts, columns), encoding="utf-8")
        console.print(Text(f"written: {html}"))


def summary(dataset: Dataset) -> dict[str, str]:
    """What the report says in its first block: name -> text."""
    rows = dataset.transitions
    complete, returns, lengths = len(dataset.episode_returns), dataset.episode_returns, dataset.episode_lengths
    terminals, limits = int(rows.terminal.sum()), int(dataset.timeout.sum())
    dropped = f" ({dataset.dropped_rows:,} dropped)" if dataset.dropped_rows else ""
    facts = {
        "transitions": f"{len(rows.obs):,}{dropped}",
        "observations": f"{rows.obs.shape[1]} dimensions",
        "actions": f"{rows.action.shape[1]} dimensions in {_bounds(dataset)}",
        "environment": dataset.env_id or "not named by the dataset",
        "content hash": dataset.hash,
        "episodes": f"{complete:,} complete, {dataset.incomplete_episodes:,} incomplete; rows with a terminal "
        f"{terminals:,}, with a time limit {limits:,}",
    }
    if complete:
        quantiles = np.quantile(returns, [0.1, 0.25, 0.5, 0.75, 0.9])
        facts["return"] = _spread(returns)
        facts["return quantiles"] = "  ".join(
            f"{level}% {value:.1f}" for level, value in zip((10, 25, 50, 75, 90), quantiles, strict=True)
        )
        facts |= _scores(dataset)
        facts["episode length"] = _spread(lengths)
    reward = rows.reward.numpy()
    facts["reward"] = f"{_spread(reward.astype(np.float64))}; {np.mean(reward == 0):.1%} are 0"
    facts["coverage"] = (
        f"the observations vary in {effective_dimension(rows.obs.numpy()):.1f} of {rows.obs.shape[1]} directions "
        f"(participation ratio), the actions in {effective_dimension(rows.action.numpy()):.1f} of "
        f"{rows.action.shape[1]}"
    )
    saturated = (rows.action.abs() >= 1 - 1e-6).float().mean().item()
    facts["saturated actions"] = f"{saturated:.1%} of the values are at a bound"
    return facts


def _spread(values: Array) -> str:
    return f"mean {values.mean():.3f}, std {values.std():.3f}, min {values.min():.3f}, max {values.max():.3f}"


def _bounds(dataset: Dataset) -> str:
    pairs = sorted(set(zip(dataset.action_low.tolist(), dataset.action_high.tolist(), strict=True)))
    return ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs[:4]) + (", ..." if len(pairs) > 4 else "")


def _scores(dataset: Dataset) -> dict[str, str]:
    """Normalised scores of the data: by the dataset's own references, and by those of the task it belongs to."""
    from mbrl.data.tasks import TaskError, find_task

    references = {}
    if dataset.reference is not None:
        references["the dataset's own references"] = dataset.reference
    try:
        reference = find_task(dataset.name).reference
    except TaskError:
        reference = None
    if reference is not None:
        references[f"{reference.source}, {reference.environment}"] = reference.minimum, reference.maximum
    texts = []
    for label, (minimum, maximum) in references.items():
        scores = 100 * (dataset.episode_returns - minimum) / (maximum - minimum)
        texts.append(f"mean {scores.mean():.1f}, best {scores.max():.1f} ({label}: {minimum:g}, {maximum:g})")
    return {"score": "; ".join(texts)} if texts else {}


def describe_columns(dataset: Dataset) -> list[Column]:
    """Every observation and action dimension, in environment units."""
    rows = dataset.transitions
    low, high = dataset.action_low, dataset.action_high
    action = low + (rows.action.numpy() + 1) / 2 * (high - low)
    columns = [
        _column(f"observation {i}", values, values.min(), values.max()) for i, values in enumerate(rows.obs.numpy().T)
    ]
    return columns + [_column(f"action {i}", values, low[i], high[i]) for i, values in enumerate(action.T)]


def _column(name: str, values: Array, low: float, high: float) -> Column:
    wide = values.astype(np.float64)
    margin = 1e-6 * (high - low)
    at_bound = float(np.mean((wide <= low + margin) | (wide >= high - margin)))
    return Column(name, wide.min(), wide.max(), wide.mean(), wide.std(), at_bound)


def _cells(column: Column) -> tuple[str, ...]:
    numbers = (f"{value:.4g}" for value in (column.minimum, column.maximum, column.mean, column.std))
    constant = column.minimum == column.maximum
    return column.name, *numbers, "constant" if constant else f"{column.at_bound:.1%}"


def effective_dimension(values: Array) -> float:
    """Participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of the correlation matrix of values (N, D).

    D if all dimensions vary independently, 1 if they move as one; constant dimensions count nothing.
    """
    varying = values[:, values.min(0) < values.max(0)]
    if varying.shape[1] == 0:
        return 0.0
    correlation = np.atleast_2d(np.corrcoef(varying, rowvar=False, dtype=np.float64))
    # The trace of a square is the sum of squared entries: no eigenvalues are needed.
    return float(np.trace(correlation) ** 2 / np.sum(correlation**2))


def histogram(values: Array, bins: int = 12, width: int = 50) -> str:
    """A text histogram: one line per bin with its lower edge, a bar and the count."""
    counts, edges = np.histogram(values, bins)
    bars = ["█" * round(width * count / max(counts.max(), 1)) for count in counts]
    return "\n".join(
        f"{edge:12.1f} {bar:<{width}} {count}" for edge, bar, count in zip(edges[:-1], bars, counts, strict=True)
    )


# The page


def page(dataset: Dataset, facts: dict[str, str], columns: list[Column]) -> str:
    """One HTML page with inline SVG figures."""
    escape = html_escape.escape
    rows = dataset.transitions
    figures = []
    if len(dataset.episode_returns):
        figures.append(_figure({"return of an episode": dataset.episode_returns}))
        figures.append(_figure({"length of an episode": dataset.episode_lengths}))
    figures.append(_figure({"reward": rows.reward.numpy()}))
    figures.append(_figure({f"observation {i}": values for i, values in enumerate(rows.obs.numpy().T)}))
    figures.append(_figure({f"action {i}, scaled": values for i, values in enumerate(rows.action.numpy().T)}))
    overview = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(column)) + "</tr>" for column in columns
    )
    faults = "".join(f"<li>{escape(warning)}</li>" for warning in dataset.warnings) or "<li>none found</li>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(dataset.name)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; }} th, td {{ text-align: left; padding: 2px 14px 2px 0; vertical-align: top; }}
.columns td + td, .columns th + th {{ text-align: right; font-variant-numeric: tabular-nums; }}
svg {{ max-width: 100%; height: auto; }} li {{ margin: .3em 0; }}
</style></head><body>
<h1>{escape(dataset.name)}</h1>
<table>{overview}</table>
<h2>Faults</h2><ul>{faults}</ul>
<h2>Episodes, rewards and dimensions</h2>{"".join(figures)}
<h2>Columns, in environment units</h2>
<table class="columns">
<tr><th></th><th>min</th><th>max</th><th>mean</th><th>std</th><th>at bound</th></tr>{lines}
</table>
</body></html>
"""


def _figure(panels: dict[str, Array], most: int = 40) -> str:
    """Histograms side by side, four to a row, as SVG. At most `most` panels, to keep the page light."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = list(panels.items())[:most]
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mbrl", "font.size": 8}):
        figure = Figure(figsize=(2.6 * max(across, 2), 1.9 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False)
        for ax, (name, values) in zip(axes.flat, shown, strict=False):
            _panel(ax, name, values)
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    note = f"<p>{len(panels) - most} more not drawn.</p>" if len(panels) > most else ""
    return "<div>" + text.getvalue()[text.getvalue().index("<svg") :] + "</div>" + note


def _panel(ax: Axes, name: str, values: Array) -> None:
    # A line through 40 counts: the page stays small however many rows there are.
    counts, edges = np.histogram(values.astype(np.float64), 40)
    ax.stairs(counts, edges, fill=True, color="#4878a8")
    ax.set_title(name)
    ax.set_yticks([])
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
