from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from mbrl.rollout.uncertainty import (
    DISAGREEMENTS,
    HEURISTICS,
    Uncertainty,
    ensemble_std,
    ensemble_variance,
    ll_variance,
    loo_kl,
    max_aleatoric,
    max_pairwise,
    mixture_spread,
)
from mbrl.types import Guess, Prediction

Array = npt.NDArray[np.float64]


def loop_max_aleatoric(mean: Array, std: Array, taken: Array, member: int) -> float:
    return max(math.sqrt(sum(x * x for x in one)) for one in std.tolist())


def loop_max_pairwise(mean: Array, std: Array, taken: Array, member: int) -> float:
    states = mean[:, :-1]
    return float(max(np.linalg.norm(a - b) for a in states for b in states))


def variances(mean: Array, std: Array) -> list[float]:
    columns = zip(mean[:, :-1].T, std[:, :-1].T, strict=True)
    return [float(np.mean(s**2) + np.mean((m - m.mean()) ** 2)) for m, s in columns]


def loop_ensemble_variance(mean: Array, std: Array, taken: Array, member: int) -> float:
    return float(np.mean(variances(mean, std)))


def loop_ensemble_std(mean: Array, std: Array, taken: Array, member: int) -> float:
    return float(np.mean(np.sqrt(variances(mean, std))))


def loop_ll_variance(mean: Array, std: Array, taken: Array, member: int) -> float:
    said = []
    for m, s in zip(mean[:, :-1], std[:, :-1], strict=True):
        off = zip(taken, m, s, strict=True)
        density = [math.exp(-0.5 * ((x - a) / b) ** 2) / (b * math.sqrt(2 * math.pi)) for x, a, b in off]
        said.append(sum(math.log(d) for d in density))
    return float(np.mean((np.array(said) - np.mean(said)) ** 2))


def loop_loo_kl(mean: Array, std: Array, taken: Array, member: int) -> float:
    others = [i for i in range(len(mean)) if i != member]
    centre = mean[others].mean(0)
    spread = (std[others] ** 2 + mean[others] ** 2).mean(0) - centre**2
    mine = Independent(Normal(torch.tensor(mean[member]), torch.tensor(std[member])), 1)
    theirs = Independent(Normal(torch.tensor(centre), torch.tensor(np.sqrt(spread))), 1)
    return float(kl_divergence(mine, theirs))


LOOPS = {
    max_aleatoric: loop_max_aleatoric,
    max_pairwise: loop_max_pairwise,
    ensemble_std: loop_ensemble_std,
    ensemble_variance: loop_ensemble_variance,
    ll_variance: loop_ll_variance,
    loo_kl: loop_loo_kl,
}


def random_guess(members: int, lanes: int, lead: tuple[int, ...] = ()) -> Guess:
    mean, std = torch.randn(*lead, members, lanes, 5), 0.5 + torch.rand(*lead, members, lanes, 5)
    return Guess(mean, std, torch.randn(*lead, lanes, 4), torch.randint(members, (*lead, lanes)))


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("members", [2, 6, 7])
@pytest.mark.parametrize("form", HEURISTICS, ids=lambda form: form.__name__)
def test_forms_equal_plain_loops(form: Uncertainty, members: int, lead: tuple[int, ...]) -> None:
    guess = random_guess(members, 9, lead)
    out = form(guess)
    assert out.shape == (*lead, 9)
    seeds = Guess(*(x if lead else x.unsqueeze(0) for x in guess))
    for s, row in enumerate(out.view(-1, 9)):
        mean, std, taken = (x[s].double().numpy() for x in seeds[:3])
        for n in range(9):
            expected = LOOPS[form](mean[:, n], std[:, n], taken[n], int(seeds.member[s, n]))
            assert row[n].item() == pytest.approx(expected, rel=2e-5)


def two_members(member: int = 0) -> Guess:
    """One lane, two dimensions and the reward, which is far apart: of the six only two look at it."""
    mean = torch.tensor([[[0.0, 0.0, 10.0]], [[3.0, 4.0, 0.0]]])
    std = torch.tensor([[[1.0, 2.0, 2.0]], [[4.0, 4.0, 2.0]]])
    return Guess(mean, std, torch.tensor([[0.0, 0.0]]), torch.tensor([member]))


