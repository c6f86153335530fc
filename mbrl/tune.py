"""Tuning: a Hydra sweeper that asks Optuna what to try, in a folder that outlives its processes.

A study is a folder, STUDY (`run_dir=`): `study.json`, what it searches and for what; `optuna.journal`, all trials;
`trial_0000`, ...: their run directories; `trials.csv`, `best.yaml`, `findings.txt` and figures, made from these.
What a trial is worth is read from its run directory, so trials may run in whatever process a launcher starts.

Several processes may work on one study. Each holds a lock in `workers/`, which the system gives back when the process
ends in any way, and every trial names the process that runs it: a trial that runs and whose process is gone is taken
over by exactly one other, and goes on in its own directory. Docs: `docs/tuning.md`.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from mbrl import compose
from mbrl.compose import ConfigError, Problem
from mbrl.dynamics.ensemble import GaussianEnsemble, predict
from mbrl.dynamics.store import FitInterrupted, fit_or_load, store_key
from mbrl.log import progress_bar
from mbrl.nets import generator
from mbrl.rollout.estimate import PessimisticReturn, pessimistic_return
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.run import CHANGEABLE, estimate_horizon, prepare, saved_policy, show_fit, start_observations
from mbrl.rundir import StopRequest, held, lock, lock_when_free, read_json, write_json
from mbrl.sweep import Job, check_cluster, hand_over

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

Space = dict[str, "BaseDistribution"]

SAMPLERS = ("gp", "tpe", "random")

INDIFFERENT = tuple(key for key in CHANGEABLE if key not in ("updates", "eval.every", "fit_gate"))
"""Keys, or their beginnings, that a study may be given anew when it goes on: no result depends on them."""

HOPELESS = 5
"""A process gives up when this many trials have failed and none of the study has ever finished."""

PLOT_SECONDS = 30.0
"""Figures are made anew at most this often while a study runs, and at its end."""


# -- search space ------------------------------------------------------------------------------------------------------


def parse_space(words: Sequence[str], loader: ConfigLoader | None = None) -> tuple[Space, list[str]]:
    """What is searched and what is fixed.

    Args:
        words: Hydra overrides; of two with the same key the later one counts.
        loader: knows the options of groups, for `glob(...)`.

    Returns:
        Distributions by key, and the words that are no sweep.

    Raises:
        ConfigError: a sweep that is nothing to search.
    """
    space: Space = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(words)):
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = distribution(override)
        else:
            fixed[key] = str(override.input_line)
    return space, list(fixed.values())


def distribution(override: Override) -> BaseDistribution:
    """`a,b`, `choice(...)`, `glob(...)`, `range(...)`, `interval(...)`, and the last two within `tag(log, ...)`.

    As everywhere in Hydra, a range ends before its stop. `int(interval(a,b))` is the whole numbers from a to b.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    word, value = override.input_line, override.value()
    tags = set(getattr(value, "tags", ()))
    if tags - {"log"}:
        raise ConfigError(f"{word}: the tag {sorted(tags - {'log'})[0]!r} is unknown; it is log")
    if getattr(value, "shuffle", False):
        raise ConfigError(f"{word}: shuffle() is for sweeps in order; the sampler chooses here")
    log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None
            assert high is not None
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(low, high, log=log)
        if isinstance(value, RangeSweep):
            numbers = sorted(float(x) for x in value.range())
            if not numbers:
                raise ConfigError(f"{word}: the range is empty")
            step = abs(value.step)
            if all(isinstance(x, int) for x in (value.start, value.stop, value.step)):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), log=log, step=int(step))
            return FloatDistribution(numbers[0], numbers[-1], log=log, step=float(step))
    except ValueError as error:
        raise ConfigError(f"{word}: {error}") from None
    if log:
        raise ConfigError(f"{word}: a log scale is for range(...) and interval(...), not for choices")
    options = list(dict.fromkeys(override.sweep_string_iterator()))
    if not options:
        raise ConfigError(f"{word}: there is nothing to choose from")
    return CategoricalDistribution(options)


def ends(what: BaseDistribution) -> list[Any]:
    """All choices, or the least and the most."""
    from optuna.distributions import CategoricalDistribution

    return list(what.choices) if isinstance(what, CategoricalDistribution) else [what.low, what.high]  # type: ignore[attr-defined]


