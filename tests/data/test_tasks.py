import gymnasium
import numpy as np
import pytest
import torch

from mbrl.data import termination as rules
from mbrl.data.tasks import Reference, TaskError, all_tasks, find_task, gymnasium_spec, import_object, task_for
from mbrl.evaluate import make_env

TASKS = all_tasks()
SCORED = [task for task in TASKS if task.reference is not None]


def test_names_and_datasets_are_unique() -> None:
    assert len({task.name for task in TASKS}) == len({task.dataset for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", SCORED, ids=lambda task: task.name)
def test_score_is_0_at_the_minimum_and_100_at_the_maximum(task) -> None:
    reference = task.reference
    np.testing.assert_allclose(reference.score([reference.minimum, reference.maximum]), [0.0, 100.0], atol=1e-9)
    # A spread is only scaled, never shifted.
    returns = np.random.default_rng(0).normal(reference.maximum, 10.0, (3, 50))
    assert reference.score(returns).shape == (3, 50)
    assert reference.score(returns).std() == pytest.approx(returns.std() * reference.scale)


@pytest.mark.parametrize(
    ("name", "minimum", "maximum"),
    [
        ("halfcheetah-medium-v2", -280.178953, 12135.0),
        ("hopper-full-replay-v2", -20.272305, 3234.3),
        ("walker2d-expert-v2", 1.629008, 4592.3),
        ("ant-random-v2", -325.6, 3879.7),
        ("pen-human-v1", 96.262799, 3076.8331017826877),
        ("hammer-cloned-v1", -274.856578, 12794.134825156867),
        ("door-expert-v1", -56.512833, 2880.5693087298737),
        ("relocate-human-v1", -6.425911, 4233.877797728884),
        ("maze2d-large-v1", 6.7, 273.99),
        ("antmaze-umaze-v2", 0.0, 1.0),
        ("kitchen-mixed-v0", 0.0, 4.0),
        ("HalfCheetah-v3-low", -298.0, 12284.0),
        ("Hopper-v3-medium", 5.0, 3294.0),
        ("Walker2d-v3-high", 1.0, 5143.0),
        ("Pipeline", -296.0, 751.0),
        ("Simglucose", 9.75, 475.0),
        ("DMSD", 30.60, 849.51),
        ("mujoco/hopper/medium-v0", -20.272305, 3234.3),
    ],
)
def test_references(name, minimum, maximum) -> None:
    reference = find_task(name).reference
    assert reference is not None
    assert (reference.minimum, reference.maximum) == (minimum, maximum)


def test_a_task_without_references_says_so() -> None:
    for task in TASKS:
        assert (task.reference is None) == any("raw returns" in note for note in task.notes)
        assert task.env is None or task.env in task.label
        assert (task.env is None) == ("not evaluated" in task.label)
        if task.env is not None and task.reference is not None:
            assert any(task.reference.environment in note and task.env in note for note in task.notes)


@pytest.mark.parametrize(("minimum", "maximum"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_references(minimum, maximum) -> None:
    with pytest.raises(ValueError, match="minimum < maximum"):
        Reference(minimum, maximum, "", "")


ENVIRONMENTS = {(task.env, task.family): task for task in TASKS if task.env is not None}


@pytest.mark.parametrize("task", ENVIRONMENTS.values(), ids=lambda task: f"{task.family}-{task.env}")
def test_table_fits_the_environment(task) -> None:
    """The environment starts, its time limit is the table's and a reset state is healthy."""
    env = make_env(task.env, task.env_kwargs)
    assert env.spec.max_episode_steps == task.horizon
    obs = torch.as_tensor(env.reset(seed=0)[0], dtype=torch.float32)[None]
    assert task.termination(obs, torch.zeros(1, 1), obs).tolist() == [False]
    env.close()


@pytest.mark.parametrize(
    ("name", "step", "bonus", "cost"),
    [
        ("HalfCheetah-v3-low", 0.05, 0.0, 0.1),
        ("Hopper-v3-low", 0.008, 1.0, 1e-3),
        ("Walker2d-v3-low", 0.008, 1.0, 1e-3),
    ],
)
def test_neorl_reward_is_the_environments(name, step, bonus, cost) -> None:
    """NeoRL's published reward (x is the first observation): dx / dt + bonus - cost |a|^2."""
    task = find_task(name)
    env = make_env(task.env, task.env_kwargs)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(100):
        action = env.action_space.sample()
        next_obs, reward, terminated, _, _ = env.step(action)
        expected = (next_obs[0] - obs[0]) / step + bonus - cost * float(np.square(action).sum())
        assert reward == pytest.approx(expected, abs=1e-6)
        obs = env.reset(seed=1)[0] if terminated else next_obs
    env.close()


def test_find_task() -> None:
    task = find_task("hopper-medium-replay-v2")
    assert (task.dataset, task.env, task.horizon) == ("d4rl:hopper-medium-replay-v2", "Hopper-v4", 1000)
    assert task.termination is rules.hopper
    assert find_task("d4rl:hopper-medium-replay-v2") is task
    assert find_task("pendulum").dataset == "builtin:pendulum"
    with pytest.raises(TaskError, match=r"'hopper-medum-v2'.*hopper-medium-v2"):
        find_task("hopper-medum-v2")


def test_antmaze_goals() -> None:
    for name, goal in (("umaze", (0.75, 8.75)), ("medium-play", (20.75, 20.75)), ("large-play", (32.75, 24.75))):
        state = torch.tensor([[*goal, 0.5], [0.0, 0.0, 0.5]])
        assert find_task(f"antmaze-{name}-v2").termination(state, state, state).tolist() == [True, False]


def test_own_data_with_a_known_environment() -> None:
    task = task_for("plant.npz", "Hopper-v5")
    assert (task.env, task.horizon, task.termination) == ("Hopper-v5", 1000, rules.hopper)
    assert task.reference is not None
    assert "Hopper-v2" in task.notes[0]
    assert "Hopper-v5" in task.notes[0]
    assert task_for("plant.npz", "Hopper-v5", horizon=50).horizon == 50


def test_own_data_without_an_environment() -> None:
    task = task_for("plant.npz", None)
    assert task.env is None
    assert task.termination is rules.never
    assert task.reference is None
    assert any("termination=" in note for note in task.notes)
    assert any("raw returns" in note for note in task.notes)


def test_a_dataset_of_the_table_keeps_what_belongs_to_it() -> None:
    task = task_for("neorl:Hopper-v3-low", None)
    assert task.termination is rules.neorl_hopper
    assert task.reference == find_task("Hopper-v3-low").reference
    same = task_for("neorl:Hopper-v3-low", "Hopper-v4")
    assert same.env_kwargs == {"exclude_current_positions_from_observation": False}


def cold(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs[..., 0] < 0


def test_termination_by_name_path_or_function() -> None:
    assert task_for("plant.npz", None, termination="walker2d").termination is rules.walker2d
    assert task_for("plant.npz", None, termination="mbrl.data.termination:pen").termination is rules.pen
    task = task_for("plant.npz", "Hopper-v5", termination=cold)
    assert task.termination is cold
    with pytest.raises(TaskError, match=r"'hoper'.*nearest: hopper"):
        task_for("plant.npz", None, termination="hoper")
    for not_a_rule in ("antmaze", "_inside", "torch"):
        with pytest.raises(TaskError, match="no termination function"):
            task_for("plant.npz", None, termination=not_a_rule)
    with pytest.raises(TaskError, match="not callable"):
        task_for("plant.npz", None, termination="math:pi")


def test_own_reference() -> None:
    reference = Reference(0.0, 10.0, "our plant", "plant 3")
    task = task_for("plant.npz", "Hopper-v5", reference=reference)
    assert task.reference is reference
    assert task.notes == ("returns are measured in Hopper-v5, scores on the scale of plant 3 (our plant)",)


def test_unknown_environment_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"Hoper-v5.*Hopper-v5"):
        task_for("plant.npz", "Hoper-v5")
    with pytest.raises(TaskError, match="no module named 'nowhere'"):
        task_for("plant.npz", "nowhere:Plant-v0")


def test_an_environment_without_a_time_limit_needs_a_horizon() -> None:
    path = "gymnasium.envs.classic_control:PendulumEnv"
    assert gymnasium_spec(path) is None
    with pytest.raises(TaskError, match="give horizon="):
        task_for("plant.npz", path)
    assert task_for("plant.npz", path, horizon=7).horizon == 7


def test_import_object() -> None:
    assert import_object("gymnasium.spaces:Box") is gymnasium.spaces.Box
    assert import_object("gymnasium:spaces.Box") is gymnasium.spaces.Box
    for path in ("gymnasium.spaces", ":Box", "gymnasium:"):
        with pytest.raises(TaskError, match=r"expected package\.module:name"):
            import_object(path)
    with pytest.raises(TaskError, match="nearest: hopper"):
        import_object("mbrl.data.termination:hoper")
    with pytest.raises(TaskError, match=r"no module named 'gymnasium\.nowhere'"):
        import_object("gymnasium.nowhere:Box")
