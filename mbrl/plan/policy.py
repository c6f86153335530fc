"""A planner as a policy that an evaluator can play."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.nets import generator
from mbrl.plan.objective import ModelReturns
from mbrl.types import Planner


class PlanningPolicy:
    """Plans anew at every step and takes the first action. It is made for one set of episodes, which begin together.

    Args:
        planner: searches.
        returns: what it maximises.
        action_dim: A.
        seeds: of the run; each has its own noise.
        lanes: episodes per seed. Lanes beyond, with which an evaluator fills up, are answered with 0.
        evaluation: makes the noise of every evaluation its own.
        device: of the model.
        on_step: called after every step.
    """

    def __init__(
        self,
        planner: Planner,
        returns: ModelReturns,
        *,
        action_dim: int,
        seeds: Sequence[int],
        lanes: int,
        evaluation: int = 0,
        device: torch.device | str = "cpu",
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.planner, self.returns, self.lanes, self.on_step = planner, returns, lanes, on_step
        self._sources = [generator(seed, "plan", evaluation, device=device) for seed in seeds]
        self._plan = planner.begin(len(seeds), lanes, action_dim, device)
        self._reset = torch.ones_like(self._plan.known)

    @torch.no_grad()
    def __call__(self, obs: Tensor) -> Tensor:
        """obs (S, N, O) with N at least `lanes` -> action (S, N, A)."""
        asked = self.returns.at(obs[:, : self.lanes], self._sources)
        found, self._plan = self.planner(asked, self._plan, self._reset, self._sources)
        self._reset = torch.zeros_like(self._reset)
        self.on_step()
        return F.pad(found[..., 0, :], (0, 0, 0, obs.shape[1] - self.lanes))
