"""Adam on explicit gradients: parameters, moments and step count are plain tensors that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from mbrl.types import StateDict


class Adam:
    """Adam (Kingma & Ba 2015) over `params`, updated in place from gradients handed to `step`.

    Adam is elementwise, so parameters stacked along leading axes (seeds, members, critics) are optimised exactly as if
    each had its own optimiser. Bit for bit so along the first axis, the seeds: the fused kernel rounds the last few
    numbers of a tensor, which fill no vector, in another way than the rest, and small tensors are handed to it one seed
    at a time.
    """

    VECTOR = 16  # float32 numbers that the widest vector holds

    def __init__(
        self,
        params: Sequence[Tensor],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.params = list(params)
        self.learning_rate = torch.tensor(learning_rate, device=self.params[0].device)
        self.betas = betas
        self.epsilon = epsilon
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self._apart = [p.shape[:1] > (1,) and p[0].numel() % self.VECTOR != 0 for p in self.params]
        self.steps = [
            torch.zeros(p.shape[:1] if apart else (), device=p.device)
            for p, apart in zip(self.params, self._apart, strict=True)
        ]

    def step(self, grads: Sequence[Tensor], scale: Tensor | None = None) -> None:
        """One step along `grads` (same shapes as `params`); `scale` () multiplies the learning rate (schedules)."""
        learning_rate = self.learning_rate if scale is None else self.learning_rate * scale
        if torch.compiler.is_compiling():
            self._written_out(grads, learning_rate)
            return
        adam(
            self._pieces(self.params),
            # The fused kernel walks through memory: a gradient with other strides would be applied transposed.
            self._pieces([grad.contiguous() for grad in grads]),
            self._pieces(self.first),
            self._pieces(self.second),
            [],
            self._pieces(self.steps),
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=False,
        )

    def _pieces(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor for each parameter, or one for each of its seeds."""
        if not any(self._apart):
            return list(tensors)
        pieces: list[Tensor] = []
        for tensor, apart in zip(tensors, self._apart, strict=True):
            pieces += tensor.unbind(0) if apart else [tensor]
        return pieces

    def _written_out(self, grads: Sequence[Tensor], learning_rate: Tensor) -> None:
        """The same step in elementary operations, which a compiler fuses into one kernel a tensor."""
        beta1, beta2 = self.betas
        for param, grad, first, second, steps in zip(
            self.params, grads, self.first, self.second, self.steps, strict=True
        ):
            steps.add_(1)
            count = steps.view(-1, *[1] * (param.dim() - 1)) if steps.dim() else steps
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            root = (second / (1 - beta2**count)).sqrt() + self.epsilon
            param.sub_(learning_rate / (1 - beta1**count) * first / root)

    def state_dict(self) -> StateDict:
        """Moments and step counts; the parameters belong to their owner."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place."""
        for name in ("first", "second", "steps"):
            copy_tensors(getattr(self, name), state[name])


def copy_tensors(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy values tensor by tensor; `ValueError` if number or shape differ."""
    if len(target) != len(source):
        raise ValueError(f"expected {len(target)} tensors, the saved state has {len(source)}")
    for i, (to, value) in enumerate(zip(target, source, strict=True)):
        if to.shape != value.shape:
            raise ValueError(
                f"tensor {i} has shape {tuple(value.shape)} in the saved state, expected {tuple(to.shape)}"
            )
        to.copy_(value)
