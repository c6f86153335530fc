"""From words to parts: overrides are checked, tuned values looked up, and the configuration becomes objects.

This module and `cli.py` are the only places that see the configuration; every part receives typed keywords.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

import mbrl
from mbrl.data.ring import ReplayTable
from mbrl.data.sources import Dataset, load_dataset, no_dataset
from mbrl.data.tasks import Reference, Task, find_task, task_for
from mbrl.data.validate import nearest
from mbrl.dynamics.ensemble import GaussianEnsemble, moments
from mbrl.dynamics.oracle import OracleModel
from mbrl.evaluate import EnvSpec, EvaluationError, env_spec
from mbrl.learn.regularisers import GradientPenalty, Robust
from mbrl.learn.sac import SAC
from mbrl.online import Interaction
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.train import Schedule
from mbrl.types import ActionSource, RunModel, Score

FloatArray = npt.NDArray[np.floating[Any]]


class ConfigError(ValueError):
    """An override or a configuration that cannot be used, in words that say what would be."""


def config_folder() -> Path:
    """`configs/`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(mbrl.__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


# -- overrides ---------------------------------------------------------------------------------------------------------


def flat_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration, inner nodes included."""
    if isinstance(cfg, DictConfig):
        for key in cfg:
            name = f"{prefix}{key!s}"
            yield name
            if not OmegaConf.is_missing(cfg, str(key)) and not OmegaConf.is_interpolation(cfg, str(key)):
                yield from flat_keys(cfg[key], f"{name}.")


def hint(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` for the known words nearest to `word`, as a whole or by their last part; or nothing."""
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    close = [by_last_part[part] for part in nearest(word.rsplit(".", 1)[-1], by_last_part)] + nearest(word, known)
    unique = list(dict.fromkeys(close))[:3]
    return f"; did you mean {' or '.join(unique)}?" if unique else ""


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and the flags of Hydra with their values, wherever they stand among each other."""
    known, rest = get_args_parser().parse_known_args(list(words))
    overrides = [*known.overrides, *(word for word in rest if not word.startswith("-"))]
    return overrides, [word for word in words if word not in overrides]


def check_overrides(words: Sequence[str], config_name: str) -> None:
    """Refuse a misspelt key or group option before anything runs, naming the nearest right one.

    Raises:
        ConfigError: a word that does not parse, an unknown key, an unknown option of a group.
    """
    overrides, flags = split_words(words)
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(f"cannot read an override: {str(error).splitlines()[0]}") from None
    given = {override.key_or_group: override.value() for override in parsed}
    if config_name == "train" and given.get("task") is not None and given.get("dataset") is not None:
        raise ConfigError("task= names a dataset of its own: give task=, or dataset= with env=, not both")
    folders = [config_folder()]
    chosen = []
    own_folder = get_args_parser().parse_args(flags).config_dir
    if own_folder is not None:
        folders.append(Path(own_folder).resolve())
        chosen.append(f"hydra.searchpath=['file://{folders[1]}']")
        if not folders[1].is_dir():
            raise ConfigError(f"--config-dir {own_folder}: there is no such folder")
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir() and path.name != "tuned"}
    own = [o for o in parsed if o.key_or_group in groups]
    for override in own:
        group = override.key_or_group
        options = sorted(path.stem for folder in folders for path in (folder / group).glob("*.yaml"))
        for option in _options(override):
            if option not in options:
                raise ConfigError(
                    f"{group}={option}: no such option{hint(option, options)} ({group} has {', '.join(options)})"
                )
        if override.value_type is not ValueType.GLOB_CHOICE_SWEEP:  # of the options that there are
            chosen.append(f"{group}={_first(override)}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        known = list(flat_keys(compose(config_name, overrides=chosen)))
    GlobalHydra.instance().clear()
    for override in parsed:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or override in own or key.split("/")[0] == "hydra":
            continue
        if key not in known and not key.startswith("hydra."):
            choices = [k for k in (*known, *sorted(groups)) if not k.rpartition(".")[2].startswith("_")]
            raise ConfigError(f"there is no key {key!r}{hint(key, choices)} (to add one of your own: +{key}=...)")


def _options(override: Override) -> list[str]:
    """All options that a group override names, sweeps and lists included."""
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []
    if override.is_interval_sweep():
        raise ConfigError(f"{override.input_line}: options of a group are chosen by name, not from an interval")
    if override.is_sweep_override():
        values: list[Any] = list(override.sweep_iterator())  # e.g. mopo,mobile or [],[morec]
    else:
        values = [override.value()]
    flat: list[str] = []
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            flat.append(str(item).strip("'\""))
    return [
        option.strip()
        for word in flat
        for option in word.strip("[]").split(",")
        if option.strip() not in ("", "null", "None")
    ]


def _first(override: Override) -> str:
    text = (
        next(iter(override.sweep_string_iterator()))
        if override.is_sweep_override()
        else override.get_value_element_as_str()
    )
    return str(text)


# -- tuned values ------------------------------------------------------------------------------------------------------


def tuned_values(algo: str, task: Task, overlays: Iterable[str] = ()) -> dict[str, Any]:
    """What `configs/tuned` says of a task: in every table its row by name, filled up by family and by `default`.

    Tables win in this order: `<overlay>_<algo>.yaml`, if there is one, `<overlay>.yaml`, `<algo>.yaml`; of several
    overlays the last.
    """
    folder = config_folder() / "tuned"
    paths = [folder / f"{algo}.yaml"]
    for overlay in overlays:
        paths += [folder / f"{overlay}.yaml", folder / f"{overlay}_{algo}.yaml"]
    values: dict[str, Any] = {}
    for path in paths:
        if path != paths[0] and not path.exists():
            continue
        table = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(table, dict)
        for row in ("default", task.family, task.name):
            values |= {str(key): value for key, value in table.get(row, {}).items()}
    return values


def resolve(cfg: DictConfig, task: Task) -> DictConfig:
    """A copy without interpolations: tuned values for `task` filled in.

    Raises:
        ConfigError: the configuration asks for a tuned value that the table lacks.
    """
    row = tuned_values(cfg.algo_name, task, (cfg.get("tables") or {}).values())

    def look_up(key: str) -> Any:
        if key not in row:
            raise ConfigError(f"configs/tuned/{cfg.algo_name}.yaml has no {key!r} in its default row; add it there")
        value = row[key]
        return ListConfig(value) if isinstance(value, list) else value

    OmegaConf.register_new_resolver("tuned", look_up, replace=True)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    resolved = OmegaConf.create(plain)
    check_numbers(resolved)
    return resolved


COUNTS = {
    "seed": 0, "seeds": 1, "updates": 1, "batch_size": 1, "log_every": 1, "threads": 1,
    "eval.every": 1, "eval.episodes": 1, "eval.model_horizon": 1,
    "rollout.length": 1, "rollout.lanes": 1, "rollout.every": 1, "rollout.retain": 1,
    "learner.critics": 1, "learner.backup_actions": 1, "learner.target_penalty.samples": 1,
    "dynamics.members": 1, "dynamics.elites": 1, "dynamics.batch_size": 1,
    "dynamics.patience": 1, "dynamics.max_epochs": 1, "dynamics.max_steps": 1, "horizon": 1,
    "score.steps": 1, "score.batch_size": 1, "score.samples": 2, "score.pretraining_steps": 0, "score.iterations": 1,
    "score.starts": 1, "score.horizon": 1, "score.replay": 1, "score.discriminator_steps": 1, "score.warm_up": 0,
    "score.snapshot_every": 1, "score.history": 1, "score.interval": 1,
    "loop.steps": 1, "loop.warm_up": 0, "loop.updates_per_step": 1, "loop.fit_every": 1, "loop.evaluate_every": 1,
    "loop.log_every": 1, "rollout.select.resample": 1, "rollout.truncate.minimum_length": 0,
    "rollout.actions.candidates": 1, "rollout.actions.horizon": 1,
    "loop.explore.candidates": 1, "loop.explore.horizon": 1,
}  # fmt: skip
"""Keys that count something, and the least they may be."""


RANGES = {
    "real_ratio": (0.0, 1.0), "learner.discount": (0.0, 1.0), "learner.target_rate": (0.0, 1.0),
    "rollout.penalise.coefficient": (0.0, math.inf), "learner.target_penalty.coefficient": (0.0, math.inf),
    "learner.backup.coefficient": (0.0, math.inf), "learner.regularisers.diversity.weight": (0.0, math.inf),
    "learner.regularisers.robust.weight": (0.0, math.inf), "learner.regularisers.robust.radius": (0.0, math.inf),
    "learner.regularisers.gradient_penalty.weight": (0.0, math.inf),
    "learner.regularisers.gradient_penalty.target": (0.0, math.inf),
    "learner.spectral_radius": (0.0, math.inf), "dynamics.spectral_radius": (0.0, math.inf),
    "rollout.clip.margin": (0.0, math.inf),
    "learner.actor_learning_rate": (0.0, math.inf), "learner.critic_learning_rate": (0.0, math.inf),
    "learner.temperature_learning_rate": (0.0, math.inf), "dynamics.learning_rate": (0.0, math.inf),
    "dynamics.beta": (0.0, 1.0), "dynamics.improvement": (0.0, 1.0),
    "score.learning_rate": (0.0, math.inf), "score.generator_learning_rate": (0.0, math.inf),
    "score.regression_weight": (0.0, math.inf), "score.gradient_penalty": (0.0, math.inf),
    "score.entropy": (0.0, math.inf), "score.likelihood": (0.0, math.inf), "score.d_clip": (0.0, 1.0),
    "rollout.select.temperature": (0.0, math.inf), "rollout.select.released_clip": (0.0, math.inf),
    "rollout.truncate.quantile": (0.0, 1.0), "rollout.truncate.threshold": (-math.inf, math.inf),
    "rollout.actions.rate": (-sys.float_info.max, sys.float_info.max),
    "rollout.actions.reward_discount": (0.0, 1.0), "rollout.actions.uncertainty_discount": (0.0, 1.0),
    "loop.explore.rate": (-sys.float_info.max, sys.float_info.max),
    "loop.explore.reward_discount": (0.0, 1.0), "loop.explore.uncertainty_discount": (0.0, 1.0),
}  # fmt: skip
"""Keys that measure something, and the least and most they may be."""


def check_numbers(cfg: DictConfig) -> None:
    """Hold `COUNTS` to whole numbers, in place (1e6 becomes 1000000), and `RANGES` to theirs.

    Raises:
        ConfigError: names the key, the value and what was expected.
    """
    if is_online(cfg) and cfg.loop.warm_up >= cfg.loop.steps:  # else `updates`, which nobody gave, would be blamed
        raise ConfigError(f"loop.warm_up={cfg.loop.warm_up}: expected fewer steps than loop.steps={cfg.loop.steps}")
    for key, least in COUNTS.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
            OmegaConf.update(cfg, key, value)
        if value is not None and (type(value) is not int or value < least):
            raise ConfigError(f"{key}={value}: expected a whole number, {least} or more")
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (type(value) not in (int, float) or not low <= value <= high):
            limit = f"between {low:g} and {high:g}" if high < math.inf else f"{low:g} or more"
            raise ConfigError(f"{key}={value}: expected a number, {limit}")
    for key in ("rollout.chunk", "rollout.actions.chunk", "loop.explore.chunk"):
        chunk = OmegaConf.select(cfg, key)
        if chunk not in (None, "auto") and (type(chunk) is not int or chunk < 1):
            raise ConfigError(f"{key}={chunk}: expected auto or a whole number, 1 or more")
    gate = OmegaConf.select(cfg, "fit_gate")
    if gate not in (None, True, False, "auto"):
        raise ConfigError(f"fit_gate={gate}: expected true, false or auto")
    measured = OmegaConf.select(cfg, "lipschitz.measure")
    if measured not in (None, True, False, "auto"):
        raise ConfigError(f"lipschitz.measure={measured}: expected true, false or auto")
    scale = OmegaConf.select(cfg, "rollout.penalise.scale")
    if scale not in (None, "median"):
        raise ConfigError(f"rollout.penalise.scale={scale}: expected median, or null for the uncertainty's own unit")
    minimum = OmegaConf.select(cfg, "learner.target_minimum")
    if minimum not in (None, "auto") and type(minimum) not in (int, float):
        raise ConfigError(f"learner.target_minimum={minimum}: expected auto, a number, or null for no limit")
    seconds = cfg.checkpoint_seconds
    if seconds is not None and (type(seconds) not in (int, float) or not seconds >= 0):
        raise ConfigError(f"checkpoint_seconds={seconds}: expected a number of seconds, 0 or more, or null for never")


def run_name(*, _root_: DictConfig) -> str:
    """`<task or dataset>-<algo>-seed<n>` for the default run directory."""
    own_env = OmegaConf.select(_root_, "loop.name") == "online" and _root_.env not in (None, "auto")
    source = str(_root_.dataset or (_root_.env if own_env else _root_.task))
    stem = Path(source).stem if "/" in source and ":" not in source else source
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem.split(":")[-1])
    seeds = f"seed{_root_.seed}" if _root_.seeds == 1 else f"seeds{_root_.seed}-{_root_.seed + _root_.seeds - 1}"
    return f"{safe}-{_root_.algo_name}-{seeds}"


def register_resolvers() -> None:
    """What the YAML files use; `tuned` is known only when the task is."""
    OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("difference", lambda a, b: a - b, replace=True)
    OmegaConf.register_new_resolver("share", lambda count, by: max(1, int(count) // int(by)), replace=True)
    OmegaConf.register_new_resolver("run_name", lambda _="", *, _root_: run_name(_root_=_root_), replace=True)


register_resolvers()  # here, since a sweep's workers compose in processes of their own


# -- parts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is to be learnt from and where it is tried."""

    dataset: Dataset
    task: Task
    env: EnvSpec | None


def load_problem(cfg: DictConfig) -> Problem:
    """Load the dataset, find its task and environment, scale the actions by the environment's box.

    Raises:
        DatasetError, TaskError: with what is wrong and what would be right.
    """
    # Word for word: null is "no simulator", auto is "whatever the task or the dataset names".
    asked = cfg.env
    if is_online(cfg) and not begins_with_dataset(cfg):
        return problem_without_data(cfg)
    if cfg.dataset is None:
        task = find_task(cfg.task)
        env = task.env if asked == "auto" else asked
        if env != task.env or cfg.horizon is not None or cfg.termination is not None:
            task = task_for(
                task.dataset, env, horizon=cfg.horizon or task.horizon,
                termination=cfg.termination or task.termination, reference=task.reference if env == task.env else None,
            )  # fmt: skip
        spec = None if env is None else env_spec(env, env_kwargs=task.env_kwargs, horizon=task.horizon)
        return check_dimensions(Problem(load_dataset(task.dataset, action_bounds=_bounds(spec)), task, spec))
    spec = None if asked in (None, "auto") else env_spec(asked, horizon=cfg.horizon)
    dataset = load_dataset(cfg.dataset, action_bounds=_bounds(spec))
    env = dataset.env_id if asked == "auto" else asked
    reference = None
    if dataset.reference is not None:
        reference = Reference(*dataset.reference, source="the dataset's metadata", environment=str(dataset.env_id))
    task = task_for(cfg.dataset, env, horizon=cfg.horizon, termination=cfg.termination, reference=reference)
    if asked == "auto" and env is not None:
        spec = env_spec(env, env_kwargs=task.env_kwargs, horizon=task.horizon)
        same = np.array_equal(dataset.action_low, spec.action_low) and np.array_equal(
            dataset.action_high, spec.action_high
        )
        if not same and len(dataset.action_low) == len(spec.action_low):
            dataset = load_dataset(cfg.dataset, action_bounds=_bounds(spec))
    return check_dimensions(Problem(dataset, task, spec))


def is_online(cfg: DictConfig) -> bool:
    """Whether real steps are made while training goes on. Runs from before that was possible do not say."""
    return bool(OmegaConf.select(cfg, "loop.name") == "online")


def begins_with_dataset(cfg: DictConfig) -> bool:
    """Settle `loop.dataset=auto`: an online run begins with a dataset's rows if `dataset=` names one."""
    asked = cfg.loop.dataset
    return cfg.dataset is not None if asked == "auto" else bool(asked)


def problem_without_data(cfg: DictConfig) -> Problem:
    """An environment alone: `env=`, or that of `task=`.

    Raises:
        ConfigError: there is none, or a dataset that would not be used.
        TaskError, EvaluationError: it cannot be used.
    """
    if cfg.dataset is not None:
        raise ConfigError("loop.dataset=false leaves the dataset out, but dataset= names one; leave out one of the two")
    task = find_task(cfg.task)
    env: str | None = task.env if cfg.env == "auto" else cfg.env
    if env is None:
        raise ConfigError("loop=online acts in an environment, and there is none: give env=")
    if cfg.env != "auto" or cfg.horizon is not None or cfg.termination is not None:
        task = task_for(env, env, horizon=cfg.horizon, termination=cfg.termination)
    task = replace(task, label=env)
    spec = env_spec(env, env_kwargs=task.env_kwargs, horizon=task.horizon)
    low, high = spec.action_low.astype(np.float32), spec.action_high.astype(np.float32)
    return Problem(no_dataset(env, spec.observation_dim, low, high), task, spec)


def check_dimensions(problem: Problem) -> Problem:
    """Refuse an environment whose spaces are not the dataset's.

    Raises:
        ConfigError: names both.
    """
    if problem.env is not None:
        data = problem.dataset.transitions
        have = (data.obs.shape[-1], data.action.shape[-1])
        want = (problem.env.observation_dim, len(problem.env.action_low))
        if have != want:
            raise ConfigError(
                f"{problem.dataset.name} has observations of {have[0]} and actions of {have[1]} dimensions, but the "
                f"environment {problem.task.env} has {want[0]} and {want[1]}; give the right env=, or env=null to "
                "train without a simulator"
            )
    return problem


def _bounds(spec: EnvSpec | None) -> tuple[FloatArray, FloatArray] | None:
    return None if spec is None else (spec.action_low, spec.action_high)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name}, but this torch ({torch.__version__}) sees no CUDA device; use device=cpu, or install a "
            "CUDA build of torch"
        )
    return device


