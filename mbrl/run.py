"""One training run: from a configuration and a problem to parts, and their lives from the first line to the last."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mbrl import background, compose
from mbrl.background import Examiner, Scoring
from mbrl.capture import WORTH_COMPILING_A_FIT, choose
from mbrl.checkpoint import CheckpointError, atomic_write, load_latest, save_checkpoint
from mbrl.compose import ConfigError, Problem
from mbrl.data.collect import Player
from mbrl.data.ring import ReplayTable
from mbrl.data.sources import Dataset
from mbrl.data.tasks import Task
from mbrl.dynamics import quality
from mbrl.dynamics.ensemble import FitReport, FitStopped, GaussianEnsemble
from mbrl.dynamics.oracle import OracleModel
from mbrl.dynamics.store import CODE, FitInterrupted, fit_or_load, store_key
from mbrl.edge.detector import ValueBound, runaway_warning, runaways
from mbrl.evaluate import Evaluator, env_spec
from mbrl.learn import lipschitz
from mbrl.learn.sac import SAC
from mbrl.log import ProgressBar, RunLogger, read_metrics
from mbrl.memory import plan_memory
from mbrl.nets import bfloat16_speedup, generator, use_tf32
from mbrl.online import Experience
from mbrl.rollout.estimate import model_estimate
from mbrl.rollout.filters import Penalise, Truncate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rundir import FINAL_EVALUATIONS, RunDirectory, StopRequest, lock, read_json, to_json, write_json
from mbrl.score import CODE as SCORE_CODE
from mbrl.score.baselines import ClosestToMean
from mbrl.score.fitting import ScoreReport
from mbrl.score.quality import held_out_ranking
from mbrl.train import Training, TrainingDiverged, without_prefix
from mbrl.types import DynamicsModel, Fittable, Metrics, RunModel, StateDict, Stateful, Transition

INTERRUPTED = 130
"""Exit status of a run that was stopped and has saved its state."""

CHANGEABLE = (
    "updates", "device", "threads", "compile", "store", "fit_gate", "logger", "wandb", "progress", "log_every",
    "eval.every", "eval.background", "checkpoint_seconds",
)  # fmt: skip
"""Keys, or their beginnings, that a resumed run may be given anew."""

WAITING = "another process is fitting the same already; its result is waited for"


def saved_config(path: Path, words: Sequence[str] = ()) -> DictConfig:
    """The configuration that a run began with, changed by `words`.

    Raises:
        FileNotFoundError: the run has none.
        ConfigError: a word names no key of it.
    """
    if not (path / "config.yaml").exists():
        raise FileNotFoundError(f"{path} has no config.yaml: the run ended before it began; start it anew")
    cfg = OmegaConf.load(path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    known = list(compose.flat_keys(cfg))
    for word in words:
        key = word.split("=", 1)[0]
        if key not in known:
            raise ConfigError(f"resume: there is no key {key!r}{compose.hint(key, known)}")
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(words)))
    assert isinstance(cfg, DictConfig)
    return cfg


def saved_policy(path: Path) -> tuple[SAC, dict[str, Any]]:
    """The policy of a run that has ended, on the CPU, and what `policy.pt` says beside.

    Raises:
        FileNotFoundError: there is none yet.
    """
    cfg = saved_config(path)
    if not (path / "policy.pt").exists():
        raise FileNotFoundError(
            f"{path} has no policy.pt: the run has not ended; finish it with `mbrl train resume={path}`"
        )
    saved = torch.load(path / "policy.pt", weights_only=True, map_location="cpu")
    learner = compose.build_learner(cfg, saved["obs_dim"], saved["action_dim"], saved["seeds"], torch.device("cpu"))
    learner.load_state_dict(saved["learner"])
    return learner, saved


def newest_policy(path: Path, cfg: DictConfig, model: RunModel) -> SAC | None:
    """That of `policy.pt` or of the last checkpoint, whichever has more updates; None if there is neither."""
    learner, updates = None, -1
    if (path / "policy.pt").exists():
        learner, saved = saved_policy(path)
        updates = saved["updates"]
    found = load_latest(path / "checkpoints", map_location="cpu") if (path / "checkpoints").exists() else None
    if found is not None and found[0] > updates:
        learner = compose.build_learner(cfg, model.obs_dim, model.action_dim, model.seeds, torch.device("cpu"))
        learner.load_state_dict(found[1]["training"]["learner"])
    if learner is not None and model.device.type != "cpu":  # where the model's states are
        read = learner.state_dict()
        learner = compose.build_learner(cfg, model.obs_dim, model.action_dim, model.seeds, model.device)
        learner.load_state_dict(read)
    return learner


def saved_problem(path: Path, cfg: DictConfig, meta: Mapping[str, Any]) -> Problem:
    """Dataset and task of a run.

    Raises:
        ConfigError: the dataset is another one now.
    """
    problem = compose.load_problem(cfg)
    if problem.dataset.hash != meta["dataset_hash"]:
        raise ConfigError(f"{problem.dataset.name} is not the dataset that {path} was made from; put the old file back")
    return problem


def saved_model(path: Path, cfg: DictConfig, problem: Problem, seeds: Sequence[int], device: torch.device) -> RunModel:
    """The dynamics model of a run as it was fitted, or the true simulator where that is the run's model.

    Raises:
        FileNotFoundError: there is none, or none yet.
    """
    model = compose.build_model(cfg, problem, seeds, device)
    if not isinstance(model, GaussianEnsemble):
        return model
    found = load_latest(path / "dynamics" / "model", map_location=device)
    if found is None:
        if not compose.asks_model(cfg, problem):
            raise FileNotFoundError(f"{path} is a run without imagination: it has no dynamics model")
        raise FileNotFoundError(f"{path} has no fitted dynamics model yet; wait for it, or finish it by `mbrl fit`")
    model.load_state_dict(found[1])
    return model


def open_evaluator(
    path: Path,
    task: Task,
    saved: Mapping[str, Any],
    env: str | None,
    *,
    episodes: int,
    device: torch.device | str = "cpu",
) -> Evaluator:
    """Whoever plays the policy of a run again.

    Args:
        path: the run directory.
        task: of the run.
        saved: `obs_dim`, `action_dim`, `seeds`, `action_low` and `action_high`, as in `policy.pt`.
        env: another environment than the run's.
        episodes: per seed.
        device: where the policy wants its observations.

    Raises:
        ConfigError: there is no environment, or its spaces are not the policy's.
    """
    if env is None and task.env is None:
        raise ConfigError(f"{path} was trained without an environment; give one by --env")
    name = str(env or task.env)
    horizon, kwargs = (task.horizon, task.env_kwargs) if name == task.env else (saved_config(path).horizon, None)
    spec = env_spec(name, kwargs, horizon)
    have, want = (saved["obs_dim"], saved["action_dim"]), (spec.observation_dim, len(spec.action_low))
    if have != want:
        raise ConfigError(
            f"the policy of {path} takes observations of {have[0]} and makes actions of {have[1]} dimensions, but "
            f"{name} has {want[0]} and {want[1]}; give the environment it was trained for"
        )
    return Evaluator(
        name,
        episodes=episodes,
        seeds=saved["seeds"],
        horizon=horizon,
        env_kwargs=kwargs,
        action_low=np.asarray(saved["action_low"], np.float32),
        action_high=np.asarray(saved["action_high"], np.float32),
        device=device,
    )


def prepare(cfg: DictConfig, problem: Problem, path: Path) -> DictConfig:
    """Fill in what depends on the task, the data and the machine."""
    cfg = compose.resolve(cfg, problem.task)
    cfg.learner.target_minimum = compose.target_minimum(cfg, problem)
    cfg.run_dir = str(path)
    cfg.threads = cfg.threads or torch.get_num_threads()  # another number of threads rounds differently
    cfg.store = str(Path(cfg.store).expanduser())
    if cfg.dataset is not None and Path(cfg.dataset).exists():
        cfg.dataset = str(Path(cfg.dataset).resolve())  # a run may be resumed from another folder
    if compose.is_online(cfg) and cfg.loop.start is not None:
        cfg.loop.start = str(Path(cfg.loop.start).resolve())
        if not (Path(cfg.loop.start) / "policy.pt").exists():  # said before hours of fitting
            raise ConfigError(
                f"loop.start={cfg.loop.start} has no policy.pt: give the directory of a run that has ended"
            )
    return normalise(cfg)


def normalise(cfg: DictConfig) -> DictConfig:
    """Settings that may be given in two ways, in one; also for those given at a resume."""
    cfg.device = str(compose.choose_device(cfg.device))
    if isinstance(cfg.logger, str):
        cfg.logger = [cfg.logger]
    return cfg


def describe(cfg: DictConfig, problem: Problem) -> dict[str, Any]:
    """What `meta.json` says of a run beside versions and machine."""
    returns = problem.dataset.episode_returns
    reference = problem.task.reference
    return {
        "algo": cfg.algo_name,
        "task": problem.task.name,
        "label": problem.task.label,
        "dataset": problem.dataset.name,
        "dataset_hash": problem.dataset.hash,
        "transitions": len(problem.dataset.transitions.reward),
        "env": problem.task.env,
        "horizon": None if problem.task.env is None else problem.task.horizon,
        "device": cfg.device,
        "threads": cfg.threads,
        "behaviour_return_mean": float(returns.mean()) if len(returns) else None,
        "behaviour_return_max": float(returns.max()) if len(returns) else None,
        "reference": None if reference is None else [reference.minimum, reference.maximum],
        **({"online": OmegaConf.to_container(cfg.loop)} if compose.is_online(cfg) else {}),
        "reference_source": None if reference is None else f"{reference.source} ({reference.environment})",
    }


@contextlib.contextmanager
def endings(run: RunDirectory, logger: RunLogger) -> Iterator[StopRequest]:
    """Ctrl-C, SIGTERM and the end of a sweep become a request to stop; a failure is noted in `meta.json`."""
    with StopRequest() as stop:
        try:
            yield stop
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            run.write_meta(status="failed", reason=reason)
            logger.close("failed")
            raise


def save(run: RunDirectory, logger: RunLogger, step: int, state: StateDict, scoring: StateDict | None = None) -> None:
    """A checkpoint of the whole run."""
    whole = {"training": state, "scoring": scoring, "logger": logger.state_dict(), "run": run.state_dict()}
    save_checkpoint(run.checkpoints, step, whole)


def restore(
    training: Stateful, run: RunDirectory, logger: RunLogger, device: torch.device, scoring: Scoring | None = None
) -> bool:
    """Go on from the last good checkpoint; False, and from the beginning, if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_latest(run.checkpoints, map_location=device)
    for warning in caught:
        note = Console(soft_wrap=True, highlight=False)  # also where progress is not shown
        note.print(f"note: {warning.message}", style="yellow", markup=False)
    if found is None:
        run.forget_evaluations()  # of a process that was killed before its first checkpoint
        return False
    state = found[1]
    training.load_state_dict(state["training"])
    logger.load_state_dict(state["logger"])
    run.load_state_dict(state["run"])
    if scoring is not None:
        scoring.load_state_dict(state["scoring"])
    return True


