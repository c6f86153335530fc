"""Tuning: what is searched, what is tried next, and that a study outlives its processes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from helpers import POSIX, started, until
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mbrl import compose
from mbrl.cli import main
from mbrl.compose import ConfigError
from mbrl.rundir import read_json
from mbrl.sweep import BASIC, register_sweeper
from mbrl.tune import (
    Study,
    StudySweeper,
    held,
    open_storage,
    parse_space,
    propose,
    refuse_changes,
)
from mbrl.tune_report import at_edge, findings, position, robust_limits, spearman

TINY = [
    "updates=40", "batch_size=16", "log_every=20", "eval.every=20", "eval.episodes=2", "eval.model_horizon=5",
    "learner.hidden=[16]", "dynamics.hidden=[16]", "dynamics.max_epochs=1", "rollout.lanes=20", "progress=false",
    "eval.background=false", "dynamics.elites=2",
]  # fmt: skip
SPACE = ["dynamics.members=range(2,4)", "rollout.length=range(1,4)", "penalty=max_aleatoric,ensemble_std"]


@pytest.fixture(scope="module")
def words(log: Path, store: Path) -> list[str]:
    """A study on the log, played in the pendulum; the models of all studies are in one store."""
    own = [f"dataset={log}", "env=Pendulum-v1", "horizon=20", f"store={store}"]
    return ["train", "-m", "hydra/sweeper=optuna", *own, *TINY, *SPACE, "hydra.sweeper.trials=6"]


@pytest.fixture(scope="module")
def study(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nothing has stopped."""
    path = tmp_path_factory.mktemp("whole") / "study"
    assert main([*words, f"run_dir={path}"]) == 0
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def results(path: Path) -> list[tuple[str, ...]]:
    names = ("trial", "state", "value", "dynamics.members", "rollout.length", "penalty", "rollout.penalise.coefficient")
    return [tuple(row[name] for name in names) for row in table(path)]


# -- what is searched --------------------------------------------------------------------------------------------------


def test_sweeps_become_distributions() -> None:
    space, fixed = parse_space(
        [
            "a=1,5", "b=choice(x,'y z')", "c=range(1,30)", "d=range(0,10,5)", "e=interval(0.1,100)",
            "f=tag(log,interval(0.1,100))", "g=int(interval(1,50))", "h=tag(log,int(interval(1,64)))",
            "i=range(0,1,0.25)", "task=pendulum", "filter=[morec]",
        ]
    )  # fmt: skip
    assert space == {
        "a": CategoricalDistribution(["1", "5"]),
        "b": CategoricalDistribution(["x", "y\\ z"]),
        "c": IntDistribution(1, 29),
        "d": IntDistribution(0, 5, step=5),
        "e": FloatDistribution(0.1, 100),
        "f": FloatDistribution(0.1, 100, log=True),
        "g": IntDistribution(1, 50),
        "h": IntDistribution(1, 64, log=True),
        "i": FloatDistribution(0, 0.75, step=0.25),
    }
    assert fixed == ["task=pendulum", "filter=[morec]"]


def test_a_later_word_replaces_an_earlier_one() -> None:
    defaults = ["rollout.length=range(1,51)", "penalty=a,b"]
    space, fixed = parse_space([*defaults, "rollout.length=5", "penalty=c,d", "seed=1", "seed=2"])
    assert list(space) == ["penalty"]
    assert space["penalty"] == CategoricalDistribution(["c", "d"])
    assert fixed == ["rollout.length=5", "seed=2"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("a=tag(lgo,interval(1,2))", "the tag 'lgo' is unknown; it is log"),
        ("a=tag(log,choice(1,2))", "a log scale is for range"),
        ("a=shuffle(1,2)", "the sampler chooses here"),
        ("a=range(5,5)", "the range is empty"),
        ("a=tag(log,interval(0,1))", "a=tag"),
    ],
)
def test_what_cannot_be_searched_says_why(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match="a=") as error:
        parse_space([word])
    assert said in str(error.value)


