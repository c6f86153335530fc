import math

import gymnasium
import numpy as np
import pytest
import torch

from mbrl.data import termination as rules

HALF, WALKER, HOPPER = np.zeros(17), np.zeros(17), np.zeros(11)
WALKER[0], HOPPER[0] = 1.25, 1.25
NEORL_HOPPER, NEORL_WALKER = np.insert(HOPPER, 0, 500.0), np.insert(WALKER, 0, 500.0)
ANT, HUMANOID, PEN = np.zeros(27), np.zeros(45), np.zeros(45)
ANT[0], HUMANOID[0], PEN[26] = 0.75, 1.4, 0.2
DOUBLE = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
GLUCOSE = np.full(31, 120.0)
ROCKET = np.full(7, 0.5)
EPS = 1e-4


def terminal(rule, next_obs) -> bool:
    next_obs = torch.as_tensor(next_obs, dtype=torch.float64)
    result = rule(torch.zeros_like(next_obs), torch.zeros((*next_obs.shape[:-1], 3)), next_obs)
    assert result.dtype == torch.bool
    assert result.shape == next_obs.shape[:-1]
    return bool(result)


# rule, healthy observation, index, the bound, +1 if the state above it is healthy and -1 if the one below is
BOUNDS = [
    (rules.hopper, HOPPER, 0, 0.7, +1),
    (rules.hopper, HOPPER, 1, 0.2, -1),
    (rules.hopper, HOPPER, 1, -0.2, +1),
    *[(rules.hopper, HOPPER, i, 100.0, -1) for i in range(2, 11)],
    *[(rules.hopper, HOPPER, i, -100.0, +1) for i in range(2, 11)],
    (rules.walker2d, WALKER, 0, 0.8, +1),
    (rules.walker2d, WALKER, 0, 2.0, -1),
    (rules.walker2d, WALKER, 1, 1.0, -1),
    (rules.walker2d, WALKER, 1, -1.0, +1),
    *[(rules.walker2d, WALKER, i, 100.0, -1) for i in range(2, 17)],
    *[(rules.walker2d, WALKER, i, -100.0, +1) for i in range(2, 17)],
    *[(rules.halfcheetah, HALF, i, 100.0, -1) for i in range(17)],
    *[(rules.halfcheetah, HALF, i, -100.0, +1) for i in range(17)],
    (rules.ant, ANT, 0, 0.2, +1),
    (rules.ant, ANT, 0, 1.0, -1),
    (rules.humanoid, HUMANOID, 0, 1.0, +1),
    (rules.humanoid, HUMANOID, 0, 2.0, -1),
    (rules.inverted_pendulum, np.zeros(4), 1, 0.2, -1),
    (rules.inverted_pendulum, np.zeros(4), 1, -0.2, +1),
    (rules.neorl_hopper, NEORL_HOPPER, 1, 0.7, +1),
    (rules.neorl_hopper, NEORL_HOPPER, 2, 0.2, -1),
    (rules.neorl_hopper, NEORL_HOPPER, 2, -0.2, +1),
    *[(rules.neorl_hopper, NEORL_HOPPER, i, 100.0, -1) for i in range(3, 12)],
    *[(rules.neorl_hopper, NEORL_HOPPER, i, -100.0, +1) for i in range(3, 12)],
    (rules.neorl_walker2d, NEORL_WALKER, 1, 0.8, +1),
    (rules.neorl_walker2d, NEORL_WALKER, 1, 2.0, -1),
    (rules.neorl_walker2d, NEORL_WALKER, 2, 1.0, -1),
    (rules.neorl_walker2d, NEORL_WALKER, 2, -1.0, +1),
    *[(rules.neorl_walker2d, NEORL_WALKER, i, 100.0, -1) for i in range(3, 18)],
    *[(rules.neorl_walker2d, NEORL_WALKER, i, -100.0, +1) for i in range(3, 18)],
    (rules.pen, PEN, 26, 0.075, +1),
    (rules.antmaze((0.75, 8.75)), np.array([5.0, 8.75, 0.0]), 0, 1.0, +1),
    (rules.antmaze((0.75, 8.75)), np.array([-5.0, 8.75, 0.0]), 0, 0.5, -1),
    (rules.antmaze((0.75, 8.75)), np.array([0.75, 12.0, 0.0]), 1, 9.0, +1),
    (rules.simglucose, GLUCOSE, 0, 40.0, +1),
    (rules.simglucose, GLUCOSE, 0, 600.0, -1),
    (rules.rocket_recovery, ROCKET, 1, 0.05, +1),
    (rules.rocket_recovery, -ROCKET, 1, -0.05, -1),
]