def rounded(what: BaseDistribution, value: Any) -> Any:
    """Numbers of a continuous range to four digits, which people can read and type."""
    from optuna.distributions import FloatDistribution

    if not isinstance(what, FloatDistribution) or what.step is not None:
        return value
    return min(max(float(f"{value:.4g}"), what.low), what.high)


# -- what to try next --------------------------------------------------------------------------------------------------


def propose(space: Space, trials: Sequence[FrozenTrial], *, sampler: str, startup: int, seed: int) -> dict[str, Any]:
    """The parameters of the next trial, a function of its arguments alone: a stop and a restart change nothing.

    A failed trial counts as bad as the worst finished one: else a region that only fails would look new for ever.

    Args:
        space: what is searched.
        trials: all trials of the study so far, running ones included.
        sampler: gp, tpe or random.
        startup: random trials that must have ended before anything is modelled.
        seed: of the study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    finished = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    number = len(trials)
    # A generator's seed is 32 bits there.
    source = int(torch.randint(2**31, (), generator=generator(seed, "tune", number)))
    chooser: BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler == "gp":
            chooser = optuna.samplers.GPSampler(seed=source, n_startup_trials=startup)
        elif sampler == "tpe":
            chooser = optuna.samplers.TPESampler(
                seed=source, n_startup_trials=startup, multivariate=True, constant_liar=True
            )
        else:
            chooser = optuna.samplers.RandomSampler(seed=source)
    plan = optuna.create_study(direction="maximize", sampler=chooser)
    for trial in trials:
        if trial.state == optuna.trial.TrialState.FAIL:
            if not finished:
                continue
            trial = optuna.trial.create_trial(
                value=min(t.value for t in finished if t.value is not None),
                params=trial.params,
                distributions=trial.distributions,
            )
        plan.add_trial(trial)
    params = plan.ask(fixed_distributions=space).params
    return {key: rounded(what, params[key]) for key, what in space.items()}


# -- what a trial is worth ---------------------------------------------------------------------------------------------


def true_return(path: Path) -> float:
    """The final score of a run, or its return where the task has no reference scores: mean of the last evaluations.

    Raises:
        FileNotFoundError, ValueError: the run has none.
    """
    summary = read_json(path / "summary.json")
    value = summary["final_score_mean"]
    if value is None:
        value = summary["final_return_mean"]
    if value is None:
        raise ValueError(f"{path / 'summary.json'}: the run was never scored in an environment")
    return float(value)


class Judge:
    """One model for all trials, fitted by itself, and what policies return in it.

    Args:
        cfg: the configuration of the study's runs, its fixed words included; its `dynamics` is how the judge is fitted.
        problem: dataset and task.
        folder: where the fit is kept.
        settings: `hydra.sweeper.judge`.

    Raises:
        ConfigError: the dynamics model is not fitted, or a single one.
    """

    def __init__(self, cfg: DictConfig, problem: Problem, folder: Path, settings: Mapping[str, Any]) -> None:
        if settings["members"] < 2:
            raise ConfigError(
                f"hydra.sweeper.judge.members={settings['members']}: a bound over members needs two or more"
            )
        if "GaussianEnsemble" not in cfg.dynamics._target_:
            raise ConfigError("hydra.sweeper.objective=model judges policies in a fitted model: give dynamics=ensemble")
        cfg = DictConfig(OmegaConf.to_container(cfg))
        with open_dict(cfg):
            cfg.dynamics.members = cfg.dynamics.elites = settings["members"]
            cfg.seed, cfg.seeds = settings["seed"], 1
        self.cfg = prepare(cfg, problem, folder)
        self.problem, self.folder = problem, folder
        self.model = self.build(torch.device("cpu"))  # where trials' policies are asked: it is little work
        self.pessimism: float = settings["pessimism"]
        self.horizon = settings["horizon"] or estimate_horizon(problem.dataset, self.cfg.eval.model_horizon)
        clip = None if self.cfg.rollout.clip is None else Clip(problem.dataset.transitions, **self.cfg.rollout.clip)
        self.filters = FilterChain(clip=clip, terminate=Terminate(problem.task.termination))

    def build(self, device: torch.device) -> GaussianEnsemble:
        """The judge's model, not fitted."""
        model = compose.build_model(self.cfg, self.problem, [self.cfg.seed], device)
        assert isinstance(model, GaussianEnsemble)
        return model

    def fit(self, say: Console) -> None:
        """Fit, or load what another process has fitted."""
        fitted = self.build(torch.device(self.cfg.device))
        key = store_key(self.problem.dataset.hash, compose.dynamics_settings(self.cfg))
        say.print(f"the judge: {self.model.members} members, seed {self.cfg.seed}, {self.horizon} steps", markup=False)
        bar = progress_bar(say, "fitting the judge", fitted.epochs(len(self.problem.dataset.transitions.reward)))
        with exclusive(self.folder), StopRequest() as stop, bar as shown:
            try:
                fit_or_load(
                    fitted,
                    self.problem.dataset.transitions,
                    key=key,
                    root=Path(self.cfg.store),
                    scratch=self.folder,
                    on_progress=lambda report: show_fit(shown, report),
                    should_stop=lambda: stop.requested,
                )
            except FitInterrupted:
                raise KeyboardInterrupt from None
        self.model.load_state_dict({name: value.cpu() for name, value in fitted.state_dict().items()})

    def __call__(self, path: Path) -> float:
        """The mean bound of a finished run's policies; details go to `judge.json` in its directory.

        Raises:
            FileNotFoundError: it has no policy.
        """
        file = path / "judge.json"
        if not file.exists():
            found = self.judge(path)
            write_json(
                file,
                {
                    "bound": found.bound.tolist(),
                    "by_member": found.by_member.tolist(),
                    "pessimism": self.pessimism,
                    "horizon": self.horizon,
                },
            )
        bounds = read_json(file)["bound"]
        return float(sum(bounds) / len(bounds)) if None not in bounds else math.nan

    def judge(self, path: Path) -> PessimisticReturn:
        """What the members say of a run's final policies."""
        learner, saved = saved_policy(path)
        model = self.model
        return pessimistic_return(
            lambda obs: learner.act(obs, mode="mean"),
            lambda obs, action: first(predict(model.folded_elites, obs.unsqueeze(0), action.unsqueeze(0), model.dtype)),
            self.filters,
            start_observations(self.problem.dataset),
            self.horizon,
            seeds=len(saved["seeds"]),
            members=model.members,
            pessimism=self.pessimism,
            source=generator(self.cfg.seed, "judge"),
        )


