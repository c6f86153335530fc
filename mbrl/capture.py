"""One update, run three ways: eager, compiled as one full graph, or captured as a CUDA graph and replayed.

The update itself is written once, on plain tensors that it changes in place. `gradients` is the only place that knows
which way it runs: autograd is fastest in eager mode, `torch.func` is what traces as one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mbrl.types import Metrics

Mode = Literal["auto", "eager", "compile", "graph"]
Aux = TypeVar("Aux")
Step = Callable[..., Metrics]

# A cold compile of four SAC updates costs half a minute of one core and saves some 2 ms an update (LOG.md): it pays
# from about 15,000 updates on. `auto` waits until the gain is worth the risk of depending on a compiler.
WORTH_COMPILING = 50_000
# A dynamics update compiles in ten seconds and saves 1 ms.
WORTH_COMPILING_A_FIT = 20_000


def gradients(
    loss: Callable[[list[Tensor]], tuple[Tensor, Aux]], params: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Aux]:
    """Gradients of `loss(params) -> (scalar, aux)` with respect to `params` alone, and `aux` without gradient.

    Nothing else is differentiated: what `loss` closes over are plain tensors.
    """
    if torch.compiler.is_compiling():
        grads, aux = torch.func.grad(loss, has_aux=True)(list(params))
        return grads, aux
    leaves = [p.detach().requires_grad_() for p in params]
    with torch.enable_grad():
        value, aux = loss(leaves)
    return torch.autograd.grad(value, leaves), torch.utils._pytree.tree_map(Tensor.detach, aux)


@dataclass(frozen=True)
class Choice:
    """How updates run, how many of them in one call, and why."""

    mode: Literal["eager", "compile", "graph"]
    steps: int
    reason: str


EAGER = Choice("eager", 1, "not asked for otherwise")


def choose(
    mode: Mode, device: torch.device, updates: int, intervals: Sequence[int] = (), worth: int = WORTH_COMPILING
) -> Choice:
    """Settle `auto` by device and length of the run.

    Args:
        mode: what was asked for.
        device: where the updates run.
        updates: length of the run.
        intervals: numbers of updates at which something else happens; the updates of one call must divide them.
        worth: on a CPU, `auto` compiles runs of at least so many updates.

    Raises:
        ValueError: `graph` without a CUDA device, or an unknown mode.
    """
    steps = next(k for k in (4, 2, 1) if all(n % k == 0 for n in (updates, *intervals)))
    if mode == "auto":
        if device.type == "cuda":
            return Choice("graph", steps, "a CUDA device: launches would cost more than the arithmetic")
        if updates < worth:
            return Choice("eager", 1, f"{updates:,} updates are done before compiling would have paid")
        if not has_compiler():
            return Choice("eager", 1, "no C++ compiler is at hand")
        return Choice("compile", steps, f"{updates:,} updates pay for a minute of compiling")
    if mode == "eager":
        return Choice("eager", 1, "as asked")
    if mode == "graph" and device.type != "cuda":
        raise ValueError(
            f"compile=graph captures a CUDA graph, and the device is {device}; use compile=compile or auto"
        )
    if mode not in ("compile", "graph"):
        raise ValueError(f"compile={mode} is unknown; it is auto, eager, compile or graph")
    return Choice(mode, steps, "as asked")


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler, which compiling for a CPU needs."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and not needed by short runs
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def capture(step: Step, mode: Literal["eager", "compile", "graph"]) -> Step:
    """The same step, run as `mode` says. Shapes of its arguments must not change from call to call."""
    if mode == "eager":
        return step
    compiled: Step = torch.compile(step, fullgraph=True, dynamic=False)
    return compiled if mode == "compile" else _Replay(compiled)


class _Replay:
    """Capture a compiled step as a CUDA graph at its first call, and replay it from then on.

    A captured graph remembers addresses: arguments are copied into its own buffers, and what it returns is overwritten
    by the next call. The first calls are ordinary ones on a side stream: they are real updates, and they let lazy
    initialisation happen before the capture, which itself runs nothing.
    """

    WARM_UP = 3

    def __init__(self, step: Step) -> None:
        self.step = step
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Metrics = {}

    def __call__(self, *arguments: Tensor) -> Metrics:
        self.calls += 1
        if self.calls <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                output = self.step(*arguments)
            torch.cuda.current_stream().wait_stream(side)
            return output
        if self.graph is None:
            self.inputs = [a.clone() for a in arguments]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.step(*self.inputs)
        for own, given in zip(self.inputs, arguments, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output
