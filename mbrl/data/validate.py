"""What is wrong with a dataset, in words a user can act on.

Faults that would make training meaningless raise `DatasetError`; things that are legal but suspicious become warnings.
Every message names the file, the field as the file spells it, the first bad row, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

FIELDS: dict[str, tuple[str, ...]] = {
    "obs": ("observations", "observation", "obs", "states", "state"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "next_obs": ("next_observations", "next_observation", "next_obs", "next_states", "next_state"),
    "terminal": ("terminals", "terminal", "terminations", "terminated", "dones", "done"),
    "timeout": ("timeouts", "timeout", "truncations", "truncated"),
    "index": ("index", "episode_starts"),
    "episode_id": ("episode_ids", "episode_id"),
}
"""What a file may call each field, in order of preference."""

REQUIRED = ("obs", "action", "reward", "terminal")
MATRICES = ("obs", "action", "next_obs")
FLAGS = ("terminal", "timeout")
ACTION_LIMIT = 1e6
FEW_VALUES = 32
"""Whole-numbered actions with at most so many different values look like numbers of discrete choices."""


class DatasetError(ValueError):
    """A dataset that cannot be used. The message is meant for the person who made the file."""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that look most like `name`, compared without case."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)]


def find_keys(present: Sequence[str], file: str) -> dict[str, str]:
    """Field -> the name it has in a file that holds the arrays `present`.

    Raises:
        DatasetError: a required field is missing.
    """
    keys = {}
    for field, names in FIELDS.items():
        found = [name for name in names if name in present]
        if found:
            keys[field] = found[0]
        elif field in REQUIRED:
            candidates = {near: None for name in names for near in nearest(name, set(present) - set(keys.values()))}
            hint = f" Is it `{next(iter(candidates))}`? Then rename that array to `{names[0]}`." if candidates else ""
            if field == "terminal":
                hint += " If the task never ends by itself, save an array of zeros."
            raise DatasetError(
                f"{file}: no `{names[0]}`. Expected one of {', '.join(names)}; "
                f"the file has {', '.join(sorted(present)) or 'nothing'}.{hint}"
            )
    return keys


def validate(arrays: dict[str, Array], file: str, keys: Mapping[str, str] | None = None) -> list[str]:
    """Check raw arrays and cast them in place to what `sources` works with.

    Args:
        arrays: by field of `FIELDS`; afterwards obs, action, next_obs (N, .) float32, reward (N,) float32, terminal and
            timeout (N,) bool, index and episode_id int64, all contiguous.
        file: what messages call the source.
        keys: field -> name in the file, for the messages.

    Returns:
        Warnings.

    Raises:
        DatasetError: the arrays cannot be used.
    """
    keys = keys or {field: field for field in arrays}
    for field in arrays:
        arrays[field] = _cast(arrays[field], field, keys[field], file)
    _check_lengths(arrays, file, keys)
    rows = len(arrays["obs"])
    if "index" in arrays:
        _check_index(arrays["index"], rows, file, keys["index"])
    if "next_obs" in arrays and np.array_equal(arrays["obs"], arrays["next_obs"]):
        raise DatasetError(
            f"{file}: `{keys['next_obs']}` is a copy of `{keys['obs']}` in every row. Expected the observation after "
            "the action. Save the next observation, or leave the array out and mark the episode ends."
        )
    return _content_warnings(arrays, keys)


def _cast(values: Array, field: str, key: str, file: str) -> Array:
    values = np.asarray(values)  # HDF5 gives scalars as Python objects
    if values.dtype.kind not in "fiub":
        raise DatasetError(
            f"{file}: `{key}` has dtype {values.dtype}. Expected real numbers. Convert it to float32 (flags to bool) "
            "and save it again."
        )
    values = _check_shape(values, field, key, file)
    if field in FLAGS:
        wrong = (values != 0) & (values != 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DatasetError(
                f"{file}: `{key}` row {row} is {values[row]}. Expected 0 or 1 in every row. Save a flag per row; "
                "episode numbers go into `episode_id`, first rows of episodes into `index`."
            )
        return np.ascontiguousarray(values, np.bool_)
    if field in ("index", "episode_id"):
        wrong = ~np.isfinite(values) | (values != np.floor(values))
        if wrong.any():
            row = int(wrong.argmax())
            raise DatasetError(
                f"{file}: `{key}` entry {row} is {values[row]}. Expected whole numbers. Save it as int64."
            )
        return np.ascontiguousarray(values, np.int64)
    with np.errstate(over="ignore"):
        numbers: FloatArray = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(numbers).all():
        where, value = _first(values, ~np.isfinite(numbers))
        raise DatasetError(
            f"{file}: `{key}` {where} is {value}. Expected numbers that float32 can hold. Repair that row or leave its "
            "episode out."
        )
    if field == "action" and np.abs(numbers).max(initial=0.0) > ACTION_LIMIT:
        where, value = _first(values, np.abs(numbers) > ACTION_LIMIT)
        raise DatasetError(
            f"{file}: `{key}` {where} is {value}. Expected bounded actions (at most {ACTION_LIMIT:g} in size). Clip "
            "the actions to the actuator's range, or store what was applied and not what was requested."
        )
    return numbers


def _check_shape(values: Array, field: str, key: str, file: str) -> Array:
    if field in MATRICES:
        if values.dtype == np.uint8 and values.ndim >= 3:
            raise DatasetError(
                f"{file}: `{key}` has shape {values.shape} of uint8, which looks like images. Expected state vectors "
                "(rows, dimensions). Learning from pixels is not supported: encode the images and save the codes."
            )
        if values.ndim != 2:
            hint = (
                f"If each row is one number, save `{key}.reshape(-1, 1)`"
                if values.ndim == 1
                else f"Save `{key}.reshape(len({key}), -1)`"
            )
            raise DatasetError(f"{file}: `{key}` has shape {values.shape}. Expected (rows, dimensions). {hint}.")
        if values.shape[1] == 0:
            raise DatasetError(
                f"{file}: `{key}` has shape {values.shape}: no columns. Expected at least one dimension."
            )
        return values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DatasetError(f"{file}: `{key}` has shape {values.shape}. Expected (rows,): one number per row.")
    return values


def _first(values: Array, wrong: BoolArray) -> tuple[str, str]:
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    where = f"row {position[0]}" + (f", column {position[1]}" if len(position) > 1 else "")
    return where, str(values[position])


def _check_lengths(arrays: Mapping[str, Array], file: str, keys: Mapping[str, str]) -> None:
    rows = len(arrays["obs"])
    for field, values in arrays.items():
        if field != "index" and len(values) != rows:
            raise DatasetError(
                f"{file}: `{keys[field]}` has {len(values)} rows, `{keys['obs']}` has {rows}. Expected one row per "
                f"transition everywhere{_length_hint(len(values) - rows)}."
            )
    if rows == 0:
        raise DatasetError(f"{file}: `{keys['obs']}` has 0 rows. Expected transitions; the file was saved empty.")
    if rows == 1:
        raise DatasetError(f"{file}: `{keys['obs']}` has 1 row. Expected at least 2 transitions to learn from.")
    if "next_obs" in arrays and arrays["next_obs"].shape != arrays["obs"].shape:
        raise DatasetError(
            f"{file}: `{keys['next_obs']}` has {arrays['next_obs'].shape[1]} columns, `{keys['obs']}` has "
            f"{arrays['obs'].shape[1]}. Expected the same observation before and after the action."
        )


def _length_hint(surplus: int) -> str:
    if surplus == -1:
        return "; if the observations hold one more row than the rest, drop the last and save next_observations"
    return ""


def _check_index(index: Array, rows: int, file: str, key: str) -> None:
    expected = f"Expected increasing first rows of the episodes, from 0 to below {rows} (or their ends, up to {rows})"
    if len(index) == 0:
        raise DatasetError(f"{file}: `{key}` is empty. {expected}.")
    if index.min() < 0 or index.max() > rows:
        entry = int(((index < 0) | (index > rows)).argmax())
        raise DatasetError(
            f"{file}: `{key}` entry {entry} is {index[entry]}: out of range. {expected}. Was the index made for "
            "another file, or rows cut off?"
        )
    falling = np.diff(index) <= 0
    if falling.any():
        entry = int(falling.argmax()) + 1
        raise DatasetError(
            f"{file}: `{key}` entry {entry} is {index[entry]} after {index[entry - 1]}: not increasing. {expected}. "
            "Sort it and remove repeats."
        )
    if index[0] != 0 and index[-1] != rows:
        raise DatasetError(
            f"{file}: `{key}` runs from {index[0]} to {index[-1]}. {expected}: it must begin with 0 or end with "
            f"{rows}. If it holds the last row of each episode, add 1."
        )


def _content_warnings(arrays: Mapping[str, Array], keys: Mapping[str, str]) -> list[str]:
    warnings = []
    for field in ("obs", "action"):
        constant = np.flatnonzero(arrays[field].max(0) == arrays[field].min(0))
        if len(constant):
            warnings.append(
                f"`{keys[field]}` is constant in column{'s' if len(constant) > 1 else ''} {_some(constant)}: nothing "
                "can be learned from it."
            )
    action = arrays["action"]
    if (action == np.rint(action)).all() and 1 < len(values := np.unique(action)) <= FEW_VALUES:
        shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
        warnings.append(
            f"`{keys['action']}` takes only the {len(values)} whole numbers {shown}. Discrete actions are not "
            "supported: they will be treated as continuous, and a policy acts between them."
        )
    reward = arrays["reward"]
    if not reward.any():
        warnings.append(f"`{keys['reward']}` is 0 in every row: there is nothing to optimise.")
    elif reward.min() == reward.max():
        warnings.append(f"`{keys['reward']}` is {reward[0]:g} in every row: only episode length can be optimised.")
    if arrays["terminal"].all():
        warnings.append(f"`{keys['terminal']}` is set in every row: every episode is one step long. Was it inverted?")
    share = duplicate_share(arrays)
    if share > 0.5:
        warnings.append(
            f"MOST ROWS ARE COPIES: {share:.0%} of the rows repeat an earlier row exactly. Was the file written twice, "
            "or a buffer saved before it was filled?"
        )
    elif share > 0.001:
        warnings.append(f"{share:.2%} of the rows repeat an earlier row exactly.")
    return warnings


def _some(numbers: npt.NDArray[np.intp], most: int = 20) -> str:
    text = ", ".join(str(number) for number in numbers[:most])
    return text + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def duplicate_share(arrays: Mapping[str, Array]) -> float:
    """Share of rows whose obs, action, reward and next_obs repeat an earlier row bit by bit.

    Rows are compared by a 64-bit hash (FNV-1a over 32-bit words): sorting whole rows would need several copies.
    """
    code = np.full(len(arrays["obs"]), 0xCBF29CE484222325, np.uint64)
    for field in ("obs", "action", "reward", "next_obs"):
        if field in arrays:
            words = arrays[field].view(np.uint32).reshape(len(code), -1)
            for column in words.T:
                code = (code ^ column) * np.uint64(0x100000001B3)
    code.sort()
    return float((code[1:] == code[:-1]).sum() / len(code))


def follows(next_obs: FloatArray, obs: FloatArray, tolerance: FloatArray) -> BoolArray:
    """Rows of next_obs (N, O) equal to those of obs (N, O) within tolerance (O,), column by column to save memory."""
    same = np.ones(len(obs), np.bool_)
    for column in range(obs.shape[1]):
        same &= np.abs(next_obs[:, column] - obs[:, column]) <= tolerance[column]
    return same


def episode_warnings(
    arrays: Mapping[str, Array], end: BoolArray, keys: Mapping[str, str], horizon: int | None
) -> list[str]:
    """What the episode structure gives away: shuffled rows, endless episodes, time limits stored as terminals.

    Args:
        arrays: as `validate` leaves them.
        end: (N,) last rows of episodes.
        keys: field -> name in the file.
        horizon: the environment's step limit, if known.
    """
    warnings = []
    terminal, timeout = arrays["terminal"], arrays.get("timeout", np.zeros(len(end), np.bool_))
    marked = not {"timeout", "index", "episode_id"}.isdisjoint(arrays)
    last = np.flatnonzero(end)
    lengths = np.diff(last, prepend=-1)
    if not (terminal.any() or timeout.any() or {"index", "episode_id"} & arrays.keys()):
        warnings.append(
            "no episode end is marked in the whole file: returns are unknown. Save `terminals` and `timeouts`."
        )
    if horizon is not None and lengths.max() > horizon:
        episode = int((lengths > horizon).argmax())
        warnings.append(
            f"episode {episode} has {lengths[episode]} steps, more than the environment's limit of {horizon}: an "
            "episode end is missing, or the file is from another version of the environment."
        )
    ended = lengths[terminal[last]]
    if len(ended) > 1 and ended[0] > 1 and (ended == ended[0]).all() and not timeout.any():
        warnings.append(
            f"all {len(ended)} terminals come at step {ended[0]} of their episodes: that looks like a time limit "
            f"stored as `{keys['terminal']}`. Time limits belong into `timeouts`, else the last state's value is lost."
        )
    if "next_obs" in arrays:
        obs, next_obs = arrays["obs"], arrays["next_obs"]
        inside = ~end[:-1]
        broken = inside & ~follows(next_obs[:-1], obs[1:], _tolerance(obs))
        share = broken.sum() / max(inside.sum(), 1)
        limit = None if marked else _regular_length(end, broken)
        if limit is not None:
            warnings.append(
                f"every {limit} steps `{keys['next_obs']}` differs from the next row's `{keys['obs']}` (first: row "
                f"{int(broken.argmax())}): probably time limits that are not marked. Save `timeouts`, else episodes "
                "run into each other and their returns and lengths mean nothing."
            )
        elif share > 0.001 and (marked or terminal.any()):
            what = (
                "rows are shuffled, or `{}` is misaligned" if share > 0.5 else "rows are missing, or `{}` is misaligned"
            )
            warnings.append(
                f"inside episodes, `{keys['next_obs']}` differs from the next row's `{keys['obs']}` in {share:.1%} of "
                f"rows (first: row {int(broken.argmax())}): {what.format(keys['next_obs'])}. If each transition by "
                "itself is right, training works, but episode returns and lengths mean nothing."
            )
    return warnings


def _regular_length(end: BoolArray, broken: BoolArray) -> int | None:
    """Steps from an episode's beginning to a broken row (N-1,), if nearly all of several such rows agree on it."""
    last = np.flatnonzero(end[:-1] | broken)
    lengths = np.diff(last, prepend=-1)[broken[last]]
    if len(lengths) < 2:
        return None
    usual = int(np.median(lengths))
    return usual if usual > 1 and (lengths == usual).mean() > 0.9 else None


