"""The explicit reverse sweep is the double backward, and the diversity term is 0 and maximal where it should be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.nets import CriticPass, Params, criticise, generator, init_mlp, q_values
from mbrl.types import Batch, Transition

SEEDS, CRITICS, ROWS, Z, ACTIONS = 2, 5, 7, 4, 3


def critics(hidden: tuple[int, ...] = (16, 16, 16)) -> tuple[Params, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    params = init_mlp([Z + ACTIONS, *hidden, 1], [generator(s, "critics") for s in range(SEEDS)], (CRITICS,))
    z, action = torch.randn(SEEDS, ROWS, Z, generator=g), torch.rand(SEEDS, ROWS, ACTIONS, generator=g) * 2 - 1
    return params, z, action


def autograd_action_gradient(params: Params, z: Tensor, action: Tensor) -> Tensor:
    """The reference: one copy of the actions per critic, differentiated with a graph."""
    each = action.unsqueeze(1).expand(-1, CRITICS, -1, -1).clone().requires_grad_()
    x = torch.cat([z.unsqueeze(1).expand(-1, CRITICS, -1, -1), each], -1)
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        if i < len(params) - 2:
            x = torch.relu(x)
    (gradient,) = torch.autograd.grad(x.sum(), each, create_graph=True)
    return gradient


def opinion_with(gradient: Tensor) -> CriticPass:
    class Fixed(CriticPass):
        def action_gradient(self) -> Tensor:
            return gradient

    return Fixed([], gradient, gradient, [], gradient)


@pytest.mark.parametrize("hidden", [(16,), (16, 16), (16, 8, 16)])
def test_the_sweep_is_the_gradient(hidden: tuple[int, ...]) -> None:
    params, z, action = critics(hidden)
    swept = criticise(params, z, action).action_gradient()
    assert swept.shape == (SEEDS, CRITICS, ROWS, ACTIONS)
    torch.testing.assert_close(swept, autograd_action_gradient(params, z, action), rtol=1e-5, atol=1e-6)


def test_the_sweep_is_each_member_s_own_gradient() -> None:
    params, z, action = critics()
    swept = criticise(params, z, action).action_gradient()

    def value(action: Tensor, z: Tensor, s: int, e: int) -> Tensor:
        """Of one row (A,), (Z,) by critic e of seed s alone."""
        return q_values([p[s, e : e + 1] for p in params], z[None], action[None])[0, 0]

    for s in range(SEEDS):
        for e in range(CRITICS):
            each = torch.func.vmap(torch.func.grad(value), in_dims=(0, 0, None, None))(action[s], z[s], s, e)
            torch.testing.assert_close(swept[s, e], each, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_term_is_the_double_backward() -> None:
    params, z, action = critics()
    params = [p.requires_grad_() for p in params]
    term = Diversity(1.0)
    ours = torch.autograd.grad(term(criticise(params, z, action)).sum(), params, allow_unused=True)
    reference = autograd_action_gradient(params, z, action)
    theirs = torch.autograd.grad(term(opinion_with(reference)).sum(), params, allow_unused=True)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):  # the last bias does not matter to a gradient
        if mine is None or other is None:  # a gradient of nothing but zeros may be missing in either
            assert all(g is None or not g.any() for g in (mine, other))
        else:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_pass_that_keeps_its_activations_has_the_same_values() -> None:
    params, z, action = critics()
    assert torch.equal(criticise(params, z, action).values, q_values(params, z, action))


def test_orthogonal_gradients_cost_nothing_and_equal_ones_the_most() -> None:
    orthogonal = torch.eye(3).reshape(1, 3, 1, 3)  # three critics, each along its own action
    assert Diversity(2.0)(opinion_with(orthogonal)).tolist() == pytest.approx([0.0], abs=1e-6)
    equal = torch.tensor([3.0, 4.0]).expand(1, 4, 6, 2)
    # sum over i != j of 1 is 4 * 3; divided by 3: the number of critics.
    assert Diversity(2.0)(opinion_with(equal)).tolist() == pytest.approx([8.0])
    opposite = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])
    assert Diversity(1.0)(opinion_with(opposite)).tolist() == pytest.approx([-2.0])


def test_the_sum_over_pairs_is_that_of_a_loop() -> None:
    params, z, action = critics()
    opinion = criticise(params, z, action)
    unit = torch.nn.functional.normalize(opinion.action_gradient(), dim=-1)
    pairs = sum((unit[:, i] * unit[:, j]).sum(-1).mean(-1) for i in range(CRITICS) for j in range(CRITICS) if i != j)
    assert isinstance(pairs, Tensor)
    torch.testing.assert_close(Diversity(0.5)(opinion), 0.5 * pairs / (CRITICS - 1), rtol=1e-4, atol=1e-6)


def test_diversity_spreads_the_gradients_of_a_learner() -> None:
    def spread(weight: float) -> float:
        g = torch.Generator().manual_seed(0)
        learner = SAC(Z, ACTIONS, [0], critics=4, hidden=(32, 32), regularisers=[Diversity(weight)])
        rows = [torch.randn(1, 64, Z, generator=g) for _ in range(2)]
        action = torch.rand(1, 64, ACTIONS, generator=g) * 2 - 1
        done = torch.zeros(1, 64, dtype=torch.bool)
        batch = Batch(Transition(rows[0], action, action.sum(-1), rows[1], done, ~done), 64)
        for i in range(150):
            noise = torch.randn(1, learner.noise_size(64), generator=torch.Generator().manual_seed(i))
            learner.update(batch, noise, torch.tensor(0.0))
        return float(Diversity(1.0)(criticise(learner.critics, rows[0], action)))

    assert spread(5.0) < 0.6 * spread(0.0)


@pytest.mark.parametrize("hidden", [(16,), (16, 8, 16)])
def test_the_sweep_goes_through_layer_normalisation(hidden: tuple[int, ...]) -> None:
    params, z, action = critics(hidden)

    def total(action_of_each: Tensor, params: Params) -> Tensor:  # (S, E, B, A): one copy of the actions per critic
        x = torch.cat([z.unsqueeze(1).expand(-1, CRITICS, -1, -1), action_of_each], -1)
        for i in range(0, len(params) - 2, 2):
            x = torch.relu(F.layer_norm(x @ params[i] + params[i + 1], params[i].shape[-1:]))
        return (x @ params[-2] + params[-1]).sum()

    each = action.unsqueeze(1).expand(-1, CRITICS, -1, -1)
    opinion = criticise(params, z, action, layer_norm=True)
    torch.testing.assert_close(opinion.action_gradient(), torch.func.grad(total)(each, params), rtol=1e-4, atol=1e-6)

    # And the gradient of the term in the parameters is the double backward.
    def ours(params: Params) -> Tensor:
        return Diversity(1.0)(criticise(params, z, action, layer_norm=True)).sum()

    def theirs(params: Params) -> Tensor:
        return Diversity(1.0)(opinion_with(torch.func.grad(total)(each, params))).sum()

    for mine, other in zip(torch.func.grad(ours)(params), torch.func.grad(theirs)(params), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_a_normalised_pass_that_keeps_its_activations_has_the_same_values() -> None:
    params, z, action = critics()
    assert torch.equal(
        criticise(params, z, action, layer_norm=True).values, q_values(params, z, action, layer_norm=True)
    )
