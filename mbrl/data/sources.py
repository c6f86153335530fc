"""Every dataset string -> `Dataset`: real transitions on the CPU, actions in [-1, 1], checked.

Terminal and time limit are told apart here, once. `terminal` stops a Bellman backup; `timeout` only ends an episode.
Episodes are cut here, once, and no kept row joins two of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor

from mbrl.data.builtin import BUILTIN, builtin_file, cache_folder
from mbrl.data.validate import (
    Array,
    BoolArray,
    DatasetError,
    FloatArray,
    episode_warnings,
    find_keys,
    joined_rows,
    nearest,
    validate,
)
from mbrl.data.write import minari_root
from mbrl.types import Transition

__all__ = ["Dataset", "DatasetError", "Whereabouts", "load_dataset", "whereabouts"]

Bounds = tuple[Array, Array]
Float64Array = npt.NDArray[np.float64]

FORMS = """\
  minari:mujoco/hopper/medium-v0    a Minari id
  d4rl:hopper-medium-v2             a D4RL name
  neorl:HalfCheetah-v3-low          NeoRL, 1000 trajectories (or neorl:HalfCheetah-v3-low-100)
  neorl2:Pipeline                   NeoRL-2
  builtin:pendulum                  made on this machine
  path/to/file.npz, .hdf5 or .h5, or a Minari dataset folder"""


@dataclass(frozen=True)
class Dataset:
    """A dataset ready to train on. Rows stand in file order."""

    name: str  # the string it was asked for
    transitions: Transition  # CPU tensors; action (N, A) in [-1, 1]; real (N,) all True
    episode_end: Tensor  # (N,) bool: last kept row of an episode, for whatever reason
    timeout: Tensor  # (N,) bool: the episode ended here by the time limit
    episode_returns: Float64Array  # (episodes,) raw return of every complete episode, before any row is dropped
    action_low: FloatArray  # (A,) what -1 stands for in the environment
    action_high: FloatArray  # (A,) what +1 stands for
    hash: str  # of the content of all arrays as trained on, whatever the file's name or format
    env_id: str | None  # environment that the dataset names
    reference: tuple[float, float] | None  # (min, max) return recorded in the dataset
    warnings: tuple[str, ...]
    episode_lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # as episode_returns
    incomplete_episodes: int = 0  # episodes that the log cuts off: neither terminal nor time limit
    dropped_rows: int = 0  # rows of the source that have no next observation of their own episode


def no_dataset(name: str, obs_dim: int, action_low: FloatArray, action_high: FloatArray) -> Dataset:
    """No rows at all: what an online run begins with. `name` is the environment's."""
    none = torch.zeros(0, dtype=torch.bool)
    return Dataset(
        name=name,
        transitions=Transition(
            torch.zeros(0, obs_dim),
            torch.zeros(0, len(action_low)),
            torch.zeros(0),
            torch.zeros(0, obs_dim),
            none,
            none,
        ),
        episode_end=none,
        timeout=none,
        episode_returns=np.zeros(0),
        action_low=action_low,
        action_high=action_high,
        hash="none",
        env_id=name,
        reference=None,
        warnings=(),
    )


@dataclass(frozen=True)
class Whereabouts:
    """Where a dataset is looked for on this machine."""

    path: Path  # where it lies or, if it does not, where it should
    here: bool
    source: str  # where to get it, and how


@dataclass
class _Source:
    """What a reader found: raw arrays by field of `validate.FIELDS`, and what the source says about itself."""

    file: str
    arrays: dict[str, Array]
    keys: dict[str, str]
    action_bounds: Bounds | None = None
    env_id: str | None = None
    horizon: int | None = None
    reference: tuple[float, float] | None = None
    warnings: list[str] = field(default_factory=list)


def load_dataset(spec: str, *, action_bounds: tuple[Array, Array] | None = None) -> Dataset:
    """Load, check and cut a dataset.

    Args:
        spec: one of the forms that `FORMS` lists.
        action_bounds: (low, high), each (A,), of the environment's action space. Without it: the dataset's own bounds
            (Minari action space, `action_low` / `action_high` in a file), else [-1, 1] if the data lie within, else the
            data's extremes with a warning.

    Raises:
        DatasetError: the string, the file or its content cannot be used; the message says why and what to do.
    """
    return _assemble(spec, _read(spec), action_bounds)


