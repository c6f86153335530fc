"""How fast this framework is beside a frozen plain-PyTorch reference, and beside any peer, on one core.

    python bench/speed.py                            everything, 5 rounds: about half an hour on a quiet core
    python bench/speed.py --quick                    one round of the cheap workloads: 2 to 8 minutes
    python bench/speed.py --only W1,W2 --rounds 2
    python bench/speed.py --peer "NAME=COMMAND"      a peer's server, see docs/speed.md; may be repeated

Servers are started side by side (bench/reference.py, and bench/serve.py once for each mode), and timed blocks of work
alternate between them, with square matrix products as a yardstick in every round. The table and the raw samples are
written after every round, so that Ctrl-C loses nothing. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from serve import ACTION, BATCH, LENGTH, OBS, SIZES, Sizes

HERE = Path(__file__).parent
WORKLOADS = {  # name -> its units
    "W1": "updates",
    "W2": "transitions",
    "W3": "transitions",
    "W3e": "transitions",
    "W4-EDAC-10": "updates",
    "W4-SACN-10": "updates",
    "W4-EDAC-50": "updates",
    "W5": "epochs",
}
QUICK = ("W1", "W2", "W4-SACN-10")
GEMM = ("GEMM-torch", "GEMM-numpy")
OURS = {
    "eager": {"MODE": "eager"},
    "compiled": {"MODE": "compile"},
    "bfloat16": {"MODE": "compile", "PRECISION": "bfloat16"},
}
ONE_THREAD = dict.fromkeys(("THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


# -- the floor ---------------------------------------------------------------------------------------------------------


def forward(sizes: Sequence[int]) -> int:
    """Multiply-adds of one row through layers of `sizes`; their weights' gradient costs the same again."""
    return sum(i * o for i, o in pairwise(sizes))


def backward(sizes: Sequence[int], columns: int = 0) -> int:
    """Multiply-adds of one row's gradient back to the first hidden layer, and on to `columns` of the input."""
    return sum(i * o for i, o in pairwise(sizes[1:])) + columns * sizes[1]


def update_flops(critics: int, hidden: Sequence[int], diversity: bool = False) -> int:
    """Floating point operations of one SAC update, of matrix products alone, none of them for what is thrown away."""
    critic, actor = [OBS + ACTION, *hidden, 1], [OBS, *hidden, 2 * ACTION]
    values = 3 * critics * forward(critic)  # Q(s, a), Q'(s', a'), Q(s, pi(s))
    learn = critics * (forward(critic) + backward(critic))  # of the weights; not of the data
    improve = critics * backward(critic, ACTION)  # through the critics to the action; not of their weights
    policy = 3 * forward(actor) + backward(actor)  # on s' and on s, and backward on s
    # EDAC: a sweep back to the action that shares the forward pass, and its own backward pass, twice the work.
    diverse = 3 * critics * backward(critic, ACTION) if diversity else 0
    return 2 * BATCH * (values + learn + improve + policy + diverse)


def flops(sizes: Sizes) -> dict[str, float]:
    """Workload -> floating point operations of the minimal algorithm for one unit."""
    member = [OBS + ACTION, *[200] * 4, 2 * (OBS + 1)]
    act = forward([OBS, 256, 256, 2 * ACTION])
    imagine, imagine_elites = (2 * (members * forward(member) + act) for members in (7, 5))
    update = update_flops(2, (256, 256))
    return {
        "W1": update,
        "W2": 2 * 7 * (2 * forward(member) + backward(member)),
        "W3": imagine,
        "W3e": imagine_elites,
        "W4-EDAC-10": update_flops(10, (256,) * 3, True),
        "W4-SACN-10": update_flops(10, (256,) * 3),
        "W4-EDAC-50": update_flops(50, (256,) * 3, True),
        "W5": sizes.epoch * update + sizes.lanes * LENGTH * imagine,
    }


# -- servers -----------------------------------------------------------------------------------------------------------


class ServerDied(RuntimeError):
    """A server ended in the middle of its work; the message is the last line it wrote to standard error."""


