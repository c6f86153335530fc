"""Configuration: what the files say can be built, tuned values are found in their order, the command line wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

import mbrl
from mbrl import compose
from mbrl.compose import ConfigError
from mbrl.data.tasks import Task, all_tasks, find_task, task_for
from mbrl.dynamics.ensemble import EliteView, GaussianEnsemble
from mbrl.dynamics.oracle import OracleModel
from mbrl.learn.backups import LowerConfidenceBound, Minimum, RandomPair
from mbrl.learn.penalties import ModelBellmanInconsistency
from mbrl.learn.regularisers import Robust
from mbrl.learn.sac import SAC
from mbrl.nets import generator, rand, randn
from mbrl.rollout.coplanner import UncertaintyPlanner

FOLDER = compose.config_folder()
GROUPS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name not in ("tuned", "hydra"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((FOLDER / group).glob("*.yaml"))]
TUNED = sorted((FOLDER / "tuned").glob("*.yaml"))


@pytest.fixture(autouse=True)
def resolvers() -> None:
    compose.register_resolvers()


def composed(*overrides: str, task: Task | None = None) -> DictConfig:
    """The resolved configuration of `mbrl train` for a task, the built-in one by default."""
    compose.check_overrides(overrides, "train")
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        cfg = hydra_compose("train", overrides=list(overrides))
    # The run directory is Hydra's business: its name holds the time and the job.
    cfg.run_dir = "unused"
    return compose.resolve(cfg, task or find_task("pendulum"))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


# -- where the files are -----------------------------------------------------------------------------------------------


def test_config_folder_of_a_checkout_and_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (FOLDER / "train.yaml").is_file()
    assert {"algo", "dynamics", "penalty", "filter", "tuned"} <= {path.name for path in FOLDER.iterdir()}
    package = tmp_path / "site-packages" / "mbrl"
    package.mkdir(parents=True)
    monkeypatch.setattr(mbrl, "__file__", str(package / "__init__.py"))
    assert compose.config_folder() == tmp_path / "site-packages" / "configs"
    (package / "configs").mkdir()
    assert compose.config_folder() == package / "configs"


# -- every file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_composes_and_its_parts_are_made(group: str, option: str) -> None:
    needed = ["score=closest_to_mean"] if (group, option) == ("select", "scored") else []
    cfg = composed(f"{group}=[{option}]" if group == "filter" else f"{group}={option}", *needed)
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    learner = compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"), model)
    score = compose.build_score(cfg, problem, [0], torch.device("cpu"))
    imagination = compose.build_imagination(cfg, problem, model, score)
    assert isinstance(model, OracleModel if option == "oracle" else GaussianEnsemble)
    assert isinstance(learner, SAC)
    assert imagination.length == cfg.rollout.length
    assert compose.build_schedule(cfg).updates == cfg.updates


@pytest.mark.parametrize("algo", sorted(path.stem for path in (FOLDER / "algo").glob("*.yaml")))
@pytest.mark.parametrize("chosen", ["[]", *sorted(path.stem for path in (FOLDER / "filter").glob("*.yaml"))])
def test_every_algorithm_with_every_filter(algo: str, chosen: str) -> None:
    cfg = composed(f"algo={algo}", f"filter={chosen}", "dynamics.hidden=[8]")
    problem = compose.load_problem(cfg)
    cfg.learner.target_minimum = compose.target_minimum(cfg, problem)
    model = compose.build_model(cfg, problem, [0, 1], torch.device("cpu"))
    learner = compose.build_learner(cfg, 3, 1, [0, 1], torch.device("cpu"), model)
    table = compose.build_table(cfg, problem, [0, 1], torch.device("cpu"))
    sources = [generator(seed, "rollout") for seed in (0, 1)]
    score = compose.build_score(cfg, problem, [0, 1], torch.device("cpu"))
    imagination = compose.build_imagination(cfg, problem, model, score)
    data = problem.dataset.transitions
    imagination.calibrate(data.obs[:50].expand(2, -1, -1), data.action[:50].expand(2, -1, -1), sources)
    imagined = compose.imagines(cfg)
    if imagined:
        imagination.fill(table, 50, learner.sample, sources)
    batch = table.sample(rand((32,), sources, dtype=torch.float64), 4 if imagined else 32)
    metrics = learner.update(batch, randn((learner.noise_size(32),), sources), torch.tensor(0.0))
    assert all(torch.isfinite(metric).all() for metric in metrics.values())


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_target_of_every_file_resolves(path: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    for target in targets(node):
        if target == "hydra.utils.get_method" or target.startswith(
            "hydra_plugins.mbrl."
        ):  # a sweeper's registered name
            continue
        assert callable(get_class(target))


def test_every_leaf_with_a_target_is_made() -> None:
    cfg = composed("penalty=ensemble_std")
    for name in ("actions", "select", "penalise"):
        assert instantiate(cfg.rollout[name]) is not None
    assert instantiate(cfg.learner.backup)(torch.tensor([[3.0], [1.0]]), torch.empty(0)).tolist() == [1.0]


def test_the_defaults_of_constructors_and_files_agree() -> None:
    """A default lives once; where a file repeats it, for people to see, it must not differ."""
    cfg = composed(task=find_task("hopper-medium-v2"))
    model = GaussianEnsemble(3, 1, [0])
    for name in (
        "members",
        "learning_rate",
        "batch_size",
        "holdout_fraction",
        "holdout_max",
        "patience",
        "improvement",
    ):
        assert cfg.dynamics[name] == getattr(model, name), name
    assert cfg.dynamics.elites == model.elite_count
    learner = SAC(3, 1, [0])
    assert (cfg.learner.discount, cfg.learner.target_rate) == (learner.discount, learner.target_rate)
    assert [p.shape for p in learner.actor] == [
        p.shape for p in compose.build_learner(cfg, 3, 1, [0], torch.device("cpu")).actor
    ]


# -- choices that reach the parts --------------------------------------------------------------------------------------


def parts_of(*overrides: str) -> list[str]:
    cfg = composed(*overrides)
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    score = compose.build_score(cfg, problem, [0], torch.device("cpu"))
    return [type(part).__name__ for part in compose.build_imagination(cfg, problem, model, score).filters.filters]


def test_filters_come_in_their_order() -> None:
    assert parts_of() == ["Clip", "Terminate", "Penalise"]
    assert parts_of("penalty=none") == ["Clip", "Terminate"]
    assert parts_of("filter=[]") == parts_of()
    assert parts_of("filter=[truncate]") == parts_of("filter=[morec]") == ["Clip", "Terminate", "Penalise", "Truncate"]


def test_no_clip_lifts_the_limits() -> None:
    assert composed().rollout.clip.margin == 0.5
    assert composed("filter=[no_clip]").rollout.clip.margin == float("inf")
    assert composed("filter=no_clip").rollout.clip.margin == float("inf")
    assert parts_of("filter=[no_clip]") == parts_of()


def test_penalty_and_coefficient_reach_the_filter() -> None:
    cfg = composed("penalty=max_pairwise", "rollout.penalise.coefficient=3.5")
    penalise = instantiate(cfg.rollout.penalise)
    assert (penalise.name, penalise.coefficient, penalise.needs_members) == ("max_pairwise", 3.5, True)


def test_one_elite_for_each_lane_where_nobody_looks_at_the_spread() -> None:
    for words, alone in ((["penalty=none"], True), ([], False), (["penalty=ensemble_std"], False)):
        cfg = composed(*words)
        problem = compose.load_problem(cfg)
        model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
        assert (compose.build_imagination(cfg, problem, model).simulator is not None) is alone


@pytest.mark.parametrize("penalty", ["max_pairwise", "ll_variance", "loo_kl"])
def test_a_single_model_has_no_disagreement(penalty: str) -> None:
    cfg = composed("dynamics=single", f"penalty={penalty}")
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    assert model.members == 1
    with pytest.raises(
        ConfigError, match=rf"{penalty} measures how several members disagree.*choose penalty=max_aleat"
    ):
        compose.build_imagination(cfg, problem, model)


@pytest.mark.parametrize("option", ["single", "single_lipschitz"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["penalty=loo_kl"], "several members disagree, and dynamics.members is 1; choose penalty=max_aleatoric"),
        (["algo=mobile"], "how far several elites disagree, and dynamics.elites is 1; raise dynamics.elites"),
        (
            ["filter=[morec]", "rollout.select.resample=1"],
            "one sample of a single model leaves a score nothing to choose from; raise rollout.select.resample, or",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_several_members_says_so(option: str, words: list[str], said: str) -> None:
    cfg = composed(f"dynamics={option}", *words)
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    score = compose.build_score(cfg, problem, [0], torch.device("cpu"))

    def build() -> None:
        compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"), model)
        compose.build_imagination(cfg, problem, model, score)

    with pytest.raises(ConfigError, match=said):
        build()


def test_one_elite_has_no_disagreement_either() -> None:
    words = ["dynamics.members=3", "dynamics.elites=1", "penalty=max_pairwise"]
    assert parts_of(*words) == ["Clip", "Terminate", "Penalise"]
    with pytest.raises(ConfigError, match=r"several members disagree, and dynamics.elites is 1; choose penalty=max_al"):
        parts_of(*words, "rollout.members=elites")


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        ([], 0, ""),
        (["filter=[truncate]"], 1, "lanes end where the world is noisy"),
        (["filter=[truncate]", "rollout.truncate.signal=max_std"], 0, ""),
        (["filter=[morec]", "rollout.truncate=null"], 1, "takes the model for better than it is"),
        (["filter=[morec]", "score=ranking"], 2, "63 %"),
        (["filter=[morec]", "score=closest_to_mean", "rollout.truncate=null"], 0, ""),
        (["algo=edac", "filter=[truncate]"], 0, ""),  # which asks no model
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_means_less_with_a_single_model_is_said(words: list[str], count: int, said: str) -> None:
    for option, expected in (("single_lipschitz", count), ("ensemble", 0)):
        cfg = composed(f"dynamics={option}", *words)
        problem = compose.load_problem(cfg)
        model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
        notes = compose.single_model_notes(cfg, problem, model)
        assert len(notes) == expected
        assert said in " ".join(notes) or not expected


def test_flat_critics_are_a_choice_beside_every_other() -> None:
    chosen = learner_of("algo=edac", "filter=[spectral,robust_uniform,gradient_penalty,ravl]", "learner.critics=3")
    assert [type(term).__name__ for term in chosen.regularisers] == ["Diversity", "Robust", "GradientPenalty"]
    assert chosen.spectral is not None
    assert chosen.spectral.radius == 5.0
    robust = chosen.regularisers[1]
    assert isinstance(robust, Robust)
    assert (robust.attack, robust.radius, robust.weight, robust.detach_clean) == ("uniform", 0.05, 1.0, False)
    fgsm = learner_of("filter=[robust_fgsm]", "learner.regularisers.robust.weight=3").regularisers[0]
    assert isinstance(fgsm, Robust)
    assert (fgsm.attack, fgsm.weight) == ("fgsm", 3)
    assert learner_of().spectral is None


def test_the_unit_of_observations_is_their_std() -> None:
    problem = compose.load_problem(composed("filter=[robust_fgsm]"))
    data = problem.dataset.transitions
    std = compose.observation_std(problem)
    torch.testing.assert_close(std, data.obs.std(0, correction=0))
    still = dataclasses.replace(problem.dataset, transitions=data._replace(obs=data.obs * torch.tensor([1.0, 0, 1])))
    assert compose.observation_std(dataclasses.replace(problem, dataset=still))[1] == 0
    cfg = composed("filter=[robust_fgsm]", "learner.hidden=[8]")
    learner = compose.build_learner(cfg, 3, 1, [0, 1], torch.device("cpu"), observation_std=std)
    assert torch.equal(learner.observation_std, std.expand(2, -1))


@pytest.mark.parametrize(
    ("words", "measured"),
    [
        ([], False),
        (["lipschitz.measure=true"], True),
        (["filter=[spectral]"], True),
        (["filter=[robust_uniform]"], True),
        (["filter=[gradient_penalty]"], True),
        (["filter=[gradient_penalty]", "lipschitz.measure=false"], False),
        (["dynamics=single"], True),
        (["dynamics=oracle"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_how_flat_critics_are_is_measured_where_it_matters(words: list[str], measured: bool) -> None:
    cfg = composed(*words)
    model = compose.build_model(cfg, compose.load_problem(cfg), [0], torch.device("cpu"))
    assert compose.measures_lipschitz(cfg, model, learner_of(*words)) == measured
    del cfg["lipschitz"]  # as in runs from before
    assert compose.measures_lipschitz(cfg, model, learner_of()) == (words == ["dynamics=single"])


def test_mobile_asks_the_elites_and_leaves_rewards_alone() -> None:
    assert parts_of("algo=mobile") == ["Clip", "Terminate"]
    cfg = composed("algo=mobile", task=find_task("hopper-medium-v2"))
    model = GaussianEnsemble(3, 1, [0], members=4, elites=3)
    learner = compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"), model)
    penalty = learner.target_penalty
    assert isinstance(penalty, ModelBellmanInconsistency)
    assert isinstance(penalty.model, EliteView)
    assert (penalty.model.members, penalty.coefficient, penalty.samples) == (3, 1.5, 10)
    assert (learner.soft_backup, learner.target_minimum) == (False, 0.0)
    assert learner.log_temperature.exp().item() == pytest.approx(0.2)
    assert learner.temperature_optimiser.learning_rate.item() == 0.0
    # A policy that only acts needs no model.
    assert compose.build_learner(cfg, 3, 1, [0], torch.device("cpu")).target_penalty is None


def learner_of(*overrides: str, task: str = "pendulum") -> SAC:
    model = GaussianEnsemble(3, 1, [0], members=4, elites=3)
    cfg = composed(*overrides, "learner.hidden=[8]", task=find_task(task))
    return compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"), model)


@pytest.mark.parametrize("algo", ["sac_n", "edac"])
def test_model_free_algorithms_see_the_dataset_alone(algo: str) -> None:
    assert composed(f"algo={algo}").real_ratio == 1.0
    assert parts_of(f"algo={algo}") == ["Clip", "Terminate"]
    learner = learner_of(f"algo={algo}")
    assert learner.target_penalty is None
    assert (learner.cosine_actor, learner.max_log_temperature) == (False, float("inf"))
    assert learner.soft_backup
    assert [type(term).__name__ for term in learner.regularisers] == ([] if algo == "sac_n" else ["Diversity"])


def critics_and_diversity(*overrides: str, task: str) -> tuple[int, float]:
    cfg = composed(*overrides, task=find_task(task))
    return cfg.learner.critics, cfg.learner.regularisers.diversity.weight


def test_ravl_is_edac_s_critics_on_imagined_rows_without_a_penalty() -> None:
    assert parts_of("algo=ravl") == ["Clip", "Terminate"]
    cfg = composed("algo=ravl", task=find_task("halfcheetah-medium-v2"))
    assert (cfg.real_ratio, cfg.rollout.length, cfg.updates, cfg.learner.hidden) == (0.05, 5, 3_000_000, [256] * 3)
    assert cfg.learner.actor_learning_rate == cfg.learner.temperature_learning_rate == 3e-4
    learner = learner_of("algo=ravl")
    assert (len(learner.regularisers), type(learner.backup), learner.critics[0].shape[1]) == (1, Minimum, 5)
    assert not learner.cosine_actor
    assert learner.target_penalty is None


def test_ravl_has_one_table_whether_it_is_an_algorithm_or_a_filter() -> None:
    for task, expected in (
        ("halfcheetah-medium-v2", (10, 1.0)), ("hopper-medium-v2", (50, 1.0)), ("pendulum", (5, 1.0)),
    ):  # fmt: skip
        for words in (["algo=ravl"], ["algo=mopo", "filter=[ravl]"], ["algo=edac", "filter=[ravl]"]):
            assert critics_and_diversity(*words, task=task) == expected, words


def test_ravl_s_critics_leave_the_rest_of_an_algorithm_alone() -> None:
    task = find_task("hopper-medium-v2")
    plain, with_critics = composed(task=task), composed("filter=[ravl]", task=task)
    assert (with_critics.learner.critics, with_critics.learner.regularisers.diversity.weight) == (50, 1.0)
    plain.learner.critics, plain.learner.regularisers = with_critics.learner.critics, with_critics.learner.regularisers
    plain.tables = with_critics.tables
    assert plain == with_critics
    assert parts_of("filter=[ravl]") == ["Clip", "Terminate", "Penalise"]  # RAVL + MOPO
    assert parts_of("filter=[morec,ravl]") == parts_of("filter=[ravl,morec]") == parts_of("filter=[morec]")
    both = composed("filter=[morec,ravl]", task=task)  # RAVL + MOREC
    assert (both.rollout.length, both.rollout.penalise.coefficient, both.learner.critics) == (100, 15, 50)
    mobile = learner_of("algo=mobile", "filter=[ravl]")  # and its penalty is taken off a target of five critics
    assert mobile.target_penalty is not None
    assert mobile.critics[0].shape[1] == 5
    assert composed("filter=[ravl]", "learner.critics=3", "learner.regularisers.diversity=null").learner.critics == 3
    assert learner_of("filter=[ravl]", "learner.regularisers.diversity=null").regularisers == ()


@pytest.mark.parametrize(
    ("task", "sac_n", "edac"),
    [
        ("halfcheetah-medium-v2", 10, (10, 1.0)),
        ("halfcheetah-random-v2", 10, (10, 0.0)),
        ("halfcheetah-medium-expert-v2", 10, (10, 5.0)),
        ("hopper-medium-v2", 500, (50, 1.0)),
        ("hopper-medium-replay-v2", 200, (50, 1.0)),
        ("walker2d-medium-v2", 20, (10, 1.0)),
        ("walker2d-expert-v2", 100, (10, 5.0)),
        ("pen-human-v1", 100, (20, 1000.0)),
        ("hammer-cloned-v1", 100, (50, 200.0)),
        ("antmaze-umaze-v2", 25, (10, 1.0)),
    ],
)
def test_published_numbers_of_critics(task: str, sac_n: int, edac: tuple[int, float]) -> None:
    assert composed("algo=sac_n", task=find_task(task)).learner.critics == sac_n
    assert critics_and_diversity("algo=edac", task=task) == edac


def test_backups_reach_the_learner() -> None:
    assert isinstance(learner_of().backup, Minimum)
    bound = learner_of("backup=lower_confidence_bound", "learner.backup.coefficient=2.5").backup
    assert isinstance(bound, LowerConfidenceBound)
    assert bound.coefficient == 2.5
    assert isinstance(learner_of("backup=random_pair", "learner.critics=10").backup, RandomPair)
    with pytest.raises(ConfigError, match=r"learner\.backup\.coefficient=-1: expected a number, 0 or more"):
        learner_of("backup=lower_confidence_bound", "learner.backup.coefficient=-1")
    asked = learner_of("filter=[ravl]", "backup=lower_confidence_bound")  # the command line wins
    assert isinstance(asked.backup, LowerConfidenceBound)
    # How run directories from before name the minimum.
    former = composed()
    former.learner.backup = {"_target_": "hydra.utils.get_method", "path": "mbrl.learn.backups.minimum"}
    assert isinstance(compose.build_learner(former, 3, 1, [0], torch.device("cpu")).backup, Minimum)
    with pytest.raises(ConfigError, match=r"^learner: learner.critics=1: backup=random_pair needs 2 critics or more"):
        learner_of("backup=random_pair", "learner.critics=1")


def test_targets_have_a_minimum_where_no_reward_is_negative() -> None:
    cfg = composed("algo=mobile")
    problem = compose.load_problem(cfg)
    rows = problem.dataset.transitions
    earned = dataclasses.replace(problem.dataset, transitions=rows._replace(reward=rows.reward - rows.reward.min()))
    assert rows.reward.min() < 0
    assert cfg.learner.target_minimum == "auto"
    assert compose.target_minimum(cfg, problem) is None
    assert compose.target_minimum(cfg, dataclasses.replace(problem, dataset=earned)) == 0.0
    assert compose.target_minimum(composed("algo=mobile", "learner.target_minimum=-3"), problem) == -3
    assert compose.target_minimum(composed(), problem) is None
    with pytest.raises(ConfigError, match=r"learner\.target_minimum=often: expected auto, a number, or null"):
        composed("learner.target_minimum=often")


# -- tuned values ------------------------------------------------------------------------------------------------------


def test_tuned_rows_by_name_then_family_then_default() -> None:
    default = compose.tuned_values("mopo", task_for("x.npz", "Swimmer-v5"))
    family = compose.tuned_values("mopo", find_task("mujoco/walker2d/expert-v0"))
    name = compose.tuned_values("mopo", find_task("walker2d-medium-replay-v2"))
    assert (default["rollout_length"], default["penalty_coefficient"]) == (5, 1.0)
    assert (family["rollout_length"], family["penalty_coefficient"]) == (5, 2.5)
    assert (name["rollout_length"], name["penalty_coefficient"]) == (1, 2.5)
    assert compose.tuned_values("mopo", find_task("walker2d-medium-v2"))["penalty_coefficient"] == 0.5
    assert name["updates"] == default["updates"] == 1_000_000
    neorl = compose.tuned_values("mobile", find_task("Walker2d-v3-high"))
    assert (neorl["rollout_length"], neorl["penalty_coefficient"], neorl["real_ratio"]) == (1, 2.5, 0.5)
    assert (neorl["soft_backup"], neorl["target_minimum"]) == (True, 0.0)


def test_the_command_line_beats_the_table() -> None:
    task = find_task("walker2d-medium-replay-v2")
    assert composed(task=task).rollout.length == 1
    assert composed("rollout.length=7", "updates=123", task=task).rollout.length == 7
    assert composed("rollout.length=7", "updates=123", task=task).updates == 123
    assert composed("dynamics.hidden=[8]", task=task).dynamics.hidden == [8]


def test_own_data_in_a_known_environment_take_its_family_row(tmp_path: Path) -> None:
    cfg = composed(task=task_for(str(tmp_path / "log.npz"), "Hopper-v5"))
    assert cfg.rollout.penalise.coefficient == 5.0
    assert cfg.dynamics.hidden == [200, 200, 200, 200]


def defaults(path: Path) -> set[str]:
    """Keys that a table has for every task; `<overlay>_<algo>.yaml` stands on `<overlay>.yaml` and `<algo>.yaml`."""
    stems = [path.stem, *path.stem.split("_", 1)]
    tables = [OmegaConf.load(p) for stem in stems if (p := path.with_name(f"{stem}.yaml")).exists()]
    return {str(key) for table in tables for key in table.get("default", {})}


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_every_tuned_row_names_a_task_or_family_and_only_known_keys(path: Path) -> None:
    table = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(table, dict)
    known = {"default"} | {word for task in all_tasks() for word in (task.name, task.family)}
    assert set(table) <= known, sorted(set(table) - known)
    for row, values in table.items():
        assert set(values) <= defaults(path), row


def test_every_tuned_key_is_used_and_every_used_key_is_there() -> None:
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml") if path.parent.name != "tuned")
    for path in TUNED:
        table = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(table, dict)
        for key in table.get("default", {}):
            assert f"${{tuned:{key}}}" in text, key


def test_a_filters_table_wins_over_the_algorithms() -> None:
    task = find_task("hopper-random-v2")
    plain, morec = composed(task=task), composed("filter=[morec]", task=task)
    assert (plain.rollout.length, plain.rollout.lanes, plain.rollout.penalise.coefficient) == (5, 50_000, 5.0)
    assert (morec.rollout.length, morec.rollout.lanes, morec.rollout.penalise.coefficient) == (100, 2000, 10)
    assert morec.rollout.select.pick == "argmax"  # of the recommended filter always
    published = composed("filter=[morec_published]", task=task)
    assert (published.rollout.truncate.signal, published.rollout.truncate.threshold) == ("score", 0.6)
    assert published.rollout.select.pick == "argmax"
    softmax = composed("filter=[morec_published]", task=find_task("hopper-medium-v2"))
    assert (softmax.rollout.select.pick, softmax.rollout.select.temperature) == ("softmax", 0.1)
    fixed = composed("filter=[morec]", task=find_task("Hopper-v3-high"))
    assert (fixed.learner.initial_temperature, fixed.learner.temperature_learning_rate) == (0.2, 0.0)
    assert fixed.real_ratio == 0.5
    own = composed("filter=[morec]", task=task_for("x.npz", "Swimmer-v5"))  # a task without a row
    assert (own.rollout.length, own.rollout.penalise.coefficient) == (100, 1.0)
    assert composed("filter=[morec]", "rollout.length=7", task=task).rollout.length == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["select=scored"], "select=scored needs a score to decide by: choose score=residual"),
        (["filter=[truncate]", "rollout.truncate.signal=score"], "select=random_elite rates nothing; choose select=sc"),
        (["filter=[morec]", "rollout.select.pick=best"], "^select: rollout.select.pick=best is unknown"),
        (["filter=[morec]", "rollout.truncate.quantile=null"], "^truncate: rollout.truncate.quantile=None"),
        (["filter=[morec]", "score=closest_to_mean", "rollout.select.pick=corrected_mean"], "choose score=residual"),
    ],
)
def test_filters_that_lack_something_say_what(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parts_of(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env=null"], "dynamics=oracle is the true simulator, and there is none: give env="),
        (["filter=[morec]"], "scores and cuts by distrust judge a fitted model"),
        (["filter=[truncate]"], "scores and cuts by distrust judge a fitted model"),
        (["score=closest_to_mean"], "scores and cuts by distrust judge a fitted model"),
        (["penalty=max_pairwise"], "measures how several members disagree, and dynamics.members is 1"),
        (["rollout.penalise.scale=median"], "is measured on a fitted model, and dynamics=oracle has no doubt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_truth_has_no_use_for_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parts_of("dynamics=oracle", *words)


@pytest.mark.parametrize(
    "words", [["dynamics=single"], ["dynamics.members=1", "dynamics.elites=1"], ["dynamics=oracle"]]
)
def test_a_planner_needs_members_unless_it_plans_by_reward_alone(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^rollout.actions: rate=-2 weighs how much several members"):
        parts_of("filter=[coplanner]", *words)
    assert parts_of("filter=[coplanner]", "rollout.actions.rate=0", *words) == ["Clip", "Terminate", "Penalise"]


def planner_of(*words: str, task: Task | None = None) -> tuple[UncertaintyPlanner, DictConfig]:
    cfg = composed(*words, "dynamics.hidden=[8]", task=task)
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    imagination = compose.build_imagination(cfg, problem, model, compose.build_score(cfg, problem, [0], model.device))
    assert isinstance(imagination.actions, UncertaintyPlanner)
    return imagination.actions, cfg


def test_the_planner_as_configured() -> None:
    plain, cfg = planner_of("filter=[coplanner]")
    assert (plain.candidates, plain.horizon, plain.rate, plain.mask_terminal) == (5, 5, -2.0, True)
    assert (plain.lanes, plain.rows, plain.members) == (192, 5, 7)  # 960 rows at once
    assert plain.noise_size(3, 1) == 25 * (1 + 1 + 7 * 4)
    assert cfg.rollout.lanes == 400  # a tenth
    other, cfg = planner_of("actions=coplanner", "rollout.members=elites", "rollout.actions.chunk=320")
    assert (other.rate, other.candidates, other.members, other.lanes) == (-2.0, 5, 5, 64)
    assert cfg.rollout.lanes == 4000  # a choice of actions alone changes nothing else
    cfg = composed("loop=online", "algo=mbpo", "filter=[coplanner]", "dynamics.hidden=[8]")
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    explore = compose.build_explore(cfg, problem, model)
    assert isinstance(explore, UncertaintyPlanner)
    assert (explore.rate, explore.members) == (1.0, 7)  # the environment is where doubt is sought
    with pytest.raises(ConfigError, match="explore=policy"):
        compose.build_explore(composed("loop=online", "algo=sac", "filter=[coplanner]"), problem, model)
    for order in ("[morec,ravl,coplanner]", "[coplanner,morec,ravl]"):
        together, cfg = planner_of(f"filter={order}", "rollout.actions.uncertainty=mean_std")
        assert (cfg.rollout.lanes, cfg.rollout.length, cfg.learner.critics) == (50, 20, 5)
        assert not together.sampled
    assert composed("filter=[coplanner]", task=find_task("hopper-medium-v2")).rollout.lanes == 5000
    assert composed("filter=[coplanner]", "rollout.lanes=77").rollout.lanes == 77


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("candidates=0", "expected a whole number, 1 or more"),
        ("horizon=2.5", "expected a whole number, 1 or more"),
        ("reward_discount=1.5", "expected a number, between 0 and 1"),
        ("uncertainty_discount=-1", "expected a number, between 0 and 1"),
        ("rate=much", "expected a number"),
        ("chunk=0", "expected auto or a whole number, 1 or more"),
    ],
)
def test_numbers_of_a_planner(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.actions\.{word.split('=')[0]}=.*{said}"):
        composed("filter=[coplanner]", f"rollout.actions.{word}")


def test_mobile_asks_several_members_and_there_is_one_truth() -> None:
    cfg = composed("dynamics=oracle", "algo=mobile")
    model = compose.build_model(cfg, compose.load_problem(cfg), [0], torch.device("cpu"))
    with pytest.raises(ConfigError, match="how far several elites disagree"):
        compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"), model)


def test_a_penalty_on_predicted_noise_is_nothing_with_the_truth() -> None:
    cfg = composed("dynamics=oracle")
    problem = compose.load_problem(cfg)
    model = compose.build_model(cfg, problem, [0], torch.device("cpu"))
    imagination = compose.build_imagination(cfg, problem, model)
    obs, action = problem.dataset.transitions.obs[None, :5], problem.dataset.transitions.action[None, :5]
    alive = torch.ones(1, 5, dtype=torch.bool)
    noise, uniform = torch.randn(1, 5, 4), torch.rand(1, 5)
    step = imagination.filters(imagination.guess(obs, action, alive, noise, uniform), 0)
    torch.testing.assert_close(step.next_obs[0], problem.dataset.transitions.next_obs[:5], rtol=0, atol=1e-4)
    torch.testing.assert_close(step.reward[0], problem.dataset.transitions.reward[:5], rtol=0, atol=1e-3)


def test_a_run_that_imagines_nothing_asks_no_model() -> None:
    problem = compose.load_problem(composed())
    assert compose.asks_model(composed(), problem)
    alone = composed("real_ratio=1.0", "penalty=none")
    assert not compose.asks_model(alone, problem)
    assert compose.ring_capacity(alone) == 1
    assert compose.asks_model(composed("real_ratio=1.0", "algo=mobile"), problem)
    unscored = composed("real_ratio=1.0", "env=null")  # the model's estimate stands in for evaluations
    assert compose.asks_model(unscored, compose.load_problem(unscored))


def test_a_run_with_another_score() -> None:
    cfg = composed("filter=[morec]")
    assert compose.score_name(cfg) == "residual"
    other = compose.with_score(cfg, find_task("pendulum"), "adversarial_mixture")
    assert (other.score.inputs, other.score.iterations) == ("standardised", 2000)  # of its own file, and of its base
    assert cfg.score != other.score
    assert {k: v for k, v in other.items() if k != "score"} == {k: v for k, v in cfg.items() if k != "score"}
    with pytest.raises(ConfigError, match=r"score=none: no such option"):
        compose.with_score(cfg, find_task("pendulum"), "none")


def test_one_fit_serves_every_use_of_a_history() -> None:
    ways = [[], ["score.interval=4"], ["score.d_clip=0.999"], ["score.iterations=3000"]]
    settings = [compose.score_settings(composed("score=adversarial", *words)) for words in ways]
    assert settings[0] == settings[1] == settings[2] != settings[3]


def test_a_filter_without_a_score_fits_none() -> None:
    cfg = composed("filter=[truncate]")
    assert cfg.score is None
    assert compose.build_score(cfg, compose.load_problem(cfg), [0], torch.device("cpu")) is None


def test_a_missing_tuned_key_is_named(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"algo_name": "mopo", "x": "${tuned:no_such_value}", "checkpoint_seconds": None})
    with pytest.raises(Exception, match=r"configs/tuned/mopo\.yaml has no 'no_such_value'"):
        compose.resolve(cfg, find_task("pendulum"))


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("updates=abc", "updates=abc: expected a whole number, 1 or more"),
        ("updates=0", "updates=0: expected"),
        ("rollout.lanes=2.5", r"rollout.lanes=2.5: expected"),
        ("seeds=0", "seeds=0: expected"),
        ("seed=-1", "seed=-1: expected a whole number, 0 or more"),
        ("dynamics.members=true", "dynamics.members=True: expected"),
        ("lipschitz.measure=often", "lipschitz.measure=often: expected true, false or auto"),
        ("learner.spectral_radius=-1", "learner.spectral_radius=-1: expected a number, 0 or more"),
        ("learner.critics=0", "learner.critics=0: expected a whole number, 1 or more"),
        ("checkpoint_seconds=often", "checkpoint_seconds=often: expected a number of seconds"),
    ],
)
def test_numbers_of_a_wrong_kind_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(override)


def test_whole_numbers_may_be_written_as_powers_of_ten() -> None:
    cfg = composed("updates=3e5", "rollout.lanes=1e4")
    assert (cfg.updates, cfg.rollout.lanes) == (300_000, 10_000)
    assert isinstance(cfg.updates, int)


def test_seeds_count_up_from_the_first() -> None:
    assert compose.seed_list(composed("seed=3", "seeds=4")) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.hidden=64", "^learner: "),
        ("+learner.depth=3", "^learner: .*depth"),
        ("+dynamics.depth=3", "^dynamics: .*depth"),
        ("dynamics.elites=9", "^dynamics: dynamics.elites=9 must lie between 1 and dynamics.members=7"),
    ],
)
def test_what_a_part_cannot_take_is_said_with_its_name(override: str, said: str) -> None:
    cfg = composed(override)
    problem = compose.load_problem(cfg)

    def build() -> None:
        compose.build_learner(cfg, 3, 1, [0], torch.device("cpu"))
        compose.build_model(cfg, problem, [0], torch.device("cpu"))

    with pytest.raises(ConfigError, match=said):
        build()


# -- devices -----------------------------------------------------------------------------------------------------------


def test_devices() -> None:
    assert compose.choose_device("cpu") == torch.device("cpu")
    assert compose.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device=gpu: expected auto, cpu, cuda"):
        compose.choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device; use device=cpu"):
        compose.choose_device("cuda:0")


@pytest.mark.parametrize(
    "word",
    [
        "rollout.length=range(1,30)", "rollout.penalise.coefficient=tag(log,interval(0.1,100))", "penalty=glob(*)",
        "penalty=choice(max_aleatoric,ensemble_std)", "dynamics.members=int(interval(5,15))", "hydra/sweeper=optuna",
        "hydra.sweeper.trials=3",
    ],
)  # fmt: skip
def test_words_of_a_search_are_right_words(word: str) -> None:
    compose.check_overrides(["-m", word], "train")


@pytest.mark.parametrize("word", ["rollout.lenght=range(1,30)", "penalty=choice(max_aleatorik,ensemble_std)"])
def test_a_misspelt_word_of_a_search_is_one(word: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean rollout.length|did you mean max_aleatoric"):
        compose.check_overrides(["-m", word], "train")
