"""`mbrl collect`: from the configuration to the parts of `mbrl.data.collect`, and the life of a collection."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from mbrl import compose
from mbrl.checkpoint import atomic_write
from mbrl.compose import ConfigError
from mbrl.data.collect import (
    LEVELS,
    CollectionInterrupted,
    GivenPolicy,
    OnlineSchedule,
    OnlineTraining,
    Player,
    Sets,
    Shelf,
    describe,
    policy_of,
    replay_table,
    save_snapshot,
)
from mbrl.data.tasks import Task, task_for
from mbrl.data.write import minari_root
from mbrl.evaluate import Evaluator
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.nets import generator
from mbrl.run import INTERRUPTED, endings, restore, save, saved_config, saved_policy
from mbrl.rundir import RunDirectory, StopRequest, lock, read_json, to_json

COLLECT_HELP = """\
mbrl collect: make datasets by D4RL's protocol, or roll out a trained policy.

  mbrl collect                                            Pendulum-v1, five sets, a few minutes
  mbrl collect env=Hopper-v5 hdf5=true                    a million steps of training, a million steps a set: hours
  mbrl collect env=Hopper-v5 levels=[medium,expert] size=200000 out=datasets
  mbrl collect policy=runs/hopper/2026-01-31_12-00-00 size=100000
  mbrl collect resume=runs/collect/2026-01-31_12-00-00    go on; also with other levels=, or a new version= and size=

SAC is trained online in the environment, snapshots of its policy are kept, and these sets are written:
  random           uniform random actions
  medium           the first snapshot a third of the way from random to expert (medium_at=0.333; or a step of training)
  medium-replay    everything in the replay buffer at that moment, in order
  medium-expert    medium, then expert
  expert           the policy at the end of training

What most people set:
  env=ID           Gymnasium id, module:Id, package.module:factory    env_kwargs={{}}    horizon=N
  levels=[...]     which sets        size=N   steps of each, at least: episodes are whole
  steps=N          of training       warm_up=N   uniform random steps before the first update
  medium_at=X      below 1: the share of the way from random to expert; from 1 on: a step of training
  stochastic=true  actions are sampled from the policy, as in D4RL; false: its mean
  policy=RUN_DIR   roll out the policy of `mbrl train` instead    policy_seed=N    policy_level=NAME
  out=DIR          folder of Minari datasets (default: MINARI_DATASETS_PATH, else ~/.minari/datasets)
  namespace=mbrl version=0    of the ids: mbrl/hopper-v5/medium-v0
  hdf5=true        also files in D4RL's layout, beside the Minari folders
  seed=0           of everything     logger=[...]   tensorboard, wandb     run_dir=DIR     resume=DIR