@dataclass
class Server:
    """A process that answers names of blocks with JSON lines (bench/serve.py has the protocol).

    It is started at its first request, and anew at the first request after it has died.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)  # what it offers, known from its first start on
    peak_mb: float | None = None  # high-water mark of resident memory, None where the system does not tell
    _process: subprocess.Popen[str] | None = None
    _errors: Any = None

    def start(self, timeout: float | None = None) -> None:
        """Start if it does not run, and wait until it is ready.

        Raises:
            ServerDied: it ended instead.
        """
        if self._process is not None:
            return
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
        self._process = subprocess.Popen(
            list(self.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **ONE_THREAD, **self.environment},
            start_new_session=True,  # Ctrl-C is for the driver, which then stops its servers
        )
        self.blocks = set(self._answer("ready", timeout)["ready"])

    def ask(self, block: str, timeout: float | None = None) -> dict[str, Any]:
        """Have a block done.

        Raises:
            ServerDied: it ended, or was ended because it took longer than `timeout` seconds.
        """
        self.start(timeout)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(block + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        answer = self._answer("units", timeout)
        status = Path(f"/proc/{self._process.pid}/status")
        # VmHWM and not ru_maxrss: the latter keeps the parent's peak over fork and exec.
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
        self.peak_mb = max(self.peak_mb or 0.0, int(found[1]) / 1024) if found else self.peak_mb
        return answer

    def _answer(self, key: str, timeout: float | None) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        began = time.monotonic()
        timer = threading.Timer(timeout, process.kill) if timeout is not None else None
        if timer is not None:
            timer.start()
        try:
            for line in process.stdout:
                if line.startswith("{") and key in (answer := json.loads(line)):  # peers may print what they like
                    return dict(answer)
        finally:
            if timer is not None:
                timer.cancel()
        process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._process = None
        late = timeout is not None and time.monotonic() - began >= timeout
        said = f"no answer within {timeout:.3g} s" if late else f"exit status {process.returncode}"
        raise ServerDied(f"{said}: {lines[-1]}" if lines else said)

    def stop(self) -> None:
        """End the process, at once if it is at work."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[Sequence[Server]]:
    """Servers that are stopped at the end, whatever happens."""
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


def our_server(name: str, settings: Mapping[str, str]) -> Server:
    """This framework, or the reference if that is its name."""
    script = "reference.py" if name == "reference" else "serve.py"
    return Server(name, [sys.executable, str(HERE / script)], settings)


def peer(word: str) -> Server:
    """A peer from `NAME=COMMAND`."""
    name, _, command = word.partition("=")
    if not name or not command:
        raise argparse.ArgumentTypeError(f"--peer {word!r}: expected NAME=COMMAND, e.g. --peer 'kit=python server.py'")
    return Server(name, shlex.split(command))


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """All that was measured; the table is made of nothing else.

    Attributes:
        about: machine, versions, settings, for the head of the table.
        servers: names, in the order of the table.
        peers: those of them that are peers.
        samples: one per block: server, workload, round (0 warms up), and the server's answer.
        scaling: the same for W1 with stacked seeds, with `seeds`.
        failures: one per server and workload that died, with the reason.
        memory: server -> peak of resident memory, MB; of stacked seeds under "MODE SEEDS".
    """

    about: dict[str, str]
    servers: list[str]
    peers: list[str]
    samples: list[dict[str, Any]] = field(default_factory=list)
    scaling: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    memory: dict[str, float | None] = field(default_factory=dict)

    def save(self, table: Path) -> None:
        """The table, and beside it everything as JSON."""
        table.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (table, report(self)),
            (table.with_suffix(".json"), json.dumps(vars(self), indent=1) + "\n"),
        ):
            new = path.with_name(path.name + ".new")
            new.write_text(text, encoding="utf-8")
            new.replace(path)


