"""Which next state is believed."""

from __future__ import annotations

import torch
from torch import Tensor

from mbrl.types import Prediction


class RandomElite:
    """A sample of one elite member, drawn anew for every lane and step (MBPO's TS1 rollouts, as in MOPO)."""

    def noise_size(self, outputs: int) -> int:
        """One number per output."""
        return outputs

    def __call__(
        self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor, noise: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Only the chosen member of a lane is sampled; its trust score is 0 everywhere."""
        which = (uniform * elites.shape[-1]).long().clamp_(max=elites.shape[-1] - 1)  # (S, N)
        member = elites.gather(-1, which)  # (S, N)
        index = member[:, None, :, None].expand(-1, 1, -1, noise.shape[-1])  # (S, 1, N, O+1)
        mean = prediction.mean.gather(-3, index).squeeze(-3)
        std = prediction.std.gather(-3, index).squeeze(-3)
        drawn = mean + std * noise
        return drawn[..., :-1], drawn[..., -1], torch.zeros_like(uniform)
