from __future__ import annotations

import pytest
import torch
from probes import random_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.score.baselines import LogLikelihood
from mbrl.score.quality import held_out_ranking, paired_interval, rank_correlation, ranking_quality, ranks

ERRORS = torch.tensor([[[1.0, 4.0], [2.0, 8.0], [3.0, 12.0]]])  # (S, K, N) = (1, 3, 2)


def test_a_perfect_and_a_wrong_score() -> None:
    best, worst = ranking_quality(-ERRORS, ERRORS), ranking_quality(ERRORS, ERRORS)
    assert best["ratio"].item() == pytest.approx(0.5)  # (1 + 4) / (2 + 8)
    assert worst["ratio"].item() == pytest.approx(1.5)
    assert (best["within"].item(), worst["within"].item()) == (1.0, -1.0)
    assert best["across"].item() == 1.0


def test_ratio_and_the_same_state_by_state() -> None:
    values = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # chooses errors 2 and 12
    quality = ranking_quality(values, ERRORS)
    assert quality["ratio"].item() == pytest.approx(14 / 10)
    assert quality["pn"].item() == pytest.approx((2 / 2 + 12 / 8) / 2)
    assert quality["across"].item() == 0.0  # both chosen ones have score 1


def test_equal_numbers_share_their_rank() -> None:
    assert ranks(torch.tensor([5.0, 1.0, 5.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    x, y = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    a, b = torch.tensor([0.0, 1.5, 1.5, 3.0]), torch.tensor([0.0, 2.0, 1.0, 3.0])
    expected = torch.corrcoef(torch.stack([a, b]))[0, 1]
    torch.testing.assert_close(rank_correlation(x, y), expected)
    stacked = rank_correlation(torch.stack([x, y]), torch.stack([y, x]))
    torch.testing.assert_close(stacked, expected.expand(2))


def test_interval_is_of_the_paired_difference() -> None:
    torch.manual_seed(3)
    errors = torch.rand(2, 4, 400) + 0.5
    low, high = paired_interval(-errors, torch.rand_like(errors), errors, (0, 1))
    assert (high < 0).all()
    difference = ranking_quality(-errors, errors)["ratio"] - 1.0  # a random choice has ratio 1
    assert (low < difference).all()
    assert (difference < high + 0.03).all()
    low, high = paired_interval(-errors, -errors, errors, (0, 1))
    assert (low.tolist(), high.tolist()) == ([0.0, 0.0], [0.0, 0.0])
    one = paired_interval(-errors[1:], errors[1:], errors[1:], (1,))
    torch.testing.assert_close(torch.stack(one), torch.stack(paired_interval(-errors, errors, errors, (0, 1)))[:, 1:])


def test_held_out_ranking_knows_its_baselines() -> None:
    data = random_data(600)
    model = GaussianEnsemble(3, 2, (0, 1), members=3, elites=2, hidden=(16,), max_epochs=3)
    model.fit(data)
    found = held_out_ranking({"log_likelihood": LogLikelihood()}, model, data)
    assert set(found) == {"closest_to_mean", "log_likelihood", "random"}
    assert all(value.shape == (2,) for metrics in found.values() for value in metrics.values())
    assert (found["random"]["ratio"] - 1).abs().max() < 0.15
    assert (found["closest_to_mean"]["ratio"] < 1).all()
    assert found["closest_to_mean"]["high"].tolist() == [0.0, 0.0]
