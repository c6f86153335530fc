"""What critics cost: milliseconds of one update for 2, 10 and 50 of them, without and with EDAC's diversity.

    python bench/critics.py [--quick] [--modes eager,compile] [--rounds 5] [--out bench/results/critics.md]

Batches of Hopper's size (11 observations, 3 actions, 256 rows), actor and critics of 3 x 256, one thread, process CPU
time of the learner's update alone. Blocks of all variants alternate and medians of the rounds are shown. Ratios are
between runs of the same kind, eager or compiled: on a shared machine trust these, not the milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from report import machine, one_thread, parser, seconds
from rich.console import Console
from serve import ACTION, BATCH, OBS, make_data

from mbrl.capture import capture
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.types import Batch, Transition

Mode = Literal["eager", "compile"]

# Updates per CPU second on one core in float32, measured by us side by side on another machine: SAC-N with 10 and 50
# critics, EDAC with 10 and 50.
PEERS = {
    "OfflineRL-Kit": (11.15, 2.42, 6.51, 1.29),
    "CORL": (9.50, 2.16, 5.95, 1.18),
    "unifloral (JAX)": (16.0, 2.69, 2.78, 0.08),
}


@dataclass(frozen=True)
class Variant:
    """One way to have critics."""

    critics: int
    diversity: bool
    mode: Mode

    def update(self, hidden: Sequence[int], rows: int) -> Callable[[], object]:
        """One update of a fresh learner, ready to be called again and again."""
        learner = SAC(
            OBS, ACTION, [0], critics=self.critics, hidden=hidden, actor_learning_rate=3e-4, cosine_actor=False,
            max_temperature=None, regularisers=[Diversity(1.0)] if self.diversity else [],
        )  # fmt: skip
        batch = Batch(Transition(*(x[None] for x in make_data(rows))), rows)
        noise = torch.randn(1, learner.noise_size(rows), generator=torch.Generator().manual_seed(0))
        step, progress = capture(learner.update, self.mode), torch.tensor(0.0)
        return lambda: step(batch, noise, progress)


def measure(
    variants: Sequence[Variant], hidden: Sequence[int], rows: int, rounds: int, say: Callable[[str], None]
) -> tuple[dict[Variant, list[float]], dict[Variant, float]]:
    """Seconds per update in every round, and what the first two updates took beyond that."""
    works, first = {}, {}
    for variant in variants:
        say(f"first updates of {variant}")
        works[variant] = variant.update(hidden, rows)
        first[variant] = 2 * seconds(works[variant], 2)
    taken: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for variant, work in works.items():
            taken[variant].append(seconds(work, max(2, 80 // variant.critics)))
    return taken, {v: max(first[v] - 2 * median(taken[v]), 0.0) for v in variants}


def table(taken: dict[Variant, list[float]], start: dict[Variant, float]) -> list[str]:
    """Rows of Markdown."""
    lines = [
        "| run | critics | diversity | ms of CPU | min-max | x 2 critics | x without diversity | first call, CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, times in taken.items():
        own = median(times)
        few = median(taken[Variant(2, False, variant.mode)])
        plain = median(taken[Variant(variant.critics, False, variant.mode)])
        lines.append(
            f"| {variant.mode} | {variant.critics} | {'yes' if variant.diversity else 'no'} | {1000 * own:.1f} "
            f"| {1000 * min(times):.1f}-{1000 * max(times):.1f} | {own / few:.1f} | {own / plain:.2f} "
            f"| {start[variant]:.0f} |"
        )
    return lines


def peers() -> list[str]:
    """The peers' figures, and how their cost grows."""
    lines = [
        "| peer | SAC-N 10 | SAC-N 50 | 50 / 10 | EDAC 10 | EDAC 50 | 50 / 10 | EDAC / SAC-N, 10 | EDAC / SAC-N, 50 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rates in PEERS.items():
        a, b, c, d = (1000 / rate for rate in rates)
        lines.append(
            f"| {name} | {a:.0f} ms | {b:.0f} ms | {b / a:.1f} | {c:.0f} ms | {d:,.0f} ms | {d / c:.1f} "
            f"| {c / a:.2f} | {d / b:.2f} |"
        )
    return lines


def main() -> int:
    """Measure and write the table."""
    words = parser(__doc__, "critics", "tiny networks, not compiled", rounds=5)
    words.add_argument("--modes", default="eager,compile", help="eager, compile, or both (six graphs to compile)")
    arguments = words.parse_args()
    one_thread()
    console = Console(stderr=True)
    asked = ["eager"] if arguments.quick else arguments.modes.split(",")
    modes: list[Mode] = [mode for mode in ("eager", "compile") if mode in asked]
    variants = [Variant(n, d, mode) for mode in modes for d in (False, True) for n in (2, 10, 50)]
    hidden, rows = ((16,) * 3, 32) if arguments.quick else ((256,) * 3, BATCH)
    taken, start = measure(variants, hidden, rows, arguments.rounds, console.print)
    about = " ".join((__doc__ or "").strip().split("\n\n")[-1].split())
    text = [
        "# What critics cost",
        "",
        about,
        "",
        f"{machine()}, {arguments.rounds} rounds{', tiny networks' if arguments.quick else ''}.",
        "",
        *table(taken, start),
        "",
        "`first call` is what the first two updates took beyond two steady ones: compiling, with whatever the cache of "
        "the compiler held.",
        "",
        "## Peers",
        "",
        "CPU milliseconds of one update of the same sizes, measured by us on another machine: read their growth, not "
        "their size. [speed.md](speed.md) has OfflineRL-Kit beside us, eager and compiled, in the same rounds.",
        "",
        *peers(),
        "",
        "For dQ/da unifloral takes, by its source, a Jacobian of all critics' outputs at once: work that grows with "
        "the square of their number. Here it is one reverse sweep through each critic.",
        "",
        f"Command: `python bench/critics.py {'--quick' if arguments.quick else f'--modes {arguments.modes}'} "
        f"--rounds {arguments.rounds}`",
        "",
    ]
    arguments.out.write_text("\n".join(text))
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
