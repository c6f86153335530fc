"""Each backup against numbers worked out by hand, through SAC, and as part of one graph."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from probes import random_data
from torch import Tensor

from mbrl.learn.backups import LowerConfidenceBound, Minimum, RandomPair
from mbrl.learn.encoders import Identity
from mbrl.learn.regularisers import Diversity
from mbrl.learn.sac import SAC
from mbrl.nets import generator, randn
from mbrl.types import Backup, Batch, Transition

NOTHING = torch.empty(0)
BACKUPS = [Minimum(), LowerConfidenceBound(2.0), RandomPair()]
ROWS = 32


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("critics", [1, 2, 10, 50])
def test_minimum_is_over_critics_row_by_row(lead: tuple[int, ...], critics: int) -> None:
    q = torch.randn(*lead, critics, 6)
    out = Minimum()(q, NOTHING)
    assert out.shape == (*lead, 6)
    for s, rows in enumerate(q.reshape(-1, critics, 6)):
        assert out.reshape(-1, 6)[s].tolist() == [min(column) for column in rows.T.tolist()]
    assert torch.equal(Minimum().objective(q), out)
    assert Minimum().noise_size(critics) == 0


def test_lower_confidence_bound_by_hand() -> None:
    q = torch.tensor([[0.0, 5.0], [0.0, 1.0], [3.0, 3.0]])  # mean 1 and std sqrt(2); mean 3 and std sqrt(8 / 3)
    out = LowerConfidenceBound(0.5)(q, NOTHING)
    assert out.tolist() == pytest.approx([1 - 0.5 * math.sqrt(2), 3 - 0.5 * math.sqrt(8 / 3)])
    assert torch.equal(LowerConfidenceBound(0.5).objective(q), out)
    two = torch.randn(2, 2, 6)
    torch.testing.assert_close(LowerConfidenceBound(1.0)(two, NOTHING), two.amin(-2))
    assert LowerConfidenceBound(3.0)(torch.tensor([[1.0, 2.0]]), NOTHING).tolist() == [1.0, 2.0]  # one critic is sure


def test_an_actor_can_climb_a_bound_that_all_critics_agree_on() -> None:
    q = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(LowerConfidenceBound(2.0).objective(q).sum(), q)
    assert gradient.tolist() == [[0.25] * 3] * 4  # of the mean; the std has none there, and nothing is infinite


def test_random_pair_by_hand() -> None:
    q = torch.tensor([[[9.0, 1.0], [5.0, 6.0], [4.0, 7.0]], [[9.0, 1.0], [5.0, 6.0], [4.0, 7.0]]])
    noise = torch.tensor([[-1.0, 2.0, 0.5], [0.3, 0.2, 0.1]])  # the second and third critic; the first and second
    assert RandomPair()(q, noise).tolist() == [[4.0, 6.0], [5.0, 1.0]]
    assert RandomPair()(q[0], noise[0]).tolist() == [4.0, 6.0]
    assert RandomPair().objective(q).tolist() == [[6.0, pytest.approx(14 / 3)]] * 2


def test_every_pair_is_equally_likely() -> None:
    critics, draws = 5, 20_000
    noise = torch.randn(draws, critics, generator=generator(0, "pairs"))
    ranks = 2.0 ** torch.arange(critics)  # critic e says e in every column but its own, where it says -1
    said = ranks.view(-1, 1).expand(critics, critics).clone()
    said.fill_diagonal_(-1.0)
    lowest = RandomPair()(said.expand(draws, -1, -1), noise)
    members = lowest == -1.0  # a column's critic is in the pair
    assert (members.sum(-1) == 2).all()
    counts = [(members[:, i] & members[:, j]).sum().item() for i, j in combinations(range(critics), 2)]
    expected = draws / 10
    # Chi-square with 9 degrees of freedom is above 27.9 once in a thousand times.
    assert sum((count - expected) ** 2 / expected for count in counts) < 27.9


def test_a_pair_needs_two_critics() -> None:
    assert RandomPair().noise_size(7) == 7
    with pytest.raises(ValueError, match=r"learner.critics=1: backup=random_pair needs 2 critics or more"):
        SAC(3, 2, (0,), critics=1, backup=RandomPair())


def test_identity_encoder() -> None:
    obs = torch.randn(2, 5, 3)
    assert Identity().size(3) == 3
    assert Identity()(obs) is obs


# -- through a learner -------------------------------------------------------------------------------------------------


def learner(backup: Backup, seeds: tuple[int, ...] = (0, 5), **settings: Any) -> SAC:
    defaults: dict[str, Any] = {"hidden": (16,), "critics": 4, "regularisers": [Diversity(1.0)]}
    return SAC(3, 2, seeds, backup=backup, **(defaults | settings))


def inputs(some: SAC, update: int) -> tuple[Batch, Tensor]:
    """A minibatch and noise: each seed's own, whatever stands beside it."""
    data = random_data(200)
    picks = [torch.randint(200, (ROWS,), generator=generator(s, "pick", update)) for s in some.seeds]
    batch = Batch(Transition(*(torch.stack([x[p] for p in picks]) for x in data)), 0)
    return batch, randn((some.noise_size(ROWS),), [generator(s, "noise", update) for s in some.seeds])


