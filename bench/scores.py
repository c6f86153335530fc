"""What belief costs: seconds to fit each score, and what a rollout loses to the choice among candidates.

    python bench/scores.py [--quick] [--out bench/results/scores.md]

Synthetic data of Hopper's size, 7 x 4 x 200 ensemble, one thread, CPU time. Rollouts: 2,000 lanes of 5 steps with two
candidates of each of 5 elites, alternated over three rounds; the ratio is to MOPO's plain rollout of the same run.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from report import machine, one_thread, parser, publish, seconds
from rich.console import Console
from serve import ACTION, OBS, make_data

from mbrl.compose import config_folder
from mbrl.data.ring import ReplayTable
from mbrl.data.termination import hopper
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite, ScoredCandidates
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Fittable, Selector, Transition

LANES, LENGTH, ROUNDS = 2000, 5, 3
QUICK: dict[str, Any] = {"steps": 20, "pretraining_steps": 20, "iterations": 20, "warm_up": 0}
NAMES = ("closest_to_mean", "log_likelihood", "residual", "ranking", "adversarial", "adversarial_mixture")


def score_of(name: str, quick: bool) -> Any:
    """A score as `score=NAME` makes it, not fitted."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = OmegaConf.to_container(compose(f"score/{name}"))["score"]  # type: ignore[call-overload, index]
    assert isinstance(settings, dict)
    if quick:
        settings |= {key: value for key, value in QUICK.items() if key in settings}
        if "snapshot_every" in settings:
            settings["snapshot_every"] = QUICK["iterations"] // settings["history"] or 1
    made = instantiate(settings)
    return made(OBS, ACTION, [0]) if callable(made) and hasattr(made, "func") else made


def rollouts(model: GaussianEnsemble, data: Transition, selectors: dict[str, Selector], lanes: int) -> dict[str, float]:
    """Median transitions per CPU second with each way to choose, alternated."""
    table, learner = ReplayTable(data, lanes * LENGTH, 1), SAC(OBS, ACTION, [0])
    filters = FilterChain(clip=Clip(data), terminate=Terminate(hopper), penalise=Penalise(max_aleatoric, 1.0))
    taken: dict[str, list[float]] = {name: [] for name in selectors}
    for turn in range(ROUNDS + 1):
        for name, select in selectors.items():
            parts = Imagination(model, PolicyActions(), select, filters, LENGTH, 1024)
            fill = lambda parts=parts, turn=turn: parts.fill(table, lanes, learner.sample, [generator(0, turn)])  # noqa: E731
            spent = seconds(fill)
            if turn:  # the first is to warm up
                taken[name].append(spent)
    return {name: lanes * LENGTH / median(times) for name, times in taken.items()}


def main() -> int:
    """Measure and write the table."""
    arguments = parser(__doc__, "scores", "tiny fits").parse_args()
    one_thread()
    console = Console(stderr=True)
    data = make_data(2_000 if arguments.quick else 100_000)
    model = GaussianEnsemble(OBS, ACTION, [0], max_epochs=1)
    model.fit(data)
    fits: dict[str, float] = {}
    selectors: dict[str, Selector] = {"random elite": RandomElite()}
    for name in NAMES:
        score = score_of(name, arguments.quick)
        if isinstance(score, Fittable):
            console.print(f"fitting {name}")
            fits[name] = seconds(lambda score=score: score.fit(data, model))  # type: ignore[misc]
        selectors[name] = ScoredCandidates(score, model.elite_count)
    console.print("rolling out")
    rates = rollouts(model, data, selectors, 64 if arguments.quick else LANES)
    plain = rates["random elite"]
    lines = [
        "# What belief costs",
        "",
        f"{__doc__.strip().splitlines()[-2]} {__doc__.strip().splitlines()[-1]}" if __doc__ else "",
        f"{machine()}.",
        "",
        "| score | seconds to fit | transitions / CPU s | slower than plain |",
        "|---|---|---|---|",
        *(
            f"| {name} | {fits[name]:.0f} | {rate:,.0f} | {plain / rate:.2f} x |"
            if name in fits
            else f"| {name} | - | {rate:,.0f} | {plain / rate:.2f} x |"
            for name, rate in rates.items()
        ),
        "",
        f"Command: `python bench/scores.py{' --quick' if arguments.quick else ''}`",
        "",
    ]
    publish(arguments.out, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
