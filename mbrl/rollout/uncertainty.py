"""How much members disagree or doubt: pure functions of a guess, one number a lane (*, N).

The six of Lu et al. 2022 ("Revisiting Design Choices in Offline Model-Based RL", section 3) are in `HEURISTICS`, after
the formulas that the paper intends: variances and disagreements are of what members predict, not of samples of it, and
every variance over members is the population's (divided by E). Published codes differ, as the docstrings say. Units
differ, too: a norm, a std, a variance, nats; a coefficient of one says nothing of another's (see `Penalise`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from mbrl.types import Guess, Prediction

Uncertainty: TypeAlias = Callable[[Guess], Tensor]
"""mean and std (*, E, N, O+1), next_obs (*, N, O), member (*, N) -> (*, N), at least 0."""


def max_aleatoric(guess: Prediction | Guess) -> Tensor:
    """MOPO: max over members of the norm of the predicted std, reward included (Yu et al. 2020, section 4.3).

    The paper's formula has the Frobenius norm of the covariance; its code, like all others, that of its root.
    """
    # The root is taken once, after the max: it is monotone.
    return guess.std.square().sum(-1).amax(-2).sqrt()


def max_pairwise(guess: Prediction | Guess) -> Tensor:
    """MOReL: the largest distance between two members' mean next observations, reward left out (Kidambi et al. 2020).

    OfflineRL-Kit's `pairwise-diff` is the largest distance of a member from the members' average, and smaller.
    """
    means = guess.mean[..., :-1]
    members = means.shape[-3]
    # A pair (i, j) is met where the members are shifted by j - i or by i - j: half of the shifts are all pairs.
    apart = [(means - means.roll(shift, -3)).square().sum(-1).amax(-2) for shift in range(1, members // 2 + 1)]
    if not apart:
        return torch.zeros_like(means[..., 0, :, 0])
    return torch.stack(apart).amax(0).sqrt()


def ensemble_variance(guess: Prediction | Guess) -> Tensor:
    """Variance of the members' equal mixture, averaged over the observation's dimensions.

    mean_d [ mean_i sigma_id^2 + Var_i mu_id ]: noise and disagreement together (Lakshminarayanan et al. 2017). Code
    that takes the second term over samples counts the first twice.
    """
    return mixture_variance(guess).mean(-1)


def ensemble_std(guess: Prediction | Guess) -> Tensor:
    """Std of the members' equal mixture, averaged over dimensions: the root comes before the mean.

    OfflineRL-Kit's `ensemble_std` is another quantity: without noise, and with the root after the mean.
    """
    return mixture_variance(guess).sqrt().mean(-1)


def ll_variance(guess: Guess) -> Tensor:
    """LOMPO: variance over members of the log density that they give the next observation (Rafailov et al. 2021).

    Var_i log N(s'; mu_i, diag sigma_i^2) of the whole next observation s' that was taken, reward left out.
    """
    mean, std = guess.mean[..., :-1], guess.std[..., :-1].clamp(min=LEAST_STD)
    off = (guess.next_obs.unsqueeze(-3) - mean) / std
    # The constant D/2 log 2 pi is the same for all members.
    return (-0.5 * off.square() - std.log()).sum(-1).var(-2, correction=0)


def loo_kl(guess: Guess) -> Tensor:
    """M2AC: divergence of the member that made the sample from all others (Pan et al. 2020), reward included.

    KL( N_j || N_-j ), j that member, N_-j the Gaussian with the mean and the variance of the others' equal mixture;
    diagonal, summed over dimensions. NaN for a single member, which has no others.
    """
    mean, variance = guess.mean, guess.std.square()
    own = guess.member.unsqueeze(-2).unsqueeze(-1)  # (*, 1, N, 1)
    index = own.expand(*own.shape[:-1], mean.shape[-1])
    number = torch.arange(mean.shape[-3], device=mean.device).view(-1, 1, 1)
    share = (number != own).to(mean.dtype) / (mean.shape[-3] - 1)  # (*, E, N, 1)
    others = (share * mean).sum(-3)
    # Not the mean of squares less the square of the mean: means are large beside their differences.
    spread = (share * (variance + (mean - others.unsqueeze(-3)).square())).sum(-3).clamp(min=LEAST_STD**2)
    mine = variance.gather(-3, index).squeeze(-3).clamp(min=LEAST_STD**2)
    ratio = mine / spread
    away = (mean.gather(-3, index).squeeze(-3) - others).square() / spread
    return 0.5 * (ratio + away - 1.0 - ratio.log()).sum(-1).clamp(min=0.0)


LEAST_STD = 1e-8
"""What is divided by is not smaller: a model that is sure of itself altogether has densities that are not finite."""


def mixture_variance(guess: Prediction | Guess) -> Tensor:
    """Variance of the members' equal mixture in every dimension of the observation: (*, N, O).

    It is that of samples of all members, without drawing any: mean of the variances plus variance of the means.
    """
    return guess.std[..., :-1].square().mean(-3) + guess.mean[..., :-1].var(-3, correction=0)


def mixture_spread(prediction: Prediction, scale: Tensor) -> Tensor:
    """Std of the members' equal mixture: root mean square over observation dimensions, in units of `scale`.

    Args:
        prediction: (*, E, N, O+1).
        scale: (O,) or (*, 1, O), the unit of every dimension.
    """
    return (mixture_variance(prediction) / scale.square()).mean(-1).sqrt()


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


HEURISTICS: tuple[Uncertainty, ...] = (
    max_aleatoric, max_pairwise, ensemble_std, ensemble_variance, ll_variance, loo_kl
)  # fmt: skip
"""Those of the paper; `penalty=` names them."""

DISAGREEMENTS: tuple[Uncertainty, ...] = (max_pairwise, ll_variance, loo_kl)
"""Those that a single model does not have: 0, or not a number."""
