"""What a diagnosis returns, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

COLOURS = ("#1f5fa8", "#c8640a", "#3a8f4d", "#8a3fa0", "#b02a37", "#666666", "#17becf", "#a08a2c")


@dataclass(frozen=True)
class Finding:
    """What a diagnosis has found: numbers for `diagnose.json`, tables for the screen, figures by file name."""

    numbers: Mapping[str, Any]
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)


def quiet_table(title: str) -> Table:
    """A table without lines."""
    return Table(title=title, title_justify="left", box=None, padding=(0, 1))


def tidy(figure: Figure) -> Figure:
    """No frame where it says nothing."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
