"""The command line: `mbrl train | fit | collect | inspect | eval | diagnose | report`. Verbs are thin, parts work."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

import mbrl
from mbrl import compose
from mbrl.checkpoint import CheckpointError, latest_step
from mbrl.compose import ConfigError
from mbrl.data.tasks import TaskError
from mbrl.data.validate import DatasetError
from mbrl.evaluate import EvaluationError
from mbrl.run import CHANGEABLE, INTERRUPTED, Run, normalise, open_evaluator, prepare, saved_config, saved_policy
from mbrl.rundir import RunDirectory, asked_to_stop, read_json
from mbrl.sweep import BASIC, Grid, Job, SweepError, hydra_quoted, register_sweeper
from mbrl.train import TrainingDiverged
from mbrl.tune import StudySweeper

USER_ERRORS = (
    ConfigError,
    DatasetError,
    TaskError,
    CheckpointError,
    EvaluationError,
    TrainingDiverged,
    SweepError,
    OSError,
    ModuleNotFoundError,
    ValueError,
    FloatingPointError,
    MemoryError,
    HydraException,
    OmegaConfBaseException,
)


HELP = """\
mbrl - model-based offline reinforcement learning: from a dataset of logged transitions to a policy.

  mbrl train   [key=value ...]    fit a dynamics model, imagine, train, evaluate; no argument: the built-in task
  mbrl train   resume=RUN_DIR     go on from the last good checkpoint
  mbrl fit     [key=value ...]    only the dynamics model, into the store
  mbrl collect [key=value ...]    make a dataset: train a behaviour policy online, or roll one out
  mbrl inspect DATASET            what is in a dataset: sizes, returns, coverage, faults
  mbrl eval    RUN_DIR            score a trained policy again, or a planner on the run's model
  mbrl diagnose RUN_DIR           why it did well or badly: model, scores, cuts, edge of reach, Q against returns
  mbrl report  RUN_DIR...         tables, intervals and curves over tasks, methods and seeds

`mbrl VERB --help` says more. Version {version}.
"""

TRAIN_HELP = """\
mbrl train: a dataset in, a policy out.

  mbrl train                                                     the built-in task (Pendulum), minutes on two cores
  mbrl train task=hopper-medium-v2 seeds=5                       a benchmark task, five seeds side by side
  mbrl train dataset=/data/plant.npz env=null                    your own logs, no simulator
  mbrl train dataset=logs.hdf5 env=Hopper-v5 updates=300000
  mbrl train loop=online algo=mbpo env=Pendulum-v1               real steps while training goes on (docs/online.md)
  mbrl train resume=runs/pendulum-mopo-seed0/2026-01-31_12-00-00
  mbrl train -m algo=mopo,mobile seed=0,1,2 run_dir=table        a sweep: every combination, a run each

What most people set:
  task=NAME        dataset + environment + horizon + termination + reference scores: hopper-medium-v2, pendulum
  dataset=STRING   minari:ID, d4rl:NAME, neorl:NAME, neorl2:NAME, builtin:NAME, or a path (.npz, .hdf5, Minari folder)
  env=ID           Gymnasium id, module:Id, package.module:factory, or null for no simulator
  algo=NAME        {algo}
  loop=NAME        {loop}
  filter=[...]     {filter}
  score=NAME       {score}
  dynamics=NAME    {dynamics}
  penalty=NAME     {penalty}
  seed=0 seeds=1   first seed, and how many are trained side by side
  updates=N        gradient steps
  device=auto      cpu, cuda, cuda:1            threads=N     CPU threads
  logger=[...]     tensorboard, wandb, beside metrics.jsonl and metrics.csv, which are always written
  run_dir=DIR      where everything goes        resume=DIR    go on with a run

`mbrl train --cfg job` prints every key with its value; a misspelt key is answered with the nearest one.
`-m` sweeps over comma-separated values, a folder per run under run_dir=; given again, it goes on where it stopped.
`-m hydra/sweeper=optuna` searches for good ones (docs/tuning.md). hydra/launcher=joblib, ray, ray_cluster or
submitit_slurm sends the runs elsewhere (docs/sweeps.md).
`--config-dir DIR` adds a folder of your own YAML options.
Ctrl-C (or SIGTERM) saves and ends; resume= goes on from there with the same result.
"""

FIT_HELP = """\
mbrl fit: only the dynamics model, and the score if one is asked for, into the store.

  mbrl fit task=hopper-medium-v2 seeds=5
  mbrl fit dataset=/data/plant.npz dynamics.members=7 dynamics.max_epochs=50
  mbrl fit resume=RUN_DIR                            go on with a fit that was stopped

