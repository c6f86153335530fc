"""How far a candidate next state is to be believed."""

from __future__ import annotations

from types import ModuleType

from mbrl.score import adversarial, baselines, discriminator, fitting, generator, ranking, residual, rows

CODE: tuple[ModuleType, ...] = (
    adversarial, discriminator, generator, baselines, residual, ranking, fitting, rows,
)  # fmt: skip
"""What a fitted score depends on, beside what a fitted model does; see `mbrl.dynamics.store`."""
