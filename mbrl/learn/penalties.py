"""What is taken off the Bellman target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.types import Batch, DynamicsModel, QFunction, StochasticPolicy


class ModelBellmanInconsistency:
    """MOBILE (Sun et al. 2023): how far the members of the model disagree about the value of the next state.

        U(s, a) = std over members of  mean over samples s' of  min_i Q'_i(s', a'),   a' ~ pi(s')

    The spread is that of the released code: unbiased, of the next value alone. The paper defines it on whole Bellman
    estimates, with the predicted reward and the discount. As in the released code a terminal row pays like any other,
    and an entropy term has no part in it. Real rows pay nothing.

    Args:
        model: all its members are asked, so that the elites should be a model of their own (`elite_view`). It may be
            fitted later.
        coefficient: beta, at least 0.
        samples: next states per member.

    Raises:
        ValueError: a model with one member has no spread.
    """

    def __init__(self, model: DynamicsModel, coefficient: float, samples: int = 10) -> None:
        if model.members < 2:
            raise ValueError(
                "the Model-Bellman inconsistency is how far several elites disagree, and dynamics.elites is "
                f"{model.members}; raise dynamics.elites (and dynamics.members) to 2 or more, or choose "
                "target_penalty=none"
            )
        self.model, self.coefficient, self.samples = model, coefficient, samples

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """A next state and an action per sample, member and row."""
        return self.samples * self.model.members * batch_size * (obs_dim + action_dim)

    @torch.no_grad()
    def __call__(self, batch: Batch, target_q: QFunction, policy: StochasticPolicy, noise: Tensor) -> Tensor:
        """coefficient * U (*, B); only the imagined rows cost anything, and the noise of the others is not used."""
        step, first = batch.transition, batch.real_rows
        prediction = self.model.predict(step.obs[..., first:, :], step.action[..., first:, :])
        mean, std = (x[..., :-1].unsqueeze(-4) for x in prediction)  # (*, 1, K, N, O)
        members, rows, obs_dim = mean.shape[-3:]
        lanes = noise.unflatten(-1, (-1, obs_dim + step.action.shape[-1]))[..., : self.samples * members * rows, :]
        lanes = lanes.unflatten(-2, (self.samples, members, rows))
        together = self._together(noise.device)
        total = torch.zeros_like(mean[..., 0, :, :, 0])
        for some in lanes.split(together, -4):
            next_obs = (mean + std * some[..., :obs_dim]).flatten(-4, -2)
            q = target_q(next_obs, policy(next_obs, some[..., obs_dim:].flatten(-4, -2)))
            total += q.amin(-2).unflatten(-1, (together, members, rows)).sum(-3)
        penalty = F.pad(self.coefficient * (total / self.samples).std(-2), (first, 0))
        # While a ring is empty, rows of the dataset stand in for imagined ones.
        return torch.where(step.real, torch.zeros_like(penalty), penalty)

    def _together(self, device: torch.device) -> int:
        """Samples worked on at once: a CPU wants what its cache holds, a GPU wants everything."""
        return 1 if device.type == "cpu" else self.samples
