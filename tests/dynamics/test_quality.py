from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from probes import random_data
from rich.console import Console
from torch import Tensor

from mbrl.dynamics.ensemble import GaussianEnsemble
from mbrl.dynamics.quality import (
    STEPS,
    Quality,
    as_json,
    dimension_table,
    gate_warning,
    measure,
    open_loop_error,
    squared_error_net,
    summary_table,
)
from mbrl.nets import generator
from mbrl.types import DynamicsModel, Prediction, Transition

EFFECT = torch.tensor([[-0.3, 0.1, 0.5], [0.2, -0.2, -0.5], [0.4, 0.6, 1.0]])  # of obs and action, on change and reward
NOISE = torch.tensor([0.05, 0.2, 0.1])


@dataclass
class LinearModel:
    """Next obs = obs + (obs, action) @ EFFECT, with a constant `offset` and std; every member says the same."""

    std: Tensor
    offset: Tensor
    members: int = 2
    action_dim: int = 1

    def __post_init__(self) -> None:
        self.elites = torch.arange(self.members).unsqueeze(0)

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        mean = torch.cat([obs, action], -1) @ EFFECT + F.pad(obs, (0, 1)) + self.offset
        mean = mean.unsqueeze(-3).expand(-1, self.members, -1, -1)
        return Prediction(mean, self.std.expand_as(mean))


def log(noise: Tensor, episodes: int = 40, length: int = 100) -> tuple[Transition, Tensor]:
    """Episodes of the linear system under random actions, and where they end."""
    source = generator("quality")
    steps: list[Transition] = []
    obs = torch.randn(episodes, 2, generator=source)
    for _ in range(length):
        action = torch.rand(episodes, 1, generator=source) * 2 - 1
        out = torch.cat([obs, action], -1) @ EFFECT + noise * torch.randn(episodes, 3, generator=source)
        never = torch.zeros(episodes, dtype=torch.bool)
        steps.append(Transition(obs, action, out[:, 2], obs + out[:, :2], never, ~never))
        obs = obs + out[:, :2]
    data = Transition(*(torch.stack(column, 1).flatten(0, 1) for column in zip(*steps, strict=True)))
    return data, torch.arange(episodes * length) % length == length - 1


def measured(model: DynamicsModel, data: Transition, end: Tensor, holdout: Tensor | None = None) -> Quality:
    holdout = torch.arange(len(end)).unsqueeze(0) if holdout is None else holdout
    return measure(model, data, end, holdout, [generator(seed, "test") for seed in range(len(holdout))])


# -- values that are known ---------------------------------------------------------------------------------------------