A fitted model is kept in the store (store=DIR, $MBRL_STORE, ~/.cache/mbrl/models) by the hash of data, dynamics
settings, code and seed; `mbrl train` with the same ones takes it from there instead of fitting again.

What most people set:
  task=NAME or dataset=STRING     as for `mbrl train`     env=ID    for the bounds of the actions
  dynamics=NAME    {dynamics}
  score=NAME       {score}
  dynamics.members=7 dynamics.elites=5 dynamics.hidden=[200,200,200,200]
  dynamics.max_epochs=N dynamics.max_steps=N dynamics.patience=5 dynamics.learning_rate=1e-3
  dynamics.loss=beta_nll           nll, beta_nll, mse_mean; dynamics=beta_nll is a whole recipe
  fit_gate=false                   without the squared-error net that the fit is compared with
  seed=0 seeds=1   first seed, and how many are fitted side by side
  device=auto      run_dir=DIR      store=DIR

Progress shows the squared error on held-out rows; at the end come errors of one and of many steps, the calibration of
the predicted std, and a warning if the fit is worse than it should be. Ctrl-C keeps the last whole epoch.
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
        "diagnose": diagnose_verb,
        "report": report_verb,
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
        if not isinstance(
            error, ConfigError | DatasetError | TaskError | CheckpointError | EvaluationError | SweepError | OSError
        ):
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


def wants_help(words: Sequence[str], help_text: str) -> bool:
    """Print the help of a verb, with the options of its groups, if that is asked for."""
    if not any(word in ("-h", "--help") for word in words):
        return False
    folder = compose.config_folder()
    options = {d.name: ", ".join(sorted(p.stem for p in d.glob("*.yaml"))) for d in folder.iterdir() if d.is_dir()}
    print(help_text.format(**options), end="")
    return True


def print_config(overrides: list[str]) -> None:
    """Every key of a training run with its value, tuned values filled in."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(compose.config_folder()), version_base="1.3"):
        cfg = hydra.compose("train", overrides=overrides)
    print(OmegaConf.to_yaml(compose.resolve(cfg, compose.load_problem(cfg).task)), end="")


def hydra_verb(
    verb: str,
    words: list[str],
    job: Callable[[DictConfig, Path], int],
    go_on: Callable[[Path, list[str]], int],
    config_name: str = "train",
) -> int:
    """Check the words, then let Hydra compose, make the run directory (or sweep), and call `job`.

    Args:
        verb: of the command line.
        words: of the command line.
        job: makes a new run.
        go_on: called instead where the folder of a sweep's job holds a run already, with the words that it was given.
        config_name: of the primary YAML file.
    """
    compose.check_overrides(words, config_name)
    register_sweeper(Grid)
    register_sweeper(StudySweeper)
    overrides, flags = compose.split_words(words)
    if "hydra/sweeper=optuna" in overrides and not (job is start_run and {"-m", "--multirun"} & set(flags)):
        raise ConfigError("hydra/sweeper=optuna is for many training runs: mbrl train -m ... (docs/tuning.md)")
    if config_name == "train" and flags == ["--cfg", "job"]:
        print_config(overrides)
        return 0
    if {"-m", "--multirun"} & set(flags):
        overrides = sweep_folder(overrides)
    status = 0
    failure: Exception | None = None

    def entry(cfg: DictConfig) -> int:
        nonlocal status, failure
        hydra_cfg = HydraConfig.get()
        path = Path(hydra_cfg.runtime.output_dir)
        if hydra_cfg.mode == RunMode.MULTIRUN:
            return sweep_job(cfg, path, job, go_on)
        try:
            status = job(cfg, path)
        except Exception as error:
            forget(path)
            failure = error
        return status

    entry.__module__ = "mbrl.cli"
    decorated = hydra.main(config_path=str(compose.config_folder()), config_name=config_name, version_base="1.3")(entry)
    before = sys.argv
    sys.argv = [f"mbrl {verb}", *overrides, *flags]  # Hydra's parser takes flags in the middle for an error
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach `main`, which says them in one line
    try:
        decorated()
    finally:
        sys.argv = before
    if failure is not None:
        raise failure
    return status


def sweep_folder(overrides: list[str]) -> list[str]:
    """The words of a sweep with one folder for all its runs, as a full path: its jobs may start anywhere."""
    given = [word for word in overrides if word.startswith(("run_dir=", "hydra.sweep.dir="))]
    folder = Path("multirun") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    if given:
        text = given[-1].split("=", 1)[1]
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""  # for Hydra, as in run_dir="'a,b'"
        folder = Path(text[1:-1] if quoted else text)
        if not text:
            raise ConfigError("run_dir= names no folder; give one, or leave it out")
    kept = [word for word in overrides if not word.startswith(("run_dir=", "hydra.sweep.dir="))]
    return [*kept, f"hydra.sweep.dir={hydra_quoted(folder.resolve())}"]


LOOK_AGAIN = 5
"""Seconds between looks at a run that another process has."""


def sweep_job(
    cfg: DictConfig, path: Path, job: Callable[[DictConfig, Path], int], go_on: Callable[[Path, list[str]], int]
) -> int:
    """One run of a sweep, in whatever process the launcher has chosen; a run that is there already goes on.

    That is how a job that was lost with its machine, and is tried again by the launcher, keeps what it had.
    """
    hydra_cfg = HydraConfig.get()
    if Path.cwd() != Path(hydra_cfg.runtime.cwd) and Path(hydra_cfg.runtime.cwd).is_dir():
        os.chdir(hydra_cfg.runtime.cwd)  # a worker of Ray starts elsewhere, and a path may be relative
    alone = hydra_cfg.launcher._target_ == BASIC
    if asked_to_stop():
        forget(path)
        return INTERRUPTED
    try:
        with contextlib.nullcontext() if alone else output_to(path / "output.txt"):
            while True:
                begun = (path / "meta.json").exists()
                try:
                    status = go_on(path, list(hydra_cfg.overrides.task)) if begun else job(cfg, path)
                    break
                except BlockingIOError as error:  # a launcher took a job for lost that is alive
                    print(f"{error}; looking again every {LOOK_AGAIN} s", flush=True)
                    time.sleep(LOOK_AGAIN)
    except Exception:
        forget(path)
        raise
    if status == INTERRUPTED and alone:
        raise KeyboardInterrupt  # not the next run of the sweep
    return status


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What is printed goes to the end of a file: several runs at once would mix their lines on one screen."""
    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


