"""Collecting: real environments, real SAC, real Minari; kill and resume; every level from what it says it is from."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from helpers import POSIX, started, until

from mbrl.cli import main
from mbrl.data import write
from mbrl.data.collect import (
    CollectionError,
    Player,
    load_snapshot,
    medium_step,
    policy_of,
    replay_table,
    uniform_policy,
)
from mbrl.data.sources import load_dataset
from mbrl.data.validate import DatasetError
from mbrl.data.write import Episode, dataset_id, write_hdf5, write_minari
from mbrl.evaluate import EvaluationError, make_env
from mbrl.learn.sac import SAC
from mbrl.log import ProgressBar, read_metrics
from mbrl.nets import generator
from mbrl.rundir import read_json
from mbrl.train import Draws
from mbrl.types import Transition

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
PENDULUM = [
    *("steps=400", "warm_up=100", "size=100", "eval.every=100", "eval.episodes=2", "medium_at=150", "horizon=50"),
    *("learner.hidden=[16,16]", "batch_size=32", "progress=false"),
]
HOPPER = [
    *("env=Hopper-v5", "steps=400", "warm_up=100", "size=150", "eval.every=100", "eval.episodes=2", "medium_at=150"),
    *("learner.hidden=[16,16]", "batch_size=32", "progress=false"),
]
SETTINGS: dict[str, Any] = {
    "author": ["A. Author"],
    "author_email": [],
    "algorithm_name": "none",
    "description": "made for a test",
    "code_permalink": None,
    "requirements": [],
}


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sets and run directory of a small collection."""
    folder = tmp_path_factory.mktemp("pendulum")
    assert main(["collect", *PENDULUM, "hdf5=true", f"out={folder / 'sets'}", f"run_dir={folder / 'run'}"]) == 0
    return folder / "sets", folder / "run"


def content(sets: Path) -> dict[str, bytes]:
    """Every file below a folder of sets, but for what metadata say of this checkout, which may change meanwhile."""
    found = {str(path.relative_to(sets)): path.read_bytes() for path in sets.rglob("*") if path.is_file()}
    for name, data in found.items():
        if name.endswith("/data/metadata.json"):
            found[name] = json.dumps({**json.loads(data), "git": {}}).encode()
    return found


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_sets_load_from_minari_and_hdf5_with_the_same_content(pendulum: tuple[Path, Path], level: str) -> None:
    sets, _ = pendulum
    folder = load_dataset(str(sets / f"mbrl/pendulum-v1/{level}-v0"))
    file = load_dataset(str(sets / f"mbrl/pendulum-v1/{level}-v0.hdf5"))
    assert folder.hash == file.hash
    assert folder.env_id == file.env_id == "Pendulum-v1"
    assert folder.action_low.tolist() == file.action_low.tolist() == [-2.0]
    np.testing.assert_array_equal(folder.episode_returns, file.episode_returns)
    # 50 steps each and ended by the clock alone.
    assert set(folder.episode_lengths.tolist()) == {50}
    assert folder.timeout.sum() == len(folder.episode_lengths)
    assert not folder.transitions.terminal.any()
    assert folder.dropped_rows == folder.incomplete_episodes == 0
    assert len(folder.transitions.reward) == {"medium-expert": 200, "medium-replay": 200}.get(level, 100)


