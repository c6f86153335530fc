"""The Model-Bellman inconsistency against numbers worked out by hand, against a plain loop, and through SAC."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from probes import everywhere, joined, observed_value, random_data, value
from torch import Tensor

from mbrl.dynamics.ensemble import EliteView, GaussianEnsemble
from mbrl.learn.penalties import ModelBellmanInconsistency
from mbrl.learn.sac import SAC
from mbrl.nets import generator, randn
from mbrl.types import Batch, Prediction, Transition

SEEDS, ROWS, REAL = (0, 5), 12, 4


@dataclass
class Jumps:
    """Member e predicts next_obs = jumps[e] with the same std for all, whatever it is asked."""

    jumps: Sequence[float]
    std: float = 0.0
    action_dim: int = 1

    def __post_init__(self) -> None:
        self.members = len(self.jumps)
        self.elites = torch.arange(self.members).unsqueeze(0)
        self.asked = 0

    def predict(self, obs: Tensor, action: Tensor) -> Prediction:
        """obs (S, N, 1), action (S, N, 1) -> mean, std (S, E, N, 2)."""
        self.asked = obs.shape[-2]
        mean = torch.tensor(self.jumps).view(-1, 1, 1).expand(obs.shape[0], -1, self.asked, 2)
        return Prediction(mean, torch.full_like(mean, self.std))


def observation(obs: Tensor, action: Tensor) -> Tensor:
    """Two critics of which the lower one says the observation."""
    return torch.stack([obs[..., 0], obs[..., 0] + 1], -2)


def still(obs: Tensor, noise: Tensor) -> Tensor:
    return torch.zeros_like(noise)


def minibatch(seeds: Sequence[int] = (0,), real_rows: int = REAL, obs_dim: int = 1, action_dim: int = 1) -> Batch:
    parts = [random_data(ROWS, obs_dim, action_dim, seed) for seed in seeds]
    step = Transition(*(torch.stack(columns) for columns in zip(*parts, strict=True)))
    return Batch(step._replace(real=(torch.arange(ROWS) < real_rows).expand(len(seeds), -1)), real_rows)


def fitted(seeds: Sequence[int] = SEEDS) -> GaussianEnsemble:
    model = GaussianEnsemble(3, 2, seeds, members=4, elites=3, hidden=(16,), max_epochs=2)
    model.fit(random_data(300))
    return model


def inputs(penalty: ModelBellmanInconsistency, seeds: Sequence[int] = SEEDS) -> tuple[Batch, Tensor]:
    """A minibatch and noise: each seed's own, whatever stands beside it."""
    noise = randn((penalty.noise_size(ROWS, 3, 2),), [generator(seed, "noise") for seed in seeds])
    return minibatch(seeds, obs_dim=3, action_dim=2), noise


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jumps", "expected"),
    [
        ((3.0, 3.0, 3.0), 0.0),
        ((1.0, 4.0), 3.0 / math.sqrt(2)),  # of two numbers the unbiased std is their distance over the root of 2
        ((0.0, 1.0, 2.0), 1.0),
    ],
)
def test_members_that_are_sure_disagree_by_their_std(jumps: tuple[float, ...], expected: float) -> None:
    penalty = ModelBellmanInconsistency(Jumps(jumps), coefficient=2.0, samples=3)
    noise = torch.randn(1, penalty.noise_size(ROWS, 1, 1))
    out = penalty(minibatch(), observation, still, noise)
    assert out[0, :REAL].tolist() == [0.0] * REAL
    assert out[0, REAL:].tolist() == pytest.approx([2.0 * expected] * (ROWS - REAL), abs=1e-5)


def test_samples_are_averaged_before_members_are_compared() -> None:
    # One member's values are N(0, 1); the mean of 400 has a std of 1/20, and of these the members' spread is taken.
    penalty = ModelBellmanInconsistency(Jumps([0.0] * 50, std=1.0), coefficient=1.0, samples=400)
    out = penalty(minibatch(real_rows=0), observation, still, torch.randn(1, penalty.noise_size(ROWS, 1, 1)))
    assert out.square().mean().sqrt().item() == pytest.approx(0.05, rel=0.15)


def test_only_imagined_rows_are_asked_about_and_pay() -> None:
    model = Jumps((0.0, 1.0))
    penalty = ModelBellmanInconsistency(model, 1.0)
    noise = torch.randn(1, penalty.noise_size(ROWS, 1, 1))
    for real_rows in (0, REAL):
        out = penalty(minibatch(real_rows=real_rows), observation, still, noise)
        assert model.asked == ROWS - real_rows
        assert out.count_nonzero().item() == ROWS - real_rows
    batch = minibatch()
    stand_ins = Batch(batch.transition._replace(real=torch.ones(1, ROWS, dtype=torch.bool)), REAL)  # an empty ring
    assert not penalty(stand_ins, observation, still, noise).any()


def test_a_model_with_one_member_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dynamics.elites is 1; raise dynamics.elites"):
        ModelBellmanInconsistency(Jumps((0.0,)), 1.0)


