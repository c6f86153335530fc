"""Why a run did well or badly: `mbrl diagnose RUN_DIR`.

A diagnosis is a function of a `Case`, everything that a run has left behind, and returns a `Finding`: numbers, tables
and a figure. A new one is such a function in `DIAGNOSES`. Nothing here changes the run.

Errors of next states are root mean squares over dimensions in units of the standard deviation of the data's one-step
changes, deviations of trajectories in those of the data's states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from mbrl import compose
from mbrl.checkpoint import load_latest
from mbrl.compose import ConfigError, Problem
from mbrl.data import refrigerator
from mbrl.diagnose_edge import edge_finding
from mbrl.diagnose_penalties import penalties
from mbrl.dynamics import quality
from mbrl.dynamics.ensemble import GaussianEnsemble, scaler
from mbrl.dynamics.oracle import Oracle
from mbrl.dynamics.store import CODE, fit_or_load, store_key
from mbrl.evaluate import EvaluationError
from mbrl.finding import COLOURS, Finding, quiet_table, tidy
from mbrl.learn import lipschitz
from mbrl.learn.sac import SAC
from mbrl.log import progress_bar
from mbrl.nets import generator, rand, randn
from mbrl.plots import save_figure
from mbrl.rollout.filters import Clip, FilterChain, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite, ScoredCandidates, draw_candidates
from mbrl.rollout.uncertainty import max_aleatoric, mixture_spread
from mbrl.run import (
    calibrate,
    newest_policy,
    rows_to_measure,
    saved_config,
    saved_model,
    saved_problem,
    show_score_fit,
    value_bound,
)
from mbrl.rundir import StopRequest, read_json, write_json
from mbrl.score import CODE as SCORE_CODE
from mbrl.score.baselines import ClosestToMean, LogLikelihood
from mbrl.score.quality import (
    candidate_errors,
    chosen,
    compare,
    order_checks,
    rank_correlation,
)
from mbrl.types import Corrector, Fittable, Metrics, Prediction, RunModel, Score, Selector, Transition

POLICY_STATES = 500
"""Imagined states per seed whose true next state is asked for."""

ROLLOUT = (5, 20)
"""Least and most steps of the imagined rollouts that end in them."""

TRAJECTORIES, TRAJECTORY_STEPS = 200, 20
"""Closed loops per seed, and their length."""

RESAMPLES = 300
"""Of a bootstrap interval."""


@dataclass(frozen=True)
class States:
    """States and actions with candidates for what comes next, and how wrong each candidate is."""

    name: str
    obs: Tensor  # (S, N, O)
    action: Tensor  # (S, N, A)
    truth: Tensor  # (S, N, O)
    prediction: Prediction  # of all members
    candidates: Tensor  # (S, K, N, O+1)
    errors: Tensor  # (S, K, N)


@dataclass
class Case:
    """What a run has left behind.

    Attributes:
        path: the run directory.
        problem: dataset and task.
        model: fitted, or the truth.
        imagination: as in training.
        scores: fitted ones by name; the run's own, or the first asked for, comes first, free baselines last.
        learner: the newest policy; None if there is none yet.
        oracle: the simulator; None where it cannot be set to a state.
        console: for progress.
    """

    path: Path
    problem: Problem
    model: RunModel
    imagination: Imagination
    scores: Mapping[str, Score]
    learner: SAC | None
    oracle: Oracle | None
    console: Console

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the run."""
        return self.model.seeds

    @property
    def ensemble(self) -> GaussianEnsemble:
        """The fitted model; of no use to diagnoses in `OF_ANY_MODEL`."""
        assert isinstance(self.model, GaussianEnsemble)
        return self.model

    @property
    def main(self) -> str:
        """The score that matters most."""
        return next(iter(self.scores))

    def sources(self, purpose: str) -> list[torch.Generator]:
        """One generator per seed."""
        return [generator(seed, "diagnose", purpose, device=self.model.device) for seed in self.seeds]

    @cached_property
    def closest(self) -> ClosestToMean:
        """The baseline of all scores; it also has the unit of errors, `scale` (S, 1, O)."""
        found = self.scores["closest_to_mean"]
        assert isinstance(found, ClosestToMean)
        return found

    @cached_property
    def filters(self) -> FilterChain:
        """What the world does to an imagined step: its range and its ends."""
        data = self.problem.dataset.transitions
        return FilterChain(clip=Clip(data), terminate=Terminate(self.problem.task.termination))

    @cached_property
    def states(self) -> list[States]:
        """Held-out rows and, with a policy and a simulator, imagined states that the policy reaches."""
        found = [self.held_out()]
        if self.learner is not None and self.oracle is not None:
            found.append(self.reached(self.learner, self.oracle))
        return found

    def held_out(self) -> States:
        """The rows that the model was not fitted on."""
        data = self.problem.dataset.transitions
        rows = self.ensemble.split(len(data.reward)).holdout.cpu()
        obs, action, truth = (x[rows].to(self.model.device) for x in (data.obs, data.action, data.next_obs))
        return self.with_candidates("held-out rows", obs, action, truth)

    @torch.no_grad()
    def reached(self, learner: SAC, oracle: Oracle) -> States:
        """Last states of model rollouts under the deterministic policy, of random length and without any selection.

        One state per rollout, so that they are independent; rollouts that have ended are left out.
        """
        data, sources = self.problem.dataset.transitions, self.sources("rollouts")
        count, (least, most) = POLICY_STATES, ROLLOUT
        pick = (rand((count,), sources, dtype=torch.float64) * len(data.obs)).long()
        length = (least + rand((count,), sources) * (most + 1 - least)).long()
        obs = data.obs[pick.cpu()].to(self.model.device)
        last, ended = obs.clone(), torch.zeros_like(length, dtype=torch.bool)
        alive = ~ended
        imagination = Imagination(self.model, _Deterministic(learner), RandomElite(), self.filters, most, count)
        for t in range(most):
            step = imagination.step(obs, alive, learner.sample, sources, t)
            ended |= ~step.alive & (t < length)
            last = torch.where(length.eq(t + 1).unsqueeze(-1), step.next_obs, last)
            obs, alive = step.next_obs, step.alive
        width = max(1, int((~ended).sum(-1).min()))
        order = ended.to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
        obs = last.gather(1, order.unsqueeze(-1).expand(-1, -1, last.shape[-1]))
        action = learner.act(obs)
        truth = torch.stack([self.true_next(oracle, o, a) for o, a in zip(obs, action, strict=True)])
        return self.with_candidates("states of the policy", obs, action, truth)

    def true_next(self, oracle: Oracle, obs: Tensor, action: Tensor) -> Tensor:
        """What the simulator says of obs (N, O) and action (N, A): (N, O)."""
        states, actions = oracle.states(obs.cpu().numpy()), action.cpu().numpy()
        parts = []
        with progress_bar(self.console, "asking the simulator", len(states)) as bar:
            for begin in range(0, len(states), 100):
                parts.append(oracle.step(states[begin : begin + 100], actions[begin : begin + 100]).next_obs)
                bar.update(len(parts[-1]))
        return torch.from_numpy(np.concatenate(parts)).to(obs)

    @torch.no_grad()
    def with_candidates(self, name: str, obs: Tensor, action: Tensor, truth: Tensor) -> States:
        """Draw two samples of every elite, and compare them with the truth."""
        model, sources = self.model, self.sources(name)
        prediction = model.predict(obs, action)
        shape = (2 * model.elite_count, obs.shape[1], obs.shape[2] + 1)
        candidates = draw_candidates(prediction, model.elites, randn(shape, sources))
        errors = candidate_errors(candidates, truth, self.closest.scale)
        return States(name, obs, action, truth, prediction, candidates, errors)

    @torch.no_grad()
    def rate(self, score: Score, states: States, candidates: Tensor) -> Tensor:
        """A score of candidates (S, K, N, O+1) at these states, some rows at a time: (S, K, N)."""
        parts = []
        for begin in range(0, states.obs.shape[1], 250):
            rows = slice(begin, begin + 250)
            said = Prediction(*(x[:, :, rows] for x in states.prediction))
            parts.append(
                score(states.obs[:, rows], states.action[:, rows], candidates[:, :, rows], said, self.model.elites)
            )
        return torch.cat(parts, -1)


