"""Real steps while training goes on: where rows come from, when the model follows, and that a stop changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from mbrl.checkpoint import load_latest
from mbrl.cli import main
from mbrl.data.collect import Player
from mbrl.data.ring import ReplayTable
from mbrl.data.sources import load_dataset, no_dataset
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.learn.sac import SAC
from mbrl.nets import generator, randn
from mbrl.online import PURPOSE, Experience, Interaction
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import FilterChain
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.types import Transition

STEPS = 260
TINY = [
    "train",
    "loop=online",
    "algo=mbpo",
    "env=test_online:StoppingPendulum",
    "horizon=70",
    f"loop.steps={STEPS}",
    "loop.warm_up=60",
    "loop.updates_per_step=2",
    "loop.fit_every=50",
    "loop.evaluate_every=50",
    "loop.log_every=25",
    "loop.rollout_growth=[1,3,60,200]",
    "batch_size=32",
    "eval.episodes=2",
    "eval.background=false",
    "learner.hidden=[32,32]",
    "dynamics.hidden=[32,32]",
    "dynamics.members=3",
    "dynamics.elites=2",
    "dynamics.max_epochs=3",
    "rollout.lanes=50",
    "rollout.retain=2",
    "progress=false",
    "seeds=2",
]


class StoppingPendulum(PendulumEnv):  # type: ignore[misc]
    """Pendulum-v1 that sends its own process a signal when a file counts so many real steps."""

    def step(self, action: Any) -> Any:
        if (plan := os.environ.get("MBRL_TEST_STOP")) is not None:
            number, at = (int(word) for word in plan.split(","))
            StoppingPendulum.played += 1
            if StoppingPendulum.played == at:
                os.kill(os.getpid(), number)
        return super().step(action)

    played = 0


class NoisyReset(PendulumEnv):  # type: ignore[misc]
    """An environment that ignores its seed."""

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.state = np.random.default_rng().uniform([-np.pi, -1.0], [np.pi, 1.0])
        return self._get_obs(), {}


class Notes:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, Any]]] = []

    def add(self, metrics: dict[str, Any], prefix: str = "") -> None:
        self.added.append((prefix, metrics))

    def log_event(self, step: int, values: Any) -> None: ...

    def flush(self, step: int) -> dict[str, float]:
        return {}


def experience(env: str, seeds: list[int], plan: Interaction, horizon: int = 50) -> Experience:
    players = [Player(env, seed=seed, horizon=horizon) for seed in seeds]
    table = ReplayTable(
        no_dataset(env, 3, np.array([-2.0]), np.array([2.0])).transitions, 40 * 3 * 2, len(seeds), steps=plan.steps
    )
    model = GaussianEnsemble(3, 1, seeds, members=2, elites=1, hidden=(16,), max_epochs=2)
    parts = Imagination(model, PolicyActions(), RandomElite(), FilterChain(), 1, 40)
    return Experience(
        players=players, learner=SAC(3, 1, seeds, hidden=(16,)), actions=PolicyActions(), model=model, table=table,
        imagination=parts, lanes=40, retain=2, plan=plan, logger=Notes(),
    )  # fmt: skip


def test_real_steps_are_those_of_the_environment() -> None:
    lived = experience("Pendulum-v1", [3, 4], Interaction(120, 80), horizon=50)
    for _ in range(120):
        lived.step()
    rows = lived.table.own()
    assert rows.reward.shape == (2, 120)
    for s, seed in enumerate((3, 4)):
        env = gymnasium.make("Pendulum-v1", max_episode_steps=50)
        reset = Player("Pendulum-v1", seed=seed, horizon=50).reset_seed
        obs, _ = env.reset(seed=reset(PURPOSE, 0))
        episode = 0
        for t in range(120):
            np.testing.assert_array_equal(rows.obs[s, t].numpy(), obs)
            obs, reward, _, truncated, _ = env.step(2.0 * rows.action[s, t].numpy())
            np.testing.assert_array_equal(rows.next_obs[s, t].numpy(), obs)
            assert rows.reward[s, t] == pytest.approx(reward, rel=1e-6)
            if truncated:
                episode += 1
                obs, _ = env.reset(seed=reset(PURPOSE, episode))
        assert lived.episodes[s] == episode == 2
    assert bool(rows.real.all())
    assert not bool(rows.terminal.any())
    # Random at first, then the policy's own samples from the numbers of that step.
    step = 100
    noise = randn((1, 1), [generator(seed, PURPOSE, step) for seed in (3, 4)])
    expected = lived.learner.sample(rows.obs[:, step : step + 1], noise)
    torch.testing.assert_close(rows.action[:, step : step + 1], expected)
    assert rows.action[:, :80].abs().mean() == pytest.approx(0.5, abs=0.1)  # uniform


def test_a_seed_lives_alike_alone_and_beside_another() -> None:
    both, alone = (experience("Pendulum-v1", seeds, Interaction(60, 20)) for seeds in ([5, 6], [6]))
    for lived in (both, alone):
        assert lived.advance(0)
        for update in range(1, 40):
            assert lived.advance(update)
    torch.testing.assert_close(both.table.own().obs[1:], alone.table.own().obs, rtol=0, atol=1e-6)
    for name, tensor in alone.model.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(both.model.state_dict()[name][1:], tensor, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_what_is_due_is_done_once() -> None:
    lived = experience("Pendulum-v1", [0], Interaction(100, 30, updates_per_step=2, fit_every=10))
    for update in (0, 0, 2, 2, 4):
        lived.advance(update)
    assert lived.steps == 33
    assert lived.fits == 1
    lived.advance(20)
    assert lived.steps == 41
    assert lived.fits == 2
    before = {name: tensor.clone() for name, tensor in lived.model.state_dict().items()}  # type: ignore[union-attr]
    lived.advance(20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lived.model.state_dict().items())  # type: ignore[union-attr]
    plan = lived.plan
    assert [plan.real_steps(update) for update in (0, 1, 2, 20, plan.updates)] == [30, 31, 31, 40, 100]


def test_a_stop_within_a_refit_leaves_the_model_as_it_was() -> None:
    lived = experience("Pendulum-v1", [0], Interaction(100, 30, fit_every=10))
    assert lived.advance(0)
    before = {name: tensor.clone() for name, tensor in lived.model.state_dict().items()}  # type: ignore[union-attr]
    asked = iter([False] * 11 + [True] * 10)  # ten real steps, and one batch of the refit
    lived.should_stop = lambda: next(asked)
    for update in range(1, 10):
        assert lived.advance(update)
    assert not lived.advance(10)
    assert lived.steps == 41
    assert lived.fits == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in lived.model.state_dict().items())  # type: ignore[union-attr]
    lived.should_stop = lambda: False
    assert lived.advance(10)
    assert lived.fits == 2


def test_the_model_is_fitted_to_each_seeds_own_rows() -> None:
    """Seed 1's rows are another world: its model must predict that one."""
    count, source = 400, torch.Generator().manual_seed(0)
    obs, action = torch.randn(2, count, 3, generator=source), torch.rand(2, count, 1, generator=source) * 2 - 1
    change = torch.stack([0.5 * obs[0], -0.5 * obs[1]])
    none = torch.zeros(2, count, dtype=torch.bool)
    data = Transition(obs, action, obs.sum(-1), obs + change, none, none)
    model = GaussianEnsemble(
        3, 1, [0, 1], members=2, elites=1, hidden=(64, 64), learning_rate=3e-3, max_epochs=100, patience=None
    )
    model.fit(data, part=3)
    error = (model.predict(obs, action).mean[..., :-1] - (obs + change).unsqueeze(1)).square().mean((1, 2, 3))
    wrong = (model.predict(obs.flip(0), action).mean[..., :-1] - (obs + change).flip(0).unsqueeze(1)).square()
    assert bool((error < 0.05).all())
    assert wrong.mean() > 0.5
    shared = GaussianEnsemble(3, 1, [0, 1], members=2, elites=1, hidden=(32, 32), max_epochs=3)
    stacked = GaussianEnsemble(3, 1, [0, 1], members=2, elites=1, hidden=(32, 32), max_epochs=3)
    shared.fit(Transition(*(x[0] for x in data)))
    stacked.fit(Transition(*(x[:1].expand(2, *x.shape[1:]) for x in data)))
    for name, tensor in shared.state_dict().items():
        assert torch.equal(tensor, stacked.state_dict()[name]), name