def joined_rows(obs: FloatArray, next_obs: FloatArray, end: BoolArray) -> BoolArray:
    """Last rows of episodes whose next_obs is the first observation of the *next* episode.

    That happens when a file was made with `next_observations = observations[1:]`. Such a row is told from a log that
    simply goes on after a time limit by its jump: it counts only if the median jump of these rows exceeds the 99th
    percentile of the jumps inside episodes.

    Args:
        obs: (N, O).
        next_obs: (N, O).
        end: (N,) last rows of episodes.

    Returns:
        (N,) bool.
    """
    joined = np.zeros(len(obs), np.bool_)
    last = np.flatnonzero(end[:-1])
    inside = np.flatnonzero(~end)
    if not len(last) or not len(inside):
        return joined
    tolerance = _tolerance(obs)
    same = last[follows(next_obs[last], obs[last + 1], tolerance)]
    if len(same) <= len(last) / 2:
        return joined
    spread = np.maximum(obs.max(0) - obs.min(0), tolerance + np.float32(1e-12))
    sample = inside[:: max(1, len(inside) // 100_000)]
    usual = np.abs((next_obs[sample] - obs[sample]) / spread).sum(1)
    jump = np.abs((next_obs[same] - obs[same]) / spread).sum(1)
    joined[same] = bool(np.median(jump) > np.quantile(usual, 0.99))
    return joined


def _tolerance(obs: FloatArray) -> FloatArray:
    """Rounding that a logger may add, per column: 1e-5 of the spread and 1e-6 of the size."""
    low, high = obs.min(0), obs.max(0)
    tolerance: FloatArray = 1e-5 * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))
    return tolerance
