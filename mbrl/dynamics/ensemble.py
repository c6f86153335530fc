"""Gaussian ensemble of one-step models (PETS, Chua et al. 2018; MBPO, Janner et al. 2019; MOPO, Yu et al. 2020).

Every member predicts a diagonal Gaussian over the change of observation and the reward. All members of all seeds are
one batched matmul per layer. `members=1` is legal: a single model has no disagreement but is a simulator all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.capture import capture, gradients
from mbrl.nets import Params, Precision, generator, init_mlp, mlp, normal_init, product_dtype
from mbrl.optim import Adam, copy_tensors
from mbrl.spectral import SpectralLimit, shrink
from mbrl.types import Metrics, Prediction, StateDict, Transition


@dataclass(frozen=True)
class FitReport:
    """What is known after an epoch of fitting; handed to the caller's `on_progress`."""

    epoch: int  # epochs done, from 1
    holdout: Tensor  # (S, E) mean squared error of the mean on held-out rows, this epoch, in the units of the targets
    best: Tensor  # (S, E) the best so far
    active: Tensor  # (S,) bool: this seed is still training
    train_loss: Tensor  # (S,) mean of the epoch's loss, per member
    state: Callable[[], StateDict]  # everything needed to go on from here

    @property
    def done(self) -> int:
        """Epochs done, by the name that the store asks for."""
        return self.epoch


class FitStopped(Exception):
    """A fit was asked to stop within an epoch."""


