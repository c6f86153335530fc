from __future__ import annotations

import csv
import io
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import POSIX
from rich.console import Console

from mbrl import types
from mbrl.checkpoint import load_latest, save_checkpoint
from mbrl.log import RunLogger, read_metrics


def make(run_dir: Path, sinks: tuple[str, ...] = (), seeds: tuple[int, ...] = (0,), **options: Any) -> RunLogger:
    return RunLogger(run_dir, sinks, seeds=seeds, total_updates=1000, console=Console(quiet=True), **options)


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def csv_rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_satisfies_the_protocol(tmp_path: Path) -> None:
    logger: types.Logger = make(tmp_path)
    logger.add({"loss": torch.tensor(1.0)}, "learner")
    assert logger.flush(1)["learner/loss"] == 1.0


def test_mean_since_the_last_flush_per_seed_and_over_seeds(tmp_path: Path) -> None:
    logger = make(tmp_path, seeds=(3, 7))
    logger.add({"critic_loss": torch.tensor([1.0, 3.0]), "alpha": torch.tensor(0.5)}, "learner")
    logger.add({"critic_loss": torch.tensor([2.0, 6.0])}, "learner")
    logger.add({"steps": 4}, "loop")
    row = logger.flush(10)
    logger.add({"critic_loss": torch.tensor([0.0, 1.0])}, "learner")
    logger.flush(20)
    assert without_time([row]) == [
        {
            "learner/critic_loss": 3.0,
            "learner/critic_loss/seed_3": 1.5,
            "learner/critic_loss/seed_7": 4.5,
            "learner/alpha": 0.5,
            "loop/steps": 4.0,
        }
    ]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["update", "update"]
    assert json.loads(lines[0]) == {"update": 10, **row}
    assert json.loads(lines[1])["learner/critic_loss"] == 0.5
    assert "learner/alpha" not in json.loads(lines[1])


def test_one_seed_has_no_per_seed_columns(tmp_path: Path) -> None:
    logger = make(tmp_path, seeds=(5,))
    logger.add({"loss": torch.tensor([2.0])})
    assert without_time([logger.flush(1)]) == [{"loss": 2.0}]


def test_the_callers_memory_may_be_reused(tmp_path: Path) -> None:
    logger = make(tmp_path)
    value = torch.tensor(1.0)
    for number in (1.0, 2.0, 6.0):
        value.fill_(number)  # as a replayed CUDA graph does
        logger.add({"loss": value})
    assert logger.flush(1)["loss"] == 3.0


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    logger = make(tmp_path, seeds=(0, 1))
    with pytest.raises(ValueError, match=r"metric 'q/loss' has shape \(3,\), expected \(\) or \(2,\)"):
        logger.add({"loss": torch.zeros(3)}, "q")
    logger.add({"loss": torch.zeros(2)}, "q")
    with pytest.raises(ValueError, match=r"metric 'q/loss' has shape \(\), was \(2,\) before"):
        logger.add({"loss": torch.zeros(())}, "q")


def test_add_never_reads_a_number(tmp_path: Path) -> None:
    # Meta tensors have no numbers: any read of one raises.
    logger = make(tmp_path, seeds=(0, 1))
    metrics = {"a": torch.zeros(2, device="meta"), "b": torch.zeros((), device="meta", dtype=torch.int64)}
    logger.add(metrics, "x")
    logger.add(metrics, "x")
    with pytest.raises(Exception, match="meta"):
        logger.flush(1)


def test_flush_is_one_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make(tmp_path)
    for _ in range(3):
        logger.add({f"m{i}": torch.tensor(float(i)) for i in range(20)})
    reads: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (reads.append(self.numel()), tolist(self))[1])
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("item() is a transfer of its own"))
    row = logger.flush(1)
    assert reads == [20]
    assert [row[f"m{i}"] for i in range(20)] == list(range(20))


def test_events_and_flush_of_one_step_share_a_row(tmp_path: Path) -> None:
    logger = make(tmp_path)
    logger.log_event(0, {"eval/return": 5.0})
    logger.log_event(0, {"eval/score": 1.0})
    logger.add({"loss": 1.0})
    logger.flush(10)
    logger.log_event(10, {"eval/return": 7.0})
    assert without_time(read_metrics(tmp_path)) == [
        {"update": 0, "eval/return": 5.0, "eval/score": 1.0},
        {"update": 10, "loss": 1.0, "eval/return": 7.0},
    ]
    assert [(r["update"], r["eval/return"], r["loss"]) for r in csv_rows(tmp_path)] == [
        ("0", "5.0", ""),
        ("10", "7.0", "1.0"),
    ]
    with pytest.raises(ValueError, match="row of update 9 comes after that of update 10"):
        logger.log_event(9, {"eval/return": 7.0})


