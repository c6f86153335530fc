"""Sweeps that can be started again: a folder per run, named by what differs, and nothing is run twice.

Hydra's launchers (one after the other, joblib, Ray, submitit) do the work. What this adds is before and after it: which
runs are still to be done, and what has become of them. Everything is read from the run directories, so it holds
whatever process, machine or day they were made by.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mbrl.compose import ConfigError, config_folder
from mbrl.log import last_update, progress_bar
from mbrl.run import CHANGEABLE, INTERRUPTED
from mbrl.rundir import STOP_FILE, held, read_json

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""The launcher that runs one job after the other in this process."""

ALWAYS_NAMED = ("algo", "filter", "task", "seed")
"""Keys that stand in a run's name even where all runs have the same: a sweep may grow later."""

LONGEST_NAME = 150
"""Characters of a run's folder; file systems allow 255 bytes."""

ATTEMPTS = 4
"""How often runs are handed to a launcher that loses workers."""

State = Literal["new", "unfinished", "finished", "elsewhere"]


class SweepError(RuntimeError):
    """Some runs of a sweep have failed; the message says which, why, and how to go on."""


def register_sweeper(sweeper: type[Sweeper]) -> None:
    """Let Hydra find a sweeper of `configs/hydra/sweeper` by the name `hydra_plugins.mbrl.CLASS`.

    Hydra takes plugins from a top-level package `hydra_plugins` only. It asks for no more than the name, so that this
    package need not ship a second top-level package.
    """
    Plugins.instance().class_name_to_class[f"hydra_plugins.mbrl.{sweeper.__name__}"] = sweeper
    # A plugin that has an option of the same name, like hydra-optuna-sweeper, would have our file held to its schema.
    for file in (config_folder() / "hydra").rglob("*.yaml"):
        ConfigStore.instance().repo.get("hydra", {}).get(file.parent.name, {}).pop(file.name, None)


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder and the words that make it."""

    path: Path
    words: tuple[str, ...]
    verb: str = "train"

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.path.name

    def state(self) -> State:
        """What there is in its folder.

        Raises:
            ConfigError: a run of other words.
        """
        if not (self.path / "meta.json").exists():
            return "new"
        self.check_words()
        if held(self.path):
            return "elsewhere"
        meta = read_json(self.path / "meta.json")
        return "finished" if meta.get("status") == "finished" and self.is_whole(meta) else "unfinished"

    def is_whole(self, meta: Mapping[str, Any]) -> bool:
        """Whether a finished run is all that is asked for now: trained, and for as many updates."""
        if self.verb != "train":
            return True
        path = self.path / "summary.json"
        if not path.exists():
            return "collection" in meta  # else only its model is fitted
        asked = value_of(self.words, "updates")
        try:
            return asked is None or read_json(path)["updates"] >= float(asked)
        except (TypeError, ValueError):
            return True  # what it is, the configuration will say

    def check_words(self) -> None:
        """Refuse to take another run for this one.

        Raises:
            ConfigError: what has been said for the run in this folder is not what is said now.
        """
        path = self.path / ".hydra" / "overrides.yaml"
        if not path.exists():
            return
        said_before: Any = OmegaConf.to_container(OmegaConf.load(path))  # as it was written, interpolations and all
        if value_of(said_before, "updates") is not None and value_of(self.words, "updates") is None:
            raise ConfigError(
                f"{self.path} was begun with updates={value_of(said_before, 'updates')}, and now none are named; give "
                "them again, or more"
            )
        before, now = settled(said_before), settled(self.words)
        if before != now:
            was, said = (" ".join(sorted(words)) or "nothing" for words in (before - now, now - before))
            raise ConfigError(
                f"{self.path} holds a run of other settings (then {was}, now {said}); give the words of then, or "
                "another run_dir"
            )


def settled(words: Sequence[str]) -> set[str]:
    """The overrides on which a run's result depends."""
    return {word for word in words if not word.lstrip("+").startswith((*CHANGEABLE, "hydra", "run_dir="))}


def value_of(words: Sequence[str], key: str) -> Any:
    """What overrides say of a key; None if nothing."""
    found = [word for word in words if word.lstrip("+").split("=", 1)[0] == key]
    return OverridesParser.create().parse_overrides(found[-1:])[0].value() if found else None


