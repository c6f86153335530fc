"""Episodes -> Minari datasets and HDF5 files in D4RL's layout. A set appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import numpy.typing as npt

from mbrl.checkpoint import atomic_write
from mbrl.data.validate import DatasetError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One whole episode of T steps: it ended by the task (`terminated`) or, if not, by its time limit.

    Attributes:
        obs: (T+1, O), the last one is what the last action led to.
        action: (T, A) as the environment received them, in its own units.
        reward: (T,) as the environment gave them.
        terminated: the task ended; never a time limit.
        seed: that the environment was reset with.
    """

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    terminated: bool
    seed: int

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.reward.sum(dtype=np.float64))


def minari_root(folder: Path | None) -> Path:
    """Where Minari datasets live: `folder`, else `$MINARI_DATASETS_PATH`, else `~/.minari/datasets`."""
    return Path(folder or os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets").expanduser()


def dataset_id(namespace: str, env: str, level: str, version: int) -> str:
    """`mbrl/hopper-v5/medium-v0` for Hopper-v5.

    Raises:
        DatasetError: the namespace or level cannot be part of a Minari id.
    """
    name = re.sub(r"[^-\w]+", "-", env.rpartition(":")[2].lower())
    whole = f"{namespace}/{name}/{level}-v{version}"
    if not re.fullmatch(r"[-\w]{2,}(/[-\w]{2,})*/[-\w]+-v\d+", whole):
        raise DatasetError(
            f"{whole!r} is no Minari id: namespace={namespace!r} and the set's name {level!r} may hold letters, "
            "digits, - and _ (a namespace also /), and version= is 0 or more"
        )
    return whole


def hdf5_path(root: Path, name: str) -> Path:
    """The D4RL-style file of a dataset id: beside its Minari folder."""
    return root / f"{name}.hdf5"


def read_metadata(root: Path, name: str) -> dict[str, Any] | None:
    """`metadata.json` of a dataset id below `root`; None if nothing is there.

    Raises:
        DatasetError: something is there that is no Minari dataset.
    """
    if not (root / name).exists():
        return None
    try:
        found = json.loads((root / name / "data" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{root / name} exists and is no whole Minari dataset ({error}); move it away") from error
    assert isinstance(found, dict)
    return found


def write_minari(
    root: Path,
    name: str,
    episodes: Sequence[Episode],
    env: gymnasium.Env[Any, Any],
    metadata: Mapping[str, Any],
    *,
    author: Sequence[str],
    author_email: Sequence[str],
    algorithm_name: str,
    description: str,
    code_permalink: str | None,
    requirements: Sequence[str],
) -> Path:
    """Write a Minari dataset under the id `name` and return its folder.

    Spaces are the environment's with float32 numbers, which is what the arrays hold. The environment's spec goes with
    the data, so that `recover_environment` works, unless `env` has none (one of your own that is not registered).

    Args:
        root: folder of all Minari datasets.
        name: Minari id, see `dataset_id`.
        episodes: whole episodes, in order.
        env: that the data come from.
        metadata: further entries of `metadata.json`; only what JSON can hold.
        author: names.
        author_email: addresses, or none.
        algorithm_name: who acted.
        description: how the data were made.
        code_permalink: where the code is, or None.
        requirements: packages that the environment needs, as for pip.

    Raises:
        DatasetError: the id is taken.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.namespace import create_namespace, list_local_namespaces

    root = root.resolve()  # Minari fails in a relative folder
    target = root / name
    if target.exists():
        raise DatasetError(f"{target} exists already; choose another version=, namespace= or out=")
    buffers = []
    for number, episode in enumerate(episodes):
        last = np.arange(len(episode)) == len(episode) - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=episode.seed,
                observations=episode.obs,
                actions=episode.action,
                rewards=episode.reward,
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
            )
        )
    root.mkdir(parents=True, exist_ok=True)
    # On the same file system, and hidden: Minari's own listing passes over it.
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
    try:
        with _minari_folder(staging), warnings.catch_warnings():
            # Recommendations for sets that are about to be published.
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")
            written = minari.create_dataset_from_buffers(
                dataset_id=name,
                buffer=buffers,
                env=env if env.spec is not None else None,
                eval_env=env if env.spec is not None else None,
                observation_space=_float32(env.observation_space),
                action_space=_float32(env.action_space),
                algorithm_name=algorithm_name,
                author=set(author),
                author_email=set(author_email) or None,
                code_permalink=code_permalink,
                description=description,
                requirements=list(requirements),
            )
            written.storage.update_metadata(dict(metadata))
        with _minari_folder(root):
            namespace = name.rpartition("/")[0]
            if namespace not in list_local_namespaces():
                create_namespace(namespace)
        os.replace(staging / name, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def write_hdf5(
    path: Path,
    episodes: Sequence[Episode],
    *,
    env_id: str,
    source: str,
    action_low: npt.NDArray[Any],
    action_high: npt.NDArray[Any],
) -> None:
    """Write one HDF5 file as D4RL's v2 files are: rows of all episodes, one after the other.

    Arrays observations, actions, rewards, next_observations, terminals, timeouts; attributes env_id, source (a line
    that says how the data were made), action_low and action_high (A,).
    """
    lengths = np.array([len(episode) for episode in episodes])
    last = np.zeros(lengths.sum(), np.bool_)
    last[lengths.cumsum() - 1] = True
    terminated = np.repeat([episode.terminated for episode in episodes], lengths)
    arrays: dict[str, npt.NDArray[Any]] = {
        "observations": np.concatenate([episode.obs[:-1] for episode in episodes]),
        "actions": np.concatenate([episode.action for episode in episodes]),
        "rewards": np.concatenate([episode.reward for episode in episodes]),
        "next_observations": np.concatenate([episode.obs[1:] for episode in episodes]),
        "terminals": last & terminated,
        "timeouts": last & ~terminated,
    }
    attributes = {"env_id": env_id, "source": source, "action_low": action_low, "action_high": action_high}

    def fill(name: str) -> None:
        with h5py.File(name, "w") as file:
            for key, values in arrays.items():
                file.create_dataset(key, data=values, compression="gzip", compression_opts=1)
            file.attrs.update(attributes)

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: fill(file.name))


def _float32(space: gymnasium.Space[Any]) -> gymnasium.spaces.Box:
    assert isinstance(space, gymnasium.spaces.Box)
    return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


@contextmanager
def _minari_folder(folder: Path) -> Iterator[None]:
    """Minari takes its folder from the environment variable alone."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
