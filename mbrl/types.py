"""The map of the house: names and shapes of all tensors that travel between parts, and what each part must offer.

Leading axes are written `*`: `()` or `(S,)` for stacked seeds. `E` members or critics, `K` candidates, `N` imagined
lanes, `B` batch, `O, A, Z` observation, action and encoded observation. Rows are axis -2 of a matrix and -1 of a
vector; `E` or `K` sits just before the rows. Code is written on trailing axes, so one seed and eight seeds
are the same code: losses are means over rows and sums over members and seeds, which makes stacked training *be*
separate training.

Randomness is an argument. Whoever needs noise says how much (`noise_size`), the loop draws it from one generator per
seed and hands it in, so that a seed's run does not depend on which other seeds run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from mbrl.nets import CriticPass

Metrics: TypeAlias = dict[str, Tensor]
"""Name -> `()` or `(S,)`, on the device. Only the logger reads numbers from it."""

Policy: TypeAlias = Callable[[Tensor], Tensor]
"""obs (*, N, O) -> action (*, N, A) in [-1, 1]."""

StochasticPolicy: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""obs (*, N, O), standard normal noise (*, N, A) -> action (*, N, A) in [-1, 1]."""

QFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""obs (*, B, O), action (*, B, A) -> value (*, E, B)."""

Termination: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""obs (*, N, O), action (*, N, A) in [-1, 1], next_obs (*, N, O) -> terminal (*, N) bool; nothing is normalised."""

SequenceReturns: TypeAlias = Callable[[Tensor], Tensor]
"""Action sequences (S, N, P, H, A) in [-1, 1], P for every lane -> what each is worth, (S, N, P)."""

StateDict: TypeAlias = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, strings and None: what `torch.load(weights_only=True)` can read."""


class Transition(NamedTuple):
    """Real or imagined steps; a whole dataset or a minibatch."""

    obs: Tensor  # (*, B, O)
    action: Tensor  # (*, B, A) in [-1, 1]
    reward: Tensor  # (*, B)
    next_obs: Tensor  # (*, B, O)
    terminal: Tensor  # (*, B) bool: the task ended, value after it is 0. Never a time limit, never mere distrust
    real: Tensor  # (*, B) bool: from the dataset


class Prediction(NamedTuple):
    """What every member of a model says of the next step, in environment units; the last column is the reward."""

    mean: Tensor  # (*, E, N, O+1)
    std: Tensor  # (*, E, N, O+1)

    def of(self, members: Tensor) -> Prediction:
        """What only `members` (*, k) say: mean and std (*, k, N, O+1)."""
        index = members[..., None, None]
        return Prediction(torch.take_along_dim(self.mean, index, -3), torch.take_along_dim(self.std, index, -3))


class Guess(NamedTuple):
    """What every member says of a step, and which next state was taken: all that an uncertainty is a function of.

    Measures of the spread alone look at `mean` and `std`, and take a `Prediction` as well.
    """

    mean: Tensor  # (*, E, N, O+1) as in Prediction
    std: Tensor  # (*, E, N, O+1)
    next_obs: Tensor  # (*, N, O) as the selector took it: no filter has changed it
    member: Tensor  # (*, N) int64, below E: the member whose sample that is; see `Selected`


class Selected(NamedTuple):
    """What a selector believes of a step."""

    next_obs: Tensor  # (*, N, O)
    reward: Tensor  # (*, N)
    score: Tensor  # (*, N) its trust, 0 if it has none
    member: Tensor  # (*, N) int64, whose sample it is, an index of E; of a mean, which no member made, a random elite


class Imagined(NamedTuple):
    """One imagined step of N lanes. The width never shrinks: dead lanes compute and are masked."""

    obs: Tensor  # (*, N, O)
    action: Tensor  # (*, N, A)
    next_obs: Tensor  # (*, N, O)
    reward: Tensor  # (*, N)
    terminal: Tensor  # (*, N) bool: Bellman stop
    alive: Tensor  # (*, N) bool: the lane goes on after this step
    keep: Tensor  # (*, N) bool: the row may enter the ring
    score: Tensor  # (*, N) the selector's trust, 0 if it has none
    prediction: Prediction
    selected: Selected  # what the selector took, before any filter
    notes: Metrics = {}  # noqa: RUF012  # what the action source says of its choices: (*, N) each

    @property
    def guess(self) -> Guess:
        """What an uncertainty is a function of."""
        return Guess(*self.prediction, self.selected.next_obs, self.selected.member)


class Plan(NamedTuple):
    """All that a planner remembers of its lanes from one step to the next: the caller holds it, the planner nothing."""

    solution: Tensor  # (S, N, H, A) where the next search begins: the last one's end, moved on by a step
    kept: Tensor  # (S, N, k, H, A) good sequences to try again, moved on by a step
    known: Tensor  # (S, N) bool: the lane has a past; `kept` means nothing where it has none


class Batch(NamedTuple):
    """One update's minibatch. Rows are real first, then imagined: `rows[..., :real_rows, :]` are the real ones."""

    transition: Transition
    real_rows: int


