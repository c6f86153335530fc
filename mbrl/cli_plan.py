"""`mbrl eval RUN_DIR --planner NAME`: planning with the model of a run, in its environment, beside its policy."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from mbrl import compose
from mbrl.compose import ConfigError, Problem
from mbrl.dynamics.oracle import OracleModel
from mbrl.evaluate import Evaluation
from mbrl.learn.sac import SAC
from mbrl.log import progress_bar
from mbrl.plan.objective import ModelReturns, Propagation, critics_value
from mbrl.plan.planners import CEM, ICEM, MPPI
from mbrl.plan.policy import PlanningPolicy
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.uncertainty import ensemble_std
from mbrl.run import calibrate, newest_policy, open_evaluator, saved_config, saved_model, saved_problem
from mbrl.rundir import read_json
from mbrl.types import Planner, RunModel

PLANNERS = {"cem": CEM, "icem": ICEM, "mppi": MPPI}
SIZES = {"cem": (128, 3), "icem": (128, 3), "mppi": (384, 1)}
"""Population and iterations that a CPU can bear: about the same number of sequences each, a fifth of PETS'."""

HORIZON, HORIZON_WITH_VALUE = 30, 15
"""Steps planned ahead: a value at the end stands for those that are left out."""

EPISODES = 3

NEEDS_PLANNER = (
    "plan_horizon", "population", "iterations", "particles", "propagation", "bootstrap", "penalty", "discount", "device"
)  # fmt: skip


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What `mbrl eval` takes beside its own."""
    group = parser.add_argument_group(
        "planning",
        "search for the best actions under the run's dynamics model at every step, in place of the policy. Also for "
        "runs of `mbrl fit`, which have no policy, and with dynamics=oracle under the truth",
    )
    group.add_argument("--planner", choices=list(PLANNERS), help="how to search; without it the policy is scored")
    group.add_argument(
        "--plan-horizon",
        type=_at_least_one,
        metavar="H",
        help=f"steps ahead (default {HORIZON}; with --bootstrap {HORIZON_WITH_VALUE})",
    )
    group.add_argument(
        "--population", type=_at_least_one, metavar="N", help="sequences an iteration (default 128; mppi 384)"
    )
    group.add_argument("--iterations", type=_at_least_one, metavar="N", help="refinements a step (default 3; mppi 1)")
    group.add_argument(
        "--particles", type=_at_least_one, metavar="N", help="imagined rollouts a sequence (default: one an elite)"
    )
    group.add_argument(
        "--propagation",
        choices=["random_model", "fixed_model", "expectation"],
        help="a particle is led by another elite at every step (default), by one elite, or by the mean of all",
    )
    group.add_argument(
        "--bootstrap", action="store_true", help="add the critics' value where a plan ends (default: plan only)"
    )
    group.add_argument(
        "--penalty", type=float, metavar="C", help="take C times the model's doubt off every reward (default 0)"
    )
    group.add_argument(
        "--discount", type=float, metavar="G", help="of rewards ahead (default 1; with --bootstrap the learner's)"
    )
    group.add_argument("--device", help="where model and planner compute (default cpu)")


def refuse_without_planner(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """End with a usage error if something is said to a planner that is not there."""
    for name in NEEDS_PLANNER:
        if getattr(parsed, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')} needs --planner")


def plan_eval(parsed: argparse.Namespace) -> int:
    """Play, and print what it returned; the exit status."""
    path: Path = parsed.run_dir
    console = Console(soft_wrap=True, highlight=False)
    meta, cfg = read_json(path / "meta.json"), saved_config(path)
    device = compose.choose_device(parsed.device or "cpu")
    cfg.device = str(device)
    problem = saved_problem(path, cfg, meta)
    data, dataset = problem.dataset.transitions, problem.dataset
    shapes = {
        "obs_dim": data.obs.shape[-1],
        "action_dim": data.action.shape[-1],
        "seeds": meta["seeds"],
        "action_low": dataset.action_low,
        "action_high": dataset.action_high,
    }
    episodes = parsed.episodes or EPISODES
    evaluator = open_evaluator(path, problem.task, shapes, parsed.env, episodes=episodes, device=device)
    if parsed.video:
        evaluator.check_video(parsed.video)
    model = saved_model(path, cfg, problem, meta["seeds"], device)
    learner = newest_policy(path, cfg, model)
    planner, returns = search(parsed, path, cfg, problem, model, learner)
    horizon = evaluator.spec.horizon
    console.print(describe(parsed.planner, planner, returns, model, parsed.bootstrap), markup=False)
    with progress_bar(console, "planning", horizon) as bar:
        policy = PlanningPolicy(
            planner,
            returns,
            action_dim=model.action_dim,
            seeds=model.seeds,
            lanes=episodes,
            evaluation=parsed.evaluation,
            device=device,
            on_step=lambda: bar.update(1),
        )
        # A film is one of the very episodes that are scored: planning twice would cost as much again.
        if parsed.video:
            done = evaluator.record_video(policy, parsed.video, evaluation=parsed.evaluation)
        else:
            done = evaluator(policy, parsed.evaluation)
    own = None if learner is None else evaluator(learner.act, parsed.evaluation)
    evaluator.close()
    if isinstance(model, OracleModel):
        model.close()
    report(console, parsed.planner, meta, evaluator.env, done, own)
    if parsed.video:
        console.print(f"video: {parsed.video}", markup=False)
    return 0


def search(
    parsed: argparse.Namespace, path: Path, cfg: DictConfig, problem: Problem, model: RunModel, learner: SAC | None
) -> tuple[Planner, ModelReturns]:
    """The planner, and what it maximises.

    Raises:
        ConfigError: a value is asked for and there is no policy, or a penalty and there is no doubt.
    """
    if parsed.bootstrap and learner is None:
        raise ConfigError(
            f"--bootstrap: {path} has no policy, whose critics would say what comes after the plan; leave it out, or "
            "train with `mbrl train`"
        )
    population, iterations = SIZES[parsed.planner]
    planner: Planner = PLANNERS[parsed.planner](
        horizon=parsed.plan_horizon or (HORIZON_WITH_VALUE if parsed.bootstrap else HORIZON),
        population=parsed.population or population,
        iterations=parsed.iterations or iterations,
    )
    discount = parsed.discount
    if discount is None:
        discount = learner.discount if parsed.bootstrap and learner is not None else 1.0
    view = model.elite_view()
    certain = isinstance(model, OracleModel)
    propagation: Propagation = parsed.propagation or ("expectation" if certain else "random_model")
    returns = ModelReturns(
        view,
        world(cfg, problem, model, parsed.penalty or 0.0),
        simulator=view,
        propagation=propagation,
        particles=parsed.particles or model.elite_count,
        discount=discount,
        bootstrap=critics_value(learner) if parsed.bootstrap and learner is not None else None,
        chunk=5120 if model.device.type == "cpu" and not certain else 1 << 20,
    )
    calibrate(returns.imagination, model, problem)
    return planner, returns


def world(cfg: DictConfig, problem: Problem, model: RunModel, penalty: float) -> FilterChain:
    """What becomes of a planned step: the data's range, the task's end, and a penalty if there is to be one."""
    data = problem.dataset.transitions
    clip = penalise = None
    if cfg.rollout.clip is not None and not isinstance(model, OracleModel):
        clip = Clip(
            data._replace(obs=data.obs.to(model.device), next_obs=data.next_obs.to(model.device)), **cfg.rollout.clip
        )
    if penalty:
        if isinstance(model, OracleModel):
            raise ConfigError("--penalty: this run's model is the true simulator, which has no doubt; leave it out")
        own = instantiate(cfg.rollout.penalise) if cfg.rollout.penalise else Penalise(ensemble_std, penalty)
        penalise = Penalise(own.uncertainty, penalty, own.scale)
        if model.elite_count == 1 and penalise.needs_members:
            raise ConfigError(f"--penalty: {penalise.name} measures how elites disagree, and this run's model has one")
    return FilterChain(clip=clip, terminate=Terminate(problem.task.termination), penalise=penalise)


def describe(name: str, planner: Planner, returns: ModelReturns, model: RunModel, bootstrap: bool) -> str:
    """What is about to be done, in a line."""
    numbers: Any = planner
    rollouts = "one rollout" if returns.particles == 1 else f"{returns.particles} rollouts"
    end = "the critics' value at the end" if bootstrap else "plan only"
    believed = "the true simulator" if isinstance(model, OracleModel) else f"a model of {model.elite_count} elites"
    return (
        f"{name}: {numbers.iterations} x {numbers.population} sequences of {planner.horizon} steps, {rollouts} each "
        f"({returns.propagation}) under {believed}, {end}"
    )


def report(
    console: Console, name: str, meta: dict[str, Any], env: str, done: Evaluation, own: Evaluation | None
) -> None:
    """Mean and standard error of the planner, of the policy, and of their difference on the same starts."""
    for i, seed in enumerate(meta["seeds"]):
        line = f"seed {seed}: {name} {spread(done.returns[i])}, length {done.lengths[i].mean():.1f}"
        if own is not None:
            line += f"; policy {spread(own.returns[i])}, length {own.lengths[i].mean():.1f}"
        console.print(line, markup=False)
    line = f"{name} returns {spread(done.returns)} over {done.returns.size} episodes in {env}"
    if own is not None:
        line += f"; the policy {spread(own.returns)}; {name} minus policy {spread(done.returns - own.returns)}"
    behaviour = meta.get("behaviour_return_mean")
    if behaviour is not None:
        line += f"; the dataset's mean is {behaviour:.2f}"
    console.print(line, style="bold", markup=False)


def spread(values: npt.NDArray[np.float64]) -> str:
    """Mean and standard error over all entries; no error of a single one."""
    if values.size == 1:
        return f"{values.item():.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / math.sqrt(values.size):.2f}"


def _at_least_one(word: str) -> int:
    """An argument that counts something."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number of 1 or more")
    return int(word)