def show_fit(bar: ProgressBar, report: FitReport) -> None:
    """An epoch of a fit is done."""
    best = float(report.best.min(-1).values.mean())
    bar.update(1, **{"holdout error": float(report.holdout.mean()), "best": best}, loss=float(report.train_loss.mean()))


def show_score_fit(bar: ProgressBar, report: ScoreReport) -> None:
    """Some steps of a score's fit are done."""
    bar.total = report.total
    bar.update(report.done - bar.completed, **{name: float(value.mean()) for name, value in report.metrics.items()})


def build_examiner(recipe: StateDict) -> Examiner:
    """Whoever plays a run's evaluations, made of plain data, in whatever process that happens."""
    evaluator = Evaluator(**recipe["evaluator"])
    learner = compose.build_learner(
        DictConfig(recipe["config"]), recipe["obs_dim"], recipe["action_dim"], evaluator.seeds, torch.device("cpu")
    )
    return Examiner(evaluator, learner)


def calibrate(imagination: Imagination, model: RunModel, problem: Problem) -> None:
    """Find the numbers of filters on the rows that the fitted model has held out: the same ones every time."""
    if not imagination.filters.to_calibrate():
        return
    assert isinstance(model, GaussianEnsemble)  # else the cut or the scale has been refused
    rows = problem.dataset.transitions
    held_out = model.split(len(rows.reward)).holdout.cpu()
    obs, action = rows.obs[held_out].to(model.device), rows.action[held_out].to(model.device)
    imagination.calibrate(obs, action, [generator(seed, "truncate", device=model.device) for seed in model.seeds])


