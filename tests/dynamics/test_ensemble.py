from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probes import random_data
from torch import Tensor

from mbrl.dynamics.ensemble import FitReport, GaussianEnsemble, beta_nll, mse_mean, nll, soft_clamp
from mbrl.nets import generator
from mbrl.optim import Adam
from mbrl.types import StateDict, Transition


def small(seeds: tuple[int, ...] = (0,), **settings: Any) -> GaussianEnsemble:
    defaults: dict[str, Any] = {"members": 3, "elites": 2, "hidden": (16, 16), "batch_size": 64, "max_epochs": 4}
    return GaussianEnsemble(3, 2, seeds, **(defaults | settings))


def linear_system(rows: int = 4000) -> tuple[Transition, Tensor, Tensor]:
    """next_obs = obs + (obs, action) @ effect + noise of known std; the reward is such a column too."""
    source = generator("linear system")
    effect = torch.tensor([[-0.2, 0.1, 0.5], [0.3, -0.1, -0.5], [0.4, 0.2, 1.0]])
    std = torch.tensor([0.05, 0.2, 0.1])
    obs = torch.randn(rows, 2, generator=source)
    action = torch.rand(rows, 1, generator=source) * 2 - 1
    out = torch.cat([obs, action], -1) @ effect + std * torch.randn(rows, 3, generator=source)
    never = torch.zeros(rows, dtype=torch.bool)
    return Transition(obs, action, out[:, 2], obs + out[:, :2], never, ~never), effect, std


# -- soft clamp --------------------------------------------------------------------------------------------------------


def test_soft_clamp_stays_inside_the_bounds_with_a_gradient() -> None:
    lower, upper = torch.tensor(-10.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    raw = torch.linspace(-30, 20, 501, dtype=torch.float64, requires_grad=True)
    clamped = soft_clamp(raw, lower, upper)
    (slope,) = torch.autograd.grad(clamped.sum(), raw)
    assert (clamped > lower).all()
    # Clamped from above first: the second softplus lifts the upper end by log(1 + exp(lower - upper)), 3e-5 here.
    assert (clamped < upper + math.log1p(math.exp(-10.5))).all()
    assert (slope > 0).all()
    assert (clamped.diff() > 0).all()
    middle = (raw > -6) & (raw < -4)
    torch.testing.assert_close(clamped[middle], raw[middle], rtol=0, atol=0.02)


def test_soft_clamp_moves_its_bounds() -> None:
    lower, upper = torch.tensor(-10.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    above = torch.autograd.grad(soft_clamp(torch.tensor(8.0), lower, upper), [lower, upper])
    below = torch.autograd.grad(soft_clamp(torch.tensor(-18.0), lower, upper), [lower, upper])
    assert above[1].item() == pytest.approx(1.0, abs=1e-3)
    assert above[0].item() == pytest.approx(0.0, abs=1e-3)
    assert below[0].item() == pytest.approx(1.0, abs=1e-3)
    assert below[1].item() == pytest.approx(0.0, abs=1e-3)


# -- losses ------------------------------------------------------------------------------------------------------------


def mean_logvar_target() -> tuple[Tensor, Tensor, Tensor]:
    source = generator("losses")
    mean, logvar, target = (torch.randn(40, 3, generator=source, dtype=torch.float64) for _ in range(3))
    return mean.requires_grad_(), logvar.requires_grad_(), target


def slopes(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), of)


def test_nll_is_the_negative_log_density() -> None:
    mean, logvar, target = mean_logvar_target()
    density = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(target)
    torch.testing.assert_close(nll(mean, logvar, target), -2 * density - math.log(2 * math.pi))


def test_beta_nll_goes_from_likelihood_to_squared_error() -> None:
    mean, logvar, target = mean_logvar_target()
    assert torch.equal(beta_nll(mean, logvar, target, 0.0), nll(mean, logvar, target))
    (of_mean,) = slopes(beta_nll(mean, logvar, target, 1.0), mean)
    torch.testing.assert_close(of_mean, 2 * (mean - target).detach())
    likelihood = slopes(nll(mean, logvar, target), mean, logvar)
    half = slopes(beta_nll(mean, logvar, target, 0.5), mean, logvar)
    for ours, plain in zip(half, likelihood, strict=True):  # the weight is the std, and has no gradient of its own
        torch.testing.assert_close(ours, plain * (logvar / 2).exp().detach())


def test_mse_mean_fits_the_mean_and_the_variance_apart() -> None:
    mean, logvar, target = mean_logvar_target()
    of_mean, of_logvar = slopes(mse_mean(mean, logvar, target), mean, logvar)
    torch.testing.assert_close(of_mean, 2 * (mean - target).detach())
    torch.testing.assert_close(of_logvar, 0.1 * slopes(nll(mean, logvar, target), logvar)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, r"dynamics.loss=mse is unknown; it is nll, beta_nll, mse_mean"),
        ({"schedule": "linear"}, r"dynamics.schedule=linear is unknown; it is constant or cosine"),
        ({"schedule": "cosine"}, r"dynamics.schedule=cosine needs a length: .*max_steps"),
        ({"patience": None}, r"dynamics.patience=null needs an end: .*max_steps"),
    ],
)
def test_a_fit_without_a_loss_a_schedule_or_an_end_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(max_epochs=None, **settings)


