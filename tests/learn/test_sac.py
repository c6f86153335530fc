from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from probes import (
    better_action,
    constant_value,
    endless,
    everywhere,
    joined,
    observed_value,
    random_data,
    repeat,
    train,
    two_steps,
    value,
)
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions.transforms import TanhTransform

from mbrl.learn.sac import SAC
from mbrl.nets import CriticPass, generator, randn
from mbrl.types import Batch

SLACK = 0.05  # how far from its analytic value a probe's Q may be after a few hundred updates


def probe(seeds: tuple[int, ...] = (0, 1), **settings: Any) -> SAC:
    """A quick learner for one observation and one action dimension; no entropy term unless asked for."""
    defaults: dict[str, Any] = {
        "hidden": (32, 32), "discount": 0.5, "target_rate": 0.1, "critic_learning_rate": 5e-3,
        "actor_learning_rate": 5e-3, "soft_backup": False, "cosine_actor": False,
    }  # fmt: skip
    return SAC(1, 1, seeds, **(defaults | settings))


def batches(seeds: tuple[int, ...], count: int, rows: int = 16) -> list[tuple[Batch, Tensor]]:
    """Minibatches of random rows with some terminals, and noise: each seed's own, whatever stands beside it."""
    data = random_data(200)
    data = data._replace(terminal=torch.arange(200) % 5 == 0)
    out = []
    for i in range(count):
        picks = [torch.randint(200, (rows,), generator=generator(s, "pick", i)) for s in seeds]
        batch = Batch(type(data)(*(torch.stack([x[p] for p in picks]) for x in data)), 0)
        out.append((batch, randn((2 * rows * 2,), [generator(s, "noise", i) for s in seeds])))
    return out


def run(learner: SAC, steps: list[tuple[Batch, Tensor]], first: int = 0) -> None:
    for i, (batch, noise) in enumerate(steps[first:], first):
        learner.update(batch, noise, torch.tensor(i / len(steps)))


def learnt(learner: SAC) -> list[Tensor]:
    return [*learner.actor, *learner.critics, *learner.target_critics, learner.log_temperature]


# -- probes: values that are known -------------------------------------------------------------------------------------


def test_value_of_one_step_is_its_reward() -> None:
    learner = probe()
    train(learner, constant_value(), 200)
    assert value(learner, 0.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=SLACK)


def test_value_depends_on_the_observation() -> None:
    learner = probe()
    train(learner, observed_value(), 200)
    assert value(learner, 1.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=SLACK)
    assert value(learner, -1.0).flatten().tolist() == pytest.approx([-1.0] * 4, abs=SLACK)


def test_a_reward_two_steps_away_is_discounted_once() -> None:
    learner = probe(discount=0.8)
    train(learner, two_steps(), 400)
    assert value(learner, 1.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=SLACK)
    assert value(learner, 0.0).flatten().tolist() == pytest.approx([0.8] * 4, abs=SLACK)


def test_a_time_limit_is_bootstrapped_and_a_terminal_is_not() -> None:
    # The same step, reward 1: a row that merely stops being recorded is worth 1 / (1 - 0.5), an end is worth 1.
    limit, end = probe(), probe()
    train(limit, endless(), 400)
    train(end, endless()._replace(terminal=torch.ones(33, dtype=torch.bool)), 400)
    assert value(limit, 0.0).flatten().tolist() == pytest.approx([2.0] * 4, abs=SLACK)
    assert value(end, 0.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=SLACK)


def entropy_of_squashed_normal(std: float) -> float:
    """Entropy of tanh(N(0, std^2)) by quadrature: H(N) + E[log(1 - tanh(u)^2)]."""
    u = torch.linspace(-12 * std, 12 * std, 200_001, dtype=torch.float64)
    weight = Normal(0.0, std).log_prob(u).exp()
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return 0.5 * math.log(2 * math.pi * math.e * std**2) + torch.trapezoid(weight * log_slope, u).item()


