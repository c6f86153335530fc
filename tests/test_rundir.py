from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import POSIX

import mbrl
from mbrl.checkpoint import load_checkpoint, save_checkpoint
from mbrl.rundir import RunDirectory, StopRequest, final_performance, git_state, lock, read_json, to_json, write_json


def evaluations(count: int, seeds: int = 2, episodes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    returns = np.random.default_rng(0).normal(100.0, 20.0, (count, seeds, episodes))
    return returns, (returns - 10.0) / 2.0


def fill(run: RunDirectory, first: int, last: int) -> None:
    returns, scores = evaluations(20)
    for k in range(first, last):
        run.add_returns((k + 1) * 1000, returns[k], scores[k])


def test_meta_says_who_ran(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", seeds=[3, 7], dataset="builtin:pendulum", dataset_hash="ab", env=None)
    meta = read_json(tmp_path / "run" / "meta.json")
    assert meta["versions"]["mbrl"] == mbrl.__version__
    assert (
        meta["versions"]["torch"] == torch.__version__.split("+")[0] or meta["versions"]["torch"] == torch.__version__
    )
    assert {"python", "numpy", "gymnasium", "minari", "mujoco", "cuda"} <= meta["versions"].keys()
    assert (meta["seeds"], meta["dataset"], meta["env"]) == ([3, 7], "builtin:pendulum", None)
    assert (meta["status"], meta["finished"], meta["resumed"]) == ("running", None, 0)
    assert meta["cpu_threads"] == torch.get_num_threads()
    run.write_meta(status="interrupted", note="moved")
    assert read_json(run.path / "meta.json")["finished"] is not None
    again = RunDirectory.open(run.path)
    again.mark_resumed()
    meta = read_json(run.path / "meta.json")
    assert (meta["status"], meta["finished"], meta["resumed"], meta["note"]) == ("running", None, 1, "moved")


def test_a_folder_with_a_run_is_not_taken_and_one_without_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    RunDirectory.create(tmp_path, seeds=[0])
    with pytest.raises(FileExistsError, match="already holds a run; go on with it by resume="):
        RunDirectory.create(tmp_path, seeds=[0])
    with pytest.raises(FileNotFoundError, match=r"is not a run directory: it has no meta\.json"):
        RunDirectory.open(tmp_path / "elsewhere")
    (tmp_path / "meta.json").write_text('{"seeds": ')
    with pytest.raises(ValueError, match=r"meta\.json: not valid JSON"):
        RunDirectory.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"seeds": 3}')
    with pytest.raises(ValueError, match=r"meta\.json: field seeds is 3, expected a list of ints"):
        RunDirectory.open(tmp_path)


def test_git_state_of_a_checkout() -> None:
    root = Path(mbrl.__file__).parents[1]
    if not (root / ".git").exists():
        assert git_state() == {}
        return
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    state = git_state()
    assert state["commit"] == head
    assert isinstance(state["modified"], bool)


def test_strict_json(tmp_path: Path) -> None:
    value = {
        "a": float("nan"),
        "b": [np.float32(1.5), np.inf, np.int64(3), True, None],
        "c": np.arange(2),
        "d": Path("x"),
    }
    assert json.loads(to_json(value)) == {"a": None, "b": [1.5, None, 3, True, None], "c": [0, 1], "d": "x"}
    write_json(tmp_path / "a.json", {"ü": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": torch.zeros(1)})
    assert read_json(tmp_path / "a.json") == {"ü": 1}


def test_summary_is_the_mean_of_the_last_ten_evaluations_of_returns_npz(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, seeds=[3, 7])
    fill(run, 0, 14)
    with np.load(tmp_path / "returns.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["updates"].tolist() == [1000 * (k + 1) for k in range(14)]
    assert arrays["returns"].shape == arrays["scores"].shape == (14, 2, 3)
    summary = run.write_summary(
        status="finished", updates=14_000, behaviour_return_mean=50.0, wall_seconds=7.0, label="d + e", protocol="p"
    )
    assert read_json(tmp_path / "summary.json") == summary
    last = arrays["returns"][4:]
    assert summary["final_return_mean"] == pytest.approx(last.mean())
    assert summary["final_score_mean"] == pytest.approx((last.mean() - 10.0) / 2.0)
    assert [entry["seed"] for entry in summary["per_seed"]] == [3, 7]
    assert summary["per_seed"][1]["final_return_mean"] == pytest.approx(last[:, 1].mean())
    assert summary["per_seed"][0]["final_score_mean"] == pytest.approx((last[:, 0].mean() - 10.0) / 2.0)
    expected = {"status": "finished", "updates": 14_000, "seeds": [3, 7], "evaluations": 14, "label": "d + e"}
    assert {key: summary[key] for key in expected} == expected
    assert (summary["behaviour_return_mean"], summary["updates_per_second"], summary["wall_seconds"]) == (
        50.0,
        None,
        7.0,
    )
    # Everything in a table follows from the file alone.
    alone = RunDirectory.open(tmp_path).summarise(status="finished", updates=14_000)
    assert alone["final_return_mean"] == summary["final_return_mean"]
    assert final_performance(arrays["returns"], arrays["scores"], [3, 7])["per_seed"] == summary["per_seed"]


def test_fewer_than_ten_evaluations_no_reference_and_no_environment(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, seeds=[0])
    empty = run.write_summary(status="running", updates=0)
    assert (empty["final_return_mean"], empty["final_score_mean"], empty["evaluations"]) == (None, None, 0)
    assert empty["per_seed"] == [{"seed": 0, "final_return_mean": None, "final_score_mean": None}]
    assert not (tmp_path / "returns.npz").exists()
    run.add_returns(10, [[1.0, 3.0]])
    run.add_returns(20, [[5.0, float("nan")]])
    with np.load(tmp_path / "returns.npz") as file:
        assert sorted(file) == ["returns", "updates"]
    assert run.write_summary(status="finished", updates=20)["final_score_mean"] is None
    assert read_json(tmp_path / "summary.json")["final_return_mean"] is None  # a NaN return is not averaged away


def test_wrong_evaluations_are_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, seeds=[0, 1])
    with pytest.raises(
        ValueError, match=r"returns of update 5 have shape \(3, 4\), expected \(seeds, episodes\) \(2, 4\)"
    ):
        run.add_returns(5, np.zeros((3, 4)))
    run.add_returns(5, np.zeros((2, 4)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"have shape \(2, 5\), expected \(seeds, episodes\) \(2, 4\)"):
        run.add_returns(6, np.zeros((2, 5)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="scores of update 6"):
        run.add_returns(6, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="evaluation at update 5 comes after one at update 5"):
        run.add_returns(5, np.zeros((2, 4)), np.zeros((2, 4)))
    assert run.returns.shape == (1, 2, 4)


def test_resume_goes_back_to_the_checkpoints_evaluations(tmp_path: Path) -> None:
    whole = RunDirectory.create(tmp_path / "whole", seeds=[0, 1])
    fill(whole, 0, 8)
    broken = RunDirectory.create(tmp_path / "broken", seeds=[0, 1])
    fill(broken, 0, 4)
    path = save_checkpoint(broken.checkpoints, 4000, broken.state_dict())
    fill(broken, 4, 6)
    resumed = RunDirectory.open(broken.path)
    assert resumed.updates[-1] == 6000
    resumed.load_state_dict(load_checkpoint(path))
    assert RunDirectory.open(broken.path).updates == [1000, 2000, 3000, 4000]
    fill(resumed, 4, 8)
    with np.load(whole.path / "returns.npz") as a, np.load(broken.path / "returns.npz") as b:
        assert sorted(a) == sorted(b) == ["returns", "scores", "updates"]
        for name in a:
            assert np.array_equal(a[name], b[name])
    one_seed = RunDirectory.create(tmp_path / "one", seeds=[0])
    with pytest.raises(ValueError, match="evaluations have"):
        one_seed.load_state_dict(load_checkpoint(path))


def test_resume_before_the_first_evaluation(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, seeds=[0, 1])
    state: dict[str, Any] = run.state_dict()
    fill(run, 0, 2)
    run.load_state_dict(load_checkpoint(save_checkpoint(run.checkpoints, 1, state)))
    assert not (tmp_path / "returns.npz").exists()
    fill(run, 0, 1)
    assert run.updates == [1000]


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_request_is_a_flag_then_an_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_stop_request_in_another_thread_does_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def body() -> None:
        with StopRequest() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGINT) is before])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_a_stop_file_is_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.rundir.LOOK_SECONDS", 0.0)
    file = tmp_path / ".stop"
    with StopRequest() as stop:
        file.touch()
        assert not stop.requested  # nobody has named it
        file.unlink()
        monkeypatch.setenv("MBRL_STOP_FILE", str(file))
        assert not stop.requested
        file.touch()
        assert stop.requested
        file.unlink()
        assert stop.requested


@POSIX
def test_a_process_told_to_end_ends_in_order(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom mbrl.rundir import RunDirectory, StopRequest\n"
        "run = RunDirectory.create(sys.argv[1], seeds=[0])\n"
        "with StopRequest() as stop:\n    print('ready', flush=True)\n"
        "    while not stop.requested: time.sleep(0.01)\n"
        "run.write_meta(status='interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert read_json(tmp_path / "meta.json")["status"] == "interrupted"


def test_a_run_directory_is_worked_in_by_one_process_at_a_time(tmp_path):
    with lock(tmp_path), pytest.raises(BlockingIOError, match="another process is working in"):
        lock(tmp_path)
    lock(tmp_path).close()  # given back
