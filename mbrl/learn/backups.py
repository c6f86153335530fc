"""How the critics' opinions of the next state become one value: next_q (*, E, B) -> (*, B)."""

from __future__ import annotations

from torch import Tensor


def minimum(next_q: Tensor) -> Tensor:
    """Clipped double Q (Fujimoto et al. 2018) for two critics; SAC-N's and RAVL's pessimism for more."""
    return next_q.amin(-2)
