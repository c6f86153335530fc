"""Terms added to the critic loss, from a forward pass of the critics on the batch's own actions -> (S,)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mbrl.nets import CriticPass


class Diversity:
    """EDAC's penalty on critics whose action gradients point the same way (An et al. 2021, equation 4).

    weight * mean over rows of  sum_{i != j} <g_i, g_j> / (E - 1),  with g_i = dQ_i/da, normalised. It is 0 where the
    gradients are orthogonal and `weight * E` where they are equal.

    Args:
        weight: eta.
    """

    standardised = False

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """None."""
        return 0

    def __call__(
        self, opinion: CriticPass, noise: Tensor | None = None, observation_std: Tensor | None = None
    ) -> Tensor:
        """The penalty of every seed."""
        gradient = opinion.action_gradient()  # (S, E, B, A)
        unit = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)
        # sum_{i != j} <g_i, g_j> = |sum_i g_i|^2 - sum_i |g_i|^2: linear in the number of critics, not quadratic.
        same = unit.sum(-3).square().sum(-1) - unit.square().sum((-3, -1))  # (S, B)
        term: Tensor = self.weight * same.mean(-1) / max(gradient.shape[-3] - 1, 1)
        return term


Attack = Literal["fgsm", "uniform"]


class Robust:
    """Critics that say nearly the same of nearby observations (after Zheng et al. 2023).

    weight * sum over critics of the mean over rows of  (Q_e(s + d, a) - Q_e(s, a))^2,  |d_i| <= radius * std_i. Neither
    the paper's exact loss nor its values could be retrieved; this form is ours.

    Args:
        weight: lambda, at least 0.
        radius: epsilon, in stds of the observation.
        attack: `uniform` draws d from the box. `fgsm` goes from a uniform start in half the box a whole radius along
            the sign of the gradient of that square, and back into the box; each critic has its own d. Without the
            random start the gradient would be exactly 0.
        detach_clean: only Q(s + d, a) is moved, towards Q(s, a).

    Raises:
        ValueError: an unknown attack, or a radius that is not above 0.
    """

    standardised = True

    def __init__(
        self, weight: float, radius: float = 0.05, *, attack: Attack = "fgsm", detach_clean: bool = False
    ) -> None:
        if attack not in get_args(Attack):
            raise ValueError(f"robust.attack={attack} is unknown; it is {', '.join(get_args(Attack))}")
        if not radius > 0:
            raise ValueError(f"robust.radius={radius} must be more than 0, in stds of the observation")
        self.weight, self.radius, self.attack, self.detach_clean = weight, radius, attack, detach_clean

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """A number per row and dimension of the observation."""
        return batch_size * obs_dim

    def __call__(self, opinion: CriticPass, noise: Tensor, observation_std: Tensor) -> Tensor:
        """The penalty of every seed."""
        std = observation_std[..., None, None, :]
        step = self.perturbation(opinion, noise, observation_std)
        moved = opinion.elsewhere(opinion.z.unsqueeze(-3) + std * step).values
        clean = opinion.values.detach() if self.detach_clean else opinion.values
        term: Tensor = self.weight * (moved - clean).square().mean(-1).sum(-1)
        return term

    def perturbation(self, opinion: CriticPass, noise: Tensor, observation_std: Tensor) -> Tensor:
        """d in stds, (S, 1, B, Z) or for each critic (S, E, B, Z), without gradient; arguments as of a call."""
        uniform: Tensor = torch.special.ndtr(noise).unflatten(-1, opinion.z.shape[-2:]).unsqueeze(-3)
        if self.attack == "uniform":
            return self.radius * (2.0 * uniform - 1.0)
        start = self.radius * (uniform - 0.5)
        z = opinion.z.unsqueeze(-3) + observation_std[..., None, None, :] * start
        there = opinion.elsewhere(z, detached=True)
        # The gradient of (Q(s + d) - Q(s))^2 by d; a std is not negative and does not change its sign.
        change = (there.values - opinion.values.detach()).unsqueeze(-1)
        upwards = change.sign() * there.observation_gradient().sign()
        return (start + self.radius * upwards).clamp(-self.radius, self.radius)


class GradientPenalty:
    """Critics whose slope in the observation is limited, softly (the form of Blondé et al. 2022).

    weight * sum over critics of the mean over rows of  max(0, ||std * dQ_e/ds|| - target)^2,  at the batch's own rows.
    One-sided, as theirs: a value may be flat. They penalise a reward between two kinds of rows; a critic has one kind.

    Args:
        weight: at least 0.
        target: the slope that costs nothing, in units of value per std of the observation.
    """

    standardised = True

    def __init__(self, weight: float, target: float) -> None:
        self.weight, self.target = weight, target

    def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
        """None."""
        return 0

    def __call__(self, opinion: CriticPass, noise: Tensor | None, observation_std: Tensor) -> Tensor:
        """The penalty of every seed."""
        excess = (slope(opinion, observation_std) - self.target).clamp(min=0.0)
        return self.weight * excess.square().mean(-1).sum(-1)


def slope(opinion: CriticPass, observation_std: Tensor) -> Tensor:
    """||std * dQ_e/ds|| of every critic and row, (S, E, B): value per std of the observation."""
    gradient = observation_std[..., None, None, :] * opinion.observation_gradient()
    # The root of 0 has no derivative.
    return (gradient.square().sum(-1) + 1e-12).sqrt()
