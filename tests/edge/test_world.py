from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import load_script
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.edge import world
from mbrl.edge.world import EdgeWorld, OraclePatch, RandomPrior, World, distance, in_ring, reward, starts, true_step
from mbrl.evaluate import make_env
from mbrl.learn.sac import SAC
from mbrl.nets import generator
from mbrl.rollout.actions import PolicyActions
from mbrl.rollout.filters import FilterChain
from mbrl.rollout.imagine import Imagination
from mbrl.rollout.select import RandomElite
from mbrl.types import Batch, Transition


def test_the_reward_is_that_of_its_equation() -> None:
    states = torch.tensor([[0.0, 0.0], [1.75, -0.5], [-0.2, -3.5], [4.0, 5.0], [5.0, -5.0], [5.001, 0.0], [0.0, -9.0]])
    assert distance(states).tolist() == pytest.approx([0.0, 1.75, 3.5, 5.0, 5.0, 5.001, 9.0])
    assert reward(states).tolist() == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, -1.0, -1.0])


def test_the_ring_at_both_edges() -> None:
    above = float(np.nextafter(np.float32(5), np.float32(9)))
    beyond = float(np.nextafter(np.float32(6), np.float32(9)))
    states = torch.tensor([[5.0, 0.0], [above, 0.0], [-above, 1.0], [2.0, -6.0], [beyond, 0.0], [0.0, -beyond]])
    assert in_ring(states).tolist() == [False, True, True, True, False, False]


def test_inside_all_moves_are_free_and_outside_none_is() -> None:
    states = torch.tensor([[5.0, -5.0], [5.5, 0.0], [0.25, 0.5]])
    following, earned = true_step(states, torch.tensor([[1.0, -0.5], [-1.0, 0.0], [-1.0, 1.0]]))
    assert following.tolist() == [[6.0, -5.5], [5.5, 0.0], [-0.75, 1.5]]
    assert earned.tolist() == pytest.approx([1.0, -1.0, 0.5 / 3.5])


def test_starts_are_all_over_their_box() -> None:
    rows = starts(5000)
    assert rows.obs.abs().max() <= 1.0
    assert rows.obs.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.03)
    assert rows.obs.var(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.02)
    assert torch.equal(rows.reward, reward(rows.obs))


def outwards(obs: Tensor, noise: Tensor) -> Tensor:
    """The policy that reaches furthest."""
    return torch.sign(obs)


def test_imagined_lanes_reach_the_ring_in_their_last_step_alone_and_agree_with_the_truth() -> None:
    table = ReplayTable(starts(1000), 5 * 512, 2)
    parts = Imagination(World(2), PolicyActions(), RandomElite(), FilterChain(), world.LENGTH, 256)
    parts.fill(table, 512, outwards, [generator(s, "rollout") for s in range(2)])
    for seed in range(2):
        rows = table.imagined(seed)
        # No imagined step begins beyond the reach: the trap plays no part in them.
        assert distance(rows.obs).max() <= world.REACH
        lane_step = torch.arange(world.LENGTH).repeat_interleave(256).repeat(2)  # chunks of 256 lanes, step by step
        assert torch.equal(in_ring(rows.next_obs), lane_step == world.LENGTH - 1)
        assert torch.equal(rows.next_obs, rows.obs + rows.action)
        assert torch.equal(rows.reward, reward(rows.obs))
        assert not rows.terminal.any()


def test_the_patch_touches_rows_of_the_ring_and_no_others() -> None:
    source = torch.Generator().manual_seed(0)
    settings = {"hidden": (16, 16), "discount": world.DISCOUNT}
    plain, patched = SAC(2, 2, [0, 1], **settings), OraclePatch(2, 2, [0, 1], **settings)  # type: ignore[arg-type]
    obs = (2 * torch.rand((2, 64, 2), generator=source) - 1) * 5
    action = 2 * torch.rand((2, 64, 2), generator=source) - 1
    following, earned = true_step(obs, action)
    never = torch.zeros((2, 64), dtype=torch.bool)
    batch = Batch(Transition(obs, action, earned, following, never, never), 0)
    noise = torch.randn((2, 64, 2), generator=source)
    before, after = plain.target(batch, noise), patched.target(batch, noise)
    edge = in_ring(following)
    assert 0 < edge.sum() < 64
    assert torch.equal(before[~edge], after[~edge])
    # -1 for ever is worth -100: one step of reward, and 0.99 of that.
    assert after[edge].tolist() == pytest.approx((earned[edge] - 99.0).tolist())


