from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from probes import kinked_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.score.quality import held_out_ranking
from mbrl.score.ranking import RankingScore, pairwise_loss
from mbrl.score.rows import EnsembleRows
from mbrl.types import StateDict

DATA = kinked_data(1500)


@cache
def ensemble(*seeds: int) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, seeds, members=3, elites=2, hidden=(32, 32), batch_size=64, max_epochs=5)
    model.fit(DATA)
    return model


def small(*seeds: int, **settings: Any) -> RankingScore:
    return RankingScore(3, 2, seeds, **({"hidden": (16,), "steps": 150, "batch_size": 32, "samples": 4} | settings))


def test_pairwise_loss_is_that_of_a_loop() -> None:
    values, errors = torch.randn(2, 4, 3), torch.rand(2, 4, 3)
    for s in range(2):
        terms = [
            math.log1p(math.exp(values[s, j, b] - values[s, i, b]))
            for b in range(3)
            for i in range(4)
            for j in range(4)
            if errors[s, i, b] < errors[s, j, b]
        ]
        assert len(terms) == 18
        assert pairwise_loss(values, errors)[s].item() == pytest.approx(sum(terms) / 18, rel=1e-5)
    assert pairwise_loss(values, torch.ones_like(errors)).tolist() == [0.0, 0.0]


def test_samples_come_from_members_that_have_not_seen_the_row() -> None:
    model = ensemble(0, 4)
    rows = EnsembleRows.of(DATA, model)
    position = torch.arange(200).expand(2, -1)
    uniform = torch.rand(2, 5, 200)
    means = rows.out_of_bag_samples(model, position, uniform, torch.zeros(2, 5, 200, 3))
    obs, action, _ = rows.at(position)
    mean = model.predict(obs, action).mean[..., :-1]
    for s in range(2):
        for b in range(200):
            asked = [e for e in range(3) if rows.unseen[s, e, b]]
            for k in range(5):
                member = asked[int(uniform[s, k, b] * len(asked))]
                assert torch.equal(means[s, k, b], mean[s, member, b])


@pytest.mark.parametrize("regression_weight", [0.0, 0.5])
def test_ranks_better_than_the_closest_to_the_mean(regression_weight: float) -> None:
    score = RankingScore(3, 2, (0,), hidden=(64,), steps=400, batch_size=64, regression_weight=regression_weight)
    score.fit(DATA, ensemble(0))
    ranking = held_out_ranking({"ranking": score}, ensemble(0), DATA)
    assert ranking["ranking"]["ratio"] < ranking["random"]["ratio"] - 0.2
    assert ranking["ranking"]["within"] > 0.7
    if regression_weight:
        assert ranking["ranking"]["across"] > 0.6


def test_stacked_seeds_equal_separate_fits() -> None:
    together = small(0, 4)
    together.fit(DATA, ensemble(0, 4))
    for i, seed in enumerate((0, 4)):
        alone = small(seed)
        alone.fit(DATA, ensemble(seed))
        for name, tensor in together.state_dict().items():
            torch.testing.assert_close(tensor[i], alone.state_dict()[name][0], rtol=1e-3, atol=1e-4)


def test_resumed_fit_is_bitwise_the_uninterrupted() -> None:
    straight, saved = small(0, 4), list[StateDict]()
    straight.fit(DATA, ensemble(0, 4), on_progress=lambda report: saved.append(copy.deepcopy(report.state())))
    resumed = small(0, 4)
    resumed.fit(DATA, ensemble(0, 4), resume=saved[0])
    loaded = small(0, 4)
    loaded.load_state_dict(resumed.state_dict())
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_one_sample_makes_no_pair() -> None:
    with pytest.raises(ValueError, match=r"score.samples=1: pairs need at least 2"):
        small(0, samples=1)
