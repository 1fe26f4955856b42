"""Rollouts and policy gradients against the enumeration of all sequences of a tiny policy."""

import math
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents.common.baselines import BASELINES, GROUPED
from agents.common.checkpoint import CheckpointError
from agents.common.rollouts import rollout_values
from agents.mle import MLE
from agents.reinforce import Reinforce
from tests.helpers.gradients import (
    EOS,
    PAD,
    SEQUENCES,
    WORTH,
    assert_within_standard_error,
    estimated_gradients,
    exact_gradient,
    padded,
    tiny_agent,
    tiny_env,
    worth,
)
from tests.helpers.models import probability, seeded, small_model
from text_gym.errors import OptionError, RewardError, SlowRewardWarning
from text_gym.language_model import LSTM, Drawn, Sampling


def test_labelled_values_go_to_their_row_and_position():
    """A reward that encodes the row and the prefix of a completion."""
    model = small_model(5)
    tokens, lengths = torch.tensor([[1, 2, 3, 4], [2, 0, 5, 5], [4, 4, 4, 0]]), torch.tensor([4, 2, 4])
    calls = []

    def label(completed, _, rows):
        calls.append(len(rows))
        for text, row in zip(completed.tolist(), rows.tolist(), strict=True):
            assert text[0] == tokens[row, 0]
        first_changed = (completed != tokens[rows]).int().argmax(1)
        same = (completed == tokens[rows]).all(1)
        return 100 * rows + torch.where(same, 9, first_changed)

    for chunk, together in ((1, 1), (2, 3), (256, 4096)):
        values = rollout_values(model, tokens, lengths, label, 5, 0, seeded(0), chunk=chunk, scored_together=together)
        assert values.shape == (3, 5)
        for row, length in enumerate(lengths.tolist()):
            assert (values[row, length:] == 100 * row + 9).all()
            for t in range(1, length):
                assert 100 * row + t <= values[row, t] <= 100 * row + 9
    assert calls[-2:] == [3, 5 * (3 + 1 + 3)]


@pytest.mark.parametrize("rollouts", [1, 2000])
def test_values_equal_enumeration(rollouts):
    """The value of a prefix is the expected reward of its completions, within four standard errors."""
    model = small_model(3, seed=1)
    probabilities = {s: math.exp(probability(model, s)) for s in SEQUENCES}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    tokens, lengths = padded(SEQUENCES), torch.tensor([len(s) for s in SEQUENCES])
    repeats = 2000 // rollouts
    many, counts = tokens.repeat(repeats, 1), lengths.repeat(repeats)
    score = lambda completed, *_: torch.tensor(worth(completed))  # noqa: E731
    values = rollout_values(model, many, counts, score, rollouts, EOS, seeded(3), from_start=True)
    values = values.view(repeats, len(SEQUENCES), 4).mean(0)
    for row, sequence in enumerate(SEQUENCES):
        for t in range(len(sequence) + 1):
            after = {s: p for s, p in probabilities.items() if s[:t] == sequence[:t]}
            if t == len(sequence):
                assert values[row, t].item() == pytest.approx(WORTH[sequence], abs=1e-6)
                continue
            total = sum(after.values())
            mean = sum(p * WORTH[s] for s, p in after.items()) / total
            spread = math.sqrt(sum(p * (WORTH[s] - mean) ** 2 for s, p in after.items()) / total)
            assert values[row, t].item() == pytest.approx(mean, abs=4.5 * spread / math.sqrt(2000) + 1e-6)


@pytest.mark.parametrize("rollouts", [0, 2])
@pytest.mark.parametrize("baseline", ["none", "moving_average", "leave_one_out", "greedy", "prefix", "critic", "rloo"])
def test_the_gradient_of_every_estimator_is_the_exact_one(baseline, rollouts):
    if (baseline == "prefix" and not rollouts) or (baseline in GROUPED and rollouts):
        pytest.skip("needs rollouts, or none")
    agent = tiny_agent(baseline=baseline, rollouts=rollouts, loss="sum", batch_size=2000)
    exact = exact_gradient(agent, lambda tokens, *_: torch.tensor(worth(tokens)))
    assert_within_standard_error(estimated_gradients(agent, 50, 2000), exact)


