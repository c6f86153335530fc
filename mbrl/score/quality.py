"""Does a score choose better candidates than chance, and than the one closest to the mean?

Telling truth from model is not ranking: classifiers that order nearly all true-versus-model pairs correctly were among
the worst at choosing among a model's own candidates. So a score is judged by the error of what it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import generator, rand, randn
from mbrl.rollout.select import draw_candidates
from mbrl.score.baselines import ClosestToMean, distance
from mbrl.score.rows import EnsembleRows, root_mean_square
from mbrl.types import Metrics, Score, Transition


def candidate_errors(candidates: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """Root mean square over dimensions of (candidate - truth) / scale.

    Args:
        candidates: next observation and reward (S, K, N, O+1); the reward is left out.
        truth: next observation (S, N, O).
        scale: standard deviation of the data's changes (S, 1, O).

    Returns:
        (S, K, N).
    """
    return distance(candidates[..., :-1], truth, scale)


def ranking_quality(values: Tensor, errors: Tensor) -> Metrics:
    """What is gained by taking the candidate with the highest score.

    Args:
        values: of a score (S, K, N).
        errors: of the same candidates (S, K, N).

    Returns:
        (S,) each: `ratio`, mean error of the chosen candidates over mean error of all; `pn`, the same ratio state by
        state, then averaged (the first is ruled by few states with large errors; look at both; 1 is chance);
        `within`, rank correlation of score and minus error among the candidates of a state, averaged; `across`, rank
        correlation over states of the chosen candidate's score and minus its error: what a truncation can use.
    """
    error, value = chosen(values, errors), values.amax(-2)
    everyone = errors.mean(-2)
    return {
        "ratio": error.mean(-1) / everyone.mean(-1),
        "pn": (error / everyone.clamp(min=1e-12)).mean(-1),
        "within": rank_correlation(values.transpose(-1, -2), -errors.transpose(-1, -2)).mean(-1),
        "across": rank_correlation(value, -error),
    }


def compare(values: Mapping[str, Tensor], baseline: Tensor, errors: Tensor, seeds: Sequence[int]) -> dict[str, Metrics]:
    """Judge several scores on the same candidates, wherever the truth comes from.

    Args:
        values: name -> what a score says of the candidates (S, K, N).
        baseline: what the one to beat says of them, as a rule `ClosestToMean`.
        errors: of the candidates.
        seeds: of the stack.

    Returns:
        name -> what `ranking_quality` says, and `low` and `high`: the ends of `paired_interval`. A score whose interval
        is not below 0 has no value as a filter.
    """
    result = {}
    for name, value in values.items():
        low, high = paired_interval(value, baseline, errors, seeds)
        result[name] = ranking_quality(value, errors) | {"low": low, "high": high}
    return result


def chosen(values: Tensor, errors: Tensor) -> Tensor:
    """Error of the candidate with the highest score: values and errors (S, K, N) -> (S, N)."""
    return errors.gather(-2, values.argmax(-2, keepdim=True)).squeeze(-2)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation along the last axis, ties sharing their mean rank: (*, n) and (*, n) -> (*).

    0 where one side is constant.
    """
    return correlation(ranks(a), ranks(b))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's along the last axis: (*, n) and (*, n) -> (*); 0 where one side is constant."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp(min=1e-12)


def ranks(x: Tensor) -> Tensor:
    """Rank of every number along the last axis, counted from 0; equal numbers share the mean of their ranks."""
    x = x.contiguous()
    row = x.sort(-1).values.contiguous()
    below, upto = torch.searchsorted(row, x), torch.searchsorted(row, x, right=True)
    return 0.5 * (below + upto - 1).to(x.dtype)