class _Deterministic:
    """The policy's mean, as an action source."""

    lanes: int | None = None
    rows = 1

    def __init__(self, learner: SAC) -> None:
        self.learner = learner

    def noise_size(self, obs_dim: int, action_dim: int) -> int:
        return 0

    def __call__(self, obs: Tensor, policy: Any, model: Any, noise: Tensor) -> tuple[Tensor, Metrics]:
        return self.learner.act(obs), {}


# -- opening a run -----------------------------------------------------------------------------------------------------


def open_case(path: Path, further: Sequence[str], device: str, console: Console) -> Case:
    """Read a run, finished or not, and fit what further scores are asked for.

    Raises:
        FileNotFoundError: it is no run, or has no fitted model yet.
        ConfigError: there is no such score, or the dataset is another one now.
    """
    meta, cfg = read_json(path / "meta.json"), saved_config(path)
    cfg.device = device
    problem = saved_problem(path, cfg, meta)
    if not len(problem.dataset.transitions.reward):
        raise ConfigError(
            f"{path} is an online run that began without a dataset, and what is judged here is judged by a dataset's "
            f"held-out rows. Its real steps are datasets: `mbrl fit dataset={path}/experience/seed_N.hdf5`, and "
            "diagnose that"
        )
    where = compose.choose_device(device)
    model = saved_model(path, cfg, problem, meta["seeds"], where)
    learner = newest_policy(path, cfg, model)
    if not isinstance(model, GaussianEnsemble):
        if further:
            raise ConfigError(f"--score: {path} has the true simulator as its model, and scores judge a fitted one")
        imagination = compose.build_imagination(cfg, problem, model)
        return Case(path, problem, model, imagination, {}, learner, open_oracle(problem), console)
    data = problem.dataset.transitions
    closest = ClosestToMean(data.obs.shape[-1], data.action.shape[-1], model.seeds, device=where)
    closest.fit(data, model)
    scores: dict[str, Score] = {}
    own = compose.build_score(cfg, problem, model.seeds, where)
    if own is not None:
        name = compose.score_name(cfg)
        if isinstance(own, Fittable):
            state = load_latest(path / "score" / "model", map_location=where)
            if state is None:
                raise FileNotFoundError(f"{path} has no fitted score yet; wait for it, or finish it by `mbrl fit`")
            own.load_state_dict(state[1])
        scores[name] = own
    imagination = compose.build_imagination(cfg, problem, model, own)
    calibrate(imagination, model, problem)
    for name in further:
        if name not in scores:
            scores[name] = fit_score(compose.with_score(cfg, problem.task, name), problem, model, path, name, console)
    scores |= {"closest_to_mean": closest, "log_likelihood": LogLikelihood()}
    return Case(path, problem, model, imagination, scores, learner, open_oracle(problem), console)


