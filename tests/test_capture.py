"""The three ways to run an update agree, and `auto` says what it chose and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mbrl.capture import capture, choose, gradients
from mbrl.data.ring import ReplayTable
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.optim import Adam
from mbrl.train import Draws, Schedule, Training
from mbrl.types import Transition

SEEDS = [0, 3]
CPU = torch.device("cpu")


def training(device: str = "cpu") -> Training:
    g = torch.Generator().manual_seed(0)
    rows = 300
    data = Transition(
        torch.randn(rows, 3, generator=g),
        torch.rand(rows, 2, generator=g) * 2 - 1,
        torch.randn(rows, generator=g),
        torch.randn(rows, 3, generator=g),
        torch.rand(rows, generator=g) < 0.05,
        torch.ones(rows, dtype=torch.bool),
    )
    table = ReplayTable(Transition(*(x.to(device) for x in data)), 64, len(SEEDS), device)
    learner = SAC(3, 2, SEEDS, hidden=(16,), device=device)
    plan = Schedule(400, batch_size=16, real_ratio=0.5, rollout_every=4, log_every=4, evaluate_every=4)
    unused: Any = None
    return Training(learner, table, unused, plan, unused, unused, unused)


def run_updates(run: Training, mode: Any, count: int, updates: int = 100) -> list[torch.Tensor]:
    step = capture(run.updates, mode)
    device = run.table.rows.device
    draws = Draws(SEEDS, 16, run.learner.noise_size(16), device)
    for i in range(0, updates, count):
        step(*draws(i, count))
    return [p.cpu() for p in (*run.learner.actor, *run.learner.critics, run.learner.log_temperature)]


def test_compiled_updates_equal_eager_ones_after_100_updates():
    torch._dynamo.reset()
    eager = run_updates(training(), "eager", 1)
    compiled = run_updates(training(), "compile", 1)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_dynamics_update_traces_as_one_full_graph_and_is_the_same_update():
    """Without the compiler's back end: that one graph would compile for ten seconds."""
    torch._dynamo.reset()
    source = torch.Generator().manual_seed(0)
    table = torch.randn(500, 3 + 2 + 4, generator=source)
    picks = torch.randint(500, (100, len(SEEDS), 3, 32), generator=source)
    weights = []
    for traced in (False, True):
        model = GaussianEnsemble(3, 2, SEEDS, members=3, elites=2, hidden=(16, 16), loss="beta_nll")
        trained = [*model.params, model.max_logvar, model.min_logvar]
        optimiser = Adam(trained, 1e-3)

        def step(index: torch.Tensor, rate: torch.Tensor, model=model, optimiser=optimiser, trained=trained):
            return model._step(table, index, optimiser, trained, rate)

        run = torch.compile(step, fullgraph=True, dynamic=False, backend="eager") if traced else step
        for index in picks:
            run(index, torch.ones(()))
        weights.append(trained)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device, and there is none here")
def test_captured_updates_equal_eager_ones_after_100_updates():
    eager = run_updates(training("cuda"), "eager", 1)
    captured = run_updates(training("cuda"), "graph", 4)
    for a, b in zip(eager, captured, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_several_updates_in_one_call_are_the_same_updates():
    one = run_updates(training(), "eager", 1, updates=20)
    four = run_updates(training(), "eager", 4, updates=20)
    for a, b in zip(one, four, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_taken_only_of_the_parameters():
    weight, other = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    grads, aux = gradients(lambda p: ((p[0] * other).sum(), p[0] * other), [weight])
    assert torch.equal(grads[0], other)
    assert torch.equal(aux, torch.tensor([10.0, 21.0]))
    assert not aux.requires_grad
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("mode", "updates", "intervals", "expected"),
    [
        ("auto", 8_000, (1000,), ("eager", 1)),
        ("auto", 1_000_000, (1000, 5000), ("compile", 4)),
        ("compile", 1_000, (1000, 50), ("compile", 2)),
        ("compile", 1_001, (1000,), ("compile", 1)),
        ("eager", 1_000_000, (1000,), ("eager", 1)),
    ],
)
def test_choice(mode, updates, intervals, expected):
    choice = choose(mode, CPU, updates, intervals)
    assert (choice.mode, choice.steps) == expected
    assert choice.reason


def test_auto_is_eager_where_nothing_can_compile(monkeypatch):
    monkeypatch.setattr("mbrl.capture.has_compiler", lambda: False)
    choice = choose("auto", CPU, 1_000_000, (1000,))
    assert choice.mode == "eager"
    assert "compiler" in choice.reason


def test_a_cuda_graph_without_cuda_is_refused():
    with pytest.raises(ValueError, match="CUDA graph"):
        choose("graph", CPU, 1000, (10,))
    with pytest.raises(ValueError, match="compile=quick is unknown"):
        choose("quick", CPU, 1000, (10,))  # type: ignore[arg-type]


def test_draws_in_one_call_are_those_of_single_calls():
    draws, again = Draws(SEEDS, 4, 3, "cpu"), Draws(SEEDS, 4, 3, "cpu")
    uniform, noise = (x.clone() for x in draws(36, 4))
    for i in range(4):
        one, two = again(36 + i)
        assert torch.equal(uniform[:, i], one[:, 0])
        assert torch.equal(noise[:, i], two[:, 0])
    assert Draws.BLOCK % 4 == 0
