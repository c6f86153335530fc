"""Evaluations beside the training: a process of its own plays the episodes with a copy of the policy.

What is submitted at one evaluation is collected at the next one or at the end of the run, whether or not it is done
before: so nothing that a run writes depends on how fast either process is. The process saves time and no more. If it
ends by itself, the same episodes are played here, and an error in them shows itself here.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NoReturn

import torch

from mbrl.data.tasks import TaskError, import_object
from mbrl.evaluate import Evaluation, EvaluationError, Evaluator
from mbrl.types import Learner, StateDict

# Importing torch and making environments takes a process some 2 s: a run that is over in that time gains nothing.
WORTH_A_PROCESS = 2_000


@dataclass(frozen=True)
class Choice:
    """Whether evaluations are played in the background, and why."""

    background: bool
    reason: str


def choose(asked: bool | Literal["auto"], threads: int, updates: int) -> Choice:
    """Settle `auto` by cores and length of the run.

    Args:
        asked: what was asked for.
        threads: CPU threads of the training.
        updates: length of the run.

    Raises:
        ValueError: neither a bool nor auto.
    """
    if asked not in (True, False, "auto"):
        raise ValueError(f"eval.background={asked} is unknown; it is true, false or auto")
    if asked != "auto":
        return Choice(bool(asked), "as asked")
    if updates < WORTH_A_PROCESS:
        return Choice(False, f"{updates:,} updates are done before a second process would have paid")
    cores = usable_cores()
    noun = "core" if cores == 1 else "cores"
    return Choice(cores > threads, f"{cores} {noun} to use, training takes {threads}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Examiner:
    """Plays evaluations of a policy that comes as state, on the CPU and one thread.

    The same in every process: the device and the threads of the training would round differently.

    Args:
        evaluator: its environments, for observations on the CPU.
        learner: on the CPU; only its policy is used, and that is overwritten.
    """

    def __init__(self, evaluator: Evaluator, learner: Learner) -> None:
        self.evaluator, self.learner = evaluator, learner

    def __call__(self, number: int, policy: StateDict) -> Evaluation:
        """Play the evaluation of the given number with the policy of a `Learner.policy_state`.

        Raises:
            EvaluationError: as for `Evaluator`.
        """
        self.learner.load_policy_state(policy)
        with _one_thread():
            return self.evaluator(self.learner.act, number)

    def close(self) -> None:
        """Close the environments."""
        self.evaluator.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Scoring:
    """The evaluations of one run, one at a time: `submit`, go on, `collect`.

    Args:
        build: a function at the top level of a module, which another process can import: recipe -> examiner.
        recipe: whatever `build` needs, as plain data.
        background: play in a process of its own, which starts now; else here, when the result is collected.
        say: told, in a line, if that process ends by itself.
    """

    def __init__(
        self, build: Callable[[StateDict], Examiner], recipe: StateDict, *, background: bool, say: Callable[[str], None]
    ) -> None:
        self._build, self._recipe, self._say = build, recipe, say
        self._pending: tuple[int, StateDict] | None = None
        self._examiner: Examiner | None = None
        self._process = _Process(build, recipe) if background else None

    @property
    def background(self) -> bool:
        """Whether there is a process of its own."""
        return self._process is not None

    def submit(self, number: int, policy: StateDict) -> None:
        """Have a policy scored; returns at once. `policy` must not change any more.

        Raises:
            RuntimeError: the evaluation before has not been collected.
        """
        if self._pending is not None:
            raise RuntimeError(f"evaluation {number}: collect evaluation {self._pending[0]} first")
        self._pending = number, policy
        if self._process is not None:
            self._process.send({"number": number, "policy": policy})

    def collect(self) -> tuple[int, Evaluation] | None:
        """Number and result of what was submitted, as soon as it is done; None if nothing was.

        Raises:
            EvaluationError: as for `Evaluator`.
        """
        if self._pending is None:
            return None
        number, policy = self._pending
        answer = None if self._process is None else self._process.receive()
        if self._process is not None and answer is None:
            status = self._process.close(kill=False)
            self._process = None
            self._say(
                f"note: the process that played the evaluations ended (exit status {status}); they are played here "
                "from now on"
            )
        if answer is None:
            self._examiner = self._examiner or self._build(self._recipe)
            evaluation = self._examiner(number, policy)
        else:
            evaluation = Evaluation(**{name: value.numpy() for name, value in answer.items()})
        self._pending = None
        return number, evaluation

    def close(self) -> None:
        """End the process and close the environments; what is under way is dropped."""
        if self._process is not None:
            self._process.close(kill=self._pending is not None)
            self._process = None
        if self._examiner is not None:
            self._examiner.close()
            self._examiner = None

    def state_dict(self) -> StateDict:
        """What has been submitted and not collected: a resumed run plays it again, to the same result."""
        if self._pending is None:
            return {"number": None, "policy": None}
        number, policy = self._pending
        return {"number": number, "policy": policy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Submit what was under way."""
        if state["number"] is not None:
            self.submit(state["number"], state["policy"])