# -- initial state -----------------------------------------------------------------------------------------------------


def test_initial_weights() -> None:
    model = GaussianEnsemble(17, 6, (0, 1))
    assert [tuple(p.shape) for p in model.params[::2]] == [
        (2, 7, 23, 200), (2, 7, 200, 200), (2, 7, 200, 200), (2, 7, 200, 200), (2, 7, 200, 36)
    ]  # fmt: skip
    for weight in model.params[::2]:
        assert weight.std().item() == pytest.approx(1 / (2 * math.sqrt(weight.shape[-2])), rel=0.02)
    assert model.max_logvar.unique().tolist() == [0.5]
    assert model.min_logvar.unique().tolist() == [-10.0]
    assert model.weight_decay == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]


def test_weight_decay_for_other_depths() -> None:
    assert small(hidden=(8, 8)).weight_decay == [2.5e-5, 7.5e-5, 1e-4]
    assert small(hidden=(8, 8), weight_decay=0.1).weight_decay == [0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"dynamics.weight_decay has 2 values, .* makes 3 layers"):
        small(hidden=(8, 8), weight_decay=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"dynamics.elites=4 must lie between 1 and dynamics.members=3"):
        small(elites=4)


# -- what is fitted ----------------------------------------------------------------------------------------------------


def test_learns_mean_and_noise_of_a_linear_system() -> None:
    data, effect, std = linear_system()
    # Improvements of any size count: by the usual 1 % of a squared error that the largest noise rules, the snapshot is
    # taken before the smallest noise is learnt.
    model = GaussianEnsemble(
        2,
        1,
        (0,),
        members=2,
        elites=2,
        hidden=(32, 32),
        learning_rate=3e-3,
        max_epochs=60,
        patience=60,
        improvement=0.0,
    )
    model.fit(data)
    obs, action = torch.randn(1, 500, 2), torch.rand(1, 500, 1) * 2 - 1
    mean, predicted_std = model.predict(obs, action)
    truth = torch.cat([obs, action], -1) @ effect + F.pad(obs, (0, 1))
    for member in range(2):
        ratio = predicted_std[0, member].median(0).values / std
        assert (ratio - 1).abs().max().item() < 0.2
        assert (mean[0, member] - truth[0]).square().mean(0).sqrt().lt(0.5 * std).all()
    # Held-out error of a perfect mean is the noise: mean of std^2.
    noise = std.square().mean().item()
    assert noise * 0.85 < model.holdout_error.min().item() < noise * 1.15


