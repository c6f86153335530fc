"""The tables of `scripts/reproduce/belief_table.py`, from numbers whose means are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("belief_table")


def test_the_interval_of_a_mean_narrows_with_independent_seeds(script: ModuleType) -> None:
    assert script.pooled([-0.3], [-0.1]) == "-0.300 to -0.100"
    # Four seeds of half width 0.1: 0.1 / sqrt(4) around the mean of the middles.
    assert script.pooled([-0.3, -0.2, -0.1, -0.2], [-0.1, 0.0, 0.1, 0.0]) == "-0.150 to -0.050"
    source = np.random.default_rng(0)
    found = source.normal(0.0, 1.0, (20_000, 3))
    low, high = (float(word) for word in script.pooled([-1.96] * 3, [1.96] * 3).split(" to "))
    inside = (found.mean(1) > low) & (found.mean(1) < high)
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_runs_become_four_tables(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "hopper-beta_nll"
    (run / "diagnose").mkdir(parents=True)
    row = {"ratio": [0.6, 0.8], "pn": [0.5, 0.7], "low": [-0.2, -0.1], "high": [-0.1, 0.1]}
    signal = {"spearman": [0.5, 0.7], "kept_error": [[0.4, 0.8, 1.0], [0.6, 1.0, 1.0]]}
    fit = {
        "candidate_error": [0.1, 0.3],
        "mean_error": [0.1, 0.1],
        "error_after_20": [1.0, 2.0],
        "within_one_std": [0.6, 0.8],
        "within_two_std": [0.9, 1.0],
    }
    seen = {
        "dynamics": fit,
        "ranking": {"held-out rows": {"residual": row, "closest_to_mean": row, "random": row}},
        "truncation": {"held-out rows": {"share": [0.6, 0.9, 1.0], "max_std": signal, "perfect": signal}},
        "deviation": {
            "steps": [1],
            "mean": {"mean": [0.5], "low": [0.4], "high": [0.6]},
            "fallen": {"mean": [None], "low": [None], "high": [None]},
        },
    }
    (run / "diagnose" / "diagnose.json").write_text(json.dumps(seen))
    (run / "summary.json").write_text(
        json.dumps({"per_seed": [{"final_return_mean": 10.0}, {"final_return_mean": 30.0}]})
    )
    text = "\n".join(script.tables([run, tmp_path / "absent"]))
    assert "| hopper-beta_nll | 0.200 (0.100 to 0.300) | 0.100 (0.100 to 0.100) | 1.500 (1.000 to 2.000)" in text
    assert "| 0.700 / 0.950 | 20 | 10, 30 |" in text
    assert "residual | 0.700 (0.600 to 0.800) | 0.600 (0.500 to 0.700) | -0.131 to -0.019 | 1 of 2 |" in text
    assert "closest_to_mean | 0.700 (0.600 to 0.800) | 0.600 (0.500 to 0.700) | - | - |" in text
    assert "random" not in text
    assert "max_std | 0.60 (0.50 to 0.70) | 0.95 (0.90 to 1.00) |" in text
    assert "| mean | 0.500 [0.400, 0.600] |" in text
    assert "fallen" not in text
    assert "absent is not diagnosed: left out" in capsys.readouterr().err
