"""`mbrl eval --planner`: what it prints, what it refuses, and that the run is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbrl.cli import main

TINY = [
    "updates=20", "batch_size=16", "log_every=20", "eval.every=20", "eval.episodes=1", "learner.hidden=[16]",
    "dynamics.hidden=[16]", "dynamics.members=3", "dynamics.elites=2", "dynamics.max_epochs=1", "rollout.lanes=20",
    "rollout.length=2", "horizon=5", "progress=false", "fit_gate=false",
]  # fmt: skip
SMALL = ["--plan-horizon", "3", "--population", "12", "--iterations", "2", "--episodes", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"store={tmp_path_factory.mktemp('store')}"


@pytest.fixture(scope="module")
def trained(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two seeds."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TINY, "seeds=2", store, f"run_dir={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def fitted(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and nothing else."""
    path = tmp_path_factory.mktemp("fitted") / "run"
    assert main(["fit", *TINY, store, f"run_dir={path}"]) == 0
    return path


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi"])
def test_a_planner_is_scored_beside_the_policy(planner: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    capsys.readouterr()
    assert main(["eval", str(trained), "--planner", planner, *SMALL]) == 0
    said = capsys.readouterr().out
    assert f"{planner}: 2 x 12 sequences of 3 steps, 2 rollouts each (random_model)" in said
    assert "plan only" in said
    assert "planning  5/5" in said
    assert f"seed 1: {planner} -" in said
    assert f"{planner} minus policy" in said
    assert "over 4 episodes in Pendulum-v1" in said
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    main(["eval", str(trained), "--planner", planner, *SMALL])
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]  # the same episodes and noise again


def test_the_policys_own_return_is_that_of_a_plain_evaluation(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["eval", str(trained), "--episodes", "2"])
    mean = capsys.readouterr().out.splitlines()[-1].split()[2]
    main(["eval", str(trained), "--planner", "mppi", *SMALL])
    assert f"the policy {mean} ± " in capsys.readouterr().out


def test_a_bootstrapped_plan_and_a_penalty(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bootstrap", "--penalty", "0.5", "--propagation", "fixed_model", "--particles", "3"]
    assert main(["eval", str(trained), "--planner", "icem", *SMALL, *words]) == 0
    said = capsys.readouterr().out
    assert "3 rollouts each (fixed_model)" in said
    assert "the critics' value at the end" in said


def test_a_fitted_model_needs_no_policy(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(fitted), "--planner", "icem", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "icem returns -" in said
    assert "policy" not in said
    assert main(["eval", str(fitted), "--planner", "icem", "--bootstrap", *SMALL]) == 1
    assert "has no policy, whose critics" in capsys.readouterr().err


def test_the_truth_is_planned_with(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    assert main(["train", *[w for w in TINY if "dynamics" not in w], "dynamics=oracle", store, f"run_dir={path}"]) == 0
    assert main(["eval", str(path), "--planner", "cem", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "one rollout each (expectation) under the true simulator" in said
    assert main(["eval", str(path), "--planner", "cem", "--penalty", "1", *SMALL]) == 1
    assert "the true simulator, which has no doubt" in capsys.readouterr().err


def test_no_model(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [w for w in TINY if not w.startswith("dynamics")]
    assert main(["train", *words, "algo=edac", store, f"run_dir={tmp_path / 'run'}"]) == 0
    assert main(["eval", str(tmp_path / "run"), "--planner", "icem", *SMALL]) == 1
    assert "it has no dynamics model" in capsys.readouterr().err


def test_no_environment(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    assert main(["fit", *TINY, "dataset=builtin:pendulum", "env=null", store, f"run_dir={path}"]) == 0
    assert main(["eval", str(path), "--planner", "icem", *SMALL]) == 1
    assert "without an environment; give one by --env" in capsys.readouterr().err
    assert main(["eval", str(path), "--planner", "icem", "--env", "Hopper-v5", *SMALL]) == 1
    assert main(["eval", str(path), "--planner", "icem", "--env", "Pendulum-v1", *SMALL]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--population", "5"], "--population needs --planner"),
        (["--bootstrap"], "--bootstrap needs --planner"),
        (["--planner", "pets"], "invalid choice: 'pets'"),
        (["--planner", "cem", "--iterations", "0"], "0 is not a whole number of 1 or more"),
    ],
)
def test_mistakes_are_said(words: list[str], said: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["eval", str(trained), *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
