"""What a `task=` name stands for: dataset, environment, horizon, termination function and reference scores.

A score is 100 (return - minimum) / (maximum - minimum) with the benchmark's own references. References were measured in
one version of an environment; scores measured in another are shown on the same scale and say so (`Task.notes`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from mbrl.data import refrigerator
from mbrl.data import termination as rules
from mbrl.data.validate import nearest
from mbrl.types import Termination


class TaskError(LookupError):
    """A task, environment, termination function or import path that does not exist; the message says what does."""


@dataclass(frozen=True)
class Reference:
    """The returns that count as 0 and as 100.

    Attributes:
        minimum: return that scores 0 (usually a random policy's).
        maximum: return that scores 100 (usually an expert's).
        source: where the two numbers are published.
        environment: the environment they were measured in.
    """

    minimum: float
    maximum: float
    source: str
    environment: str

    def __post_init__(self) -> None:
        if not (np.isfinite([self.minimum, self.maximum]).all() and self.minimum < self.maximum):
            raise ValueError(
                f"reference scores must be finite with minimum < maximum, got minimum={self.minimum}, "
                f"maximum={self.maximum}"
            )

    @property
    def scale(self) -> float:
        """Score points per unit of return: what a standard deviation or a difference of returns is multiplied by."""
        return 100.0 / (self.maximum - self.minimum)

    def score(self, returns: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Undiscounted returns, any shape -> scores of the same shape; 0 at `minimum`, 100 at `maximum`."""
        return (np.asarray(returns, dtype=np.float64) - self.minimum) * self.scale


@dataclass(frozen=True)
class Task:
    """Everything that `task=` selects.

    Attributes:
        name: what `task=` takes.
        dataset: dataset string, as everywhere.
        env: Gymnasium id, `module:Id` or import path to evaluate in; None if none can be had.
        env_kwargs: keyword arguments of the environment.
        horizon: time limit of an episode in steps.
        termination: when an imagined episode ends.
        reference: scale of the scores; None: results are raw returns.
        family: e.g. `hopper`; tasks of one family share observation, reward and termination.
        label: one line for tables: dataset and the environment of the evaluation.
        notes: what a reader of the scores must know.
    """

    name: str
    dataset: str
    env: str | None
    env_kwargs: Mapping[str, Any]
    horizon: int
    termination: Termination
    reference: Reference | None
    family: str
    label: str
    notes: tuple[str, ...] = ()


def _d4rl(minimum: float, maximum: float, environment: str) -> Reference:
    return Reference(minimum, maximum, "D4RL, d4rl/infos.py", environment)


_D4RL_LOCOMOTION = {
    "halfcheetah": _d4rl(-280.178953, 12135.0, "gym HalfCheetah-v2 (mujoco-py)"),
    "hopper": _d4rl(-20.272305, 3234.3, "gym Hopper-v2 (mujoco-py)"),
    "walker2d": _d4rl(1.629008, 4592.3, "gym Walker2d-v2 (mujoco-py)"),
    "ant": _d4rl(-325.6, 3879.7, "gym Ant-v2 (mujoco-py)"),
}

# Gymnasium name without version -> family, and the family's termination function.
_FAMILIES = {
    "Ant": "ant",
    "HalfCheetah": "halfcheetah",
    "Hopper": "hopper",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoidstandup",
    "InvertedDoublePendulum": "inverteddoublependulum",
    "InvertedPendulum": "invertedpendulum",
    "Pendulum": "pendulum",
    "Pusher": "pusher",
    "Reacher": "reacher",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
}
_TERMINATION: dict[str, Termination] = {
    "ant": rules.ant,
    "halfcheetah": rules.halfcheetah,
    "hopper": rules.hopper,
    "humanoid": rules.humanoid,
    "humanoidstandup": rules.never,
    "inverteddoublependulum": rules.inverted_double_pendulum,
    "invertedpendulum": rules.inverted_pendulum,
    "pendulum": rules.pendulum,
    "pusher": rules.never,
    "reacher": rules.never,
    "swimmer": rules.never,
    "walker2d": rules.walker2d,
}

_RAW = "no reference scores: results are raw returns"
_D4RL_ENVIRONMENT = "D4RL's environment needs gym < 0.25, which cannot be installed beside this package: not evaluated"


def _label(source: str, env: str | None) -> str:
    return f"{source}, evaluated in {env}" if env else f"{source}, not evaluated"


def _d4rl_locomotion() -> Iterable[Task]:
    """Gym-MuJoCo v2, evaluated in Gymnasium's v4: same rewards, observations and models (unlike v5), newer bindings."""
    for env, family in (("HalfCheetah", "halfcheetah"), ("Hopper", "hopper"), ("Walker2d", "walker2d"), ("Ant", "ant")):
        evaluated = None if family == "ant" else f"{env}-v4"
        notes = _reference_notes(_D4RL_LOCOMOTION[family], evaluated)
        if family == "ant":
            notes = (
                "not evaluated: Ant-v2 observes 84 contact forces, always 0 with mujoco-py > 2.0 according to "
                "Gymnasium's documentation; no Gymnasium version has that observation",
            )
        for level in ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"):
            name = f"{family}-{level}-v2"
            yield Task(
                name=name,
                dataset=f"d4rl:{name}",
                env=evaluated,
                env_kwargs={},
                horizon=1000,
                termination=_TERMINATION[family],
                reference=_D4RL_LOCOMOTION[family],
                family=family,
                label=_label(f"D4RL {name}", evaluated),
                notes=notes,
            )


def _d4rl_other() -> Iterable[Task]:
    """Adroit, Maze2D, AntMaze and Kitchen: names, horizons and references of D4RL."""
    rows: list[tuple[str, str, int, Termination, Reference]] = []
    rule: Termination
    for family, horizon, rule, minimum, maximum in (
        ("pen", 100, rules.pen, 96.262799, 3076.8331017826877),
        ("hammer", 200, rules.never, -274.856578, 12794.134825156867),
        ("door", 200, rules.never, -56.512833, 2880.5693087298737),
        ("relocate", 200, rules.never, -6.425911, 4233.877797728884),
    ):
        reference = _d4rl(minimum, maximum, f"d4rl {family}-v0 (mujoco-py)")
        rows += [(f"{family}-{level}-v1", family, horizon, rule, reference) for level in ("human", "cloned", "expert")]
    for name, horizon, minimum, maximum in (
        ("maze2d-open-v0", 150, 0.01, 20.66),
        ("maze2d-umaze-v1", 300, 23.85, 161.86),
        ("maze2d-medium-v1", 600, 13.13, 277.39),
        ("maze2d-large-v1", 800, 6.7, 273.99),
        ("maze2d-open-dense-v0", 150, 11.17817, 27.166538620695782),
        ("maze2d-umaze-dense-v1", 300, 68.537689, 193.66285642381482),
        ("maze2d-medium-dense-v1", 600, 44.264742, 297.4552547777125),
        ("maze2d-large-dense-v1", 800, 30.569041, 303.4857382709002),
    ):
        # The point mass is paid for every step at the goal: reaching it ends nothing (d4rl/pointmaze/maze_model.py).
        rows.append((name, "maze2d", horizon, rules.never, _d4rl(minimum, maximum, f"d4rl {name}")))
    for maze, horizon, goal, variants in (
        ("umaze", 700, (0.75, 8.75), ("", "-diverse")),
        ("medium", 1000, (20.75, 20.75), ("-play", "-diverse")),
        ("large", 1000, (32.75, 24.75), ("-play", "-diverse")),
    ):
        for variant in variants:
            name = f"antmaze-{maze}{variant}-v2"
            rows.append((name, "antmaze", horizon, rules.antmaze(goal), _d4rl(0.0, 1.0, f"d4rl {name}")))
    for level in ("complete", "partial", "mixed"):
        name = f"kitchen-{level}-v0"
        rows.append((name, "kitchen", 280, rules.never, _d4rl(0.0, 4.0, f"d4rl {name}")))
    for name, family, horizon, rule, reference in rows:
        yield Task(
            name=name,
            dataset=f"d4rl:{name}",
            env=None,
            env_kwargs={},
            horizon=horizon,
            termination=rule,
            reference=reference,
            family=family,
            label=_label(f"D4RL {name}", None),
            notes=(_D4RL_ENVIRONMENT,),
        )


def _minari() -> Iterable[Task]:
    """Minari's `mujoco` namespace, collected in Gymnasium's v5 environments."""
    three, two = ("simple", "medium", "expert"), ("medium", "expert")
    for env, horizon, levels in (
        ("Hopper", 1000, three),
        ("Walker2d", 1000, three),
        ("HalfCheetah", 1000, three),
        ("Ant", 1000, three),
        ("Humanoid", 1000, three),
        ("HumanoidStandup", 1000, three),
        ("InvertedPendulum", 1000, two),
        ("InvertedDoublePendulum", 1000, two),
        ("Swimmer", 1000, two),
        ("Reacher", 50, two),
        ("Pusher", 100, two),
    ):
        family = _FAMILIES[env]
        reference = _D4RL_LOCOMOTION.get(family)
        for level in levels:
            name = f"mujoco/{family}/{level}-v0"
            yield Task(
                name=name,
                dataset=f"minari:{name}",
                env=f"{env}-v5",
                env_kwargs={},
                horizon=horizon,
                termination=_TERMINATION[family],
                reference=reference,
                family=family,
                label=_label(f"Minari {name}", f"{env}-v5"),
                notes=_reference_notes(reference, f"{env}-v5"),
            )


def _neorl() -> Iterable[Task]:
    """NeoRL: Gym-MuJoCo v3 with x observed, whose rewards are those of Gymnasium's v4."""
    for env, family, rule, minimum, maximum in (
        ("HalfCheetah", "neorl-halfcheetah", rules.never, -298.0, 12284.0),
        ("Hopper", "neorl-hopper", rules.neorl_hopper, 5.0, 3294.0),
        ("Walker2d", "neorl-walker2d", rules.neorl_walker2d, 1.0, 5143.0),
    ):
        reference = Reference(
            minimum, maximum, "MOREC, mb_policy_trainer.py; unifloral, core.py", f"gym {env}-v3 (mujoco-py)"
        )
        for level in ("low", "medium", "high"):
            name = f"{env}-v3-{level}"
            yield Task(
                name=name,
                dataset=f"neorl:{name}",
                env=f"{env}-v4",
                env_kwargs={"exclude_current_positions_from_observation": False},
                horizon=1000,
                termination=rule,
                reference=reference,
                family=family,
                label=_label(f"NeoRL {name}", f"{env}-v4 with x observed"),
                notes=_reference_notes(reference, f"{env}-v4"),
            )


def _neorl2() -> Iterable[Task]:
    """NeoRL-2 (arXiv 2503.19267): its package starts no environment under this package's Gymnasium."""
    for name, horizon, rule, minimum, maximum in (
        ("Pipeline", 1000, rules.never, -296.0, 751.0),
        ("Simglucose", 480, rules.simglucose, 9.75, 475.0),
        ("RocketRecovery", 500, rules.rocket_recovery, -176.0, 208.0),
        ("RandomFrictionHopper", 1000, rules.neorl_hopper, -3.0, 503.0),
        ("DMSD", 100, rules.never, 30.60, 849.51),
        ("Fusion", 100, rules.never, -107.601, 98.05),
        ("SafetyHalfCheetah", 1000, rules.never, -283.0, 2507.0),
    ):
        yield Task(
            name=name,
            dataset=f"neorl2:{name}",
            env=None,
            env_kwargs={},
            horizon=horizon,
            termination=rule,
            reference=Reference(minimum, maximum, "NeoRL-2", f"neorl2 {name}"),
            family=name.lower(),
            label=_label(f"NeoRL-2 {name}", None),
            notes=("the released neorl2 package starts no environment; with its repository installed, pass env=",),
        )


def _builtin() -> Iterable[Task]:
    yield Task(
        name="pendulum",
        dataset="builtin:pendulum",
        env="Pendulum-v1",
        env_kwargs={},
        horizon=200,
        termination=rules.pendulum,
        reference=None,
        family="pendulum",
        label=_label("built-in pendulum", "Pendulum-v1"),
        notes=(_RAW,),
    )
    yield Task(
        name="refrigerator",
        dataset="builtin:refrigerator",
        env=refrigerator.ENV,
        env_kwargs={},
        horizon=refrigerator.HORIZON,
        termination=rules.never,
        reference=None,
        family="refrigerator",
        label=_label("built-in refrigerator", refrigerator.ENV),
        notes=(_RAW,),
    )


def _reference_notes(reference: Reference | None, env: str | None) -> tuple[str, ...]:
    if reference is None:
        return (_RAW,)
    if env is None:
        return ()
    return (f"returns are measured in {env}, scores on the scale of {reference.environment} ({reference.source})",)


_TASKS: tuple[Task, ...] = (
    *_builtin(),
    *_d4rl_locomotion(),
    *_d4rl_other(),
    *_minari(),
    *_neorl(),
    *_neorl2(),
)


def all_tasks() -> list[Task]:
    """The table, in the order of docs/tasks.md."""
    return list(_TASKS)


def find_task(name: str) -> Task:
    """The task called `name`; a dataset string of the table (`d4rl:hopper-medium-v2`) is also understood.

    Raises:
        TaskError: there is none; names the nearest.
    """
    for task in _TASKS:
        if name in (task.name, task.dataset):
            return task
    raise TaskError(
        f"no task is called {name!r}{_nearest(name, [task.name for task in _TASKS])}; for your own data leave task= "
        "out and give dataset= and env= (docs/tasks.md)"
    )


def task_for(
    dataset: str,
    env: str | None,
    *,
    horizon: int | None = None,
    termination: str | Termination | None = None,
    reference: Reference | None = None,
) -> Task:
    """A task put together by the user: own data, or a dataset of the table in another environment.

    Args:
        dataset: any dataset string.
        env: Gymnasium id, `module:Id`, import path `package.module:factory`, or None: nothing is evaluated.
        horizon: time limit in steps; default: the environment's own. Without an environment it is not used.
        termination: function, name of one in `mbrl.data.termination`, or import path; default: what the table has for
            this dataset, else for the environment's family, else `never`.
        reference: scale of the scores; default: found like `termination`, else None.

    Raises:
        TaskError: the environment or function is unknown, or there is no time limit.
    """
    spec = None if env is None else gymnasium_spec(env)
    listed = next((task for task in _TASKS if task.dataset == dataset), None)
    if listed is not None:
        family = listed.family
    else:
        family = _FAMILIES.get(re.sub(r"-v\d+$", "", spec.id), "own") if spec is not None else "own"
    notes: list[str] = []
    if isinstance(termination, str):
        rule = _termination_named(termination)
    elif termination is not None:
        rule = termination
    elif listed is not None:
        rule = listed.termination
    elif family in _TERMINATION:
        rule = _TERMINATION[family]
    else:
        rule = rules.never
        notes.append("no termination function: imagined episodes never end early; give termination= if real ones do")
    if horizon is None:
        if env is None:
            horizon = 1000
        elif spec is not None and spec.max_episode_steps is not None:
            horizon = int(spec.max_episode_steps)
        else:
            raise TaskError(f"env={env} has no registered time limit: give horizon=, the longest episode in steps")
    if reference is None:
        reference = listed.reference if listed is not None else _D4RL_LOCOMOTION.get(family)
    return Task(
        name=dataset,
        dataset=dataset,
        env=env,
        env_kwargs=listed.env_kwargs if listed is not None and listed.env == env else {},
        horizon=horizon,
        termination=rule,
        reference=reference,
        family=family,
        label=_label(dataset, env),
        notes=(*notes, *_reference_notes(reference, env)),
    )


def import_object(path: str) -> Any:
    """The object at `package.module:name`; `name` may have dots.

    Raises:
        TaskError: not of that form, no such module, or no such name in it.
    """
    module_name, separator, name = path.rpartition(":")
    if not (separator and module_name and name):
        raise TaskError(f"{path!r} is not an import path; expected package.module:name")
    found: Any = _import_module(module_name, path)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [other for other in dir(found) if not other.startswith("_")]
            raise TaskError(f"{path!r}: {module_name} has no {name!r}{_nearest(name, public)}")
        found = getattr(found, part)
    return found


def gymnasium_spec(env: str) -> Any:
    """The registered `gymnasium.envs.registration.EnvSpec` of an id or `module:Id`; the module is imported first.

    Returns:
        None for `package.module:name` where `name` is not a registered id: an import path.

    Raises:
        TaskError: no such id (names the nearest), or no such module.
    """
    module_name, _, name = env.rpartition(":")
    if module_name:
        _import_module(module_name, env)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        if module_name:
            return None
        raise TaskError(
            f"env={env} is not a Gymnasium environment{_nearest(env, gymnasium.registry)}; an environment of "
            "your own is given as module:Id or package.module:factory"
        ) from error


def _import_module(module_name: str, path: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"{path!r}: no module named {error.name!r}; install it, or put its folder on PYTHONPATH"
        ) from error


def _termination_named(name: str) -> Termination:
    # `antmaze` is no rule itself: it makes one from a goal.
    known = [
        n for n, value in vars(rules).items() if isinstance(value, FunctionType) and n[0] != "_" and n != "antmaze"
    ]
    if ":" in name:
        found = import_object(name)
    elif name in known:
        found = getattr(rules, name)
    else:
        raise TaskError(
            f"no termination function is called {name!r}{_nearest(name, known)}; one of your own is given as "
            "package.module:function"
        )
    if not callable(found):
        raise TaskError(f"termination={name} is not callable; expected a function (obs, action, next_obs) -> bool")
    rule: Termination = found
    return rule


def _nearest(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f"; nearest: {', '.join(close)}" if close else ""
