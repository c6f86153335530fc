"""The grid's table. What no random number can change is asserted exactly; the rest is a pattern over five seeds.

The reference numbers come from an earlier run with other random streams, so that single returns are not comparable:
what is compared is who solves the task, how far Q is off, and how many targets a patch touches.
"""

from __future__ import annotations

import pytest
import torch

from mbrl.edge.grid import (
    BOUND,
    CELLS,
    VARIANTS,
    Grid,
    Learnt,
    control_cells,
    detection,
    experiment,
    learn,
    make_grid,
    number,
    returns,
)

LENGTHS = (3, 4, 8)
SEEDS = (0, 1, 2, 3, 4)
SOLVING = ("OraclePatch N=2", "RAVL N=5", "RAVL N=10")


@pytest.fixture(scope="module")
def grid() -> Grid:
    return make_grid()


@pytest.fixture(scope="module")
def table(grid: Grid) -> dict[int, dict[str, Learnt]]:
    return {length: experiment(grid, length, SEEDS) for length in LENGTHS}


def start_value(grid: Grid, learnt: Learnt) -> torch.Tensor:
    return learnt.value()[:, grid.starts].mean(-1)


# -- exact: the grid ---------------------------------------------------------------------------------------------------


def test_moves_are_clipped_at_the_border(grid: Grid) -> None:
    corner, inside = number(torch.tensor(12), torch.tensor(-12)), number(torch.tensor(0), torch.tensor(5))
    assert grid.following[corner].tolist() == [corner, corner, corner - 25, corner + 1, corner]
    assert grid.following[inside].tolist() == [inside, inside + 25, inside - 25, inside + 1, inside - 1]


def test_the_ring_are_the_cells_that_need_all_steps(grid: Grid) -> None:
    # Breadth first from the start box, step by step, instead of the formula.
    reached, cells = torch.zeros(CELLS, dtype=torch.bool), grid.starts
    for length in range(1, 9):
        reached[cells] = True
        cells = grid.following[cells].unique()
        new = torch.zeros(CELLS, dtype=torch.bool)
        new[cells] = True
        assert torch.equal(new & ~reached, grid.ring(length))
        assert torch.equal(reached, grid.within(length))
    assert [int(grid.ring(length).sum()) for length in LENGTHS] == [20, 24, 40]


def test_the_true_value_is_discounted_by_the_way_to_the_goal(grid: Grid) -> None:
    for x, y in ((2, 2), (2, -1), (-12, 12)):
        steps = abs(x - 2) + abs(y - 2)
        cell = number(torch.tensor(x), torch.tensor(y))
        assert float(grid.value[cell]) == pytest.approx(0.95**steps * BOUND, abs=1e-6)
    # The mean of 0.95^(2 - x) over x in {-1, 0, 1}, squared, times 20.
    assert float(grid.value[grid.starts].mean()) == pytest.approx(16.32, abs=0.01)


def test_the_optimum_of_forty_steps_is_36(grid: Grid) -> None:
    best = (grid.reward.unsqueeze(-1) + 0.95 * grid.value[grid.following]).expand(1, 1, -1, -1)
    perfect = Learnt(best, best, torch.ones(1, CELLS, 5, dtype=torch.bool), torch.zeros(1))
    assert returns(grid, perfect).tolist() == [36.0]


# -- exact: who is updated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_no_update_ever_lands_on_the_ring_or_beyond(
    grid: Grid, table: dict[int, dict[str, Learnt]], length: int
) -> None:
    outside = ~grid.within(length)
    for learnt in table[length].values():
        assert not learnt.updated[:, outside].any()
        assert torch.equal(learnt.tables[:, :, outside], learnt.initial[:, :, outside])  # bit for bit
        assert learnt.updated[:, grid.starts].any()


def test_a_seed_learns_alone_as_it_does_beside_others(grid: Grid) -> None:
    together = learn(grid, 3, 2, SEEDS, control_cells(grid, 3, SEEDS), rounds=20)
    alone = learn(grid, 3, 2, [3], control_cells(grid, 3, [3]), rounds=20)
    assert torch.equal(together.tables[3], alone.tables[0])
    assert together.patched[3] == alone.patched[0]


def test_a_sweep_is_that_of_a_plain_loop(grid: Grid) -> None:
    """One round by hand: met entries from the plain definition, then five sweeps with values from before the sweep."""
    ours = learn(grid, 3, 2, [0], rounds=1)
    tables = ours.initial[0].clone()
    met = [tuple(row) for row in torch.nonzero(ours.updated[0]).tolist()]
    for _ in range(5):
        before = tables.clone()
        for cell, action in met:
            value = before[:, grid.following[cell, action]].amin(0).max()
            target = grid.reward[cell] + 0.95 * value
            tables[:, cell, action] = before[:, cell, action] + 0.5 * (target - before[:, cell, action])
    torch.testing.assert_close(ours.tables[0], tables, rtol=1e-12, atol=1e-12)