def log_probs_of_what_is_drawn(model, temperature, top_k, top_p):
    """Compute the log-probabilities of all sequences under top-k and top-p, by sorting; -inf for impossible ones."""
    tokens = padded(SEQUENCES)
    logs = (model.output(model.features(tokens)) / temperature).log_softmax(dim=2)
    ordered = logs.exp().sort(dim=2, descending=True).values
    enough = (ordered.cumsum(dim=2) - ordered < top_p).sum(dim=2, keepdim=True).clamp(max=top_k or 3)  # tokens kept
    least = ordered.gather(2, enough - 1)
    logs = logs.masked_fill(logs.exp() < least - 1e-12, -torch.inf).log_softmax(dim=2)
    return logs.gather(2, tokens.clamp(max=2)[:, :, None])[:, :, 0].where(tokens < PAD, 0.0)


@pytest.mark.parametrize("sampling", [(0.6, 0, 1.0), (1.5, 2, 1.0), (1.5, 0, 0.8)])
def test_the_gradient_is_that_of_what_is_really_drawn(sampling):
    """The gradient of the expected reward with temperature, top-k and top-p, also in the rollouts."""
    names = dict(zip(("temperature", "top_k", "top_p"), sampling, strict=True))
    agent = tiny_agent(rollouts=2, loss="sum", batch_size=500, **names)
    logs = log_probs_of_what_is_drawn(agent.policy.double(), *sampling)
    chance = logs.sum(dim=1).exp()
    possible = chance > 0
    assert chance.sum().item() == pytest.approx(1)
    assert sampling[1:] == (0, 1.0) or not possible.all()
    rewards, tokens = torch.tensor(worth(padded(SEQUENCES))).double(), padded(SEQUENCES)
    expected = (chance * rewards)[possible].sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(agent.policy.parameters()))])
    agent.policy.float()
    assert_within_standard_error(estimated_gradients(agent, 100, 500), exact)

    # Without rollouts and without a baseline, every sequence in proportion to its probability: the exact expectation.
    agent = tiny_agent(rollouts=0, loss="sum", baseline="none", **names)
    total = torch.zeros_like(exact)
    for row in possible.nonzero()[:, 0].tolist():
        one = slice(row, row + 1)
        drawn = Drawn(tokens[one], (tokens[one] != PAD).sum(dim=1), logs[one].detach())
        loss = agent.loss(drawn, agent.advantages(drawn, rewards[one, None].expand(1, 4), None), None)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(-loss, list(agent.policy.parameters()))])
        total += chance[row].item() * gradient
    assert torch.allclose(total, exact, atol=2e-6)


def test_the_batch_mean_at_each_position_is_biased_by_its_own_share_only():
    """The baseline contains the sequence itself, so the gradient shrinks by the factor 1 - 1 / batch size."""
    agent = tiny_agent(baseline="position_mean", rollouts=0, loss="sum", batch_size=500)
    exact = exact_gradient(agent, lambda tokens, *_: torch.tensor(worth(tokens))) * (1 - 1 / 500)
    assert_within_standard_error(estimated_gradients(agent, 60, 500), exact)


def test_the_gradients_of_entropy_and_divergence_are_the_exact_ones():
    agent = tiny_agent(
        baseline="leave_one_out", rollouts=0, loss="sum", ent_coef=0.7, kl={"weight": 0.4}, batch_size=500
    )
    with torch.no_grad():
        for number, parameter in enumerate(agent.policy.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(number))

    def objective(tokens, valid, logs):
        before = agent.reference.double().log_prob(tokens, valid).sum(1)
        agent.reference.float()
        rewards = torch.tensor(worth(tokens))
        # The gradient of the entropy, that is, of minus the sum of p * log p, includes the score-function term.
        return rewards - 0.7 * logs - 0.4 * (logs - before)

    estimates = estimated_gradients(agent, 60, 500)
    assert_within_standard_error(estimates, exact_gradient(agent, objective))
    plain = tiny_agent(baseline="leave_one_out", rollouts=0, loss="sum", batch_size=500)
    plain.policy.load_state_dict(agent.policy.state_dict())
    assert estimates.std(0).norm() < 3 * estimated_gradients(plain, 60, 500).std(0).norm()


def test_a_constant_reward_teaches_nothing_under_leave_one_out():
    """Also at positions that only one sequence of the batch reaches."""
    env = gym.make("TextGen-v0", reward="constant")
    agent = Reinforce(env, seed=0, progress=False, rollouts=0, batch_size=8)
    for batch in range(30):
        drawn, values = agent.sample_and_value(8, seeded(batch), None)
        assert agent.advantages(drawn, values, None).abs().max() == 0


