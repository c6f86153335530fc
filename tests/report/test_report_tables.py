"""Numbers of a report, to the digit, against what can be worked out by hand."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helpers import absl_handler
from report_runs import make_run
from scipy.stats import trim_mean

from mbrl.report.aggregates import (
    aggregates,
    improvement_probability,
    improvements,
    profile,
    rliable_missing,
    same_draws,
)
from mbrl.report.runs import collect
from mbrl.report.tables import Report, number, tabulate, with_spread
from mbrl.report.views import improvement_view, leaderboard, task_view

HOPPER, WALKER = "hopper-medium-v2", "walker2d-medium-v2"


def rising(base: float) -> npt.NDArray[np.float64]:
    """12 evaluations of 2 episodes: means base + 10, ..., base + 120. The last 10 have mean base + 75."""
    return (base + 10.0 * np.arange(1, 13))[:, None, None] + np.array([-5.0, 5.0])


def report_of(path: Path) -> Report:
    return tabulate(collect([path]))


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """2 methods x 2 tasks x 2 seeds; a score is a tenth of a return."""
    root = tmp_path_factory.mktemp("sweep")
    bases = {
        ("mopo", HOPPER): (0, 100),
        ("mopo", WALKER): (200, 400),
        ("mobile", HOPPER): (50, 150),
        ("mobile", WALKER): (300, 100),
    }
    for (algo, task), of_seeds in bases.items():
        for seed, base in enumerate(of_seeds):
            path = root / algo / task / str(seed)
            make_run(path, rising(base), algo=algo, task=task, seeds=[seed], reference=[0.0, 1000.0])
    return report_of(root)


def test_last_and_best_of_a_cell(two_by_two: Report) -> None:
    cell = two_by_two.cells["D4RL hopper-medium-v2, evaluated in Hopper-v4", "mopo"]
    assert [result.final_return for result in cell.results] == [75.0, 175.0]
    assert [result.best_return for result in cell.results] == [120.0, 220.0]
    assert [result.best_update for result in cell.results] == [1200, 1200]
    last, best = cell.spread("final_return"), cell.spread("best_score")
    assert last is not None
    assert best is not None
    assert (last.mean, last.std) == (125.0, pytest.approx(50 * math.sqrt(2)))  # n - 1
    assert (best.mean, best.std) == (pytest.approx(17.0), pytest.approx(5 * math.sqrt(2)))
    assert with_spread(last) == "125.0 ± 70.7"
    assert with_spread(cell.spread("final_score"), score=True) == "12.5 ± 7.1"


def test_aggregates_by_hand(two_by_two: Report) -> None:
    (found,) = aggregates(two_by_two)
    assert found.title == "D4RL, environments v4"
    assert found.seeds == {"mobile": 2, "mopo": 2}
    mopo = np.array([[7.5, 27.5], [17.5, 47.5]])  # seeds x tasks
    values = {name: estimate.value for name, estimate in found.estimates["mopo"].items()}
    assert values == pytest.approx({"IQM": 22.5, "mean": 25.0, "median": 25.0, "optimality gap": 75.0})
    assert values["IQM"] == pytest.approx(trim_mean(mopo.ravel(), 0.25))
    values = {name: estimate.value for name, estimate in found.estimates["mobile"].items()}
    assert values == pytest.approx({"IQM": 20.0, "mean": 22.5, "median": 22.5, "optimality gap": 77.5})
    # A draw of two seeds of a task is the lower one twice in a quarter of all cases: both tasks' lowest means come
    # together in 1 of 16, which is more than 2.5 %. So the interval of the mean reaches from lowest to highest.
    mean = found.estimates["mopo"]["mean"]
    assert (mean.low, mean.high) == (pytest.approx((7.5 + 27.5) / 2), pytest.approx((17.5 + 47.5) / 2))
    at = {round(float(tau)): share for tau, share in zip(found.thresholds, found.profiles["mopo"][0], strict=True)}
    assert (at[0], at[10], at[20], at[30], at[50]) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_gap_counts_nothing_above_100(tmp_path: Path) -> None:
    make_run(tmp_path / "0", [1500.0], seeds=[0], reference=[0.0, 1000.0])
    make_run(tmp_path / "1", [400.0], seeds=[1], reference=[0.0, 1000.0])
    (found,) = aggregates(report_of(tmp_path))
    assert found.estimates["mopo"]["optimality gap"].value == pytest.approx((0 + 60) / 2)
    assert found.thresholds[-1] == pytest.approx(150.0)


def test_probability_of_improvement_counts_pairs(two_by_two: Report) -> None:
    (found,) = improvements(two_by_two)
    assert found.probability is not None
    # Hopper: 125 > 75, 225 > 75, 225 > 175 of four pairs. Walker2d: 375 > 275 of four.
    assert (found.x, found.y, found.tasks) == ("mobile", "mopo", 2)
    assert found.probability.value == (3 / 4 + 1 / 4) / 2
    assert found.probability.low is not None
    assert found.probability.high is not None
    assert found.probability.low <= 0.5 <= found.probability.high


def test_ours_is_rliables_probability() -> None:
    from rliable.metrics import probability_of_improvement

    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 4, (5, 3)).astype(float), draws.integers(0, 4, (4, 3)).astype(float)  # with ties
    assert improvement_probability(x, y)[0] == pytest.approx(probability_of_improvement(x, y))


def test_ours_is_rliables_profile() -> None:
    from rliable import library as bootstrap

    scores, thresholds = np.random.default_rng(0).normal(size=(5, 3)), np.linspace(-2, 2, 9)
    assert profile(scores, thresholds) == pytest.approx(bootstrap.score_distributions(scores, thresholds))


def test_the_same_report_twice_and_nobody_elses_draws(two_by_two: Report) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first, second = aggregates(two_by_two)[0], aggregates(two_by_two)[0]
    assert first.estimates == second.estimates
    assert improvements(two_by_two) == improvements(two_by_two)
    with same_draws():
        pass
    assert np.random.random() == expected  # noqa: NPY002


def test_one_seed_has_neither_spread_nor_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rising(0), reference=[0.0, 1000.0])
    report = report_of(tmp_path)
    (cell,) = report.cells.values()
    spread = cell.spread("final_return")
    assert spread is not None
    assert (spread.mean, spread.std) == (75.0, None)
    (found,) = aggregates(report)
    assert found.estimates["mopo"]["IQM"].value == pytest.approx(7.5)
    assert found.estimates["mopo"]["IQM"].low is None
    assert "mopo: one seed, so no interval" in found.notes


def test_fewer_than_ten_evaluations_are_all_averaged(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [1.0, 2.0, 6.0])
    (cell,) = report_of(tmp_path).cells.values()
    assert cell.results[0].final_return == 3.0


def test_seeds_side_by_side_in_one_run_are_pooled_with_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[1.0, 2.0]], seeds=[0, 1])
    make_run(tmp_path / "b", [6.0], seeds=[2])
    (cell,) = report_of(tmp_path).cells.values()
    assert [(result.seed, result.final_return) for result in cell.results] == [(0, 1.0), (1, 2.0), (2, 6.0)]


def test_the_same_seed_twice_is_no_second_sample(tmp_path: Path) -> None:
    make_run(tmp_path / "old", [[1.0, 2.0]], seeds=[0, 1], started="2026-01-01T00:00:00+00:00")
    make_run(tmp_path / "new", [9.0], seeds=[1], started="2026-01-02T00:00:00+00:00")
    report = report_of(tmp_path)
    (cell,) = report.cells.values()
    assert [result.final_return for result in cell.results] == [1.0, 9.0]
    (note,) = report.notes
    assert "seed 1 was run more than once" in note
    assert f"{tmp_path / 'old'} does not" in note


def test_other_protocols_are_kept_apart_and_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0, 2.0], seeds=[0])
    make_run(tmp_path / "b", [1.0, 2.0, 3.0], seeds=[1])
    report = report_of(tmp_path)
    assert report.methods == ("mopo", "mopo [2 evaluations up to update 200, 1 episode each]")
    assert "different protocols, so they are kept apart" in report.notes[0]


def test_a_stray_protocol_does_not_rename_the_others(tmp_path: Path) -> None:
    for task in (HOPPER, WALKER):
        make_run(tmp_path / task, [100.0, 300.0], task=task, reference=[0.0, 1000.0])
    make_run(tmp_path / "stray", [[7.0, 7.0, 7.0]] * 3, seeds=[1, 2, 3], reference=[0.0, 1000.0])  # more seeds, longer
    report = report_of(tmp_path)
    assert report.methods == ("mopo", "mopo [3 evaluations up to update 300, 1 episode each]")
    (found,) = aggregates(report)
    assert len(found.tasks) == 2
    assert found.estimates["mopo"]["mean"].value == pytest.approx(20.0)
    assert report.notes[0].endswith("; mopo are those with 2 evaluations up to update 200, 1 episode each")


def test_without_other_tasks_the_protocol_with_most_seeds_has_the_bare_name(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[1.0, 2.0], [1.0, 2.0]], seeds=[0, 1])
    make_run(tmp_path / "b", [1.0, 2.0, 3.0], seeds=[2])
    report = report_of(tmp_path)
    assert report.methods == ("mopo", "mopo [3 evaluations up to update 300, 1 episode each]")
    assert [result.seed for result in report.cells[report.tasks[0].label, "mopo"].results] == [0, 1]


def test_other_data_horizons_and_scales_are_other_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], horizon=1000, dataset_hash="aaaaaaaaaaaa")
    make_run(tmp_path / "b", [1.0], horizon=500, dataset_hash="bbbbbbbbbbbb")
    make_run(tmp_path / "c", [1.0], reference=[0.0, 1.0], dataset_hash="aaaaaaaaaaaa")
    labels = [task.label.partition("Hopper-v4")[2] for task in report_of(tmp_path).tasks]
    assert sorted(labels) == [
        ", horizon 1000, scores -20.2723 to 3234.3, data aaaaaaaa",
        ", horizon 1000, scores 0 to 1, data aaaaaaaa",
        ", horizon 500, scores -20.2723 to 3234.3, data bbbbbbbb",
    ]


def test_online_runs_have_a_row_of_their_own_and_stand_over_real_steps(tmp_path: Path) -> None:
    make_run(tmp_path / "offline", [1.0])
    plan = {"steps": 5000, "warm_up": 1000, "updates_per_step": 20}
    make_run(tmp_path / "online", [1.0, 2.0], online=plan, every=2000)
    report = report_of(tmp_path)
    assert [task.setting for task in report.tasks] == ["offline", "online"]
    assert report.tasks[1].label.endswith("Hopper-v4, online with 5,000 real steps")
    (cell,) = report.of_task(report.tasks[1])
    assert cell.steps.tolist() == [1100.0, 1200.0]
    assert [found.title for found in aggregates(report)] == [
        "D4RL, environments v4", "D4RL, environments v4, online"
    ]  # fmt: skip
    assert improvements(report) == []


def test_versions_and_benchmarks_are_not_averaged_together(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0])
    make_run(tmp_path / "b", [1.0], task="mujoco/hopper/medium-v0")
    make_run(tmp_path / "c", [1.0], env="Hopper-v5", label="D4RL hopper-medium-v2, evaluated in Hopper-v5")
    titles = {found.title for found in aggregates(report_of(tmp_path))}
    assert titles == {"D4RL, environments v4", "Minari, environments v5", "D4RL, environments v5"}


def test_unequal_seeds_give_the_lowest_numbers(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[100.0, 200.0, 900.0]], seeds=[0, 1, 2], reference=[0.0, 1000.0])
    make_run(tmp_path / "b", [[300.0, 400.0]], seeds=[0, 1], task=WALKER, reference=[0.0, 1000.0])
    (found,) = aggregates(report_of(tmp_path))
    assert found.seeds == {"mopo": 2}
    assert found.estimates["mopo"]["mean"].value == pytest.approx(25.0)
    assert any(note.startswith("mopo: 2 seeds of every task") for note in found.notes)


def test_a_task_that_a_method_lacks_is_left_out_of_the_aggregates(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[100.0, 200.0]], seeds=[0, 1])
    make_run(tmp_path / "b", [[100.0, 200.0]], seeds=[0, 1], task=WALKER)
    for algo in ("mobile", "edac"):
        make_run(tmp_path / algo, [[100.0, 200.0]], seeds=[0, 1], algo=algo)
    (found,) = aggregates(report_of(tmp_path))
    assert [task.dataset for task in found.tasks] == ["d4rl:hopper-medium-v2"]
    assert list(found.seeds) == ["edac", "mobile", "mopo"]
    (note,) = found.notes
    assert note == "D4RL walker2d-medium-v2, evaluated in Walker2d-v4 is left out: not run with edac, mobile"


def test_the_block_with_most_cells_is_taken_whoever_has_most_tasks(tmp_path: Path) -> None:
    tasks = (HOPPER, WALKER, "halfcheetah-medium-v2", "hopper-medium-replay-v2")
    for algo, of in {"edac": tasks[:2], "mobile": tasks[2:], "mopo": tasks[2:]}.items():
        for task in of:
            make_run(tmp_path / algo / task, [1.0], algo=algo, task=task)
    (found,) = aggregates(report_of(tmp_path))
    assert list(found.seeds) == ["mobile", "mopo"]
    assert {task.dataset for task in found.tasks} == {f"d4rl:{task}" for task in tasks[2:]}
    assert found.notes[0] == ("edac is left out: it was run on 2 of the 4 tasks, and it takes all methods on all tasks")
    assert "D4RL hopper-medium-v2, evaluated in Hopper-v4 is left out: not run with mobile, mopo" in found.notes


def test_pairs_say_which_tasks_they_leave_out(tmp_path: Path) -> None:
    for task, returns in ((HOPPER, [100.0, math.nan]), (WALKER, [100.0, 200.0])):
        make_run(tmp_path / task / "a", [returns], seeds=[0, 1], task=task)
        make_run(tmp_path / task / "b", [[150.0, 150.0]], seeds=[0, 1], task=task, algo="mobile")
    make_run(tmp_path / "c", [[math.inf, 1.0]], seeds=[0, 1], algo="edac")
    pairs = {(pair.x, pair.y): pair for pair in improvements(report_of(tmp_path))}
    kept = pairs["mobile", "mopo"]
    assert kept.probability is not None
    assert (kept.tasks, kept.probability.value) == (1, 1 / 2)
    hopper = "D4RL hopper-medium-v2, evaluated in Hopper-v4 is left out of"
    assert kept.notes == (f"{hopper} mobile against mopo: no finite returns with mopo",)
    nothing = pairs["edac", "mobile"]
    assert (nothing.tasks, nothing.probability) == (0, None)
    assert nothing.notes == (f"{hopper} edac against mobile: no finite returns with edac",)
    view = improvement_view(list(pairs.values()), "offline")
    assert [(row[0].text, row[2].text) for row in view.rows if row[3].text == "0"] == [("edac", "–"), ("edac", "–")]
    assert set(kept.notes + nothing.notes) <= set(view.notes)


def test_a_method_with_few_tasks_does_not_keep_the_others_from_theirs(tmp_path: Path) -> None:
    for task in (HOPPER, WALKER, "halfcheetah-medium-v2"):
        for algo in ("mopo", "mobile", "edac")[: 3 if task == HOPPER else 2]:
            make_run(tmp_path / task / algo, [1.0], algo=algo, task=task)
    (found,) = aggregates(report_of(tmp_path))
    assert (list(found.seeds), len(found.tasks)) == (["mobile", "mopo"], 3)  # 2 x 3 is more than 3 x 1
    assert found.notes[0].startswith("edac is left out: it was run on 1 of the 3 tasks")


def test_a_return_that_is_not_finite_is_not_averaged_away(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[100.0, math.nan]], seeds=[0, 1])
    report = report_of(tmp_path)
    (cell,) = report.cells.values()
    assert with_spread(cell.spread("final_return")) == with_spread(cell.spread("final_score"), True) == "not finite"
    (found,) = aggregates(report)
    assert found.estimates == {}
    assert "no finite returns with mopo" in found.notes[0]
    assert "nothing to aggregate" in found.notes[1]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_infinite_returns_are_said_without_warnings_and_bold_is_the_same_everywhere(tmp_path: Path) -> None:
    make_run(tmp_path / "a", np.array([[[math.inf, -math.inf], [1.0, 2.0]]]), seeds=[0, 1], task="pendulum")
    make_run(tmp_path / "b", [[math.inf, math.inf]], seeds=[0, 1], algo="edac", task="pendulum")
    make_run(tmp_path / "c", [[1.0, 3.0]], seeds=[0, 1], algo="mobile", task="pendulum")

    def last() -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
        report = report_of(tmp_path)
        rows, board = task_view(report, report.tasks[0]).rows[:-1], leaderboard(report, published=False).rows[0][3:]
        return [(row[2].text, row[2].strong) for row in rows], [(entry.text, entry.strong) for entry in board]

    rows, board = last()
    assert rows == board == [("not finite", False), ("2.00 ± 1.41", False), ("not finite", False)]
    make_run(tmp_path / "d", [[1.0, 1.0]], seeds=[0, 1], algo="rambo", task="pendulum")
    rows, board = last()
    assert rows == board
    assert [strong for _, strong in rows] == [False, True, False, False]


def test_raw_returns_have_pairs_but_no_aggregate(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [[-100.0, -200.0]], seeds=[0, 1], task="pendulum")
    make_run(tmp_path / "b", [[-150.0, -300.0]], seeds=[0, 1], task="pendulum", algo="mobile")
    report = report_of(tmp_path)
    assert aggregates(report) == []
    (pair,) = improvements(report)
    assert pair.probability is not None
    assert pair.probability.value == 1 / 4  # -150 > -200 alone


@pytest.mark.parametrize(
    ("value", "text"), [(-1208.14, "-1,208.1"), (12345.6, "12,346"), (3.14159, "3.14"), (math.nan, "not finite")]
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_standard_error_outlives_another_set_up_of_logging() -> None:
    """Absl's handler, which rliable brings, would close the stream that it has found at its import."""
    handler = absl_handler()
    handler.stream = replaced = io.StringIO()  # what standard error is to a test or a notebook
    assert rliable_missing() == ""
    assert handler.stream is sys.__stderr__
    handler.close()  # as Hydra's configuration of logging does
    assert not sys.__stderr__.closed
    assert not replaced.closed
