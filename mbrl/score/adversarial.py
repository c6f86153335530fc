"""MOREC's dynamics reward: a history of discriminators of real and generated transitions (Luo et al. 2024).

The reward at use is that of the released code. Its training was never released; what stands here is ours, from the
paper's idea: the transition law is an agent that has maximised an unknown reward, recovered by adversarial imitation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.capture import gradients
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import Params, generator, init_mlp, mlp, rand, randn
from mbrl.optim import Adam, copy_tensors
from mbrl.score.discriminator import (
    Coordinates,
    coordinates,
    discriminator_loss,
    dynamics_reward,
    gradient_penalty,
    logits,
)
from mbrl.score.fitting import ScoreReport, draw, run_steps
from mbrl.score.generator import (
    Rollout,
    advantages,
    change,
    clipped_objective,
    log_density,
    masked_mean,
    policy_log_density,
    roll,
)
from mbrl.score.rows import EnsembleRows, at_rows, root_mean_square
from mbrl.types import Metrics, Prediction, StateDict, Transition

Mode = Literal["reparam", "ppo"]
Inputs = Literal["minmax", "standardised"]
Negatives = Literal["generator", "mixture"]


class AdversarialScore:
    """The dynamics reward r(obs, action, next_obs) of a history of discriminators, all asked in one batched matmul.

    A fit first clones the behaviour policy and fits a generator by maximum likelihood. Every iteration then rolls the
    generator out, with actions of the clone; improves the discriminator on real and generated rows; improves the
    generator on what the discriminator says; and now and then puts a copy of the discriminator into the history.

    Args:
        obs_dim: O.
        action_dim: A.
        seeds: one game per seed, on the rows that the seed's ensemble was fitted on.
        generator: `reparam` improves it by the discriminator's gradient through one step, with a likelihood term that
            keeps it near the data; `ppo` by proximal policy optimisation of the reward over whole rollouts.
        inputs: how the discriminators' inputs are scaled, see `mbrl.score.discriminator.coordinates`.
        negatives: what real rows are told from: rows of the `generator`, or a `mixture` in equal parts of its newest
            rows, its rows of the last iterations, samples of the ensemble, logged changes with noise and changes of
            other rows.
        hidden: widths of the discriminators' hidden layers (ReLU).
        agent_hidden: of generator (SiLU), behaviour clone and value network (ReLU).
        pretraining_steps: of clone and generator, by maximum likelihood.
        iterations: of the game.
        starts: generated lanes per iteration.
        horizon: steps of a lane.
        replay: iterations whose generated rows are kept.
        batch_size: real rows, and as many generated ones, per step.
        discriminator_steps: per iteration.
        learning_rate: of the discriminator's Adam.
        generator_learning_rate: of the generator's (and the value network's) Adam.
        gradient_penalty: weight; 0 for none. The slope it asks for, at most 1, is one in scaled units.
        entropy: weight of the entropy of the discriminator's opinion.
        likelihood: weight of the generator's likelihood of the data; `reparam` only.
        warm_up: iterations before the first snapshot.
        snapshot_every: iterations between snapshots. The released code stores every 5th iteration and asks every 10th
            (with MOPO) or 40th (with MOBILE) of the last 400; what is never asked is not stored here.
        history: snapshots kept, first in, first out.
        interval: every which snapshot is asked, counted from the newest.
        d_clip: upper limit of a discriminator's probability.
        device: where everything lives.
    """

    REPORT_EVERY = 10  # rounds: iterations, or 100 steps of pretraining

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        *,
        generator: Mode = "reparam",
        inputs: Inputs = "minmax",
        negatives: Negatives = "generator",
        hidden: Sequence[int] = (128, 256, 128),
        agent_hidden: Sequence[int] = (256, 256),
        pretraining_steps: int = 20_000,
        iterations: int = 2000,
        starts: int = 256,
        horizon: int = 10,
        replay: int = 5,
        batch_size: int = 1024,
        discriminator_steps: int = 2,
        learning_rate: float = 3e-4,
        generator_learning_rate: float = 1e-4,
        gradient_penalty: float = 1.0,
        entropy: float = 0.001,
        likelihood: float = 0.1,
        warm_up: int = 100,
        snapshot_every: int = 50,
        history: int = 40,
        interval: int = 1,
        d_clip: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, known in (
            ("generator", generator, Mode),
            ("inputs", inputs, Inputs),
            ("negatives", negatives, Negatives),
        ):
            if value not in get_args(known):
                raise ValueError(f"score.{name}={value} is unknown; it is {' or '.join(get_args(known))}")
        if warm_up > iterations:
            raise ValueError(
                f"score.warm_up={warm_up} is more than score.iterations={iterations}: there would be no snapshot"
            )
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.seeds, self.device = tuple(seeds), torch.device(device)
        self.generator, self.inputs, self.negatives = generator, inputs, negatives
        self.hidden, self.agent_hidden = tuple(hidden), tuple(agent_hidden)
        self.pretraining_steps, self.iterations = pretraining_steps, iterations
        self.starts, self.horizon, self.replay = starts, horizon, replay
        self.batch_size, self.discriminator_steps = batch_size, discriminator_steps
        self.learning_rate, self.generator_learning_rate = learning_rate, generator_learning_rate
        self.gradient_penalty, self.entropy, self.likelihood = gradient_penalty, entropy, likelihood
        self.warm_up, self.snapshot_every = warm_up, snapshot_every
        self.interval, self.d_clip = interval, d_clip

        count = len(self.seeds)
        sizes = [2 * obs_dim + action_dim, *self.hidden, 1]
        self.snapshots: Params = []  # (S, T, in, out), the oldest first
        for fan_in, fan_out in pairwise(sizes):
            self.snapshots += [
                torch.zeros((count, history, fan_in, fan_out), device=self.device),
                torch.zeros((count, history, 1, fan_out), device=self.device),
            ]
        # Where both are 0 there is no snapshot yet, and none is asked.
        self.learner = torch.zeros((count, history), device=self.device)
        self.expert = torch.zeros((count, history), device=self.device)
        widths = [obs_dim, obs_dim, action_dim, action_dim, obs_dim, obs_dim, obs_dim]
        self.scale = Coordinates(*(torch.ones((count, 1, width), device=self.device) for width in widths))

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Shapes as in `mbrl.types.Score`; the reward is not rated."""
        here = torch.cat([self.scale.obs(obs), self.scale.action(action)], -1)
        asked = slice((self.learner.shape[-1] - 1) % self.interval, None, self.interval)
        params = [p[:, asked] for p in self.snapshots]
        learner, expert = self.learner[:, asked], self.expert[:, asked]
        rewards = []
        # One candidate at a time: T networks wide is enough for a matmul, and K times that much memory too much.
        for candidate in candidates[..., :-1].unbind(-3):
            logit = logits(params, torch.cat([here, self.scale.delta(candidate - obs)], -1))
            rewards.append(dynamics_reward(logit, learner, expert, self.d_clip))
        return torch.stack(rewards, -2)

    def fit(
        self,
        data: Transition,
        model: GaussianEnsemble,
        *,
        on_progress: Callable[[ScoreReport], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        """Play the game.

        Args:
            data: rows (N, .) that `model` was fitted on.
            model: a fitted ensemble with the same seeds: says which rows are held out, and makes some of the mixture.
            on_progress: called every few rounds; a round is an iteration, or 100 steps of pretraining.
            should_stop: asked before every round.
            resume: a `ScoreReport.state()` of an interrupted fit with the same data, model and settings; the result is
                bitwise that of an uninterrupted one.

        Raises:
            FitStopped: `should_stop` said so; what was done has been reported.
            FloatingPointError: a loss is not finite any more.
        """
        rows = EnsembleRows.of(data, model)
        copy_tensors(self.scale, coordinates(rows, self.inputs))
        rho = None
        if self.negatives == "mixture":
            rho = root_mean_square(rows.out_of_bag_residual(model, should_stop))
        game = _Game(self, rows, model, rho)
        if resume is not None:
            game.load_state_dict(resume)
        run_steps(
            game.round, game.state_dict, first=game.done, total=game.pretraining_rounds + self.iterations,
            every=self.REPORT_EVERY, on_progress=on_progress, should_stop=should_stop,
        )  # fmt: skip

    def remember(self, discriminator: Params, learner: Tensor, expert: Tensor) -> None:
        """Put discriminators (S, 1, in, out), with their mean logits (S, 1), at the end of the history."""
        for kept, now in zip(
            [*self.snapshots, self.learner, self.expert], [*discriminator, learner, expert], strict=True
        ):
            kept.copy_(torch.cat([kept[:, 1:], now], 1))

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layer_{i}": p for i, p in enumerate(self.snapshots)}
        return named | {"learner": self.learner, "expert": self.expert} | self.scale._asdict()

    def state_dict(self) -> StateDict:
        """One entry per tensor, leading axis seeds."""
        return self._tensors()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; `ValueError` if a shape does not fit."""
        named = self._tensors()
        copy_tensors(list(named.values()), [state[name] for name in named])


class _Game:
    """The networks of a fit, and a round of it."""

    PRETRAINING_ROUND = 100  # steps
    PRETRAINING_BATCH = 256
    PRETRAINING_RATE = 3e-4
    REPARAM_STEPS = 2  # of the generator, per iteration
    PPO_EPOCHS = 4
    PPO_MINIBATCH = 1024
    PPO_ENTROPY = 1e-3
    VALUE_ROWS = 4096  # that a snapshot's mean logits are taken over
    NOISE = (0.3, 30.0)  # of the mixture's noisy rows, times the model's residual

    def __init__(
        self, score: AdversarialScore, rows: EnsembleRows, model: GaussianEnsemble, rho: Tensor | None
    ) -> None:
        self.score, self.rows, self.model, self.rho, self.scale = score, rows, model, rho, score.scale
        self.seeds, self.device = score.seeds, score.device
        self.pretraining_rounds = math.ceil(score.pretraining_steps / self.PRETRAINING_ROUND)
        self.done = 0
        obs_dim, action_dim, hidden = score.obs_dim, score.action_dim, score.agent_hidden

        def network(name: str, sizes: Sequence[int], members: Sequence[int] = ()) -> Params:
            sources = [generator(seed, "score", "adversarial", name) for seed in self.seeds]
            return [p.to(self.device) for p in init_mlp(sizes, sources, members)]

        both = obs_dim + action_dim
        self.discriminator = network("discriminator", [both + obs_dim, *score.hidden, 1], (1,))
        self.generator = network("generator", [both, *hidden, 2 * obs_dim])
        self.behaviour = network("behaviour", [obs_dim, *hidden, 2 * action_dim])
        self.value = network("value", [both, *hidden, 1]) if score.generator == "ppo" else []
        self.discriminator_adam = Adam(self.discriminator, score.learning_rate, betas=(0.5, 0.999))
        self.likelihood_adam = Adam([*self.generator, *self.behaviour], self.PRETRAINING_RATE)
        self.generator_adam = Adam([*self.generator, *self.value], score.generator_learning_rate)
        self.lanes = score.starts * score.horizon  # generated rows of an iteration
        shape = (len(self.seeds), score.replay * self.lanes)
        obs, action, delta = (
            torch.zeros((*shape, width), device=self.device) for width in (obs_dim, action_dim, obs_dim)
        )
        self.replay = Rollout(obs, action, delta, torch.zeros(shape, dtype=torch.bool, device=self.device))

    def round(self, number: int) -> Metrics:
        """The round after `number` others: some pretraining, or an iteration of the game."""
        sources = [generator(seed, "score", "adversarial", number, device=self.device) for seed in self.seeds]
        if number < self.pretraining_rounds:
            for _ in range(self.PRETRAINING_ROUND):
                metrics = self.improve_likelihood(sources)
        else:
            metrics = self.iterate(number - self.pretraining_rounds + 1, sources)
        self.done = number + 1
        return metrics

    def improve_likelihood(self, sources: Sequence[torch.Generator]) -> Metrics:
        """One step of maximum likelihood for generator and behaviour clone."""
        split = len(self.generator)
        obs, action, delta = self.rows.at(self.draw_rows(self.PRETRAINING_BATCH, sources))
        seen, seen_action, target = self.scale.obs(obs), self.scale.action(action), self.scale.delta(delta)

        def loss(params: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            generated = -log_density(*change(params[:split], seen, seen_action), target).mean(-1)
            cloned = -policy_log_density(params[split:], seen, action).mean(-1)
            return (generated + cloned).sum(), (generated, cloned)

        grads, (generated, cloned) = gradients(loss, self.likelihood_adam.params)
        self.likelihood_adam.step(grads)
        return {"generator_nll": generated, "behaviour_nll": cloned}

    # -- the game ------------------------------------------------------------------------------------------------

    def iterate(self, iteration: int, sources: Sequence[torch.Generator]) -> Metrics:
        """Generate, improve the discriminator, improve the generator, remember; iterations count from 1."""
        score = self.score
        obs, action, _ = self.rows.at(self.draw_rows(score.starts, sources))
        noise = randn((score.horizon, score.starts, score.obs_dim + score.action_dim), sources)
        rollout, last = roll(self.generator, self.behaviour, self.scale, self.scale.obs(obs), action, noise)
        self.replay = Rollout(
            *(torch.cat([old[:, self.lanes :], new], 1) for old, new in zip(self.replay, rollout, strict=True))
        )
        for _ in range(score.discriminator_steps):
            loss = self.improve_discriminator(sources)
        if score.generator == "ppo":
            self.improve_by_ppo(rollout, last, sources)
        else:
            for _ in range(self.REPARAM_STEPS):
                self.improve_by_gradient(sources)
        metrics = {"discriminator_loss": loss, "alive": last.alive.float().mean(-1)}
        if iteration >= score.warm_up and (iteration - score.warm_up) % score.snapshot_every == 0:
            expert = logits(self.discriminator, self.real_rows(self.VALUE_ROWS, sources)).mean(-1)
            learner = logits(self.discriminator, self.false_rows(self.VALUE_ROWS, sources)).mean(-1)
            score.remember(self.discriminator, learner, expert)
        newest = score.expert[:, -1] - score.learner[:, -1]
        return metrics | {"gap": newest}

    def improve_discriminator(self, sources: Sequence[torch.Generator]) -> Tensor:
        """One step; returns the loss (S,)."""
        size, score = self.score.batch_size, self.score
        real, generated = self.real_rows(size, sources), self.false_rows(size, sources)
        # One coefficient a row keeps the point between on the segment that joins two transitions.
        between = torch.lerp(real, generated, rand((size, 1), sources))

        def loss(params: list[Tensor]) -> tuple[Tensor, Tensor]:
            each = discriminator_loss(params, real, generated, score.entropy)
            if score.gradient_penalty:
                each = each + score.gradient_penalty * gradient_penalty(params, between)
            return each.sum(), each.squeeze(-1)

        grads, each = gradients(loss, self.discriminator)
        self.discriminator_adam.step(grads)
        return each

    def improve_by_gradient(self, sources: Sequence[torch.Generator]) -> None:
        """The generator climbs -log(1 - D) of its own single steps from real rows, and stays likely on the data."""
        score = self.score
        obs, action, delta = self.rows.at(self.draw_rows(score.batch_size, sources))
        seen, seen_action, target = self.scale.obs(obs), self.scale.action(action), self.scale.delta(delta)
        noise = randn((score.batch_size, score.obs_dim), sources)

        def loss(params: list[Tensor]) -> tuple[Tensor, Tensor]:
            mean, logvar = change(params, seen, seen_action)
            made = mean + (0.5 * logvar).exp() * noise
            logit = logits(self.discriminator, torch.cat([seen, seen_action, made], -1)).squeeze(-2)
            each = -(F.softplus(logit) + score.likelihood * log_density(mean, logvar, target)).mean(-1)
            return each.sum(), each

        grads, _ = gradients(loss, self.generator)
        self.generator_adam.step(grads)

    def improve_by_ppo(self, rollout: Rollout, last: Rollout, sources: Sequence[torch.Generator]) -> None:
        """The generator as a policy, the present discriminator's -log(1 - D) as its reward."""
        score = self.score
        steps = (len(self.seeds), score.horizon, score.starts)
        reward = F.softplus(logits(self.discriminator, rollout.inputs())).view(steps)
        values = torch.cat([self.values(self.value, x) for x in (rollout, last)], -1)
        values = values.view(steps[0], score.horizon + 1, score.starts)
        alive = torch.cat([rollout.alive, last.alive], -1).view_as(values)
        advantage = advantages(reward, values, alive[:, 1:])
        target = (advantage + values[:, :-1]).flatten(1)
        advantage = advantage.flatten(1)
        mean = masked_mean(advantage, rollout.alive).unsqueeze(-1)
        std = masked_mean((advantage - mean).square(), rollout.alive).sqrt().unsqueeze(-1)
        advantage = (advantage - mean) / (std + 1e-8)
        before = log_density(*change(self.generator, rollout.obs, rollout.action), rollout.delta)
        for _ in range(self.PPO_EPOCHS):
            order = rand((self.lanes,), sources).argsort(-1)
            for index in order.tensor_split(max(1, self.lanes // self.PPO_MINIBATCH), -1):
                gain, returns, old = (x.gather(-1, index) for x in (advantage, target, before))
                self.improve_on_minibatch(take(rollout, index), gain, returns, old)

    def improve_on_minibatch(self, rows: Rollout, advantage: Tensor, target: Tensor, before: Tensor) -> None:
        """One step of generator and value network: advantage, value target and old log density (S, B)."""
        split = len(self.generator)

        def loss(params: list[Tensor]) -> tuple[Tensor, Tensor]:
            mean, logvar = change(params[:split], rows.obs, rows.action)
            objective = clipped_objective(log_density(mean, logvar, rows.delta) - before, advantage)
            entropy = 0.5 * logvar.sum(-1)  # up to a constant
            error = (self.values(params[split:], rows) - target).square()
            each = masked_mean(0.5 * error - objective - self.PPO_ENTROPY * entropy, rows.alive)
            return each.sum(), each

        grads, _ = gradients(loss, self.generator_adam.params)
        self.generator_adam.step(grads)

    def values(self, params: Params, rows: Rollout) -> Tensor:
        """Of the generator's states: (S, M)."""
        return mlp(params, torch.cat([rows.obs, rows.action], -1)).squeeze(-1)

    # -- rows ----------------------------------------------------------------------------------------------------

    def draw_rows(self, count: int, sources: Sequence[torch.Generator]) -> Tensor:
        """Positions (S, count) of real rows."""
        return draw(count, self.rows.row.shape[-1], sources)

    def seen(self, position: Tensor, delta: Tensor | None = None) -> Tensor:
        """What a discriminator sees of real rows (S, B), with their own change or another one (S, B, O)."""
        obs, action, own = self.rows.at(position)
        change = self.scale.delta(own if delta is None else delta)
        return torch.cat([self.scale.obs(obs), self.scale.action(action), change], -1)

    def real_rows(self, count: int, sources: Sequence[torch.Generator]) -> Tensor:
        """(S, count, X)."""
        return self.seen(self.draw_rows(count, sources))

    def false_rows(self, count: int, sources: Sequence[torch.Generator]) -> Tensor:
        """What real rows are told from, (S, count, X)."""
        if self.rho is None:
            return self.generated_rows(self.replay, count, sources)
        newest = Rollout(*(x[:, -self.lanes :] for x in self.replay))
        size, obs_dim = count // 5, self.score.obs_dim
        position = [self.draw_rows(size, sources) for _ in range(3)]
        sampled = self.rows.out_of_bag_samples(
            self.model, position[0], rand((1, size), sources), randn((1, size, obs_dim), sources)
        ).squeeze(-3)
        low, high = self.NOISE
        level = low * (high / low) ** rand((size, 1), sources)
        noise = level * self.rho * randn((size, obs_dim), sources)
        other = self.rows.at(self.draw_rows(size, sources))[2]
        return torch.cat(
            [
                self.generated_rows(newest, count - 4 * size, sources),
                self.generated_rows(self.replay, size, sources),
                self.seen(position[0], sampled - self.rows.at(position[0])[0]),
                self.seen(position[1], self.rows.at(position[1])[2] + noise),
                self.seen(position[2], other),
            ],
            -2,
        )

    def generated_rows(self, rollout: Rollout, count: int, sources: Sequence[torch.Generator]) -> Tensor:
        """Rows that are alive, drawn with replacement: (S, count, X)."""
        number = rollout.alive.cumsum(-1)
        wanted = (rand((count,), sources, dtype=torch.float64) * number[:, -1:]).long() + 1
        return take(rollout, torch.searchsorted(number, wanted)).inputs()

    # -- state ---------------------------------------------------------------------------------------------------

    def _lists(self) -> dict[str, list[Tensor]]:
        score = self.score
        return {
            "discriminator": self.discriminator,
            "generator": self.generator,
            "behaviour": self.behaviour,
            "value": self.value,
            "replay": list(self.replay),
            "snapshots": [*score.snapshots, score.learner, score.expert],
        }

    def _optimisers(self) -> dict[str, Adam]:
        return {name: getattr(self, name) for name in ("discriminator_adam", "likelihood_adam", "generator_adam")}

    def state_dict(self) -> StateDict:
        """Everything that the next round depends on."""
        optimisers = {name: optimiser.state_dict() for name, optimiser in self._optimisers().items()}
        return {"done": self.done, **self._lists(), **optimisers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place."""
        self.done = int(state["done"])
        for name, tensors in self._lists().items():
            copy_tensors(tensors, state[name])
        for name, optimiser in self._optimisers().items():
            optimiser.load_state_dict(state[name])


def take(rollout: Rollout, index: Tensor) -> Rollout:
    """Rows index (S, B) of a rollout."""
    obs, action, delta = (at_rows(x, index) for x in rollout[:3])
    return Rollout(obs, action, delta, rollout.alive.gather(-1, index))
