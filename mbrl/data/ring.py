"""One table of packed rows: the dataset, shared by all seeds, and for each seed the steps that it has made itself and a
ring of imagined rows.

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
    """Real rows (N) and, for each of S seeds, its own real rows and a ring of `capacity` imagined rows.

    Args:
        data: the dataset, rows (N, .); none (N = 0) where all rows are the environment's, written as they come.
        capacity: imagined rows kept per seed; the oldest are overwritten.
        seeds: S.
        device: where the table lives.
        steps: real rows that every seed may `append` to the dataset's (online training); 0 for a fixed dataset.
    """

    def __init__(
        self, data: Transition, capacity: int, seeds: int, device: torch.device | str = "cpu", *, steps: int = 0
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the ring needs room for at least one row, capacity={capacity}")
        self.obs_dim, self.action_dim = data.obs.shape[-1], data.action.shape[-1]
        self.used = used_width(self.obs_dim, self.action_dim)
        self.width = row_width(self.obs_dim, self.action_dim)
        self.real_rows, self.capacity, self.seeds = data.obs.shape[0], capacity, seeds
        self.steps, self.appended = steps, 0
        self.rows = torch.zeros((self.real_rows + seeds * (steps + capacity + 1), self.width), device=device)
        self.pack(data, self.rows[: self.real_rows])
        self.written = torch.zeros(seeds, dtype=torch.long, device=device)  # rows kept so far, per seed
        number = torch.arange(seeds, device=device).unsqueeze(-1)  # (S, 1)
        self._own = self.real_rows + number * steps  # where a seed's own real rows begin
        self._first = self.real_rows + seeds * steps + number * (capacity + 1)  # where a seed's ring begins
        # Tensors where they change, so that a captured update sees them change.
        self._real: int | Tensor = torch.tensor(self.real_rows, device=device) if steps else self.real_rows
        self._limit: int | Tensor = torch.tensor(capacity, device=device) if steps else capacity

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
        slot = (self.written.unsqueeze(-1) + keep.cumsum(-1) - 1) % self._limit
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
        if real and not (self.real_rows or self.steps):  # nothing that grows: a compiled update would be compiled anew
            raise ValueError(f"{real} real rows asked for, but the table has none")
        from_data = self._real_index(uniform)
        filled = self.written.clamp(max=self._limit).unsqueeze(-1)
        from_ring = self._first + (uniform * filled).long()
        index = torch.where(filled > 0, from_ring, from_data)
        index[:, :real] = from_data[:, :real]
        rows = self.rows.index_select(0, index.flatten()).view(*index.shape, -1)
        return Batch(self.unpack(rows), real)

    def starts(self, uniform: Tensor) -> Tensor:
        """Observations (S, N, O) of real rows picked by uniform (S, N), where imagination begins."""
        index = self._real_index(uniform)
        return self.rows[:, : self.obs_dim].index_select(0, index.flatten()).view(*index.shape, -1)

    def _real_index(self, uniform: Tensor) -> Tensor:
        """Where the real rows stand that uniform (S, N) picks: the dataset's, and then the seed's own."""
        index = (uniform * self._real).long()
        return torch.where(index < self.real_rows, index, self._own + index - self.real_rows) if self.steps else index

    def append(self, transition: Transition) -> None:
        """Add a real row (S, 1, .) to every seed's own.

        Raises:
            ValueError: there is no more room.
        """
        if self.appended == self.steps:
            raise ValueError(f"the table has room for {self.steps} own real rows a seed, and all are used")
        assert isinstance(self._real, Tensor)
        row = self.rows.new_zeros(self.seeds, 1, self.width)
        self.pack(transition, row)
        self.rows.index_copy_(0, (self._own + self.appended).flatten(), row[:, 0])
        self.appended += 1
        self._real.add_(1)

    def own(self) -> Transition:
        """Every seed's own real rows (S, appended, .), oldest first."""
        return self.unpack(self._own_rows()[:, : self.appended])

    def real(self) -> Transition:
        """All real rows of every seed (S, N + appended, .): the dataset's, and then its own."""
        shared = self.rows[: self.real_rows].expand(self.seeds, -1, -1)
        return self.unpack(torch.cat([shared, self._own_rows()[:, : self.appended]], 1))

    def _own_rows(self) -> Tensor:
        begin = self.real_rows
        return self.rows[begin : begin + self.seeds * self.steps].view(self.seeds, self.steps, self.width)

    @property
    def limit(self) -> int:
        """Imagined rows kept per seed, at present."""
        return int(self._limit)

    def resize(self, limit: int) -> None:
        """Keep that many imagined rows per seed from now on, of the `capacity` that there is room for.

        The rows that are there stay: a smaller limit hides the later slots, a larger one is filled up first.
        """
        assert isinstance(self._limit, Tensor)
        if not 1 <= limit <= self.capacity:
            raise ValueError(f"a ring of {limit} rows: there is room for 1 to {self.capacity}")
        self.written.clamp_(max=torch.minimum(self._limit, torch.tensor(limit, device=self.rows.device)))
        self._limit.fill_(limit)

    def imagined(self, seed: int) -> Transition:
        """The filled part of one seed's ring, in slot order."""
        filled = min(int(self.written[seed]), self.limit)
        first = int(self._first[seed, 0])
        return self.unpack(self.rows[first : first + filled])

    def state_dict(self) -> StateDict:
        """The imagined rows that exist, without padding, and own real ones; the dataset is not repeated."""
        filled = self.written.clamp(max=self._limit).tolist()
        starts = self._first.flatten().tolist()
        rows = [self.rows[a : a + n, : self.used].clone() for a, n in zip(starts, filled, strict=True)]
        state: StateDict = {"written": self.written, "rows": rows}
        if self.steps:
            own = self._own_rows()[:, : self.appended, : self.used].clone()
            state |= {"own": own, "limit": self._limit}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; `ValueError` if the rings do not have the saved ones' size."""
        written, rows = state["written"], state["rows"]
        if written.shape != self.written.shape or any(r.shape[-1] != self.used for r in rows):
            raise ValueError("the checkpoint's imagined rows have another number of seeds or other dimensions")
        limit = int(state["limit"]) if self.steps else self.capacity
        if any(r.shape[0] != min(int(n), limit) for r, n in zip(rows, written, strict=True)):
            raise ValueError(f"the checkpoint's ring had another capacity than {limit}")
        if self.steps:
            own = state["own"]
            assert isinstance(self._real, Tensor)
            assert isinstance(self._limit, Tensor)
            if own.shape[1] > self.steps or limit > self.capacity:
                raise ValueError(f"the checkpoint has {own.shape[1]} real rows, more than the {self.steps} of this run")
            self.appended = own.shape[1]
            self._own_rows()[:, : self.appended, : self.used] = own
            self._real.fill_(self.real_rows + self.appended)
            self._limit.fill_(limit)
        self.written.copy_(written)
        for first, saved in zip(self._first.flatten().tolist(), rows, strict=True):
            self.rows[first : first + saved.shape[0], : self.used] = saved