def fit_score(
    cfg: DictConfig, problem: Problem, model: GaussianEnsemble, path: Path, name: str, console: Console
) -> Score:
    """A score that the run does not have, from the store or fitted now; Ctrl-C saves what is done."""
    score = compose.build_score(cfg, problem, model.seeds, model.device)
    assert score is not None
    if isinstance(score, Fittable):
        key = store_key(problem.dataset.hash, compose.score_settings(cfg), (*CODE, *SCORE_CODE))
        with StopRequest() as stop, progress_bar(console, f"fitting the score {name}", 1) as bar:
            fit_or_load(
                score,
                problem.dataset.transitions,
                model,
                key=key,
                root=Path(cfg.store).expanduser(),
                scratch=path / "diagnose" / "scores" / f"{name}-{key}",
                on_progress=lambda report: show_score_fit(bar, report),
                should_stop=lambda: stop.requested,
            )
    return score


def open_oracle(problem: Problem) -> Oracle | None:
    """The simulator of the run's environment; None if there is none, or it cannot be set to a state."""
    if problem.task.env is None:
        return None
    dataset = problem.dataset
    try:
        return Oracle(
            problem.task.env,
            problem.task.env_kwargs,
            action_low=dataset.action_low,
            action_high=dataset.action_high,
        )
    except EvaluationError:
        return None


def diagnose(path: Path, further: Sequence[str] = (), device: str = "cpu") -> Path:
    """Make all diagnoses of a run that apply to it; figures and `diagnose.json` go to `RUN_DIR/diagnose/`.

    Args:
        path: the run directory.
        further: options of `score=` to judge beside the run's own.
        device: where model and scores compute.

    Returns:
        The folder.
    """
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    case = open_case(path, further, device, console)
    folder = path / "diagnose"
    folder.mkdir(exist_ok=True)
    if case.learner is None:
        console.print("no policy yet: only held-out rows are looked at", style="yellow")
    elif not isinstance(case.model, GaussianEnsemble):
        console.print("the model is the true simulator: it has no error, and only the critics are looked at")
    elif case.oracle is None:
        console.print("no simulator that can be set to a state: only held-out rows show what is true", style="yellow")
    numbers: dict[str, Any] = {"seeds": list(case.seeds), "scores": list(case.scores)}
    for diagnosis in DIAGNOSES if isinstance(case.model, GaussianEnsemble) else OF_ANY_MODEL:
        finding = diagnosis(case)
        if finding is None:
            continue
        numbers[diagnosis.__name__] = finding.numbers
        for table in finding.tables:
            console.print(table)
        for name, figure in finding.figures.items():
            console.print(f"figure: {save_figure(figure, folder / f'{name}.png')}", markup=False)
        write_json(folder / "diagnose.json", numbers)
    return folder