def alternate(
    work: Sequence[tuple[str, Sequence[Server]]],
    rounds: int,
    *,
    done: Callable[[Server, str, int, dict[str, Any]], None],
    failed: Callable[[Server, str, str], None],
    after_round: Callable[[], None],
    before: Callable[[str], None] = lambda what: None,
) -> None:
    """Blocks of all servers in turn, round after round; round 0 warms up. What has died once is left out from then on.

    Args:
        work: workloads, and who does them; a server that does not offer one is left out.
        rounds: how often after the warm-up.
        done: told of every answer.
        failed: told of every death.
        after_round: called after every round.
        before: told what is about to be done.
    """
    dead: set[tuple[str, str]] = set()
    for turn in range(rounds + 1):
        for workload, servers in work:
            for server in servers:
                before(f"round {turn} of {rounds}: {workload}, {server.name}")
                if (server.name, workload) in dead:
                    continue
                try:
                    server.start()
                    if workload in server.blocks:
                        done(server, workload, turn, server.ask(workload))
                except ServerDied as death:
                    dead.add((server.name, workload))
                    failed(server, workload, str(death))
        after_round()


def about_machine(core: int | None) -> dict[str, str]:
    """What a reader must know of the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    built = torch.__config__.show()
    library = re.search(r"Math Kernel Library Version (\S+)", built)
    named = re.search(r"BLAS_INFO=(\w+)", built)
    blas = f"MKL {library[1]}" if library else (named[1] if named else "unknown BLAS")
    own: Any = np.show_config(mode="dicts")
    other = own["Build Dependencies"]["blas"]
    return {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "core": "not pinned" if core is None else f"pinned to core {core} of {os.cpu_count()}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__} ({blas})",
        "numpy": f"{np.__version__} ({other['name']} {other['version']})",
        "threads": "1",
        "date": time.strftime("%Y-%m-%d"),
    }


def pin(core: int | None) -> int | None:
    """Keep this process and all it starts on one core, where the system allows; returns which."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})
    return core


# -- the table ---------------------------------------------------------------------------------------------------------


def rate(sample: Mapping[str, Any]) -> float:
    """Units per second of CPU time."""
    return float(sample["units"] / sample["cpu"])


