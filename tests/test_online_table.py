"""The table of online runs, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("online_table")


def write_run(folder: Path, returns: list[list[float]]) -> Path:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"online": {"warm_up": 100, "updates_per_step": 5}}))
    updates = 50 * np.arange(1, len(returns) + 1)
    np.savez(folder / "returns.npz", updates=updates, returns=np.array(returns)[:, :, None])
    return folder


def test_steps_are_counted_from_updates_and_levels_are_first_reached(tmp_path: Path, script: ModuleType) -> None:
    run = write_run(tmp_path / "a", [[0.0, 0.0], [60.0, 10.0], [90.0, 70.0], [100.0, 100.0]])
    curve = script.Curve.of(run)
    assert curve.steps.tolist() == [110, 120, 130, 140]
    steps, never = script.reached(curve, 50.0)
    assert steps.tolist() == [120, 130]
    assert never == 0
    steps, never = script.reached(curve, 95.0)
    assert steps.tolist() == [140, 140]
    steps, never = script.reached(curve, 101.0)
    assert never == 2
    # Worst 0 and best mean 100: levels 50, 80 and 95. Two seeds: t = 12.706, half = 12.706 * |a - b| / 2.
    short = script.Curve("short", np.array([50.0]), np.array([[100.0, 100.0]]), 0.0, {"local_mean": 12.345})
    rows = [line.split(" | ") for line in script.table([curve, short])[2:]]
    assert rows[0][3] == "-"  # of a run that has not been evaluated by then
    assert rows[1][7:10] == ["12.3", "-", "-"]
    row = rows[0]
    assert row[1] == "140"
    assert row[4] == "125 ± 64"
    assert row[5] == "135 ± 64"
    assert row[6] == "140 ± 0"
    assert row[2] == "54 ± 111"  # of all four evaluations: (62.5, 45)


def test_main_writes_a_figure_and_names_what_is_missing(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mbpo", [[0.0, 1.0], [5.0, 6.0]])
    (tmp_path / "none").mkdir()
    assert script.main([str(tmp_path), str(run), str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert "none has no evaluation" in captured.err
    assert "| mbpo | 120 |" in captured.out
    assert (tmp_path / "online.png").stat().st_size > 10_000
