"""How long a dataset takes to load and how much memory that needs, per format.

    python bench/loading.py [--rows 1000000] [--out bench/results/loading.md]

Writes a synthetic log of Hopper's size to a temporary folder in each format, loads each in a process of its own, and
prints a table (Linux only). Files are in the page cache when they are read, so the figures are those of the code, not
of the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

OBS, ACTION, EPISODE = 11, 3, 500

# VmHWM and not ru_maxrss: the latter keeps the parent's peak over fork and exec.
CHILD = """
import json, re, sys, time
from mbrl.data.sources import load_dataset

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

before, start = peak(), time.perf_counter()
rows = len(load_dataset(sys.argv[1]).transitions.obs)
seconds = time.perf_counter() - start
print(json.dumps({"rows": rows, "seconds": seconds, "import_mb": before, "peak_mb": peak()}))
"""


def log(rows: int) -> dict[str, np.ndarray[Any, Any]]:
    source = np.random.default_rng(0)
    walk = source.standard_normal((rows // EPISODE, EPISODE + 1, OBS), dtype=np.float32)
    last = np.arange(rows) % EPISODE == EPISODE - 1
    return {
        "observations": walk[:, :-1].reshape(rows, OBS),
        "next_observations": walk[:, 1:].reshape(rows, OBS),
        "actions": source.uniform(-1, 1, (rows, ACTION)).astype(np.float32),
        "rewards": source.standard_normal(rows, dtype=np.float32),
        "terminals": last & (np.arange(rows) // EPISODE % 2 == 0),
        "timeouts": last & (np.arange(rows) // EPISODE % 2 == 1),
    }


def write(folder: Path, rows: int) -> dict[str, str]:
    """Label -> dataset string."""
    arrays = log(rows)
    np.savez(folder / "plain.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "float64.npz", **{key: values.astype(np.float64) for key, values in arrays.items()})
    with h5py.File(folder / "gzip.hdf5", "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    buffers = [
        EpisodeBuffer(
            observations=np.concatenate(
                [arrays["observations"][here], arrays["next_observations"][here.stop - 1 : here.stop]]
            ),
            actions=arrays["actions"][here],
            rewards=arrays["rewards"][here],
            terminations=arrays["terminals"][here],
            truncations=arrays["timeouts"][here],
        )
        for here in (slice(start, start + EPISODE) for start in range(0, rows, EPISODE))
    ]
    minari.create_dataset_from_buffers(
        "bench-v0",
        buffers,
        observation_space=Box(-np.inf, np.inf, (OBS,), np.float32),
        action_space=Box(-1, 1, (ACTION,), np.float32),
    )
    return {
        ".npz, float32": str(folder / "plain.npz"),
        ".npz, float64": str(folder / "float64.npz"),
        ".hdf5, float32, gzip": str(folder / "gzip.hdf5"),
        f"Minari, HDF5, {rows // EPISODE:,} episodes": "minari:bench-v0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    rows = arguments.rows // EPISODE * EPISODE
    megabytes = rows * (4 * (2 * OBS + ACTION + 1) + 2) / 1e6
    lines = [
        "# Loading a dataset",
        "",
        f"{rows:,} transitions of Hopper's size (11 observations, 3 actions: {megabytes:.0f} MB as loaded), checks, "
        "content hash and action scaling included; each format in a process of its own, files in the page cache.",
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores. Peak memory includes what "
        "importing torch needs. MB/s counts loaded bytes, not stored ones.",
        "",
        "| format | seconds | MB/s | peak memory | of it imports |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for label, spec in write(Path(folder), rows).items():
            child = subprocess.run([sys.executable, "-c", CHILD, spec], check=True, capture_output=True, text=True)
            result = json.loads(child.stdout)
            assert result["rows"] == rows
            lines.append(
                f"| {label} | {result['seconds']:.2f} | {megabytes / result['seconds']:.0f} | "
                f"{result['peak_mb']:.0f} MB | {result['import_mb']:.0f} MB |"
            )
    lines += ["", f"Command: `python bench/loading.py --rows {rows}`", ""]
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
