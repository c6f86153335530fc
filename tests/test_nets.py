from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from mbrl.nets import (
    bfloat16_speedup,
    gaussian_policy,
    generator,
    init_mlp,
    linear,
    mlp,
    normal_init,
    q_values,
    rand,
    randn,
    squash,
)


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The same layer (in, out), (1, out) as torch's own module."""
    layer = nn.Linear(weight.shape[0], weight.shape[1])
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias[0])
    return layer


@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
@pytest.mark.parametrize("shared", [True, False])
def test_stacked_layer_is_one_linear_per_member(lead: tuple[int, ...], shared: bool) -> None:
    weight, bias = torch.randn(*lead, 4, 6), torch.randn(*lead, 1, 6)
    x = torch.randn(7, 4) if shared else torch.randn(*lead, 7, 4)
    out = linear(x, weight, bias)
    assert out.shape == (*lead, 7, 6)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in lead)).view(-1, len(lead)).tolist() if lead else [[]]:
        at = tuple(index)
        expected = as_linear(weight[at], bias[at])(x if shared else x[at])
        torch.testing.assert_close(out[at], expected.detach(), rtol=1e-5, atol=1e-5)


def test_inputs_of_a_seed_go_to_all_of_its_members() -> None:
    params = init_mlp([4, 8, 2], [generator(s, "t") for s in (0, 1)], (5,))
    x = torch.randn(2, 7, 4)
    out = mlp(params, x.unsqueeze(-3))
    assert out.shape == (2, 5, 7, 2)
    for s in range(2):
        for e in range(5):
            first, second = (as_linear(params[i][s, e], params[i + 1][s, e]) for i in (0, 2))
            torch.testing.assert_close(out[s, e], second(first(x[s]).relu()).detach(), rtol=1e-5, atol=1e-5)


def test_initial_weights_are_those_of_nn_linear() -> None:
    # 23 -> 256: torch's kaiming on a stacked (members, in, out) tensor would give std 0.036 here instead of 0.120.
    members, fan_in, fan_out = 50, 23, 256
    weight, bias = init_mlp([fan_in, fan_out], [generator(0, "t")], (members,))
    plain = torch.stack([nn.Linear(fan_in, fan_out).weight.detach() for _ in range(members)])
    assert weight.std().item() == pytest.approx(plain.std().item(), rel=0.02)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)
    bound = 1 / math.sqrt(fan_in)
    assert weight.abs().max().item() <= bound
    assert bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert weight.flatten(2).std(-1).allclose(torch.tensor(1 / math.sqrt(3 * fan_in)), rtol=0.05)  # every member


def test_initial_weights_of_an_ensemble() -> None:
    params = init_mlp([17, 200, 200, 36], [generator(0, "t")], (7,), init=normal_init)
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        assert weight.std().item() == pytest.approx(1 / (2 * math.sqrt(weight.shape[-2])), rel=0.02)
        assert bias.abs().max().item() == 0.0


def test_a_seed_starts_alike_whatever_stands_beside_it() -> None:
    together = init_mlp([3, 8, 2], [generator(s, "t") for s in (4, 9)], (2,))
    alone = init_mlp([3, 8, 2], [generator(9, "t")], (2,))
    for stacked, single in zip(together, alone, strict=True):
        assert torch.equal(stacked[1:], single)
        if stacked.shape[-2] > 1:
            assert not torch.equal(stacked[0], stacked[1])
            assert not torch.equal(stacked[0, 0], stacked[0, 1])  # nor are members equal


def test_streams_are_functions_of_their_keys() -> None:
    keys: list[tuple[int | str, ...]] = [
        (0, "learner"), (1, "learner"), (0, "rollout"), (0, "rollout", 0), (0, "rollout", 1000), (10, "a"), (1, "0a"),
        *((s, "updates", b) for s in range(4) for b in range(50)),
    ]  # fmt: skip
    draws = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
    for key in keys[:3]:
        assert torch.equal(torch.rand(9, generator=generator(*key)), torch.rand(9, generator=generator(*key)))


def test_neighbouring_streams_are_uncorrelated() -> None:
    streams = torch.stack([torch.randn(4000, generator=generator(s, "updates", b)) for s in (0, 1) for b in range(10)])
    correlation = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlation.abs().max().item() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("draw", [rand, randn])
def test_row_s_comes_from_generator_s_alone(draw: object) -> None:
    assert callable(draw)
    both = draw((5, 3), [generator(s, "t") for s in (0, 1)])
    assert both.shape == (2, 5, 3)
    assert torch.equal(both[1:], draw((5, 3), [generator(1, "t")]))
    assert not torch.equal(both[0], both[1])


def test_uniform_numbers_never_reach_one() -> None:
    numbers = rand((200_000,), [generator(0, "t")], dtype=torch.float64)
    assert numbers.min().item() >= 0.0
    assert numbers.max().item() < 1.0
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)


def test_q_values_are_one_network_per_critic() -> None:
    params = init_mlp([5, 8, 1], [generator(s, "t") for s in (0, 1)], (3,))
    z, action = torch.randn(2, 6, 3), torch.randn(2, 6, 2)
    q = q_values(params, z, action)
    assert q.shape == (2, 3, 6)
    expected = mlp([p[1, 2] for p in params], torch.cat([z[1], action[1]], -1))[:, 0]
    torch.testing.assert_close(q[1, 2], expected, rtol=1e-5, atol=1e-6)


def test_log_std_is_clamped() -> None:
    bias = torch.tensor([[0.3, -0.2, -40.0, 40.0]])
    mean, log_std = gaussian_policy([torch.zeros(3, 4), bias], torch.randn(6, 3))
    assert mean[0].tolist() == pytest.approx([0.3, -0.2])
    assert log_std[0].tolist() == [-5.0, 2.0]


def test_squashed_density_is_that_of_the_transformed_normal() -> None:
    mean, log_std, noise = torch.randn(4, 9, 3).double(), torch.randn(4, 9, 3).double(), torch.randn(4, 9, 3).double()
    action, log_density = squash(mean, log_std, noise)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    u = mean + log_std.exp() * noise
    torch.testing.assert_close(action, u.tanh())
    by_hand = Normal(mean, log_std.exp()).log_prob(u) - TanhTransform().log_abs_det_jacobian(u, u.tanh())
    torch.testing.assert_close(log_density, by_hand.sum(-1))
    inside = action.abs().amax(-1) < 0.999  # where the inverse tanh of the reference is exact enough
    torch.testing.assert_close(log_density[inside], reference.log_prob(action).sum(-1)[inside], rtol=1e-6, atol=1e-6)


def test_squashed_density_stays_finite_where_tanh_saturates() -> None:
    mean = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    action, log_density = squash(mean, torch.zeros(2, 1), torch.zeros(2, 1))
    assert action.tolist() == [[1.0], [-1.0]]
    # log(1 - tanh(u)^2) -> 2 log 2 - 2 |u|
    expected = -0.5 * math.log(2 * math.pi) - (2 * math.log(2) - 60)
    assert log_density.tolist() == pytest.approx([expected] * 2, rel=1e-6)
    (slope,) = torch.autograd.grad(log_density.sum(), mean)
    assert slope.flatten().tolist() == pytest.approx([2.0, -2.0])


def test_a_cpu_that_is_slow_in_bfloat16_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = torch.bmm

    def slow(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.bfloat16:
            time.sleep(0.05)
        return multiply(a, b)

    monkeypatch.setattr(torch, "bmm", slow)
    assert bfloat16_speedup(repeats=2) < 0.9
