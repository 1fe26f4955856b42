"""Agents with algorithms of Stable-Baselines3: their interface, resumption, and small problems that they must solve."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

import text_gym  # noqa: F401
from agents import MLE
from agents.cli.main import main
from agents.experiments.comparison import plan, run_comparison
from agents.experiments.recipes import find_agent
from agents.nlpo import NLPO
from agents.ppo import A2C, PPO, MaskablePPO, PPOSettings
from tests.helpers.comparisons import small as small_comparison
from tests.helpers.programs import Program, run
from tests.helpers.vec_envs import recorded
from text_gym.errors import DependencyError, OptionError, TrainingError

try:
    import sb3_contrib
except ImportError:
    sb3_contrib = None

NEEDS_CONTRIB = pytest.mark.skipif(sb3_contrib is None, reason="needs sb3-contrib")
LEARNERS = [PPO, A2C, pytest.param(MaskablePPO, marks=NEEDS_CONTRIB), pytest.param(NLPO, marks=NEEDS_CONTRIB)]
ALL = pytest.mark.parametrize("learner", LEARNERS)
SMALL = {"n_envs": 4, "embedding": 8, "hidden": 8}
ORACLE = "oracle(vocab_size=9, max_length=4)"


def env_of(task=ORACLE, reward="length", **options):
    return gym.make("TextGen-v0", task=task, reward=reward, **options)


def small(learner, env=None, seed=0, **hyper):
    return learner(env or env_of(), seed=seed, progress=False, **(SMALL | hyper))


def weights_of(agent):
    """Return all weights of the policy, the critic and the optimiser."""
    state = agent.model.policy.state_dict()
    moments = [
        values[name] for _, values in sorted(agent.optimizer.state_dict()["state"].items()) for name in sorted(values)
    ]
    return torch.cat([torch.as_tensor(part).double().flatten() for part in [*state.values(), *moments]])


# Interface.


@ALL
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("grammar(train_size=200)", {}),
        ("answers(size=20)", {"policy": "transformer", "heads": 2, "critic": "separate"}),
        ("answers(size=20)", {"critic": "separate", "n_steps": 9}),
        (ORACLE, {"policy": "transformer", "heads": 2}),
    ],
)
def test_every_learner_does_what_agents_do(learner, task, settings, tmp_path):
    env = env_of(task)
    agent = small(learner, env, **settings)
    before = weights_of(agent)[:50]
    assert agent.learn(1).steps_done == 1
    assert (weights_of(agent)[:50] != before).any()
    batch = agent.sample(6, seed=1)
    assert len(batch.texts) == 6
    logs = agent.log_prob(batch.tokens, batch.lengths, batch.examples)
    assert logs.shape == (6,)
    assert (logs < 0).all()
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    assert action in env.action_space
    mean, _ = evaluate_policy(agent, Monitor(env), 2)
    assert mean >= 0
    agent.save(tmp_path)
    again = learner.load(tmp_path, env, progress=False)
    assert again.settings == agent.settings
    assert (weights_of(again) == weights_of(agent)).all()
    assert (again.sample(6, seed=1).tokens == batch.tokens).all()
    assert agent.cost["sequences"] > 0


def test_the_algorithms_are_theirs():
    for learner, kind in ((PPO, "stable_baselines3.ppo.ppo"), (A2C, "stable_baselines3.a2c.a2c")):
        assert type(small(learner).model).__module__ == kind
    if sb3_contrib is not None:
        for learner in (MaskablePPO, NLPO):
            assert type(small(learner).model) is sb3_contrib.MaskablePPO
    shared = {"gamma": 0.9, "gae_lambda": 0.8, "normalize_advantage": False}
    others = {"vf_coef": 0.3, "ent_coef": 0.1, "max_grad_norm": 0.7, "clip_range": 0.3, "n_epochs": 3, "batch_size": 8}
    model = small(PPO, target_kl=0.1, learning_rate=0.03, n_steps=6, **shared, **others).model
    assert (model.gamma, model.gae_lambda, model.vf_coef, model.ent_coef) == (0.9, 0.8, 0.3, 0.1)
    assert model.max_grad_norm == 0.7
    assert (model.n_epochs, model.batch_size, model.target_kl, model.n_steps, model.n_envs) == (3, 8, 0.1, 6, 4)
    assert (model.clip_range(1), model.lr_schedule(1), model.normalize_advantage) == (0.3, 0.03, False)
    model = small(A2C, **shared).model
    assert (model.gamma, model.gae_lambda, model.normalize_advantage, model.n_steps) == (0.9, 0.8, False, 4)


@ALL
def test_one_seed_one_result_and_another_seed_another(learner):
    first = weights_of(small(learner, seed=3).learn(2))
    torch.manual_seed(1), np.random.seed(1)  # noqa: NPY002
    assert (weights_of(small(learner, seed=3).learn(2)) == first).all()
    assert (weights_of(small(learner, seed=4).learn(2)) != first).any()


@ALL
def test_global_random_numbers_are_left_alone(learner):
    np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    wanted = np.random.random(3).tolist(), torch.rand(3).tolist()  # noqa: NPY002
    np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    small(learner).learn(2)
    assert (np.random.random(3).tolist(), torch.rand(3).tolist()) == wanted  # noqa: NPY002


# Runs and resumption.

LIVELY = {"kl": {"weight": 0.4, "target": 0.05}, "learning_rate": 2e-2}


def rows_of(folder):
    """Read the metrics of each step, except the times."""
    with (folder / "progress.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time/seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("learner", "critic"),
    [
        (PPO, "separate"),
        (PPO, "shared"),
        (A2C, "separate"),
        pytest.param(MaskablePPO, "shared", marks=NEEDS_CONTRIB),
        pytest.param(NLPO, "separate", marks=NEEDS_CONTRIB),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(learner, critic, tmp_path):
    def agent(folder):
        return small(learner, env_of("answers(size=20)"), folder=tmp_path / folder, critic=critic, **LIVELY)

    whole = agent("whole").learn(4)
    agent("parts").learn(2)
    parts = agent("parts").learn(2)
    assert parts.steps_done == whole.steps_done == 4
    assert (weights_of(parts) == weights_of(whole)).all()
    assert parts.kl.weight == whole.kl.weight != 0.4
    assert parts.cost["sequences"] == whole.cost["sequences"]
    for mine, other in zip(parts.reference.parameters(), whole.reference.parameters(), strict=True):
        assert (mine == other).all()
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert len(rows_of(tmp_path / "whole")) == 4


PROGRAM = """
import sys, gymnasium as gym, text_gym
from agents.ppo import PPO
env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4)", reward="length")
agent = PPO(env, seed=5, folder=sys.argv[1], progress=False, embedding=8, hidden=8, n_envs=4, iterations=10,
            kl={"weight": 0.4, "target": 0.05}, threads=1)