# -- what is tried next ------------------------------------------------------------------------------------------------

UNIT = {"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(["good", "bad"])}


def ended(x: float, kind: str, value: float | None) -> FrozenTrial:
    state = TrialState.COMPLETE if value is not None else TrialState.FAIL
    return create_trial(state=state, value=value, params={"x": x, "kind": kind}, distributions=UNIT)


def worth(x: float, kind: str) -> float:
    return -((x - 0.7) ** 2) - (kind == "bad")


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_a_proposal_depends_on_seed_and_past_alone(sampler: str) -> None:
    places = list(zip((0.1, 0.5, 0.9, 0.3), ("good", "bad") * 2, strict=True))
    past = [ended(x, kind, worth(x, kind)) for x, kind in places]
    ask: Callable[[int], dict[str, Any]] = lambda seed: propose(UNIT, past, sampler=sampler, startup=2, seed=seed)  # noqa: E731
    assert ask(0) == ask(0)
    turned = [ended(x, kind, -worth(x, kind)) for x, kind in places]
    learns = propose(UNIT, turned, sampler=sampler, startup=2, seed=0) != ask(0)
    assert learns == (sampler != "random")
    assert ask(0)["x"] == float(f"{ask(0)['x']:.4g}")
    if sampler == "random":
        assert ask(0)["x"] != ask(1)["x"]


def test_the_gaussian_process_goes_where_values_are_high() -> None:
    past = [ended(x, kind, worth(x, kind)) for x in (0.0, 0.2, 0.4, 0.55, 0.8, 1.0) for kind in ("good", "bad")]
    found = propose(UNIT, past, sampler="gp", startup=4, seed=0)
    assert found["kind"] == "good"
    assert found["x"] == pytest.approx(0.7, abs=0.08)


def test_where_trials_fail_is_no_place_to_go_back_to() -> None:
    # Highest towards x = 1, but beyond 0.6 everything fails.
    past = [ended(x, "good", x) for x in (0.0, 0.15, 0.3, 0.45, 0.6)]
    without = propose(UNIT, past, sampler="gp", startup=2, seed=0)
    assert without["x"] > 0.7
    failed = [ended(x, kind, None) for x in (0.65, 0.75, 0.85, 1.0) for kind in ("good", "bad")]
    assert propose(UNIT, [*past, *failed], sampler="gp", startup=2, seed=0)["x"] < 0.65


# -- a study and its processes -----------------------------------------------------------------------------------------


def opened(folder: Path, **identity: Any) -> Study:
    return Study(folder, {"x": FloatDistribution(0.0, 1.0)}, ["task=pendulum"], {"objective": "return", **identity})


def numbers(study: Study, count: int, total: int = 6) -> list[int]:
    return [task.number for task in study.take(count, total=total, sampler="random", startup=9, seed=0)[0]]


def test_two_processes_share_a_study_and_orphans_are_taken_over_once(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    assert (numbers(one, 2), numbers(two, 2)) == ([0, 1], [2, 3])
    one.tell(0, 1.0)
    params = one.trials()[1].params
    three = opened(tmp_path)
    one.close()  # as if it had been killed: the system gives its lock back
    (task,) = three.take(1, total=6, sampler="random", startup=9, seed=0)[0]
    assert task.number == 1
    assert task.overrides == ("task=pendulum", f"x={params['x']}")
    assert task.path == tmp_path / "trial_0001"
    assert numbers(two, 4) == [4, 5]  # 0 has ended, 1 to 3 are somebody's, and 6 are the whole study
    assert numbers(three, 4) == []
    assert len(three.trials()) == 6
    three.tell(1, 2.0)
    three.tell(1, 9.0)  # the first word counts
    assert [trial.value for trial in two.trials()][:2] == [1.0, 2.0]
    two.close()
    three.close()


def test_a_run_that_outlives_its_sweeper_is_left_alone(tmp_path: Path) -> None:
    from mbrl.rundir import lock

    one = opened(tmp_path)
    assert numbers(one, 1, total=1) == [0]
    one.close()
    worker = lock(tmp_path / "trial_0000")  # of a cluster's job
    two = opened(tmp_path)
    assert two.take(1, total=1, sampler="random", startup=9, seed=0) == ([], [0])
    worker.close()
    assert numbers(two, 1, total=1) == [0]
    assert two.trials()[0].user_attrs["adopted"] == 1
    two.close()


def test_another_study_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, fixed=["task=pendulum"], variables={"x": "0 to 1"}).close()
    with pytest.raises(ConfigError, match=r"objective: was return, is model.*choose another run_dir"):
        Study(tmp_path, {}, [], {"objective": "model"})
    known = {"fixed": ["a=1", "b=2"], "variables": {"x": "0 to 1", "y": "2"}}
    refuse_changes(tmp_path, known, known)
    with pytest.raises(ConfigError, match=r"fixed: was b=2, is b=3; variables: y was 2, is not there"):
        refuse_changes(tmp_path, known, {"fixed": ["a=1", "b=3"], "variables": {"x": "0 to 1"}})


def test_a_study_whose_record_is_gone_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "trial_0000").mkdir()
    with pytest.raises(ConfigError, match=r"trial_0000 is no trial of .* in Optuna's storage"):
        opened(tmp_path)


