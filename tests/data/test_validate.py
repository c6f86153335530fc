"""Each malformed dataset gets its own error: file, field, first bad row, what was expected, what to do."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mbrl.data.sources import DatasetError, load_dataset
from mbrl.data.validate import duplicate_share, joined_rows

ROWS = 60
Arrays = dict[str, Any]


def healthy() -> Arrays:
    """Six episodes of ten steps: a walk of three numbers; even episodes terminate, odd ones run out of time."""
    source = np.random.default_rng(0)
    walk = source.normal(size=(6, 11, 3)).astype(np.float32)
    last = np.arange(ROWS) % 10 == 9
    even = (np.arange(ROWS) // 10) % 2 == 0
    return {
        "observations": walk[:, :-1].reshape(ROWS, 3).copy(),
        "actions": source.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": source.normal(size=ROWS).astype(np.float32),
        "next_observations": walk[:, 1:].reshape(ROWS, 3).copy(),
        "terminals": last & even,
        "timeouts": last & ~even,
    }


def save_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def save_hdf5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values)
    return path


def put(key: str, position: Any, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key][position] = value

    return change


def swap(key: str, make: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = make(arrays[key])

    return change


def rename(old: str, new: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[new] = arrays.pop(old)

    return change


def index(values: list[float]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        del arrays["timeouts"]
        arrays["index"] = np.asarray(values)

    return change


def cut(rows: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for key in arrays:
            arrays[key] = arrays[key][:rows]

    return change


def forget(*keys: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for key in keys:
            del arrays[key]

    return change


FAULTS: dict[str, tuple[Callable[[Arrays], None], tuple[str, ...]]] = {
    "nan observation": (put("observations", (17, 2), np.nan), ("`observations` row 17, column 2 is nan", "Repair")),
    "infinite next observation": (
        put("next_observations", (3, 0), -np.inf),
        ("`next_observations` row 3, column 0 is -inf", "float32"),
    ),
    "nan reward": (put("rewards", 41, np.nan), ("`rewards` row 41 is nan",)),
    "nan action": (put("actions", (5, 1), np.nan), ("`actions` row 5, column 1 is nan",)),
    "too large for float32": (
        swap("rewards", lambda r: np.where(np.arange(ROWS) == 8, 1e300, r.astype(np.float64))),
        ("`rewards` row 8 is", "float32 can hold"),
    ),
    "unbounded action": (put("actions", (7, 0), 3e7), ("`actions` row 7, column 0 is", "bounded actions", "Clip")),
    "flat observations": (swap("observations", lambda o: o[:, 0]), ("shape (60,)", "reshape(-1, 1)")),
    "flat actions": (swap("actions", lambda a: a[:, 0]), ("`actions` has shape (60,)", "(rows, dimensions)")),
    "three-dimensional observations": (
        swap("observations", lambda o: o.reshape(ROWS, 3, 1)),
        ("shape (60, 3, 1)", "reshape(len(observations), -1)"),
    ),
    "images": (
        swap("observations", lambda o: np.zeros((ROWS, 8, 8, 3), np.uint8)),
        ("looks like images", "pixels is not supported", "encode"),
    ),
    "two rewards per row": (
        swap("rewards", lambda r: np.stack([r, r], 1)),
        ("`rewards` has shape (60, 2)", "one number"),
    ),
    "no observation columns": (swap("observations", lambda o: o[:, :0]), ("no columns",)),
    "shorter rewards": (swap("rewards", lambda r: r[:-5]), ("`rewards` has 55 rows, `observations` has 60",)),
    "one observation too many": (
        swap("observations", lambda o: np.concatenate([o, o[:1]])),
        ("has 60 rows, `observations` has 61", "drop the last"),
    ),
    "narrower next observations": (
        swap("next_observations", lambda o: o[:, :2]),
        ("`next_observations` has 2 columns, `observations` has 3",),
    ),
    "misspelt observations": (
        rename("observations", "obsevations"),
        ("no `observations`", "Is it `obsevations`?", "rename"),
    ),
    "no actions": (forget("actions"), ("no `actions`", "the file has", "timeouts")),
    "no terminals": (forget("terminals"), ("no `terminals`", "array of zeros")),
    "terminal is a count": (
        swap("terminals", lambda t: np.cumsum(t)),
        ("`terminals` row 29 is 2", "Expected 0 or 1", "episode_id"),
    ),
    "nan terminal": (
        swap("terminals", lambda t: np.where(np.arange(ROWS) == 4, np.nan, t)),
        ("`terminals` row 4 is nan", "Expected 0 or 1"),
    ),
    "complex rewards": (swap("rewards", lambda r: r.astype(np.complex64)), ("dtype complex64", "real numbers")),
    "next observations are a copy": (
        lambda arrays: arrays.update(next_observations=arrays["observations"]),
        ("is a copy of `observations`",),
    ),
    "falling index": (index([0, 20, 10, 30]), ("`index` entry 2 is 10 after 20", "not increasing")),
    "repeated index": (index([0, 10, 10, 30]), ("`index` entry 2 is 10 after 10", "remove repeats")),
    "index out of range": (index([0, 10, 61]), ("`index` entry 2 is 61: out of range",)),
    "negative index": (index([-10, 0, 10]), ("`index` entry 0 is -10: out of range",)),
    "index of last rows": (index([9, 19, 29, 39, 49, 59]), ("begin with 0 or end with 60", "add 1")),
    "index of fractions": (index([0, 10.5]), ("`index` entry 1 is 10.5", "whole numbers")),
    "no rows": (cut(0), ("has 0 rows",)),
    "one row": (cut(1), ("has 1 row", "at least 2")),
    "neither next observations nor ends": (
        lambda arrays: (
            forget("next_observations", "timeouts")(arrays),
            arrays.update(terminals=np.zeros(ROWS, bool)),
        ),
        ("neither next observations nor episode ends", "reset"),
    ),
}


@pytest.mark.parametrize("save", [save_npz, save_hdf5])
@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_arrays(fault: str, save: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    change, words = FAULTS[fault]
    arrays = healthy()
    change(arrays)
    path = save(tmp_path / ("log.npz" if save is save_npz else "log.hdf5"), arrays)
    with pytest.raises(DatasetError) as error:
        load_dataset(str(path))
    for word in (str(path), *words):
        assert word in str(error.value)


def test_every_fault_has_its_own_message(tmp_path: Path) -> None:
    messages = set()
    for change, _ in FAULTS.values():
        arrays = healthy()
        change(arrays)
        with pytest.raises(DatasetError) as error:
            load_dataset(str(save_npz(tmp_path / "log.npz", arrays)))
        messages.add(str(error.value))
    assert len(messages) == len(FAULTS) >= 25


def truncated_hdf5(folder: Path) -> Path:
    path = save_hdf5(folder / "cut.hdf5", healthy())
    path.write_bytes(path.read_bytes()[:-500])
    return path


def renamed_text(folder: Path) -> Path:
    path = folder / "notes.hdf5"
    path.write_text("not an HDF5 file at all")
    return path


def hdf5_with_groups(folder: Path) -> Path:
    path = folder / "nested.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in healthy().items():
            if key != "observations":
                file[key] = values
        file["observations/joints"] = np.zeros((ROWS, 2))
    return path


def hdf5_of_strings(folder: Path) -> Path:
    return save_hdf5(folder / "words.hdf5", {**healthy(), "rewards": ["good"] * ROWS})


def npz_of_strings(folder: Path) -> Path:
    return save_npz(folder / "words.npz", {**healthy(), "rewards": np.array(["good"] * ROWS)})


def npz_of_objects(folder: Path) -> Path:
    return save_npz(folder / "objects.npz", {**healthy(), "rewards": np.array([None] * ROWS)})


def truncated_npz(folder: Path) -> Path:
    path = save_npz(folder / "cut.npz", healthy())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def damaged_npz(folder: Path) -> Path:
    path = save_npz(folder / "damaged.npz", healthy())
    content = bytearray(path.read_bytes())
    content[300:340] = b"\0" * 40
    path.write_bytes(content)
    return path


def zip_without_arrays(folder: Path) -> Path:
    path = folder / "texts.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    return path


def pickle_by_name(folder: Path) -> Path:
    path = folder / "buffer.pkl"
    path.write_bytes(pickle.dumps({"observations": [1.0]}))
    return path


def pickle_in_disguise(folder: Path) -> Path:
    path = folder / "buffer.hdf5"
    path.write_bytes(pickle.dumps({"observations": [1.0]}))
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.npz"
    path.touch()
    return path


def table(folder: Path) -> Path:
    path = folder / "log.csv"
    path.write_text("observation,action\n1,2\n")
    return path


def bare_folder(folder: Path) -> Path:
    (folder / "plots").mkdir()
    return folder


def inner_minari_file(folder: Path) -> Path:
    path = folder / "main_data.hdf5"
    with h5py.File(path, "w") as file:
        file["episode_0/rewards"] = np.zeros(3)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated_hdf5, ("truncated or damaged HDF5", "again")),
        (renamed_text, ("named .hdf5 but not an HDF5 file",)),
        (hdf5_with_groups, ("`observations` is a group with joints", "Concatenate")),
        (hdf5_of_strings, ("`rewards` has dtype object", "real numbers")),
        (npz_of_strings, ("`rewards` has dtype <U4", "real numbers")),
        (npz_of_objects, ("`rewards`", "Python objects", "float32")),
        (truncated_npz, ("not an .npz archive, or cut off",)),
        (damaged_npz, ("`observations`", "damaged", "again")),
        (zip_without_arrays, ("zip file without arrays",)),
        (pickle_by_name, ("a pickle", "refused", "numpy.savez")),
        (pickle_in_disguise, ("a pickle", "refused")),
        (empty_file, ("0 bytes",)),
        (table, ("unknown file type '.csv'", "builtin:pendulum")),
        (bare_folder, ("no Minari dataset", "it has plots")),
        (inner_minari_file, ("inner file of a Minari dataset", "folder")),
    ],
)
def test_malformed_files(make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(DatasetError) as error:
        load_dataset(str(path))
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "log.npz", healthy())
    path.chmod(0)
    with pytest.raises(DatasetError, match="not readable by this user"):
        load_dataset(str(path))


def warnings_of(tmp_path: Path, change: Callable[[Arrays], Any]) -> str:
    arrays = healthy()
    change(arrays)
    return "\n".join(load_dataset(str(save_npz(tmp_path / "log.npz", arrays))).warnings)


def test_healthy_file_has_no_warnings(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, lambda arrays: None) == ""


def shuffle(arrays: Arrays) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    for key in arrays:
        arrays[key] = arrays[key][order]


def repeat(arrays: Arrays) -> None:
    for key in arrays:
        arrays[key] = np.concatenate([arrays[key]] * 3)


def time_limits_as_terminals(arrays: Arrays) -> None:
    arrays["terminals"] = arrays["terminals"] | arrays.pop("timeouts")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("observations", (slice(None), 1), 0.5), ("`observations` is constant in column 1",)),
        (put("rewards", slice(None), 0.0), ("`rewards` is 0 in every row",)),
        (put("rewards", slice(None), 1.0), ("`rewards` is 1 in every row",)),
        (repeat, ("MOST ROWS ARE COPIES: 67%",)),
        (shuffle, ("rows are shuffled", "returns and lengths mean nothing")),
        (time_limits_as_terminals, ("all 6 terminals come at step 10", "looks like a time limit")),
        (
            lambda arrays: arrays.update(terminals=arrays["terminals"] | arrays["timeouts"]),
            ("3 rows are flagged both `terminals` and `timeouts` (first: row 19)",),
        ),
        (
            lambda arrays: (forget("timeouts")(arrays), rename("terminals", "done")(arrays)),
            ("`done` stands alone", "taken as terminal"),
        ),
        (
            lambda arrays: arrays.update(terminals=np.zeros(ROWS, bool), timeouts=np.zeros(ROWS, bool)),
            ("no episode end is marked in the whole file",),
        ),
        (
            lambda arrays: arrays.update(actions=np.arange(ROWS).reshape(-1, 1) % 2),
            ("`actions` takes only the 2 whole numbers 0, 1.", "Discrete actions are not supported"),
        ),
        (
            forget("timeouts"),
            ("every 10 steps `next_observations` differs", "(first: row 19): probably time limits", "Save `timeouts`"),
        ),
        (
            lambda arrays: (forget("timeouts")(arrays), arrays.update(terminals=np.zeros(ROWS, bool))),
            ("(first: row 9): probably time limits that are not marked",),
        ),
        (lambda arrays: arrays.update(terminals=np.ones(ROWS, bool)), ("set in every row", "inverted")),
    ],
)
def test_suspicious_content_is_a_warning(
    change: Callable[[Arrays], Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    warnings = warnings_of(tmp_path, change)
    for word in words:
        assert word in warnings


def test_episode_longer_than_the_environment_allows(tmp_path: Path) -> None:
    rows = 300
    walk = np.cumsum(np.random.default_rng(0).normal(size=(rows + 1, 3)), 0)
    arrays = {
        "observations": walk[:-1],
        "next_observations": walk[1:],
        "actions": np.linspace(-1, 1, rows)[:, None],
        "rewards": np.arange(rows),
        "terminals": np.zeros(rows),
        "timeouts": np.arange(rows) == rows - 1,
        "env_id": "Pendulum-v1",
    }
    (warning,) = load_dataset(str(save_npz(tmp_path / "log.npz", arrays))).warnings
    assert "episode 0 has 300 steps, more than the environment's limit of 200" in warning


def test_duplicate_share_counts_repeated_rows_only() -> None:
    obs = np.arange(40, dtype=np.float32).reshape(20, 2)
    arrays = {"obs": obs, "action": obs + 1, "reward": obs[:, 0].copy()}
    assert duplicate_share(arrays) == 0
    arrays["obs"] = obs.copy()
    for values in arrays.values():
        values[3] = values[11]
    assert duplicate_share(arrays) == pytest.approx(1 / 20)
    arrays["reward"][3] += 1
    assert duplicate_share(arrays) == 0


def test_joined_rows_tells_a_reset_from_a_log_that_goes_on() -> None:
    steps = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    on = np.cumsum(steps, 0, dtype=np.float32)
    end = np.arange(200) % 20 == 19
    assert not joined_rows(on[:-1], on[1:], end[:-1]).any()
    resets = on + 100.0 * (np.arange(200) // 20 % 2)[:, None].astype(np.float32)
    joined = joined_rows(resets[:-1], resets[1:], end[:-1])
    np.testing.assert_array_equal(np.flatnonzero(joined), np.flatnonzero(end[:-1]))
