"""What the model itself says of a policy: the stand-in for an evaluation where there is no simulator.

It is an opinion of the thing that the policy was trained to please, and is labelled so wherever it is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Imagined, Learner, Metrics, Policy, Prediction, Selected


@torch.no_grad()
def model_estimate(
    learner: Learner, imagination: Imagination, starts: Tensor, horizon: int, evaluation: int
) -> Metrics:
    """Roll the deterministic policy through the model from given states.

    Args:
        learner: its policy and critics are asked.
        imagination: its model, selector and filters are used, without penalties.
        starts: observations (N, O) where episodes begin.
        horizon: steps, at most.
        evaluation: makes the noise of every evaluation its own.

    Returns:
        (S,) each: `return`, mean undiscounted reward sum over `horizon` steps; `length`, mean steps until terminal;
        `uncertainty`, mean max-aleatoric uncertainty a step; `q_start`, mean of the smallest critic at the start.
    """
    seeds = learner.seeds
    # What the world does, and nothing of what is made of it: no penalty, no end of a lane by distrust.
    believed = [f for f in imagination.filters.filters if isinstance(f, Clip | Terminate)]
    plain = dataclasses.replace(
        imagination, actions=PolicyActions(), filters=FilterChain(others=believed), simulator=None
    )
    sources = [generator(seed, "estimate", evaluation, device=starts.device) for seed in seeds]
    act: Callable[[Tensor, Tensor], Tensor] = lambda obs, noise: learner.act(obs, mode="mean")  # noqa: E731
    obs = starts.expand(len(seeds), *starts.shape)
    alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
    q_start = learner.q(obs, learner.act(obs)).amin(-2).mean(-1)
    total, length, doubt = (torch.zeros(obs.shape[:-1], device=obs.device) for _ in range(3))
    for t in range(horizon):
        step = plain.step(obs, alive, act, sources, t)
        total += torch.where(alive, step.reward, 0.0)
        doubt += torch.where(alive, max_aleatoric(step.prediction), 0.0)
        length += alive
        obs, alive = step.next_obs, step.alive
    return {
        "return": total.mean(-1),
        "length": length.mean(-1),
        "uncertainty": doubt.sum(-1) / length.sum(-1),
        "q_start": q_start,
    }


class PessimisticReturn(NamedTuple):
    """What the worlds of an ensemble say of policies."""

    by_member: Tensor  # (S, E) mean return in every member's world
    bound: Tensor  # (S,) mean over members - pessimism * std over members


@torch.no_grad()
def pessimistic_return(
    act: Policy,
    predict: Callable[[Tensor, Tensor], Prediction],
    filters: FilterChain,
    starts: Tensor,
    horizon: int,
    *,
    seeds: int,
    members: int,
    pessimism: float,
    source: torch.Generator,
) -> PessimisticReturn:
    """Roll deterministic policies from given states through every member alone, as if it were the world.

    A lower confidence bound: policies that do well in one member by its own mistakes do so in no other. Errors that all
    members share, since all are fitted to the same data, it does not see. All policies meet the same noise, so that a
    difference between two of them is a difference of policies.

    Args:
        act: S policies, obs (S, N, O) -> action (S, N, A).
        predict: every member at lanes of its own, obs (E, N, O) and action (E, N, A) -> mean and std (E, N, O+1).
        filters: what ends or limits an imagined lane in the task: no penalty, no distrust.
        starts: observations (N, O) where episodes begin.
        horizon: steps, at most; what comes later is not counted.
        seeds: S.
        members: E.
        pessimism: standard deviations (over members, population form) taken off the mean.
        source: of the members' noise.

    Returns:
        Undiscounted reward sums, means over starts.
    """
    lanes, size = starts.shape
    obs = starts.expand(members, seeds, lanes, size)
    alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
    total = torch.zeros(obs.shape[:-1], device=obs.device)
    world = torch.arange(members, device=obs.device).view(-1, 1, 1)
    for t in range(horizon):
        asked = obs.transpose(0, 1).reshape(seeds, members * lanes, size)
        action = act(asked).reshape(seeds, members, lanes, -1).transpose(0, 1)
        mean, std = predict(obs.flatten(1, 2), action.flatten(1, 2))
        noise = torch.randn((members, 1, lanes, size + 1), generator=source, device=obs.device)
        outcome = mean.view(members, seeds, lanes, -1) + std.view(members, seeds, lanes, -1) * noise
        next_obs, reward = outcome[..., :-1], outcome[..., -1]
        no_end, no_score = torch.zeros_like(alive), torch.zeros_like(reward)
        taken = Selected(next_obs, reward, no_score, world.expand(reward.shape))
        step = filters(
            Imagined(obs, action, next_obs, reward, no_end, alive, alive, no_score, Prediction(mean, std), taken), t
        )
        total += torch.where(alive, step.reward, 0.0)
        obs, alive = step.next_obs, step.alive
    by_member = total.mean(-1).transpose(0, 1)
    return PessimisticReturn(by_member, by_member.mean(-1) - pessimism * by_member.std(-1, correction=0))