@runtime_checkable
class Stateful(Protocol):
    """Anything that a checkpoint must hold."""

    def state_dict(self) -> StateDict:
        """All state that the next update depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; raise `ValueError` if a shape does not fit."""
        ...


@runtime_checkable
class Fittable(Stateful, Protocol):
    """What is fitted once and kept in the store: every tensor of its state has a leading seed axis."""

    seeds: tuple[int, ...]

    @property
    def fit(self) -> Callable[..., None]:
        """`fit(*inputs, on_progress=None, should_stop=..., resume=None)`; see `mbrl.dynamics.store`."""
        ...


class DynamicsModel(Protocol):
    """A one-step model. Forward or reverse: the caller swaps obs and next_obs."""

    members: int
    action_dim: int
    elites: Tensor  # (S, K) indices of the members that serve as the simulator

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """All members at once: obs (*, N, O), action (*, N, A) -> mean, std (*, E, N, O+1)."""
        ...


class Simulator(Protocol):
    """A model that answers for each lane with one of its elites, where nobody asks how much they differ."""

    def predict_one(self, obs: Tensor, action: Tensor, uniform: Tensor) -> Prediction:
        """obs (S, N, O), action (S, N, A), uniform (S, N) in [0, 1) -> mean, std (S, 1, N, O+1)."""
        ...


class EliteModel(DynamicsModel, Simulator, Protocol):
    """The elites of a model, all or one for each lane."""


class RunModel(DynamicsModel, Protocol):
    """A model as a run holds it. What is `Fittable` besides is fitted first, or taken from the store."""

    seeds: tuple[int, ...]
    obs_dim: int
    elite_count: int
    device: torch.device
    change_std: (
        Tensor  # (S, 1, 1, O+1) of the changes and rewards it was fitted on, set in place; 1 where there are none
    )

    def elite_view(self) -> EliteModel:
        """The elites as a model of their own."""
        ...


