import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mbrl.data.tasks import TaskError
from mbrl.evaluate import EnvSpec, Evaluation, EvaluationError, Evaluator, env_spec, episode_seed, make_env


class Corridor(gymnasium.Env):
    """Position starts at random in [0, 1) and moves by the action; the reward is the action; it ends at 3 or more."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, fault: str = "", low: float = -1.0, high: float = 1.0, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(low, high, (1,))
        self.fault = fault
        self.render_mode = render_mode
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.random()
        self.time = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        broken = self.fault == "observation" and self.time == 2
        if self.fault == "exception" and self.time == 2:
            raise ZeroDivisionError("of the plant")
        return np.array([self.position, np.nan if broken else self.time], dtype=np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.time += 1
        self.position += float(action[0])
        reward = np.inf if self.fault == "reward" and self.time == 2 else float(action[0])
        return self.observe(), reward, self.position >= 3, False, {}

    def render(self):
        if self.fault == "render":
            raise RuntimeError("no display")
        return np.full((16, 16, 3), int(60 * self.position) % 256, dtype=np.uint8)


class Rooms(gymnasium.Env):
    """Dict observations; `kind` chooses a space that is not supported."""

    def __init__(self, kind: str = "") -> None:
        image = spaces.Discrete(3) if kind == "observation" else spaces.Box(0, 1, (2, 2))
        self.observation_space = spaces.Dict({"z": spaces.Box(0, 1, (1,)), "image": image})
        self.action_space = spaces.Discrete(2) if kind == "action" else spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"z": np.array([9.0], np.float32), "image": np.arange(4, dtype=np.float32).reshape(2, 2)}, {}


def not_an_env() -> int:
    return 3


CORRIDOR = f"{__name__}:Corridor"
gymnasium.register("Corridor-v0", entry_point=CORRIDOR, max_episode_steps=6)


def full_speed(obs: torch.Tensor) -> torch.Tensor:
    return torch.ones((*obs.shape[:-1], 1))


def by_time(obs: torch.Tensor) -> torch.Tensor:
    """Row-wise and different for every start, so that episodes end at different times."""
    return torch.sin(obs[..., :1] * 7 + obs[..., 1:]) * 0.5 + 0.5


def equal(left, right) -> bool:
    return (
        np.array_equal(left.returns, right.returns)
        and np.array_equal(left.lengths, right.lengths)
        and np.array_equal(left.terminated, right.terminated)
    )


def test_returns_lengths_and_ends() -> None:
    evaluator = Evaluator("Corridor-v0", episodes=4, seeds=[0, 7])
    result = evaluator(full_speed, 0)
    assert result.returns.shape == result.lengths.shape == result.terminated.shape == (2, 4)
    assert (result.returns.dtype, result.lengths.dtype, result.terminated.dtype) == (np.float64, np.int64, np.bool_)
    np.testing.assert_array_equal(result.returns, 3.0)
    np.testing.assert_array_equal(result.lengths, 3)
    assert result.terminated.all()
    standing = evaluator(lambda obs: torch.zeros((*obs.shape[:-1], 1)), 0)
    np.testing.assert_array_equal(standing.returns, 0.0)
    np.testing.assert_array_equal(standing.lengths, 6)
    assert not standing.terminated.any()


def test_equals_a_plain_loop_over_single_environments() -> None:
    seeds, episodes, evaluation = [3, 4], 5, 2
    result = Evaluator("Corridor-v0", episodes=episodes, seeds=seeds)(by_time, evaluation)
    assert len(np.unique(result.lengths)) > 1
    env = gymnasium.make("Corridor-v0")
    for s, seed in enumerate(seeds):
        for e in range(episodes):
            obs, _ = env.reset(seed=episode_seed(seed, evaluation, e))
            total, steps, terminated, truncated = 0.0, 0, False, False
            while not (terminated or truncated):
                action = by_time(torch.as_tensor(obs, dtype=torch.float32)).numpy()
                obs, reward, terminated, truncated, _ = env.step(action)
                total, steps = total + reward, steps + 1
            assert result.returns[s, e] == pytest.approx(total, abs=1e-6)
            assert (result.lengths[s, e], result.terminated[s, e]) == (steps, terminated)


@pytest.mark.parametrize("env", ["Corridor-v0", "Hopper-v5"])
def test_a_result_depends_on_seed_and_number_alone(env) -> None:
    def policy(obs):
        actions = 3 if env == "Hopper-v5" else 1
        return torch.sin(obs[..., :1] * torch.arange(1, 1 + actions))

    together = Evaluator(env, episodes=2, seeds=[1, 5, 9])
    first = together(policy, 1)
    assert not equal(first, together(policy, 2))
    assert equal(first, together(policy, 1))
    assert equal(first, Evaluator(env, episodes=2, seeds=[1, 5, 9])(policy, 1))
    alone = Evaluator(env, episodes=2, seeds=[5])(policy, 1)
    np.testing.assert_array_equal(alone.returns, first.returns[1:2])
    np.testing.assert_array_equal(alone.lengths, first.lengths[1:2])


def test_episode_seeds_differ() -> None:
    seeds = {episode_seed(s, v, e) for s in range(4) for v in range(4) for e in range(4)}
    assert len(seeds) == 64


def test_one_forward_per_time_step_and_only_running_episodes_are_stepped() -> None:
    evaluator = Evaluator("Corridor-v0", episodes=4, seeds=[0, 1])
    seen = []

    def policy(obs):
        assert torch.is_inference_mode_enabled()
        seen.append((obs.shape, obs.dtype))
        return by_time(obs)

    result = evaluator(policy, 0)
    assert seen == [((2, 32, 2), torch.float32)] * result.lengths.max()
    stepped = [[len(env.unwrapped.actions) for env in row] for row in evaluator._envs]
    np.testing.assert_array_equal(stepped, result.lengths)


def test_actions_are_scaled_and_clipped() -> None:
    def played(evaluator: Evaluator, action: float) -> float:
        evaluator(lambda obs: torch.full((*obs.shape[:-1], 1), action), 0)
        return float(evaluator._envs[0][0].unwrapped.actions[-1][0])

    box = {"low": -2.0, "high": 4.0}
    evaluator = Evaluator("Corridor-v0", episodes=1, seeds=[0], env_kwargs=box)
    assert [played(evaluator, a) for a in (-1.0, 0.0, 0.5, 1.0, 1.5)] == [-2.0, 1.0, 2.5, 4.0, 4.0]
    own = Evaluator(
        "Corridor-v0", episodes=1, seeds=[0], env_kwargs=box, action_low=np.array([-1.0]), action_high=np.array([9.0])
    )
    assert [played(own, a) for a in (-1.0, -0.5, 1.0)] == [-1.0, 1.5, 4.0]


@pytest.mark.parametrize(("fault", "step"), [("reward", 1), ("observation", 2)])
def test_what_is_not_finite_is_named(fault, step) -> None:
    evaluator = Evaluator("Corridor-v0", episodes=2, seeds=[8], env_kwargs={"fault": fault})
    with pytest.raises(RuntimeError, match=f"Corridor-v0, seed 8, episode 0, step {step}: the {fault} is not finite"):
        evaluator(lambda obs: torch.zeros((*obs.shape[:-1], 1)), 0)


def test_an_exception_of_the_environment_is_named() -> None:
    evaluator = Evaluator("Corridor-v0", episodes=2, seeds=[8], env_kwargs={"fault": "exception"})
    said = r"seed 8, episode 0, step 1: the environment raised ZeroDivisionError\('of the plant'\)"
    with pytest.raises(EvaluationError, match=said) as caught:
        evaluator(full_speed, 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_action_that_is_not_finite_is_named() -> None:
    def policy(obs):
        action = torch.zeros((*obs.shape[:-1], 1))
        action[1, 2] = torch.nan if obs[1, 2, 1] == 4 else 0.0
        return action

    with pytest.raises(RuntimeError, match="Corridor-v0, seed 6, episode 2, step 4: the action is not finite"):
        Evaluator("Corridor-v0", episodes=3, seeds=[5, 6])(policy, 0)


def test_actions_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 1, 2\); expected \(1, 1, 1\)"):
        Evaluator("Corridor-v0", episodes=1, seeds=[0])(lambda obs: obs, 0)


def test_env_spec() -> None:
    spec = env_spec("Corridor-v0", {"low": -2.0, "high": 4.0})
    assert isinstance(spec, EnvSpec)
    assert (spec.observation_dim, spec.horizon) == (2, 6)
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([-2.0], [4.0])
    assert env_spec("Corridor-v0", horizon=3).horizon == 3
    assert env_spec(CORRIDOR).horizon is None
    assert env_spec("Pendulum-v1").action_high.tolist() == [2.0]


@pytest.mark.parametrize("env", ["Corridor-v0", f"{__name__}:Corridor-v0", CORRIDOR])
def test_horizon_is_a_time_limit(env) -> None:
    made = make_env(env, horizon=9)
    made.reset(seed=0)
    truncated = [made.step(np.zeros(1, np.float32))[3] for _ in range(9)]
    assert truncated == [False] * 8 + [True]


def test_dict_observations_are_flattened_in_the_order_of_their_names() -> None:
    env = make_env(f"{__name__}:Rooms", horizon=5)
    assert env.reset(seed=0)[0].tolist() == [0.0, 1.0, 2.0, 3.0, 9.0]
    assert env_spec(f"{__name__}:Rooms").observation_dim == 5


def test_what_cannot_be_used_is_refused() -> None:
    rooms = f"{__name__}:Rooms"
    with pytest.raises(RuntimeError, match="actions are Discrete"):
        make_env(rooms, {"kind": "action"})
    with pytest.raises(RuntimeError, match="expected a Box or a Dict of Boxes"):
        make_env(rooms, {"kind": "observation"})
    with pytest.raises(RuntimeError, match="returned a int; expected a gymnasium"):
        make_env(f"{__name__}:not_an_env")
    with pytest.raises(RuntimeError, match=r"does not start with env_kwargs=.*colour"):
        make_env("Corridor-v0", {"colour": "red"})
    with pytest.raises(TaskError, match=r"Corridr-v0.*Corridor-v0"):
        make_env("Corridr-v0")
    with pytest.raises(RuntimeError, match="no time limit: give horizon="):
        Evaluator(CORRIDOR, episodes=1, seeds=[0])
    with pytest.raises(RuntimeError, match="must be finite"):
        Evaluator(rooms, episodes=1, seeds=[0], horizon=5)
    with pytest.raises(RuntimeError, match="of shape"):
        Evaluator("Corridor-v0", episodes=1, seeds=[0], action_low=-np.ones(2), action_high=np.ones(2))
    with pytest.raises(ValueError, match="at least one episode and one seed"):
        Evaluator("Corridor-v0", episodes=0, seeds=[0])


def test_without_mujoco_the_extra_is_named() -> None:
    code = "import sys; sys.modules['mujoco'] = None\nfrom mbrl.evaluate import make_env\nmake_env('Hopper-v5')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'offline-mbrl[mujoco]'" in result.stderr.strip().splitlines()[-1]


def test_v4_is_started_without_a_warning(recwarn) -> None:
    make_env("Hopper-v4").close()
    assert not [warning for warning in recwarn if "out of date" in str(warning.message)]


def evaluate(arguments: dict) -> Evaluation:
    return Evaluator(**arguments)(by_time, 0)


def test_an_evaluator_can_be_built_in_another_process() -> None:
    arguments = {"env": "Corridor-v0", "episodes": 3, "seeds": (1, 2), "horizon": 5}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert equal(pool.submit(evaluate, arguments).result(), evaluate(arguments))


def test_video_shows_the_scored_episode(tmp_path) -> None:
    import imageio.v3 as imageio

    evaluator = Evaluator("Corridor-v0", episodes=2, seeds=[0, 1])
    scored = evaluator(by_time, 3)
    path = tmp_path / "episode.gif"
    assert equal(evaluator.record_video(by_time, path, evaluation=3, seed_index=1, episode=1), scored)
    frames = imageio.imread(path, index=None)
    assert len(frames) == scored.lengths[1, 1] + 1
    assert equal(evaluator(by_time, 3), scored)


def test_video_that_cannot_be_made_is_known_before(tmp_path, monkeypatch) -> None:
    evaluator = Evaluator("Corridor-v0", episodes=1, seeds=[0])
    evaluator.check_video(tmp_path / "episode.gif")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EvaluationError, match=r"episode\.nonsense: expected a name that ends in \.mp4 or \.gif"):
        evaluator.check_video(tmp_path / "episode.nonsense")
    with pytest.raises(EvaluationError, match=r"there is no folder .*nowhere"):
        evaluator.check_video(tmp_path / "nowhere" / "episode.gif")
    blind = Evaluator("Corridor-v0", episodes=1, seeds=[0], env_kwargs={"fault": "render"})
    for attempt in (blind.check_video, lambda path: blind.record_video(by_time, path)):
        with pytest.raises(EvaluationError, match=r"cannot be rendered here: .*no display.*MUJOCO_GL=egl"):
            attempt(tmp_path / "episode.gif")
    for missing, name in (("imageio_ffmpeg", "episode.mp4"), ("imageio.v2", "episode.gif")):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(EvaluationError, match=r"pip install 'offline-mbrl\[video\]'"):
            evaluator.check_video(tmp_path / name)
