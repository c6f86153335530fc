"""Atomic files, and checkpoints that are either whole or refused.

A checkpoint is what `torch.save` writes, followed by a 40-byte trailer: 8 bytes of magic and the SHA-256 of everything
before it, taken while the bytes are written. One file and one rename: no moment at which a crash leaves a checkpoint
without its checksum. `torch.load` ignores the trailer, so the file opens without this package too.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from mbrl.types import StateDict

_MAGIC = b"mbrlsha2"
_TRAILER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_NAME = re.compile(r"step_(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or holds what a checkpoint must not hold."""


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, then put it in place of `path`.

    After a crash at any moment `path` holds either its old bytes or all of the new ones. If `write` raises, the
    temporary file is removed and `path` is untouched.
    """
    # The random part keeps two processes that write the same file from sharing one temporary file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename lives in the folder: until that is on the disk too, a power cut may undo it. Windows has no such call.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _HashingFile:
    """A write-only file that hashes what passes through, so that saving reads nothing back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_checkpoint(folder: Path, step: int, state: StateDict, *, keep: int = 2) -> Path:
    """Write `folder/step_<step>.pt` and remove all but the `keep` newest good checkpoints.

    `state` is nested dicts, lists and tuples of tensors, ints, floats, strings, bools and None, nothing else: what
    `torch.load(weights_only=True)` reads. Checkpoints of later steps belong to a future that a resume has left, and go.

    Raises:
        CheckpointError: `state` holds another type; the message names its key path. Nothing is written.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    state = _storable(state, "state")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:09d}.pt"

    def write(file: BinaryIO) -> None:
        hashing = _HashingFile(file)
        torch.save(state, cast(BinaryIO, hashing))
        file.write(_MAGIC + hashing.sha.digest())

    atomic_write(path, write)
    _prune(folder, path, keep)
    return path


def load_checkpoint(path: Path, map_location: torch.device | str = "cpu") -> StateDict:
    """Verify and read one checkpoint.

    Raises:
        CheckpointError: the file is cut short or its bytes are not those that were written.
    """
    fault = _fault(path)
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}")
    state: StateDict = torch.load(path, map_location=map_location, weights_only=True)
    return state


def load_latest(folder: Path, map_location: torch.device | str = "cpu") -> tuple[int, StateDict] | None:
    """The newest good checkpoint in `folder` as `(step, state)`; None if there is no checkpoint at all.

    Damaged ones are passed over, newest first, with a warning that names the file.

    Raises:
        CheckpointError: there are checkpoints and none is good.
    """
    found = _checkpoints(folder)
    for step, path in reversed(found):
        try:
            return step, load_checkpoint(path, map_location)
        except CheckpointError as error:
            warnings.warn(f"damaged checkpoint, trying the one before: {error}", RuntimeWarning, stacklevel=2)
    if found:
        names = ", ".join(path.name for _, path in found)
        raise CheckpointError(f"{folder}: none of the checkpoints is whole ({names}); start the run anew")
    return None


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, good or not; None if there is none."""
    found = _checkpoints(folder)
    return found[-1][0] if found else None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """`(step, path)` of all checkpoint files, oldest first, good or not."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.pt"))
    return sorted((int(match[1]), path) for match, path in named if match)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes; None if they are what was written."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - _TRAILER_BYTES
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            sha.update(block)
            left -= len(block)
        trailer = file.read()
    if len(trailer) != _TRAILER_BYTES or not trailer.startswith(_MAGIC):
        return "no checksum at its end: the file is cut short or is not a checkpoint"
    if trailer[len(_MAGIC) :] != sha.digest():
        return "checksum mismatch: its bytes changed after it was written"
    return None


def _prune(folder: Path, newest: Path, keep: int) -> None:
    kept = 0
    for _, path in reversed(_checkpoints(folder)):
        if path == newest:
            kept = 1
        elif 0 < kept < keep and _fault(path) is None:
            kept += 1
        else:
            path.unlink(missing_ok=True)
    for leftover in folder.glob(".step_*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)


def _storable(value: Any, where: str) -> Any:
    """`value` with every tensor cut loose from a larger storage, or `CheckpointError` naming the offending key."""
    # Exact types: numpy.float64 is a float and a NamedTuple is a tuple, and neither is read back by weights_only.
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (Tensor, torch.nn.Parameter):
        # torch.save writes the whole storage behind a view: a slice of a ring would be saved as the ring.
        whole = value.untyped_storage().nbytes() <= value.numel() * value.element_size()
        return value.detach() if whole else value.detach().clone()
    if kind in (dict, OrderedDict):
        return {_key(key, where): _storable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind in (list, tuple):
        return kind(_storable(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise CheckpointError(
        f"{where} is a {kind.__module__}.{kind.__name__}; a checkpoint holds dicts, lists and tuples of tensors, "
        "Python numbers, strings and None: convert it"
    )


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):
        raise CheckpointError(f"{where} has the key {key!r}; a checkpoint's keys are strings or ints")
    return cast("str | int", key)
