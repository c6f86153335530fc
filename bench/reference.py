"""The frozen reference: the workloads of bench/serve.py as a careful practitioner writes them in plain PyTorch.

One `nn.Linear` stack for the actor and for each of two critics, stacked layers where everybody stacks (the ensembles of
dynamics models and of many critics), `torch.optim.Adam`, `.backward()`, a buffer of one tensor per field, losses read
with `.item()` at every update, all lanes of a rollout at once, EDAC by double backward. The algorithms, sizes and data
are those of bench/serve.py, and tests/test_bench_reference.py holds them to the same numbers.

THIS FILE NEVER CHANGES. Speed is published as a ratio to it, and a ratio over the years means something only if its
denominator stands still: not for a faster idiom, not for a nicer name. It therefore uses nothing of `mbrl` but the
fields of `Transition`. What PyTorch itself gains shows up in it, as it should.

The protocol is that of bench/serve.py. Environment: DEVICE (default cpu), THREADS (default 1), SIZE.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from serve import ACTION, BATCH, LENGTH, OBS, PENALTY, REAL_RATIO, RETAIN, Block, Sizes, make_data, serve, settings
from torch import Tensor, nn

from mbrl.types import Transition

# -- networks ----------------------------------------------------------------------------------------------------------


class StackedLinear(nn.Module):
    """`members` linear layers side by side: x (E, B, in) -> (E, B, out)."""

    def __init__(self, members: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(members, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def network(
    sizes: Sequence[int], layer: Callable[[int, int], nn.Module] = nn.Linear, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [layer(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """A tanh-Gaussian policy."""

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = network([OBS, *hidden, 2 * ACTION])

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """obs (B, O), noise (B, A) -> action (B, A) and its log density (B,)."""
        mean, log_std = self.net(obs).chunk(2, -1)
        std = log_std.clamp(-5.0, 2.0).exp()
        raw = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std).log_prob(raw)
        log_prob = log_prob - 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
        return torch.tanh(raw), log_prob.sum(-1)


class TwinCritics(nn.Module):
    """Two networks, one after the other: obs (B, O), action (B, A) -> (2, B)."""

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(network([OBS + ACTION, *hidden, 1]) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1)
        return torch.stack([net(x).squeeze(-1) for net in self.nets])


class ManyCritics(nn.Module):
    """Stacked critics: obs and action (B, .) or (E, B, .) -> (E, B)."""

    def __init__(self, members: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.members = members
        self.net = network([OBS + ACTION, *hidden, 1], lambda i, o: StackedLinear(members, i, o))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1)
        if x.dim() == 2:
            x = x.unsqueeze(0).repeat(self.members, 1, 1)
        values: Tensor = self.net(x).squeeze(-1)
        return values


# -- soft actor-critic -------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """A minibatch; `terminal` is 0 or 1."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminal: Tensor


