from __future__ import annotations

import pytest
import torch
from probes import random_data

from mbrl.dynamics.ensemble import FitStopped, GaussianEnsemble
from mbrl.score import rows as module
from mbrl.score.rows import EnsembleRows

SEEDS = (0, 5)


def fitted(members: int = 3) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, SEEDS, members=members, elites=2, hidden=(16,), batch_size=64, max_epochs=2)
    model.fit(random_data(120))
    return model


def test_out_of_bag_residual_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 17)
    data, model = random_data(120), fitted()
    rows = EnsembleRows.of(data, model)
    residual = rows.out_of_bag_residual(model, lambda: False)
    split = model.split(120)
    mean = model.predict(data.obs.expand(2, -1, -1), data.action.expand(2, -1, -1)).mean[..., :-1]
    nobody = 0
    for s in range(2):
        bags = [set(split.bootstrap[s, e].tolist()) for e in range(3)]
        for t, row in enumerate(split.train[s].tolist()):
            asked = [e for e in range(3) if row not in bags[e]]
            nobody += not asked
            average = mean[s, asked or range(3), row].mean(0)
            torch.testing.assert_close(residual[s, t], data.next_obs[row] - average, rtol=1e-4, atol=1e-5)
    assert nobody > 0  # else the test does not see that case


def test_rows_are_the_ensembles_own() -> None:
    data, model = random_data(120), fitted()
    rows = EnsembleRows.of(data, model)
    obs, action, delta = rows.at(torch.tensor([[0, 3], [7, 1]]))
    row = model.split(120).train[1, 7]
    assert torch.equal(obs[1, 0], data.obs[row])
    assert torch.equal(action[1, 0], data.action[row])
    assert torch.equal(delta[1, 0], data.next_obs[row] - data.obs[row])
    assert not set(rows.held[0].tolist()) & set(rows.row[0].tolist())
    assert rows.held_out()[0].shape == (2, 24, 3)


def test_what_does_not_change_has_scale_one() -> None:
    data = random_data(120)
    data = data._replace(next_obs=torch.cat([data.obs[:, :1], data.next_obs[:, 1:]], -1))
    model = fitted()
    scale = EnsembleRows.of(data, model).delta_std()
    assert scale[:, 0, 0].tolist() == [1.0, 1.0]
    own = (data.next_obs - data.obs)[model.split(120).train[1]]
    torch.testing.assert_close(scale[1, 0, 1:], own[:, 1:].std(0, correction=0))


def test_a_stop_is_heard() -> None:
    model = fitted()
    with pytest.raises(FitStopped):
        EnsembleRows.of(random_data(120), model).out_of_bag_residual(model, lambda: True)
