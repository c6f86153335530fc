"""Which of six uncertainties knows where a model is wrong? One study, one figure.

    python scripts/reproduce/uncertainty.py DATASET.hdf5 FOLDER [OTHER_DATASET ...] [--seeds 3] [--set key=value ...]
    SMOKE=1 python scripts/reproduce/uncertainty.py ...      a minute: does it run? (or --smoke)

Fits 15 members for each seed, trains a short MOPO run on them, and asks the simulator about the steps that its policy
makes in the model. OTHER_DATASETs of the same system stand for what the model may meet elsewhere (transfer). Numbers go
to FOLDER/uncertainty.json, the table to uncertainty.md, the figure to uncertainty.png. Started again it goes on where
it was stopped. With the 400,000 rows of hopper-medium-replay and one other dataset: some 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from mbrl import cli
from mbrl.data.sources import load_dataset
from mbrl.diagnose import Case, open_case
from mbrl.diagnose_penalties import (
    HEADINGS,
    STEPS,
    agreement_rows,
    by_depth,
    change_scale,
    draw_depth,
    draw_ranks,
    effect_of_members,
    first,
    held_out_steps,
    judge,
    logged_steps,
    medians,
    names,
    out_of_data,
    rollout_steps,
)
from mbrl.finding import COLOURS, tidy
from mbrl.nets import generator
from mbrl.plots import save_figure
from mbrl.rundir import read_json, write_json
from mbrl.sweep import hydra_quoted
from mbrl.types import Transition

MEMBERS, ELITES = 15, 5
COUNTS = (2, 3, 5, 7, 10, 12, 15)
HORIZONS = (1, 5, 10, 25, 50)
TRANSFER_ROWS = 2000

FULL = [
    "dynamics.hidden=[128,128,128]", "dynamics.max_steps=5000", "dynamics.max_epochs=null", "dynamics.patience=null",
    "dynamics.improvement=0", "updates=15000", "learner.hidden=[128,128]", "learner.actor_learning_rate=3e-4",
    "rollout.lanes=5000", "eval.every=3000", "eval.episodes=5", "log_every=1000", "rollout.penalise.coefficient=2.5",
]  # fmt: skip
SMOKE = [
    "dynamics.hidden=[16,16]", "dynamics.max_steps=50", "dynamics.max_epochs=null", "dynamics.patience=null",
    "updates=100", "learner.hidden=[16,16]", "rollout.lanes=50", "eval.every=100", "eval.episodes=1", "log_every=50",
]  # fmt: skip


def train(dataset: Path, run: Path, seeds: int, settings: Sequence[str]) -> int:
    """Fit and train, or go on with it; the exit status."""
    if (run / "summary.json").exists() and read_json(run / "summary.json")["status"] == "finished":
        return 0
    if (run / "meta.json").exists():
        return cli.main(["train", f"resume={run}"])
    return cli.main(
        [
            "train", "algo=mopo", f"dataset={hydra_quoted(dataset)}", f"seeds={seeds}",
            f"run_dir={hydra_quoted(run)}", f"dynamics.members={MEMBERS}", f"dynamics.elites={ELITES}", *settings,
        ]
    )  # fmt: skip


def other_rows(case: Case, path: Path, rows: int) -> Transition:
    """Random rows (S, N, .) of another dataset of the same system, the same for every seed.

    Raises:
        SystemExit: it is of another system.
    """
    dataset = case.problem.dataset
    data = load_dataset(str(path), action_bounds=(dataset.action_low, dataset.action_high)).transitions
    have, want = ((x.obs.shape[-1], x.action.shape[-1]) for x in (data, dataset.transitions))
    if have != want:
        sys.exit(f"{path}: observations of {have[0]} and actions of {have[1]} dimensions, but the model has {want}")
    pick = torch.randperm(len(data.reward), generator=generator(0, "penalties", "transfer"))[:rows]
    return Transition(*(x[pick].expand(len(case.seeds), *x[pick].shape) for x in data))


def study(case: Case, others: Sequence[Path], known: dict[str, Any], save: Callable[[], None], smoke: bool) -> None:
    """Fill in what `known` lacks, stage by stage."""
    scale, inside, rolled = change_scale(case), held_out_steps(case), rollout_steps(case)
    if rolled is None:
        sys.exit("the study needs a simulator that can be set to a state")
    near = first(rolled, STEPS)
    far = [logged_steps(case, path.stem, other_rows(case, path, TRANSFER_ROWS)) for path in others]
    subsets = 2 if smoke else 10
    stages: dict[str, Callable[[], Any]] = {
        "median": lambda: dict(zip(names(MEMBERS), medians(inside).T.tolist(), strict=True)),
        "agreement": lambda: {steps.name: judge(steps, scale, 20 if smoke else 200) for steps in (near, inside, *far)},
        "by_depth": lambda: by_depth(rolled, scale, inside),
        "by_horizon": lambda: {str(h): judge(first(rolled, h), scale, 20 if smoke else 200) for h in HORIZONS},
        "out_of_data": lambda: out_of_data(case, inside, [near, *far], rows=1000 if smoke else 20_000),
        "members": lambda: {
            "counts": list(COUNTS),
            **{steps.name: effect_of_members(case, steps, scale, COUNTS, subsets) for steps in (near, inside)},
        },
    }
    for number, (name, stage) in enumerate(stages.items(), start=1):
        began = time.monotonic()
        if name not in known:
            known[name] = stage()
            save()
        case.console.print(f"{number}/{len(stages)} {name}: {time.monotonic() - began:.0f} s")


def with_nan(value: Any) -> Any:
    """What JSON calls null, where too few rows were left to say, is not a number."""
    if isinstance(value, dict):
        return {key: with_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_nan(inner) for inner in value]
    return np.nan if value is None else value


# -- table and figure --------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [f"{found['dataset']}, seeds {found['seeds']}, {MEMBERS} members", ""]

    def heading(title: str, columns: Sequence[str]) -> None:
        lines.extend([f"**{title}**", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"])

    for name, judged in found["agreement"].items():
        heading(f"{name} ({sum(judged['rows']):,} steps)", ("penalty", *HEADINGS, "Spearman minus max_aleatoric's"))
        for heuristic, cells in agreement_rows(judged).items():
            ahead = judged["mean"][heuristic]["spearman"]["over_reference"]
            lines.append(f"| {' | '.join([heuristic, *cells])} | [{ahead['low']:+.3f}, {ahead['high']:+.3f}] |")
        lines.append("")
    heuristics = list(found["median"])
    heading("Spearman with the error of the mean over the first h steps", ("penalty", *(f"h={h}" for h in HORIZONS)))
    for heuristic in heuristics:
        cells = [f"{found['by_horizon'][str(h)]['mean'][heuristic]['spearman']['value']:.3f}" for h in HORIZONS]
        lines.append(f"| {' | '.join([heuristic, *cells])} |")
    lines.append("")
    for name, far in found["out_of_data"].items():
        if name == "threshold":
            continue
        title = f"Far from the data: {name} ({np.mean(far['share']):.1%} of it is), among held-out rows"
        heading(title, ("penalty", "AUROC, far", "average precision", "AUROC, the set"))
        for heuristic in heuristics:
            cells = [spread(far[heuristic][key]) for key in ("auroc", "average_precision", "auroc_set")]
            lines.append(f"| {' | '.join([heuristic, *cells])} |")
        lines.append("")
    counts = found["members"]["counts"]
    for name, rows in found["members"].items():
        if name == "counts":
            continue
        for key, title in (("spearman", "Spearman"), ("size", "median penalty, over that of all members")):
            heading(f"{title} with N of {MEMBERS} members, {name}", ("penalty", *(f"N={count}" for count in counts)))
            for heuristic in heuristics:
                lines.append(f"| {heuristic} | {' | '.join(f'{value:.3f}' for value in rows[heuristic][key])} |")
            lines.append("")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, least and most."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw(found: dict[str, Any], path: Path) -> None:
    """The figure: ranks, extremes, members, depth."""
    figure = Figure(figsize=(14.5, 8.2), layout="constrained")
    panels: Any = figure.subplots(2, 3)
    draw_ranks(panels[0, 0], found["agreement"])
    draw_ranks(panels[0, 1], found["agreement"], "auroc")
    panels[0, 1].set_xlabel("AUROC for the worst tenth of errors")
    panels[0, 1].get_legend().remove()
    counts, rolled = found["members"]["counts"], found["members"]["steps of the policy"]
    for colour, heuristic in zip(COLOURS, found["median"], strict=False):
        panels[0, 2].plot(counts, rolled[heuristic]["spearman"], "o-", color=colour, markersize=3, linewidth=1.4)
        panels[1, 2].plot(counts, rolled[heuristic]["size"], "o-", color=colour, markersize=3, linewidth=1.4)
    panels[0, 2].set_ylabel("Spearman, steps of the policy")
    panels[1, 2].set_ylabel(f"median penalty / that of {MEMBERS} members")
    panels[1, 2].set_yscale("log")
    for axes in panels[:, 2]:
        axes.set_xlabel("members N")
        axes.set_xticks(counts)
    draw_depth(panels[1, 0], panels[1, 1], found["by_depth"])
    figure.suptitle(f"{found['dataset']}, seeds {found['seeds']}", fontsize=10)
    save_figure(tidy(figure), path, dpi=110)


def check_asked(given: argparse.Namespace) -> None:
    """What makes the study in a folder this one; kept there before the training begins.

    Raises:
        SystemExit: a dataset is not there, two would have one name, or the folder holds a study of something else.
    """
    for path in (given.dataset, *given.others):
        if not path.exists():
            sys.exit(f"{path}: there is no such file")
    names = [path.stem for path in given.others]
    if len(set(names)) < len(names):
        sys.exit(f"other datasets are named by their files, and two are called the same: {', '.join(names)}")
    asked = {"dataset": str(given.dataset.resolve()), "seeds": given.seeds, "set": given.set, "smoke": given.smoke}
    path = given.folder / "asked.json"
    if path.exists():
        known = read_json(path)
        changed = [
            f"{name}: {known.get(name)}, now {value}" for name, value in asked.items() if known.get(name) != value
        ]
        if changed:
            sys.exit(f"{given.folder} holds a study of something else ({'; '.join(changed)}); give another FOLDER")
    elif (given.folder / "run").exists():
        sys.exit(f"{given.folder} holds a run and no asked.json; give another FOLDER")
    given.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("others", type=Path, nargs="*", metavar="OTHER_DATASET")
    parser.add_argument("--seeds", type=int, default=3, help="fits side by side: 0, 1, ...")
    parser.add_argument("--label", help="of the dataset, in table and figure; default: its file's name and environment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the training run")
    parser.add_argument("--smoke", action="store_true", default=bool(os.environ.get("SMOKE")), help="does it run?")
    given = parser.parse_intermixed_args(words)
    check_asked(given)
    began, busy = time.monotonic(), time.process_time()
    run = given.folder / "run"
    status = train(given.dataset, run, given.seeds, [*(SMOKE if given.smoke else FULL), *given.set])
    if status:
        if not (run / "meta.json").exists():  # refused before it began: other words may come
            (given.folder / "asked.json").unlink()
        return status
    case = open_case(run, (), "cpu", Console(soft_wrap=True, highlight=False))
    path = given.folder / "uncertainty.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    others = [str(other) for other in given.others]
    if found.get("others") != others:  # of other questions
        found = {"seeds": list(case.seeds), "others": others}
    found["dataset"] = given.label or f"{given.dataset.stem} ({case.problem.task.env})"
    study(case, given.others, found, lambda: write_json(path, found), given.smoke)
    write_json(path, found)
    found = with_nan(read_json(path))
    text = "\n".join(table(found))
    (given.folder / "uncertainty.md").write_text(text)
    print(text)
    draw(found, given.folder / "uncertainty.png")
    print(f"{time.monotonic() - began:.0f} s, {time.process_time() - busy:.0f} of them of CPU; figure: "
          f"{given.folder / 'uncertainty.png'}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
