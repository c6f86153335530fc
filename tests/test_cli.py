"""The command line as people use it: help, mistakes, runs, and what lies in the run directory afterwards."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mbrl import compose
from mbrl.cli import main
from mbrl.log import read_metrics
from mbrl.run import saved_policy
from mbrl.rundir import read_json

VERBS = ("train", "fit", "collect", "inspect", "eval", "diagnose", "report")
TINY = [
    "updates=40",
    "batch_size=16",
    "log_every=20",
    "eval.every=20",
    "eval.episodes=2",
    "eval.model_horizon=5",
    "learner.hidden=[16]",
    "dynamics.hidden=[16]",
    "dynamics.max_epochs=1",
    "rollout.lanes=20",
    "rollout.length=2",
]
PENDULUM = [*TINY, "env=Pendulum-v1", "horizon=20"]

# A contract (docs/run_directory.md): scripts rely on it.
FILES = {
    ".hydra", "meta.json", "metrics.jsonl", "metrics.csv", "returns.npz", "summary.json", "checkpoints", "policy.pt",
    "learning_curve.png", "config.yaml",
}  # fmt: skip
SUMMARY = {
    "status", "updates", "seeds", "behaviour_return_mean", "final_return_mean", "final_score_mean", "per_seed",
    "updates_per_second", "wall_seconds",
}  # fmt: skip


@pytest.fixture
def words(log: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`mbrl train` on the log without a simulator, into tmp_path/run."""
    monkeypatch.chdir(tmp_path)
    return ["train", f"dataset={log}", "env=null", *TINY, f"store={store}", f"run_dir={tmp_path / 'run'}"]


@pytest.fixture(scope="module")
def finished(log: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a simulator, done."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", f"dataset={log}", *PENDULUM, f"store={store}", f"run_dir={path}"]) == 0
    return path