@pytest.mark.parametrize("temperature", [0.25, 1.0])
@pytest.mark.parametrize("std", [0.1, 0.8])
def test_soft_value_with_a_fixed_temperature(temperature: float, std: float) -> None:
    # One endless state, reward 1, discount 0.5, a policy of known entropy H: Q = 1 + 0.5 (Q + alpha H), that is
    # 2 + alpha H. With the entropy term's sign turned round it would be 2 - alpha H. H is -0.9 and 0.67 here.
    learner = probe(
        soft_backup=True, initial_temperature=temperature, temperature_learning_rate=0.0, actor_learning_rate=0.0
    )
    for p in learner.actor:
        p.zero_()
    learner.actor[-1][..., 1] = math.log(std)
    entropy = entropy_of_squashed_normal(std)
    train(learner, endless(), 400, rows=132)
    expected = 2.0 + temperature * entropy
    assert value(learner, 0.0).flatten().tolist() == pytest.approx([expected] * 4, abs=SLACK)
    assert abs(temperature * entropy) > 3 * SLACK  # else the sign would not show


def test_actor_moves_to_the_better_action() -> None:
    learner = probe(initial_temperature=0.01, temperature_learning_rate=0.0)
    train(learner, better_action(0.5), 400)
    actions = learner.act(torch.zeros(2, 1, 1))
    assert actions.flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    for action in (-1.0, 0.0, 0.5, 1.0):
        assert value(learner, 0.0, action).flatten().tolist() == pytest.approx([-((action - 0.5) ** 2)] * 4, abs=0.1)


def test_value_of_a_step_to_a_state_whose_value_depends_on_the_policy() -> None:
    # State 0 leads to state 1 for nothing; there, one step is worth -(a - 0.5)^2. The learnt policy gets nearly 0, a
    # policy as random as the data would get -0.58.
    last = better_action(0.5, 129)
    data = joined(everywhere(0.0, 0.0, 1.0, False, 129), last._replace(obs=torch.ones(129, 1)))
    learner = probe((0,), discount=0.9, initial_temperature=0.001, temperature_learning_rate=0.0)
    train(learner, data, 500)
    assert learner.act(torch.ones(1, 1, 1)).item() == pytest.approx(0.5, abs=0.1)
    assert value(learner, 0.0).mean().item() == pytest.approx(0.0, abs=0.1)


# -- against a plain implementation ------------------------------------------------------------------------------------


class Plain:
    """SAC as everybody writes it: one seed, `nn.Module`, `torch.optim`, `backward`."""

    def __init__(self, learner: SAC, s: int, updates: int) -> None:
        def network(params: list[Tensor], *at: int, layer_norm: bool = False) -> nn.Sequential:
            layers: list[nn.Module] = []
            for weight, bias in zip(params[::2], params[1::2], strict=True):
                layer = nn.Linear(weight.shape[-2], weight.shape[-1])
                layer.load_state_dict({"weight": weight[at].T.clone(), "bias": bias[at][0].clone()})
                norm = [nn.LayerNorm(weight.shape[-1], elementwise_affine=False)] if layer_norm else []
                layers += [layer, *norm, nn.ReLU()]
            return nn.Sequential(*layers[: -1 - layer_norm])

        count = learner.critics[0].shape[1]
        self.actor = network(learner.actor, s)
        self.critics = [network(learner.critics, s, e, layer_norm=learner.layer_norm) for e in range(count)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.tensor(learner.log_temperature[s].item(), requires_grad=True)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=1e-3)
        self.critic_optimisers = [torch.optim.Adam(c.parameters(), lr=3e-3) for c in self.critics]
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=1e-2)
        self.updates = updates

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-5, 2).exp())
        u = normal.mean + normal.stddev * noise
        log_prob = normal.log_prob(u) - TanhTransform().log_abs_det_jacobian(u, u.tanh())
        return u.tanh(), log_prob.sum(-1)

    def update(self, batch: Batch, noise: Tensor, s: int, i: int) -> None:
        obs, action, reward, next_obs, terminal, _ = (x[s] for x in batch.transition)
        here, there = noise[s].chunk(2)
        for group in self.actor_optimiser.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * i / self.updates)) / 2
        with torch.no_grad():
            next_action, next_log_prob = self.sample(next_obs, there.view(len(reward), -1))
            x = torch.cat([next_obs, next_action], -1)
            v = torch.stack([t(x)[:, 0] for t in self.targets]).amin(0) - self.log_alpha.exp() * next_log_prob
            y = reward + 0.97 * (~terminal).float() * v
        for critic, optimiser in zip(self.critics, self.critic_optimisers, strict=True):
            optimiser.zero_grad()
            nn.functional.mse_loss(critic(torch.cat([obs, action], -1))[:, 0], y).backward()
            optimiser.step()
        new_action, log_prob = self.sample(obs, here.view(len(reward), -1))
        q = torch.stack([c(torch.cat([obs, new_action], -1))[:, 0] for c in self.critics]).amin(0)
        self.actor_optimiser.zero_grad()
        (self.log_alpha.exp().detach() * log_prob - q).mean().backward()
        self.actor_optimiser.step()
        self.alpha_optimiser.zero_grad()
        (-self.log_alpha * (log_prob.detach() - 1.5).mean()).backward()
        self.alpha_optimiser.step()
        with torch.no_grad():
            self.log_alpha.clamp_(max=0.0)
            for critic, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.copy_(0.98 * t + 0.02 * p)


