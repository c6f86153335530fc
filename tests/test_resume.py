"""A run that is killed at any moment and resumed ends bitwise where an undisturbed one ends.

Processes are frozen (SIGSTOP), looked at, and killed only if they are where the test wants them: inside a fit, inside a
checkpoint write, inside an evaluation. They are forked from a server that has imported everything, which makes them
cheap; the tests of SIGTERM and SIGINT start the command itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from helpers import POSIX

from mbrl.checkpoint import load_latest
from mbrl.cli import main
from mbrl.data.builtin import pendulum_log
from mbrl.log import read_metrics

UPDATES, EVALUATE_EVERY = 600, 100
EPOCHS = 12
TINY = [
    "env=test_resume:WatchedPendulum",
    "horizon=100",
    f"updates={UPDATES}",
    "batch_size=64",
    "log_every=50",
    f"eval.every={EVALUATE_EVERY}",
    "eval.episodes=2",
    "eval.background=false",
    "learner.hidden=[32,32]",
    "dynamics.hidden=[32,32]",
    "dynamics.members=3",
    "dynamics.elites=2",
    f"dynamics.max_epochs={EPOCHS}",
    "dynamics.patience=100",
    "rollout.lanes=200",
    "rollout.length=2",
    "rollout.every=100",
    "rollout.retain=2",
]
ALWAYS, FREQUENT, RARE = (f"checkpoint_seconds={seconds}" for seconds in (0, 0.05, 1000))
MARK = "evaluating"  # a file in the run directory, there in the middle of an evaluation

pytestmark = POSIX


class WatchedPendulum(PendulumEnv):  # type: ignore[misc]
    """Pendulum-v1 that says when an episode is between its steps 30 and 60."""

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.steps += 1
        if folder := os.environ.get("MBRL_TEST_RUN"):
            if self.steps == 30:
                (Path(folder) / MARK).touch()
            if self.steps == 60:
                (Path(folder) / MARK).unlink(missing_ok=True)
        return super().step(action)


class Reference:
    """An undisturbed run, and what every disturbed one must equal."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "log.npz"
        log = pendulum_log(controlled=True)
        np.savez(self.data, **{k: v[:2000] if v.ndim else v for k, v in log.items()})  # type: ignore[arg-type]
        self.path = folder / "undisturbed"
        self.store = folder / "store"
        started = time.monotonic()
        assert main(self.words(self.path, self.store, RARE)) == 0
        self.seconds = time.monotonic() - started

    def words(self, path: Path, store: Path, *more: str) -> list[str]:
        return ["train", f"dataset={self.data}", *TINY, f"run_dir={path}", f"store={store}", *more]

    def assert_equal(self, path: Path) -> None:
        policy, expected_policy = ((p / "policy.pt").read_bytes() for p in (path, self.path))
        assert policy == expected_policy
        rows, expected_rows = (without_time(p) for p in (path, self.path))
        assert [row["update"] for row in rows] == list(range(0, UPDATES + 1, 50))
        assert rows == expected_rows
        with np.load(path / "returns.npz") as returns, np.load(self.path / "returns.npz") as expected:
            assert set(returns) == set(expected)
            for name in expected:
                np.testing.assert_array_equal(returns[name], expected[name])
        timed = ("updates_per_second", "wall_seconds")
        summary, expected_summary = (json.loads((p / "summary.json").read_text()) for p in (path, self.path))
        assert {k: v for k, v in summary.items() if k not in timed} == {
            k: v for k, v in expected_summary.items() if k not in timed
        }
        assert meta(path)["status"] == "finished"
        assert len((path / "metrics.csv").read_text().splitlines()) == len(rows) + 1


