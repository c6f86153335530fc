"""The GPU bench, on a CPU: every part of it but CUDA itself."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import gpu
import pytest
import torch
from serve import SIZES, Bench
from speed import Server


def test_the_command_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.md"
    words = ["--device", "cpu", "--quick", "--modes", "eager", "--only", "W2", "--rounds", "1", "--out", str(out)]
    assert gpu.main(words) == 0
    printed = capsys.readouterr().out
    assert "W2, eager: " in printed
    assert "W2, eager over reference: " in printed
    assert "**The GPU is unmeasured.**" in out.read_text()
    jobs = json.loads(out.with_suffix(".json").read_text())["jobs"]
    assert [(job["workload"], job["server"], len(job["answers"])) for job in jobs] == [
        ("W2", "eager", 1),
        ("W2", "reference", 1),
    ]


def test_a_trace_counts_what_would_make_the_host_wait() -> None:
    bench = Bench(2, mode="eager", sizes=SIZES["small"])
    traced = bench.trace(updates=3)
    assert traced["units"] == 6
    assert traced["kernels"] == 0
    # On a CPU, and only there, the fused Adam reads a learning rate for each tensor; nothing else may read a number.
    assert set(traced["synchronisations"]) == {"aten::_local_scalar_dense"}
    assert traced["synchronisations"]["aten::_local_scalar_dense"] % 3 == 0


def test_one_job_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        'import sys; print(\'{"ready": ["W1"]}\', flush=True); sys.stdin.readline(); sys.exit("no kernel")'
    )
    broken = Server("broken", [sys.executable, str(script)])
    late = time.monotonic() + 60
    jobs = [gpu.Job("W1", broken), gpu.Job("W3", broken), gpu.Job("W2", Server("none", ["/nonexistent"]))]
    for job in jobs:
        gpu.work(job, 1, late)
    broken.stop()
    assert jobs[0].failure == "exit status 1: no kernel"
    assert jobs[1].failure == "not offered; it has W1"
    assert jobs[2].failure is not None
    over = gpu.Job("W1", broken)
    gpu.work(over, 2, time.monotonic() - 1)
    assert over.failure == "the time was up after 0 of 2 blocks"
    about = gpu.about_machine(torch.device("cpu")) | {"command": "?"}
    text = gpu.report(about, [*jobs, over], ["eager", "compile"], [])
    assert "- W1, broken: exit status 1: no kernel" in text


def test_without_a_cuda_device_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where there is one
    with pytest.raises(SystemExit):
        gpu.parse([])
    assert "--device cpu --quick" in capsys.readouterr().err


def test_the_plan_begins_with_the_figures_most_wanted() -> None:
    jobs = gpu.plan("cuda", "device", ["eager", "graph"], [], ["W1", "trace"])
    assert [(job.workload, job.server.name) for job in jobs] == [
        ("W1", "graph"),
        ("W1", "eager"),
        ("W1", "reference"),
        ("W1", "graph, 8 seeds"),
        ("trace", "graph"),
        ("trace", "graph, 8 seeds"),
        ("W1", "eager, 8 seeds"),
    ]
    assert jobs[0].server is jobs[4].server
