from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mbrl.data.refrigerator import ENV, refrigerator_step
from mbrl.dynamics.oracle import Oracle, OracleModel
from mbrl.evaluate import EvaluationError, make_env

LOCOMOTION = ("Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5", "HalfCheetah-v4", "HalfCheetah-v5")


def logged(env_id: str, steps: int, **env_kwargs: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random steps of an environment, episode after episode, with its full states."""
    env = make_env(env_id, env_kwargs)
    unwrapped: Any = env.unwrapped
    env.action_space.seed(0)
    rows: dict[str, list[Any]] = {"state": [], "obs": [], "action": [], "reward": [], "next_obs": [], "terminated": []}
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        action = 0.3 * env.action_space.sample()  # else all of them fall at once
        state = np.concatenate([unwrapped.data.qpos, unwrapped.data.qvel])
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(rows, (state, obs, action, reward, following, terminated), strict=True):
            rows[name].append(value)
        obs = env.reset()[0] if terminated or truncated else following
    return {name: np.array(column) for name, column in rows.items()}


@pytest.mark.parametrize("env_id", LOCOMOTION)
def test_locomotion_from_observations_is_the_environments_own_step(env_id: str) -> None:
    rows = logged(env_id, 150)
    oracle = Oracle(env_id)
    done = oracle.step(oracle.states(rows["obs"]), rows["action"])
    velocities = rows["state"].shape[-1] // 2
    shown = np.abs(rows["state"][:, -velocities:]) < 10  # Hopper and Walker2d clip what they show
    exact = shown.all(-1) | ("HalfCheetah" in env_id)
    assert exact.sum() > 50
    # The environment warm-starts its contact solver, which stops at a tolerance.
    np.testing.assert_allclose(done.next_obs[exact], rows["next_obs"][exact], atol=1e-4)
    np.testing.assert_allclose(done.reward[exact], rows["reward"][exact], atol=1e-3)
    assert (done.terminated == rows["terminated"])[exact].all()
    again = oracle.step(oracle.states(rows["obs"])[::-1], rows["action"][::-1])
    np.testing.assert_array_equal(again.next_obs[::-1], done.next_obs)  # no row remembers the one before


def test_x_in_the_observation_is_used() -> None:
    kwargs = {"exclude_current_positions_from_observation": False}
    rows = logged("HalfCheetah-v4", 50, **kwargs)
    oracle = Oracle("HalfCheetah-v4", kwargs)
    np.testing.assert_allclose(oracle.states(rows["obs"]), rows["state"], atol=1e-12)
    done = oracle.step(oracle.states(rows["obs"]), rows["action"])
    np.testing.assert_allclose(done.next_obs, rows["next_obs"], atol=1e-4)


def test_full_states_go_on_as_the_environment_does() -> None:
    rows = logged("Hopper-v5", 8)
    oracle = Oracle("Hopper-v5")
    states = rows["state"][:1]
    for t in range(8):
        done = oracle.step(states, rows["action"][t : t + 1])
        np.testing.assert_allclose(done.next_obs[0], rows["next_obs"][t], atol=1e-4)
        states = done.states


@pytest.mark.parametrize("kwargs", [{}, {"g": 3.0}])
def test_pendulum(kwargs: dict[str, float]) -> None:
    env: Any = make_env("Pendulum-v1", kwargs).unwrapped
    oracle = Oracle("Pendulum-v1", kwargs)
    obs, _ = env.reset(seed=1)
    for action in np.linspace(-1, 1, 40):
        following, reward, *_ = env.step(np.array([2 * action]))
        done = oracle.step(oracle.states(obs[None]), np.array([[action]]))
        np.testing.assert_allclose(done.next_obs[0], following, atol=1e-5)
        assert done.reward[0] == pytest.approx(float(reward), abs=1e-4)
        obs = following


def test_the_refrigerator_is_without_its_noise() -> None:
    oracle = Oracle(ENV)
    done = oracle.step(oracle.states(np.array([[4.0], [-6.0]])), np.array([[0.0], [1.0]]))
    expected = refrigerator_step(np.array([4.0, -6.0]), np.array([0.5, 1.0]))
    np.testing.assert_allclose(done.next_obs[:, 0], expected)
    np.testing.assert_allclose(done.reward, -np.abs(expected - 4.0))


def test_actions_in_the_datas_own_units() -> None:
    oracle = Oracle("Pendulum-v1", action_low=np.array([-1.0]), action_high=np.array([1.0]))
    half, full = Oracle("Pendulum-v1"), np.array([[0.3, 0.1]])
    np.testing.assert_array_equal(
        oracle.step(full, np.array([[1.0]])).next_obs, half.step(full, np.array([[0.5]])).next_obs
    )


def test_an_environment_that_cannot_be_set_is_refused() -> None:
    with pytest.raises(
        EvaluationError, match=r"env=CartPole|env=MountainCarContinuous-v0: the full state is not known"
    ):
        Oracle("MountainCarContinuous-v0")


# -- as a model --------------------------------------------------------------------------------------------------------


def as_model(rows: dict[str, np.ndarray[Any, Any]], **settings: Any) -> OracleModel:
    return OracleModel(rows["obs"].shape[-1], rows["action"].shape[-1], [0, 1], **settings)


def stacked(rows: np.ndarray[Any, Any]) -> torch.Tensor:
    """(N, D) -> (2, N, D): the second seed has them in reverse."""
    return torch.from_numpy(np.stack([rows, rows[::-1]])).float()


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_a_model_predicts_the_environments_own_step_without_doubt(env_id: str) -> None:
    rows = logged(env_id, 60)
    model = as_model(rows, env=env_id)
    said = model.predict(stacked(rows["obs"]), stacked(rows["action"]))
    assert said.mean.shape == (2, 1, 60, rows["obs"].shape[-1] + 1)
    assert not said.std.any()
    exact = ~model.oracle.hides(rows["obs"])
    assert exact.sum() > 30
    np.testing.assert_allclose(said.mean[0, 0, :, :-1][exact], rows["next_obs"][exact], atol=2e-3)  # float32 states
    np.testing.assert_allclose(said.mean[0, 0, :, -1][exact], rows["reward"][exact], atol=2e-2)
    torch.testing.assert_close(said.mean[1, 0], said.mean[0, 0].flip(0), rtol=0, atol=0)
    torch.testing.assert_close(
        model.predict_one(stacked(rows["obs"]), stacked(rows["action"]), said.mean[..., 0]), said
    )


def test_lanes_that_show_a_clipped_velocity_go_on_from_the_full_state() -> None:
    rows = logged("Hopper-v5", 3)
    model = as_model(rows, env="Hopper-v5")
    oracle = model.oracle
    state = np.array(
        [[0.0, 1.2, 0.0, -0.1, -0.1, 0.5, 1.0, -1.0, 0.3, 4.0, -9.0, -9.0]]
    )  # a knee that is about to race
    action = np.array([[1.0, -1.0, 1.0]])
    true_obs, imagined_obs, hidden = [], [], 0
    obs = torch.from_numpy(np.concatenate([state[:, 1:6], state[:, 6:].clip(-10, 10)], -1)).float().expand(2, 1, -1)
    push = torch.from_numpy(action).float().expand(2, 1, -1)
    for _ in range(6):
        done = oracle.step(state, action)
        state = done.states
        hidden += int(np.abs(state[0, 6:]).max() > 10)
        true_obs.append(done.next_obs[0])
        obs = model.predict(obs, push).mean[:, 0, :, :-1]
        imagined_obs.append(obs[0, 0].numpy())
    assert hidden >= 2
    np.testing.assert_allclose(imagined_obs, true_obs, atol=2e-2)
    # Without the memory the clipped velocity is taken for the true one, and the lane is another.
    forgetful = as_model(rows, env="Hopper-v5")
    lost = []
    obs = torch.from_numpy(true_obs[0]).float().expand(2, 1, -1)
    for _ in range(5):
        forgetful._left = None
        obs = forgetful.predict(obs, push).mean[:, 0, :, :-1]
        lost.append(obs[0, 0].numpy())
    assert np.abs(np.array(lost) - true_obs[1:]).max() > 0.1


def test_workers_change_nothing() -> None:
    rows = logged("HalfCheetah-v5", 11)
    alone, pooled = as_model(rows, env="HalfCheetah-v5"), as_model(rows, env="HalfCheetah-v5", workers=2)
    obs, action = stacked(rows["obs"]), stacked(rows["action"])
    try:
        torch.testing.assert_close(pooled.predict(obs, action), alone.predict(obs, action), rtol=0, atol=0)
    finally:
        pooled.close()
    assert pooled._pool is None
