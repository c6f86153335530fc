"""Imagination: from real states, act, predict, select, filter, and write the rows that are believed.

Nothing here knows a method. A method is a choice of action source, selector and filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from mbrl.data.ring import ReplayTable
from mbrl.nets import rand, randn, whole_vectors
from mbrl.rollout.filters import FilterChain, tensors
from mbrl.types import ActionSource, DynamicsModel, Imagined, Metrics, Selector, Simulator, StochasticPolicy, Transition

Watch: TypeAlias = Callable[[Transition, Tensor], None]
"""Told of every chunk of lanes: rows (S, h, N, .), and keep (S, h, N) bool. It must leave them as they are."""


@dataclass
class Imagination:
    """The parts of one way to imagine.

    Attributes:
        model: what predicts.
        actions: where actions come from.
        select: which prediction is believed.
        filters: what becomes of a step.
        length: steps per lane, h.
        chunk: lanes that go through all `length` steps together. A CPU wants what its cache holds, a GPU everything.
        simulator: where no filter and no selector looks at the members' spread, one member for each lane is enough.
    """

    model: DynamicsModel
    actions: ActionSource
    select: Selector
    filters: FilterChain
    length: int
    chunk: int
    simulator: Simulator | None = None

    @torch.no_grad()
    def step(
        self, obs: Tensor, alive: Tensor, policy: StochasticPolicy, generators: Sequence[torch.Generator], t: int
    ) -> Imagined:
        """One step of every lane: obs (S, N, O), alive (S, N) bool. Dead lanes compute too and are masked."""
        lanes = obs.shape[-2]
        action, notes, noise = self.act(obs, policy, generators)
        uniform = rand((lanes,), generators)
        return self.filters(self.guess(obs, action, alive, noise, uniform)._replace(notes=notes), t)

    def act(
        self, obs: Tensor, policy: StochasticPolicy, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Metrics, Tensor]:
        """Actions (S, N, A) for obs (S, N, O), what is said of them (S, N), and the selector's noise (S, N, .).

        As many lanes at once as the action source allows: its noise may be thousands of numbers for each.
        """
        size = self.actions.noise_size(obs.shape[-1], self.model.action_dim)
        rest = self.select.noise_size(obs.shape[-1] + 1)
        blocks = obs.split(self.actions.lanes or obs.shape[-2], -2)
        parts: list[tuple[Tensor, Metrics, Tensor]] = []
        for block in blocks:
            noise = randn((block.shape[-2], size + rest), generators)
            action, notes = self.actions(block, policy, self.model, noise[..., :size])
            # A view would hold on to all of a block's noise.
            parts.append((action, notes, noise[..., size:] if len(blocks) == 1 else noise[..., size:].clone()))
        if len(parts) == 1:
            return parts[0]
        actions, all_notes, noises = zip(*parts, strict=True)
        joined = {name: torch.cat([notes[name] for notes in all_notes], -1) for name in all_notes[0]}
        return torch.cat(actions, -2), joined, torch.cat(noises, -2)

    def rows_at_once(self, lanes: int) -> int:
        """Rows, per seed, that the model is asked about together where `lanes` are imagined: what takes the memory."""
        together = min(self.chunk, lanes)
        return max(together, self.actions.rows * min(self.actions.lanes or together, together))

    def guess(self, obs: Tensor, action: Tensor, alive: Tensor, noise: Tensor, uniform: Tensor) -> Imagined:
        """Predict and select, before any filter: noise (S, N, of the selector), uniform (S, N)."""
        if self.simulator is None:
            prediction, elites = self.model.predict(obs, action), self.model.elites
        else:
            prediction = self.simulator.predict_one(obs, action, uniform)
            elites = self.model.elites.new_zeros(len(self.model.elites), 1)
        taken = self.select(obs, action, prediction, elites, noise, uniform)
        terminal = torch.zeros_like(alive)
        return Imagined(
            obs, action, taken.next_obs, taken.reward, terminal, alive, alive, taken.score, prediction, taken
        )

    @torch.no_grad()
    def calibrate(self, obs: Tensor, action: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Find the numbers that filters take from held-out rows: obs (S, N, O), action (S, N, A).

        Once, as soon as model and score are fitted.
        """
        lanes = obs.shape[-2]
        noise = randn((lanes, self.select.noise_size(obs.shape[-1] + 1)), generators)
        alive = torch.ones(obs.shape[:-1], dtype=torch.bool, device=obs.device)
        held_out = self.guess(obs, action, alive, noise, rand((lanes,), generators))
        for part in self.filters.to_calibrate():
            part.calibrate(held_out)

    def fill(
        self,
        table: ReplayTable,
        lanes: int,
        policy: StochasticPolicy,
        generators: Sequence[torch.Generator],
        watch: Watch | None = None,
    ) -> Metrics:
        """Imagine from `lanes` real states per seed and write the kept rows into the table; `watch` may look on.

        Returns metrics (S,): `kept`, rows kept of those that lanes of full length would make; `cut`, steps of living
        lanes that were not believed; of the kept rows `terminal`, the share of terminal ones, and the mean `reward` as
        stored and `score`; and of the steps of living lanes the means of what the action source says.
        """
        seeds = table.seeds
        noted: Metrics = {}
        totals = torch.zeros((6, seeds), device=table.rows.device)
        for begin in range(0, lanes, self.chunk):
            asked = min(self.chunk, lanes - begin)
            width = whole_vectors(asked)  # those beyond `asked` are computed and forgotten
            obs = table.starts(rand((width,), generators, dtype=torch.float64))
            alive = torch.ones((seeds, width), dtype=torch.bool, device=obs.device)
            rows = obs.new_zeros((seeds, self.length, asked, table.width))
            keep = torch.empty((seeds, self.length, asked), dtype=torch.bool, device=obs.device)
            for t in range(self.length):
                step = self.step(obs, alive, policy, generators, t)
                start, action, reached, reward, terminal, _, believed, score = (x[:, :asked] for x in tensors(step))
                imagined = torch.zeros_like(terminal)
                table.pack(Transition(start, action, reward, reached, terminal, imagined), rows[:, t])
                keep[:, t] = believed
                kept = believed.to(obs.dtype)
                totals += torch.stack(
                    [
                        torch.full_like(kept[:, 0], asked),
                        alive[:, :asked].sum(-1),
                        kept.sum(-1),
                        (terminal * kept).sum(-1),
                        (reward * kept).sum(-1),
                        (score * kept).sum(-1),
                    ]
                )
                for name, value in step.notes.items():
                    said = torch.where(alive, value, 0.0)[:, :asked].sum(-1)
                    noted[name] = noted[name] + said if name in noted else said
                obs, alive = step.next_obs, step.alive
            table.write(rows.flatten(1, 2), keep.flatten(1, 2))
            if watch is not None:
                watch(table.unpack(rows), keep)
        asked, lived, kept_rows, terminals, reward, score = totals
        rows_kept = kept_rows.clamp(min=1)
        return {
            "kept": kept_rows / asked,
            "cut": 1.0 - kept_rows / lived,
            "terminal": terminals / rows_kept,
            "reward": reward / rows_kept,
            "score": score / rows_kept,
            **{name: value / lived for name, value in noted.items()},
        }