class ActionSource(Protocol):
    """Where actions come from: imagined ones, or those that are tried in an environment."""

    @property
    def lanes(self) -> int | None:
        """How many lanes it may be asked about at once, so that memory stays bounded; None for any number."""
        ...

    @property
    def rows(self) -> int:
        """Rows of the model that it looks at together for each of them."""
        ...

    def noise_size(self, obs_dim: int, action_dim: int) -> int:
        """Standard normal numbers needed per lane and step."""
        ...

    def __call__(
        self, obs: Tensor, policy: StochasticPolicy, model: DynamicsModel, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Choose, each lane for itself.

        Args:
            obs: (S, N, O).
            policy: the learner's, for as many rows as it likes.
            model: what it may ask.
            noise: (S, N, noise_size) standard normal.

        Returns:
            action (S, N, A), and what is to be logged of the choices, each (S, N).
        """
        ...


class Planner(Protocol):
    """A search over sequences of H actions for each of N lanes."""

    horizon: int

    def begin(self, seeds: int, lanes: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan of lanes that know nothing."""
        ...

    def __call__(
        self, returns: SequenceReturns, plan: Plan, reset: Tensor, sources: Sequence[torch.Generator]
    ) -> tuple[Tensor, Plan]:
        """Search.

        Args:
            returns: what sequences are worth; one whose worth is not finite is never chosen.
            plan: of the step before; not written to.
            reset: (S, N) bool, lanes whose episode begins now: what `plan` says of them is forgotten.
            sources: one generator per seed.

        Returns:
            The sequence found (S, N, H, A), whose first action is meant to be taken, and the plan of the next step.
        """
        ...


class Selector(Protocol):
    """Which next state is believed: draws candidates from the members' predictions and picks one."""

    def noise_size(self, outputs: int) -> int:
        """Standard normal numbers needed per lane and step, for `outputs` = O+1."""
        ...

    def __call__(
        self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor, noise: Tensor, uniform: Tensor
    ) -> Selected:
        """prediction (S, E, N, O+1), elites (S, k) indices of E, noise (S, N, noise_size), uniform (S, N) in [0, 1)."""
        ...


class Score(Protocol):
    """How far a candidate next state is to be believed. Higher is better."""

    def __call__(
        self, obs: Tensor, action: Tensor, candidates: Tensor, prediction: Prediction, elites: Tensor
    ) -> Tensor:
        """Rate candidates that are not normalised.

        Args:
            obs: (S, N, O).
            action: (S, N, A).
            candidates: next observation and reward, (S, K, N, O+1).
            prediction: what every member says, (S, E, N, O+1).
            elites: (S, k) indices of the members that serve as the simulator.

        Returns:
            (S, K, N); comparable within one lane always, across lanes as far as the score says so.
        """
        ...


@runtime_checkable
class Corrector(Protocol):
    """A score that knows by how much the model is wrong, and can say what it would believe itself."""

    def correct(self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor) -> Tensor:
        """The corrected mean of the elites' next observations: shapes as in `Score`, returns (S, N, O)."""
        ...


class Filter(Protocol):
    """One pure step of belief: same shapes out as in, `keep` and `alive` never go from False to True."""

    def __call__(self, step: Imagined, t: int) -> Imagined:
        """`t` counts imagined steps from 0."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A filter that may have a number in it which depends on the fitted model."""

    @property
    def asks_held_out(self) -> bool:
        """Whether that number is to be found on held-out rows, before the filter is called."""
        ...

    def calibrate(self, held_out: Imagined) -> None:
        """Find it: steps (S, N, .) from rows that the model has not seen, with the logged actions, unfiltered."""
        ...


class Encoder(Protocol):
    """Observation as the learner's networks see it."""

    def size(self, obs_dim: int) -> int:
        """Z for a given O."""
        ...

    def __call__(self, obs: Tensor) -> Tensor:
        """obs (*, B, O) -> z (*, B, Z)."""
        ...


class Backup(Protocol):
    """How the critics' opinions become one value: in the Bellman target, and for the actor."""

    def noise_size(self, critics: int) -> int:
        """Standard normal numbers needed per seed and update; raise `ValueError` for too few critics."""
        ...

    def __call__(self, next_q: Tensor, noise: Tensor) -> Tensor:
        """The target's side: next_q (*, E, B), noise (*, noise_size) -> (*, B)."""
        ...

    def objective(self, q: Tensor) -> Tensor:
        """What the actor maximises: q (*, E, B) -> (*, B), differentiable."""
        ...


class TargetPenalty(Protocol):
    """What is taken off the Bellman target of a batch."""

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """Standard normal numbers needed per seed and update."""
        ...

    def __call__(self, batch: Batch, target_q: QFunction, policy: StochasticPolicy, noise: Tensor) -> Tensor:
        """The target critics, the policy and noise (S, noise_size) -> penalty (S, B), at least 0."""
        ...


class Regulariser(Protocol):
    """A term added to the critic loss."""

    standardised: bool  # whether it asks for the std of observations, which the learner then keeps with its state

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """Standard normal numbers needed per seed and update; `obs_dim` is Z, what the critics see."""
        ...

    def __call__(self, opinion: CriticPass, noise: Tensor, observation_std: Tensor) -> Tensor:
        """A loss of every seed, (S,), differentiable in the critics' parameters.

        Args:
            opinion: the critics' forward pass on the batch's own actions.
            noise: (S, noise_size).
            observation_std: (S, Z), the unit of a step from one observation to another; 0 where nothing ever varies.
        """
        ...


class Learner(Stateful, Protocol):
    """A policy with an update rule, for the stacked `seeds`."""

    seeds: tuple[int, ...]
    observation_std: Tensor  # (S, Z) the unit of regularisers that move observations; whoever knows the data sets it

    def noise_size(self, batch_size: int) -> int:
        """Standard normal numbers that one update needs per seed."""
        ...

    def update(self, batch: Batch, noise: Tensor, progress: Tensor) -> Metrics:
        """One gradient step. noise (S, noise_size), progress () in [0, 1] of the whole run (schedules)."""
        ...

    def act(self, obs: Tensor, *, mode: Literal["sample", "mean"] = "mean", noise: Tensor | None = None) -> Tensor:
        """obs (S, N, O) -> action (S, N, A); `sample` needs noise (S, N, A)."""
        ...

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The stochastic policy: obs (S, N, O), noise (S, N, A) -> action (S, N, A)."""
        ...

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """The critics' opinions: obs (S, B, O), action (S, B, A) -> (S, E, B)."""
        ...

    def weights(self) -> list[Tensor]:
        """Everything that is trained; it must stay finite."""
        ...

    def policy_state(self) -> StateDict:
        """What `act` depends on, and no more: a copy on the CPU, which another process can act by."""
        ...

    def load_policy_state(self, state: Mapping[str, Any]) -> None:
        """Act like the learner that gave `state`; raise `ValueError` if a shape does not fit."""
        ...


class Logger(Protocol):
    """Collects metrics without a host sync; `flush` is the one place that reads numbers."""

    def add(self, metrics: Metrics, prefix: str = "") -> None:
        """Accumulate; the mean since the last flush is reported."""
        ...

    def log_event(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that are known now, e.g. scores; they join the row of update `step`."""
        ...

    def flush(self, step: int) -> dict[str, float]:
        """Write the row of update `step` to every sink and return the means."""
        ...
