from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbrl.data.inspect import effective_dimension, histogram, inspect_dataset
from mbrl.data.sources import DatasetError


@pytest.fixture(autouse=True)
def wide_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def test_report_of_the_builtin_log(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_dataset("builtin:pendulum", html=None)
    text = capsys.readouterr().out
    for words in (
        "40,000",
        "3 dimensions",
        "1 dimensions in [-2, 2]",
        "Pendulum-v1",
        "200 complete, 0 incomplete; rows with a terminal 0, with a time limit 200",
        "mean -935.345",
        "10% -1421.1",
        "observation 2",
        "no faults found",
    ):
        assert words in text


def test_report_names_faults_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = 50
    obs = np.random.default_rng(0).normal(size=(rows + 1, 2))
    obs[:, 1] = 4
    path = tmp_path / "log.npz"
    np.savez(
        path,
        observations=obs[:-1],
        next_observations=obs[1:],
        actions=np.where(np.arange(rows) % 2, 3.0, 1.0)[:, None],
        rewards=np.ones(rows),
        terminals=np.zeros(rows),
        timeouts=np.arange(rows) % 20 == 19,
    )
    page = tmp_path / "pages" / "log.html"
    inspect_dataset(str(path), html=page)
    text = capsys.readouterr().out
    assert "2 complete, 1 incomplete" in text
    assert "constant in column 1" in text
    assert "100.0% of the values are at a bound" in text
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 5
    assert "constant in column 1" in html
    assert "src=" not in html
    assert 'href="http' not in html
    assert len(html) < 500_000


def test_scores_use_the_references_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    obs = np.random.default_rng(0).normal(size=(21, 11))
    np.savez(
        tmp_path / "Simglucose-high-100000-train.npz",
        obs=obs[:-1],
        next_obs=obs[1:],
        action=np.linspace(-1, 1, 20)[:, None],
        reward=np.full(20, 475 / 20),
        done=np.zeros(20),
        truncated=np.arange(20) == 19,
    )
    monkeypatch.setenv("NEORL_DATASET_DIR", str(tmp_path))
    inspect_dataset("neorl2:Simglucose", html=None)
    assert "mean 100.0, best 100.0" in capsys.readouterr().out


def test_malformed_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    path.touch()
    with pytest.raises(DatasetError, match="0 bytes"):
        inspect_dataset(str(path), html=None)


def test_effective_dimension() -> None:
    source = np.random.default_rng(0).normal(size=(20_000, 3))
    assert effective_dimension(source) == pytest.approx(3, abs=0.01)
    assert effective_dimension(source[:, :1] * np.array([1.0, -5.0, 0.1])) == pytest.approx(1)
    assert effective_dimension(np.concatenate([source, np.ones((20_000, 2))], 1)) == pytest.approx(3, abs=0.01)
    assert effective_dimension(np.ones((5, 2))) == 0


def test_histogram_has_one_line_per_bin() -> None:
    lines = histogram(np.array([0.0, 0.0, 1.0, 10.0]), bins=2, width=6).splitlines()
    assert lines == ["         0.0 ██████ 3", "         5.0 ██     1"]