def paired_interval(
    values: Tensor, baseline: Tensor, errors: Tensor, seeds: Sequence[int], resamples: int = 500
) -> tuple[Tensor, Tensor]:
    """95 % bootstrap interval of ratio(score) - ratio(baseline) over states; below 0 the score chooses better.

    It holds the uncertainty of which states were looked at, and none of how the score was trained.

    Args:
        values: of the score (S, K, N).
        baseline: of another score, same candidates.
        errors: of the candidates.
        seeds: whose states are resampled, each from its own generator.
        resamples: bootstrap samples.

    Returns:
        Lower and upper end, (S,) each.
    """
    gain, everyone = chosen(values, errors) - chosen(baseline, errors), errors.mean(-2)
    states = gain.shape[-1]
    sources = [generator(seed, "score", "interval", device=errors.device) for seed in seeds]
    pick = (rand((resamples, states), sources, dtype=torch.float64) * states).long()
    expand = (-1, resamples, -1)
    difference = gain.unsqueeze(-2).expand(expand).gather(-1, pick).mean(-1)
    difference = difference / everyone.unsqueeze(-2).expand(expand).gather(-1, pick).mean(-1)
    low, high = difference.quantile(torch.tensor([0.025, 0.975], device=errors.device), dim=-1)
    return low, high


@torch.no_grad()
def held_out_ranking(
    scores: Mapping[str, Score], model: GaussianEnsemble, data: Transition, *, resample: int = 2
) -> dict[str, Metrics]:
    """Judge scores on the rows that the ensemble has held out, where the truth is known without a simulator.

    Args:
        scores: by name; `random` and `closest_to_mean` are added.
        model: a fitted ensemble.
        data: rows (N, .) that it was fitted on; each seed is judged on its own held-out rows.
        resample: candidates per elite.

    Returns:
        What `compare` says, with `closest_to_mean` as the baseline.
    """
    rows = EnsembleRows.of(data, model)
    closest = ClosestToMean(data.obs.shape[-1], data.action.shape[-1], model.seeds, device=model.device)
    closest.fit(data, model)
    sources = [generator(seed, "score", "held out", device=model.device) for seed in model.seeds]
    obs, action, delta = rows.held_out()
    prediction = model.predict(obs, action)
    shape = (resample * model.elites.shape[-1], *obs.shape[-2:-1], obs.shape[-1] + 1)
    candidates = draw_candidates(prediction, model.elites, randn(shape, sources))
    errors = candidate_errors(candidates, obs + delta, closest.scale)
    values = {
        name: score(obs, action, candidates, prediction, model.elites)
        for name, score in {"closest_to_mean": closest, **scores}.items()
    }
    values["random"] = rand(tuple(errors.shape[1:]), sources)
    return compare(values, values["closest_to_mean"], errors, model.seeds)


@torch.no_grad()
def order_checks(score: Score, model: GaussianEnsemble, data: Transition) -> Metrics:
    """Whether the score falls from truth to model, to noise, to nonsense, on the held-out rows.

    Passing says nothing about ranking, failing says that something is wrong.

    Args:
        score: a fitted one.
        model: a fitted ensemble.
        data: rows (N, .) that it was fitted on.

    Returns:
        (S,) each. Mean scores: `data`, of the logged next state; `model`, of a sample of an elite; `noisy`, of the
        logged one plus noise of three times the model's residual; `shuffled`, of the change of another row. Shares of
        rows in which the order is right: `data>model`, `model>noisy`, `noisy>shuffled`.
    """
    rows = EnsembleRows.of(data, model)
    obs, action, delta = rows.held_out()
    sources = [generator(seed, "score", "order", device=model.device) for seed in model.seeds]
    prediction = model.predict(obs, action)
    truth = obs + delta
    sampled = draw_candidates(prediction, model.elites[:, :1], randn((1, *prediction.mean.shape[-2:]), sources))[:, 0]
    rho = root_mean_square(truth - prediction.of(model.elites).mean.mean(-3)[..., :-1])
    noisy = truth + 3.0 * rho * randn(tuple(truth.shape[1:]), sources)
    # Every row gets the change of the next one: held-out rows come in random order.
    shuffled = obs + delta.roll(1, -2)
    names = ("data", "model", "noisy", "shuffled")
    reward = sampled[..., -1:]
    candidates = torch.stack([torch.cat([x, reward], -1) for x in (truth, sampled[..., :-1], noisy, shuffled)], 1)
    values = score(obs, action, candidates, prediction, model.elites)  # (S, 4, N)
    means = {name: values[:, i].mean(-1) for i, name in enumerate(names)}
    shares = {
        f"{names[i]}>{names[i + 1]}": (values[:, i] > values[:, i + 1]).to(values.dtype).mean(-1) for i in range(3)
    }
    return means | shares