def test_random_priors_are_fixed_differ_and_have_their_size() -> None:
    settings = {"hidden": (16, 16), "critics": 4, "discount": world.DISCOUNT}
    learner = RandomPrior(2, 2, [0, 1], prior_scale=5.0, **settings)  # type: ignore[arg-type]
    plain = SAC(2, 2, [0, 1], **settings)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(0)
    obs = (2 * torch.rand((2, 4000, 2), generator=source) - 1) * world.REACH
    still = torch.zeros_like(obs)
    prior = learner.q(obs, still) - plain.q(obs, still)  # the learnt parts begin alike
    assert prior.std(-1).flatten().tolist() == pytest.approx([5.0] * 8, rel=0.1)
    assert prior.mean(-1).abs().max() < 0.5
    assert torch.pdist(prior.flatten(0, 1)).min() > 1.0  # eight priors, all different
    fixed = [p.clone() for p in learner.priors]
    never = torch.zeros((2, 64), dtype=torch.bool)
    rows = obs[:, :64]
    batch = Batch(Transition(rows, still[:, :64], reward(rows), rows, never, never), 0)
    target = torch.zeros(2, 64)
    _, (loss, q) = learner.critic_loss(learner.critics, rows, still[:, :64], target)
    torch.testing.assert_close(q, learner.q(rows, still[:, :64]))
    torch.testing.assert_close(loss, q.square().mean(-1).sum(-1))
    learner.update(batch, torch.randn((2, learner.noise_size(64)), generator=source), torch.tensor(0.0))
    assert all(torch.equal(before, now) for before, now in zip(fixed, learner.priors, strict=True))


def test_the_environment_is_the_same_world() -> None:
    env = make_env(world.ENV, {}, world.HORIZON)
    obs, _ = env.reset(seed=1)
    total, rewards = np.array([1.0, 0.5], np.float32), []
    for t in range(world.HORIZON):
        expected, earned = true_step(torch.from_numpy(obs), torch.from_numpy(total))
        obs, got, terminated, truncated, _ = env.step(total)
        np.testing.assert_array_equal(obs, expected.numpy())
        assert got == pytest.approx(float(earned))
        assert not terminated
        assert truncated == (t == world.HORIZON - 1)
        rewards.append(got)
    assert rewards[-1] == -1.0  # went out, and cannot come back
    inside = EdgeWorld()
    first, _ = inside.reset(seed=0)
    assert np.abs(first).max() <= world.START
    moved, *_ = inside.step(np.array([9.0, -9.0], np.float32))
    np.testing.assert_allclose(moved - first, [1.0, -1.0], atol=1e-6)


def test_the_driver_of_the_world_runs_and_does_not_repeat_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--variants", "base", "norm", "--quick"]
    edge_world = load_script("edge_world")
    assert edge_world.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| base, N = 2 | ")
    results = json.loads((tmp_path / "edge_world.json").read_text())
    assert results["base"]["curves"]["update"] == [[200], [400]]
    assert all(0 <= share <= 0.2 for row in results["norm"]["curves"]["ring"] for share in row)
    for picture in ("values.png", "curves.png"):
        assert (tmp_path / picture).stat().st_size > 5000
    edge_world.run = None  # a second call must not need it
    assert edge_world.main(words) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_the_driver_of_the_grid_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "grid.png"
    words = ["--lengths", "3", "--seeds", "2", "--rounds", "5", "--figure", str(figure)]
    assert load_script("edge_grid").main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.count("|") == 10 for line in lines)
    assert figure.stat().st_size > 5000
