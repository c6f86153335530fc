"""`scripts/reproduce/uncertainty.py` from one end to the other, small, and what it does when it is started again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import load_script

from mbrl.data.builtin import pendulum_log
from mbrl.rundir import read_json


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("uncertainty")


def test_the_study_is_made_once_and_goes_on_where_it_was(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MEMBERS", 3), ("ELITES", 2), ("COUNTS", (2, 3)), ("HORIZONS", (1, 50))):
        monkeypatch.setattr(script, name, value)
    files = {}
    for name, controlled in (("mixed", True), ("noise", False)):
        log = pendulum_log(controlled=controlled)
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], **{k: v[:600] if v.ndim else v for k, v in log.items()})  # type: ignore[arg-type]
    folder = tmp_path / "study"
    settings = [
        "env=Pendulum-v1",
        f"store={tmp_path / 'store'}",
        "progress=false",
        "eval.background=false",
        "horizon=20",
    ]
    words = [str(files["mixed"]), str(folder), str(files["noise"]), "--smoke", "--seeds", "1"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert script.main(words) == 0
    table = (folder / "uncertainty.md").read_text()
    assert table.startswith("mixed (Pendulum-v1), seeds [0], 3 members")
    found = json.loads((folder / "uncertainty.json").read_text())
    assert list(found["agreement"]) == ["steps of the policy", "held-out rows", "noise"]
    assert found["agreement"]["steps of the policy"]["rows"] == [2500]  # a pendulum does not end
    assert found["by_horizon"]["1"]["rows"] == [100]
    assert set(found["out_of_data"]) == {"threshold", "steps of the policy", "noise"}
    sizes = found["members"]["held-out rows"]["max_pairwise"]["size"]
    assert sizes[0] < sizes[1] == pytest.approx(1.0)
    assert (folder / "uncertainty.png").stat().st_size > 10_000

    # A stage that is missing is made again, to the same numbers; nothing else is.
    kept = found.pop("out_of_data")
    found["median"] = {name: [1.0] for name in found["median"]}
    (folder / "uncertainty.json").write_text(json.dumps(found))
    trained = (folder / "run" / "policy.pt", folder / "run" / "meta.json")
    before = [path.stat().st_mtime_ns for path in trained]
    assert script.main(words) == 0
    assert [path.stat().st_mtime_ns for path in trained] == before
    again = json.loads((folder / "uncertainty.json").read_text())
    assert again["out_of_data"] == kept
    assert again["median"] == found["median"]


def test_a_folder_of_something_else_is_refused(script: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / f"{name}.npz").touch()
    folder = tmp_path / "study"
    folder.mkdir()
    asked = {"dataset": str(tmp_path / "one.npz"), "seeds": 3, "set": [], "smoke": True}
    (folder / "asked.json").write_text(json.dumps(asked))
    with pytest.raises(SystemExit, match=r"other\.npz.*give another FOLDER"):
        script.main([str(tmp_path / "other.npz"), str(folder), "--smoke"])
    with pytest.raises(SystemExit, match=r"smoke: True, now False"):
        script.main([str(tmp_path / "one.npz"), str(folder)])
    with pytest.raises(SystemExit, match="there is no such file"):
        script.main([str(tmp_path / "one.npz"), str(folder), str(tmp_path / "none.npz"), "--smoke"])
    assert json.loads((folder / "asked.json").read_text()) == asked


def test_a_word_that_is_refused_does_not_keep_the_folder(
    script: ModuleType, log: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does Hydra read anything into the marks of a path."""
    for name, value in (("MEMBERS", 2), ("ELITES", 1)):
        monkeypatch.setattr(script, name, value)
    place = tmp_path / "d=1" / "it's, here"
    place.mkdir(parents=True)
    dataset = shutil.copy(log, place)
    folder = place / "study"
    words = [str(dataset), str(folder), "--smoke", "--seeds", "1", "--set", "env=Pendulum-v1"]
    assert script.main([*words, "--set", "rollout.lane=5"]) == 1
    assert not (folder / "asked.json").exists()
    settings = [*script.SMOKE, "env=Pendulum-v1", f"store={store}", "progress=false", "eval.background=false"]
    assert script.train(Path(dataset), folder / "run", 1, settings) == 0
    assert read_json(folder / "run" / "summary.json")["status"] == "finished"
