"""The known error of the model on its own data, learnt and added to its mean.

A Gaussian-likelihood ensemble hardly fits its mean where it predicts a large variance. What it misses there is a
function of observation and action, and the rows that a member has not been trained on show it. A small network learns
it; a candidate is believed the more, the nearer it is to the mean so corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import Params, generator, init_mlp, mlp
from mbrl.optim import copy_tensors
from mbrl.score.baselines import distance
from mbrl.score.fitting import Loss, ScoreReport, draw, train_network
from mbrl.score.rows import EnsembleRows, at_rows, root_mean_square
from mbrl.types import Prediction, StateDict, Transition


class ResidualScore:
    """Minus the log distance of a candidate to the corrected mean m + rho * h(obs, action).

    m is the mean of the elites; rho the root mean square, per dimension, of what the members that have not seen a row
    miss of it on average; h a network that predicts this miss in units of rho. The distance is the root mean square
    over dimensions in units of the standard deviation of the data's changes, so that the score is comparable across
    states: it is the log of an expected error.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: one network per seed, fitted to the residuals of that seed's ensemble.
        hidden: widths of the hidden layers (SiLU).
        learning_rate: of Adam; it falls to 2 % along a half cosine.
        steps: of the fit.
        batch_size: rows per step and seed.
        device: where everything lives.
    """

    NEAREST = 1e-8  # distances below count as this one, so that the score is finite

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256, 256),
        learning_rate: float = 1e-3,
        steps: int = 6000,
        batch_size: int = 512,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds, self.device = tuple(seeds), torch.device(device)
        self.learning_rate, self.steps, self.batch_size = learning_rate, steps, batch_size
        count, inputs = len(self.seeds), obs_dim + action_dim
        sources = [generator(seed, "score", "residual", "weights") for seed in self.seeds]
        self.params: Params = [p.to(self.device) for p in init_mlp([inputs, *hidden, obs_dim], sources)]
        self.input_mean = torch.zeros((count, 1, inputs), device=self.device)
        self.input_std = torch.ones((count, 1, inputs), device=self.device)
        self.rho = torch.ones((count, 1, obs_dim), device=self.device)
        self.scale = torch.ones((count, 1, obs_dim), device=self.device)

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Shapes as in `mbrl.types.Score`; the reward is not rated."""
        centre = self.correct(obs, action, prediction, elites)
        return -distance(candidates[..., :-1], centre, self.scale).clamp(min=self.NEAREST).log()

    def correct(self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor) -> Tensor:
        """m + rho * h(obs, action): the next observation (S, N, O) that the score believes most."""
        mean = prediction.of(elites).mean.mean(-3)[..., :-1]
        return mean + self.rho * mlp(self.params, self._inputs(obs, action), F.silu)

    def fit(
        self,
        data: Transition,
        model: GaussianEnsemble,
        *,
        on_progress: Callable[[ScoreReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """Regress the out-of-bag residuals of `model`.

        Args:
            data: rows (N, .) that `model` was fitted on.
            model: a fitted ensemble with the same seeds.
            on_progress: called with a report now and then.
            should_stop: asked before every step.
            resume: a `ScoreReport.state()` of an interrupted fit with the same data, model and settings; the result is
                bitwise that of an uninterrupted one.

        Raises:
            FitStopped: `should_stop` said so; what was done has been reported.
            FloatingPointError: the loss is not finite any more.
        """
        rows = EnsembleRows.of(data, model)
        residual = rows.out_of_bag_residual(model, should_stop)
        self.rho.copy_(root_mean_square(residual))
        self.scale.copy_(rows.delta_std())
        self.input_mean.copy_(model.input_mean.squeeze(1))
        self.input_std.copy_(model.input_std.squeeze(1))

        def loss_on(sources: Sequence[torch.Generator]) -> Loss:
            position = draw(self.batch_size, residual.shape[-2], sources)
            obs, action, _ = rows.at(position)
            inputs, target = self._inputs(obs, action), at_rows(residual, position) / self.rho
            return lambda params: self.loss(params, inputs, target)

        train_network(
            self.params, loss_on, purpose="residual", seeds=self.seeds, learning_rate=self.learning_rate,
            steps=self.steps, on_progress=on_progress, should_stop=should_stop, resume=resume,
        )  # fmt: skip

    def loss(self, params: Params, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Huber loss with its corner at 0.5: inputs (S, B, O+A), target (S, B, O) -> sum over seeds, each seed (S,)."""
        loss = F.smooth_l1_loss(mlp(params, inputs, F.silu), target, beta=0.5, reduction="none").mean((-2, -1))
        return loss.sum(), loss

    def _inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        return (torch.cat([obs, action], -1) - self.input_mean) / self.input_std

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layer_{i}": p for i, p in enumerate(self.params)}
        return named | {name: getattr(self, name) for name in ("input_mean", "input_std", "rho", "scale")}

    def state_dict(self) -> StateDict:
        """One entry per tensor, leading axis seeds."""
        return self._tensors()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        named = self._tensors()
        copy_tensors(list(named.values()), [state[name] for name in named])