@pytest.mark.parametrize(("rule", "healthy", "index", "bound", "side"), BOUNDS)
def test_both_edges_of_every_bound(rule, healthy, index, bound, side) -> None:
    assert not terminal(rule, healthy)
    inside, outside = healthy.copy(), healthy.copy()
    inside[index], outside[index] = bound + side * EPS, bound - side * EPS
    assert not terminal(rule, inside)
    assert terminal(rule, outside)


@pytest.mark.parametrize(
    ("rule", "healthy", "index", "bound", "ends"),
    [
        (rules.hopper, HOPPER, 0, 0.7, True),
        (rules.hopper, HOPPER, 1, 0.2, True),
        (rules.hopper, HOPPER, 5, 100.0, True),
        (rules.walker2d, WALKER, 0, 2.0, True),
        (rules.ant, ANT, 0, 0.2, False),
        (rules.ant, ANT, 0, 1.0, False),
        (rules.humanoid, HUMANOID, 0, 2.0, True),
        (rules.inverted_pendulum, np.zeros(4), 1, 0.2, False),
        (rules.pen, PEN, 26, 0.075, False),
        (rules.simglucose, GLUCOSE, 0, 40.0, False),
        (rules.rocket_recovery, ROCKET, 1, 0.05, True),
    ],
)
def test_the_bound_itself(rule, healthy, index, bound, ends) -> None:
    state = healthy.copy()
    state[index] = bound
    assert terminal(rule, state) is ends


def test_hopper_velocity_far_below_the_bound_is_terminal() -> None:
    """The one-sided check of several published codes lets this pass."""
    state = HOPPER.copy()
    state[7] = -150.0
    assert terminal(rules.hopper, state)


@pytest.mark.parametrize(
    ("rule", "healthy", "index"),
    [
        (rules.hopper, HOPPER, 0),
        (rules.hopper, HOPPER, 7),
        (rules.walker2d, WALKER, 9),
        (rules.halfcheetah, HALF, 3),
        (rules.ant, ANT, 20),
        (rules.humanoid, HUMANOID, 0),
        (rules.inverted_pendulum, np.zeros(4), 3),
        (rules.inverted_double_pendulum, DOUBLE, 2),
        (rules.neorl_hopper, NEORL_HOPPER, 4),
        (rules.neorl_walker2d, NEORL_WALKER, 4),
        (rules.pen, PEN, 26),
        (rules.simglucose, GLUCOSE, 0),
        (rules.rocket_recovery, ROCKET, 1),
    ],
)
def test_not_a_number_is_terminal(rule, healthy, index) -> None:
    state = healthy.copy()
    state[index] = math.nan
    assert terminal(rule, state)


def test_double_pendulum_ends_when_the_tip_is_at_height_one() -> None:
    for fold, ends in ((0.80, False), (0.90, True)):  # 0.6 + 0.6 cos(fold) = 1 at 0.841
        assert terminal(rules.inverted_double_pendulum, [0, 0, math.sin(fold), 1, math.cos(fold), 0, 0, 0, 0]) is ends


def test_x_does_not_count_in_neorl() -> None:
    for rule, state in ((rules.neorl_hopper, NEORL_HOPPER.copy()), (rules.neorl_walker2d, NEORL_WALKER.copy())):
        state[0] = 1e6
        assert not terminal(rule, state)


