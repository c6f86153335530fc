"""Real run directories with returns that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl.data.tasks import find_task
from mbrl.rundir import RunDirectory


def make_run(
    path: Path,
    returns: npt.ArrayLike,
    *,
    algo: str = "mopo",
    task: str = "hopper-medium-v2",
    seeds: Sequence[int] = (0,),
    words: Sequence[str] = (),
    composed: dict[str, Any] | None = None,
    status: str = "finished",
    every: int = 100,
    **meta: Any,
) -> Path:
    """A run directory.

    Args:
        path: where.
        returns: (K, seeds, episodes), (K, seeds), or (K,) of a single seed.
        algo: of `meta.json`, and the choice of the group.
        task: a name of the task table, whose references make scores of the returns.
        seeds: as many as `returns` has.
        words: what was given on the command line besides algo, task and seed.
        composed: the configuration.
        status: at the end.
        every: updates between evaluations.
        meta: further fields of `meta.json`, or other values.
    """
    found = find_task(task)
    fields = {
        "algo": algo,
        "task": task,
        "label": found.label,
        "dataset": found.dataset,
        "dataset_hash": f"hash of {found.dataset}",
        "env": found.env,
        "horizon": found.horizon,
        "behaviour_return_mean": 1000.0,
        "reference": None if found.reference is None else [found.reference.minimum, found.reference.maximum],
        "reference_source": None if found.reference is None else found.reference.source,
    } | meta
    started = fields.pop("started", "2026-01-01T00:00:00+00:00")
    run = RunDirectory.create(path, seeds=list(seeds), **fields)
    values = np.asarray(returns, np.float64)
    values = values.reshape(len(values), len(seeds), values.size // max(len(values) * len(seeds), 1))
    low, high = fields["reference"] or (0.0, 0.0)
    for index, row in enumerate(values):
        scores = None if fields["reference"] is None else 100 * (row - low) / (high - low)
        run.add_returns(every * (index + 1), row, scores)
    run.write_meta(status=status, started=started)
    hydra = path / ".hydra"
    hydra.mkdir()
    choices = {"algo": algo, "dynamics": "ensemble"} | {
        word.split("=")[0]: word.split("=")[1] for word in words if word.split("=")[0] in ("dynamics", "penalty")
    }
    given = [f"algo={algo}", f"task={task}", f"seed={seeds[0]}", *words]
    (hydra / "overrides.yaml").write_text(json.dumps(given))
    (hydra / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    config = {"updates": every * max(len(values), 1), **(composed or {})}
    (hydra / "config.yaml").write_text(json.dumps(config))
    (path / "config.yaml").write_text(json.dumps(config))
    return path