def test_a_patch_of_everything_is_one_step_of_the_truth(grid: Grid) -> None:
    everything = torch.ones(1, CELLS, dtype=torch.bool)
    learnt = learn(grid, 3, 1, [0], everything, rounds=100)
    truth = grid.reward.unsqueeze(-1) + 0.95 * grid.value[grid.following]
    often = learnt.updated[0]
    assert float(learnt.patched) == pytest.approx(1.0)
    assert float((learnt.tables[0, 0] - truth)[often].abs().median()) < 1e-6


# -- statistical: the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_the_patch_and_five_or_more_critics_solve_every_seed(
    grid: Grid, table: dict[int, dict[str, Learnt]], length: int
) -> None:
    for name in SOLVING:
        learnt = table[length][name]
        assert returns(grid, learnt).tolist() == pytest.approx([36.0] * 5), name
        assert start_value(grid, learnt).tolist() == pytest.approx([16.32] * 5, abs=0.05), name


@pytest.mark.parametrize("length", LENGTHS)
def test_one_table_fails_and_overestimates_in_every_seed(
    grid: Grid, table: dict[int, dict[str, Learnt]], length: int
) -> None:
    learnt = table[length]["base N=1"]
    assert returns(grid, learnt).max() < 20  # reference: at most 18.2, of 36
    assert start_value(grid, learnt).min() > 18  # reference: 22 to 47; the truth is 16.3
    assert start_value(grid, learnt).mean() > 22


def test_clipped_double_q_helps_with_longer_lanes_and_does_not_cure(
    grid: Grid, table: dict[int, dict[str, Learnt]]
) -> None:
    solved = {k: int((returns(grid, table[k]["base N=2"]) > 35.9).sum()) for k in LENGTHS}
    assert max(solved[3], solved[4]) <= 3  # reference: 2 and 0 of 5
    assert solved[8] >= 2  # reference: 4
    assert returns(grid, table[8]["base N=2"]).mean() > returns(grid, table[3]["base N=2"]).mean()


def test_the_patch_touches_few_targets_and_the_control_many(grid: Grid, table: dict[int, dict[str, Learnt]]) -> None:
    patched = {k: float(table[k]["OraclePatch N=2"].patched.mean()) for k in LENGTHS}
    # Reference: 0.41 %, 0.07 %, below 0.01 %; the share is that of a learning policy and varies by seed.
    assert 0.002 < patched[3] < 0.008
    assert 0.0003 < patched[4] < 0.002
    assert patched[8] < 0.0001
    for k in LENGTHS:
        assert float(table[k]["control patch N=2"].patched.min()) > 10 * patched[k]  # reference: 63, 37, 19 %


def test_it_is_the_ring_that_matters(grid: Grid, table: dict[int, dict[str, Learnt]]) -> None:
    failed = [int((returns(grid, table[k]["control patch N=2"]) < 35.9).sum()) for k in LENGTHS]
    assert failed[0] >= 3  # reference: 4 of 5
    assert failed[1] >= 2  # reference: 4 of 5
    assert failed[2] == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_the_penalty_detects_the_ring(grid: Grid, table: dict[int, dict[str, Learnt]], length: int) -> None:
    for name, learnt in table[length].items():
        area = detection(grid, length, learnt)
        if name == "base N=1":
            assert area.isnan().all()
        else:
            assert area.min() > 0.89, name  # reference: 0.89 to 1.00


def test_the_penalty_on_the_ring_is_that_of_normal_numbers(grid: Grid, table: dict[int, dict[str, Learnt]]) -> None:
    # Mean minus smallest of N numbers N(0, 20^2): 11.3, 23.3 and 30.8 expected. The reference says 11, 23 to 25,
    # 31 to 33, and about 0 within reach.
    for name, expected in (("base N=2", 11.3), ("RAVL N=5", 23.3), ("RAVL N=10", 30.8)):
        for length in LENGTHS:
            learnt = table[length][name]
            assert float(learnt.penalty()[:, grid.ring(length)].mean()) == pytest.approx(expected, rel=0.12)
            assert float(learnt.penalty()[learnt.updated].median()) < 0.5


def test_all_variants_are_there(table: dict[int, dict[str, Learnt]]) -> None:
    assert all(tuple(rows) == VARIANTS for rows in table.values())
