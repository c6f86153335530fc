"""How much members disagree or doubt: pure functions of a prediction (*, E, N, O+1), one number a lane (*, N)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from mbrl.types import Prediction

Uncertainty: TypeAlias = Callable[[Prediction], Tensor]


def max_aleatoric(prediction: Prediction) -> Tensor:
    """MOPO: max over members of the norm of the predicted std, reward included (Yu et al. 2020, section 4.3)."""
    # The root is taken once, after the max: it is monotone.
    return prediction.std.square().sum(-1).amax(-2).sqrt()


def max_pairwise(prediction: Prediction) -> Tensor:
    """Largest distance of a member's mean next observation from the members' average, reward left out.

    This is the published code's `pairwise-diff`; despite the name it measures distance from the average.
    """
    means = prediction.mean[..., :-1]
    return (means - means.mean(-3, keepdim=True)).square().sum(-1).amax(-2).sqrt()


def ensemble_std(prediction: Prediction) -> Tensor:
    """Root of the members' variance (population) of the mean next observation, averaged over dimensions."""
    return prediction.mean[..., :-1].var(-3, correction=0).mean(-1).sqrt()


def mixture_spread(prediction: Prediction, scale: Tensor) -> Tensor:
    """Std of the members' equal mixture: root mean square over observation dimensions, in units of `scale`.

    It is what samples of all members spread, without drawing any: mean of the variances plus variance of the means.

    Args:
        prediction: (*, E, N, O+1).
        scale: (O,) or (*, 1, O), the unit of every dimension.
    """
    aleatoric = prediction.std[..., :-1].square().mean(-3)
    epistemic = prediction.mean[..., :-1].var(-3, correction=0)
    return ((aleatoric + epistemic) / scale.square()).mean(-1).sqrt()


def member_std(said: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Std (population) over what members say, averaged over dimensions.

    Args:
        said: means, or one sample of every member: (*, E, N, D).
        scale: (*, 1, D) or a number, the unit of every dimension.
    """
    return (said.std(-3, correction=0) / scale).mean(-1)


def member_variance(said: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Variance (population) over what members say, averaged over dimensions; arguments as of `member_std`."""
    return (said.std(-3, correction=0) / scale).square().mean(-1)


DISAGREEMENTS: tuple[Uncertainty, ...] = (max_pairwise, ensemble_std)
"""Those that are 0 for a single model."""