def number(value: float) -> str:
    """Three significant digits or whole numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def extra_seconds(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """What the first block took beyond the steady time, in CPU seconds, compilers included."""
    steady = [rate(s) for s in samples if s["round"] > 0]
    first = [s for s in samples if s["round"] == 0]
    if not steady or not first:
        return None
    taken: float = first[0]["cpu"] + first[0].get("children", 0.0)
    extra: float = taken - first[0]["units"] / median(steady)
    return max(extra, 0.0)


def report(results: Results) -> str:
    """Everything as Markdown."""
    steady = [s for s in results.samples if s["round"] > 0]
    rates: dict[tuple[str, str], list[float]] = {}
    for sample in steady:
        rates.setdefault((sample["workload"], sample["server"]), []).append(rate(sample))
    products = {name: median(rates[name, "machine"]) for name in GEMM if (name, "machine") in rates}
    peak = max(products.values(), default=None)
    needed = flops(SIZES[os.environ.get("SIZE", "full")])
    beside = ["reference", *results.peers]
    about = results.about
    lines = [
        "# Speed on one core",
        "",
        f"{about['processor']}, {about['core']}, {about['threads']} thread; Python {about['python']}, "
        f"torch {about['torch']}, numpy {about['numpy']}; {about['date']}.",
        "",
        f"Median units per second of CPU time over {max((s['round'] for s in steady), default=0)} alternated rounds. "
        "`reference` is bench/reference.py, plain PyTorch; `eager` and `compiled` are this framework. The floor is the "
        "time that the matrix products of the minimal algorithm would take at this machine's best float32 rate, "
        "measured in the same rounds: "
        + (", ".join(f"{name[5:]} {value:.0f}" for name, value in products.items()) or "nothing yet")
        + " GFLOP/s. `compile` is what the first block took beyond the steady time, in CPU seconds "
        f"({about.get('cache', 'compiler cache as found')}). docs/speed.md says more.",
        "",
        "| workload | by | units / CPU s | min-max | " + " | ".join(f"x {name}" for name in beside)
        + " | of the floor | system time | compile |",
        "|---|---|---|---|" + "---|" * (len(beside) + 3),
    ]  # fmt: skip
    for workload, unit in WORKLOADS.items():
        for server in results.servers:
            if (workload, server) not in rates:
                continue
            own = rates[workload, server]
            ratios = [
                f"{median(own) / median(rates[workload, name]):.2f}" if (workload, name) in rates else "-"
                for name in beside
            ]
            mine = [s for s in results.samples if s["workload"] == workload and s["server"] == server]
            extra = extra_seconds(mine)
            share = "-" if peak is None else f"{median(own) * needed[workload] / 1e9 / peak:.0%}"
            system = median(s["sys"] / s["cpu"] for s in mine if s["round"] > 0)
            cells = [
                f"{workload}, {unit}", server, number(median(own)), f"{number(min(own))}-{number(max(own))}", *ratios,
                share, f"{system:.0%}", "-" if extra is None else f"{extra:.0f} s",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| server | peak resident memory |", "|---|---|"]
    for server in results.servers:
        peak_mb = results.memory.get(server)
        lines.append(f"| {server} | {'-' if peak_mb is None else f'{peak_mb:,.0f} MB'} |")
    if results.scaling:
        lines += [
            "",
            "## Stacked seeds",
            "",
            "W1 with several seeds in one process, each seed an agent of its own.",
            "",
        ]
        lines += [
            "| seeds | by | agent-updates / CPU s | x 1 seed | peak resident memory | compile |",
            "|---|" + "---|" * 5,
        ]
        groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for sample in results.scaling:
            groups.setdefault((sample["seeds"], sample["server"]), []).append(sample)
        for (seeds, server), samples in groups.items():
            own = [rate(s) for s in samples if s["round"] > 0]
            if not own:
                continue
            single = [rate(s) for s in groups.get((1, server), []) if s["round"] > 0]
            extra, peak_mb = extra_seconds(samples), results.memory.get(f"{server} {seeds}")
            cells = [
                str(seeds), server, number(median(own)), f"{median(own) / median(single):.2f}" if single else "-",
                "-" if peak_mb is None else f"{peak_mb:,.0f} MB", "-" if extra is None else f"{extra:.0f} s",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if results.failures:
        lines += ["", "## Failures", ""]
        lines += [f"- {f['server']}, {f['workload']}: {f['reason']}" for f in results.failures]
    lines += ["", f"Command: `{about['command']}`", ""]
    return "\n".join(lines)


# -- the command -------------------------------------------------------------------------------------------------------


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names."""

    def parse(word: str) -> list[str]:
        chosen = [name for name in word.split(",") if name]
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; choose among {', '.join(known)}")
        return chosen

    return parse