def whereabouts(spec: str) -> Whereabouts:
    """Where `load_dataset` looks for a dataset of a benchmark, without reading or fetching anything.

    Args:
        spec: a `d4rl:`, `neorl:`, `neorl2:` or `minari:` string.

    Raises:
        DatasetError: another string, or the benchmark has no such name.
    """
    finders = {"d4rl": _find_d4rl, "neorl": _find_neorl, "neorl2": _find_neorl2, "minari": _find_minari}
    prefix, _, name = spec.partition(":")
    if prefix not in finders or not name:
        raise DatasetError(
            f"{spec!r} names no dataset of a benchmark. Expected PREFIX:NAME with one of {', '.join(finders)}."
        )
    return finders[prefix](name)


def _read(spec: str) -> _Source:
    readers: dict[str, Callable[[str], _Source]] = {
        "minari": _minari,
        "d4rl": _d4rl,
        "neorl": _neorl,
        "neorl2": _neorl2,
        "builtin": _builtin,
    }
    prefix, colon, name = spec.partition(":")
    if not spec or (prefix in readers and not name):
        raise DatasetError(f"{spec!r} names no dataset. The forms are:\n{FORMS}")
    if colon and prefix in readers:
        return readers[prefix](name)
    path = Path(spec).expanduser()
    if path.exists():
        return _read_path(path)
    if colon and re.fullmatch(r"[A-Za-z]\w+", prefix):
        near = nearest(prefix, readers)
        hint = f" Did you mean {near[0]}:{name}?" if near else ""
        raise DatasetError(f"unknown dataset prefix {prefix!r} in {spec!r}.{hint} The forms are:\n{FORMS}")
    raise DatasetError(_no_such_file(spec, path))


def _no_such_file(spec: str, path: Path) -> str:
    known = [*(f"d4rl:{name}" for name in d4rl_urls()), *(f"builtin:{name}" for name in BUILTIN)]
    near = [candidate for candidate in known if candidate.partition(":")[2] == spec]
    if not near and path.parent.is_dir():
        near = [str(path.parent / name) for name in nearest(path.name, os.listdir(path.parent))]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return f"{spec}: no such file or folder.{hint} A dataset is given as:\n{FORMS}"


# Files


def _read_path(path: Path) -> _Source:
    if path.is_dir():
        return _minari_folder(path)
    suffix = path.suffix.lower()
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except PermissionError as error:
        raise DatasetError(f"{path}: not readable by this user. Expected read permission: chmod u+r {path}") from error
    if suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib") or re.match(rb"\x80[\x02-\x05]", start):
        raise DatasetError(
            f"{path}: a pickle, which runs code when it is opened, so it is refused. Expected .npz or .hdf5. Where you "
            "trust the file, load it yourself and save its arrays with numpy.savez."
        )
    if not start:
        raise DatasetError(f"{path}: the file is empty (0 bytes). Copy or download it again.")
    if suffix == ".npz":
        return _npz(path)
    if suffix in (".hdf5", ".h5"):
        return _hdf5(path)
    raise DatasetError(f"{path}: unknown file type {suffix or '(no suffix)'!r}. The forms are:\n{FORMS}")