def rows_to_measure(problem: Problem, model: RunModel | None) -> Transition:
    """What `mbrl.learn.lipschitz` asks: rows (S, N, .) that a fitted model has held out, else (N, .) of the dataset.

    The critics have seen all of them.
    """
    data = problem.dataset.transitions
    if isinstance(model, GaussianEnsemble):
        pick = model.split(len(data.reward)).holdout[:, : lipschitz.ROWS].cpu()
    else:
        pick = torch.linspace(0, len(data.reward) - 1, min(len(data.reward), lipschitz.ROWS)).long()
    return Transition(*(x[pick] for x in data))


def value_bound(learner: SAC, problem: Problem) -> ValueBound:
    """What no policy can be worth; the learner's present temperature counts as the first one."""
    return ValueBound.of(
        problem.dataset.transitions.reward,
        learner.discount,
        entropy=learner.action_dim * math.log(2.0) if learner.soft_backup else 0.0,
        temperature=float(learner.log_temperature.exp().max()),
        target_rate=learner.target_rate,
    )


def episodes(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every episode in the dataset: its length, its first row, and whether it ended in a terminal."""
    end = dataset.episode_end.clone()
    end[-1] = True
    last = torch.nonzero(end).flatten()
    first = torch.cat([torch.tensor([0]), last[:-1] + 1])
    return last - first + 1, first, dataset.transitions.terminal[last]


def start_observations(dataset: Dataset) -> torch.Tensor:
    """Up to 256 observations (N, O) in which episodes of the dataset begin."""
    _, first, _ = episodes(dataset)
    pick = torch.linspace(0, len(first) - 1, min(len(first), 256)).long()
    return dataset.transitions.obs[first[pick]]


def estimate_horizon(dataset: Dataset, longest: int) -> int:
    """Steps of a model-side estimate: no more than `longest`, or than most of the dataset's episodes may make."""
    lengths, _, terminal = episodes(dataset)
    allowed = lengths[~terminal]
    return min(longest, int(allowed.median())) if len(allowed) else longest


class Run:
    """One training run: the parts, made from the configuration, and their lives.

    All that a configuration can get wrong is found here, before there is a run directory and before hours of fitting.
    """

    def __init__(self, cfg: DictConfig, problem: Problem, path: Path, begun: RunDirectory | None = None) -> None:
        self.cfg, self.problem = cfg, problem
        self.seeds = compose.seed_list(cfg)
        self.device = torch.device(cfg.device)
        torch.set_num_threads(cfg.threads)
        use_tf32(cfg.precision == "tf32", self.device)
        torch.set_flush_denormal(True)  # moments and activations near 0 slow a CPU down by a tenth within 2,000 updates
        self.console = Console(soft_wrap=True, highlight=False)
        self.rate: float | None = None
        self.logger = RunLogger(
            path,
            list(cfg.logger),
            seeds=self.seeds,
            total_updates=cfg.updates,
            console=self.console if cfg.progress else Console(quiet=True),
            config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
            name=path.name,
            **{f"wandb_{key}": value for key, value in cfg.wandb.items()},
        )
        obs_dim, action_dim = problem.dataset.transitions.obs.shape[-1], problem.dataset.transitions.action.shape[-1]
        self.schedule = compose.build_schedule(cfg)
        self.interaction = compose.build_interaction(cfg)
        self.model = compose.build_model(cfg, problem, self.seeds, self.device)
        std = compose.observation_std(problem).to(self.device)
        self.learner = compose.build_learner(cfg, obs_dim, action_dim, self.seeds, self.device, self.model, std)
        self.measuring = compose.measures_lipschitz(cfg, self.model, self.learner)
        # Online there are no rewards yet that would bound what a policy can be worth.
        self.value_bound = None if self.interaction is not None else value_bound(self.learner, problem)
        self.score = compose.build_score(cfg, problem, self.seeds, self.device)
        self.imagination = compose.build_imagination(cfg, problem, self.model, self.score)
        self.explore = compose.build_explore(cfg, problem, self.model)
        self.memory = plan_memory(
            rows=len(problem.dataset.transitions.reward)
            + (len(self.seeds) * cfg.loop.steps if self.interaction else 0),
            obs_dim=obs_dim,
            action_dim=action_dim,
            capacity=compose.ring_capacity(cfg),
            members=self.model.members,
            hidden=max(p.shape[-1] for p in self.model.params) if isinstance(self.model, GaussianEnsemble) else obs_dim,
            lanes=self.imagination.rows_at_once(cfg.rollout.lanes),
            seeds=len(self.seeds),
            device=self.device,
        )
        self.memory.check()
        # An update with a target penalty is long enough to be a call of its own, and four compile four times as long.
        intervals = self.schedule.intervals if self.learner.target_penalty is None else (1,)
        if self.interaction is not None:
            intervals = (*intervals, self.interaction.updates_per_step)
        self.choice = choose(cfg.compile, self.device, self.schedule.updates, intervals)
        self.playing = background.choose(cfg.eval.background, cfg.threads, self.schedule.updates)
        self.scoring: Scoring | None = None
        self.experience: Experience | None = None
        self.lock = lock(path)
        text = OmegaConf.to_yaml(cfg).encode()
        atomic_write(path / "config.yaml", lambda file: file.write(text))
        if begun is None:
            self.run = RunDirectory.create(path, seeds=self.seeds, **describe(cfg, problem))
        else:
            self.run = begun
            self.run.mark_resumed()

    def train(self) -> int:
        """Fit or load the model, train, evaluate, save; the exit status."""
        self.announce()
        with self.lock, endings(self.run, self.logger) as stop, contextlib.ExitStack() as afterwards:
            if self.problem.task.env is not None:  # what is wrong with it is found before the fit
                Evaluator(**{**self.evaluator_settings(), "episodes": 1, "seeds": self.seeds[:1]}).close()
            if isinstance(self.model, OracleModel):
                afterwards.callback(self.model.close)
            if not compose.asks_model(self.cfg, self.problem):
                self.say("no dynamics model is fitted: every row of a batch is real")
            elif len(self.problem.dataset.transitions.reward):
                if not (self.fit_model(stop) and self.fit_score(stop)):
                    return self.interrupted("train", None)
                self.calibrate()
            if self.problem.task.env is not None:
                self.scoring = self.make_scoring()
                afterwards.callback(self.scoring.close)
            table = compose.build_table(self.cfg, self.problem, self.seeds, self.device)
            self.experience = self.make_experience(table, stop)
            if self.experience is not None:
                afterwards.callback(self.experience.close)
            training = Training(
                learner=self.learner,
                table=table,
                imagination=self.imagination,
                schedule=self.schedule,
                logger=self.logger,
                evaluate=lambda step: self.evaluate(training, step),
                save=self.save,
                should_stop=lambda: stop.requested,
                choice=self.choice,
                report=self.watch_values,
                experience=self.experience,
            )
            if restore(training, self.run, self.logger, self.device, self.scoring):
                self.say(f"resumed at update {training.step:,}")
            else:
                self.start_from()
                if not self.check_model(stop, gate=self.cfg.fit_gate is True):
                    return self.interrupted("train", None)
            self.say(f"updates run {self.choice.mode}, {self.choice.steps} a call: {self.choice.reason}")
            self.run.write_meta(compile=dataclasses.asdict(self.choice))
            began, first = time.monotonic(), training.step
            with self.logger.progress("training", total=self.schedule.updates, completed=training.step) as bar:
                training.progress = bar
                try:
                    complete = training.run()
                except TrainingDiverged:
                    self.collect()  # of a policy that was sound
                    raise
                bar.update(0, **without_prefix(self.collect()))
            if training.step > first:
                self.rate = (training.step - first) / (time.monotonic() - began)
            self.save_policy(training)
            if self.experience is not None:
                self.experience.write(self.run.path)
            if not complete:
                return self.interrupted("train", training.step)
            return self.finished(training.step)

    def fit_only(self) -> int:
        """`mbrl fit`: the model and the score, and nothing else.

        Raises:
            ConfigError: there is nothing to fit to.
        """
        if not len(self.problem.dataset.transitions.reward):
            raise ConfigError(
                "loop=online begins without a dataset, so there is nothing to fit; give loop.dataset=true"
            )
        self.announce()
        with self.lock, endings(self.run, self.logger) as stop:
            if not (
                self.fit_model(stop)
                and self.check_model(stop, gate=self.cfg.fit_gate is not False, whole=True)
                and self.fit_score(stop)
            ):
                return self.interrupted("fit", None)
            self.run.write_meta(status="finished")
            self.logger.close("finished")
            return 0

    def announce(self) -> None:
        """What is about to happen, in a few lines."""
        task, dataset = self.problem.task, self.problem.dataset
        returns = dataset.episode_returns
        show = self.say
        self.console.print(
            f"[bold]{self.cfg.algo_name}[/] on {task.label}, seeds {self.seeds}, {self.cfg.updates:,} updates, "
            f"{self.device}"
        )
        rows = len(dataset.transitions.reward)
        line = f"{rows:,} transitions" if rows else "no dataset"
        if self.interaction is not None:
            line += f"; {self.interaction.steps:,} real steps, {self.interaction.updates_per_step} updates after each"
        if len(returns):
            line += f", {len(returns):,} episodes, return {returns.mean():.1f} on average, {returns.max():.1f} at best"
        show(line)
        for note in (*dataset.warnings, *task.notes):
            show(f"note: {note}", "yellow")
        if task.env is None:
            show("no environment: nothing is scored, the model's own estimate is shown instead", "yellow")
        if self.score is not None and isinstance(self.imagination.select, RandomElite):
            show("note: the score is fitted and judged, but rollouts do not ask it: add 'filter=[morec]'", "yellow")
        if self.cfg.precision == "bfloat16" and self.device.type == "cpu" and (gain := bfloat16_speedup()) < 1:
            show(f"note: this CPU multiplies bfloat16 at {gain:.2f} of its float32 rate: it costs time here", "yellow")
        for note in compose.single_model_notes(self.cfg, self.problem, self.model):
            show(f"note: {note}", "yellow")
        minimum = self.cfg.learner.target_minimum
        if minimum is not None or self.learner.target_penalty is not None:
            limit = "have no lower limit" if minimum is None else f"are kept at {minimum:g} or above"
            lowest = f"; the lowest reward of the dataset is {dataset.transitions.reward.min():.4g}" if rows else ""
            show(f"Bellman targets {limit}{lowest}")
        show(str(self.memory))
        show(f"run directory: {self.run.path}")

    def say(self, line: str, style: str | None = None) -> None:
        """A line for the person who watches."""
        self.console.print(line, style=style, markup=False)

    def fit_model(self, stop: StopRequest) -> bool:
        """Make the dynamics model a fitted one, from this run, the store or by a fit; False if asked to stop."""
        cfg, model = self.cfg, self.model
        if not isinstance(model, GaussianEnsemble):
            self.say(f"the dynamics model is the simulator {self.problem.task.env}: nothing is fitted")
            return True
        key = store_key(self.problem.dataset.hash, compose.dynamics_settings(cfg))
        rows = len(self.problem.dataset.transitions.reward)
        epochs = model.epochs(rows)
        expected = (epochs or 20) * rows // model.batch_size
        model.mode = choose(cfg.compile, self.device, expected, worth=WORTH_COMPILING_A_FIT).mode
        with self.logger.progress("fitting the dynamics model", total=epochs) as bar:
            try:
                source = fit_or_load(
                    model,
                    self.problem.dataset.transitions,
                    key=key,
                    root=Path(cfg.store).expanduser(),
                    scratch=self.run.path / "dynamics",
                    save_seconds=self.schedule.checkpoint_seconds,
                    on_progress=lambda report: show_fit(bar, report),
                    on_wait=lambda: self.say(WAITING),
                    should_stop=lambda: stop.requested,
                )
            except FitInterrupted:
                return False
        error = model.holdout_error.gather(-1, model.elites).mean(-1)
        if source != "run" or "dynamics" not in self.run.meta:  # a resumed run's model is noted already
            self.run.write_meta(dynamics={"key": key, "from": source, "holdout_error": error.tolist()})
        if source == "store":
            self.say(f"dynamics model from the store ({key})")
        return True

    def check_model(self, stop: StopRequest, *, gate: bool, whole: bool = False) -> bool:
        """Measure the fitted model on held-out rows; show, log and keep the numbers. False if asked to stop.

        Args:
            stop: asked within the gate.
            gate: also fit the squared-error net that the model should not be much worse than.
            whole: show every dimension.
        """
        dataset, model, seeds = self.problem.dataset, self.model, self.seeds
        if not isinstance(model, GaussianEnsemble) or "dynamics" not in self.run.meta:
            return True  # the truth, or a model that nobody asks
        rows = dataset.transitions
        holdout = model.split(len(rows.reward)).holdout

        def measure(fitted: DynamicsModel) -> quality.Quality:
            sources = [generator(seed, "dynamics", "quality", device=self.device) for seed in seeds]
            return quality.measure(fitted, rows, dataset.episode_end, holdout, sources)

        found = measure(model.elite_view())
        kept = quality.as_json(found, seeds)
        self.console.print(quality.summary_table(found))
        if whole:
            self.console.print(quality.dimension_table(found))
        if gate:
            net = quality.squared_error_net(model)
            epochs = net.epochs(len(rows.reward))
            with self.logger.progress("fitting a squared-error net to compare with", total=epochs) as bar:
                try:
                    net.fit(rows, on_progress=lambda report: show_fit(bar, report), should_stop=lambda: stop.requested)
                except FitStopped:
                    return False
            error = measure(net).mean_error
            kept["squared_error_net"] = {"steps": quality.GATE_STEPS, "mean_error": error.tolist()}
            warning = quality.gate_warning(seeds, found.mean_error, error, self.cfg.dynamics.loss)
            if warning is not None:
                self.say(f"warning: {warning}", "yellow")
            else:
                self.say(f"gate passed: a squared-error net's error is {float(error.mean()):.3f}")
        text = to_json(kept, indent=2).encode()
        atomic_write(self.run.path / "dynamics" / "quality.json", lambda file: file.write(text))
        self.run.write_meta(
            dynamics=self.run.meta["dynamics"] | {"quality": {name: kept[name] for name in found.summary()}}
        )
        values = {f"dynamics/{name}": float(value.mean()) for name, value in found.summary().items()}
        if len(seeds) > 1:
            values |= {
                f"dynamics/{name}/seed_{seed}": value
                for name in found.summary()
                for seed, value in zip(seeds, kept[name], strict=True)
            }
        self.logger.log_event(0, values)
        return True

    def fit_score(self, stop: StopRequest) -> bool:
        """Make the score a fitted one, as the model before it, and judge it; False if asked to stop."""
        cfg, score, model, data = self.cfg, self.score, self.model, self.problem.dataset.transitions
        if score is None:
            return True
        assert isinstance(model, GaussianEnsemble)  # else the score has been refused
        noted: dict[str, Any] = {}
        if isinstance(score, Fittable):
            key = store_key(self.problem.dataset.hash, compose.score_settings(cfg), (*CODE, *SCORE_CODE))
            with self.logger.progress("fitting the score", total=1) as bar:
                try:
                    source = fit_or_load(
                        score,
                        data,
                        model,
                        key=key,
                        root=Path(cfg.store).expanduser(),
                        scratch=self.run.path / "score",
                        save_seconds=self.schedule.checkpoint_seconds,
                        on_progress=lambda report: show_score_fit(bar, report),
                        on_wait=lambda: self.say(WAITING),
                        should_stop=lambda: stop.requested,
                    )
                except FitInterrupted:
                    return False
            if source == "run" and "score" in self.run.meta:  # a resumed run's score is judged already
                return True
            if source == "store":
                self.say(f"score from the store ({key})")
            noted = {"key": key, "from": source}
        ranking = held_out_ranking({"score": score}, model, data)
        own, closest = ranking["score"], ranking["closest_to_mean"]
        (self.run.path / "score").mkdir(exist_ok=True)  # a score that is not fitted has left nothing there
        write_json(
            self.run.path / "score" / "quality.json",
            {name: {key: value.tolist() for key, value in row.items()} for name, row in ranking.items()},
        )
        self.run.write_meta(score=noted | {key: own[key].tolist() for key in ("ratio", "pn", "low", "high")})
        self.say(
            f"the candidate that the score takes has {float(own['ratio'].mean()):.3f} of the mean candidate's error on "
            f"held-out rows; the one closest to the mean has {float(closest['ratio'].mean()):.3f}"
        )
        if not (isinstance(score, ClosestToMean) or bool((own["high"] < 0).all())):
            low, high = float(own["low"].mean()), float(own["high"].mean())
            self.say(
                f"note: the score ranks no better than the distance to the mean (95 % interval of the difference "
                f"{low:+.3f} to {high:+.3f}): this filter has no ranking value here. score=closest_to_mean is as good "
                "and free; a better dynamics fit does more than a filter (docs/belief.md)",
                "yellow",
            )
        return True

    def calibrate(self) -> None:
        """Thresholds and units that are quantiles over held-out rows become numbers."""
        calibrate(self.imagination, self.model, self.problem)
        for part in self.imagination.filters.filters:
            if isinstance(part, Truncate):
                self.run.write_meta(truncate={"signal": part.signal, "threshold": part.threshold()})
            if isinstance(part, Penalise) and part.unit is not None:
                self.run.write_meta(penalise={"uncertainty": part.name, "median": part.unit.flatten().tolist()})

    def evaluator_settings(self) -> dict[str, Any]:
        """What `Evaluator` needs to make environments for all seeds and episodes, as plain data."""
        task, dataset = self.problem.task, self.problem.dataset
        return {
            "env": task.env,
            "episodes": self.cfg.eval.episodes,
            "seeds": self.seeds,
            "horizon": task.horizon,
            "env_kwargs": dict(task.env_kwargs or {}),
            "action_low": dataset.action_low.tolist(),
            "action_high": dataset.action_high.tolist(),
        }

    def make_scoring(self) -> Scoring:
        """Somebody who plays the evaluations: another process, which starts now, or this one."""
        data = self.problem.dataset.transitions
        recipe = {
            "config": OmegaConf.to_container(self.cfg),
            "evaluator": self.evaluator_settings(),
            "obs_dim": data.obs.shape[-1],
            "action_dim": data.action.shape[-1],
        }
        when = "in the background" if self.playing.background else "between updates"
        self.say(f"evaluations are played {when}: {self.playing.reason}")
        return Scoring(build_examiner, recipe, background=self.playing.background, say=self.say)

    def make_experience(self, table: ReplayTable, stop: StopRequest) -> Experience | None:
        """Every seed's own environment; None offline."""
        plan, task = self.interaction, self.problem.task
        if plan is None:
            return None
        assert task.env is not None
        dataset = self.problem.dataset
        players = [
            Player(
                task.env,
                seed=seed,
                horizon=task.horizon,
                env_kwargs=task.env_kwargs,
                action_low=dataset.action_low,
                action_high=dataset.action_high,
                device=self.device,
            )
            for seed in self.seeds
        ]
        return Experience(
            players=players,
            learner=self.learner,
            actions=self.explore,
            model=self.model if compose.asks_model(self.cfg, self.problem) else None,
            table=table,
            imagination=self.imagination,
            lanes=self.cfg.rollout.lanes,
            retain=self.cfg.rollout.retain,
            plan=plan,
            logger=self.logger,
            should_stop=lambda: stop.requested,
        )

    def start_from(self) -> None:
        """Begin with the policy, the critics and the fitted model of another run.

        Raises:
            ConfigError: it is no finished run, or its networks or seeds are others.
        """
        if self.interaction is None or self.cfg.loop.start is None:
            return
        asked = self.cfg.loop.start
        path = Path(asked)
        try:
            learner, saved = saved_policy(path)
            if list(saved["seeds"]) != self.seeds:
                raise ValueError(f"its seeds are {saved['seeds']}, this run's {self.seeds}")
            self.learner.load_state_dict(learner.state_dict())
            found = load_latest(path / "dynamics" / "model")
            if found is not None and isinstance(self.model, GaussianEnsemble):
                self.model.load_state_dict(found[1])
        except (OSError, ValueError, KeyError, CheckpointError) as error:
            raise ConfigError(f"loop.start={asked}: {error}") from error
        self.say(f"begins with the policy of {path}" + ("" if found is None else ", and with its dynamics model"))

    def save(self, step: int, state: StateDict) -> None:
        """A checkpoint, with the evaluation that is under way."""
        save(self.run, self.logger, step, state, None if self.scoring is None else self.scoring.state_dict())

    def evaluate(self, training: Training, step: int) -> dict[str, float]:
        """Score the policy in the environment, or ask the model, and log it; the newest numbers that are known."""
        learner = training.learner
        if self.measuring:
            self.logger.add(self.measure_lipschitz(step), "lipschitz")
        if self.scoring is None:
            horizon = self.model_horizon()
            estimate = model_estimate(learner, training.imagination, self.starts(), horizon, evaluation=step)
            self.logger.add({name: value for name, value in estimate.items() if name != "return"}, "model")
            values = {"model/return": float(estimate["return"].mean())}
            if len(self.seeds) > 1:
                per_seed = zip(self.seeds, estimate["return"].tolist(), strict=True)
                values |= {f"model/return/seed_{seed}": value for seed, value in per_seed}
            self.logger.log_event(step, values)
            return values
        before = self.collect()
        self.scoring.submit(step, learner.policy_state())
        self.logger.hold()  # the row of this update waits for its result
        return before if self.scoring.background else self.collect()

    def measure_lipschitz(self, step: int) -> Metrics:
        """How steep the critics are, and what of the model's error they see, on rows that the model has held out."""
        model = self.model if compose.asks_model(self.cfg, self.problem) else None
        if self.experience is None:
            rows = Transition(*(x.to(self.device) for x in rows_to_measure(self.problem, model)))
        else:
            rows = self.experience.rows_to_measure(lipschitz.ROWS)
        sources = [generator(seed, "lipschitz", step, device=self.device) for seed in self.seeds]
        simulator = None if model is None else model.elite_view()
        return lipschitz.measure(self.learner, rows, self.learner.observation_std, sources, simulator)

    def collect(self) -> dict[str, float]:
        """Wait for the evaluation under way, if there is one, and log it in the row of the update it is of."""
        found = None if self.scoring is None else self.scoring.collect()
        if found is None:
            return {}
        step, done = found
        reference = self.problem.task.reference
        scores = None if reference is None else reference.score(done.returns)
        self.run.add_returns(step, done.returns, scores)
        values = {"eval/return": float(done.returns.mean()), "eval/length": float(done.lengths.mean())}
        if scores is not None:
            values["eval/score"] = float(scores.mean())
        if len(self.seeds) > 1:
            values |= {f"eval/return/seed_{s}": float(r.mean()) for s, r in zip(self.seeds, done.returns, strict=True)}
        self.logger.log_event(step, values)
        self.logger.release()
        return values

    def watch_values(self, step: int, row: Mapping[str, float]) -> None:
        """Say once in a run's life that values run away, and note it in `meta.json`."""
        if self.value_bound is None or "runaway" in self.run.meta:
            return
        found = runaways(row, self.seeds, step, self.value_bound)
        if found:
            warning = runaway_warning(found, step)
            self.say(f"warning: {warning}", "yellow")
            self.run.write_meta(
                runaway={"update": step, "seeds": [dataclasses.asdict(one) for one in found], "warning": warning}
            )

    def model_horizon(self) -> int:
        """Steps of the model-side estimate."""
        return estimate_horizon(self.problem.dataset, self.cfg.eval.model_horizon)

    def behaviour_over(self, horizon: int) -> float:
        """Mean return of the dataset's episodes in their first `horizon` steps, but of those cut off before."""
        lengths, first, terminal = episodes(self.problem.dataset)
        cumulative = torch.cat(
            [torch.zeros(1, dtype=torch.double), self.problem.dataset.transitions.reward.double().cumsum(0)]
        )
        whole = terminal | (lengths >= horizon)
        returns = cumulative[first + lengths.clamp(max=horizon)] - cumulative[first]
        return float(returns[whole].mean())

    def starts(self) -> torch.Tensor:
        """Observations in which episodes of the dataset begin."""
        return start_observations(self.problem.dataset).to(self.device)

    def save_policy(self, training: Training) -> None:
        """`policy.pt`: what `mbrl eval` needs."""
        data, dataset = self.problem.dataset.transitions, self.problem.dataset
        state = {
            "learner": training.learner.state_dict(),
            "obs_dim": data.obs.shape[-1],
            "action_dim": data.action.shape[-1],
            "seeds": self.seeds,
            "updates": training.step,
            "action_low": dataset.action_low.tolist(),
            "action_high": dataset.action_high.tolist(),
        }
        atomic_write(self.run.path / "policy.pt", lambda file: torch.save(state, file))

    def interrupted(self, verb: str, step: int | None) -> int:
        """Saved, and told how to go on; `step` is None within the fit."""
        self.summarise("interrupted", step or 0)
        where = "in the fits" if step is None else f"at update {step:,}"
        self.say(f"stopped {where} and saved; go on with: mbrl {verb} resume={self.run.path}")
        return INTERRUPTED

    def finished(self, step: int) -> int:
        """Summary, curve, last words."""
        from mbrl.plots import learning_curve, model_curve  # matplotlib is slow to import

        summary = self.summarise("finished", step)
        if self.scoring is None:
            picture = model_curve(self.run.path)
            horizon = self.model_horizon()
            # Read back, since a run that was killed after its last evaluation has none in memory.
            estimate = [row["model/return"] for row in read_metrics(self.run.path) if "model/return" in row][-1]
            self.say(
                f"by the model's own estimate the policy returns {estimate:.1f} over {horizon} steps; the "
                f"dataset's episodes return {self.behaviour_over(horizon):.1f} in their first {horizon}",
                "bold",
            )
            self.say("no environment: that is what the model believes, not what is true", "yellow")
        else:
            picture = learning_curve(self.run.path)
            behaviour, final = summary["behaviour_return_mean"], summary["final_return_mean"]
            line = f"return {final:.1f} (mean of the last evaluations)"
            if behaviour is not None:
                line += f", the dataset's mean is {behaviour:.1f}"
            if summary["final_score_mean"] is not None:
                line += f"; score {summary['final_score_mean']:.1f}"
            else:
                line += "; this task has no reference scores, so returns are raw"
            self.say(line, "bold")
        self.say(f"curve: {picture}")
        return 0

    def last_rate(self) -> float | None:
        """The rate of an earlier process of this run, where this one had no updates to do."""
        path = self.run.path / "summary.json"
        rate: float | None = read_json(path)["updates_per_second"] if path.exists() else None
        return rate

    def summarise(self, status: str, step: int) -> dict[str, Any]:
        """Write `summary.json` and close the log."""
        task, plan = self.problem.task, self.cfg.eval
        if task.env is None:
            protocol = f"not scored: no simulator; metrics.jsonl has the model's estimate every {plan.every} updates"
        else:
            protocol = (
                f"{plan.episodes} episodes per seed with the deterministic policy every {plan.every} updates in "
                f"{task.env}, horizon {task.horizon}; final = mean of the last {FINAL_EVALUATIONS} evaluations"
            )
        summary = self.run.write_summary(
            status=status,  # type: ignore[arg-type]
            updates=step,
            updates_per_second=self.rate or self.last_rate(),  # imagination and evaluation included, fitting not
            wall_seconds=self.logger.seconds,
            behaviour_return_mean=self.run.meta.get("behaviour_return_mean"),
            behaviour_return_max=self.run.meta.get("behaviour_return_max"),
            label=self.run.meta["label"],
            protocol=protocol,
        )
        self.run.write_meta(status=status)
        self.logger.close(status)
        return summary
