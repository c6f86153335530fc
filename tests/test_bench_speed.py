"""The driver of the speed benches: its floor, its servers and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import speed
import torch
from serve import ACTION, BATCH, OBS, SIZES, make_data
from torch.utils.flop_counter import FlopCounterMode

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.types import Batch, Transition

SERVER = """
import json, sys, time
print("a peer may print what it likes")
print(json.dumps({"ready": ["good", "bad", "slow"]}), flush=True)
for line in sys.stdin:
    if line.strip() == "bad":
        raise MemoryError("no room")
    if line.strip() == "slow":
        time.sleep(60)
    print(json.dumps({"name": "good", "units": 10, "cpu": 2.0, "wall": 4.0, "sys": 0.5}), flush=True)
"""


def flops_of_update(critics: int, hidden: tuple[int, ...], diversity: float) -> int:
    """What the matrix products of our eager update count."""
    terms = [Diversity(diversity)] if diversity else []
    learner = SAC(OBS, ACTION, [0], critics=critics, hidden=hidden, regularisers=terms)
    data = Transition(*(x[None] for x in make_data(BATCH)))
    with FlopCounterMode(display=False) as counter:
        learner.update(Batch(data, 0), torch.randn(1, 2 * BATCH * ACTION), torch.tensor(0.0))
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("workload", "critics", "hidden", "diversity"),
    [("W1", 2, (256, 256), 0.0), ("W4-SACN-10", 10, (256,) * 3, 0.0), ("W4-EDAC-10", 10, (256,) * 3, 1.0)],
)
def test_our_update_multiplies_little_more_than_the_floor(
    workload: str, critics: int, hidden: tuple[int, ...], diversity: float
) -> None:
    floor = speed.flops(SIZES["full"])[workload]
    # Autograd goes back to all inputs of the critics where the action's columns would do.
    assert floor <= flops_of_update(critics, hidden, diversity) <= 1.03 * floor


def test_our_ensemble_multiplies_what_the_floor_says() -> None:
    model = GaussianEnsemble(OBS, ACTION, [0])
    floor = speed.flops(SIZES["full"])
    x, y = torch.randn(1, 7, BATCH, OBS + ACTION), torch.randn(1, 7, BATCH, OBS + 1)
    params = [p.requires_grad_() for p in (*model.params, model.max_logvar, model.min_logvar)]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(model.loss(params, x, y)[0], params)
    assert counter.get_total_flops() == pytest.approx(BATCH * floor["W2"])


def server(tmp_path: Path) -> speed.Server:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return speed.Server("toy", [sys.executable, str(script)])


def test_a_server_that_dies_is_left_out_of_that_workload_alone(tmp_path: Path) -> None:
    samples: list[Any] = []
    failures: list[Any] = []
    rounds: list[int] = []
    toy = server(tmp_path)
    with speed.running([toy]):
        speed.alternate(
            [("bad", [toy]), ("good", [toy]), ("unknown", [toy])],
            2,
            done=lambda who, workload, turn, answer: samples.append((workload, turn, answer["units"])),
            failed=lambda who, workload, reason: failures.append((workload, reason)),
            after_round=lambda: rounds.append(len(samples)),
        )
    assert samples == [("good", 0, 10), ("good", 1, 10), ("good", 2, 10)]
    assert failures == [("bad", "exit status 1: MemoryError: no room")]
    assert rounds == [1, 2, 3]


def test_a_server_that_hangs_is_ended(tmp_path: Path) -> None:
    toy = server(tmp_path)
    with speed.running([toy]):
        toy.start()
        with pytest.raises(speed.ServerDied, match=r"no answer within 0\.5 s"):
            toy.ask("slow", timeout=0.5)
        assert toy.ask("good")["units"] == 10


def sample(who: str, workload: str, turn: int, units: float, cpu: float, **more: float) -> dict[str, Any]:
    return {"server": who, "workload": workload, "round": turn, "units": units, "cpu": cpu, "sys": 0.1 * cpu, **more}


def test_the_table_states_medians_ratios_floor_and_compiling(tmp_path: Path) -> None:
    about = dict.fromkeys(("processor", "core", "threads", "python", "torch", "numpy", "date", "command"), "?")
    results = speed.Results(about, ["reference", "compiled", "kit"], ["kit"], memory={"compiled": 512.0})
    gflop = speed.flops(SIZES["full"])["W1"] / 1e9
    results.samples = [
        sample("reference", "W1", 0, 100, 1.0),
        *(sample("reference", "W1", turn, 100, 1.0) for turn in (1, 2, 3)),
        sample("compiled", "W1", 0, 100, 5.0, children=25.5),  # 0.5 s of it are the updates
        *(sample("compiled", "W1", turn, 100, cpu) for turn, cpu in enumerate((0.4, 0.5, 0.625), 1)),
        *(sample("kit", "W1", turn, 100, 2.0) for turn in (1, 2, 3)),
        *(sample("machine", "GEMM-numpy", turn, 400 * gflop, 1.0) for turn in (1, 2, 3)),
    ]
    results.scaling = [
        {**sample("compiled", "W1", 1, 100, 0.5), "seeds": 1},
        {**sample("compiled", "W1", 1, 300, 1.0), "seeds": 2},
    ]
    results.failures = [{"server": "kit", "workload": "W2", "reason": "exit status 1"}]
    results.save(tmp_path / "runs" / "speed.md")
    lines = (tmp_path / "runs" / "speed.md").read_text().splitlines()
    assert "| W1, updates | compiled | 200 | 160-250 | 2.00 | 4.00 | 50% | 10% | 30 s |" in lines
    assert "| W1, updates | kit | 50 | 50-50 | 0.50 | 1.00 | 12% | 10% | - |" in lines
    assert "| compiled | 512 MB |" in lines
    assert "| 2 | compiled | 300 | 1.50 | - | - |" in lines
    assert "- kit, W2: exit status 1" in lines
    assert len(json.loads((tmp_path / "runs" / "speed.json").read_text())["samples"]) == len(results.samples)


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse(["--only", "W1,W9"])
    assert "W9 unknown; choose among W1," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        speed.parse(["--peer", "kit"])
    assert "expected NAME=COMMAND" in capsys.readouterr().err
    assert speed.parse(["--quick"]).out == Path("runs/speed.md")
    assert speed.parse([]).out == Path("bench/results/speed.md")
    assert speed.parse(["--peer", "kit=env A=1 python x.py"]).peer[0].command == ["env", "A=1", "python", "x.py"]


def test_the_command_in_the_table_names_no_folders() -> None:
    words = ["--rounds", "5", "--peer", "kit=python /home/me/server.py", "--peer=b=/x/y", "--out", "/tmp/here/speed.md"]
    assert speed.shared_command(words) == (
        "python bench/speed.py --rounds 5 --peer kit=... --peer=b=... --out speed.md"
    )
