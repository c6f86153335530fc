"""Metrics: summed on the device, read once per row, written to files always and to TensorBoard or wandb if asked.

A row is everything known about one update: `flush(step)` and `log_event(step)` with the same step share a row. The
JSONL file is the truth; the CSV file is derived from it; what a resume repeats is dropped from both. Where numbers of a
row are still to come, it is held back, and so are all rows after it: no sink needs to go back.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import importlib.util
import io
import json
import math
import netrc
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from mbrl.checkpoint import atomic_write
from mbrl.rundir import to_json
from mbrl.types import StateDict

SINKS = ("files", "tensorboard", "wandb")


class RunLogger:
    """Satisfies `mbrl.types.Logger` and draws the progress display.

    Args:
        run_dir: receives `metrics.jsonl`, `metrics.csv`, `tensorboard/` and `wandb/`. An earlier log in it is replaced
            at the first row, unless `load_state_dict` has been called by then.
        sinks: out of files (always on), tensorboard, wandb.
        seeds: metrics of shape (S,) are reported as their mean, and if S > 1 also as `<name>/seed_<seed>`.
        total_updates: how many updates the run has; recorded with wandb's configuration.
        console: where progress goes; `Console(quiet=True)` for nowhere. None is standard output.
        config: what wandb shows as the run's configuration.
        name: the run's name in wandb; None is the folder's.
        wandb_mode: online, offline or disabled; None leaves it to `WANDB_MODE`.

    Raises:
        ValueError: an unknown sink; wandb is to work online and has no API key.
        ModuleNotFoundError: a sink's package is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        sinks: Sequence[str] = (),
        *,
        seeds: Sequence[int],
        total_updates: int,
        console: Console | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        wandb_project: str = "mbrl",
        wandb_entity: str | None = None,
        wandb_group: str | None = None,
        wandb_mode: str | None = None,
    ) -> None:
        self.console = Console() if console is None else console
        self._run_dir = Path(run_dir)
        self._seeds = list(seeds)
        self._sinks: list[_Sink] = [_Files(self._run_dir)]
        for sink in dict.fromkeys(sinks):
            if sink not in SINKS:
                near = difflib.get_close_matches(sink, SINKS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"logger {sink!r} is unknown, expected some of {', '.join(SINKS)}{hint}")
            if sink != "files" and importlib.util.find_spec(sink) is None:
                raise ModuleNotFoundError(f"logger {sink!r} needs a package: pip install 'offline-mbrl[{sink}]'")
        self._wandb_id: str | None = None
        if "tensorboard" in sinks:
            self._sinks.append(_TensorBoard(self._run_dir / "tensorboard"))
        if "wandb" in sinks:
            check_wandb_key(wandb_mode)
            # An agent of a wandb sweep has chosen the id, and wandb would ignore another one.
            agent = "WANDB_SWEEP_ID" in os.environ
            self._wandb_id = (os.environ.get("WANDB_RUN_ID") if agent else None) or secrets.token_hex(4)
            options = {
                "project": wandb_project,
                "entity": wandb_entity,
                "group": wandb_group,
                "mode": wandb_mode,
                "dir": str(self._run_dir),
                "name": name or self._run_dir.name,
                "config": {**(config or {}), "total_updates": total_updates, "seeds": self._seeds},
            }
            self._sinks.append(_Wandb(options))
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._rows = 0
        self._last_step: int | None = None
        self._last_row: dict[str, float] = {}
        self._held: dict[int, dict[str, float]] | None = None
        self._opened = False
        self._open_sinks: list[_Sink] = []
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._last_flush = (0, 0.0)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def add(self, metrics: Mapping[str, Tensor | float], prefix: str = "") -> None:
        """Accumulate values () or (S,) on their device, as `prefix/name`; no host sync.

        Raises:
            ValueError: another shape, or not the shape this metric had before.
        """
        totals: list[Tensor] = []
        values: list[Tensor] = []
        for key, value in metrics.items():
            name = f"{prefix}/{key}" if prefix else key
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            total = self._sums.get(name)
            if total is None:
                if tensor.dim() and tensor.shape != (len(self._seeds),):
                    shape = tuple(tensor.shape)
                    raise ValueError(f"metric {name!r} has shape {shape}, expected () or ({len(self._seeds)},)")
                # A copy: the caller may reuse its memory, as a CUDA graph does.
                self._sums[name] = tensor.detach().to(torch.float32, copy=True)
                self._counts[name] = 1
                continue
            if total.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, was {tuple(total.shape)} before"
                raise ValueError(f"metric {name!r} has shape {shapes}")
            if total.device != tensor.device:  # once, after a resume
                total = self._sums[name] = total.to(tensor.device)
            totals.append(total)
            values.append(tensor)
            self._counts[name] += 1
        if totals:
            with torch.no_grad():
                torch._foreach_add_(totals, values)  # on a GPU one kernel for all of them

    def flush(self, step: int) -> dict[str, float]:
        """Write the means since the last flush as the row of update `step` and return them; the one host sync.

        Besides the metrics: `time/seconds` since the run began and `time/updates_per_second` since the last flush.
        """
        values: dict[str, float] = {}
        for name, numbers in self._read().items():
            means = [number / self._counts[name] for number in numbers]
            values[name] = sum(means) / len(means)
            if len(means) > 1:
                values |= {f"{name}/seed_{seed}": mean for seed, mean in zip(self._seeds, means, strict=True)}
        self._sums.clear()
        self._counts.clear()
        seconds = self.seconds
        last_step, last_seconds = self._last_flush
        values["time/seconds"] = seconds
        values["time/updates_per_second"] = (step - last_step) / max(seconds - last_seconds, 1e-9)
        self._last_flush = (step, seconds)
        self._write(step, values)
        return values

    def log_event(self, step: int, values: Mapping[str, float]) -> None:
        """Put `values` into the row of update `step`, at once or with the rows that are held back."""
        self._write(step, {key: float(value) for key, value in values.items()})

    def hold(self) -> None:
        """Hold rows back from now on: more is still to come for the next one, and rows are written in order."""
        if self._held is None:
            self._held = {}

    def release(self) -> None:
        """Write what has been held back, and hold back no more."""
        held, self._held = self._held, None
        for step, row in (held or {}).items():
            self._write(step, row)

    def state_dict(self) -> StateDict:
        """Sums not yet flushed, rows held back, the last row written, and how many there are: those are on the disk."""
        for sink in self._open_sinks:
            sink.sync()
        return {
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "counts": dict(self._counts),
            "rows": self._rows,
            "last_step": self._last_step,
            "last_row": dict(self._last_row),
            "held": None if self._held is None else {step: dict(row) for step, row in self._held.items()},
            "last_flush": list(self._last_flush),
            "seconds": self.seconds,
            "wandb_id": self._wandb_id,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint: rows after it leave the files, TensorBoard and wandb go on with the same run."""
        if self._opened:
            raise RuntimeError("a logger that has written rows cannot go back: load its state first")
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._rows = state["rows"]
        self._last_step = state["last_step"]
        self._last_row = dict(state["last_row"])
        self._held = None if state["held"] is None else {step: dict(row) for step, row in state["held"].items()}
        step, seconds = state["last_flush"]
        self._last_flush = (step, seconds)
        self._seconds_before = state["seconds"]
        self._started = time.monotonic()
        if self._wandb_id is not None:
            self._wandb_id = state["wandb_id"] or self._wandb_id
        self._open()

    def close(self, status: str) -> None:
        """Write what is held back and end all sinks; wandb is told whether `status` is finished."""
        self.release()
        for sink in self._open_sinks:
            sink.close(status == "finished")

    @contextmanager
    def progress(self, description: str, total: int | None, completed: int = 0) -> Iterator[ProgressBar]:
        """A bar to `update` as work is done: live on a terminal, elsewhere a plain line every ten seconds at most.

        `total` is None where nobody knows when the work will be done.
        """
        with progress_bar(self.console, description, total, completed) as bar:
            yield bar

    def _read(self) -> dict[str, list[float]]:
        """All sums as Python numbers, by one transfer (and one more if some were added as host numbers)."""
        by_device: dict[torch.device, list[str]] = {}
        for name, total in self._sums.items():
            by_device.setdefault(total.device, []).append(name)
        numbers: dict[str, list[float]] = {}
        for names in by_device.values():
            flat = torch.cat([self._sums[name].reshape(-1) for name in names]).tolist()
            start = 0
            for name in names:
                end = start + self._sums[name].numel()
                numbers[name] = flat[start:end]
                start = end
        return {name: numbers[name] for name in self._sums}

    def _open(self) -> None:
        self._opened = True
        for sink in self._sinks:
            sink.open(self._rows, self._last_step, self._last_row, self._wandb_id)
            self._open_sinks.append(sink)  # one that does not open is not to be closed

    def _write(self, step: int, values: dict[str, float]) -> None:
        last = max(self._held) if self._held else self._last_step
        if last is not None and step < last and step not in (self._held or {}):
            raise ValueError(f"row of update {step} comes after that of update {last}")
        if self._held is not None:
            # What comes late stands first, as it does where it has not been waited for.
            self._held[step] = {**values, **self._held.get(step, {}), **values}
            return
        if not self._opened:
            self._open()
        merge = step == self._last_step
        self._last_row = {**self._last_row, **values} if merge else dict(values)
        self._rows += not merge
        self._last_step = step
        for sink in self._sinks:
            sink.write(step, values, self._last_row, merge)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, without a last line that was cut off; None stands for NaN."""
    rows: list[dict[str, Any]] = []
    with open(run_dir / "metrics.jsonl", encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def last_update(run_dir: Path) -> int:
    """The update of the last whole row of `metrics.jsonl`, from its end alone; 0 if there is none."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        lines = file.read().split(b"\n")
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["update"])
    return 0


class _Sink(Protocol):
    """Where rows go."""

    def open(self, rows: int, last_step: int | None, last_row: Mapping[str, float], wandb_id: str | None) -> None:
        """Start anew (`last_step` None), or after `rows` rows of which `last_row` is the last."""

    def write(self, step: int, values: Mapping[str, float], row: Mapping[str, float], merge: bool) -> None:
        """`values` are new in `row`, which is a new row or, if `merge`, the last one grown."""

    def sync(self) -> None:
        """Put everything on the disk."""

    def close(self, finished: bool) -> None:
        """Nothing follows."""


class _LineFile:
    """Lines of text, of which the last may still be replaced."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        data = [line.encode() for line in lines]
        atomic_write(path, lambda file: file.write(b"".join(data)))
        self._file = open(path, "r+b")  # noqa: SIM115
        self._end = sum(map(len, data))
        self._last_start = self._end - len(data[-1]) if data else 0

    def write(self, line: str, replace_last: bool) -> None:
        if not replace_last:
            self._last_start = self._end
        self._file.seek(self._last_start)
        self._end = self._last_start + self._file.write(line.encode())
        self._file.truncate()
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Files:
    """`metrics.jsonl`, the truth, and `metrics.csv`, the same with one column per metric."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._columns: list[str] = []

    def open(self, rows: int, last_step: int | None, last_row: Mapping[str, float], wandb_id: str | None) -> None:
        path = self._run_dir / "metrics.jsonl"
        lines: list[str] = []
        if last_step is not None:
            # The last row comes from the checkpoint: the file's may have grown after that was written.
            before = [row for row in read_metrics(self._run_dir) if row["update"] < last_step] if path.exists() else []
            lines = [*map(_json_line, before), _json_line({"update": last_step, **last_row})]
            if len(lines) != rows:
                warnings.warn(
                    f"{path}: {len(lines)} rows up to update {last_step} where the checkpoint counted {rows}; "
                    "the log has a gap there, the run itself is unaffected",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._json = _LineFile(path, lines)
        self._csv = self._rebuild_csv()

    def write(self, step: int, values: Mapping[str, float], row: Mapping[str, float], merge: bool) -> None:
        whole = {"update": step, **row}
        self._json.write(_json_line(whole), merge)
        if whole.keys() <= set(self._columns):
            self._csv.write(self._csv_line(whole), merge)
        else:
            self._csv.close()
            self._csv = self._rebuild_csv()

    def sync(self) -> None:
        self._json.sync()

    def close(self, finished: bool) -> None:
        self._json.close()
        self._csv.close()

    def _rebuild_csv(self) -> _LineFile:
        rows = read_metrics(self._run_dir)
        self._columns = list(dict.fromkeys(column for row in rows for column in row))
        header: dict[str, Any] = {column: column for column in self._columns}
        lines = [self._csv_line(row) for row in (header, *rows)] if rows else []
        return _LineFile(self._run_dir / "metrics.csv", lines)

    def _csv_line(self, row: Mapping[str, Any]) -> str:
        def cell(column: str) -> str:
            value = row.get(column, "")
            return "nan" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([cell(column) for column in self._columns])
        return text.getvalue()


def _json_line(row: Mapping[str, Any]) -> str:
    return to_json(row) + "\n"


class _TensorBoard:
    """Event files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, rows: int, last_step: int | None, last_row: Mapping[str, float], wandb_id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events from purge_step on are ignored by TensorBoard, also those in the files of the process before.
        self._writer = SummaryWriter(str(self._folder), purge_step=last_step or 0)
        if last_step is not None:
            self.write(last_step, last_row, last_row, True)

    def write(self, step: int, values: Mapping[str, float], row: Mapping[str, float], merge: bool) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


_WANDB_WAY_OUT = "log in with `wandb login`, set WANDB_API_KEY, or use wandb.mode=offline and `wandb sync` later"


def check_wandb_key(mode: str | None) -> None:
    """Find out before any work whether wandb has credentials, without a prompt and without the network.

    Args:
        mode: online, offline or disabled; None leaves it to `WANDB_MODE` and wandb's settings files.

    Raises:
        ValueError: it is to work online, and there is nothing to log in with.
    """
    import wandb

    settings = wandb.setup().settings
    if (mode or os.environ.get("WANDB_MODE") or settings.mode) not in ("online", "shared"):
        return
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return
    # Where `wandb login` puts the key; a key for another host is found out by `wandb.init`.
    home = Path.home()
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError):
            known = netrc.netrc(str(file))
            if any(known.authenticators(host) for host in (urlsplit(settings.base_url).netloc, "api.wandb.ai")):
                return
    raise ValueError(f"logger=wandb: no API key is configured; {_WANDB_WAY_OUT}")


class _Wandb:
    """One wandb run; a resume goes on with it by its id."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def open(self, rows: int, last_step: int | None, last_row: Mapping[str, float], wandb_id: str | None) -> None:
        import wandb

        try:
            self._run = wandb.init(**self._options, id=wandb_id, resume="allow")
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"logger=wandb: {reason}; {_WANDB_WAY_OUT}") from error
        if last_step is not None:  # wandb sends a row when the next one starts: a killed run still owes its last
            self.write(last_step, last_row, last_row, True)

    def write(self, step: int, values: Mapping[str, float], row: Mapping[str, float], merge: bool) -> None:
        # Steps that wandb has seen before a resume are ignored by it, and would be the same numbers.
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """Wandb's own process writes as it receives."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class ProgressBar:
    """Counts work done and shows it every `interval` seconds. This base shows nothing: it is the quiet one.

    Whoever learns only on the way how much there is to do sets `total`.
    """

    def __init__(self, total: int | None = 0, completed: int = 0, interval: float = math.inf) -> None:
        self.total = total
        self.completed = completed
        self.fields: dict[str, str] = {}
        self._interval = interval
        self._shown = time.monotonic()

    def update(self, advance: int = 1, **fields: float | str | None) -> None:
        """`advance` more units are done; `fields` (host numbers or text, not None) are shown until given anew."""
        self.completed += advance
        for name, value in fields.items():
            if value is not None:
                self.fields[name] = value if isinstance(value, str) else f"{value:.4g}"
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self.show()

    def show(self) -> None:
        """Bring the display up to date."""

    def close(self) -> None:
        """Show the end state."""
        self.show()

    def _field_text(self) -> str:
        return "  ".join(f"{name}={value}" for name, value in self.fields.items())


@contextmanager
def progress_bar(console: Console, description: str, total: int | None, completed: int = 0) -> Iterator[ProgressBar]:
    """A bar to `update` as work is done: live on a terminal, elsewhere a plain line every ten seconds at most.

    `total` is None where nobody knows when the work will be done.
    """
    bar: ProgressBar
    if console.quiet:
        bar = ProgressBar()
    elif console.is_terminal:
        bar = _LiveBar(console, description, total, completed)
    else:
        bar = _PlainBar(console, description, total, completed)
    try:
        yield bar
    finally:
        bar.close()


class _PlainBar(ProgressBar):
    """For files and CI: a line now and then."""

    def __init__(self, console: Console, description: str, total: int | None, completed: int) -> None:
        super().__init__(total, completed, interval=10.0)
        self._console = console
        self._description = description
        self._started = time.monotonic()
        self._completed_before = completed

    def show(self) -> None:
        elapsed = time.monotonic() - self._started
        rate = (self.completed - self._completed_before) / max(elapsed, 1e-9)
        done, left = str(self.completed), ""
        if self.total is not None:
            done += f"/{self.total}"
            left = f"{_clock((self.total - self.completed) / rate if rate > 0 else math.inf)} left  "
        line = f"{self._description}  {done}  {_rate(rate)}  {_clock(elapsed)} elapsed  {left}{self._field_text()}"
        self._console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


class _LiveBar(ProgressBar):
    """For terminals: rich's live display."""

    def __init__(self, console: Console, description: str, total: int | None, completed: int) -> None:
        super().__init__(total, completed, interval=0.2)
        fixed, wrapped = Column(no_wrap=True), Column(no_wrap=False)  # a narrow terminal shows the fields in more lines
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=fixed),
            BarColumn(bar_width=12, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            _RateColumn(table_column=fixed),
            TimeElapsedColumn(table_column=fixed),
            TimeRemainingColumn(table_column=fixed),
            TextColumn("{task.fields[text]}", markup=False, table_column=wrapped),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(description, total=total, completed=completed, text="")
        self._progress.start()

    def show(self) -> None:
        self._progress.update(self._task, total=self.total, completed=self.completed, text=self._field_text())

    def close(self) -> None:
        self.show()
        self._progress.stop()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0))


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "-:--:--"
