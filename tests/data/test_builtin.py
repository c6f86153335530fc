from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from mbrl.data.builtin import builtin_file, pendulum_obs, pendulum_step
from mbrl.data.sources import load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MBRL_CACHE", str(tmp_path))
    return tmp_path


def test_pendulum_steps_as_gymnasium_does() -> None:
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    source = np.random.default_rng(0)
    state = source.uniform([-10, -8], [10, 8], (500, 2))
    torque = source.uniform(-2, 2, 500)
    following, reward = pendulum_step(state, torque)
    for before, u, after, expected_reward in zip(state, torque, following, reward, strict=True):
        env.state = before
        obs, r, terminated, truncated, _ = env.step(np.array([u]))
        np.testing.assert_allclose(env.state, after, rtol=0, atol=1e-12)
        assert r == pytest.approx(expected_reward, abs=1e-12)
        np.testing.assert_allclose(obs, pendulum_obs(after[None])[0], atol=1e-7)
        assert not terminated
        assert not truncated


def test_a_logged_episode_replays_in_gymnasium() -> None:
    dataset = load_dataset("builtin:pendulum")
    rows = dataset.transitions
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    for episode in (0, 4, 9):
        first = 200 * episode
        cosine, sine, velocity = rows.obs[first].double().tolist()
        env.state = np.array([np.arctan2(sine, cosine), velocity])
        for row in range(first, first + 20):
            obs, reward, *_ = env.step(2 * rows.action[row].double().numpy())
            np.testing.assert_allclose(obs, rows.next_obs[row], atol=1e-3)
            assert reward == pytest.approx(float(rows.reward[row]), abs=1e-2)


def test_pendulum_is_mixed_and_mediocre() -> None:
    dataset = load_dataset("builtin:pendulum")
    assert dataset.transitions.obs.shape == (40_000, 3)
    assert dataset.episode_lengths.tolist() == [200] * 200
    assert not dataset.transitions.terminal.any()
    assert dataset.timeout.sum() == 200
    assert dataset.env_id == "Pendulum-v1"
    assert (dataset.action_low.tolist(), dataset.action_high.tolist()) == ([-2.0], [2.0])
    assert dataset.transitions.action.abs().max() == 1
    assert dataset.warnings == ()
    returns = dataset.episode_returns
    assert -1000 < returns.mean() < -850
    assert (returns > -300).mean() < 0.15
    # Upright and hanging, slow and fast: every quadrant of the state space is visited.
    cosine, _, velocity = dataset.transitions.obs.T
    for near in (cosine > 0.8, cosine < -0.8):
        for speed in (velocity.abs() < 2, velocity.abs() > 4):
            assert (near & speed).sum() > 400


def test_pendulum_random_is_worse() -> None:
    dataset = load_dataset("builtin:pendulum-random")
    assert -1300 < dataset.episode_returns.mean() < -1100
    assert dataset.episode_returns.max() < -600


def test_same_content_on_every_machine() -> None:
    assert load_dataset("builtin:pendulum").hash == "49a8a883db5338b9d98ae35119d0a475"
    assert load_dataset("builtin:pendulum-random").hash == "133143b3c6ae0c6cba8d98571d912b58"


def test_file_is_made_once_and_whole(cache: Path) -> None:
    path = builtin_file("pendulum")
    stamp = path.stat().st_mtime_ns
    assert builtin_file("pendulum").stat().st_mtime_ns == stamp
    assert [entry.name for entry in (cache / "builtin").iterdir()] == ["pendulum-v1.npz"]
