"""Group-relative baselines by hand and by enumeration, and a critic against the values of a tiny language."""

import itertools
import math

import gymnasium as gym
import pytest
import torch

from agents.common.baselines import Critic
from agents.reinforce import Reinforce
from tests.helpers.gradients import PAD, SEQUENCES, WORTH, exact_gradient, padded, tiny_agent, worth
from tests.helpers.models import seeded
from text_gym.language_model import Drawn


def test_rloo_is_unbiased_whatever_is_drawn():
    """The expected gradient over all pairs of sequences equals the exact gradient."""
    agent = tiny_agent(baseline="rloo", rollouts=0, loss="sum", batch_size=2)
    exact = exact_gradient(agent, lambda tokens, *_: torch.tensor(worth(tokens)))
    tokens, total = padded(SEQUENCES), torch.zeros_like(exact)
    with torch.no_grad():
        logs = agent.policy.log_prob(tokens, tokens != PAD).double()
    chance = logs.sum(dim=1).exp()
    for pair in itertools.product(range(len(SEQUENCES)), repeat=2):
        rows = torch.tensor(pair)
        drawn = Drawn(tokens[rows], (tokens[rows] != PAD).sum(dim=1), logs[rows])
        values = torch.tensor(worth(tokens[rows])).double()[:, None].expand(2, 4)
        loss = agent.loss(drawn, agent.advantages(drawn, values, None), None) / 2
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(-loss, list(agent.policy.parameters()))])
        total += chance[rows].prod() * gradient
    assert exact.abs().max() > 0.03
    assert torch.allclose(total, exact, atol=1e-6)


def test_grpo_is_as_published():
    """GRPO: rewards minus the mean of the group, over its standard deviation; equal rewards have advantage 0."""
    env = gym.make("TextGen-v0", task="answers(size=40)", reward="exact_match")
    agent = Reinforce(env, seed=0, progress=False, baseline="grpo", rollouts=0, batch_size=8, group_size=4)
    drawn, values = agent.sample_and_value(8, seeded(0), agent.sample_groups(seeded(1)))
    values = torch.tensor([1.0, 0, 0, 1, 5, 5, 5, 5]).double()[:, None].expand_as(values)
    advantages = agent.advantages(drawn, values, None)
    share = 0.5 / (math.sqrt(4 * 0.25 / 3) + 1e-4)
    assert advantages[:, 0].tolist() == pytest.approx([share, -share, -share, share, 0, 0, 0, 0])
    valid = torch.arange(advantages.shape[1]) < drawn.lengths[:, None]
    assert (advantages == advantages[:, :1] * valid).all()


