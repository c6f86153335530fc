"""Soft actor-critic (Haarnoja et al. 2018) on stacked seeds, with a place for every term the offline methods change.

An update is: critics, actor, temperature, target critics. State is plain tensors with leading axes (S) or (S, E);
gradients are taken only of what steps; nothing syncs with the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mbrl.capture import gradients
from mbrl.learn.backups import minimum
from mbrl.learn.encoders import Identity
from mbrl.nets import (
    CriticPass,
    Params,
    Precision,
    criticise,
    gaussian_policy,
    generator,
    init_mlp,
    product_dtype,
    q_values,
    squash,
)
from mbrl.optim import Adam, copy_tensors
from mbrl.spectral import SpectralLimit
from mbrl.types import Backup, Batch, Encoder, Metrics, Regulariser, StateDict, TargetPenalty


class SAC:
    """SAC for `S` seeds at once.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: each seed has its own initial weights; everything else it needs is handed in.
        critics: E, any number that `backup` can do with.
        hidden: widths of the actor's and the critics' hidden layers (ReLU).
        discount: gamma.
        target_rate: tau of the moving average of the critics.
        actor_learning_rate: of Adam, before the schedule.
        critic_learning_rate: of Adam.
        temperature_learning_rate: of Adam on log(alpha).
        target_entropy: in nats; None means -A.
        initial_temperature: alpha at the start.
        max_temperature: alpha is kept below it; None for no limit. The model-based methods were published with 1. Their
            code lets log(alpha) grow on and cuts alpha where it is used; here log(alpha) itself stops, so that alpha
            falls as soon as the entropy is above its target.
        cosine_actor: actor learning rate falls to 0 along a half cosine over the run.
        soft_backup: the target includes the entropy term.
        encoder: what the networks see of an observation.
        backup: what the critics' opinions come to, in the target and for the actor.
        backup_actions: a critic's value of a next state is its largest over this many actions of the policy (max-q
            backup: Kumar et al. 2020, appendix F; MOBILE on Adroit). More than one has no density: no `soft_backup`.
        target_penalty: taken off the Bellman target, e.g. MOBILE's.
        target_minimum: Bellman targets are kept at or above it; None for no limit. MOBILE was published with 0, which
            is right where no return is negative.
        regularisers: terms added to the critic loss.
        layer_norm: normalise the critics' hidden layers before their ReLU (as in RLPD, Ball et al. 2023, there with
            learnt gains): what a critic says beyond its data then hardly grows with the distance.
        spectral_radius: the largest spectral norm of a critic's layer (`mbrl.spectral`); None for no limit. `critics`
            and `target_critics` are then the weights before they are shrunk; `limited` and `limited_targets` are what
            counts.
        observation_std: (Z,) or (S, Z), the unit in which regularisers move observations; None for 1. It may be changed
            later, in place.
        precision: of the matrix products; parameters, activations, losses and moments are float32 always.
        device: where everything lives.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        critics: int = 2,
        hidden: Sequence[int] = (256, 256),
        discount: float = 0.99,
        target_rate: float = 0.005,
        actor_learning_rate: float = 1e-4,
        critic_learning_rate: float = 3e-4,
        temperature_learning_rate: float = 1e-4,
        target_entropy: float | None = None,
        initial_temperature: float = 1.0,
        max_temperature: float | None = 1.0,
        cosine_actor: bool = True,
        soft_backup: bool = True,
        encoder: Encoder | None = None,
        backup: Backup = minimum,
        backup_actions: int = 1,
        target_penalty: TargetPenalty | None = None,
        target_minimum: float | None = None,
        regularisers: Sequence[Regulariser] = (),
        layer_norm: bool = False,
        spectral_radius: float | None = None,
        observation_std: Tensor | None = None,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        if backup_actions > 1 and soft_backup:
            raise ValueError(
                f"learner.backup_actions={backup_actions}: the largest of several values has no entropy term; give "
                "learner.soft_backup=false too"
            )
        self.obs_dim, self.action_dim, self.seeds = obs_dim, action_dim, tuple(seeds)
        self.discount, self.target_rate = discount, target_rate
        self.target_entropy = -float(action_dim) if target_entropy is None else target_entropy
        self.max_log_temperature = math.inf if max_temperature is None else math.log(max_temperature)
        self.cosine_actor, self.soft_backup = cosine_actor, soft_backup
        self.encoder: Encoder = encoder if encoder is not None else Identity()
        self.backup, self.backup_actions, self.regularisers = backup, backup_actions, tuple(regularisers)
        self._backup_noise = backup.noise_size(critics)
        self.target_penalty, self.target_minimum = target_penalty, target_minimum
        self._dtype = product_dtype(precision)
        self.layer_norm = layer_norm
        self._values: Callable[..., Tensor] = partial(q_values, dtype=self._dtype, layer_norm=layer_norm)
        self._policy = partial(gaussian_policy, dtype=self._dtype)

        z = self.encoder.size(obs_dim)
        actor_sources = [generator(seed, "learner", "actor") for seed in seeds]
        critic_sources = [generator(seed, "learner", "critics") for seed in seeds]
        self.actor = [p.to(device) for p in init_mlp([z, *hidden, 2 * action_dim], actor_sources)]
        self.critics = [p.to(device) for p in init_mlp([z + action_dim, *hidden, 1], critic_sources, (critics,))]
        self.target_critics = [p.clone() for p in self.critics]
        self.log_temperature = torch.full((len(self.seeds),), math.log(initial_temperature), device=device)
        # Target critics have vectors of their own: by the critics' they were found to lie 75 % above the radius.
        self.spectral: SpectralLimit | None = None
        self.target_spectral: SpectralLimit | None = None
        if spectral_radius is not None:
            self.spectral, self.target_spectral = (
                SpectralLimit(self.critics, spectral_radius, [generator(seed, "learner", "spectral") for seed in seeds])
                for _ in range(2)
            )
        self.observation_std = torch.ones((len(self.seeds), z), device=device)
        if observation_std is not None:
            self.observation_std.copy_(observation_std)
        self._standardised = any(term.standardised for term in self.regularisers)
        self.actor_optimiser = Adam(self.actor, actor_learning_rate)
        self.critic_optimiser = Adam(self.critics, critic_learning_rate)
        self.temperature_optimiser = Adam([self.log_temperature], temperature_learning_rate)

    def noise_size(self, batch_size: int) -> int:
        """An action per row, `backup_actions` per next state, and what backup, penalty and regularisers ask for."""
        size = (1 + self.backup_actions) * batch_size * self.action_dim + self._backup_noise
        if self.target_penalty is not None:
            size += self.target_penalty.noise_size(batch_size, self.obs_dim, self.action_dim)
        return size + sum(self._regulariser_noise(batch_size))

    def _regulariser_noise(self, batch_size: int) -> list[int]:
        width = self.observation_std.shape[-1]
        return [term.noise_size(batch_size, width, self.action_dim) for term in self.regularisers]

    def update(self, batch: Batch, noise: Tensor, progress: Tensor) -> Metrics:
        """One step of everything on a batch (S, B); noise (S, noise_size); progress () in [0, 1] of the run."""
        rows = batch.transition.reward.shape[-1]
        own, following = rows * self.action_dim, self.backup_actions * rows * self.action_dim
        regular = sum(self._regulariser_noise(rows))
        rest = noise.shape[-1] - own - following - self._backup_noise - regular
        here, there, chance, extra, moves = noise.split([own, following, self._backup_noise, rest, regular], -1)
        here, there = (x.unflatten(-1, (-1, self.action_dim)) for x in (here, there))
        z = self.encoder(batch.transition.obs)

        if self.spectral is not None and self.target_spectral is not None:
            self.spectral.follow(self.critics)
            self.target_spectral.follow(self.target_critics)
        penalty = None
        if self.target_penalty is not None:
            penalty = self.target_penalty(batch, self.target_q, self.sample, extra)
        target = self.target(batch, there, penalty, chance)
        grads, (critic_loss, q) = gradients(
            lambda critics: self.critic_loss(critics, z, batch.transition.action, target, moves), self.critics
        )
        self.critic_optimiser.step(grads)

        grads, (actor_loss, log_density) = gradients(lambda actor: self.actor_loss(actor, z, here), self.actor)
        scale = 0.5 * (1.0 + torch.cos(math.pi * progress)) if self.cosine_actor else None
        self.actor_optimiser.step(grads, scale)

        # d/d log(alpha) of  -log(alpha) (log pi + target entropy),  written out.
        self.temperature_optimiser.step([-(log_density.mean(-1) + self.target_entropy)])
        self.log_temperature.clamp_(max=self.max_log_temperature)
        torch._foreach_lerp_(self.target_critics, self.critics, self.target_rate)

        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "temperature": self.log_temperature.exp(),
            "entropy": -log_density.mean(-1),
            "q": q.mean((-2, -1)),
            "q_spread": (q.amax(-2) - q.amin(-2)).mean(-1),
            "target": target.mean(-1),
        }
        return metrics if penalty is None else metrics | {"target_penalty": penalty.mean(-1)}

    def target(
        self, batch: Batch, noise: Tensor, penalty: Tensor | None = None, chance: Tensor | None = None
    ) -> Tensor:
        """Bellman target (S, B): r + gamma (1 - terminal) (backup Q'(s', a') - alpha log pi(a'|s')) - penalty.

        Args:
            batch: (S, B).
            noise: of the next actions, (S, backup_actions * B, A).
            penalty: (S, B).
            chance: the backup's noise; None where it needs none.
        """
        step = batch.transition
        z = self.encoder(step.next_obs)
        mean, log_std = self._policy(self.actor, z)
        if self.backup_actions > 1:
            z, mean, log_std = (x.repeat(1, self.backup_actions, 1) for x in (z, mean, log_std))
        action, log_density = squash(mean, log_std, noise)
        next_q = self._values(self.limited_targets(), z, action)
        if self.backup_actions > 1:
            next_q = next_q.unflatten(-1, (self.backup_actions, -1)).amax(-2)
        value = self.backup(next_q, noise.new_empty(0) if chance is None else chance)
        if self.soft_backup:
            value = value - self.log_temperature.exp().unsqueeze(-1) * log_density
        target = step.reward + self.discount * torch.where(step.terminal, torch.zeros_like(value), value)
        if penalty is not None:
            target = target - penalty
        return target if self.target_minimum is None else target.clamp(min=self.target_minimum)

    def critic_loss(
        self, critics: Params, z: Tensor, action: Tensor, target: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Squared error, mean over rows, summed over critics and seeds, plus regularisers and their noise (S, n).

        Returns the sum over seeds, the loss of each seed (S,) and the values (S, E, B).
        """
        opinion = criticise(self.limited(critics), z, action, self._dtype, self.layer_norm)
        loss = (opinion.values - target.unsqueeze(-2)).square().mean(-1).sum(-1)
        noise = target.new_empty((len(self.seeds), 0)) if noise is None else noise
        sizes = self._regulariser_noise(target.shape[-1])
        for term, own in zip(self.regularisers, noise.split(sizes, -1) if sizes else (), strict=True):
            loss = loss + term(opinion, own, self.observation_std)
        return loss.sum(), (loss, opinion.values)

    def actor_loss(self, actor: Params, z: Tensor, noise: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mean of alpha log pi - the backup's objective: summed over seeds, of each seed (S,), and log pi (S, B)."""
        action, log_density = squash(*self._policy(actor, z), noise)
        q = self.backup.objective(self._values(self.limited(self.critics), z, action))
        loss = (self.log_temperature.exp().unsqueeze(-1) * log_density - q).mean(-1)
        return loss.sum(), (loss, log_density)

    def limited(self, critics: Params) -> Params:
        """The critics' weights (S, E, in, out) as they count: shrunk where a layer's spectral norm is limited."""
        return critics if self.spectral is None else self.spectral.shrunk(critics)

    def limited_targets(self) -> Params:
        """The same of the target critics."""
        return self.target_critics if self.target_spectral is None else self.target_spectral.shrunk(self.target_critics)

    def opinion(self, obs: Tensor, action: Tensor) -> CriticPass:
        """What the critics say, and what one may ask of it: obs (S, B, O), action (S, B, A)."""
        return criticise(self.limited(self.critics), self.encoder(obs), action, self._dtype, self.layer_norm)

    def target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Target critics: obs (S, B, O), action (S, B, A) -> (S, E, B)."""
        return self._values(self.limited_targets(), self.encoder(obs), action)

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Critics without gradient: obs (S, B, O), action (S, B, A) -> (S, E, B)."""
        return self._values(self.limited(self.critics), self.encoder(obs), action)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """An action of the stochastic policy: obs (S, N, O), noise (S, N, A) -> (S, N, A)."""
        mean, log_std = self._policy(self.actor, self.encoder(obs))
        return torch.tanh(mean + log_std.exp() * noise)

    def sample_with_density(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`sample`, and the log density (S, N) of the action."""
        return squash(*self._policy(self.actor, self.encoder(obs)), noise)

    def act(self, obs: Tensor, *, mode: Literal["sample", "mean"] = "mean", noise: Tensor | None = None) -> Tensor:
        """The deterministic action tanh(mean), or a sample from `noise` (S, N, A)."""
        if mode == "sample":
            if noise is None:
                raise ValueError('act(mode="sample") needs noise of the action\'s shape')
            return self.sample(obs, noise)
        return torch.tanh(self._policy(self.actor, self.encoder(obs))[0])

    def _lists(self) -> dict[str, list[Tensor]]:
        lists = {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "log_temperature": [self.log_temperature],
        }
        if self.spectral is not None and self.target_spectral is not None:
            lists |= {"spectral": self.spectral.tensors(), "target_spectral": self.target_spectral.tensors()}
        if self._standardised:
            lists["observation_std"] = [self.observation_std]
        return lists

    def _optimisers(self) -> dict[str, Adam]:
        return {
            "actor_optimiser": self.actor_optimiser,
            "critic_optimiser": self.critic_optimiser,
            "temperature_optimiser": self.temperature_optimiser,
        }

    def weights(self) -> list[Tensor]:
        """Everything that is trained."""
        return [*self.actor, *self.critics, self.log_temperature]

    def policy_state(self) -> StateDict:
        """What `act` depends on: a copy on the CPU."""
        return {"actor": [p.to("cpu", copy=True) for p in self.actor]}

    def load_policy_state(self, state: Mapping[str, Any]) -> None:
        """Act like the learner that `state` is of; `ValueError` if a shape does not fit."""
        copy_tensors(self.actor, state["actor"])

    def state_dict(self) -> StateDict:
        """Networks, temperature, targets, moments."""
        return {**self._lists()} | {name: optimiser.state_dict() for name, optimiser in self._optimisers().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        for name, params in self._lists().items():
            copy_tensors(params, state[name])
        for name, optimiser in self._optimisers().items():
            optimiser.load_state_dict(state[name])
