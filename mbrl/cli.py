"""The command line: `mbrl train | fit | collect | inspect | eval`. Verbs stay thin; parts do the work."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

import mbrl
from mbrl import compose
from mbrl.capture import choose
from mbrl.checkpoint import CheckpointError, atomic_write, load_latest, save_checkpoint
from mbrl.compose import ConfigError, Problem
from mbrl.data.tasks import TaskError
from mbrl.data.validate import DatasetError
from mbrl.dynamics.ensemble import FitReport
from mbrl.dynamics.store import FitInterrupted, fit_or_load, store_key
from mbrl.evaluate import EvaluationError, Evaluator, env_spec
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.rollout.estimate import model_estimate
from mbrl.rundir import FINAL_EVALUATIONS, RunDirectory, StopRequest, read_json
from mbrl.train import OfflineTraining, TrainingDiverged
from mbrl.types import StateDict, Stateful

USER_ERRORS = (
    ConfigError,
    DatasetError,
    TaskError,
    CheckpointError,
    EvaluationError,
    TrainingDiverged,
    OSError,
    ModuleNotFoundError,
    ValueError,
    FloatingPointError,
    MemoryError,
    HydraException,
    OmegaConfBaseException,
)
INTERRUPTED = 130

HELP = """\
mbrl - model-based offline reinforcement learning: from a dataset of logged transitions to a policy.

  mbrl train   [key=value ...]    fit a dynamics model, imagine, train, evaluate; no argument: the built-in task
  mbrl train   resume=RUN_DIR     go on from the last good checkpoint
  mbrl fit     [key=value ...]    only the dynamics model, into the store
  mbrl collect [key=value ...]    make a dataset: train a behaviour policy online, or roll one out
  mbrl inspect DATASET            what is in a dataset: sizes, returns, coverage, faults
  mbrl eval    RUN_DIR            score a trained policy again

`mbrl VERB --help` says more. Version {version}.
"""

TRAIN_HELP = """\
mbrl train: a dataset in, a policy out.

  mbrl train                                                     the built-in task (Pendulum), minutes on two cores
  mbrl train task=hopper-medium-v2 seeds=5                       a benchmark task, five seeds side by side
  mbrl train dataset=/data/plant.npz env=null                    your own logs, no simulator
  mbrl train dataset=logs.hdf5 env=Hopper-v5 updates=300000
  mbrl train resume=runs/pendulum-mopo-seed0/2026-01-31_12-00-00

What most people set:
  task=NAME        dataset + environment + horizon + termination + reference scores: hopper-medium-v2, pendulum
  dataset=STRING   minari:ID, d4rl:NAME, neorl:NAME, neorl2:NAME, builtin:NAME, or a path (.npz, .hdf5, Minari folder)
  env=ID           Gymnasium id, module:Id, package.module:factory, or null for no simulator
  algo=NAME        {algo}
  filter=[...]     {filter}
  dynamics=NAME    {dynamics}
  penalty=NAME     {penalty}
  seed=0 seeds=1   first seed, and how many are trained side by side
  updates=N        gradient steps
  device=auto      cpu, cuda, cuda:1            threads=N     CPU threads
  logger=[...]     tensorboard, wandb, beside metrics.jsonl and metrics.csv, which are always written
  run_dir=DIR      where everything goes        resume=DIR    go on with a run

