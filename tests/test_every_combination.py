"""Every algorithm with every filter and every dynamics model: it trains, is saved and goes on, or it says why not.

Generated from the files in `configs/`, so that an option that is added is tried with all others. What must be refused
is written down here in one rule each; everything else has to run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mbrl import compose
from mbrl.cli import resume_run
from mbrl.compose import ConfigError
from mbrl.data.builtin import pendulum_log
from mbrl.run import Run, prepare

FOLDER = compose.config_folder()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


ALGOS, FILTERS = options("algo"), options("filter")
MODELS = [name for name in options("dynamics") if name != "beta_nll"]  # that is what `ensemble` is, see below
SINGLE = ("single", "single_lipschitz")
FREE = ("edac", "sac", "sac_n")  # nothing is imagined
SCORED, CUT = ("morec", "morec_published"), ("morec", "morec_published", "truncate")

UPDATES, MORE = 20, 24
TINY = [
    "env=Pendulum-v1", "horizon=5", f"updates={UPDATES}", "batch_size=8", "log_every=10", "eval.every=20",
    "eval.episodes=1", "eval.background=false", "learner.hidden=[8,8]", "progress=false", "rollout.lanes=4",
    "rollout.length=2", "rollout.every=10", "rollout.retain=1", "fit_gate=false", "seeds=2", "lipschitz.measure=false",
]  # fmt: skip
FITTED = ["dynamics.hidden=[8]", "dynamics.max_epochs=1", "dynamics.batch_size=64"]
SCORES = {
    "morec": ["score.hidden=[8]", "score.steps=5", "score.batch_size=16"],
    "morec_published": [
        "score.iterations=4", "score.warm_up=0", "score.snapshot_every=2", "score.history=2", "score.interval=1",
        "score.pretraining_steps=2", "score.starts=8", "score.horizon=4", "score.batch_size=16",
    ],
}  # fmt: skip


def refusal(algo: str, filters: list[str], model: str) -> str | None:
    """What a combination is refused with; None: it has to run. In the order in which a run finds out."""
    if model in (*SINGLE, "oracle") and algo == "mobile":
        return "the Model-Bellman inconsistency is how far several elites disagree"
    if model == "oracle" and any(name in CUT for name in filters):
        return "scores and cuts by distrust judge a fitted model"
    if "coplanner" in filters and model in (*SINGLE, "oracle"):
        return "weighs how much several members of the model differ, and it has one"
    return None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "log.npz"
    log = pendulum_log(controlled=True)
    np.savez(path, **{k: v[:400] if v.ndim else v for k, v in log.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_hydra() -> Iterator[None]:
    compose.register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.plots.learning_curve", lambda path: path)


def words(algo: str, filters: list[str], model: str, data: Path, path: Path) -> list[str]:
    given = [f"algo={algo}", f"filter=[{','.join(filters)}]", f"dynamics={model}", f"dataset={data}", *TINY]
    given += [f"run_dir={path}", f"store={path.parent.parent / 'store'}"]
    if model != "oracle":
        given += FITTED
    for name in filters:
        given += SCORES.get(name, [])
    return given


def begin(algo: str, filters: list[str], model: str, data: Path, path: Path, *more: str) -> Run:
    cfg = hydra.compose("train", overrides=[*words(algo, filters, model, data, path), *more])
    problem = compose.load_problem(cfg)
    return Run(prepare(cfg, problem, path), problem, path)


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


def check(algo: str, filters: list[str], model: str, data: Path, path: Path, *more: str) -> None:
    said = refusal(algo, filters, model)
    if said is not None:
        with pytest.raises(ConfigError, match=said):
            begin(algo, filters, model, data, path, *more)
        assert not (path / "meta.json").exists()
        return
    assert begin(algo, filters, model, data, path, *more).train() == 0
    assert summary(path)["updates"] == UPDATES
    assert resume_run(path, [f"updates={MORE}"]).train() == 0
    assert summary(path)["updates"] == MORE
    assert summary(path)["status"] == "finished"
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["learner/q"])
    imagined = any("rollout/kept" in row for row in rows)
    assert imagined == (algo not in FREE)


@pytest.mark.parametrize(("algo", "model"), itertools.product(ALGOS, MODELS))
def test_it_runs_and_goes_on_or_says_why_not(algo: str, model: str, data: Path, tmp_path: Path) -> None:
    for name in ("", *FILTERS):
        check(algo, [name] if name else [], model, data, tmp_path / (name or "plain"))


def test_the_model_that_is_left_out_is_the_default_by_another_name() -> None:
    one, other = (hydra.compose("train", overrides=[f"dynamics={name}"]).dynamics for name in ("beta_nll", "ensemble"))
    assert one == other


PENALTIES = [name for name in options("penalty") if name != "none"]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_trains_in_its_unit_and_in_that_of_its_median(penalty: str, data: Path, tmp_path: Path) -> None:
    check("mopo", [], "ensemble", data, tmp_path / "plain", f"penalty={penalty}")
    # With a selector that scores, and a learning rate that does not know how long the run is.
    scaled = [f"penalty={penalty}", "rollout.penalise.scale=median", "learner.cosine_actor=false"]
    check("mopo", ["morec"], "ensemble", data, tmp_path / "resumed", *scaled)
    noted, other = (tmp_path / name / "meta.json" for name in ("resumed", "whole"))
    assert begin("mopo", ["morec"], "ensemble", data, other.parent, *scaled, f"updates={MORE}").train() == 0
    found = json.loads(noted.read_text())["penalise"]
    assert found["uncertainty"] == penalty
    assert min(found["median"]) > 0
    assert json.loads(other.read_text())["penalise"] == found
    assert (noted.parent / "policy.pt").read_bytes() == (other.parent / "policy.pt").read_bytes()


@pytest.mark.parametrize("model", SINGLE)
def test_a_single_model_has_the_penalties_that_are_no_disagreement(model: str, data: Path, tmp_path: Path) -> None:
    for penalty in PENALTIES:
        given = ("mopo", [], model, data, tmp_path / penalty, f"penalty={penalty}")
        if penalty in ("max_pairwise", "ll_variance", "loo_kl"):
            with pytest.raises(ConfigError, match=f"{penalty} measures how several members disagree"):
                begin(*given)
        else:
            check(*given)


ONLINE = [
    "loop=online", "loop.dataset=true", "loop.steps=24", "loop.warm_up=4", "loop.updates_per_step=1",
    "loop.fit_every=10", "loop.evaluate_every=20", "loop.log_every=10",
]  # fmt: skip


@pytest.mark.parametrize("algo", ALGOS)
def test_online_with_everything_that_is_not_calibrated_on_a_fixed_dataset(
    algo: str, data: Path, tmp_path: Path
) -> None:
    derived = ("updates=", "log_every=", "eval.every=", "rollout.every=")
    for name in ("", *FILTERS):
        path = tmp_path / (name or "plain")
        given = [w for w in words(algo, [name] if name else [], "ensemble", data, path) if not w.startswith(derived)]
        cfg = hydra.compose("train", overrides=[*given, *ONLINE])
        problem = compose.load_problem(cfg)
        said = "online" if name in CUT else "explore=policy" if name == "coplanner" and algo in FREE else None
        if said is not None:
            with pytest.raises(ConfigError, match=said):
                Run(prepare(cfg, problem, path), problem, path)
            continue
        assert Run(prepare(cfg, problem, path), problem, path).train() == 0
        assert summary(path)["updates"] == UPDATES
        assert resume_run(path, []).train() == 0  # all is there, down to where each environment is


@pytest.mark.parametrize("algo", ALGOS)
def test_many_filters_at_once(algo: str, data: Path, tmp_path: Path) -> None:
    for filters in (["morec", "ravl", "coplanner"], ["coplanner", "spectral", "gradient_penalty", "truncate"]):
        check(algo, filters, "ensemble", data, tmp_path / "-".join(filters))
        check(algo, [*filters], "oracle", data, tmp_path / f"oracle-{'-'.join(filters)}")
