"""What users install: the wheel, the pins, the verbs as files. `.ci/run` also trains from a freshly installed wheel."""

import os
import runpy
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mbrl
import mbrl.cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mbrl").rglob("*.py")}
    configs = {f"mbrl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert "mbrl/configs/train.yaml" in configs
    data = {f"mbrl/report/{name}" for name in ("page.css", "page.js", "published.yaml")}
    assert names == sources | configs | data | {"mbrl/py.typed"}


def test_wheel_runs_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(
            command, cwd=empty, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert run(sys.executable, "-c", "import mbrl; print(mbrl.__file__)") == str(site / "mbrl" / "__init__.py")
    usage = run(str(site / "bin" / "mbrl"), "--help")
    for script in (ROOT / "scripts").glob("*.py"):
        assert script.stem in usage


@pytest.mark.parametrize("verb", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_script_is_the_verb(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    monkeypatch.setattr(mbrl.cli, "main", received.append)
    monkeypatch.setattr(sys, "argv", [f"scripts/{verb}.py", "seed=3"])
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])  # as Python does; the script takes it off
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / f"{verb}.py"), run_name="__main__")
    assert received == [[verb, "seed=3"]]
    assert stop.value.code is None


def test_version_is_the_installed_one() -> None:
    assert metadata.version("offline-mbrl") == mbrl.__version__


def test_every_requirement_has_a_pin_that_satisfies_it() -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                assert pin.name not in pins, f"constraints.txt pins {pin.name} twice for this Python"
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                pins[pin.name] = specifier.version
    requirements = [Requirement(text) for text in metadata.requires("offline-mbrl") or []]
    assert {"torch", "numpy", "pytest"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        assert requirement.name in pins, f"constraints.txt has no pin for {requirement.name}; add it"
        assert requirement.specifier.contains(pins[requirement.name]), requirement
