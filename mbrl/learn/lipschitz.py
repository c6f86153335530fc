"""How steep the critics are in the observation, and how much of a model's error the value sees.

Zheng et al. (2023) trace the gain of model ensembles to smoother values: |E_P V - E_P' V| <= Lip(V) W1(P, P'). These
are the measures of that line of work. Pure functions of rows, wherever those come from: (S, N, .), or (N, .) shared by
the seeds. Steps between observations are in stds of the observation, so that numbers compare across dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbrl.learn.regularisers import slope
from mbrl.learn.sac import SAC
from mbrl.nets import Params, rand, randn
from mbrl.spectral import singular_maximum
from mbrl.types import DynamicsModel, Metrics, Prediction, QFunction, Transition

ROWS = 256
"""Rows of a measurement: callers hand in so many."""

PERTURBATIONS, RADIUS = 32, 0.05
"""Steps from every observation, and the longest of them."""

SAMPLES = 20
"""Next states drawn of every row."""

Value = Callable[[Tensor, Tensor], Tensor]
"""obs (S, B, O), noise (S, B, A) of the policy -> value (S, B)."""


@torch.no_grad()
def measure(
    learner: SAC,
    rows: Transition,
    observation_std: Tensor,
    generators: Sequence[torch.Generator],
    model: DynamicsModel | None = None,
) -> Metrics:
    """Everything, of each seed.

    Args:
        learner: whose critics and policy are asked.
        rows: real transitions, (S, N, .) or (N, .), best such that neither critics nor model have seen.
        observation_std: (O,) or (S, O); 0 where nothing ever varies.
        generators: one per seed, on the learner's device.
        model: whose members are the simulator; None where nobody asks a model.

    Returns:
        (S,) each:
        local_mean, local_95, local_max: of the local Lipschitz constant of Q at the policy's mean action over rows,
            averaged over critics; `local_max` over all critics.
        gradient_norm: mean norm of dQ/ds there.
        spectral_product: the largest product of a critic's layers' norms, which bounds all of these from above for
            plain ReLU critics, but counts in raw observations and actions.
        And with a model:
        value_error: value-aware model error, see `value_error`.
        value_error_relative: the same in units of the mean |V| of the true next states: a flat V has a small error too.
        model_error: mean square error of the mean prediction, in squared stds of the observation.
        model_spread: std of the drawn next states, averaged over dimensions, in stds of the observation.
    """
    seeds = len(learner.seeds)
    rows = Transition(*(x if x.dim() > shared else x.expand(seeds, *x.shape) for x, shared in _with_dims(rows)))
    std = observation_std.expand(seeds, -1)
    action = learner.act(rows.obs)
    noise = randn((PERTURBATIONS, rows.obs.shape[-2], rows.obs.shape[-1]), generators)
    length = rand((PERTURBATIONS, rows.obs.shape[-2]), generators)
    local = local_lipschitz(learner.q, rows.obs, action, std, noise, RADIUS * (1.0 + length) / 2.0)
    found = {
        "local_mean": local.mean((-2, -1)),
        "local_95": local.quantile(0.95, dim=-1).mean(-1),
        "local_max": local.amax((-2, -1)),
        "gradient_norm": slope(learner.opinion(rows.obs, action), std).mean((-2, -1)),
        "spectral_product": spectral_product(learner.limited(learner.critics)).amax(-1),
    }
    if model is None:
        return found
    prediction = model.predict(rows.obs, rows.action)
    mean, next_std = (x[..., :-1] for x in prediction)
    draws = draw(prediction, randn((SAMPLES, *mean.shape[-2:]), generators))

    def value(obs: Tensor, noise: Tensor) -> Tensor:
        return learner.target_q(obs, learner.sample(obs, noise)).amin(-2)

    policy_noise = randn((SAMPLES, rows.action.shape[-2], rows.action.shape[-1]), generators)
    error, size = value_error(value, rows.next_obs, draws, rows.terminal, policy_noise)
    unit = torch.where(std > 0, std, torch.ones_like(std)).unsqueeze(-2)
    spread = ((next_std.square().mean(-3) + mean.var(-3, correction=0)).sqrt() / unit).mean((-2, -1))
    return found | {
        "value_error": error,
        "value_error_relative": error / size,
        "model_error": ((mean.mean(-3) - rows.next_obs) / unit).square().mean((-2, -1)),
        "model_spread": spread,
    }


def _with_dims(rows: Transition) -> list[tuple[Tensor, int]]:
    """Every field, and how many axes it has where the seeds share it."""
    return [(x, 2 if name in ("obs", "action", "next_obs") else 1) for name, x in rows._asdict().items()]


def local_lipschitz(
    q: QFunction, obs: Tensor, action: Tensor, observation_std: Tensor, direction: Tensor, length: Tensor
) -> Tensor:
    """max_m |Q_e(s + d_m, a) - Q_e(s, a)| / ||d_m||, from below the local Lipschitz constant in the observation.

    Args:
        q: the critics.
        obs: (S, N, O).
        action: (S, N, A), the same at every step.
        observation_std: (S, O), the unit of d; 0 where nothing ever varies: no step goes there.
        direction: (S, M, N, O), of any length but 0.
        length: (S, M, N) of the steps, above 0.

    Returns:
        (S, E, N).
    """
    here = q(obs, action)
    direction = direction * (observation_std > 0)[..., None, None, :]
    unit = direction / direction.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(obs.dtype).tiny)
    largest = torch.zeros_like(here)
    for m in range(direction.shape[-3]):  # all at once would be a lot of memory with many critics
        distance = length[:, m].unsqueeze(-1)
        there = q(obs + observation_std.unsqueeze(-2) * unit[:, m] * distance, action)
        largest = torch.maximum(largest, (there - here).abs() / distance.transpose(-1, -2))
    return largest


def spectral_product(params: Params) -> Tensor:
    """The product of the layers' largest singular values: W (S, E, in, out) -> (S, E)."""
    return torch.stack([singular_maximum(weight) for weight in params[::2]]).prod(0)


def draw(prediction: Prediction, noise: Tensor) -> Tensor:
    """Next observations, sample j of member j mod E: noise (S, J, N, O) -> the same shape."""
    members = torch.arange(noise.shape[-3], device=noise.device) % prediction.mean.shape[-3]
    mean, std = (x[..., :-1].index_select(-3, members) for x in prediction)
    return mean + std * noise


def value_error(
    value: Value, next_obs: Tensor, draws: Tensor, terminal: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Value-aware model error: mean over rows of |V(s') - mean_j V(s'_j)|, s' true and s'_j of the model.

    V is a mean over the policy's actions too, by the same noise for s' and s'_j: the error of a model that is exact and
    deterministic is 0.

    Args:
        value: of an observation and an action's noise.
        next_obs: (S, N, O).
        draws: (S, J, N, O).
        terminal: (S, N) bool: nobody asks for the value of such a next state, and it does not count.
        noise: (S, J, N, A).

    Returns:
        The error (S,), and the mean of |V(s')| (S,).
    """
    true = believed = torch.zeros_like(next_obs[..., 0])
    for j in range(draws.shape[-3]):
        true = true + value(next_obs, noise[:, j])
        believed = believed + value(draws[:, j], noise[:, j])
    counts = (~terminal).sum(-1).clamp(min=1) * draws.shape[-3]
    error, size = (torch.where(terminal, 0.0, x.abs()).sum(-1) / counts for x in (true - believed, true))
    return error, size
