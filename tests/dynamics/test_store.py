from __future__ import annotations

import inspect
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from probes import random_data

from mbrl.checkpoint import load_latest, save_checkpoint
from mbrl.dynamics import ensemble
from mbrl.dynamics.ensemble import FitReport, GaussianEnsemble
from mbrl.dynamics.store import CODE, FitInterrupted, fit_or_load, store_key
from mbrl.rundir import lock

DATA = random_data(200)


def small(*seeds: int, **settings: Any) -> GaussianEnsemble:
    defaults: dict[str, Any] = {"members": 2, "elites": 1, "hidden": (8,), "batch_size": 32, "max_epochs": 4}
    return GaussianEnsemble(3, 2, seeds, **(defaults | settings))


def same(one: GaussianEnsemble, other: GaussianEnsemble) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def stored_file(root: Path, key: str, seed: int) -> Path:
    (path,) = (root / key / f"seed_{seed}").glob("step_*.pt")
    return path


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def test_the_second_run_does_not_fit(tmp_path: Path) -> None:
    first, second = small(0), small(0)
    epochs: list[FitReport] = []
    assert fit_or_load(first, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run1") == "fitted"
    found = fit_or_load(
        second, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run2", on_progress=epochs.append
    )
    assert found == "store"
    assert epochs == []
    assert same(first, second)


def test_a_run_keeps_its_own_model(tmp_path: Path) -> None:
    first, again = small(0), small(0)
    fit_or_load(first, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run")
    stored_file(tmp_path / "s", "k", 0).unlink()  # whatever others do to the store
    assert fit_or_load(again, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run") == "run"
    assert same(first, again)


def test_another_key_is_another_fit(tmp_path: Path) -> None:
    fit_or_load(small(0), DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run1")
    assert fit_or_load(small(0), DATA, key="l", root=tmp_path / "s", scratch=tmp_path / "run2") == "fitted"
    assert fit_or_load(small(1), DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run3") == "fitted"


def test_key_depends_on_data_settings_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"members": 7, "hidden": [200, 200], "learning_rate": 1e-3}
    key = store_key("data", settings)
    assert key == store_key("data", dict(reversed(settings.items())))  # order does not matter
    others = [
        store_key("other data", settings),
        store_key("data", settings | {"members": 5}),
        store_key("data", settings | {"max_epochs": 3}),
        store_key("data", settings, code=CODE[:-1]),
    ]
    source = inspect.getsource

    def edited(module: ModuleType) -> str:
        return source(module) + ("# edited" if module is ensemble else "")

    monkeypatch.setattr(inspect, "getsource", edited)
    others.append(store_key("data", settings))
    assert len({key, *others}) == 6


def test_a_damaged_stored_model_is_fitted_again(tmp_path: Path) -> None:
    first, second, third = small(0), small(0), small(0)
    fit_or_load(first, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run1")
    flip_a_byte(stored_file(tmp_path / "s", "k", 0))
    with pytest.warns(RuntimeWarning, match="damaged checkpoint"):
        assert fit_or_load(second, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run2") == "fitted"
    assert same(first, second)
    assert fit_or_load(third, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run3") == "store"


def test_stacked_and_single_runs_share_seeds(tmp_path: Path) -> None:
    root = tmp_path / "s"
    stacked, single = small(0, 1, 2), small(1)
    fit_or_load(stacked, DATA, key="k", root=root, scratch=tmp_path / "run1")
    assert fit_or_load(single, DATA, key="k", root=root, scratch=tmp_path / "run2") == "store"
    for name, tensor in stacked.state_dict().items():
        assert torch.equal(tensor[1:2], single.state_dict()[name]), name
    pair = small(2, 0)  # any choice and order of seeds
    assert fit_or_load(pair, DATA, key="k", root=root, scratch=tmp_path / "run3") == "store"
    assert torch.equal(pair.params[0][0], stacked.params[0][2])
    assert fit_or_load(small(2, 3), DATA, key="k", root=root, scratch=tmp_path / "run4") == "fitted"


def test_interrupted_fit_goes_on_bitwise(tmp_path: Path) -> None:
    straight = small(0, 1, max_epochs=6)
    straight.fit(DATA)
    scratch = tmp_path / "run"
    epochs: list[int] = []

    def on_progress(report: FitReport) -> None:
        epochs.append(report.epoch)

    for whole in (2, 3):  # interrupted twice, within the epoch that follows
        with pytest.raises(FitInterrupted, match="its last report is saved"):
            fit_or_load(
                small(0, 1, max_epochs=6), DATA, key="k", root=tmp_path / "s", scratch=scratch,
                on_progress=on_progress, should_stop=lambda: len(epochs) >= whole,  # noqa: B023
            )  # fmt: skip
    model = small(0, 1, max_epochs=6)
    found = fit_or_load(model, DATA, key="k", root=tmp_path / "s", scratch=scratch, on_progress=on_progress)
    assert found == "fitted"
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert same(model, straight)
    assert not list((scratch / "unfinished").glob("*.pt"))


def interrupt(root: Path, scratch: Path) -> None:
    """Begin a fit and stop it in its second epoch."""
    epochs: list[FitReport] = []
    with pytest.raises(FitInterrupted):
        fit_or_load(
            small(0), DATA, key="k", root=root, scratch=scratch,
            on_progress=epochs.append, should_stop=lambda: len(epochs) == 1,
        )  # fmt: skip
    assert len(epochs) == 1


def test_a_stop_in_the_first_epoch_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(FitInterrupted):
        fit_or_load(small(0), DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run", should_stop=lambda: True)
    assert not list((tmp_path / "run").rglob("*.pt"))
    model, straight = small(0), small(0)
    straight.fit(DATA)
    assert fit_or_load(model, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run") == "fitted"
    assert same(model, straight)


def test_a_model_of_others_does_not_end_an_unfinished_fit(tmp_path: Path) -> None:
    # A resumed run equals the uninterrupted one whatever came into the store meanwhile.
    straight = small(0)
    straight.fit(DATA)
    interrupt(tmp_path / "s", tmp_path / "run")
    other = small(0, max_epochs=1)
    fit_or_load(other, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "another run")
    model = small(0)
    assert fit_or_load(model, DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run") == "fitted"
    assert same(model, straight)
    assert not same(model, other)


def test_a_damaged_unfinished_fit_begins_anew(tmp_path: Path) -> None:
    scratch = tmp_path / "run"
    interrupt(tmp_path / "s", scratch)
    (saved,) = (scratch / "unfinished").glob("step_*.pt")
    flip_a_byte(saved)
    model, straight = small(0), small(0)
    epochs: list[int] = []
    straight.fit(DATA)
    with pytest.warns(RuntimeWarning, match="damaged checkpoint"):
        fit_or_load(
            model, DATA, key="k", root=tmp_path / "s", scratch=scratch, on_progress=lambda r: epochs.append(r.epoch)
        )
    assert epochs == [1, 2, 3, 4]
    assert same(model, straight)


def test_progress_is_saved_on_the_way(tmp_path: Path) -> None:
    seen: list[int] = []

    def on_progress(report: FitReport) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load_latest(tmp_path / "run" / "unfinished")
        assert found is not None
        seen.append(found[0])

    fit_or_load(
        small(0),
        DATA,
        key="k",
        root=tmp_path / "s",
        scratch=tmp_path / "run",
        save_seconds=0.0,
        on_progress=on_progress,
    )
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize(("key", "epochs"), [("other", [1, 2, 3, 4]), ("k", [2, 3, 4])])
def test_a_fit_of_other_settings_is_no_beginning(key: str, epochs: list[int], tmp_path: Path) -> None:
    interrupt(tmp_path / "s", tmp_path / "run")  # in the second epoch, under the key "k"
    seen: list[int] = []
    fit_or_load(
        small(0), DATA, key=key, root=tmp_path / "s", scratch=tmp_path / "run",
        on_progress=lambda report: seen.append(report.epoch),
    )  # fmt: skip
    assert seen == epochs


def test_what_another_process_is_fitting_is_waited_for(tmp_path: Path) -> None:
    root, order = tmp_path / "s", []
    first, second = small(0, 1), small(1)
    with lock(root / "k" / "seed_1"):  # as the first one has it while it fits
        waiting = threading.Thread(
            target=lambda: order.append(
                fit_or_load(
                    second, DATA, key="k", root=root, scratch=tmp_path / "run2", on_wait=lambda: order.append("waits")
                )
            ),
            daemon=True,  # one that waits for ever must not keep the tests from ending
        )
        waiting.start()
        limit = time.monotonic() + 60
        while order != ["waits"]:
            assert waiting.is_alive(), order
            assert time.monotonic() < limit
            time.sleep(0.01)
        first.fit(DATA)
        state = {name: tensor[1:] for name, tensor in first.state_dict().items()}
        save_checkpoint(root / "k" / "seed_1", 0, state, keep=1)
        order.append("stored")
    waiting.join(60)
    assert order == ["waits", "stored", "store"]
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name][1:])


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    with lock(tmp_path / "s" / "k" / "seed_0"), pytest.raises(FitInterrupted, match="another process"):
        fit_or_load(small(0), DATA, key="k", root=tmp_path / "s", scratch=tmp_path / "run", should_stop=lambda: True)
