"""Which of two candidates is nearer to the truth, learnt from pairs of the model's own samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import Params, generator, init_mlp, mlp, rand, randn
from mbrl.optim import copy_tensors
from mbrl.score.baselines import distance
from mbrl.score.fitting import Loss, ScoreReport, draw, train_network
from mbrl.score.rows import EnsembleRows, at_rows, root_mean_square
from mbrl.types import Prediction, StateDict, Transition


class RankingScore:
    """A network on (obs, action, candidate) that puts the candidate with the smaller error above the other.

    For every row of the data, samples of members that have not seen it are compared in pairs; the loss is
    softplus(f_worse - f_better), as in RankNet (Burges et al. 2005). The candidate is seen twice: as its difference to
    the elites' mean in units of the model's residuals, and as the change of the observation in units of the data's.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: one network per seed, fitted to the samples of that seed's ensemble.
        hidden: widths of the hidden layers (SiLU).
        learning_rate: of Adam; it falls to 2 % along a half cosine.
        steps: of the fit.
        batch_size: rows per step and seed.
        samples: candidates per row.
        regression_weight: of a Huber loss between score and minus the log error. Pairs alone say nothing of one state
            against another; with this term a truncation can use the score.
        device: where everything lives.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 1e-3,
        steps: int = 2500,
        batch_size: int = 128,
        samples: int = 10,
        regression_weight: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        if samples < 2:
            raise ValueError(f"score.samples={samples}: pairs need at least 2")
        self.seeds, self.device = tuple(seeds), torch.device(device)
        self.learning_rate, self.steps, self.batch_size = learning_rate, steps, batch_size
        self.samples, self.regression_weight = samples, regression_weight
        count, inputs = len(self.seeds), obs_dim + action_dim
        sources = [generator(seed, "score", "ranking", "weights") for seed in self.seeds]
        self.params: Params = [p.to(self.device) for p in init_mlp([inputs + 2 * obs_dim, *hidden, 1], sources)]
        self.input_mean = torch.zeros((count, 1, inputs), device=self.device)
        self.input_std = torch.ones((count, 1, inputs), device=self.device)
        self.rho = torch.ones((count, 1, obs_dim), device=self.device)
        self.scale = torch.ones((count, 1, obs_dim), device=self.device)

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Shapes as in `mbrl.types.Score`; the reward is not rated."""
        centre = prediction.of(elites).mean.mean(-3)[..., :-1]
        return self._values(self.params, self._inputs(obs, action, candidates[..., :-1], centre))

    def fit(
        self,
        data: Transition,
        model: GaussianEnsemble,
        *,
        on_progress: Callable[[ScoreReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """Rank the out-of-bag samples of `model`; arguments and errors as of `ResidualScore.fit`."""
        rows = EnsembleRows.of(data, model)
        residual = rows.out_of_bag_residual(model, should_stop)
        self.rho.copy_(root_mean_square(residual))
        self.scale.copy_(rows.delta_std())
        self.input_mean.copy_(model.input_mean.squeeze(1))
        self.input_std.copy_(model.input_std.squeeze(1))

        def loss_on(sources: Sequence[torch.Generator]) -> Loss:
            position = draw(self.batch_size, residual.shape[-2], sources)
            shape = (self.samples, self.batch_size)
            uniform, noise = rand(shape, sources), randn((*shape, residual.shape[-1]), sources)
            candidates = rows.out_of_bag_samples(model, position, uniform, noise)
            obs, action, delta = rows.at(position)
            truth = obs + delta
            inputs = self._inputs(obs, action, candidates, truth - at_rows(residual, position))
            errors = distance(candidates, truth, self.scale)
            return lambda params: self.loss(params, inputs, errors)

        train_network(
            self.params, loss_on, purpose="ranking", seeds=self.seeds, learning_rate=self.learning_rate,
            steps=self.steps, on_progress=on_progress, should_stop=should_stop, resume=resume,
        )  # fmt: skip

    def loss(self, params: Params, inputs: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (S, K, B, .), errors (S, K, B) -> sum over seeds, each seed (S,)."""
        values = self._values(params, inputs)
        loss = pairwise_loss(values, errors)
        if self.regression_weight:
            target = -errors.clamp(min=1e-8).log()
            loss = loss + self.regression_weight * F.smooth_l1_loss(values, target, reduction="none").mean((-2, -1))
        return loss.sum(), loss

    def _values(self, params: Params, inputs: Tensor) -> Tensor:
        """inputs (S, K, N, .) -> (S, K, N)."""
        return mlp(params, inputs.flatten(-3, -2), F.silu).view(inputs.shape[:-1])

    def _inputs(self, obs: Tensor, action: Tensor, candidates: Tensor, centre: Tensor) -> Tensor:
        """obs, centre (S, N, O), action (S, N, A), candidates (S, K, N, O) -> (S, K, N, O+A+2O)."""
        here = (torch.cat([obs, action], -1) - self.input_mean) / self.input_std
        apart = (candidates - centre.unsqueeze(-3)) / self.rho.unsqueeze(-3)
        change = (candidates - obs.unsqueeze(-3)) / self.scale.unsqueeze(-3)
        here = here.unsqueeze(-3).expand(*candidates.shape[:-1], -1)
        return torch.cat([here, apart, change], -1)

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


def pairwise_loss(values: Tensor, errors: Tensor) -> Tensor:
    """Mean of softplus(f_worse - f_better) over all pairs of a row's candidates: both (S, K, B) -> (S,)."""
    better = errors.unsqueeze(-2) < errors.unsqueeze(-3)  # (S, i, j, B): i is better than j
    loss = F.softplus(values.unsqueeze(-3) - values.unsqueeze(-2))
    return (better * loss).sum((-3, -2, -1)) / better.sum((-3, -2, -1)).clamp(min=1)