def learnt(some: SAC) -> list[Tensor]:
    return [*some.actor, *some.critics, *some.target_critics, some.log_temperature]


@pytest.mark.parametrize("backup", BACKUPS, ids=lambda backup: type(backup).__name__)
def test_target_and_actor_see_what_the_backup_says(backup: Backup) -> None:
    some = learner(backup, soft_backup=False, discount=0.5)
    batch, noise = inputs(some, 0)
    actions = 2 * ROWS * 2
    assert noise.shape[-1] == actions + backup.noise_size(4)
    for p in some.target_critics:  # so that targets are not what the critics say
        p.add_(0.1)
    step = batch.transition
    next_q = some.target_q(step.next_obs, some.sample(step.next_obs, noise[:, ROWS * 2 : actions].view(2, ROWS, 2)))
    expected = step.reward + 0.5 * torch.where(step.terminal, 0.0, backup(next_q, noise[:, actions:]))
    own = noise[:, : ROWS * 2].view(2, ROWS, 2)
    loss = some.actor_loss(some.actor, step.obs, own)[1]
    q = some.q(step.obs, some.sample(step.obs, own))
    torch.testing.assert_close(loss[0], loss[1].mean(-1) - backup.objective(q).mean(-1))  # alpha is 1
    metrics = some.update(batch, noise, torch.tensor(0.0))
    torch.testing.assert_close(metrics["target"], expected.mean(-1))


@pytest.mark.parametrize("backup", BACKUPS, ids=lambda backup: type(backup).__name__)
def test_stacked_seeds_equal_separate_ones(backup: Backup) -> None:
    together = learner(backup)
    for i in range(40):
        together.update(*inputs(together, i), torch.tensor(i / 40))
    for s, seed in enumerate(together.seeds):
        alone = learner(backup, (seed,))
        for i in range(40):
            alone.update(*inputs(alone, i), torch.tensor(i / 40))
        for ours, theirs in zip(learnt(together), learnt(alone), strict=True):
            torch.testing.assert_close(ours[s], theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backup", BACKUPS, ids=lambda backup: type(backup).__name__)
def test_an_update_is_one_graph(backup: Backup) -> None:
    """Traced with its gradients, and without the compiler's back end: that one graph would compile for ten seconds."""
    torch._dynamo.reset()
    eager, traced = learner(backup), learner(backup)
    step = torch.compile(traced.update, backend="aot_eager", fullgraph=True, dynamic=False)
    for i in range(20):
        batch, noise = inputs(eager, i)
        ours, theirs = (update(batch, noise, torch.tensor(0.1)) for update in (step, eager.update))
        for name, metric in theirs.items():
            torch.testing.assert_close(ours[name], metric, rtol=1e-4, atol=1e-5)
    for a, b in zip(learnt(traced), learnt(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
