"""How well a fitted model predicts rows that it was not fitted on, in numbers that compare across datasets.

Pure functions of a model and held-out rows; leading axis seeds. D is O+1: the dimensions of the observation, then the
reward. One-step errors are in stds of a step's change (and of the reward) over the dataset: 1 is the error of always
predicting the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble, scaler
from mbrl.nets import randn
from mbrl.types import DynamicsModel, Prediction, Transition

DRAWS = 2
"""Candidates drawn from every elite."""

STEPS = (1, 5, 10, 20)
"""Lengths of the open-loop predictions."""

GATE_STEPS, GATE_MARGIN = 3000, 0.15
"""Updates of the squared-error net, and how much better it must be for a warning."""


@dataclass(frozen=True)
class Quality:
    """Of one model per seed.

    Attributes:
        candidate_error: (S,) error of a sample of an elite, averaged over rows. The error of a row is the root mean
            square over the observation's dimensions.
        mean_error: (S,) the same of the average of the elites' means. It is 1/sqrt(2) of `candidate_error` where all
            error is noise of the world, and nearly the same where samples scatter little around a wrong mean.
        rmse: (S, D) root mean squared error of that average.
        r2: (S, D) share of the held-out variance, of changes and of the reward, that it explains.
        within_one: (S, D) share of the truths within 1 predicted std of it; 0.683 if the std is right.
        within_two: (S, D) within 2; 0.954 if the std is right.
        squared_residual: (S, D) mean square of (truth - mean) / predicted std; 1 if the std is right.
        open_loop: (S, len(STEPS)) error after that many steps, see `open_loop_error`.
    """

    candidate_error: Tensor
    mean_error: Tensor
    rmse: Tensor
    r2: Tensor
    within_one: Tensor
    within_two: Tensor
    squared_residual: Tensor
    open_loop: Tensor

    def summary(self) -> dict[str, Tensor]:
        """A few numbers (S,) for logs and tables."""
        return {
            "candidate_error": self.candidate_error,
            "mean_error": self.mean_error,
            "mean_to_candidate_ratio": self.mean_error / self.candidate_error,
            "within_one_std": self.within_one.mean(-1),
            "within_two_std": self.within_two.mean(-1),
            "squared_residual": self.squared_residual.mean(-1),
            **{f"error_after_{k}": error for k, error in zip(STEPS, self.open_loop.unbind(-1), strict=True)},
        }

    def per_dimension(self) -> dict[str, Tensor]:
        """Everything that is known of each dimension, (S, D)."""
        names = ("rmse", "r2", "within_one", "within_two", "squared_residual")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def measure(
    model: DynamicsModel,
    data: Transition,
    episode_end: Tensor,
    holdout: Tensor,
    generators: Sequence[torch.Generator],
) -> Quality:
    """All of `Quality`.

    Args:
        model: fitted.
        data: the whole dataset, rows (N, .) in the order they were logged.
        episode_end: (N,) bool: the next row belongs to another episode.
        holdout: (S, H) rows that each seed's model has not seen.
        generators: one per seed, on the model's device, for the candidates' noise.
    """
    device = model.elites.device
    obs, next_obs, action, reward = (
        x[holdout.cpu()].to(device) for x in (data.obs, data.next_obs, data.action, data.reward)
    )
    truth = torch.cat([next_obs, reward.unsqueeze(-1)], -1)
    change = truth - F.pad(obs, (0, 1))
    scale = scaler(torch.cat([data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1))[1].to(device)
    prediction = elite_prediction(model, obs, action)
    mean, std = mixture(prediction)
    noise = randn((DRAWS, *prediction.mean.shape[1:]), generators).transpose(0, 1)  # (DRAWS, S, K, H, D)
    candidates = prediction.mean + prediction.std * noise
    residual = truth - mean
    ratio = residual / std
    return Quality(
        candidate_error=row_error(candidates - truth.unsqueeze(-3), scale).mean((0, -2, -1)),
        mean_error=row_error(residual, scale).mean(-1),
        rmse=(residual / scale).square().mean(-2).sqrt(),
        r2=1 - residual.square().mean(-2) / scaler(change)[1].square(),
        within_one=(ratio.abs() <= 1).float().mean(-2),
        within_two=(ratio.abs() <= 2).float().mean(-2),
        squared_residual=ratio.square().mean(-2),
        open_loop=open_loop_error(model, data, episode_end, holdout),
    )


def row_error(difference: Tensor, scale: Tensor) -> Tensor:
    """Root mean square over the observation's dimensions: difference (*, N, D), scale (D,) -> (*, N)."""
    return (difference / scale)[..., :-1].square().mean(-1).sqrt()


def elite_prediction(model: DynamicsModel, obs: Tensor, action: Tensor) -> Prediction:
    """Of the elites alone: obs (S, N, O), action (S, N, A) -> (S, K, N, D)."""
    return model.predict(obs, action).of(model.elites)


