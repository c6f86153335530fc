"""The file of published figures."""

from __future__ import annotations

import numpy as np
import pytest

from mbrl.compose import config_folder
from mbrl.data.tasks import all_tasks
from mbrl.report.published import columns_for, published

FAMILIES = ("halfcheetah", "hopper", "walker2d")
D4RL = {f"d4rl:{f}-{level}-v2" for f in FAMILIES for level in ("random", "medium", "medium-replay", "medium-expert")}
NEORL = {f"neorl:{f}-v3-{level}" for f in ("HalfCheetah", "Hopper", "Walker2d") for level in ("low", "medium", "high")}


def test_every_column_names_its_source_and_known_datasets() -> None:
    known = {task.dataset for task in all_tasks()}
    algorithms = {path.stem for path in (config_folder() / "algo").glob("*.yaml")}
    columns = published()
    assert {dataset for column in columns for dataset in column.scores} == D4RL | NEORL
    assert known >= D4RL | NEORL
    for column in columns:
        assert set(column.scores) in (D4RL, NEORL, {d for d in D4RL if "-random-" not in d})
        assert column.source.url.startswith("https://")
        assert 2020 <= column.source.year <= 2026
        assert column.source.title in column.citation
        assert column.where
        assert column.protocol
        assert "mujoco-py" in column.environment
        assert column.seeds is None or column.seeds > 0
        assert column.algorithm is None or column.algorithm in algorithms
        assert all(-5 < score < 125 for score in column.scores.values())
        assert set(column.spreads) in (set(), set(column.scores))


def test_no_column_twice() -> None:
    keys = [(c.method, c.source.name, c.where, *sorted(c.scores)) for c in published()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("method", "source", "dataset", "average"),
    [
        # What the sources print below their columns: a slip of a row or a digit would show here.
        ("BC", "ADMPO paper", "d4rl:hopper-medium-v2", 36.5),
        ("CQL", "ADMPO paper", "d4rl:hopper-medium-v2", 61.6),
        ("TD3+BC", "ADMPO paper", "d4rl:hopper-medium-v2", 58.2),
        ("EDAC", "ADMPO paper", "d4rl:hopper-medium-v2", 76.0),
        ("MOPO", "ADMPO paper", "d4rl:hopper-medium-v2", 70.3),
        ("COMBO", "ADMPO paper", "d4rl:hopper-medium-v2", 66.8),
        ("RAMBO", "ADMPO paper", "d4rl:hopper-medium-v2", 67.7),
        ("CBOP", "ADMPO paper", "d4rl:hopper-medium-v2", 79.3),
        ("MOBILE", "ADMPO paper", "d4rl:hopper-medium-v2", 80.0),
        ("ADMPO-OFF", "ADMPO paper", "d4rl:hopper-medium-v2", 81.0),
        ("LEQ", "LEQ page", "d4rl:hopper-medium-v2", 76.9),
        ("MOPO", "COCOA README", "d4rl:hopper-medium-v2", 67.2),
        ("MOPO+COCOA", "COCOA README", "d4rl:hopper-medium-v2", 70.1),
        ("MOBILE", "COCOA README", "d4rl:hopper-medium-v2", 70.6),
        ("MOBILE+COCOA", "COCOA README", "d4rl:hopper-medium-v2", 74.8),
        ("ReBRAC", "CORL README", "d4rl:hopper-medium-v2", 89.74),
        ("SAC-N", "CORL README", "d4rl:hopper-medium-v2", 83.52),
        ("EDAC", "CORL README", "d4rl:hopper-medium-v2", 92.92),
        ("MOPO", "ADMPO paper", "neorl:Hopper-v3-low", 28.5),
        ("MOBILE", "ADMPO paper", "neorl:Hopper-v3-low", 60.7),
        ("ADMPO-OFF", "ADMPO paper", "neorl:Hopper-v3-low", 64.0),
        ("LEQ", "LEQ page", "neorl:Hopper-v3-low", 63.6),
    ],
)
def test_means_are_the_averages_that_the_sources_print(method: str, source: str, dataset: str, average: float) -> None:
    (column,) = (c for c in columns_for([dataset]) if (c.method, c.source.name) == (method, source))
    assert np.mean(list(column.scores.values())) == pytest.approx(average, abs=0.051)


def test_other_data_has_no_figures() -> None:
    assert columns_for(["minari:mujoco/hopper/medium-v0", "/data/hopper-medium-v2.hdf5", "builtin:pendulum"]) == []
