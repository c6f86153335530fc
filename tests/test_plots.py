from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from mbrl import plots
from mbrl.log import RunLogger
from mbrl.plots import learning_curve, model_curve
from mbrl.rundir import RunDirectory


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure drawn, so that a test can ask what is in it and not only that there is a file."""
    drawn: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def make_run(path: Path, seeds: list[int], scored: bool, count: int = 5) -> RunDirectory:
    run = RunDirectory.create(path, seeds=seeds, label="pendulum, as logged")
    rng = np.random.default_rng(0)
    for k in range(count):
        returns = 100.0 * k + rng.normal(0, 5, (len(seeds), 3))
        run.add_returns(1000 * (k + 1), returns, returns / 4.0 + 7.0 if scored else None)
    return run


def lines(figure: Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()}


def test_learning_curve_of_seeds_with_scores(tmp_path: Path, figures: list[Figure]) -> None:
    run = make_run(tmp_path, [3, 7], scored=True)
    run.write_summary(
        status="finished", updates=5000, label="pendulum-v1", behaviour_return_mean=120.0, behaviour_return_max=300.0
    )
    path = learning_curve(tmp_path)
    assert path == tmp_path / "learning_curve.png"
    assert imread(path).shape[0] > 400
    drawn = lines(figures[0])
    assert np.allclose(drawn["mean of 2 seeds"], run.returns.mean((1, 2)))
    assert drawn["dataset, mean episode"].tolist() == [120.0, 120.0]
    assert drawn["dataset, best episode"].tolist() == [300.0, 300.0]
    assert figures[0].axes[0].get_title() == "pendulum-v1"
    (score_axis,) = figures[0].axes[0].child_axes
    low, high = figures[0].axes[0].get_ylim()
    assert score_axis.get_ylim() == pytest.approx((low / 4.0 + 7.0, high / 4.0 + 7.0))


@pytest.mark.parametrize("count", [1, 4])
def test_learning_curve_of_one_seed_without_reference_or_summary(
    tmp_path: Path, count: int, figures: list[Figure]
) -> None:
    run = make_run(tmp_path, [4], scored=False, count=count)
    assert learning_curve(tmp_path).stat().st_size > 5000
    drawn = lines(figures[0])
    assert list(drawn) == ["mean, seed 4"]
    assert np.allclose(drawn["mean, seed 4"], run.returns.mean((1, 2)))
    assert figures[0].axes[0].get_title() == "pendulum, as logged"
    assert figures[0].axes[0].child_axes == []


def test_equal_returns_have_no_score_axis(tmp_path: Path, figures: list[Figure]) -> None:
    run = RunDirectory.create(tmp_path, seeds=[0])
    run.add_returns(1, np.zeros((1, 2)), np.zeros((1, 2)))
    learning_curve(tmp_path)
    assert figures[0].axes[0].child_axes == []


def test_no_evaluation_is_an_error_and_the_model_curve_is_not(tmp_path: Path, figures: list[Figure]) -> None:
    RunDirectory.create(tmp_path, seeds=[0, 1])
    with pytest.raises(ValueError, match=r"no evaluation in returns\.npz"):
        learning_curve(tmp_path)
    logger = RunLogger(tmp_path, seeds=[0, 1], total_updates=3, console=Console(quiet=True))
    for step in (1, 2, 3):
        logger.add({"critic_loss": float(step)}, "learner")
        if step == 2:
            logger.log_event(2, {"estimate/return": 5.0, "estimate/return/seed_0": 4.0, "estimate/return/seed_1": 6.0})
        logger.flush(step)
    path = model_curve(tmp_path)
    assert path == tmp_path / "model_curve.png"
    assert imread(path).shape[1] > 1000
    assert [axes.get_title() for axes in figures[0].axes] == ["estimate/return", "learner/critic_loss"]
    assert lines(figures[0])["mean of 2 seeds"].tolist() == [5.0]
    assert [len(axes.get_lines()) for axes in figures[0].axes] == [3, 1]


def test_metrics_that_never_change_are_not_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    RunDirectory.create(tmp_path, seeds=[0, 1])
    logger = RunLogger(tmp_path, seeds=[0, 1], total_updates=3, console=Console(quiet=True))
    for step in (1, 2, 3):
        logger.add({"kept": 1.0, "swapped": torch.tensor([step, -step]), "broken": float("nan")}, "rollout")
        logger.flush(step)
        if step == 2:
            logger.log_event(step, {"model/return": 0.0})
    model_curve(tmp_path)
    assert [axes.get_title() for axes in figures[0].axes] == ["model/return", "rollout/swapped", "rollout/broken"]


def test_if_nothing_changes_all_is_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    RunDirectory.create(tmp_path, seeds=[0])
    logger = RunLogger(tmp_path, seeds=[0], total_updates=2, console=Console(quiet=True))
    for step in (1, 2):
        logger.log_event(step, {"rollout/kept": 1.0})
    model_curve(tmp_path)
    assert [axes.get_title() for axes in figures[0].axes] == ["rollout/kept"]