class _Process:
    """The other process as seen from here.

    A plain command and its pipes: what `multiprocessing` spawns would run the user's script again to import it.
    """

    def __init__(self, build: Callable[[StateDict], Examiner], recipe: StateDict) -> None:
        # SIGTERM may be sent to a whole job. Ctrl-C reaches the terminal's own session only.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"from {__name__} import serve; serve()"
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._sender: threading.Thread | None = None
        self._write({"build": f"{build.__module__}:{build.__qualname__}", "recipe": recipe})

    def send(self, message: StateDict) -> None:
        """Returns at once: a policy is larger than a pipe, and the process may still be starting."""
        self._sender = threading.Thread(target=self._write, args=(message,), daemon=True)
        self._sender.start()

    def _write(self, message: StateDict) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):  # if the process is gone, so is its answer: `receive` finds out
            _write_message(self._popen.stdin, message)

    def receive(self) -> StateDict | None:
        """Wait for the next answer; None if there will be none."""
        assert self._popen.stdout is not None
        return _read_message(self._popen.stdout)

    def close(self, *, kill: bool) -> int:
        """End the process, orderly or at once; its exit status."""
        if kill:
            self._popen.kill()
        if self._sender is not None:  # has done its work, or finds nobody to write to
            self._sender.join()
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        try:
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self._popen.stdout.close()
        return self._popen.wait()


def serve() -> NoReturn:
    """What the other process does until this one closes its pipe or is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an environment prints must not come between the answers
    status = 1
    try:
        _serve(answers)
        status = 0
    except (EvaluationError, TaskError) as error:
        print(error, file=sys.stderr)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # an orderly exit would wait for the thread that waits for messages


def _serve(answers: BinaryIO) -> None:
    torch.set_flush_denormal(True)  # as the training does
    messages: queue.SimpleQueue[StateDict | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    first = messages.get()
    if first is None:
        return
    examiner: Examiner = import_object(first["build"])(first["recipe"])
    while (task := messages.get()) is not None:
        result = examiner(task["number"], task["policy"])
        _write_message(answers, {name: torch.from_numpy(value) for name, value in vars(result).items()})
    examiner.close()


def _listen(messages: queue.SimpleQueue[StateDict | None]) -> None:
    while (message := _read_message(sys.stdin.buffer)) is not None:
        messages.put(message)
    messages.put(None)
    time.sleep(2)
    os._exit(1)  # nobody waits for the end of this evaluation


def _write_message(file: Any, message: StateDict) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    data = buffer.getvalue()
    file.write(len(data).to_bytes(8, "big") + data)
    file.flush()


def _read_message(file: Any) -> StateDict | None:
    """None if the other side has closed the pipe, or died within a message."""
    head = file.read(8)
    size = int.from_bytes(head, "big")
    body = file.read(size)
    if len(head) < 8 or len(body) < size:
        return None
    message: StateDict = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return message