def soft_clamp(raw: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Log-variance kept between learned bounds, upper bound first, with a gradient everywhere (PETS, appendix A.1)."""
    below = upper - F.softplus(upper - raw)
    return lower + F.softplus(below - lower)


# -- losses: mean, log-variance, target (*, O+1) -> (*, O+1) -----------------------------------------------------------

Loss = Literal["nll", "beta_nll", "mse_mean"]
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll(mean: Tensor, logvar: Tensor, target: Tensor) -> Tensor:
    """Gaussian negative log-likelihood, doubled and without its constant."""
    return (mean - target).square() * (-logvar).exp() + logvar


def beta_nll(mean: Tensor, logvar: Tensor, target: Tensor, beta: float) -> Tensor:
    """Each likelihood term weighted by its own variance^beta, without gradient (Seitzer et al. 2022, equation 5).

    Plain likelihood (beta 0) divides the gradient of the mean by the variance, so that what is predicted badly is
    learnt slowly. At beta 1 that gradient is the one of the squared error.
    """
    return (beta * logvar.detach()).exp() * nll(mean, logvar, target)


def mse_mean(mean: Tensor, logvar: Tensor, target: Tensor, variance_weight: float = 0.1) -> Tensor:
    """The mean by squared error, the variance by the likelihood of the residual that is left."""
    return (mean - target).square() + variance_weight * nll(mean.detach(), logvar, target)


# -- prediction --------------------------------------------------------------------------------------------------------


class Folded(NamedTuple):
    """A network that takes and gives environment units: its scalers are in its weights and bounds."""

    layers: Params  # (S, E, in, out) and (S, E, 1, out)
    lower: Tensor  # (S, 1, 1, O+1) bound of the log-variance
    upper: Tensor  # (S, 1, 1, O+1)


def predict(folded: Folded, obs: Tensor, action: Tensor, dtype: torch.dtype | None) -> Prediction:
    """Members of a folded network, each at its own rows or at the same: obs (S, E or 1, N, O), action likewise."""
    layers, lower, upper = folded
    # Without a graph the activations can be written over: less memory to walk through.
    silu = F.silu if torch.is_grad_enabled() else partial(F.silu, inplace=True)
    out = mlp(layers, torch.cat([obs, action], -1), silu, dtype)
    outputs = obs.shape[-1] + 1
    mean, raw_logvar = out[..., :outputs], out[..., outputs:]
    mean[..., :-1] += obs  # the output is ours to change
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
        patience: stop a seed after this many epochs in which no member improved; None: only the limits end a fit.
        improvement: relative decrease of the holdout error that counts as one.
        max_epochs: hard limit, None for none.
        max_steps: hard limit in updates, which does not depend on the number of rows; the last epoch is cut short.
        loss: `nll`, the published likelihood; `beta_nll` or `mse_mean`, which fit the mean better where the noise is
            uneven.
        beta: of `beta_nll`; 0 is `nll`.
        standardise_targets: fit changes and rewards divided by their std over the training rows, and centred, so that
            every dimension counts the same. Then so do early stopping and the choice of elites: `holdout_error` is in
            these units. Predictions are in environment units all the same.
        schedule: of the learning rate; `cosine` falls to 1 % at the end of `max_steps` or `max_epochs`. A fit that
            ends by `patience` has not seen its last part: set that to None.
        spectral_radius: the largest spectral norm of a layer while fitting and predicting (`mbrl.spectral`), in scaled
            inputs and targets; None for no limit. The last layer is that of mean and log-variance together.
        logvar_weight: weight of the term that pulls the learned log-variance bounds together.
        precision: of the matrix products; parameters, activations, losses and moments are float32 always.
        device: where everything lives.
    """

    PUBLISHED_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    LAST_RATE = 0.01  # of a cosine, as a share of the first

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
        patience: int | None = 5,
        improvement: float = 0.01,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        loss: Loss = "nll",
        beta: float = 0.5,
        standardise_targets: bool = False,
        schedule: Literal["constant", "cosine"] = "constant",
        spectral_radius: float | None = None,
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
        losses: dict[str, Criterion] = {"nll": nll, "beta_nll": partial(beta_nll, beta=beta), "mse_mean": mse_mean}
        if loss not in losses:
            raise ValueError(f"dynamics.loss={loss} is unknown; it is {', '.join(losses)}")
        if schedule not in ("constant", "cosine"):
            raise ValueError(f"dynamics.schedule={schedule} is unknown; it is constant or cosine")
        if max_epochs is None and max_steps is None:
            if schedule == "cosine":
                raise ValueError("dynamics.schedule=cosine needs a length: give dynamics.max_steps or max_epochs")
            if patience is None:
                raise ValueError("dynamics.patience=null needs an end: give dynamics.max_steps or max_epochs")
        self.obs_dim, self.action_dim, self.seeds = obs_dim, action_dim, tuple(seeds)
        self.members, self.elite_count = members, elites
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.holdout_fraction, self.holdout_max = holdout_fraction, holdout_max
        self.patience, self.improvement = patience, improvement
        self.max_epochs, self.max_steps = max_epochs, max_steps
        self.criterion = losses[loss]
        self.standardise_targets, self.schedule = standardise_targets, schedule
        self.spectral_radius, self.logvar_weight = spectral_radius, logvar_weight
        if spectral_radius is not None and not spectral_radius > 0:
            raise ValueError(f"dynamics.spectral_radius={spectral_radius} must be more than 0; null is no limit")
        self.dtype = product_dtype(precision)
        self.device = torch.device(device)
        self.mode: Literal["eager", "compile", "graph"] = "eager"  # how the updates of a fit run, see `mbrl.capture`

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
        self.target_mean = torch.zeros((count, 1, 1, outputs), device=self.device)
        self.target_std = torch.ones((count, 1, 1, outputs), device=self.device)
        # Of the changes and rewards of the training rows: the unit of every output, for whoever needs one.
        self.change_std = torch.ones((count, 1, 1, outputs), device=self.device)
        self.elites = torch.arange(elites, device=self.device).repeat(count, 1)  # (S, K)
        self.holdout_error = torch.full((count, members), math.nan, device=self.device)
        self.folded = self._fold_scalers()
        self.folded_elites = self.folded._replace(layers=self._elite_layers())

    # -- prediction ----------------------------------------------------------------------------------------------

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """All members: obs (S, N, O), action (S, N, A) in environment units -> mean and std (S, E, N, O+1)."""
        return predict(self.folded, obs.unsqueeze(-3), action.unsqueeze(-3), self.dtype)

    def _settle(self) -> None:
        """Make what predicts what was fitted or loaded; in place, for a captured graph remembers addresses."""
        now = self._fold_scalers()
        copy_tensors([*self.folded.layers, *self.folded[1:]], [*now.layers, *now[1:]])
        copy_tensors(self.folded_elites.layers, self._elite_layers())

    def _elite_layers(self) -> Params:
        """Those of the folded layers that are the elites', (S, K, in, out)."""
        seed = torch.arange(len(self.seeds), device=self.device).unsqueeze(-1)
        return [p[seed, self.elites] for p in self.folded.layers]

    def _fold_scalers(self) -> Folded:
        """The network with its scalers folded in: they are affine, so prediction needs no normalisation."""
        first, first_bias, *middle = self.params
        first = first / self.input_std.transpose(-1, -2)
        *layers, last, last_bias = [first, first_bias - (self.input_mean @ first), *middle]
        # A variance scales with the square: the soft clamp lets a log-variance and its bounds be shifted together.
        shift = 2.0 * self.target_std.log()
        scale = torch.cat([self.target_std, torch.ones_like(self.target_std)], -1)
        layers += [last * scale, last_bias * scale + torch.cat([self.target_mean, shift], -1)]
        # Weights are cast once; biases stay float32.
        cast = [p if i % 2 or not i or self.dtype is None else p.to(self.dtype) for i, p in enumerate(layers)]
        return Folded(cast, self.min_logvar + shift, self.max_logvar + shift)

    def elite_view(self) -> EliteView:
        """The elites as a model of their own: 5/7 of the work where a penalty over the elites is enough."""
        return EliteView(self)

    # -- fitting -------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Transition,
        *,
        on_progress: Callable[[FitReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
        part: int = 0,
    ) -> None:
        """Minimise `loss` on per-member bootstraps, early stopping per member, elites at the end.

        It begins with the weights that are there: those of an earlier fit, or the initial ones.

        Args:
            data: rows (N, .), shared by all seeds, or each seed's own (S, N, .); each seed holds out its own rows.
            on_progress: called after every epoch; whatever it raises ends the fit.
            should_stop: asked before every batch.
            resume: a `FitReport.state()` of an interrupted fit with the same data and settings; the result is bitwise
                that of an uninterrupted one, because row orders are functions of (seed, part, epoch) alone.
            part: number of the fit, where a model is fitted over and over to data that grow: it names the random
                numbers.

        Raises:
            ValueError: fewer than 10 rows.
            FloatingPointError: the loss is not finite any more.
            FitStopped: `should_stop` said so; what was done since the last epoch is lost.
        """
        rows = data.obs.shape[-2]
        if rows < 10:
            raise ValueError(f"a dynamics model needs at least 10 transitions, the dataset has {rows}")
        split = self.split(rows, part)
        table = torch.cat([data.obs, data.action, data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
        if table.dim() == 3:
            split = split.stacked(rows)
        table = table.flatten(0, -2).to(self.device)
        self._set_scalers(table, split.train)
        held_out = table[split.holdout].unsqueeze(1)  # (S, 1, H, W)

        trained = [*self.params, self.max_logvar, self.min_logvar]
        optimiser = Adam(trained, self.learning_rate)
        # The published 1e10 would never be improved on with rewards of 1e6, and leave the initial weights in place.
        best = torch.full((len(self.seeds), self.members), math.inf, device=self.device)
        best_params = [p.clone() for p in self.params]
        final_bounds = [self.max_logvar.clone(), self.min_logvar.clone()]
        stale = torch.zeros(len(self.seeds), dtype=torch.long, device=self.device)
        active = torch.ones(len(self.seeds), dtype=torch.bool, device=self.device)
        epoch, epochs = 0, self.epochs(rows)
        limit = self._spectral_limit()
        step = capture(lambda index, rate: self._step(table, index, optimiser, trained, rate, limit), self.mode)

        def state() -> StateDict:
            vectors = {} if limit is None else {"spectral": limit.tensors()}
            return vectors | {
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
            if limit is not None:
                copy_tensors(limit.tensors(), resume["spectral"])

        while bool(active.any()) and (epochs is None or epoch < epochs):
            train_loss = self._epoch(step, split.bootstrap, epoch, should_stop, part)
            epoch += 1
            layers = self.params if limit is None else limit.shrunk(self.params)
            holdout = self._holdout_error(layers, held_out)
            if not bool((torch.isfinite(train_loss) | ~active).all()):
                raise FloatingPointError(
                    f"the dynamics loss became {train_loss.tolist()} in epoch {epoch}; look for extreme values "
                    "with `mbrl inspect`, or lower dynamics.learning_rate"
                )
            better = (holdout < best * (1.0 - self.improvement)) & active.unsqueeze(-1)
            best = torch.where(better, holdout, best)
            for kept, now in zip(best_params, layers, strict=True):
                kept.copy_(torch.where(better[..., None, None], now, kept))
            # The published code does not roll the bounds back with the snapshots; a stopped seed's bounds rest.
            for rest, bound in zip(final_bounds, (self.max_logvar, self.min_logvar), strict=True):
                rest.copy_(torch.where(active[:, None, None, None], bound, rest))
            stale = torch.where(better.any(-1), torch.zeros_like(stale), stale + 1)
            if self.patience is not None:
                active = active & (stale < self.patience)
            if on_progress is not None:
                on_progress(FitReport(epoch, holdout, best, active, train_loss, state))

        if self.spectral_radius is not None:  # one iteration an update follows the norm, and lags behind it
            best_params = shrink(best_params, self.spectral_radius)
        copy_tensors(self.params, best_params)
        copy_tensors([self.max_logvar, self.min_logvar], final_bounds)
        self.holdout_error = best
        self.elites = best.argsort(dim=-1, stable=True)[:, : self.elite_count]
        self._settle()

    def _spectral_limit(self) -> SpectralLimit | None:
        """The limit on the layers of a fit; None for no limit."""
        if self.spectral_radius is None:
            return None
        sources = [generator(seed, "dynamics", "spectral") for seed in self.seeds]
        return SpectralLimit(self.params, self.spectral_radius, sources)

    def split(self, rows: int, part: int = 0) -> Split:
        """Each seed's own holdout rows and each member's own bootstrap of the others: functions of (seed, part)."""
        held = self._held_out(rows)
        again = (part,) if part else ()
        train, holdout, bootstrap = [], [], []
        for seed in self.seeds:
            order = torch.randperm(rows, generator=generator(seed, "dynamics", "holdout", *again))
            holdout.append(order[:held])
            train.append(order[held:])
            source = generator(seed, "dynamics", "bootstrap", *again)
            pick = torch.randint(rows - held, (self.members, rows - held), generator=source)
            bootstrap.append(order[held:][pick].to(torch.int32))
        return Split(torch.stack(train).to(self.device), torch.stack(holdout).to(self.device), torch.stack(bootstrap))

    def _held_out(self, rows: int) -> int:
        return max(1, min(int(self.holdout_fraction * rows), self.holdout_max))

    def epochs(self, rows: int) -> int | None:
        """Epochs that a fit on so many rows makes at most, the last one perhaps cut short; None for no limit."""
        limits = [] if self.max_epochs is None else [self.max_epochs]
        if self.max_steps is not None:
            limits.append(math.ceil(self.max_steps / self._epoch_steps(rows - self._held_out(rows))))
        return min(limits, default=None)

    def _epoch_steps(self, train_rows: int) -> int:
        return train_rows // min(self.batch_size, train_rows)

    def _rate(self, step: int, epoch_steps: int) -> Tensor:
        """What the learning rate of update `step` is multiplied by."""
        if self.schedule == "constant":
            return torch.ones((), device=self.device)
        limits = (self.max_steps, None if self.max_epochs is None else self.max_epochs * epoch_steps)
        end = min(limit for limit in limits if limit is not None)
        fall = 0.5 * (1.0 + math.cos(math.pi * step / end))
        return torch.full((), self.LAST_RATE + (1.0 - self.LAST_RATE) * fall, device=self.device)

    def _set_scalers(self, table: Tensor, train: Tensor) -> None:
        """Mean and std of the inputs and the targets over each seed's training rows; see `standardise_targets`."""
        width = self.obs_dim + self.action_dim
        for s in range(len(self.seeds)):
            self.input_mean[s], self.input_std[s] = scaler(table[:, :width].index_select(0, train[s]))
            mean, self.change_std[s] = scaler(table[:, width:].index_select(0, train[s]))
            if self.standardise_targets:
                self.target_mean[s], self.target_std[s] = mean, self.change_std[s]

    def _inputs_and_targets(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        width = self.obs_dim + self.action_dim
        inputs = (rows[..., :width] - self.input_mean) / self.input_std
        targets = rows[..., width:]
        return inputs, (targets - self.target_mean) / self.target_std if self.standardise_targets else targets

    def _epoch(
        self,
        step: Callable[..., Metrics],
        bootstrap: Tensor,
        epoch: int,
        should_stop: Callable[[], bool],
        part: int,
    ) -> Tensor:
        """One pass over every member's bootstrap in its own order; returns the mean loss (S,)."""
        size = bootstrap.shape[-1]
        batch = min(self.batch_size, size)
        whole = self._epoch_steps(size)
        begin = epoch * whole
        steps = whole if self.max_steps is None else min(whole, self.max_steps - begin)
        order = torch.empty_like(bootstrap)
        for s, seed in enumerate(self.seeds):
            source = generator(seed, "dynamics", "order", *((part,) if part else ()), epoch)
            for e in range(self.members):
                order[s, e] = bootstrap[s, e, torch.randperm(size, generator=source)]
        order = order.to(self.device)
        total = torch.zeros(len(self.seeds), device=self.device)
        for i in range(steps):
            if should_stop():
                raise FitStopped
            index = order[..., i * batch : (i + 1) * batch]
            total += step(index, self._rate(begin + i, whole))["loss"]
        return total / (steps * self.members)

    def _step(
        self,
        table: Tensor,
        index: Tensor,
        optimiser: Adam,
        trained: Sequence[Tensor],
        rate: Tensor,
        limit: SpectralLimit | None = None,
    ) -> Metrics:
        """One update of all members on rows index (S, E, B); `loss` (S,) is without the bounds' term."""
        x, y = self._inputs_and_targets(table.index_select(0, index.flatten()).view(*index.shape, -1))
        if limit is not None:
            limit.follow(self.params)
        grads, fit = gradients(lambda params: self.loss(params, x, y, limit), trained)
        # The gradient of weight_decay/2 ||W||^2, added here because it needs no graph.
        decayed = [
            grad.add(trained[i], alpha=self.weight_decay[i // 2]) if i % 2 == 0 and i < len(self.params) else grad
            for i, grad in enumerate(grads)
        ]
        optimiser.step(decayed, rate)
        return {"loss": fit}

    def loss(
        self, trained: Sequence[Tensor], x: Tensor, y: Tensor, limit: SpectralLimit | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of scaled inputs x and targets y (S, E, B, .).

        Args:
            trained: the layers, then the upper and the lower bound of the log-variance.
            x: (S, E, B, O+A).
            y: (S, E, B, O+1).
            limit: of the layers.

        Returns:
            The sum over seeds and members of the mean over rows and dimensions, plus the bounds' term; and the first
            part for each seed (S,).
        """
        *layers, max_logvar, min_logvar = trained
        if limit is not None:
            layers = limit.shrunk(layers)
        mean, raw_logvar = mlp(layers, x, F.silu, self.dtype).chunk(2, -1)
        logvar = soft_clamp(raw_logvar, min_logvar, max_logvar)
        fit = self.criterion(mean, logvar, y).mean((-2, -1)).sum(-1)
        return fit.sum() + self.logvar_weight * (max_logvar - min_logvar).sum(), fit

    def _holdout_error(self, layers: Params, held_out: Tensor) -> Tensor:
        """(S, E) mean squared error of the predicted mean, without the variance."""
        x, y = self._inputs_and_targets(held_out)
        return (mlp(layers, x, F.silu, self.dtype).chunk(2, -1)[0] - y).square().mean((-2, -1))

    # -- state ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layer_{i}": p for i, p in enumerate(self.params)}
        names = ("max_logvar", "min_logvar", "input_mean", "input_std", "target_mean", "target_std", "change_std")
        return named | {name: getattr(self, name) for name in (*names, "elites", "holdout_error")}

    def state_dict(self) -> StateDict:
        """One entry per tensor, leading axis seeds, so that one seed's model can be cut out (see the store)."""
        return self._tensors()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        named = self._tensors()
        # Run directories from before this had a name: theirs is known where targets were standardised.
        state = {"change_std": state["target_std"], **state} if "target_std" in state else state
        missing = sorted(set(named) - set(state))
        if missing:
            raise ValueError(f"the saved dynamics model lacks {', '.join(missing)}")
        copy_tensors(list(named.values()), [state[name] for name in named])
        self._settle()


class EliteView:
    """The elites of an ensemble as a model; of an ensemble that is fitted later, too."""

    def __init__(self, ensemble: GaussianEnsemble) -> None:
        self._ensemble = ensemble
        self.members, self.action_dim, self.device = ensemble.elite_count, ensemble.action_dim, ensemble.device
        self.elites = torch.arange(self.members, device=self.device).expand(len(ensemble.seeds), -1)

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """The elites only: obs (S, N, O), action (S, N, A) -> mean and std (S, K, N, O+1)."""
        return predict(self._ensemble.folded_elites, obs.unsqueeze(-3), action.unsqueeze(-3), self._ensemble.dtype)

    def predict_one(self, obs: Tensor, action: Tensor, uniform: Tensor) -> Prediction:
        """One elite for each lane: 1/K of the work where nobody asks how much the members differ.

        Every elite gets its equal share of the lanes in a random order, and every lane any elite with equal
        probability.

        Args:
            obs: (S, N, O).
            action: (S, N, A).
            uniform: (S, N) in [0, 1), the order.

        Returns:
            Mean and std (S, 1, N, O+1).
        """
        seeds, lanes = uniform.shape
        share = -(-lanes // self.members)
        width = share * self.members
        order = uniform.argsort(-1)
        # Who gets the shorter share is drawn too. The sum is symmetric in the lanes, so it says nothing of their order.
        turn = ((uniform.double().sum(-1, keepdim=True) % 1.0) * self.members).long() * share  # (S, 1)
        slot = (torch.arange(width, device=obs.device) + turn) % width
        lane = F.pad(order, (0, width - lanes)).gather(-1, slot).unsqueeze(-1)  # (S, K * share, 1)

        def grouped(rows: Tensor) -> Tensor:
            picked = rows.gather(-2, lane.expand(-1, -1, rows.shape[-1]))
            return picked.view(seeds, self.members, share, rows.shape[-1])

        drawn = predict(self._ensemble.folded_elites, grouped(obs), grouped(action), self._ensemble.dtype)
        back = ((order.argsort(-1) - turn) % width).unsqueeze(-1)  # where each lane's answer stands

        def ungrouped(answer: Tensor) -> Tensor:
            return answer.flatten(1, 2).gather(-2, back.expand(-1, -1, answer.shape[-1])).unsqueeze(1)

        return Prediction(ungrouped(drawn.mean), ungrouped(drawn.std))


def moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std (*, D) of columns (*, N, D); the std of a constant column is 0."""
    std, mean = torch.std_mean(columns, -2, correction=0)
    # Also constant is a column that varies by rounding alone: divided by that, imagination would explode.
    constant = std <= 1e-6 * mean.abs() + 1e-12
    return mean, torch.where(constant, torch.zeros_like(std), std)


def scaler(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The same as something to divide by: the std of a constant column is 1."""
    mean, std = moments(columns)
    return mean, torch.where(std == 0, torch.ones_like(std), std)


@dataclass(frozen=True)
class Split:
    """Which rows of a dataset each seed holds out, and which ones each member has seen.

    Row i is out of member e's bag if it stands neither in `holdout` nor in `bootstrap[s, e]`.
    """

    train: Tensor  # (S, T) row indices
    holdout: Tensor  # (S, H) row indices
    bootstrap: Tensor  # (S, E, T) int32 row indices, drawn with replacement from `train`, on the CPU

    def stacked(self, rows: int) -> Split:
        """The same rows of a table in which every seed's own `rows` stand one seed after the other."""
        first = rows * torch.arange(len(self.train)).unsqueeze(-1)
        device = self.train.device
        return Split(
            self.train + first.to(device),
            self.holdout + first.to(device),
            self.bootstrap + first.unsqueeze(-1).to(torch.int32),
        )
