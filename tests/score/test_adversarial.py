from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_data

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.dynamics.store import FitInterrupted, fit_or_load
from mbrl.score.adversarial import AdversarialScore
from mbrl.score.discriminator import dynamics_reward, logits
from mbrl.score.fitting import ScoreReport
from mbrl.score.rows import EnsembleRows
from mbrl.types import StateDict

DATA = random_data(600)
MODES = [("reparam", "generator"), ("ppo", "mixture")]


@cache
def ensemble(*seeds: int) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, seeds, members=3, elites=2, hidden=(16,), batch_size=64, max_epochs=2)
    model.fit(DATA)
    return model


def small(*seeds: int, **settings: Any) -> AdversarialScore:
    defaults: dict[str, Any] = {
        "hidden": (16, 16), "agent_hidden": (16,), "pretraining_steps": 100, "iterations": 14, "starts": 16,
        "horizon": 3, "replay": 2, "batch_size": 40, "warm_up": 4, "snapshot_every": 2, "history": 4,
    }  # fmt: skip
    return AdversarialScore(3, 2, seeds, **(defaults | settings))


def same(one: AdversarialScore, other: AdversarialScore) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def everything(score: AdversarialScore, candidates: int = 5) -> tuple[torch.Tensor, ...]:
    model = ensemble(*score.seeds)
    obs, action, _ = EnsembleRows.of(DATA, model).held_out()
    prediction = model.predict(obs, action)
    drawn = prediction.mean[:, :1] + 0.3 * torch.randn(obs.shape[0], candidates, obs.shape[1], 4)
    return obs, action, drawn, score(obs, action, drawn, prediction, model.elites)


def test_reward_asks_the_history_as_a_loop_would() -> None:
    score = small(0, 4, interval=2)
    score.fit(DATA, ensemble(0, 4))
    score.expert.copy_(score.learner + torch.rand(2, 4) + 0.1)  # so that every one has something to say
    obs, action, candidates, values = everything(score)
    asked = [1, 3]  # every second of four, the newest among them
    for s in range(2):
        seen, acted = (obs - score.scale.obs_centre)[s] / score.scale.obs_scale[s], score.scale.action(action)[s]
        for k in range(5):
            delta = (candidates[s, k, :, :3] - obs[s]) / score.scale.delta_scale[s]
            x = torch.cat([seen, acted, delta], -1)
            one = [logits([p[s : s + 1, t : t + 1] for p in score.snapshots], x[None])[0, 0] for t in asked]
            expected = dynamics_reward(
                torch.stack(one)[None], score.learner[s : s + 1, asked], score.expert[s, None, asked]
            )
            torch.testing.assert_close(values[s, k], expected[0])


def test_history_is_first_in_first_out() -> None:
    score = small(0)
    seen: list[torch.Tensor] = []
    score.fit(DATA, ensemble(0), on_progress=lambda report: seen.append(score.learner.clone()))
    assert torch.isfinite(score.learner).all()
    assert (score.learner != 0).all()  # iterations 8, 10, 12, 14 of 4, 6, ..., 14
    before = [p.clone() for p in score.snapshots]
    new = [torch.full_like(p[:, :1], 7.0) for p in score.snapshots]
    score.remember(new, torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    for now, then in zip(score.snapshots, before, strict=True):
        assert torch.equal(now[:, :-1], then[:, 1:])
        assert (now[:, -1] == 7.0).all()


@pytest.mark.parametrize(("mode", "negatives"), MODES)
def test_tells_real_transitions_from_nonsense(mode: str, negatives: str) -> None:
    score = small(
        0, generator=mode, negatives=negatives, inputs="standardised", iterations=60, learning_rate=3e-3,
        gradient_penalty=0.1, batch_size=128,
    )  # fmt: skip
    score.fit(DATA, ensemble(0))
    model = ensemble(0)
    obs, action, delta = EnsembleRows.of(DATA, model).held_out()
    reward = torch.zeros(*obs.shape[:-1], 1)
    far = obs + delta + 5.0 * delta.std() * torch.randn_like(delta)
    candidates = torch.stack([torch.cat([x, reward], -1) for x in (obs + delta, far)], 1)
    truth, nonsense = score(obs, action, candidates, model.predict(obs, action), model.elites).unbind(1)
    assert (score.expert > score.learner).all()
    assert truth.mean() > nonsense.mean() + 0.1


@pytest.mark.parametrize(("mode", "negatives"), MODES)
def test_stacked_seeds_equal_separate_fits(mode: str, negatives: str) -> None:
    settings: dict[str, Any] = {"generator": mode, "negatives": negatives, "pretraining_steps": 0, "iterations": 8}
    together = small(0, 4, **settings)
    together.fit(DATA, ensemble(0, 4))
    for i, seed in enumerate((0, 4)):
        alone = small(seed, **settings)
        alone.fit(DATA, ensemble(seed))
        for name, tensor in together.state_dict().items():
            torch.testing.assert_close(tensor[i], alone.state_dict()[name][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mode", "negatives"), MODES)
def test_resumed_fit_is_bitwise_the_uninterrupted(mode: str, negatives: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"generator": mode, "negatives": negatives, "agent_hidden": (8,)}
    straight, saved = small(0, **settings), list[StateDict]()

    def keep(report: ScoreReport) -> None:
        assert (report.total, set(report.metrics)) == (15, {"discriminator_loss", "alive", "gap"})
        saved.append(copy.deepcopy(report.state()))

    straight.fit(DATA, ensemble(0), on_progress=keep)
    assert [state["done"] for state in saved] == [10, 15]
    resumed = small(0, **settings)
    resumed.fit(DATA, ensemble(0), resume=saved[0])
    assert same(resumed, straight)

    asked = 0

    def later() -> bool:
        nonlocal asked
        asked += 1
        return asked > 8

    places: dict[str, Any] = {"key": "k", "root": tmp_path / "store", "scratch": tmp_path / "run"}
    with pytest.raises(FitInterrupted):
        fit_or_load(small(0, **settings), DATA, ensemble(0), **places, should_stop=later)
    again = small(0, **settings)
    assert fit_or_load(again, DATA, ensemble(0), **places) == "fitted"
    assert same(again, straight)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"score.generator=gan is unknown; it is reparam or ppo"):
        small(0, generator="gan")
    with pytest.raises(ValueError, match=r"score.warm_up=15 is more than score.iterations=14"):
        small(0, warm_up=15)
