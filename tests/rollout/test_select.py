from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbrl.rollout.select import RandomElite
from mbrl.types import Prediction

LANES = 20_000


def select(elites: list[list[int]], std: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Member e of seed s says 100 s + e in both observation dimensions and 1000 s + e of the reward."""
    seeds, members = len(elites), 5
    mean = torch.zeros(seeds, members, LANES, 3)
    for s in range(seeds):
        for e in range(members):
            mean[s, e, :, :2] = 100 * s + e
            mean[s, e, :, 2] = 1000 * s + e
    obs, action = torch.zeros(seeds, LANES, 2), torch.zeros(seeds, LANES, 1)
    noise, uniform = torch.randn(seeds, LANES, 3), torch.rand(seeds, LANES)
    return RandomElite()(
        obs, action, Prediction(mean, torch.full_like(mean, std)), torch.tensor(elites), noise, uniform
    )


def test_only_elites_are_chosen_and_uniformly() -> None:
    elites = [[4, 1, 2], [0, 3, 1]]
    next_obs, reward, score = select(elites)
    assert next_obs.shape == (2, LANES, 2)
    assert reward.shape == score.shape == (2, LANES)
    for s in range(2):
        chosen = next_obs[s, :, 0] - 100 * s
        assert set(chosen.tolist()) == set(map(float, elites[s]))
        counts = torch.stack([(chosen == e).sum() for e in elites[s]]).double()
        chi_square = ((counts - LANES / 3).square() / (LANES / 3)).sum().item()
        assert chi_square < 13.8  # 2 degrees of freedom: 99.9 %
        assert torch.equal(next_obs[s, :, 1] - 100 * s, chosen)  # one member for the whole row
        assert torch.equal(reward[s] - 1000 * s, chosen)
    assert score.abs().max().item() == 0.0
    assert not torch.equal(next_obs[0] - 0, next_obs[1] - 100)  # seeds choose for themselves


def test_samples_have_the_members_mean_and_std() -> None:
    next_obs, reward, _ = select([[3], [3]], std=0.5)
    for s in range(2):
        for column, centre in (
            (next_obs[s, :, 0], 100 * s + 3),
            (next_obs[s, :, 1], 100 * s + 3),
            (reward[s], 1000 * s + 3),
        ):
            assert column.mean().item() == pytest.approx(centre, abs=0.02)
            assert column.std().item() == pytest.approx(0.5, rel=0.03)
        columns = torch.stack([next_obs[s, :, 0], next_obs[s, :, 1], reward[s]])
        assert (torch.corrcoef(columns) - torch.eye(3)).abs().max().item() < 0.03


def test_a_uniform_number_of_almost_one_is_the_last_elite() -> None:
    mean = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 2, 2).clone()
    uniform = torch.tensor([[0.0, 1.0 - 2.0**-24]])
    next_obs, _, _ = RandomElite()(
        torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), Prediction(mean, torch.zeros_like(mean)),
        torch.tensor([[2, 0, 4]]), torch.zeros(1, 2, 2), uniform,
    )  # fmt: skip
    assert next_obs.flatten().tolist() == [2.0, 4.0]
    assert RandomElite().noise_size(12) == 12
