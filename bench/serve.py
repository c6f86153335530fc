"""Serve timed blocks of this framework, one a line of standard input, so that a driver can alternate peers.

Every block goes through the framework's own classes and loop: `OfflineTraining.run` with a logger that writes files and
a checkpoint in every block (W1, W5), `GaussianEnsemble.fit` (W2), `Imagination.fill` (W3).

    W1            SAC updates, batch 256, real ratio 0.05
    W2            ensemble of 7, one epoch and its holdout evaluation
    W3, W3e       imagined transitions, 50,000 starts x 5; the penalty over all 7 members, or over the 5 elites
    W3s           W3 with 10,000 starts
    W4-EDAC-10    EDAC with 10 critics of 3 x 256; W4-SACN-10 without diversity; W4-EDAC-50 with 50 critics
    W5            one rollout of W3 and 1000 updates

Data: synthetic, Hopper-shaped. Environment: MODE=eager|compile (default compile), THREADS and SEEDS (default 1).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mbrl.capture import choose
from mbrl.checkpoint import save_checkpoint
from mbrl.data.ring import ReplayTable
from mbrl.data.termination import hopper
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.train import OfflineTraining, Schedule
from mbrl.types import Transition

OBS, ACTION, ROWS = 11, 3, 200_000
LANES, LENGTH, RETAIN = 50_000, 5, 5
MODE = os.environ.get("MODE", "compile")
SEEDS = list(range(int(os.environ.get("SEEDS", "1"))))


def make_data(rows: int = ROWS, seed: int = 0) -> Transition:
    """Smooth, Hopper-shaped, almost never terminating."""
    r = np.random.default_rng(seed)
    inner = r.normal(size=(OBS + ACTION, 32)) / 3
    outer = r.normal(size=(32, OBS)) / 6
    obs = r.normal(size=(rows, OBS)) * 0.5
    obs[:, 0], obs[:, 1] = 1.25 + 0.05 * obs[:, 0], 0.04 * obs[:, 1]
    action = np.tanh(r.normal(size=(rows, ACTION)))
    change = np.tanh(np.concatenate([obs, action], 1) @ inner) @ outer * 0.05
    change[:, :2] *= 0.02
    next_obs = obs + change + 0.001 * r.normal(size=change.shape) * np.r_[0.05, 0.05, np.ones(OBS - 2)]
    reward = 1.0 + obs[:, 5] - 0.001 * (action**2).sum(1)
    tensors = [torch.as_tensor(x, dtype=torch.float32) for x in (obs, action, reward, next_obs)]
    return Transition(*tensors, torch.as_tensor(r.random(rows) < 0.002), torch.ones(rows, dtype=torch.bool))


class Bench:
    """The parts of a run on the synthetic data, made when first needed."""

    def __init__(self) -> None:
        self.data = make_data()
        self.folder = Path(tempfile.mkdtemp(prefix="mbrl-bench-"))
        self.table = ReplayTable(self.data, LANES * LENGTH * RETAIN, len(SEEDS))
        self.model = GaussianEnsemble(OBS, ACTION, SEEDS)
        self.short = Transition(*(x[:20_960] for x in self.data))  # 78 batches of 256 and the holdout rows
        self.updates = 400
        self._training: OfflineTraining | None = None
        self._critics: dict[tuple[int, float], OfflineTraining] = {}

    def imagination(self, members: str = "all") -> Imagination:
        model = self.model if members == "all" else self.model.elite_view()
        filters = FilterChain(clip=Clip(self.data), terminate=Terminate(hopper), penalise=Penalise(max_aleatoric, 2.5))
        return Imagination(model, PolicyActions(), RandomElite(), filters, LENGTH, chunk=1000)

    def run(self, learner: SAC, real_ratio: float, name: str) -> OfflineTraining:
        """A run whose logger is on; every block goes on where the last one ended."""
        often = {"log_every": 200, "evaluate_every": 10**6, "rollout_every": 10**6}
        folder = self.folder / name
        folder.mkdir()
        return OfflineTraining(
            learner=learner,
            table=self.table,
            imagination=self.imagination(),
            schedule=Schedule(10**7, rollout_lanes=LANES, real_ratio=real_ratio, **often),
            logger=RunLogger(folder, seeds=SEEDS, total_updates=10**7, console=Console(quiet=True)),
            evaluate=lambda step: {},
            save=lambda step, state: save_checkpoint(folder / "checkpoints", step, state),
            choice=choose(MODE, torch.device("cpu"), 10**7, (200,)),  # type: ignore[arg-type]
        )

    @property
    def training(self) -> OfflineTraining:
        """The MOPO run of W1 and W5, its ring filled."""
        if self._training is None:
            self._training = self.run(SAC(OBS, ACTION, SEEDS), 0.05, "mopo")
            self.fill()
        return self._training

    def fill(self, members: str = "all", lanes: int = LANES) -> int:
        learner = self._training.learner if self._training else SAC(OBS, ACTION, SEEDS)
        sources = [generator(seed, "bench", time.perf_counter_ns()) for seed in SEEDS]
        kept = self.imagination(members).fill(self.table, lanes, learner.sample, sources)["kept"]
        return int(float(kept.sum()) * lanes * LENGTH)

    def w1(self, count: int | None = None) -> int:
        """`count` updates through the loop, with log rows on the way."""
        count = count or self.updates
        self.training.run(until=self.training.step + count)
        return count * len(SEEDS)

    def w2(self) -> int:
        model = GaussianEnsemble(OBS, ACTION, SEEDS, max_epochs=1)
        model.fit(self.short)
        return (len(self.short.reward) - 1000) * len(SEEDS)

    def w4(self, critics: int, diversity: float, count: int) -> int:
        """`count` updates of an ensemble of critics on real rows alone."""
        if (critics, diversity) not in self._critics:
            terms = [Diversity(diversity)] if diversity else []
            learner = SAC(
                OBS, ACTION, SEEDS, critics=critics, hidden=(256,) * 3, actor_learning_rate=3e-4,
                cosine_actor=False, max_temperature=None, regularisers=terms,
            )  # fmt: skip
            self._critics[critics, diversity] = self.run(learner, 1.0, f"critics-{critics}-{diversity}")
        run = self._critics[critics, diversity]
        run.run(until=run.step + count)
        return count * len(SEEDS)

    def w5(self) -> int:
        _ = self.training
        self.fill()
        self.w1(1000)
        return 1


def blocks(bench: Bench) -> dict[str, Callable[[], int]]:
    """Name -> function that does the work and returns the number of units."""
    return {
        "W1": bench.w1,
        "W2": bench.w2,
        "W3": bench.fill,
        "W3e": lambda: bench.fill("elites"),
        "W3s": lambda: bench.fill(lanes=10_000),
        "W4-EDAC-10": lambda: bench.w4(10, 1.0, 40),
        "W4-SACN-10": lambda: bench.w4(10, 0.0, 40),
        "W4-EDAC-50": lambda: bench.w4(50, 1.0, 8),
        "W5": bench.w5,
    }


def serve(work: dict[str, Callable[[], int]]) -> None:
    """Answer each request line with one JSON line: units, CPU and wall seconds, system seconds."""
    print(json.dumps({"ready": sorted(work)}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name in ("", "quit"):
            break
        before = resource.getrusage(resource.RUSAGE_SELF)
        cpu, wall = time.process_time(), time.perf_counter()
        units = work[name]()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        after = resource.getrusage(resource.RUSAGE_SELF)
        answer = {"name": name, "units": units, "cpu": cpu, "wall": wall, "sys": after.ru_stime - before.ru_stime}
        print(json.dumps({**answer, "nivcsw": after.ru_nivcsw - before.ru_nivcsw}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    torch.set_flush_denormal(True)  # as in every run
    serve(blocks(Bench()))