def test_metadata_say_what_was_done(pendulum: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sets, run = pendulum
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(sets))
    assert set(minari.list_local_datasets()) == {f"mbrl/pendulum-v1/{level}-v0" for level in LEVELS}
    dataset = minari.load_dataset("mbrl/pendulum-v1/medium-v0")
    assert dataset.observation_space.dtype == np.float32
    assert dataset[0].observations.dtype == dataset[0].actions.dtype == np.float32
    found = dataset.storage.metadata
    assert found["author"] == {"mbrl"}
    assert found["algorithm_name"] == "SAC (mbrl.learn.sac)"
    assert "the snapshot of step 200 of 400" in found["description"]
    assert "the first at or after step 150" in found["description"]
    assert found["requirements"] == [f"gymnasium>={gymnasium.__version__}"]
    assert found["seed"] == 0
    assert found["collection"]["learner"]["hidden"] == [16, 16]
    assert found["details"]["snapshot_step"] == 200
    assert found["versions"]["torch"] == torch.__version__
    returns = [float(episode.rewards.sum(dtype=np.float64)) for episode in dataset]
    assert read_json(run / "summary.json")["sets"]["medium"]["return_mean"] == pytest.approx(np.mean(returns))
    env = dataset.recover_environment()
    assert env.spec is not None
    assert env.spec.id == "Pendulum-v1"
    assert env.spec.max_episode_steps == 50


def test_recorded_actions_and_seeds_replay_in_the_recovered_environment(
    pendulum: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(pendulum[0]))
    for level in ("random", "medium-replay", "expert"):
        dataset = minari.load_dataset(f"mbrl/pendulum-v1/{level}-v0")
        env = dataset.recover_environment()
        episode = dataset[1]
        seed = next(iter(dataset.storage.get_episode_metadata([1])))["seed"]
        obs, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(obs, episode.observations[0])
        for action, reward, following in zip(episode.actions, episode.rewards, episode.observations[1:], strict=True):
            obs, given, *_ = env.step(action)
            np.testing.assert_array_equal(obs, following)
            assert np.float32(given) == reward


def test_levels_are_made_of_what_they_say(pendulum: tuple[Path, Path]) -> None:
    sets, run = pendulum
    load = {level: load_dataset(str(sets / f"mbrl/pendulum-v1/{level}-v0")).transitions for level in LEVELS}
    # medium-expert: the one, then the other.
    for name in ("obs", "action", "reward", "next_obs"):
        both = torch.cat([getattr(load["medium"], name), getattr(load["expert"], name)])
        torch.testing.assert_close(getattr(load["medium-expert"], name), both, rtol=0, atol=0)
    # random: uniform over the whole box, and not the same episodes as the warm-up's.
    assert load["random"].action.abs().mean() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(load["random"].obs[:50], load["medium-replay"].obs[:50])
    # medium: sampled from the snapshot of step 200, with the noise of its purpose and episode.
    learner = SAC(3, 1, [0], hidden=(16, 16))
    for tensor, saved in zip(learner.actor, load_snapshot(run, 200), strict=True):
        tensor.copy_(saved)
    source = generator(0, "collect", "medium", 0)
    noise = torch.randn((50, 1), generator=source)
    sampled = learner.sample(load["medium"].obs[None, :50], noise[None])[0]
    torch.testing.assert_close(load["medium"].action[:50], sampled, rtol=0, atol=1e-5)


def test_medium_replay_is_what_the_learner_saw_in_order(pendulum: tuple[Path, Path]) -> None:
    sets, run = pendulum
    state = torch.load(sorted((run / "checkpoints").glob("step_*.pt"))[-1], weights_only=True)["training"]
    rows = state["table"]["rows"][0][:200]
    replay = load_dataset(str(sets / "mbrl/pendulum-v1/medium-replay-v0")).transitions
    torch.testing.assert_close(rows[:, :3], replay.obs, rtol=0, atol=0)
    torch.testing.assert_close(rows[:, 3:4], replay.action, rtol=0, atol=1e-6)
    torch.testing.assert_close(rows[:, 7], replay.reward, rtol=0, atol=0)
    assert state["lengths"].tolist() == [50] * 8


