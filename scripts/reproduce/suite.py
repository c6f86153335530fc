"""Datasets of the benchmark scripts, before anything is trained.

    python suite.py check TASK ...                         exit status 1 and a list, if a task's dataset is not here
    python suite.py smoke BENCHMARK TARGET DATA TASK ...    prepare TARGET for a smoke and print the tasks that it has

A smoke takes what is found in DATA (or, without one, where docs/data.md says): the benchmark's own files, and for D4RL
also files of its layout without a version in their names, such as hopper-medium.hdf5. Where none is found, small files
of the benchmark's format are made up, from random actions in the task's environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from mbrl.data.sources import DatasetError, whereabouts
from mbrl.data.tasks import Task, TaskError, find_task
from mbrl.data.write import Episode, write_hdf5, write_minari

FOLDERS = ("D4RL_DATASET_DIR", "NEORL_DATASET_DIR", "MINARI_DATASETS_PATH")
# Made up where there is nothing: tasks whose termination function fits a made-up system or whose environment we have.
MADE_UP = {
    "d4rl": ("hopper-medium-v2", "halfcheetah-medium-v2"),
    "neorl": ("Hopper-v3-low", "HalfCheetah-v3-low"),
    "neorl2": ("Pipeline", "DMSD"),
    "minari": ("mujoco/hopper/medium-v0", "mujoco/invertedpendulum/medium-v0"),
}
STEPS = 2000
SOURCE = "made up by scripts/reproduce/suite.py: random actions"


def check(tasks: list[str]) -> int:
    """0 if all datasets are here, else 1 and what is missing, where it belongs and where to get it."""
    places = [whereabouts(find_task(task).dataset) for task in tasks]
    missing = [place for place in places if not place.here]
    if missing:
        print(f"{len(missing)} of {len(tasks)} datasets are not on this machine:", file=sys.stderr)
        for place in missing:
            print(f"  {place.path}\n      from {place.source}", file=sys.stderr)
        print(
            "Put them there, or name the folder that has them: DATA=FOLDER. Those of D4RL and Minari are fetched by "
            "`mbrl inspect`,\nfor example `mbrl inspect d4rl:hopper-medium-v2`. TASKS='...' runs fewer tasks.",
            file=sys.stderr,
        )
    return 1 if missing else 0


def smoke(benchmark: str, target: Path, data: str, tasks: list[str]) -> list[str]:
    """The tasks that a smoke can run on what lies in `target` afterwards."""
    target.mkdir(parents=True, exist_ok=True)
    if data:
        os.environ.update(dict.fromkeys(FOLDERS, data))
    ready = []
    for name in tasks:
        place = whereabouts(find_task(name).dataset)
        # Relative to the benchmark's folder a Minari set has an id, and D4RL's and NeoRL's files have a name.
        there = target / (name if benchmark == "minari" else place.path.name)
        found = place.path if place.here else like_d4rl(name, Path(data)) if benchmark == "d4rl" and data else None
        if found is not None:
            there.parent.mkdir(parents=True, exist_ok=True)
            if there.is_symlink():
                there.unlink()
            if not there.exists():  # made up for an earlier smoke
                there.symlink_to(found.resolve())
            print(f"{name}: {there.resolve()}", file=sys.stderr)
            ready.append(name)
    if ready:
        return ready
    os.environ.update(dict.fromkeys(FOLDERS, str(target)))
    for name in MADE_UP[benchmark]:
        place = whereabouts(find_task(name).dataset)
        if not place.here:
            make_up(benchmark, find_task(name), place.path, target)
        print(f"{name}: no dataset found; {STEPS} steps made up in {place.path}", file=sys.stderr)
    return list(MADE_UP[benchmark])


def like_d4rl(name: str, data: Path) -> Path | None:
    """`hopper-medium.hdf5` somewhere below `data` for the task hopper-medium-v2: of that layout, not D4RL's own."""
    return next(iter(sorted(data.glob(f"**/{name.removesuffix('-v2')}.hdf5"))), None)


def make_up(benchmark: str, task: Task, path: Path, root: Path) -> None:
    """Write `STEPS` steps or some more in the benchmark's own format."""
    from mbrl.data.collect import Player, uniform_policy  # slow to import, and seldom needed

    if task.env is None:
        episodes, low, high = linear_system(task.horizon), np.array([-1.0]), np.array([1.0])
    else:
        player = Player(task.env, seed=0, horizon=min(task.horizon, 200), env_kwargs=task.env_kwargs)
        low, high, episodes = player.action_low, player.action_high, []
        while sum(map(len, episodes)) < STEPS:
            episodes.append(player.episode("made up", len(episodes), uniform_policy))
    if benchmark == "d4rl":
        write_hdf5(path, episodes, env_id=str(task.env), source=SOURCE, action_low=low, action_high=high)
    elif benchmark == "minari":
        write_minari(
            root, task.name, episodes, player.env, {}, author=["nobody"], author_email=[], algorithm_name="random",
            description=SOURCE, code_permalink=None, requirements=[],
        )  # fmt: skip
    else:
        lengths = np.array([len(episode) for episode in episodes])
        last = np.zeros(lengths.sum(), np.bool_)
        last[lengths.cumsum() - 1] = True
        terminated = last & np.repeat([episode.terminated for episode in episodes], lengths)
        # NeoRL marks episodes by their exclusive ends, NeoRL-2 by a second flag.
        ends = {"index": lengths.cumsum()} if benchmark == "neorl" else {"truncated": last & ~terminated}
        np.savez(
            path,
            obs=np.concatenate([episode.obs[:-1] for episode in episodes]),
            next_obs=np.concatenate([episode.obs[1:] for episode in episodes]),
            action=np.concatenate([episode.action for episode in episodes]),
            reward=np.concatenate([episode.reward for episode in episodes])[:, None],
            done=terminated[:, None],
            **ends,
        )


def linear_system(horizon: int) -> list[Episode]:
    """Episodes of a small stable system with noise, for tasks whose environment cannot be had."""
    source = np.random.default_rng(0)
    dynamics = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 0.8]])
    episodes: list[Episode] = []
    while sum(map(len, episodes)) < STEPS:
        action = source.uniform(-1, 1, (min(horizon, 200), 1)).astype(np.float32)
        obs = [source.normal(size=3)]
        for step in action:
            obs.append(dynamics @ obs[-1] + np.array([0, 0, step[0]]) + 0.01 * source.normal(size=3))
        states = np.array(obs, np.float32)
        episodes.append(Episode(states, action, -np.abs(states[1:, 0]), False, len(episodes)))
    return episodes


def main(words: list[str]) -> int:
    """See the module's docstring."""
    match words:
        case ["check", *tasks]:
            return check(tasks)
        case ["smoke", benchmark, target, data, *tasks] if benchmark in MADE_UP:
            print(*smoke(benchmark, Path(target), data, tasks))
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (TaskError, DatasetError) as error:
        sys.exit(f"suite.py: {error}")
