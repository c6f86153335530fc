"""Scores that need no training: what a trained one has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.optim import copy_tensors
from mbrl.score.fitting import ScoreReport
from mbrl.score.rows import EnsembleRows
from mbrl.types import Prediction, StateDict, Transition


def distance(candidates: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Root mean square over dimensions of (candidate - centre) / scale.

    Args:
        candidates: next observations (S, K, N, O).
        centre: (S, N, O).
        scale: (S, 1, O).

    Returns:
        (S, K, N).
    """
    return ((candidates - centre.unsqueeze(-3)) / scale.unsqueeze(-3)).square().mean(-1).sqrt()


class ClosestToMean:
    """Minus the distance to the mean of the elites, in units of the standard deviation of the data's changes.

    No trained classifier was found to choose candidates reliably better than this one, which costs nothing. It holds
    the scale alone, and `fit` measures it.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: one scale per seed, from its own training rows.
        device: where it lives.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, seeds: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> None:
        self.seeds = tuple(seeds)
        self.scale = torch.ones((len(self.seeds), 1, obs_dim), device=device)

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Shapes as in `mbrl.types.Score`; the reward is not rated."""
        centre = prediction.of(elites).mean.mean(-3)[..., :-1]
        return -distance(candidates[..., :-1], centre, self.scale)

    def fit(
        self,
        data: Transition,
        model: GaussianEnsemble,
        *,
        on_progress: Callable[[ScoreReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """One look at the rows (N, .) that `model` was fitted on: nothing to report, to stop or to resume."""
        self.scale.copy_(EnsembleRows.of(data, model).delta_std())

    def state_dict(self) -> StateDict:
        """The scale."""
        return {"scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        copy_tensors([self.scale], [state["scale"]])


class LogLikelihood:
    """Average over the elites of the log-likelihood of the next observation, in nats; the reward is not rated."""

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Shapes as in `mbrl.types.Score`."""
        mean, std = (x[..., :-1].unsqueeze(-4) for x in prediction.of(elites))  # (S, 1, k, N, O)
        z = (candidates[..., :-1].unsqueeze(-3) - mean) / std  # (S, K, k, N, O)
        return -(0.5 * z.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1).mean(-2)
