"""The edge of reach on a grid: a Markdown table on the screen, and a figure of values.

    python scripts/reproduce/edge_grid.py [--seeds 5] [--lengths 3 4 8] [--figure edge_grid.png]

About 15 seconds on one CPU core with five seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mbrl.edge.grid import GOAL, HALF, WIDTH, Grid, Learnt, detection, experiment, make_grid, returns
from mbrl.plots import save_figure

SHOWN = ("base N=2", "OraclePatch N=2", "RAVL N=10")


def row(grid: Grid, length: int, name: str, learnt: Learnt) -> str:
    """One line: returns, Q at the start box, share of patched targets, penalties, AUROC."""
    scores, value = returns(grid, learnt), learnt.value()[:, grid.starts].mean(-1)
    solved = f"{int((scores > 35.9).sum())} of {len(scores)}"
    each = " ".join(f"{score:.1f}".removesuffix(".0") for score in scores.tolist()) if len(scores) <= 5 else "-"
    spread = f"{float(value.min()):.1f}" + ("" if value.max() - value.min() < 0.05 else f" to {float(value.max()):.1f}")
    share = float(learnt.patched.mean())
    patched = "-" if share == 0 else f"{100 * share:.3f} %" if share < 0.01 else f"{100 * share:.0f} %"
    cells = [str(length), name, solved, each, spread, patched]
    if learnt.tables.shape[1] == 1:
        cells += ["-", "-", "-"]
    else:
        penalty, area = learnt.penalty(), detection(grid, length, learnt)
        cells += [
            f"{float(penalty[learnt.updated].median()):.2f}",
            f"{float(penalty[:, grid.ring(length)].median()):.1f}",
            f"{float(area.min()):.2f} to {float(area.max()):.2f}",
        ]
    return f"| {' | '.join(cells)} |"


def draw(grid: Grid, length: int, learnt: dict[str, Learnt], path: Path, seed: int = 0) -> None:
    """Values over the grid of one seed, with ring and goal, beside the true ones."""
    panels = [("true values", grid.value)] + [(name, learnt[name].value()[seed]) for name in SHOWN]
    figure = Figure(figsize=(3.1 * len(panels) + 0.6, 3.3), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    ring = grid.ring(length).view(WIDTH, WIDTH)
    image = None
    for ax, (name, value) in zip(axes, panels, strict=True):
        # Cells are numbered x first: the picture's rows are y.
        picture = value.view(WIDTH, WIDTH).T.numpy()
        image = ax.imshow(
            picture, origin="lower", extent=(-12.5, 12.5, -12.5, 12.5), vmin=-20, vmax=40, cmap="viridis",
            interpolation="nearest",
        )  # fmt: skip
        for x, y in np.argwhere(ring.numpy()) - HALF:
            ax.plot(x + np.array([-0.5, 0.5, 0.5, -0.5, -0.5]), y + np.array([-0.5, -0.5, 0.5, 0.5, -0.5]), "r", lw=0.8)
        ax.plot(*GOAL, "w+", markersize=6)
        ax.set_title(name, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.set(xlim=(-8.5, 8.5), ylim=(-8.5, 8.5))
    figure.colorbar(image, ax=axes, shrink=0.85, label="max over a of min over i of Q")
    figure.suptitle(f"lanes of {length} steps, seed {seed}: the ring in red, the goal +", fontsize=10)
    save_figure(figure, path, dpi=100)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--lengths", type=int, nargs="+", default=[3, 4, 8], help="steps of a lane, k")
    parser.add_argument("--rounds", type=int, default=400, help="of imagining and sweeping")
    parser.add_argument("--figure", type=Path, default=Path("edge_grid.png"))
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    grid = make_grid()
    print("| k | variant | solved | return (optimum 36) | Q at the start box (16.3) | targets patched | "
          "penalty, updated | penalty, ring | AUROC |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for length in given.lengths:
        learnt = experiment(grid, length, range(given.seeds), given.rounds)
        for name, lanes in learnt.items():
            if bool(lanes.updated[:, ~grid.within(length)].any()):
                raise AssertionError(f"k={length}, {name}: an update landed outside the reach")
            print(row(grid, length, name, lanes), flush=True)
        if length == given.lengths[0]:
            draw(grid, length, learnt, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
