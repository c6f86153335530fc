from __future__ import annotations

import math

import pytest
import torch

from mbrl.edge.measure import auroc, auroc_interval, mean_interval


def test_auroc_counts_pairs_and_half_the_ties() -> None:
    positive, negative = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([1.0, 2.0])
    # 1: a tie and a loss; 3 and 5: two wins each.
    assert float(auroc(positive, negative)) == pytest.approx((0.5 + 2 + 2) / 6)
    assert float(auroc(negative, positive)) == pytest.approx(1 - 4.5 / 6)
    both = auroc(torch.stack([positive, negative.new_zeros(3)]), negative.expand(2, -1))
    assert both.tolist() == pytest.approx([0.75, 0.0])


def test_auroc_interval_holds_the_mean_and_shrinks_with_data() -> None:
    g = torch.Generator().manual_seed(0)
    few, many = (torch.randn(5, n, generator=g) for n in (40, 4000))
    widths = []
    for rows in (few, many):
        mean, low, high = auroc_interval(rows + 1.0, -rows, torch.Generator().manual_seed(1), resamples=200)
        assert low < mean < high
        # Of N(1, 1) against N(0, 1) it is Phi(1 / sqrt 2) = 0.760.
        assert low - 0.02 < 0.760 < high + 0.02
        widths.append(high - low)
    assert widths[1] < 0.3 * widths[0]


def test_the_interval_of_a_mean_is_students() -> None:
    mean, half = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    # Standard error sqrt(2.5 / 5), 4 degrees of freedom.
    assert (mean, half) == pytest.approx((3.0, 2.776 * math.sqrt(0.5)))
    assert math.isnan(mean_interval(torch.tensor([1.0]))[1])