def test_a_folder_of_runs_is_no_study(study: Path) -> None:
    with pytest.raises(ConfigError, match="holds runs and no study"):
        opened(study / "trial_0000")


# -- a whole study -----------------------------------------------------------------------------------------------------


def test_a_study_leaves_its_trials_and_what_they_say(study: Path) -> None:
    rows = table(study)
    assert [row["trial"] for row in rows] == list("012345")
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        path = study / row["run_dir"]
        summary = read_json(path / "summary.json")
        assert float(row["value"]) == summary["final_return_mean"]  # the pendulum has no reference scores
        cfg = OmegaConf.load(path / "config.yaml")
        assert (cfg.dynamics.members, cfg.rollout.length) == (int(row["dynamics.members"]), int(row["rollout.length"]))
        assert cfg.rollout.penalise.uncertainty.path.endswith(row["penalty"])
        assert cfg.rollout.penalise.coefficient == float(row["rollout.penalise.coefficient"])
    values = [float(row["value"]) for row in rows]
    assert [float(row["best_so_far"]) for row in rows] == list(np.maximum.accumulate(values))
    best = OmegaConf.load(study / "best.yaml")
    assert (best.trial, best.value) == (int(np.argmax(values)), max(values))
    assert best.command.endswith("seed=1 seeds=5")
    assert f"rollout.length={rows[best.trial]['rollout.length']}" in best.overrides
    for name in ("history", "slices", "parallel"):
        assert (study / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "6 finished trials are too few" in (study / "findings.txt").read_text()
    assert not list((study / "workers").iterdir())


def test_the_best_trial_can_be_had_again(study: Path, tmp_path: Path) -> None:
    best = OmegaConf.load(study / "best.yaml")
    assert main(["train", *best.overrides, f"run_dir={tmp_path / 'again'}"]) == 0
    assert read_json(tmp_path / "again" / "summary.json")["final_return_mean"] == best.value


def test_a_finished_study_runs_nothing_and_a_longer_one_goes_on(
    study: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["cp", "-r", str(study), str(tmp_path / "copy")], check=True)
    before = results(study)
    again = [*words, f"run_dir={tmp_path / 'copy'}"]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "6 trials have ended before" in said
    assert "run directory" not in said
    assert "mbrl train" in said.splitlines()[-1]
    assert main([*again, "hydra.sweeper.trials=7", "device=cpu"]) == 0
    assert results(tmp_path / "copy")[:6] == before
    assert len(table(tmp_path / "copy")) == 7
    for change, what in {
        "rollout.length=range(1,9)": "variables: rollout.length",
        "updates=60": "fixed: was updates=40, is updates=60",
        f"hydra.sweeper.storage=sqlite:///{tmp_path / 'trials.db'}": "storage: was journal, is sqlite",
    }.items():
        assert main([*again, change]) == 1
        assert what in " ".join(capsys.readouterr().err.split())


@POSIX
def test_a_study_survives_ctrl_c_and_kill_9(words: list[str], study: Path, tmp_path: Path) -> None:
    broken = tmp_path / "study"
    words = [*words, "checkpoint_seconds=0"]

    def runs(trial: str) -> Callable[[], bool]:
        return lambda: bool(list((broken / trial / "checkpoints").glob("*.pt")))

    with started([*words, f"run_dir={broken}"], tmp_path / "output") as process:
        until(runs("trial_0001"), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert read_json(broken / "trial_0001" / "meta.json")["status"] == "interrupted"
    assert [row["state"] for row in table(broken)] == ["finished", "running"]
    with started([*words, f"run_dir={broken}"], tmp_path / "output") as process:
        until(runs("trial_0003"), process)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    begun = {path.parent.name: read_json(path)["started"] for path in broken.glob("trial_*/meta.json")}
    assert sorted(begun) == ["trial_0000", "trial_0001", "trial_0002", "trial_0003"]
    stamps = {path: path.stat().st_mtime_ns for path in broken.glob("trial_000[02]/summary.json")}
    assert read_json(broken / "trial_0003" / "meta.json")["status"] == "running"
    assert main([*words, f"run_dir={broken}"]) == 0
    meta = {path.parent.name: read_json(path) for path in broken.glob("trial_*/meta.json")}
    assert len(meta) == 6
    assert {name: meta[name]["started"] for name in begun} == begun  # none was begun twice
    assert [meta[f"trial_000{i}"]["resumed"] for i in range(6)] == [0, 1, 0, 1, 0, 0]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert results(broken) == results(study)  # to the last digit, as if nothing had happened
    assert [row["taken_over"] for row in table(broken)] == ["0", "1", "0", "1", "0", "0"]


@POSIX
def test_two_processes_make_one_study(words: list[str], study: Path, tmp_path: Path) -> None:
    shared = tmp_path / "study"
    many = [*words, "hydra.sweeper.trials=5", "hydra.sweeper.sampler=random"]
    with started([*many, f"run_dir={shared}"], tmp_path / "output") as other:
        until((shared / "trial_0000" / "meta.json").exists, other)
        assert main([*many, f"run_dir={shared}"]) == 0
        assert other.wait(60) == 0
    rows = table(shared)
    assert [row["trial"] for row in rows] == [str(i) for i in range(5)]
    assert {row["state"] for row in rows} == {"finished"}
    assert sorted(path.name for path in shared.glob("trial_*")) == [f"trial_{i:04d}" for i in range(5)]
    assert {read_json(path)["resumed"] for path in shared.glob("trial_*/meta.json")} == {0}
    name, storage = read_json(shared / "study.json")["name"], open_storage(shared, None)
    workers = [t.user_attrs["worker"] for t in optuna.load_study(study_name=name, storage=storage).trials]
    assert len(set(workers)) == 2


def test_a_trial_that_fails_is_noted_and_the_study_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study"
    words = [*words, "hydra.sweeper.trials=4"]
    rates = ["learner.critic_learning_rate=1e-3,1e30", "penalty=max_aleatoric", "rollout.length=1"]
    assert main([*words, *rates, "hydra.sweeper.params=null", f"run_dir={path}", "hydra.sweeper.jobs=2"]) == 0
    rows = table(path)
    by_rate = {row["learner.critic_learning_rate"]: row for row in rows}
    assert (by_rate["0.001"]["state"], by_rate["1e+30"]["state"]) == ("finished", "failed")
    assert "TrainingDiverged" in by_rate["1e+30"]["error"]
    assert by_rate["1e+30"]["value"] == ""
    assert "trials failed, the last one by: TrainingDiverged" in (path / "findings.txt").read_text()
    assert len(rows) == 4
    capsys.readouterr()
    hopeless = [
        *words,
        "hydra.sweeper.trials=9",
        "learner.critic_learning_rate=1e30",
        f"run_dir={tmp_path / 'hopeless'}",
    ]
    assert main(hopeless) == 1
    assert "5 trials have failed and none has finished" in " ".join(capsys.readouterr().err.split())
    assert len(table(tmp_path / "hopeless")) == 5


def test_a_launcher_that_fails_loses_no_trial(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study"
    short = [*words, "hydra.sweeper.trials=2", f"run_dir={path}"]
    launcher: Any = Plugins.instance().class_name_to_class[BASIC]
    launch = launcher.launch

    def unreachable(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        raise RuntimeError("no cluster")

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch", unreachable)
        assert main(short) == 1
    assert "the launcher failed: RuntimeError: no cluster. No trial is lost" in " ".join(
        capsys.readouterr().err.split()
    )
    calls = []

    def loses_its_first_worker(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        calls.append(initial_job_idx)
        done = launch(self, job_overrides, initial_job_idx)
        if len(calls) == 1:
            meta = read_json(path / "trial_0000" / "meta.json")
            (path / "trial_0000" / "meta.json").write_text(json.dumps({**meta, "status": "running"}))
            raise RuntimeError("a worker died")
        return done

    monkeypatch.setattr(launcher, "launch", loses_its_first_worker)
    assert main(short) == 0
    assert calls == [0, 0, 1]
    assert [(row["state"], row["taken_over"]) for row in table(path)] == [("finished", "1"), ("finished", "0")]
    assert read_json(path / "trial_0000" / "meta.json")["resumed"] == 1


def test_without_a_simulator_a_judge_decides(words: list[str], tmp_path: Path, capsys: Any) -> None:
    blind = [*words, "env=null", "hydra.sweeper.trials=2", f"run_dir={tmp_path / 'study'}"]
    assert main(blind) == 1
    assert "give hydra.sweeper.objective=model" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "study").exists()
    judged = [*blind, "hydra.sweeper.objective=model", "hydra.sweeper.judge.members=3"]
    assert main(judged) == 0
    for row in table(tmp_path / "study"):
        found = read_json(tmp_path / "study" / row["run_dir"] / "judge.json")
        members = np.array(found["by_member"])
        assert members.shape == (1, 3)
        assert float(row["value"]) == pytest.approx(members.mean() - members.std(), rel=1e-5)
        assert found["horizon"] == 5


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["hydra.sweeper.sampler=gps"], "hydra.sweeper.sampler=gps is unknown; it is gp, tpe, random"),
        (["hydra.sweeper.objective=score"], "hydra.sweeper.objective=score is unknown; it is return or model"),
        (
            ["~dynamics", "dynamics=oracle", "hydra.sweeper.params=null", "hydra.sweeper.objective=model"],
            "judges policies in a fitted model: give dynamics=ensemble",
        ),
        (["hydra.sweeper.objective=model", "hydra.sweeper.judge.members=1"], "a bound over members needs two or more"),
        (["hydra.sweeper.judge.pessimism=a"], "hydra.sweeper.judge.pessimism=a: expected a number, 0 or more"),
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: expected a whole number, 1 or more"),
        (["dynamics.members=range(1,4)"], "dynamics.members may become 1, fewer than dynamics.elites=2"),
        (["rollout.length=range(0,4)"], "rollout.length=0: expected a whole number, 1 or more"),
        (["penalty=none,ensemble_std"], "rollout.penalise"),
        (["penalty=ensemble_stt,max_aleatoric"], "penalty=ensemble_stt: no such option; did you mean ensemble_std"),
        (["penalty=interval(1,2)"], "options of a group are chosen by name"),
        (["rollout.lenght=range(1,4)"], "no key 'rollout.lenght'; did you mean rollout.length"),
        (["~penalty", "algo=mobile"], "for algo=mopo; give hydra.sweeper.params=null"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_before_anything_runs(
    mistake: list[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study"
    gone = tuple(word[1:] for word in mistake if word.startswith("~"))
    kept = [word for word in words if not (gone and word.startswith(gone))]
    assert main([*kept, *(word for word in mistake if not word.startswith("~")), f"run_dir={path}"]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not path.exists()


def test_a_wrong_storage_leaves_no_study(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study"
    assert main([*words, "hydra.sweeper.storage=sqlit://user:secret@host/x.db", f"run_dir={path}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "hydra.sweeper.storage=sqlit:... cannot be used" in said
    assert "secret" not in said
    assert not (path / "study.json").exists()


def test_the_sweeper_needs_a_sweep_of_training_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ([word for word in words if word != "-m"], ["fit", *words[1:]]):
        assert main(wrong) == 1
        assert "is for many training runs: mbrl train -m" in " ".join(capsys.readouterr().err.split())


def test_ours_is_chosen_where_another_plugin_has_the_same_name() -> None:
    theirs = {"_target_": "another.Sweeper", "defaults": [{"sampler": "tpe"}]}
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=theirs, provider="optuna_sweeper")
    register_sweeper(StudySweeper)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(compose.config_folder()), version_base="1.3"):
        cfg = hydra_compose("train", overrides=["hydra/sweeper=optuna"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    assert cfg.hydra.sweeper._target_ == "hydra_plugins.mbrl.StudySweeper"
    assert Plugins.instance().class_name_to_class[cfg.hydra.sweeper._target_] is StudySweeper


# -- what is said ------------------------------------------------------------------------------------------------------


def test_ranks_positions_and_edges() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x**3) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    assert spearman(x, np.array([1.0, 1.0, 2.0, 2.0])) == pytest.approx(0.8944, abs=1e-4)  # ties share their rank
    assert spearman(x, np.ones(4)) == 0.0
    weight = FloatDistribution(0.1, 100.0, log=True)
    assert position(weight, 10.0) == pytest.approx(2 / 3)
    assert position(CategoricalDistribution(["a", "b", "c"]), "b") == 0.5
    assert (at_edge(weight, 0.11), at_edge(weight, 1.0), at_edge(weight, 99.0)) == ("lower", None, "upper")
    low, high = robust_limits(np.array([-1e6, 1.0, 2.0, 3.0]))
    assert -10 < low < high < 4


def test_findings_name_what_matters(tmp_path: Path) -> None:
    trials = []
    for number in range(24):
        x, kind = number / 23, ("bad", "good")[number % 2]
        trial = ended(x, kind, 10 * x + (kind == "good") * 0.1)
        trial.number = number
        trials.append(trial)
    lines = findings(trials, "return", tmp_path)
    text = "\n".join(lines)
    assert (tmp_path / "findings.txt").read_text() == text + "\n"
    said = "x: the best 6 trials lie between 0.7826 and 1 of 0 to 1; rank correlation with the value +1.00"
    assert said in lines
    assert "x: the best trial lies at the upper end of its range: a wider one may hold better" in lines
    # Half of the trials each: the medians are those of x = 12/23, with the 0.1 of the good ones, and of x = 11/23.
    assert "kind: median value 5.317 with good (12 trials), 4.783 with bad (12 trials)" in lines
    (shares,) = (line for line in lines if "PED-ANOVA" in line)
    assert shares.index("x ") < shares.index("kind ")


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    study = opened(tmp_path)
    assert held(tmp_path / "workers" / study.worker)
    study.close()
    assert not held(tmp_path / "workers" / study.worker)
    assert optuna.load_study(study_name=study.name, storage=study.storage).trials == []
