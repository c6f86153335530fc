from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import Counter, random_data, transitions
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.nets import generator, randn
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import Clip, FilterChain, Penalise, Terminate, Truncate
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.rollout.uncertainty import max_aleatoric
from mbrl.types import Imagined, Selected, Transition


def one(obs: Tensor, noise: Tensor) -> Tensor:
    return torch.ones_like(noise)


def noisy(obs: Tensor, noise: Tensor) -> Tensor:
    return torch.tanh(noise)


def above(limit: float) -> Terminate:
    return Terminate(lambda obs, action, next_obs: next_obs[..., 0] > limit)


class Distrust:
    """Distrusts next observations above a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, step: Imagined, t: int) -> Imagined:
        good = step.next_obs[..., 0] <= self.limit
        return step._replace(keep=step.keep & good, alive=step.alive & good)


def imagination(model: Any, length: int, chunk: int = 1000, **filters: Any) -> Imagination:
    return Imagination(model, PolicyActions(), RandomElite(), FilterChain(**filters), length, chunk)


def zeros(rows: int = 1) -> Transition:
    flat = [0.0] * rows
    return transitions(flat, flat, flat, flat, [False] * rows)


def sources(*seeds: int) -> list[torch.Generator]:
    return [generator(seed, "rollout", 0) for seed in seeds]


def rows(table: ReplayTable, seed: int = 0) -> list[list[float]]:
    """obs, action, reward, next_obs, terminal, real of every imagined row, in the order of writing."""
    held = table.imagined(seed)
    columns = [held.obs[:, 0], held.action[:, 0], held.reward, held.next_obs[:, 0], held.terminal, held.real]
    return torch.stack([c.float() for c in columns], -1).tolist()


def test_rows_computed_by_hand() -> None:
    # From 0, action 1: the toy model adds the action, and the reward is where it was.
    table = ReplayTable(zeros(), 10, 1)
    metrics = imagination(Counter(torch.tensor([[0]])), 3).fill(table, 2, one, sources(0))
    assert rows(table) == [
        [0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0],
        [1, 1, 1, 2, 0, 0], [1, 1, 1, 2, 0, 0],
        [2, 1, 2, 3, 0, 0], [2, 1, 2, 3, 0, 0],
    ]  # fmt: skip
    assert {name: value.tolist() for name, value in metrics.items()} == {
        "kept": [1.0], "cut": [0.0], "terminal": [0.0], "reward": [1.0], "score": [0.0]
    }  # fmt: skip


def test_the_terminal_row_is_kept_and_nothing_after_it() -> None:
    table = ReplayTable(zeros(), 10, 1)
    metrics = imagination(Counter(torch.tensor([[0]])), 5, terminate=above(1.5)).fill(table, 1, one, sources(0))
    assert rows(table) == [[0, 1, 0, 1, 0, 0], [1, 1, 1, 2, 1, 0]]
    assert metrics["kept"].item() == pytest.approx(2 / 5)
    assert metrics["terminal"].item() == pytest.approx(1 / 2)
    assert metrics["reward"].item() == pytest.approx(1 / 2)


def test_the_distrusted_row_is_not_kept_nor_anything_after_it() -> None:
    table = ReplayTable(zeros(), 10, 1)
    metrics = imagination(Counter(torch.tensor([[0]])), 5, truncate=Distrust(1.5)).fill(table, 1, one, sources(0))
    assert rows(table) == [[0, 1, 0, 1, 0, 0]]
    assert metrics["kept"].item() == pytest.approx(1 / 5)
    assert metrics["cut"].item() == pytest.approx(1 / 2)  # one of the two steps that a living lane made


class Scored(RandomElite):
    """The score of a step is its next observation."""

    def __call__(self, *given: Any) -> Selected:
        taken = super().__call__(*given)
        return taken._replace(score=taken.next_obs[..., 0])


def test_doubtful_rows_are_not_in_the_table_and_ends_of_the_task_are() -> None:
    # Lanes go 0, -1, -2, ...; what comes below -2.5 is doubtful, and below -3.5 the task ends.
    def down(obs: Tensor, noise: Tensor) -> Tensor:
        return -torch.ones_like(noise)

    truncate = Truncate(torch.ones(1), signal="score", threshold=-2.5)
    table = ReplayTable(zeros(), 10, 1)
    parts = imagination(Counter(torch.tensor([[0]])), 5, truncate=truncate)
    parts.select = Scored()
    parts.fill(table, 1, down, sources(0))
    assert [row[3] for row in rows(table)] == [-1, -2]
    ends = Terminate(lambda obs, action, next_obs: next_obs[..., 0] < -2.5)
    table = ReplayTable(zeros(), 10, 1)
    parts = imagination(Counter(torch.tensor([[0]])), 5, truncate=truncate, terminate=ends)
    parts.select = Scored()
    parts.fill(table, 1, down, sources(0))
    assert [(row[3], row[4]) for row in rows(table)] == [(-1, 0), (-2, 0), (-3, 1)]


def test_a_threshold_is_found_on_held_out_rows() -> None:
    # Scores are 1, 2, ..., 100.
    truncate = Truncate(torch.ones(1), signal="score", quantile=0.5)
    parts = imagination(Counter(torch.tensor([[0]])), 5, truncate=truncate)
    parts.select = Scored()
    obs = torch.arange(100.0).view(1, 100, 1)
    parts.calibrate(obs, torch.ones(1, 100, 1), sources(0))
    assert truncate.threshold() == [pytest.approx(50.5)]


def test_dead_lanes_stay_dead_beside_living_ones() -> None:
    # Starts at -10 and 0: the second lane ends at 2, the first goes on.
    starts = transitions([-10.0, 0.0], [0.0] * 2, [0.0] * 2, [0.0] * 2, [False] * 2)
    table = ReplayTable(starts, 100, 1)
    imagination(Counter(torch.tensor([[0]])), 4, terminate=above(1.5)).fill(table, 20, one, sources(0))
    held = table.imagined(0)
    low = held.obs[:, 0] < -5
    lanes = (held.obs[:, 0] == -10).sum().item()
    assert 0 < lanes < 20
    assert low.sum().item() == 4 * lanes
    assert (~low).sum().item() == 2 * (20 - lanes)
    assert held.obs[~low, 0].max().item() == 1.0
    assert held.terminal.sum().item() == 20 - lanes


def test_a_living_lane_in_the_step_function_only_falls() -> None:
    parts = imagination(Counter(torch.tensor([[0]])), 4, terminate=above(0.5))
    obs = torch.tensor([[[0.0], [-5.0], [0.0]]])
    alive = torch.tensor([[True, True, False]])
    step = parts.step(obs, alive, one, sources(0), 0)
    assert step.alive.tolist() == [[False, True, False]]
    assert step.keep.tolist() == [[True, True, False]]
    again = parts.step(step.next_obs, step.alive, one, sources(0), 1)
    assert again.alive.tolist() == [[False, True, False]]
    assert again.keep.tolist() == [[False, True, False]]


def test_stored_reward_is_the_penalised_one() -> None:
    model = Counter(torch.tensor([[0]]), members=3, noise=2.0)
    plain, penalised = ReplayTable(zeros(), 10, 1), ReplayTable(zeros(), 10, 1)
    imagination(model, 1).fill(plain, 5, one, sources(0))
    imagination(model, 1, penalise=Penalise(max_aleatoric, 0.5)).fill(penalised, 5, one, sources(0))
    difference = plain.imagined(0).reward - penalised.imagined(0).reward
    assert difference.tolist() == pytest.approx([0.5 * (2.0**2 + 2.0**2) ** 0.5] * 5)


def test_only_the_seeds_own_elites_are_followed() -> None:
    table = ReplayTable(zeros(), 300, 2)
    model = Counter(torch.tensor([[1, 3], [0, 2]]), members=4)
    imagination(model, 1).fill(table, 200, one, sources(0, 1))
    assert set(table.imagined(0).next_obs[:, 0].tolist()) == {2.0, 4.0}
    assert set(table.imagined(1).next_obs[:, 0].tolist()) == {1.0, 3.0}


def test_chunks_are_exact_where_there_is_no_noise() -> None:
    held = []
    for chunk in (1, 3, 7, 100):
        table = ReplayTable(zeros(), 100, 1)
        imagination(Counter(torch.tensor([[0]])), 4, chunk, terminate=above(2.5)).fill(table, 7, one, sources(0))
        held.append(sorted(rows(table)))
    assert held[0] == held[1] == held[2] == held[3]
    assert len(held[0]) == 7 * 3


def test_chunks_do_not_change_the_distribution() -> None:
    moments = []
    for chunk in (100, 2000):
        table = ReplayTable(zeros(), 8000, 1)
        imagination(Counter(torch.tensor([[0]]), noise=0.5), 4, chunk).fill(table, 2000, noisy, sources(0))
        everything = table.imagined(0).next_obs[:, 0]
        moments.append((everything.mean().item(), everything.std().item()))
    assert moments[0][0] == pytest.approx(moments[1][0], abs=0.08)
    assert moments[0][1] == pytest.approx(moments[1][1], rel=0.05)


def fitted(*seeds: int) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, seeds, members=3, elites=2, hidden=(16,), max_epochs=2, batch_size=64)
    model.fit(random_data(300))
    return model


def test_a_seeds_rollouts_do_not_depend_on_its_neighbours() -> None:
    data = random_data(300)
    together, alone = ReplayTable(data, 200, 2), ReplayTable(data, 200, 1)
    filters: dict[str, Any] = {"clip": Clip(data), "penalise": Penalise(max_aleatoric, 1.0), "terminate": above(1.0)}
    imagination(fitted(4, 9), 3, **filters).fill(together, 40, noisy, sources(4, 9))
    imagination(fitted(9), 3, **filters).fill(alone, 40, noisy, sources(9))
    ours, theirs = together.imagined(1), alone.imagined(0)
    assert len(ours.reward) == len(theirs.reward) > 40
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # the fits are batched otherwise: rounding
    assert torch.equal(ours.obs[:40], theirs.obs[:40])  # the same start states
    first = together.imagined(0)
    assert not torch.equal(first.obs[:40], ours.obs[:40])  # which differ from seed to seed


def test_rows_are_chains_of_the_models_samples() -> None:
    data = random_data(300)
    table = ReplayTable(data, 1000, 1)
    model = fitted(0)
    imagination(model, 3).fill(table, 50, noisy, sources(0))
    held = table.imagined(0)
    assert len(held.reward) == 150
    for t in range(2):  # time goes first: rows 50 t to 50 t + 49 are step t
        assert torch.equal(held.next_obs[50 * t : 50 * (t + 1)], held.obs[50 * (t + 1) : 50 * (t + 2)])
    assert (held.obs[:50].unsqueeze(1) == data.obs).all(-1).any(-1).all()
    mean, std = model.predict(held.obs.unsqueeze(0), held.action.unsqueeze(0))
    outcome = torch.cat([held.next_obs, held.reward.unsqueeze(-1)], -1)
    distance = ((outcome - mean[0]) / std[0])[model.elites[0]].square().mean(-1).amin(0)  # from the nearer elite
    assert distance.mean().item() == pytest.approx(1.0, abs=0.35)


def test_noise_is_a_function_of_the_generators_alone() -> None:
    tables = [ReplayTable(random_data(300), 200, 1) for _ in range(2)]
    model = fitted(0)
    for table in tables:
        torch.randn(7)  # the global generator does not matter
        imagination(model, 2).fill(table, 30, noisy, sources(0))
    assert torch.equal(tables[0].rows, tables[1].rows)
    imagination(model, 2).fill(tables[1], 30, noisy, [generator(0, "rollout", 1000)])
    assert not torch.equal(tables[1].imagined(0).obs[:30], tables[1].imagined(0).obs[60:90])


def test_policy_actions_use_the_policys_noise() -> None:
    noise = randn((5, 2), sources(0, 1))
    actions = PolicyActions()
    assert actions.noise_size(3, 2) == 2
    out, notes = actions(torch.zeros(2, 5, 3), noisy, fitted(0), noise)
    assert torch.equal(out, torch.tanh(noise))
    assert notes == {}