def test_rloo_compares_within_the_group():
    env = gym.make("TextGen-v0", task="answers(size=40)", reward="exact_match")
    agent = Reinforce(env, seed=0, progress=False, baseline="rloo", rollouts=0, batch_size=6, group_size=3)
    drawn, values = agent.sample_and_value(6, seeded(0), agent.sample_groups(seeded(1)))
    values = torch.tensor([1.0, 0, 2, 9, 9, 3]).double()[:, None].expand_as(values)
    expected = [1 - 1, 0 - 1.5, 2 - 0.5, 9 - 6, 9 - 6, 3 - 9]
    assert agent.advantages(drawn, values, None)[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("baseline", ["rloo", "leave_one_out"])
def test_a_group_answers_one_prompt(baseline):
    """The sequences of a group have the same prompt, and are sampled independently."""
    seen = []

    def spy(completions, prompts, **_):
        seen.append((prompts, completions))
        return [float(len(c)) for c in completions]

    env = gym.make("TextGen-v0", task="answers(size=40)", reward=spy)
    agent = Reinforce(env, seed=0, progress=False, baseline=baseline, rollouts=0, batch_size=12, group_size=4)
    seen.clear()
    agent.learn(1)
    (prompts, completions), = seen  # fmt: skip
    assert [prompts[i : i + 4] for i in (0, 4, 8)] == [[prompts[i]] * 4 for i in (0, 4, 8)]
    assert len(set(prompts)) == 3
    assert len(set(completions)) > 6


def test_a_critic_learns_the_value_of_every_prefix():
    """The values equal those by enumeration, at any scale of the reward; so does the explained variance."""
    for unit, shift in ((1, 0), (1e4, -1e5)):
        agent = tiny_agent(baseline="critic", rollouts=0, batch_size=500, critic_learning_rate=2e-2)
        agent.critic.network.load_state_dict(critic_of(width=5).network.state_dict())
        for batch in range(240):
            drawn, values = agent.sample_and_value(500, seeded(batch), None)
            agent.advantages(drawn, shift + unit * values, None)
        tokens = padded(SEQUENCES)
        with torch.no_grad():
            chance = agent.policy.log_prob(tokens, tokens != PAD).sum(dim=1).exp().tolist()
            found = (agent.critic.value(agent.policy.features(tokens)) - shift) / unit
        between = within = 0.0
        exact = {}
        for prefix in {s[:t] for s in SEQUENCES for t in range(len(s))}:
            after = [(p, WORTH[s]) for s, p in zip(SEQUENCES, chance, strict=True) if s[: len(prefix)] == prefix]
            mass = sum(p for p, _ in after)
            exact[prefix] = mass, sum(p * w for p, w in after) / mass
            within += sum(p * (w - exact[prefix][1]) ** 2 for p, w in after)
        for row, sequence in enumerate(SEQUENCES):
            for t in range(len(sequence)):
                mass, value = exact[sequence[:t]]
                assert found[row, t].item() == pytest.approx(value, abs=0.12 if mass > 0.05 else 0.4)
        tokens_in_all = sum(mass for mass, _ in exact.values())
        mean = sum(mass * value for mass, value in exact.values()) / tokens_in_all
        between = sum(mass * (value - mean) ** 2 for mass, value in exact.values())
        assert between / (between + within) > 0.1, "the test would see nothing"
        assert max(v for _, v in exact.values()) - min(v for _, v in exact.values()) > 0.5
        logged = agent.logger.name_to_value
        assert logged["train/explained_variance"] == pytest.approx(between / (between + within), abs=0.08)
        assert logged["train/critic_loss"] == pytest.approx(unit**2 * within / tokens_in_all, rel=0.25)


def critic_of(width):
    torch.manual_seed(0)
    return Critic(width, 1e-3)


def test_the_critic_teaches_the_policy_nothing_but_by_its_advantages():
    agent = tiny_agent(baseline="critic", rollouts=0, batch_size=50)
    drawn, values = agent.sample_and_value(50, seeded(0), None)
    before = [p.clone() for p in agent.critic.network.parameters()]
    first = agent.advantages(drawn, values, None)
    assert all(p.grad is None for p in agent.policy.parameters())
    valid = torch.arange(3) < drawn.lengths[:, None]
    assert torch.equal(first, values[:, 1:].where(valid, 0.0))  # an untrained critic predicts 0
    assert any((p != q).any() for p, q in zip(before, agent.critic.network.parameters(), strict=True))
    assert not torch.equal(agent.advantages(drawn, values, None), first)


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_a_critic_reads_prompts(policy):
    """The critic can learn from the prompt alone whether the reward will be high."""
    env = gym.make("TextGen-v0", task="answers(size=40)", reward="exact_match")
    agent = Reinforce(
        env, seed=0, progress=False, policy=policy, initial_std=1.0, baseline="critic", rollouts=0, batch_size=64,
        critic_learning_rate=1e-2,
    )  # fmt: skip
    pays = lambda examples: torch.tensor([float(len(e.prompt) % 2) for e in examples]).double()  # noqa: E731
    examples = agent.sample_examples(64, seeded(0))
    assert 0.1 < pays(examples).mean() < 0.9
    drawn, values = agent.sample_and_value(64, seeded(0), examples)
    for _ in range(200):
        advantages = agent.advantages(drawn, pays(examples)[:, None].expand_as(values), examples)
    assert advantages[:, 0].abs().mean() < 0.1