def mixture(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Mean and std of the mixture of all members in equal parts: (S, K, N, D) -> (S, N, D) each."""
    variance = prediction.std.square().mean(-3) + prediction.mean.var(-3, correction=0)
    return prediction.mean.mean(-3), variance.sqrt()


@torch.no_grad()
def open_loop_error(
    model: DynamicsModel, data: Transition, episode_end: Tensor, starts: Tensor, steps: Sequence[int] = STEPS
) -> Tensor:
    """Replay logged actions through the average of the elites' means, and compare with the logged states.

    Only the start was held out as a row: what follows it in its episode may have been fitted on. The actions are the
    log's, so this is a test of the model, not of what a new policy would make of it.

    Args:
        model: fitted.
        data: the whole dataset, rows (N, .) in the order they were logged.
        episode_end: (N,) bool: the next row belongs to another episode.
        starts: (S, H) rows.
        steps: numbers of steps.

    Returns:
        (S, len(steps)): root mean square over dimensions in stds of the state, averaged over the starts whose episode
        goes on for so long; NaN if there is none.
    """
    end = episode_end.clone()
    end[-1] = True
    last = torch.nonzero(end).flatten()[end.cumsum(0) - end.long()]  # (N,) last row of the row's episode
    starts = starts.cpu()
    logged = last[starts] - starts + 1  # steps that the log knows from here on
    device = model.elites.device
    scale = scaler(data.obs)[1].to(device)
    obs = data.obs[starts].to(device)
    errors = []
    for t in range(max(steps)):
        row = (starts + t).clamp(max=len(end) - 1)
        mean, _ = mixture(elite_prediction(model, obs, data.action[row].to(device)))
        obs = mean[..., :-1]
        if t + 1 in steps:
            error = ((obs - data.next_obs[row].to(device)) / scale).square().mean(-1).sqrt()
            known = (logged > t).to(device)
            errors.append(torch.where(known, error, 0.0).sum(-1) / known.sum(-1))
    return torch.stack(errors, -1)


# -- the gate ----------------------------------------------------------------------------------------------------------


def squared_error_net(model: GaussianEnsemble, steps: int = GATE_STEPS) -> GaussianEnsemble:
    """One net of the size of a member and with its held-out rows, to be fitted by squared error for a short while.

    An ensemble whose mean is clearly worse than this one's is underfitted, whatever its likelihood says.
    """
    return GaussianEnsemble(
        model.obs_dim,
        model.action_dim,
        model.seeds,
        members=1,
        elites=1,
        hidden=[bias.shape[-1] for bias in model.params[1:-2:2]],
        batch_size=model.batch_size,
        holdout_fraction=model.holdout_fraction,
        holdout_max=model.holdout_max,
        patience=None,
        improvement=0.0,
        max_steps=steps,
        loss="mse_mean",
        standardise_targets=True,
        schedule="cosine",
        device=model.device,
    )


def gate_warning(seeds: Sequence[int], elites: Tensor, net: Tensor, loss: str) -> str | None:
    """What to change if the squared-error net predicts much better than the elites; None if it does not.

    Args:
        seeds: S.
        elites: their `mean_error` (S,).
        net: that of the squared-error net (S,).
        loss: what the ensemble was fitted by.
    """
    behind = [i for i, (ours, other) in enumerate(zip(elites, net, strict=True)) if other < (1 - GATE_MARGIN) * ours]
    if not behind:
        return None
    longer = "fit for longer (dynamics.max_steps, max_epochs, patience)"
    way_out = longer if loss == "beta_nll" else f"use dynamics=beta_nll, or {longer}"
    which = ", ".join(f"seed {seeds[i]}: {float(net[i]):.3f} against {float(elites[i]):.3f}" for i in behind)
    return (
        f"a squared-error net of a member's size, fitted for {GATE_STEPS:,} updates, predicts held-out rows more than "
        f"{GATE_MARGIN:.0%} better than the elites' mean ({which}): the model is underfitted; {way_out}"
    )


# -- display -----------------------------------------------------------------------------------------------------------


LABELS = {
    "candidate_error": "one-step error of a sample, in stds of a step's change",
    "mean_error": "  of the elites' mean",
    "mean_to_candidate_ratio": "  ratio of the two",
    "within_one_std": "truths within 1 predicted std (0.683 if it is right)",
    "within_two_std": "  within 2 (0.954)",
    "squared_residual": "  mean squared residual, in predicted variances (1)",
    **{
        f"error_after_{k}": f"error after {k} logged actions, in stds of the state" if i == 0 else f"  after {k}"
        for i, k in enumerate(STEPS[1:])
    },
}


def summary_table(quality: Quality) -> Table:
    """A line per number: its value, or with several seeds their mean, least and most."""
    table = Table(title="dynamics model on held-out rows", title_justify="left", box=None, padding=(0, 1))
    numbers = quality.summary()
    several = len(quality.mean_error) > 1
    table.add_column("")
    for heading in ("mean", "least", "most") if several else ("",):
        table.add_column(heading, justify="right")
    for name, label in LABELS.items():
        values = numbers[name]
        shown = (values.mean(), values.min(), values.max()) if several else (values[0],)
        table.add_row(label, *(f"{float(value):.3f}" for value in shown))
    return table


def dimension_table(quality: Quality) -> Table:
    """A line per dimension, averaged over seeds."""
    table = Table(title="every dimension, mean over seeds", title_justify="left", box=None, padding=(0, 1))
    for heading in ("", "RMSE / std", "R2", "within 1", "within 2", "squared residual"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = torch.stack([values.mean(0) for values in quality.per_dimension().values()], -1)
    for name, values in zip(dimension_names(len(rows)), rows.tolist(), strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in values))
    return table


def dimension_names(count: int) -> list[str]:
    """`obs[0]`, `obs[1]`, ..., `reward`."""
    return [*(f"obs[{i}]" for i in range(count - 1)), "reward"]


def as_json(quality: Quality, seeds: Sequence[int]) -> dict[str, Any]:
    """For `quality.json`: lists in the order of `seeds`, and of `dimensions` within."""
    return {
        "seeds": list(seeds),
        **{name: values.tolist() for name, values in quality.summary().items()},
        "dimensions": dimension_names(quality.rmse.shape[-1]),
        "per_dimension": {name: values.tolist() for name, values in quality.per_dimension().items()},
    }
