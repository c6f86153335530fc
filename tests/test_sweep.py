"""Sweeps: what each run is called, what is not run twice, and what becomes of runs whose worker is lost."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import POSIX, started, until
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from mbrl.cli import main
from mbrl.compose import ConfigError
from mbrl.rundir import RunDirectory, lock, read_json
from mbrl.sweep import BASIC, Job, job_name, jobs_of

TINY = (
    "batch_size=16", "log_every=50", "eval.every=100", "eval.episodes=1", "learner.hidden=[16]", "dynamics.hidden=[16]",
    "dynamics.members=2", "dynamics.elites=1", "dynamics.max_epochs=1", "rollout.lanes=20", "rollout.length=2",
    "compile=eager",
)  # fmt: skip
GRID = ("algo=mopo,sac_n", "task=pendulum,refrigerator", "seed=0,1")
"""Two methods on two tasks with two seeds."""

LONG = ("updates=700", "checkpoint_seconds=0.1")
"""Long enough to be killed in the middle."""


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eight runs, one after the other in this process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    assert sweep(*GRID, *LONG, folder=folder, store=store) == 0
    return folder


def words(*given: str, folder: Path, store: Path) -> list[str]:
    return ["train", "-m", *TINY, *given, f"store={store}", f"run_dir={folder}"]


def sweep(*given: str, folder: Path, store: Path) -> int:
    return main(words(*given, folder=folder, store=store))


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/meta.json"))


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    """When the files of every run were last written, and when it began."""
    return {
        path.name: ((path / "returns.npz").stat().st_mtime_ns, read_json(path / "meta.json")["started"])
        for path in runs(folder)
    }


def assert_equal(found: Path, expected: Path) -> None:
    """All runs are there, finished, and their returns are the same to the bit."""
    assert [path.name for path in runs(found)] == [path.name for path in runs(expected)]
    for one, other in zip(runs(found), runs(expected), strict=True):
        assert read_json(one / "summary.json")["status"] == "finished"
        assert np.array_equal(RunDirectory.open(one).returns, RunDirectory.open(other).returns), one.name


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["algo=mopo", "seed=0"], "algo=mopo,seed=0"),
        (["filter=[morec,ravl]"], "filter=morec,ravl"),
        (["dataset=/data/plant one.npz"], "dataset=-data-plant-one.npz"),
        (["dataset='minari:D4RL/door/human-v2'"], "dataset=minari-D4RL-door-human-v2"),
        ([], "run"),
    ],
)
def test_a_run_is_called_by_what_differs(given: list[str], name: str) -> None:
    assert job_name(given) == name


def test_names_do_not_depend_on_the_order_of_words(tmp_path: Path) -> None:
    one, other = (
        [job.name for job in jobs_of(OverridesParser.create().parse_overrides(words), tmp_path)]
        for words in (
            ["seed=0", "updates=5,6", "task=pendulum", "real_ratio=0.1,0.2"],
            ["real_ratio=0.1,0.2", "task=pendulum", "updates=5,6", "seed=0"],
        )
    )
    assert sorted(one) == sorted(other)
    assert one[0] == "task=pendulum,seed=0,real_ratio=0.1,updates=5"


def test_long_names_are_cut_and_stay_apart() -> None:
    one, other = (job_name([f"dataset={'x' * 300}{end}"]) for end in "ab")
    assert len(one) == len(other) < 200
    assert one != other


# -- what is done, and what is not done again --------------------------------------------------------------------------


def test_a_second_call_runs_nothing(undisturbed: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(undisturbed)
    assert len(before) == 8
    capsys.readouterr()
    assert sweep(*GRID, *LONG, folder=undisturbed, store=store) == 0
    assert "8 finished before" in capsys.readouterr().out
    assert stamps(undisturbed) == before


@POSIX
def test_what_was_stopped_goes_on_and_what_is_missing_is_begun(undisturbed: Path, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    given = ("algo=mopo", "task=pendulum", "seed=0,1", *LONG)
    first, second = (folder / f"algo=mopo,task=pendulum,seed={seed}" for seed in (0, 1))
    with started(words(*given, folder=folder, store=store), tmp_path / "output") as process:
        until(lambda: checkpoint(first), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert "mbrl train" in (tmp_path / "output").read_text()
    assert read_json(first / "meta.json")["status"] == "interrupted"
    assert not (second).exists()
    assert sweep(*given, folder=folder, store=store) == 0
    assert read_json(first / "meta.json")["resumed"] == 1
    for seed in (0, 1):
        name = f"algo=mopo,task=pendulum,seed={seed}"
        found, same = (RunDirectory.open(path / name).returns for path in (folder, undisturbed))
        assert np.array_equal(found, same)


def test_more_updates_go_on_with_finished_runs(store: Path, tmp_path: Path) -> None:
    given = ("task=refrigerator", "algo=sac_n", "seed=0,1")
    for updates in (100, 200):
        assert sweep(*given, f"updates={updates}", folder=tmp_path / "sweep", store=store) == 0
        assert [read_json(path / "summary.json")["updates"] for path in runs(tmp_path / "sweep")] == [updates] * 2
    assert [read_json(path / "meta.json")["resumed"] for path in runs(tmp_path / "sweep")] == [1, 1]


def test_runs_of_other_settings_are_not_taken_for_these(
    undisturbed: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(undisturbed)
    assert sweep(*GRID, *LONG, "real_ratio=0.3", folder=undisturbed, store=store) == 1
    said = capsys.readouterr().err
    assert "other settings" in said
    assert "real_ratio=0.3" in said
    assert "another run_dir" in said
    assert stamps(undisturbed) == before


def test_a_run_in_the_work_of_another_process_is_left_to_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("task=refrigerator", "algo=sac_n", "seed=0,1", "updates=100")
    assert sweep(*given, folder=tmp_path, store=store) == 0
    begun = tmp_path / "algo=sac_n,task=refrigerator,seed=0"
    (begun / "summary.json").unlink()
    RunDirectory.open(begun).write_meta(status="running")
    capsys.readouterr()
    with lock(begun):
        assert sweep(*given, folder=tmp_path, store=store) == 0
    assert "1 finished before, 1 in the work of another process" in capsys.readouterr().out
    assert not (begun / "summary.json").exists()


def test_a_run_that_fails_does_not_keep_others_from_being_made(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("algo=sac_n", "task=refrigerator", "learner.critics=2,0", "updates=100")
    assert sweep(*given, folder=tmp_path, store=store) == 1
    said = capsys.readouterr().err
    assert "1 of 2 runs have failed: learner.critics=0: expected a whole number" in said
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [
        "algo=sac_n,task=refrigerator,learner.critics=2"
    ]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["hydra.sweeper.max_batch_size=-1"], "max_batch_size=-1: expected a whole number, 1 or more"),
        (["run_dir="], "run_dir= names no folder"),
        (["resume=somewhere"], "a sweep goes on by its own command"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "the launcher failed before any run began: n_jobs == 0"),
        (
            ["hydra/launcher=ray_cluster", "hydra.launcher.ray.init.address=127.0.0.1:1"],
            "no Ray cluster answers at 127",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_said_at_once(
    mistake: list[str], said: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["task=refrigerator", "algo=sac_n", "seed=0,1", "updates=100", f"run_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *TINY, *given, f"store={store}", *mistake]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert runs(tmp_path / "sweep") == []


def test_a_folder_of_a_study_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text("{}")
    assert sweep("task=refrigerator", "algo=sac_n", "seed=0,1", "updates=100", folder=tmp_path, store=store) == 1
    assert "holds a study of hydra/sweeper=optuna; choose another run_dir" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_so_many_runs_are_handed_over_at_a_time(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher: Any = Plugins.instance().class_name_to_class[BASIC]
    launch = launcher.launch
    batches = []

    def noted(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        batches.append((initial_job_idx, len(job_overrides)))
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", noted)
    given = ("task=refrigerator", "algo=sac_n", "seed=0,1,2", "updates=20", "hydra.sweeper.max_batch_size=2")
    assert sweep(*given, folder=tmp_path, store=store) == 0
    assert batches == [(0, 2), (2, 1)]
    assert [read_json(run / "summary.json")["status"] for run in runs(tmp_path)] == ["finished"] * 3


def test_a_fitted_model_is_no_trained_run(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a 'sweep' of one, two"
    given = ["task=refrigerator", "seed=0,1", "updates=100", *TINY, f"store={store}", f'run_dir="{folder}"']
    assert main(["fit", "-m", *given]) == 0
    assert "mbrl report" not in capsys.readouterr().out  # which knows of no fit
    assert len(runs(folder)) == 2
    assert main(["fit", "-m", *given]) == 0
    assert "2 finished before" in capsys.readouterr().out
    assert main(["train", "-m", *given]) == 0
    said = capsys.readouterr().out
    assert "2 to go on with" in said
    assert "compare them with: mbrl report" in said
    assert all(read_json(run / "summary.json")["status"] == "finished" for run in runs(folder))


def test_a_length_that_was_named_must_be_named_again(store: Path, tmp_path: Path, capsys: Any) -> None:
    given = ("task=refrigerator", "algo=sac_n", "seed=0")
    assert sweep(*given, "updates=100", folder=tmp_path, store=store) == 0
    assert sweep(*given, folder=tmp_path, store=store) == 1
    assert "was begun with updates=100, and now none are named" in capsys.readouterr().err
    assert sweep(*given, "++updates=200", folder=tmp_path, store=store) == 0
    assert read_json(runs(tmp_path)[0] / "summary.json")["updates"] == 200


def test_values_that_would_share_a_folder_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("task=refrigerator", "env='a b','a/b'", folder=tmp_path, store=store) == 1
    assert "would both go to" in capsys.readouterr().err


def test_a_job_knows_its_state(tmp_path: Path) -> None:
    job = Job(tmp_path / "seed=0", ("seed=0", "updates=100"))
    assert job.state() == "new"
    run = RunDirectory.create(job.path, seeds=[0])
    assert job.state() == "unfinished"
    run.write_summary(status="finished", updates=100)
    run.write_meta(status="finished")
    assert job.state() == "finished"
    assert Job(job.path, ("seed=0", "updates=101")).state() == "unfinished"
    (job.path / ".hydra").mkdir()
    (job.path / ".hydra" / "overrides.yaml").write_text("- seed=0\n- updates=50\n- store=${oc.env:NOT_THERE}\n")
    assert job.state() == "finished"
    (job.path / ".hydra" / "overrides.yaml").write_text("- seed=0\n- algo=edac\n")
    with pytest.raises(ConfigError, match="then algo=edac, now nothing"):
        job.state()


def test_the_report_of_a_sweep_is_what_a_hand_computes(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "report.md"
    assert main(["report", str(undisturbed), "--markdown", str(table), "--html", str(tmp_path / "report.html")]) == 0
    assert "8 runs, 8 in the tables: 2 tasks, 2 methods, 8 trained seeds" in capsys.readouterr().out
    by_seed = {
        name: [np.load(undisturbed / f"{name},seed={seed}" / "returns.npz")["returns"] for seed in (0, 1)]
        for name in (f"algo={algo},task={task}" for algo in ("mopo", "sac_n") for task in ("pendulum", "refrigerator"))
    }
    assert {array.shape for arrays in by_seed.values() for array in arrays} == {(7, 1, 1)}  # every evaluation counts
    means = {name: [float(array.mean()) for array in arrays] for name, arrays in by_seed.items()}
    content = table.read_text()
    for one, other in means.values():
        mean, spread = (one + other) / 2, abs(one - other) / math.sqrt(2)  # of two, with n - 1
        assert f"{number(mean)} ± {number(spread, like=mean)}" in content
    wins = [
        x > y
        for task in ("pendulum", "refrigerator")
        for x in means[f"algo=mopo,task={task}"]
        for y in means[f"algo=sac_n,task={task}"]
    ]
    assert rf"| mopo | sac\_n | {sum(wins) / len(wins):.2f} " in content


def number(value: float, like: float | None = None) -> str:
    """As reports print returns: a decimal from a hundred on, two below."""
    return f"{value:,.1f}" if abs(value if like is None else like) >= 100 else f"{value:,.2f}"


# -- several processes -------------------------------------------------------------------------------------------------


def checkpoint(run: Path) -> bool:
    """Whether a run has one, and is not at its end."""
    return any(run.glob("checkpoints/step_*.pt")) and not (run / "summary.json").exists()


def worker_of(run: Path) -> int | None:
    """The process that holds a run's lock."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == str(run / ".lock"):
                return int(descriptor.parts[2])
    return None


