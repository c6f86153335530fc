from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mbrl import background
from mbrl.background import Choice, Examiner, Scoring, choose
from mbrl.checkpoint import load_checkpoint, save_checkpoint
from mbrl.evaluate import Evaluation, EvaluationError, Evaluator
from mbrl.learn.sac import SAC

SEEDS = (3, 8)


class Track(gymnasium.Env):
    """A noisy walk whose reward is the product of action and position; it talks, and has faults of several kinds."""

    def __init__(self, fault: str = "", here: int = 0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,))
        self.fault, self.elsewhere = fault, os.getpid() != here

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        print("a line that is no answer", flush=True)
        self.position = self.np_random.normal(size=3)
        self.time = 0
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 4 and self.fault == "raises":
            raise RuntimeError("no more fuel")
        if self.time == 4 and self.fault == "dies elsewhere" and self.elsewhere:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "slow":
            time.sleep(0.05)
        reward = float(action.sum() * self.position.sum())
        self.position += 0.3 * self.np_random.normal(size=3) + 0.2 * float(action[0])
        return self.position.astype(np.float32), reward, bool(self.position[0] > 2), False, {}


def build(recipe: dict[str, Any]) -> Examiner:
    return Examiner(Evaluator(**recipe["evaluator"]), learner(0))


def learner(number: int) -> SAC:
    """A policy of its own for every number; larger than a pipe."""
    return SAC(3, 2, [seed + 100 * number for seed in SEEDS])


def recipe(fault: str = "", episodes: int = 3, horizon: int = 20) -> dict[str, Any]:
    env = {"env": f"{__name__}:Track", "env_kwargs": {"fault": fault, "here": os.getpid()}, "horizon": horizon}
    return {"evaluator": {**env, "episodes": episodes, "seeds": list(SEEDS)}}


def scoring(fault: str = "", *, background: bool = True, say: Callable[[str], None] = print, **more: int) -> Scoring:
    return Scoring(build, recipe(fault, **more), background=background, say=say)


def plain(number: int, fault: str = "") -> Evaluation:
    return Evaluator(**recipe(fault)["evaluator"])(learner(number).act, number)


def assert_is(found: tuple[int, Evaluation] | None, number: int) -> None:
    assert found is not None
    assert found[0] == number
    expected = plain(number)
    for name in ("returns", "lengths", "terminated"):
        ours, theirs = getattr(found[1], name), getattr(expected, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def pid(one: Scoring) -> int:
    assert one._process is not None
    return one._process._popen.pid


def gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Scoring]:
    torch.set_flush_denormal(True)  # as a run does
    made = scoring()
    yield made
    made.close()


def test_results_are_those_of_a_plain_evaluation(elsewhere: Scoring) -> None:
    here = scoring(background=False)
    for one in (elsewhere, here):
        assert one.collect() is None
        for number in (5, 7):
            one.submit(number, learner(number).policy_state())
            assert_is(one.collect(), number)
            assert one.collect() is None
    assert elsewhere.background
    assert not here.background
    here.close()


def test_a_policy_is_that_of_its_submission(elsewhere: Scoring) -> None:
    ours = learner(2)
    elsewhere.submit(2, ours.policy_state())
    for weight in ours.actor:
        weight.zero_()
    assert_is(elsewhere.collect(), 2)


def test_one_at_a_time(elsewhere: Scoring) -> None:
    elsewhere.submit(1, learner(1).policy_state())
    with pytest.raises(RuntimeError, match="evaluation 4: collect evaluation 1 first"):
        elsewhere.submit(4, learner(4).policy_state())
    assert_is(elsewhere.collect(), 1)


def test_signals_to_the_whole_job_do_not_stop_it(elsewhere: Scoring) -> None:
    assert os.getsid(pid(elsewhere)) != os.getsid(0)  # Ctrl-C is sent to a terminal's session
    os.kill(pid(elsewhere), signal.SIGTERM)
    elsewhere.submit(6, learner(6).policy_state())
    os.kill(pid(elsewhere), signal.SIGTERM)
    assert_is(elsewhere.collect(), 6)


def test_what_is_under_way_is_state(tmp_path: Path) -> None:
    first = scoring(background=False)
    assert first.state_dict() == {"number": None, "policy": None}
    first.submit(9, learner(9).policy_state())
    state = load_checkpoint(save_checkpoint(tmp_path, 9, first.state_dict()))
    second = scoring(background=False)
    second.load_state_dict(first.state_dict() | {"number": None})
    assert second.collect() is None
    second.load_state_dict(state)
    for one in (second, first):  # and the first has lost nothing
        assert_is(one.collect(), 9)
        assert one.state_dict() == {"number": None, "policy": None}


def test_training_waits_neither_for_the_start_nor_for_the_episodes() -> None:
    began = time.monotonic()
    slow = scoring("slow", episodes=2, horizon=20)  # 4 s
    slow.submit(0, learner(0).policy_state())
    process = pid(slow)
    slow.close()  # in the middle
    assert time.monotonic() - began < 3.0
    assert gone(process, 1.0)


def test_a_process_that_vanishes_is_replaced_by_this_one(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    one = scoring("dies elsewhere", say=said.append)
    one.submit(1, learner(1).policy_state())
    assert_is(one.collect(), 1)
    assert not one.background
    assert len(said) == 1
    assert "ended (exit status -9)" in said[0]
    assert "played here from now on" in said[0]
    one.submit(2, learner(2).policy_state())
    assert_is(one.collect(), 2)
    assert len(said) == 1
    one.close()


@pytest.mark.parametrize("where", [True, False], ids=["elsewhere", "here"])
def test_an_error_names_seed_episode_and_step(where: bool, capfd: pytest.CaptureFixture[str]) -> None:
    one = scoring("raises", background=where, say=lambda line: None)
    one.submit(0, learner(0).policy_state())
    said = r"Track, seed 3, episode 0, step 3: the environment raised RuntimeError\('no more fuel'\)"
    with pytest.raises(EvaluationError, match=said) as caught:
        one.collect()
    assert isinstance(caught.value.__cause__, RuntimeError)  # with its traceback
    assert "Traceback" not in capfd.readouterr().err
    one.close()


ALONE = """
import sys
sys.path[:0] = {path!r}
import test_background as t  # a script without `if __name__ == "__main__"`
print("once", flush=True)
one = t.scoring("slow", horizon=1000)
one.submit(0, t.learner(0).policy_state())
print(t.pid(one), flush=True)
one.collect()
"""


def test_it_ends_with_the_training_even_in_the_middle(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ALONE.format(path=[str(Path(__file__).parent)]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script)], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "once\n"
        other = int(process.stdout.readline())
        assert any("a line that is no answer" in line for line in process.stderr)  # it plays
        process.kill()
        assert gone(other, 20.0)  # of 300 s
        assert process.stdout.read() == ""


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "usable_cores", lambda: 2)
    assert choose("auto", 1, 10_000) == Choice(True, "2 cores to use, training takes 1")
    assert choose("auto", 2, 10_000) == Choice(False, "2 cores to use, training takes 2")
    assert not choose("auto", 1, 500).background
    assert choose(True, 8, 500) == Choice(True, "as asked")
    assert choose(False, 1, 10_000) == Choice(False, "as asked")
    monkeypatch.setattr(background, "usable_cores", lambda: 1)
    assert choose("auto", 1, 10_000) == Choice(False, "1 core to use, training takes 1")
    with pytest.raises(ValueError, match=r"eval\.background=often is unknown; it is true, false or auto"):
        choose("often", 1, 10_000)  # type: ignore[arg-type]
