"""What the six penalties are judged by, on numbers that can be worked out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mbrl.diagnose_penalties import (
    Steps,
    _interval,
    agreement,
    applicable,
    average_precision,
    by_depth,
    first,
    judge,
    names,
    nearest,
    subset,
)
from mbrl.nets import generator
from mbrl.types import Guess


def test_agreement_of_ten_errors_by_hand() -> None:
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]).double()
    right, turned = error.square(), error.flip(0)
    swapped = error.clone()
    swapped[8:] = torch.tensor([10.0, 9.0]).double()  # ranks 9 and 10 exchanged: 1 - 6 * 2 / (10 * 99)
    found = agreement(torch.stack([right, turned, swapped]), error)
    assert found["spearman"].tolist() == pytest.approx([1.0, -1.0, 1 - 12 / 990])
    # Squares: the covariance 1/10 sum n^3 - 5.5 * 38.5 over the stds of n and n^2.
    pearson = (302.5 - 5.5 * 38.5) / math.sqrt(8.25 * (2533.3 - 38.5**2))
    assert found["pearson"].tolist() == pytest.approx([pearson, -1.0, 1 - 2 / 2 / 82.5])
    assert found["log_pearson"][0].item() == pytest.approx(1.0)
    # The worst tenth is the one error of 10: above all others, below all, above all but one of nine.
    assert found["auroc"].tolist() == pytest.approx([1.0, 0.0, 8 / 9])


def test_average_precision_by_hand() -> None:
    positive = torch.tensor([True, False, True, False])
    # Order by doubt: hit, miss, hit, miss: precisions 1 and 2/3, half of the recall each.
    assert average_precision(torch.tensor([[0.9, 0.5, 0.4, 0.1]]), positive).tolist() == [pytest.approx(5 / 6)]
    # All equal: one threshold, whose precision is the share of positives.
    assert average_precision(torch.zeros(1, 4), positive).tolist() == [0.5]
    assert average_precision(torch.tensor([[0.1, 0.9, 0.2, 0.8]]), positive).tolist() == [
        pytest.approx((1 / 3 + 2 / 4) / 2)
    ]


def test_nearest_rows_leave_out_one_s_own() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert nearest(torch.tensor([[0.0, 3.0]]), rows).tolist() == [2.0]
    assert nearest(rows, rows).tolist() == [0.0, 0.0, 0.0]
    assert nearest(rows, rows, torch.arange(3)).tolist() == pytest.approx([1.0, math.sqrt(18.0), 1.0])


def steps(off: Tensor, std: Tensor, known: Tensor | None = None, members: int = 4) -> Steps:
    """L trajectories of T steps in one dimension: the mean is `off` (L, T) from the truth, all members have `std`."""
    lanes, depth = off.shape
    mean = torch.zeros(1, members, lanes * depth, 2)
    mean[..., 0] = off.flatten()
    zeros = torch.zeros(1, lanes * depth, 1)
    guess = Guess(
        mean, std.flatten().view(1, 1, -1, 1).expand_as(mean).clone(), zeros, torch.zeros(1, lanes * depth).long()
    )
    known = torch.ones(1, lanes, depth, dtype=torch.bool) if known is None else known
    return Steps("planted", zeros, zeros, zeros, known, guess, torch.tensor([[0, 1]]))


def test_a_doubt_that_is_the_error_is_perfect_and_what_is_not_known_does_not_count() -> None:
    error = torch.rand(30, 4) + 0.1
    known = torch.ones(1, 30, 4, dtype=torch.bool)
    known[0, :10, 2:] = False
    doubt = error.clone()
    doubt[:10, 2:] = -error[:10, 2:] + 5.0
    planted = steps(error, doubt, known)
    found = judge(planted, torch.full((1, 1, 1), 2.0), resamples=20)
    assert found["rows"] == [100]
    for name in ("max_aleatoric", "ensemble_std"):
        row = found["mean"][name]
        for measure in ("spearman", "pearson", "log_pearson", "auroc"):
            assert [row[measure][key] for key in ("value", "low", "high")] == pytest.approx([1.0] * 3, abs=1e-5)
        assert row["spearman"]["over_reference"]["value"] == pytest.approx(0.0, abs=1e-5)
    # In units of the scale, and of the elites' mean; the sample was the truth.
    torch.testing.assert_close(planted.error(torch.full((1, 1, 1), 2.0), "mean")[0].float(), error / 2)
    assert planted.error(torch.ones(1, 1, 1), "sample").abs().max() == 0.0


def test_an_interval_is_of_the_resamples_alone() -> None:
    found = _interval(torch.cat([torch.tensor([77.0]), torch.arange(101.0)]))
    assert found == pytest.approx({"value": 77.0, "low": 2.5, "high": 97.5})


def test_noise_has_intervals_and_what_is_ahead_of_the_reference_says_by_how_much() -> None:
    source = torch.Generator().manual_seed(2)
    error, jitter = torch.rand((40, 5), generator=source) + 0.1, torch.rand((2, 40, 5), generator=source)
    planted = steps(error, error + 2 * jitter[0])
    planted.guess.mean[0, 2, :, 0] += (error + jitter[1]).flatten()  # no elite: what members differ by, not the error
    found = judge(planted, torch.ones(1, 1, 1), resamples=200)["mean"]
    for row in found.values():
        for measure in ("spearman", "pearson", "log_pearson", "auroc"):
            assert row[measure]["low"] < row[measure]["value"] < row[measure]["high"]
    worse, better = found["max_aleatoric"]["spearman"], found["max_pairwise"]["spearman"]
    assert better["value"] > worse["value"] + 0.1
    ahead = better["over_reference"]
    assert ahead["value"] == pytest.approx(better["value"] - worse["value"])
    assert ahead["low"] < ahead["value"] < ahead["high"]
    assert [worse["over_reference"][key] for key in ("value", "low", "high")] == [0.0] * 3


def test_by_depth_tells_growth_from_ranking() -> None:
    # Doubt grows with depth as the error does, and within a step says the opposite.
    source = torch.Generator().manual_seed(1)
    jitter = torch.rand((40, 1), generator=source)
    depth = torch.tensor([1.0, 10.0, 100.0])
    known = torch.ones(1, 40, 3, dtype=torch.bool)
    known[0, 10:, 2] = False
    planted = steps(depth * (1 + jitter), depth * (2 - jitter), known)
    found = by_depth(planted, torch.ones(1, 1, 1), first(planted, 1))
    assert found["left"] == pytest.approx([1.0, 1.0, 0.25])
    assert found["max_aleatoric"]["spearman"][:2] == pytest.approx([-1.0, -1.0], abs=1e-6)
    assert judge(planted, torch.ones(1, 1, 1), 20)["mean"]["max_aleatoric"]["spearman"]["value"] > 0.4
    assert found["error_growth"]["mean"][1] > 9
    assert found["error"]["mean"][1] == pytest.approx(10 * found["error"]["mean"][0], rel=1e-5)
    assert found["max_aleatoric"]["median"][1] == pytest.approx(10 * found["max_aleatoric"]["median"][0], rel=1e-5)
    assert math.isnan(found["max_aleatoric"]["median"][2])  # ten trajectories are too few
    assert first(planted, 1).known.sum() == 40


def test_a_subset_is_an_ensemble_of_its_own() -> None:
    planted = steps(torch.ones(5, 2), torch.ones(5, 2), members=5)
    for i in range(5):
        planted.guess.mean[0, i] = float(i)
    planted.guess.std[:] = 1e-6
    smaller = subset(planted, torch.tensor([[4, 1]]), [generator(0, "test")])
    assert smaller.guess.mean.shape == (1, 2, 10, 2)
    assert smaller.elites.tolist() == [[0, 1]]
    taken = torch.tensor([4.0, 1.0])[smaller.guess.member]
    torch.testing.assert_close(smaller.guess.next_obs[..., 0], taken, atol=1e-4, rtol=0)
    torch.testing.assert_close(smaller.error(torch.ones(1, 1, 1), "mean"), torch.full((1, 5, 2), 2.5).double())


def test_a_single_model_is_judged_by_what_it_has() -> None:
    assert names(1) == ["max_aleatoric", "ensemble_std", "ensemble_variance"]
    assert len(applicable(2)) == 6
    alone = replace(steps(torch.rand(30, 2), torch.rand(30, 2), members=1), elites=torch.tensor([[0]]))
    found = judge(alone, torch.ones(1, 1, 1), 5)
    assert list(found["mean"]) == names(1)
