"""How several critics' opinions become one value: in the Bellman target, and for the actor.

A backup takes next_q (*, E, B) and, if it is a matter of chance, noise; its `objective` takes q (*, E, B). Both return
(*, B).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Minimum:
    """The lowest opinion: clipped double Q (Fujimoto et al. 2018) for two critics, SAC-N (An et al. 2021) for more."""

    def noise_size(self, critics: int) -> int:
        """None."""
        return 0

    def __call__(self, next_q: Tensor, noise: Tensor) -> Tensor:
        """next_q (*, E, B) -> its minimum over critics (*, B)."""
        return next_q.amin(-2)

    def objective(self, q: Tensor) -> Tensor:
        """The same of q (*, E, B), as the actor sees it."""
        return q.amin(-2)


minimum = Minimum()  # the learner's default; run directories from before backups were classes name it


class LowerConfidenceBound:
    """mean - coefficient * std over critics, for target and actor.

    The std is that of the critics at hand (divided by E, not E - 1): a single critic has none, and with two critics and
    a coefficient of 1 this is the minimum. Unlike the minimum it does not become more pessimistic with every critic
    added: of E independent normal opinions the minimum is on average 1.54 stds below the mean for E = 10 and 2.25 for
    E = 50, by Royston's (1982) formula, which An et al. (2021) cite.

    Args:
        coefficient: at least 0.
    """

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def noise_size(self, critics: int) -> int:
        """None."""
        return 0

    def __call__(self, next_q: Tensor, noise: Tensor) -> Tensor:
        """next_q (*, E, B) -> its bound (*, B)."""
        return self.objective(next_q)

    def objective(self, q: Tensor) -> Tensor:
        """The same of q (*, E, B), as the actor sees it."""
        std, mean = torch.std_mean(q, -2, correction=0)
        return mean - self.coefficient * std


class RandomPair:
    """REDQ (Chen et al. 2021, algorithm 1, M = 2): the lower of two critics, drawn afresh for every update.

    All rows of an update ask the same pair, each seed its own, and every pair of different critics is equally likely.
    The actor maximises the mean over all critics.
    """

    def noise_size(self, critics: int) -> int:
        """A number for each critic: the two largest win.

        Raises:
            ValueError: there is no pair.
        """
        if critics < 2:
            raise ValueError(f"learner.critics={critics}: backup=random_pair needs 2 critics or more")
        return critics

    def __call__(self, next_q: Tensor, noise: Tensor) -> Tensor:
        """next_q (*, E, B), noise (*, E) -> the pair's minimum (*, B)."""
        pair = noise.topk(2).indices.unsqueeze(-1)  # (*, 2, 1)
        return next_q.take_along_dim(pair, -2).amin(-2)

    def objective(self, q: Tensor) -> Tensor:
        """The mean of q (*, E, B) over critics."""
        return q.mean(-2)
