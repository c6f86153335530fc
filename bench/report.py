"""What the benches that write one table have in common: their words, their machine, and where the table goes."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def parser(about: str | None, name: str, quick: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """The words of a bench.

    Args:
        about: its docstring, which is its help.
        name: of the file in `bench/results/`, without its ending.
        quick: what `--quick` makes of it.
        rounds: how many by default; None where nobody may choose.
    """
    words = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--quick", action="store_true", help=f"{quick}: does it run?")
    if rounds is not None:
        words.add_argument("--rounds", type=int, default=rounds)
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"{name}.md")
    return words


def one_thread() -> None:
    """As runs have it: small networks gain little from a second thread, and denormal numbers are flushed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def seconds(work: Callable[[], object], count: int = 1) -> float:
    """CPU seconds of one of `count` calls."""
    begin = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - begin) / count


def machine() -> str:
    """What the numbers are of."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )


def publish(out: Path, lines: Sequence[str]) -> None:
    """Write the table and show it."""
    text = "\n".join(lines)
    out.write_text(text)
    print(text)
