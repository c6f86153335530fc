"""Which next state is believed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mbrl.types import Corrector, Prediction, Score, Selected

Pick = Literal["argmax", "softmax", "mean", "corrected_mean"]


class RandomElite:
    """A sample of one elite member, drawn anew for every lane and step (MBPO's TS1 rollouts, as in MOPO)."""

    def noise_size(self, outputs: int) -> int:
        """One number per output."""
        return outputs

    def __call__(
        self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor, noise: Tensor, uniform: Tensor
    ) -> Selected:
        """Only the chosen member of a lane is sampled; its trust score is 0 everywhere."""
        member = random_member(elites, uniform)
        drawn = of_member(prediction.mean, member) + of_member(prediction.std, member) * noise
        return Selected(drawn[..., :-1], drawn[..., -1], torch.zeros_like(uniform), member)


class ElitesMean:
    """The mean of the elites' means, without any noise."""

    def noise_size(self, outputs: int) -> int:
        """None."""
        return 0

    def __call__(
        self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor, noise: Tensor, uniform: Tensor
    ) -> Selected:
        """The trust score is 0 everywhere."""
        believed = prediction.of(elites).mean.mean(-3)
        member = random_member(elites, uniform)
        return Selected(believed[..., :-1], believed[..., -1], torch.zeros_like(uniform), member)


class ScoredCandidates:
    """Several candidates of every elite, of which a score decides (MOREC, Luo et al. 2024).

    A candidate is a next observation with its reward. With `resample=1`, `pick="softmax"` and an infinite temperature
    this is `RandomElite`.

    Args:
        score: rates the candidates.
        elites: K members that serve as the simulator.
        resample: samples of each elite; K * resample candidates.
        pick: `argmax` takes the best candidate; `softmax` draws one with weights exp(score / temperature);
            `mean` takes no candidate but the elites' mean, `corrected_mean` that mean as the score corrects it.
        temperature: of the softmax, in units of the score; 0.1 is MOREC's for its own score.
        released_clip: clip all entries of the candidates, the reward included, to +- this number before they are rated.
            MOREC's released code does so with 25 (D4RL) and 1e6 (NeoRL, where x is observed); None leaves it to the
            filter `Clip`, which knows the data's range and comes after the choice.

    Raises:
        ValueError: an unknown pick, or a score that corrects nothing for `corrected_mean`.
    """

    def __init__(
        self,
        score: Score,
        elites: int,
        *,
        resample: int = 2,
        pick: Pick = "argmax",
        temperature: float = 0.1,
        released_clip: float | None = None,
    ) -> None:
        if pick not in get_args(Pick):
            raise ValueError(f"rollout.select.pick={pick} is unknown; it is {', '.join(get_args(Pick))}")
        if pick == "corrected_mean" and not isinstance(score, Corrector):
            raise ValueError(
                f"rollout.select.pick=corrected_mean: {type(score).__name__} rates candidates but predicts no state of "
                "its own; choose score=residual, or another pick"
            )
        if not temperature > 0:
            raise ValueError(f"rollout.select.temperature={temperature} must be more than 0; pick=argmax is its limit")
        self.score = score
        self.elites, self.resample = elites, resample
        self.pick, self.temperature = pick, temperature
        self.limit = math.inf if released_clip is None else released_clip

    @property
    def samples(self) -> bool:
        """Whether candidates are drawn, or a mean is taken."""
        return self.pick in ("argmax", "softmax")

    def noise_size(self, outputs: int) -> int:
        """A number per candidate and output; none where nothing is sampled."""
        return self.elites * self.resample * outputs if self.samples else 0

    def __call__(
        self, obs: Tensor, action: Tensor, prediction: Prediction, elites: Tensor, noise: Tensor, uniform: Tensor
    ) -> Selected:
        """The score is that of the chosen candidate; of a mean, corrected or not, it is the elite mean's own."""
        if not self.samples:
            believed = prediction.of(elites).mean.mean(-3, keepdim=True).clamp(-self.limit, self.limit)
            score = self.score(obs, action, believed, prediction, elites).squeeze(-2)
            next_obs, reward = believed[..., 0, :, :-1], believed[..., 0, :, -1]
            if self.pick == "corrected_mean":
                assert isinstance(self.score, Corrector)
                next_obs = self.score.correct(obs, action, prediction, elites)
            return Selected(next_obs, reward, score, random_member(elites, uniform))
        own_noise = noise.unflatten(-1, (self.elites * self.resample, -1)).transpose(-2, -3)  # (S, K, N, O+1)
        proposed = draw_candidates(prediction, elites, own_noise).clamp(-self.limit, self.limit)
        scores = self.score(obs, action, proposed, prediction, elites)  # (S, K, N)
        # What a score cannot rate, because it is not finite, is taken last.
        scores = torch.where(scores.isnan(), torch.finfo(scores.dtype).min, scores)
        if self.pick == "argmax":
            which = scores.argmax(-2)
        else:
            cumulative = (scores / self.temperature).softmax(-2).cumsum(-2)
            # Rounding may leave the last entry below 1.
            which = (cumulative <= uniform.unsqueeze(-2)).sum(-2).clamp_(max=scores.shape[-2] - 1)
        row = which.unsqueeze(-2)  # (S, 1, N)
        chosen = proposed.gather(-3, row.unsqueeze(-1).expand(*row.shape, proposed.shape[-1])).squeeze(-3)
        member = elites.gather(-1, which % elites.shape[-1])
        return Selected(chosen[..., :-1], chosen[..., -1], scores.gather(-2, row).squeeze(-2), member)


def random_member(elites: Tensor, uniform: Tensor) -> Tensor:
    """One of the elites (S, k) for every uniform number (S, N) in [0, 1]: indices of members (S, N)."""
    which = (uniform * elites.shape[-1]).long().clamp_(max=elites.shape[-1] - 1)
    return elites.gather(-1, which)


def of_member(said: Tensor, member: Tensor) -> Tensor:
    """What each row's own member (S, N) says, of all that members say (S, E, N, D): (S, N, D)."""
    index = member[:, None, :, None].expand(-1, 1, -1, said.shape[-1])  # (S, 1, N, D)
    return said.gather(-3, index).squeeze(-3)


def draw_candidates(prediction: Prediction, elites: Tensor, noise: Tensor) -> Tensor:
    """Samples of every elite: noise (S, n*k, N, O+1) standard normal, k the number of elites -> same shape.

    Candidate c is of elite c % k.
    """
    mean, std = prediction.of(elites)
    times = noise.shape[-3] // elites.shape[-1]
    return mean.repeat(1, times, 1, 1) + std.repeat(1, times, 1, 1) * noise
