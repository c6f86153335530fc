"""The observation as the learner's networks see it: obs (*, B, O) -> z (*, B, Z)."""

from __future__ import annotations

from torch import Tensor


class Identity:
    """The observation itself."""

    def size(self, obs_dim: int) -> int:
        """Z for a given O."""
        return obs_dim

    def __call__(self, obs: Tensor) -> Tensor:
        """obs (*, B, O) -> the same tensor."""
        return obs
