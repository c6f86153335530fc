"""The run directory: who ran (`meta.json`), what came out (`returns.npz`, `summary.json`), and a polite way to stop.

`docs/run_directory.md` describes every file and field.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

import mbrl
from mbrl.checkpoint import atomic_write
from mbrl.types import StateDict

Status = Literal["running", "finished", "interrupted", "failed"]
FloatArray = npt.NDArray[np.float64]

FINAL_EVALUATIONS = 10
"""A run's final return is the mean over this many last evaluations, or over all if there are fewer."""


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null, numpy scalars and arrays numbers and lists, paths strings."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str | None]:
    """Versions of everything a run's numbers may depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "mbrl": mbrl.__version__}
    found["torch"] = str(torch.__version__)  # with its build, which a wheel's metadata may leave out
    for name in ("numpy", "gymnasium", "mujoco", "minari"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    return found


def git_state() -> dict[str, Any]:
    """`commit` and `modified` (tracked files differ from it) of the checkout mbrl runs from; {} if it is not one."""
    root = Path(mbrl.__file__).resolve().parents[1]
    # Without this check an installed copy would report the commit of whatever repository surrounds site-packages.
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def real_steps(updates: FloatArray, plan: Mapping[str, Any]) -> FloatArray:
    """How many real steps an online run has made at its updates (K,), by the `online` entry of its `meta.json`."""
    steps: FloatArray = plan["warm_up"] + updates / plan["updates_per_step"]
    return steps


def final_performance(returns: FloatArray, scores: FloatArray | None, seeds: Sequence[int]) -> dict[str, Any]:
    """The numbers that go into tables, from raw returns and scores (K evaluations, S seeds, episodes) alone.

    Means over the last `FINAL_EVALUATIONS` evaluations and their episodes: `per_seed` a list with one entry per seed,
    and `final_return_mean`, `final_score_mean` over seeds. None where there is nothing to average.
    """

    def by_seed(values: FloatArray | None) -> list[float | None]:
        if values is None or values.size == 0:
            return [None] * len(seeds)
        return [float(mean) for mean in values[-FINAL_EVALUATIONS:].mean((0, 2))]

    def over_seeds(means: list[float | None]) -> float | None:
        known = [mean for mean in means if mean is not None]
        return float(np.mean(known)) if known else None

    return_means, score_means = by_seed(returns), by_seed(scores)
    return {
        "evaluations": len(returns),
        "final_return_mean": over_seeds(return_means),
        "final_score_mean": over_seeds(score_means),
        "per_seed": [
            {"seed": seed, "final_return_mean": return_mean, "final_score_mean": score_mean}
            for seed, return_mean, score_mean in zip(seeds, return_means, score_means, strict=True)
        ],
    }


class RunDirectory:
    """One run's folder. `create` a new one, `open` an existing one; reading changes no file."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.seeds: list[int] = list(meta["seeds"])
        self.updates: list[int] = []
        self._returns: list[FloatArray] = []
        self._scores: list[FloatArray] = []

    @classmethod
    def create(cls, path: Path | str, *, seeds: Sequence[int], **fields: Any) -> RunDirectory:
        """Make the folder and its `meta.json`; `fields` are further entries (dataset, env, device, ...).

        Raises:
            FileExistsError: there is a run in it already.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if (path / "meta.json").exists():
            raise FileExistsError(
                f"{path} already holds a run; go on with it by resume={path} or choose another run_dir"
            )
        run = cls(path, {"seeds": list(seeds)})
        run.write_meta(**_machine(), **fields, status="running", started=_now(), finished=None, resumed=0)
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Read an existing run.

        Raises:
            FileNotFoundError: `path` holds no run.
            ValueError: `meta.json` or `returns.npz` is not what this class writes.
        """
        path = Path(path)
        meta = read_json(path / "meta.json")
        if not isinstance(meta.get("seeds"), list):
            raise ValueError(f"{path / 'meta.json'}: field seeds is {meta.get('seeds')!r}, expected a list of ints")
        run = cls(path, meta)
        if (path / "returns.npz").exists():
            with np.load(path / "returns.npz", allow_pickle=False) as file:
                arrays = dict(file)
                if not {"updates", "returns"} <= set(arrays):
                    raise ValueError(
                        f"{path / 'returns.npz'}: expected arrays updates and returns, found {sorted(file)}"
                    )
                run._set(arrays["updates"], arrays["returns"], arrays.get("scores"))
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def returns(self) -> FloatArray:
        """Raw returns (K, S, episodes); (0, S, 0) before the first evaluation."""
        return np.stack(self._returns) if self._returns else np.empty((0, len(self.seeds), 0))

    @property
    def scores(self) -> FloatArray | None:
        """Normalised scores (K, S, episodes); None if the task has no reference returns."""
        return np.stack(self._scores) if self._scores else None

    def write_meta(self, **fields: Any) -> None:
        """Merge `fields` into `meta.json`. A `status` other than running also stamps `finished`."""
        if fields.get("status", "running") != "running":
            fields = {"finished": _now(), **fields}
        self.meta.update(fields)
        write_json(self.path / "meta.json", self.meta)

    def mark_resumed(self) -> None:
        """Note in `meta.json` that the run goes on, on this machine and with these versions."""
        self.write_meta(**_machine(), status="running", finished=None, resumed=self.meta.get("resumed", 0) + 1)

    def write_summary(self, *, status: Status, updates: int, **fields: Any) -> dict[str, Any]:
        """Write `summary.json` from the returns held and `fields`; returns what was written."""
        summary = self.summarise(status=status, updates=updates, **fields)
        write_json(self.path / "summary.json", summary)
        return summary

    def summarise(
        self,
        *,
        status: Status,
        updates: int,
        updates_per_second: float | None = None,
        wall_seconds: float | None = None,
        behaviour_return_mean: float | None = None,
        behaviour_return_max: float | None = None,
        label: str = "",
        protocol: str = "",
        **fields: Any,
    ) -> dict[str, Any]:
        """The content of `summary.json`, a mapping that `to_json` can write.

        `label` names the dataset and the environment's version, `protocol` the evaluation; `behaviour_return_*` are the
        mean and the best return of the dataset's episodes. Further `fields` are added as they are.
        """
        return {
            "label": label,
            "status": status,
            "updates": updates,
            "seeds": self.seeds,
            "behaviour_return_mean": behaviour_return_mean,
            "behaviour_return_max": behaviour_return_max,
            **final_performance(self.returns, self.scores, self.seeds),
            "updates_per_second": updates_per_second,
            "wall_seconds": wall_seconds,
            "protocol": protocol,
            **fields,
        }

    def add_returns(self, updates: int, returns: npt.ArrayLike, scores: npt.ArrayLike | None = None) -> None:
        """Add one evaluation, raw returns and scores (S, episodes), and write `returns.npz`.

        Raises:
            ValueError: `updates` does not grow, or a shape differs from the evaluations before.
        """
        row = np.asarray(returns, np.float64)
        score_row = None if scores is None else np.asarray(scores, np.float64)
        expected = self._returns[0].shape if self._returns else (len(self.seeds), *row.shape[1:2])
        if row.ndim != 2 or row.shape != expected:
            raise ValueError(
                f"returns of update {updates} have shape {row.shape}, expected (seeds, episodes) {expected}"
            )
        if score_row is not None and score_row.shape != row.shape:
            raise ValueError(f"scores of update {updates} have shape {score_row.shape}, expected {row.shape}")
        if self._returns and (score_row is None) != (not self._scores):
            raise ValueError(f"scores of update {updates}: either every evaluation of a run has them or none")
        if self.updates and updates <= self.updates[-1]:
            raise ValueError(f"evaluation at update {updates} comes after one at update {self.updates[-1]}")
        self.updates.append(int(updates))
        self._returns.append(row.copy())
        if score_row is not None:
            self._scores.append(score_row.copy())
        self._write_returns()

    def state_dict(self) -> StateDict:
        """All evaluations so far, for the checkpoint."""
        scores = self.scores
        return {
            "updates": torch.tensor(self.updates, dtype=torch.int64),
            "returns": torch.from_numpy(self.returns),
            "scores": None if scores is None else torch.from_numpy(scores),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to the checkpoint's evaluations, in memory and in `returns.npz`."""
        scores = state["scores"]
        self._set(state["updates"].numpy(), state["returns"].numpy(), None if scores is None else scores.numpy())
        self._write_returns()

    def forget_evaluations(self) -> None:
        """As if none had been made: in memory, and no `returns.npz`."""
        self._set(np.empty(0, np.int64), np.empty((0, len(self.seeds), 0)), None)
        self._write_returns()

    def _set(self, updates: npt.NDArray[Any], returns: npt.NDArray[Any], scores: npt.NDArray[Any] | None) -> None:
        expected = (len(updates), len(self.seeds))
        if returns.ndim != 3 or returns.shape[:2] != expected or (scores is not None and scores.shape != returns.shape):
            shapes = f"returns {returns.shape}, scores {None if scores is None else scores.shape}"
            raise ValueError(
                f"{self.path}: evaluations have shapes {shapes}, expected {(*expected, 'episodes')} for both"
            )
        self.updates = [int(update) for update in updates]
        self._returns = [np.array(row, np.float64) for row in returns]
        self._scores = [] if scores is None else [np.array(row, np.float64) for row in scores]

    def _write_returns(self) -> None:
        path = self.path / "returns.npz"
        if not self.updates:
            path.unlink(missing_ok=True)
            return
        arrays: dict[str, Any] = {"updates": np.asarray(self.updates, np.int64), "returns": self.returns}
        if self.scores is not None:
            arrays["scores"] = self.scores
        atomic_write(path, lambda file: np.savez(file, **arrays))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict, indented JSON atomically; NaN becomes null."""
    data = (to_json(value, indent=2) + "\n").encode()
    atomic_write(path, lambda file: file.write(data))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: no such file, so its folder is no run directory.
        ValueError: not a JSON object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} is not a run directory: it has no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    return {
        "versions": versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
    }


def lock(folder: Path) -> BinaryIO:
    """Hold a run directory for this process, until the returned file is closed or the process ends in any way.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "wb")  # noqa: SIM115  (the caller keeps it open)
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"another process is working in {folder}; wait for it, or stop it first") from None
    return file


