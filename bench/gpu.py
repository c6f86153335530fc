"""How fast this framework is on a GPU: captured updates beside eager ones, stacked seeds, and what makes the host wait.

    python bench/gpu.py                              below 8 minutes; every figure is printed as soon as it is known
    python bench/gpu.py --only W1,trace
    python bench/gpu.py --peer "NAME=COMMAND"        a peer's server that works on the GPU, see docs/speed.md
    python bench/gpu.py --device cpu --quick         no figures, only whether all of this works

THIS SCRIPT HAS NEVER RUN ON A GPU: none was at hand. Every part of it is exercised on a CPU by tests/test_bench_gpu.py,
and nothing that this repository says of a GPU's speed is measured.

Work is done by the servers of bench/speed.py in processes of their own. One that dies, or that takes longer than its
share of the time, is reported and started anew for the next piece of work. Time is taken by CUDA events, or by the wall
clock on a CPU; the figure is the median of a few blocks after one that warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from speed import Server, ServerDied, names_among, number, our_server, peer, running

UNITS = {"W1": "updates", "trace": "updates", "W2": "transitions", "W3": "transitions", "W5": "epochs"}
BLOCK_SECONDS = 180.0  # a block that takes longer hangs: a cold compile is the longest there is
STACKED = 8


@dataclass
class Job:
    """One workload on one server, and what came of it.

    Attributes:
        workload: a key of `UNITS`.
        server: who does it.
        seeds: stacked in that server.
        first: the answer of the block that warmed up, with compiling and capturing.
        answers: of the blocks that count.
        failure: why there are not as many as asked for.
    """

    workload: str
    server: Server
    seeds: int = 1
    first: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    @property
    def rates(self) -> list[float]:
        """Units a second of every block, those of all seeds together."""
        return [answer["units"] / seconds(answer) for answer in self.answers]

    def __str__(self) -> str:
        """One line for the person who waits."""
        line = f"{self.workload}, {self.server.name}: "
        if self.answers and self.workload == "trace":
            line += f"{waits(self)}; {self.answers[-1]['kernels']:.0f} kernels an update"
        elif self.answers:
            line += f"{number(median(self.rates))} {UNITS[self.workload]}/s"
            line += f", first block {extra(self):.0f} s more"
        return line + (f" FAILED: {self.failure}" if self.failure else "")


def seconds(answer: Mapping[str, Any]) -> float:
    """Between two events on the device's stream, or of the wall where there are none."""
    return float(answer.get("device", answer["wall"]))


def extra(job: Job) -> float:
    """Wall seconds of the first block beyond the steady time."""
    steady = median(answer["wall"] / answer["units"] for answer in job.answers)
    taken: float = job.first["wall"] - job.first["units"] * steady
    return max(taken, 0.0)


def waits(job: Job) -> str:
    """What made the host wait in a trace, and where."""
    answer = job.answers[-1]
    if not answer["synchronisations"] and not answer["offenders"]:
        return "0 host synchronisations"
    found = [f"{name} x {count}" for name, count in answer["synchronisations"].items()]
    lines = [f"{line} x {count}" for line, count in answer["offenders"].items()]
    return f"{sum(answer['synchronisations'].values())} host synchronisations: {', '.join([*found, *lines])}"


def plan(device: str, size: str, modes: Sequence[str], peers: Sequence[Server], only: Sequence[str]) -> list[Job]:
    """All work, the most wanted first, in case time runs out."""
    common = {"DEVICE": device, "SIZE": size}
    reference = our_server("reference", common)
    one = {mode: our_server(mode, {**common, "MODE": mode}) for mode in modes}
    many = {
        mode: our_server(f"{mode}, {STACKED} seeds", {**common, "MODE": mode, "SEEDS": str(STACKED)}) for mode in modes
    }
    captured = modes[-1]
    jobs = [Job("W1", server) for server in (*reversed(one.values()), reference)]
    jobs += [Job("W1", many[captured], STACKED), Job("trace", one[captured]), Job("trace", many[captured], STACKED)]
    jobs += [Job("W1", many[mode], STACKED) for mode in modes[:-1]]
    for workload in ("W2", "W3", "W5"):
        jobs += [Job(workload, server) for server in (*reversed(one.values()), reference)]
    jobs += [Job(workload, server) for workload in UNITS if workload != "trace" for server in peers]
    return [job for job in jobs if job.workload in only]


