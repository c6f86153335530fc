"""Regularisers that flatten critics, and the measures of how flat they are: values that can be worked out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.lipschitz import draw, local_lipschitz, measure, spectral_product, value_error
from mbrl.learn.regularisers import GradientPenalty, Robust, slope
from mbrl.learn.sac import SAC
from mbrl.nets import CriticPass, Params, criticise, generator, init_mlp, q_values
from mbrl.types import Batch, Prediction, Transition

SEEDS, CRITICS, ROWS, Z, ACTIONS = 2, 3, 40, 4, 2
STD = torch.tensor([[1.0, 0.5, 3.0, 0.0], [2.0, 1.0, 0.1, 1.0]])  # (S, Z)


def opinion(layer_norm: bool = False) -> CriticPass:
    g = torch.Generator().manual_seed(1)
    params = init_mlp([Z + ACTIONS, 16, 16, 1], [generator(s, "critics") for s in range(SEEDS)], (CRITICS,))
    z, action = torch.randn(SEEDS, ROWS, Z, generator=g), torch.rand(SEEDS, ROWS, ACTIONS, generator=g) * 2 - 1
    return criticise(params, z, action, layer_norm=layer_norm)


def noise_of(term: Robust, seed: int = 0) -> Tensor:
    return torch.randn(SEEDS, term.noise_size(ROWS, Z, ACTIONS), generator=torch.Generator().manual_seed(seed))


def linear_critics(slopes: Tensor) -> Params:
    """Q_e(s, a) = <slopes_e, s> + a_1 for slopes (S, E, Z), without a hidden layer."""
    extra = torch.zeros(*slopes.shape[:-1], ACTIONS)
    extra[..., 0] = 1.0
    return [torch.cat([slopes, extra], -1).unsqueeze(-1), torch.zeros(*slopes.shape[:-1], 1, 1)]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_sweep_is_the_gradient_in_the_observation(layer_norm: bool) -> None:
    here = opinion(layer_norm)

    def total(z: Tensor) -> Tensor:  # (S, E, B, Z): a copy for each critic
        return here.elsewhere(z).values.sum()

    each = here.z.unsqueeze(1).expand(-1, CRITICS, -1, -1)
    torch.testing.assert_close(here.observation_gradient(), torch.func.grad(total)(each), rtol=1e-4, atol=1e-6)
    assert torch.equal(here.elsewhere(here.z.unsqueeze(1)).values, here.values)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_penalty_s_gradient_in_the_parameters_is_the_double_backward(layer_norm: bool) -> None:
    some = opinion(layer_norm)
    term = GradientPenalty(2.0, 0.05)

    def ours(params: Params) -> Tensor:
        return term(criticise(params, some.z, some.action, layer_norm=layer_norm), None, STD).sum()

    def theirs(params: Params) -> Tensor:
        def total(z: Tensor) -> Tensor:
            return criticise(params, some.z, some.action, layer_norm=layer_norm).elsewhere(z).values.sum()

        each = some.z.unsqueeze(1).expand(-1, CRITICS, -1, -1)
        size = (torch.func.grad(total)(each) * STD[:, None, None]).norm(dim=-1)
        return 2.0 * torch.relu(size - 0.05).square().mean(-1).sum()

    torch.testing.assert_close(ours(some.params), theirs(some.params))
    assert ours(some.params) > 0
    for mine, other in zip(torch.func.grad(ours)(some.params), torch.func.grad(theirs)(some.params), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_a_slope_below_the_target_costs_nothing() -> None:
    slopes = torch.tensor([[[3.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 9.0]], [[0.0] * 4, [0.0, 0.0, 10.0, 1.0]]])
    some = criticise(linear_critics(slopes), torch.randn(2, 8, Z), torch.zeros(2, 8, ACTIONS))
    sizes = torch.tensor([[3.0, 2.0], [0.0, 2.0**0.5]])  # in stds
    torch.testing.assert_close(slope(some, STD), sizes.unsqueeze(-1).expand(2, 2, 8), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(GradientPenalty(0.5, 2.0)(some, None, STD), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(GradientPenalty(1.0, 1.0)(some, None, STD)[0], torch.tensor(4.0 + 1.0))


# -- robustness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "uniform"])
def test_the_perturbation_stays_in_its_box(attack: Any) -> None:
    some, term = opinion(), Robust(1.0, 0.2, attack=attack)
    step = term.perturbation(some, noise_of(term), STD)
    assert step.shape == (SEEDS, CRITICS if attack == "fgsm" else 1, ROWS, Z)
    assert step.abs().max() <= 0.2
    assert step.abs().max() > 0.19
    assert not step.requires_grad
    if attack == "uniform":
        assert step.mean().abs() < 0.02
        assert float(step.var()) == pytest.approx(0.2**2 / 3, rel=0.2)
    moved = some.z.unsqueeze(1) + STD[:, None, None] * step
    assert torch.equal(moved[0, ..., 3], some.z[0, :, 3].expand_as(moved[0, ..., 3]))  # nothing varies there


def test_fgsm_moves_q_further_than_its_random_start() -> None:
    some, term = opinion(), Robust(1.0, 0.2)
    noise = noise_of(term)
    start = 0.2 * (torch.special.ndtr(noise).view(SEEDS, 1, ROWS, Z) - 0.5)

    def change(step: Tensor) -> Tensor:
        return (some.elsewhere(some.z.unsqueeze(1) + STD[:, None, None] * step).values - some.values).abs()

    attacked, drawn = change(term.perturbation(some, noise, STD)), change(start.expand(-1, CRITICS, -1, -1))
    uniform = Robust(1.0, 0.2, attack="uniform")
    assert (attacked > drawn).float().mean() > 0.95  # all but where a kink lies between
    assert attacked.mean() > 2 * drawn.mean()
    assert term(some, noise, STD).min() > 1.5 * uniform(some, noise, STD).max()


def test_of_a_linear_q_the_attack_is_the_worst_corner() -> None:
    slopes = torch.tensor([[[3.0, -1.0, 2.0, 0.0]], [[-1.0, 0.5, 0.0, 2.0]]])
    some = criticise(linear_critics(slopes), torch.randn(2, ROWS, Z), torch.zeros(2, ROWS, ACTIONS))
    term = Robust(1.0, 0.1)
    changes = (term.perturbation(some, noise_of(term), STD) * STD[:, None, None] * slopes.unsqueeze(-2)).sum(-1).abs()
    worst = 0.1 * (STD[:, None] * slopes.abs()).sum(-1, keepdim=True)
    assert (changes <= worst + 1e-5).all()
    assert (changes >= 0.5 * worst - 1e-5).all()  # half a radius of the start may have to be undone


@pytest.mark.parametrize("attack", ["fgsm", "uniform"])
def test_a_q_that_does_not_see_the_observation_is_robust(attack: Any) -> None:
    blind = criticise(linear_critics(torch.zeros(2, 3, Z)), torch.randn(2, ROWS, Z), torch.rand(2, ROWS, ACTIONS))
    term = Robust(10.0, 0.5, attack=attack)
    assert term(blind, noise_of(term), STD).tolist() == [0.0, 0.0]
    seeing = criticise(linear_critics(torch.ones(2, 3, Z)), torch.randn(2, ROWS, Z), torch.rand(2, ROWS, ACTIONS))
    assert (term(seeing, noise_of(term), STD) > 0).all()


def test_what_is_detached_has_no_part_in_the_gradient() -> None:
    # Q = w s: d/dw of (w (s + d) - w s)^2 is 2 w d^2, and 2 w d (s + d) where w s is taken for a number.
    w = torch.tensor([[[[3.0]]]])
    z, std = torch.tensor([[[5.0]]]), torch.ones(1, 1)
    noise = torch.tensor([[1.0]])
    for detach_clean in (False, True):
        term = Robust(1.0, 0.1, attack="uniform", detach_clean=detach_clean)

        def loss(weight: Tensor, term: Robust = term) -> Tensor:
            return term(criticise([weight, torch.zeros(1, 1, 1, 1)], z, torch.zeros(1, 1, 0)), noise, std).sum()

        d = 0.1 * (2 * float(torch.special.ndtr(torch.tensor(1.0))) - 1)
        expected = 2 * 3.0 * d * (5.0 + d) if detach_clean else 2 * 3.0 * d * d
        assert float(torch.func.grad(loss)(w)) == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"robust.attack=pgd is unknown; it is fgsm, uniform"):
        Robust(1.0, attack="pgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"robust.radius=0 must be more than 0"):
        Robust(1.0, 0)


# -- measures ----------------------------------------------------------------------------------------------------------


def test_of_a_linear_q_the_local_constant_is_the_length_of_its_slope() -> None:
    slopes = torch.tensor([[[3.0, -8.0, 4.0, 9.0]], [[1.0, 0.0, 0.0, 2.0]]])
    params = linear_critics(slopes)
    g = torch.Generator().manual_seed(0)
    obs, action = torch.randn(2, 5, Z, generator=g), torch.zeros(2, 5, ACTIONS)
    direction, length = torch.randn(2, 3000, 5, Z, generator=g), 0.1 + torch.rand(2, 3000, 5, generator=g)
    found = local_lipschitz(lambda s, a: q_values(params, s, a), obs, action, STD, direction, length)
    exact = (STD[:, None] * slopes).norm(dim=-1, keepdim=True).expand_as(found)
    assert (found <= exact * (1 + 1e-4)).all()
    assert (found >= exact * 0.97).all()
    few = local_lipschitz(lambda s, a: q_values(params, s, a), obs, action, STD, direction[:, :3], length[:, :3])
    assert (few <= found).all()
    assert float(spectral_product(params)[0, 0]) == pytest.approx((9 + 64 + 16 + 81 + 1) ** 0.5)


def test_the_product_of_norms_bounds_the_local_constant() -> None:
    some = opinion()
    one, action = torch.ones(SEEDS, Z), some.action
    g = torch.Generator().manual_seed(0)
    found = local_lipschitz(
        lambda s, a: q_values(some.params, s, a), some.z, action, one,
        torch.randn(SEEDS, 50, ROWS, Z, generator=g), torch.full((SEEDS, 50, ROWS), 0.05),
    )  # fmt: skip
    product = spectral_product(some.params).unsqueeze(-1)
    assert (found <= product).all()
    reference = torch.stack([torch.linalg.svdvals(w)[..., 0] for w in some.params[::2]]).prod(0)
    torch.testing.assert_close(product[..., 0], reference, rtol=1e-4, atol=0)
    # Locally Q is linear: the constant is the norm of the gradient, where many directions are tried.
    assert (found.mean() / slope(some, one).mean() - 1).abs() < 0.15


def test_an_exact_model_has_no_value_error_and_a_wrong_one_what_the_value_sees_of_it() -> None:
    g = torch.Generator().manual_seed(0)
    next_obs, noise = torch.randn(2, 6, Z, generator=g), torch.randn(2, 4, 6, 1, generator=g)
    terminal = torch.zeros(2, 6, dtype=torch.bool)

    def value(obs: Tensor, noise: Tensor) -> Tensor:  # sees the first dimension alone
        return 10.0 + 3.0 * obs[..., 0].sin() + noise[..., 0] * obs[..., 0]

    exact = Prediction(torch.cat([next_obs, torch.zeros(2, 6, 1)], -1).unsqueeze(1), torch.zeros(2, 1, 6, Z + 1))
    error, size = value_error(value, next_obs, draw(exact, torch.randn(2, 4, 6, Z, generator=g)), terminal, noise)
    assert error.tolist() == [0.0, 0.0]
    assert (size > 5).all()
    blind = next_obs.unsqueeze(1).expand(-1, 4, -1, -1) + torch.tensor([0.0, 5.0, 5.0, 5.0])
    assert value_error(value, next_obs, blind, terminal, noise)[0].tolist() == [0.0, 0.0]
    seen = next_obs.unsqueeze(1).expand(-1, 4, -1, -1) + torch.tensor([2.0, 0.0, 0.0, 0.0])

    def linear(obs: Tensor, noise: Tensor) -> Tensor:
        return -3.0 * obs[..., 0]

    terminal[0, 2] = True
    torch.testing.assert_close(value_error(linear, next_obs, seen, terminal, noise)[0], torch.tensor([6.0, 6.0]))
    # One whose samples are right on average is right for a linear value, whatever their spread.
    both = next_obs.unsqueeze(1) + torch.tensor([4.0, -4.0, 4.0, -4.0])[None, :, None, None]
    assert value_error(linear, next_obs, both, terminal, noise)[0].max() < 1e-5


def test_samples_come_from_the_members_in_turn() -> None:
    mean = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 3)
    drawn = draw(Prediction(mean, torch.ones_like(mean)), torch.zeros(1, 7, 2, 2))
    assert drawn[0, :, 0, 0].tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]


def test_a_measurement_takes_rows_of_each_seed_or_of_all() -> None:
    data = random_data(64)
    learner, model = SAC(3, 2, (0, 4), hidden=(16,)), GaussianEnsemble(3, 2, (0, 4), members=3, elites=2, hidden=(8,))

    def sources() -> list[torch.Generator]:
        return [generator(s, "rows") for s in learner.seeds]

    std = data.obs.std(0)
    shared = measure(learner, data, std, sources(), model.elite_view())
    own = measure(
        learner, Transition(*(torch.stack([x, x]) for x in data)), std.expand(2, -1), sources(), model.elite_view()
    )
    names = {"local_mean", "local_95", "local_max", "gradient_norm", "spectral_product"}
    assert set(shared) == names | {"value_error", "value_error_relative", "model_error", "model_spread"}
    assert set(measure(learner, data, std, sources())) == names
    for name, value in shared.items():
        assert value.shape == (2,)
        assert torch.isfinite(value).all()
        assert torch.equal(value, own[name]), name
    assert (shared["local_mean"] <= shared["local_95"]).all()
    assert (shared["local_95"] <= shared["local_max"]).all()


def test_regularised_critics_are_flatter() -> None:
    def steepness(**settings: Any) -> float:
        data = random_data(256)._replace(reward=3 * torch.randn(256, generator=generator("noise")))  # nothing to learn
        learner = SAC(3, 2, (0,), hidden=(64, 64), discount=0.0, critic_learning_rate=3e-3, **settings)
        for i in range(150):
            pick = torch.randint(256, (64,), generator=generator("pick", i))
            batch = Transition(*(x[pick].unsqueeze(0) for x in data))
            noise = torch.randn(1, learner.noise_size(64), generator=generator("noise", i))
            learner.update(Batch(batch, 64), noise, torch.tensor(0.0))
        found = measure(learner, data, torch.ones(3), [generator("measure")])
        return float(found["local_mean"])

    plain = steepness()
    for settings in (
        {"spectral_radius": 1.0},
        {"regularisers": [Robust(30.0, 0.3)]},
        {"regularisers": [Robust(30.0, 0.3, attack="uniform")]},
        {"regularisers": [GradientPenalty(1.0, 0.2)]},
    ):
        assert steepness(**settings) < 0.7 * plain, settings