The sets are datasets like any other: `mbrl train dataset=minari:mbrl/pendulum-v1/medium-v0`, `mbrl inspect minari:...`.
`mbrl collect --cfg job` prints every key with its value. Ctrl-C (or SIGTERM) saves and ends; resume= goes on from there
and writes the same sets. docs/collect.md says exactly what is done.
"""


def start_collection(cfg: DictConfig, path: Path) -> int:
    """A new collection in `path`."""
    return Collect(cfg, path).collect()


def resume_collection(path: Path, words: Sequence[str]) -> int:
    """Go on with a collection; `words` may change keys of its configuration (e.g. `levels=[expert]`)."""
    begun = RunDirectory.open(path)
    if "collection" not in begun.meta:
        raise ConfigError(f"{path} is no run of `mbrl collect`; for one of `mbrl train`: mbrl train resume={path}")
    return Collect(saved_config(path, words), path, begun).collect()


@dataclass(frozen=True)
class TrainedRun:
    """A run of `mbrl train` whose policy is to be rolled out."""

    path: Path
    learner: SAC
    saved: dict[str, Any]
    task: Task
    meta: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> TrainedRun:
        """Read it.

        Raises:
            FileNotFoundError: it is none, or has not ended.
        """
        meta = read_json(path / "meta.json")
        learner, saved = saved_policy(path)
        return cls(path, learner, saved, compose.find_run_task(saved_config(path), meta), meta)

    def policy(self, seed: int | None, stochastic: bool) -> GivenPolicy:
        """The policy of one of its seeds, None for the first.

        Raises:
            ConfigError: the run has no such seed.
        """
        seeds = list(self.saved["seeds"])
        if seed is not None and seed not in seeds:
            raise ConfigError(f"policy_seed={seed}: {self.path} has the seeds {seeds}")
        index = 0 if seed is None else seeds.index(seed)
        whole = policy_of(self.learner, stochastic)

        def one(obs: Tensor, noise: Tensor) -> Tensor:
            every = whole(obs.expand(len(seeds), -1, -1), noise.expand(len(seeds), -1, -1))
            return every[index : index + 1]

        algo, label = self.meta["algo"], self.meta["label"]
        return GivenPolicy(one, f"{algo} (mbrl)", f"the policy that {algo} learnt from {label}, seed {seeds[index]}")


class Collect:
    """One collection: the parts, made from the configuration, and their lives.

    All that a configuration can get wrong is found here, before hours of training.
    """

    def __init__(self, cfg: DictConfig, path: Path, begun: RunDirectory | None = None) -> None:
        given = None if cfg.policy is None else TrainedRun.load(Path(cfg.policy))
        self.task = find_task(cfg, given)
        cfg = self.cfg = prepare(cfg, self.task, path)
        assert self.task.env is not None
        self.device = torch.device(cfg.device)
        torch.set_num_threads(cfg.threads)
        self.console = Console(soft_wrap=True, highlight=False)
        self.levels: list[str] = [cfg.policy_level] if given else check_levels(cfg.levels)
        self.shelf = Shelf(
            root=minari_root(None if cfg.out is None else Path(cfg.out)),
            namespace=cfg.namespace,
            env=self.task.env,
            version=cfg.version,
            hdf5=cfg.hdf5,
            author=tuple(cfg.author),
            author_email=tuple(cfg.author_email),
            code_permalink=cfg.code_permalink,
        )
        if begun is None:
            self.shelf.refuse_taken(self.levels)
        self.player = Player(
            self.task.env,
            seed=cfg.seed,
            horizon=self.task.horizon,
            env_kwargs=self.task.env_kwargs,
            action_low=given.saved["action_low"] if given else None,
            action_high=given.saved["action_high"] if given else None,
            device="cpu" if given else self.device,
        )
        self.logger = RunLogger(
            path,
            list(cfg.logger),
            seeds=[cfg.seed],
            total_updates=cfg.steps,
            console=self.console if cfg.progress else Console(quiet=True),
            config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
            name=path.name,
            **{f"wandb_{key}": value for key, value in cfg.wandb.items()},
        )
        # Random actions alone need no policy.
        self.training = None if given or self.levels == ["random"] else self.make_training()
        settings = self.settings()
        if begun is None:
            path.mkdir(parents=True, exist_ok=True)
            text = OmegaConf.to_yaml(cfg).encode()
            atomic_write(path / "config.yaml", lambda file: file.write(text))
            self.run = RunDirectory.create(path, seeds=[cfg.seed], collection=settings, **self.noted())
        else:
            self.run = begun
            self.run.mark_resumed()
            if settings != self.run.meta["collection"]:  # what is known of the sets was of others
                self.run.write_meta(collection=settings, level_returns={}, sets={})
        self.sets = Sets(
            levels=self.levels,
            size=cfg.size,
            episodes=cfg.eval.episodes,
            medium_at=cfg.medium_at,
            stochastic=cfg.stochastic,
            settings=settings,
            source=given.policy(cfg.policy_seed, cfg.stochastic) if given else self.training,
            player=self.player,
            shelf=self.shelf,
            run=self.run,
            logger=self.logger,
            reference=self.task.reference,
        )

    def make_training(self) -> OnlineTraining:
        """SAC, its replay table and its environment."""
        cfg, player = self.cfg, self.player
        return OnlineTraining(
            learner=compose.build_learner(cfg, player.obs_dim, player.action_dim, [cfg.seed], self.device),
            player=player,
            # The last episode may run past the last step.
            table=replay_table(player.obs_dim, player.action_dim, cfg.steps + player.horizon, self.device),
            schedule=OnlineSchedule(
                steps=cfg.steps,
                warm_up=cfg.warm_up,
                batch_size=cfg.batch_size,
                log_every=cfg.log_every,
                evaluate_every=cfg.eval.every,
                checkpoint_seconds=math.inf if cfg.checkpoint_seconds is None else cfg.checkpoint_seconds,
            ),
            logger=self.logger,
            evaluate=self.evaluate,
            save=lambda step, state: save(self.run, self.logger, step, state),
            compile=cfg.compile,
        )

    def collect(self) -> int:
        """Train, roll out, write; the exit status."""
        cfg = self.cfg
        self.console.print(
            f"[bold]{', '.join(self.levels)}[/] of {self.task.env}, seed {cfg.seed}, into {self.shelf.root}"
        )
        self.console.print(f"run directory: {self.run.path}", markup=False)
        with lock(self.run.path), endings(self.run, self.logger) as stop:
            self.sets.should_stop = lambda: stop.requested
            self.sets.missing()  # asked before training: a foreign set in the way ends the run now
            if self.training is not None and not self.train(self.training, stop):
                return self.interrupted()
            try:
                self.sets.make()
            except CollectionInterrupted:
                return self.interrupted()
            return self.finished()

    def train(self, training: OnlineTraining, stop: StopRequest) -> bool:
        """SAC online; False if asked to stop."""
        if restore(training, self.run, self.logger, self.device):
            self.console.print(f"resumed at step {training.step:,}")
        training.should_stop = lambda: stop.requested
        self.evaluator = Evaluator(
            self.player.name,
            episodes=self.cfg.eval.episodes,
            seeds=[self.cfg.seed],
            horizon=self.player.horizon,
            env_kwargs=self.task.env_kwargs,
            device=self.device,
        )
        try:
            with self.logger.progress("training", total=self.cfg.steps, completed=training.step) as bar:
                training.progress = bar
                return training.run()
        finally:
            self.evaluator.close()

    def evaluate(self, step: int) -> dict[str, float]:
        """A snapshot of the policy, and its returns as it will be rolled out."""
        assert self.training is not None
        learner = self.training.learner
        save_snapshot(self.run.path, step, learner)
        policy = policy_of(learner, self.cfg.stochastic)
        source = generator(self.cfg.seed, "evaluation", step)

        def act(obs: Tensor) -> Tensor:
            noise = torch.randn((*obs.shape[:-1], self.player.action_dim), generator=source)
            return policy(obs, noise.to(self.device))

        done = self.evaluator(act, step)
        self.run.add_returns(step, done.returns)
        return {"eval/return": float(done.returns.mean()), "eval/length": float(done.lengths.mean())}

    def settings(self) -> dict[str, Any]:
        """What the sets depend on, as it is kept in their metadata."""
        cfg, task = self.cfg, self.task
        settings: dict[str, Any] = {
            "env": task.env,
            "env_kwargs": task.env_kwargs,
            "horizon": task.horizon,
            "seed": cfg.seed,
            "size": cfg.size,
            "stochastic": cfg.stochastic,
            "device": cfg.device,
            "threads": cfg.threads,
        }
        if cfg.policy is not None:
            settings |= {"policy": Path(cfg.policy).name, "policy_seed": cfg.policy_seed}
        elif self.training is not None:
            settings |= {
                "algorithm": "SAC, online, one update per step",
                **{key: cfg[key] for key in ("steps", "warm_up", "batch_size")},
                "learner": OmegaConf.to_container(cfg.learner),
                "evaluation": OmegaConf.to_container(cfg.eval),
            }
        plain: dict[str, Any] = json.loads(to_json(settings))
        return plain

    def noted(self) -> dict[str, Any]:
        """What `meta.json` says beside versions and machine."""
        return {
            "algo": "collect",
            "label": f"{'SAC online' if self.cfg.policy is None else self.cfg.policy} in {self.task.env}",
            "env": self.task.env,
            "horizon": self.task.horizon,
            "device": str(self.device),
            "threads": self.cfg.threads,
            "levels": self.levels,
            "datasets": [self.shelf.name(level) for level in self.levels],
        }

    def interrupted(self) -> int:
        """Saved, and told how to go on."""
        self.summarise("interrupted")
        self.console.print(f"stopped and saved; go on with: mbrl collect resume={self.run.path}", markup=False)
        return INTERRUPTED

    def finished(self) -> int:
        """Summary, curve, last words."""
        from mbrl.plots import learning_curve  # matplotlib is slow to import

        self.summarise("finished")
        self.player.env.close()
        for level in self.levels:
            noted = self.run.meta["sets"][level]
            self.console.print(f"[bold]minari:{noted['id']}[/]  {describe(noted)}")
        if self.cfg.out is not None:
            folder = self.shelf.root / self.shelf.name(self.levels[0])
            self.console.print(f"to load one: dataset={folder}", markup=False)
        if self.run.updates:
            self.console.print(f"curve: {learning_curve(self.run.path)}", markup=False)
        return 0

    def summarise(self, status: str) -> None:
        """Write `summary.json` and close the log."""
        steps = 0 if self.training is None else self.training.step
        actions = "sampled" if self.cfg.stochastic else "deterministic"
        self.run.write_summary(
            status=status,  # type: ignore[arg-type]
            updates=steps,
            updates_per_second=steps / self.logger.seconds,
            wall_seconds=self.logger.seconds,
            label=self.run.meta["label"],
            protocol=(
                f"{self.cfg.eval.episodes} episodes with {actions} actions every {self.cfg.eval.every} steps in "
                f"{self.task.env}, horizon {self.task.horizon}; updates are steps of the environment"
            ),
            sets=self.run.meta.get("sets", {}),
        )
        self.run.write_meta(status=status)
        self.logger.close(status)


def find_task(cfg: DictConfig, given: TrainedRun | None) -> Task:
    """Environment, time limit, and the benchmark's reference scores if it has any.

    Raises:
        TaskError: no such environment.
        ConfigError: a policy that was trained without one.
    """
    env, horizon = cfg.env, cfg.horizon
    asked = OmegaConf.to_container(cfg.env_kwargs)
    assert isinstance(asked, dict)
    env_kwargs = {str(key): value for key, value in asked.items()}
    if env == "auto":
        env = given.task.env if given else "Pendulum-v1"
        if env is None:
            raise ConfigError(f"policy={cfg.policy} was trained without an environment; give one by env=")
        if given:
            horizon, env_kwargs = horizon or given.task.horizon, {**given.task.env_kwargs, **env_kwargs}
    task = task_for("online", env, horizon=horizon)
    return dataclasses.replace(task, env_kwargs=env_kwargs)


def prepare(cfg: DictConfig, task: Task, path: Path) -> DictConfig:
    """Fill in what depends on the environment and the machine.

    Raises:
        ConfigError: a value that cannot be used.
    """
    cfg = compose.resolve(cfg, task)
    cfg.run_dir, cfg.device = str(path), str(compose.choose_device(cfg.device))
    cfg.threads = cfg.threads or torch.get_num_threads()  # another number of threads rounds differently
    if isinstance(cfg.logger, str):
        cfg.logger = [cfg.logger]
    for key in ("author", "author_email"):
        if isinstance(cfg[key], str):
            cfg[key] = [cfg[key]]
    for key, least in (("size", 1), ("version", 0), ("seed", 0), ("steps", 1)):
        if not isinstance(cfg[key], int) or cfg[key] < least:
            raise ConfigError(f"{key}={cfg[key]} must be a whole number, at least {least}")
    if not cfg.medium_at > 0:
        raise ConfigError(f"medium_at={cfg.medium_at} must be above 0: a share below 1, or a step of training")
    return cfg


def check_levels(levels: Any) -> list[str]:
    """The wanted levels in the order of `LEVELS`.

    Raises:
        ConfigError: an unknown level, or none.
    """
    wanted = [levels] if isinstance(levels, str) else list(levels)
    for level in wanted:
        if level not in LEVELS:
            near = compose.hint(str(level), LEVELS)
            raise ConfigError(f"levels={level}: no such level{near} (there are {', '.join(LEVELS)})")
    if not wanted:
        raise ConfigError(f"levels=[] makes nothing; there are {', '.join(LEVELS)}")
    return [level for level in LEVELS if level in wanted]
