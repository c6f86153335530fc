"""A run whose values run away says so once, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mbrl import compose
from mbrl.cli import main
from mbrl.learn.sac import SAC

TINY = [
    "train",
    "task=pendulum",
    "seeds=2",
    "updates=40",
    "batch_size=16",
    "log_every=10",
    "eval.every=40",
    "eval.episodes=1",
    "learner.hidden=[16]",
    "dynamics.hidden=[16]",
    "dynamics.members=2",
    "dynamics.elites=1",
    "dynamics.max_epochs=1",
    "rollout.lanes=20",
    "rollout.length=2",
    "progress=false",
]


def meta(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "meta.json").read_text())
    return found


def test_an_ordinary_run_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, f"store={tmp_path / 'store'}", f"run_dir={tmp_path / 'run'}"]) == 0
    assert "Q runs away" not in capsys.readouterr().out
    assert "runaway" not in meta(tmp_path / "run")


def test_values_that_run_away_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = compose.build_learner

    def planted(*given: Any, **settings: Any) -> SAC:
        """The second seed's critics say a million everywhere, and believe it of each other."""
        learner = build(*given, **settings)
        for critics in (learner.critics, learner.target_critics):
            critics[-1][-1] += 1e6
        return learner

    monkeypatch.setattr(compose, "build_learner", planted)
    run = tmp_path / "run"
    assert main([*TINY, f"store={tmp_path / 'store'}", f"run_dir={run}"]) == 0
    said = capsys.readouterr().out
    assert said.count("Q runs away") == 1
    assert "filter=[ravl]" in said
    noted = meta(run)["runaway"]
    assert noted["update"] == 10
    (one,) = noted["seeds"]
    assert one["seed"] == 1
    assert one["q"] == pytest.approx(1e6, rel=0.01)
    # Pendulum pays 0 at best and -16.3 at worst; one action dimension, and a temperature of 1 at first.
    assert one["bound"] == pytest.approx((1.6 + 0.99 * 0.693) / 0.01, rel=0.03)
    assert noted["warning"] in said

    assert main(["train", f"resume={run}", "updates=60"]) == 0
    assert "Q runs away" not in capsys.readouterr().out
    assert meta(run)["runaway"] == noted
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["update"] == 60
    assert rows[-1]["learner/q/seed_1"] > 9e5  # it still did
