"""Gaussian ensemble of one-step models (PETS, Chua et al. 2018; MBPO, Janner et al. 2019; MOPO, Yu et al. 2020).

Every member predicts a diagonal Gaussian over the change of observation and the reward. All members of all seeds are
one batched matmul per layer. `members=1` is legal: a single model has no disagreement but is a simulator all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.capture import gradients
from mbrl.nets import Params, Precision, generator, init_mlp, mlp, normal_init, product_dtype
from mbrl.optim import Adam, copy_tensors
from mbrl.types import Prediction, StateDict, Transition


@dataclass(frozen=True)
class FitReport:
    """What is known after an epoch of fitting; handed to the caller's `on_epoch`."""

    epoch: int  # epochs done, from 1
    holdout: Tensor  # (S, E) mean squared error of the mean on held-out rows, this epoch
    best: Tensor  # (S, E) the best so far
    active: Tensor  # (S,) bool: this seed is still training
    train_loss: Tensor  # (S,) mean of the epoch's negative log-likelihood, per member
    state: Callable[[], StateDict]  # everything needed to go on from here


class FitStopped(Exception):
    """A fit was asked to stop within an epoch."""


def soft_clamp(raw: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Log-variance kept between learned bounds, upper bound first, with a gradient everywhere (PETS, appendix A.1)."""
    below = upper - F.softplus(upper - raw)
    return lower + F.softplus(below - lower)


def predict(
    layers: Params, lower: Tensor, upper: Tensor, obs: Tensor, action: Tensor, dtype: torch.dtype | None
) -> Prediction:
    """Members `layers` (S, E, in, out), which carry the input scaler, at obs (S, N, O) and action (S, N, A)."""
    # Without a graph the activations can be written over: less memory to walk through.
    silu = F.silu if torch.is_grad_enabled() else partial(F.silu, inplace=True)
    out = mlp(layers, torch.cat([obs, action], -1).unsqueeze(-3), silu, dtype)
    outputs = obs.shape[-1] + 1
    mean, raw_logvar = out[..., :outputs], out[..., outputs:]
    mean[..., :-1] += obs.unsqueeze(-3)  # the output is ours to change
    return Prediction(mean, soft_clamp(raw_logvar, lower, upper).mul(0.5).exp())


class GaussianEnsemble:
    """`E` probabilistic MLPs per seed; call `fit`, or `load_state_dict` of a fitted one, before `predict`.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: one stacked ensemble per seed; each has its own initial weights, holdout, bootstrap and row order.
        members: E.
        elites: K members with the smallest holdout error serve as the simulator.
        hidden: widths of the hidden layers (Swish).
        learning_rate: of Adam.
        batch_size: rows per member and step.
        weight_decay: per layer coefficient `c` of the loss term `c/2 ||W||^2`; a single number serves all layers, None
            means the five published values of PETS and MOPO, stretched to the number of layers.
        holdout_fraction: share of the rows held out for early stopping, at most `holdout_max` rows.
        holdout_max: see above.
        patience: stop a seed after this many epochs in which no member improved.
        improvement: relative decrease of the holdout error that counts as one.
        max_epochs: hard limit, None for none.
        logvar_weight: weight of the term that pulls the learned log-variance bounds together.
        precision: of the matrix products; parameters, activations, losses and moments are float32 always.
        device: where everything lives.
    """

    PUBLISHED_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        members: int = 7,
        elites: int = 5,
        hidden: Sequence[int] = (200, 200, 200, 200),
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        weight_decay: float | Sequence[float] | None = None,
        holdout_fraction: float = 0.2,
        holdout_max: int = 1000,
        patience: int = 5,
        improvement: float = 0.01,
        max_epochs: int | None = None,
        logvar_weight: float = 0.01,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= elites <= members:
            raise ValueError(f"dynamics.elites={elites} must lie between 1 and dynamics.members={members}")
        if not (0 < holdout_fraction < 1 and holdout_max >= 1):
            raise ValueError(
                f"dynamics.holdout_fraction={holdout_fraction} must lie between 0 and 1, and "
                f"dynamics.holdout_max={holdout_max} be at least 1: early stopping and elites need held-out rows"
            )
        self.obs_dim, self.action_dim, self.seeds = obs_dim, action_dim, tuple(seeds)
        self.members, self.elite_count = members, elites
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.holdout_fraction, self.holdout_max = holdout_fraction, holdout_max
        self.patience, self.improvement, self.max_epochs = patience, improvement, max_epochs
        self.logvar_weight = logvar_weight
        self.dtype = product_dtype(precision)
        self.device = torch.device(device)

        layers = len(hidden) + 1
        if weight_decay is None:
            spread = [round(i * (len(self.PUBLISHED_DECAY) - 1) / max(layers - 1, 1)) for i in range(layers)]
            self.weight_decay = [self.PUBLISHED_DECAY[i] for i in spread]
        elif isinstance(weight_decay, int | float):
            self.weight_decay = [float(weight_decay)] * layers
        else:
            self.weight_decay = [float(c) for c in weight_decay]
        if len(self.weight_decay) != layers:
            raise ValueError(
                f"dynamics.weight_decay has {len(self.weight_decay)} values, but dynamics.hidden={list(hidden)} makes "
                f"{layers} layers; give one value per layer, or a single number"
            )

        count, outputs = len(self.seeds), obs_dim + 1
        sizes = [obs_dim + action_dim, *hidden, 2 * outputs]
        sources = [generator(seed, "dynamics", "weights") for seed in self.seeds]
        self.params: Params = [p.to(self.device) for p in init_mlp(sizes, sources, (members,), init=normal_init)]
        # Bounds of the log-variance, learned, shared by the members of a seed: (S, 1, 1, O+1).
        self.max_logvar = torch.full((count, 1, 1, outputs), 0.5, device=self.device)
        self.min_logvar = torch.full((count, 1, 1, outputs), -10.0, device=self.device)
        self.input_mean = torch.zeros((count, 1, 1, obs_dim + action_dim), device=self.device)
        self.input_std = torch.ones((count, 1, 1, obs_dim + action_dim), device=self.device)
        self.elites = torch.arange(elites, device=self.device).repeat(count, 1)  # (S, K)
        self.holdout_error = torch.full((count, members), math.nan, device=self.device)
        self._folded: Params | None = None

    # -- prediction ----------------------------------------------------------------------------------------------

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """All members: obs (S, N, O), action (S, N, A) in environment units -> mean and std (S, E, N, O+1)."""
        return predict(self.folded(), self.min_logvar, self.max_logvar, obs, action, self.dtype)

    def folded(self) -> Params:
        """The layers with the input scaler in the first one: it is affine, so prediction needs no normalisation."""
        if self._folded is None:
            self._folded = self._fold_scaler()
        return self._folded

    def _fold_scaler(self) -> Params:
        params = self.params
        weight = params[0] / self.input_std.transpose(-1, -2)
        folded = [weight, params[1] - (self.input_mean @ weight), *params[2:]]
        # Weights are cast once; biases stay float32.
        return [p if i % 2 or not i or self.dtype is None else p.to(self.dtype) for i, p in enumerate(folded)]

    def elite_view(self) -> EliteView:
        """The elites as a model of their own: 5/7 of the work where a penalty over the elites is enough."""
        return EliteView(self)

    # -- fitting -------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Transition,
        *,
        on_epoch: Callable[[FitReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """Maximum likelihood on per-member bootstraps, early stopping per member, elites at the end.

        Args:
            data: rows (N, .), shared by all seeds; each seed holds out its own rows.
            on_epoch: called after every epoch; whatever it raises ends the fit.
            should_stop: asked before every batch.
            resume: a `FitReport.state()` of an interrupted fit with the same data and settings; the result is bitwise
                that of an uninterrupted one, because row orders are functions of (seed, epoch) alone.

        Raises:
            ValueError: fewer than 10 rows.
            FloatingPointError: the loss is not finite any more.
            FitStopped: `should_stop` said so; what was done since the last epoch is lost.
        """
        rows = data.obs.shape[0]
        if rows < 10:
            raise ValueError(f"a dynamics model needs at least 10 transitions, the dataset has {rows}")
        split = self._split(rows)
        table = torch.cat([data.obs, data.action, data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
        table = table.to(self.device)
        self._set_scaler(table, split.train)
        held_out = table[split.holdout].unsqueeze(1)  # (S, 1, H, W)

        trained = [*self.params, self.max_logvar, self.min_logvar]
        optimiser = Adam(trained, self.learning_rate)
        # The published 1e10 would never be improved on with rewards of 1e6, and leave the initial weights in place.
        best = torch.full((len(self.seeds), self.members), math.inf, device=self.device)
        best_params = [p.clone() for p in self.params]
        final_bounds = [self.max_logvar.clone(), self.min_logvar.clone()]
        stale = torch.zeros(len(self.seeds), dtype=torch.long, device=self.device)
        active = torch.ones(len(self.seeds), dtype=torch.bool, device=self.device)
        epoch = 0

        def state() -> StateDict:
            return {
                "epoch": epoch,
                "trained": trained,
                "optimiser": optimiser.state_dict(),
                "best": best,
                "best_params": best_params,
                "final_bounds": final_bounds,
                "stale": stale,
                "active": active,
            }

        if resume is not None:
            epoch = int(resume["epoch"])
            optimiser.load_state_dict(resume["optimiser"])
            for name, target in (("trained", trained), ("best_params", best_params), ("final_bounds", final_bounds)):
                copy_tensors(target, resume[name])
            copy_tensors([best, stale, active], [resume["best"], resume["stale"], resume["active"]])

        while bool(active.any()) and (self.max_epochs is None or epoch < self.max_epochs):
            train_loss = self._epoch(table, split.bootstrap, epoch, optimiser, trained, should_stop)
            epoch += 1
            holdout = self._holdout_error(held_out)
            if not bool((torch.isfinite(train_loss) | ~active).all()):
                raise FloatingPointError(
                    f"the dynamics loss became {train_loss.tolist()} in epoch {epoch}; look for extreme values "
                    "with `mbrl inspect`, or lower dynamics.learning_rate"
                )
            better = (holdout < best * (1.0 - self.improvement)) & active.unsqueeze(-1)
            best = torch.where(better, holdout, best)
            for kept, now in zip(best_params, self.params, strict=True):
                kept.copy_(torch.where(better[..., None, None], now, kept))
            # The published code does not roll the bounds back with the snapshots; a stopped seed's bounds rest.
            for rest, bound in zip(final_bounds, (self.max_logvar, self.min_logvar), strict=True):
                rest.copy_(torch.where(active[:, None, None, None], bound, rest))
            stale = torch.where(better.any(-1), torch.zeros_like(stale), stale + 1)
            active = active & (stale < self.patience)
            if on_epoch is not None:
                on_epoch(FitReport(epoch, holdout, best, active, train_loss, state))

        copy_tensors(self.params, best_params)
        copy_tensors([self.max_logvar, self.min_logvar], final_bounds)
        self.holdout_error = best
        self.elites = best.argsort(dim=-1, stable=True)[:, : self.elite_count]
        self._folded = None

    def _split(self, rows: int) -> _Split:
        """Each seed's own holdout rows and each member's own bootstrap of the others."""
        held = max(1, min(int(self.holdout_fraction * rows), self.holdout_max))
        train, holdout, bootstrap = [], [], []
        for seed in self.seeds:
            order = torch.randperm(rows, generator=generator(seed, "dynamics", "holdout"))
            holdout.append(order[:held])
            train.append(order[held:])
            source = generator(seed, "dynamics", "bootstrap")
            pick = torch.randint(rows - held, (self.members, rows - held), generator=source)
            bootstrap.append(order[held:][pick].to(torch.int32))
        return _Split(torch.stack(train).to(self.device), torch.stack(holdout).to(self.device), torch.stack(bootstrap))

    def _set_scaler(self, table: Tensor, train: Tensor) -> None:
        """Mean and std of the inputs over each seed's training rows; constant columns are left alone."""
        width = self.obs_dim + self.action_dim
        for s in range(len(self.seeds)):
            inputs = table[:, :width].index_select(0, train[s])
            std, mean = torch.std_mean(inputs, 0, correction=0)
            self.input_mean[s] = mean
            # Also constant is a column that varies by rounding alone: divided by that, imagination would explode.
            constant = std <= 1e-6 * mean.abs() + 1e-12
            self.input_std[s] = torch.where(constant, torch.ones_like(std), std)

    def _inputs_and_targets(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        width = self.obs_dim + self.action_dim
        return (rows[..., :width] - self.input_mean) / self.input_std, rows[..., width:]

    def _epoch(
        self,
        table: Tensor,
        bootstrap: Tensor,
        epoch: int,
        optimiser: Adam,
        trained: Sequence[Tensor],
        should_stop: Callable[[], bool],
    ) -> Tensor:
        """One pass over every member's bootstrap in its own order; returns the mean loss (S,)."""
        size = bootstrap.shape[-1]
        batch = min(self.batch_size, size)
        steps = size // batch
        order = torch.empty_like(bootstrap)
        for s, seed in enumerate(self.seeds):
            source = generator(seed, "dynamics", "order", epoch)
            for e in range(self.members):
                order[s, e] = bootstrap[s, e, torch.randperm(size, generator=source)]
        order = order.to(self.device)
        total = torch.zeros(len(self.seeds), device=self.device)
        for i in range(steps):
            if should_stop():
                raise FitStopped
            index = order[..., i * batch : (i + 1) * batch]
            total += self._step(table, index, optimiser, trained)
        return total / (steps * self.members)

    def _step(self, table: Tensor, index: Tensor, optimiser: Adam, trained: Sequence[Tensor]) -> Tensor:
        """One update of all members on rows index (S, E, B); returns the likelihood term of the loss (S,)."""
        x, y = self._inputs_and_targets(table.index_select(0, index.flatten()).view(*index.shape, -1))
        grads, likelihood = gradients(lambda params: self.loss(params, x, y), trained)
        # The gradient of weight_decay/2 ||W||^2, added here because it needs no graph.
        decayed = [
            grad.add(trained[i], alpha=self.weight_decay[i // 2]) if i % 2 == 0 and i < len(self.params) else grad
            for i, grad in enumerate(grads)
        ]
        optimiser.step(decayed)
        return likelihood

    def loss(self, trained: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian negative log-likelihood (up to a constant) of normalised inputs x and targets y (S, E, B, .).

        Args:
            trained: the layers, then the upper and the lower bound of the log-variance.

        Returns:
            The sum over seeds and members of the mean over rows and dimensions, plus the bounds' term; and the first
            part for each seed (S,).
        """
        *layers, max_logvar, min_logvar = trained
        mean, raw_logvar = mlp(layers, x, F.silu, self.dtype).chunk(2, -1)
        logvar = soft_clamp(raw_logvar, min_logvar, max_logvar)
        likelihood = ((mean - y).square() * (-logvar).exp() + logvar).mean((-2, -1)).sum(-1)
        return likelihood.sum() + self.logvar_weight * (max_logvar - min_logvar).sum(), likelihood

    def _holdout_error(self, held_out: Tensor) -> Tensor:
        """(S, E) mean squared error of the predicted mean, without the variance."""
        x, y = self._inputs_and_targets(held_out)
        return (mlp(self.params, x, F.silu, self.dtype).chunk(2, -1)[0] - y).square().mean((-2, -1))

    # -- state ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layer_{i}": p for i, p in enumerate(self.params)}
        names = ("max_logvar", "min_logvar", "input_mean", "input_std", "elites", "holdout_error")
        return named | {name: getattr(self, name) for name in names}

    def state_dict(self) -> StateDict:
        """One entry per tensor, leading axis seeds, so that one seed's model can be cut out (see the store)."""
        return self._tensors()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        named = self._tensors()
        missing = sorted(set(named) - set(state))
        if missing:
            raise ValueError(f"the saved dynamics model lacks {', '.join(missing)}")
        copy_tensors(list(named.values()), [state[name] for name in named])
        self._folded = None


class EliteView:
    """The elites of an ensemble as a model, sliced once after every fit into weights of their own."""

    def __init__(self, ensemble: GaussianEnsemble) -> None:
        self._ensemble = ensemble
        self._folded: Params = []
        self._layers: Params = []
        self.members, self.action_dim, self.device = ensemble.elite_count, ensemble.action_dim, ensemble.device
        self.elites = torch.arange(self.members, device=self.device).expand(len(ensemble.seeds), -1)

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """The elites only: obs (S, N, O), action (S, N, A) -> mean and std (S, K, N, O+1)."""
        ensemble = self._ensemble
        if ensemble.folded() is not self._folded:
            self._folded = ensemble.folded()
            seed = torch.arange(len(ensemble.seeds), device=self.device).unsqueeze(-1)
            self._layers = [p[seed, ensemble.elites] for p in self._folded]
        return predict(self._layers, ensemble.min_logvar, ensemble.max_logvar, obs, action, ensemble.dtype)


@dataclass(frozen=True)
class _Split:
    train: Tensor  # (S, T) row indices
    holdout: Tensor  # (S, H) row indices
    bootstrap: Tensor  # (S, E, T) int32 row indices, drawn with replacement from `train`, on the CPU