def forget(path: Path) -> None:
    """Remove what Hydra wrote for a run that was refused before it began."""
    if not (path / "meta.json").exists():
        shutil.rmtree(path / ".hydra", ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something else, which is not ours
            path.rmdir()


def train_verb(words: list[str]) -> int:
    """`mbrl train`: a new run, or `resume=`."""
    if wants_help(words, TRAIN_HELP):
        return 0
    begun = run_to_resume("train", words)
    if begun is not None and {"-m", "--multirun"} & set(words):
        raise ConfigError(
            "resume= is for one run and -m for many; a sweep goes on by its own command, with its run_dir="
        )
    if begun is not None:
        return resume_run(begun, [w for w in words if not w.startswith("resume=")]).train()
    return hydra_verb("train", words, start_run, go_on_training)


def fit_verb(words: list[str]) -> int:
    """`mbrl fit`: the dynamics model only, of a new run or of `resume=`."""
    if wants_help(words, FIT_HELP):
        return 0
    begun = run_to_resume("fit", words)
    if begun is not None:
        return resume_run(begun, [w for w in words if not w.startswith("resume=")]).fit_only()
    return hydra_verb("fit", words, fit_run, go_on_fitting)


def collect_verb(words: list[str]) -> int:
    """`mbrl collect`: a new collection, or `resume=`."""
    from mbrl.cli_collect import COLLECT_HELP, resume_collection, start_collection

    if wants_help(words, COLLECT_HELP):
        return 0
    begun = run_to_resume("collect", words)
    if begun is not None:
        return resume_collection(begun, [w for w in words if not w.startswith("resume=")])
    return hydra_verb("collect", words, start_collection, lambda path, _: resume_collection(path, []), "collect")


def start_run(cfg: DictConfig, path: Path) -> int:
    """A new training run in `path`."""
    problem = compose.load_problem(cfg)
    return Run(prepare(cfg, problem, path), problem, path).train()


def changeable(words: Sequence[str]) -> list[str]:
    """Those overrides that a run which has begun may be given anew."""
    return [word.lstrip("+") for word in words if word.lstrip("+").startswith(CHANGEABLE)]


def go_on_training(path: Path, words: Sequence[str]) -> int:
    """Go on with a run of a sweep; one that is finished stays as it is."""
    if Job(path, tuple(words)).state() == "finished":
        return 0
    return resume_run(path, changeable(words)).train()


def go_on_fitting(path: Path, words: Sequence[str]) -> int:
    """Go on with a fit of a sweep."""
    return resume_run(path, changeable(words)).fit_only()


def resume_run(path: Path, words: list[str]) -> Run:
    """A run to go on with; `words` may change what its result does not depend on, and `updates`.

    Raises:
        ConfigError: it is no training run, or a word would change what it has begun.
    """
    run = RunDirectory.open(path)
    if "collection" in run.meta:
        raise ConfigError(f"{path} is a collection; go on with it by `mbrl collect resume={path}`")
    cfg = saved_config(path, words)
    for word in words:
        key = word.split("=", 1)[0]
        if not key.startswith(CHANGEABLE):
            raise ConfigError(
                f"resume: {key} is settled since the run began; what may change is {', '.join(CHANGEABLE)}. For "
                f"another {key}, start a new run"
            )
    compose.check_numbers(cfg)
    problem = compose.load_problem(cfg)
    if problem.dataset.hash != run.meta["dataset_hash"]:
        raise ConfigError(
            f"{problem.dataset.name} is not the dataset that {path} began with (hash {problem.dataset.hash[:12]}, it "
            f"was {run.meta['dataset_hash'][:12]}); put the old file back, or start a new run"
        )
    done = latest_step(run.checkpoints)
    if done is not None and done > cfg.updates:
        raise ConfigError(f"resume: {path} has done {done:,} updates already, more than updates={cfg.updates}")
    return Run(normalise(cfg), problem, path, begun=run)


def fit_run(cfg: DictConfig, path: Path) -> int:
    """Only the dynamics model."""
    problem = compose.load_problem(cfg)
    return Run(prepare(cfg, problem, path), problem, path).fit_only()


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
    from mbrl.cli_plan import add_plan_arguments, plan_eval, refuse_without_planner

    parser = argparse.ArgumentParser(
        "mbrl eval",
        description="Score a trained policy again, or with --planner what planning with the run's model makes of it; "
        "nothing in the run is changed.",
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--episodes", type=_count, help="episodes per seed (default 20; with --planner 3)")
    parser.add_argument("--env", help="another environment than the run's")
    parser.add_argument(
        "--evaluation",
        type=functools.partial(_count, least=0),
        default=0,
        help="chooses the episodes' reset seeds (default 0)",
    )
    parser.add_argument("--video", type=Path, metavar="FILE", help="film one episode of the first seed (.mp4 or .gif)")
    add_plan_arguments(parser)
    parsed = parser.parse_args(words)
    if parsed.planner is not None:
        return plan_eval(parsed)
    refuse_without_planner(parser, parsed)
    parsed.episodes = parsed.episodes or 20
    path: Path = parsed.run_dir
    meta = read_json(path / "meta.json")
    learner, saved = saved_policy(path)
    task = compose.find_run_task(saved_config(path), meta)
    evaluator = open_evaluator(path, task, saved, parsed.env, episodes=parsed.episodes)
    env, same = evaluator.env, evaluator.env == task.env
    if parsed.video:
        evaluator.check_video(parsed.video)
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


def diagnose_verb(words: list[str]) -> int:
    """`mbrl diagnose RUN_DIR`."""
    from mbrl.diagnose import diagnose

    parser = argparse.ArgumentParser(
        "mbrl diagnose",
        description="Why a run did well or badly: held-out quality of its model, what scores of candidate states are "
        "worth, what a cut leaves, which penalty ranks the model's errors, whether critics disagree at the edge of "
        "reach, Q against the model's returns, and imagined against true trajectories where the simulator can be set "
        "to a state (Hopper, Walker2d, HalfCheetah, "
        "Pendulum, refrigerator). Works on a run in progress; nothing in it changes.",
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--score", action="append", default=[], metavar="NAME", help="also judge this score, fitted now if need be"
    )
    parser.add_argument("--device", default="cpu", help="where model and scores compute (default cpu)")
    parsed = parser.parse_args(words)
    folder = diagnose(parsed.run_dir, parsed.score, parsed.device)
    Console(soft_wrap=True).print(f"numbers: {folder / 'diagnose.json'}", highlight=False)
    return 0


def report_verb(words: list[str]) -> int:
    """`mbrl report RUN_DIR...`."""
    from mbrl.cli_report import make_report

    return make_report(words)


def _count(word: str, least: int = 1) -> int:
    """An argument that counts something."""
    if not word.isdecimal() or int(word) < least:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number of {least} or more")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
