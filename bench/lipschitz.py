"""What flat critics cost: one update with each option relative to a plain one, and one measurement in updates.

    python bench/lipschitz.py [--quick] [--rounds 7] [--out bench/results/lipschitz.md]

Batches of Hopper's size (11 observations, 3 actions, 256 rows), actor and critics of 2 x 256, one thread, eager,
process CPU time of the learner's update alone. Blocks of all variants alternate, every block is divided by the plain
one of its round, and the median of these ratios is shown: the machine is shared and noisy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from report import machine, one_thread, parser, publish, seconds
from serve import ACTION, BATCH, OBS, make_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn import lipschitz
from mbrl.learn.regularisers import Diversity, GradientPenalty, Robust
from mbrl.learn.sac import SAC
from mbrl.nets import generator
from mbrl.types import Batch, Transition

OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "diversity (to compare)": lambda: {"regularisers": [Diversity(1.0)]},
    "spectral": lambda: {"spectral_radius": 0.5},
    "robust_uniform": lambda: {"regularisers": [Robust(1.0, attack="uniform")]},
    "robust_fgsm": lambda: {"regularisers": [Robust(1.0)]},
    "gradient_penalty": lambda: {"regularisers": [GradientPenalty(1.0, 0.1)]},
    "spectral and robust_fgsm": lambda: {"spectral_radius": 0.5, "regularisers": [Robust(1.0)]},
}
MEASURES = ("measurement of Q", "measurement of Q and model")


def works(critics: int, hidden: Sequence[int], rows: int) -> dict[str, Callable[[], object]]:
    """One update of a fresh learner for each option, and the measurements, ready to be called again and again."""
    data = make_data(rows)
    batch = Batch(Transition(*(x[None] for x in data)), rows)
    found: dict[str, Callable[[], object]] = {}

    def update(learner: SAC) -> Callable[[], object]:
        noise = torch.randn(1, learner.noise_size(rows), generator=torch.Generator().manual_seed(0))
        return lambda: learner.update(batch, noise, torch.tensor(0.0))

    for name, settings in OPTIONS.items():
        found[name] = update(SAC(OBS, ACTION, [0], critics=critics, hidden=hidden, **settings()))
    learner = SAC(OBS, ACTION, [0], critics=critics, hidden=hidden)
    model = GaussianEnsemble(OBS, ACTION, [0], members=1, elites=1, hidden=(200,) * 4).elite_view()
    for name, asked in zip(MEASURES, (None, model), strict=True):
        found[name] = lambda asked=asked: lipschitz.measure(
            learner, Transition(*data), torch.ones(OBS), [generator("measure")], asked
        )
    return found


def table(critics: int, taken: dict[str, list[float]]) -> list[str]:
    """Rows of Markdown."""
    lines = []
    for name, times in taken.items():
        ratios = [own / plain for own, plain in zip(times, taken["plain"], strict=True)]
        lines.append(
            f"| {critics} | {name} | {median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} "
            f"| {1000 * median(times):.1f} |"
        )
    return lines


def main() -> int:
    """Measure and write the table."""
    arguments = parser(__doc__, "lipschitz", "tiny networks", rounds=7).parse_args()
    one_thread()
    hidden, rows = ((16, 16), 32) if arguments.quick else ((256, 256), BATCH)
    about = " ".join((__doc__ or "").strip().split("\n\n")[-1].split())
    text = [
        "# What flat critics cost",
        "",
        about,
        "",
        f"{machine()}, {arguments.rounds} rounds{', tiny networks' if arguments.quick else ''}.",
        "",
        "| critics | one update | x plain | min-max | ms of CPU |",
        "|---|---|---|---|---|",
    ]
    for critics in (2, 10):
        each = works(critics, hidden, rows)
        taken: dict[str, list[float]] = {name: [] for name in each}
        for turn in range(arguments.rounds + 1):
            for name, work in each.items():
                spent = seconds(work, 1 if name in MEASURES else max(4, 40 // critics))
                if turn:  # the first round warms up
                    taken[name].append(spent)
        text += table(critics, taken)
    text += [
        "",
        f"A measurement asks {lipschitz.ROWS} rows, {lipschitz.PERTURBATIONS} steps from each and {lipschitz.SAMPLES} "
        "samples of the model; it is made once an evaluation.",
        "",
        f"Command: `python bench/lipschitz.py{' --quick' if arguments.quick else ''} --rounds {arguments.rounds}`",
        "",
    ]
    publish(arguments.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
