"""The benchmark scripts: what they would run, what they say when data are missing, and what a smoke makes up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import LINTERS, load_script, search_path

from mbrl.data.sources import load_dataset
from mbrl.data.tasks import all_tasks, find_task

SCRIPTS = Path(__file__).parents[1] / "scripts" / "reproduce"
suite = load_script("suite")

BENCHMARKS = ("d4rl", "neorl", "neorl2", "minari")
LEVELS = ("random", "medium", "medium-replay", "medium-expert")


def run(benchmark: str, tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script with an `mbrl` that only notes its words, a line for each call, in `tmp_path/calls`."""
    stub = tmp_path / "bin" / "mbrl"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n')
    stub.chmod(0o755)
    path = f"{stub.parent}:{search_path()}"
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in (*suite.FOLDERS, "DATA", "TASKS", "ALGOS", "SEEDS", "UPDATES", "LAUNCHER")
    }
    return subprocess.run(
        [SCRIPTS / f"{benchmark}.sh", *words],
        env={**inherited, "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(SCRIPTS.parents[1]), **variables},
        capture_output=True,
        text=True,
    )


def wanted(benchmark: str) -> list[str]:
    """The benchmark's tasks, from the task table."""
    names = [task.name for task in all_tasks() if task.dataset.startswith(f"{benchmark}:")]
    if benchmark == "d4rl":
        return [f"{family}-{level}-v2" for family in ("hopper", "walker2d", "halfcheetah") for level in LEVELS]
    return [name for name in names if benchmark != "minari" or name.startswith("mujoco/")]


def listed(benchmark: str) -> list[str]:
    """The tasks that the script names."""
    return (SCRIPTS / f"{benchmark}.sh").read_text().partition('all="')[2].partition('"')[0].split()


@pytest.mark.parametrize(("benchmark", "count"), [("d4rl", 12), ("neorl", 9), ("neorl2", 7), ("minari", 28)])
def test_tasks_are_those_of_the_task_table(
    benchmark: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = listed(benchmark)
    assert sorted(tasks) == sorted(wanted(benchmark))
    assert len(tasks) == count
    for name in suite.FOLDERS:
        monkeypatch.setenv(name, str(tmp_path))
    assert suite.check(tasks) == 1
    message = capsys.readouterr().err
    assert f"{count} of {count} datasets are not on this machine" in message
    assert message.count(f"\n  {tmp_path}/") == message.count("\n      from ") == count


def test_missing_data_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    done = run("minari", tmp_path, str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "28 of 28 datasets are not on this machine" in done.stderr
    assert f"{tmp_path}/.minari/datasets/mujoco/humanoid/expert-v0" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_one_sweep_and_one_report(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("hopper_medium-v2.hdf5", "hopper-medium-replay-v2.hdf5"):
        (data / name).touch()
    chosen = {
        "DATA": str(data),
        "TASKS": "hopper-medium-v2 hopper-medium-replay-v2",
        "SEEDS": "3",
        "ALGOS": "mopo edac",
    }
    done = run("d4rl", tmp_path, "runs/a", "device=cpu", **chosen, UPDATES="1000", LAUNCHER="joblib")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "train -m algo=mopo,edac task=hopper-medium-v2,hopper-medium-replay-v2 seed=0,1,2 updates=1000 progress=false "
        "run_dir=runs/a hydra/launcher=joblib device=cpu",
        "report runs/a --html runs/a/report.html",
    ]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_smoke_makes_up_what_is_missing_in_the_benchmarks_own_format(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in suite.FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    target = tmp_path / "smoke_data"
    tasks = suite.smoke(benchmark, target, "", listed(benchmark))
    assert tasks == list(suite.MADE_UP[benchmark])
    for name in suite.FOLDERS:
        monkeypatch.setenv(name, str(target))
    for task in tasks:
        dataset = load_dataset(find_task(task).dataset)
        assert suite.STEPS <= len(dataset.transitions.reward) < suite.STEPS + 200
        assert len(dataset.episode_returns) >= 2
        assert dataset.incomplete_episodes == 0
    # A second smoke in the same folder takes what is there, wherever data are looked for before.
    written = stamps(target)
    for folder in (target, tmp_path / "empty"):
        for name in suite.FOLDERS:
            monkeypatch.setenv(name, str(folder))
        assert sorted(suite.smoke(benchmark, target, "", listed(benchmark))) == sorted(tasks)
        assert stamps(target) == written


def stamps(folder: Path) -> dict[Path, int]:
    """When the files below a folder were last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_smoke_takes_the_data_that_are_there(tmp_path: Path) -> None:
    data = tmp_path / "data" / "of" / "mine"
    data.mkdir(parents=True)
    (data / "hopper-medium.hdf5").touch()
    done = run("d4rl", tmp_path, str(tmp_path / "runs"), "--smoke", DATA=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numbers mean nothing") == 2
    assert " task=hopper-medium-v2 seed=0,1 updates=200 " in (tmp_path / "calls").read_text()
    assert (tmp_path / "runs/smoke_data/hopper_medium-v2.hdf5").resolve() == data / "hopper-medium.hdf5"
    assert "its numbers mean nothing" in (tmp_path / "runs" / "SMOKE").read_text()


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        ((), {}, "no FOLDER given"),
        (("runs",), {"TASKS": "hopper-mediun-v2"}, "no task is called 'hopper-mediun-v2'; nearest: hopper-medium-v2"),
        (("runs",), {"DATA": "nowhere"}, "nowhere: No such file or directory"),
        (("runs", "--smok"), {}, "there is no option --smok"),
        (("--smoke", "device=cpu"), {}, "no FOLDER given: device=cpu is a setting"),
        (("runs", "--smoke"), {"SEEDS": "two"}, "SEEDS=two: expected a whole number, 1 or more"),
    ],
)
def test_mistakes(words: tuple[str, ...], variables: dict[str, str], message: str, tmp_path: Path) -> None:
    done = run("d4rl", tmp_path, *words, **variables)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "calls").exists()


def test_help_is_the_header(tmp_path: Path) -> None:
    done = run("neorl2", tmp_path, "--help")
    assert done.stdout.startswith("NeoRL-2, 7 tasks")
    assert "Budget: 7 tasks x 2 algorithms x 4 seeds = 56 runs" in done.stdout


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) or script.name == "suite.sh"


@LINTERS
def test_scripts_are_clean() -> None:
    found = shutil.which("shellcheck", path=search_path())
    assert found is not None, "shellcheck is of the dev extra: pip install -e '.[dev]'"
    done = subprocess.run([found, "-x", *SCRIPTS.glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
