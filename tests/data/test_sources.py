"""Every dataset string against real files: HDF5, npz, and datasets written by the real Minari."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from mbrl.data import sources
from mbrl.data.sources import Dataset, DatasetError, load_dataset, whereabouts
from mbrl.data.tasks import all_tasks

# Minari recommends metadata for datasets that will be published.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

LENGTHS = (4, 7, 1, 5)
ENDS = ("terminal", "timeout", "terminal", "cut off")


def episodes(action_scale: float = 1.0) -> list[dict[str, Any]]:
    """Episodes whose observations say where they belong: [episode, step, noise]."""
    source = np.random.default_rng(0)
    log = []
    for number, (length, end) in enumerate(zip(LENGTHS, ENDS, strict=True)):
        obs = np.stack([np.full(length + 1, number), np.arange(length + 1), source.normal(size=length + 1)], 1)
        action = action_scale * source.uniform(-1, 1, (length, 2))
        flags = {key: np.arange(length) == (length - 1 if end == key else -1) for key in ("terminal", "timeout")}
        log.append({"obs": obs.astype(np.float32), "action": action.astype(np.float32), **flags})
        log[-1]["reward"] = np.arange(length, dtype=np.float32) + 10.0 * number
    return log


def flat(log: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "observations": np.concatenate([episode["obs"][:-1] for episode in log]),
        "next_observations": np.concatenate([episode["obs"][1:] for episode in log]),
        "actions": np.concatenate([episode["action"] for episode in log]),
        "rewards": np.concatenate([episode["reward"] for episode in log]),
        "terminals": np.concatenate([episode["terminal"] for episode in log]),
        "timeouts": np.concatenate([episode["timeout"] for episode in log]),
    }


def write(path: Path, arrays: dict[str, Any], **attributes: Any) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays, **attributes)
        return str(path)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
        file.attrs.update(attributes)
    return str(path)


def buffers(log: list[dict[str, Any]]) -> list[EpisodeBuffer]:
    return [
        EpisodeBuffer(
            observations=episode["obs"],
            actions=episode["action"],
            rewards=episode["reward"].tolist(),
            terminations=episode["terminal"].tolist(),
            truncations=episode["timeout"].tolist(),
        )
        for episode in log
    ]


def box(size: int, limit: float = np.inf) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-limit, limit, (size,), np.float32)


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def check_rows(dataset: Dataset, kept: list[int]) -> None:
    """Every kept row is one step of one episode: its next_obs is what the same episode says next."""
    rows = dataset.transitions
    assert rows.obs[:, 0].long().bincount(minlength=len(kept)).tolist() == kept
    assert torch.equal(rows.next_obs[:, 0], rows.obs[:, 0])
    assert torch.equal(rows.next_obs[:, 1], rows.obs[:, 1] + 1)
    last = torch.ones(len(rows.obs), dtype=torch.bool)
    last[:-1] = rows.obs[1:, 0] != rows.obs[:-1, 0]
    assert torch.equal(dataset.episode_end, last)
    inside = ~last[:-1]
    assert torch.equal(rows.next_obs[:-1][inside], rows.obs[1:][inside])


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".h5"])
def test_file_with_next_observations_keeps_every_row(suffix: str, tmp_path: Path) -> None:
    spec = write(tmp_path / f"log{suffix}", flat(episodes()))
    dataset = load_dataset(spec)
    check_rows(dataset, list(LENGTHS))
    rows = dataset.transitions
    assert dataset.name == spec
    assert [tensor.dtype for tensor in rows] == [torch.float32] * 4 + [torch.bool] * 2
    assert rows.real.all()
    assert rows.terminal.nonzero().flatten().tolist() == [3, 11]
    assert dataset.timeout.nonzero().flatten().tolist() == [10]
    assert dataset.episode_returns.tolist() == [6.0, 91.0, 20.0]
    assert dataset.episode_returns.dtype == np.float64
    assert dataset.episode_lengths.tolist() == [4, 7, 1]
    assert (dataset.incomplete_episodes, dataset.dropped_rows, dataset.warnings) == (1, 0, ())


def test_file_without_next_observations_drops_the_last_row_of_each_episode(tmp_path: Path) -> None:
    arrays = flat(episodes())
    del arrays["next_observations"]
    dataset = load_dataset(write(tmp_path / "log.hdf5", arrays))
    check_rows(dataset, [3, 6, 0, 4])
    assert not dataset.transitions.terminal.any()
    assert not dataset.timeout.any()
    assert dataset.episode_returns.tolist() == [6.0, 91.0, 20.0]
    assert dataset.dropped_rows == 4
    assert "dropped: 4 rows, 2 of them terminal" in dataset.warnings[0]


def test_next_observations_of_the_next_episode_are_dropped(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    obs = np.concatenate([np.cumsum(source.normal(size=(20, 2)), 0) + 50 * (k % 2) for k in range(6)])
    last = np.arange(120) % 20 == 19
    arrays = {
        "observations": obs,
        "next_observations": np.concatenate([obs[1:], obs[:1]]),
        "actions": source.uniform(-1, 1, (120, 1)),
        "rewards": source.normal(size=120),
        "terminals": last & (np.arange(120) < 60),
        "timeouts": last & (np.arange(120) >= 60),
    }
    dataset = load_dataset(write(tmp_path / "shifted.npz", arrays))
    assert dataset.dropped_rows == 5
    assert "at 5 episode ends `next_observations` is the first observation of the next episode" in dataset.warnings[0]
    step = (dataset.transitions.next_obs - dataset.transitions.obs)[:-1].abs().max()
    assert step < 10


def test_only_time_limit_flags_missing_is_said_loudly(tmp_path: Path) -> None:
    arrays = flat(episodes())
    del arrays["next_observations"], arrays["timeouts"]
    assert "NOR TIME LIMITS" in load_dataset(write(tmp_path / "log.npz", arrays)).warnings[1]


@pytest.mark.parametrize("index", [[0, 4, 11, 12], [4, 11, 12, 17], [0, 4, 11, 12, 17]], ids=["starts", "ends", "both"])
def test_neorl_index_is_read_as_starts_or_ends(index: list[int], tmp_path: Path) -> None:
    arrays = flat(episodes())
    neorl = {
        "obs": arrays["observations"],
        "next_obs": arrays["next_observations"],
        "action": arrays["actions"],
        "reward": arrays["rewards"][:, None],
        "done": arrays["terminals"].astype(np.float32)[:, None],
        "index": np.array(index),
    }
    dataset = load_dataset(write(tmp_path / "log.npz", neorl))
    check_rows(dataset, list(LENGTHS))
    assert dataset.transitions.reward.shape == (17,)
    assert dataset.timeout.nonzero().flatten().tolist() == [10, 16]
    assert len(dataset.episode_returns) == 4
    assert dataset.warnings == ()


def test_episode_id_marks_episodes(tmp_path: Path) -> None:
    arrays = flat(episodes())
    del arrays["timeouts"]
    arrays["episode_id"] = np.repeat([3, 9, 4, 5], LENGTHS)
    dataset = load_dataset(write(tmp_path / "log.npz", arrays))
    check_rows(dataset, list(LENGTHS))
    assert dataset.timeout.nonzero().flatten().tolist() == [10, 16]


def test_types_are_cast_and_hash_names_the_content(tmp_path: Path) -> None:
    arrays = flat(episodes())
    first = load_dataset(write(tmp_path / "a.hdf5", arrays))
    wide = {key: values.astype(np.float64) for key, values in arrays.items()}
    wide["observations"] = np.asfortranarray(wide["observations"])
    assert load_dataset(write(tmp_path / "b.npz", wide)).hash == first.hash
    wide["rewards"][3] += 1
    assert load_dataset(write(tmp_path / "c.npz", wide)).hash != first.hash
    assert len(first.hash) == 32


def test_file_may_carry_environment_and_bounds(tmp_path: Path) -> None:
    own = {"env_id": "Pendulum-v1", "action_low": np.array([-2, -4]), "action_high": np.array([2, 4])}
    arrays = flat(episodes())
    for name in ("log.npz", "log.hdf5"):
        dataset = load_dataset(write(tmp_path / name, arrays, **own))
        assert dataset.env_id == "Pendulum-v1"
        expected = arrays["actions"] / np.array([2, 4], np.float32)
        np.testing.assert_allclose(dataset.transitions.action, expected, atol=1e-6)


# Actions


def test_actions_are_scaled_by_the_given_bounds(tmp_path: Path) -> None:
    arrays = flat(episodes())
    low, high = np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32)
    unit = arrays["actions"].copy()
    arrays["actions"] = low + (unit + 1) / 2 * (high - low)
    dataset = load_dataset(write(tmp_path / "log.npz", arrays), action_bounds=(low, high))
    np.testing.assert_allclose(dataset.transitions.action, unit, atol=1e-6)
    np.testing.assert_array_equal(dataset.action_low, low)
    np.testing.assert_array_equal(dataset.action_high, high)
    assert dataset.warnings == ()


def test_actions_without_bounds(tmp_path: Path) -> None:
    inside = load_dataset(write(tmp_path / "in.npz", flat(episodes(0.5))))
    assert inside.action_low.tolist() == [-1, -1]
    assert inside.transitions.action.abs().max() <= 0.5
    arrays = flat(episodes(7.0))
    arrays["actions"][:, 1] = 3.0
    outside = load_dataset(write(tmp_path / "out.npz", arrays))
    assert "scaled by the data's own extremes" in outside.warnings[-1]
    assert outside.action_low[0] == arrays["actions"][:, 0].min()
    action = outside.transitions.action
    assert (action[:, 0].min(), action[:, 0].max()) == (-1, 1)
    assert action[:, 1].tolist() == [0.0] * 17


def test_unbounded_dimension_takes_the_extremes_of_the_data(tmp_path: Path) -> None:
    bounds = np.array([-np.inf, -2.0], np.float32), np.array([np.inf, 2.0], np.float32)
    dataset = load_dataset(write(tmp_path / "log.npz", flat(episodes())), action_bounds=bounds)
    assert dataset.action_high[1] == 2
    assert dataset.transitions.action[:, 0].max() == 1
    assert "columns 0: scaled by the data's own extremes" in dataset.warnings[0]


def test_actions_outside_the_bounds(tmp_path: Path) -> None:
    bounds = np.array([-1.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32)
    arrays = flat(episodes())
    arrays["actions"][5, 1] = 1.0005
    dataset = load_dataset(write(tmp_path / "log.npz", arrays), action_bounds=bounds)
    assert "clipped" in dataset.warnings[0]
    assert dataset.transitions.action.max() == 1
    arrays["actions"][5, 1] = 1.2
    with pytest.raises(DatasetError, match=r"row 5, column 1 is 1\.2.* outside the action bounds \[-1\.0, 1\.0\]"):
        load_dataset(write(tmp_path / "log.npz", arrays), action_bounds=bounds)
    with pytest.raises(DatasetError, match=r"has 2 columns, the environment's action space has shape \(1,\)"):
        load_dataset(write(tmp_path / "log.npz", arrays), action_bounds=(bounds[0][:1], bounds[1][:1]))


def test_actions_that_were_scaled_already_are_noticed(tmp_path: Path) -> None:
    arrays = flat(episodes())
    arrays["actions"][[2, 5]] = [[-1, -1], [1, 1]]
    bounds = np.array([-2.0, -2.0]), np.array([2.0, 2.0])
    dataset = load_dataset(write(tmp_path / "log.npz", arrays), action_bounds=bounds)
    assert "fills [-1, 1] exactly" in dataset.warnings[0]


# Minari


def test_minari_by_id_and_by_folder(minari_root: Path) -> None:
    minari.create_dataset_from_buffers(
        "plant/medium-v0",
        buffers(episodes(2.0)),
        env="Pendulum-v1",
        observation_space=box(3),
        action_space=box(2, 2.0),
        ref_min_score=-5.0,
        ref_max_score=50.0,
    )
    dataset = load_dataset("minari:plant/medium-v0")
    check_rows(dataset, list(LENGTHS))
    assert dataset.transitions.terminal.nonzero().flatten().tolist() == [3, 11]
    assert dataset.timeout.nonzero().flatten().tolist() == [10]
    assert dataset.episode_returns.tolist() == [6.0, 91.0, 20.0]
    assert dataset.incomplete_episodes == 1
    assert (dataset.env_id, dataset.reference) == ("Pendulum-v1", (-5.0, 50.0))
    assert dataset.action_high.tolist() == [2, 2]
    assert dataset.warnings == ()
    by_folder = load_dataset(str(minari_root / "plant" / "medium-v0"))
    assert by_folder.hash == dataset.hash
    assert load_dataset(str(minari_root / "plant" / "medium-v0" / "data")).hash == dataset.hash


def test_same_log_in_three_formats_is_the_same_dataset(minari_root: Path, tmp_path: Path) -> None:
    minari.create_dataset_from_buffers(
        "same-v0", buffers(episodes()), observation_space=box(3), action_space=box(2, 1.0)
    )
    hashes = {
        load_dataset(spec).hash
        for spec in (
            "minari:same-v0",
            write(tmp_path / "log.npz", flat(episodes())),
            write(tmp_path / "log.hdf5", flat(episodes())),
        )
    }
    assert len(hashes) == 1


def test_minari_dict_observations_are_flattened_as_gymnasium_does(minari_root: Path) -> None:
    space = gymnasium.spaces.Dict(
        {"observation": box(2), "desired_goal": gymnasium.spaces.Dict({"b": box(1), "a": box(1)})}
    )
    source = np.random.default_rng(0)
    obs = {
        "observation": source.normal(size=(4, 2)).astype(np.float32),
        "desired_goal": {
            "b": source.normal(size=(4, 1)).astype(np.float32),
            "a": source.normal(size=(4, 1)).astype(np.float32),
        },
    }
    episode = EpisodeBuffer(
        observations=obs,
        actions=source.uniform(-1, 1, (3, 1)).astype(np.float32),
        rewards=[0.0, 0.0, 1.0],
        terminations=[False, False, True],
        truncations=[False] * 3,
    )
    minari.create_dataset_from_buffers("goal-v0", [episode], observation_space=space, action_space=box(1, 1.0))
    dataset = load_dataset("minari:goal-v0")
    for step in range(4):
        goal = {key: values[step] for key, values in obs["desired_goal"].items()}
        expected = gymnasium.spaces.flatten(space, {"observation": obs["observation"][step], "desired_goal": goal})
        for rows, row in ((dataset.transitions.obs, step), (dataset.transitions.next_obs, step - 1)):
            if 0 <= row < 3:
                np.testing.assert_array_equal(rows[row], expected)
    assert "observations['desired_goal']['a'] (1), observations['desired_goal']['b'] (1)" in dataset.warnings[0]


def test_minari_discrete_actions_are_refused(minari_root: Path) -> None:
    log = buffers(episodes())
    for buffer in log:
        object.__setattr__(buffer, "actions", np.zeros(len(buffer.rewards), np.int64))
    minari.create_dataset_from_buffers(
        "discrete-v0", log, observation_space=box(3), action_space=gymnasium.spaces.Discrete(3)
    )
    with pytest.raises(DatasetError, match=r"Discrete\(3\).*continuous control"):
        load_dataset("minari:discrete-v0")


def test_minari_image_observations_are_refused(minari_root: Path) -> None:
    pixels = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    log = buffers(episodes())
    for buffer in log:
        object.__setattr__(buffer, "observations", np.zeros((len(buffer.rewards) + 1, 8, 8, 3), np.uint8))
    minari.create_dataset_from_buffers("pixels-v0", log, observation_space=pixels, action_space=box(2, 1.0))
    with pytest.raises(DatasetError, match="images and discrete observations are not supported"):
        load_dataset("minari:pixels-v0")


def test_minari_missing_last_observation(minari_root: Path) -> None:
    log = buffers(episodes())
    object.__setattr__(log[1], "observations", log[1].observations[:-1])
    minari.create_dataset_from_buffers("short-v0", log, observation_space=box(3), action_space=box(2, 1.0))
    with pytest.raises(DatasetError, match=r"episode 1 has 7 `observations` for 7 steps.*one more"):
        load_dataset("minari:short-v0")


def test_minari_that_is_not_local_and_cannot_be_fetched(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An unroutable proxy: with or without huggingface_hub installed, nothing is fetched.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    minari.create_dataset_from_buffers(
        "mujoco/hopper/medium-v1", buffers(episodes()), observation_space=box(3), action_space=box(2, 1.0)
    )
    with pytest.raises(DatasetError) as error:
        load_dataset("minari:mujoco/hopper/medium-v0")
    for word in (str(minari_root / "mujoco/hopper/medium-v0"), "copy the dataset's folder", "mujoco/hopper/medium-v1"):
        assert word in str(error.value)
    with pytest.raises(DatasetError, match="no Minari id"):
        load_dataset("minari:hopper medium")


# D4RL and NeoRL


def test_d4rl_urls_follow_the_published_scheme() -> None:
    urls = sources.d4rl_urls()
    root = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
    assert urls["hopper-medium-v2"] == f"{root}/gym_mujoco_v2/hopper_medium-v2.hdf5"
    assert urls["walker2d-medium-replay-v2"] == f"{root}/gym_mujoco_v2/walker2d_medium_replay-v2.hdf5"
    assert urls["pen-human-v1"] == f"{root}/hand_dapg_v1/pen-human-v1.hdf5"
    assert urls["maze2d-umaze-v1"] == f"{root}/maze2d/maze2d-umaze-sparse-v1.hdf5"
    assert urls["antmaze-medium-play-v2"] == (
        f"{root}/ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    )
    assert urls["kitchen-partial-v0"] == f"{root}/kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5"
    assert len(urls) == 53


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine that offers tmp_path/web."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_every_d4rl_task_has_a_file() -> None:
    names = {task.dataset for task in all_tasks() if task.dataset.startswith("d4rl:")}
    assert names <= {f"d4rl:{name}" for name in sources.d4rl_urls()}


def test_d4rl_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write(tmp_path / "hopper_medium_replay-v2.hdf5", flat(episodes()))
    check_rows(load_dataset("d4rl:hopper-medium-replay-v2"), list(LENGTHS))
    with pytest.raises(DatasetError, match="Nearest: d4rl:hopper-medium-v2"):
        load_dataset("d4rl:hoper-medium-v2")


def test_d4rl_is_downloaded_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(cache))
    monkeypatch.setattr(sources, "d4rl_urls", lambda: {"hopper-medium-v2": f"{server}/hopper_medium-v2.hdf5"})
    with pytest.raises(DatasetError, match=r"could not be downloaded.*404.*copy it to"):
        load_dataset("d4rl:hopper-medium-v2")
    assert list(cache.iterdir()) == []
    write(tmp_path / "web" / "hopper_medium-v2.hdf5", flat(episodes()))
    first = load_dataset("d4rl:hopper-medium-v2")
    assert [path.name for path in cache.iterdir()] == ["hopper_medium-v2.hdf5"]
    (tmp_path / "web" / "hopper_medium-v2.hdf5").unlink()
    assert load_dataset("d4rl:hopper-medium-v2").hash == first.hash


def neorl_file(folder: Path, name: str, lengths: tuple[int, ...]) -> None:
    rows = sum(lengths)
    obs = np.random.default_rng(0).normal(size=(rows + 1, 2))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / name,
        obs=obs[:-1],
        next_obs=obs[1:],
        action=np.linspace(-1, 1, rows)[:, None],
        reward=np.ones((rows, 1)),
        done=np.zeros((rows, 1)),
        index=np.cumsum(lengths),
    )


def test_neorl_takes_the_first_trajectories_of_the_smallest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEORL_DATASET_DIR", raising=False)
    monkeypatch.setenv("MBRL_CACHE", str(tmp_path))
    folder = tmp_path / "neorl"
    with pytest.raises(DatasetError, match=r"no HalfCheetah-v3-low-N-train\.npz with N >= 1000.*no such folder"):
        load_dataset("neorl:HalfCheetah-v3-low")
    neorl_file(folder, "HalfCheetah-v3-low-1000-train.npz", (3, 4, 5))
    neorl_file(folder, "HalfCheetah-v3-low-100-train.npz", (2, 2))
    neorl_file(folder, "HalfCheetah-v3-low-100-val.npz", (9, 9))
    assert load_dataset("neorl:HalfCheetah-v3-low").episode_lengths.tolist() == [3, 4, 5]
    assert load_dataset("neorl:HalfCheetah-v3-low-100").episode_lengths.tolist() == [2, 2]
    assert load_dataset("neorl:HalfCheetah-v3-low-1").episode_lengths.tolist() == [2]
    with pytest.raises(DatasetError, match="no NeoRL name"):
        load_dataset("neorl:HalfCheetah-v3")


def test_neorl2_is_looked_for_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEORL_DATASET_DIR", str(tmp_path))
    with pytest.raises(DatasetError, match=r"no Pipeline-.*-train\.npz \(it has no \.npz files\).*polixir"):
        load_dataset("neorl2:Pipeline")
    neorl_file(tmp_path / "Pipeline", "Pipeline-high-100000-train.npz", (6, 6))
    assert len(load_dataset("neorl2:Pipeline").transitions.obs) == 12


# Names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("dr4l:hopper-medium-v2", ("unknown dataset prefix 'dr4l'", "d4rl:hopper-medium-v2")),
        ("hopper-medium-v2", ("no such file", "Nearest: d4rl:hopper-medium-v2")),
        ("pendulum", ("Nearest: builtin:pendulum",)),
        ("builtin:pendulm", ("Nearest: builtin:pendulum",)),
        ("neorl2:Pipelin", ("Did you mean neorl2:Pipeline?",)),
        ("neorl:HalfCheeta-v3-low", ("Did you mean neorl:HalfCheetah-v3-low?",)),
        ("", ("names no dataset",)),
        ("minari:", ("names no dataset", "minari:mujoco/hopper/medium-v0")),
    ],
)
def test_misspelt_names(spec: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRL_CACHE", str(tmp_path))
    monkeypatch.delenv("NEORL_DATASET_DIR", raising=False)
    with pytest.raises(DatasetError) as error:
        load_dataset(spec)
    for word in words:
        assert word in str(error.value)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "plant-2024.npz", flat(episodes()))
    with pytest.raises(DatasetError, match=r"plant-2023.npz: no such file.*Nearest: .*plant-2024\.npz"):
        load_dataset(str(tmp_path / "plant-2023.npz"))


# Where they are


def test_whereabouts_of_files_that_are_here_and_that_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("D4RL_DATASET_DIR", "NEORL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    expected = {
        "d4rl:hopper-medium-v2": "hopper_medium-v2.hdf5",
        "neorl:Hopper-v3-low": "Hopper-v3-low-1000-train.npz",
        "neorl:Hopper-v3-low-100": "Hopper-v3-low-100-train.npz",
        "neorl2:DMSD": "DMSD-high-100000-train.npz",
        "minari:mujoco/hopper/medium-v0": "mujoco/hopper/medium-v0",
    }
    for spec, name in expected.items():
        found = whereabouts(spec)
        assert (found.path, found.here) == (tmp_path / name, False), spec
        assert found.source
    for name in ("hopper-medium-v2.hdf5", "in/Hopper-v3-low-1000-train-noise.npz", "in/DMSD-high-1-train.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "mujoco/hopper/medium-v0/data").mkdir(parents=True)
    assert whereabouts("d4rl:hopper-medium-v2").path == tmp_path / "hopper-medium-v2.hdf5"
    assert whereabouts("neorl:Hopper-v3-low-100").path == tmp_path / "in/Hopper-v3-low-1000-train-noise.npz"
    assert whereabouts("neorl2:DMSD").path == tmp_path / "in/DMSD-high-1-train.npz"
    assert all(whereabouts(spec).here for spec in expected)


@pytest.mark.parametrize(
    "spec", ["builtin:pendulum", "d4rl:", "plant.npz", "d4rl:hopper-v2", "neorl:Hopper", "minari:x"]
)
def test_whereabouts_of_what_no_benchmark_has(spec: str) -> None:
    with pytest.raises(DatasetError):
        whereabouts(spec)