def test_run_directory_has_curve_metrics_and_snapshots(pendulum: tuple[Path, Path]) -> None:
    _, run = pendulum
    assert (run / "learning_curve.png").exists()
    with np.load(run / "returns.npz") as file:
        assert file["updates"].tolist() == [100, 200, 300, 400]
        assert file["returns"].shape == (4, 1, 2)
    rows = read_metrics(run)
    assert "learner/critic_loss" in rows[-1]
    assert "training/return" in rows[-1]
    assert rows[-1]["eval/length"] == 50
    assert [path.name for path in sorted((run / "snapshots").iterdir())] == [
        f"step_{step:09d}.pt" for step in (100, 200, 300, 400)
    ]
    assert read_json(run / "meta.json")["status"] == "finished"


def test_real_terminations_of_mujoco_stay_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["collect", *HOPPER, f"out={tmp_path / 'sets'}", f"run_dir={tmp_path / 'run'}"]) == 0
    for level in LEVELS:
        dataset = load_dataset(str(tmp_path / f"sets/mbrl/hopper-v5/{level}-v0"))
        assert dataset.transitions.terminal.sum() == len(dataset.episode_lengths)  # an untrained hopper falls
        assert not dataset.timeout.any()
        assert len(dataset.transitions.reward) >= (300 if level == "medium-expert" else 100)
        assert dataset.warnings == ()
    # The task table has references for this family, and the metadata say from where.
    found = write.read_metadata(tmp_path / "sets", "mbrl/hopper-v5/expert-v0")
    assert found is not None
    assert found["ref_max_score"] == pytest.approx(3234.3)
    assert "d4rl" in found["ref_source"].lower()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    assert minari.load_dataset("mbrl/hopper-v5/expert-v0").recover_environment().spec.id == "Hopper-v5"
    assert main(["inspect", "minari:mbrl/hopper-v5/medium-replay-v0"]) == 0


def test_policy_of_a_training_run_is_rolled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train = [
        *("updates=4", "eval.every=4", "eval.episodes=1", "log_every=4", "rollout.lanes=8", "rollout.length=1"),
        *("dynamics.max_epochs=1", "dynamics.hidden=[8]", "learner.hidden=[8,8]", "batch_size=8", "seeds=2"),
        *("progress=false", f"store={tmp_path / 'store'}", f"run_dir={run}"),
    ]
    assert main(["train", *train]) == 0
    common = [f"policy={run}", "size=250", "progress=false", f"out={tmp_path / 'sets'}", "eval.episodes=1"]
    capsys.readouterr()
    assert main(["collect", *common, "stochastic=false", "policy_seed=1", f"run_dir={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr().out  # without progress only the bar is missing
    assert f"run directory: {tmp_path / 'one'}\n" in said
    assert "minari:mbrl/" in said
    assert "rolling out" not in said
    data = load_dataset(str(tmp_path / "sets/mbrl/pendulum-v1/policy-v0")).transitions
    assert len(data.reward) == 400
    saved = torch.load(run / "policy.pt", weights_only=True)
    learner = SAC(3, 1, [0, 1], hidden=(8, 8))
    learner.load_state_dict(saved["learner"])
    torch.testing.assert_close(learner.act(data.obs.expand(2, -1, -1))[1], data.action, rtol=0, atol=1e-5)
    assert main(["collect", *common, "version=1", "policy_seed=7", f"run_dir={tmp_path / 'two'}"]) == 1
    assert "has the seeds [0, 1]" in capsys.readouterr().err


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_taken_id_is_refused_before_training(pendulum: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    sets, _ = pendulum
    before = content(sets)
    started = time.monotonic()
    assert main(["collect", *PENDULUM, "steps=100000000", f"out={sets}", f"run_dir={tmp_path / 'run'}"]) == 1
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert "random-v0 exists already" in said
    assert "version=1" in said
    assert not (tmp_path / "run").exists()
    assert content(sets) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["levels=[medum]"], "did you mean medium"),
        (["levels=[]"], "levels=[] makes nothing"),
        (["env=Pendulum-v2"], "Pendulum-v1"),
        (["env=CartPole-v1"], "expected a one-dimensional Box"),
        (["medium_at=0"], "medium_at=0 must be above 0"),
        (["warm_up=2000"], "less than steps=400"),
        (["namespace=a b"], "no Minari id"),
        (["size=0"], "size=0 must be a whole number"),
        (["stepps=3"], "steps"),
        (["policy=nowhere"], "not a run directory"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["collect", *PENDULUM, f"out={tmp_path / 'sets'}", f"run_dir={run}", *words]) == 1
    assert expected in capsys.readouterr().err
    assert not run.exists()


def test_resume_of_a_training_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"seeds": [0]}))
    assert main(["collect", f"resume={tmp_path}"]) == 1
    assert "no run of `mbrl collect`" in capsys.readouterr().err


