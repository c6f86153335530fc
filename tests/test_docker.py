"""The containers, as far as they can be known without building them; docker/check.sh builds, trains and evaluates."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import LINTERS, load_script, search_path

import mbrl

ROOT = Path(__file__).parents[1]
dockerfile = load_script("dockerfile", "docker")
TEXT = (ROOT / "docker" / "Dockerfile").read_text()
INSTRUCTIONS = dockerfile.instructions(TEXT)
PLAN = dockerfile.plan(TEXT, {})


def rests(name: str) -> list[str]:
    return [one.rest for one in INSTRUCTIONS if one.name == name]


def test_base_image_is_pinned_by_date_and_digest() -> None:
    [base] = rests("FROM")
    tag = re.fullmatch(r"debian:(\w+-\d{8}-slim)@sha256:[0-9a-f]{64}", base)
    assert tag
    assert f"debian:{tag[1]}" in labels()["org.opencontainers.image.base.name"]


def labels() -> dict[str, str]:
    defaults = dict(rest.partition("=")[::2] for rest in rests("ARG"))
    [rest] = rests("LABEL")
    return {name: dockerfile.substitute(value, defaults) for name, value in dockerfile.pairs(rest).items()}


def test_labels() -> None:
    found = labels()
    prefix = "org.opencontainers.image."
    assert set(found) == {
        prefix + name for name in ("title", "description", "licenses", "version", "revision", "base.name")
    }
    assert found[prefix + "version"] == mbrl.__version__
    assert found[prefix + "licenses"] == "Apache-2.0"


def test_ends_as_a_user_who_is_not_root_with_mbrl_as_the_entry_point() -> None:
    call, user, folder, entry, *environment = PLAN[-1]
    assert (call, user, folder, json.loads(entry)) == ("entry", "1000:1000", "/workspace", ["mbrl"])
    # All that is written by default goes into a volume.
    volumes = json.loads(rests("VOLUME")[0])
    written = dict(word.split("=") for word in environment)
    assert written["HOME"] in volumes
    for name in (
        "MBRL_STORE", "MBRL_CACHE", "TORCHINDUCTOR_CACHE_DIR",
        "D4RL_DATASET_DIR", "NEORL_DATASET_DIR", "MINARI_DATASETS_PATH",
    ):  # fmt: skip
        assert any(written[name].startswith(volume) for volume in volumes), name


def test_every_install_obeys_the_constraints_and_torch_comes_first() -> None:
    installs = [command.strip() for rest in rests("RUN") for command in rest.split("&&") if "pip install" in command]
    torch, others, requirements, package = installs
    assert "--no-deps --requirement torch.txt" in torch
    assert "${TORCH_INDEX:+-i " in torch
    assert "--no-deps" in package
    for install in (others, requirements):
        assert "--constraint constraints.txt" in install
    # The version is that of constraints.txt because it is read from there: the Dockerfile names none.
    assert "grep '^torch==' constraints.txt > torch.txt" in TEXT
    assert len(re.findall("^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)) == 1
    assert not re.search(r"torch==\d", TEXT)


def test_a_change_of_the_source_reinstalls_the_package_alone() -> None:
    order = [f"{call[0]} {call[-1] if call[0] == 'copy' else call[3]}" for call in PLAN if call[0] in ("copy", "run")]
    source = next(i for i, call in enumerate(order) if call == "copy mbrl")
    later = [call for call in order[source:] if call.startswith("run")]
    assert later == ["run pip install --no-deps --no-build-isolation ."]


def test_every_source_of_a_copy_is_sent_and_nothing_else() -> None:
    files = dockerfile.context(ROOT)
    copied = [Path(source) for call in PLAN if call[0] == "copy" for source in call[2:-1]]
    for source in copied:
        assert any(source == file or source in file.parents for file in files), source
    for file in files:
        assert any(source == file or source in file.parents for source in copied), file
    assert not [file for file in files if "__pycache__" in file.parts]


def test_requirements_are_those_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")
    requirements = load_script("requirements", "docker")
    content = '[build-system]\nrequires = ["h"]\n[project]\ndependencies = ["a>=1", "b"]\n'
    content += '[project.optional-dependencies]\nx = ["c<3"]\ny = ["d"]\n'
    assert requirements.requirements(content, ["x"]) == ["h", "a>=1", "b", "c<3"]
    extras = next(rest.partition("=")[2] for rest in rests("ARG") if rest.startswith("EXTRAS="))
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert requirements.requirements(pyproject, extras.split(","))
    declared = tomllib.loads(pyproject)["project"]["optional-dependencies"]
    assert set(extras.split(",")) == set(declared) - {"dev", "video"}


def test_reader_substitutes_and_resolves_as_docker_does() -> None:
    text = "FROM a:1\nARG V=1\nARG W\nENV A=x \\\n  # between\n  B=${A}y$V\nWORKDIR /o\nWORKDIR p\n"
    text += "RUN echo $B \\\n && true\n"
    text += 'COPY q r/\nUSER 5:6\nENTRYPOINT ["m", "n"]\n'
    assert dockerfile.plan(text, {"V": "2", "W": "3"}) == [
        ["base", "a:1"],
        ["workdir", "0:0", "/o"],
        ["workdir", "0:0", "/o/p"],
        ["run", "0:0", "/o/p", "echo $B && true", "V=2", "W=3", "A=x", "B=y2"],
        ["copy", "/o/p", "q", "r/"],
        ["entry", "5:6", "/o/p", '["m", "n"]', "A=x", "B=y2"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\nADD b c\n", "line 2: ADD is not understood"),
        ("FROM a\nRUN --mount=type=cache x\n", "line 2: RUN with options"),
        ("FROM a\nRUN x \\\n", "line 2: the file ends in a continued line"),
        ("FROM a\nFROM b\n", "one FROM"),
    ],
)
def test_reader_refuses_what_it_does_not_know(text: str, message: str) -> None:
    with pytest.raises(dockerfile.DockerfileError, match=message):
        dockerfile.plan(text, {})


def test_reader_refuses_an_argument_that_is_not_declared() -> None:
    with pytest.raises(dockerfile.DockerfileError, match="no ARG TORCH"):
        dockerfile.plan(TEXT, {"TORCH": "1"})


def test_ignore_rules(tmp_path: Path) -> None:
    for name in ("a/b.py", "a/__pycache__/b.pyc", "c/d", "c/e", "f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# only\n*\n!a\n!c/d\n**/__pycache__\n")
    assert dockerfile.context(tmp_path) == [Path("a/b.py"), Path("c/d")]


def compose(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker" / name).read_text())
    assert isinstance(content, dict)
    return content


KEYS = {"image", "build", "user", "init", "stop_grace_period", "volumes", "entrypoint", "command", "environment",
        "shm_size", "deploy"}  # fmt: skip


def test_compose_services() -> None:
    services = compose("compose.yaml")["services"]
    assert set(services) == {"train", "sweep", "wandb-offline"}
    volumes = json.loads(rests("VOLUME")[0])
    for service in services.values():
        assert set(service) <= KEYS
        assert service["user"] == "${MBRL_UID:-1000}:${MBRL_GID:-1000}"
        assert [volume.rpartition(":")[2] for volume in service["volumes"]] == volumes
        named = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).partition(":")[0] for volume in service["volumes"]]
        assert set(named) == set(compose("compose.yaml")["volumes"])
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert service["entrypoint"][:2] == ["mbrl", "train"]
    assert "--multirun" in services["sweep"]["entrypoint"]
    assert services["wandb-offline"]["environment"] == {"WANDB_MODE": "offline"}
    assert "logger=[wandb]" in services["wandb-offline"]["entrypoint"]


def test_compose_for_gpus_changes_image_index_and_devices_of_every_service() -> None:
    services = compose("compose.gpu.yaml")["services"]
    assert set(services) == set(compose("compose.yaml")["services"])
    declared = [rest.partition("=")[0] for rest in rests("ARG")]
    for service in services.values():
        assert set(service) == {"image", "build", "deploy"}
        assert service["build"]["args"] == {"TORCH_INDEX": ""}
        assert set(service["build"]["args"]) <= set(declared)
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@LINTERS
def test_lint() -> None:
    environment = {**os.environ, "PATH": search_path()}
    done = subprocess.run([ROOT / "docker" / "check.sh", "--lint"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("docker/Dockerfile is clean\n")