def hydra_quoted(word: object) -> str:
    """A word in quotes that Hydra takes off again."""
    return "'" + str(word).replace("\\", "\\\\").replace("'", "\\'") + "'"


def keys(words: Sequence[str]) -> set[str]:
    """The keys of overrides."""
    return {word.split("=", 1)[0] for word in words}


def job_name(words: Sequence[str]) -> str:
    """A folder's name of some overrides: `algo=mopo,seed=0`; `run` if there are none.

    Characters that a shell or a path would take for something else become `-`; what is too long ends in a hash.
    """
    name = ",".join(words).replace("[", "").replace("]", "").replace("'", "").replace('"', "") or "run"
    name = "".join(c if c.isalnum() or c in "=,.+-_" else "-" for c in name)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def jobs_of(overrides: Sequence[Override], folder: Path, verb: str = "train") -> list[Job]:
    """All combinations of the values that overrides name, in Hydra's order.

    Raises:
        HydraException: a sweep over something that cannot be counted, like an interval.
        ConfigError: two of them would have the same folder.
    """
    # Imported late: Hydra's search for plugins runs this module again, and a class of before would be another one.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()} | {*ALWAYS_NAMED}
    order = [*ALWAYS_NAMED, *sorted(swept - {*ALWAYS_NAMED})]  # whatever the order on the command line
    (combinations,) = BasicSweeper.split_arguments(list(overrides), None)
    jobs = []
    for words in combinations:
        by_key = {word.split("=", 1)[0]: word for word in words}
        name = job_name([by_key[key] for key in order if key in by_key])
        jobs.append(Job(folder / name, tuple(words), verb))
    for path, count in Counter(job.path for job in jobs).items():
        if count > 1:
            raise ConfigError(f"two runs of this sweep would both go to {path}; name their values otherwise")
    return jobs