def first(pair: Any) -> Any:
    """Without the leading axis of seeds, which a judge has one of."""
    return type(pair)(*(x.squeeze(0) for x in pair))


# -- a study on disk ---------------------------------------------------------------------------------------------------


def exclusive(folder: Path) -> BinaryIO:
    """A folder's lock, waited for: `with exclusive(folder): ...`."""
    return lock_when_free(folder, seconds=0.05)


def trial_folder(study: Path, number: int) -> Path:
    """The run directory of a trial."""
    return study / f"trial_{number:04d}"


@dataclass(frozen=True)
class Task:
    """A trial that this process is to run."""

    number: int
    overrides: tuple[str, ...]  # fixed words and parameters
    path: Path


class Study:
    """The trials of a study folder, shared with other processes.

    All changes are made while the folder's lock is held: the number of trials is never more than asked for, and no
    trial is anybody's twice.

    Args:
        folder: STUDY.
        space: what is searched.
        fixed: words of every trial.
        identity: what must not change when the study goes on, by name, each as plain data.
        storage: an Optuna URL, or None for a journal in the folder.

    Raises:
        ConfigError: the folder holds another study.
        ModuleNotFoundError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, fixed: Sequence[str], identity: Mapping[str, Any], storage: str | None = None
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.space, self.fixed = folder, space, list(fixed)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if (folder / "study.json").exists():
                known = read_json(folder / "study.json")
                refuse_changes(folder, known, identity)
                self.name = str(known["name"])
            else:
                if (folder / "meta.json").exists() or any(folder.glob("*/.hydra")):
                    raise ConfigError(f"{folder} holds runs and no study.json; choose another run_dir")
                self.name = f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}"
            try:
                self.storage = open_storage(folder, storage)
                self.optuna = optuna.create_study(
                    storage=self.storage, study_name=self.name, direction="maximize", load_if_exists=True,
                    sampler=optuna.samplers.RandomSampler(),
                )  # fmt: skip
            except Exception as error:
                if storage is None:
                    raise
                kind = storage.partition(":")[0]  # the rest may hold a password
                raise ConfigError(
                    f"hydra.sweeper.storage={kind}:... cannot be used ({type(error).__name__}); expected a URL that "
                    "Optuna knows, as sqlite:///study.db, or null for a file in the study"
                ) from error
            write_json(folder / "study.json", {"name": self.name, **identity})
            strangers = sorted(folder.glob("trial_*"))[len(self.trials()) :]
            if strangers:  # taking them for new trials would give them settings that are not theirs
                raise ConfigError(
                    f"{strangers[0]} is no trial of {self.name} in Optuna's storage; is it the right one?"
                )
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.lock: BinaryIO = lock(folder / "workers" / self.worker)

    def close(self) -> None:
        """Leave the study; what still runs is there for others to take over."""
        self.lock.close()
        shutil.rmtree(self.folder / "workers" / self.worker, ignore_errors=True)

    def trials(self) -> list[FrozenTrial]:
        """All trials, in order."""
        return self.optuna.get_trials(deepcopy=False)

    def take(self, count: int, *, total: int, sampler: str, startup: int, seed: int) -> tuple[list[Task], list[int]]:
        """Up to `count` trials for this process to run: orphans first, then new ones, of which `total` is the end.

        Args:
            count: trials.
            total: of the study.
            sampler, startup, seed: of `propose`.

        Returns:
            The trials, and the numbers of those whose process is gone while a run of theirs still works.
        """
        import optuna

        taken: list[Task] = []
        detached: list[int] = []
        with exclusive(self.folder):
            trials = self.trials()
            for trial in trials:
                if trial.state != optuna.trial.TrialState.RUNNING:
                    continue
                if held(self.folder / "workers" / trial.user_attrs["worker"]):
                    continue
                if held(trial_folder(self.folder, trial.number)):  # a launcher's worker that has outlived its sweeper
                    detached.append(trial.number)
                elif len(taken) < count:
                    self.note(trial, worker=self.worker, adopted=trial.user_attrs.get("adopted", 0) + 1)
                    taken.append(self.task(trial.number, trial.params))
            while len(taken) < count and len(trials) < total:
                params = propose(self.space, trials, sampler=sampler, startup=startup, seed=seed)
                number = len(trials)
                known = len([t for t in trials if t.state == optuna.trial.TrialState.COMPLETE])
                self.optuna.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.RUNNING,
                        params=params,
                        distributions=self.space,
                        user_attrs={"worker": self.worker, "random": sampler == "random" or known < startup},
                    )
                )
                taken.append(self.task(number, params))
                trials = self.trials()
        return taken, detached

    def task(self, number: int, params: Mapping[str, Any]) -> Task:
        """A trial as something to run."""
        words = (*self.fixed, *(f"{key}={value}" for key, value in params.items()))
        return Task(number, words, trial_folder(self.folder, number))

    def note(self, trial: FrozenTrial, **attributes: Any) -> None:
        """Write down what is known of a running trial."""
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def tell(self, number: int, value: float | None, error: str | None = None) -> None:
        """A trial has ended: with a value, or with an error."""
        import optuna

        with exclusive(self.folder):
            trial = self.trials()[number]
            if trial.state.is_finished():
                return
            if value is None:
                self.note(trial, error=error)
                self.optuna.tell(number, state=optuna.trial.TrialState.FAIL)
            else:
                self.optuna.tell(number, value)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Optuna's storage of a study: a journal in its folder, or what a URL names."""
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    if url is not None:
        return get_storage(url)
    return JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))