# -- diagnoses ---------------------------------------------------------------------------------------------------------


def dynamics(case: Case) -> Finding:
    """How well the model predicts rows that it was not fitted on."""
    dataset = case.problem.dataset
    rows = dataset.transitions
    holdout = case.ensemble.split(len(rows.reward)).holdout
    found = quality.measure(
        case.model.elite_view(), rows, dataset.episode_end, holdout, case.sources("dynamics quality")
    )
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    dimension = np.arange(found.rmse.shape[-1])
    for s, seed in enumerate(case.seeds):
        left.plot(dimension, found.rmse[s].cpu(), "o", color=COLOURS[s % len(COLOURS)], markersize=4)
        right.plot(quality.STEPS, found.open_loop[s].cpu(), "o-", color=COLOURS[s % len(COLOURS)], label=f"seed {seed}")
    left.set_xticks(dimension, quality.dimension_names(len(dimension)), rotation=60, fontsize=7)
    left.set_ylabel("one-step error / std of the change")
    left.set_ylim(bottom=0)
    right.set_xlabel("logged actions replayed")
    right.set_ylabel("error / std of the state")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, frameon=False)
    return Finding(
        quality.as_json(found, case.seeds),
        [quality.summary_table(found), quality.dimension_table(found)],
        {"dynamics": tidy(figure)},
    )