class Grid(Sweeper):
    """Every combination of comma-separated values, as Hydra's own sweeper has it, but restartable.

    A run that is finished is left alone, one that was begun goes on from its checkpoint, whichever launcher began it.
    A run that fails does not keep the others from being made.

    Args:
        max_batch_size: how many runs are handed to the launcher at a time; None = all.
    """

    def __init__(self, max_batch_size: int | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.console = Console(soft_wrap=True, highlight=False)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra gives every sweeper."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Job]:
        """Do what is left to do.

        Raises:
            SweepError: some run has failed.
            KeyboardInterrupt: some run was stopped, and has saved its state.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        check_cluster(self.config)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        folder = Path(self.config.hydra.sweep.dir)
        size = self.max_batch_size
        if size is not None and (type(size) is not int or size < 1):
            raise ConfigError(
                f"hydra.sweeper.max_batch_size={size}: expected a whole number, 1 or more, or null for all"
            )
        if (folder / "study.json").exists():
            raise ConfigError(f"{folder} holds a study of hydra/sweeper=optuna; choose another run_dir")
        verb = sys.argv[0].split()[-1]
        jobs = jobs_of(parser.parse_overrides(arguments), folder, verb)
        states = [job.state() for job in jobs]
        left = [job for job, state in zip(jobs, states, strict=True) if state in ("new", "unfinished")]
        folder.mkdir(parents=True, exist_ok=True)
        self.announce(folder, states)
        if not left:
            return jobs
        OmegaConf.save(self.config, folder / "multirun.yaml")
        failures: dict[str, str] = {}
        stopped = False
        try:
            for begin in range(0, len(left), size or len(left)):
                batch = left[begin : begin + (size or len(left))]
                for job, result in zip(batch, self.launch(batch, begin), strict=True):
                    if result.status is not JobStatus.COMPLETED:
                        failures[job.name] = str(result._return_value)
        except KeyboardInterrupt:
            stopped = True
        self.show(jobs, failures)
        words = [word for word in sys.argv[1:] if "sweep.dir=" not in word]
        again = shlex.join([*sys.argv[0].split(), *words, f"run_dir={hydra_quoted(folder)}"])
        if stopped:
            self.console.print(f"stopped; go on with: {again}", markup=False)
            raise KeyboardInterrupt
        if failures:
            raise SweepError(
                f"{len(failures)} of {len(jobs)} runs have failed: {grouped(failures)}. To try these again: {again}"
            )
        if verb == "train":
            self.console.print(f"compare them with: mbrl report {shlex.quote(str(folder))}", markup=False)
        return jobs

    def launch(self, batch: Sequence[Job], first: int) -> Sequence[JobReturn]:
        """Hand some runs to the launcher.

        Raises:
            SweepError: it failed before any run began.
        """
        self.validate_batch_is_legal([job.words for job in batch])
        try:
            return hand_over(self.launcher, batch, first, self.console)
        except Exception as error:
            raise SweepError(f"the launcher failed before any run began: {reason(error)}") from error

    def announce(self, folder: Path, states: Sequence[State]) -> None:
        """What there is to do."""
        said = {
            "new": "to begin",
            "unfinished": "to go on with",
            "finished": "finished before",
            "elsewhere": "in the work of another process",
        }
        counts = ", ".join(f"{states.count(state)} {words}" for state, words in said.items() if states.count(state))
        self.console.print(f"sweep of {len(states)} runs in {folder}: {counts}", markup=False)

    def show(self, jobs: Sequence[Job], failures: dict[str, str]) -> None:
        """A table of what has become of the runs."""
        table = Table(box=None, padding=(0, 1))
        for heading in ("run", "status", "updates", "return", "score"):
            table.add_column(heading, justify="left" if heading in ("run", "status") else "right", overflow="fold")
        for job in jobs:
            status, *numbers = outcome(job.path, failures.get(job.name))
            if status == "running" and not held(job.path):
                status = "cut off"
            table.add_row(job.name, status, *numbers)
        self.console.print(table)


def check_cluster(config: DictConfig) -> None:
    """Ray waits for minutes for a head that is not there; find that out at once.

    Raises:
        ConfigError: nothing answers at the address of `hydra/launcher=ray_cluster`.
    """
    address = OmegaConf.select(config, "hydra.launcher.ray.init.address")
    if address in (None, "local"):
        return
    if address == "auto":
        file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # where `ray start` leaves it
        address = file.read_text().strip() if file.exists() else ""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"hydra/launcher=ray_cluster: no Ray cluster answers at {address or 'an address that is known'} ({error}); "
            "start one by `ray start --head`, give RAY_ADDRESS=HOST:PORT, or take hydra/launcher=ray"
        ) from None


def hand_over(launcher: Launcher, jobs: Sequence[Job], first: int, console: Console) -> Sequence[JobReturn]:
    """Have a launcher make some runs, each in its folder; runs that are lost with a worker go on in another.

    Args:
        launcher: of Hydra.
        jobs: what to make.
        first: number of the first one in its sweep.
        console: says how far runs in other processes are.

    Raises:
        KeyboardInterrupt: the runs were asked to stop, and have saved.
        Exception: whatever the launcher raises before any run has begun.
    """
    words = [[*job.words, f"hydra.sweep.subdir={hydra_quoted(job.name)}"] for job in jobs]
    watch: Watch | None = None
    if not isinstance(launcher, Plugins.instance().class_name_to_class[BASIC]):
        watch = Watch(jobs, console)
        for given in words:
            given.append(f"+hydra.job.env_set.{STOP_FILE}={hydra_quoted(watch.file)}")
            if "progress" not in keys(given):  # several runs at once would draw their bars over each other
                given.append("progress=false")
    with watch or contextlib.nullcontext():
        for attempt in range(ATTEMPTS):
            try:
                results = launcher.launch(words, initial_job_idx=first)
                break
            except Exception as error:  # a lost worker, as the launcher says it; which run it had, the folders say
                if not any((job.path / "meta.json").exists() for job in jobs):
                    raise
                results = [lost(job, error) for job in jobs]
                if attempt + 1 == ATTEMPTS or (watch is not None and watch.asked):
                    break
                # Those that are finished return at once, those that are still running are waited for.
                console.print(f"a worker was lost; its runs go on in others ({reason(error)})", markup=False)
    if (watch is not None and watch.asked) or any(result._return_value == INTERRUPTED for result in results):
        raise KeyboardInterrupt
    return results


def lost(job: Job, error: Exception) -> JobReturn:
    """What is known of a run after its launcher has given up."""
    if job.state() == "finished":
        return JobReturn(status=JobStatus.COMPLETED, _return_value=0)
    return JobReturn(status=JobStatus.FAILED, _return_value=reason(error))


def reason(error: Exception) -> str:
    """An error of a launcher in one line: the last one of a traceback, else the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0].strip()


