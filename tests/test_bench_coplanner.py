"""The bench of the planner runs, and its ratios are to the plain rollouts of the same model and penalty."""

from __future__ import annotations

from pathlib import Path

import coplanner
import pytest
import torch
from coplanner import Way


def test_quick_bench_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["coplanner.py", "--quick", "--rounds", "1", "--out", str(tmp_path / "table.md")])
    assert coplanner.main() == 0
    torch.set_num_threads(threads)
    text = (tmp_path / "table.md").read_text()
    for penalty in ("yes", "no"):
        assert f"| 7 x 1 x 8 | {penalty} | plain | 1 |" in text
        assert f"| 7 x 1 x 8 | {penalty} | (5, 10), `sample_std` | 51 |" in text
    assert "Command: `python bench/coplanner.py --quick --rounds 1`" in text


def test_ratios_are_to_the_same_model_and_penalty() -> None:
    found = {Way("m", True, 1, 1): 100.0, Way("m", True, 5, 5): 4.0, Way("m", False, 1, 1): 400.0}
    found[Way("m", False, 5, 5)] = 5.0
    assert [line.split("|")[-2].strip() for line in coplanner.rows(found)] == ["1.0 x", "25.0 x", "1.0 x", "80.0 x"]
