"""From folders to runs: what each run directory says of itself, and what its method is called beside the others."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from omegaconf import OmegaConf

from mbrl.log import read_metrics
from mbrl.rundir import FloatArray, RunDirectory, held, read_json

NO_PART_OF_A_METHOD = frozenset(
    (
        "algo", "filter", "task", "dataset", "env", "horizon", "seed", "seeds", "loop", "device", "threads", "compile",
        "store", "fit_gate", "logger", "progress", "log_every", "checkpoint_seconds", "run_dir", "resume",
        "eval.background", "lipschitz.measure",
    )
)  # fmt: skip
"""Keys of the configuration by which two runs of one method may differ; algorithm and filters are named in any case."""


@dataclass(frozen=True)
class Run:
    """A run as it was found; nothing is left out.

    Attributes:
        path: its directory.
        meta: `meta.json`; empty if it cannot be read.
        status: as in `meta.json`, or `unreadable`.
        not_counted: why it enters no table; empty if it does.
        way_on: what to do about that; empty if there is nothing to do.
        warnings: what a reader of its numbers must know.
        smoke: what a file SMOKE beside or above it says; empty without one.
        seeds: (S), in the order of the arrays.
        updates: (K), when it was evaluated.
        returns: (K, S, episodes), raw.
        scores: as `returns`, normalised; None without reference returns.
        estimate: the model's own last estimate of the return, of a run without an environment.
        algo: what `algo=` chose.
        filters: what `filter=` chose.
        given: keys that the command line set, but for those of `NO_PART_OF_A_METHOD`.
        groups: what the command line or the defaults chose of every group.
        composed: the configuration as composed, interpolations as text.
        saved: the configuration as it was last run with.
    """

    path: Path
    meta: Mapping[str, Any]
    status: str
    not_counted: str = ""
    way_on: str = ""
    warnings: tuple[str, ...] = ()
    smoke: str = ""
    seeds: tuple[int, ...] = ()
    updates: tuple[int, ...] = ()
    returns: FloatArray = field(default_factory=lambda: np.empty((0, 0, 0)))
    scores: FloatArray | None = None
    estimate: float | None = None
    algo: str = "unknown"
    filters: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    composed: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it enters the tables."""
        return not self.not_counted

    @property
    def online(self) -> Mapping[str, Any] | None:
        """The plan of real steps; None for an offline run."""
        plan: Mapping[str, Any] | None = self.meta.get("online")
        return plan

    @property
    def label(self) -> str:
        """Dataset and environment version."""
        return str(self.meta.get("label") or self.meta.get("task") or self.meta.get("dataset") or "unknown task")


def collect(paths: Sequence[Path]) -> list[Run]:
    """Every run in or below `paths`, once, in the order of its path.

    Raises:
        FileNotFoundError: a path does not exist, or holds no run.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is no folder: give run directories, or folders that hold some")
        below = list(_run_folders(path))
        if not below:
            raise FileNotFoundError(f"{path} holds no run: no folder in it has a meta.json")
        for folder in below:
            found.setdefault(folder.resolve(), (path, folder))
    return [replace(read_run(folder), smoke=_smoke(path, folder)) for _, (path, folder) in sorted(found.items())]


def _smoke(path: Path, folder: Path) -> str:
    """What the nearest file SMOKE says: in a run's folder, its parent, or further up to the path that was given."""
    above = [parent for parent in folder.parents if parent.is_relative_to(path)]
    for place in (folder, folder.parent, *above):
        if (place / "SMOKE").is_file():
            said = (place / "SMOKE").read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
            return said or f"{place / 'SMOKE'}: a smoke, whose numbers mean nothing"
    return ""


def _run_folders(path: Path) -> Iterator[Path]:
    """Folders that hold a run, or what Hydra wrote for one that has not begun; links are followed, each folder once."""
    visited = set()
    for folder, below, files in os.walk(path, followlinks=True):
        if Path(folder).resolve() in visited:
            below.clear()
            continue
        visited.add(Path(folder).resolve())
        if "meta.json" in files or ".hydra" in below:
            yield Path(folder)
            below.clear()
        below.sort()