def grouped(failures: dict[str, str]) -> str:
    """Reasons, each with the runs it is true of."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures.items():
        by_reason.setdefault(reason.strip().rstrip("."), []).append(name)
    return "; ".join(f"{reason} ({' and '.join(names)})" for reason, names in by_reason.items())


def outcome(path: Path, failure: str | None = None) -> tuple[str, str, str, str]:
    """Status, updates, final return and final score of a run, as words."""
    if not (path / "meta.json").exists():
        return ("not begun" if failure is None else "failed", "", "", "")
    meta = read_json(path / "meta.json")
    summary = read_json(path / "summary.json") if (path / "summary.json").exists() else {}
    numbers = (summary.get(name) for name in ("final_return_mean", "final_score_mean"))
    said = tuple("-" if number is None else f"{number:.1f}" for number in numbers)
    return (str(meta["status"]), f"{summary.get('updates', last_update(path)):,}", said[0], said[1])


class Watch:
    """While a launcher has some runs: shows how far they are, and asks them to stop when Ctrl-C or SIGTERM comes.

    The terminal sends Ctrl-C to every process at once, and a launcher's own would die of it and take their runs along.
    So it is blocked in the main thread, whose children inherit that, and heard in another one, through Python's wake-up
    file: the main thread may be anywhere in a launcher. What the runs hear is a file beside their folders, on whatever
    machine they are. Ctrl-C again ends this process at once.

    Attributes:
        asked: whether the runs have been asked to stop.
    """

    def __init__(self, jobs: Sequence[Job], console: Console, interval: float = 2.0) -> None:
        self.jobs, self.console, self.interval = jobs, console, interval
        self.file = (jobs[0].path.parent / f".stop-{socket.gethostname()}-{os.getpid()}").resolve()
        self.asked = False
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.before: dict[int, Any] = {}
        self.signals, self.wake_up = socket.socketpair()

    def __enter__(self) -> Watch:
        self.file.unlink(missing_ok=True)
        for end in (self.signals, self.wake_up):
            end.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, lambda number, frame: None)
            signal.set_wakeup_fd(self.wake_up.fileno(), warn_on_full_buffer=False)
        self.thread.start()
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self.over.set()
        self.thread.join()
        if self.before:
            signal.set_wakeup_fd(-1)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.signals.close()
        self.wake_up.close()
        if kind is None:
            self.file.unlink(missing_ok=True)

    def ask(self) -> None:
        """Ask all runs to save and end; the second time, do not wait for them."""
        if self.asked:
            os._exit(INTERRUPTED)  # the main thread may be anywhere in a launcher; the file stays for runs in a queue
        self.asked = True
        self.file.touch()
        self.console.print("stopping: the runs save and end (again: do not wait for them)")

    def pause(self) -> bool:
        """Wait a while for the end or for a signal; whether it is the end."""
        for _ in range(max(1, round(self.interval / 0.2))):
            if self.over.is_set():
                return True
            if select.select([self.signals], [], [], 0.2)[0] and {signal.SIGINT, signal.SIGTERM} & set(
                self.signals.recv(4096)
            ):
                self.ask()
        return self.over.is_set()

    def watch(self) -> None:
        """Look, and look again."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        seen: dict[Path, str] = {}
        with progress_bar(self.console, "sweep", len(self.jobs)) as bar:
            last = False
            while not last:
                last = self.pause()  # one more look at the end
                running = []
                for job in self.jobs:
                    try:
                        status = outcome(job.path)
                    except (OSError, ValueError):  # being written on a file system that lets one see it
                        continue
                    if status[0] == "running":
                        running.append(f"{job.name} at {status[1]}")
                    ended = status[0] in ("finished", "failed")
                    if ended and seen.get(job.path) != status[0]:
                        self.console.print(f"{job.name}: {status[0]}, return {status[2]}", markup=False)
                        bar.update(1)
                    seen[job.path] = status[0]
                bar.update(0, running="; ".join(running[:4]) + (" ..." if len(running) > 4 else ""))