def seed_list(cfg: DictConfig) -> list[int]:
    """The seeds of a run: seed, seed+1, ..."""
    return [cfg.seed + i for i in range(cfg.seeds)]


def build_model(cfg: DictConfig, problem: Problem, seeds: Sequence[int], device: torch.device) -> RunModel:
    """The dynamics model, not fitted. The true simulator is told which environment it is.

    Raises:
        ConfigError: a setting that does not fit, or no simulator where the model is one.
    """
    data, dataset = problem.dataset.transitions, problem.dataset
    with naming("dynamics"):
        partial = instantiate(cfg.dynamics)
        own = {}
        if partial.func is OracleModel:
            if problem.task.env is None:
                raise ConfigError(
                    "dynamics=oracle is the true simulator, and there is none: give env=, or a fitted model"
                )
            own = {
                "env": problem.task.env,
                "env_kwargs": problem.task.env_kwargs,
                "action_low": dataset.action_low.tolist(),
                "action_high": dataset.action_high.tolist(),
            }
        try:
            model: RunModel = partial(data.obs.shape[-1], data.action.shape[-1], seeds, **own, device=device)
        except EvaluationError as error:
            raise ConfigError(f"dynamics=oracle: {error}") from error
    return model


def imagines(cfg: DictConfig) -> bool:
    """Whether any row of a batch is imagined."""
    schedule = build_schedule(cfg)
    return schedule.real_rows < schedule.batch_size