def run(words: list[str]) -> int:
    """Exit status, also where argparse ends the process."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=" ".join)
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    for verb in VERBS:
        assert f"mbrl {verb}" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"mbrl {verb}" in said
    assert len(said.splitlines()) >= 5


def test_help_of_train_lists_the_options_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    said = capsys.readouterr().out
    for option in ("mopo", "no_clip", "single", "max_aleatoric", "max_pairwise", "resume=", "seeds="):
        assert option in said
    assert "{" not in said


@pytest.mark.parametrize("verb", ["inspect", "eval", "diagnose", "report"])
def test_verbs_that_need_a_word_say_so(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb]) == 2
    assert f"usage: mbrl {verb}" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mbrl 0.")


def test_configuration_is_printed_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--cfg", "job", "dynamics=single"]) == 0
    said = capsys.readouterr().out
    assert "updates: 8000" in said  # the tuned value
    assert "members: 1" in said
    assert not list(tmp_path.iterdir())


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "there is no verb 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["updatess=3"], "no key 'updatess'; did you mean updates"),
        (["lerner.critics=2"], "no key 'lerner.critics'; did you mean learner.critics"),
        (["algo=mopoo"], "algo=mopoo: no such option; did you mean mopo or mbpo?"),
        (["filter=[no_clp]"], "filter=no_clp: no such option; did you mean no_clip?"),
        (["dynamics=singel"], "dynamics=singel: no such option; did you mean single?"),
        (
            ["rollout.penalise.coeficient=1"],
            "no key 'rollout.penalise.coeficient'; did you mean rollout.penalise.coefficient",
        ),
        (["rollout.chunk=-5"], "rollout.chunk=-5: expected auto or a whole number, 1 or more"),
        (["learner.discount=1.5"], "learner.discount=1.5: expected a number, between 0 and 1"),
        (["rollout.clip.margin=-1"], "rollout.clip.margin=-1: expected a number, 0 or more"),
        (["task=pendulum"], "task= names a dataset of its own"),
        (["dataset=null", "task=hopper-medum-v2"], "no task is called 'hopper-medum-v2'; nearest: hopper-medium-v2"),
        (["dataset={folder}/lgo.npz"], "log.npz"),
        (["dataset=builtin:pendulm"], "builtin:pendulum"),
        (["env=Pendulum-v0"], "env=Pendulum-v0 is not a Gymnasium environment; nearest: Pendulum-v1"),
        (
            ["env=Hopper-v5"],
            "`actions` has 1 columns, the environment's action space has shape (3,)",
        ),
        (["termination=hoper"], "no termination function is called 'hoper'; nearest: hopper"),
        (["termination=no_such_module:rule"], "no module named 'no_such_module'"),
        (["logger=tensorbord"], "did you mean 'tensorboard'?"),
        (
            ["dynamics=single", "penalty=max_pairwise"],
            "measures how several members disagree, and dynamics.members is 1",
        ),
        (
            ["algo=mobile", "dynamics=single"],
            "learner: the Model-Bellman inconsistency is how far several elites disagree",
        ),
        (
            ["learner.backup_actions=3"],
            "learner: learner.backup_actions=3: the largest of several values has no entropy",
        ),
        (["device=gpu"], "device=gpu: expected auto, cpu, cuda"),
        (["updates=many"], "updates=many: expected a whole number"),
        (["precision=tf32", "device=cpu"], "precision=tf32 is a rounding of CUDA devices, and the device is cpu"),
        (["precision=half"], "precision=half is unknown; it is float32, tf32, bfloat16"),
        (["compile=fast"], "compile=fast is unknown; it is auto, eager, compile or graph"),
        (["eval.background=often"], "eval.background=often is unknown; it is true, false or auto"),
        (["penalty=none,max_aleatoric"], "--multirun"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["run_dir={folder}/log.npz/run"], "Not a directory"),
        (["updates"], "cannot read an override: Error parsing override 'updates'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_said_and_leaves_nothing(
    mistake: list[str],
    said: str,
    words: list[str],
    log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake = [word.format(folder=log.parent) for word in mistake]
    assert main([*words, *mistake]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert error.startswith("mbrl train: ")
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_mistake_leaves_files_that_are_not_ours(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main([*words, "task=nonsense", "dataset=null"]) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("verb", ["train", "fit"])
def test_a_run_is_never_overwritten(
    verb: str, words: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main([verb, *words[1:-1], "learner.discount=0.5", f"run_dir={finished}"]) == 1
    error = capsys.readouterr().err
    assert "already holds a run" in error
    assert f"mbrl {verb} resume={finished}" in error
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_resume_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={tmp_path}"]) == 1
    assert "is not a run directory: it has no meta.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_resume_names_a_misspelt_key(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={finished}", "updatess=3"]) == 1
    assert "no key 'updatess'; did you mean updates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=9", "resume: seed is settled since the run began"),
        ("learner.hidden=[8]", "resume: learner.hidden is settled since the run began"),
        ("eval.episodes=3", "resume: eval.episodes is settled since the run began"),
        ("updates=1", "updates already, more than updates=1"),
    ],
)
def test_a_resume_changes_nothing_that_is_settled(
    word: str, said: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "config.yaml").read_bytes(), (finished / "meta.json").read_bytes()
    assert main(["train", f"resume={finished}", word]) == 1
    assert said in capsys.readouterr().err
    assert before == ((finished / "config.yaml").read_bytes(), (finished / "meta.json").read_bytes())


def test_resume_with_other_data_is_refused(words: list[str], log: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "mine.npz"
    data.write_bytes(log.read_bytes())
    assert main([*words, f"dataset={data}"]) == 0
    with np.load(log) as file:
        np.savez(data, **{**file, "rewards": file["rewards"] + 1})
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 1
    assert "is not the dataset that" in capsys.readouterr().err


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_directory_keeps_its_contract(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= FILES
    summary = read_json(finished / "summary.json")
    assert set(summary) >= SUMMARY
    assert (summary["status"], summary["updates"], summary["seeds"]) == ("finished", 40, [0])
    assert summary["final_score_mean"] is None  # Pendulum has no reference returns
    assert summary["per_seed"] == [
        {"seed": 0, "final_return_mean": summary["final_return_mean"], "final_score_mean": None}
    ]
    assert summary["updates_per_second"] > 0
    assert summary["wall_seconds"] > 0
    with np.load(finished / "returns.npz", allow_pickle=False) as file:
        assert file["updates"].tolist() == [20, 40]
        assert file["returns"].shape == (2, 1, 2)
        assert file["returns"].mean() == pytest.approx(summary["final_return_mean"])
    meta = read_json(finished / "meta.json")
    assert meta["status"] == "finished"
    assert (meta["env"], meta["horizon"], meta["seeds"], meta["device"]) == ("Pendulum-v1", 20, [0], "cpu")
    assert {"torch", "numpy", "gymnasium", "mbrl"} <= set(meta["versions"])
    assert len(meta["dataset_hash"]) >= 16
    assert OmegaConf.load(finished / ".hydra" / "config.yaml").updates == 40
    assert OmegaConf.load(finished / "config.yaml").rollout.penalise.coefficient == 0.5  # of the family pendulum


def test_the_dataset_s_own_return_is_the_comparison(finished: Path, log: Path) -> None:
    with np.load(log) as file:
        episodes = file["rewards"].reshape(2, 200).sum(1)
    summary = read_json(finished / "summary.json")
    assert summary["behaviour_return_mean"] == pytest.approx(episodes.mean(), rel=1e-5)


def test_metrics_are_the_same_in_both_files(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 20, 40]
    assert {"learner/critic_loss", "learner/q", "rollout/kept", "eval/return", "time/seconds"} <= set(rows[1]) | set(
        rows[2]
    )
    with open(finished / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, cells in zip(rows, table, strict=True):
        assert {name: float(cells[name]) for name in row} == row


def test_policy_and_checkpoints_need_no_pickle(finished: Path) -> None:
    policy = torch.load(finished / "policy.pt", weights_only=True)
    assert (policy["obs_dim"], policy["action_dim"], policy["seeds"], policy["updates"]) == (3, 1, [0], 40)
    assert (policy["action_low"], policy["action_high"]) == ([-2.0], [2.0])  # of the environment, not of the data
    (checkpoint,) = (finished / "checkpoints").glob("*.pt")
    assert torch.load(checkpoint, weights_only=True)["training"]["step"] == 40
    assert not list(finished.rglob("*.tmp"))


def test_two_runs_of_one_configuration_are_one(finished: Path, log: Path, store: Path, tmp_path: Path) -> None:
    assert main(["train", f"dataset={log}", *PENDULUM, f"store={store}", f"run_dir={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "policy.pt").read_bytes() == (finished / "policy.pt").read_bytes()


def test_without_a_simulator_nothing_is_claimed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    run_dir = tmp_path / "run"
    said = capsys.readouterr().out
    assert "nothing is scored" in said
    assert "what the model believes" in said
    assert not (run_dir / "returns.npz").exists()
    assert (run_dir / "model_curve.png").stat().st_size > 1000
    summary = read_json(run_dir / "summary.json")
    assert set(summary) >= SUMMARY
    assert (summary["final_return_mean"], summary["final_score_mean"], summary["evaluations"]) == (None, None, 0)
    assert summary["per_seed"] == [{"seed": 0, "final_return_mean": None, "final_score_mean": None}]
    assert summary["protocol"].startswith("not scored: no simulator")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {"model/return", "model/length", "model/uncertainty", "model/q_start"} <= set(rows[-1])
    assert 0 < rows[-1]["model/length"] <= 5
    assert not any(name.startswith("eval/") for row in rows for name in row)


def test_a_fitted_model_is_found_again(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [*words[1:-2], f"store={tmp_path / 'models'}"]
    assert main(["fit", *own, f"run_dir={tmp_path / 'fit'}"]) == 0
    said = capsys.readouterr().out
    assert "one-step error of a sample" in said
    assert "obs[2]" in said
    assert "squared-error net" in said
    assert read_json(tmp_path / "fit" / "meta.json")["dynamics"]["from"] == "fitted"
    assert read_json(tmp_path / "fit" / "dynamics" / "quality.json")["squared_error_net"]["steps"] == 3000
    assert not (tmp_path / "fit" / "policy.pt").exists()

    assert main(["train", *own, f"run_dir={tmp_path / 'train'}"]) == 0
    dynamics = read_json(tmp_path / "train" / "meta.json")["dynamics"]
    assert dynamics == read_json(tmp_path / "fit" / "meta.json")["dynamics"] | {"from": "store"}
    said = capsys.readouterr().out
    assert "dynamics model from the store" in said
    assert "one-step error of a sample" in said  # also of a model that others have fitted
    assert "obs[2]" not in said
    quality = read_json(tmp_path / "train" / "dynamics" / "quality.json")
    assert "squared_error_net" not in quality
    assert {name: quality[name] for name in dynamics["quality"]} == dynamics["quality"]
    row = json.loads((tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["update"] == 0
    assert row["dynamics/mean_error"] == quality["mean_error"][0] < row["dynamics/candidate_error"]

    assert main(["train", *own, "dynamics.hidden=[8]", f"run_dir={tmp_path / 'other'}"]) == 0
    assert read_json(tmp_path / "other" / "meta.json")["dynamics"]["from"] == "fitted"


def test_seeds_side_by_side(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "env=Pendulum-v1", "horizon=20", "seed=3", "seeds=2"]) == 0
    run_dir = tmp_path / "run"
    summary = read_json(run_dir / "summary.json")
    assert summary["seeds"] == [3, 4]
    with np.load(run_dir / "returns.npz") as file:
        assert file["returns"].shape == (2, 2, 2)
        by_seed = file["returns"].mean((0, 2))
    assert [row["seed"] for row in summary["per_seed"]] == [3, 4]
    assert [row["final_return_mean"] for row in summary["per_seed"]] == pytest.approx(by_seed.tolist())
    assert by_seed[0] != by_seed[1]
    row = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"learner/q", "learner/q/seed_3", "learner/q/seed_4", "eval/return/seed_3"} <= set(row)


def test_a_sweep_is_one_run_directory_each(words: list[str], tmp_path: Path) -> None:
    assert main([*words[:-1], "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    for job, seed in (("seed=0", 0), ("seed=1", 1)):
        assert read_json(tmp_path / "sweep" / job / "summary.json")["seeds"] == [seed]
        assert (tmp_path / "sweep" / job / "policy.pt").exists()


@pytest.mark.parametrize(
    "choice",
    [
        ["penalty=max_pairwise"],
        ["penalty=none", "filter=[no_clip]"],
        ["dynamics=single", "penalty=max_aleatoric", "filter=[]"],
        ["algo=mobile"],
        ["algo=mobile", "env=Pendulum-v1", "horizon=20", "seeds=2", "rollout.members=elites", "precision=bfloat16"],
        ["learner.backup_actions=3", "learner.soft_backup=false"],
        ["algo=sac_n", "env=Pendulum-v1", "horizon=20"],
        ["algo=edac", "env=Pendulum-v1", "horizon=20", "seeds=2"],
        ["algo=ravl", "env=Pendulum-v1", "horizon=20"],
        ["algo=ravl", "learner.critics=50", "backup=lower_confidence_bound"],
        ["algo=mopo", "filter=[ravl]", "env=Pendulum-v1", "horizon=20"],
        ["algo=mopo", "filter=[morec,ravl]", "score.steps=20", "env=Pendulum-v1", "horizon=20"],
        ["algo=mobile", "filter=[ravl]", "backup=random_pair", "seeds=2"],
        ["dynamics=single", "algo=ravl", "filter=[robust_uniform]", "seeds=2"],
        ["dynamics=single_lipschitz", "algo=edac", "filter=[gradient_penalty]"],
        ["dynamics=single_lipschitz", "algo=sac_n", "filter=[robust_fgsm,spectral]", "env=Pendulum-v1", "horizon=20"],
        ["dynamics=single_lipschitz", "algo=mopo", "filter=[morec,ravl,robust_fgsm]", "score.steps=20"],
    ],
    ids=" ".join,
)
def test_choices_run(choice: list[str], words: list[str], tmp_path: Path) -> None:
    assert main([*words, *choice]) == 0
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "finished"


def test_how_flat_critics_are_is_logged_and_changes_nothing(words: list[str], finished: Path, tmp_path: Path) -> None:
    chosen = [*words[:-1], "dynamics=single_lipschitz", "filter=[spectral,robust_fgsm]", "seeds=2"]
    assert main([*chosen, words[-1]]) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if any(key.startswith("lipschitz/") for key in row)]
    assert [row["update"] for row in rows] == [20, 40]  # every evaluation
    for name in ("local_mean", "local_95", "local_max", "gradient_norm", "spectral_product", "value_error",
                 "value_error_relative", "model_error", "model_spread"):  # fmt: skip
        for row in rows:
            assert math.isfinite(row[f"lipschitz/{name}"])
            assert row[f"lipschitz/{name}/seed_1"] > 0
    silent = [*chosen, "lipschitz.measure=false", f"run_dir={tmp_path / 'silent'}"]
    assert main(silent) == 0
    assert not any(key.startswith("lipschitz/") for row in read_metrics(tmp_path / "silent") for key in row)
    states = [torch.load(tmp_path / name / "policy.pt", weights_only=True) for name in ("run", "silent")]
    assert set(states[0]["learner"]) >= {"spectral", "target_spectral", "observation_std"}
    assert not {"spectral", "observation_std"} & set(torch.load(finished / "policy.pt", weights_only=True)["learner"])
    for ours, theirs in zip(states[0]["learner"]["critics"], states[1]["learner"]["critics"], strict=True):
        assert torch.equal(ours, theirs)
    # What `mbrl eval` loads is the whole learner.
    assert saved_policy(tmp_path / "run")[0].spectral is not None


def test_the_simulator_as_model_is_not_fitted(log: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    settings = [word for word in PENDULUM if not word.startswith("dynamics.")]
    words = ["train", f"dataset={log}", *settings, f"store={tmp_path / 'store'}", "dynamics=oracle", "seeds=2"]
    assert main([*words, f"run_dir={tmp_path / 'run'}"]) == 0
    assert "the dynamics model is the simulator Pendulum-v1: nothing is fitted" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "summary.json")["updates"] == 40
    assert not (tmp_path / "run" / "dynamics").exists()
    assert not (tmp_path / "store").exists()
    pooled = [*words, f"run_dir={tmp_path / 'pooled'}", "dynamics.workers=2"]
    assert main(pooled) == 0
    assert (tmp_path / "pooled" / "policy.pt").read_bytes() == (tmp_path / "run" / "policy.pt").read_bytes()


def test_without_imagination_no_model_is_fitted(log: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["train", f"dataset={log}", *PENDULUM, f"store={tmp_path / 'store'}", "real_ratio=1.0", "penalty=none"]
    assert main([*words, f"run_dir={tmp_path / 'run'}"]) == 0
    assert "no dynamics model is fitted" in capsys.readouterr().out
    assert "dynamics" not in read_json(tmp_path / "run" / "meta.json")
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "finished"
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0


def test_a_score_that_nobody_asks_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = "rollouts do not ask it: add 'filter=[morec]'"
    assert main([*words, "score=closest_to_mean"]) == 0
    assert said in capsys.readouterr().out
    assert main([*words[:-1], words[-1] + "-2", "filter=[morec]", "score=closest_to_mean"]) == 0
    assert said not in capsys.readouterr().out


def test_options_of_ones_own_folder(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "penalty").mkdir(parents=True)
    (tmp_path / "mine" / "penalty" / "gentle.yaml").write_text(
        "# @package rollout\ndefaults: [max_aleatoric, _self_]\npenalise: {coefficient: 0.125}\n"
    )
    assert main([*words, "--config-dir", str(tmp_path / "mine"), "penalty=gentle"]) == 0
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").rollout.penalise.coefficient == 0.125
    assert main([*words, "--config-dir", str(tmp_path / "mine"), "penalty=gentel", "run_dir=other"]) == 1
    assert "penalty=gentel: no such option; did you mean gentle?" in capsys.readouterr().err


def test_tensorboard(words: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([*words, "logger=tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("learner/q")] == [20, 40]


def test_a_logger_may_be_added_at_a_resume(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    assert main(["train", f"resume={tmp_path / 'run'}", "logger=tensorboard"]) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


OWN_MODULE = """
import gymnasium, numpy, torch