def test_rows_are_held_back_until_late_numbers_are_in(tmp_path: Path) -> None:
    for name in ("at_once", "late"):
        (tmp_path / name).mkdir()
    at_once, late = (make(tmp_path / name) for name in ("at_once", "late"))
    for step in range(2, 12, 2):
        if step in (4, 8):
            at_once.log_event(step, {"eval/return": float(step)})
        if step == 8:
            late.log_event(4, {"eval/return": 4.0})
            late.release()
        if step in (4, 8):
            late.hold()
        for logger in (at_once, late):
            logger.add({"loss": float(step)})
            assert logger.flush(step)["loss"] == step
    assert [row["update"] for row in read_metrics(tmp_path / "late")] == [2, 4, 6]
    with pytest.raises(ValueError, match="row of update 9 comes after that of update 10"):
        late.log_event(9, {"eval/return": 1.0})
    with pytest.raises(ValueError, match="row of update 6 comes after that of update 10"):
        late.log_event(6, {"eval/return": 1.0})  # has been written
    late.log_event(8, {"eval/return": 8.0})
    late.release()
    found, expected = (without_time(read_metrics(tmp_path / name)) for name in ("late", "at_once"))
    assert found == expected
    assert [list(row) for row in found] == [list(row) for row in expected]
    assert without_time(csv_rows(tmp_path / "late")) == without_time(csv_rows(tmp_path / "at_once"))


def test_what_is_held_back_is_neither_lost_at_a_failure_nor_at_a_resume(tmp_path: Path) -> None:
    first = make(tmp_path, seeds=(0, 1))
    steps(first, 1, 3)
    first.hold()
    steps(first, 4, 7)
    save_checkpoint(tmp_path / "checkpoints", 7, first.state_dict())
    steps(first, 8, 9)
    assert [row["update"] for row in read_metrics(tmp_path)] == [2]
    first.close("failed")
    assert [row["update"] for row in read_metrics(tmp_path)] == [2, 4, 6, 8]
    loaded = load_latest(tmp_path / "checkpoints")
    assert loaded is not None
    second = make(tmp_path, seeds=(0, 1))
    second.load_state_dict(loaded[1])
    assert [row["update"] for row in read_metrics(tmp_path)] == [2]
    second.log_event(4, {"eval/late": 3.0})
    second.release()
    steps(second, 8, 10)
    rows = read_metrics(tmp_path)
    assert [row["update"] for row in rows] == [2, 4, 6, 8, 10]
    assert [row.get("eval/late") for row in rows] == [None, 3.0, None, 1.0, None]


def test_csv_columns_may_come_late(tmp_path: Path) -> None:
    logger = make(tmp_path)
    for step in range(1, 4):
        logger.add({"loss": float(step)})
        logger.flush(step)
    logger.log_event(3, {"a,b": 1.5})  # a name that needs quotes
    logger.log_event(4, {"loss": 4.0})
    rows = csv_rows(tmp_path)
    assert list(rows[0]) == ["update", "loss", "time/seconds", "time/updates_per_second", "a,b"]
    assert [row["loss"] for row in rows] == ["1.0", "2.0", "3.0", "4.0"]
    assert [row["a,b"] for row in rows] == ["", "", "1.5", ""]


def test_nan_is_null_in_json_and_nan_in_csv(tmp_path: Path) -> None:
    logger = make(tmp_path, seeds=(0, 1))
    logger.add({"loss": torch.tensor([float("nan"), 1.0]), "q": torch.tensor(float("inf"))})
    row = logger.flush(1)
    assert math.isnan(row["loss"])

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    parsed = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (parsed["loss"], parsed["loss/seed_0"], parsed["loss/seed_1"], parsed["q"]) == (None, None, 1.0, None)
    written = csv_rows(tmp_path)[0]
    assert (written["loss"], written["loss/seed_1"], written["q"]) == ("nan", "1.0", "nan")


def test_a_new_run_replaces_an_old_log_and_an_unknown_sink_is_named(tmp_path: Path) -> None:
    make(tmp_path).log_event(5, {"old": 1.0})
    make(tmp_path, ("files",)).log_event(1, {"new": 1.0})
    assert read_metrics(tmp_path) == [{"update": 1, "new": 1.0}]
    with pytest.raises(ValueError, match=r"'tensorbord' is unknown.*did you mean 'tensorboard'"):
        make(tmp_path, ("tensorbord",))


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(tmp_path: Path, sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, sink, None)
    with pytest.raises(ModuleNotFoundError, match=rf"offline-mbrl\[{sink}\]"):
        make(tmp_path, (sink,))