agent.learn()
print(agent.steps_done, agent.kl.weight, float(sum(p.double().sum().detach() for p in agent.model.policy.parameters())))
"""


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    whole = small(PPO, seed=5, iterations=10, kl={"weight": 0.4, "target": 0.05}).learn()
    total = float(sum(p.double().sum().detach() for p in whole.model.policy.parameters()))
    latest = tmp_path / "killed" / "latest.json"
    process = Program(PROGRAM, tmp_path / "killed")
    while process.poll() is None and not latest.exists():
        time.sleep(0.001)
    time.sleep(0.02)
    process.kill()
    assert json.loads(latest.read_text())["name"] != "step-10"
    assert run(PROGRAM, tmp_path / "killed") == f"10 {whole.kl.weight} {total}\n"


def test_the_learning_rate_falls_over_the_iterations_of_the_run(tmp_path):
    """The learning rate falls linearly to 0, also in a resumed run; after that, the weights do not change."""

    def agent():
        return small(PPO, folder=tmp_path, iterations=4, learning_rate=0.1, anneal_learning_rate=True)

    agent().learn(1)
    agent().learn()
    assert agent().learn(1).steps_done == 5
    rates = [float(row["train/learning_rate"]) for row in rows_of(tmp_path)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])


@ALL
def test_metrics_and_callbacks_and_a_logger_of_ones_own(learner, tmp_path):
    seen = []
    agent = small(learner, folder=tmp_path / "run")
    agent.learn(3, callback=lambda local, _: seen.append(local["self"].steps_done) or len(seen) < 2)
    assert (seen, agent.steps_done) == ([1, 2], 2)
    rows = rows_of(tmp_path / "run")
    assert [float(row["train/reward"]) for row in rows] == [4.0, 4.0]  # all sequences of this task have this length
    assert all(0 < float(row["train/entropy"]) < 9 for row in rows)
    assert float(rows[0]["train/kl_to_start"]) == pytest.approx(0, abs=1e-5)
    assert {"train/kl_weight", "train/value_loss", "train/explained_variance", "time/sequences"} <= set(rows[0])
    assert [float(row["time/sequences"]) for row in rows] == [4.0, 8.0]  # one sequence per environment and iteration
    own = configure(str(tmp_path / "own"), ["csv"])
    agent.set_logger(own)
    agent.learn(1)
    assert len(rows_of(tmp_path / "own")) == 1


def test_sequences_are_counted_however_long_they_are():
    """Finished sequences, and those that the end of the rollout cuts off."""
    calls, lengths = [], []

    def reward(completion_ids):
        calls.append(len(completion_ids))
        lengths.extend(map(len, completion_ids))
        return [1.0] * len(completion_ids)

    env = env_of("grammar", reward, banned=[t for t in range(1, 209) if t > 5])
    agent = small(PPO, env, n_steps=30)
    agent.learn(1)
    written = int(agent.model.rollout_buffer.episode_starts.sum())
    assert agent.cost["sequences"] == written
    assert sum(calls) <= written <= sum(calls) + 4
    for _ in range(2):  # a rollout starts new sequences, even if the last rollout has unfinished ones
        agent.learn(1)
        firsts = agent.model.rollout_buffer.observations.reshape(4, 30, -1)[:, 0]
        assert (firsts == 209).all()


# Warm starts and banned tokens.


@ALL
@pytest.mark.parametrize("task", ["grammar(train_size=200)", "answers(size=20)"])
def test_they_begin_where_start_is_and_leave_start_alone(learner, task, tmp_path):
    env = env_of(task, min_length=2)
    start = MLE(env, seed=0, progress=False, embedding=8, hidden=12, dropout=0.0).learn(1)
    kept = {k: v.clone() for k, v in start.policy.state_dict().items()}
    agent = learner(env, seed=0, start=start, n_envs=4, progress=False, learning_rate=1e-2, folder=tmp_path / "run")
    assert (agent.settings.embedding, agent.settings.hidden) == (8, 12)
    assert (agent.sample(20, seed=3).tokens == start.sample(20, seed=3).tokens).all()
    agent.learn(2)
    first, second = (float(row["train/kl_to_start"]) for row in rows_of(tmp_path / "run"))
    assert first == pytest.approx(0, abs=1e-5)
    assert abs(second) > 1e-5
    assert all((v == kept[k]).all() for k, v in start.policy.state_dict().items())
    assert all((v == kept[k]).all() for k, v in agent.reference.state_dict().items())
    assert any((v != kept[k]).any() for k, v in agent.policy.state_dict().items())
    again = learner.load(tmp_path / "run", env, progress=False)
    assert all((v == kept[k]).all() for k, v in again.reference.state_dict().items())


@ALL
@pytest.mark.parametrize("task", ["grammar", "answers"])
def test_what_is_banned_is_never_written_in_training(learner, task):
    """Banned tokens are never sampled, nor is EOS before min_length; all other tokens are."""
    size = len(env_of(task).unwrapped.task.vocab)
    allowed = np.arange(size) < 8
    allowed[3] = False
    env = env_of(task, min_length=3, banned=np.flatnonzero(~allowed).tolist())
    agent = small(learner, env, n_envs=16)
    seen = set()
    for _ in range(2):
        buffer = agent.learn(1).model.rollout_buffer
        prefixes = buffer.observations["prefix"] if task == "answers" else buffer.observations
        assert len(buffer.actions) == len(prefixes) == 16 * agent.rules.limit
        for prefix, (action,) in zip(prefixes, buffer.actions.astype(int), strict=True):
            assert allowed[action]
            assert action != agent.rules.eos or (prefix != size).sum() >= 3
            seen.add(int(action))
    assert seen == set(np.flatnonzero(allowed).tolist())
    assert set(agent.sample(200, seed=0).tokens.ravel().tolist()) <= {*np.flatnonzero(allowed).tolist(), size}


@NEEDS_CONTRIB
@pytest.mark.parametrize("learner", [MaskablePPO, NLPO])
def test_masks_keep_to_a_constraint(learner):
    env = env_of("grammar", "validity", constraint="valid")
    agent = small(learner, env)
    recorder = recorded(agent)
    agent.learn(2)
    disallowed = [info["disallowed"] for info in recorder.infos if "episode" in info]
    assert len(disallowed) > 8
    assert not any(disallowed)
    assert agent.logger.name_to_value.get("train/reward", 1.0) == 1.0


# Problems with a known solution.

PROBED = {"iterations": 20, "batch_size": 64, "learning_rate": 2e-2}
WIDE_MASKS = {"mask_top_p": 0.95, "mask_min_tokens": 2, "kl": {"weight": 0.0, "target": None}}


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        (PPO, PROBED),
        (A2C, {"iterations": 120, "learning_rate": 1e-2}),
        pytest.param(MaskablePPO, PROBED, marks=NEEDS_CONTRIB),
        pytest.param(
            NLPO,
            PROBED | {"mask_top_p": 0.95, "mask_min_tokens": 2, "kl": {"weight": 0.0, "target": None}},
            marks=NEEDS_CONTRIB,
        ),
    ],
)
def test_they_find_the_one_token_that_pays(learner, settings):
    """The optimal sequence is 3, 3, 3, ..."""
    env = env_of(reward=lambda tokens: (tokens == 3).mean(axis=1))
    agent = small(learner, env, n_envs=32, **settings)
    before = (agent.sample(300, seed=0).tokens == 3).mean()
    assert before < 0.3
    assert (agent.learn().sample(300, seed=0).tokens == 3).mean() > 0.8


@pytest.mark.parametrize("learner", [PPO, pytest.param(MaskablePPO, marks=NEEDS_CONTRIB)])
def test_they_learn_how_long_to_write(learner):
    """Sequences have different lengths, and the reward is highest for five words."""
    env = env_of("grammar", "length(target=5)", banned=list(range(6, 209)))
    agent = small(learner, env, n_envs=32, batch_size=256, learning_rate=2e-2)
    before = agent.rewards(agent.sample(300, seed=0)).mean()
    after = agent.learn(15).rewards(agent.sample(300, seed=0)).mean()
    assert after > before + 0.2


def test_a_divergence_that_is_dear_keeps_a_policy_near():
    env = env_of(reward=lambda tokens: (tokens == 3).mean(axis=1))
    options = {"n_envs": 32, "batch_size": 64, "learning_rate": 2e-2}
    free, held = (small(PPO, env, kl={"weight": weight}, **options).learn(12) for weight in (0.0, 3.0))
    far = [agent.log_prob(agent.sample(500, seed=0).tokens).mean() for agent in (free, held)]
    start = small(PPO, env, **options)
    nearer = [start.log_prob(agent.sample(500, seed=0).tokens).mean() for agent in (free, held)]
    divergences = [a - b for a, b in zip(far, nearer, strict=True)]
    assert divergences[1] < 0.2 * divergences[0]


# Names, and the command line.


@pytest.mark.parametrize(("name", "kind"), [("ppo", PPO), ("a2c", A2C), ("maskable-ppo", MaskablePPO), ("nlpo", NLPO)])
def test_their_names(name, kind):
    recipe = find_agent(f"{name}(n_envs=3)")
    assert (recipe.factory, kind.name, recipe.options) == (kind, name, {"n_envs": 3})
    assert recipe.agent_class.takes_start
    assert recipe.agent_class.learns_from_reward
    assert recipe.reward is None
    if sb3_contrib is not None or kind in (PPO, A2C):
        assert type(recipe.make(env_of(), seed=1, device="cpu", progress=False)) is kind


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_command_line_trains_one(tmp_path):
    flags = ["--task", ORACLE, "--reward", "length", "--samples", "40", "--references", "20", "--device", "cpu"]
    hyper = ["--n-envs", "4", "--hidden", "8", "--iterations", "2", "--critic-layers", "5", "6"]
    assert main(["train", "ppo", *flags, *hyper, "--out", str(tmp_path / "run")]) == 0
    state = json.loads(next((tmp_path / "run").rglob("state.json")).read_text())
    assert state["step"] == 2
    assert state["state"]["settings"]["critic_layers"] == [5, 6]


def test_a_comparison_controls_them(tmp_path):
    asked = small_comparison(tmp_path, agents=("mle", "ppo(iterations=2, n_envs=4)"))
    models = {entry.spec.label: entry for entry in plan(asked)}
    assert list(models) == ["mle", "ppo", "constant", "random", "mle-early", "uniform", "real"]
    for label in ("constant", "random"):
        assert models[label].recipe.factory is PPO
        assert models[label].recipe.settings(None) == models["ppo"].recipe.settings(None)
        assert models[label].spec.controls_for == ("ppo",)
        assert models[label].spec.start == models["ppo"].spec.start == "mle"
    results = run_comparison(replace(asked, jobs=1))
    assert not results.failures
    assert set(results.labels) == set(models)
    assert results.of("random")[0].figures["nll_oracle"] > 0


# Mistakes.


def test_mistakes_are_told():
    for settings, words in [
        ({"n_envs": 0}, "n_envs must be"),
        ({"n_steps": 0}, "n_steps must be"),
        ({"iterations": -1}, "iterations must be"),
        ({"learning_rate": 0}, "learning_rate=0 must be above 0"),
        ({"gamma": 1.1}, "gamma=1.1 .*out of range"),
        ({"gae_lambda": -0.1}, "gae_lambda=-0.1 is out of range"),
        ({"vf_coef": -1}, "vf_coef=-1 must not be negative"),
        ({"ent_coef": float("nan")}, "ent_coef"),
        ({"kl": {"target": 0.1}}, "kl.weight=0.0: both must be above 0"),
        ({"kl": {"weight": 1.0, "target": 0}}, "kl.target=0 .*must be above 0"),
        ({"critic": "both"}, "there is no critic 'both'; give 'shared' or 'separate'"),
        ({"critic_layers": (0,)}, "critic_layers must be"),
        ({"critic_layers": 5}, "critic_layers=5 is not a sequence"),
        ({"critic_layers": "64"}, "critic_layers='64' is not a sequence"),
        ({"max_grad_norm": 0}, "max_grad_norm=0 must be"),
        ({"normalize_advantage": "no"}, "normalize_advantage='no' must be True or False"),
        ({"policy": "lstn"}, "Did you mean 'lstm'"),
    ]:
        for learner in (PPO, A2C) if settings == {"kl": {"target": 0.1}} else (PPO, A2C, NLPO):  # NLPO's weight is 0.1
            with pytest.raises(OptionError, match=words):
                learner.choose_settings(**settings)
    for settings, words in [
        ({"n_epochs": 0}, "n_epochs must be"),
        ({"batch_size": 1}, "batch_size must be"),
        ({"clip_range": 0}, "clip_range=0"),
        ({"target_kl": -1}, "target_kl=-1"),
    ]:
        with pytest.raises(OptionError, match=words):
            PPOSettings(**settings)
    with pytest.raises(OptionError, match="Did you mean 'n_envs'"):
        PPO(env_of(), n_env=3)
    for learner in (PPO, A2C):
        with pytest.raises(OptionError, match=r"at least two tokens.*n_envs"):
            small(learner, env_of("oracle(vocab_size=9, max_length=1)"), n_envs=1)
    with pytest.raises(OptionError, match=r"n_steps=3 is shorter than every sequence.*; give at least 4"):
        small(PPO, n_steps=3)
    start = MLE(env_of("answers"), seed=0, progress=False)
    with pytest.raises(OptionError, match="whose tokens differ"):
        PPO(env_of(), start=start)
    with pytest.raises(OptionError, match="hidden=9 differs from the policy of the warm start"):
        PPO(start.env, start=start, hidden=9)
    with pytest.raises(OptionError, match="start='mle' is not an agent"):
        PPO(start.env, start="mle")


@ALL
def test_training_that_diverges_is_told_and_not_saved(learner, tmp_path):
    agent = small(learner, folder=tmp_path).learn(1)
    with torch.no_grad():
        agent.model.policy.value_net.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"diverged.*lower the learning rate"):
        agent.learn(1)
    again = small(learner, folder=tmp_path)
    assert torch.isfinite(weights_of(again)).all()
    assert again.steps_done == 1


WITHOUT = """
import sys
sys.modules["sb3_contrib"] = None
import gymnasium as gym, text_gym
from agents.experiments.recipes import find_agent
from agents.experiments.registry import registered_agents
from text_gym.errors import DependencyError
env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4)", reward="length")
assert "nlpo" in registered_agents()
for name in ("ppo", "a2c"):
    find_agent(name).make(env, seed=0, progress=False, device="cpu").learn(1)
for name in ("maskable-ppo", "nlpo"):
    try:
        find_agent(name).make(env, seed=0, progress=False)
    except DependencyError as problem:
        assert "pip install 'text-gym[contrib]'" in str(problem), problem
    else:
        raise AssertionError(name)
print("well")
"""


def test_two_of_them_do_without_sb3_contrib():
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert ran.stdout == "well\n", ran.stderr
    assert issubclass(DependencyError, Exception)
