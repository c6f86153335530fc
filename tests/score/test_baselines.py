from __future__ import annotations

import torch
from probes import random_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.score.baselines import ClosestToMean, LogLikelihood
from mbrl.types import Fittable, Prediction

SEEDS, MEMBERS, CANDIDATES, ROWS = 2, 3, 4, 5
ELITES = torch.tensor([[2, 0], [1, 2]])


def everything() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Prediction]:
    prediction = Prediction(torch.randn(SEEDS, MEMBERS, ROWS, 4), torch.rand(SEEDS, MEMBERS, ROWS, 4) + 0.1)
    return (
        torch.randn(SEEDS, ROWS, 3), torch.randn(SEEDS, ROWS, 2), torch.randn(SEEDS, CANDIDATES, ROWS, 4), prediction
    )  # fmt: skip


def test_what_the_named_members_say() -> None:
    prediction = everything()[3]
    mean, std = prediction.of(ELITES)
    for s in range(SEEDS):
        assert torch.equal(mean[s], prediction.mean[s, ELITES[s]])
        assert torch.equal(std[s], prediction.std[s, ELITES[s]])


def test_closest_to_mean_is_a_distance_written_out() -> None:
    obs, action, candidates, prediction = everything()
    score = ClosestToMean(3, 2, range(SEEDS))
    score.scale.copy_(torch.rand(SEEDS, 1, 3) + 0.5)
    values = score(obs, action, candidates, prediction, ELITES)
    assert values.shape == (SEEDS, CANDIDATES, ROWS)
    for s in range(SEEDS):
        for k in range(CANDIDATES):
            for n in range(ROWS):
                centre = (prediction.mean[s, ELITES[s, 0], n, :3] + prediction.mean[s, ELITES[s, 1], n, :3]) / 2
                off = (candidates[s, k, n, :3] - centre) / score.scale[s, 0]
                torch.testing.assert_close(values[s, k, n], -off.square().mean().sqrt())


def test_the_scale_is_that_of_the_changes() -> None:
    data = random_data(200)
    model = GaussianEnsemble(3, 2, (0,), members=2, elites=1, hidden=(8,), max_epochs=1)
    score = ClosestToMean(3, 2, (0,))
    score.fit(data, model)
    train = model.split(200).train[0]
    torch.testing.assert_close(score.scale[0, 0], (data.next_obs - data.obs)[train].std(0, correction=0))
    other = ClosestToMean(3, 2, (0,))
    other.load_state_dict(score.state_dict())
    assert torch.equal(other.scale, score.scale)


def test_log_likelihood_is_torchs() -> None:
    obs, action, candidates, prediction = everything()
    values = LogLikelihood()(obs, action, candidates, prediction, ELITES)
    for s in range(SEEDS):
        for k in range(CANDIDATES):
            logs = [
                torch.distributions.Normal(prediction.mean[s, e, :, :3], prediction.std[s, e, :, :3])
                .log_prob(candidates[s, k, :, :3])
                .sum(-1)
                for e in ELITES[s]
            ]
            torch.testing.assert_close(values[s, k], torch.stack(logs).mean(0))


def test_only_what_has_to_be_fitted_says_so() -> None:
    assert isinstance(ClosestToMean(3, 2, (0,)), Fittable)
    assert not isinstance(LogLikelihood(), Fittable)