def test_all_six_of_two_members_worked_out_by_hand() -> None:
    # Norms of the stds: sqrt(1 + 4 + 4) = 3 and sqrt(16 + 16 + 4) = 6.
    assert max_aleatoric(two_members()).item() == 6.0
    # From (0, 0) to (3, 4); the distance from the average, OfflineRL-Kit's, would be 2.5.
    assert max_pairwise(two_members()).item() == 5.0
    # Mean of the variances plus variance of the means, over all members: (1 + 16)/2 + 9/4, and (4 + 16)/2 + 16/4.
    assert ensemble_variance(two_members()).item() == pytest.approx((10.75 + 14.0) / 2)
    # The root first, the mean after: not the root of the number above.
    std = (math.sqrt(10.75) + math.sqrt(14.0)) / 2
    assert ensemble_std(two_members()).item() == pytest.approx(std)
    assert abs(std - math.sqrt(12.375)) > 0.005
    # Log densities of (0, 0): -log 1 - log 2, and -(9 + 16)/32 - 2 log 4; a quarter of the squared difference.
    apart = -math.log(2) + 25 / 32 + 2 * math.log(4)
    assert ll_variance(two_members()).item() == pytest.approx(apart**2 / 4)
    # The first against the second, with variances (1, 4, 4) and (16, 16, 4), (9, 16, 100) apart.
    terms = [1 / 16 + 9 / 16 - 1 + math.log(16), 4 / 16 + 16 / 16 - 1 + math.log(4), 1 + 100 / 4 - 1]
    assert loo_kl(two_members(0)).item() == pytest.approx(sum(terms) / 2)
    # And the second against the first: it matters who made the sample.
    terms = [16 + 9 - 1 - math.log(16), 4 + 16 / 4 - 1 - math.log(4), 1 + 100 / 4 - 1]
    assert loo_kl(two_members(1)).item() == pytest.approx(sum(terms) / 2)


def test_the_others_are_one_gaussian_with_their_moments() -> None:
    # Others at -1 and 1 with std 1: mean 0, variance 1 + 1. The own member at 2 with variance 2: 4 / 2 / 2 in each of
    # two columns.
    mean = torch.tensor([2.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 1, 2)
    std = torch.tensor([math.sqrt(2.0), 1.0, 1.0]).view(3, 1, 1).expand(3, 1, 2)
    guess = Guess(mean, std, torch.zeros(1, 1), torch.tensor([0]))
    assert loo_kl(guess).item() == pytest.approx(2.0)
    # Far from 0, where squares are large, it is the same.
    assert loo_kl(guess._replace(mean=mean + 1000.0)).item() == pytest.approx(2.0, rel=1e-3)


def test_members_that_are_all_equal_do_not_disagree() -> None:
    one = random_guess(1, 20)
    guess = Guess(one.mean.expand(5, 20, 5), one.std.expand(5, 20, 5), one.next_obs, torch.randint(5, (20,)))
    for form in DISAGREEMENTS:
        torch.testing.assert_close(form(guess), torch.zeros(20), atol=1e-6, rtol=0)
    torch.testing.assert_close(ensemble_variance(guess), one.std[0, :, :-1].square().mean(-1))
    torch.testing.assert_close(ensemble_std(guess), one.std[0, :, :-1].mean(-1))


def test_which_forms_are_disagreements_and_which_look_at_the_reward() -> None:
    assert set(DISAGREEMENTS) == {max_pairwise, ll_variance, loo_kl}
    assert max_pairwise(random_guess(1, 4)).tolist() == ll_variance(random_guess(1, 4)).tolist() == [0.0] * 4
    guess = random_guess(4, 6)
    moved = guess._replace(mean=guess.mean.clone(), std=guess.std.clone())
    moved.mean[0, :, -1] += 100.0
    moved.std[0, :, -1] += 100.0
    looks = {form for form in HEURISTICS if not torch.equal(form(guess), form(moved))}
    assert looks == {max_aleatoric, loo_kl}


def test_the_largest_of_all_never_falls_as_members_are_added() -> None:
    guess = random_guess(9, 50)
    for form in (max_aleatoric, max_pairwise):
        said = torch.stack([form(Prediction(guess.mean[:k], guess.std[:k])) for k in range(1, 10)])
        assert (said.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("form", HEURISTICS, ids=lambda form: form.__name__)
def test_they_trace_as_one_graph(form: Uncertainty) -> None:
    guess = random_guess(5, 8, (2,))

    def step(mean: Tensor, std: Tensor, next_obs: Tensor, member: Tensor) -> Tensor:
        return form(Guess(mean, std, next_obs, member))

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(*guess), form(guess))


def test_mixture_spread_is_the_spread_of_samples_in_units_of_the_scale() -> None:
    mean, std = torch.randn(2, 5, 1, 4), torch.rand(2, 5, 1, 4)
    scale = torch.tensor([0.5, 1.0, 4.0])
    samples = mean + std * torch.randn(2, 5, 40_000, 4)  # every member as often
    variance = samples[..., :-1].transpose(1, 2).flatten(1, 2).var(1, correction=0)  # (2, 3)
    spread = mixture_spread(Prediction(mean, std), scale)
    torch.testing.assert_close(spread[:, 0], (variance / scale.square()).mean(-1).sqrt(), rtol=0.02, atol=0)
