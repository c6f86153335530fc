"""Where imagined actions come from."""

from __future__ import annotations

from torch import Tensor

from mbrl.types import DynamicsModel, Metrics, StochasticPolicy


class PolicyActions:
    """Samples of the current policy: Dyna as in MBPO, MOPO, MOBILE and RAVL."""

    lanes: int | None = None
    rows = 1

    def noise_size(self, obs_dim: int, action_dim: int) -> int:
        """One number per action dimension."""
        return action_dim

    def __call__(
        self, obs: Tensor, policy: StochasticPolicy, model: DynamicsModel, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """obs (S, N, O) -> action (S, N, A), and nothing to say of it."""
        return policy(obs, noise), {}