class SoftActorCritic:
    """SAC with a learned temperature; with `diversity`, EDAC.

    Args:
        critics: 2, or more, which are stacked.
        hidden: widths of the hidden layers of all networks.
        actor_learning_rate: of the actor.
        updates: length of the run, over which the actor's learning rate falls to 0; None for a constant one.
        limit_temperature: keep the temperature below 1.
        diversity: EDAC's eta.
        device: where everything lives.
    """

    def __init__(
        self,
        critics: int = 2,
        hidden: Sequence[int] = (256, 256),
        *,
        actor_learning_rate: float = 1e-4,
        updates: int | None = 10**7,
        limit_temperature: bool = True,
        diversity: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.actor = Actor(hidden).to(device)
        self.members = critics
        self.critics = (TwinCritics(hidden) if critics == 2 else ManyCritics(critics, hidden)).to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.zeros(1, requires_grad=True, device=device)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), actor_learning_rate)
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), 3e-4)
        self.temperature_optimiser = torch.optim.Adam([self.log_temperature], 1e-4)
        self.schedule = (
            None if updates is None else torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimiser, updates)
        )
        self.limit_temperature, self.diversity = limit_temperature, diversity
        self.discount, self.target_rate, self.target_entropy = 0.99, 0.005, -float(ACTION)

    def target(self, batch: Rows, noise: Tensor) -> Tensor:
        """Bellman target (B,)."""
        with torch.no_grad():
            action, log_prob = self.actor(batch.next_obs, noise)
            value = self.target_critics(batch.next_obs, action).min(0).values
            value = value - self.log_temperature.exp() * log_prob
            target: Tensor = batch.reward + self.discount * (1.0 - batch.terminal) * value
            return target

    def critic_loss(self, batch: Rows, target: Tensor) -> Tensor:
        """Squared error, summed over critics, and EDAC's penalty."""
        if not self.diversity:
            loss: Tensor = (self.critics(batch.obs, batch.action) - target).square().mean(-1).sum()
            return loss
        obs = batch.obs.unsqueeze(0).repeat(self.members, 1, 1)
        action = batch.action.unsqueeze(0).repeat(self.members, 1, 1).requires_grad_(True)
        q: Tensor = self.critics(obs, action)
        (gradient,) = torch.autograd.grad(q.sum(), action, create_graph=True)
        gradient = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)
        similarity = torch.einsum("iba,jba->bij", gradient, gradient)
        similarity = similarity * (1.0 - torch.eye(self.members, device=q.device))
        penalty = similarity.sum((1, 2)).mean() / (self.members - 1)
        return (q - target).square().mean(-1).sum() + self.diversity * penalty

    def update(self, batch: Rows, noise: Tensor) -> dict[str, float]:
        """One step of everything; noise (2, B, A): for the actions here and for those in the next state."""
        critic_loss = self.critic_loss(batch, self.target(batch, noise[1]))
        self.critic_optimiser.zero_grad()
        critic_loss.backward()
        self.critic_optimiser.step()

        action, log_prob = self.actor(batch.obs, noise[0])
        q = self.critics(batch.obs, action).min(0).values
        actor_loss = (self.log_temperature.exp().detach() * log_prob - q).mean()
        self.actor_optimiser.zero_grad()
        actor_loss.backward()
        self.actor_optimiser.step()
        if self.schedule is not None:
            self.schedule.step()

        temperature_loss = -(self.log_temperature * (log_prob.detach() + self.target_entropy)).mean()
        self.temperature_optimiser.zero_grad()
        temperature_loss.backward()
        self.temperature_optimiser.step()

        with torch.no_grad():
            if self.limit_temperature:
                self.log_temperature.clamp_(max=0.0)
            for target, source in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
                target.mul_(1.0 - self.target_rate).add_(source, alpha=self.target_rate)

        return {
            "critic_loss": critic_loss.item(),
            "actor_loss": actor_loss.item(),
            "temperature": self.log_temperature.exp().item(),
            "entropy": -log_prob.mean().item(),
            "q": q.mean().item(),
        }


# -- dynamics ----------------------------------------------------------------------------------------------------------


