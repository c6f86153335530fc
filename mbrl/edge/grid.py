"""A grid on which the edge of reach can be counted: tables instead of networks, no model error at all.

Cells are the integer positions of [-12, 12]^2; the five actions are to stay and to move by one, clipped at the border.
The reward is 1 in the cell (2, 2), of the cell before the move, and the discount 0.95. Lanes start uniformly in the box
|x|, |y| <= 1 and have k steps. With d(s) the number of moves from the box to s, a cell can be the first of a step if
d < k; the cells with d = k are the ring, the edge of reach: they are bootstrapped from and never updated. So their
initial values stay: here random numbers as large as values can be, N(0, 20^2).

Each of 400 rounds imagines 200 lanes, each action greedy for min_i Q_i or, with probability 0.2, uniform; then sweeps
five times over what was met, with step size 0.5 and the target r + 0.95 max_a min_i Q_i(s', a).

A patch is an oracle's: where s' is one of the given cells, that maximum is replaced by the true one. Patching the ring
is the experiment (OraclePatch of Sims et al. 2024, arXiv 2402.12527), patching as many cells within reach its control.
More than two tables are RAVL without its diversity term, which has no meaning without gradients. The reduction to a
grid is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.edge.measure import auroc
from mbrl.nets import generator, rand, randn

HALF = 12
WIDTH = 2 * HALF + 1
CELLS = WIDTH * WIDTH
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
GOAL = (2, 2)
DISCOUNT = 0.95
BOUND = 1.0 / (1.0 - DISCOUNT)
ROUNDS, LANES, SWEEPS = 400, 200, 5
STEP_SIZE, RANDOM = 0.5, 0.2
HORIZON = 40


@dataclass(frozen=True)
class Grid:
    """The grid as tables: cells are numbered (x + 12) * 25 + (y + 12).

    Attributes:
        following: cell after each action, (CELLS, 5).
        reward: of the cell before the move, (CELLS).
        distance: d, moves from the start box, (CELLS).
        starts: cells of the start box, (9).
        value: the true V*, (CELLS).
    """

    following: Tensor
    reward: Tensor
    distance: Tensor
    starts: Tensor
    value: Tensor

    def ring(self, length: int) -> Tensor:
        """Cells at the edge of reach of lanes of `length` steps: (CELLS) bool."""
        return self.distance == length

    def within(self, length: int) -> Tensor:
        """Cells within reach: (CELLS) bool."""
        return self.distance < length


def make_grid() -> Grid:
    """The tables, and V* by value iteration to a change below 1e-10."""
    axis = torch.arange(-HALF, HALF + 1)
    x, y = (a.flatten() for a in torch.meshgrid(axis, axis, indexing="ij"))
    columns = [number((x + dx).clamp(-HALF, HALF), (y + dy).clamp(-HALF, HALF)) for dx, dy in MOVES]
    following = torch.stack(columns, -1)
    reward = ((x == GOAL[0]) & (y == GOAL[1])).double()
    away = (x.abs() - 1).clamp(min=0) + (y.abs() - 1).clamp(min=0)
    value, change = torch.zeros(CELLS, dtype=torch.float64), 1.0
    while change > 1e-10:
        better = reward + DISCOUNT * value[following].amax(-1)
        change, value = float((better - value).abs().max()), better
    return Grid(following, reward, away, torch.nonzero(away == 0).squeeze(-1), value)


def number(x: Tensor, y: Tensor) -> Tensor:
    """Numbers of cells from their coordinates."""
    return (x + HALF) * WIDTH + (y + HALF)


@dataclass(frozen=True)
class Learnt:
    """What L lanes of the experiment (seeds, variants) have learnt, each with N tables.

    Attributes:
        tables: Q, (L, N, CELLS, 5).
        initial: Q before the first round.
        updated: which entries were ever updated, (L, CELLS, 5) bool; all N tables are updated together.
        patched: share of targets whose bootstrap value was replaced, (L).
    """

    tables: Tensor
    initial: Tensor
    updated: Tensor
    patched: Tensor

    def value(self) -> Tensor:
        """max_a min_i Q_i: (L, CELLS)."""
        return self.tables.amin(1).amax(-1)

    def penalty(self) -> Tensor:
        """mean_i Q_i - min_i Q_i, the penalty that a minimum amounts to: (L, CELLS, 5)."""
        return self.tables.mean(1) - self.tables.amin(1)

    def greedy_penalty(self) -> Tensor:
        """The penalty of the greedy action: (L, CELLS)."""
        best = self.tables.amin(1).argmax(-1, keepdim=True)
        return self.penalty().gather(-1, best).squeeze(-1)


def learn(
    grid: Grid, length: int, critics: int, seeds: Sequence[int], patch: Tensor | None = None, rounds: int = ROUNDS
) -> Learnt:
    """Learn N = `critics` tables for every entry of `seeds`, all at once; a seed may stand there more than once.

    A seed's numbers depend on it alone: variants with one seed begin with the same tables and see the same noise.

    Args:
        grid: the grid.
        length: k, steps of a lane.
        critics: N.
        seeds: (L) numbers.
        patch: cells whose value is told, (L, CELLS) bool; None for none.
        rounds: of imagining and sweeping.
    """
    count = len(seeds)
    draws = [generator(seed, "edge grid", "noise") for seed in seeds]
    # The first tables of a seed are the same for every N: each table has a stream of its own.
    tables = torch.stack(
        [randn((CELLS, 5), [generator(seed, "edge grid", "table", i) for seed in seeds]) for i in range(critics)], 1
    ).double()
    initial = tables = BOUND * tables
    told = torch.zeros((count, CELLS), dtype=torch.bool) if patch is None else patch
    updated = torch.zeros((count, CELLS, 5), dtype=torch.bool)
    patched = torch.zeros(count, dtype=torch.float64)
    for _ in range(rounds):
        greedy = tables.amin(1).argmax(-1)  # (L, CELLS)
        uniform = rand((2 * length + 1, LANES), draws)
        cell = grid.starts[(uniform[:, -1] * len(grid.starts)).long()]  # (L, LANES)
        met = torch.zeros((count, CELLS * 5), dtype=torch.bool)
        for t in range(length):
            lottery = uniform[:, 2 * t]  # below 0.2 the action is uniform
            action = torch.where(lottery < RANDOM, (uniform[:, 2 * t + 1] * 5).long(), greedy.gather(-1, cell))
            met.scatter_(-1, cell * 5 + action, True)
            cell = grid.following[cell, action]
            patched += told.gather(-1, cell).double().mean(-1) / (length * rounds)
        visited = met.view(count, 1, CELLS, 5)
        # The target of an entry is the same however often it was met, so that a sweep over rows, each with the values
        # before the sweep, is one masked step.
        for _ in range(SWEEPS):
            value = torch.where(told, grid.value, tables.amin(1).amax(-1))
            target = (grid.reward.unsqueeze(-1) + DISCOUNT * value[:, grid.following]).unsqueeze(1)
            tables = torch.where(visited, tables + STEP_SIZE * (target - tables), tables)
        updated |= visited.squeeze(1)
    return Learnt(tables, initial, updated, patched)


def control_cells(grid: Grid, length: int, seeds: Sequence[int]) -> Tensor:
    """For every seed as many random cells within reach as the ring has: (L, CELLS) bool."""
    within = torch.nonzero(grid.within(length)).squeeze(-1)
    size = int(grid.ring(length).sum())
    chosen = torch.zeros((len(seeds), CELLS), dtype=torch.bool)
    for row, seed in zip(chosen, seeds, strict=True):
        row[within[torch.randperm(len(within), generator=generator(seed, "edge grid", "control"))[:size]]] = True
    return chosen


def returns(grid: Grid, learnt: Learnt) -> Tensor:
    """Undiscounted return of 40 true steps greedy for min_i Q_i, mean over the 9 starts: (L). The optimum is 36."""
    greedy = learnt.tables.amin(1).argmax(-1)
    cell = grid.starts.expand(len(greedy), -1)
    total = torch.zeros(len(greedy), dtype=torch.float64)
    for _ in range(HORIZON):
        total += grid.reward[cell].mean(-1)
        cell = grid.following[cell, greedy.gather(-1, cell)]
    return total


def detection(grid: Grid, length: int, learnt: Learnt) -> Tensor:
    """AUROC of the greedy action's penalty, ring against updated cells within reach: (L); NaN for a single table."""
    penalty = learnt.greedy_penalty()
    if learnt.tables.shape[1] == 1:
        return torch.full((len(penalty),), torch.nan, dtype=torch.float64)
    ring, known = grid.ring(length), learnt.updated.any(-1) & grid.within(length)
    return torch.stack([auroc(row[ring], row[seen]) for row, seen in zip(penalty, known, strict=True)])


VARIANTS = ("base N=1", "base N=2", "OraclePatch N=2", "control patch N=2", "RAVL N=5", "RAVL N=10")


def experiment(
    grid: Grid, length: int, seeds: Sequence[int] = (0, 1, 2, 3, 4), rounds: int = ROUNDS
) -> dict[str, Learnt]:
    """All `VARIANTS` for lanes of `length` steps; those with as many tables go through side by side."""
    count = len(seeds)
    none = torch.zeros((count, CELLS), dtype=torch.bool)
    ring = grid.ring(length).expand(count, -1)
    twice = learn(grid, length, 2, [*seeds] * 3, torch.cat([none, ring, control_cells(grid, length, seeds)]), rounds)
    rows = [slice(i * count, (i + 1) * count) for i in range(3)]
    two = [Learnt(twice.tables[r], twice.initial[r], twice.updated[r], twice.patched[r]) for r in rows]
    others = {n: learn(grid, length, n, seeds, rounds=rounds) for n in (1, 5, 10)}
    return dict(zip(VARIANTS, [others[1], *two, others[5], others[10]], strict=True))