def work(job: Job, rounds: int, deadline: float) -> None:
    """Fill in a job's answers; whatever happens is written down and not raised, but for Ctrl-C."""
    try:
        for turn in range(rounds + 1):
            left = min(BLOCK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                job.failure = f"the time was up after {len(job.answers)} of {rounds} blocks"
                return
            job.server.start(left)
            if job.workload not in job.server.blocks:
                job.failure = f"not offered; it has {', '.join(sorted(job.server.blocks))}"
                return
            answer = job.server.ask(job.workload, left)
            if turn:
                job.answers.append(answer)
            else:
                job.first = answer
    except (ServerDied, OSError) as death:
        job.failure = str(death)


def about_machine(device: torch.device) -> dict[str, str]:
    """What a reader must know of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "type": device.type,
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "date": time.strftime("%Y-%m-%d"),
    }


def rate_of(jobs: Sequence[Job], workload: str, server: str) -> float | None:
    """Median units a second, None if it was not measured."""
    rates = [job.rates for job in jobs if (job.workload, job.server.name) == (workload, server) and job.answers]
    return median(rates[0]) if rates else None


def ratios(jobs: Sequence[Job], modes: Sequence[str], peers: Sequence[str]) -> list[str]:
    """The quotients that one looks for first, as far as both sides were measured."""
    captured, stacked = modes[-1], f"{modes[-1]}, {STACKED} seeds"
    wanted = [("W1", stacked, captured, f"agent-updates of {STACKED} stacked seeds over those of one")]
    if len(modes) > 1:
        wanted += [("W1", captured, modes[0], f"{captured} over {modes[0]}, 1 seed")]
        wanted += [("W1", stacked, f"{modes[0]}, {STACKED} seeds", f"{captured} over {modes[0]}, {STACKED} seeds")]
    beside = ["reference", *peers]
    wanted += [(w, captured, name, f"{captured} over {name}") for w in ("W1", "W2", "W3", "W5") for name in beside]
    lines = []
    for workload, above, below, text in wanted:
        top, bottom = rate_of(jobs, workload, above), rate_of(jobs, workload, below)
        if top is not None and bottom is not None:
            lines.append(f"- {workload}, {text}: {top / bottom:.2f}")
    return lines


def report(about: Mapping[str, str], jobs: Sequence[Job], modes: Sequence[str], peers: Sequence[str]) -> str:
    """Everything as Markdown."""
    lines = [
        "# Speed on a GPU",
        "",
        f"{about['device']}, {about['cores']} processor cores; Python {about['python']}, torch {about['torch']}; "
        f"{about['date']}.",
        "",
    ]
    if about["type"] != "cuda":
        lines += ["**The GPU is unmeasured.** These figures are a CPU's and only show that the script works.", ""]
    lines += [
        "Median units per second over blocks timed by CUDA events (wall clock on a CPU); updates and epochs of stacked "
        "seeds count once for each seed. `first block` is what it took beyond the steady time: compiling, capturing.",
        "",
        "| workload | by | units/s | min-max | peak device memory | first block |",
        "|---|---|---|---|---|---|",
    ]
    for job in jobs:
        if job.answers and job.workload != "trace":
            memory = max((answer.get("device_mb", 0.0) for answer in job.answers), default=0.0)
            lines.append(
                f"| {job.workload}, {UNITS[job.workload]} | {job.server.name} | {number(median(job.rates))} | "
                f"{number(min(job.rates))}-{number(max(job.rates))} | {f'{memory:,.0f} MB' if memory else '-'} | "
                f"{extra(job):.0f} s |"
            )
    lines += ["", *ratios(jobs, modes, peers)]
    traces = [job for job in jobs if job.workload == "trace" and job.answers]
    if traces:
        lines += ["", "Updates through the loop under a profiler, no log row among them:", ""]
        lines += [f"- {str(job).removeprefix('trace, ')}" for job in traces]
    failures = [job for job in jobs if job.failure]
    if failures:
        lines += ["", "Not measured:", ""]
        lines += [f"- {job.workload}, {job.server.name}: {job.failure}" for job in failures]
    lines += ["", f"Command: `{about['command']}`", ""]
    return "\n".join(lines)


def save(path: Path, text: str, about: Mapping[str, str], jobs: Sequence[Job]) -> None:
    """The table, and beside it every answer as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = [{**vars(job), "server": job.server.name} for job in jobs if job.first or job.failure]
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"about": about, "jobs": raw}, indent=1) + "\n", encoding="utf-8")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda (default), cuda:1, cpu")
    parser.add_argument("--only", type=names_among([*UNITS]), default=[*UNITS], help=f"among {','.join(UNITS)}")
    parser.add_argument(
        "--modes", type=names_among(["eager", "compile", "graph"]),
        help="how updates run, the one looked at most last (default eager,graph; on a CPU eager,compile)",
    )  # fmt: skip
    parser.add_argument(
        "--peer", type=peer, action="append", default=[], metavar="NAME=COMMAND", help="see docs/speed.md"
    )
    parser.add_argument("--rounds", type=int, default=3, help="blocks after the one that warms up (default 3)")
    parser.add_argument("--limit", type=float, default=450.0, help="seconds after which nothing is begun (default 450)")
    parser.add_argument("--quick", action="store_true", help="tiny blocks: whether it works, and no figures")
    parser.add_argument(
        "--out", type=Path,
        help="the table; raw answers go beside it as .json (default bench/results/gpu.md; runs/gpu.md for a trial)",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    cuda = arguments.device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu --quick tries everything without one")
    arguments.modes = arguments.modes or ["eager", "graph" if cuda else "compile"]
    arguments.out = arguments.out or Path("bench/results/gpu.md" if cuda and not arguments.quick else "runs/gpu.md")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    peers = [server.name for server in arguments.peer]
    size = "small" if arguments.quick else "device"
    jobs = plan(str(arguments.device), size, arguments.modes, arguments.peer, arguments.only)
    about = about_machine(arguments.device)
    about["command"] = " ".join(["python bench/gpu.py", *(shlex.quote(word) for word in words or sys.argv[1:])])
    deadline = time.monotonic() + arguments.limit
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    status = 0
    servers = {id(job.server): job.server for job in jobs}
    with running([*servers.values()]), Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("starting", total=len(jobs))
        try:
            for job in jobs:
                bars.update(bar, description=f"{job.workload}, {job.server.name}")
                work(job, arguments.rounds, deadline)
                bars.advance(bar)
                print(job, flush=True)
                save(arguments.out, report(about, jobs, arguments.modes, peers), about, jobs)
        except KeyboardInterrupt:
            status = 130
    print("\n" + report(about, jobs, arguments.modes, peers))
    return status


if __name__ == "__main__":
    sys.exit(main())
