"""COPlanner's way to act (Wang et al. 2024, arXiv 2310.07220): of several actions of the policy, take the one after
which the model promises much and doubts little, or, where new data are wanted, doubts much.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mbrl.rollout.select import of_member, random_member
from mbrl.rollout.uncertainty import member_std, member_variance
from mbrl.types import DynamicsModel, Metrics, StochasticPolicy, Termination

Doubt = Literal["sample_std", "mean_variance", "mean_std"]

CACHED = 1024  # rows whose activations a CPU's cache holds
DEVICE = 50_000  # on a GPU as many as the lanes of a plain rollout: it needs no more memory than that


class UncertaintyPlanner:
    """Uncertainty-aware policy-guided model predictive control (UP-MPC), as the released code has it.

    K candidates are samples of the policy. Each is followed for H steps through the model by further samples of the
    policy, every next state being a sample of a random elite as in rollouts, and rated by

        J = sum_h reward_discount^h r_h + rate sum_h uncertainty_discount^h u_h,     h = 0 ... H-1.

    Only the first action of the best candidate is returned; candidate 0 is what the policy alone would have done. A
    candidate whose J is not finite is taken last. One candidate is the policy itself, and asks no model.

    Args:
        members: of the model that will be asked.
        termination: the task's own; see `mask_terminal`.
        change_std: (S, 1, 1, O+1) std of the data's changes and rewards, the unit of `standardise`. The model's own
            tensor, so that a model which is fitted again changes the unit too.
        candidates: K.
        horizon: H.
        rate: of the uncertainty. Negative shuns it (rollouts), positive seeks it (exploration in the environment).
        reward_discount: see above.
        uncertainty_discount: see above.
        uncertainty: of a step, over all members and averaged over all outputs, the reward included. `sample_std`, std
            of one sample of each (the released code), which holds their predicted noise too; `mean_variance` of their
            means (the paper's words); `mean_std`, std of their means.
        standardise: measure every output in `change_std`; else in its own unit, as published.
        mask_terminal: steps after one that ends the task count for nothing; else the look-ahead does not know of ends,
            as published, and a fall may be followed by rewards.
        chunk: candidate rows that the model is asked about at once, per seed; `auto`: what a CPU's cache holds, or as
            many as a plain rollout asks about on a GPU.
        device: of the model, for `chunk=auto`.

    Raises:
        ValueError: an unknown uncertainty; a rate that asks for a spread, of a model with a single member.
    """

    def __init__(
        self,
        members: int,
        termination: Termination,
        change_std: Tensor,
        *,
        candidates: int = 5,
        horizon: int = 5,
        rate: float = -2.0,
        reward_discount: float = 0.97,
        uncertainty_discount: float = 0.97,
        uncertainty: Doubt = "sample_std",
        standardise: bool = True,
        mask_terminal: bool = True,
        chunk: int | Literal["auto"] = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        if uncertainty not in get_args(Doubt):
            raise ValueError(f"uncertainty={uncertainty} is unknown; it is {', '.join(get_args(Doubt))}")
        if members == 1 and rate != 0 and candidates > 1:
            raise ValueError(
                f"rate={rate:g} weighs how much several members of the model differ, and it has one; choose a dynamics "
                "with members, or rate=0 to plan by reward alone"
            )
        if chunk == "auto":
            chunk = CACHED if torch.device(device).type == "cpu" else DEVICE
        self.members, self.termination = members, termination
        self.scale: Tensor | None = change_std if standardise else None
        self.candidates, self.horizon, self.rate = candidates, horizon, rate
        self.reward_discount, self.uncertainty_discount = reward_discount, uncertainty_discount
        self.sampled = uncertainty == "sample_std"
        self.measure = member_variance if uncertainty == "mean_variance" else member_std
        self.mask_terminal = mask_terminal
        self.rows = candidates
        # Whole vectors, so that a seed is computed alike, alone and stacked.
        self.lanes: int | None = None if candidates == 1 else max(32, chunk // candidates // 32 * 32)

    def noise_size(self, obs_dim: int, action_dim: int) -> int:
        """For each candidate and step an action, a choice of an elite, and a sample of one member or of all."""
        return (
            action_dim
            if self.candidates == 1
            else self.candidates * self.horizon * self._step_size(obs_dim, action_dim)
        )

    def _step_size(self, obs_dim: int, action_dim: int) -> int:
        return action_dim + 1 + (self.members if self.sampled else 1) * (obs_dim + 1)

    @torch.no_grad()
    def __call__(
        self, obs: Tensor, policy: StochasticPolicy, model: DynamicsModel, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The first action of each lane's best candidate.

        Args:
            obs: (S, N, O).
            policy: samples candidates, and acts in the look-ahead.
            model: asked about (S, K n, .) at once, n at most `lanes`.
            noise: (S, N, noise_size).

        Returns:
            action (S, N, A); of every lane (S, N): `plan_spread`, std of the candidates averaged over action
            dimensions; `plan_shift`, mean distance of the action taken from the policy's own at noise 0; `plan_first`,
            1 where candidate 0 was taken; `plan_uncertainty`, the discounted sum of the taken candidate's, and
            `plan_uncertainty_all`, its mean over candidates.
        """
        if self.candidates == 1:
            return policy(obs, noise), {}
        blocks = zip(obs.split(self.lanes or obs.shape[1], 1), noise.split(self.lanes or obs.shape[1], 1), strict=True)
        parts = [self._plan(some, policy, model, own) for some, own in blocks]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([action for action, _ in parts], 1), {
            name: torch.cat([notes[name] for _, notes in parts], 1) for name in parts[0][1]
        }

    def _plan(
        self, obs: Tensor, policy: StochasticPolicy, model: DynamicsModel, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """`__call__` for lanes that fit."""
        seeds, lanes = obs.shape[:-1]
        noise = noise.unflatten(-1, (self.candidates, self.horizon, -1)).transpose(1, 2)  # (S, K, n, H, .)
        start = obs.repeat(1, self.candidates, 1)
        first = policy(start, self._action_noise(noise, 0, model.action_dim))
        reward, uncertainty = self._look_ahead(start, first, policy, model, noise)
        worth = (reward + self.rate * uncertainty).view(seeds, self.candidates, lanes)
        best = torch.where(worth.isfinite(), worth, -torch.inf).argmax(1, keepdim=True)  # (S, 1, n)
        proposed = first.view(seeds, self.candidates, lanes, -1)
        action = of_member(proposed, best.squeeze(1))
        doubt = uncertainty.view(seeds, self.candidates, lanes)
        return action, {
            "plan_spread": member_std(proposed),
            "plan_shift": (action - policy(obs, torch.zeros_like(action))).abs().mean(-1),
            "plan_first": (best == 0).squeeze(1).to(obs.dtype),
            "plan_uncertainty": doubt.gather(1, best).squeeze(1),
            "plan_uncertainty_all": doubt.mean(1),
        }

    def _look_ahead(
        self, obs: Tensor, action: Tensor, policy: StochasticPolicy, model: DynamicsModel, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Discounted sums of reward and uncertainty (S, K n) from obs (S, K n, O) and action (S, K n, A) on."""
        alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
        rewards, uncertainties = (torch.zeros(obs.shape[:-1], device=obs.device) for _ in range(2))
        for h in range(self.horizon):
            if h:
                action = policy(obs, self._action_noise(noise, h, model.action_dim))
            next_obs, reward, uncertainty = self._step(obs, action, model, noise[..., h, model.action_dim :])
            rewards += self.reward_discount**h * torch.where(alive, reward, 0.0)
            uncertainties += self.uncertainty_discount**h * torch.where(alive, uncertainty, 0.0)
            if self.mask_terminal:
                alive = alive & ~self.termination(obs, action, next_obs)
            obs = next_obs
        return rewards, uncertainties

    def _step(self, obs: Tensor, action: Tensor, model: DynamicsModel, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Next observation (S, K n, O), reward and uncertainty (S, K n): noise (S, K, n, .) of one step."""
        prediction = model.predict(obs, action)
        noise = noise.flatten(1, 2)
        # A normal number says which elite as well as a uniform one does.
        member = random_member(model.elites, torch.special.ndtr(noise[..., 0]))
        scale = 1.0 if self.scale is None else self.scale.squeeze(1)  # (S, 1, O+1)
        if self.sampled:
            every = noise[..., 1:].unflatten(-1, (self.members, -1)).transpose(1, 2)  # (S, E, K n, O+1)
            said = prediction.mean + prediction.std * every
            drawn = of_member(said, member)
        else:
            said = prediction.mean
            drawn = of_member(said, member) + of_member(prediction.std, member) * noise[..., 1:]
        return drawn[..., :-1], drawn[..., -1], self.measure(said, scale)

    @staticmethod
    def _action_noise(noise: Tensor, h: int, action_dim: int) -> Tensor:
        """Of step h: noise (S, K, n, H, .) -> (S, K n, A)."""
        return noise[..., h, :action_dim].flatten(1, 2)
