from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mbrl.rollout.select import RandomElite, ScoredCandidates, draw_candidates
from mbrl.types import Prediction, Selected

LANES = 20_000


def select(elites: list[list[int]], std: float = 0.0) -> Selected:
    """Member e of seed s says 100 s + e in both observation dimensions and 1000 s + e of the reward."""
    seeds, members = len(elites), 5
    mean = torch.zeros(seeds, members, LANES, 3)
    for s in range(seeds):
        for e in range(members):
            mean[s, e, :, :2] = 100 * s + e
            mean[s, e, :, 2] = 1000 * s + e
    obs, action = torch.zeros(seeds, LANES, 2), torch.zeros(seeds, LANES, 1)
    noise, uniform = torch.randn(seeds, LANES, 3), torch.rand(seeds, LANES)
    return RandomElite()(
        obs, action, Prediction(mean, torch.full_like(mean, std)), torch.tensor(elites), noise, uniform
    )


def test_only_elites_are_chosen_and_uniformly() -> None:
    elites = [[4, 1, 2], [0, 3, 1]]
    next_obs, reward, score, member = select(elites)
    assert next_obs.shape == (2, LANES, 2)
    assert reward.shape == score.shape == (2, LANES)
    for s in range(2):
        chosen = next_obs[s, :, 0] - 100 * s
        assert torch.equal(member[s].float(), chosen)
        assert set(chosen.tolist()) == set(map(float, elites[s]))
        counts = torch.stack([(chosen == e).sum() for e in elites[s]]).double()
        chi_square = ((counts - LANES / 3).square() / (LANES / 3)).sum().item()
        assert chi_square < 13.8  # 2 degrees of freedom: 99.9 %
        assert torch.equal(next_obs[s, :, 1] - 100 * s, chosen)  # one member for the whole row
        assert torch.equal(reward[s] - 1000 * s, chosen)
    assert score.abs().max().item() == 0.0
    assert not torch.equal(next_obs[0] - 0, next_obs[1] - 100)  # seeds choose for themselves


def test_samples_have_the_members_mean_and_std() -> None:
    next_obs, reward, *_ = select([[3], [3]], std=0.5)
    for s in range(2):
        for column, centre in (
            (next_obs[s, :, 0], 100 * s + 3),
            (next_obs[s, :, 1], 100 * s + 3),
            (reward[s], 1000 * s + 3),
        ):
            assert column.mean().item() == pytest.approx(centre, abs=0.02)
            assert column.std().item() == pytest.approx(0.5, rel=0.03)
        columns = torch.stack([next_obs[s, :, 0], next_obs[s, :, 1], reward[s]])
        assert (torch.corrcoef(columns) - torch.eye(3)).abs().max().item() < 0.03


def test_a_uniform_number_of_almost_one_is_the_last_elite() -> None:
    mean = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 2, 2).clone()
    uniform = torch.tensor([[0.0, 1.0 - 2.0**-24]])
    next_obs, *_ = RandomElite()(
        torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), Prediction(mean, torch.zeros_like(mean)),
        torch.tensor([[2, 0, 4]]), torch.zeros(1, 2, 2), uniform,
    )  # fmt: skip
    assert next_obs.flatten().tolist() == [2.0, 4.0]
    assert RandomElite().noise_size(12) == 12


# -- scored candidates -------------------------------------------------------------------------------------------------


class NearestTo:
    """A score with a known best: minus the distance to a planted truth (O,)."""

    def __init__(self, truth: Tensor) -> None:
        self.truth = truth

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        return -(candidates[..., :-1] - self.truth).norm(dim=-1)


class MeanPlusOne(NearestTo):
    """Corrects the elites' mean by 1 in every dimension."""

    def correct(self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor) -> Tensor:
        return prediction.of(elites).mean.mean(-3)[..., :-1] + 1.0


def prediction(seeds: int, members: int, lanes: int, outputs: int, std: float = 0.3) -> Prediction:
    return Prediction(torch.randn(seeds, members, lanes, outputs), torch.full((seeds, members, lanes, outputs), std))


def choose(selector: ScoredCandidates, said: Prediction, elites: Tensor, noise: Tensor | None = None) -> Selected:
    seeds, _, lanes, outputs = said.mean.shape
    if noise is None:
        noise = torch.randn(seeds, lanes, selector.noise_size(outputs))
    obs, action = torch.zeros(seeds, lanes, outputs - 1), torch.zeros(seeds, lanes, 1)
    return selector(obs, action, said, elites, noise, torch.rand(seeds, lanes))


