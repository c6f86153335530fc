"""The bench of flat critics runs, and its ratios are those of one round each."""

from __future__ import annotations

from pathlib import Path

import lipschitz
import pytest
import torch


def test_quick_bench_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["lipschitz.py", "--quick", "--rounds", "1", "--out", str(tmp_path / "table.md")])
    assert lipschitz.main() == 0
    torch.set_num_threads(threads)
    text = (tmp_path / "table.md").read_text()
    for critics in (2, 10):
        assert f"| {critics} | plain | 1.00 | 1.00-1.00 |" in text
        for name in (*lipschitz.OPTIONS, *lipschitz.MEASURES):
            assert f"| {critics} | {name} |" in text
    assert "Command: `python bench/lipschitz.py --quick --rounds 1`" in text


def test_a_ratio_is_the_median_over_rounds() -> None:
    rows = lipschitz.table(2, {"plain": [0.001, 0.002, 0.004], "other": [0.002, 0.002, 0.012]})
    assert rows == ["| 2 | plain | 1.00 | 1.00-1.00 | 2.0 |", "| 2 | other | 2.00 | 1.00-3.00 | 2.0 |"]