def _npz(path: Path) -> _Source:
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path}: not an .npz archive, or cut off on the way. Expected what numpy.savez writes.")
    file = str(path)
    key = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            with zipfile.ZipFile(path) as members:
                if not any(name.endswith(".npy") for name in members.namelist()):
                    raise DatasetError(f"{path}: a zip file without arrays in it. Expected what numpy.savez writes.")
            keys = find_keys(archive.files, file)
            arrays = {}
            for name, key in keys.items():
                arrays[name] = archive[key]
            own = {}
            for key in ("env_id", "action_low", "action_high"):
                if key in archive.files:
                    own[key] = archive[key]
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(
            f"{path}: `{key}` is an array of Python objects or damaged ({error}). Objects are refused because loading "
            "them runs code. Expected plain numbers: save it as float32, with equally long rows."
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DatasetError(f"{path}: `{key}` is damaged ({error}). Copy or download the file again.") from error
    return _file_source(file, arrays, keys, own)


def _hdf5(path: Path) -> _Source:
    file = str(path)
    if not h5py.is_hdf5(path):
        raise DatasetError(f"{path}: named {path.suffix} but not an HDF5 file. Expected HDF5 in D4RL's layout.")
    key = ""
    try:
        with h5py.File(path, "r") as root:
            if "episode_0" in root:
                raise DatasetError(
                    f"{path}: the inner file of a Minari dataset. Give the dataset's folder: {path.parent.parent}"
                )
            keys = find_keys([str(key) for key in root], file)
            arrays = {}
            for name, key in keys.items():
                dataset = root[key]
                if not isinstance(dataset, h5py.Dataset):
                    raise DatasetError(
                        f"{path}: `{key}` is a group with {', '.join(dataset)}. Expected one array (rows, dimensions). "
                        "Concatenate the parts along the columns and save them as one array."
                    )
                # float64 is narrowed while it is read, chunk by chunk: no second copy.
                wide = dataset.dtype.kind == "f" and dataset.dtype.itemsize > 4
                arrays[name] = (dataset.astype(np.float32) if wide else dataset)[()]
            own = {}
            for key in ("env_id", "action_low", "action_high"):
                if key in root.attrs:
                    own[key] = np.asarray(root.attrs[key])
                elif key in root:
                    own[key] = root[key][()]
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        what = f"`{key}` cannot be read" if key else "cannot be opened"
        raise DatasetError(
            f"{path}: {what}: truncated or damaged HDF5 ({error}). Copy or download it again."
        ) from error
    return _file_source(file, arrays, keys, own)


def _file_source(file: str, arrays: dict[str, Array], keys: dict[str, str], own: dict[str, Any]) -> _Source:
    """`own`: what the file says about its environment: `env_id`, `action_low`, `action_high`."""
    bounds: Bounds | None = None
    if "action_low" in own and "action_high" in own:
        bounds = np.asarray(own["action_low"], np.float32), np.asarray(own["action_high"], np.float32)
    env_id = own.get("env_id")
    if env_id is not None:
        text = env_id.item() if isinstance(env_id, np.ndarray) else env_id
        env_id = text.decode() if isinstance(text, bytes) else str(text)
    known = gymnasium.registry.get(env_id) if env_id else None
    horizon = known.max_episode_steps if known else None
    return _Source(file, arrays, keys, action_bounds=bounds, env_id=env_id, horizon=horizon)


def _builtin(name: str) -> _Source:
    if name not in BUILTIN:
        near = ", ".join(f"builtin:{near}" for near in nearest(name, BUILTIN) or BUILTIN)
        raise DatasetError(f"no built-in dataset {name!r}. Nearest: {near}.")
    return _read_path(builtin_file(name))


# D4RL


def d4rl_urls() -> dict[str, str]:
    """D4RL name -> where its file is published (d4rl/infos.py)."""
    root = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
    urls = {}
    for agent in ("hopper", "walker2d", "halfcheetah", "ant"):
        for policy in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
            urls[f"{agent}-{policy}-v2"] = f"{root}/gym_mujoco_v2/{agent}_{policy.replace('-', '_')}-v2.hdf5"
    for hand in ("pen", "hammer", "door", "relocate"):
        for policy in ("human", "cloned", "expert"):
            urls[f"{hand}-{policy}-v1"] = f"{root}/hand_dapg_v1/{hand}-{policy}-v1.hdf5"
    for size in ("umaze", "medium", "large"):
        urls[f"maze2d-{size}-v1"] = f"{root}/maze2d/maze2d-{size}-sparse-v1.hdf5"
        urls[f"maze2d-{size}-dense-v1"] = f"{root}/maze2d/maze2d-{size}-dense-v1.hdf5"
    urls["maze2d-open-v0"] = f"{root}/maze2d/maze2d-open-sparse.hdf5"
    urls["maze2d-open-dense-v0"] = f"{root}/maze2d/maze2d-open-dense.hdf5"
    for name, maze, many in (
        ("umaze", "u-maze", (False, False)),
        ("umaze-diverse", "u-maze", (True, True)),
        ("medium-play", "big-maze", (True, False)),
        ("medium-diverse", "big-maze", (True, True)),
        ("large-play", "hardest-maze", (True, False)),
        ("large-diverse", "hardest-maze", (True, True)),
    ):
        stem = f"Ant_maze_{maze}_noisy_multistart_{many[0]}_multigoal_{many[1]}_sparse_fixed"
        urls[f"antmaze-{name}-v2"] = f"{root}/ant_maze_v2/{stem}.hdf5"
    for name, stem in (
        ("complete", "mini_kitchen_microwave_kettle_light_slider"),
        ("partial", "kitchen_microwave_kettle_light_slider"),
        ("mixed", "kitchen_microwave_kettle_bottomburner_light"),
    ):
        urls[f"kitchen-{name}-v0"] = f"{root}/kitchen/{stem}-v0.hdf5"
    return urls


def _find_d4rl(name: str) -> Whereabouts:
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")
    urls = d4rl_urls()
    url = urls.get(name)
    names = [f"{name}.hdf5"] if url is None else [url.rpartition("/")[2], f"{name}.hdf5"]
    for candidate in names:
        if (folder / candidate).exists():
            return Whereabouts(folder / candidate, True, url or "your own")
    if url is None:
        near = ", ".join(f"d4rl:{near}" for near in nearest(name, urls))
        raise DatasetError(
            f"unknown D4RL dataset {name!r}, and no {folder / names[0]}.{f' Nearest: {near}.' if near else ''}"
        )
    return Whereabouts(folder / names[0], False, url)


def _d4rl(name: str) -> _Source:
    found = _find_d4rl(name)
    if not found.here:
        download(found.source, found.path)
    return _hdf5(found.path)


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path`, which appears only when it is complete.

    Raises:
        DatasetError: with the manual way out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            with Progress(*columns, transient=True) as progress:
                task = progress.add_task(path.name, total=total or None)
                while block := answer.read(1 << 20):
                    file.write(block)
                    progress.advance(task, len(block))
            if total and file.tell() != total:
                raise OSError(f"the connection ended after {file.tell()} of {total} bytes")
        os.replace(temporary, path)
    except (OSError, urllib.error.URLError) as error:
        raise DatasetError(
            f"{path} is not there and could not be downloaded from {url} ({error}). Without a network: fetch that file "
            f"on another machine and copy it to {path}."
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


# NeoRL


NEORL = tuple(
    f"{task}-v3-{policy}" for task in ("HalfCheetah", "Hopper", "Walker2d") for policy in ("low", "medium", "high")
)
NEORL2 = (
    *("Pipeline", "Simglucose", "RocketRecovery", "RandomFrictionHopper"),
    *("DMSD", "Fusion", "SafetyHalfCheetah", "Salespromotion"),
)


def _neorl_name(name: str) -> tuple[str, int]:
    """Task and policy, and the wanted number of trajectories."""
    match = re.fullmatch(r"([-\w]+-(?:low|medium|high))(?:-(\d+))?", name)
    if match is None:
        raise DatasetError(
            f"{name!r} is no NeoRL name. Expected task-policy, e.g. neorl:HalfCheetah-v3-low, with low, medium or "
            "high, and if wanted a number of trajectories: neorl:HalfCheetah-v3-low-100."
        )
    return match[1], int(match[2] or 1000)


def _neorl_sizes(folder: Path, stem: str) -> dict[int, Path]:
    """Number of trajectories -> file."""
    return {
        int(size[1]): path
        for path in sorted(folder.glob(f"**/{stem}-*.npz"))
        if (size := re.fullmatch(rf"{re.escape(stem)}-(\d+)-train.*", path.stem))
    }


def _find_neorl(name: str) -> Whereabouts:
    stem, wanted = _neorl_name(name)
    folder = _neorl_folder("neorl")
    enough = {size: path for size, path in _neorl_sizes(folder, stem).items() if size >= wanted}
    return Whereabouts(
        enough[min(enough)] if enough else folder / f"{stem}-{wanted}-train.npz",
        bool(enough),
        "NeoRL's own package (github.com/polixir/NeoRL, get_dataset), which keeps it in its data folder",
    )


def _neorl(name: str) -> _Source:
    stem, wanted = _neorl_name(name)
    found = _find_neorl(name)
    folder = _neorl_folder("neorl")
    if not found.here:
        raise DatasetError(
            f"{folder}: no {stem}-N-train.npz with N >= {wanted} trajectories{_beside(folder)}."
            f"{_other_name('neorl', stem, NEORL)} NeoRL is not downloaded from here: get the file with {found.source}, "
            f"and copy it to {folder}, or name its folder in NEORL_DATASET_DIR."
        )
    source = _npz(found.path)
    if not found.path.stem.startswith(f"{stem}-{wanted}-train"):
        _first_trajectories(source, wanted)
    return source


def _neorl_folder(benchmark: str) -> Path:
    return Path(os.environ.get("NEORL_DATASET_DIR") or cache_folder() / benchmark)


def _first_trajectories(source: _Source, wanted: int) -> None:
    """Cut a source to its first `wanted` trajectories, as NeoRL's own loader does."""
    index = source.arrays.get("index")
    if index is None:
        raise DatasetError(
            f"{source.file}: no `index`, so the first {wanted} trajectories cannot be told apart. Ask for all of them."
        )
    ends = [int(end) for end in index.reshape(-1) if end > 0]
    if wanted <= len(ends):
        rows = ends[wanted - 1]
        source.arrays = {name: values[:rows] for name, values in source.arrays.items() if name != "index"}
        source.arrays["index"] = np.asarray(ends[:wanted])


def _find_neorl2(name: str) -> Whereabouts:
    folder = _neorl_folder("neorl2")
    found = sorted(path for path in folder.glob("**/*-train.npz") if path.name.startswith(f"{name}-"))
    return Whereabouts(
        found[0] if found else folder / f"{name}-high-100000-train.npz",
        bool(found),
        f"github.com/polixir/neorl2_dataset (scripts/dataset/{name})",
    )


def _neorl2(name: str) -> _Source:
    found = _find_neorl2(name)
    folder = _neorl_folder("neorl2")
    if not found.here:
        raise DatasetError(
            f"{folder}: no {name}-...-train.npz{_beside(folder)}.{_other_name('neorl2', name, NEORL2)} NeoRL-2 is not "
            f"downloaded from here: take {found.path.name} from {found.source} and copy it to {folder}, or name its "
            "folder in NEORL_DATASET_DIR."
        )
    return _npz(found.path)


def _other_name(prefix: str, name: str, names: tuple[str, ...]) -> str:
    near = [] if name in names else nearest(name, names)
    return f" Did you mean {prefix}:{near[0]}?" if near else ""


def _beside(folder: Path) -> str:
    if not folder.is_dir():
        return " (there is no such folder)"
    names = sorted(path.name for path in folder.glob("**/*.npz"))
    return (
        f" (it has {', '.join(names[:10])}{', ...' if len(names) > 10 else ''})" if names else " (it has no .npz files)"
    )


# Minari


def _find_minari(name: str) -> Whereabouts:
    if not re.fullmatch(r"[-\w]+(/[-\w]+)*-v\d+", name):
        raise DatasetError(
            f"{name!r} is no Minari id. Expected namespace/dataset-vN, e.g. minari:mujoco/hopper/medium-v0."
        )
    folder = minari_root(None) / name
    return Whereabouts(folder, (folder / "data").exists(), f"minari download {name}")


def _minari(name: str) -> _Source:
    found = _find_minari(name)
    if found.here:
        return _minari_folder(found.path)
    import minari

    root = minari_root(None)
    local = nearest(name, minari.list_local_datasets())
    beside = f" Nearest local: {', '.join(local)}." if local else ""
    try:
        minari.download_dataset(name)
    except ImportError as error:
        raise DatasetError(
            f"minari:{name} is not in {root}, and downloading needs another package. Run pip install "
            f"'offline-mbrl[download]', or copy the dataset's folder to {root / name}.{beside}"
        ) from error
    except Exception as error:  # the remote's client raises its own types, which need not be installed
        raise DatasetError(
            f"minari:{name} is not in {root} and could not be downloaded ({type(error).__name__}: {error}). Check the "
            f"id and the network, or copy the dataset's folder to {root / name}.{beside}"
        ) from error
    return _minari_folder(root / name)


def _minari_folder(path: Path) -> _Source:
    from minari import MinariDataset

    data = path / "data" if (path / "data").is_dir() else path
    if not (data / "metadata.json").exists():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise DatasetError(
            f"{path}: a folder, but no Minari dataset (no data/metadata.json; it has {inside}). "
            "Expected a Minari dataset's folder, or a path to one .npz or .hdf5 file."
        )
    try:
        dataset = MinariDataset(data)
    except (ValueError, KeyError, AssertionError, OSError, ImportError) as error:
        raise DatasetError(f"{path}: not a readable Minari dataset ({type(error).__name__}: {error}).") from error
    source = _Source(str(path), {}, dict(_MINARI_KEYS))
    space = dataset.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise DatasetError(f"{path}: actions are {space}. Expected a Box with one axis: continuous control only.")
    source.action_bounds = np.asarray(space.low, np.float32), np.asarray(space.high, np.float32)
    parts = list(_leaves(dataset.observation_space, "observations", path))
    if len(parts) > 1:
        source.warnings.append(
            f"observations are a {type(dataset.observation_space).__name__}; flattened by concatenating "
            f"{', '.join(f'{name} ({size})' for name, _, size in parts)}, as gymnasium's FlattenObservation does."
        )
    if dataset.env_spec is not None:
        source.env_id, source.horizon = dataset.env_spec.id, dataset.env_spec.max_episode_steps
    metadata = dataset.storage.metadata
    if metadata.get("ref_min_score") is not None and metadata.get("ref_max_score") is not None:
        source.reference = float(metadata["ref_min_score"]), float(metadata["ref_max_score"])
    source.arrays = _minari_arrays(dataset, parts, space.shape[0], path)
    return source


_MINARI_KEYS = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "observations[1:]",
    "terminal": "terminations",
    "timeout": "truncations",
    "episode_id": "episode",
}
_Pick = Callable[[Any], Any]


def _leaves(space: gymnasium.Space[Any], name: str, path: Path) -> Iterator[tuple[str, _Pick, int]]:
    """Name, access and flat size of every Box in an observation space, in gymnasium's order of flattening."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        named = space.spaces.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space.spaces)
        for key, inner in named:
            for leaf, pick, size in _leaves(inner, f"{name}[{key!r}]", path):
                yield leaf, _compose(pick, key), size
    elif isinstance(space, gymnasium.spaces.Box) and not (space.dtype == np.uint8 and len(space.shape) >= 2):
        yield name, lambda value: value, int(np.prod(space.shape))
    else:
        raise DatasetError(
            f"{path}: {name} is {str(space)[:120]}. Expected a Box of numbers, or a Dict or Tuple of such: images and "
            "discrete observations are not supported. Encode them as vectors and save a new dataset."
        )


def _compose(pick: _Pick, key: Any) -> _Pick:
    return lambda value: pick(value[key])


def _minari_arrays(dataset: Any, parts: list[tuple[str, _Pick, int]], action_dim: int, path: Path) -> dict[str, Array]:
    """Fill preallocated arrays episode by episode: obs[:-1] and obs[1:] of each."""
    rows = dataset.total_steps
    width = sum(size for _, _, size in parts)
    obs, next_obs = np.empty((rows, width), np.float32), np.empty((rows, width), np.float32)
    action, reward = np.empty((rows, action_dim), np.float32), np.empty(rows, np.float32)
    terminal, timeout, number = np.empty(rows, np.bool_), np.empty(rows, np.bool_), np.empty(rows, np.int64)
    row = 0
    try:
        for count, episode in enumerate(dataset.iterate_episodes()):
            steps = len(episode.rewards)
            here = slice(row, row + steps)
            column = 0
            for name, pick, size in parts:
                values = np.asarray(pick(episode.observations))
                if len(values) != steps + 1:
                    raise DatasetError(
                        f"{path}: episode {episode.id} has {len(values)} `{name}` for {steps} steps. Expected one more "
                        "observation than steps: the last one is what the last action led to."
                    )
                with np.errstate(over="ignore"):
                    flat = values.reshape(steps + 1, size)
                    obs[here, column : column + size] = flat[:-1]
                    next_obs[here, column : column + size] = flat[1:]
                column += size
            action[here], reward[here] = episode.actions, episode.rewards
            terminal[here], timeout[here], number[here] = episode.terminations, episode.truncations, count
            row += steps
    except DatasetError:
        raise
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise DatasetError(f"{path}: the episode after row {row} cannot be read ({error}). Copy it again.") from error
    if row != rows:
        raise DatasetError(f"{path}: metadata promise {rows} steps, the episodes hold {row}. Copy the dataset again.")
    return {
        "obs": obs,
        "action": action,
        "reward": reward,
        "next_obs": next_obs,
        "terminal": terminal,
        "timeout": timeout,
        "episode_id": number,
    }


# Arrays -> Dataset


def _assemble(name: str, source: _Source, action_bounds: Bounds | None) -> Dataset:
    arrays, file, keys = source.arrays, source.file, source.keys
    warnings = [*source.warnings, *validate(arrays, file, keys)]
    terminal: BoolArray = arrays["terminal"]
    timeout, end, flag_warnings = _episode_flags(arrays, keys)
    warnings += flag_warnings + episode_warnings(arrays, end, keys, source.horizon)

    last = np.flatnonzero(end)
    first = np.concatenate([[0], last[:-1] + 1])
    complete = (terminal | timeout)[last]
    returns = np.add.reduceat(arrays["reward"].astype(np.float64), first)[complete]
    lengths = (last - first + 1)[complete]

    keep = _kept_rows(arrays, end, file, keys, warnings)
    obs, next_obs = arrays["obs"], arrays["next_obs"]
    episode: Array = np.cumsum(end) - end
    action, reward = arrays["action"], arrays["reward"]
    if not keep.all():
        obs, next_obs, action, reward = obs[keep], next_obs[keep], action[keep], reward[keep]
        terminal, timeout, episode = terminal[keep], timeout[keep], episode[keep]
        if len(obs) < 2:
            raise DatasetError(f"{file}: {len(obs)} rows are left of {len(keep)}. Expected episodes of several steps.")
    end = np.append(episode[1:] != episode[:-1], True)

    action, low, high = _scale_actions(
        action.astype(np.float32, copy=False), action_bounds or source.action_bounds, file, keys["action"], warnings
    )
    content = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, "terminal": terminal}
    return Dataset(
        name=name,
        transitions=Transition(
            **{key: torch.from_numpy(values) for key, values in content.items()},
            real=torch.ones(len(obs), dtype=torch.bool),
        ),
        episode_end=torch.from_numpy(end),
        timeout=torch.from_numpy(timeout),
        episode_returns=returns,
        action_low=low,
        action_high=high,
        hash=_digest({**content, "timeout": timeout, "episode_end": end}),
        env_id=source.env_id,
        reference=source.reference,
        warnings=tuple(warnings),
        episode_lengths=lengths.astype(np.int64),
        incomplete_episodes=int((~complete).sum()),
        dropped_rows=int((~keep).sum()),
    )


def _episode_flags(arrays: dict[str, Array], keys: dict[str, str]) -> tuple[BoolArray, BoolArray, list[str]]:
    """timeout (N,), last rows of episodes (N,), and warnings."""
    warnings = []
    terminal = arrays["terminal"].astype(np.bool_, copy=False)
    rows = len(terminal)
    boundary = np.zeros(rows, np.bool_)
    if "index" in arrays:
        # First rows (from 0) and exclusive ends (to N) name the same boundaries.
        boundary[arrays["index"][arrays["index"] > 0] - 1] = True
        boundary[-1] = True
    if "episode_id" in arrays:
        boundary[:-1] |= arrays["episode_id"][1:] != arrays["episode_id"][:-1]
        boundary[-1] = True
    if "timeout" in arrays:
        both = terminal & arrays["timeout"].astype(np.bool_, copy=False)
        timeout = arrays["timeout"].astype(np.bool_, copy=False) & ~terminal
        if both.any():
            warnings.append(
                f"{both.sum()} rows are flagged both `{keys['terminal']}` and `{keys['timeout']}` (first: row "
                f"{int(both.argmax())}): taken as terminal. If `{keys['terminal']}` means 'ended for any reason', save "
                "the terminal flag alone instead, else time limits count as failures."
            )
    else:
        # Where episodes are marked by their boundaries alone, what did not terminate ran out of time.
        timeout = boundary & ~terminal
        if keys["terminal"] in ("done", "dones") and not boundary.any():
            warnings.append(
                f"`{keys['terminal']}` stands alone, without `truncated` or `index`: taken as terminal. If it is also "
                "set at time limits, save `terminals` and `timeouts` separately."
            )
    end = terminal | timeout | boundary
    end[-1] = True
    return timeout, end, warnings


def _kept_rows(
    arrays: dict[str, Array], end: BoolArray, file: str, keys: dict[str, str], warnings: list[str]
) -> BoolArray:
    """Rows (N,) with a next observation of their own episode; fills in `next_obs` where the file has none."""
    obs = arrays["obs"]
    if "next_obs" in arrays:
        joined = joined_rows(obs, arrays["next_obs"], end)
        if joined.any():
            warnings.append(
                f"at {joined.sum()} episode ends `{keys['next_obs']}` is the first observation of the next episode "
                f"(first: row {int(joined.argmax())}): those rows are dropped, {(joined & arrays['terminal']).sum()} "
                "terminal ones among them. Log the true last observation to keep them."
            )
        return ~joined
    if not end[:-1].any():
        raise DatasetError(
            f"{file}: neither next observations nor episode ends. Expected one of them: without both, a row before a "
            "reset would be learned as a step. Save `next_observations`, or `timeouts` and `terminals`."
        )
    arrays["next_obs"] = np.concatenate([obs[1:], obs[-1:]])
    warnings.append(
        f"no next observations in the file: taken from the following row. The last row of each episode has none and is "
        f"dropped: {end.sum()} rows, {(end & arrays['terminal']).sum()} of them terminal."
    )
    if not {"timeout", "index", "episode_id"} & arrays.keys():
        warnings.append(
            "NEITHER NEXT OBSERVATIONS NOR TIME LIMITS are in the file: if episodes are also cut by time, the row "
            "before each reset is learned as a step. Save `timeouts`."
        )
    return ~end


def _scale_actions(
    action: FloatArray, bounds: Bounds | None, file: str, key: str, warnings: list[str]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """action (N, A) in environment units -> the same in [-1, 1], and what -1 and +1 stand for, (A,) each."""
    least, most = action.min(0), action.max(0)
    from_data = np.zeros(len(least), np.bool_)
    if bounds is not None:
        low, high = (np.array(bound, np.float32) for bound in bounds)
        if low.shape != least.shape or high.shape != least.shape:
            raise DatasetError(
                f"{file}: `{key}` has {len(least)} columns, the environment's action space has shape {low.shape}. "
                "Expected the same: is it the right environment for this dataset?"
            )
        from_data = ~(np.isfinite(low) & np.isfinite(high))
        reason = "the action space is unbounded there"
    elif least.min() >= -1 and most.max() <= 1:
        low, high = -np.ones_like(least), np.ones_like(most)
    else:
        low, high = least.copy(), most.copy()
        from_data[:] = True
        reason = "no action space is known and the data leave [-1, 1]"
    if from_data.any():
        # A constant column has no range; the unit around it maps it to 0.
        width = np.where(most > least, 0.0, 1.0).astype(np.float32)
        low, high = np.where(from_data, least - width, low), np.where(from_data, most + width, high)
        warnings.append(
            f"`{key}` columns {', '.join(map(str, np.flatnonzero(from_data)))}: scaled by the data's own extremes, "
            f"because {reason}. The policy cannot leave them; name the environment (env=) to use its bounds."
        )
    if (low >= high).any():
        column = int((low >= high).argmax())
        raise DatasetError(
            f"{file}: action bounds of column {column} are {low[column]} and {high[column]}. Expected low < high."
        )
    slack = 1e-3 * (high - low)
    outside = np.flatnonzero((least < low - slack) | (most > high + slack))
    if len(outside):
        column = int(outside[0])
        values = action[:, column]
        row = int(((values < low[column] - slack[column]) | (values > high[column] + slack[column])).argmax())
        raise DatasetError(
            f"{file}: `{key}` row {row}, column {column} is {values[row]}, outside the action bounds [{low[column]}, "
            f"{high[column]}]. Expected the actions that the environment was given. Was the file scaled or made for "
            "another environment? Clip or rescale the actions, or name the right environment."
        )
    overshoot = float(np.max(np.maximum(low - least, most - high) / (high - low)))
    if overshoot > 1e-6:
        warnings.append(f"`{key}` leaves the action bounds by up to {overshoot:.2g} of their range: clipped.")
    if not ((low == -1).all() and (high == 1).all()):
        if not from_data.any() and (np.abs(least + 1) < 1e-3).all() and (np.abs(most - 1) < 1e-3).all():
            warnings.append(
                f"`{key}` fills [-1, 1] exactly, but the action bounds are {low.tolist()} and {high.tolist()}: if the "
                "file holds scaled actions, scale them back to the environment's units."
            )
        action = (action - low) * (2 / (high - low)).astype(np.float32) - np.float32(1)
    return np.clip(action, -1, 1, out=action), low, high


def _digest(arrays: dict[str, Array]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, values in arrays.items():
        digest.update(f"{name} {values.dtype.str} {values.shape};".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