def test_candidates_are_samples_of_the_elites_as_a_loop_would_draw_them() -> None:
    said, elites = prediction(2, 5, 7, 3), torch.tensor([[4, 1, 2], [0, 3, 1]])
    noise = torch.randn(2, 6, 7, 3)
    drawn = draw_candidates(said, elites, noise)
    for s in range(2):
        for k in range(6):
            member = int(elites[s, k % 3])
            torch.testing.assert_close(drawn[s, k], said.mean[s, member] + said.std[s, member] * noise[s, k])


def test_argmax_takes_the_planted_candidate_with_its_own_reward() -> None:
    said, elites = prediction(2, 5, 50, 4), torch.tensor([[4, 1, 2], [0, 3, 1]])
    selector = ScoredCandidates(NearestTo(torch.tensor([5.0, 5.0, 5.0])), 3, resample=2)
    noise = torch.randn(2, 50, selector.noise_size(4))
    drawn = draw_candidates(said, elites, noise.view(2, 50, 6, 4).transpose(1, 2))
    # The truth is planted in candidate 4 of every lane, whose reward is then 7.
    own = noise.view(2, 50, 6, 4)
    member = elites[:, 4 % 3]
    for s in range(2):
        own[s, :, 4] = (torch.tensor([5.0, 5.0, 5.0, 7.0]) - said.mean[s, member[s]]) / said.std[s, member[s]]
    next_obs, reward, score, taken = choose(selector, said, elites, own.flatten(-2))
    assert torch.equal(taken, member.unsqueeze(-1).expand(2, 50))
    torch.testing.assert_close(next_obs, torch.full((2, 50, 3), 5.0))
    torch.testing.assert_close(reward, torch.full((2, 50), 7.0))
    torch.testing.assert_close(score, torch.zeros(2, 50), atol=1e-5, rtol=0)
    assert drawn.shape == (2, 6, 50, 4)


def test_selection_is_that_of_a_loop_over_lanes() -> None:
    said, elites = prediction(2, 5, 20, 3), torch.tensor([[4, 1, 2], [0, 3, 1]])
    rate = NearestTo(torch.tensor([0.5, -0.5]))
    selector = ScoredCandidates(rate, 3, resample=2)
    noise = torch.randn(2, 20, selector.noise_size(3))
    next_obs, reward, score, taken = choose(selector, said, elites, noise)
    for s in range(2):
        for n in range(20):
            rows = []
            for k in range(6):
                member = int(elites[s, k % 3])
                own = noise[s, n, 3 * k : 3 * k + 3]
                rows.append(said.mean[s, member, n] + said.std[s, member, n] * own)
            best = min(rows, key=lambda row: (row[:2] - rate.truth).norm().item())
            whose = int(elites[s, next(k for k, row in enumerate(rows) if row is best) % 3])
            assert taken[s, n] == whose
            torch.testing.assert_close(next_obs[s, n], best[:2])
            torch.testing.assert_close(reward[s, n], best[2])
            torch.testing.assert_close(score[s, n], -(best[:2] - rate.truth).norm())


def test_softmax_frequencies_are_those_of_the_scores() -> None:
    scores = torch.tensor([0.1, 0.3, 0.0, 0.2])

    def rate(obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor) -> Tensor:
        return scores.view(1, 4, 1).expand(candidates.shape[:-1])

    mean = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, LANES, 2).clone()
    selector = ScoredCandidates(rate, 4, resample=1, pick="softmax", temperature=0.1)
    next_obs, _, score, member = choose(selector, Prediction(mean, torch.zeros_like(mean)), torch.arange(4).view(1, 4))
    counts = torch.bincount(next_obs[0, :, 0].long(), minlength=4).double()
    expected = (scores.double() * 10).softmax(0) * LANES
    assert ((counts - expected).square() / expected).sum().item() < 16.3  # 3 degrees of freedom: 99.9 %
    torch.testing.assert_close(score[0], scores[next_obs[0, :, 0].long()])
    assert torch.equal(member[0].float(), next_obs[0, :, 0])


