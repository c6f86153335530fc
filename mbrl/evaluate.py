"""Score a policy in its environment: all seeds and episodes in lock step, one batched forward per time step."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces

from mbrl.data.tasks import gymnasium_spec, import_object
from mbrl.nets import whole_vectors
from mbrl.types import Policy

_VIDEO_EXTRA = "videos need pip install 'offline-mbrl[video]'"


class EvaluationError(RuntimeError):
    """An environment that cannot be used or fails, or an episode that produced something that is not a number."""


def make_env(
    env: str, env_kwargs: Mapping[str, Any] | None = None, horizon: int | None = None
) -> gymnasium.Env[Any, Any]:
    """An environment with a one-dimensional Box of observations and one of actions.

    Args:
        env: a Gymnasium id; `module:Id`, where importing the module registers the id; or `package.module:factory`, a
            callable or class that returns an environment. Dict and array observations are flattened.
        env_kwargs: keyword arguments of the environment.
        horizon: time limit in steps; default: the registered one. A factory's own limit holds as well.

    Raises:
        TaskError: no such id, module or factory.
        EvaluationError: the environment does not start, or has spaces other than Box.
    """
    kwargs = dict(env_kwargs or {})
    registered = gymnasium_spec(env)
    try:
        with warnings.catch_warnings():
            # v4 is meant: it is what D4RL's numbers can be compared with.
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            if registered is not None:
                limit = {} if horizon is None else {"max_episode_steps": horizon}
                made = gymnasium.make(registered.id, disable_env_checker=True, **limit, **kwargs)
            else:
                made = import_object(env)(**kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        hint = "pip install 'offline-mbrl[mujoco]'" if "mujoco" in str(error).lower() else str(error)
        raise EvaluationError(f"env={env} needs a package that is not installed: {hint}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise EvaluationError(f"env={env} does not start with env_kwargs={kwargs}: {error}") from error
    if not isinstance(made, gymnasium.Env):
        raise EvaluationError(f"env={env} returned a {type(made).__name__}; expected a gymnasium.Env")
    if registered is None and horizon is not None:
        made = gymnasium.wrappers.TimeLimit(made, horizon)
    if not (isinstance(made.action_space, spaces.Box) and len(made.action_space.shape) == 1):
        raise EvaluationError(f"env={env}: actions are {made.action_space}; expected a one-dimensional Box")
    if not _is_box(made.observation_space):
        raise EvaluationError(
            f"env={env}: observations are {made.observation_space}; expected a Box or a Dict of Boxes"
        )
    if not isinstance(made.observation_space, spaces.Box) or len(made.observation_space.shape) != 1:
        made = gymnasium.wrappers.FlattenObservation(made)
    return made


def _is_box(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(_is_box(part) for part in space.values())
    return isinstance(space, spaces.Box)


@dataclass(frozen=True)
class EnvSpec:
    """What data and networks must know of an environment.

    Attributes:
        observation_dim: O, after flattening.
        action_low: (A,) environment units of -1.
        action_high: (A,) environment units of 1.
        horizon: time limit in steps, None if the environment has none.
    """

    observation_dim: int
    action_low: npt.NDArray[np.float64]
    action_high: npt.NDArray[np.float64]
    horizon: int | None


def env_spec(env: str, env_kwargs: Mapping[str, Any] | None = None, horizon: int | None = None) -> EnvSpec:
    """Dimensions, action bounds and time limit of an environment; it is started and closed for this."""
    made = make_env(env, env_kwargs, horizon)
    try:
        return _spec_of(made, horizon)
    finally:
        made.close()


def _spec_of(made: gymnasium.Env[Any, Any], horizon: int | None) -> EnvSpec:
    if horizon is None and made.spec is not None:
        horizon = made.spec.max_episode_steps
    return EnvSpec(
        observation_dim=made.observation_space.shape[0],
        action_low=made.action_space.low.astype(np.float64),
        action_high=made.action_space.high.astype(np.float64),
        horizon=horizon,
    )


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of S seeds.

    Attributes:
        returns: (S, episodes) float64, undiscounted, in the environment's own units.
        lengths: (S, episodes) int64 steps.
        terminated: (S, episodes) bool: ended by the task and not by the time limit.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]


def episode_seed(seed: int, evaluation: int, episode: int) -> int:
    """The reset seed of one episode: the same whenever, and beside whatever else, it is run."""
    return int(np.random.SeedSequence((seed, evaluation, episode)).generate_state(1)[0])


class Evaluator:
    """Runs `episodes` episodes of every seed, always in the same environments.

    All arguments are plain data, so that an evaluator can be built in another process and given parameters there.

    Args:
        env: as for `make_env`.
        episodes: episodes per seed.
        seeds: run seeds, at least 0; their number is the leading axis of what the policy sees.
        horizon: time limit in steps; default: the environment's own.
        env_kwargs: keyword arguments of the environment.
        action_low: (A,) what -1 stands for in environment units; default: the environment's lower bound.
        action_high: (A,) what 1 stands for; default: the environment's upper bound.
        device: where the policy wants its observations.

    Raises:
        TaskError: no such environment.
        EvaluationError: the environment cannot be used, has no time limit, or has actions without bounds.
    """

    def __init__(
        self,
        env: str,
        *,
        episodes: int,
        seeds: Sequence[int],
        horizon: int | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        action_low: npt.NDArray[Any] | None = None,
        action_high: npt.NDArray[Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if episodes < 1 or not seeds:
            raise ValueError(
                f"expected at least one episode and one seed, got episodes={episodes}, seeds={list(seeds)}"
            )
        self.env = env
        self.env_kwargs = dict(env_kwargs or {})
        self.seeds = tuple(seeds)
        self.episodes = episodes
        self.device = torch.device(device)
        self._horizon = horizon
        self._envs = [[make_env(env, env_kwargs, horizon) for _ in range(episodes)] for _ in seeds]
        self.spec = _spec_of(self._envs[0][0], horizon)
        if self.spec.horizon is None:
            self.close()
            raise EvaluationError(f"env={env} has no time limit: give horizon=, the longest episode in steps")
        low = self.spec.action_low if action_low is None else np.asarray(action_low, dtype=np.float64)
        high = self.spec.action_high if action_high is None else np.asarray(action_high, dtype=np.float64)
        expected = self.spec.action_low.shape
        if not (low.shape == high.shape == expected and np.isfinite(low).all() and np.isfinite(high).all()):
            self.close()
            raise EvaluationError(
                f"env={env}: action_low={low} and action_high={high} must be finite and of shape {expected}; for an "
                "unbounded action space give both"
            )
        self._action_middle, self._action_half = (high + low) / 2, (high - low) / 2

    def __call__(self, policy: Policy, evaluation: int) -> Evaluation:
        """Play the evaluation of the given number with a policy obs (S, N, O) float32 -> action (S, N, A) in [-1, 1].

        N is the number of episodes, filled up with zeros to whole vectors. The policy sees the last observation of an
        episode that has ended until all have; what it answers there is not used. Repeating a number repeats its
        episodes.

        Raises:
            EvaluationError: an action, reward or observation is not finite, or the environment raised an exception;
                names seed, episode and step.
        """
        shape = (len(self.seeds), self.episodes)
        obs = np.empty((*shape, self.spec.observation_dim), dtype=np.float32)
        for s, e in np.ndindex(shape):
            with self._naming(s, e, 0):
                obs[s, e], _ = self._envs[s][e].reset(seed=episode_seed(self.seeds[s], evaluation, e))
        returns = np.zeros(shape)
        lengths = np.zeros(shape, dtype=np.int64)
        terminated = np.zeros(shape, dtype=np.bool_)
        active = np.ones(shape, dtype=np.bool_)
        step = 0
        while active.any():
            self._check("observation", np.isfinite(obs).all(-1) | ~active, step)
            actions = self._act(policy, obs, active, step)
            for s, e in np.argwhere(active):
                with self._naming(s, e, step):
                    obs[s, e], reward, terminated[s, e], truncated, _ = self._envs[s][e].step(actions[s, e])
                returns[s, e] += float(reward)
                lengths[s, e] += 1
                active[s, e] = not (terminated[s, e] or truncated)
            self._check("reward", np.isfinite(returns), step)
            step += 1
        return Evaluation(returns, lengths, terminated)

    def check_video(self, path: str | Path) -> None:
        """Find out before any work whether `record_video` can write to `path`; renders one frame.

        Raises:
            EvaluationError: neither .mp4 nor .gif, no such folder, the environment cannot be rendered, or imageio or
                its encoder is missing.
        """
        self._filmed_env(Path(path)).close()

    def record_video(
        self, policy: Policy, path: str | Path, *, evaluation: int = 0, seed_index: int = 0, episode: int = 0
    ) -> Evaluation:
        """Play an evaluation like `__call__` and write one of its episodes to `path` (.mp4 or .gif).

        Raises:
            EvaluationError: as for `check_video`.
        """
        filmed = self._filmed_env(Path(path))
        import imageio.v2 as imageio

        fps = filmed.metadata.get("render_fps", 30)
        # The two encoders name the same thing differently.
        timing = {"duration": 1000 / fps, "loop": 0} if Path(path).suffix.lower() == ".gif" else {"fps": fps}
        writer: Any = imageio.get_writer(path, **timing)
        plain = self._envs[seed_index][episode]
        self._envs[seed_index][episode] = _Filmed(filmed, writer.append_data)
        try:
            return self(policy, evaluation)
        finally:
            self._envs[seed_index][episode] = plain
            writer.close()
            filmed.close()

    def _filmed_env(self, path: Path) -> gymnasium.Env[Any, Any]:
        """An environment that renders arrays, once it is sure that they can be written to `path`."""
        suffix = path.suffix.lower()
        if suffix not in (".mp4", ".gif"):
            raise EvaluationError(f"video {path}: expected a name that ends in .mp4 or .gif")
        if not path.absolute().parent.is_dir():
            raise EvaluationError(f"video {path}: there is no folder {path.parent}")
        try:
            importlib.import_module("imageio.v2")
            if suffix == ".mp4":
                importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            raise EvaluationError(f"video {path}: {error}; {_VIDEO_EXTRA}") from error
        filmed = make_env(self.env, {**self.env_kwargs, "render_mode": "rgb_array"}, self._horizon)
        try:
            filmed.reset(seed=0)
            frame = filmed.render()
        except gymnasium.error.DependencyNotInstalled as error:
            filmed.close()
            raise EvaluationError(f"env={self.env} cannot be rendered: {error}; {_VIDEO_EXTRA}") from error
        except Exception as error:
            filmed.close()
            raise EvaluationError(
                f"env={self.env} cannot be rendered here: {error!r}; without a display MuJoCo needs the environment "
                "variable MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from error
        if not isinstance(frame, np.ndarray):
            filmed.close()
            raise EvaluationError(f"env={self.env} renders {type(frame).__name__}; expected an array (rgb_array)")
        return filmed

    def close(self) -> None:
        """Close all environments."""
        for row in self._envs:
            for env in row:
                env.close()

    def _act(self, policy: Policy, obs: npt.NDArray[np.float32], active: npt.NDArray[np.bool_], step: int) -> Any:
        """Policy output in [-1, 1] as environment actions (S, episodes, A), clipped to the environment's bounds."""
        with torch.inference_mode():
            spare = whole_vectors(obs.shape[1]) - obs.shape[1]
            padded = F.pad(torch.from_numpy(obs).to(self.device), (0, 0, 0, spare))
            answer = policy(padded)[:, : obs.shape[1]].cpu().double().numpy()
        expected = (*active.shape, *self.spec.action_low.shape)
        if answer.shape != expected:
            raise ValueError(f"the policy returned actions of shape {answer.shape}; expected {expected}")
        self._check("action", np.isfinite(answer).all(-1) | ~active, step)
        scaled = self._action_middle + self._action_half * answer
        dtype = self._envs[0][0].action_space.dtype
        return np.clip(scaled, self.spec.action_low, self.spec.action_high).astype(dtype)

    def _check(self, what: str, good: npt.NDArray[np.bool_], step: int) -> None:
        if not good.all():
            s, e = np.argwhere(~good)[0]
            raise EvaluationError(f"{self._where(s, e, step)}: the {what} is not finite")

    @contextlib.contextmanager
    def _naming(self, s: int, e: int, step: int) -> Iterator[None]:
        """An environment does not know which of many it is: say where it failed."""
        try:
            yield
        except Exception as error:
            raise EvaluationError(f"{self._where(s, e, step)}: the environment raised {error!r}") from error

    def _where(self, s: int, e: int, step: int) -> str:
        return f"env={self.env}, seed {self.seeds[s]}, episode {e}, step {step}"


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc]
    """Hands every frame on as it is rendered: a long episode does not fit into memory."""

    def __init__(self, env: gymnasium.Env[Any, Any], write: Callable[[Any], None]) -> None:
        super().__init__(env)
        self._write = write

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self._write(self.env.render())
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._write(self.env.render())
        return result
