"""What a run will need in memory, said before it begins, and how many stacked seeds would fit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from mbrl.data.ring import row_width

ENVIRONMENTS = 20 * 2**20  # a seed's evaluation environments, its networks and their optimisers
PROCESS = 400 * 2**20  # Python, torch and the libraries around them, measured by bench/memory.py


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device of the run.

    Attributes:
        shared: the process, the dataset and its packed copy.
        per_seed: a seed's ring, the row orders of its fit, and its share of the activations.
        seeds: how many are asked for.
        available: free on the device now; None where nobody can tell.
    """

    shared: int
    per_seed: int
    seeds: int
    available: int | None

    @property
    def needed(self) -> int:
        """All together."""
        return self.shared + self.seeds * self.per_seed

    @property
    def fitting(self) -> int | None:
        """How many seeds would fit; None where nobody can tell."""
        return None if self.available is None else max((self.available - self.shared) // self.per_seed, 0)

    def __str__(self) -> str:
        """One line for the person who watches."""
        line = f"memory: about {self.needed / 2**30:.1f} GiB, {self.per_seed / 2**30:.2f} of it for each seed"
        if self.available is not None:
            line += f"; {self.available / 2**30:.1f} GiB are free: {self.fitting} seeds would fit"
        return line

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            MemoryError: says what would make it smaller.
        """
        if self.available is not None and self.needed > self.available:
            raise MemoryError(
                f"{self}; lower seeds=, or make the ring smaller by rollout.retain=, rollout.lanes= or rollout.length="
            )


def plan_memory(
    *,
    rows: int,
    obs_dim: int,
    action_dim: int,
    capacity: int,
    members: int,
    hidden: int,
    lanes: int,
    seeds: int,
    device: torch.device,
) -> MemoryPlan:
    """Estimate a run's memory.

    Args:
        rows: of the dataset.
        obs_dim: O.
        action_dim: A.
        capacity: imagined rows kept per seed.
        members: of the dynamics model.
        hidden: its widest layer.
        lanes: imagined at once, per seed.
        seeds: S.
        device: of the run.
    """
    number = torch.float32.itemsize
    loaded = rows * (2 * obs_dim + action_dim + 1) * number
    fit_table = rows * (2 * obs_dim + action_dim + 1) * number
    width = row_width(obs_dim, action_dim)
    # An epoch's row orders are 32-bit numbers, drawn and shuffled; two layers' activations live at once.
    orders = 2 * members * rows * torch.int32.itemsize
    activations = 2 * members * lanes * hidden * number + ENVIRONMENTS
    shared = (PROCESS if device.type == "cpu" else 0) + loaded + fit_table + rows * width * number
    return MemoryPlan(shared, capacity * width * number + orders + activations, seeds, available_memory(device))


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache()
    except (AttributeError, ValueError, OSError):
        return None


def _page_cache() -> int:
    """Bytes that Linux would give up for a program that asks."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            numbers = dict(line.split(":") for line in file)
        return (int(numbers["MemAvailable"].split()[0]) - int(numbers["MemFree"].split()[0])) * 1024
    except (OSError, KeyError, ValueError):
        return 0
