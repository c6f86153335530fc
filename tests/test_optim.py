from __future__ import annotations

import copy

import pytest
import torch

from mbrl.optim import Adam, copy_tensors


def test_fifty_steps_equal_torch_adam() -> None:
    torch.manual_seed(0)
    start = [torch.randn(2, 3, 4, 5), torch.randn(2, 1), torch.randn(7)]
    ours, theirs = [p.clone() for p in start], [p.clone().requires_grad_() for p in start]
    optimiser, reference = Adam(ours, 3e-3), torch.optim.Adam(theirs, lr=3e-3)
    for i in range(50):
        grads = [torch.randn_like(p) * 10 ** (i % 5 - 3) for p in ours]
        optimiser.step(grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad.clone()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-6, atol=1e-7)


def test_the_step_written_out_for_compilers_is_the_same_step() -> None:
    start = torch.randn(3, 40)
    ours, theirs = start.clone(), start.clone()
    fused, written_out = Adam([ours], 3e-3), Adam([theirs], 3e-3)
    for i in range(50):
        grad = torch.randn(3, 40) * 10 ** (i % 5 - 3)
        fused.step([grad], torch.tensor(0.5))
        written_out._written_out([grad], written_out.learning_rate * 0.5)
    # 1 - 0.999^t is taken in float32 there: 6e-5 of a step at first.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(written_out.steps[0], fused.steps[0])
    assert fused.steps[0].unique().tolist() == [50]


def test_gradients_with_other_strides_are_applied_where_they_belong() -> None:
    """EDAC's sweep multiplies by transposed weights, and autograd hands their gradients back transposed in memory."""
    grad = torch.randn(2, 5, 5).transpose(-1, -2)
    param = torch.zeros(2, 5, 5)
    Adam([param], 0.1).step([grad])
    assert torch.equal(param.sign(), -grad.sign())


@pytest.mark.parametrize("shape", [(4,), (1, 6), (2, 5, 24), ()])
def test_stacked_parameters_step_as_if_alone(shape: tuple[int, ...]) -> None:
    together = torch.randn(3, *shape)
    singles = [together[i : i + 1].clone() for i in range(3)]
    stacked, apart = Adam([together], 1e-2), [Adam([single], 1e-2) for single in singles]
    for _ in range(20):
        grad = torch.randn(3, *shape)
        stacked.step([grad])
        for i, optimiser in enumerate(apart):
            optimiser.step([grad[i : i + 1]])
    for i, single in enumerate(singles):
        assert torch.equal(together[i], single[0])


def test_first_step_has_the_size_of_the_learning_rate_times_scale() -> None:
    param = torch.zeros(3)
    Adam([param], 0.1).step([torch.tensor([5.0, -1e-3, 2.0])], torch.tensor(0.25))
    torch.testing.assert_close(param, torch.tensor([-0.025, 0.025, -0.025]), rtol=1e-4, atol=0)


def test_scale_zero_leaves_the_parameters_alone_but_not_the_moments() -> None:
    param = torch.ones(2)
    optimiser = Adam([param], 0.1)
    optimiser.step([torch.ones(2)], torch.tensor(0.0))
    assert param.tolist() == [1.0, 1.0]
    assert optimiser.first[0].tolist() == pytest.approx([0.1, 0.1])


def test_state_round_trip_is_bitwise() -> None:
    grads = [torch.randn(4, 3) for _ in range(20)]
    straight = torch.zeros(4, 3)
    optimiser = Adam([straight], 1e-2)
    for grad in grads[:10]:
        optimiser.step([grad])
    saved, param = copy.deepcopy(optimiser.state_dict()), straight.clone()
    resumed = Adam([param], 1e-2)
    resumed.load_state_dict(saved)
    for grad in grads[10:]:
        optimiser.step([grad])
        resumed.step([grad])
    assert torch.equal(param, straight)


def test_copying_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="expected 2 tensors, the saved state has 1"):
        copy_tensors([torch.zeros(2), torch.zeros(1)], [torch.zeros(2)])
    with pytest.raises(ValueError, match=r"tensor 1 has shape \(3,\) in the saved state, expected \(1,\)"):
        copy_tensors([torch.zeros(2), torch.zeros(1)], [torch.zeros(2), torch.zeros(3)])