def read_run(path: Path) -> Run:
    """A run, whatever its state; what cannot be read is said in `not_counted`."""
    if not (path / "meta.json").exists():
        return Run(
            path,
            {},
            "unreadable",
            "it has no meta.json: it is being prepared, or ended before it began",
            "if no process works on it, start it anew",
            **_configuration(path, {}),
        )
    try:
        meta = read_json(path / "meta.json")
    except (OSError, ValueError) as error:
        return Run(path, {}, "unreadable", str(error), "put the file back from a copy, or start the run anew")
    about = _configuration(path, meta)
    try:
        run = RunDirectory.open(path)
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as error:
        reason = str(error) if str(path) in str(error) else f"{path}: {error}"
        return Run(path, meta, "unreadable", reason, _resume(path), **about)
    if fault := _reference_fault(meta.get("reference")):
        reason = f"{path / 'meta.json'}: field reference {fault}"
        return Run(
            path, meta, "unreadable", reason, "put the task's returns of score 0 and 100 there, or null", **about
        )
    status = str(meta.get("status", "unreadable"))
    warnings = []
    if isinstance(meta.get("runaway"), dict):
        warnings.append(str(meta["runaway"].get("warning", "its values ran away")))
    reason, way_on = _standing(run, status, about["saved"])
    estimate = None
    if "collection" in meta:
        reason, way_on = "a collection of data, not a training run", ""
    elif status == "finished" and meta.get("env") is None and not run.updates:
        estimate = _estimate(path)
    return Run(
        path,
        meta,
        status,
        reason,
        way_on,
        tuple(warnings),
        "",
        tuple(run.seeds),
        tuple(run.updates),
        run.returns,
        run.scores,
        estimate,
        **about,
    )


def _reference_fault(reference: Any) -> str:
    """Why scores cannot be computed with it; empty if they can, or if there is none."""
    if reference is None:
        return ""
    numbers = isinstance(reference, list) and all(isinstance(one, int | float) for one in reference)
    if numbers and len(reference) == 2 and math.isfinite(reference[1] - reference[0]) and reference[0] != reference[1]:
        return ""
    return f"is {reference!r}, expected two different finite numbers, the returns of score 0 and of score 100"


def _standing(run: RunDirectory, status: str, saved: Mapping[str, Any]) -> tuple[str, str]:
    """Why a run does not count, and the way on; empty if it does."""
    done = f"{run.updates[-1]:,}" if run.updates else "none"
    planned = f" of {saved['updates']:,}" if isinstance(saved.get("updates"), int) else ""
    progress = f"evaluated up to update {done}{planned}" if run.updates else "not evaluated yet"
    resume = _resume(run.path)
    if status == "running" and held(run.path):
        return f"at work; {progress}", ""
    if status == "running":
        return f"cut off, or at work on a machine whose locks are not seen here; {progress}", resume
    if status == "interrupted":
        return f"stopped and saved; {progress}", resume
    if status == "failed":
        return f"{run.meta.get('reason', 'no reason noted')}; {progress}", resume
    if status != "finished":
        return f"meta.json: field status is {status!r}, expected finished, running, interrupted or failed", resume
    if run.updates:
        return "", ""
    if run.meta.get("env") is None:
        return "no environment: nothing has scored its policy", ""
    if (run.path / "summary.json").exists():
        return "its returns.npz is missing", "put the file back from a copy, or start the run anew"
    return "only its dynamics model was fitted: there is no policy to score", resume


def _resume(path: Path) -> str:
    return f"mbrl train resume={shlex.quote(str(path))}"


def _estimate(path: Path) -> float | None:
    try:
        known = [row["model/return"] for row in read_metrics(path) if row.get("model/return") is not None]
    except OSError:
        return None
    return float(known[-1]) if known else None


