from __future__ import annotations

import pytest
import torch

from mbrl.learn.backups import minimum
from mbrl.learn.encoders import Identity


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("critics", [1, 2, 10])
def test_minimum_is_over_critics_row_by_row(lead: tuple[int, ...], critics: int) -> None:
    q = torch.randn(*lead, critics, 6)
    out = minimum(q)
    assert out.shape == (*lead, 6)
    for s, rows in enumerate(q.reshape(-1, critics, 6)):
        assert out.reshape(-1, 6)[s].tolist() == [min(column) for column in rows.T.tolist()]


def test_identity_encoder() -> None:
    obs = torch.randn(2, 5, 3)
    assert Identity().size(3) == 3
    assert Identity()(obs) is obs
