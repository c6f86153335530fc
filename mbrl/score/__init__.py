"""How far a candidate next state is to be believed."""

from __future__ import annotations

from types import ModuleType

from mbrl.score import baselines, fitting, ranking, residual, rows

CODE: tuple[ModuleType, ...] = (baselines, residual, ranking, fitting, rows)
"""What a fitted score depends on, beside what a fitted model does; see `mbrl.dynamics.store`."""