# -- configurations ----------------------------------------------------------------------------------------------------


def _configuration(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Run` that say how it was configured, as far as its files tell."""
    composed, words, hydra = (_yaml(path / ".hydra" / f"{name}.yaml") for name in ("config", "overrides", "hydra"))
    choices = OmegaConf.select(OmegaConf.create(hydra), "hydra.runtime.choices") if isinstance(hydra, dict) else None
    groups = {str(key): str(value) for key, value in (choices or {}).items()}
    given: dict[str, str] = {}
    for word in words if isinstance(words, list) else []:
        key, _, value = str(word).lstrip("+~").partition("=")
        given[re.sub(r"@.*", "", key)] = value
    saved = _yaml(path / "config.yaml")
    return {
        "algo": groups.get("algo") or str(meta.get("algo") or "unknown"),
        "filters": _filters(given.get("filter", "[]")),
        "given": tuple(key for key in given if _makes_a_method(key)),
        "groups": groups,
        "composed": composed if isinstance(composed, dict) else {},
        "saved": saved if isinstance(saved, dict) else {},
    }


def _yaml(path: Path) -> Any:
    """Plain lists and dicts, interpolations as text; None if the file is not there or no YAML."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _filters(word: str) -> tuple[str, ...]:
    """`morec` or `[morec,ravl]`."""
    return tuple(name.strip() for name in word.strip("[]'\" ").split(",") if name.strip())


def _makes_a_method(key: str) -> bool:
    return key not in NO_PART_OF_A_METHOD and not key.startswith(("wandb", "hydra"))


def setting(run: Run, key: str) -> str:
    """What a run has for `key`: a group's choice, or a value; `tuned` where the tables of tuned values decide."""
    if key in run.groups:
        return run.groups[key]
    value = _at(run.composed, key)
    if isinstance(value, str) and "${" in value:
        return "tuned" if "${tuned:" in value else "default"
    changed = _at(run.saved, key)  # a resume may have been given another number of updates
    value = value if changed is None else changed
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


@dataclass(frozen=True)
class Method:
    """How a run was trained, beside the other runs of a report.

    Attributes:
        kind: algorithm and filters.
        settings: (key, value) of what else tells it from the others.
    """

    kind: str
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.kind, *(f"{key}={value}" for key, value in self.settings)])


MOST_SETTINGS = 2
"""A name with more settings than this says those that tell it from others of its kind, and that there are more."""


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """The method of each run.

    A method is its algorithm and its filters. A key that somebody set on the command line belongs to it if the runs
    differ in it: to the method of runs that set it, and of those with the same algorithm and filters.
    """
    keys = dict.fromkeys(key for run in runs for key in run.given)
    values = {key: [setting(run, key) for run in runs] for key in keys}
    kinds = [" + ".join((run.algo, *run.filters)) for run in runs]
    methods = []
    for kind, run in zip(kinds, runs, strict=True):
        settings = []
        for key, of_runs in values.items():
            kin = {value for other, value in zip(kinds, of_runs, strict=True) if other == kind}
            if len(kin) > 1 or (key in run.given and len(set(of_runs)) > 1):
                settings.append((key, setting(run, key)))
        methods.append(Method(kind, tuple(settings)))
    return methods


def short_names(methods: Sequence[Method]) -> dict[Method, str]:
    """A name for each, different ones for different methods."""
    names = {}
    for method in methods:
        if len(method.settings) <= MOST_SETTINGS:
            names[method] = str(method)
            continue
        shown: list[tuple[str, str]] = []
        alike = {other for other in methods if other.kind == method.kind and other != method}
        for one in method.settings:
            apart = {other for other in alike if one not in other.settings}
            if apart:
                shown.append(one)
                alike -= apart
        names[method] = f"{Method(method.kind, tuple(shown))}, ..."
    return names
