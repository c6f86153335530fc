"""Serve timed blocks of this framework, one a line of standard input, so that a driver can alternate peers.

Every block goes through the framework's own classes and loop: `Training.run` with a logger that writes files
(W1, W4, W5), `GaussianEnsemble.fit` (W2), `Imagination.fill` (W3). Data: synthetic, Hopper-shaped; the ring of imagined
rows is full, as after five rollouts. docs/speed.md describes the workloads:

    W1            SAC updates, batch 256, real ratio 0.05
    W2            ensemble of 7, one epoch of a long fit and its holdout evaluation
    W3, W3e       imagined transitions, 50,000 starts x 5; the penalty over all 7 members, or over the 5 elites
    W3s           W3 with 10,000 starts
    W4-EDAC-10    EDAC with 10 critics of 3 x 256; W4-SACN-10 without diversity; W4-EDAC-50 with 50 critics
    W5            one rollout of W3 and 1000 updates
    GEMM          not of this framework: what the machine multiplies in float32, numpy or torch, GFLOP
    trace         50 updates of W1 under a profiler: kernels, and whatever makes the host wait for the device

Environment: MODE=eager|compile|graph (default compile), PRECISION=float32|bfloat16, DEVICE (default cpu), THREADS and
SEEDS (default 1), SIZE=full|device|small: how much a block holds, `device` for a GPU, `small` for tests.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, record_function

from mbrl.capture import Mode, choose
from mbrl.checkpoint import save_checkpoint
from mbrl.data.ring import ReplayTable
from mbrl.data.termination import hopper
from mbrl.dynamics.ensemble import FitReport, GaussianEnsemble
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.log import RunLogger
from mbrl.nets import Precision, generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.train import Schedule, Training
from mbrl.types import StateDict, Transition

OBS, ACTION = 11, 3
BATCH, REAL_RATIO = 256, 0.05
LENGTH, RETAIN, PENALTY = 5, 5, 2.5
LOG_EVERY = 200
WARM_UP = 20  # updates before a trace: more than the ordinary calls before a CUDA graph is captured


@dataclass(frozen=True)
class Sizes:
    """How much a block holds. Networks and batches are the same always."""

    rows: int = 200_000  # of the dataset
    fit: int = 20_960  # of them in W2: 78 batches of 256 and 1000 held-out rows
    lanes: int = 50_000
    updates: int = 400  # of W1; fewer with stacked seeds, which make as many agent-updates
    ensemble_updates: int = 40  # of W4 with 10 critics; with 50 a fifth of it
    epoch: int = 1000  # updates of W5
    product: int = 1024  # GEMM of this size cubed


SIZES = {
    "full": Sizes(),
    "device": Sizes(fit=200_000, updates=2000, ensemble_updates=1000, product=8192),
    "small": Sizes(rows=3000, fit=1512, lanes=200, updates=8, ensemble_updates=20, epoch=8, product=64),
}


class Block(NamedTuple):
    """Work that is timed, and what must be there before."""

    run: Callable[[], int | dict[str, Any]]  # the number of units, or an answer with `units` in it
    prepare: Callable[[], object] = lambda: None


def make_data(rows: int, seed: int = 0) -> Transition:
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
    terminal, real = torch.as_tensor(r.random(rows) < 0.002), torch.ones(rows, dtype=torch.bool)
    return Transition(tensors[0], tensors[1], tensors[2], tensors[3], terminal, real)


class OngoingFit:
    """A fit in a thread of its own that goes on by one epoch when it is told to.

    A fit compiles its update once and runs it for all of its epochs: one fit per block would compile in every block.
    """

    def __init__(self, model: GaussianEnsemble, data: Transition) -> None:
        self._model, self._data = model, data
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        threading.Thread(target=self._run, daemon=True).start()

    def epoch(self) -> None:
        """One epoch and its evaluation; the first also does what comes before."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # these two are settings of a thread
        torch.set_flush_denormal(True)
        self._go.acquire()
        try:
            self._model.fit(self._data, on_progress=self._pause)
        except BaseException as error:
            self._error = error
            self._done.release()

    def _pause(self, report: FitReport) -> None:
        self._done.release()
        self._go.acquire()