def test_help_names_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(level in said for level in LEVELS)


# -- resuming ----------------------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("moment", ["checkpoints/step_000000200.pt", "../sets/mbrl/pendulum-v1/medium-v0.hdf5"])
def test_killed_and_resumed_writes_the_same_bytes(pendulum: tuple[Path, Path], tmp_path: Path, moment: str) -> None:
    run, sets = tmp_path / "run", tmp_path / "sets"
    words = ["collect", *PENDULUM, "hdf5=true", "checkpoint_seconds=0", f"out={sets}", f"run_dir={run}"]
    with started(words, tmp_path / "output") as process:
        until((run / moment).exists, process, seconds=60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_json(run / "meta.json")["status"] == "running"
    assert main(["collect", f"resume={run}"]) == 0
    # A killed writer may leave its hidden folder behind; nothing else differs.
    resumed = {name: data for name, data in content(sets).items() if not name.startswith(".writing-")}
    assert resumed == content(pendulum[0])
    rows, uninterrupted = read_metrics(run), read_metrics(pendulum[1])
    for row in (*rows, *uninterrupted):
        del row["time/seconds"], row["time/updates_per_second"]
    assert rows == uninterrupted


@POSIX
def test_killed_before_the_first_checkpoint_begins_anew(pendulum: tuple[Path, Path], tmp_path: Path) -> None:
    run, sets = tmp_path / "run", tmp_path / "sets"
    with started(["collect", *PENDULUM, "hdf5=true", f"out={sets}", f"run_dir={run}"], tmp_path / "output") as process:
        until((run / "returns.npz").exists, process, seconds=60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(run.glob("checkpoints/*"))
    assert main(["collect", f"resume={run}"]) == 0
    assert content(sets) == content(pendulum[0])


@POSIX
def test_interrupt_is_saved_and_resumed(pendulum: tuple[Path, Path], tmp_path: Path) -> None:
    run, sets = tmp_path / "run", tmp_path / "sets"
    with started(["collect", *PENDULUM, "hdf5=true", f"out={sets}", f"run_dir={run}"], tmp_path / "output") as process:
        until((run / "returns.npz").exists, process, seconds=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    assert read_json(run / "meta.json")["status"] == "interrupted"
    assert main(["collect", f"resume={run}"]) == 0
    assert content(sets) == content(pendulum[0])


def test_a_finished_run_can_be_asked_for_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, sets = tmp_path / "run", tmp_path / "sets"
    assert main(["collect", *PENDULUM, "levels=[medium]", f"out={sets}", f"run_dir={run}"]) == 0
    before = content(sets)
    assert main(["collect", f"resume={run}", "levels=[medium,expert]"]) == 0
    after = content(sets)
    assert set(after) - set(before) == {
        "mbrl/pendulum-v1/expert-v0/data/main_data.hdf5",
        "mbrl/pendulum-v1/expert-v0/data/metadata.json",
    }
    assert {name: after[name] for name in before} == before
    # Another size is another set: it needs another version.
    assert main(["collect", f"resume={run}", "size=150"]) == 1
    assert "version=1" in capsys.readouterr().err
    assert main(["collect", f"resume={run}", "size=150", "version=1"]) == 0
    assert len(load_dataset(str(sets / "mbrl/pendulum-v1/medium-v1")).transitions.reward) == 150


# -- parts -------------------------------------------------------------------------------------------------------------


def test_medium_is_the_first_that_reaches_its_share() -> None:
    steps, returns = [10, 20, 30, 40], [0.0, 34.0, 20.0, 100.0]
    assert medium_step(steps, returns, random=0.0, expert=100.0, medium_at=1 / 3) == 20
    assert medium_step(steps, returns, random=0.0, expert=100.0, medium_at=0.5) == 40
    assert medium_step(steps, returns, random=-100.0, expert=-40.0, medium_at=1 / 3) == 10
    assert medium_step(steps, returns, random=0.0, expert=100.0, medium_at=21) == 30
    with pytest.raises(CollectionError, match="last snapshot is of step 40"):
        medium_step(steps, returns, random=0.0, expert=100.0, medium_at=41)
    with pytest.raises(CollectionError, match=r"random actions return 5\.00, the expert 1\.00.*medium_at=STEP"):
        medium_step(steps, returns, random=5.0, expert=1.0, medium_at=1 / 3)


def test_uniform_policy_is_uniform() -> None:
    action = uniform_policy(torch.zeros(()), torch.randn(200_000, generator=generator(0, "test")))
    assert action.min() >= -1
    assert action.max() <= 1
    share = torch.histc(action, 10, -1, 1) / len(action)
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.003)


def test_replay_table_without_dataset_holds_and_samples_steps() -> None:
    table = replay_table(2, 1, capacity=5, device="cpu")
    for i in range(7):
        value = torch.full((1, 1), float(i))
        flag = torch.ones((1, 1), dtype=torch.bool)
        row = torch.zeros((1, 1, table.width))
        obs = value.unsqueeze(-1).expand(1, 1, 2)
        table.pack(Transition(obs, value.unsqueeze(-1), value, obs + 1, flag, flag), row)
        table.write(row, flag)
        assert table.sample(torch.full((1, 3), 0.999999, dtype=torch.float64), real=0).transition.obs.shape == (1, 3, 2)
    # A ring of five: 5 and 6 have overwritten 0 and 1.
    assert table.imagined(0).reward.tolist() == [5, 6, 2, 3, 4]
    uniform = (torch.arange(5, dtype=torch.float64) / 5).expand(1, 5)
    assert table.sample(uniform, real=0).transition.reward[0].tolist() == [5, 6, 2, 3, 4]
    with pytest.raises(ValueError, match="the table has none"):
        table.sample(uniform, real=1)


def test_an_episode_does_not_depend_on_what_was_played_before() -> None:
    one, other = (Player("Pendulum-v1", seed=3, horizon=20) for _ in range(2))
    one.episode("random", 0, uniform_policy)
    first, second = one.episode("random", 1, uniform_policy), other.episode("random", 1, uniform_policy)
    np.testing.assert_array_equal(first.obs, second.obs)
    np.testing.assert_array_equal(first.action, second.action)
    assert not np.array_equal(first.obs, other.episode("expert", 1, uniform_policy).obs)
    assert len(first) == 20
    assert not first.terminated


def test_roll_out_plays_whole_episodes_until_both_are_reached() -> None:
    player = Player("Pendulum-v1", seed=0, horizon=20)
    common: dict[str, Any] = {"should_stop": lambda: False, "progress": ProgressBar()}
    assert len(player.roll_out("random", uniform_policy, size=41, episodes=1, **common)) == 3
    assert len(player.roll_out("random", uniform_policy, size=0, episodes=4, **common)) == 4


class Unbounded(gymnasium.Env[Any, Any]):
    """Actions without bounds; the second reward is not a number."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, bound: float = math.inf) -> None:
        self.action_space = gymnasium.spaces.Box(-bound, bound, (1,))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), math.nan if self.steps == 2 else 0.0, False, False, {}


def test_environments_that_cannot_be_logged_are_refused() -> None:
    with pytest.raises(EvaluationError, match="expected finite bounds"):
        Player(f"{__name__}:Unbounded", seed=0, horizon=5)
    player = Player(f"{__name__}:Unbounded", seed=0, horizon=5, env_kwargs={"bound": 1.0})
    with pytest.raises(EvaluationError, match=r"random episode 0 \(reset seed \d+\), step 1"):
        player.episode("random", 0, uniform_policy)


def test_deterministic_policy_ignores_its_noise() -> None:
    learner = SAC(3, 1, [0], hidden=(8,))
    obs, noise = torch.randn(1, 4, 3), torch.randn(1, 4, 1)
    assert torch.equal(policy_of(learner, False)(obs, noise), learner.act(obs, mode="mean"))
    assert torch.equal(policy_of(learner, True)(obs, noise), learner.sample(obs, noise))


# -- files -------------------------------------------------------------------------------------------------------------


def two_episodes() -> list[Episode]:
    source = np.random.default_rng(0)

    def episode(length: int, terminated: bool) -> Episode:
        obs, action = source.uniform(-1, 1, (length + 1, 3)), source.uniform(-2, 2, (length, 1))
        reward = np.arange(length, dtype=np.float32)
        return Episode(obs.astype(np.float32), action.astype(np.float32), reward, terminated, seed=length)

    return [episode(3, True), episode(4, False)]


def test_hdf5_has_d4rls_layout_and_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set.hdf5"
    episodes = two_episodes()
    bounds = {"action_low": np.array([-2.0], np.float32), "action_high": np.array([2.0], np.float32)}
    write_hdf5(path, episodes, env_id="Pendulum-v1", source="a test", **bounds)
    with h5py.File(path) as file:
        assert set(file) == {"observations", "actions", "rewards", "next_observations", "terminals", "timeouts"}
        assert file["terminals"][()].tolist() == [False, False, True, False, False, False, False]
        assert file["timeouts"][()].tolist() == [False] * 6 + [True]
        np.testing.assert_array_equal(file["next_observations"][2], episodes[0].obs[3])
        np.testing.assert_array_equal(file["observations"][3], episodes[1].obs[0])
        assert file.attrs["env_id"] == "Pendulum-v1"
        assert file.attrs["source"] == "a test"
    assert [entry.name for entry in path.parent.iterdir()] == ["set.hdf5"]


def test_minari_set_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "unchanged")
    monkeypatch.chdir(tmp_path)
    env = make_env("Pendulum-v1")
    with pytest.raises(TypeError):  # JSON cannot hold it: fails when all data are written already
        write_minari(tmp_path, "a-b/c/one-v0", two_episodes(), env, {"bad": object()}, **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    folder = write_minari(Path(), "a-b/c/one-v0", two_episodes(), env, {"good": [1]}, **SETTINGS)
    assert write.read_metadata(tmp_path, "a-b/c/one-v0") is not None
    with pytest.raises(DatasetError, match="exists already"):
        write_minari(tmp_path, "a-b/c/one-v0", two_episodes(), env, {}, **SETTINGS)
    assert os.environ["MINARI_DATASETS_PATH"] == "unchanged"
    dataset = load_dataset(str(folder))
    assert dataset.transitions.terminal.tolist() == [False, False, True, False, False, False, False]
    assert dataset.episode_returns.tolist() == [3.0, 6.0]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("Hopper-v5", "mbrl/hopper-v5/medium-v0"),
        ("my.package:My Env", "mbrl/my-env/medium-v0"),
        ("ALE/Thing-v1", "mbrl/ale-thing-v1/medium-v0"),
    ],
)
def test_ids(env: str, expected: str) -> None:
    assert dataset_id("mbrl", env, "medium", 0) == expected


def test_updates_draw_by_step_alone() -> None:
    draws = Draws([0], 4, 2, "cpu")
    first = [tensor.clone() for tensor in draws(57)]
    draws(3)
    for again, before in zip(draws(57), first, strict=True):
        assert torch.equal(again, before)
