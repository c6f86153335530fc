"""Make datasets by D4RL's protocol: train SAC online, keep snapshots of its policy, roll them out, write the sets.

    random         uniform random actions
    medium         the first snapshot that is a given fraction of the way from random to expert
    medium-replay  everything that the learner had seen when that snapshot was taken, in order
    medium-expert  medium, then expert: equal parts
    expert         the policy at the end of training

Everything random is a function of (seed, purpose, number of the episode or update) alone, and checkpoints are taken
between episodes, because the state of an environment cannot be saved in general: a run that was killed and resumed
writes the same sets as one that was not.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl.capture import Mode, capture, choose
from mbrl.checkpoint import atomic_write
from mbrl.data.ring import ReplayTable
from mbrl.data.tasks import Reference
from mbrl.data.validate import DatasetError
from mbrl.data.write import Episode, dataset_id, hdf5_path, read_metadata, write_hdf5, write_minari
from mbrl.evaluate import EvaluationError, make_env
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.nets import generator
from mbrl.optim import copy_tensors
from mbrl.rundir import RunDirectory, git_state, versions
from mbrl.train import Draws, Progress, TrainingDiverged
from mbrl.types import Logger, Metrics, StateDict, StochasticPolicy, Transition

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")


class CollectionError(DatasetError):
    """Sets that cannot be made from this training run; the message says what can be done."""


class CollectionInterrupted(RuntimeError):
    """A stop was asked for; everything that is needed to go on is saved."""


def uniform_policy(obs: Tensor, noise: Tensor) -> Tensor:
    """Uniform actions in [-1, 1] from standard normal noise (*, N, A): 2 Phi(x) - 1 = erf(x / sqrt 2)."""
    return torch.erf(noise / math.sqrt(2.0))


class Player:
    """Plays whole episodes in one environment; episode `number` of a purpose is the same whenever it is played.

    Args:
        env: as for `mbrl.evaluate.make_env`.
        seed: of all reset seeds and action noise.
        horizon: time limit in steps.
        env_kwargs: keyword arguments of the environment.
        action_low: (A,) what -1 stands for in environment units; default: the environment's lower bound.
        action_high: (A,) what 1 stands for; default: the environment's upper bound.
        device: where policies want their observations.

    Raises:
        TaskError, EvaluationError: the environment cannot be used.
    """

    def __init__(
        self,
        env: str,
        *,
        seed: int,
        horizon: int,
        env_kwargs: Mapping[str, Any] | None = None,
        action_low: npt.ArrayLike | None = None,
        action_high: npt.ArrayLike | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.seed, self.horizon, self.device = env, seed, horizon, device
        self.env = make_env(env, env_kwargs, horizon)
        self.obs_dim = int(self.env.observation_space.shape[0])
        space = self.env.action_space
        self.action_low = np.asarray(space.low if action_low is None else action_low, np.float32)
        self.action_high = np.asarray(space.high if action_high is None else action_high, np.float32)
        if not (np.isfinite(self.action_low).all() and np.isfinite(self.action_high).all()):
            raise EvaluationError(
                f"env={env}: actions are {space}; expected finite bounds. Wrap it in gymnasium.wrappers.RescaleAction "
                "and give the factory as env=package.module:factory"
            )
        self._episode, self._step = ("", 0), 0  # for messages

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    def to_environment(self, action: Tensor) -> npt.NDArray[np.float32]:
        """Actions (*, A) in [-1, 1] -> environment units, within its bounds."""
        low, high = self.action_low.astype(np.float64), self.action_high.astype(np.float64)
        scaled = (high + low) / 2 + (high - low) / 2 * action.cpu().double().numpy()
        applied: npt.NDArray[np.float32] = np.clip(
            scaled, self.env.action_space.low, self.env.action_space.high
        ).astype(np.float32)
        return applied

    def reset_seed(self, purpose: str, number: int) -> int:
        """What the environment is reset with for an episode."""
        return int(torch.randint(2**31, (), generator=generator(self.seed, "reset", purpose, number)))

    def episode(
        self,
        purpose: str,
        number: int,
        policy: StochasticPolicy,
        on_step: Callable[[Transition], None] | None = None,
    ) -> Episode:
        """Play one episode to its end.

        Args:
            purpose: whose episodes these are; each purpose has its own reset seeds and noise.
            number: of the episode.
            policy: obs (1, 1, O), noise (1, 1, A) -> action (1, 1, A).
            on_step: given every step as a transition (1, 1, .), as soon as it is made.

        Raises:
            EvaluationError: an observation, action or reward is not finite.
        """
        source = generator(self.seed, "collect", purpose, number)
        noise = torch.randn((self.horizon, 1, 1, self.action_dim), generator=source).to(self.device)
        observations = [self.begin(purpose, number)]
        actions: list[npt.NDArray[np.float32]] = []
        rewards: list[np.float32] = []
        obs = self._tensor(observations[0])
        terminated = truncated = False
        while not (terminated or truncated):
            action = policy(obs, noise[len(rewards)])
            actions.append(self.to_environment(action[0, 0]))
            following, reward, terminated, truncated = self.advance(actions[-1])
            observations.append(following)
            rewards.append(reward)
            next_obs = self._tensor(following)
            if on_step is not None:
                ended = torch.tensor([[terminated]], device=self.device)
                step_reward = torch.tensor([[float(reward)]], device=self.device)
                on_step(Transition(obs, action, step_reward, next_obs, ended, torch.ones_like(ended)))
            obs = next_obs
        seed = self.reset_seed(purpose, number)
        return Episode(np.stack(observations), np.stack(actions), np.array(rewards), terminated, seed)

    def begin(self, purpose: str, number: int) -> npt.NDArray[np.float32]:
        """Reset to the start of an episode: its first observation (O,)."""
        self._episode, self._step = (purpose, number), 0
        first, _ = self.env.reset(seed=self.reset_seed(purpose, number))
        return np.array(first, np.float32)

    def advance(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], np.float32, bool, bool]:
        """One step of the episode that was begun.

        Args:
            action: (A,) in environment units.

        Returns:
            The next observation (O,), the reward, whether the task has ended, and whether the time is up.

        Raises:
            EvaluationError: an observation, action or reward is not finite.
        """
        applied = action.astype(self.env.action_space.dtype)
        following, value, terminated, truncated, _ = self.env.step(applied)
        obs, reward = np.array(following, np.float32), np.float32(value)
        if not (np.isfinite(obs).all() and np.isfinite(reward) and np.isfinite(action).all()):
            purpose, number = self._episode
            raise EvaluationError(
                f"env={self.name}, {purpose} episode {number} (reset seed {self.reset_seed(purpose, number)}), step "
                f"{self._step}: the observation, action or reward is not finite"
            )
        self._step += 1
        return obs, reward, bool(terminated), bool(truncated)

    def roll_out(
        self,
        purpose: str,
        policy: StochasticPolicy,
        *,
        size: int,
        episodes: int,
        should_stop: Callable[[], bool],
        progress: Progress,
    ) -> list[Episode]:
        """Whole episodes until there are at least `size` steps and at least `episodes` episodes.

        Raises:
            CollectionInterrupted: `should_stop` said so, between two episodes.
        """
        played: list[Episode] = []
        steps, total = 0, 0.0
        while steps < size or len(played) < episodes:
            if should_stop():
                raise CollectionInterrupted(f"{purpose}: {len(played)} episodes rolled out")
            episode = self.episode(purpose, len(played), policy)
            played.append(episode)
            steps, total = steps + len(episode), total + episode.total_reward
            progress.update(len(episode), **{"mean return": total / len(played)})
        return played

    def _tensor(self, obs: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(obs).to(self.device).view(1, 1, -1)


# -- online training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlineSchedule:
    """How long, how much, how often. Everything counts steps of the environment; things happen between episodes.

    Attributes:
        steps: of the whole run; the episode in which they are reached is played to its end.
        warm_up: first steps, with uniform random actions and without updates; afterwards one update per step.
        batch_size: rows per update.
        log_every: a row of metrics this often.
        evaluate_every: an evaluation and a snapshot this often, and at the end.
        checkpoint_seconds: save the state of the run this often.
    """

    steps: int
    warm_up: int
    batch_size: int = 256
    log_every: int = 1000
    evaluate_every: int = 5000
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.warm_up < self.steps:
            raise ValueError(f"warm_up={self.warm_up} must be at least 0 and less than steps={self.steps}")


@dataclass
class OnlineTraining:
    """SAC in its environment: `run()` goes from the present step to the end, or until asked to stop.

    Attributes:
        learner: one seed, without a learning-rate schedule.
        player: the environment; its seed is the learner's.
        table: a table without dataset whose ring holds everything; see `replay_table`.
        schedule: how long, how much, how often.
        logger: collects metrics.
        evaluate: step -> numbers for the log; keeps returns and snapshots itself.
        save: called with the state of the run.
        should_stop: asked between episodes; a stop is saved like a checkpoint.
        progress: told about every episode.
        compile: how updates run, see `mbrl.capture.choose`.
        step: steps done.
        lengths: of the episodes done.
    """

    learner: SAC
    player: Player
    table: ReplayTable
    schedule: OnlineSchedule
    logger: Logger
    evaluate: Callable[[int], Mapping[str, float]]
    save: Callable[[int, StateDict], None]
    should_stop: Callable[[], bool] = lambda: False
    progress: Progress | None = None
    compile: Mode = "auto"
    step: int = 0
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        device, rows = self.table.rows.device, self.schedule.batch_size
        self._draws = Draws(self.learner.seeds, rows, self.learner.noise_size(rows), device)
        # One update a call: the environment's next step must see it.
        self._update = capture(self.update, choose(self.compile, device, self.schedule.steps, (1,)).mode)
        self._row = torch.zeros((1, 1, self.table.width), device=device)
        self._keep = torch.ones((1, 1), dtype=torch.bool, device=device)
        self._progress = torch.zeros((), device=device)

    def run(self) -> bool:
        """Train; True if complete, False if asked to stop. Either way everything is saved.

        Raises:
            TrainingDiverged: a metric is not finite; the last checkpoint is from before.
        """
        plan = self.schedule
        last_save = time.monotonic()
        while self.step < plan.steps:
            before = self.step
            episode = self.player.episode("training", len(self.lengths), self.act, self.learn)
            self.lengths.append(len(episode))
            self.logger.add({"return": torch.tensor(episode.total_reward)}, "training")
            self.logger.add({"length": torch.tensor(float(len(episode)))}, "training")

            finished = self.step >= plan.steps
            evaluating = finished or self.step // plan.evaluate_every > before // plan.evaluate_every
            shown: dict[str, float] = {"episode return": episode.total_reward}
            if evaluating:
                scores = self.evaluate(self.step)
                self.logger.log_event(self.step, scores)
                shown |= {name.replace("/", " "): value for name, value in scores.items()}
            if evaluating or self.step // plan.log_every > before // plan.log_every:
                self._check(self.logger.flush(self.step))
            if self.progress is not None:
                self.progress.update(self.step - before, **shown)
            if finished or self.should_stop() or time.monotonic() - last_save > plan.checkpoint_seconds:
                self.save(self.step, self.state_dict())
                last_save = time.monotonic()
                if not finished and self.should_stop():
                    return False
        return True

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Uniform actions during the warm-up, then the learner's."""
        return (uniform_policy if self.step < self.schedule.warm_up else self.learner.sample)(obs, noise)

    def learn(self, transition: Transition) -> None:
        """Keep a step of the environment and, after the warm-up, make one update."""
        self.table.pack(transition, self._row)
        self.table.write(self._row, self._keep)
        self.step += 1
        if self.step > self.schedule.warm_up:
            self.logger.add(self._update(*self._draws(self.step)), "learner")

    def update(self, uniform: Tensor, noise: Tensor) -> Metrics:
        """The captured unit: one update from the numbers of `Draws`, (1, 1, B) and (1, 1, n)."""
        batch = self.table.sample(uniform[:, 0], real=0)
        return self.learner.update(batch, noise[:, 0], self._progress)

    def replay(self, steps: int) -> list[Episode]:
        """The first `steps` steps as episodes; `steps` is a moment between two of them."""
        seen = self.table.imagined(0)
        action = self.player.to_environment(seen.action)
        obs, next_obs, reward = (x.cpu().numpy() for x in (seen.obs, seen.next_obs, seen.reward))
        episodes = []
        end = 0
        for number, length in enumerate(self.lengths):
            begin, end = end, end + length
            if end > steps:
                break
            episodes.append(
                Episode(
                    obs=np.concatenate([obs[begin:end], next_obs[end - 1 : end]]),
                    action=action[begin:end],
                    reward=reward[begin:end].copy(),
                    terminated=bool(seen.terminal[end - 1]),
                    seed=self.player.reset_seed("training", number),
                )
            )
        return episodes

    def _check(self, row: Mapping[str, float]) -> None:
        wrong = [name for name, value in row.items() if name.startswith("learner/") and not math.isfinite(value)]
        if wrong:
            raise TrainingDiverged(
                f"{', '.join(wrong)} not finite at step {self.step}. Usual causes: rewards on a large scale, a "
                "learning rate that is too high. The last checkpoint is from before."
            )

    def state_dict(self) -> StateDict:
        """Learner, replayed rows, step, lengths of the episodes."""
        return {
            "learner": self.learner.state_dict(),
            "table": self.table.state_dict(),
            "step": self.step,
            "lengths": torch.tensor(self.lengths, dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place."""
        self.learner.load_state_dict(state["learner"])
        self.table.load_state_dict(state["table"])
        self.step = int(state["step"])
        self.lengths = state["lengths"].tolist()


# -- sets --------------------------------------------------------------------------------------------------------------


def medium_step(
    steps: Sequence[int], returns: Sequence[float], *, random: float, expert: float, medium_at: float
) -> int:
    """The step of the snapshot that counts as medium.

    Args:
        steps: of the snapshots, ascending.
        returns: mean return of each snapshot's evaluation.
        random: mean return of uniform random actions.
        expert: mean return of the last snapshot.
        medium_at: below 1, the share of the way from `random` to `expert` that an evaluation must have reached, and the
            first that has is taken; from 1 on, a step, and the first snapshot at or after it is taken.

    Raises:
        CollectionError: there is no such snapshot.
    """
    if medium_at >= 1:
        for step in steps:
            if step >= medium_at:
                return step
        raise CollectionError(f"medium_at={medium_at:g}: the last snapshot is of step {steps[-1]}")
    threshold = random + medium_at * (expert - random)
    if expert > random:
        for step, value in zip(steps, returns, strict=True):
            if value >= threshold:
                return step
    raise CollectionError(
        f"no snapshot is medium: random actions return {random:.2f}, the expert {expert:.2f}, and the best evaluation "
        f"was {max(returns):.2f}. Train longer (resume=... steps=...), or name a step (resume=... medium_at=STEP)"
    )


@dataclass(frozen=True)
class Shelf:
    """Where sets go, and what is said of all of them.

    Attributes:
        root: folder of Minari datasets.
        namespace: Minari namespace, e.g. `mbrl`.
        env: names the environment in the ids.
        version: of the ids.
        hdf5: also write D4RL-style files, beside the Minari folders.
        author: names.
        author_email: addresses.
        code_permalink: where the code is.
    """

    root: Path
    namespace: str
    env: str
    version: int
    hdf5: bool
    author: tuple[str, ...]
    author_email: tuple[str, ...]
    code_permalink: str | None

    def name(self, level: str) -> str:
        """The Minari id of a set."""
        return dataset_id(self.namespace, self.env, level, self.version)

    def refuse_taken(self, levels: Sequence[str]) -> None:
        """Ask before hours of training and not after.

        Raises:
            DatasetError: a set of that id exists.
        """
        for level in levels:
            for path in (self.root / self.name(level), *([hdf5_path(self.root, self.name(level))] * self.hdf5)):
                if path.exists():
                    raise DatasetError(
                        f"{path} exists already, and nothing is overwritten. Choose version={self.version + 1}, "
                        "another namespace= or another out=, or remove it"
                    )

    def holds(self, level: str, settings: Mapping[str, Any]) -> bool:
        """Whether the set is here, made with these settings: then a resumed run need not write it again.

        Raises:
            DatasetError: a set of that id is here, made in another way.
        """
        found = read_metadata(self.root, self.name(level))
        if found is None:
            return False
        if found.get("collection") != settings:
            raise DatasetError(
                f"{self.root / self.name(level)} exists already and was not made by this run as it is set now. Choose "
                f"version={self.version + 1}, another namespace= or another out=, or remove it"
            )
        return True

    def put(
        self,
        level: str,
        episodes: Sequence[Episode],
        player: Player,
        *,
        algorithm: str,
        description: str,
        settings: Mapping[str, Any],
        details: Mapping[str, Any],
        reference: Reference | None,
    ) -> None:
        """Write a set; the Minari folder comes last and is the sign that all is there."""
        scores: dict[str, Any] = {}
        if reference is not None:
            scores = {
                "ref_min_score": reference.minimum,
                "ref_max_score": reference.maximum,
                "ref_source": f"{reference.source} ({reference.environment})",
            }
        if self.hdf5:
            write_hdf5(
                hdf5_path(self.root, self.name(level)),
                episodes,
                env_id=self.env,
                source=f"{algorithm}. {description}",
                action_low=player.action_low,
                action_high=player.action_high,
            )
        installed = versions()
        needed = ["gymnasium"]
        if player.env.spec is not None and "mujoco" in str(player.env.spec.entry_point):
            needed.append("mujoco")
        write_minari(
            self.root,
            self.name(level),
            episodes,
            player.env,
            {
                **scores,
                "seed": player.seed,
                "collection": dict(settings),
                "details": dict(details),
                "versions": installed,
                "git": git_state(),
            },
            author=self.author,
            author_email=self.author_email,
            algorithm_name=algorithm,
            description=description,
            code_permalink=self.code_permalink,
            requirements=[f"{package}>={installed[package]}" for package in needed if installed[package]],
        )


def statistics(episodes: Sequence[Episode]) -> dict[str, float | int]:
    """Sizes and undiscounted returns of a set."""
    returns = np.array([episode.total_reward for episode in episodes])
    return {
        "episodes": len(episodes),
        "transitions": sum(len(episode) for episode in episodes),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "terminated": sum(episode.terminated for episode in episodes),
    }


@dataclass(frozen=True)
class GivenPolicy:
    """A policy that was trained elsewhere.

    Attributes:
        policy: obs (1, 1, O), noise (1, 1, A) -> action (1, 1, A).
        algorithm: what trained it.
        description: a sentence about it.
    """

    policy: StochasticPolicy
    algorithm: str
    description: str


@dataclass
class Sets:
    """The sets of one run: its levels, or those of a given policy. Each policy is rolled out at most once.

    Attributes:
        levels: which of `LEVELS` are wanted, in that order; with a given policy, the one name that its set has.
        size: steps of a rolled-out set, at least: episodes are whole.
        episodes: rolled out, at least, where a level is needed only for its mean return.
        medium_at: as for `medium_step`.
        stochastic: actions are sampled from the policy, as in D4RL; False for its mean.
        settings: all that the sets depend on but level and `medium_at`; goes into their metadata.
        source: training, complete by the time of `make`; or a given policy; None if only random actions are wanted.
        player: plays.
        shelf: where the sets go.
        run: has the evaluations and snapshots; what is known of the sets is noted in its `meta.json`.
        logger: draws progress.
        reference: of the task table; None: returns of random and expert become the reference scores.
        should_stop: asked between episodes and between sets.
    """

    levels: Sequence[str]
    size: int
    episodes: int
    medium_at: float
    stochastic: bool
    settings: Mapping[str, Any]
    source: OnlineTraining | GivenPolicy | None
    player: Player
    shelf: Shelf
    run: RunDirectory
    logger: RunLogger
    reference: Reference | None
    should_stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._rolled: dict[str, list[Episode]] = {}

    def missing(self) -> list[str]:
        """The levels that are not there yet.

        Raises:
            DatasetError: a set of such an id is there, made in another way.
        """
        return [level for level in self.levels if not self.shelf.holds(level, self.settings_of(level))]

    def make(self) -> None:
        """Write every wanted set that is not there yet.

        Raises:
            CollectionInterrupted: asked to stop; the sets that are whole are in place.
            CollectionError: no snapshot is medium.
        """
        for level in self.missing():
            if self.should_stop():
                raise CollectionInterrupted(f"before {level}")
            self._write(level)

    def settings_of(self, level: str) -> dict[str, Any]:
        """What a set depends on."""
        return {
            **self.settings,
            "level": level,
            **({"medium_at": self.medium_at} if level.startswith("medium") else {}),
        }

    def _write(self, level: str) -> None:
        say = functools.partial(self.logger.console.print, highlight=False, soft_wrap=True)
        if level == "medium-replay":
            episodes = self._training.replay(self._medium())
        elif level == "medium-expert":
            episodes = [*self._roll_out("medium"), *self._roll_out("expert")]
        else:
            episodes = self._roll_out(level)
        numbers = statistics(episodes)
        reference = self._reference()
        say(f"writing {self.shelf.name(level)}: {describe(numbers)}")
        if reference is None and isinstance(self.source, OnlineTraining):
            say("note: without reference scores: the expert is no better than random actions", style="yellow")
        noted = {"id": self.shelf.name(level), "folder": str(self.shelf.root / self.shelf.name(level)), **numbers}
        self.run.write_meta(sets={**self.run.meta.get("sets", {}), level: noted})
        self.shelf.put(
            level,
            episodes,
            self.player,
            algorithm=self._algorithm(level),
            description=self._description(level),
            settings=self.settings_of(level),
            details={**numbers, **({"snapshot_step": self._medium()} if level.startswith("medium") else {})},
            reference=reference,
        )

    def _roll_out(self, level: str) -> list[Episode]:
        """A whole set, or a few episodes of a level that is needed for its mean return alone."""
        if level not in self._rolled:
            wanted = level in self.levels or ("medium-expert" in self.levels and level != "random")
            size = self.size if wanted else 0
            with self.logger.progress(f"rolling out {level}", total=size) as bar:
                self._rolled[level] = self.player.roll_out(
                    level,
                    self._policy(level),
                    size=size,
                    episodes=self.episodes,
                    should_stop=self.should_stop,
                    progress=bar,
                )
            means = self.run.meta.get("level_returns", {})
            self.run.write_meta(level_returns={**means, level: statistics(self._rolled[level])["return_mean"]})
        return self._rolled[level]

    def _mean_return(self, level: str) -> float:
        """Noted once rolled out: a resumed run that has written the set need not repeat it."""
        if level not in self.run.meta.get("level_returns", {}):
            self._roll_out(level)
        return float(self.run.meta["level_returns"][level])

    @property
    def _training(self) -> OnlineTraining:
        assert isinstance(self.source, OnlineTraining)
        return self.source

    def _policy(self, level: str) -> StochasticPolicy:
        if isinstance(self.source, GivenPolicy):
            return self.source.policy
        if level == "random":
            return uniform_policy
        learner = self._training.learner
        step = self._medium() if level == "medium" else self.run.updates[-1]
        copy_tensors(learner.actor, load_snapshot(self.run.path, step))  # training is over: only this actor is needed
        return policy_of(learner, self.stochastic)

    def _algorithm(self, level: str) -> str:
        if isinstance(self.source, GivenPolicy):
            return self.source.algorithm
        return "uniform random actions" if level == "random" else "SAC (mbrl.learn.sac)"

    def _medium(self) -> int:
        if self.medium_at >= 1:
            random = expert = 0.0
        else:
            random, expert = self._mean_return("random"), self._mean_return("expert")
        means = self.run.returns.mean((1, 2)).tolist()
        step = medium_step(self.run.updates, means, random=random, expert=expert, medium_at=self.medium_at)
        if self.run.meta.get("medium_step") != step:
            self.run.write_meta(medium_step=step)
            self.logger.console.print(f"medium is the snapshot of step {step:,}", highlight=False)
        return step

    def _reference(self) -> Reference | None:
        """The task table's, else this run's own; None where the expert is no better than random actions."""
        if self.reference is not None or not isinstance(self.source, OnlineTraining):
            return self.reference
        random, expert = self._mean_return("random"), self._mean_return("expert")
        if expert <= random:
            return None
        return Reference(random, expert, "mean returns of this run's random and expert episodes", self.player.name)

    def _description(self, level: str) -> str:
        actions = "actions sampled from it" if self.stochastic else "its deterministic actions"
        size = f"whole episodes, at least {self.size:,} steps"
        if isinstance(self.source, GivenPolicy):
            return f"{self.player.name}: {self.source.description}, {actions}; {size}."
        if level == "random":
            what = "uniform random actions (D4RL unrolled a randomly initialised policy)"
            return f"{self.player.name}, D4RL's random level: {what}; {size}."
        steps, warm_up = self._training.step, self._training.schedule.warm_up
        if level == "expert":
            return (
                f"{self.player.name}, D4RL's expert level: the policy of SAC after {steps:,} steps of online training, "
                f"{actions}; {size}."
            )
        step = self._medium()
        snapshot = f"the snapshot of step {step:,} of {steps:,} of SAC's online training"
        if self.medium_at >= 1:
            why = f"the first at or after step {int(self.medium_at):,}"
        else:
            random, expert = self._mean_return("random"), self._mean_return("expert")
            reached = float(self.run.returns[self.run.updates.index(step)].mean())
            why = (
                f"the first whose evaluation ({self.run.returns.shape[-1]} episodes, return {reached:.2f}) reached "
                f"random + {self.medium_at:.4g} (expert - random) = {random + self.medium_at * (expert - random):.2f}, "
                f"with random {random:.2f} and expert {expert:.2f}"
            )
        return {
            "medium": f"{self.player.name}, D4RL's medium level: {snapshot}, {why}; {actions}; {size}.",
            "medium-replay": (
                f"{self.player.name}, D4RL's medium-replay level: everything in the learner's replay buffer, in "
                f"order, up to {snapshot}, {why}; the warm-up of {warm_up:,} uniform random steps is part of it."
            ),
            "medium-expert": (
                f"{self.player.name}, D4RL's medium-expert level: the episodes of medium, then those of expert, {size} "
                f"each. Medium: {snapshot}, {why}; {actions}. Expert: the policy after {steps:,} steps, {actions}."
            ),
        }[level]


def describe(numbers: Mapping[str, float | int]) -> str:
    """One line about a set, from `statistics`."""
    return (
        f"{numbers['transitions']:,} transitions, {numbers['episodes']:,} episodes, return "
        f"{numbers['return_mean']:.2f} +- {numbers['return_std']:.2f}"
    )


def policy_of(learner: SAC, stochastic: bool) -> StochasticPolicy:
    """The learner's policy, sampled or at its mean."""
    return learner.sample if stochastic else lambda obs, noise: learner.act(obs, mode="mean")


def replay_table(obs_dim: int, action_dim: int, capacity: int, device: torch.device | str) -> ReplayTable:
    """A table without dataset: its ring holds the steps of one online learner."""
    obs, flags = torch.zeros((0, obs_dim)), torch.zeros(0, dtype=torch.bool)
    none = Transition(obs, torch.zeros((0, action_dim)), torch.zeros(0), obs, flags, flags)
    return ReplayTable(none, capacity, seeds=1, device=device)


def snapshot_path(run_dir: Path, step: int) -> Path:
    """Where the actor of a step is kept."""
    return run_dir / "snapshots" / f"step_{step:09d}.pt"


def save_snapshot(run_dir: Path, step: int, learner: SAC) -> None:
    """Keep the actor: whether it is the medium one is known at the end."""
    path = snapshot_path(run_dir, step)
    path.parent.mkdir(exist_ok=True)
    actor = [p.detach().cpu() for p in learner.actor]
    atomic_write(path, lambda file: torch.save(actor, file))


def load_snapshot(run_dir: Path, step: int) -> list[Tensor]:
    """The actor of a step."""
    actor: list[Tensor] = torch.load(snapshot_path(run_dir, step), weights_only=True, map_location="cpu")
    return actor
