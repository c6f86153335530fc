"""How much memory a dataset of a million Hopper-sized transitions needs, from the file to a trained policy.

    python bench/memory.py [--rows 1000000] [--out bench/results/memory.md]

Writes a synthetic HDF5 log to a temporary folder, runs `mbrl inspect` and `mbrl train` on it as a user would (published
network sizes and rollouts; the fit is cut to one epoch, the training to 2,000 updates, and the rollouts come often
enough to fill the ring), and prints a table of resident peaks (Linux only). Exits with 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OBS, ACTION, EPISODE = 11, 3, 1000
LIMIT_MB = 3000
SETTINGS = [
    "env=Hopper-v5",
    "dynamics.max_epochs=1",
    "updates=2000",
    "rollout.every=400",
    "eval.every=1000",
    "log_every=400",
]


def write_log(path: Path, rows: int) -> None:
    """Smooth stable dynamics around Hopper's healthy states, so that imagined lanes live and the ring fills."""
    source = np.random.default_rng(0)
    mixing = source.standard_normal((OBS + ACTION, OBS)) / np.sqrt(OBS + ACTION)
    centre = np.concatenate([[1.25], np.zeros(OBS - 1)])
    spread = np.concatenate([[0.1, 0.03], np.ones(OBS - 2)])
    episodes = rows // EPISODE
    state = source.standard_normal((episodes, OBS)) * 0.1
    columns: dict[str, list[np.ndarray[Any, Any]]] = {
        name: [] for name in ("observations", "actions", "next_observations", "rewards")
    }
    for _ in range(EPISODE):
        action = source.uniform(-1, 1, (episodes, ACTION))
        following = 0.95 * state + 0.1 * np.tanh(np.concatenate([state, action], 1) @ mixing)
        values = (centre + spread * state, action, centre + spread * following, following[:, 5] + 1.0)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value.astype(np.float32))
        state = following
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            stacked = np.stack(column, 1)
            file[name] = stacked.reshape(rows, *stacked.shape[2:])
        file["terminals"] = np.zeros(rows, np.bool_)
        file["timeouts"] = np.arange(rows) % EPISODE == EPISODE - 1


@dataclass
class Peaks:
    """Resident high-water marks of a process in MB: until `reached()` held, and until its end."""

    until: float
    whole: float
    seconds: float


def watch(words: list[str], folder: Path, reached: Callable[[], bool] = lambda: False) -> Peaks:
    """Run `mbrl` with `words` to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "MBRL_STORE": str(folder / "store"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mbrl.cli", *words], cwd=folder, env=environment)
    until = whole = 0.0
    while process.poll() is None:
        # VmHWM and not ru_maxrss: the latter keeps the parent's peak over fork and exec.
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        whole = int(found[1]) / 1024 if found else whole  # a process that has just ended has no memory any more
        if not reached():
            until = whole
        time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, ["mbrl", *words])
    return Peaks(until, whole, time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"a multiple of {EPISODE}")
    parser.add_argument("--out", type=Path, default=Path("bench/results/memory.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "log.hdf5"
        write_log(data, arguments.rows)
        size = data.stat().st_size / 2**20
        inspected = watch(["inspect", str(data)], folder)
        run = folder / "run"
        trained = watch(
            ["train", f"dataset={data}", *SETTINGS, f"run_dir={run}"], folder, (run / "dynamics" / "model").exists
        )
        logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        imagined = sum(row.get("rollout/kept", 0.0) for row in logged) * 50_000 * 5
    peak = max(inspected.whole, trained.whole)
    text = f"""\
# Memory

{arguments.rows:,} transitions of Hopper's size (11 observations, 3 actions) in an HDF5 file of {size:.0f} MB; one seed.
Python {platform.python_version()}, {platform.machine()}, CPU, one thread. Resident high-water marks, Python and torch
included. Dynamics: 7 networks of 4 x 200, one epoch. Rollouts: 50,000 lanes of 5 steps, five times, into a ring
of 1,250,000 rows, of which {imagined:,.0f} were filled. 2,000 updates with the published networks, evaluation in
Hopper-v5.

| | peak | seconds |
|---|---|---|
| `mbrl inspect` | {inspected.whole:,.0f} MB | {inspected.seconds:.0f} |
| `mbrl train`, until the model is fitted | {trained.until:,.0f} MB | |
| `mbrl train`, to the end | {trained.whole:,.0f} MB | {trained.seconds:.0f} |

The limit is {LIMIT_MB:,} MB: {"kept" if peak <= LIMIT_MB else "EXCEEDED"}.

Commands: `python bench/memory.py --rows {arguments.rows}`, which runs `mbrl inspect log.hdf5` and
`mbrl train dataset=log.hdf5 {" ".join(SETTINGS)}`.
"""
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    return int(peak > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
