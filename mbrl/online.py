"""The online half of Dyna (Sutton 1991; MBPO, Janner et al. 2019): real steps, and refits of the model on them.

Every seed acts in an environment of its own, all in lockstep, so that stacked seeds have equally many real rows. The
loop of `mbrl.train` asks for real steps before its updates; nothing else tells an online run from an offline one.

Everything random is a function of (seed, purpose, number of the step, episode or fit) alone. The state of an
environment cannot be saved in general, but an episode that is reset with its own seed can be played again: a checkpoint
holds the actions, which are rows of the table anyway, and a resumed run replays the episode under way.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.checkpoint import save_checkpoint
from mbrl.data.collect import Player, uniform_policy
from mbrl.data.ring import ReplayTable
from mbrl.data.write import Episode, write_hdf5
from mbrl.dynamics.ensemble import FitStopped, GaussianEnsemble, moments
from mbrl.nets import generator, randn
from mbrl.optim import copy_tensors
from mbrl.rollout.imagine import Imagination
from mbrl.types import ActionSource, Learner, Logger, Metrics, RunModel, StateDict, Transition

PURPOSE = "online"
"""Names the episodes' reset seeds."""


@dataclass(frozen=True)
class Interaction:
    """How much is done in the environment, and how often the model follows. Everything counts real steps of a seed.

    Attributes:
        steps: of the whole run.
        warm_up: first steps, with uniform random actions and without updates.
        updates_per_step: gradient updates after every later step.
        fit_every: the model is refitted, and rollouts are imagined, this often; first after the warm-up.
        rollout_growth: MBPO's schedule of the rollout length, or None for `rollout.length` always: the length goes
            linearly from the first to the second number while the steps go from the third to the fourth.
    """

    steps: int
    warm_up: int
    updates_per_step: int = 1
    fit_every: int = 250
    rollout_growth: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < self.steps:
            raise ValueError(f"loop.warm_up={self.warm_up} must be at least 0 and less than loop.steps={self.steps}")
        if self.updates_per_step < 1 or self.fit_every < 1:
            raise ValueError("loop.updates_per_step and loop.fit_every must be at least 1")
        if self.rollout_growth is not None:
            first, last, begin, end = self.rollout_growth
            if not (first >= 1 and last >= 1 and 0 <= begin <= end):
                raise ValueError(
                    f"loop.rollout_growth={list(self.rollout_growth)}: expected [first length, last length, first "
                    "step, last step], with lengths of at least 1 and steps that do not fall"
                )

    @property
    def updates(self) -> int:
        """Gradient updates of the whole run."""
        return (self.steps - self.warm_up) * self.updates_per_step

    def real_steps(self, update: int) -> int:
        """Real steps that a seed has made when so many updates are done."""
        return self.warm_up + -(-update // self.updates_per_step)

    def rollout_length(self, steps: int) -> int | None:
        """Length of rollouts after so many real steps (Janner et al. 2019, appendix C); None: it never changes."""
        if self.rollout_growth is None:
            return None
        first, last, begin, end = self.rollout_growth
        share = 1.0 if steps >= end else max(steps - begin, 0) / (end - begin)
        return int(first + share * (last - first))


class Experience:
    """What every seed lives through in its own environment.

    Args:
        players: one environment for each seed.
        learner: acts after the warm-up.
        actions: how it acts: samples of its policy, or a planner's choice.
        model: refitted on schedule if it can be; None where nobody asks one.
        table: where real rows go.
        imagination: whose rollout length follows the schedule.
        lanes: that are imagined each time.
        retain: rollouts that the ring holds.
        plan: how much, how often.
        logger: collects `online/...` and `dynamics/...`.
        should_stop: asked before every real step and within a fit.
    """

    def __init__(
        self,
        *,
        players: Sequence[Player],
        learner: Learner,
        actions: ActionSource,
        model: RunModel | None,
        table: ReplayTable,
        imagination: Imagination,
        lanes: int,
        retain: int,
        plan: Interaction,
        logger: Logger,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.players, self.learner, self.actions, self.model = players, learner, actions, model
        self.table, self.imagination, self.lanes, self.retain = table, imagination, lanes, retain
        self.plan, self.logger, self.should_stop = plan, logger, should_stop
        self.steps = 0  # real ones, of every seed
        self.fits = 0
        count = len(players)
        self.episodes, self.lengths, self.returns = [0] * count, [0] * count, [0.0] * count  # of the episodes under way
        self._obs: Tensor | None = None  # (S, 1, O) where the environments are
        self._set_length(plan.rollout_length(plan.warm_up))

    @property
    def updates_per_step(self) -> int:
        """Updates between two real steps."""
        return self.plan.updates_per_step

    def advance(self, update: int) -> bool:
        """Make the real steps and the refit that come before update `update`; False: asked to stop before all is done.

        What is done already, by a process that was interrupted, is not done again.
        """
        due = self.plan.warm_up + update // self.plan.updates_per_step + 1
        while self.steps < due:
            if self.should_stop():
                return False
            self.step()
        if update % (self.plan.fit_every * self.plan.updates_per_step):
            return True
        return self._refit(update // (self.plan.fit_every * self.plan.updates_per_step))

    @torch.no_grad()
    def step(self) -> None:
        """One step of every seed's environment."""
        device = self.table.rows.device
        if self._obs is None:
            first = [player.begin(PURPOSE, number) for player, number in zip(self.players, self.episodes, strict=True)]
            self._obs = self._tensor(first)
        sources = [generator(seed, PURPOSE, self.steps, device=device) for seed in self.learner.seeds]
        if self.steps < self.plan.warm_up:
            action = uniform_policy(self._obs, randn((1, self.table.action_dim), sources))
        else:
            size = self.actions.noise_size(self.table.obs_dim, self.table.action_dim)
            noise = randn((1, size), sources)
            action, notes = self.actions(self._obs, self.learner.sample, self.imagination.model, noise)
            self.logger.add({name: value.mean(-1) for name, value in notes.items()}, PURPOSE)
        applied = self.players[0].to_environment(action[:, 0])
        answers = [player.advance(one) for player, one in zip(self.players, applied, strict=True)]
        reached = [obs for obs, *_ in answers]
        reward = torch.tensor([[float(r)] for _, r, *_ in answers], device=device)
        terminal = torch.tensor([[ended] for *_, ended, _ in answers], device=device)
        next_obs = self._tensor(reached)
        self.table.append(Transition(self._obs, action, reward, next_obs, terminal, torch.ones_like(terminal)))
        self.steps += 1
        following = list(reached)
        for s, (_, gain, terminated, truncated) in enumerate(answers):
            self.lengths[s] += 1
            self.returns[s] += float(gain)
            if terminated or truncated:
                ended = {"return": torch.tensor(self.returns[s]), "length": torch.tensor(float(self.lengths[s]))}
                self.logger.add(ended, PURPOSE)
                self.episodes[s] += 1
                self.lengths[s], self.returns[s] = 0, 0.0
                following[s] = self.players[s].begin(PURPOSE, self.episodes[s])
        self._obs = self._tensor(following)

    def _tensor(self, rows: Sequence[npt.NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self.table.rows.device).unsqueeze(1)

    def _refit(self, number: int) -> bool:
        """Fit the model to all real rows for the `number`th time; False, and nothing changed, if asked to stop."""
        self._set_length(self.plan.rollout_length(self.steps))
        real = self.table.real()
        self.learner.observation_std.copy_(moments(real.obs)[1])
        if not isinstance(self.model, GaussianEnsemble) or self.fits > number:
            return True
        model = self.model
        before = [tensor.clone() for tensor in model.state_dict().values()]
        epochs = 0

        def count(report: Any) -> None:
            nonlocal epochs
            epochs = report.epoch

        try:
            # Part 0 is the fit to a dataset, before the run.
            model.fit(real, part=number + 1, on_progress=count, should_stop=self.should_stop)
        except FitStopped:
            copy_tensors(list(model.state_dict().values()), before)
            return False
        self.fits = number + 1
        metrics: Metrics = {
            "holdout_error": model.holdout_error.gather(-1, model.elites).mean(-1),
            "epochs": torch.tensor(float(epochs)),
            "rollout_length": torch.tensor(float(self.imagination.length)),
        }
        self.logger.add(metrics, "dynamics")
        return True

    def rows_to_measure(self, count: int) -> Transition:
        """Rows (S, n, .), n at most `count`, that the last refit has held out; without a model, the last real ones."""
        real = self.table.real()
        if not isinstance(self.model, GaussianEnsemble) or not self.fits:
            return Transition(*(x[:, -count:] for x in real))
        since = self.plan.warm_up + (self.fits - 1) * self.plan.fit_every + 1
        rows = self.table.real_rows + since
        pick = self.model.split(rows, self.fits).holdout[:, :count]
        seed = torch.arange(len(self.players), device=pick.device).unsqueeze(-1)
        return Transition(*(x[seed, pick] for x in real))

    def _set_length(self, length: int | None) -> None:
        """Rollouts get this length, and the ring the size that goes with it."""
        if length is not None and self.lanes * length * self.retain != self.table.limit:
            self.imagination.length = length
            self.table.resize(self.lanes * length * self.retain)

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """Counts, the fitted model, and where each environment is: episode, steps in it, its return so far.

        The actions that lead there are the last own rows of the table.
        """
        return {
            "steps": self.steps,
            "fits": self.fits,
            "episodes": torch.tensor(self.episodes),
            "lengths": torch.tensor(self.lengths),
            "returns": torch.tensor(self.returns, dtype=torch.float64),
            "length": self.imagination.length,
            "model": self.model.state_dict() if isinstance(self.model, GaussianEnsemble) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place, after the table; replays every seed's episode under way."""
        self.steps, self.fits = int(state["steps"]), int(state["fits"])
        self.episodes, self.lengths = state["episodes"].tolist(), state["lengths"].tolist()
        self.returns = state["returns"].tolist()
        self.imagination.length = int(state["length"])
        if isinstance(self.model, GaussianEnsemble):
            self.model.load_state_dict(state["model"])
        own = self.table.own()
        where = [self._replay(s, own) for s in range(len(self.players))] if self.steps else None
        self._obs = None if where is None else self._tensor(where)

    def _replay(self, s: int, own: Transition) -> npt.NDArray[np.float32]:
        """Bring one environment to where it was: its present observation (O,)."""
        player, length = self.players[s], self.lengths[s]
        obs = player.begin(PURPOSE, self.episodes[s])
        rows = range(self.steps - length, self.steps)
        for row in rows:
            obs, _, terminated, truncated = player.advance(player.to_environment(own.action[s, row]))
            if terminated or truncated:
                break
        if length and not np.array_equal(obs, own.next_obs[s, -1].cpu().numpy()):
            warnings.warn(
                f"env={player.name} does not replay: reset with the same seed, the same actions led elsewhere, so that "
                f"seed {player.seed} begins a new episode and the run differs from an uninterrupted one",
                stacklevel=2,
            )
            self.episodes[s] += 1
            self.lengths[s], self.returns[s] = 0, 0.0
            obs = player.begin(PURPOSE, self.episodes[s])
        return obs

    def lived(self, s: int) -> list[Episode]:
        """Seed number s's own steps as episodes; the last one may be under way, and ends as by a time limit."""
        rows = Transition(*(x[s].cpu() for x in self.table.own()))
        player = self.players[s]
        action = player.to_environment(rows.action)
        obs, next_obs, reward = (x.numpy().copy() for x in (rows.obs, rows.next_obs, rows.reward))
        # A terminal row that led back to where the next episode begins would still be an end.
        ends = (rows.terminal[:-1].numpy() | (next_obs[:-1] != obs[1:]).any(-1)).nonzero()[0] + 1
        bounds = [0, *ends.tolist(), len(reward)]
        return [
            Episode(
                obs=np.concatenate([obs[begin:end], next_obs[end - 1 : end]]),
                action=action[begin:end],
                reward=reward[begin:end],
                terminated=bool(rows.terminal[end - 1]),
                seed=player.reset_seed(PURPOSE, number),
            )
            for number, (begin, end) in enumerate(itertools.pairwise(bounds))
        ]

    def write(self, folder: Path) -> None:
        """Keep what was lived through and learnt: `experience/seed_N.hdf5`, a dataset each, and the fitted model."""
        for s, seed in enumerate(self.learner.seeds):
            player = self.players[s]
            if self.steps:
                write_hdf5(
                    folder / "experience" / f"seed_{seed}.hdf5",
                    self.lived(s),
                    env_id=player.name,
                    source=f"real steps of an online run of mbrl, seed {seed}",
                    action_low=player.action_low,
                    action_high=player.action_high,
                )
        if isinstance(self.model, GaussianEnsemble) and self.fits:
            save_checkpoint(folder / "dynamics" / "model", self.fits, self.model.state_dict(), keep=1)

    def close(self) -> None:
        """Close the environments."""
        for player in self.players:
            player.env.close()
