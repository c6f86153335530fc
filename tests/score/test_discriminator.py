from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from probes import random_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import generator, init_mlp
from mbrl.score.discriminator import (
    coordinates,
    discriminator_loss,
    dynamics_reward,
    gradient_penalty,
    logits,
)
from mbrl.score.rows import EnsembleRows

SEEDS = (0, 3)


def discriminators(history: int) -> list[torch.Tensor]:
    return init_mlp([5, 16, 8, 1], [generator(seed, "test") for seed in SEEDS], (history,))


def one(params: list[torch.Tensor], s: int, t: int, x: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(params), 2):
        x = x @ params[i][s, t] + params[i + 1][s, t]
        x = F.relu(x) if i + 2 < len(params) else x
    return x.squeeze(-1)


@pytest.mark.parametrize(("logit", "reward"), [(-2.0, 0.31326), (4.0, 1.31326), (1.0, 0.69315), (-9, 0.31326)])
def test_reward_of_one_discriminator(logit: float, reward: float) -> None:
    learner, expert = torch.tensor([[-2.0]]), torch.tensor([[4.0]])
    assert dynamics_reward(torch.tensor([[[logit]]]), learner, expert).item() == pytest.approx(reward, abs=1e-5)


def test_reward_of_a_history_is_that_of_a_loop() -> None:
    logit, learner = torch.randn(2, 5, 7), torch.randn(2, 5)
    expert = learner + torch.tensor([0.5, 1.0, 5e-4, -1.0, 2.0])  # two that hardly tell real from generated
    reward = dynamics_reward(logit, learner, expert, d_clip=0.7)
    for s in range(2):
        for n in range(7):
            beliefs = []
            for t in (0, 1, 4):
                low, high = learner[s, t].item(), expert[s, t].item()
                level = 2 * (min(max(logit[s, t, n].item(), low), high) - low) / (high - low + 1e-7) - 1
                beliefs.append(min(1 / (1 + math.exp(-level)), 0.7))
            assert reward[s, n].item() == pytest.approx(-math.log(1 - sum(beliefs) / 3 + 1e-9), rel=1e-5)
    assert dynamics_reward(logit, expert, expert).abs().max() < 1e-6  # nobody has anything to say


def test_stacked_discriminators_are_a_loop() -> None:
    params, x = discriminators(4), torch.randn(2, 9, 5)
    stacked = logits(params, x)
    assert stacked.shape == (2, 4, 9)
    for s in range(2):
        for t in range(4):
            torch.testing.assert_close(stacked[s, t], one(params, s, t, x[s]))


def test_loss_is_cross_entropy_less_entropy() -> None:
    params, real, generated = discriminators(1), torch.randn(2, 9, 5), torch.randn(2, 7, 5)
    loss = discriminator_loss(params, real, generated, entropy_weight=0.3)
    for s in range(2):
        a, b = one(params, s, 0, real[s]), one(params, s, 0, generated[s])
        expected = F.binary_cross_entropy_with_logits(a, torch.ones(9))
        expected += F.binary_cross_entropy_with_logits(b, torch.zeros(7))
        entropy = torch.distributions.Bernoulli(logits=torch.cat([a, b])).entropy().mean()
        torch.testing.assert_close(loss[s, 0], expected - 0.3 * entropy)


def test_gradient_penalty_is_that_of_a_double_backward() -> None:
    params = [(5 * p).requires_grad_() for p in discriminators(2)]  # slopes on both sides of 1
    x = torch.randn(2, 30, 5)
    ours = gradient_penalty(params, x)
    grads = torch.autograd.grad(ours.sum(), params, allow_unused=True)
    assert ours.shape == (2, 2)

    seen = x.unsqueeze(1).expand(-1, 2, -1, -1).clone().requires_grad_()
    h = seen
    for i in range(0, len(params), 2):
        h = h @ params[i] + params[i + 1]
        h = F.relu(h) if i + 2 < len(params) else h
    (slope,) = torch.autograd.grad(h.sum(), seen, create_graph=True)
    size = slope.norm(dim=-1)
    assert 0 < (size > 1).float().mean() < 1
    expected = F.relu(size - 1).square().mean(-1)
    torch.testing.assert_close(ours, expected)
    theirs = torch.autograd.grad(expected.sum(), params, allow_unused=True)
    for mine, reference in zip(grads[::2], theirs[::2], strict=True):  # biases have none
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("inputs", ["minmax", "standardised"])
def test_scaling(inputs: str) -> None:
    data = random_data(200)
    data = data._replace(obs=data.obs * torch.tensor([1.0, 50.0, 0.0]) + 7, next_obs=data.next_obs + 7)
    model = GaussianEnsemble(3, 2, SEEDS, members=2, elites=1, hidden=(8,))
    rows = EnsembleRows.of(data, model)
    scale = coordinates(rows, inputs)
    for s in range(2):
        own = rows.row[s]
        obs = data.obs[own]
        delta = data.next_obs[own] - obs
        seen = scale.obs(data.obs.expand(2, -1, -1))[s, own]
        acted = scale.action(data.action.expand(2, -1, -1))[s, own]
        changed = scale.delta(rows.delta.expand(2, -1, -1))[s, own]
        low, high = obs.amin(0), obs.amax(0)
        if inputs == "minmax":
            reached = torch.stack([seen.amin(0), seen.amax(0)])
            torch.testing.assert_close(reached[:, :2], torch.tensor([[-0.8] * 2, [0.8] * 2]))
            torch.testing.assert_close(torch.stack([acted.amin(0), acted.amax(0)])[1], torch.ones(2))
            torch.testing.assert_close(changed[:, :2], 0.8 * delta[:, :2] / (0.5 * (high - low))[:2])
        else:
            torch.testing.assert_close(seen.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
            torch.testing.assert_close(acted.std(0, correction=0), torch.ones(2))
            torch.testing.assert_close(changed, delta / delta.std(0, correction=0))
        assert torch.equal(seen[:, 2], torch.zeros(len(own)))  # constant: no division by its range
        # A state is near the data up to 1.5 / 0.8 of its half range from the middle.
        edge = 0.5 * (low + high) + 0.5 * (high - low) * 1.5 / 0.8 * torch.tensor([1.0, 0, 0])
        here = torch.stack([edge - torch.tensor([0.01, 0, 0]), edge + torch.tensor([0.01, 0, 0])])
        assert scale.inside(scale.obs(here.expand(2, -1, -1)))[s].tolist() == [True, False]
    step = scale.step(scale.obs(data.obs.expand(2, -1, -1)), scale.delta(rows.delta.expand(2, -1, -1)))
    torch.testing.assert_close(step, scale.obs(data.next_obs.expand(2, -1, -1)), rtol=1e-4, atol=1e-4)
