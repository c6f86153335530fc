"""Layers whose spectral norm is held at or below a radius: W -> W / max(1, sigma(W) / radius).

Unlike spectral normalisation proper (Miyato et al. 2018), which always divides, this only ever shrinks: a layer within
the radius is left alone, bit for bit. A network of ReLU layers so held has a Lipschitz constant of at most
radius^layers, with the Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mbrl.nets import Params, randn


def power_step(weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration towards the largest singular value's vectors.

    Args:
        weight: (*, in, out).
        left: (*, in, 1), of length 1.
        right: (*, out, 1), of length 1.

    Returns:
        Both, nearer to the singular vectors; unchanged where the weight maps them to nothing.
    """
    right = _unit(weight.transpose(-1, -2) @ left, right)
    return _unit(weight @ right, left), right


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    length = vector.norm(dim=-2, keepdim=True)
    return torch.where(length > 0, vector / length.clamp(min=torch.finfo(vector.dtype).tiny), otherwise)


def spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left^T W right (*, 1, 1): from below the largest singular value, differentiable in the weight (*, in, out)."""
    return left.transpose(-1, -2) @ (weight @ right)


def singular_maximum(weight: Tensor) -> Tensor:
    """The largest singular value (*) of weight (*, in, out), from the eigenvalues of its smaller Gram matrix."""
    wide = weight.shape[-1] > weight.shape[-2]
    gram = weight @ weight.transpose(-1, -2) if wide else weight.transpose(-1, -2) @ weight
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return largest.clamp(min=0.0).sqrt()


def shrink(params: Params, radius: float) -> Params:
    """The same limit by exact norms, which cost too much for every update: `[W1, b1, ...]`, shapes kept."""
    out = list(params)
    out[::2] = [w / (singular_maximum(w)[..., None, None] / radius).clamp(min=1.0) for w in params[::2]]
    return out


class SpectralLimit:
    """The limit on the layers of one stacked network, and the vectors that say how near they are to it.

    Args:
        params: `[W1, b1, ...]` with W (S, *, in, out): where the vectors start.
        radius: of every layer, above 0.
        generators: one per seed, for the start of the iteration, on the CPU.

    Raises:
        ValueError: a radius that is not above 0.
    """

    START = 50  # iterations before the first use

    def __init__(self, params: Params, radius: float, generators: Sequence[torch.Generator]) -> None:
        if not radius > 0:
            raise ValueError(f"spectral_radius={radius} must be more than 0; null is no limit")
        self.radius = radius
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []
        for weight in params[::2]:
            for side, size in ((self.left, weight.shape[-2]), (self.right, weight.shape[-1])):
                start = randn((*weight.shape[1:-2], size, 1), generators).to(weight.device)
                side.append(start / start.norm(dim=-2, keepdim=True))
        self.follow(params, self.START)

    def follow(self, params: Params, steps: int = 1) -> None:
        """So many power iterations, in place; biases do not matter."""
        for weight, left, right in zip(params[::2], self.left, self.right, strict=True):
            for _ in range(steps):
                for now, then in zip((left, right), power_step(weight, left, right), strict=True):
                    now.copy_(then)

    def shrunk(self, params: Params) -> Params:
        """The layers as they count; differentiable in `params`, with the vectors held fixed."""
        out = list(params)
        for i, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            weight = params[2 * i]
            out[2 * i] = weight / (spectral_norm(weight, left, right) / self.radius).clamp(min=1.0)
        return out

    def tensors(self) -> list[Tensor]:
        """All vectors: the state."""
        return [*self.left, *self.right]
