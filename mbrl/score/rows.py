"""The rows that a score is fitted on, and by how much the members that have not seen a row are wrong about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.dynamics.ensemble import FitStopped, GaussianEnsemble, scaler
from mbrl.types import Transition

CHUNK = 4096  # rows that a prediction is made for at once


@dataclass(frozen=True)
class EnsembleRows:
    """The rows that each seed's ensemble was fitted on, and those that it has held out.

    Attributes:
        obs: (N, O), shared by the seeds, as are the next three.
        action: (N, A).
        delta: (N, O) next observation minus observation.
        row: (S, T) which of the N rows each seed has.
        held: (S, H) which rows each seed has held out.
        unseen: (S, E, T) bool: the row is not in the member's bootstrap; where every member has seen a row, all are
            asked nevertheless.
    """

    obs: Tensor
    action: Tensor
    delta: Tensor
    row: Tensor
    held: Tensor
    unseen: Tensor

    @classmethod
    def of(cls, data: Transition, model: GaussianEnsemble) -> EnsembleRows:
        """Rows (N, .) and the ensemble that was fitted on them; which row is whose is a function of the seed alone."""
        split = model.split(data.obs.shape[0])
        seen = torch.zeros((*split.bootstrap.shape[:2], data.obs.shape[0]), dtype=torch.bool)
        seen.scatter_(-1, split.bootstrap.long(), True)
        own = split.train.cpu().unsqueeze(-2).expand(-1, model.members, -1)
        unseen = ~seen.gather(-1, own)
        unseen |= ~unseen.any(-2, keepdim=True)
        device = model.device
        obs, action, next_obs = (x.to(device) for x in (data.obs, data.action, data.next_obs))
        return cls(obs, action, next_obs - obs, split.train.to(device), split.holdout.to(device), unseen.to(device))

    def at(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, action and change (S, B, .) at positions (S, B) below T."""
        row = self.row.gather(-1, position)
        return self.obs[row], self.action[row], self.delta[row]

    def held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, action and change (S, H, .) of the rows that no member has seen."""
        return self.obs[self.held], self.action[self.held], self.delta[self.held]

    def delta_std(self) -> Tensor:
        """Standard deviation of the change over each seed's rows (S, 1, O); 1 for what hardly changes."""
        return torch.stack([scaler(self.delta.index_select(0, row))[1] for row in self.row]).unsqueeze(-2)

    @torch.no_grad()
    def out_of_bag_samples(self, model: GaussianEnsemble, position: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        """Next observations that members make up who have not seen the row.

        Args:
            model: the ensemble.
            position: (S, B) below T.
            uniform: (S, K, B) in [0, 1), chooses the member.
            noise: (S, K, B, O) standard normal.

        Returns:
            (S, K, B, O).
        """
        obs, action, _ = self.at(position)
        mean, std = (x[..., :-1] for x in model.predict(obs, action))  # (S, E, B, O)
        count = torch.take_along_dim(self.unseen, position.unsqueeze(-2), -1).cumsum(-2)  # (S, E, B)
        wanted = (uniform * count[:, -1:]).long() + 1
        member = (count.unsqueeze(-3) < wanted.unsqueeze(-2)).sum(-2)[..., None]  # (S, K, B, 1)
        return torch.take_along_dim(mean, member, -3) + torch.take_along_dim(std, member, -3) * noise

    @torch.no_grad()
    def out_of_bag_residual(self, model: GaussianEnsemble, should_stop: Callable[[], bool]) -> Tensor:
        """Next observation minus the average of the members that have not seen the row: (S, T, O).

        Raises:
            FitStopped: `should_stop` said so.
        """
        parts = []
        for begin in range(0, self.row.shape[-1], CHUNK):
            if should_stop():
                raise FitStopped
            chunk = slice(begin, begin + CHUNK)
            row = self.row[:, chunk]
            obs = self.obs[row]
            means = model.predict(obs, self.action[row]).mean[..., :-1]  # (S, E, B, O)
            weight = self.unseen[..., chunk, None].to(means.dtype)
            parts.append(obs + self.delta[row] - (weight * means).sum(-3) / weight.sum(-3))
        return torch.cat(parts, -2)


def at_rows(table: Tensor, position: Tensor) -> Tensor:
    """Rows of a table (S, T, D) at positions (S, B): (S, B, D)."""
    return torch.take_along_dim(table, position.unsqueeze(-1), -2)


def root_mean_square(residual: Tensor) -> Tensor:
    """Of residuals (S, T, O) for each dimension, (S, 1, O); 1 where there is none."""
    size = residual.square().mean(-2, keepdim=True).sqrt()
    return torch.where(size <= 1e-12, torch.ones_like(size), size)