def refuse_changes(folder: Path, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Hold a study that goes on to what it began with.

    Raises:
        ConfigError: names what has changed.
    """
    differences = []
    for name, value in now.items():
        before = known.get(name)
        if before == value:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            keys = [key for key in {**before, **value} if before.get(key) != value.get(key)]
            differences += [
                f"{name}: {key} was {before.get(key, 'not there')}, is {value.get(key, 'not there')}" for key in keys
            ]
        elif isinstance(value, list) and isinstance(before, list):
            gone, new = [x for x in before if x not in value], [x for x in value if x not in before]
            differences.append(f"{name}: was {' '.join(gone) or 'nothing'}, is {' '.join(new) or 'nothing'}")
        else:
            differences.append(f"{name}: was {before}, is {value}")
    if differences:
        raise ConfigError(
            f"{folder} holds a study of something else ({'; '.join(differences)}): trials of the two could not be "
            "compared. Go on with the words it began with, or choose another run_dir"
        )


# -- the sweeper -------------------------------------------------------------------------------------------------------


class StudySweeper(Sweeper):
    """`hydra/sweeper=optuna`; the arguments are those of `configs/hydra/sweeper/optuna.yaml`."""

    def __init__(
        self,
        *,
        trials: int,
        jobs: int,
        objective: str,
        sampler: str,
        startup: int | None,
        seed: int,
        storage: str | None,
        judge: Mapping[str, Any],
        params: Mapping[str, str] | None,
    ) -> None:
        self.total, self.jobs, self.objective = trials, jobs, objective
        startup = max(1, int(trials) // 4) if startup is None else startup
        self.sampling: dict[str, Any] = {"sampler": sampler, "startup": startup, "seed": seed}
        self.storage, self.judge_settings, self.params = storage, dict(judge), dict(params or {})
        self.console = Console(soft_wrap=True, highlight=False)
        self.plotted = time.monotonic()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.loader, self.cfg = hydra_context.config_loader, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has its number."""
        self.check_settings()
        check_cluster(self.cfg)
        needs_optuna(self.sampling["sampler"])
        space, fixed = parse_space([*(f"{key}={value}" for key, value in self.params.items()), *arguments], self.loader)
        if not space:
            raise ConfigError("there is nothing to search: give a variable, as rollout.length=1,5")
        plain = self.composed(parse_space(arguments, self.loader)[1])
        if plain.rollout.penalise is None and "penalty" in space and "penalty" in self.params:
            raise ConfigError(
                f"algo={plain.algo_name} imagines without a penalty, and the variables of hydra/sweeper=optuna are "
                "for algo=mopo; give hydra.sweeper.params=null and what to search, for example rollout.length=1,5"
            )
        self.base = cfg = self.composed(fixed)
        problem = compose.load_problem(cfg)
        self.check_space(space, fixed, problem)
        if self.objective == "return" and problem.task.env is None:
            raise ConfigError(
                "hydra.sweeper.objective=return is the return in the environment, and env=null is none: "
                "give hydra.sweeper.objective=model, a pessimistic return in a model that all trials share, or env="
            )
        folder = Path(self.cfg.hydra.sweep.dir)
        judged: dict[str, Any] = {"name": self.objective}
        judge = None
        if self.objective == "model":
            judge = Judge(cfg, problem, folder / "judge", self.judge_settings)
            judged |= self.judge_settings | {"horizon": judge.horizon}
        study = Study(folder, space, fixed, self.identity(space, fixed, problem, judged), self.storage)
        try:
            if judge is not None:
                judge.fit(self.console)
            self.run(study, true_return if judge is None else judge)
        finally:
            study.close()

    def check_settings(self) -> None:
        """Not in the constructor, whose errors Hydra wraps.

        Raises:
            ConfigError: names the key, the value and what was expected.
        """
        counts = {
            "trials": (self.total, 1),
            "jobs": (self.jobs, 1),
            "startup": (self.sampling["startup"], 0),
            "seed": (self.sampling["seed"], 0),
            "judge.seed": (self.judge_settings["seed"], 0),
            "judge.members": (self.judge_settings["members"], 1),
            "judge.horizon": (1 if self.judge_settings["horizon"] is None else self.judge_settings["horizon"], 1),
        }
        for name, (count, least) in counts.items():
            if type(count) is not int or count < least:
                raise ConfigError(f"hydra.sweeper.{name}={count}: expected a whole number, {least} or more")
        pessimism = self.judge_settings["pessimism"]
        if type(pessimism) not in (int, float) or not pessimism >= 0:
            raise ConfigError(f"hydra.sweeper.judge.pessimism={pessimism}: expected a number, 0 or more")
        if self.objective not in ("return", "model"):
            raise ConfigError(f"hydra.sweeper.objective={self.objective} is unknown; it is return or model")
        if self.sampling["sampler"] not in SAMPLERS:
            raise ConfigError(
                f"hydra.sweeper.sampler={self.sampling['sampler']} is unknown; it is {', '.join(SAMPLERS)}"
            )

    def identity(
        self, space: Space, fixed: Sequence[str], problem: Problem, judged: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What makes a study this one, as plain data."""
        from optuna.distributions import distribution_to_json

        words = [word for word in fixed if not word.lstrip("+~").startswith(INDIFFERENT)]
        return {
            "objective": judged,
            "variables": {key: distribution_to_json(what) for key, what in space.items()},
            "fixed": sorted(words),
            "dataset": problem.dataset.hash,
            "storage": "journal" if self.storage is None else self.storage.partition(":")[0],  # a URL holds passwords
        }

    def composed(self, words: Sequence[str]) -> DictConfig:
        """The configuration of a run with these words."""
        cfg = self.loader.load_sweep_config(self.cfg, list(words))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def check_space(self, space: Space, fixed: Sequence[str], problem: Problem) -> None:
        """Compose every choice and both ends of every range before the first trial.

        Raises:
            ConfigError: a variable that the configuration does not have, or an end that cannot be.
        """
        values = {key: ends(what) for key, what in space.items()}
        members, elites = [], []
        for place in range(max(len(options) for options in values.values())):
            words = [f"{key}={options[place % len(options)]}" for key, options in values.items()]
            cfg = compose.resolve(self.composed([*fixed, *words]), problem.task)
            members.append(OmegaConf.select(cfg, "dynamics.members", default=1))
            elites.append(OmegaConf.select(cfg, "dynamics.elites", default=1))
        if min(members) < max(elites):
            raise ConfigError(
                f"dynamics.members may become {min(members)}, fewer than dynamics.elites={max(elites)}: let its range "
                f"begin at {max(elites)}, or give dynamics.elites={min(members)}"
            )

    def run(self, study: Study, value_of: Any) -> None:
        """Take trials, run them, tell what they are worth; until none is left for this process."""
        say = self.console.print
        done = len([t for t in study.trials() if t.state.is_finished()])
        say(f"study {study.folder}: {self.total} trials over {', '.join(study.space)}", markup=False)
        if done:
            say(f"{done} trials have ended before", markup=False)
        failures = 0
        while True:
            batch, detached = study.take(self.jobs, total=self.total, **self.sampling)
            if not batch and not detached:
                break
            if not batch:
                time.sleep(1.0)  # runs whose sweeper is gone: they end, or are lost, by themselves
                continue
            mine = [task for task in batch if not self.settle(study, task, value_of)]
            if mine:
                for task, result in zip(mine, self.launch(study, mine, value_of), strict=True):
                    if not self.settle(study, task, value_of):
                        study.tell(task.number, None, failure(result))
            trials = study.trials()
            ended = [trials[task.number] for task in batch]
            self.report(study, ended)
            failures += len([t for t in ended if t.value is None])
            if failures >= HOPELESS and all(t.value is None for t in trials):
                raise ConfigError(
                    f"{failures} trials have failed and none has finished, the last one by: "
                    f"{ended[-1].user_attrs.get('error')}. The study can go on when that is mended"
                )
        self.conclude(study)

    def launch(self, study: Study, tasks: Sequence[Task], value_of: Any) -> Sequence[JobReturn]:
        """Run trials by Hydra's launcher, each in its directory.

        Raises:
            ConfigError: the launcher failed before any run began.
            KeyboardInterrupt: the runs were asked to stop, and have saved.
        """
        jobs = [Job(task.path, task.overrides) for task in tasks]
        try:
            return hand_over(self.launcher, jobs, tasks[0].number, self.console)
        except KeyboardInterrupt:
            ended = [study.trials()[task.number] for task in tasks if self.settle(study, task, value_of)]
            self.report(study, ended, figures=True)
            line = f"stopped; the study goes on by the same command, with run_dir={study.folder}"
            self.console.print(line, markup=False)
            raise
        except Exception as error:  # of the launcher: one of a run is in its result
            raise ConfigError(
                f"the launcher failed: {type(error).__name__}: {error}. No trial is lost; the study goes on when that "
                "is mended"
            ) from error

    def settle(self, study: Study, task: Task, value_of: Any) -> bool:
        """Tell the study what a trial's run directory says; False if the run has not ended."""
        if not (task.path / "meta.json").exists():
            return False
        meta = read_json(task.path / "meta.json")
        reason = meta.get("reason") or "failed"
        if meta["status"] == "failed" and not reason.startswith("KeyboardInterrupt"):  # Ctrl-C twice: it may go on
            study.tell(task.number, None, reason)
        elif meta["status"] == "finished":
            try:
                value = value_of(task.path)
                if not math.isfinite(value):
                    raise ValueError(f"the objective is {value}")
            except (OSError, ValueError, KeyError) as error:
                study.tell(task.number, None, f"{type(error).__name__}: {error}")
            else:
                study.tell(task.number, value)
        else:
            return False
        return True

    def report(self, study: Study, ended: Sequence[FrozenTrial], figures: bool = False) -> None:
        """A line for every trial that has ended, and the study's files."""
        from mbrl.tune_report import best_of, write_best, write_figures, write_tables

        trials = study.trials()
        best = best_of(trials)
        for trial in ended:
            what = f"{trial.value:.4g}" if trial.value is not None else f"failed ({trial.user_attrs.get('error')})"
            leader = f", best {best.value:.4g} (trial {best.number})" if best is not None else ""
            params = " ".join(f"{key}={value}" for key, value in trial.params.items())
            self.console.print(f"trial {trial.number}: {what}{leader}: {params}", markup=False, style="bold")
        write_tables(study.folder, trials)
        if best is not None:
            overrides = study.task(best.number, best.params).overrides
            write_best(study.folder, best, self.objective, overrides, self.command(study, best))
        if figures or time.monotonic() - self.plotted >= PLOT_SECONDS:
            write_figures(study.folder, trials, self.objective)
            self.plotted = time.monotonic()

    def command(self, study: Study, trial: FrozenTrial) -> str:
        """What trains a trial's settings with five seeds that the study has not seen."""
        words = list(study.task(trial.number, trial.params).overrides)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        seen = int(given.get("seed", self.base.seed)) + int(given.get("seeds", self.base.seeds))
        kept = [word for word in words if not word.startswith(("seed=", "seeds=", "run_dir="))]
        sources = self.cfg.hydra.runtime.config_sources
        own = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
        return shlex.join(["mbrl", "train", *own, *kept, f"seed={seen}", "seeds=5"])

    def conclude(self, study: Study) -> None:
        """Last files, last words."""
        from mbrl.tune_report import best_of, findings

        self.report(study, [], figures=True)
        trials = study.trials()
        running = len([t for t in trials if not t.state.is_finished()])
        if running:
            self.console.print(
                f"{running} trials still run in other processes, which will have the last word", markup=False
            )
        for line in findings(trials, self.objective, study.folder):
            self.console.print(line, markup=False)
        self.console.print(f"tables and figures: {study.folder}", markup=False)
        best = best_of(trials)
        if best is not None:
            self.console.print("train the best with five seeds that the study has not seen:", markup=False)
            self.console.print(f"  {self.command(study, best)}", markup=False, style="bold")


def failure(result: JobReturn) -> str:
    """What a job ended by that has left no finished run."""
    if result.status is not JobStatus.FAILED:
        return "it ended without a result"
    error = result._return_value
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)


def needs_optuna(sampler: str) -> None:
    """Say what is missing before anything is done.

    Raises:
        ModuleNotFoundError: with the way out.
    """
    for name in ("optuna", *(["scipy"] if sampler == "gp" else [])):
        try:
            __import__(name)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"hydra/sweeper=optuna needs {name}: pip install 'offline-mbrl[tune]'") from None