def asks_model(cfg: DictConfig, problem: Problem) -> bool:
    """Whether anything in the run asks the dynamics model: rollouts, a target penalty, a stand-in for evaluations."""
    return imagines(cfg) or cfg.learner.target_penalty is not None or problem.task.env is None


def build_learner(
    cfg: DictConfig,
    obs_dim: int,
    action_dim: int,
    seeds: Sequence[int],
    device: torch.device,
    model: RunModel | None = None,
    observation_std: torch.Tensor | None = None,
) -> SAC:
    """The learner; its regularisers are named slots in the configuration and a list in the code.

    A target penalty asks the elites of `model`, which may be fitted later, and regularisers move observations in units
    of `observation_std` (O,). A learner that only acts needs neither.
    """
    with naming("learner"):
        partial = instantiate(cfg.learner)
        regularisers = [r for r in (partial.keywords.pop("regularisers", None) or {}).values() if r is not None]
        penalty = partial.keywords.pop("target_penalty", None)
        if penalty is not None:
            penalty = None if model is None else penalty(model.elite_view())
        learner: SAC = partial(
            obs_dim, action_dim, seeds, regularisers=regularisers, target_penalty=penalty,
            observation_std=observation_std, device=device,
        )  # fmt: skip
    return learner


def observation_std(problem: Problem) -> torch.Tensor:
    """(O,), over the dataset; 0 for what is constant but for rounding, 1 everywhere without a dataset."""
    obs = problem.dataset.transitions.obs
    return moments(obs)[1] if len(obs) else torch.ones(obs.shape[-1])


