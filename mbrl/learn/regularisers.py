"""Terms added to the critic loss, from a forward pass of the critics on the batch's own actions -> (S,)."""

from __future__ import annotations

from torch import Tensor

from mbrl.nets import CriticPass


class Diversity:
    """EDAC's penalty on critics whose action gradients point the same way (An et al. 2021, equation 4).

    weight * mean over rows of  sum_{i != j} <g_i, g_j> / (E - 1),  with g_i = dQ_i/da, normalised. It is 0 where the
    gradients are orthogonal and `weight * E` where they are equal.

    Args:
        weight: eta.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, opinion: CriticPass) -> Tensor:
        """The penalty of every seed."""
        gradient = opinion.action_gradient()  # (S, E, B, A)
        unit = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)
        # sum_{i != j} <g_i, g_j> = |sum_i g_i|^2 - sum_i |g_i|^2: linear in the number of critics, not quadratic.
        same = unit.sum(-3).square().sum(-1) - unit.square().sum((-3, -1))  # (S, B)
        term: Tensor = self.weight * same.mean(-1) / max(gradient.shape[-3] - 1, 1)
        return term
