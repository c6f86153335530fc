from __future__ import annotations

import pytest
import torch

from mbrl.nets import gaussian_policy, generator, init_mlp, squash
from mbrl.score.discriminator import Coordinates
from mbrl.score.generator import (
    advantages,
    change,
    clipped_objective,
    log_density,
    masked_mean,
    policy_log_density,
    roll,
)

SEEDS, OBS, ACTION = (0, 3), 3, 2


def network(name: str, inputs: int, outputs: int) -> list[torch.Tensor]:
    return init_mlp([inputs, 16, outputs], [generator(seed, name) for seed in SEEDS])


def scaling(limit: float) -> Coordinates:
    ones = [torch.ones(2, 1, width) for width in (OBS, OBS, ACTION, ACTION, OBS)]
    centre, action_centre = 0 * ones[0], 0 * ones[2]
    bound = torch.full((2, 1, OBS), limit)
    return Coordinates(centre, ones[1], action_centre, 0.5 * ones[3], 2 * ones[4], -bound, bound)


def test_rollout_is_that_of_a_loop_and_dead_lanes_stay_dead() -> None:
    model, policy, scale = network("g", OBS + ACTION, 2 * OBS), network("b", OBS, 2 * ACTION), scaling(4.0)
    obs, action = torch.randn(2, 6, OBS), torch.rand(2, 6, ACTION) * 2 - 1
    noise = torch.randn(2, 5, 6, OBS + ACTION)
    rollout, last = roll(model, policy, scale, obs, action, noise)
    assert rollout.inputs().shape == (2, 30, 2 * OBS + ACTION)
    died = 0
    for n in range(6):
        here, act, alive = obs[:, n : n + 1], action[:, n : n + 1], torch.ones(2, 1, dtype=torch.bool)
        for t in range(5):
            row, eps = t * 6 + n, noise[:, t, n : n + 1]
            mean, logvar = change(model, here, act / 0.5)
            delta = mean + (logvar / 2).exp() * eps[..., :OBS]
            torch.testing.assert_close(rollout.obs[:, row], here[:, 0])
            torch.testing.assert_close(rollout.action[:, row], act[:, 0] / 0.5)
            torch.testing.assert_close(rollout.delta[:, row], delta[:, 0])
            assert torch.equal(rollout.alive[:, row], alive[:, 0])
            alive = alive & ((here + 2 * delta).abs() <= 4.0).all(-1)
            here = torch.where(alive.unsqueeze(-1), here + 2 * delta, here)
            act = squash(*gaussian_policy(policy, here), eps[..., OBS:])[0]
        died += (~alive).sum().item()
        torch.testing.assert_close(last.obs[:, n], here[:, 0])
        assert torch.equal(last.alive[:, n], alive[:, 0])
    assert 0 < died < 12


def test_densities_are_torchs() -> None:
    mean, logvar, value = torch.randn(3, 4, OBS), torch.randn(3, 4, OBS), torch.randn(3, 4, OBS)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    torch.testing.assert_close(log_density(mean, logvar, value), normal.log_prob(value).sum(-1))

    params, obs = network("b", OBS, 2 * ACTION), torch.randn(2, 5, OBS)
    mean, log_std = gaussian_policy(params, obs)
    action, expected = squash(mean, log_std, torch.randn(2, 5, ACTION))
    torch.testing.assert_close(policy_log_density(params, obs, action), expected, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(policy_log_density(params, obs, torch.ones(2, 5, ACTION))).all()


def test_advantages_are_the_sum_written_out() -> None:
    reward, value = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    follows = torch.rand(2, 4, 3) > 0.3
    ours = advantages(reward, value, follows, discount=0.9, trace=0.8)
    for s in range(2):
        for n in range(3):
            for t in range(4):
                total, weight = 0.0, 1.0
                for k in range(t, 4):
                    ahead = value[s, k + 1, n].item() if follows[s, k, n] else 0.0
                    total += weight * (reward[s, k, n].item() + 0.9 * ahead - value[s, k, n].item())
                    if not follows[s, k, n]:
                        break
                    weight *= 0.9 * 0.8
                assert ours[s, t, n].item() == pytest.approx(total, abs=1e-5)


def test_objective_gains_nothing_beyond_the_clip() -> None:
    log_ratio = torch.tensor([2.0, -2.0, 2.0, -2.0]).log1p().nan_to_num(-2.0)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    objective = clipped_objective(log_ratio, advantage)
    ratio = log_ratio.exp()
    assert objective.tolist() == pytest.approx([1.2, ratio[1].item(), -ratio[2].item(), -0.8])
    mask = torch.tensor([[True, False, True]])
    assert masked_mean(torch.tensor([[1.0, 100.0, 3.0]]), mask).tolist() == [2.0]
