from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mbrl.data.refrigerator import HORIZON, NOISE, UNSEEN, Refrigerator, control, refrigerator_step
from mbrl.data.sources import load_dataset
from mbrl.data.tasks import find_task
from mbrl.evaluate import make_env


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRL_CACHE", str(tmp_path))


def test_the_step_is_that_of_its_equation() -> None:
    for temperature, power in ((4.0, 0.45), (-5.0, 1.0), (25.0, 0.0), (14.0, 0.25)):
        sigmoid = 1 / (1 + math.exp(-(temperature + 5) / 5))
        expected = temperature + 0.05 * (25 - temperature) - 3.0 * power * (0.5 + 0.5 * sigmoid)
        assert refrigerator_step(np.array([temperature]), np.array([power]))[0] == pytest.approx(expected)
    assert refrigerator_step(np.array([25.0]), np.array([0.0]))[0] == 25.0  # as warm as the room: nothing changes


def test_the_data_are_those_of_one_narrow_controller() -> None:
    dataset = load_dataset("builtin:refrigerator")
    rows = dataset.transitions
    assert rows.obs.shape == (2000, 1)
    assert dataset.episode_lengths.tolist() == [20] * 100
    assert not rows.terminal.any()
    assert (dataset.action_low.tolist(), dataset.action_high.tolist()) == ([0.0], [1.0])
    temperature, power = rows.obs[:, 0].double().numpy(), (rows.action[:, 0].double().numpy() + 1) / 2
    noise = rows.next_obs[:, 0].double().numpy() - refrigerator_step(temperature, power)
    assert noise.std() == pytest.approx(NOISE, rel=0.1)
    assert abs(noise.mean()) < 0.002
    inside = (power > 0.05) & (power < 0.95)
    assert (power - control(temperature, 4.0))[inside].std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_allclose(rows.reward, -np.abs(rows.next_obs[:, 0] - 4.0), atol=1e-5)
    assert dataset.hash == "75532715983562f7e095589464a19b59"


def test_the_environment_is_the_same_system() -> None:
    task = find_task("refrigerator")
    assert task.env is not None
    env = make_env(task.env, task.env_kwargs, task.horizon)
    obs, _ = env.reset(seed=3)
    assert 2 <= obs[0] <= 10
    residuals = []
    for t in range(HORIZON):
        power = np.array([t / HORIZON], np.float32)
        following, reward, terminated, truncated, _ = env.step(power)
        residuals.append(following[0] - refrigerator_step(obs.astype(np.float64), power.astype(np.float64))[0])
        assert reward == pytest.approx(-abs(float(following[0]) - 4.0), abs=1e-5)
        assert not terminated
        assert truncated == (t == HORIZON - 1)
        obs = following
    assert 0.5 * NOISE < np.std(residuals) < 1.5 * NOISE


def test_power_out_of_range_is_clipped() -> None:
    env = Refrigerator()
    for asked, given in ((7.0, 1.0), (-3.0, 0.0)):
        obs, _ = env.reset(seed=0)
        following, *_ = env.step(np.array([asked], np.float32))
        expected = refrigerator_step(obs.astype(np.float64), np.array([given]))[0]
        assert following[0] == pytest.approx(expected, abs=5 * NOISE)


def test_unseen_policies_are_unseen() -> None:
    temperature, noise = np.linspace(3.0, 5.0, 50), np.linspace(0.0, 0.999, 50)
    for name, policy in UNSEEN.items():
        power = policy(temperature, noise)
        assert power.shape == (50,), name
        assert (power >= 0).all()
        assert (power <= 1).all()
        assert np.abs(power - control(temperature, 4.0)).max() > 0.15, name
