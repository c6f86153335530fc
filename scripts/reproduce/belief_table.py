"""Markdown tables of what `mbrl diagnose` found in several runs: `python belief_table.py RUN_DIR ...`.

Every number is a mean over the run's seeds with the least and the most of them in brackets. A score's difference to the
candidate closest to the mean has the 95 % interval over states of all seeds together, which are independent; the last
column counts the seeds whose own intervals lie below 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FREE = ("closest_to_mean", "log_likelihood")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean (least-most)` of one number a seed."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(title: str, names: Sequence[str]) -> list[str]:
    """The first lines of a table."""
    return ["", f"**{title}**", "", line(names), line(["---"] * len(names))]


def pooled(low: Sequence[float], high: Sequence[float]) -> str:
    """The interval of the mean of independent estimates, from the interval of each."""
    middle, half = (np.array(high) + low) / 2, (np.array(high) - low) / 2
    width = float(np.sqrt(np.square(half).sum())) / len(half)
    return f"{middle.mean() - width:+.3f} to {middle.mean() + width:+.3f}"


def kept_error(curve: Sequence[Sequence[float]], share: Sequence[float], at: float) -> list[float]:
    """Error of the states that a cut keeps over that of all, where it keeps `at` of them, per seed."""
    return [float(np.interp(at, share, seed)) for seed in curve]


def tables(runs: Sequence[Path]) -> list[str]:
    """All four tables."""
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for run in runs:
        if not (run / "diagnose" / "diagnose.json").exists():
            print(f"{run} is not diagnosed: left out", file=sys.stderr)
            continue
        summary = run / "summary.json"
        found.append(
            (
                run.name,
                json.loads((run / "diagnose" / "diagnose.json").read_text()),
                json.loads(summary.read_text()) if summary.exists() else {},
            )
        )

    lines = heading(
        "Fits: held-out errors in stds of a change (one step) and of the state (20 steps), and the policy on them",
        ("run", "sample", "elites' mean", "after 20", "inside 1 / 2 std", "final return", "per seed"),
    )
    for name, seen, summary in found:
        fit = seen["dynamics"]
        inside = f"{np.mean(fit['within_one_std']):.3f} / {np.mean(fit['within_two_std']):.3f}"
        returns = [seed["final_return_mean"] for seed in summary.get("per_seed", [])]
        returns = [value for value in returns if value is not None]
        lines.append(
            line(
                [
                    name,
                    *(spread(fit[key]) for key in ("candidate_error", "mean_error", "error_after_20")),
                    inside,
                    f"{np.mean(returns):.0f}" if returns else "-",
                    ", ".join(f"{value:.0f}" for value in returns) or "-",
                ]
            )
        )

    lines += heading(
        "Scores: error of the chosen candidate over the mean candidate's, and its difference to closest_to_mean's",
        ("run", "states", "score", "ratio of means", "mean of ratios", "difference, 95 %", "seeds below 0"),
    )
    for name, seen, _ in found:
        for states, scores in seen["ranking"].items():
            for score, row in scores.items():
                if score in ("random", "perfect"):
                    continue
                below = sum(high < 0 for high in row["high"])
                difference = pooled(row["low"], row["high"])
                lines.append(
                    line(
                        [
                            name,
                            states,
                            score,
                            spread(row["ratio"]),
                            spread(row["pn"]),
                            "-" if score == "closest_to_mean" else difference,
                            "-" if score == "closest_to_mean" else f"{below} of {len(row['high'])}",
                        ]
                    )
                )

    lines += heading(
        "Cuts: rank correlation of a signal with minus the log error, and the error of the best 95 and 80 % of states",
        ("run", "states", "signal", "Spearman", "best 95 %", "best 80 %"),
    )
    for name, seen, _ in found:
        for states, signals in seen["truncation"].items():
            for signal, row in signals.items():
                if signal in ("share", "perfect"):
                    continue
                kept = (kept_error(row["kept_error"], signals["share"], at) for at in (0.95, 0.8))
                lines.append(line([name, states, signal, spread(row["spearman"], 2), *(spread(k, 2) for k in kept)]))

    lines += heading(
        "Rollouts: distance to the true closed loop after 20 steps in stds of the state, 95 % intervals over starts",
        ("run", "next state", "after 20"),
    )
    for name, seen, _ in found:
        for way, row in seen.get("deviation", {}).items():
            if way != "steps" and row["mean"][-1] is not None:  # null: every lane had ended
                lines.append(line([name, way, f"{row['mean'][-1]:.3f} [{row['low'][-1]:.3f}, {row['high'][-1]:.3f}]"]))
    return lines


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    print("\n".join(tables([Path(word) for word in sys.argv[1:]])).strip())
