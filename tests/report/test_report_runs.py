"""Which runs are found, what is said of those that do not count, and what methods are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run

from mbrl.report.runs import Run, collect, methods_of, short_names
from mbrl.report.tables import tabulate
from mbrl.report.text import tidy_csv
from mbrl.report.views import published_in
from mbrl.rundir import RunDirectory, lock


def one(path: Path) -> Run:
    (run,) = collect([path])
    return run


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    for name in ("a", "deep/er/b", "deep/c"):
        make_run(tmp_path / name, [1.0])
    found = collect([tmp_path / "deep", tmp_path, tmp_path / "a"])
    assert [run.path.name for run in found] == ["a", "c", "b"]
    assert all(run.counts for run in found)


def test_links_are_followed_and_every_run_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere" / "a", [1.0])
    sweep = tmp_path / "sweep"
    make_run(sweep / "b", [1.0])
    (sweep / "link").symlink_to(tmp_path / "elsewhere" / "a")
    (sweep / "again").symlink_to(tmp_path / "elsewhere")
    (sweep / "loop").symlink_to(sweep)
    assert [run.path.resolve().name for run in collect([sweep])] == ["a", "b"]


def test_what_a_file_smoke_says_is_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "made" / "mopo" / "0", [1.0])
    make_run(tmp_path / "made" / "mopo" / "1", [1.0], seeds=[1])
    make_run(tmp_path / "real", [1.0], seeds=[2])
    (tmp_path / "made" / "SMOKE").write_text("tiny settings: the numbers mean nothing\n")
    report = tabulate(collect([tmp_path]))
    assert [run.smoke for run in report.runs] == ["tiny settings: the numbers mean nothing"] * 2 + [""]
    assert report.notes == ("tiny settings: the numbers mean nothing",)
    assert published_in(report) == []
    assert published_in(tabulate(collect([tmp_path / "real"])))
    (tmp_path / "made" / "mopo" / "SMOKE").write_text("nearer")
    assert [run.smoke for run in collect([tmp_path / "made" / "mopo" / "0"])] == ["nearer"]


@pytest.mark.parametrize("reference", [[5.0, 5.0], [1.0], [0.0, "high"]])
def test_references_that_make_no_scores_are_said(tmp_path: Path, reference: list[Any]) -> None:
    path = make_run(tmp_path / "run", [1.0])
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"reference": reference}))
    run = one(path)
    assert (run.status, run.counts) == ("unreadable", False)
    assert f"meta.json: field reference is {reference}, expected two different finite numbers" in run.not_counted
    assert tidy_csv(tabulate([run])).count("\n") == 2


def test_a_path_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        collect([tmp_path])
    with pytest.raises(FileNotFoundError, match="is no folder"):
        collect([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            "running",
            "cut off, or at work on a machine whose locks are not seen here; evaluated up to update 200 of 1,000",
        ),
        ("interrupted", "stopped and saved"),
        ("failed", "TrainingDiverged: too high; evaluated up to update 200 of 1,000"),
        ("odd", "field status is 'odd'"),
    ],
)
def test_unfinished_runs_say_why_and_how_to_go_on(tmp_path: Path, status: str, reason: str) -> None:
    said = {"reason": "TrainingDiverged: too high"} if status == "failed" else {}
    run = one(make_run(tmp_path / "my run", [1.0, 2.0], status=status, composed={"updates": 1000}, **said))
    assert not run.counts
    assert run.status == status
    assert reason in run.not_counted
    assert f"mbrl train resume='{tmp_path / 'my run'}'" in run.way_on


def test_a_run_that_a_process_works_on_is_left_alone(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", [1.0], status="running")
    with lock(path):
        run = one(path)
    assert run.not_counted.startswith("at work; evaluated up to update")
    assert run.way_on == ""


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    (make_run(tmp_path / "a", [1.0]) / "meta.json").write_text("{")
    returns = make_run(tmp_path / "b", [1.0]) / "returns.npz"
    returns.write_bytes(returns.read_bytes()[:50])
    (tmp_path / "c" / ".hydra").mkdir(parents=True)
    runs = collect([tmp_path])
    assert [(run.status, run.counts) for run in runs] == [("unreadable", False)] * 3
    assert "not valid JSON" in runs[0].not_counted
    assert str(tmp_path / "b") in runs[1].not_counted
    assert runs[1].label == "D4RL hopper-medium-v2, evaluated in Hopper-v4"
    assert "no meta.json" in runs[2].not_counted


def test_runs_without_returns(tmp_path: Path) -> None:
    fit = one(make_run(tmp_path / "fit", []))
    assert "only its dynamics model was fitted" in fit.not_counted
    (make_run(tmp_path / "lost", []) / "summary.json").write_text("{}")
    assert one(tmp_path / "lost").not_counted == "its returns.npz is missing"
    collection = one(make_run(tmp_path / "collection", [1.0], collection={"levels": []}))
    assert "a collection of data" in collection.not_counted


def test_a_run_without_environment_has_the_models_estimate(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", [], env=None)
    (path / "metrics.jsonl").write_text('{"update": 1, "model/return": 3.0}\n{"update": 2, "model/return": 4.5}\n')
    run = one(path)
    assert (run.counts, run.estimate) == (False, 4.5)
    assert run.not_counted == "no environment: nothing has scored its policy"


def test_values_that_ran_away_are_a_warning(tmp_path: Path) -> None:
    run = one(make_run(tmp_path / "run", [1.0], runaway={"update": 3, "warning": "mean Q ran away"}))
    assert run.counts
    assert run.warnings == ("mean Q ran away",)


def test_a_run_without_hydra_is_named_by_its_meta(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", seeds=[0], algo="mine", env="Hopper-v4").add_returns(1, [[1.0]])
    run = one(tmp_path / "run")
    assert (run.algo, run.filters, run.given) == ("mine", (), ())


# -- methods -----------------------------------------------------------------------------------------------------------


def names(tmp_path: Path) -> list[str]:
    return [str(method) for method in methods_of(collect([tmp_path]))]


def test_algorithm_and_filters_are_always_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], words=["filter=[morec,ravl]"])
    make_run(tmp_path / "b", [1.0], words=["filter=truncate"])
    make_run(tmp_path / "c", [1.0], words=["filter=[]", "dynamics.members=3"], composed={"dynamics": {"members": 3}})
    assert names(tmp_path) == ["mopo + morec + ravl", "mopo + truncate", "mopo, dynamics.members=3"]


def test_what_all_runs_share_is_not_named(tmp_path: Path) -> None:
    for algo in ("mopo", "mobile"):
        make_run(tmp_path / algo, [1.0], algo=algo, words=["batch_size=64"], composed={"batch_size": 64})
    assert names(tmp_path) == ["mobile", "mopo"]


def test_a_key_that_differs_names_the_runs_that_set_it_and_their_kin(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], words=["rollout.length=1"], composed={"rollout": {"length": 1}})
    make_run(tmp_path / "b", [1.0], composed={"rollout": {"length": "${tuned:rollout_length}"}})
    make_run(tmp_path / "c", [1.0], algo="mobile", composed={"rollout": {"length": "${tuned:rollout_length}"}})
    assert names(tmp_path) == ["mopo, rollout.length=1", "mopo, rollout.length=tuned", "mobile"]


def test_seeds_places_and_machines_make_no_method(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], words=["device=cpu", "run_dir=a", "logger=[wandb]", "wandb.project=x", "threads=2"])
    make_run(tmp_path / "b", [1.0], seeds=[5], words=["store=elsewhere", "+eval.background=false"])
    assert names(tmp_path) == ["mopo", "mopo"]


def test_a_groups_choice_is_a_setting(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], words=["dynamics=single"])
    make_run(tmp_path / "b", [1.0], words=["dynamics=ensemble"])
    make_run(tmp_path / "c", [1.0])
    assert names(tmp_path) == ["mopo, dynamics=single", "mopo, dynamics=ensemble", "mopo, dynamics=ensemble"]


def test_long_names_say_what_tells_them_apart(tmp_path: Path) -> None:
    for size in (1, 2):
        words = [f"batch_size={size}", f"real_ratio={size}", f"rollout.every={size}"]
        composed = {"batch_size": size, "real_ratio": size, "rollout": {"every": size}}
        make_run(tmp_path / str(size), [1.0], words=words, composed=composed)
    short = short_names(methods_of(collect([tmp_path])))
    assert list(short.values()) == ["mopo, batch_size=1, ...", "mopo, batch_size=2, ..."]
    assert str(next(iter(short))) == "mopo, batch_size=1, real_ratio=1, rollout.every=1"
