from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mbrl.rollout.uncertainty import DISAGREEMENTS, ensemble_std, max_aleatoric, max_pairwise, mixture_spread
from mbrl.types import Prediction

Array = npt.NDArray[np.float64]


def loop_max_aleatoric(mean: Array, std: Array) -> float:
    return max(math.sqrt(sum(x * x for x in member)) for member in std.tolist())


def loop_max_pairwise(mean: Array, std: Array) -> float:
    states = mean[:, :-1]
    average = sum(states) / len(states)
    return float(max(np.linalg.norm(state - average) for state in states))


def loop_ensemble_std(mean: Array, std: Array) -> float:
    states = mean[:, :-1]
    variances = [np.mean((column - column.mean()) ** 2) for column in states.T]
    return math.sqrt(sum(variances) / len(variances))


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize(
    ("form", "loop"),
    [
        (max_aleatoric, loop_max_aleatoric),
        (max_pairwise, loop_max_pairwise),
        (ensemble_std, loop_ensemble_std),
    ],
)
def test_forms_equal_plain_loops(
    form: Callable[[Prediction], torch.Tensor], loop: Callable[[Array, Array], float], lead: tuple[int, ...]
) -> None:
    mean, std = torch.randn(*lead, 7, 9, 5), torch.rand(*lead, 7, 9, 5)
    out = form(Prediction(mean, std))
    assert out.shape == (*lead, 9)
    flat_mean, flat_std, flat = mean.reshape(-1, 7, 9, 5), std.reshape(-1, 7, 9, 5), out.reshape(-1, 9)
    for s in range(flat.shape[0]):
        for n in range(9):
            expected = loop(flat_mean[s, :, n].double().numpy(), flat_std[s, :, n].double().numpy())
            assert flat[s, n].item() == pytest.approx(expected, rel=1e-5)


def test_mopo_penalty_of_hand_made_stds() -> None:
    # Members (3, 4, 0) and (1, 2, 2) in the first lane: norms 5 and 3. The reward's std is the last number and counts.
    std = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 0.5]], [[1.0, 2.0, 2.0], [0.0, 0.0, 2.0]]])
    assert max_aleatoric(Prediction(torch.randn(2, 2, 3), std)).tolist() == [5.0, 2.0]


def test_disagreement_leaves_the_reward_out_and_is_zero_for_one_member() -> None:
    mean = torch.zeros(2, 4, 3)
    mean[1, :, -1] = 100.0
    prediction = Prediction(mean, torch.ones(2, 4, 3))
    for form in DISAGREEMENTS:
        assert form(prediction).tolist() == [0.0] * 4
        single = form(Prediction(torch.randn(1, 4, 3), torch.ones(1, 4, 3)))
        assert single.tolist() == [0.0] * 4
    assert set(DISAGREEMENTS) == {max_pairwise, ensemble_std}


def test_mixture_spread_is_the_spread_of_samples_in_units_of_the_scale() -> None:
    mean, std = torch.randn(2, 5, 1, 4), torch.rand(2, 5, 1, 4)
    scale = torch.tensor([0.5, 1.0, 4.0])
    samples = mean + std * torch.randn(2, 5, 40_000, 4)  # every member as often
    variance = samples[..., :-1].transpose(1, 2).flatten(1, 2).var(1, correction=0)  # (2, 3)
    spread = mixture_spread(Prediction(mean, std), scale)
    torch.testing.assert_close(spread[:, 0], (variance / scale.square()).mean(-1).sqrt(), rtol=0.02, atol=0)
