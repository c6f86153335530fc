from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import kinked_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.dynamics.store import FitInterrupted, fit_or_load
from mbrl.score.fitting import ScoreReport
from mbrl.score.quality import candidate_errors, held_out_ranking, order_checks
from mbrl.score.residual import ResidualScore
from mbrl.score.rows import EnsembleRows
from mbrl.types import Corrector, StateDict

DATA = kinked_data(1500)


@cache
def ensemble(*seeds: int) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, seeds, members=3, elites=2, hidden=(32, 32), batch_size=64, max_epochs=5)
    model.fit(DATA)
    return model


def small(*seeds: int, **settings: Any) -> ResidualScore:
    return ResidualScore(3, 2, seeds, **({"hidden": (16,), "steps": 250, "batch_size": 64} | settings))


def same(one: ResidualScore, other: ResidualScore) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_repairs_a_starved_mean_and_finds_the_planted_truth() -> None:
    model = ensemble(0)
    score = ResidualScore(3, 2, (0,), hidden=(64, 64), steps=600, batch_size=256)
    score.fit(DATA, model)
    obs, action, delta = EnsembleRows.of(DATA, model).held_out()
    prediction = model.predict(obs, action)
    truth = obs + delta
    corrected = score.correct(obs, action, prediction, model.elites)
    mean = prediction.of(model.elites).mean.mean(-3)[..., :-1]
    assert isinstance(score, Corrector)
    assert (corrected - truth).square().mean() < 0.7 * (mean - truth).square().mean()

    ranking = held_out_ranking({"residual": score}, model, DATA)
    assert ranking["residual"]["high"].item() < 0  # better than the closest to the mean, and sure of it
    assert ranking["residual"]["ratio"] < ranking["closest_to_mean"]["ratio"] < ranking["random"]["ratio"]
    checks = order_checks(score, model, DATA)
    assert checks["data"] > checks["model"] > checks["noisy"]

    # The truth among the samples of the model, as one more candidate.
    reward = torch.zeros(*obs.shape[:2], 1)
    planted = torch.cat([prediction.mean, torch.cat([truth, reward], -1).unsqueeze(1)], 1)
    found = score(obs, action, planted, prediction, model.elites).argmax(1) == 3
    assert found.float().mean() > 0.5


def test_the_score_is_the_log_of_an_expected_error() -> None:
    model, score = ensemble(0, 4), small(0, 4)
    score.fit(DATA, model)
    obs, action, _ = EnsembleRows.of(DATA, model).held_out()
    prediction = model.predict(obs, action)
    candidates = prediction.mean + 0.1 * torch.randn_like(prediction.mean)
    centre = score.correct(obs, action, prediction, model.elites)
    values = score(obs, action, candidates, prediction, model.elites)
    torch.testing.assert_close(values, -candidate_errors(candidates, centre, score.scale).log())
    exactly = torch.cat([centre, centre[..., :1]], -1).unsqueeze(1)
    assert torch.isfinite(score(obs, action, exactly, prediction, model.elites)).all()


def test_stacked_seeds_equal_separate_fits() -> None:
    together = small(0, 4)
    together.fit(DATA, ensemble(0, 4))
    for i, seed in enumerate((0, 4)):
        alone = small(seed)
        alone.fit(DATA, ensemble(seed))
        for name, tensor in together.state_dict().items():
            torch.testing.assert_close(tensor[i], alone.state_dict()[name][0], rtol=1e-3, atol=1e-4)


def test_resumed_fit_is_bitwise_the_uninterrupted(tmp_path: Path) -> None:
    straight, saved = small(0, 4), list[StateDict]()

    def keep(report: ScoreReport) -> None:
        assert report.total == 250
        assert report.metrics["loss"].shape == (2,)
        saved.append(copy.deepcopy(report.state()))

    straight.fit(DATA, ensemble(0, 4), on_progress=keep)
    assert [state["step"] for state in saved] == [100, 200, 250]
    resumed = small(0, 4)
    resumed.fit(DATA, ensemble(0, 4), resume=saved[0])
    assert same(resumed, straight)

    asked = 0

    def later() -> bool:  # not at a report, but between two of them
        nonlocal asked
        asked += 1
        return asked > 130

    stored = small(0, 4)
    places: dict[str, Any] = {"key": "k", "root": tmp_path / "store", "scratch": tmp_path / "run"}
    with pytest.raises(FitInterrupted):
        fit_or_load(stored, DATA, ensemble(0, 4), **places, should_stop=later)
    steps: list[int] = []
    again = small(0, 4)
    found = fit_or_load(again, DATA, ensemble(0, 4), **places, on_progress=lambda report: steps.append(report.done))
    assert (found, steps) == ("fitted", [200, 250])
    assert same(again, straight)

    cut_out = small(4)
    places["scratch"] = tmp_path / "another run"
    assert fit_or_load(cut_out, DATA, ensemble(4), **places) == "store"
    assert torch.equal(cut_out.params[0][0], straight.params[0][1])


def test_a_loss_that_is_not_finite_is_reported() -> None:
    score = small(0, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"the score's loss became .* lower score.learning_rate"):
        score.fit(DATA, ensemble(0))