# -- against a plain loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 4])
def test_penalty_is_that_of_a_loop(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelBellmanInconsistency, "_together", lambda self, device: together)
    model = fitted()
    penalty = ModelBellmanInconsistency(model.elite_view(), 0.7, samples=4)
    learner = SAC(3, 2, SEEDS, hidden=(16,), critics=3)
    batch, noise = inputs(penalty)
    out = penalty(batch, learner.target_q, learner.sample, noise)
    obs, action = batch.transition.obs, batch.transition.action
    imagined = ROWS - REAL
    for s in range(len(SEEDS)):
        numbers = noise[s].view(-1, 5)[: 4 * 3 * imagined].view(4, 3, imagined, 5)
        for n in range(imagined):
            said = model.predict(obs[:, REAL + n].unsqueeze(1), action[:, REAL + n].unsqueeze(1))
            values = torch.empty(4, 3)
            for k, e in enumerate(model.elites[s].tolist()):
                for m in range(4):
                    drawn = said.mean[s, e, 0, :3] + said.std[s, e, 0, :3] * numbers[m, k, n, :3]
                    next_obs = drawn.expand(len(SEEDS), 1, 3)
                    chosen = learner.sample(next_obs, numbers[m, k, n, 3:].expand(len(SEEDS), 1, 2))
                    values[m, k] = learner.target_q(next_obs, chosen)[s, :, 0].min()
            expected = 0.7 * values.mean(0).std().item()
            assert out[s, REAL + n].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_stacked_seeds_equal_separate_ones() -> None:
    model = fitted()
    penalty = ModelBellmanInconsistency(model.elite_view(), 1.0, samples=2)
    learner = SAC(3, 2, SEEDS, hidden=(16,), target_penalty=penalty)
    for s, seed in enumerate(SEEDS):
        alone_model = GaussianEnsemble(3, 2, [seed], members=4, elites=3, hidden=(16,))
        alone_model.load_state_dict({name: tensor[s : s + 1] for name, tensor in model.state_dict().items()})
        own = ModelBellmanInconsistency(alone_model.elite_view(), 1.0, samples=2)
        alone = SAC(3, 2, [seed], hidden=(16,), target_penalty=own)
        together = penalty(inputs(penalty)[0], learner.target_q, learner.sample, inputs(penalty)[1])
        single = own(inputs(own, [seed])[0], alone.target_q, alone.sample, inputs(own, [seed])[1])
        torch.testing.assert_close(together[s], single[0], rtol=1e-4, atol=1e-6)


# -- through a learner -------------------------------------------------------------------------------------------------


def test_value_of_an_imagined_step_is_its_reward_minus_the_penalty() -> None:
    # Real rows teach V(-1) = -1 and V(1) = 1. The imagined step from 0 earns nothing and ends; one member says that it
    # leads to -1, the other to 1. The std of the two values is the root of 2, and a terminal row pays like any other.
    penalty = ModelBellmanInconsistency(Jumps((-1.0, 1.0)), coefficient=0.5, samples=2)
    learner = SAC(
        1, 1, SEEDS, hidden=(32, 32), discount=0.5, target_rate=0.1, critic_learning_rate=5e-3, soft_backup=False,
        target_penalty=penalty,
    )  # fmt: skip
    taught, imagined = observed_value(), everywhere(0.0, 0.0, 0.0, True)
    first, rows = len(taught.reward), len(taught.reward) + len(imagined.reward)
    data = joined(taught, imagined._replace(real=torch.zeros_like(imagined.real)))
    batch = Batch(Transition(*(x.expand(2, *x.shape) for x in data)), first)
    sources = [generator(seed, "probe") for seed in SEEDS]
    for i in range(400):
        metrics = learner.update(batch, randn((learner.noise_size(rows),), sources), torch.tensor(i / 400))
    assert value(learner, 1.0).flatten().tolist() == pytest.approx([1.0] * 4, abs=0.05)
    assert value(learner, 0.0).flatten().tolist() == pytest.approx([-0.5 * math.sqrt(2)] * 4, abs=0.05)
    share = len(imagined.reward) / rows
    assert metrics["target_penalty"].tolist() == pytest.approx([share * 0.5 * math.sqrt(2)] * 2, abs=0.03)


def test_an_update_is_one_graph_that_knows_a_model_fitted_later() -> None:
    torch._dynamo.reset()

    def learner(view: EliteView) -> SAC:
        penalty = ModelBellmanInconsistency(view, 1.0, samples=2)
        return SAC(3, 2, SEEDS, hidden=(16,), target_penalty=penalty, soft_backup=False, target_minimum=-1.0)

    model = GaussianEnsemble(3, 2, SEEDS, members=4, elites=3, hidden=(16,), max_epochs=2)
    graphs = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    eager, traced = learner(model.elite_view()), learner(model.elite_view())
    assert traced.target_penalty is not None
    batch, _ = inputs(traced.target_penalty)  # type: ignore[arg-type]
    step = torch.compile(traced.update, backend=counted, fullgraph=True, dynamic=False)
    for i in range(4):
        if i == 2:
            before = copy.deepcopy(model.folded_elites.layers)
            model.fit(random_data(300))
            assert not torch.equal(before[0], model.folded_elites.layers[0])
        noise = randn((eager.noise_size(ROWS),), [generator(seed, "noise", i) for seed in SEEDS])
        ours = step(batch, noise, torch.tensor(0.1))
        theirs = eager.update(batch, noise, torch.tensor(0.1))
        for name, metric in theirs.items():
            torch.testing.assert_close(ours[name], metric, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