def counts(word: str) -> list[int]:
    """Comma-separated numbers from 1 on."""
    chosen = [int(part) for part in word.split(",") if part]
    if any(count < 1 for count in chosen):
        raise argparse.ArgumentTypeError(f"{word}: expected numbers from 1 on")
    return chosen


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_among([*WORKLOADS]), help=f"workloads, among {','.join(WORKLOADS)}")
    parser.add_argument(
        "--servers", type=names_among(["reference", *OURS]), default=["reference", "eager", "compiled"],
        help="among reference,eager,compiled,bfloat16 (default: the first three)",
    )  # fmt: skip
    parser.add_argument(
        "--peer", type=peer, action="append", default=[], metavar="NAME=COMMAND", help="see docs/speed.md"
    )
    parser.add_argument("--rounds", type=int, help="after the one that warms up (default 5, with --quick 1)")
    parser.add_argument(
        "--seeds", type=counts, help="stacked seeds for W1 (default 1,2,4,8, with --quick none; '' = none)"
    )
    parser.add_argument("--quick", action="store_true", help=f"one round of {','.join(QUICK)}")
    parser.add_argument("--cold", action="store_true", help="compile anew, into an empty compiler cache")
    parser.add_argument("--core", type=int, help="core to work on (default: the last one that this process may use)")
    parser.add_argument(
        "--out", type=Path,
        help="the table; raw samples go beside it as .json (default bench/results/speed.md, runs/speed.md for a part)",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    whole = not arguments.quick and arguments.only is None
    arguments.out = arguments.out or Path("bench/results/speed.md" if whole else "runs/speed.md")
    arguments.only = arguments.only or list(QUICK if arguments.quick else WORKLOADS)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.seeds = ([] if arguments.quick else [1, 2, 4, 8]) if arguments.seeds is None else arguments.seeds
    return arguments


def measure(arguments: argparse.Namespace, results: Results, cache: Path | None, console: Console) -> None:
    """Fill `results`, saving them after every round; compile into new folders under `cache`, None for the usual one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def ours(name: str, seeds: int) -> Server:
        anew = {} if cache is None else {"TORCHINDUCTOR_CACHE_DIR": str(cache / f"{name}-{seeds}")}
        return our_server(name, {**OURS.get(name, {}), **anew, "SEEDS": str(seeds)})

    beside = [*(ours(name, 1) for name in arguments.servers), *arguments.peer]
    machine = our_server("machine", {"MODE": "eager"})
    modes = [name for name in arguments.servers if name in OURS]
    blocks = (arguments.rounds + 1) * (len(arguments.only) * len(beside) + len(GEMM))
    blocks += len(arguments.seeds) * (arguments.rounds + 1) * len(modes)
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("starting", total=blocks)

        def before(what: str) -> None:
            bars.update(bar, description=what)
            bars.advance(bar)

        def failed(server: Server, workload: str, reason: str) -> None:
            results.failures.append({"server": server.name, "workload": workload, "reason": reason})
            bars.console.print(f"{server.name}, {workload}: {reason}", style="red", markup=False)

        def noted(into: list[dict[str, Any]], key: str = "", **more: Any) -> Callable[..., None]:
            def done(server: Server, workload: str, turn: int, answer: dict[str, Any]) -> None:
                into.append({**answer, "server": server.name, "workload": workload, "round": turn, **more})
                results.memory[server.name + key] = server.peak_mb

            return done

        def after_round() -> None:
            results.save(arguments.out)

        with running([*beside, machine]):
            work = [*((name, beside) for name in arguments.only), *((name, [machine]) for name in GEMM)]
            alternate(
                work, arguments.rounds, done=noted(results.samples), failed=failed, after_round=after_round,
                before=before,
            )  # fmt: skip
        for seeds in arguments.seeds:
            stacked = [ours(name, seeds) for name in modes]
            with running(stacked):
                alternate(
                    [("W1", stacked)], arguments.rounds, done=noted(results.scaling, f" {seeds}", seeds=seeds),
                    failed=failed, after_round=after_round, before=before,
                )  # fmt: skip


def shared_command(words: Sequence[str]) -> str:
    """The command as it can stand in a table for others: without the folders of this machine."""
    kept = []
    for word, before in zip(words, ["", *words], strict=False):
        name, _, command = word.partition("=")
        if before == "--peer" or word.startswith("--peer="):
            kept.append(f"{name}=..." if before == "--peer" else f"--peer={command.partition('=')[0]}=...")
        else:
            kept.append(Path(word).name if before == "--out" else word)
    return " ".join(["python bench/speed.py", *(shlex.quote(word) for word in kept)])


def main() -> int:
    arguments = parse()
    console = Console(stderr=True)
    names = [*arguments.servers, *(server.name for server in arguments.peer)]
    about = about_machine(pin(arguments.core))
    about["cache"] = "from an empty compiler cache" if arguments.cold else "with the compiler's cache as it was found"
    about["command"] = shared_command(sys.argv[1:])
    results = Results(about, names, [server.name for server in arguments.peer])
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure(arguments, results, Path(folder) if arguments.cold else None, console)
        except KeyboardInterrupt:
            status = 130
    if results.samples:
        results.save(arguments.out)
        print(report(results))
        console.print(f"written to {arguments.out} and {arguments.out.with_suffix('.json')}", markup=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