def test_at_infinite_temperature_it_is_a_random_elite() -> None:
    seeds, elites = 2, torch.tensor([[4, 1, 2], [0, 3, 1]])
    mean = 10.0 * torch.arange(5.0).view(1, 5, 1, 1).expand(seeds, 5, LANES, 3).clone()
    said = Prediction(mean, torch.full_like(mean, 0.5))
    selector = ScoredCandidates(NearestTo(torch.zeros(2)), 3, resample=1, pick="softmax", temperature=math.inf)
    uniform = torch.rand(seeds, LANES)
    zeros = torch.zeros(seeds, LANES, 2), torch.zeros(seeds, LANES, 1)
    scored, scored_reward, *_ = selector(*zeros, said, elites, torch.randn(seeds, LANES, 9), uniform)
    plain, plain_reward, *_ = RandomElite()(*zeros, said, elites, torch.randn(seeds, LANES, 3), uniform)
    # The same uniform number chooses the same elite, but for rounding at the edges.
    assert ((scored / 10).round() == (plain / 10).round()).float().mean() > 0.999
    for s in range(seeds):
        chosen = (scored[s, :, 0] / 10).round()
        counts = torch.stack([(chosen == e).sum() for e in elites[s]]).double()
        assert ((counts - LANES / 3).square() / (LANES / 3)).sum().item() < 13.8  # 2 degrees of freedom: 99.9 %
        for column, other in ((scored[s, :, 0], plain[s, :, 0]), (scored_reward[s], plain_reward[s])):
            within = column - 10 * (column / 10).round()
            assert within.mean().item() == pytest.approx(0.0, abs=0.02)
            assert within.std().item() == pytest.approx(0.5, rel=0.03)
            assert column.std().item() == pytest.approx(other.std().item(), rel=0.03)


def test_means_are_not_sampled() -> None:
    said, elites = prediction(2, 5, 20, 3), torch.tensor([[4, 1, 2], [0, 3, 1]])
    rate = MeanPlusOne(torch.zeros(2))
    expected = torch.stack([said.mean[s, elites[s]].mean(0) for s in range(2)])
    for pick, shift in (("mean", 0.0), ("corrected_mean", 1.0)):
        selector = ScoredCandidates(rate, 3, pick=pick)  # type: ignore[arg-type]
        assert selector.noise_size(3) == 0
        next_obs, reward, score, member = choose(selector, said, elites)
        # Nobody's sample: a random elite stands for it.
        assert all(set(member[s].tolist()) == set(elites[s].tolist()) for s in range(2))
        torch.testing.assert_close(next_obs, expected[..., :-1] + shift)
        torch.testing.assert_close(reward, expected[..., -1])
        torch.testing.assert_close(score, -expected[..., :-1].norm(dim=-1))  # of the mean itself


def test_the_released_clip_limits_rewards_too() -> None:
    said = Prediction(torch.full((1, 3, 4, 3), 100.0), torch.zeros(1, 3, 4, 3))
    for limit, expected in ((25.0, 25.0), (None, 100.0)):
        selector = ScoredCandidates(NearestTo(torch.zeros(2)), 3, released_clip=limit)
        next_obs, reward, *_ = choose(selector, said, torch.arange(3).view(1, 3))
        assert next_obs.unique().tolist() == reward.unique().tolist() == [expected]


def test_what_cannot_be_rated_is_taken_last() -> None:
    said = Prediction(torch.tensor([math.nan, 3.0]).view(1, 2, 1, 1).expand(1, 2, 5, 2), torch.zeros(1, 2, 5, 2))
    for pick in ("argmax", "softmax"):
        selector = ScoredCandidates(NearestTo(torch.zeros(1)), 2, pick=pick)  # type: ignore[arg-type]
        assert choose(selector, said, torch.arange(2).view(1, 2))[0].unique().tolist() == [3.0]


def test_a_seed_chooses_alone_as_beside_others() -> None:
    said, elites = prediction(3, 5, 20, 3), torch.tensor([[4, 1, 2], [0, 3, 1], [2, 3, 4]])
    selector = ScoredCandidates(NearestTo(torch.zeros(2)), 3, pick="softmax", temperature=0.5)
    noise, uniform = torch.randn(3, 20, selector.noise_size(3)), torch.rand(3, 20)
    obs, action = torch.zeros(3, 20, 2), torch.zeros(3, 20, 1)
    together = selector(obs, action, said, elites, noise, uniform)
    for s in range(3):
        one = slice(s, s + 1)
        alone = selector(
            obs[one], action[one], Prediction(said.mean[one], said.std[one]), elites[one], noise[one], uniform[one]
        )
        for both, single in zip(together, alone, strict=True):
            assert torch.equal(both[one], single)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"pick": "best"}, "rollout.select.pick=best is unknown; it is argmax, softmax, mean, corrected_mean"),
        ({"pick": "corrected_mean"}, "NearestTo rates candidates but predicts no state of its own; choose score=resid"),
        ({"temperature": 0.0}, "temperature=0.0 must be more than 0; pick=argmax is its limit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScoredCandidates(NearestTo(torch.zeros(2)), 3, **words)
