"""Policies from settings, and policies with banned tokens."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import MLE, Reinforce, ScheduledSampling
from agents.networks.policies import (
    LogitMask,
    PolicySettings,
    Restricted,
    Tempered,
    architecture_of,
    make_policy,
    width_of_features,
)
from agents.networks.transformer import Transformer
from tests.helpers.gradients import (
    SEQUENCES,
    assert_within_standard_error,
    estimated_gradients,
    exact_gradient,
    worth,
)
from tests.helpers.models import probability, seeded, small_model
from text_gym.errors import OptionError
from text_gym.language_model import LSTM, generate
from text_gym.sequences import Examples, Sequences
from text_gym.tasks import Task
from text_gym.vocab import Vocabulary


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_a_policys_sizes_make_another_like_it(policy):
    settings = PolicySettings(policy=policy, embedding=8, hidden=12, layers=3, heads=2)
    made = make_policy(settings, 10)
    again = make_policy(PolicySettings(**architecture_of(made)), 10)
    again.load_state_dict(made.state_dict())
    assert isinstance(again, Transformer if policy == "transformer" else LSTM)
    with pytest.raises(OptionError, match="for a warm start"):
        architecture_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_every_policy_goes_through_learning_and_saving(policy, tmp_path):
    env = gym.make("TextGen-v0", task="answers", size=200)
    sizes = {"policy": policy, "embedding": 16, "hidden": 16, "progress": False}
    start = MLE(env, seed=0, schedule=((3, 1e-2),), **sizes)
    before = start.nll("train")
    start.learn(2)
    assert start.nll("train") < before
    agent = Reinforce(env, seed=0, start=start, rollouts=1, batch_size=8, progress=False).learn(2)
    assert agent.settings.policy == policy
    agent.save(tmp_path)
    again = Reinforce.load(tmp_path, env)
    assert (again.sample(9, seed=0).tokens == agent.sample(9, seed=0).tokens).all()


def test_initial_weights_are_drawn_as_told():
    weights = torch.cat([p.flatten() for p in make_policy(PolicySettings(initial_std=0.1), 500).parameters()])
    assert weights.std().item() == pytest.approx(0.1, rel=0.02)
    for settings, words in [
        ({"policy": "lstn"}, "Did you mean 'lstm'"),
        ({"hidden": 0}, "hidden"),
        ({"initial_std": -1}, "initial_std"),
    ]:
        with pytest.raises(OptionError, match=words):
            PolicySettings(**settings)


EOS = 2


def restricted_env(**limits):
    vocab = Vocabulary(["a", "b", "<eos>"], eos=EOS)
    splits = {s: Examples(Sequences.from_lists([[0], [1, 0]])) for s in ("train", "valid", "test")}
    return gym.make("TextGen-v0", task=Task("tiny", vocab, 3, splits), reward=worth, **limits)


def allowed(sequence):
    """With min_length=2 and no banned tokens, EOS is masked at the first two positions."""
    return EOS not in sequence[:2]


def test_a_restricted_policy_is_the_policy_given_that_nothing_forbidden_is_written():
    """Token by token, the distribution is the renormalised one, by enumeration."""
    model = small_model(3, seed=1)
    none, eos = torch.zeros(3, dtype=torch.bool), torch.tensor([False, False, True])
    drawn = generate(Restricted(model, LogitMask.of_banned(eos, none, 2)), 4000, 3, EOS, seeded(0))
    written = [tuple(t for t in row if t != 3) for row in drawn.tokens.tolist()]
    assert all(allowed(s) for s in written)
    own = {s: probability(model, s) for s in SEQUENCES}
    prefix_mass = {
        (): sum(math.exp(p) for s, p in own.items() if s[0] != EOS),
        (0,): sum(math.exp(p) for s, p in own.items() if s[0] == 0 and s[1] != EOS) / _mass(own, (0,)),
        (1,): sum(math.exp(p) for s, p in own.items() if s[0] == 1 and s[1] != EOS) / _mass(own, (1,)),
    }
    for row, sequence in enumerate(written[:50]):
        expected = own[sequence] - math.log(prefix_mass[()]) - math.log(prefix_mass[sequence[:1]])
        assert drawn.log_probs[row].sum().item() == pytest.approx(expected, abs=1e-5)


def _mass(own, prefix):
    return sum(math.exp(p) for s, p in own.items() if s[: len(prefix)] == prefix)


def test_the_gradient_under_restrictions_is_the_exact_one():
    """The gradient of the expected reward of the distribution that is sampled from."""
    agent = Reinforce(
        restricted_env(min_length=2), seed=0, progress=False, embedding=3, hidden=5, initial_std=None,
        rollouts=0, loss="sum", baseline="none",
    )  # fmt: skip
    agent.policy.load_state_dict(small_model(3, seed=1).state_dict())
    model = agent.policy.double()
    kept = [s for s in SEQUENCES if allowed(s)]
    tokens = torch.tensor([[*s, *[3] * (3 - len(s))] for s in kept])
    logits = model.output(model.features(tokens))
    logits = logits + agent.logit_mask.at(torch.arange(3)).double()
    logs = logits.log_softmax(dim=2).gather(2, tokens.clamp(max=2)[:, :, None])[:, :, 0].where(tokens < 3, 0.0).sum(1)
    assert logs.exp().sum().item() == pytest.approx(1)
    exact = torch.autograd.grad((logs.exp() * torch.tensor(worth(tokens))).sum(), list(model.parameters()))
    exact = torch.cat([g.flatten() for g in exact])
    agent.policy.float()
    assert_within_standard_error(estimated_gradients(agent, 100, 500), exact)
    unrestricted = exact_gradient(agent, lambda tokens, *_: torch.tensor(worth(tokens)))
    assert (unrestricted - exact).abs().max() > 0.1 * exact.abs().max()


def test_everything_that_is_valued_is_allowed():
    """Samples, rollouts and the greedy sequence have no banned tokens, and the initial KL divergence is 0."""
    scored = []

    def spy(tokens):
        scored.extend(tuple(t for t in row if t != 3) for row in np.asarray(tokens).tolist())
        return [1.0] * len(tokens)

    splits = {s: Examples(Sequences.from_lists([[0], [1, 0]])) for s in ("train", "valid", "test")}
    task = Task("tiny", Vocabulary(["a", "b", "<eos>"], eos=EOS), 3, splits)
    env = gym.make("TextGen-v0", task=task, reward=spy, min_length=2, banned=["a"])
    agent = Reinforce(
        env,
        seed=0,
        progress=False,
        rollouts=3,
        rollout_ema_rate=0.5,
        baseline="greedy",
        kl={"weight": 1.0},
        batch_size=30,
    )
    drawn, values = agent.sample_and_value(30, seeded(0), None)
    agent.advantages(drawn, values, None)
    assert len(scored) == 30 + 3 * int((drawn.lengths - 1).sum()) + 1
    assert all(allowed(s) and 0 not in s for s in scored)
    assert agent.logger.name_to_value["train/kl_to_start"] == pytest.approx(0, abs=1e-5)


def test_scheduled_sampling_reads_nothing_that_is_banned():
    env = gym.make("TextGen-v0", task="grammar(train_size=50)", min_length=6, banned=["cats"])
    agent = ScheduledSampling(env, seed=0, progress=False)
    agent.share_of_real, agent.input_generator = 0.0, seeded(0)
    batch = agent.task.batch("train", np.flatnonzero(agent.task.train.references.lengths >= 7))
    read = agent.model_inputs(torch.tensor(batch.tokens), None)
    assert (read[:, :6] != agent.task.vocab.eos).all()
    assert (read[:, :6] != agent.task.vocab.ids["cats"]).all()


def test_agents_write_nothing_that_is_banned():
    env = restricted_env(min_length=2, banned=["a"])
    agent = MLE(env, seed=0, progress=False)
    assert (agent.sample(50).tokens == 1).sum() >= 100
    assert not np.isin(agent.sample(50).tokens, [0]).any()
    assert (agent.sample(50).lengths >= 2).all()
    assert np.isfinite(agent.log_prob([[0, EOS, 3]])).all()  # under the policy without the mask
    assert agent.log_prob([[0, EOS, 3]], as_sampled=True) == -np.inf
    assert np.exp(agent.log_prob([[1, 1, 1], [1, 1, EOS]], as_sampled=True)).sum() == pytest.approx(1)
    observation, _ = env.reset()
    assert agent.predict(observation, deterministic=True)[0] == 1


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_likelihoods_at_a_temperature_are_those_of_a_softmax_by_hand(temperature):
    agent = MLE(restricted_env(), seed=0, progress=False, embedding=3, hidden=5)
    agent.policy.load_state_dict(small_model(3, seed=1).state_dict())
    tokens = torch.tensor([[*s, *[3] * (3 - len(s))] for s in SEQUENCES])
    model = agent.policy.eval()
    logits = model.output(model.features(tokens)).detach().double()
    shares = (logits / temperature).exp() / (logits / temperature).exp().sum(dim=2, keepdim=True)
    by_hand = [math.log(math.prod(shares[i, t, token] for t, token in enumerate(s))) for i, s in enumerate(SEQUENCES)]
    lengths = [len(s) for s in SEQUENCES]
    found = agent.log_prob(tokens.numpy(), lengths, temperature=temperature)
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
    assert agent.log_prob(tokens.numpy(), lengths, temperature=1) == pytest.approx(
        [probability(agent.policy, s) for s in SEQUENCES], abs=1e-5
    )
    drawn = agent.sample(20_000, seed=0, temperature=temperature)
    written = [tuple(t for t in row if t != 3) for row in drawn.tokens.tolist()]
    shares_drawn = np.array([written.count(s) for s in SEQUENCES]) / 20_000
    assert shares_drawn == pytest.approx(np.exp(found), abs=0.015)  # four standard errors at most
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="temperature"):
            agent.log_prob(tokens.numpy(), lengths, temperature=wrong)


def test_what_is_written_under_restrictions_at_a_temperature_sums_to_one():
    agent = MLE(restricted_env(min_length=2), seed=0, progress=False, embedding=3, hidden=5, initial_std=1.0)
    kept = [s for s in SEQUENCES if allowed(s)]
    tokens, lengths = [[*s, *[3] * (3 - len(s))] for s in kept], [len(s) for s in kept]
    own = agent.log_prob(tokens, lengths, temperature=0.4)
    written = agent.log_prob(tokens, lengths, temperature=0.4, as_sampled=True)
    assert np.exp(written).sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(own).sum() < 0.99
    drawn = agent.sample(20_000, seed=0, temperature=0.4)
    shares = [np.mean((drawn.tokens == row).all(axis=1)) for row in tokens]
    assert shares == pytest.approx(np.exp(written), abs=0.015)


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_a_tempered_policy_step_by_step_is_the_one_at_once(policy):
    model = make_policy(PolicySettings(policy=policy, embedding=8, hidden=8, heads=2, layers=1), 3).eval()
    tempered = Tempered(model, 0.5)
    tokens = torch.tensor([[0, 1, 0], [1, 1, 2]])
    prompts = torch.tensor([[1, 0], [0, 2]])
    with torch.no_grad():
        whole = tempered.output(tempered.features(tokens, prompts))
        logits, state = tempered.start(2, prompts)
        for t in range(3):
            assert torch.allclose(logits, whole[:, t], atol=1e-5)
            assert torch.allclose(logits, 2 * model.output(model.features(tokens, prompts))[:, t], atol=1e-5)
            logits, state = tempered.step(tokens[:, t], state)
        scores = tempered.log_prob(tokens, torch.ones(2, 3, dtype=torch.bool), prompts)
    expected = whole.log_softmax(dim=2).gather(2, tokens[:, :, None])[:, :, 0]
    assert torch.allclose(scores, expected, atol=1e-5)


def test_the_width_of_the_features():
    linear, other = LSTM(5, 3, 7), LSTM(5, 3, 7)
    layer = other.output
    del other.output
    other.output = lambda features: layer(features)
    for policy in (linear, other):
        assert width_of_features(policy, None) == 7
        assert width_of_features(policy, torch.zeros(1, 2, dtype=torch.long)) == 7


@torch.no_grad()
def test_wrapped_models_say_the_same_step_by_step_and_at_once():
    """Temperature, mask and both, against the logits of the model with both applied by hand."""
    model = make_policy(PolicySettings(policy="transformer", embedding=8, hidden=8, heads=2, layers=1), 4).eval()
    early, later = torch.tensor([True, False, False, True]), torch.tensor([True, False, False, False])
    mask = LogitMask.of_banned(early, later, min_length=2)
    tokens = torch.tensor([[1, 2, 1, 3], [2, 2, 3, 1]])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    own = model.output(model.features(tokens))
    banned = torch.stack([early, early, later, later])
    for wrapped, expected in (
        (Tempered(model, 0.5), own / 0.5),
        (Restricted(model, mask), own.masked_fill(banned, -math.inf)),
        (Restricted(Tempered(model, 0.5), mask), (own / 0.5).masked_fill(banned, -math.inf)),
    ):
        logits, state = wrapped.start(2)
        stepped = [logits]
        for column in tokens[:, :-1].unbind(dim=1):
            logits, state = wrapped.step(column, state)
            stepped.append(logits)
        assert torch.allclose(torch.stack(stepped, dim=1), expected, atol=1e-5)
        log_probs = expected.log_softmax(dim=2).gather(2, tokens[:, :, None])[:, :, 0]
        assert torch.allclose(wrapped.log_prob(tokens, valid), log_probs, atol=1e-5)
        assert wrapped.state_size(7) == model.state_size(7)
        assert set(map(id, wrapped.parameters())) == set(map(id, model.parameters()))