class Bench:
    """The parts of a run on the synthetic data, made when first needed."""

    def __init__(
        self,
        seeds: int = 1,
        *,
        mode: Mode = "compile",
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        sizes: Sizes = SIZES["full"],
    ) -> None:
        self.seeds, self.mode, self.precision = list(range(seeds)), mode, precision
        self.device, self.sizes = torch.device(device), sizes
        self.folder = Path(tempfile.mkdtemp(prefix="mbrl-bench-"))
        self.data = Transition(*(x.to(device) for x in make_data(sizes.rows)))
        self.short = Transition(*(x[: sizes.fit] for x in self.data))
        self.held_out = min(1000, int(0.2 * sizes.fit))
        self.updates = sizes.updates if seeds == 1 else max(sizes.updates // seeds // 4, 1) * 4
        self._critics: dict[tuple[int, float], Training] = {}

    @cached_property
    def table(self) -> ReplayTable:
        """The dataset, and rings full of its rows in the place of imagined ones."""
        lanes = self.sizes.lanes
        table = ReplayTable(self.data, lanes * LENGTH * RETAIN, len(self.seeds), self.device)
        for begin in range(0, table.capacity, lanes):
            index = torch.arange(begin, begin + lanes, device=self.device) % self.sizes.rows
            rows = table.rows[index]
            rows[:, table.used - 1] = 0.0  # not real
            keep = torch.ones((len(self.seeds), lanes), dtype=torch.bool, device=self.device)
            table.write(rows.expand(len(self.seeds), *rows.shape), keep)
        return table

    @cached_property
    def model(self) -> GaussianEnsemble:
        """Fitted for two epochs: an untrained one leaves the data at once."""
        model = self.ensemble(max_epochs=2)
        model.fit(self.short)
        return model

    @cached_property
    def learner(self) -> SAC:
        return SAC(OBS, ACTION, self.seeds, precision=self.precision, device=self.device)

    @cached_property
    def training(self) -> Training:
        """The MOPO run of W1 and W5."""
        return self.run(self.learner, REAL_RATIO, "mopo")

    def ensemble(self, max_epochs: int | None) -> GaussianEnsemble:
        return GaussianEnsemble(
            OBS, ACTION, self.seeds, max_epochs=max_epochs, patience=10**9, precision=self.precision, device=self.device
        )

    def imagination(self, members: str = "all") -> Imagination:
        model = self.model if members == "all" else self.model.elite_view()
        penalise = Penalise(max_aleatoric, PENALTY)
        filters = FilterChain(clip=Clip(self.data), terminate=Terminate(hopper), penalise=penalise)
        chunk = 1000 if self.device.type == "cpu" else self.sizes.lanes
        return Imagination(model, PolicyActions(), RandomElite(), filters, LENGTH, chunk)

    def run(self, learner: SAC, real_ratio: float, name: str) -> Training:
        """A run whose logger is on; every block goes on where the last one ended."""
        often = {"log_every": LOG_EVERY, "evaluate_every": 10**6, "rollout_every": 10**7}
        folder = self.folder / name
        folder.mkdir()
        unused: Any = None

        def save(step: int, state: StateDict) -> None:
            save_checkpoint(folder / "checkpoints", step, state)

        return Training(
            learner=learner,
            table=self.table,
            imagination=unused,
            schedule=Schedule(10**7, batch_size=BATCH, real_ratio=real_ratio, **often),
            logger=RunLogger(folder, seeds=self.seeds, total_updates=10**7, console=Console(quiet=True)),
            evaluate=lambda step: {},
            save=save,
            choice=choose(self.mode, self.device, 10**7, (LOG_EVERY,)),
            step=LOG_EVERY,  # past update 0, before which it would imagine: that is W3
        )

    def critics(self, count: int, diversity: float) -> Training:
        """A run of an ensemble of critics on real rows alone: SAC-N, and EDAC with diversity."""
        if (count, diversity) not in self._critics:
            learner = SAC(
                OBS, ACTION, self.seeds, critics=count, hidden=(256,) * 3, actor_learning_rate=3e-4, cosine_actor=False,
                max_temperature=None, regularisers=[Diversity(diversity)] if diversity else [],
                precision=self.precision, device=self.device,
            )  # fmt: skip
            self._critics[count, diversity] = self.run(learner, 1.0, f"critics-{count}-{diversity}")
        return self._critics[count, diversity]

    def update(self, run: Training, count: int) -> int:
        """`count` updates through the loop, with log rows on the way."""
        run.run(until=run.step + count)
        return count * len(self.seeds)

    @cached_property
    def fit(self) -> OngoingFit:
        model = self.ensemble(max_epochs=None)
        model.mode = choose(self.mode, self.device, 10**7).mode
        return OngoingFit(model, self.short)

    def fit_epoch(self) -> int:
        self.fit.epoch()
        return (self.sizes.fit - self.held_out) * len(self.seeds)

    def imagine(self, members: str = "all", lanes: int | None = None) -> int:
        lanes = lanes or self.sizes.lanes
        sources = [generator(seed, "bench", time.perf_counter_ns(), device=self.device) for seed in self.seeds]
        kept = self.imagination(members).fill(self.table, lanes, self.learner.sample, sources)["kept"]
        return round(float(kept.sum()) * lanes * LENGTH)

    def epoch(self) -> int:
        self.imagine()
        self.update(self.training, self.sizes.epoch)
        return len(self.seeds)

    def trace(self, updates: int = 52) -> dict[str, Any]:
        """Updates through the loop, no log row among them, under a profiler.

        Returns `units`; `kernels` per update, 0 on a CPU; `synchronisations`: what made the host wait for the device,
        name -> count (on a CPU: what would have, and the fused Adam reads its learning rate there); `offenders`: the
        lines of Python that did, as far as torch knows.
        """
        run = self.training
        self.update(run, WARM_UP)
        if run.step % LOG_EVERY + updates >= LOG_EVERY:  # a log row is read on the host: go on past it
            self.update(run, -run.step % LOG_EVERY)
        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        with warnings.catch_warnings(record=True) as caught, profile(activities=activities) as profiler:
            warnings.simplefilter("always")
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                with record_function("inner loop"):
                    self.update(run, updates)
            finally:
                if cuda:
                    torch.cuda.set_sync_debug_mode("default")
                    torch.cuda.synchronize()
        events = profiler.events() or []
        loop = next(e.time_range for e in events if e.name == "inner loop")
        on_host = [e for e in events if loop.start <= e.time_range.start < loop.end and not on_device(e)]
        waited = Counter(e.name for e in on_host if waits(e.name, cuda))
        kernels = sum(on_device(e) and not e.is_user_annotation and not e.name.startswith("Mem") for e in events)
        offenders = Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
        return {
            "units": updates * len(self.seeds),
            "kernels": kernels / updates,
            "synchronisations": dict(waited),
            "offenders": dict(offenders),
        }


def waits(name: str, cuda: bool) -> bool:
    """Whether an event of the host waited for the device; on a CPU, whether it read a number, which on a GPU waits."""
    return "Synchronize" in name or name == "cudaMemcpy" if cuda else name == "aten::_local_scalar_dense"


def on_device(event: Any) -> bool:
    """Whether a profiler's event ran on the GPU."""
    return bool(event.device_type.name == "CUDA")


def products(size: int, device: torch.device) -> dict[str, Block]:
    """Square float32 products of the machine: the yardstick of every round. Units: GFLOP."""
    a, out = torch.rand(size, size, device=device), torch.empty(size, size, device=device)
    kinds: dict[str, Callable[[], object]] = {"GEMM-torch": lambda: torch.mm(a, a, out=out)}
    if device.type == "cpu":
        x, y = a.numpy(), out.numpy()
        kinds["GEMM-numpy"] = lambda: np.matmul(x, x, out=y)

    def repeated(product: Callable[[], object], times: int = 20) -> Block:
        def run() -> dict[str, Any]:
            for _ in range(times):
                product()
            return {"units": times * 2 * size**3 / 1e9}

        return Block(run)

    return {name: repeated(product) for name, product in kinds.items()}


def blocks(bench: Bench) -> dict[str, Block]:
    """Name -> work."""
    sizes = bench.sizes

    def ensemble(count: int, diversity: float, updates: int) -> Block:
        return Block(
            lambda: bench.update(bench.critics(count, diversity), updates), lambda: bench.critics(count, diversity)
        )

    def rollouts(members: str = "all", lanes: int | None = None) -> Block:
        return Block(lambda: bench.imagine(members, lanes), lambda: (bench.model, bench.learner, bench.table))

    return {
        "W1": Block(lambda: bench.update(bench.training, bench.updates), lambda: bench.training),
        "W2": Block(bench.fit_epoch, lambda: bench.fit),
        "W3": rollouts(),
        "W3e": rollouts("elites"),
        "W3s": rollouts(lanes=sizes.lanes // 5),
        "W4-EDAC-10": ensemble(10, 1.0, sizes.ensemble_updates),
        "W4-SACN-10": ensemble(10, 0.0, sizes.ensemble_updates),
        "W4-EDAC-50": ensemble(50, 1.0, sizes.ensemble_updates // 5),
        "W5": Block(bench.epoch, lambda: (bench.model, bench.training)),
        "trace": Block(bench.trace, lambda: bench.training),
        **products(sizes.product, bench.device),
    }


def serve(work: dict[str, Block], device: torch.device) -> None:
    """Answer each request line with one JSON line.

    Its fields: units; cpu, wall and sys(tem) seconds; children, CPU seconds of processes that were waited for
    (compilers); nivcsw, how often another process took the core; on a GPU also device, seconds between two events on
    its stream, and device_mb, the peak of allocated memory.
    """
    cuda = device.type == "cuda"
    print(json.dumps({"ready": sorted(work)}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name in ("", "quit"):
            break
        work[name].prepare()
        gc.collect()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        before, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu, wall = time.process_time(), time.perf_counter()
        done = work[name].run()
        if cuda:
            end.record()
            torch.cuda.synchronize()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        after, waited = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        answer = {
            "name": name,
            "cpu": cpu,
            "wall": wall,
            "sys": after.ru_stime - before.ru_stime,
            "children": waited.ru_utime + waited.ru_stime - children.ru_utime - children.ru_stime,
            "nivcsw": after.ru_nivcsw - before.ru_nivcsw,
            **(done if isinstance(done, dict) else {"units": done}),
        }
        if cuda:
            answer |= {"device": begin.elapsed_time(end) / 1000, "device_mb": torch.cuda.max_memory_allocated() / 2**20}
        print(json.dumps(answer), flush=True)


def settings() -> tuple[torch.device, Sizes]:
    """Device and sizes from the environment, threads set, denormal numbers flushed as in every run."""
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    torch.set_flush_denormal(True)
    return torch.device(os.environ.get("DEVICE", "cpu")), SIZES[os.environ.get("SIZE", "full")]


def main() -> None:
    device, sizes = settings()
    mode: Any = os.environ.get("MODE", "compile")
    precision: Any = os.environ.get("PRECISION", "float32")
    bench = Bench(int(os.environ.get("SEEDS", "1")), mode=mode, precision=precision, device=device, sizes=sizes)
    serve(blocks(bench), device)


if __name__ == "__main__":
    main()
