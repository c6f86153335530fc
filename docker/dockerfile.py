"""The Dockerfile, read for docker/check.sh and its tests.

    python dockerfile.py plan DOCKERFILE [ARG=VALUE ...]    its instructions as calls of shell functions
    python dockerfile.py context FOLDER TARGET              copy what a build would be sent: FOLDER less .dockerignore

It understands what docker/Dockerfile uses and refuses everything else, so that nothing is passed over silently.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER", "VOLUME", "WORKDIR"
}  # fmt: skip


class DockerfileError(ValueError):
    """The file has something that this reader does not know; the message names the line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, the rest with continued lines joined, and the line that it begins on."""

    name: str
    rest: str
    line: int


def instructions(text: str) -> list[Instruction]:
    """The instructions in order; comments and empty lines left out, also between continued lines.

    Raises:
        DockerfileError: an instruction, or a form of one, that is not understood.
    """
    found: list[Instruction] = []
    words, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if words else number
        words += line.strip() if not words else f" {line.strip()}"
        if words.endswith("\\"):
            words = words[:-1].rstrip()
            continue
        name, _, rest = words.partition(" ")
        if name not in KNOWN:
            raise DockerfileError(f"line {start}: {name} is not understood; known are {', '.join(sorted(KNOWN))}")
        if name in ("RUN", "COPY", "FROM") and (rest.startswith(("--", "[")) or "<<" in rest):
            raise DockerfileError(f"line {start}: {name} with options, lists or here-documents is not understood")
        found.append(Instruction(name, rest, start))
        words = ""
    if words:
        raise DockerfileError(f"line {start}: the file ends in a continued line")
    if [one.name for one in found].count("FROM") != 1 or found[0].name != "FROM":
        raise DockerfileError("expected one FROM, as the first instruction")
    return found


def substitute(text: str, values: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced; a name without a value becomes nothing, as Docker does it."""
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda match: values.get(match[1] or match[2], ""), text)


def pairs(text: str) -> dict[str, str]:
    """`A=1 B="two words"` as a dictionary; nothing is substituted."""
    return dict(word.partition("=")[::2] for word in shlex.split(text))


def plan(text: str, given: dict[str, str]) -> list[list[str]]:
    """Calls of shell functions, in order, as lists of words.

    Args:
        text: the Dockerfile.
        given: build arguments.

    Returns:
        `base IMAGE`; `workdir USER FOLDER`; `copy FOLDER SOURCE... TARGET`; `run USER FOLDER COMMAND NAME=VALUE...`;
        and last `entry USER FOLDER JSON-LIST NAME=VALUE...`, with the environment as Docker would set it.

    Raises:
        DockerfileError: see `instructions`; also for a build argument that the file does not declare.
    """
    environment: dict[str, str] = {}
    arguments: dict[str, str] = {}
    calls: list[list[str]] = []
    user, folder, entry = "0:0", "/", "[]"
    unused = set(given)
    for one in instructions(text):
        rest = substitute(one.rest, arguments | environment)
        if one.name == "FROM":
            calls.append(["base", rest])
        elif one.name == "ARG":
            name, equals, default = rest.partition("=")
            unused.discard(name)
            if name in given or equals:
                arguments[name] = given.get(name, default)
        elif one.name == "ENV":
            environment |= {name: substitute(value, arguments | environment) for name, value in pairs(one.rest).items()}
        elif one.name == "USER":
            user = rest
        elif one.name == "WORKDIR":
            folder = str(Path(folder, rest))
            calls.append(["workdir", user, folder])
        elif one.name == "COPY":
            *sources, target = rest.split()
            calls.append(["copy", folder, *sources, target])
        elif one.name == "RUN":
            calls.append(["run", user, folder, one.rest, *assignments(arguments | environment)])
        elif one.name == "ENTRYPOINT":
            entry = json.dumps(json.loads(one.rest))
    if unused:
        raise DockerfileError(f"there is no ARG {', '.join(sorted(unused))}")
    return [*calls, ["entry", user, folder, entry, *assignments(environment)]]


def assignments(values: dict[str, str]) -> list[str]:
    """`NAME=VALUE` of each."""
    return [f"{name}={value}" for name, value in values.items()]


def context(root: Path) -> list[Path]:
    """The files below `root` that a build would be sent, relative to it: the last matching pattern decides."""
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def ignored(path: Path) -> bool:
        answer = False
        for rule in rules:
            pattern = rule.removeprefix("!").strip("/")
            above = [path, *path.parents[:-1]]
            if any(fnmatchcase(str(part), pattern) or matches_below(part, pattern) for part in above):
                answer = not rule.startswith("!")
        return answer

    # Not through folders that no rule lets in: an environment or a folder of runs may hold very many files.
    entered = {rule[1:].strip("/").partition("/")[0] for rule in rules if rule.startswith("!")}
    roots = [path for path in sorted(root.iterdir()) if "*" not in rules or path.name in entered]
    files = [file for top in roots for file in (sorted(top.rglob("*")) if top.is_dir() else [top]) if file.is_file()]
    return [file.relative_to(root) for file in files if not ignored(file.relative_to(root))]


def matches_below(path: Path, pattern: str) -> bool:
    """Whether `**/NAME` means `path`."""
    return pattern.startswith("**/") and fnmatchcase(path.name, pattern[3:])


def main(words: list[str]) -> int:
    """See the module's docstring."""
    match words:
        case ["plan", file, *given]:
            for call in plan(Path(file).read_text(), dict(word.partition("=")[::2] for word in given)):
                print(shlex.join(call))
        case ["context", folder, target]:
            for path in context(Path(folder)):
                (Path(target) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(folder) / path, Path(target) / path)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (DockerfileError, OSError) as error:
        sys.exit(f"dockerfile.py: {error}")
