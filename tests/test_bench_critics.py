"""The bench of critics runs, and its ratios are those of its medians."""

from __future__ import annotations

from pathlib import Path

import critics
import pytest
import torch
from critics import Variant


def test_quick_bench_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["critics.py", "--quick", "--rounds", "1", "--out", str(tmp_path / "table.md")])
    assert critics.main() == 0
    torch.set_num_threads(threads)
    text = (tmp_path / "table.md").read_text()
    for count in (2, 10, 50):
        for diversity in ("no", "yes"):
            assert f"| eager | {count} | {diversity} |" in text
    assert "| OfflineRL-Kit | 90 ms | 413 ms | 4.6 |" in text
    assert "Command: `python bench/critics.py --quick --rounds 1`" in text


def test_ratios_are_of_medians_and_to_the_same_mode() -> None:
    taken = {
        Variant(2, False, "eager"): [0.001, 0.002, 0.009],
        Variant(10, False, "eager"): [0.010],
        Variant(10, True, "eager"): [0.015],
        Variant(2, False, "compile"): [0.001],
    }
    rows = critics.table(taken, dict.fromkeys(taken, 0.0))[2:]
    assert rows[0] == "| eager | 2 | no | 2.0 | 1.0-9.0 | 1.0 | 1.00 | 0 |"
    assert rows[2] == "| eager | 10 | yes | 15.0 | 15.0-15.0 | 7.5 | 1.50 | 0 |"
    assert rows[3] == "| compile | 2 | no | 1.0 | 1.0-1.0 | 1.0 | 1.00 | 0 |"