@pytest.mark.parametrize("rule", [rules.never, rules.pendulum])
def test_never(rule) -> None:
    assert not terminal(rule, np.full(3, np.nan))


@pytest.mark.parametrize(
    ("rule", "healthy"),
    [
        (rules.never, HALF),
        (rules.hopper, HOPPER),
        (rules.walker2d, WALKER),
        (rules.halfcheetah, HALF),
        (rules.ant, ANT),
        (rules.humanoid, HUMANOID),
        (rules.inverted_pendulum, np.zeros(4)),
        (rules.inverted_double_pendulum, DOUBLE),
        (rules.neorl_hopper, NEORL_HOPPER),
        (rules.neorl_walker2d, NEORL_WALKER),
        (rules.pen, PEN),
        (rules.antmaze((0.0, 0.0)), HALF + 9.0),
        (rules.simglucose, GLUCOSE),
        (rules.rocket_recovery, ROCKET),
    ],
)
def test_leading_axes_are_free(rule, healthy) -> None:
    """(S, K, N, O) -> (S, K, N), each row on its own."""
    rows = torch.tensor(healthy, dtype=torch.float32).expand(2, 3, 4, -1).clone()
    rows[1, 2, 3] = torch.nan
    result = rule(rows, rows[..., :1], rows)
    assert result.shape == (2, 3, 4)
    assert not result.flatten()[:-1].any()


REAL = [
    ("Hopper-v4", {}, rules.hopper, 30),
    ("Hopper-v5", {}, rules.hopper, 30),
    ("Walker2d-v4", {}, rules.walker2d, 30),
    ("Walker2d-v5", {}, rules.walker2d, 30),
    ("HalfCheetah-v4", {}, rules.halfcheetah, 1),
    ("HalfCheetah-v5", {}, rules.halfcheetah, 1),
    ("Ant-v4", {}, rules.ant, 8),
    ("Ant-v5", {}, rules.ant, 8),
    ("Humanoid-v4", {}, rules.humanoid, 10),
    ("Humanoid-v5", {}, rules.humanoid, 10),
    ("InvertedPendulum-v4", {}, rules.inverted_pendulum, 30),
    ("InvertedPendulum-v5", {}, rules.inverted_pendulum, 30),
    ("InvertedDoublePendulum-v4", {}, rules.inverted_double_pendulum, 30),
    ("InvertedDoublePendulum-v5", {}, rules.inverted_double_pendulum, 30),
    ("Pendulum-v1", {}, rules.pendulum, 3),
    ("Hopper-v4", {"exclude_current_positions_from_observation": False}, rules.neorl_hopper, 30),
    ("Walker2d-v4", {"exclude_current_positions_from_observation": False}, rules.neorl_walker2d, 30),
]


@pytest.mark.parametrize(("name", "kwargs", "rule", "episodes"), REAL)
def test_agrees_with_the_environment(name, kwargs, rule, episodes) -> None:
    """Every step of random rollouts; in float32, a state within rounding of a bound may fall on either side."""
    env = gymnasium.make(name, **kwargs)
    env.action_space.seed(0)
    states, flags = [], []
    for episode in range(episodes):
        env.reset(seed=episode)
        done = False
        while not done:
            state, _, terminated, truncated, _ = env.step(env.action_space.sample())
            states.append(state)
            flags.append(terminated)
            done = terminated or truncated
    env.close()
    truth = torch.tensor(flags)
    if rule not in (rules.never, rules.halfcheetah):
        assert 3 <= int(truth.sum()) < len(flags)
    double = torch.tensor(np.array(states), dtype=torch.float64)
    torch.testing.assert_close(rule(double, double[:, :1], double), truth)
    single = double.float()
    differs = rule(single, single[:, :1], single) != truth
    for sign in (-1e-6, 1e-6):
        nudged = double * (1 + sign)
        differs &= rule(nudged, nudged[:, :1], nudged) != truth
    assert not differs.any()