def ranking(case: Case) -> Finding:
    """Whether each score takes better candidates than chance, and than the one closest to the mean."""
    numbers: dict[str, Any] = {}
    tables = []
    figure = Figure(figsize=(4.2 * len(case.states), 3.8), layout="constrained")
    for i, states in enumerate(case.states):
        baseline = case.rate(case.closest, states, states.candidates)
        values = {name: case.rate(score, states, states.candidates) for name, score in case.scores.items()}
        values["random"] = rand(tuple(states.errors.shape[1:]), case.sources(f"random {states.name}"))
        values["perfect"] = -states.errors
        table = quiet_table(f"choosing among {states.errors.shape[1]} candidates: {states.name}")
        for heading in ("score", "ratio", "pn", "within", "across", "difference to closest to mean, 95 %"):
            table.add_column(heading, justify="left" if heading == "score" else "right")
        numbers[states.name] = rows = {}
        for name, found in compare(values, baseline, states.errors, case.seeds).items():
            rows[name] = {key: number.tolist() for key, number in found.items()}
            mean = {key: float(number.mean()) for key, number in found.items()}
            table.add_row(
                name,
                *(f"{mean[key]:.3f}" for key in ("ratio", "pn", "within", "across")),
                "" if name == "closest_to_mean" else f"{mean['low']:+.3f} to {mean['high']:+.3f}",
            )
        tables.append(table)
        axes = figure.add_subplot(1, len(case.states), i + 1)
        ratio, pn = (np.array([np.mean(rows[name][key]) for name in rows]) for key in ("ratio", "pn"))
        place = np.arange(len(rows))
        axes.plot(ratio, place, "o", color=COLOURS[0], label="ratio of the means")
        axes.plot(pn, place, "x", color=COLOURS[1], label="mean of the ratios")
        axes.axvline(1.0, color="#666666", linewidth=0.8, linestyle="--")
        axes.set_yticks(place, list(rows), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("error of the chosen / error of all")
        axes.set_title(states.name, fontsize=10)
        axes.legend(fontsize=7, frameon=False)
    return Finding(numbers, tables, {"ranking": tidy(figure)})


def order(case: Case) -> Finding:
    """Whether each score falls from truth to model, to noise, to nonsense. Passing says nothing about ranking."""
    numbers = {}
    table = quiet_table("order of the score on held-out rows: share of rows in which it is right")
    names = ("data>model", "model>noisy", "noisy>shuffled")
    further = case.states[1:]
    for heading in ("score", *names, *(f"truth>model, {states.name}" for states in further)):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, score in case.scores.items():
        found = {
            key: value.tolist()
            for key, value in order_checks(score, case.ensemble, case.problem.dataset.transitions).items()
        }
        for states in further:
            truth = torch.cat([states.truth, states.candidates[:, 0, :, -1:]], -1)
            pair = torch.stack([truth, states.candidates[:, 0]], 1)
            value = case.rate(score, states, pair)
            found[f"truth>model, {states.name}"] = (value[:, 0] > value[:, 1]).float().mean(-1).tolist()
        numbers[name] = found
        table.add_row(name, *(f"{np.mean(found[str(column.header)]):.3f}" for column in table.columns[1:]))
    return Finding(numbers, [table])


def truncation(case: Case) -> Finding:
    """What a cut leaves: the error of the kept states against their share, for the score and for the free signals.

    The error is that of the candidate which the main score takes.
    """
    numbers: dict[str, Any] = {}
    table = quiet_table(f"cutting doubtful states; errors of the candidates that {case.main} takes")
    for heading in ("states", "signal", "Spearman with -log error", "error of the best 80 %", "of the best 95 %"):
        table.add_column(heading, justify="left" if heading in ("states", "signal") else "right")
    figure = Figure(figsize=(4.6 * len(case.states), 3.6), layout="constrained")
    grid = np.linspace(0.05, 1.0, 96)
    for i, states in enumerate(case.states):
        values = case.rate(case.scores[case.main], states, states.candidates)
        error = chosen(values, states.errors)
        doubts = {
            f"score {case.main}": -values.amax(-2),
            "max_std": max_aleatoric(states.prediction),
            "candidate_spread": mixture_spread(states.prediction, case.closest.scale),
            "perfect": error,
        }
        axes = figure.add_subplot(1, len(case.states), i + 1)
        numbers[states.name] = {"share": grid.tolist()}
        for colour, (name, doubt) in zip(COLOURS, doubts.items(), strict=False):
            curve = kept_error(doubt, error, grid)
            spearman = rank_correlation(-doubt, -error)
            numbers[states.name][name] = {"spearman": spearman.tolist(), "kept_error": curve.tolist()}
            mean = curve.mean(0)
            axes.plot(grid, mean, color=colour, label=name, linewidth=1.6)
            at = [float(np.interp(share, grid, mean)) for share in (0.8, 0.95)]
            table.add_row(states.name, name, f"{float(spearman.mean()):.3f}", *(f"{value:.3f}" for value in at))
        axes.axhline(1.0, color="#666666", linewidth=0.8, linestyle="--")
        axes.set_xlabel("share of states kept")
        axes.set_ylabel("their error / all states' error")
        axes.set_ylim(bottom=0)
        axes.set_title(states.name, fontsize=10)
        axes.legend(fontsize=7, frameon=False)
    return Finding(numbers, [table], {"truncation": tidy(figure)})


def kept_error(doubt: Tensor, error: Tensor, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean error of the least doubtful states over the mean error of all.

    Args:
        doubt: (S, N).
        error: (S, N).
        shares: (P,) of the states that are kept.

    Returns:
        (S, P).
    """
    sorted_error = error.gather(-1, doubt.argsort(-1))
    count = torch.arange(1, error.shape[-1] + 1, device=error.device)
    curve = sorted_error.cumsum(-1) / count / error.mean(-1, keepdim=True)
    index = np.clip(np.ceil(shares * error.shape[-1]).astype(int) - 1, 0, None)
    picked: npt.NDArray[np.float64] = curve.cpu().numpy()[:, index].astype(np.float64)
    return picked


def deviation(case: Case) -> Finding | None:
    """How far imagined trajectories of the policy leave the true ones, for every way to choose the next state."""
    if case.learner is None or case.oracle is None:
        return None
    data, learner, oracle = case.problem.dataset.transitions, case.learner, case.oracle
    sources = case.sources("trajectories")
    holdout = case.ensemble.split(len(data.reward)).holdout.cpu()
    pick = (rand((TRAJECTORIES,), sources, dtype=torch.float64) * holdout.shape[-1]).long().cpu()
    starts = data.obs[holdout.gather(-1, pick)].to(case.model.device)  # (S, N, O)
    truth, known = true_trajectories(case, learner, oracle, starts)
    scale = scaler(data.obs)[1].to(starts)
    curves: dict[str, npt.NDArray[np.float64]] = {}
    for name, selector in selectors(case).items():
        imagined = closed_loop(case, selector, learner, starts)
        off = ((imagined - truth) / scale).square().mean(-1).sqrt()  # (T, S, N)
        curves[name] = torch.where(known, off, torch.nan).flatten(1).double().cpu().numpy()
    table = quiet_table(
        f"deviation from the true closed loop, in stds of the state; {TRAJECTORIES} starts a seed, 95 % intervals"
    )
    marks = [t for t in (1, 5, 10, 20) if t <= TRAJECTORY_STEPS]
    for heading in ("next state", *(f"after {t}" for t in marks)):
        table.add_column(heading, justify="left" if heading == "next state" else "right")
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    numbers: dict[str, Any] = {"steps": list(range(1, TRAJECTORY_STEPS + 1))}
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        mean, low, high = bootstrap_mean(curve)
        numbers[name] = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
        steps = np.arange(1, len(mean) + 1)
        axes.plot(steps, mean, color=colour, label=name)
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        table.add_row(name, *(f"{mean[t - 1]:.3f} [{low[t - 1]:.3f}, {high[t - 1]:.3f}]" for t in marks))
    axes.set_xlabel("imagined steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("distance to the true state / std of the state")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return Finding(numbers, [table], {"deviation": tidy(figure)})


def selectors(case: Case) -> dict[str, Selector]:
    """Ways to choose the next state, by name."""
    elites, main = case.model.elite_count, case.scores[case.main]
    found: dict[str, Selector] = {
        "a sample of an elite": RandomElite(),
        "the elites' mean": ScoredCandidates(case.closest, elites, pick="mean"),
    }
    for name, score in case.scores.items():
        found[f"best by {name}"] = ScoredCandidates(score, elites)
    if isinstance(main, Corrector):
        found[f"mean corrected by {case.main}"] = ScoredCandidates(main, elites, pick="corrected_mean")
    return found


@torch.no_grad()
def closed_loop(case: Case, selector: Selector, learner: SAC, starts: Tensor) -> Tensor:
    """The deterministic policy in the model from starts (S, N, O): states after 1, 2, ... steps (T, S, N, O)."""
    sources = case.sources("closed loop")  # the same noise for all ways to choose, as far as they need the same
    imagination = Imagination(
        case.model, _Deterministic(learner), selector, FilterChain(clip=Clip(case.problem.dataset.transitions)),
        TRAJECTORY_STEPS, TRAJECTORIES,
    )  # fmt: skip
    obs, alive, reached = starts, torch.ones(starts.shape[:-1], dtype=torch.bool, device=starts.device), []
    for t in range(TRAJECTORY_STEPS):
        obs = imagination.step(obs, alive, learner.sample, sources, t).next_obs
        reached.append(obs)
    return torch.stack(reached)


def true_trajectories(case: Case, learner: SAC, oracle: Oracle, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The deterministic policy in the simulator from starts (S, N, O).

    Returns:
        States after 1, 2, ... steps (T, S, N, O), and (T, S, N) bool: the episode had not ended before.
    """
    seeds, lanes, width = starts.shape
    states, obs = oracle.states(starts.reshape(-1, width).cpu().numpy()), starts
    alive = torch.ones(seeds, lanes, dtype=torch.bool, device=starts.device)
    reached, known = [], []
    with progress_bar(case.console, "true trajectories", TRAJECTORY_STEPS) as bar:
        for _ in range(TRAJECTORY_STEPS):
            action = learner.act(obs).reshape(seeds * lanes, -1).cpu().numpy()
            done = oracle.step(states, action)
            states, obs = done.states, torch.from_numpy(done.next_obs).to(starts).view(seeds, lanes, width)
            reached.append(obs)
            known.append(alive)
            alive = alive & ~torch.from_numpy(done.terminated).to(alive.device).view(seeds, lanes)
            bar.update(1)
    return torch.stack(reached), torch.stack(known)


def bootstrap_mean(curve: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Mean over lanes of curve (T, N), NaN left out, with a 95 % interval of resampled lanes: three times (T,).

    NaN where no lane is left: all policies have fallen before.
    """
    source = np.random.default_rng(0)
    picks = source.integers(curve.shape[1], size=(RESAMPLES, curve.shape[1]))
    known = np.isfinite(curve)
    values = np.where(known, curve, 0.0)
    sums = np.stack([values[:, pick].sum(1) for pick in picks])  # (RESAMPLES, T)
    counts = np.stack([known[:, pick].sum(1) for pick in picks])
    low, high = np.quantile(sums / np.maximum(counts, 1), (0.025, 0.975), axis=0)
    left = known.sum(1)
    mean = values.sum(1) / np.maximum(left, 1)
    return tuple(np.where(left > 0, number, np.nan) for number in (mean, low, high))


def edge(case: Case) -> Finding | None:
    """Whether critics disagree where lanes end, what share of targets asks there, and Q against the model's returns."""
    if case.learner is None:
        return None
    data, bound = case.problem.dataset.transitions, value_bound(case.learner, case.problem)
    temperatures = case.learner.log_temperature.exp().tolist()
    return edge_finding(
        case.imagination, case.learner, data.obs.to(case.model.device), data.reward,
        [bound.at(0, temperature) for temperature in temperatures],
    )  # fmt: skip


def flatness(case: Case) -> Finding | None:
    """How steep the critics are in the observation, and how much of the model's error the value sees."""
    if case.learner is None:
        return None
    device = case.model.device
    rows = Transition(*(x.to(device) for x in rows_to_measure(case.problem, case.model)))
    model = case.model.elite_view() if isinstance(case.model, GaussianEnsemble) else None
    std = compose.observation_std(case.problem).to(device)
    found = lipschitz.measure(case.learner, rows, std, case.sources("lipschitz"), model)
    table = quiet_table("How steep Q is, in value per std of the observation, and what it sees of the model's error")
    for heading in ("", *(f"seed {seed}" for seed in case.seeds)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), *(f"{number:.3g}" for number in value.tolist()))
    return Finding({name: value.tolist() for name, value in found.items()}, [table])


# -- the refrigerator --------------------------------------------------------------------------------------------------


def error_map(case: Case) -> Finding | None:
    """Of the built-in refrigerator: error of the expected next temperature over all temperatures and powers.

    For the plain ensemble, and filtered by the main score among 10 candidates, 100, and a uniform grid of temperatures;
    and the mean error of 50-step rollouts under policies that the data hold nothing of.
    """
    if case.problem.task.family != "refrigerator":
        return None
    temperature, power = np.linspace(-15.0, 25.0, 81), np.linspace(0.0, 1.0, 41)
    mesh_t, mesh_u = np.meshgrid(temperature, power, indexing="ij")
    truth = refrigerator.refrigerator_step(mesh_t, mesh_u)
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    upper, lower = halves
    ways = refrigerator_ways(case)
    # The expectation of the plain ensemble needs no draws.
    in_map = ways | {"plain ensemble": refrigerator_way(case, ScoredCandidates(case.closest, 1, pick="mean"))}
    maps = {name: expected_next(case, way, mesh_t, mesh_u) for name, way in in_map.items()}
    data = case.problem.dataset.transitions
    numbers: dict[str, Any] = {"map": {}, "rollouts": {}}
    bound = (data.obs.min().item(), data.obs.max().item())
    outside = (mesh_t < bound[0]) | (mesh_t > bound[1])
    panels = upper.subplots(1, len(maps), sharey=True)
    for axes, (name, found) in zip(panels, maps.items(), strict=True):
        error = np.abs(found - truth).mean(0)
        numbers["map"][name] = {"inside": float(error[~outside].mean()), "outside": float(error[outside].mean())}
        image = axes.pcolormesh(temperature, power, np.log10(error.T + 1e-3), vmin=-2.5, vmax=1.0, cmap="magma")
        pick = slice(None, None, 10)
        axes.plot(data.obs[pick, 0], (data.action[pick, 0] + 1) / 2, ".", color="white", markersize=1.5, alpha=0.6)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("temperature T")
    panels[0].set_ylabel("power u")
    upper.colorbar(image, ax=panels, label="log10 |E[T'] - f(T, u)|")
    axes = lower.subplots(1, 1)
    policies = list(refrigerator.UNSEEN)
    for i, (colour, (name, way)) in enumerate(zip(COLOURS, ways.items(), strict=False)):
        errors = [rollout_error(case, way, policy) for policy in refrigerator.UNSEEN.values()]
        numbers["rollouts"][name] = dict(zip(policies, errors, strict=True))
        axes.bar(np.arange(len(policies)) + 0.2 * (i - 1.5), errors, 0.18, color=colour, label=name)
    axes.set_xticks(np.arange(len(policies)), policies)
    axes.set_yscale("log")
    axes.set_ylabel("mean |T - true T| over 50 steps")
    axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"score {case.main}; white: data")
    table = quiet_table(
        f"refrigerator, score {case.main}: mean error of the expected next temperature, and of rollouts"
    )
    for heading in ("next state", "inside the data's range", "outside", *policies):
        table.add_column(heading, justify="left" if heading == "next state" else "right")
    for name in ways:
        found, rolled = numbers["map"][name], numbers["rollouts"][name]
        table.add_row(name, *(f"{value:.3f}" for value in (found["inside"], found["outside"], *rolled.values())))
    return Finding(numbers, [table], {"error_map": tidy(figure)})


Way = Callable[[Tensor, Tensor, int], Tensor]
"""obs (S, N, 1), action (S, N, 1), a number that makes the noise -> next obs (S, N, 1)."""


def refrigerator_way(case: Case, selector: Selector) -> Way:
    """Ask the model, and let the selector choose."""
    model = case.model

    def way(obs: Tensor, action: Tensor, draw: int) -> Tensor:
        sources = [generator(seed, "diagnose", "map", draw, device=model.device) for seed in case.seeds]
        lanes = obs.shape[1]
        noise, uniform = randn((lanes, selector.noise_size(2)), sources), rand((lanes,), sources)
        return selector(obs, action, model.predict(obs, action), model.elites, noise, uniform)[0]

    return way


def refrigerator_ways(case: Case) -> dict[str, Way]:
    """The plain ensemble and three sets of candidates that the main score chooses from."""
    model, score = case.model, case.scores[case.main]

    def from_grid(obs: Tensor, action: Tensor, draw: int) -> Tensor:
        grid = torch.linspace(-15.0, 25.0, 401, device=model.device)
        candidates = torch.zeros(obs.shape[0], len(grid), obs.shape[1], 2, device=model.device)
        candidates[..., 0] = grid.view(-1, 1)
        values = score(obs, action, candidates, model.predict(obs, action), model.elites)
        return grid[values.argmax(-2)].unsqueeze(-1)

    elites = model.elite_count
    return {
        "plain ensemble": refrigerator_way(case, RandomElite()),
        f"best of {2 * elites}": refrigerator_way(case, ScoredCandidates(score, elites, resample=2)),
        f"best of {20 * elites}": refrigerator_way(case, ScoredCandidates(score, elites, resample=20)),
        "best of a uniform grid": from_grid,
    }


@torch.no_grad()
def expected_next(
    case: Case, way: Way, temperature: npt.NDArray[np.float64], power: npt.NDArray[np.float64], draws: int = 16
) -> npt.NDArray[np.float64]:
    """Mean next temperature over draws, at `temperature` and `power` of any shape: (S, *shape)."""
    obs, action = case_tensors(case, temperature.ravel(), power.ravel())
    total = torch.zeros_like(obs[..., 0])
    for draw in range(draws):
        for begin in range(0, obs.shape[1], 500):
            rows = slice(begin, begin + 500)
            total[:, rows] += way(obs[:, rows], action[:, rows], draw)[..., 0] / draws
    found: npt.NDArray[np.float64] = total.double().cpu().numpy().reshape(-1, *temperature.shape)
    return found


@torch.no_grad()
def rollout_error(
    case: Case, way: Way, policy: Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> float:
    """Mean distance of imagined to true temperatures over 50 steps from the data's starting range, each in its loop."""
    source = np.random.default_rng(0)
    lanes = 64
    true = source.uniform(*refrigerator.START, lanes)
    imagined = np.repeat(true[None], len(case.seeds), 0)
    total = 0.0
    for t in range(refrigerator.HORIZON):
        noise = source.uniform(0.0, 1.0, lanes)
        true = refrigerator.refrigerator_step(true, policy(true, noise))
        power = policy(imagined, np.broadcast_to(noise, imagined.shape))
        obs, action = case_tensors(case, imagined, power)
        imagined = way(obs, action, 1000 + t)[..., 0].double().cpu().numpy().clip(-1000.0, 1000.0)
        total += float(np.abs(imagined - true).mean())
    return total / refrigerator.HORIZON


def case_tensors(
    case: Case, temperature: npt.NDArray[np.float64], power: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Temperatures and powers (N,) or (S, N) as observations and actions (S, N, 1)."""
    shape = (len(case.seeds), temperature.shape[-1], 1)

    def tensor(values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float().to(case.model.device).unsqueeze(-1).expand(shape)

    return tensor(temperature), tensor(2.0 * power - 1.0)


DIAGNOSES: tuple[Callable[[Case], Finding | None], ...] = (
    dynamics, ranking, order, truncation, penalties, deviation, edge, flatness, error_map
)  # fmt: skip
"""In the order of their display."""

OF_ANY_MODEL: tuple[Callable[[Case], Finding | None], ...] = (edge, flatness)
"""Those that have something to say where the model is the true simulator: it has no error to measure."""
