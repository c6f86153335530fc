from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import POSIX

from mbrl.checkpoint import CheckpointError, atomic_write, load_checkpoint, load_latest, save_checkpoint


def small_state(step: int) -> dict[str, object]:
    return {"step": step, "weights": [torch.full((50,), float(step))], "rate": 3e-4, "name": "sac", "none": None}


def test_round_trip_of_nested_state(tmp_path: Path) -> None:
    state = {
        "tensor": torch.arange(6, dtype=torch.int64).view(2, 3),
        "parameter": torch.nn.Parameter(torch.tensor([1.5])),
        "optimiser": {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)},
        "numbers": [1, 2.5, True, None, "text"],
        "not_a_number": float("nan"),
    }
    path = save_checkpoint(tmp_path, 12_000, state)
    assert path == tmp_path / "step_000012000.pt"
    loaded = load_latest(tmp_path)
    assert loaded is not None
    step, got = loaded
    assert step == 12_000
    assert torch.equal(got["tensor"], state["tensor"])
    assert got["parameter"].item() == 1.5
    assert got["optimiser"]["state"][0]["step"].item() == 3.0
    assert got["optimiser"]["betas"] == (0.9, 0.999)
    assert got["numbers"] == [1, 2.5, True, None, "text"]
    assert np.isnan(got["not_a_number"])


def test_optimiser_and_generator_states_are_storable(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    generator = torch.Generator().manual_seed(7)
    state = {"net": layer.state_dict(), "optimiser": optimiser.state_dict(), "generator": generator.get_state()}
    got = load_checkpoint(save_checkpoint(tmp_path, 1, state))
    optimiser.load_state_dict(got["optimiser"])
    assert torch.equal(got["generator"], generator.get_state())


def test_plain_torch_load_reads_the_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, small_state(5))
    assert torch.load(path, weights_only=True)["step"] == 5


def test_a_view_is_saved_without_the_storage_behind_it(tmp_path: Path) -> None:
    ring = torch.arange(1_000_000, dtype=torch.float32)
    path = save_checkpoint(tmp_path, 1, {"rows": ring[:100]})
    assert path.stat().st_size < 10_000
    assert torch.equal(load_checkpoint(path)["rows"], ring[:100])


class Pair(NamedTuple):
    a: int


@pytest.mark.parametrize("bad", [np.float64(1.0), np.int64(1), np.zeros(2), Pair(1), Path("x"), {1, 2}, lambda: 0])
def test_other_types_are_refused_with_their_key_path(tmp_path: Path, bad: object) -> None:
    with pytest.raises(CheckpointError, match=r"state\['learner'\]\['critics'\]\[1\] is a "):
        save_checkpoint(tmp_path, 1, {"learner": {"critics": [1.0, bad]}})
    assert list(tmp_path.iterdir()) == []


def test_other_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\['a'\] has the key 1\.5"):
        save_checkpoint(tmp_path, 1, {"a": {1.5: 0}})


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".step_000000001.pt.abc.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (100, 200, 300, 1_000_000_000):
        save_checkpoint(tmp_path, step, small_state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step_000000300.pt", "step_1000000000.pt"]
    save_checkpoint(tmp_path, 400, small_state(400), keep=1)  # a run that went on from 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step_000000400.pt"]


def test_a_damaged_checkpoint_is_not_counted_among_the_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 100, small_state(100))
    middle = save_checkpoint(tmp_path, 200, small_state(200))
    middle.write_bytes(middle.read_bytes()[:-1])
    save_checkpoint(tmp_path, 300, small_state(300))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000100.pt", "step_000000300.pt"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def test_every_truncation_and_bit_flip_is_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 100, small_state(100))
    path = save_checkpoint(tmp_path, 200, small_state(200))
    good = path.read_bytes()
    rng = random.Random(0)
    lengths = [*range(45), *(len(good) - n for n in range(1, 45)), *(rng.randrange(len(good)) for _ in range(100))]
    damaged = [good[:length] for length in lengths]
    offsets = [*range(len(good) - 45, len(good)), *(rng.randrange(len(good)) for _ in range(200))]
    for offset in offsets:
        flipped = bytearray(good)
        flipped[offset] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged.append(good + b"\0")
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="step_000000200"):
            load_checkpoint(path)
    with pytest.warns(RuntimeWarning, match=r"damaged checkpoint.*step_000000200\.pt"):
        loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded[0] == 100
    assert torch.equal(loaded[1]["weights"][0], torch.full((50,), 100.0))


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    for path in [save_checkpoint(tmp_path, step, small_state(step)) for step in (100, 200)]:
        path.write_bytes(path.read_bytes()[:1000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"step_000000100\.pt, step_000000200\.pt"):
            load_latest(tmp_path)


def test_atomic_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, lambda file: file.write(b"old"))

    def broken(file: object) -> None:
        file.write(b"new")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


WRITER = """
import sys, torch
from pathlib import Path
from mbrl.checkpoint import load_latest, save_checkpoint
folder = Path(sys.argv[1])
found = load_latest(folder)
step = found[0] if found else 0
while True:
    step += 1
    save_checkpoint(folder, step, {"step": step, "weights": torch.full((300_000,), float(step))})
    print(step, flush=True)
"""


@POSIX
def test_killed_at_random_moments_there_is_always_a_good_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(1)
    before = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load_latest(tmp_path)
        assert found is not None
        step, state = found
        assert step > before
        assert step >= max(said, default=0)  # what was reported as saved is there
        assert state["step"] == step
        assert torch.equal(state["weights"], torch.full((300_000,), float(step)))
        before = step
    save_checkpoint(tmp_path, before + 1, {"step": before + 1})
    assert not list(tmp_path.glob(".*"))