def test_rollouts_grow_as_in_mbpo() -> None:
    plan = Interaction(200_000, 5000, rollout_growth=(1, 15, 20_000, 100_000))
    assert [plan.rollout_length(n) for n in (0, 20_000, 25_713, 25_715, 60_000, 99_999, 100_000, 150_000)] == [
        1, 1, 1, 2, 8, 14, 15, 15,
    ]  # fmt: skip
    lived = experience("Pendulum-v1", [0], Interaction(100, 10, fit_every=20, rollout_growth=(1, 3, 10, 60)))
    lived.advance(0)
    assert lived.imagination.length == 1
    assert lived.table.limit == 40 * 1 * 2
    for update in range(1, 61):
        lived.advance(update)
    assert lived.imagination.length == 3
    assert lived.table.limit == 40 * 3 * 2
    for bad in ((0, 3, 0, 1), (1, 3, 5, 4)):
        with pytest.raises(ValueError, match="rollout_growth"):
            Interaction(100, 10, rollout_growth=bad)


# -- whole runs --------------------------------------------------------------------------------------------------------


def result(path: Path) -> tuple[bytes, list[dict[str, float]]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return (path / "policy.pt").read_bytes(), kept


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("online") / "undisturbed"
    assert main([*TINY, f"run_dir={path}"]) == 0
    return path


def test_a_run_reports_against_real_steps(undisturbed: Path) -> None:
    _, rows = result(undisturbed)
    by_update = {row["update"]: row for row in rows}
    assert by_update[100]["online/steps"] == 110
    assert by_update[400]["online/steps"] == STEPS
    assert {row["online/length"] for row in rows if "online/length" in row} == {70}
    lengths = [row["dynamics/rollout_length"] for row in rows if "dynamics/rollout_length" in row]
    assert lengths == [1, 1, 2, 3]
    assert all(row["dynamics/holdout_error/seed_1"] > 0 for row in rows if "dynamics/epochs" in row)
    meta = json.loads((undisturbed / "meta.json").read_text())
    assert meta["online"]["warm_up"] == 60
    assert meta["transitions"] == 0
    with np.load(undisturbed / "returns.npz") as returns:
        assert returns["updates"].tolist() == [100, 200, 300, 400]
    assert (undisturbed / "learning_curve.png").exists()


def test_a_run_leaves_its_steps_as_datasets_and_its_last_model(undisturbed: Path) -> None:
    found = load_latest(undisturbed / "checkpoints")
    assert found is not None
    rows = found[1]["training"]["table"]["own"]
    for s in (0, 1):
        dataset = load_dataset(str(undisturbed / "experience" / f"seed_{s}.hdf5"))
        data = dataset.transitions
        packed = torch.cat([data.obs, data.action, data.next_obs, data.reward.unsqueeze(-1)], -1)
        torch.testing.assert_close(packed, rows[s, :, :8], rtol=0, atol=1e-6)
        assert dataset.episode_end.nonzero().flatten().tolist() == [69, 139, 209, 259]
        assert not bool(data.terminal.any())
    model = load_latest(undisturbed / "dynamics" / "model")
    assert model is not None
    for name, tensor in found[1]["training"]["experience"]["model"].items():
        assert torch.equal(model[1][name], tensor)
    assert main(["diagnose", str(undisturbed)]) == 1


@pytest.mark.parametrize("at", [37, 301, 444])  # the warm-up; training; both count the two seeds' steps
def test_stopped_and_resumed_equals_undisturbed(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    path = tmp_path / "run"
    monkeypatch.setattr(StoppingPendulum, "played", 0)
    monkeypatch.setenv("MBRL_TEST_STOP", f"{int(signal.SIGTERM)},{at}")
    assert main([*TINY, f"run_dir={path}"]) == 130
    assert main(["train", f"resume={path}"]) == 0
    assert result(path) == result(undisturbed)


def test_killed_and_resumed_equals_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    environment = {
        **os.environ,
        "MBRL_TEST_STOP": f"{int(signal.SIGKILL)},400",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    words = [sys.executable, "-m", "mbrl", *TINY, f"run_dir={path}", "checkpoint_seconds=0"]
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert main(["train", f"resume={path}"]) == 0
    assert result(path)[0] == result(undisturbed)[0]


def test_a_compiled_update_sees_new_rows_without_being_compiled_anew() -> None:
    data = no_dataset("none", 3, np.array([-1.0]), np.array([1.0])).transitions
    table = ReplayTable(data, 8, 1, steps=16)
    compiled = 0

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return module.forward

    sample = torch.compile(lambda uniform: table.sample(uniform, 2).transition.reward, backend=backend, fullgraph=True)
    uniform = torch.tensor([[0.0, 0.999]], dtype=torch.float64)
    flag = torch.zeros((1, 1), dtype=torch.bool)
    for step in range(6):
        row = torch.full((1, 1, 3), float(step))
        table.append(Transition(row, row[..., :1], row[..., 0], row, flag, ~flag))
        assert sample(uniform).tolist() == [[0.0, float(step)]]
    assert compiled == 1


def test_an_environment_that_does_not_replay_is_said(tmp_path: Path) -> None:
    lived = experience("test_online:NoisyReset", [0], Interaction(100, 30))
    lived.advance(0)
    state, table = lived.state_dict(), lived.table.state_dict()
    again = experience("test_online:NoisyReset", [0], Interaction(100, 30))
    again.table.load_state_dict(table)
    with pytest.warns(UserWarning, match="does not replay"):
        again.load_state_dict(state)
    assert again.episodes == [1]
    assert again.lengths == [0]


def test_offline_to_online(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["learner.hidden=[32,32]", "dynamics.hidden=[32,32]", "dynamics.max_epochs=2", "rollout.lanes=50"]
    sizes += ["eval.episodes=1", "progress=false", f"store={tmp_path}", "batch_size=32"]
    offline = tmp_path / "offline"
    assert main(["train", "updates=50", "eval.every=50", f"run_dir={offline}", *sizes]) == 0
    online = ["train", "loop=online", "algo=mbpo", "loop.steps=60", "loop.warm_up=10", "loop.updates_per_step=1"]
    online += ["loop.fit_every=25", "loop.evaluate_every=50", "loop.log_every=50", *sizes]
    begun = tmp_path / "begun"
    assert main([*online, "task=pendulum", "loop.dataset=true", f"loop.start={offline}", f"run_dir={begun}"]) == 0
    assert "begins with the policy of" in capsys.readouterr().out
    found = load_latest(begun / "checkpoints")
    assert found is not None
    table = found[1]["training"]["table"]
    assert table["own"].shape[:2] == (1, 60)
    transitions = json.loads((begun / "meta.json").read_text())["transitions"]
    assert transitions > 1000  # of the dataset, which the rows of a batch come from too
    assert main([*online, "task=pendulum", f"loop.start={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'x'}"]) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["updates=100"], "give loop.steps="),
        (["loop.warm_up=3000"], "loop.warm_up"),
        (["rollout.every=7"], "loop.fit_every"),
        (["filter=[truncate]"], "calibrated once"),
        (["score=residual"], "fitted once"),
        (["rollout.clip.margin=0.5"], "knows no range"),
        (["env=null"], "acts in an environment"),
        (["dataset=builtin:pendulum", "loop.dataset=false"], "leave out one of the two"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "loop=online", "algo=mbpo", f"run_dir={tmp_path / 'run'}", *words]
    if not any(word.startswith(("env=", "dataset=")) for word in words):
        given.append("env=Pendulum-v1")
    assert main(given) == 1
    captured = capsys.readouterr()
    assert reason in captured.err + captured.out
    assert not (tmp_path / "run" / "meta.json").exists()