def upside_down(obs, action, next_obs):
    return next_obs[..., 0] < 0.5

def plant(start=0.0):
    return Plant(start)

class Plant(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (3,), numpy.float32)
    action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), numpy.float32)

    def __init__(self, start):
        self.start = start

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return numpy.array([1, 0, self.start], numpy.float32), {}

    def step(self, action):
        return numpy.array([1, 0, 0], numpy.float32), 0.5, False, False, {}
"""


def test_own_environment_and_termination_by_import_path(log: Path, store: Path, tmp_path: Path) -> None:
    """A real process, as PYTHONPATH is read at its start."""
    (tmp_path / "my_plant.py").write_text(OWN_MODULE)
    own = ["env=my_plant:plant", "horizon=7", "termination=my_plant:upside_down"]
    done = command(["train", f"dataset={log}", *TINY, *own, f"store={store}", "run_dir=run"], tmp_path)
    assert done.returncode == 0, done.stderr
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["final_return_mean"] == 3.5  # 7 steps of 0.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["rollout/terminal"] > 0.1  # half of all angles; row 0 is of the dynamics model
    assert torch.load(tmp_path / "run" / "policy.pt", weights_only=True)["action_high"] == [3.0]


def command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mbrl.cli", *words], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip


def test_commands_in_the_documents_have_the_right_words() -> None:
    root = Path(__file__).parents[1]
    texts = [file.read_text().replace("\\\n", " ") for file in (root / "README.md", *root.glob("docs/*.md"))]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith(("mbrl train ", "mbrl fit "))]
    assert len(commands) >= 4
    for words in commands:
        compose.check_overrides([word for word in words[2:] if not word.startswith("resume=")], "train")


def test_scripts_are_the_verbs(tmp_path: Path) -> None:
    scripts = Path(__file__).parents[1] / "scripts"
    for verb in VERBS:
        assert verb in (scripts / f"{verb}.py").read_text()
    done = subprocess.run(
        [sys.executable, scripts / "train.py", "updatess=3"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "did you mean updates" in done.stderr


# -- eval and inspect --------------------------------------------------------------------------------------------------


def test_eval_prints_and_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main(["eval", str(finished), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "seed 0: return -" in said
    assert "over 2 episodes, length 20.0" in said
    assert "in Pendulum-v1" in said
    assert "the dataset's mean is" in said
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    main(["eval", str(finished), "--episodes", "2"])
    assert capsys.readouterr().out == said


def test_report_of_a_real_run_changes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    page = tmp_path / "report.html"
    assert main(["report", str(finished.parent), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "1 run, 1 in the tables: 1 task, 1 method, 1 trained seed" in said
    assert "2 evaluations up to update 40, 2 episodes each" in said
    assert f"{read_json(finished / 'summary.json')['final_return_mean']:,.1f}" in said
    assert page.stat().st_size > 1_000_000  # what draws the curves is in it
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_eval_repeats_an_evaluation_of_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(finished), "--episodes", "2", "--evaluation", "40"]) == 0
    with np.load(finished / "returns.npz") as file:
        assert f"mean return {file['returns'][-1].mean():.2f} in Pendulum-v1" in capsys.readouterr().out


def test_eval_of_another_environment(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(finished), "--env", "Hopper-v5"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "takes observations of 3 and makes actions of 1 dimensions, but Hopper-v5 has 11 and 3" in error
    assert "Traceback" not in error


def test_eval_without_a_simulator(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 0
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert "was trained without an environment; give one by --env" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--env", "Pendulum-v1", "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "length 200.0" in said  # the environment's own
    assert "in Pendulum-v1 (raw: no reference scores)" in said


def test_eval_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path)]) == 1
    assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("episodes", ["0", "-1"])
def test_eval_of_no_episodes(finished: Path, episodes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(finished), f"--episodes={episodes}"]) == 2
    assert "--episodes" in capsys.readouterr().err


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "builtin:pendulum"]) == 0
    said = capsys.readouterr().out
    assert "40,000" in said
    assert "200" in said


def test_inspect_of_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.npz")]) == 1
    error = capsys.readouterr().err
    assert "none.npz" in error
    assert "Traceback" not in error
