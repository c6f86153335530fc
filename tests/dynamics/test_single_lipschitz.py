"""A model whose layers' spectral norms are limited: it is within its bound, fits all the same, and can be resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.dynamics import store
from mbrl.dynamics.ensemble import FitReport, GaussianEnsemble
from mbrl.nets import generator
from mbrl.types import StateDict, Transition

SLOPE = 1.1  # of SiLU, the largest: 1.0998


def small(seeds: tuple[int, ...] = (0,), **settings: Any) -> GaussianEnsemble:
    defaults: dict[str, Any] = {
        "members": 1, "elites": 1, "hidden": (16, 16), "batch_size": 64, "max_epochs": 4, "standardise_targets": True,
        "patience": None,
    }  # fmt: skip
    return GaussianEnsemble(2, 1, seeds, **(defaults | settings))


def steep_system(rows: int = 2000) -> Transition:
    """The next observation has a slope of 30 in the first dimension where that changes its sign."""
    source = generator("steep system")
    obs, action = torch.randn(rows, 2, generator=source), torch.rand(rows, 1, generator=source) * 2 - 1
    step = torch.cat([torch.tanh(30 * obs[:, :1]), 0.1 * action], -1)
    never = torch.zeros(rows, dtype=torch.bool)
    return Transition(obs, action, step.sum(-1), obs + step, never, ~never)


def norms(model: GaussianEnsemble) -> Tensor:
    return torch.stack([torch.linalg.svdvals(w)[..., 0] for w in model.params[::2]])  # (layers, S, E)


def change_slope(model: GaussianEnsemble) -> Tensor:
    """The largest measured slope of the scaled change in the scaled inputs, along the steep direction."""
    obs = torch.linspace(-0.5, 0.5, 401).unsqueeze(-1) * torch.tensor([1.0, 0.0])
    mean = model.predict(obs.unsqueeze(0), torch.zeros(1, 401, 1)).mean[0, :, :, :-1] - obs
    scaled = mean / model.target_std[0, ..., :-1]
    inputs = obs[:, 0] / model.input_std[0, 0, 0, 0]
    return (scaled.diff(dim=-2).norm(dim=-1) / inputs.diff()).amax()


@pytest.mark.parametrize("members", [1, 3])
def test_a_limited_model_is_within_its_bound(members: int) -> None:
    data, radius = steep_system(), 1.0
    bound = SLOPE**2 * radius**3
    free = small(members=members, max_epochs=60, learning_rate=1e-2)
    held = small(members=members, max_epochs=60, learning_rate=1e-2, spectral_radius=radius)
    free.fit(data)
    held.fit(data)
    assert (norms(held) <= radius * (1 + 1e-5)).all()
    assert (norms(free).amax(0) > 2 * radius).all()
    assert change_slope(held) <= bound
    assert change_slope(free) > 3 * bound  # so that the limit is what held it
    # It has learnt what the limit allows: the error of the mean change is 1 in these units.
    assert (held.holdout_error < 0.5).all()
    assert (free.holdout_error < held.holdout_error).all()


def test_a_wide_limit_changes_nothing() -> None:
    data = steep_system(500)
    free, held = small(), small(spectral_radius=1e6)
    free.fit(data)
    held.fit(data)
    assert all(torch.equal(a, b) for a, b in zip(free.params, held.params, strict=True))
    assert set(free.state_dict()) == set(held.state_dict())


def test_stacked_seeds_equal_separate_fits() -> None:
    data = steep_system(500)
    together = small((0, 3), spectral_radius=0.7)
    together.fit(data)
    for s, seed in enumerate((0, 3)):
        alone = small((seed,), spectral_radius=0.7)
        alone.fit(data)
        for ours, theirs in zip(together.params, alone.params, strict=True):
            torch.testing.assert_close(ours[s], theirs[0], rtol=1e-4, atol=1e-5)


def test_interrupted_and_resumed_is_bitwise_the_uninterrupted() -> None:
    data = steep_system(500)
    straight, again = small(spectral_radius=0.7), small(spectral_radius=0.7)
    states: list[StateDict] = []

    def keep(report: FitReport) -> None:
        states.append(copy.deepcopy(report.state()))

    straight.fit(data, on_progress=keep)
    again.fit(data, resume=states[1])
    assert all(torch.equal(a, b) for a, b in zip(straight.params, again.params, strict=True))
    assert "spectral" in states[1]
    plain = small()
    plain.fit(data, on_progress=keep)
    assert "spectral" not in states[-1]


def test_an_update_of_the_fit_is_one_graph() -> None:
    torch._dynamo.reset()
    data = random_data(200)
    fits = []
    for compiled in (False, True):
        model = GaussianEnsemble(3, 2, (0,), members=1, elites=1, hidden=(8,), batch_size=64, spectral_radius=0.5,
                                 max_steps=3)  # fmt: skip
        if compiled:
            step = torch.compile(model._step, fullgraph=True, backend="aot_eager")
            model._step = step  # type: ignore[method-assign]
        model.fit(data)
        fits.append(model.params)
    for ours, theirs in zip(*fits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_store_knows_the_limit_and_its_code() -> None:
    settings = {"members": 1, "spectral_radius": None}
    assert store.store_key("data", settings) != store.store_key("data", settings | {"spectral_radius": 2.0})
    assert "mbrl.spectral" in [module.__name__ for module in store.CODE]


def test_a_limit_is_positive() -> None:
    with pytest.raises(ValueError, match=r"dynamics.spectral_radius=0 must be more than 0; null is no limit"):
        small(spectral_radius=0)