def measures_lipschitz(cfg: DictConfig, model: RunModel, learner: SAC) -> bool:
    """Settle `lipschitz.measure=auto`: where something makes critics flatter, or a single model is to do."""
    asked = OmegaConf.select(cfg, "lipschitz.measure", default="auto")  # a run from before it could be measured
    if asked != "auto":
        return bool(asked)
    flatter = learner.spectral is not None or any(isinstance(r, Robust | GradientPenalty) for r in learner.regularisers)
    return flatter or (isinstance(model, GaussianEnsemble) and model.members == 1)


def target_minimum(cfg: DictConfig, problem: Problem) -> float | None:
    """Settle `learner.target_minimum=auto`: 0 where no reward of the dataset is negative, else no limit."""
    asked: float | str | None = cfg.learner.target_minimum
    if isinstance(asked, str):
        reward = problem.dataset.transitions.reward
        return 0.0 if len(reward) and bool((reward >= 0).all()) else None
    return asked


@contextmanager
def naming(node: str) -> Iterator[None]:
    """A value of the wrong type, or a keyword that a part does not have, is the configuration's fault: say whose."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{node}: {error}") from error


def build_table(cfg: DictConfig, problem: Problem, seeds: Sequence[int], device: torch.device) -> ReplayTable:
    """Real rows, and rings that hold `retain` rollouts."""
    steps = cfg.loop.steps if is_online(cfg) else 0
    return ReplayTable(problem.dataset.transitions, ring_capacity(cfg), len(seeds), device, steps=steps)


def ring_capacity(cfg: DictConfig) -> int:
    """Imagined rows kept per seed; one, since a ring has rows, where nothing is imagined."""
    length: int = cfg.rollout.length
    if is_online(cfg) and cfg.loop.rollout_growth is not None:
        length = max(cfg.loop.rollout_growth[:2])
    capacity: int = cfg.rollout.lanes * length * cfg.rollout.retain
    return capacity if imagines(cfg) else 1


def build_score(cfg: DictConfig, problem: Problem, seeds: Sequence[int], device: torch.device) -> Score | None:
    """The score of candidate next states, not fitted; None if none is asked for."""
    obs, action = problem.dataset.transitions.obs, problem.dataset.transitions.action
    with naming("score"):
        score = instantiate(cfg.score)
        if score is not None and is_online(cfg):
            raise ConfigError(
                "a score is fitted once, to a fixed dataset and the model of it, and online both change; leave out "
                "score= and filter=[morec], or use loop=offline"
            )
        if isinstance(score, functools.partial):
            score = score(obs.shape[-1], action.shape[-1], seeds, device=device)
    made: Score | None = score
    return made


def build_imagination(cfg: DictConfig, problem: Problem, model: RunModel, score: Score | None = None) -> Imagination:
    """Action source, selector and the filters in their order.

    Raises:
        ConfigError: parts that do not go together.
    """
    rollout = cfg.rollout
    data = problem.dataset.transitions
    if not isinstance(model, GaussianEnsemble) and (score is not None or rollout.truncate is not None):
        raise ConfigError(
            "scores and cuts by distrust judge a fitted model by the rows that it has held out, and dynamics=oracle is "
            "the truth: leave out filter=[morec], filter=[truncate] and score=, or choose a fitted model"
        )
    scaled = rollout.penalise is not None and OmegaConf.select(rollout, "penalise.scale") is not None
    if scaled and not isinstance(model, GaussianEnsemble):
        raise ConfigError(
            "rollout.penalise.scale=median is measured on a fitted model, and dynamics=oracle has no doubt; leave the "
            "scale out, or choose a fitted model"
        )
    if scaled and is_online(cfg):
        raise ConfigError(
            "rollout.penalise.scale=median is measured once, on held-out rows of a fixed dataset, and online there are "
            "ever new ones; leave the scale out, or use loop=offline"
        )
    if rollout.truncate is not None and is_online(cfg):
        raise ConfigError(
            "a cut by distrust is calibrated once, on held-out rows of a fixed dataset, and online there are ever new "
            "ones; leave out filter=[truncate], or use loop=offline"
        )
    select, truncate = instantiate(rollout.select), instantiate(rollout.truncate)
    if isinstance(select, functools.partial):
        if score is None:
            raise ConfigError("select=scored needs a score to decide by: choose score=residual, or select=random_elite")
        with naming("select"):
            select = select(score, model.elite_count)
        if select.samples and model.elite_count * select.resample == 1:
            raise ConfigError(
                "rollout.select.resample=1: one sample of a single model leaves a score nothing to choose from; raise "
                "rollout.select.resample, or choose rollout.select.pick=corrected_mean or select=random_elite"
            )
    elif truncate is not None and rollout.truncate.signal == "score":
        raise ConfigError(
            "rollout.truncate.signal=score: select=random_elite rates nothing; choose select=scored, or "
            "rollout.truncate.signal=candidate_spread"
        )
    if isinstance(truncate, functools.partial):
        std = (data.next_obs - data.obs).std(0, correction=0)
        with naming("truncate"):
            truncate = truncate(torch.where(std > 0, std, torch.ones_like(std)).to(model.device))
    clip = None
    if rollout.clip is not None:
        if not len(data.reward) and rollout.clip.margin != math.inf:
            raise ConfigError(
                f"rollout.clip.margin={rollout.clip.margin}: a run that begins without a dataset knows no range of "
                "observations; give rollout.clip.margin=.inf"
            )
        clip = Clip(
            data._replace(obs=data.obs.to(model.device), next_obs=data.next_obs.to(model.device)), **rollout.clip
        )
    penalise = instantiate(rollout.penalise) if rollout.penalise else None
    if rollout.members not in ("all", "elites"):
        raise ConfigError(f"rollout.members={rollout.members}: it is all or elites")
    named, count = ("members", model.members) if rollout.members == "all" else ("elites", model.elite_count)
    if penalise is not None and count == 1 and penalise.needs_members:
        raise ConfigError(
            f"the penalty {penalise.name} measures how several members disagree, and dynamics.{named} is 1; "
            "choose penalty=max_aleatoric, ensemble_std or ensemble_variance, which know of noise, or penalty=none"
        )
    asked = model if rollout.members == "all" else model.elite_view()
    others = [instantiate(part) for part in rollout.others.values() if part is not None]
    # Only then is one elite for each lane enough.
    alone = penalise is None and truncate is None and not others and isinstance(select, RandomElite)
    chunk = rollout.chunk
    if chunk == "auto":
        cached = 5120 if alone else 1024  # lanes whose activations a CPU's cache holds
        chunk = cached if model.device.type == "cpu" else rollout.lanes
    return Imagination(
        model=asked,
        actions=build_actions(rollout.actions, "rollout.actions", problem, model, asked.members),
        select=select,
        filters=FilterChain(
            clip=clip,
            terminate=Terminate(problem.task.termination),
            penalise=penalise,
            truncate=truncate,
            others=others,
        ),
        length=rollout.length,
        chunk=int(chunk),
        simulator=model.elite_view() if alone else None,
    )


def build_actions(node: DictConfig, name: str, problem: Problem, model: RunModel, members: int) -> ActionSource:
    """Where actions come from; one that plans is told the task's end, and the units and members of the model."""
    with naming(name):
        source = instantiate(node)
        if isinstance(source, functools.partial):
            source = source(members, problem.task.termination, model.change_std, device=model.device)
    made: ActionSource = source
    return made