@pytest.mark.parametrize(("critics", "layer_norm"), [(2, False), (3, False), (2, True)])
def test_updates_equal_a_plain_implementation(critics: int, layer_norm: bool) -> None:
    seeds = (3, 8)
    learner = SAC(
        3, 2, seeds, critics=critics, hidden=(16, 16), discount=0.97, target_rate=0.02, actor_learning_rate=1e-3,
        critic_learning_rate=3e-3, temperature_learning_rate=1e-2, initial_temperature=0.9, target_entropy=-1.5,
        layer_norm=layer_norm,
    )  # fmt: skip
    steps = batches(seeds, 20)
    plain = [Plain(learner, s, len(steps)) for s in range(2)]
    run(learner, steps)
    for s, reference in enumerate(plain):
        for i, (batch, noise) in enumerate(steps):
            reference.update(batch, noise, s, i)
        for params, networks in (
            (learner.actor, [reference.actor]),
            (learner.critics, reference.critics),
            (learner.target_critics, reference.targets),
        ):
            for e, network in enumerate(networks):
                at = (s,) if len(networks) == 1 else (s, e)
                for p, q in zip(params, network.parameters(), strict=True):
                    ours = p[at].T if q.dim() == 2 else p[at][0]
                    torch.testing.assert_close(ours, q.detach(), rtol=1e-4, atol=1e-5)
        assert learner.log_temperature[s].item() == pytest.approx(reference.log_alpha.item(), abs=1e-5)