def test_the_true_model_is_calibrated_and_its_mean_is_better_by_root_two() -> None:
    data, end = log(NOISE)
    found = measured(LinearModel(NOISE, torch.zeros(3)), data, end)
    numbers = {name: float(value) for name, value in found.summary().items()}
    assert numbers["mean_to_candidate_ratio"] == pytest.approx(1 / math.sqrt(2), rel=0.02)
    assert numbers["within_one_std"] == pytest.approx(0.683, abs=0.015)
    assert numbers["within_two_std"] == pytest.approx(0.954, abs=0.01)
    assert numbers["squared_residual"] == pytest.approx(1.0, abs=0.05)
    change = torch.cat([data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
    explained = NOISE / change.std(0, correction=0)
    torch.testing.assert_close(found.rmse[0], explained, rtol=0.05, atol=0)
    torch.testing.assert_close(found.r2[0], 1 - explained.square(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("factor", "within"), [(0.5, 0.383), (2.0, 0.954)])
def test_a_std_that_is_wrong_is_seen(factor: float, within: float) -> None:
    data, end = log(NOISE)
    found = measured(LinearModel(NOISE * factor, torch.zeros(3)), data, end)
    assert float(found.within_one.mean()) == pytest.approx(within, abs=0.015)
    assert float(found.squared_residual.mean()) == pytest.approx(1 / factor**2, rel=0.05)


def test_without_noise_the_true_model_is_never_wrong() -> None:
    data, end = log(torch.zeros(3))
    found = measured(LinearModel(torch.full((3,), 1e-3), torch.zeros(3)), data, end)
    assert float(found.mean_error) < 1e-6
    assert found.open_loop.max().item() < 1e-5
    assert found.r2.min().item() > 1 - 1e-6


def test_an_offset_adds_up_along_an_episode() -> None:
    # A random walk: the change does not depend on where it is, so k steps are wrong by k offsets.
    source = generator("walk")
    action = torch.rand(600, 1, generator=source) * 2 - 1
    obs = action.view(20, 30).cumsum(-1).view(-1, 1)
    end = torch.arange(600) % 30 == 29
    never = torch.zeros(600, dtype=torch.bool)
    data = Transition(obs - action, action, torch.zeros(600), obs, never, ~never)

    class Walk(LinearModel):
        def predict(self, obs: Tensor, action: Tensor) -> Prediction:
            mean = F.pad(obs + action, (0, 1)) + self.offset
            return Prediction(mean.unsqueeze(-3), torch.ones_like(mean).unsqueeze(-3))

    model = Walk(torch.ones(2), torch.tensor([0.25, 0.0]), members=1)
    errors = open_loop_error(model, data, end, torch.arange(600).unsqueeze(0))[0]
    expected = 0.25 * torch.tensor(STEPS) / data.obs.std(correction=0)
    torch.testing.assert_close(errors, expected, rtol=1e-3, atol=0)
    found = measured(model, data, end)
    assert found.rmse[0, 0].item() == pytest.approx(0.25 / action.std(correction=0).item(), rel=1e-4)
    assert found.rmse[0, 1].item() == 0  # a constant reward is not divided by its std


def test_an_open_loop_ends_with_its_episode() -> None:
    data, end = log(torch.zeros(3), episodes=10, length=7)
    model = LinearModel(torch.ones(3), torch.zeros(3))
    errors = open_loop_error(model, data, end, torch.arange(70).unsqueeze(0))[0]
    assert errors[:2].max().item() < 1e-5  # an action of the next episode would show
    assert errors[2:].isnan().all()  # nobody goes on for 10 steps
    late = open_loop_error(model, data, end, torch.tensor([[3, 69]]), steps=(4,))
    assert late.item() < 1e-5  # row 3 is the last one with 4 steps, the last row of all has but one
    assert open_loop_error(model, data, end, torch.tensor([[4]]), steps=(4,)).isnan().all()


# -- parity ------------------------------------------------------------------------------------------------------------


def fitted(*seeds: int) -> tuple[GaussianEnsemble, Transition, Tensor]:
    data, end = log(NOISE, episodes=10, length=40)
    model = GaussianEnsemble(2, 1, seeds, members=3, elites=2, hidden=(16,), batch_size=64, max_epochs=5)
    model.fit(data)
    return model, data, end


def test_it_is_the_plain_loop() -> None:
    model, data, end = fitted(0, 5)
    holdout = model.split(400).holdout[:, :30]
    found = measured(model, data, end, holdout)
    change = torch.cat([data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
    scale = change.std(0, correction=0)
    for s in range(2):

        def predict(obs: Tensor, action: Tensor, s: int = s) -> tuple[Tensor, Tensor]:
            both = model.predict(obs.expand(2, 1, -1), action.expand(2, 1, -1))
            elites = model.elites[s].tolist()
            return both.mean[s, elites, 0], both.std[s, elites, 0]  # (K, D)

        noise = torch.randn((2, 2, 30, 3), generator=generator(s, "test"))  # draws, elites, rows, D
        mean_errors, candidate_errors, ratios = [], [], []
        steps: dict[int, list[float]] = {k: [] for k in STEPS}
        for i, row in enumerate(holdout[s].tolist()):
            mean, std = predict(data.obs[row], data.action[row])
            truth = torch.cat([data.next_obs[row], data.reward[row : row + 1]])
            mean_errors.append(((mean.mean(0) - truth) / scale)[:2].square().mean().sqrt())
            for d in range(2):
                for e in range(2):
                    candidate = mean[e] + std[e] * noise[d, e, i]
                    candidate_errors.append(((candidate - truth) / scale)[:2].square().mean().sqrt())
            spread = (std.square().mean(0) + mean.var(0, correction=0)).sqrt()
            ratios.append((truth - mean.mean(0)) / spread)
            obs, at = data.obs[row], row
            while True:
                obs = predict(obs, data.action[at])[0].mean(0)[:2]
                if at + 1 - row in steps:
                    error = (obs - data.next_obs[at]) / data.obs.std(0, correction=0)
                    steps[at + 1 - row].append(error.square().mean().sqrt().item())
                if end[at] or at + 1 - row == max(STEPS):
                    break
                at += 1
        ratio = torch.stack(ratios)
        torch.testing.assert_close(found.mean_error[s], torch.stack(mean_errors).mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.candidate_error[s], torch.stack(candidate_errors).mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.within_one[s], (ratio.abs() <= 1).float().mean(0))
        torch.testing.assert_close(found.squared_residual[s], ratio.square().mean(0), rtol=1e-3, atol=1e-4)
        expected = torch.tensor([sum(errors) / len(errors) for errors in steps.values()])
        torch.testing.assert_close(found.open_loop[s], expected, rtol=1e-3, atol=1e-4)


def test_the_elites_alone_measure_the_same() -> None:
    model, data, end = fitted(0, 5)
    holdout = model.split(400).holdout
    whole, view = measured(model, data, end, holdout), measured(model.elite_view(), data, end, holdout)
    for name, values in whole.summary().items():
        torch.testing.assert_close(values, view.summary()[name], rtol=1e-3, atol=1e-4)


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_the_squared_error_net_holds_out_the_same_rows_and_finds_the_mean() -> None:
    data, end = log(NOISE, episodes=10, length=40)
    model = GaussianEnsemble(2, 1, (0, 4), members=3, elites=2, hidden=(12, 8), batch_size=64, max_epochs=1)
    net = squared_error_net(model, steps=300)
    assert [tuple(p.shape[1:]) for p in net.params[::2]] == [(1, 3, 12), (1, 12, 8), (1, 8, 6)]
    assert torch.equal(net.split(400).holdout, model.split(400).holdout)
    model.fit(data)
    net.fit(data)
    holdout = model.split(400).holdout
    barely, well = measured(model, data, end, holdout).mean_error, measured(net, data, end, holdout).mean_error
    assert (well < 0.85 * barely).all()
    warning = gate_warning(model.seeds, barely, well, "nll")
    assert warning is not None
    assert f"seed 4: {float(well[1]):.3f} against {float(barely[1]):.3f}" in warning


def test_the_gate_opens_at_fifteen_percent() -> None:
    elites = torch.tensor([1.0, 1.0])
    assert gate_warning((3, 7), elites, torch.tensor([0.86, 1.2]), "nll") is None
    warning = gate_warning((3, 7), elites, torch.tensor([0.86, 0.84]), "nll")
    assert warning is not None
    assert "(seed 7: 0.840 against 1.000)" in warning
    assert "use dynamics=beta_nll" in warning
    again = gate_warning((3, 7), elites, torch.tensor([0.86, 0.84]), "beta_nll")
    assert again is not None
    assert again.endswith("the model is underfitted; fit for longer (dynamics.max_steps, max_epochs, patience)")


# -- display -----------------------------------------------------------------------------------------------------------


def test_tables_and_json_say_what_was_measured() -> None:
    model, data, end = fitted(0, 5)
    found = measured(model, data, end, model.split(400).holdout)
    text = rendered(found)
    for value in (found.mean_error.mean(), found.mean_error.min(), found.mean_error.max(), found.rmse[:, 1].mean()):
        assert f"{float(value):.3f}" in text
    assert "least" in text
    assert "obs[1]" in text
    kept = as_json(found, model.seeds)
    assert kept["seeds"] == [0, 5]
    assert kept["dimensions"] == ["obs[0]", "obs[1]", "reward"]
    assert kept["mean_error"] == found.mean_error.tolist()
    assert torch.tensor(kept["per_dimension"]["r2"]).shape == (2, 3)


def rendered(found: Quality) -> str:
    console = Console(width=90)
    with console.capture() as text:
        console.print(summary_table(found))
        console.print(dimension_table(found))
    return text.get()


def test_a_constant_dimension_is_no_division_by_nothing() -> None:
    data = random_data(100)
    data = data._replace(next_obs=torch.cat([data.obs[:, :1], data.next_obs[:, 1:]], -1))
    model = GaussianEnsemble(3, 2, (0,), members=2, elites=1, hidden=(8,), max_epochs=1, standardise_targets=True)
    model.fit(data)
    found = measured(model, data, torch.zeros(100, dtype=torch.bool), model.split(100).holdout)
    assert all(torch.isfinite(values).all() for values in found.per_dimension().values())
    assert torch.isfinite(found.open_loop).all()
