"""Stacked networks as plain lists of tensors, and the tanh-Gaussian policy head.

A network is `[W1, b1, W2, b2, ...]` with `W (*L, in, out)` and `b (*L, 1, out)`; all leading axes `*L` (seeds, members,
critics) are trained by one batched matmul per layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Params = list[Tensor]
Precision = Literal["float32", "tf32", "bfloat16"]


def product_dtype(precision: Precision) -> torch.dtype | None:
    """What matrix products are computed in; None for what comes in, float32.

    `tf32` is float32 in memory: how a CUDA device rounds its products is a switch of the whole process, `use_tf32`.

    Raises:
        ValueError: another name.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision} is unknown; it is {', '.join(get_args(Precision))}")
    return torch.bfloat16 if precision == "bfloat16" else None


def use_tf32(wanted: bool, device: torch.device) -> None:
    """Let products of this process be rounded to TF32, or not.

    Raises:
        ValueError: wanted on a device that has none.
    """
    if wanted and device.type != "cuda":
        raise ValueError(f"precision=tf32 is a rounding of CUDA devices, and the device is {device}; use float32")
    torch.set_float32_matmul_precision("high" if wanted else "highest")


def bfloat16_speedup(repeats: int = 7) -> float:
    """How many times faster this CPU multiplies in bfloat16 than in float32: having the instructions is not enough."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2, 256, 256).to(dtype) for _ in range(2))
        torch.bmm(a, b)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            torch.bmm(a, b)
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of `key` alone, e.g. `generator(seed, "learner")`."""
    mixed = 0x9E3779B97F4A7C15
    for part in key:
        for byte in f"{part};".encode():
            mixed = ((mixed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator(device=device).manual_seed(mixed >> 1)


def whole_vectors(rows: int) -> int:
    """The next multiple of 32 rows.

    Elementwise kernels of a CPU round the last few numbers of a tensor, which fill no pair of vectors, in another way
    than the rest. Where a seed has whole vectors it is computed alike, alone and stacked.
    """
    return -(-rows // 32) * 32


def randn(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers (S, *shape), row s from generator s, on the generators' device."""
    out = torch.empty((len(generators), *shape), device=generators[0].device)
    for row, source in zip(out, generators, strict=True):
        row.normal_(generator=source)
    return out


def rand(shape: Sequence[int], generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), (S, *shape), row s from generator s."""
    out = torch.empty((len(generators), *shape), device=generators[0].device, dtype=dtype)
    for row, source in zip(out, generators, strict=True):
        row.uniform_(generator=source)
    return out


def uniform_init(weight: Tensor, bias: Tensor, source: torch.Generator) -> None:
    """What `nn.Linear` does: weight (in, out) and bias (1, out) uniform in +-1/sqrt(in)."""
    bound = 1.0 / math.sqrt(weight.shape[0])
    weight.uniform_(-bound, bound, generator=source)
    bias.uniform_(-bound, bound, generator=source)


def normal_init(weight: Tensor, bias: Tensor, source: torch.Generator) -> None:
    """PETS / MOPO ensembles: weight (in, out) normal with std 1/(2 sqrt(in)); bias 0."""
    weight.normal_(0.0, 1.0 / (2.0 * math.sqrt(weight.shape[0])), generator=source)
    bias.zero_()


def init_mlp(
    sizes: Sequence[int],
    generators: Sequence[torch.Generator],
    members: Sequence[int] = (),
    init: Callable[[Tensor, Tensor, torch.Generator], None] = uniform_init,
) -> Params:
    """Initial parameters for layers `sizes`, leading axes `(S, *members)`; seed s draws from generator s alone."""
    lead = (len(generators), *members)
    params: Params = []
    for fan_in, fan_out in pairwise(sizes):
        weight = torch.empty((*lead, fan_in, fan_out), device=generators[0].device)
        bias = torch.empty((*lead, 1, fan_out), device=generators[0].device)
        for s, source in enumerate(generators):
            for w, b in zip(weight[s].view(-1, fan_in, fan_out), bias[s].view(-1, 1, fan_out), strict=True):
                init(w, b, source)
        params += [weight, bias]
    return params


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x (*L or broadcastable, N, in) @ weight (*L, in, out) + bias (*L, 1, out) -> (*L, N, out).

    With `dtype` (bfloat16) only the product is computed in it; what comes in, the bias and the result are float32.
    """
    lead = weight.shape[:-2]
    if x.shape[:-2] != lead:
        x = x.expand(*lead, *x.shape[-2:])
    if weight.dim() > 3:
        x, weight, bias = x.flatten(0, -3), weight.flatten(0, -3), bias.flatten(0, -3)
    if dtype is not None:
        out = product(x, weight, dtype) + bias
    elif weight.dim() == 2:
        out = torch.addmm(bias, x, weight)
    else:
        out = torch.baddbmm(bias, x, weight)
    return out.view(*lead, *out.shape[-2:])


def relu(x: Tensor) -> Tensor:
    """max(x, 0), written over `x` where no graph needs it: less memory to walk through."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


def normalised_relu(x: Tensor) -> Tensor:
    """ReLU of a layer whose units are shifted and scaled, row by row, to mean 0 and variance 1 (Ba et al. 2016).

    Without gains and shifts of its own: what would follow them is linear again, and the shift before it is the bias.
    """
    return relu(F.layer_norm(x, x.shape[-1:]))


def mlp(
    params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = relu, dtype: torch.dtype | None = None
) -> Tensor:
    """x (*L or broadcastable, N, in) -> (*L, N, out); no activation after the last layer.

    With `dtype` the first layer stays in float32: it is narrow, and its inputs may lie far from 0 compared with their
    spread, so that rounding them would cost more than it saves.
    """
    for i in range(0, len(params) - 2, 2):
        x = activation(linear(x, params[i], params[i + 1], dtype if i else None))
    return linear(x, params[-2], params[-1], dtype if len(params) > 2 else None)


@dataclass
class CriticPass:
    """One forward pass of stacked critics, with what a regulariser may ask of it.

    Attributes:
        params: of the critics, (*, E, in, out).
        z: (*, B, Z).
        action: (*, B, A).
        hidden: activations of the hidden layers, (*, E, B, width) each.
        values: (*, E, B).
        dtype: of the matrix products.
        before: with layer normalisation, what the hidden layers were before it, (*, E, B, width) each; else nothing.
    """

    params: Params
    z: Tensor
    action: Tensor
    hidden: list[Tensor]
    values: Tensor
    dtype: torch.dtype | None = None
    before: Sequence[Tensor] = ()

    def action_gradient(self) -> Tensor:
        """dQ_e/da for every critic: (*, E, B, A), differentiable in the parameters."""
        return self._gradient(slice(self.z.shape[-1], None))

    def observation_gradient(self) -> Tensor:
        """dQ_e/dz for every critic: (*, E, B, Z), differentiable in the parameters."""
        return self._gradient(slice(0, self.z.shape[-1]))

    def _gradient(self, columns: slice) -> Tensor:
        """The derivative by some columns of the critics' input.

        An explicit reverse sweep that shares the forward pass: the derivative of ReLU is a mask and has no gradient of
        its own, so that one ordinary backward pass gives what a double backward would.
        """
        sweep = self.params[-2].transpose(-1, -2)  # (*, E, 1, width)
        for i in range(len(self.hidden) - 1, -1, -1):
            sweep = sweep * (self.hidden[i] > 0)
            if self.before:
                sweep = through_layer_norm(sweep, self.before[i])
            weight = self.params[2 * i]
            if i == 0:
                weight = weight[..., columns, :]
            sweep = product(sweep, weight.transpose(-1, -2), self.dtype)
        # Without a hidden layer the gradient is the weight itself, at every row.
        return sweep if self.hidden else sweep[..., columns].expand(*self.values.shape, -1)

    def elsewhere(self, z: Tensor, *, detached: bool = False) -> CriticPass:
        """The same critics and actions at other observations, each critic at its own or all at the same.

        Args:
            z: (*, E or 1, B, Z).
            detached: nothing of it is differentiable in the parameters.
        """
        params = [p.detach() for p in self.params] if detached else self.params
        action = self.action.unsqueeze(-3).expand(*z.shape[:-1], -1)
        return _pass(params, z, action, torch.cat([z, action], -1), self.dtype, bool(self.before))


def product(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x (*L, N, in) @ weight (*L, in, out), computed in `dtype` and returned as float32."""
    return x @ weight if dtype is None else (x.to(dtype) @ weight.to(dtype)).float()


def through_layer_norm(sweep: Tensor, before: Tensor, epsilon: float = 1e-5) -> Tensor:
    """The derivative by x of <sweep, n(x)> with n(x) = (x - mean) / std: differentiable in both arguments.

        (sweep - mean(sweep) - n mean(sweep n)) / std

    Args:
        sweep: (*, width).
        before: x (*, width).
        epsilon: that `F.layer_norm` adds to the variance.
    """
    deviation = before - before.mean(-1, keepdim=True)
    scale = (deviation.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    normalised = deviation * scale
    along = (sweep * normalised).mean(-1, keepdim=True)
    return scale * (sweep - sweep.mean(-1, keepdim=True) - normalised * along)


def criticise(
    params: Params, z: Tensor, action: Tensor, dtype: torch.dtype | None = None, layer_norm: bool = False
) -> CriticPass:
    """A forward pass that keeps its activations: critics (*, E, in, out), z (*, B, Z), action (*, B, A)."""
    return _pass(params, z, action, torch.cat([z, action], -1).unsqueeze(-3), dtype, layer_norm)


def _pass(
    params: Params, z: Tensor, action: Tensor, x: Tensor, dtype: torch.dtype | None, layer_norm: bool
) -> CriticPass:
    """The pass itself, on x (*, E or 1, B, Z+A)."""
    hidden: list[Tensor] = []
    before: list[Tensor] = []
    for i in range(0, len(params) - 2, 2):
        x = linear(x, params[i], params[i + 1], dtype if i else None)
        if layer_norm:
            before.append(x)
            x = F.layer_norm(x, x.shape[-1:])
        x = F.relu(x)
        hidden.append(x)
    values = linear(x, params[-2], params[-1], dtype if hidden else None).squeeze(-1)
    return CriticPass(params, z, action, hidden, values, dtype, before)


def q_values(
    params: Params, z: Tensor, action: Tensor, dtype: torch.dtype | None = None, layer_norm: bool = False
) -> Tensor:
    """Critics (*, E, in, out): z (*, B, Z), action (*, B, A) -> (*, E, B)."""
    x = torch.cat([z, action], -1).unsqueeze(-3)
    return mlp(params, x, normalised_relu if layer_norm else relu, dtype).squeeze(-1)


LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


def gaussian_policy(params: Params, z: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """z (*, N, Z) -> mean and log-std (*, N, A) before the tanh; log-std clamped to [-5, 2]."""
    mean, log_std = mlp(params, z, dtype=dtype).chunk(2, -1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised tanh-Gaussian sample: action (*, N, A) and its log density (*, N).

    log pi(a) = log N(u) - sum_d log(1 - tanh(u_d)^2), with the last term in the form that does not underflow
    (Haarnoja et al. 2018, appendix C): log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
    """
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_det = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return torch.tanh(u), (log_normal - log_det).sum(-1)