def test_rewards_cannot_change_what_is_learned_from():
    def vandal(tokens):
        tokens[:] = 0
        return [1.0] * len(tokens)

    with pytest.raises(RewardError, match="read-only"):
        Reinforce(tiny_env(vandal), seed=0, progress=False, rollouts=0).learn(1)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_teacher_forcing_weighs_as_the_loss_does(loss):
    """With a constant reward, an update follows the gradient of the likelihood, as a sum or mean over the tokens."""
    constant = tiny_env(lambda tokens: np.ones(len(tokens)))
    settings = {"loss": loss, "teacher_forcing": 0.5, "batch_size": 40, "rollouts": 0, "max_grad_norm": 1e9}
    agent = Reinforce(constant, seed=0, progress=False, **settings)
    agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=1.0)
    random = agent.numpy_random(0)
    agent.torch_random(random)  # the first random numbers are for sampling
    batch = agent.task.batch("train", random.integers(2, size=40))
    valid = torch.tensor(batch.valid_mask)
    expected = -agent.policy.log_prob(torch.tensor(batch.tokens), valid).sum()
    expected = expected / valid.sum() if loss == "mean" else expected
    gradient = torch.autograd.grad(0.5 * expected, list(agent.policy.parameters()))
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(1)
    for old, new, slope in zip(before, agent.policy.parameters(), gradient, strict=True):
        assert torch.allclose(old - new, slope, rtol=1e-4, atol=1e-6)


def test_the_divergence_of_a_policy_from_itself_is_zero():
    agent = tiny_agent(kl={"weight": 1.0}, rollouts=0, batch_size=64)
    drawn, values = agent.sample_and_value(64, seeded(0), None)
    agent.advantages(drawn, values, None)
    assert agent.logger.name_to_value["train/kl_to_start"] == pytest.approx(0, abs=1e-5)


def test_every_run_says_how_far_it_is_from_its_start():
    rows = metrics_of(Reinforce(tiny_env(), seed=0, progress=False, rollouts=0, learning_rate=3e-2), 3)
    assert [row["train/kl_weight"] for row in rows] == [0.0] * 3
    assert abs(rows[0]["train/kl_to_start"]) < 1e-7
    assert rows[2]["train/kl_to_start"] > 1e-3


def metrics_of(agent, updates):
    rows = []
    agent.learn(updates, callback=lambda *_: rows.append(dict(agent.logger.name_to_value)) or True)
    return rows


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 2}])
def test_the_divergence_reported_is_the_exact_one(sampling):
    """Compute the KL divergence of the sampled distributions of policy and initial policy, over all sequences."""
    agent = tiny_agent(rollouts=0, batch_size=20_000, **sampling)
    with torch.no_grad():
        for number, parameter in enumerate(agent.policy.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(number))
        exact = exact_divergence(agent.policy, agent.reference, Sampling(**sampling))
    drawn, values = agent.sample_and_value(20_000, seeded(0), None)
    agent.advantages(drawn, values, None)
    found = agent.logger.name_to_value["train/kl_to_start"] * drawn.lengths.double().mean().item()
    assert found == pytest.approx(exact, rel=0.05)


def exact_divergence(policy, reference, sampling):
    """Compute the KL divergence of two policies over all sequences of the tiny language."""
    tokens = padded(SEQUENCES)
    ours = policy.output(policy.features(tokens)).double() / sampling.temperature
    theirs = reference.output(reference.features(tokens)).double() / sampling.temperature
    if sampling.top_k:
        dropped = ours < ours.sort(dim=2, descending=True).values[:, :, sampling.top_k - 1, None]
        ours, theirs = (logits.masked_fill(dropped, -torch.inf) for logits in (ours, theirs))
    own, start = (
        logits.log_softmax(dim=2).gather(2, tokens.clamp(max=2)[:, :, None])[:, :, 0].where(tokens < PAD, 0.0).sum(1)
        for logits in (ours, theirs)
    )
    possible = own > -torch.inf
    return (own.exp() * (own - start))[possible].sum().item()


def test_an_adapted_weight_follows_the_divergence():
    rows = metrics_of(
        Reinforce(
            tiny_env(), seed=0, progress=False, rollouts=0, learning_rate=1e-2, kl={"weight": 0.1, "target": 0.002}
        ), 12,
    )  # fmt: skip
    weight = 0.1
    for row in rows:
        assert row["train/kl_weight"] == pytest.approx(weight, rel=1e-12)
        weight *= 1 + 0.1 * min(max(row["train/kl_to_start"] / 0.002 - 1, -0.2), 0.2)
    weights = [row["train/kl_weight"] for row in rows]
    assert weights[1] < weights[0] < weights[-1]