def build_explore(cfg: DictConfig, problem: Problem, model: RunModel) -> ActionSource:
    """How an online run acts in its environment.

    Raises:
        ConfigError: it plans with a model, and none is fitted.
    """
    if not is_online(cfg):
        return PolicyActions()
    members = model.members if cfg.rollout.members == "all" else model.elite_count
    source = build_actions(cfg.loop.explore, "loop.explore", problem, model, members)
    if not asks_model(cfg, problem) and not isinstance(source, PolicyActions):
        raise ConfigError(
            f"explore={type(source).__name__} plans with a model, and algo={cfg.algo_name} has every row of a batch "
            "real and fits none; give explore=policy, or another algorithm"
        )
    return source


def build_interaction(cfg: DictConfig) -> Interaction | None:
    """How much is done in the environment while training goes on; None offline.

    Raises:
        ConfigError: numbers that do not go together.
    """
    if not is_online(cfg):
        return None
    loop = cfg.loop
    with naming("loop"):
        growth = loop.rollout_growth
        plan = Interaction(
            steps=loop.steps,
            warm_up=loop.warm_up,
            updates_per_step=loop.updates_per_step,
            fit_every=loop.fit_every,
            rollout_growth=None if growth is None else tuple(growth),
        )
    if cfg.updates != plan.updates:
        raise ConfigError(
            f"updates={cfg.updates}: online, loop.steps={plan.steps}, loop.warm_up={plan.warm_up} and "
            f"loop.updates_per_step={plan.updates_per_step} make {plan.updates:,}; give loop.steps=, not updates="
        )
    if cfg.rollout.every != plan.fit_every * plan.updates_per_step:
        raise ConfigError(
            f"rollout.every={cfg.rollout.every}: online, rollouts follow the model, every loop.fit_every="
            f"{plan.fit_every} steps; give loop.fit_every="
        )
    return plan


