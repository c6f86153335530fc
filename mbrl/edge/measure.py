"""How well a number tells two groups apart, and how far a mean over few seeds is to be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; the normal one beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Area under the ROC curve: how often a positive is larger than a negative, ties counting half.

    Args:
        positive: (*, P).
        negative: (*, N).

    Returns:
        (*), float64; 0.5 is chance, NaN where one of the groups is empty.
    """
    ordered = negative.double().sort(-1).values.contiguous()
    asked = positive.double().contiguous()
    below = torch.searchsorted(ordered, asked)
    not_above = torch.searchsorted(ordered, asked, right=True)
    pairs = positive.shape[-1] * negative.shape[-1]
    return (below + not_above).double().sum(-1) / 2 / (pairs or math.nan)


def auroc_interval(
    positive: Tensor, negative: Tensor, source: torch.Generator, resamples: int = 1000
) -> tuple[float, float, float]:
    """AUROC of each seed, averaged, with a 95 % interval for another draw of both seeds and states.

    A bootstrap on two levels: seeds are drawn with replacement, and within each drawn seed its states.

    Args:
        positive: (S, P).
        negative: (S, N).
        source: of the resampling, on the CPU.
        resamples: of the bootstrap.

    Returns:
        Mean over seeds, lower and upper end.
    """
    seeds = positive.shape[0]
    means = torch.empty(resamples, dtype=torch.float64)
    for i in range(resamples):
        drawn = torch.randint(seeds, (seeds, 1), generator=source)
        rows = [torch.randint(x.shape[1], (seeds, x.shape[1]), generator=source) for x in (positive, negative)]
        means[i] = auroc(positive[drawn, rows[0]], negative[drawn, rows[1]]).mean()
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(auroc(positive, negative).mean()), low, high


def mean_interval(values: Tensor) -> tuple[float, float]:
    """Mean of values (S) of independent seeds and half the width of its 95 % t interval; NaN for a single seed."""
    seeds = values.shape[0]
    mean = float(values.double().mean())
    if seeds < 2:
        return mean, math.nan
    quantile = _T95[seeds - 2] if seeds - 2 < len(_T95) else 1.96
    return mean, quantile * float(values.double().std()) / math.sqrt(seeds)