def test_sequences_that_end_early_pay_once():
    calls = []

    def count(tokens):
        calls.append(len(tokens))
        return [1.0] * len(tokens)

    agent = Reinforce(tiny_env(count), seed=0, progress=False, rollouts=3, batch_size=40, baseline="none")
    drawn, values = agent.sample_and_value(40, seeded(0), None)
    lengths = drawn.lengths
    assert lengths.min() < 3
    assert sum(calls) == 40 + 3 * int((lengths - 1).sum())
    advantages = agent.advantages(drawn, values, None)
    valid = torch.arange(3) < lengths[:, None]
    assert (advantages[valid] == 1).all()
    assert (advantages[~valid] == 0).all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_it_finds_the_one_token_that_pays(baseline):
    """The optimal sequence is 3, 3, 3, ...; it takes at most 60 updates of 32 sequences."""
    env = gym.make(
        "TextGen-v0", task="oracle(vocab_size=6, max_length=5)",
        reward=lambda tokens: (tokens == 3).mean(axis=1),
    )  # fmt: skip
    rollouts = 0 if baseline in GROUPED else 2
    agent = Reinforce(
        env, seed=0, progress=False, baseline=baseline, rollouts=rollouts, batch_size=32, learning_rate=2e-2, updates=60
    ).learn()
    assert (agent.sample(500, seed=0).tokens == 3).mean() > 0.95


def test_it_learns_which_answer_a_prompt_wants(answers):
    """The reward is for the answer to the prompt; 8,000 sequences improve a warm start with 1/3 right answers."""
    env = gym.make("TextGen-v0", task=text_gym.make_task("answers", size=40), reward="exact_match")
    start = MLE(env, seed=0, progress=False, dropout=0.0, schedule=((40, 1e-2),), early_stopping=False).learn()
    before = right_answers(start)
    agent = Reinforce(
        env, seed=0, start=start, progress=False, rollouts=0, updates=125, learning_rate=5e-3, batch_size=64
    ).learn()
    assert right_answers(agent) > min(before + 0.2, 0.95)


def right_answers(agent):
    batch = agent.sample(400, seed=1)
    return np.mean([tuple(s) in e.references for s, e in zip(batch.sentences, batch.examples, strict=True)])


def test_it_begins_where_start_is_and_leaves_start_alone():
    env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=300, valid_size=50))
    start = MLE(env, seed=0, progress=False, embedding=8, hidden=12, schedule=((1, 1e-2),)).learn()
    kept = {k: v.clone() for k, v in start.policy.state_dict().items()}
    agent = Reinforce(env, seed=0, start=start, progress=False, rollouts=1, batch_size=8)
    assert (agent.settings.embedding, agent.settings.hidden) == (8, 12)
    assert (agent.sample(20, seed=3).tokens == start.sample(20, seed=3).tokens).all()
    agent.learn(2)
    assert all((v == kept[k]).all() for k, v in start.policy.state_dict().items())
    assert any((v != kept[k]).any() for k, v in agent.policy.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kl": {"weight": 0.1}, "rollout_ema_rate": 0.5, "baseline": "moving_average", "teacher_forcing": 0.5},
        {"kl": {"weight": 0.1, "target": 0.01}, "baseline": "critic", "temperature": 0.8, "top_k": 2},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, settings):
    def agent(folder):
        return Reinforce(
            tiny_env(),
            seed=2,
            progress=False,
            folder=tmp_path / folder,
            updates=4,
            rollouts=1,
            batch_size=8,
            **settings,
        )

    whole = agent("whole").learn()
    for _ in range(4):
        parts = agent("parts").learn(1)
    assert parts.trained_parts().keys() == whole.trained_parts().keys()
    for (name, mine), theirs in zip(parts.trained_parts().items(), whole.trained_parts().values(), strict=True):
        for key, value in tensors(mine).items():
            assert torch.equal(value, tensors(theirs)[key]), (name, key)
    assert parts.kl.weight == whole.kl.weight
    assert parts.average_reward == whole.average_reward
    loaded = Reinforce.load(tmp_path / "whole", tiny_env())
    assert (loaded.sample(9, seed=0).tokens == whole.sample(9, seed=0).tokens).all()
    with pytest.raises(CheckpointError, match="of 'reinforce', not of 'mle'"):
        MLE.load(tmp_path / "whole", tiny_env())


def test_a_run_that_is_loaded_still_knows_its_start(tmp_path):
    """The initial policy is not in the settings; the KL divergence from it and the learning continue."""
    start = Reinforce(tiny_env(), seed=9, progress=False, rollouts=0, learning_rate=3e-2).learn(3)
    options = {"rollouts": 0, "kl": {"weight": 0.1}, "batch_size": 8}
    agent = Reinforce(tiny_env(), seed=2, progress=False, start=start, folder=tmp_path, **options).learn(2)
    again = Reinforce.load(tmp_path, tiny_env(), progress=False)
    assert metrics_of(again, 1)[0]["train/kl_to_start"] == metrics_of(agent, 1)[0]["train/kl_to_start"]
    for mine, theirs in zip(again.policy.parameters(), agent.policy.parameters(), strict=True):
        assert (mine == theirs).all()