def without_time(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def meta(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((path / "meta.json").read_text())
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


# -- processes ---------------------------------------------------------------------------------------------------------


def child(words: list[str], output: str) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for word in words:
        if word.startswith(("run_dir=", "resume=")):
            os.environ["MBRL_TEST_RUN"] = word.partition("=")[2]
    sys.exit(main(words))


def start(words: list[str], output: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mbrl.cli", "mbrl.plots"])
    process = context.Process(target=child, args=(words, str(output)))
    process.start()
    return process


def kill_when(process: BaseProcess, here: Callable[[], bool]) -> bool:
    """Kill at a moment at which `here()` holds, asked again while the process stands still; False if it never came."""
    pid = process.pid
    assert pid is not None
    deadline = time.monotonic() + 300  # a crowded machine is slow
    while process.is_alive() and time.monotonic() < deadline:
        if not here():
            time.sleep(0.0005)
            continue
        os.kill(pid, signal.SIGSTOP)
        wait_until_stopped(pid)
        if here():
            os.kill(pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            return True
        os.kill(pid, signal.SIGCONT)
    process.kill()
    process.join()
    return False


def wait_until_stopped(pid: int) -> None:
    """SIGSTOP takes effect a moment after it is sent."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(1000):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "TtZX":
            return
        time.sleep(0.0005)


# -- moments -----------------------------------------------------------------------------------------------------------


def newest(folder: Path) -> int:
    """Step of the newest checkpoint, -1 if there is none."""
    return max((int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.pt")), default=-1)


def inside_fit(path: Path, epoch: int) -> bool:
    return epoch <= newest(path / "dynamics" / "unfinished") < EPOCHS and not (path / "dynamics" / "model").exists()


def inside_write(folder: Path, after: int) -> bool:
    """A checkpoint is half written."""
    return newest(folder) >= after and any(folder.glob(".step_*.tmp"))


def after_update(path: Path, update: int) -> bool:
    return newest(path / "checkpoints") >= update


def inside_evaluation(path: Path, after: int) -> bool:
    return after_update(path, after) and (path / MARK).exists()


def at_the_end(path: Path) -> bool:
    """All updates are done and saved; policy, summary or curve are not."""
    return newest(path / "checkpoints") == UPDATES and not (path / "summary.json").exists()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "mid-fit": lambda path: inside_fit(path, 6),
    "write-of-an-epoch": lambda path: inside_write(path / "dynamics" / "unfinished", 2),
    "fit-done": lambda path: newest(path / "dynamics" / "model") == 0 and newest(path / "checkpoints") < 0,
    "first-checkpoint-half-written": lambda path: inside_write(path / "checkpoints", -1),
    "later-checkpoint-half-written": lambda path: inside_write(path / "checkpoints", 250),
    "evaluation": lambda path: inside_evaluation(path, 250),
    "all-updates-done": lambda path: newest(path / "checkpoints") == UPDATES and not (path / "summary.json").exists(),
} | {f"update-{u}": (lambda path, u=u: after_update(path, u)) for u in random.Random(0).sample(range(20, 580), 3)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_undisturbed(reference: Reference, tmp_path: Path, moment: str) -> None:
    in_fit = moment in list(MOMENTS)[:3]
    for attempt in range(5):  # a write is short, and may never be seen
        path = tmp_path / f"run-{attempt}"
        store = tmp_path / f"store-{attempt}" if in_fit else reference.store  # an empty store makes it fit
        process = start(reference.words(path, store, ALWAYS if in_fit else FREQUENT), tmp_path / "output")
        if kill_when(process, lambda path=path: MOMENTS[moment](path)):  # type: ignore[misc]
            break
    else:
        pytest.fail("the moment never came")
    assert meta(path)["status"] == "running"

    assert main(["train", f"resume={path}", RARE]) == 0
    reference.assert_equal(path)
    assert meta(path)["resumed"] == 1


def under_way(path: Path) -> bool:
    """The newest checkpoint is of a time at which an evaluation had been submitted and not collected."""
    return 200 < newest(path / "checkpoints") < UPDATES


BACKGROUND_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "between-evaluations": under_way,
    "as-it-plays": lambda path: under_way(path) and (path / MARK).exists(),
    "all-updates-done": MOMENTS["all-updates-done"],
}


@pytest.mark.parametrize("moment", BACKGROUND_MOMENTS)
def test_killed_while_an_evaluation_is_under_way(reference: Reference, tmp_path: Path, moment: str) -> None:
    path, words = tmp_path / "run", ["eval.background=true", FREQUENT]
    process = start(reference.words(path, reference.store, *words), tmp_path / "output")
    assert kill_when(process, lambda: BACKGROUND_MOMENTS[moment](path))
    state = load_latest(path / "checkpoints")
    assert state is not None
    number, step = state[1]["scoring"]["number"], state[0]
    assert number == step - step % EVALUATE_EVERY  # whatever the other process had done by then
    assert state[1]["run"]["updates"].tolist() == list(range(EVALUATE_EVERY, number, EVALUATE_EVERY))
    assert min(state[1]["logger"]["held"]) == number  # rows from there on wait for it

    here = moment == "between-evaluations"
    assert main(["train", f"resume={path}", RARE, f"eval.background={not here}".lower()]) == 0
    reference.assert_equal(path)


def test_an_undisturbed_run_equals_one_that_plays_in_the_background(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert main(reference.words(path, reference.store, RARE, "eval.background=true")) == 0
    reference.assert_equal(path)
    lines, expected = ((p / "metrics.jsonl").read_text().splitlines() for p in (path, reference.path))
    assert [list(json.loads(line)) for line in lines] == [list(json.loads(line)) for line in expected]  # in order, too
    assert main(["train", f"resume={path}", RARE]) == 0
    reference.assert_equal(path)


def test_killed_after_an_evaluation_and_before_the_first_checkpoint(reference: Reference, tmp_path: Path) -> None:
    """There are returns and metrics, and no state to go on from."""
    path = tmp_path / "run"
    process = start(reference.words(path, reference.store, RARE), tmp_path / "output")
    assert kill_when(process, lambda: (path / "returns.npz").exists() and (path / "metrics.jsonl").exists())
    assert newest(path / "checkpoints") == -1
    assert main(["train", f"resume={path}", RARE]) == 0
    reference.assert_equal(path)


def test_killed_before_it_began_can_be_started_anew(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = reference.words(path, reference.store)
    process = start(words, tmp_path / "output")
    assert kill_when(process, lambda: (path / ".hydra").exists() and not (path / "meta.json").exists())
    assert main(["train", f"resume={path}"]) == 1
    assert main(words) == 0
    reference.assert_equal(path)


def test_killed_again_and_again(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = reference.words(path, tmp_path / "store", ALWAYS)
    moments = [lambda: inside_fit(path, 2), lambda: inside_fit(path, 7)]
    # That of 181 comes as soon as the process lives: it is killed while it starts.
    moments += [lambda u=u: after_update(path, u) for u in (1, 180, 181, 420)]  # type: ignore[misc]
    for i, here in enumerate(moments):
        assert kill_when(start(words, tmp_path / "output"), here)
        words = ["train", f"resume={path}", ALWAYS if i == 0 else FREQUENT]
    assert main(words) == 0
    reference.assert_equal(path)


def test_damaged_last_checkpoint_falls_back_to_the_one_before(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    process = start(reference.words(path, reference.store, FREQUENT), tmp_path / "output")
    assert kill_when(
        process, lambda: len(list((path / "checkpoints").glob("step_*.pt"))) >= 2 and after_update(path, 300)
    )
    before, last = sorted((path / "checkpoints").glob("step_*.pt"))[-2:]
    flip_bits(last)

    assert main(["train", f"resume={path}", RARE]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert last.name in said
    assert "checksum" in said
    assert f"resumed at update {int(before.stem.removeprefix('step_')):,}" in said
    reference.assert_equal(path)


def test_damaged_state_of_an_unfinished_fit_is_fitted_anew(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(reference.words(path, tmp_path / "store", ALWAYS), tmp_path / "output")
    assert kill_when(process, lambda: inside_fit(path, 3))
    for state in (path / "dynamics" / "unfinished").glob("step_*.pt"):
        flip_bits(state)
    with pytest.warns(RuntimeWarning, match="damaged checkpoint"):
        assert main(["train", f"resume={path}", RARE]) == 0
    reference.assert_equal(path)


def test_all_checkpoints_damaged_is_said_and_nothing_is_lost(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    process = start(reference.words(path, reference.store, FREQUENT), tmp_path / "output")
    assert kill_when(process, lambda: after_update(path, 120))
    for checkpoint in (path / "checkpoints").glob("step_*.pt"):
        flip_bits(checkpoint)
    rows = (path / "metrics.jsonl").read_text()
    assert main(["train", f"resume={path}"]) == 1
    error = capsys.readouterr().err
    assert "none of the checkpoints is whole" in error
    assert "Traceback" not in error
    assert (path / "metrics.jsonl").read_text() == rows


def test_resuming_a_finished_run_changes_no_number(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert main(reference.words(path, reference.store, RARE)) == 0
    reference.assert_equal(path)
    assert main(["train", f"resume={path}", RARE]) == 0
    reference.assert_equal(path)


def flip_bits(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_mobile_killed_and_resumed_equals_undisturbed(reference: Reference, tmp_path: Path) -> None:
    """Its penalty asks the model in every update, with more noise than a block of other methods holds."""
    short = ["algo=mobile", "updates=200", "learner.target_penalty.samples=3"]
    assert main(reference.words(tmp_path / "undisturbed", reference.store, RARE, *short)) == 0
    path = tmp_path / "run"
    process = start(reference.words(path, reference.store, ALWAYS, *short), tmp_path / "output")
    assert kill_when(process, lambda: 70 <= newest(path / "checkpoints") < 200)
    assert main(["train", f"resume={path}", RARE]) == 0
    assert (path / "policy.pt").read_bytes() == (tmp_path / "undisturbed" / "policy.pt").read_bytes()
    assert without_time(path) == without_time(tmp_path / "undisturbed")


def test_flat_critics_killed_and_resumed_equal_undisturbed(reference: Reference, tmp_path: Path) -> None:
    """Singular vectors and the std of observations are state; measurements are functions of the update."""
    flat = [
        "updates=200", "dynamics=single_lipschitz", "dynamics.members=1", "dynamics.elites=1",
        "learner.spectral_radius=1", "filter=[robust_fgsm,gradient_penalty]",
    ]  # fmt: skip
    assert main(reference.words(tmp_path / "undisturbed", reference.store, RARE, *flat)) == 0
    path = tmp_path / "run"
    process = start(reference.words(path, tmp_path / "store", ALWAYS, *flat), tmp_path / "output")
    assert kill_when(process, lambda: 70 <= newest(path / "checkpoints") < 200)
    assert main(["train", f"resume={path}", RARE]) == 0
    assert (path / "policy.pt").read_bytes() == (tmp_path / "undisturbed" / "policy.pt").read_bytes()
    assert without_time(path) == without_time(tmp_path / "undisturbed")
    assert any("lipschitz/value_error" in row for row in read_metrics(path))


def test_a_stop_ends_the_sweep(reference: Reference, tmp_path: Path) -> None:
    words = reference.words(tmp_path, reference.store, FREQUENT)
    words = [word for word in words if not word.startswith("run_dir=")]
    sweep = tmp_path / "sweep"
    process = start([*words, "-m", "seed=0,1", f"hydra.sweep.dir={sweep}"], tmp_path / "output")
    while process.is_alive() and not after_update(sweep / "seed=0", 60):
        time.sleep(0.001)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    assert meta(sweep / "seed=0")["status"] == "interrupted"
    assert not (sweep / "seed=1").exists()
    assert main(["train", f"resume={sweep / 'seed=0'}"]) == 0
    reference.assert_equal(sweep / "seed=0")


# -- signals -----------------------------------------------------------------------------------------------------------


def command(words: list[str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mbrl.cli", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def test_sigterm_and_sigint_save_and_say_how_to_go_on(reference: Reference, tmp_path: Path) -> None:
    moments: dict[str, tuple[signal.Signals, Callable[[Path], bool]]] = {
        "term-in-fit": (signal.SIGTERM, lambda path: inside_fit(path, 1)),
        "int-in-training": (signal.SIGINT, lambda path: after_update(path, 60)),
        "int-in-background": (signal.SIGINT, under_way),
    }
    processes = {}
    for name in moments:
        store, often = (tmp_path / "store", ALWAYS) if "fit" in name else (reference.store, FREQUENT)
        background = f"eval.background={'background' in name}".lower()
        processes[name] = command(reference.words(tmp_path / name, store, often, background))
    waiting = dict(moments)
    deadline = time.monotonic() + 300  # a crowded machine is slow
    while waiting and time.monotonic() < deadline:
        for name, (number, here) in list(waiting.items()):
            if here(tmp_path / name):
                processes[name].send_signal(number)
                del waiting[name]
        time.sleep(0.001)
    for name, process in processes.items():
        path = tmp_path / name
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert f"mbrl train resume={path}" in output
        assert "Traceback" not in output
        assert meta(path)["status"] == "interrupted"
        summary = json.loads((path / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert summary["updates"] < UPDATES
        if name == "int-in-background":  # the one under way has been waited for
            assert summary["evaluations"] == summary["updates"] // EVALUATE_EVERY
            assert without_time(path)[-1]["update"] == summary["updates"] // 50 * 50
        if name == "term-in-fit":
            assert summary["updates"] == 0
            assert 1 <= newest(path / "dynamics" / "unfinished") < EPOCHS
        assert main(["train", f"resume={path}", RARE]) == 0
        reference.assert_equal(path)