def single_model_notes(cfg: DictConfig, problem: Problem, model: RunModel) -> list[str]:
    """What is still legal with a single fitted model, and is not what it is with several."""
    if not (isinstance(model, GaussianEnsemble) and model.members == 1 and asks_model(cfg, problem)):
        return []
    notes = []
    if cfg.rollout.truncate is not None and cfg.rollout.truncate.signal == "candidate_spread":
        notes.append(
            "with dynamics.members=1 the candidates' spread is the noise that the model predicts, and nothing of what "
            "it does not know: lanes end where the world is noisy"
        )
    if cfg.score is not None and cfg.score._target_ in OUT_OF_BAG:
        notes.append(
            "with dynamics.members=1 the score is fitted on rows of which the model has seen 63 %, where several "
            "members would leave each row to those that have not: it takes the model for better than it is"
        )
    return notes


OUT_OF_BAG = ("mbrl.score.residual.ResidualScore", "mbrl.score.ranking.RankingScore")
"""Scores that learn from what members say of rows that they have not been fitted on."""


def build_schedule(cfg: DictConfig) -> Schedule:
    """How long, how much, how often."""
    return Schedule(
        updates=cfg.updates,
        batch_size=cfg.batch_size,
        real_ratio=cfg.real_ratio,
        rollout_every=cfg.rollout.every,
        rollout_lanes=cfg.rollout.lanes,
        log_every=cfg.log_every,
        evaluate_every=cfg.eval.every,
        checkpoint_seconds=math.inf if cfg.checkpoint_seconds is None else cfg.checkpoint_seconds,
    )


