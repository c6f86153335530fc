"""What planning costs: transitions per second of conservative rollouts (COPlanner) against those of plain ones.

    python bench/coplanner.py [--quick] [--rounds 3] [--out bench/results/coplanner.md]

Synthetic data of Hopper's size (O = 11, A = 3), untrained weights, a policy of 2 x 256, one thread, CPU time. Rollouts
of 5 steps with a random elite. All ways take turns within a round, and the table has medians over the rounds; the
machine is shared and noisy, so that only ratios within one run are to be compared.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import NamedTuple

from report import machine, one_thread, parser, publish
from rich.console import Console
from serve import ACTION, OBS, make_data

from mbrl.data.ring import ReplayTable
from mbrl.data.termination import hopper
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.coplanner import Doubt, UncertaintyPlanner
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import ActionSource, Transition

LENGTH = 5
LANES, PLANNED = 2000, 96  # a planned lane costs tens of plain ones
SIZES = {"7 x 4 x 200": (200,) * 4, "7 x 3 x 128": (128,) * 3}
QUICK_SIZES = {"7 x 1 x 8": (8,)}


class Way(NamedTuple):
    """One row of the table."""

    size: str
    penalty: bool
    candidates: int  # 1: plain
    horizon: int
    uncertainty: Doubt = "sample_std"

    @property
    def calls(self) -> int:
        """Calls of the model for each stored transition."""
        return 1 if self.candidates == 1 else self.candidates * self.horizon + 1


def ways(sizes: dict[str, tuple[int, ...]]) -> list[Way]:
    """All rows, each size and penalty led by its plain rollout."""
    planned: list[tuple[int, int, Doubt]] = [
        (1, 1, "sample_std"), (5, 5, "sample_std"), (5, 10, "sample_std"), (3, 3, "sample_std"), (5, 1, "sample_std"),
        (5, 5, "mean_std"),
    ]  # fmt: skip
    return [Way(size, penalty, *plan) for size in sizes for penalty in (True, False) for plan in planned]


def imagination(way: Way, model: GaussianEnsemble, data: Transition) -> Imagination:
    """As `mbrl train` would put it together on a CPU."""
    actions: ActionSource = PolicyActions()
    if way.candidates > 1:
        actions = UncertaintyPlanner(
            model.members, hopper, model.change_std, candidates=way.candidates, horizon=way.horizon,
            uncertainty=way.uncertainty,
        )  # fmt: skip
    penalise = Penalise(max_aleatoric, 1.0) if way.penalty else None
    filters = FilterChain(clip=Clip(data), terminate=Terminate(hopper), penalise=penalise)
    simulator = None if way.penalty else model.elite_view()
    return Imagination(model, actions, RandomElite(), filters, LENGTH, 1024 if way.penalty else 5120, simulator)


def rates(sizes: dict[str, tuple[int, ...]], rounds: int, lanes: int, planned: int) -> dict[Way, float]:
    """Median transitions per CPU second."""
    data = make_data(2000)
    table, learner = ReplayTable(data, max(lanes, planned) * LENGTH, 1), SAC(OBS, ACTION, [0])
    models = {size: GaussianEnsemble(OBS, ACTION, [0], hidden=hidden) for size, hidden in sizes.items()}
    taken: dict[Way, list[float]] = {way: [] for way in ways(sizes)}
    for turn in range(rounds + 1):
        for way, times in taken.items():
            width = lanes if way.candidates == 1 else planned
            parts = imagination(way, models[way.size], data)
            begin = time.process_time()
            parts.fill(table, width, learner.sample, [generator(0, turn)])
            if turn:  # the first is to warm up
                times.append((time.process_time() - begin) / (width * LENGTH))
    return {way: 1.0 / median(times) for way, times in taken.items()}


def rows(found: dict[Way, float]) -> list[str]:
    """The table's lines; ratios are to the plain rollout of the same size and penalty."""
    lines = []
    for way, rate in found.items():
        plain = found[Way(way.size, way.penalty, 1, 1)]
        name = "plain" if way.candidates == 1 else f"({way.candidates}, {way.horizon}), `{way.uncertainty}`"
        lines.append(
            f"| {way.size} | {'yes' if way.penalty else 'no'} | {name} | {way.calls} | {rate:,.0f} | "
            f"{plain / rate:.1f} x |"
        )
    return lines


def main() -> int:
    """Measure and write the table."""
    arguments = parser(__doc__, "coplanner", "a tiny model and few lanes", rounds=3).parse_args()
    one_thread()
    Console(stderr=True).print("rolling out")
    few = arguments.quick
    found = rates(QUICK_SIZES if few else SIZES, arguments.rounds, 64 if few else LANES, 32 if few else PLANNED)
    described = (__doc__ or "").strip().splitlines()[4:]
    lines = [
        "# What planning costs",
        "",
        *described,
        "",
        f"{machine()}; {LANES} lanes for plain rollouts, {PLANNED} for planned ones, {arguments.rounds} rounds. "
        "Without a penalty a plain rollout asks one elite for each lane; the planner asks all members always.",
        "",
        "| ensemble | penalty | (K, H) | model calls a transition | transitions / CPU s | slower than plain |",
        "|---|---|---|---|---|---|",
        *rows(found),
        "",
        f"Command: `python bench/coplanner.py{' --quick' if few else ''} --rounds {arguments.rounds}`",
        "",
    ]
    publish(arguments.out, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
