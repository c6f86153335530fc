"""What the model itself says of a policy: the stand-in for an evaluation where there is no simulator.

It is an opinion of the thing that the policy was trained to please, and is labelled so wherever it is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Learner, Metrics


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
