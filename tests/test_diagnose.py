"""Diagnoses, end to end on the built-in tasks and with values that can be worked out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from mbrl.cli import main
from mbrl.data.refrigerator import UNSEEN
from mbrl.diagnose import bootstrap_mean, kept_error, open_case
from mbrl.rollout.filters import Truncate
from mbrl.rundir import read_json

TINY = [
    "updates=40",
    "batch_size=16",
    "log_every=20",
    "eval.every=40",
    "eval.episodes=1",
    "learner.hidden=[16]",
    "dynamics.hidden=[16]",
    "dynamics.members=3",
    "dynamics.elites=2",
    "dynamics.max_epochs=2",
    "rollout.lanes=20",
    "rollout.length=3",
    "progress=false",
]
SCORE = ["filter=[morec]", "score.hidden=[16]", "score.steps=20", "score.batch_size=32"]


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the refrigerator with two seeds and a score."""
    path = tmp_path_factory.mktemp("runs") / "refrigerator"
    words = ["train", "task=refrigerator", *TINY, *SCORE, "seeds=2", f"store={store}", f"run_dir={path}"]
    assert main(words) == 0
    return path


# -- what a run with a score leaves behind -----------------------------------------------------------------------------


def test_a_run_with_a_score_notes_what_it_is_worth(run: Path) -> None:
    meta = read_json(run / "meta.json")
    assert set(meta["score"]) == {"key", "from", "ratio", "pn", "low", "high"}
    assert all(len(meta["score"][name]) == 2 for name in ("ratio", "pn", "low", "high"))
    assert meta["truncate"]["signal"] == "candidate_spread"
    assert len(meta["truncate"]["threshold"]) == 2
    assert {"score", "closest_to_mean", "random"} <= set(read_json(run / "score" / "quality.json"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rollout = next(row for row in rows if "rollout/score" in row)
    assert 0 < rollout["edge/void"] <= 1
    assert rollout["edge/penalty_ratio"] > 0
    assert "runaway" not in meta
    assert 0 <= rollout["rollout/cut"] <= 1
    assert rollout["rollout/score"] != 0


def test_a_score_is_fitted_once(run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "task=refrigerator", *TINY, *SCORE, "seeds=2", "fit_gate=false", f"store={store}"]
    assert main([*words, f"run_dir={tmp_path / 'again'}"]) == 0
    assert "score from the store" in capsys.readouterr().out
    again, meta = read_json(tmp_path / "again" / "meta.json")["score"], read_json(run / "meta.json")["score"]
    assert again["from"] == "store"
    assert {**again, "from": "fitted"} == meta


# -- mbrl diagnose -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diagnosed(run: Path) -> dict[str, Any]:
    before = {path: path.read_bytes() for path in run.glob("*.json*")}
    assert main(["diagnose", str(run)]) == 0
    assert {path: path.read_bytes() for path in run.glob("*.json*")} == before  # nothing in the run is changed
    return read_json(run / "diagnose" / "diagnose.json")


def test_every_diagnosis_is_there_with_its_figure(run: Path, diagnosed: dict[str, Any]) -> None:
    assert list(diagnosed) == [
        "seeds", "scores", "dynamics", "ranking", "order", "truncation", "penalties", "deviation", "edge", "flatness",
        "error_map",
    ]  # fmt: skip
    assert diagnosed["scores"] == ["residual", "closest_to_mean", "log_likelihood"]
    figures = {path.stem for path in (run / "diagnose").glob("*.png")}
    assert figures == {"dynamics", "ranking", "truncation", "penalties", "deviation", "edge", "error_map"}


def test_perfect_choices_are_best_and_random_ones_chance(diagnosed: dict[str, Any]) -> None:
    for rows in diagnosed["ranking"].values():
        ratio = {name: np.mean(row["ratio"]) for name, row in rows.items()}
        assert ratio["perfect"] <= min(ratio.values())
        assert ratio["random"] == pytest.approx(1.0, abs=0.15)
        assert np.mean(rows["perfect"]["within"]) == pytest.approx(1.0, abs=1e-5)
        assert all(high < 0 for high in rows["perfect"]["high"])
    for states in diagnosed["truncation"].values():
        curves = np.array([states[name]["kept_error"] for name in states if name != "share"])
        np.testing.assert_allclose(curves[..., -1], 1.0, rtol=1e-5)
        perfect = np.array(states["perfect"]["kept_error"])
        assert (np.diff(perfect, axis=-1) >= -1e-6).all()


def test_trajectories_and_the_map(diagnosed: dict[str, Any]) -> None:
    deviation = diagnosed["deviation"]
    assert {"a sample of an elite", "the elites' mean", "best by residual", "mean corrected by residual"} < set(
        deviation
    )
    for name, curve in deviation.items():
        if name != "steps":
            assert len(curve["mean"]) == 20
            assert (np.array(curve["low"]) <= np.array(curve["mean"])).all()
    error = diagnosed["error_map"]
    assert list(error["map"]) == ["plain ensemble", "best of 4", "best of 40", "best of a uniform grid"]
    assert all(set(row) == set(UNSEEN) for row in error["rollouts"].values())


def test_penalties_against_the_truth(diagnosed: dict[str, Any]) -> None:
    found = diagnosed["penalties"]
    assert list(found) == ["median", "held-out rows", "steps of the policy", "by_depth"]
    heuristics = ["max_aleatoric", "max_pairwise", "ensemble_std", "ensemble_variance", "ll_variance", "loo_kl"]
    assert list(found["median"]) == heuristics
    for steps in ("held-out rows", "steps of the policy"):
        for target in ("mean", "sample"):
            assert list(found[steps][target]) == heuristics
            for row in found[steps][target].values():
                for number in row.values():
                    assert number["low"] < number["high"]
                    assert number["value"] == pytest.approx(np.mean(number["per_seed"]))
        # A root changes no order.
        std, variance = (found[steps]["mean"][f"ensemble_{name}"]["spearman"]["value"] for name in ("std", "variance"))
        assert std == pytest.approx(variance, abs=1e-6)  # of one dimension
    assert found["steps of the policy"]["rows"] == [2500, 2500]  # a refrigerator does not end
    assert found["by_depth"]["left"] == [1.0] * 50


def test_the_edge_of_a_run(run: Path, diagnosed: dict[str, Any]) -> None:
    edge = diagnosed["edge"]
    assert (edge["length"], edge["critics"]) == (3, 2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    live = next(row for row in rows if "edge/void" in row)
    for s in (0, 1):
        assert edge["void"][s] == pytest.approx(live[f"edge/void/seed_{s}"], abs=0.2)  # of 20 lanes, and of 500
        for spread in (edge["penalty"], edge["log_spread"]):
            assert 0 <= spread["low"][s] <= spread["auroc"][s] <= spread["high"][s] <= 1
        values = edge["values"]
        assert values["q_minimum"][s] <= values["q"][s] < values["bound"][s]
        assert values["tail_low"][s] <= values["tail_high"][s]
    # Of two critics both measures are one.
    assert edge["penalty"]["auroc"] == pytest.approx(edge["log_spread"]["auroc"], abs=1e-3)


def test_imagination_is_the_run_s_own(run: Path) -> None:
    case = open_case(run, (), "cpu", Console(quiet=True))
    assert case.imagination.length == 3
    (cut,) = (part for part in case.imagination.filters.filters if isinstance(part, Truncate))
    assert cut.threshold() == read_json(run / "meta.json")["truncate"]["threshold"]


def test_how_flat_the_critics_of_a_run_are(diagnosed: dict[str, Any]) -> None:
    flat = diagnosed["flatness"]
    assert {len(values) for values in flat.values()} == {len(diagnosed["seeds"])}
    for mean, high, most, product in zip(
        *(flat[name] for name in ("local_mean", "local_95", "local_max", "spectral_product")), strict=True
    ):
        assert 0 < mean <= high <= most
        assert product > 0
    assert all(value > 0 for value in flat["value_error"])


def test_the_edge_needs_no_simulator(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "blind"
    words = ["train", "task=pendulum", "env=null", *TINY, "dynamics.max_epochs=1", "learner.critics=1"]
    assert main([*words, f"store={store}", f"run_dir={path}"]) == 0
    assert main(["diagnose", str(path)]) == 0
    assert "one critic disagrees with nobody" in capsys.readouterr().out
    found = read_json(path / "diagnose" / "diagnose.json")
    assert "deviation" not in found
    assert found["edge"]["void"] == [pytest.approx(1 / 3)]  # pendulums do not end
    assert "penalty" not in found["edge"]
    assert (path / "diagnose" / "edge.png").exists()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row if name.startswith("edge/")} == {"edge/void"}


def test_further_scores_are_fitted_and_judged(run: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--score", "residaul"]) == 1
    assert "did you mean residual" in capsys.readouterr().err


def test_without_a_policy_or_a_simulator_held_out_rows_are_looked_at(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fit"
    words = ["fit", "task=pendulum", *TINY, "dynamics.max_epochs=1", "fit_gate=false", f"store={store}"]
    assert main([*words, f"run_dir={path}"]) == 0
    assert main(["diagnose", str(path)]) == 0
    assert "no policy yet" in capsys.readouterr().out
    found = read_json(path / "diagnose" / "diagnose.json")
    assert list(found["penalties"]) == ["median", "held-out rows"]
    assert list(found["ranking"]) == ["held-out rows"]
    assert found["scores"] == ["closest_to_mean", "log_likelihood"]
    assert "deviation" not in found


def test_a_run_that_has_no_model_yet_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tmp_path / "nothing")]) == 1
    assert "is not a run directory" in capsys.readouterr().err


# -- pure parts --------------------------------------------------------------------------------------------------------


def test_kept_error_of_hand_made_states() -> None:
    error, doubt = torch.tensor([[4.0, 1.0, 3.0, 2.0]]), torch.tensor([[0.9, 0.1, 0.2, 0.3]])
    curve = kept_error(doubt, error, np.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(curve, [[1.0 / 2.5, 2.0 / 2.5, 2.0 / 2.5, 1.0]])


def test_bootstrap_leaves_out_what_is_not_known() -> None:
    curve = np.array([[1.0, 2.0, 3.0], [5.0, np.nan, 7.0], [np.nan, np.nan, np.nan]])
    mean, low, high = bootstrap_mean(curve)
    np.testing.assert_allclose(mean, [2.0, 6.0, np.nan])
    assert (low[:2] <= mean[:2]).all()
    assert (high[:2] >= mean[:2]).all()
    assert np.isnan([low[2], high[2]]).all()