def kill_a_worker(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Kill whoever works on the first run with a checkpoint; the run's name."""
    killed: list[str] = []

    def done() -> bool:
        for run in filter(checkpoint, runs(folder)):
            worker = worker_of(run)
            if worker is not None:
                os.kill(worker, signal.SIGKILL)
                killed.append(run.name)
                break
        return bool(killed)

    until(done, process)
    return killed[0]


def assert_survives_a_lost_worker(given: Sequence[str], undisturbed: Path, store: Path, tmp_path: Path) -> None:
    """Eight runs through a launcher; one worker is killed; all are complete, and one has gone on."""
    folder, output = tmp_path / "sweep", tmp_path / "output"
    command = words(*GRID, *LONG, *given, folder=folder, store=store)
    with started(command, output) as process:
        name = kill_a_worker(folder, process)
        assert process.wait(timeout=240) == 0, output.read_text()
    assert_equal(folder, undisturbed)
    resumed = [path.name for path in runs(folder) if read_json(path / "meta.json")["resumed"]]
    assert resumed == [name]
    before = stamps(folder)
    with started(command, output) as again:
        assert again.wait(timeout=60) == 0
    assert "8 finished before" in output.read_text()
    assert stamps(folder) == before


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks for a run's process in /proc")


@ON_LINUX
def test_submitit(undisturbed: Path, store: Path, tmp_path: Path) -> None:
    assert_survives_a_lost_worker(
        ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=4"], undisturbed, store, tmp_path
    )


@pytest.fixture
def ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head and a second node with one CPU each, on this machine."""
    ray = str(Path(sys.executable).parent / "ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token that lies in the home folder decides
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for place in (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"]):
            output = tmp_path / f"node{len(nodes)}"
            with open(output, "wb") as file:
                command = [ray, "start", *place, "--num-cpus=1", "--block"]
                nodes.append(subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True))
            until(lambda output=output: b"runtime started" in output.read_bytes(), nodes[-1])
        yield
    finally:
        for node in reversed(nodes):
            node.terminate()  # `--block` ends what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)


@ON_LINUX
@pytest.mark.usefixtures("ray_cluster")
def test_ray(undisturbed: Path, store: Path, tmp_path: Path) -> None:
    assert_survives_a_lost_worker(["hydra/launcher=ray_cluster"], undisturbed, store, tmp_path)


@POSIX
def test_ctrl_c_saves_the_runs_of_all_workers(store: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "sweep", tmp_path / "output"
    given = ["task=refrigerator", "algo=sac_n", "seed=0,1,2", "updates=20000", "hydra/launcher=joblib"]
    command = words(*given, "hydra.launcher.n_jobs=2", folder=folder, store=store)
    with started(command, output) as process:
        until(lambda: sum((run / "returns.npz").exists() for run in runs(folder)) == 2, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert [read_json(run / "meta.json")["status"] for run in runs(folder)] == ["interrupted"] * 2
    assert all(any(run.glob("checkpoints/step_*.pt")) for run in runs(folder))
    assert not (folder / ".stop").exists()
    assert "go on with: mbrl train" in output.read_text()
    assert "return" in (runs(folder)[0] / "output.txt").read_text()


# -- wandb -------------------------------------------------------------------------------------------------------------


def test_the_words_of_a_wandb_agent_are_understood(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/sweeps.md, through wandb's own making of the command."""
    from wandb.sdk.launch.sweeps import utils

    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    example = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    first = {name: {"value": next(iter(given.get("values", [given.get("value", given.get("min"))])))}
             for name, given in example["parameters"].items()}  # fmt: skip
    first["filter"] = {"value": ["morec", "ravl"]}
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    command = utils.create_sweep_command(example["command"])  # by the agent, which has no run's id
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    given = utils.create_sweep_command_args({"args": first})["args_no_hyphens"]
    line = [word for part in command for word in (given if part == "${args_no_hyphens}" else [part])]
    assert line[:2] == ["mbrl", "train"]
    monkeypatch.chdir(tmp_path)
    tiny = [*TINY, "updates=20", "score.steps=20", f"store={store}", "task=pendulum", "wandb.mode=offline"]
    assert main(["train", *tiny, *(word for word in line[2:] if not word.startswith("task="))]) == 0
    run = tmp_path / "runs" / "abc123"
    config = OmegaConf.load(run / "config.yaml")
    assert (config.rollout.length, config.rollout.penalise.coefficient, config.seed) == (1, 0.1, 0)
    assert read_json(run / "summary.json")["status"] == "finished"
    assert list((run / "wandb").glob("offline-run-*-abc123"))
