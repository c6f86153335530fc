"""The frozen reference of the speed benches computes what this framework computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import reference
import torch
from serve import ACTION, OBS, SIZES, make_data
from torch import Tensor, nn

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.nets import criticise
from mbrl.types import Batch, Transition

ROWS = 64


def linear_params(net: nn.Module) -> list[Tensor]:
    """Weights and biases of one network in the house's shapes, (in, out) and (1, out)."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return [p for layer in layers for p in (layer.weight.T, layer.bias[None])]


def stacked_params(net: nn.Module) -> list[Tensor]:
    return [
        p for layer in net.modules() if isinstance(layer, reference.StackedLinear) for p in (layer.weight, layer.bias)
    ]


def critic_params(critics: nn.Module) -> list[Tensor]:
    if isinstance(critics, reference.TwinCritics):
        return [torch.stack(pair) for pair in zip(*(linear_params(net) for net in critics.nets), strict=True)]
    return stacked_params(critics)


def pair(critics: int, diversity: float, **settings: Any) -> tuple[reference.SoftActorCritic, SAC]:
    """The reference and ours with the same weights."""
    theirs = reference.SoftActorCritic(
        critics, (16, 16), actor_learning_rate=1e-3, diversity=diversity,
        updates=10**7 if critics == 2 else None, limit_temperature=critics == 2,
    )  # fmt: skip
    ours = SAC(
        OBS, ACTION, [0], critics=critics, hidden=(16, 16), actor_learning_rate=1e-3, cosine_actor=critics == 2,
        max_temperature=1.0 if critics == 2 else None, regularisers=[Diversity(diversity)] if diversity else [],
    )  # fmt: skip
    for mine, given in (
        (ours.actor, linear_params(theirs.actor)),
        (ours.critics, critic_params(theirs.critics)),
        (ours.target_critics, critic_params(theirs.target_critics)),
    ):
        for to, value in zip(mine, given, strict=True):
            to.copy_(value.detach())
    return theirs, ours


@pytest.fixture
def _double() -> Iterator[None]:
    """Adam makes whole steps of gradients that are rounding alone, unless rounding is far below its epsilon."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(("critics", "diversity"), [(2, 0.0), (4, 0.0), (4, 1.0)])
def test_three_updates_of_the_reference_are_ours(critics: int, diversity: float) -> None:
    theirs, ours = pair(critics, diversity)
    for step in range(3):
        data = make_data(ROWS, seed=step)
        values = [x.double() for x in data[:4]]
        noise = torch.randn(2, ROWS, ACTION)
        reported = theirs.update(reference.Rows(*values, data.terminal.double()), noise)
        batch = Batch(Transition(*(x[None] for x in (*values, data.terminal, data.real))), 0)
        metrics = ours.update(batch, noise.reshape(1, -1), torch.tensor(step / 10**7))
        assert reported["critic_loss"] == pytest.approx(float(metrics["critic_loss"]), rel=1e-6)
        assert reported["actor_loss"] == pytest.approx(float(metrics["actor_loss"]), rel=1e-6)
    for name, mine, given in (
        ("actor", ours.actor, linear_params(theirs.actor)),
        ("critics", ours.critics, critic_params(theirs.critics)),
        ("targets", ours.target_critics, critic_params(theirs.target_critics)),
        ("temperature", [ours.log_temperature], [theirs.log_temperature]),
    ):
        for a, b in zip(mine, given, strict=True):
            torch.testing.assert_close(a.reshape(b.shape), b.detach(), rtol=1e-6, atol=1e-9, msg=name)


def test_double_backward_diversity_has_our_value_and_gradient() -> None:
    theirs, ours = pair(4, 1.0)
    data = make_data(ROWS)
    rows, target = reference.Rows(*data[:4], data.terminal.float()), torch.zeros(ROWS)
    params = list(theirs.critics.parameters())
    with_term = theirs.critic_loss(rows, target)
    theirs.diversity = 0.0
    term = with_term - theirs.critic_loss(rows, target)
    given = torch.autograd.grad(term, params, allow_unused=True)

    leaves = [p.detach().requires_grad_() for p in ours.critics]
    mine = Diversity(1.0)(criticise(leaves, data.obs[None], data.action[None])).sum()
    torch.testing.assert_close(term.detach(), mine.detach(), rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(mine, leaves, allow_unused=True), given, strict=True):
        assert b is not None  # of the squared error, which cancels to 0
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a[0], b, rtol=1e-3, atol=1e-5)


def ensembles(rows: int = ROWS) -> tuple[reference.Dynamics, GaussianEnsemble]:
    theirs, ours = reference.Dynamics(), GaussianEnsemble(OBS, ACTION, [0])
    for to, value in zip(ours.params, stacked_params(theirs.net), strict=True):
        to.copy_(value.detach())
    return theirs, ours


def test_ensemble_loss_and_gradient_are_ours() -> None:
    theirs, ours = ensembles()
    x, y = torch.randn(7, ROWS, OBS + ACTION), torch.randn(7, ROWS, OBS + 1)
    params = [p.requires_grad_() for p in (*ours.params, ours.max_logvar, ours.min_logvar)]
    mine, _ = ours.loss(params, x[None], y[None])
    decay = sum(0.5 * c * w.square().sum() for c, w in zip(ours.weight_decay, ours.params[::2], strict=True))
    loss = theirs.loss(x, y)
    torch.testing.assert_close(loss, mine + decay, rtol=1e-5, atol=1e-5)
    (mine + decay).backward()
    loss.backward()
    given = [*stacked_params(theirs.net), theirs.max_logvar, theirs.min_logvar]
    for a, b in zip(params, given, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad.reshape(b.shape), b.grad, rtol=1e-3, atol=1e-5)


def test_predictions_are_ours_for_all_members_and_for_the_elites() -> None:
    theirs, ours = ensembles()
    data = make_data(ROWS)
    theirs.input_mean, theirs.input_std = torch.full((OBS + ACTION,), 0.3), torch.full((OBS + ACTION,), 1.7)
    theirs.elites = [5, 1, 4, 0, 2]
    scaled = {"input_mean": theirs.input_mean, "input_std": theirs.input_std, "elites": torch.tensor(theirs.elites)}
    state = ours.state_dict()
    ours.load_state_dict(state | {name: value.reshape(state[name].shape) for name, value in scaled.items()})
    for model, view in ((theirs, ours), (theirs.only_elites(), ours.elite_view())):
        mean, std = model.predict(data.obs, data.action)
        with torch.no_grad():
            said = view.predict(data.obs[None], data.action[None])
        torch.testing.assert_close(said.mean[0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(said.std[0], std, rtol=1e-4, atol=1e-5)


def test_the_reference_learns_and_imagines() -> None:
    parts = reference.Reference(SIZES["small"], torch.device("cpu"))
    losses = reference.Dynamics().fit(parts.short, 5, parts.held_out)
    assert losses[-1] < losses[0] - 0.5
    before = parts.imagined.position
    added = parts.imagine(parts.dynamics, 50)
    assert 50 <= added <= 250
    assert parts.imagined.position == (before + added) % parts.imagined.capacity
