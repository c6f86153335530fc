"""One table of packed rows: the dataset, shared by all seeds, and a ring of imagined rows for each seed.

A row is `obs | action | next_obs | reward | terminal | real`, padded to whole cache lines, so that a minibatch of real
and imagined rows is one gather. Shapes are static and nothing syncs with the host: a ring has one waste row, where rows
that must not be kept are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mbrl.types import Batch, StateDict, Transition

LANE = 16  # floats in a 64-byte cache line


def used_width(obs_dim: int, action_dim: int) -> int:
    """Floats of a row that mean something."""
    return 2 * obs_dim + action_dim + 3


def row_width(obs_dim: int, action_dim: int) -> int:
    """Floats of a row with its padding; rows shorter than a cache line are not padded."""
    used = used_width(obs_dim, action_dim)
    return -(-used // LANE) * LANE if used > LANE else used


class ReplayTable:
    """Real rows (N) and, for each of S seeds, a ring of `capacity` imagined rows.

    Args:
        data: the dataset, rows (N, .); none (N = 0) where all rows are the environment's, written as they come.
        capacity: imagined rows kept per seed; the oldest are overwritten.
        seeds: S.
        device: where the table lives.
    """

    def __init__(self, data: Transition, capacity: int, seeds: int, device: torch.device | str = "cpu") -> None:
        if capacity < 1:
            raise ValueError(f"the ring needs room for at least one row, capacity={capacity}")
        self.obs_dim, self.action_dim = data.obs.shape[-1], data.action.shape[-1]
        self.used = used_width(self.obs_dim, self.action_dim)
        self.width = row_width(self.obs_dim, self.action_dim)
        self.real_rows, self.capacity, self.seeds = data.obs.shape[0], capacity, seeds
        self.rows = torch.zeros((self.real_rows + seeds * (capacity + 1), self.width), device=device)
        self.pack(data, self.rows[: self.real_rows])
        self.written = torch.zeros(seeds, dtype=torch.long, device=device)  # rows kept so far, per seed
        first = self.real_rows + torch.arange(seeds, device=device) * (capacity + 1)
        self._first = first.unsqueeze(-1)  # (S, 1) where a seed's ring begins

    def pack(self, transition: Transition, out: Tensor) -> None:
        """Write a transition (*, B, .) into rows (*, B, width)."""
        o, a = self.obs_dim, self.action_dim
        out[..., :o] = transition.obs
        out[..., o : o + a] = transition.action
        out[..., o + a : 2 * o + a] = transition.next_obs
        out[..., 2 * o + a] = transition.reward
        out[..., 2 * o + a + 1] = transition.terminal
        out[..., 2 * o + a + 2] = transition.real

    def unpack(self, rows: Tensor) -> Transition:
        """Views of packed rows (*, B, width)."""
        o, a = self.obs_dim, self.action_dim
        return Transition(
            obs=rows[..., :o],
            action=rows[..., o : o + a],
            next_obs=rows[..., o + a : 2 * o + a],
            reward=rows[..., 2 * o + a],
            terminal=rows[..., 2 * o + a + 1] > 0.5,
            real=rows[..., 2 * o + a + 2] > 0.5,
        )

    def write(self, rows: Tensor, keep: Tensor) -> None:
        """Append the packed rows (S, M, width) for which keep (S, M) holds, in order, to each seed's ring."""
        if rows.shape[1] > self.capacity:
            raise ValueError(f"{rows.shape[1]} rows at once do not fit a ring of {self.capacity}")
        slot = (self.written.unsqueeze(-1) + keep.cumsum(-1) - 1) % self.capacity
        slot = torch.where(keep, slot, self.capacity)  # the waste row
        self.rows.index_copy_(0, (self._first + slot).flatten(), rows.flatten(0, 1))
        self.written += keep.sum(-1)

    def sample(self, uniform: Tensor, real: int) -> Batch:
        """Rows picked uniformly: the first `real` of a seed's batch from the dataset, the others from its ring.

        Args:
            uniform: (S, B) float64 in [0, 1), one per row.
            real: number of real rows. While a ring is empty its rows come from the dataset too.

        Raises:
            ValueError: rows of the dataset are asked for and there are none.
        """
        if real and not self.real_rows:
            raise ValueError(f"{real} rows of the dataset asked for, but the table was made without one")
        from_data = (uniform * self.real_rows).long()
        filled = self.written.clamp(max=self.capacity).unsqueeze(-1)
        from_ring = self._first + (uniform * filled).long()
        index = torch.where(filled > 0, from_ring, from_data)
        index[:, :real] = from_data[:, :real]
        rows = self.rows.index_select(0, index.flatten()).view(*index.shape, -1)
        return Batch(self.unpack(rows), real)

    def starts(self, uniform: Tensor) -> Tensor:
        """Observations (S, N, O) of real rows picked by uniform (S, N), where imagination begins."""
        index = (uniform * self.real_rows).long()
        return self.rows[:, : self.obs_dim].index_select(0, index.flatten()).view(*index.shape, -1)

    def imagined(self, seed: int) -> Transition:
        """The filled part of one seed's ring, in slot order."""
        filled = min(int(self.written[seed]), self.capacity)
        first = int(self._first[seed, 0])
        return self.unpack(self.rows[first : first + filled])

    def state_dict(self) -> StateDict:
        """The imagined rows that exist, without padding; the dataset is not repeated in every checkpoint."""
        filled = self.written.clamp(max=self.capacity).tolist()
        starts = self._first.flatten().tolist()
        rows = [self.rows[a : a + n, : self.used].clone() for a, n in zip(starts, filled, strict=True)]
        return {"written": self.written, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; `ValueError` if the rings do not have the saved ones' size."""
        written, rows = state["written"], state["rows"]
        if written.shape != self.written.shape or any(r.shape[-1] != self.used for r in rows):
            raise ValueError("the checkpoint's imagined rows have another number of seeds or other dimensions")
        if any(r.shape[0] != min(int(n), self.capacity) for r, n in zip(rows, written, strict=True)):
            raise ValueError(f"the checkpoint's ring had another capacity than {self.capacity}")
        self.written.copy_(written)
        for first, saved in zip(self._first.flatten().tolist(), rows, strict=True):
            self.rows[first : first + saved.shape[0], : self.used] = saved