def test_what_a_normalised_critic_says_does_not_grow_with_the_distance() -> None:
    direction = torch.tensor([[[0.6, -0.8, 0.5]]])

    def values(layer_norm: bool, distance: float) -> Tensor:
        learner = SAC(3, 2, (0,), critics=5, hidden=(32, 32), layer_norm=layer_norm)
        return learner.q(distance * direction, torch.zeros(1, 1, 2)).flatten()

    torch.testing.assert_close(values(True, 1e4), values(True, 1e6), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(100 * values(False, 1e4), values(False, 1e6), rtol=1e-2, atol=1.0)
    assert values(False, 1e6).abs().min() > 1e3


def test_stacked_seeds_equal_separate_ones_after_100_updates() -> None:
    together = SAC(3, 2, (0, 5), hidden=(32, 32))
    run(together, batches((0, 5), 100))
    for s, seed in enumerate((0, 5)):
        alone = SAC(3, 2, (seed,), hidden=(32, 32))
        run(alone, batches((seed,), 100))
        for ours, theirs in zip(learnt(together), learnt(alone), strict=True):
            torch.testing.assert_close(ours[s], theirs[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(together.actor[0][0], together.actor[0][1])


@pytest.mark.parametrize("critics", [2, 10, 50])
def test_every_critic_starts_as_torch_s_own_layers_do(critics: int) -> None:
    # A stacked (critics, in, out) tensor given to torch's initialisers would count in * out or critics * out as inputs.
    learner = SAC(11, 3, (0, 1), critics=critics, hidden=(256, 256, 256))
    for weight, bias in zip(learner.critics[::2], learner.critics[1::2], strict=True):
        assert weight.shape[:2] == bias.shape[:2] == (2, critics)
        plain = [nn.Linear(*weight.shape[-2:]) for _ in range(critics)]
        bound = 1 / math.sqrt(weight.shape[-2])
        for ours, theirs in ((weight, [layer.weight for layer in plain]), (bias, [layer.bias for layer in plain])):
            assert ours.abs().max().item() <= bound
            # The std of n uniform numbers is known to 0.45 / sqrt(n): where 2 % is four times that, it is asked for.
            own = ours[0, 0].numel()
            if own >= 8_100:
                expected = torch.full((2, critics), bound / math.sqrt(3))
                torch.testing.assert_close(ours.flatten(2).std(-1), expected, rtol=0.02, atol=0.0)
            if own * critics >= 8_100:
                expected = torch.stack([p.detach().flatten() for p in theirs]).std().expand(2)
                torch.testing.assert_close(ours.flatten(1).std(-1), expected, rtol=0.02, atol=0.0)
        assert len({tuple(w.flatten()[:8].tolist()) for w in weight.flatten(0, 1)}) == 2 * critics  # no two alike


# -- the parts of an update --------------------------------------------------------------------------------------------


def test_actor_step_leaves_the_critics_alone() -> None:
    learner = probe(critic_learning_rate=0.0, target_rate=1.0, temperature_learning_rate=0.0)
    before, actor = [p.clone() for p in learner.critics], [p.clone() for p in learner.actor]
    train(learner, better_action(), 3)
    assert all(torch.equal(p, q) for p, q in zip(before, learner.critics, strict=True))
    assert not torch.equal(actor[-1], learner.actor[-1])


def test_critic_step_leaves_the_actor_alone() -> None:
    learner = probe(actor_learning_rate=0.0)
    before, critics = [p.clone() for p in learner.actor], [p.clone() for p in learner.critics]
    train(learner, better_action(), 3)
    assert all(torch.equal(p, q) for p, q in zip(before, learner.actor, strict=True))
    assert not torch.equal(critics[-1], learner.critics[-1])


def test_target_critics_are_the_exact_moving_average() -> None:
    learner = probe(target_rate=0.25)
    old = [p.clone() for p in learner.target_critics]
    assert all(torch.equal(p, q) for p, q in zip(old, learner.critics, strict=True))
    train(learner, better_action(), 1)
    for then, now, critic in zip(old, learner.target_critics, learner.critics, strict=True):
        torch.testing.assert_close(now, 0.75 * then + 0.25 * critic, rtol=1e-6, atol=1e-7)
        assert not torch.equal(now, critic)


def with_entropy(log_std: float, **settings: Any) -> SAC:
    """A learner with the policy tanh(N(0, exp(log_std)^2)), which does not change."""
    learner = probe(actor_learning_rate=0.0, temperature_learning_rate=0.1, **settings)
    for p in learner.actor:
        p.zero_()
    learner.actor[-1][..., 1] = log_std
    return learner


def test_temperature_rises_where_entropy_is_too_low_and_falls_where_it_is_too_high() -> None:
    # The target is -1; exp(-4) is an entropy of about -2.6, exp(-0.2) one of about 0.67.
    low, high = with_entropy(-4.0, initial_temperature=0.1), with_entropy(-0.2, initial_temperature=0.1)
    for learner in (low, high):
        train(learner, endless(), 1)
    assert low.log_temperature.tolist() == pytest.approx([math.log(0.1) + 0.1] * 2, rel=1e-4)
    assert high.log_temperature.tolist() == pytest.approx([math.log(0.1) - 0.1] * 2, rel=1e-4)
    assert low.target_entropy == -1.0


def test_temperature_stays_below_its_maximum() -> None:
    capped = with_entropy(-4.0, initial_temperature=0.9, max_temperature=1.0)
    free = with_entropy(-4.0, initial_temperature=0.9, max_temperature=None)
    for learner in (capped, free):
        train(learner, endless(), 5)
    assert capped.log_temperature.tolist() == [0.0, 0.0]
    assert free.log_temperature.tolist() == pytest.approx([math.log(0.9) + 0.5] * 2, abs=0.02)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_actor_learning_rate_falls_along_a_half_cosine(progress: float, share: float) -> None:
    # Adam's first step is the learning rate in size, whatever the gradient's.
    learner = SAC(3, 2, (0,), hidden=(8,), actor_learning_rate=1e-3, critic_learning_rate=1e-3)
    actor, critics = [p.clone() for p in learner.actor], [p.clone() for p in learner.critics]
    batch, noise = batches((0,), 1)[0]
    learner.update(batch, noise, torch.tensor(progress))
    moved = max((p - q).abs().max().item() for p, q in zip(actor, learner.actor, strict=True))
    assert moved == pytest.approx(1e-3 * share, rel=1e-2, abs=1e-9)
    moved = max((p - q).abs().max().item() for p, q in zip(critics, learner.critics, strict=True))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_no_schedule_unless_asked_for() -> None:
    learner = SAC(3, 2, (0,), hidden=(8,), actor_learning_rate=1e-3, cosine_actor=False)
    actor = [p.clone() for p in learner.actor]
    batch, noise = batches((0,), 1)[0]
    learner.update(batch, noise, torch.tensor(1.0))
    moved = max((p - q).abs().max().item() for p, q in zip(actor, learner.actor, strict=True))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_target_takes_the_penalty_off_and_adds_regularisers_to_the_loss() -> None:
    class Half:
        def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
            return obs_dim

        def __call__(self, batch: Batch, target_q: Any, policy: Any, noise: Tensor) -> Tensor:
            assert noise.shape == (2, 3)
            assert target_q(batch.transition.obs, batch.transition.action).shape == (2, 2, 16)
            return torch.full_like(batch.transition.reward, 0.5)

    plain, penalised = SAC(3, 2, (0, 1), hidden=(8,)), SAC(3, 2, (0, 1), hidden=(8,), target_penalty=Half())
    assert penalised.noise_size(16) == plain.noise_size(16) + 3 == 2 * 16 * 2 + 3

    class Ten:
        standardised = False

        def noise_size(self, batch_size: int, obs_dim: int, action_dim: int) -> int:
            return 0

        def __call__(self, opinion: CriticPass, noise: Tensor, observation_std: Tensor) -> Tensor:
            assert noise.shape == (2, 0)
            return 10 + 0 * opinion.values.mean((-2, -1))

    regular = SAC(3, 2, (0, 1), hidden=(8,), regularisers=[Ten()])
    batch, noise = batches((0, 1), 1)[0]
    longer = torch.cat([noise, torch.zeros(2, 3)], -1)
    first = plain.update(batch, noise, torch.tensor(0.0))
    second = penalised.update(batch, longer, torch.tensor(0.0))
    third = regular.update(batch, noise, torch.tensor(0.0))
    torch.testing.assert_close(second["target"], first["target"] - 0.5)
    torch.testing.assert_close(third["critic_loss"], first["critic_loss"] + 10)
    for name, metric in first.items():
        assert metric.shape == (2,), name
        assert not metric.requires_grad


def test_the_target_is_kept_at_its_minimum() -> None:
    free, kept = probe(), probe(target_minimum=0.0)
    batch = Batch(repeat(observed_value(), 66, 2), 0)  # one step, reward -1 or 1
    penalty = torch.full((2, 66), 0.25)
    assert free.target(batch, torch.zeros(2, 66, 1), penalty).unique().tolist() == [-1.25, 0.75]
    assert kept.target(batch, torch.zeros(2, 66, 1), penalty).unique().tolist() == [0.0, 0.75]


def test_a_deterministic_backup_leaves_the_entropy_out() -> None:
    soft, plain = SAC(3, 2, (0, 1), hidden=(8,)), SAC(3, 2, (0, 1), hidden=(8,), soft_backup=False)
    batch, noise = batches((0, 1), 1)[0]
    noise = noise[:, :32].reshape(2, 16, 2)
    step = batch.transition
    action = soft.sample(step.next_obs, noise)
    value = soft.target_q(step.next_obs, action).amin(-2)
    expected = step.reward + 0.99 * torch.where(step.terminal, 0.0, value)
    torch.testing.assert_close(plain.target(batch, noise), expected)
    assert not torch.equal(soft.target(batch, noise), plain.target(batch, noise))


def test_max_q_backup_is_that_of_a_loop() -> None:
    # min over critics of the max over sampled actions, each critic choosing its own best action.
    learner = SAC(3, 2, (0, 1), hidden=(8,), critics=3, backup_actions=4, soft_backup=False)
    batch, _ = batches((0, 1), 1)[0]
    assert learner.noise_size(16) == (1 + 4) * 16 * 2
    noise = torch.randn(2, 4 * 16, 2)
    step = batch.transition
    opinions = []
    for n in range(4):
        action = learner.sample(step.next_obs, noise[:, n * 16 : (n + 1) * 16])
        opinions.append(learner.target_q(step.next_obs, action))  # (S, E, B)
    value = torch.stack(opinions).amax(0).amin(1)
    expected = step.reward + 0.99 * torch.where(step.terminal, 0.0, value)
    torch.testing.assert_close(learner.target(batch, noise), expected)
    learner.update(batch, torch.randn(2, learner.noise_size(16)), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"learner.backup_actions=4: .* give learner.soft_backup=false"):
        SAC(3, 2, (0, 1), backup_actions=4)


def test_terminal_rows_ignore_even_values_that_are_not_finite() -> None:
    learner = probe()
    batch = Batch(repeat(constant_value(), 4, 2), 0)
    broken = batch.transition._replace(next_obs=torch.full((2, 4, 1), math.inf))
    target = learner.target(Batch(broken, 0), torch.zeros(2, 4, 1))
    assert target.tolist() == [[1.0] * 4] * 2


# -- acting and state --------------------------------------------------------------------------------------------------


def test_acting() -> None:
    learner = SAC(3, 2, (0, 1), hidden=(8,))
    obs, noise = torch.randn(2, 500, 3), torch.randn(2, 500, 2)
    mean = learner.act(obs, mode="mean")
    assert mean.shape == (2, 500, 2)
    assert torch.equal(mean, learner.act(obs, mode="sample", noise=torch.zeros_like(noise)))
    sampled = learner.act(obs, mode="sample", noise=noise)
    assert torch.equal(sampled, learner.sample(obs, noise))
    assert not torch.equal(sampled, mean)
    assert sampled.abs().max().item() <= 1.0
    with pytest.raises(ValueError, match="needs noise"):
        learner.act(obs, mode="sample")


def test_state_round_trip_is_bitwise() -> None:
    seeds = (0, 1)
    steps = batches(seeds, 30)
    straight, resumed = SAC(3, 2, seeds, hidden=(16,)), SAC(3, 2, seeds, hidden=(16,))
    for i, (batch, noise) in enumerate(steps):
        if i == 13:
            resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
        straight.update(batch, noise, torch.tensor(i / 30))
    run(resumed, steps, first=13)
    for ours, theirs in zip(learnt(straight), learnt(resumed), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="tensor 0 has shape"):
        SAC(3, 2, seeds, hidden=(8,)).load_state_dict(straight.state_dict())
    with pytest.raises(ValueError, match="tensor 0 has shape"):
        SAC(3, 2, (0,), hidden=(16,)).load_state_dict(straight.state_dict())