class Dynamics(nn.Module):
    """Seven Gaussian networks of 4 x 200 for the change of observation and the reward; five elites."""

    DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)

    def __init__(self, members: int = 7, elites: int = 5, hidden: Sequence[int] = (200,) * 4) -> None:
        super().__init__()
        self.members, self.elite_count = members, elites
        sizes = [OBS + ACTION, *hidden, 2 * (OBS + 1)]
        self.net = network(sizes, lambda i, o: StackedLinear(members, i, o), nn.SiLU)
        self.linears = [layer for layer in self.net if isinstance(layer, StackedLinear)]
        for layer in self.linears:
            nn.init.normal_(layer.weight, 0.0, 1.0 / (2.0 * math.sqrt(layer.weight.shape[1])))
            nn.init.zeros_(layer.bias)
        self.max_logvar = nn.Parameter(torch.full((OBS + 1,), 0.5))
        self.min_logvar = nn.Parameter(torch.full((OBS + 1,), -10.0))
        self.register_buffer("input_mean", torch.zeros(OBS + ACTION))
        self.register_buffer("input_std", torch.ones(OBS + ACTION))
        self.elites = list(range(elites))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised inputs (E, B, O+A) -> mean and log-variance (E, B, O+1)."""
        mean, logvar = self.net(x).chunk(2, -1)
        logvar = self.max_logvar - F.softplus(self.max_logvar - logvar)
        return mean, self.min_logvar + F.softplus(logvar - self.min_logvar)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood of targets y (E, B, O+1), bounds' term and weight decay."""
        mean, logvar = self(x)
        loss: Tensor = ((mean - y).square() * torch.exp(-logvar) + logvar).mean((1, 2)).sum()
        loss = loss + 0.01 * self.max_logvar.sum() - 0.01 * self.min_logvar.sum()
        for decay, layer in zip(self.DECAY, self.linears, strict=True):
            loss = loss + 0.5 * decay * layer.weight.square().sum()
        return loss

    def fit(self, data: Transition, epochs: int, held_out: int, batch_size: int = 256) -> list[float]:
        """A bootstrap for every member, the best snapshot of each, elites at the end; returns the losses."""
        inputs = torch.cat([data.obs, data.action], -1)
        targets = torch.cat([data.next_obs - data.obs, data.reward.unsqueeze(-1)], -1)
        order = torch.randperm(len(inputs), device=inputs.device)
        test, train = order[:held_out], order[held_out:]
        self.input_mean = inputs[train].mean(0)
        self.input_std = inputs[train].std(0, correction=0)
        inputs = (inputs - self.input_mean) / self.input_std
        x_test, y_test = inputs[test].repeat(self.members, 1, 1), targets[test]
        x_train, y_train = inputs[train], targets[train]
        size = len(train)
        index = torch.randint(size, (self.members, size), device=inputs.device)

        optimiser = torch.optim.Adam(self.parameters(), 1e-3)
        best = [math.inf] * self.members
        snapshot = copy.deepcopy(self.net.state_dict())
        losses = []
        for _ in range(epochs):
            shuffle = torch.rand(self.members, size, device=inputs.device).argsort(-1)
            index = index.gather(-1, shuffle)
            for i in range(size // batch_size):
                rows = index[:, i * batch_size : (i + 1) * batch_size]
                loss = self.loss(x_train[rows], y_train[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            with torch.no_grad():
                errors = (self(x_test)[0] - y_test).square().mean((1, 2)).tolist()
            for member, error in enumerate(errors):
                if error < 0.99 * best[member]:
                    best[member] = error
                    for name, value in self.net.state_dict().items():
                        snapshot[name][member] = value[member]
        self.net.load_state_dict(snapshot)
        self.elites = sorted(range(self.members), key=lambda member: best[member])[: self.elite_count]
        return losses

    def only_elites(self) -> Dynamics:
        """A copy that consists of the elites."""
        small = Dynamics(self.elite_count, self.elite_count).to(self.max_logvar.device)
        small.load_state_dict({k: v[self.elites] if k.startswith("net.") else v for k, v in self.state_dict().items()})
        return small

    @torch.no_grad()
    def predict(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """obs (N, O), action (N, A) -> mean and std (E, N, O+1) of next observation and reward."""
        x = (torch.cat([obs, action], -1) - self.input_mean) / self.input_std
        mean, logvar = self(x.repeat(self.members, 1, 1))
        mean[..., :-1] += obs
        return mean, logvar.exp().sqrt()


# -- buffers and rollouts ----------------------------------------------------------------------------------------------


class Buffer:
    """A ring of rows, one tensor per field; `terminal` as 0 and 1."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.fields = [torch.zeros(capacity, *width, device=device) for width in ((OBS,), (ACTION,), (), (OBS,), ())]
        self.capacity, self.position, self.filled = capacity, 0, 0
        self.device = device

    def add(self, *rows: Tensor) -> None:
        """obs, action, reward, next_obs, terminal."""
        count = len(rows[0])
        slots = (self.position + torch.arange(count, device=self.device)) % self.capacity
        for field, values in zip(self.fields, rows, strict=True):
            field[slots] = values.to(field.dtype)
        self.position = (self.position + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def sample(self, count: int) -> list[Tensor]:
        index = torch.randint(self.filled, (count,), device=self.device)
        return [field[index] for field in self.fields]


@torch.no_grad()
def rollout(
    actor: Actor, dynamics: Dynamics, obs: Tensor, low: Tensor, high: Tensor, into: Buffer, length: int = LENGTH
) -> int:
    """MOPO from states obs (N, O), all at once; ended lanes leave. Returns the number of rows added."""
    added = 0
    for _ in range(length):
        action, _ = actor(obs, torch.randn(len(obs), ACTION, device=obs.device))
        mean, std = dynamics.predict(obs, action)
        elites = torch.tensor(dynamics.elites, device=obs.device)
        member = elites[torch.randint(len(elites), (len(obs),), device=obs.device)]
        lane = torch.arange(len(obs), device=obs.device)
        samples = (mean + std * torch.randn_like(std))[member, lane]
        reward = samples[:, -1] - PENALTY * std.norm(dim=-1).amax(0)
        finite = samples.isfinite().all(-1) & reward.isfinite()
        next_obs = samples[:, :-1].clamp(low, high)
        healthy = (next_obs[:, 0] > 0.7) & (next_obs[:, 1].abs() < 0.2) & (next_obs[:, 1:].abs() < 100.0).all(-1)
        rows = (obs, action, reward, next_obs, ~healthy)
        into.add(*(field[finite] for field in rows))
        added += int(finite.sum())
        obs = next_obs[finite & healthy]
        if len(obs) == 0:
            break
    return added


# -- the workloads -----------------------------------------------------------------------------------------------------


class Reference:
    """What the blocks work on."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.data = make_data(sizes.rows)
        self.data = Transition(*(x.to(device) for x in self.data))
        self.short = Transition(*(x[: sizes.fit] for x in self.data))
        self.held_out = min(1000, int(0.2 * sizes.fit))
        fields = (self.data.obs, self.data.action, self.data.reward, self.data.next_obs, self.data.terminal)
        self.real = Buffer(sizes.rows, device)
        self.real.add(*fields)
        self.imagined = Buffer(sizes.lanes * LENGTH * RETAIN, device)
        for begin in range(0, self.imagined.capacity, sizes.lanes):
            index = torch.arange(begin, begin + sizes.lanes, device=device) % sizes.rows
            self.imagined.add(*(field[index] for field in fields))
        low = torch.minimum(self.data.obs.amin(0), self.data.next_obs.amin(0))
        high = torch.maximum(self.data.obs.amax(0), self.data.next_obs.amax(0))
        self.low, self.high = low - 0.5 * (high - low), high + 0.5 * (high - low)
        self.sac = SoftActorCritic(device=device)
        self._dynamics: Dynamics | None = None
        self._critics: dict[tuple[int, float], SoftActorCritic] = {}

    @property
    def dynamics(self) -> Dynamics:
        if self._dynamics is None:
            self._dynamics = Dynamics().to(self.device)
            self._dynamics.fit(self.short, 2, self.held_out)
        return self._dynamics

    def critics(self, count: int, diversity: float) -> SoftActorCritic:
        if (count, diversity) not in self._critics:
            self._critics[count, diversity] = SoftActorCritic(
                count, (256,) * 3, actor_learning_rate=3e-4, updates=None, limit_temperature=False,
                diversity=diversity, device=self.device,
            )  # fmt: skip
        return self._critics[count, diversity]

    def noise(self) -> Tensor:
        return torch.randn(2, BATCH, ACTION, device=self.device)

    def updates(self, count: int) -> int:
        real = int(BATCH * REAL_RATIO)
        for _ in range(count):
            parts = zip(self.real.sample(real), self.imagined.sample(BATCH - real), strict=True)
            self.sac.update(Rows(*(torch.cat(pair) for pair in parts)), self.noise())
        return count

    def critic_updates(self, count: int, diversity: float, updates: int) -> int:
        learner = self.critics(count, diversity)
        for _ in range(updates):
            learner.update(Rows(*self.real.sample(BATCH)), self.noise())
        return updates

    def fit(self) -> int:
        Dynamics().to(self.device).fit(self.short, 1, self.held_out)
        return self.sizes.fit - self.held_out

    def imagine(self, dynamics: Dynamics, lanes: int) -> int:
        starts = self.real.sample(lanes)[0]
        return rollout(self.sac.actor, dynamics, starts, self.low, self.high, self.imagined)

    def epoch(self) -> int:
        self.imagine(self.dynamics, self.sizes.lanes)
        self.updates(self.sizes.epoch)
        return 1


def blocks(reference: Reference) -> dict[str, Block]:
    """Name -> work, as in bench/serve.py."""
    sizes = reference.sizes

    def ensemble(count: int, diversity: float, updates: int) -> Block:
        return Block(
            lambda: reference.critic_updates(count, diversity, updates), lambda: reference.critics(count, diversity)
        )

    def rollouts(lanes: int, elites: bool = False) -> Block:
        return Block(
            lambda: reference.imagine(reference.dynamics.only_elites() if elites else reference.dynamics, lanes),
            lambda: reference.dynamics,
        )

    return {
        "W1": Block(lambda: reference.updates(sizes.updates)),
        "W2": Block(reference.fit),
        "W3": rollouts(sizes.lanes),
        "W3e": rollouts(sizes.lanes, elites=True),
        "W3s": rollouts(sizes.lanes // 5),
        "W4-EDAC-10": ensemble(10, 1.0, sizes.ensemble_updates),
        "W4-SACN-10": ensemble(10, 0.0, sizes.ensemble_updates),
        "W4-EDAC-50": ensemble(50, 1.0, sizes.ensemble_updates // 5),
        "W5": Block(reference.epoch, lambda: reference.dynamics),
    }


if __name__ == "__main__":
    device, sizes = settings()
    torch.manual_seed(0)
    serve(blocks(Reference(sizes, device)), device)