def written_out(model: GaussianEnsemble, data: Transition, epochs: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Section 1.2 of the method, one seed, member by member, weight decay inside the loss, torch's own optimiser."""
    seed, batch = model.seeds[0], model.batch_size
    count = data.reward.shape[0]
    held = min(int(0.2 * count), 1000)
    order = torch.randperm(count, generator=generator(seed, "dynamics", "holdout"))
    train = order[held:]
    pick = torch.randint(len(train), (model.members, len(train)), generator=generator(seed, "dynamics", "bootstrap"))
    bootstrap = train[pick]
    inputs = torch.cat([data.obs, data.action], -1)
    shift, scale = inputs[train].mean(0), inputs[train].std(0, correction=0)
    x, y = (inputs - shift) / scale, torch.cat([data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
    members = [[p[0, e].clone().requires_grad_() for p in model.params] for e in range(model.members)]
    top = torch.full((y.shape[-1],), 0.5, requires_grad=True)
    bottom = torch.full((y.shape[-1],), -10.0, requires_grad=True)
    optimiser = torch.optim.Adam([p for member in members for p in member] + [top, bottom], lr=model.learning_rate)
    for epoch in range(epochs):
        source = generator(seed, "dynamics", "order", epoch)
        rows = [bootstrap[e, torch.randperm(len(train), generator=source)] for e in range(model.members)]
        for i in range(len(train) // batch):
            loss = 0.01 * top.sum() - 0.01 * bottom.sum()
            for e, params in enumerate(members):
                index = rows[e][i * batch : (i + 1) * batch]
                h = x[index]
                for k in range(0, len(params), 2):
                    h = h @ params[k] + params[k + 1]
                    h = h * torch.sigmoid(h) if k + 2 < len(params) else h
                mean, logvar = h[:, : y.shape[-1]], h[:, y.shape[-1] :]
                logvar = top - F.softplus(top - logvar)
                logvar = bottom + F.softplus(logvar - bottom)
                loss = loss + ((mean - y[index]) ** 2 * torch.exp(-logvar) + logvar).mean()
                for weight, decay in zip(params[::2], model.weight_decay, strict=True):
                    loss = loss + decay * 0.5 * (weight**2).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    stacked = [torch.stack([m[k].detach() for m in members]).unsqueeze(0) for k in range(len(members[0]))]
    return stacked, top.detach(), bottom.detach()


def test_fit_is_the_published_loss_written_out() -> None:
    # A heavy weight decay, another one for every layer, so that a wrong one would show.
    data = random_data(400)
    model = small(weight_decay=(0.05, 0.3, 1.0), max_epochs=3)
    expected, top, bottom = written_out(model, data, epochs=3)
    reports: list[StateDict] = []
    model.fit(data, on_progress=lambda report: reports.append(copy.deepcopy(report.state())))
    *layers, max_logvar, min_logvar = reports[-1]["trained"]
    for ours, reference in zip(layers, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(max_logvar.flatten(), top, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(min_logvar.flatten(), bottom, rtol=1e-5, atol=1e-6)


def test_published_settings_fit_as_they_always_did() -> None:
    # Recorded before there were other losses and units.
    model = small((0, 1))
    model.fit(random_data(400))
    recorded = [[0.33340603, 0.34686980, 0.34486908], [0.18293303, 0.18694049, 0.19977012]]
    torch.testing.assert_close(model.holdout_error, torch.tensor(recorded), rtol=1e-4, atol=0)


@pytest.mark.parametrize("standardise", [False, True])
def test_predict_is_the_normalised_network_in_a_loop(standardise: bool) -> None:
    data = random_data(500)
    data = data._replace(obs=data.obs * torch.tensor([1.0, 30.0, 0.01]) + 5, next_obs=data.next_obs * 2)
    model = small((0, 7), standardise_targets=standardise)
    model.fit(data)
    assert (model.target_std != 1).all().item() is standardise
    obs, action = data.obs[:40].repeat(2, 1, 1), data.action[:40].repeat(2, 1, 1)
    mean, std = model.predict(obs, action)
    assert mean.shape == std.shape == (2, 3, 40, 4)
    for s in range(2):
        x = (torch.cat([obs[s], action[s]], -1) - model.input_mean[s, 0]) / model.input_std[s, 0]
        for e in range(3):
            h = x
            for k in range(0, len(model.params), 2):
                h = h @ model.params[k][s, e] + model.params[k + 1][s, e]
                h = F.silu(h) if k + 2 < len(model.params) else h
            logvar = soft_clamp(h[:, 4:], model.min_logvar[s, 0], model.max_logvar[s, 0])
            shift, scale = model.target_mean[s, 0], model.target_std[s, 0]
            expected = h[:, :4] * scale + shift + F.pad(obs[s], (0, 1))
            torch.testing.assert_close(mean[s, e], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(std[s, e], (logvar / 2).exp() * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["nll", "beta_nll", "mse_mean"])
def test_standardised_targets_are_targets_that_were_standardised(loss: Any) -> None:
    data = random_data(400)
    data = data._replace(reward=100 + 50 * data.reward)
    model = small(standardise_targets=True, loss=loss)
    model.fit(data)
    train = model.split(400).train[0]
    change, reward = data.next_obs - data.obs, data.reward
    change = (change - change[train].mean(0)) / change[train].std(0, correction=0)
    reward = (reward - reward[train].mean()) / reward[train].std(correction=0)
    other = small(loss=loss)
    other.fit(data._replace(next_obs=data.obs + change, reward=reward))
    torch.testing.assert_close(model.holdout_error, other.holdout_error, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(model.params, other.params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_elites_view_is_in_environment_units() -> None:
    data = random_data(400)
    model = small(standardise_targets=True, loss="beta_nll", max_epochs=20)
    model.fit(data._replace(reward=100 + 50 * data.reward))
    mean, std = model.elite_view().predict(data.obs.unsqueeze(0), data.action.unsqueeze(0))
    rewards = mean[0, 0, :, -1]
    assert rewards.mean().item() == pytest.approx(100 + 50 * data.reward.mean().item(), rel=0.1)
    assert 1 < std[0, 0, :, -1].mean().item() < 50


def test_bfloat16_predicts_as_well_as_it_was_fitted_far_from_the_origin() -> None:
    # The fit normalises inputs of 5 +- 0.1. Rounded to bfloat16 as they are, they would come in steps of 0.03.
    data = random_data(1000)
    change = data.next_obs - data.obs
    obs = 5 + 0.1 * data.obs
    data = data._replace(obs=obs, next_obs=obs + change)
    errors = []
    for precision in ("float32", "bfloat16"):
        model = small(hidden=(32, 32), max_epochs=20, precision=precision)
        model.fit(data)
        for view in (model, model.elite_view()):
            mean = view.predict(data.obs.unsqueeze(0), data.action.unsqueeze(0)).mean[0]
            errors.append((mean[..., 3] - data.reward).square().mean().item())
    assert max(errors[2:]) < 2 * max(errors[:2])


def test_the_elite_view_says_what_the_elites_say() -> None:
    model = small((0, 7), members=4, elites=2)
    model.fit(random_data(300))
    obs, action = torch.randn(2, 9, 3), torch.randn(2, 9, 2)
    whole, view = model.predict(obs, action), model.elite_view()
    assert view.elites.tolist() == [[0, 1], [0, 1]]
    for ours, theirs in zip(view.predict(obs, action), whole, strict=True):
        assert ours.shape == (2, 2, 9, 4)
        for s in range(2):
            torch.testing.assert_close(ours[s], theirs[s, model.elites[s]], rtol=1e-5, atol=1e-6)


def elite_of_every_lane(model: GaussianEnsemble, lanes: int, uniform: torch.Tensor) -> torch.Tensor:
    """Which elite (S, N) gave each lane's answer, recognised by its mean."""
    seeds = len(model.seeds)
    obs, action = torch.randn(seeds, lanes, 3), torch.randn(seeds, lanes, 2)
    one = model.elite_view().predict_one(obs, action, uniform)
    whole = model.elite_view().predict(obs, action)
    assert one.mean.shape == one.std.shape == (seeds, 1, lanes, 4)
    distance = (one.mean - whole.mean).abs().amax(-1)  # (S, K, N)
    assert distance.amin(-2).max() < 1e-5
    which = distance.argmin(-2)
    said = whole.std.gather(-3, which[:, None, :, None].expand(-1, 1, -1, 4))
    torch.testing.assert_close(one.std, said, rtol=1e-4, atol=1e-6)
    return which


def test_one_elite_for_each_lane_and_equal_shares_for_the_elites() -> None:
    model = small((0, 7), members=5, elites=3)
    model.fit(random_data(300))
    which = elite_of_every_lane(model, 30, torch.rand(2, 30))
    assert (which[0] != which[1]).any()
    for s in range(2):
        assert torch.bincount(which[s], minlength=3).tolist() == [10, 10, 10]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_every_elite_is_as_likely_for_every_lane(lanes: int) -> None:
    model = small((0,), members=3, elites=3)
    draws = torch.stack([elite_of_every_lane(model, lanes, torch.rand(1, lanes))[0] for _ in range(900)])
    for lane in range(lanes):
        counts = torch.bincount(draws[:, lane], minlength=3)
        assert ((counts - 300).abs() < 60).all(), counts  # 4 standard deviations


# -- rows --------------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_never_trained_on() -> None:
    split = small((0, 5), members=4).split(203)
    assert split.holdout.shape == (2, 40)
    assert split.bootstrap.shape == (2, 4, 163)
    for s in range(2):
        held, train = set(split.holdout[s].tolist()), set(split.train[s].tolist())
        assert held | train == set(range(203))
        assert not held & train
        for e in range(4):
            rows = split.bootstrap[s, e].tolist()
            assert set(rows) <= train
            assert 0.5 < len(set(rows)) / len(train) < 0.75  # with replacement: 1 - 1/e = 0.632
    assert not torch.equal(split.holdout[0], split.holdout[1])
    assert not torch.equal(split.bootstrap[0, 0], split.bootstrap[0, 1])
    assert small(holdout_max=10).split(203).holdout.shape == (1, 10)


def test_scaler_comes_from_the_training_rows_alone() -> None:
    data = random_data(300)
    model = small((0, 3), max_epochs=1)
    split = model.split(300)
    held = data.obs.clone()
    held[split.holdout[0]] = 1e4  # would move the mean of seed 0 by thousands
    model.fit(data._replace(obs=held))
    inputs = torch.cat([held, data.action], -1).double().numpy()
    for s in range(2):
        rows = split.train[s].numpy()
        np.testing.assert_allclose(model.input_mean[s, 0, 0].numpy(), inputs[rows].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.input_std[s, 0, 0].numpy(), inputs[rows].std(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
def test_a_column_that_is_constant_up_to_rounding_is_not_scaled(constant: float) -> None:
    # Its std is of the size of float32's rounding: divided by that, imagination would explode.
    data = random_data(300)
    column = torch.full((300,), constant)
    column[::2] = torch.nextafter(column[::2], torch.tensor(math.inf))
    data.obs[:, 1] = column
    model = small(max_epochs=1)
    model.fit(data)
    assert model.input_std[0, 0, 0, 1].item() == 1.0
    before = model.predict(data.obs[None, :5], data.action[None, :5]).mean[..., 0]
    moved = data.obs[None, :5] + torch.tensor([0.0, 1e-3, 0.0])
    torch.testing.assert_close(model.predict(moved, data.action[None, :5]).mean[..., 0], before, rtol=0, atol=0.01)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10 transitions, the dataset has 9"):
        small().fit(random_data(9))


# -- length and schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "updates", "epochs"),
    [({"max_steps": 8}, 8, 2), ({"max_steps": 5}, 5, 1), ({"max_steps": 20, "max_epochs": 2}, 10, 2)],
)
def test_a_fit_makes_so_many_updates(limits: dict[str, int], updates: int, epochs: int) -> None:
    settings: dict[str, Any] = {"max_epochs": None} | limits
    model, follow = small(**settings), Follow()
    assert model.epochs(400) == epochs  # 320 training rows are 5 batches of 64
    model.fit(random_data(400), on_progress=follow)
    assert [report.epoch for report in follow.reports] == list(range(1, epochs + 1))
    assert {float(steps) for steps in follow.states[-1]["optimiser"]["steps"]} == {updates}
    assert small(max_epochs=None).epochs(400) is None


@pytest.mark.parametrize("limits", [{"max_steps": 10}, {"max_epochs": 2}, {"max_epochs": 2, "max_steps": 100}])
def test_a_cosine_ends_with_the_fit(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = Adam.step

    def watched(self: Adam, grads: Any, scale: Tensor | None = None) -> None:
        assert scale is not None
        rates.append(float(scale))
        step(self, grads, scale)

    monkeypatch.setattr(Adam, "step", watched)
    settings: dict[str, Any] = {"max_epochs": None, "schedule": "cosine", "patience": None} | limits
    small(**settings).fit(random_data(400))
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    assert rates == pytest.approx(expected)


# -- early stopping ----------------------------------------------------------------------------------------------------


class Follow:
    """Keeps a copy of every report and of the parameters at that time."""

    def __init__(self) -> None:
        self.reports: list[FitReport] = []
        self.states: list[StateDict] = []

    def __call__(self, report: FitReport) -> None:
        self.reports.append(report)
        self.states.append(copy.deepcopy(report.state()))


@pytest.mark.parametrize("patience", [1, 5])
def test_stops_after_exactly_patience_flat_epochs(patience: int) -> None:
    model, follow = small(learning_rate=0.0, max_epochs=None, patience=patience), Follow()
    model.fit(random_data(200), on_progress=follow)
    assert [r.epoch for r in follow.reports] == list(range(1, patience + 2))  # the first one always improves
    assert [bool(r.active) for r in follow.reports] == [True] * patience + [False]


def test_snapshots_are_restored_and_elites_are_the_best() -> None:
    data = random_data(300)
    model = small((0, 2), members=4, elites=2, learning_rate=0.03, max_epochs=None, patience=3)
    follow = Follow()
    model.fit(data, on_progress=follow)
    holdout = torch.stack([r.holdout for r in follow.reports])  # (epochs, S, E)
    assert len(holdout) < 200
    restored_earlier = 0
    for s in range(2):
        for e in range(4):
            best, at = math.inf, -1
            stopped = next((i for i, r in enumerate(follow.reports) if not r.active[s]), len(holdout) - 1)
            for i in range(stopped + 1):  # an improvement is one of more than 1 %
                if holdout[i, s, e].item() < best * 0.99:
                    best, at = holdout[i, s, e].item(), i
            restored_earlier += at < len(holdout) - 1
            assert model.holdout_error[s, e].item() == pytest.approx(best, rel=1e-6)
            for now, then in zip(model.params, follow.states[at]["trained"], strict=False):
                assert torch.equal(now[s, e], then[s, e])
        assert set(model.elites[s].tolist()) == set(model.holdout_error[s].argsort()[:2].tolist())
    assert restored_earlier > 0


def test_settings_without_held_out_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dynamics.holdout_fraction=0.0 must lie between 0 and 1"):
        small(holdout_fraction=0.0)
    with pytest.raises(ValueError, match=r"dynamics.holdout_max=0 be at least 1"):
        small(holdout_max=0)
    assert small(holdout_fraction=0.05).split(12).holdout.shape == (1, 1)


def test_errors_on_any_scale_count_as_a_first_improvement() -> None:
    # The published starting value of the best error, 1e10, would leave such a model with its initial weights, silently.
    data = random_data(200)
    model = small(max_epochs=2)
    before = [p.clone() for p in model.params]
    model.fit(data._replace(reward=data.reward * 1e6))
    assert not torch.equal(model.params[0], before[0])
    assert torch.isfinite(model.holdout_error).all()


def test_a_seed_that_has_stopped_stays_as_it_was() -> None:
    data = random_data(200)
    model, follow = small((0, 1, 2), learning_rate=0.03, max_epochs=None, patience=1), Follow()
    model.fit(data, on_progress=follow)
    ends = [next(i for i, r in enumerate(follow.reports) if not r.active[s]) for s in range(3)]
    assert len(set(ends)) > 1  # else this test shows nothing
    for s, end in enumerate(ends):
        torch.testing.assert_close(model.max_logvar[s], follow.states[end]["trained"][-2][s], rtol=0, atol=0)
        assert torch.equal(model.holdout_error[s], follow.reports[end].best[s])


def test_a_loss_that_is_not_finite_is_reported() -> None:
    data = random_data(100)
    with pytest.raises(FloatingPointError, match=r"the dynamics loss became .* in epoch 1; .*mbrl inspect"):
        small().fit(data._replace(reward=torch.full((100,), 1e30)))


# -- one and many, stop and go -----------------------------------------------------------------------------------------


def test_a_single_member_is_a_model() -> None:
    model = small(members=1, elites=1)
    model.fit(random_data(200))
    mean, std = model.predict(torch.zeros(1, 6, 3), torch.zeros(1, 6, 2))
    assert mean.shape == std.shape == (1, 1, 6, 4)
    assert model.elites.tolist() == [[0]]


RECIPE: dict[str, Any] = {
    "loss": "beta_nll", "standardise_targets": True, "schedule": "cosine", "max_epochs": None, "max_steps": 23,
    "patience": None, "improvement": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{"max_epochs": 5}, RECIPE, RECIPE | {"loss": "mse_mean"}])
def test_stacked_seeds_equal_separate_fits(settings: dict[str, Any]) -> None:
    data = random_data(400)
    together = small((0, 3), **settings)
    together.fit(data)
    for i, seed in enumerate((0, 3)):
        alone = small((seed,), **settings)
        alone.fit(data)
        assert torch.equal(alone.elites[0], together.elites[i])
        for ours, theirs in zip(together.params, alone.params, strict=True):
            torch.testing.assert_close(ours[i], theirs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.max_logvar[i], alone.max_logvar[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("settings", [{"learning_rate": 0.02, "max_epochs": None, "patience": 2}, RECIPE])
def test_interrupted_and_resumed_fit_is_bitwise_the_uninterrupted(stop: int, settings: dict[str, Any]) -> None:
    data = random_data(400)
    straight = small((0, 1), **settings)
    straight.fit(data)
    saved: list[StateDict] = []

    def interrupt(report: FitReport) -> None:
        if report.epoch == stop:
            saved.append(copy.deepcopy(report.state()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small((0, 1), **settings).fit(data, on_progress=interrupt)
    resumed = small((0, 1), **settings)
    resumed.fit(data, resume=saved[0])
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_state_round_trip_predicts_the_same() -> None:
    model = small((0, 1))
    model.fit(random_data(200))
    other = small((0, 1))
    obs, action = torch.randn(2, 9, 3), torch.randn(2, 9, 2)
    other.predict(obs, action)  # fills the cache that loading must empty
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for ours, theirs in zip(model.predict(obs, action), other.predict(obs, action), strict=True):
        assert torch.equal(ours, theirs)
    state = dict(model.state_dict())
    del state["elites"]
    with pytest.raises(ValueError, match="the saved dynamics model lacks elites"):
        other.load_state_dict(state)