def lock_when_free(
    folder: Path,
    *,
    seconds: float,
    on_wait: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BinaryIO:
    """`lock`, waiting for another process to let go.

    Args:
        folder: to hold.
        seconds: between looks.
        on_wait: called once if it is not free at once.
        should_stop: asked while waiting.

    Raises:
        BlockingIOError: asked to stop while another process held it.
    """
    waiting = False
    while True:
        try:
            return lock(folder)
        except BlockingIOError:
            if not waiting:
                on_wait()
            waiting = True
            if should_stop():
                raise
            time.sleep(seconds)


def held(folder: Path) -> bool:
    """Whether a living process holds a folder by `lock`."""
    if not (folder / ".lock").exists():
        return False
    try:
        lock(folder).close()
    except BlockingIOError:
        return True
    return False


STOP_FILE = "MBRL_STOP_FILE"
"""Environment variable with a file's path: when somebody makes the file, a sweep's runs stop, wherever they are."""

LOOK_SECONDS = 1.0
"""How often `StopRequest` looks for it."""


def asked_to_stop() -> bool:
    """Whether the sweep that this run belongs to, if there is one, has been told to end."""
    file = os.environ.get(STOP_FILE)
    return file is not None and Path(file).exists()


class StopRequest:
    """Turns SIGINT, SIGTERM and a sweep's stop file into a flag that a loop reads between updates.

    ```python
    with StopRequest() as stop:
        while not stop.requested: ...
    ```
    Ctrl-C once a stop has been requested raises KeyboardInterrupt at once. The handlers of before come back on exit.
    Outside the main thread Python allows no handlers, and only the file is heard.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}
        self._looked = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether somebody has asked to stop."""
        if not self._requested and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._requested = asked_to_stop()
        return self._requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python, and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