def dynamics_settings(cfg: DictConfig) -> Mapping[str, Any]:
    """What the store's key depends on."""
    settings = OmegaConf.to_container(cfg.dynamics)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def score_settings(cfg: DictConfig) -> Mapping[str, Any]:
    """What the store's key of a score depends on: its own settings and those of the model that it judges."""
    settings = OmegaConf.to_container(cfg.score)
    assert isinstance(settings, dict)
    # How a fitted adversarial score is used: MOREC-MOPO and MOREC-MOBILE ask one history at different intervals.
    fitted = {str(key): value for key, value in settings.items() if key not in ("interval", "d_clip")}
    return {"score": fitted, "dynamics": dynamics_settings(cfg)}


def score_name(cfg: DictConfig) -> str:
    """The option of group score that a run's score is made like."""
    for path in sorted((config_folder() / "score").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(path), "_target_") == cfg.score._target_:
            return path.stem
    return str(cfg.score._target_).rpartition(".")[2]


def with_score(cfg: DictConfig, task: Task, name: str) -> DictConfig:
    """A run's configuration with another score, as that option's file has it.

    Raises:
        ConfigError: there is no such score.
    """
    options = sorted(path.stem for path in (config_folder() / "score").glob("*.yaml") if path.stem != "none")
    if name not in options:
        raise ConfigError(f"score={name}: no such option{hint(name, options)} (score has {', '.join(options)})")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        option = compose("train", overrides=[f"score={name}"]).score
    GlobalHydra.instance().clear()
    changed = OmegaConf.create(OmegaConf.to_container(cfg))
    changed.score = OmegaConf.create(OmegaConf.to_container(option))
    assert isinstance(changed, DictConfig)
    return resolve(changed, task)


def find_run_task(cfg: DictConfig, meta: Mapping[str, Any]) -> Task:
    """The task of a finished run, without loading its dataset."""
    if cfg.dataset is None and cfg.env == "auto" and cfg.horizon is None and cfg.termination is None:
        return find_task(cfg.task)
    reference = None
    if meta["reference"] is not None:
        low, high = meta["reference"]
        reference = Reference(low, high, source=meta["reference_source"], environment=str(meta["env"]))
    return task_for(meta["dataset"], meta["env"], horizon=meta["horizon"], reference=reference)