`mbrl train --cfg job` prints every key with its value; a misspelt key is answered with the nearest one.
`-m` sweeps over comma-separated values. `--config-dir DIR` adds a folder of your own YAML options.
Ctrl-C (or SIGTERM) saves and ends; resume= goes on from there with the same result.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status: 0 done, 1 error, 2 usage, 130 interrupted and saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    console = Console(stderr=True, soft_wrap=True)
    if verb in ("-h", "--help", "help"):
        print(HELP.format(version=mbrl.__version__), end="")
        return 0
    if verb == "--version":
        print(f"mbrl {mbrl.__version__}")
        return 0
    verbs: dict[str, Callable[[list[str]], int]] = {
        "train": train_verb,
        "fit": fit_verb,
        "collect": collect_verb,
        "inspect": inspect_verb,
        "eval": eval_verb,
    }
    if verb not in verbs:
        console.print(f"mbrl: there is no verb {verb!r}{compose.hint(verb, list(verbs))}", style="red", markup=False)
        return 2
    try:
        return verbs[verb](rest)
    except USER_ERRORS as error:
        if os.environ.get("MBRL_TRACEBACK"):
            raise
        console.print(f"mbrl {verb}: {error}", style="red", markup=False, highlight=False)
        if not isinstance(error, ConfigError | DatasetError | TaskError | CheckpointError | EvaluationError | OSError):
            console.print("(MBRL_TRACEBACK=1 shows where it came from)", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted", style="red")
        return INTERRUPTED


# -- Hydra verbs -------------------------------------------------------------------------------------------------------


def run_to_resume(verb: str, words: list[str]) -> Path | None:
    """The run that `resume=` names; None for a new one.

    Raises:
        FileExistsError: `run_dir=` names a run that exists.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
    if given.get("resume", "null") != "null":
        return Path(given["resume"])
    if "run_dir" in given and (Path(given["run_dir"]) / "meta.json").exists():
        raise FileExistsError(
            f"{given['run_dir']} already holds a run; go on with it by `mbrl {verb} resume={given['run_dir']}`, or "
            "choose another run_dir"
        )
    return None


def hydra_verb(config_name: str, words: list[str], job: Callable[[DictConfig, Path], int], help_text: str) -> int:
    """Check the words, then let Hydra compose, make the run directory (or sweep), and call `job`."""
    if any(word in ("-h", "--help") for word in words):
        folder = compose.config_folder()
        options = {d.name: ", ".join(sorted(p.stem for p in d.glob("*.yaml"))) for d in folder.iterdir() if d.is_dir()}
        print(help_text.format(**options), end="")
        return 0
    compose.register_resolvers()
    compose.check_overrides(words, config_name)
    overrides, flags = compose.split_words(words)
    status = 0
    failure: Exception | None = None

    def entry(cfg: DictConfig) -> None:
        nonlocal status, failure
        path = Path(HydraConfig.get().runtime.output_dir)
        try:
            status = max(status, job(cfg, path))
        except Exception as error:
            forget(path)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra says which run of the sweep it was
            failure = error
        if status == INTERRUPTED:
            raise KeyboardInterrupt  # not the next run of a sweep

    entry.__module__ = "mbrl.cli"
    decorated = hydra.main(config_path=str(compose.config_folder()), config_name=config_name, version_base="1.3")(entry)
    before = sys.argv
    sys.argv = [f"mbrl {config_name}", *overrides, *flags]  # Hydra's parser takes flags in the middle for an error
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach `main`, which says them in one line
    try:
        decorated()
    finally:
        sys.argv = before
    if failure is not None:
        raise failure
    return status


def forget(path: Path) -> None:
    """Remove what Hydra wrote for a run that was refused before it began."""
    if not (path / "meta.json").exists():
        shutil.rmtree(path / ".hydra", ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something else, which is not ours
            path.rmdir()


def train_verb(words: list[str]) -> int:
    """`mbrl train`: a new run, or `resume=`."""
    begun = run_to_resume("train", words)
    if begun is not None:
        return resume_run(begun, [w for w in words if not w.startswith("resume=")]).train()
    return hydra_verb("train", words, start_run, TRAIN_HELP)


def fit_verb(words: list[str]) -> int:
    """`mbrl fit`: the dynamics model only, of a new run or of `resume=`."""
    begun = run_to_resume("fit", words)
    if begun is not None:
        return resume_run(begun, [w for w in words if not w.startswith("resume=")]).fit_only()
    return hydra_verb("train", words, fit_run, TRAIN_HELP.replace("mbrl train", "mbrl fit"))


def collect_verb(words: list[str]) -> int:
    """`mbrl collect`: a new collection, or `resume=`."""
    from mbrl.cli_collect import COLLECT_HELP, resume_collection, start_collection

    begun = run_to_resume("collect", words)
    if begun is not None:
        return resume_collection(begun, [w for w in words if not w.startswith("resume=")])
    return hydra_verb("collect", words, start_collection, COLLECT_HELP)


def start_run(cfg: DictConfig, path: Path) -> int:
    """A new training run in `path`."""
    problem = compose.load_problem(cfg)
    return Run(prepare(cfg, problem, path), problem, path).train()


def resume_run(path: Path, words: list[str]) -> Run:
    """A run to go on with; `words` may change keys of its configuration (e.g. `logger=wandb`)."""
    run = RunDirectory.open(path)
    cfg = saved_config(path, words)
    compose.register_resolvers()
    compose.check_numbers(cfg)
    problem = compose.load_problem(cfg)
    if problem.dataset.hash != run.meta["dataset_hash"]:
        raise ConfigError(
            f"{problem.dataset.name} is not the dataset that {path} began with (hash {problem.dataset.hash[:12]}, it "
            f"was {run.meta['dataset_hash'][:12]}); put the old file back, or start a new run"
        )
    return Run(normalise(cfg), problem, path, begun=run)


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


def fit_run(cfg: DictConfig, path: Path) -> int:
    """Only the dynamics model."""
    problem = compose.load_problem(cfg)
    return Run(prepare(cfg, problem, path), problem, path).fit_only()


def prepare(cfg: DictConfig, problem: Problem, path: Path) -> DictConfig:
    """Fill in what depends on the task and the machine."""
    cfg = compose.resolve(cfg, problem.task)
    cfg.run_dir = str(path)
    cfg.threads = cfg.threads or torch.get_num_threads()  # another number of threads rounds differently
    cfg.store = str(Path(cfg.store).expanduser())
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
        "horizon": problem.task.horizon,
        "device": cfg.device,
        "threads": cfg.threads,
        "behaviour_return_mean": float(returns.mean()) if len(returns) else None,
        "behaviour_return_max": float(returns.max()) if len(returns) else None,
        "reference": None if reference is None else [reference.minimum, reference.maximum],
        "reference_source": None if reference is None else f"{reference.source} ({reference.environment})",
    }


@contextlib.contextmanager
def endings(run: RunDirectory, logger: RunLogger) -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM become a request to stop; a failure is noted in `meta.json`."""
    with StopRequest() as stop:
        try:
            yield stop
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            run.write_meta(status="failed", reason=reason)
            logger.close("failed")
            raise


def save(run: RunDirectory, logger: RunLogger, step: int, state: StateDict) -> None:
    """A checkpoint of the whole run."""
    whole = {"training": state, "logger": logger.state_dict(), "run": run.state_dict()}
    save_checkpoint(run.checkpoints, step, whole)


def restore(training: Stateful, run: RunDirectory, logger: RunLogger, device: torch.device) -> bool:
    """Go on from the last good checkpoint; False, and from the beginning, if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_latest(run.checkpoints, map_location=device)
    for warning in caught:
        logger.console.print(f"note: {warning.message}", style="yellow", markup=False, soft_wrap=True)
    if found is None:
        run.forget_evaluations()  # of a process that was killed before its first checkpoint
        return False
    state = found[1]
    training.load_state_dict(state["training"])
    logger.load_state_dict(state["logger"])
    run.load_state_dict(state["run"])
    return True


class Run:
    """One training run: the parts, made from the configuration, and their lives.

    All that a configuration can get wrong is found here, before there is a run directory and before hours of fitting.
    """

    def __init__(self, cfg: DictConfig, problem: Problem, path: Path, begun: RunDirectory | None = None) -> None:
        self.cfg, self.problem = cfg, problem
        self.seeds = compose.seed_list(cfg)
        self.device = torch.device(cfg.device)
        torch.set_num_threads(cfg.threads)
        self.console = Console(quiet=not cfg.progress)
        self.logger = RunLogger(
            path,
            list(cfg.logger),
            seeds=self.seeds,
            total_updates=cfg.updates,
            console=self.console,
            config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
            name=path.name,
            **{f"wandb_{key}": value for key, value in cfg.wandb.items()},
        )
        obs_dim, action_dim = problem.dataset.transitions.obs.shape[-1], problem.dataset.transitions.action.shape[-1]
        self.schedule = compose.build_schedule(cfg)
        self.model = compose.build_model(cfg, problem, self.seeds, self.device)
        self.learner = compose.build_learner(cfg, obs_dim, action_dim, self.seeds, self.device)
        self.imagination = compose.build_imagination(cfg, problem, self.model)
        choose(cfg.compile, self.device, self.schedule.updates, ())
        if begun is None:
            path.mkdir(parents=True, exist_ok=True)
            text = OmegaConf.to_yaml(cfg).encode()
            atomic_write(path / "config.yaml", lambda file: file.write(text))
            self.run = RunDirectory.create(path, seeds=self.seeds, **describe(cfg, problem))
        else:
            self.run = begun
            self.run.mark_resumed()

    def train(self) -> int:
        """Fit or load the model, train, evaluate, save; the exit status."""
        self.announce()
        with endings(self.run, self.logger) as stop:
            if not self.fit_model(stop):
                return self.interrupted("train", 0)
            training = OfflineTraining(
                learner=self.learner,
                table=compose.build_table(self.cfg, self.problem, self.seeds, self.device),
                imagination=self.imagination,
                schedule=self.schedule,
                logger=self.logger,
                evaluate=lambda step: self.evaluate(training, step),
                save=lambda step, state: save(self.run, self.logger, step, state),
                should_stop=lambda: stop.requested,
                compile=self.cfg.compile,
            )
            if restore(training, self.run, self.logger, self.device):
                self.console.print(f"resumed at update {training.step:,}", highlight=False)
            self.evaluator = self.make_evaluator()
            with self.logger.progress("training", total=self.schedule.updates, completed=training.step) as bar:
                training.progress = bar
                complete = training.run()
            self.save_policy(training)
            if not complete:
                return self.interrupted("train", training.step)
            return self.finished(training.step)

    def fit_only(self) -> int:
        """`mbrl fit`: the model, and nothing else."""
        self.announce()
        with endings(self.run, self.logger) as stop:
            if not self.fit_model(stop):
                return self.interrupted("fit", 0)
            self.run.write_meta(status="finished")
            self.logger.close("finished")
            error = self.model.holdout_error.gather(-1, self.model.elites).mean(-1)
            self.console.print(f"held-out squared error of the elites: {', '.join(f'{e:.5g}' for e in error.tolist())}")
            return 0

    def announce(self) -> None:
        """What is about to happen, in a few lines."""
        task, dataset = self.problem.task, self.problem.dataset
        returns = dataset.episode_returns
        show = functools.partial(self.console.print, soft_wrap=True)
        show(
            f"[bold]{self.cfg.algo_name}[/] on {task.label}, seeds {self.seeds}, {self.cfg.updates:,} updates, "
            f"{self.device}"
        )
        line = f"{len(dataset.transitions.reward):,} transitions"
        if len(returns):
            line += f", {len(returns):,} episodes, return {returns.mean():.1f} on average, {returns.max():.1f} at best"
        show(line, highlight=False)
        for note in (*dataset.warnings, *task.notes):
            show(f"note: {note}", style="yellow", markup=False, highlight=False)
        if task.env is None:
            show("no environment: nothing is scored, the model's own estimate is shown instead", style="yellow")
        show(f"run directory: {self.run.path}", markup=False, highlight=False)

    def fit_model(self, stop: StopRequest) -> bool:
        """Make the dynamics model a fitted one, from this run, the store or by a fit; False if asked to stop."""
        cfg, model = self.cfg, self.model
        key = store_key(self.problem.dataset.hash, compose.dynamics_settings(cfg))
        with self.logger.progress("fitting the dynamics model", total=cfg.dynamics.max_epochs) as bar:

            def on_epoch(report: FitReport) -> None:
                bar.update(
                    1,
                    **{"holdout error": float(report.holdout.mean()), "best": float(report.best.min(-1).values.mean())},
                    loss=float(report.train_loss.mean()),
                )

            try:
                source = fit_or_load(
                    model,
                    self.problem.dataset.transitions,
                    key=key,
                    root=Path(cfg.store).expanduser(),
                    scratch=self.run.path / "dynamics",
                    save_seconds=self.schedule.checkpoint_seconds,
                    on_epoch=on_epoch,
                    should_stop=lambda: stop.requested,
                )
            except FitInterrupted:
                return False
        error = model.holdout_error.gather(-1, model.elites).mean(-1)
        self.run.write_meta(dynamics={"key": key, "from": source, "holdout_error": error.tolist()})
        if source == "store":
            self.console.print(f"dynamics model from the store ({key})", highlight=False)
        return True

    def make_evaluator(self) -> Evaluator | None:
        """Environments for all seeds and episodes; None where there is no simulator."""
        task, dataset = self.problem.task, self.problem.dataset
        if task.env is None:
            return None
        return Evaluator(
            task.env,
            episodes=self.cfg.eval.episodes,
            seeds=self.seeds,
            horizon=task.horizon,
            env_kwargs=task.env_kwargs,
            action_low=dataset.action_low,
            action_high=dataset.action_high,
        )

    def evaluate(self, training: OfflineTraining, step: int) -> dict[str, float]:
        """Score the policy in the environment, or ask the model; numbers for the log."""
        learner = training.learner
        if self.evaluator is None:
            estimate = model_estimate(
                learner, training.imagination, self.starts(), self.cfg.eval.model_horizon, evaluation=step
            )
            self.logger.add(estimate, "model")
            return {"model/return_mean": float(estimate["return"].mean())}
        done = self.evaluator(lambda obs: learner.act(obs.to(self.device), mode="mean"), step)
        reference = self.problem.task.reference
        scores = None if reference is None else reference.score(done.returns)
        self.run.add_returns(step, done.returns, scores)
        values = {"eval/return": float(done.returns.mean()), "eval/length": float(done.lengths.mean())}
        if scores is not None:
            values["eval/score"] = float(scores.mean())
        if len(self.seeds) > 1:
            values |= {f"eval/return/seed_{s}": float(r.mean()) for s, r in zip(self.seeds, done.returns, strict=True)}
        return values

    def starts(self) -> torch.Tensor:
        """Up to 256 observations in which episodes of the dataset begin."""
        end = self.problem.dataset.episode_end
        first = torch.cat([torch.tensor([0]), torch.nonzero(end[:-1]).flatten() + 1])
        pick = torch.linspace(0, len(first) - 1, min(len(first), 256)).long()
        return self.problem.dataset.transitions.obs[first[pick]].to(self.device)

    def save_policy(self, training: OfflineTraining) -> None:
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

    def interrupted(self, verb: str, step: int) -> int:
        """Saved, and told how to go on."""
        self.summarise("interrupted", step)
        self.console.print(
            f"stopped at update {step:,} and saved; go on with: mbrl {verb} resume={self.run.path}", soft_wrap=True
        )
        return INTERRUPTED

    def finished(self, step: int) -> int:
        """Summary, curve, last words."""
        from mbrl.plots import learning_curve, model_curve  # matplotlib is slow to import

        summary = self.summarise("finished", step)
        if self.evaluator is None:
            picture = model_curve(self.run.path)
            self.console.print(
                "no environment: the curve shows what the model believes, not what is true", style="yellow"
            )
        else:
            self.evaluator.close()
            picture = learning_curve(self.run.path)
            behaviour, final = summary["behaviour_return_mean"], summary["final_return_mean"]
            line = f"return {final:.1f} (mean of the last evaluations)"
            if behaviour is not None:
                line += f", the dataset's mean is {behaviour:.1f}"
            if summary["final_score_mean"] is not None:
                line += f"; score {summary['final_score_mean']:.1f}"
            else:
                line += "; this task has no reference scores, so returns are raw"
            self.console.print(line, style="bold", highlight=False, soft_wrap=True)
        self.console.print(f"curve: {picture}", highlight=False, soft_wrap=True)
        return 0

    def summarise(self, status: str, step: int) -> dict[str, Any]:
        """Write `summary.json` and close the log."""
        seconds = self.logger.seconds
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
            updates_per_second=step / seconds,
            wall_seconds=seconds,
            behaviour_return_mean=self.run.meta.get("behaviour_return_mean"),
            behaviour_return_max=self.run.meta.get("behaviour_return_max"),
            label=task.label,
            protocol=protocol,
        )
        self.run.write_meta(status=status)
        self.logger.close(status)
        return summary


# -- other verbs -------------------------------------------------------------------------------------------------------


def inspect_verb(words: list[str]) -> int:
    """`mbrl inspect DATASET`."""
    from mbrl.data.inspect import inspect_dataset

    parser = argparse.ArgumentParser(
        "mbrl inspect", description="What is in a dataset: sizes, returns, coverage, faults."
    )
    parser.add_argument(
        "dataset",
        help="minari:ID, d4rl:NAME, neorl:NAME, neorl2:NAME, builtin:NAME, or a path (.npz, .hdf5, Minari folder)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one self-contained page with figures")
    parsed = parser.parse_args(words)
    inspect_dataset(parsed.dataset, html=parsed.html)
    return 0


def eval_verb(words: list[str]) -> int:
    """`mbrl eval RUN_DIR`."""
    parser = argparse.ArgumentParser(
        "mbrl eval", description="Score a trained policy again; nothing in the run is changed."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--episodes", type=_count, default=20, help="episodes per seed (default 20)")
    parser.add_argument("--env", help="another environment than the run's")
    parser.add_argument("--evaluation", type=int, default=0, help="chooses the episodes' reset seeds (default 0)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="film one episode of the first seed (.mp4 or .gif)")
    parsed = parser.parse_args(words)
    path: Path = parsed.run_dir
    meta = read_json(path / "meta.json")
    learner, saved = saved_policy(path)
    task = compose.find_run_task(saved_config(path), meta)
    env = parsed.env or task.env
    if env is None:
        raise ConfigError(f"{path} was trained without an environment; give one by --env")
    same = env == task.env
    horizon, env_kwargs = (task.horizon, task.env_kwargs) if same else (saved_config(path).horizon, None)
    spec = env_spec(env, env_kwargs, horizon)
    have, want = (saved["obs_dim"], saved["action_dim"]), (spec.observation_dim, len(spec.action_low))
    if have != want:
        raise ConfigError(
            f"the policy of {path} takes observations of {have[0]} and makes actions of {have[1]} dimensions, but "
            f"{env} has {want[0]} and {want[1]}; give the environment it was trained for"
        )
    evaluator = Evaluator(
        env,
        episodes=parsed.episodes,
        seeds=saved["seeds"],
        horizon=horizon,
        env_kwargs=env_kwargs,
        action_low=np.asarray(saved["action_low"], np.float32),
        action_high=np.asarray(saved["action_high"], np.float32),
    )
    done = evaluator(learner.act, parsed.evaluation)
    console = Console(soft_wrap=True)
    reference = task.reference if same else None
    for seed, returns, lengths in zip(saved["seeds"], done.returns, done.lengths, strict=True):
        line = f"seed {seed}: return {returns.mean():.2f} +- {returns.std():.2f} over {len(returns)} episodes"
        line += f", length {lengths.mean():.1f}"
        if reference is not None:
            line += f", score {float(reference.score(returns).mean()):.1f} +- {returns.std() * reference.scale:.1f}"
        console.print(line, highlight=False)
    behaviour = meta.get("behaviour_return_mean")
    line = f"mean return {done.returns.mean():.2f} in {env}"
    if reference is None:
        line += " (raw: no reference scores)"
    if behaviour is not None:
        line += f"; the dataset's mean is {behaviour:.2f}"
    console.print(line, style="bold", highlight=False)
    if parsed.video:
        evaluator.record_video(learner.act, parsed.video)
        console.print(f"video: {parsed.video}", highlight=False)
    evaluator.close()
    return 0


def _count(word: str) -> int:
    """An argument that counts something."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number of 1 or more")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
