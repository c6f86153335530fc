"""Fit a dynamics model or a score once: the store keeps what is fitted by the hash of data, settings, code and seed.

    <root>/<key>/seed_<n>/step_0.pt

One file a seed, so that a run of five stacked seeds and five runs of one share what they can. A fit that is interrupted
leaves its state in the run's own folder and goes on from there.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from mbrl import capture, nets, optim, spectral
from mbrl.checkpoint import CheckpointError, load_latest, save_checkpoint
from mbrl.dynamics import ensemble
from mbrl.dynamics.ensemble import FitStopped
from mbrl.rundir import lock_when_free
from mbrl.types import Fittable, StateDict

WAIT_SECONDS = 0.5
"""Between looks at a fit of another process."""

CODE: tuple[ModuleType, ...] = (ensemble, nets, spectral, optim, capture)


def store_key(dataset_hash: str, settings: Mapping[str, Any], code: tuple[ModuleType, ...] = CODE) -> str:
    """Hex key of what a fitted part depends on, but the seed: data, settings, source of the fitting code."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(dataset_hash.encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for module in code:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


class Report(Protocol):
    """What a fit tells of its progress; it has more, for those who know which fit it is."""

    @property
    def done(self) -> int:
        """Epochs or steps done."""
        ...

    @property
    def state(self) -> Callable[[], StateDict]:
        """Everything needed to go on from here."""
        ...


def fit_or_load(
    part: Fittable,
    *inputs: Any,
    key: str,
    root: Path,
    scratch: Path,
    save_seconds: float = 30.0,
    on_progress: Callable[[Any], None] | None = None,
    on_wait: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> str:
    """Make `part` a fitted one: from this run's own folder, else from the store, else by fitting.

    Args:
        part: an unfitted model or score; changed in place.
        inputs: of its `fit`: data (N, .) for an ensemble, data and fitted ensemble for a score.
        key: of `store_key`.
        root: the store.
        scratch: folder of this run, for the state of an unfinished fit and the finished part. It comes first, so that
            a resumed run never depends on what other runs have put into the store since.
        save_seconds: how often the state of an unfinished fit is written.
        on_progress: called with every report of the fit.
        on_wait: called where another process is fitting a seed of the same: its result is waited for.
        should_stop: asked between the reports and while waiting; when true, the state of the last report is written and
            `FitInterrupted` raised.

    Returns:
        "run", "store" or "fitted".
    """
    own = _load(scratch / "model")
    if own is not None:
        part.load_state_dict(own)
        return "run"
    begun = _load(scratch / "unfinished")
    if begun is not None and begun.get("key") != key:
        begun = None  # a fit of other settings or code is no beginning of this one
    with contextlib.ExitStack() as locks:
        if begun is None:
            if _take_from_store(part, key, root, scratch):
                return "store"
            # A sweep starts many runs at the same time that need the same model.
            _wait_for_turn(locks, [root / key / f"seed_{seed}" for seed in sorted(part.seeds)], on_wait, should_stop)
            if _take_from_store(part, key, root, scratch):
                return "store"
        return _fit(part, *inputs, key=key, root=root, scratch=scratch, save_seconds=save_seconds,
                    on_progress=on_progress, should_stop=should_stop, begun=begun)  # fmt: skip


def _take_from_store(part: Fittable, key: str, root: Path, scratch: Path) -> bool:
    """Load what all seeds have in the store, and keep it with the run; False if any is missing."""
    states = [_load(root / key / f"seed_{seed}") for seed in part.seeds]
    found = [state for state in states if state is not None]
    if len(found) < len(states):
        return False
    part.load_state_dict({name: torch.cat([state[name] for state in found]) for name in found[0]})
    save_checkpoint(scratch / "model", 0, part.state_dict(), keep=1)
    return True


def _wait_for_turn(
    locks: contextlib.ExitStack, folders: Sequence[Path], on_wait: Callable[[], None], should_stop: Callable[[], bool]
) -> None:
    """Hold all folders, taken in their order so that no two processes wait for each other.

    Raises:
        FitInterrupted: asked to stop while waiting.
    """
    for folder in folders:
        try:
            held = lock_when_free(folder, seconds=WAIT_SECONDS, on_wait=on_wait, should_stop=should_stop)
        except BlockingIOError:
            raise FitInterrupted("asked to stop while another process was fitting the same model") from None
        except OSError:  # a file system without locks: then it is fitted more than once, to the same numbers
            continue
        locks.enter_context(held)


def _fit(
    part: Fittable,
    *inputs: Any,
    key: str,
    root: Path,
    scratch: Path,
    save_seconds: float,
    on_progress: Callable[[Any], None] | None,
    should_stop: Callable[[], bool],
    begun: StateDict | None,
) -> str:
    """Fit from the beginning, or from what this run has begun, and keep the result here and in the store."""
    last_save = time.monotonic()
    last: tuple[int, StateDict] | None = None  # a stop comes between reports, and the state is changed in place

    def save(done: int, state: StateDict) -> None:
        save_checkpoint(scratch / "unfinished", done, {"key": key, "fit": state})

    def after_report(report: Report) -> None:
        nonlocal last_save, last
        last = report.done, copy.deepcopy(report.state())
        if time.monotonic() - last_save >= save_seconds:
            save(*last)
            last_save = time.monotonic()
        if on_progress is not None:
            on_progress(report)

    resume = None if begun is None else begun["fit"]
    try:
        part.fit(*inputs, on_progress=after_report, should_stop=should_stop, resume=resume)
    except FitStopped:
        if last is not None:
            save(*last)
        raise FitInterrupted("the fit was asked to stop; its last report is saved") from None
    state = part.state_dict()
    save_checkpoint(scratch / "model", 0, state, keep=1)
    for i, seed in enumerate(part.seeds):
        one = {name: tensor[i : i + 1].clone() for name, tensor in state.items()}
        save_checkpoint(root / key / f"seed_{seed}", 0, one, keep=1)
    for left in (scratch / "unfinished").glob("step_*.pt"):
        left.unlink()
    return "fitted"


class FitInterrupted(Exception):
    """The fit was asked to stop and has saved its state."""


def _load(folder: Path) -> StateDict | None:
    """A stored part or unfinished fit; None if there is none or it is damaged (it is then made again)."""
    try:
        found = load_latest(folder)
    except CheckpointError:
        return None
    return None if found is None else found[1]