def steps(logger: RunLogger, first: int, last: int) -> None:
    for step in range(first, last + 1):
        logger.add({"loss": torch.tensor([step * 1.0, step * 2.0])}, "learner")
        if step % 2 == 0:
            logger.flush(step)
        if step % 4 == 0:
            logger.log_event(step, {"eval/return": step * 10.0} if step < 8 else {"eval/late": 1.0})


@pytest.mark.parametrize("checkpoint_at", [1, 2, 3, 4, 6, 8])
def test_resume_leaves_neither_gap_nor_repeat(tmp_path: Path, checkpoint_at: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    steps(make(whole, seeds=(0, 1)), 1, 12)
    first = make(broken, seeds=(0, 1))
    steps(first, 1, checkpoint_at)
    save_checkpoint(tmp_path / "checkpoints", checkpoint_at, first.state_dict())
    if checkpoint_at == 2:
        first.log_event(2, {"eval/return": -1.0})  # the last row grows after the checkpoint, then everything dies
    steps(first, checkpoint_at + 1, 10)
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"update": 12, "learner/lo')
    loaded = load_latest(tmp_path / "checkpoints")
    assert loaded is not None
    second = make(broken, seeds=(0, 1))
    second.load_state_dict(loaded[1])
    steps(second, checkpoint_at + 1, 12)
    assert without_time(read_metrics(broken)) == without_time(read_metrics(whole))
    assert without_time(csv_rows(broken)) == without_time(csv_rows(whole))
    assert list(csv_rows(broken)[0]) == list(csv_rows(whole)[0])
    times = [row["time/seconds"] for row in read_metrics(broken)]
    assert times == sorted(times)


KILLED = """
import sys, torch
from pathlib import Path
from rich.console import Console
from mbrl.checkpoint import load_latest, save_checkpoint
from mbrl.log import RunLogger
run = Path(sys.argv[1])
logger = RunLogger(run, seeds=[0], total_updates=10**9, console=Console(quiet=True))
found = load_latest(run / "checkpoints")
step = 0
if found:
    step, state = found
    logger.load_state_dict(state)
print("ready", flush=True)
while True:
    step += 1
    logger.add({"loss": torch.tensor(float(step))})
    if step % 3 == 0:
        logger.flush(step)
    if step % 50 == 0:
        save_checkpoint(run / "checkpoints", step, logger.state_dict())
"""


@POSIX
def test_killed_runs_continue_their_log(tmp_path: Path) -> None:
    for seconds in (0.2, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    logger = make(tmp_path)
    logger.load_state_dict(found[1])
    rows = read_metrics(tmp_path)
    assert [row["update"] for row in rows] == list(range(3, found[0] + 1, 3))
    assert [row["loss"] for row in rows] == [row["update"] - 1.0 for row in rows]


def test_lost_rows_are_reported_and_do_not_stop_a_resume(tmp_path: Path) -> None:
    first = make(tmp_path)
    for step in (1, 2, 3):
        first.log_event(step, {"a": float(step)})
    state = first.state_dict()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    second = make(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl: 2 rows up to update 3 where the checkpoint counted 3"):
        second.load_state_dict(state)
    assert [row["update"] for row in read_metrics(tmp_path)] == [1, 3]
    with pytest.raises(RuntimeError, match="load its state first"):
        second.load_state_dict(state)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_each_row_once_after_a_resume(tmp_path: Path) -> None:
    first = make(tmp_path, ("tensorboard",), seeds=(0, 1))
    steps(first, 1, 4)
    state = first.state_dict()
    steps(first, 5, 10)
    first.close("failed")
    time.sleep(1.1)  # event files are ordered by the second in their names
    second = make(tmp_path, ("tensorboard",), seeds=(0, 1))
    second.load_state_dict(state)
    steps(second, 5, 12)
    second.close("finished")
    found = scalars(tmp_path / "tensorboard")
    assert found["learner/loss"] == [(step, (2 * step - 1) / 2 * 1.5) for step in range(2, 13, 2)]
    assert found["eval/return"] == [(4, 40.0)]
    assert found["eval/late"] == [(8, 1.0), (12, 1.0)]


def wandb_history(offline_run: Path) -> dict[int, dict[str, Any]]:
    """History rows of a `.wandb` file: LevelDB's log format (7 bytes of header, 32 KiB blocks) of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data = next(offline_run.glob("*.wandb")).read_bytes()
    rows: dict[int, dict[str, Any]] = {}
    offset, payload = 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        length, kind = int.from_bytes(data[offset + 4 : offset + 6], "little"), data[offset + 6]
        payload += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            if record.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                rows.setdefault(record.history.step.num, {}).update(items)
    return rows


def test_wandb_offline_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = make(tmp_path, ("wandb",), seeds=(0, 1), config={"algo": "mopo"}, name="trial")
    steps(logger, 1, 4)
    state = logger.state_dict()
    logger.close("interrupted")
    logger = make(tmp_path, ("wandb",), seeds=(0, 1), config={"algo": "mopo"}, name="trial")
    logger.load_state_dict(state)
    steps(logger, 5, 8)
    logger.close("finished")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(f"-{state['wandb_id']}" in run.name for run in runs)
    deadline = time.monotonic() + 20.0  # wandb's own process may still be writing
    while (histories := [wandb_history(run) for run in runs]) and time.monotonic() < deadline:
        if [sorted(history) for history in histories] == [[2, 4], [4, 6, 8]]:
            break
        time.sleep(0.1)
    first, second = histories
    assert (sorted(first), sorted(second)) == ([2, 4], [4, 6, 8])
    assert first[4]["learner/loss"] == 5.25
    assert first[4]["eval/return"] == second[4]["eval/return"] == 40.0
    assert second[8]["eval/late"] == 1.0


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it remembers the settings of earlier tests


@pytest.mark.usefixtures("logged_out")
def test_wandb_without_a_key_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in (None, "online"):
        with pytest.raises(ValueError, match=r"no API key.*`wandb login`.*wandb\.mode=offline"):
            make(tmp_path, ("wandb",), wandb_mode=mode)
    make(tmp_path, ("wandb",), wandb_mode="offline")
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password secret\n")
    with pytest.raises(ValueError, match="no API key"):
        make(tmp_path, ("wandb",))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    make(tmp_path, ("wandb",))
    monkeypatch.setenv("NETRC", str(tmp_path / "nowhere"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    make(tmp_path, ("wandb",))


@pytest.mark.usefixtures("logged_out")
def test_what_wandb_refuses_is_one_line_and_the_run_still_ends(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    logger = make(tmp_path, ("wandb",), wandb_mode="online")
    (tmp_path / "netrc").unlink()  # wandb's own refusal without a network
    with pytest.raises(ValueError, match=r"logger=wandb: .*wandb\.mode=offline"):
        logger.log_event(1, {"loss": 1.0})
    logger.close("failed")


def test_progress_on_a_file_is_plain_lines_and_nothing_when_quiet(tmp_path: Path) -> None:
    text = io.StringIO()
    logger = RunLogger(tmp_path, seeds=(0,), total_updates=100, console=Console(file=text, width=40))
    with logger.progress("training [mopo]", 100, completed=10) as bar:
        for _ in range(45):
            bar.update(2, score=12.3456, model="good", loss=None)
    lines = text.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("training [mopo]  100/100  ")
    assert lines[0].endswith("0:00:00 left  score=12.35  model=good")
    assert "elapsed" in lines[0]
    quiet = io.StringIO()
    logger = RunLogger(tmp_path, seeds=(0,), total_updates=100, console=Console(file=quiet, quiet=True))
    with logger.progress("training", 100) as bar:
        bar.update(5, score=1.0)
    assert quiet.getvalue() == ""


def test_progress_without_a_known_end(tmp_path: Path) -> None:
    text = io.StringIO()
    logger = RunLogger(tmp_path, seeds=(0,), total_updates=100, console=Console(file=text, width=40))
    with logger.progress("fitting", None) as bar:
        bar.update(7, loss=0.5)
    (line,) = text.getvalue().splitlines()
    assert line.startswith("fitting  7  ")
    assert line.endswith("elapsed  loss=0.5")


def test_plain_lines_come_at_most_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mbrl.log.time.monotonic", lambda: now[0])
    text = io.StringIO()
    logger = RunLogger(tmp_path, seeds=(0,), total_updates=100, console=Console(file=text, width=200))
    with logger.progress("training", 1000) as bar:
        for _ in range(25):
            now[0] += 1.0
            bar.update(20)
    lines = [line.split("  ") for line in text.getvalue().splitlines()]
    assert [line[1] for line in lines] == ["200/1000", "400/1000", "500/1000"]
    assert lines[0][2:] == ["20/s", "0:00:10 elapsed", "0:00:40 left"]


def test_progress_on_a_terminal_is_live(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    logger = RunLogger(tmp_path, seeds=(0,), total_updates=100, console=console)
    with logger.progress("training [mopo]", 100_000) as bar:
        bar.update(100_000, score=55.5, critic_loss=0.123456, q=1.5)
    assert "training [mopo]" in text.getvalue()
    assert "100000/100000" in text.getvalue()
    assert "score=55.5" in text.getvalue()


def test_close_without_a_row(tmp_path: Path) -> None:
    make(tmp_path, ("tensorboard",) if shutil.which("tensorboard") else ()).close("failed")
