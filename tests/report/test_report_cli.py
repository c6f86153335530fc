"""`mbrl report` as people use it: terminal, Markdown and CSV."""

from __future__ import annotations

import builtins
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import make_run

from mbrl.cli import main
from mbrl.report import views
from mbrl.report.aggregates import aggregates, improvements
from mbrl.report.runs import collect
from mbrl.report.tables import tabulate
from mbrl.report.text import over_tasks


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on a task with references and on one without; a failed, an interrupted and an unscored run."""
    root = tmp_path_factory.mktemp("sweep")
    draws = np.random.default_rng(0)
    for algo in ("mopo", "mobile"):
        for task, mean in (("hopper-medium-v2", 2000.0), ("pendulum", -500.0)):
            for seed in (0, 1):
                returns = mean + 100 * draws.normal(size=(12, 1, 3))
                make_run(root / algo / task / str(seed), returns, algo=algo, task=task, seeds=[seed])
    make_run(root / "failed", [1.0], status="failed", reason="ValueError: <b>no | good</b>", seeds=[7])
    make_run(root / "interrupted", [1.0, 2.0], status="interrupted", seeds=[8])
    path = make_run(root / "unscored", [], env=None, seeds=[9])
    (path / "metrics.jsonl").write_text('{"update": 1, "model/return": 77.5}\n')
    return root


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def test_terminal_names_everything(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    said = capsys.readouterr().out
    for words in (
        "11 runs, 8 in the tables: 2 tasks, 2 methods, 8 trained seeds; 3 not counted",
        "D4RL hopper-medium-v2, evaluated in Hopper-v4",
        "built-in pendulum, evaluated in Pendulum-v1",
        "score, last 10",
        "return, best, an oracle's choice",
        "the dataset's episodes, mean",
        "raw returns: there are no reference returns to normalise by",
        "not aggregated: built-in pendulum",
        "IQM",
        "Probability of improvement, offline tasks",
        "MOPO, OfflineRL-Kit",
        "published figures were scored in gym -v2 (mujoco-py), these runs in Hopper-v4",
        "ValueError: <b>no | good</b>",
        f"mbrl train resume={sweep / 'interrupted'}",
        "the model's own estimate, which is no return: 77.50",
    ):
        assert words in said


def test_published_figures_can_be_left_out(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.md"
    assert main(["report", str(sweep), "--no-published", "--markdown", str(file)]) == 0
    assert "OfflineRL-Kit" not in capsys.readouterr().out + file.read_text()


@pytest.mark.parametrize(
    "other",
    [
        {"task": "mujoco/hopper/medium-v0"},
        {"dataset": "/data/hopper-medium-v2.hdf5"},
        {"horizon": 500},
        {"online": {"steps": 10, "warm_up": 0, "updates_per_step": 1}},
        {"reference": None},
    ],
    ids=lambda other: next(iter(other)),
)
def test_published_figures_stand_beside_the_very_same_task_only(
    tmp_path: Path, other: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", [1.0], **other)
    assert main(["report", str(tmp_path)]) == 0
    assert "published" not in capsys.readouterr().out


def test_markdown_tables_are_whole(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.md"
    assert main(["report", str(sweep), "--markdown", str(file)]) == 0
    text = file.read_text()
    for section in ("Leaderboard", "Over tasks", "Task by task", "Published on the same datasets",
                    "Runs that do not count", "Runs in the tables", "How it was computed"):  # fmt: skip
        assert f"\n## {section}\n" in text
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|---"):
            width = line.count("|")
            assert lines[i - 1].replace("\\|", "").count("|") == width
            row = i + 1
            while row < len(lines) and lines[row].startswith("|"):
                assert lines[row].replace("\\|", "").count("|") == width, lines[row]
                row += 1
    assert "\\<b>no \\| good\\</b>" in text
    assert f"mbrl report {sweep} --markdown {file}" in text
    again = tmp_path / "again.md"
    assert main(["report", str(sweep), "--markdown", str(again)]) == 0
    assert again.read_text() == text.replace(str(file), str(again))


def test_notes_and_warnings_stand_before_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", [1.0, 2.0], runaway={"warning": "values of 1e9"})
    file = tmp_path / "report.md"
    assert main(["report", str(tmp_path), "--note", "a draft", "--markdown", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 run")
    assert lines[1] == "note: a draft"
    assert lines[2] == f"warning: {tmp_path / 'run'}: values of 1e9"
    text = file.read_text()
    assert text.index("- **note**: a draft") < text.index("- **warning**: ") < text.index("## Leaderboard")


def test_no_number_is_broken_on_80_columns(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["report", str(sweep)]) == 0
    said = capsys.readouterr().out
    report = tabulate(collect([sweep]))
    shown = [views.leaderboard(report, published=False), *(views.task_view(report, task) for task in report.tasks)]
    shown += over_tasks(report, aggregates(report), improvements(report))
    for view in shown:
        for row in view.rows:
            for entry in row[view.names :]:
                assert all(part in said for part in entry.text.replace(" [", "\n[").split("\n")), entry
    assert "OfflineRL-Kit" not in said
    assert "published figures need a wider terminal: --html and --markdown have them" in said
    assert all(len(line) <= 80 for line in said.splitlines() if "±" in line or "[" in line)


def test_a_note_stands_at_the_head(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, table = tmp_path / "r.html", tmp_path / "r.md"
    words = ["--note", "a smoke: <numbers> mean nothing", "--html", str(page), "--markdown", str(table)]
    assert main(["report", str(sweep), *words]) == 0
    assert "note: a smoke: <numbers> mean nothing" in capsys.readouterr().out
    content = page.read_text()
    assert content.index("a smoke: &lt;numbers&gt; mean nothing") < content.index('<section id="leaderboard">')
    assert table.read_text().index("a smoke:") < table.read_text().index("## ")


def test_csv_is_enough_to_compute_the_tables_again(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.csv"
    assert main(["report", str(sweep), "--csv", str(file)]) == 0
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 11
    finals: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["counted"] == "yes":
            finals[row["task"], row["method"]].append(float(row["final_return"]))
            with np.load(Path(row["run"]) / "returns.npz") as saved:
                assert float(row["final_return"]) == pytest.approx(saved["returns"][-10:].mean())
                assert float(row["best_return"]) == pytest.approx(saved["returns"].mean((1, 2)).max())
    report = tabulate(collect([sweep]))
    assert {key: np.mean(values) for key, values in finals.items()} == pytest.approx(
        {key: cell.spread("final_return").mean for key, cell in report.cells.items()}  # type: ignore[union-attr]
    )
    left_out = {row["status"]: row for row in rows if row["counted"] == "no"}
    assert left_out["failed"]["reason"].startswith("ValueError")
    assert left_out["interrupted"]["final_return"] == "1.5"
    assert left_out["finished"]["final_return"] == ""


def test_a_doubled_seed_is_in_the_csv_but_does_not_count(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], started="2026-01-01")
    make_run(tmp_path / "b", [2.0], started="2026-01-02")
    assert main(["report", str(tmp_path), "--csv", str(tmp_path / "report.csv")]) == 0
    with open(tmp_path / "report.csv", newline="") as opened:
        rows = {Path(row["run"]).name: (row["counted"], row["reason"]) for row in csv.DictReader(opened)}
    assert rows == {"a": ("no", "the same seed was run again later"), "b": ("yes", "")}


def test_nothing_but_unfinished_runs_is_a_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", [1.0], status="running")
    file = tmp_path / "report.md"
    assert main(["report", str(tmp_path), "--markdown", str(file)]) == 0
    assert "1 run, 0 in the tables" in capsys.readouterr().out
    assert "cut off, or at work on a machine" in file.read_text()


def test_a_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "give run directories" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "words"), [("rliable", []), ("plotly", ["--html", "page.html"])])
def test_missing_packages_are_said_with_the_way_out(
    module: str, words: list[str], sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ImportError(f"No module named {module!r}")  # also of a broken installation
        return usual(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    status = main(["report", str(sweep), *words])
    said = capsys.readouterr()
    assert "pip install 'offline-mbrl[report]'" in said.out + said.err
    assert status == (1 if words else 0)
    assert ("score, last 10" in said.out) is not bool(words)  # tables need no extra
