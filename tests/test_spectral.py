"""The limit on spectral norms: what it does to layers, to a learner, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.learn.regularisers import Diversity, GradientPenalty, Robust
from mbrl.learn.sac import SAC
from mbrl.nets import Params, generator, init_mlp, randn
from mbrl.spectral import SpectralLimit, power_step, shrink, singular_maximum, spectral_norm
from mbrl.types import Batch, Regulariser, Transition

ROWS = 32
SEEDS = (0, 5)


def params(sizes: tuple[int, ...] = (5, 16, 24, 1), scale: float = 1.0) -> Params:
    out = init_mlp(sizes, [generator(s, "spectral test") for s in SEEDS], (3,))
    return [scale * p for p in out]


def norms(layers: Params) -> Tensor:
    """(layers, S, E), by the reference."""
    return torch.stack([torch.linalg.svdvals(weight)[..., 0] for weight in layers[::2]])


def limit(layers: Params, radius: float) -> SpectralLimit:
    return SpectralLimit(layers, radius, [generator(s, "vectors") for s in SEEDS])


def test_the_power_iteration_finds_the_largest_singular_value() -> None:
    weight = torch.randn(2, 3, 16, 24, generator=generator("power"))
    left, right = torch.ones(2, 3, 16, 1) / 4, torch.ones(2, 3, 24, 1) / 24**0.5
    exact = torch.linalg.svdvals(weight)[..., 0]
    last = torch.zeros_like(exact)
    for _ in range(60):
        left, right = power_step(weight, left, right)
        found = spectral_norm(weight, left, right)[..., 0, 0]
        assert (found >= last - 1e-5).all()  # from below, and never away
        last = found
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0)
    assert (found <= exact * (1 + 1e-6)).all()
    torch.testing.assert_close(singular_maximum(weight), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(singular_maximum(weight.transpose(-1, -2)), exact, rtol=1e-5, atol=0)


def test_layers_end_at_the_radius_or_stay_what_they_are_bit_for_bit() -> None:
    layers = params()
    layers[2] = 4 * layers[2]  # the only one above
    radius = 2.0
    before = norms(layers)
    assert (before[1] > radius).all()
    assert (before[[0, 2]] < radius).all()
    for shrunk in (limit(layers, radius).shrunk(layers), shrink(layers, radius)):
        assert torch.equal(shrunk[0], layers[0])
        assert torch.equal(shrunk[4], layers[4])
        torch.testing.assert_close(norms(shrunk)[1], torch.full_like(before[1], radius), rtol=1e-2, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(shrunk[1::2], layers[1::2], strict=True))
    exact = norms(shrink(layers, 0.5))
    assert (exact <= 0.5 * (1 + 1e-5)).all()
    assert (exact.prod(0) <= 0.5**3 * (1 + 1e-5)).all()


def test_the_gradient_does_not_push_along_the_norm() -> None:
    # What is divided by its own norm cannot grow: the loss does not depend on the scale of a layer above the radius.
    layers = [p.requires_grad_() for p in params(scale=20.0)]
    with torch.no_grad():
        held = limit(layers, 1.0)
    (gradient,) = torch.autograd.grad(held.shrunk(layers)[2].square().sum() + held.shrunk(layers)[2].sum(), layers[2])
    along = (gradient * layers[2]).sum((-2, -1)) / (gradient.norm(dim=(-2, -1)) * layers[2].norm(dim=(-2, -1)))
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-3)


def test_a_layer_of_zeros_does_not_break_the_iteration() -> None:
    layers = [torch.zeros_like(p) for p in params()]
    held = limit(layers, 1.0)
    assert all(torch.isfinite(x).all() for x in held.shrunk(layers) + held.tensors())
    held.follow(params(scale=20.0), 60)
    assert (norms(held.shrunk(params(scale=20.0))) <= 1.01).all()


@pytest.mark.parametrize("radius", [0.0, -1.0])
def test_a_radius_is_positive(radius: float) -> None:
    with pytest.raises(ValueError, match=r"spectral_radius=.* must be more than 0; null is no limit"):
        SAC(3, 2, (0,), hidden=(8,), spectral_radius=radius)


# -- through a learner -------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "spectral": {"spectral_radius": 0.8},
    "fgsm": {"regularisers": [Robust(1.0, 0.1)]},
    "uniform": {"regularisers": [Robust(1.0, 0.1, attack="uniform", detach_clean=True)]},
    "gradient_penalty": {"regularisers": [GradientPenalty(1.0, 0.1)]},
    "all": {
        "spectral_radius": 0.8,
        "critics": 4,
        "layer_norm": True,
        "regularisers": [Diversity(1.0), Robust(0.5, 0.1), GradientPenalty(0.5, 0.1)],
    },
}
each_option = pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)


def learner(seeds: tuple[int, ...] = SEEDS, **settings: Any) -> SAC:
    return SAC(3, 2, seeds, hidden=(16, 16), observation_std=torch.tensor([1.0, 2.0, 0.0]), **settings)


def inputs(some: SAC, update: int) -> tuple[Batch, Tensor]:
    data = random_data(200)
    picks = [torch.randint(200, (ROWS,), generator=generator(s, "pick", update)) for s in some.seeds]
    batch = Batch(Transition(*(torch.stack([x[p] for p in picks]) for x in data)), 0)
    return batch, randn((some.noise_size(ROWS),), [generator(s, "noise", update) for s in some.seeds])


def run(some: SAC, first: int, last: int) -> SAC:
    for i in range(first, last):
        some.update(*inputs(some, i), torch.tensor(i / 40))
    return some


def learnt(some: SAC) -> list[Tensor]:
    return [x for tensors in some._lists().values() for x in tensors]


@each_option
def test_stacked_seeds_equal_separate_ones(settings: dict[str, Any]) -> None:
    together = run(learner(**settings), 0, 40)
    for s, seed in enumerate(SEEDS):
        alone = run(learner((seed,), **settings), 0, 40)
        for ours, theirs in zip(learnt(together), learnt(alone), strict=True):
            torch.testing.assert_close(ours[s], theirs[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["uniform", "all"])
def test_an_update_is_one_graph(option: str) -> None:
    settings = OPTIONS[option]
    torch._dynamo.reset()
    eager, traced = learner(**settings), learner(**settings)
    step = torch.compile(traced.update, fullgraph=True, backend="aot_eager")
    for i in range(4):
        batch, noise = inputs(eager, i)
        eager.update(batch, noise, torch.tensor(0.0))
        step(batch, noise, torch.tensor(0.0))
    for ours, theirs in zip(learnt(eager), learnt(traced), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@each_option
def test_resumed_is_bitwise_the_uninterrupted(settings: dict[str, Any]) -> None:
    straight, first = run(learner(**settings), 0, 20), run(learner(**settings), 0, 11)
    second = SAC(3, 2, SEEDS, hidden=(16, 16), **settings)  # what it does not know is in the state
    second.load_state_dict(first.state_dict())
    run(second, 11, 20)
    assert all(torch.equal(a, b) for a, b in zip(learnt(straight), learnt(second), strict=True))


def test_without_the_options_there_is_nothing_new() -> None:
    plain, diverse = learner(), learner(regularisers=[Diversity(1.0)])
    names = {"actor", "critics", "target_critics", "log_temperature"}
    assert set(plain._lists()) == set(diverse._lists()) == names
    assert plain.noise_size(ROWS) == diverse.noise_size(ROWS) == 2 * ROWS * 2
    assert plain.limited(plain.critics) is plain.critics
    # A limit that nothing reaches, and penalties of no weight, draw no other numbers and change no bit.
    free: list[Regulariser] = [Robust(0.0), GradientPenalty(0.0, 1.0)]
    idle = learner(spectral_radius=1e6, regularisers=free)
    for i in range(10):
        batch, noise = inputs(plain, i)
        moves = torch.randn(2, idle.noise_size(ROWS) - noise.shape[-1], generator=generator("moves"))
        plain.update(batch, noise, torch.tensor(0.0))
        idle.update(batch, torch.cat([noise, moves], -1), torch.tensor(0.0))
    for name in names:
        for ours, theirs in zip(plain._lists()[name], idle._lists()[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_learner_s_critics_stay_within_the_radius_and_only_updates_turn_the_vectors() -> None:
    radius = 0.8
    some = learner(spectral_radius=radius, critic_learning_rate=1e-2)
    run(some, 0, 60)
    raw, held = norms(some.critics), norms(some.limited(some.critics))
    assert (raw.amax((-2, -1)) > 1.05 * radius).all()  # else nothing is shown
    assert (held < 1.03 * radius).all()  # one iteration an update lags behind
    assert (held.prod(0) < (1.03 * radius) ** 3).all()
    assert (norms(some.limited_targets()) < 1.05 * radius).all()
    assert some.spectral is not None
    vectors = [x.clone() for x in some.spectral.tensors()]
    obs, action = torch.randn(2, 7, 3), torch.rand(2, 7, 2)
    some.q(obs, action), some.target_q(obs, action), some.act(obs), some.opinion(obs, action)
    assert all(torch.equal(a, b) for a, b in zip(vectors, some.spectral.tensors(), strict=True))
    run(some, 60, 61)
    assert not all(torch.equal(a, b) for a, b in zip(vectors, some.spectral.tensors(), strict=True))
    torch.testing.assert_close(some.opinion(obs, action).values, some.q(obs, action))