def tensors(part):
    """Return the tensors of a module or an optimiser."""
    if isinstance(part, torch.nn.Module):
        return part.state_dict()
    return {(n, k): torch.as_tensor(v) for n, s in part.state_dict()["state"].items() for k, v in s.items()}


def test_a_slow_completer_follows_the_policy():
    agent = tiny_agent(rollout_ema_rate=0.25, rollouts=1, batch_size=16)
    before = [p.clone() for p in agent.rollout_policy.parameters()]
    agent.learn(1)
    for slow, old, live in zip(agent.rollout_policy.parameters(), before, agent.policy.parameters(), strict=True):
        assert torch.allclose(slow, old + 0.25 * (live - old), atol=1e-6)


def test_mistakes_are_told():
    for settings, words in [
        ({"baseline": "mean"}, "there is no baseline 'mean'.*Did you mean 'position_mean'"),
        ({"baseline": "prefix", "rollouts": 0}, "give rollouts of at least 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"loss": "max"}, "there is no loss 'max'; give 'sum' or 'mean'"),
        ({"rollouts": -1}, "rollouts must be"),
        ({"rollout_ema_rate": 0}, "rollout_ema_rate"),
        ({"kl": {"weight": -1}}, "kl.weight"),
        ({"kl": {"target": 0.1}}, "kl.weight=0.0: both must be above 0"),
        ({"kl": {"target": 0, "weight": 0.1}}, "kl.target=0 .*must be above 0"),
        ({"temperature": 0}, "temperature=0 must be"),
        ({"temperature": 1e-4}, "temperature >= 0.001"),
        ({"top_p": 1.5}, "top_p <= 1"),
        ({"top_k": -1}, "top_k must be"),
        ({"critic_learning_rate": 0}, "critic_learning_rate=0"),
        ({"baseline": "rloo"}, "give rollouts=0"),
        ({"baseline": "grpo", "rollouts": 0, "batch_size": 1}, "at least 2"),
        ({"group_size": 3}, "batch_size=64 is not divisible by group_size=3"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"normalize_advantage": "no"}, "normalize_advantage"),
    ]:
        with pytest.raises(OptionError, match=words):
            Reinforce.choose_settings(**settings)
    with pytest.raises(OptionError, match="makes the whole batch one group"):
        Reinforce(tiny_env(), group_size=2)
    start = MLE(gym.make("TextGen-v0", task="answers"), seed=0, progress=False)
    with pytest.raises(OptionError, match="give a group_size of at least 2"):
        Reinforce(start.env, baseline="rloo", rollouts=0)
    with pytest.raises(OptionError, match="whose tokens differ"):
        Reinforce(tiny_env(), start=start)
    with pytest.raises(OptionError, match="hidden=9 differs from the policy of the warm start"):
        Reinforce(start.env, start=start, hidden=9)
    with pytest.raises(OptionError, match="give examples="):
        start.log_prob([[1, 2]])
    with pytest.raises(OptionError, match="for a warm start"):
        Reinforce(tiny_env(), start=type("Other", (), {"policy": torch.nn.Linear(1, 1)})())
    assert isinstance(Reinforce(tiny_env(), preset="paper", progress=False).policy, LSTM)


def test_a_slow_reward_is_told_once_with_the_settings_that_change_it():
    def slow(completions):
        time.sleep(0.6)
        return [1.0] * len(completions)

    def agent(reward):
        env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4, train_size=9)", reward=reward)
        return Reinforce(env, seed=0, rollouts=0, batch_size=4, embedding=4, hidden=4, progress=False)

    words = r"the reward slow took .* for 4 sequences.*rollouts \(now 0.*batch_size \(now 4\).*cached=True"
    with pytest.warns(SlowRewardWarning, match=words) as told:
        agent(slow).learn(2)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent("constant").learn(1)


def test_an_update_scores_each_sequence_and_the_completions_of_its_prefixes():
    """The number in docs/rewards.md."""
    scored = []

    def count(completions):
        scored.append(len(completions))
        return [0.0] * len(completions)

    env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=5, train_size=9)", reward=count)
    Reinforce(env, seed=0, rollouts=3, batch_size=8, embedding=4, hidden=4, progress=False).learn(1)
    assert sum(scored) == 8 * (1 + 3 * (5 - 1))
