"""Language models in Stable-Baselines3, against the same language models step by step."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure

from agents.mle import MLE
from agents.networks.policies import LogitMask, PolicySettings, Restricted, make_policy
from agents.sb3.actor_critic import PrefixExtractor, TextPolicy, longest_prefixes
from agents.sb3.vec_env import TextGenVecEnv
from tests.helpers.models import seeded
from text_gym.errors import OptionError

SIZE, LENGTH = 9, 4
ORACLE = f"oracle(vocab_size={SIZE}, max_length={LENGTH})"
LSTM = {"embedding": 8, "hidden": 8, "initial_std": 1.0}  # large weights, so that the probabilities of tokens differ
TRANSFORMER = {"policy": "transformer", "embedding": 8, "hidden": 16, "layers": 2, "heads": 2}
KINDS = pytest.mark.parametrize("kind", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
ROLLOUT = {"n_steps": 8, "batch_size": 16, "n_epochs": 2}


def parallel(count=4, **options):
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=count, autoreset_mode="SameStep", **options))


def ppo(envs=None, kind=LSTM, seed=0, **options):
    envs = parallel(task=ORACLE, reward="length") if envs is None else envs
    return PPO(TextPolicy, envs, seed=seed, policy_kwargs={"language_model": kind, **options}, **ROLLOUT)


def some_prefixes(n, size=SIZE, length=LENGTH, seed=0, shortest=0):
    """Return random prefixes [n, length] of all lengths, padded with `size`, and their lengths."""
    tokens = torch.randint(size, (n, length), generator=seeded(seed))
    lengths = torch.arange(n) % (length + 1 - shortest) + shortest
    return tokens.masked_fill(torch.arange(length) >= lengths[:, None], size), lengths


def read_alone(model, prefix, prompt=None, pad=SIZE):
    """Compute the logits after one prefix with start() and step()."""
    row = None if prompt is None else prompt[None]
    logits, state = model.start(1, row)
    for token in prefix[prefix != pad]:
        logits, state = model.step(token[None], state)
    return logits[0]


# Features.


@KINDS
@pytest.mark.parametrize("prompted", [False, True])
def test_features_are_what_the_model_knows_at_the_end_of_each_prefix(kind, prompted):
    """In batches with other lengths, other prompts, and prefixes of the same sequence."""
    box = spaces.Box(0, SIZE, (LENGTH,), np.int64)
    space = spaces.Dict({"prompt": spaces.Box(0, SIZE, (3,), np.int64), "prefix": box}) if prompted else box
    torch.manual_seed(0)
    extractor = PrefixExtractor(space, **kind).eval()
    prefixes, _ = some_prefixes(40)
    prefixes[20:] = prefixes[:20]
    prefixes[20:, 2:] = SIZE  # prefixes of the first half
    prompts = some_prefixes(40, length=3, seed=1, shortest=1)[0] if prompted else None
    if prompted:
        prompts[20:30] = prompts[:10]
    observed = prefixes.float() if prompts is None else {"prompt": prompts.float(), "prefix": prefixes.float()}
    with torch.no_grad():
        features = extractor(observed)
        assert features.shape == (40, extractor.features_dim) == (40, 8)
        first = {name: value[:1] for name, value in observed.items()} if prompted else observed[:1]
        assert torch.allclose(extractor(first), features[:1], atol=1e-6)  # all prefixes of the batch are empty
        extractor(observed)
        assert extractor.positions.tolist() == (prefixes != SIZE).sum(1).tolist()
        logits = extractor.model.output(features)
        for row in range(40):
            prompt = None if prompts is None else prompts[row]
            assert torch.allclose(logits[row], read_alone(extractor.model, prefixes[row], prompt), atol=1e-5)
            padded = torch.cat([prefixes[row], torch.tensor([SIZE])])[None]
            alone = extractor.model.features(padded, None if prompt is None else prompt[None])
            assert torch.allclose(features[row], alone[0, extractor.positions[row]], atol=1e-6)


@KINDS
def test_gradients_through_shared_readings_are_those_of_reading_each_row(kind):
    torch.manual_seed(0)
    extractor = PrefixExtractor(spaces.Box(0, SIZE, (LENGTH,), np.int64), **kind).double()
    sequences, _ = some_prefixes(6, shortest=LENGTH)
    prefixes = torch.cat([sequences.masked_fill(torch.arange(LENGTH) >= t, SIZE) for t in range(LENGTH + 1)])
    weights = torch.randn(len(prefixes), 8, generator=seeded(3), dtype=torch.float64)
    parameters = [p for name, p in extractor.model.named_parameters() if not name.startswith("output")]
    ours = torch.autograd.grad((extractor(prefixes.float()) * weights).sum(), parameters)
    padded = torch.cat([prefixes, torch.full((len(prefixes), 1), SIZE)], dim=1)
    each = [extractor.model.features(row[None])[0, (row != SIZE).sum()] for row in padded]
    theirs = torch.autograd.grad((torch.stack(each) * weights).sum(), parameters)
    assert max(g.abs().max() for g in ours) > 0.1
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


def test_prefixes_of_one_sequence_are_read_once():
    extractor = PrefixExtractor(spaces.Box(0, SIZE, (LENGTH,), np.int64), **LSTM)
    read, features = [], extractor.model.features
    extractor.model.features = lambda tokens, prompts=None: read.append(tokens) or features(tokens, prompts)
    sequence = torch.tensor([5, 3, 7, 1])
    extractor(torch.stack([sequence.masked_fill(torch.arange(4) >= t, SIZE) for t in (0, 1, 3, 2)]).float())
    assert [tokens.tolist() for tokens in read] == [[[5, 3, 7, SIZE]]]
    assert extractor(torch.zeros(0, 4)).shape == (0, 8)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), length=st.integers(1, 4), width=st.integers(0, 2))
def test_longest_prefixes_by_brute_force(data, length, width):
    """Every prefix has a longest prefix that starts with it, and no longest prefix is a prefix of another."""
    pad = 3
    rows = st.lists(st.integers(0, pad - 1), max_size=length).map(lambda row: row + [pad] * (length - len(row)))
    asked = st.lists(st.integers(0, pad - 1), max_size=width).map(lambda row: row + [pad] * (width - len(row)))
    found = data.draw(st.lists(st.tuples(asked, rows), max_size=9))
    tokens = torch.tensor([row for _, row in found], dtype=torch.long).view(-1, length)
    prompts = torch.tensor([row for row, _ in found], dtype=torch.long).view(-1, width) if width else None
    kept, which = (part.tolist() for part in longest_prefixes(tokens, pad, prompts))

    def goes_on_from(longer, shorter):
        begun = [t for t in found[shorter][1] if t != pad]
        return found[longer][0] == found[shorter][0] and found[longer][1][: len(begun)] == begun

    assert len(which) == len(found)
    assert len(kept) == len(set(kept)) <= len(found)
    assert all(goes_on_from(kept[number], row) for row, number in enumerate(which))
    assert not any(goes_on_from(a, b) for a in kept for b in kept if a != b)


# The policy.


@KINDS
@pytest.mark.parametrize("forbid", [False, True])
def test_its_log_probabilities_are_the_language_models(kind, forbid):
    """Token by token, also with banned tokens and min_length."""
    early, later = torch.zeros(2, SIZE, dtype=torch.bool)
    early[[0, 5]] = later[5] = True
    logit_mask = LogitMask.of_banned(early, later, min_length=2)
    model = ppo(kind=kind, **({"logit_mask": logit_mask} if forbid else {}))
    policy = model.policy
    policy.set_training_mode(False)
    sequences = torch.tensor([[1, 2, 3, 4], [8, 0, 0, 7], [6, 6, 6, 0], [2, 5, 0, 1]])
    by = Restricted(policy.language_model, logit_mask) if forbid else policy.language_model
    with torch.no_grad():
        expected = by.log_prob(sequences, torch.ones(4, 4, dtype=torch.bool))
        for t in range(LENGTH):
            observations = sequences.masked_fill(torch.arange(4) >= t, SIZE)
            _, log_probs, entropy = policy.evaluate_actions(observations, sequences[:, t])
            assert torch.allclose(log_probs, expected[:, t], atol=1e-5)
            logits = torch.stack([read_alone(policy.language_model, row) for row in observations])
            if forbid:
                logits[:, early if t < 2 else later] = -1e9
            shares = logits.softmax(1)
            assert torch.allclose(policy.get_distribution(observations).distribution.probs, shares, atol=1e-6)
            assert torch.allclose(entropy, -(shares * shares.clamp(min=1e-30).log()).sum(1), atol=1e-5)
    if forbid:
        assert expected[1, 1] == expected[3, 1] == -torch.inf
        assert torch.isfinite(expected[1, 2])
    else:
        assert torch.isfinite(expected).all()


@pytest.mark.parametrize("forbid", [False, True])
def test_tokens_are_drawn_as_often_as_they_are_likely(forbid):
    later = torch.zeros(SIZE).masked_fill(torch.arange(SIZE) == 5, -torch.inf)
    policy = ppo(**({"logit_mask": LogitMask(later, later, 0)} if forbid else {})).policy
    observations = torch.tensor([[3, 7, SIZE, SIZE]]).repeat(20_000, 1)
    with torch.no_grad():
        shares = (read_alone(policy.language_model, observations[0]) + (later if forbid else 0)).softmax(0)
        torch.manual_seed(0)
        tokens, _, log_probs = policy(observations)
    assert torch.allclose(log_probs, shares[tokens].log(), atol=1e-5)
    counts = tokens.bincount(minlength=SIZE).numpy()
    possible = shares.numpy() > 0
    assert counts[~possible].sum() == 0
    expected = shares.double().numpy()[possible]
    assert expected.max() > 2 * expected.min()
    assert chisquare(counts[possible], expected / expected.sum() * len(tokens)).pvalue > 1e-3
    drawn, _ = policy.predict(observations[0].numpy(), deterministic=True)
    assert drawn == int(shares.argmax())


def gradient_norms(policy, loss):
    policy.optimizer.zero_grad()
    loss.backward()
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in policy.named_parameters()}


@KINDS
def test_a_critic_of_its_own_leaves_the_actor_alone(kind):
    observations, _ = some_prefixes(12)
    shared, separate = (ppo(kind=kind, critic=critic, critic_layers=(6, 5)).policy for critic in ("shared", "separate"))
    of_value = gradient_norms(shared, shared.predict_values(observations).sum())
    assert any(norm for name, norm in of_value.items() if name.startswith("features_extractor.model"))
    assert not any(norm for name, norm in of_value.items() if ".output." in name)
    of_value = gradient_norms(separate, separate.predict_values(observations).sum())
    of_actor = gradient_norms(
        separate, separate.get_distribution(observations).log_prob(observations[:, 0] % SIZE).sum()
    )
    for name in of_value:
        critics = name.startswith(("vf_features_extractor", "value_net", "mlp_extractor"))
        assert critics or not of_value[name], name
        assert not (critics and of_actor[name]), name
    assert any(of_value.values())
    assert any(of_actor.values())
    widths = [layer.out_features for layer in separate.mlp_extractor.value_net if hasattr(layer, "out_features")]
    assert widths == [6, 5]
    assert not any("output" in name for name, _ in separate.vf_features_extractor.named_parameters())
    trained = {id(p) for group in separate.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in separate.parameters()}
    assert len(trained) == len(list(separate.parameters()))


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("task", ["grammar(train_size=200)", "answers(size=40)"])
def test_it_begins_as_the_agent_that_it_begins_with(task, critic):
    env = gym.make("TextGen-v0", task=task)
    mle = MLE(env, seed=0, embedding=8, hidden=8, progress=False).learn(1)
    model = ppo(parallel(task=task), {"embedding": 8, "hidden": 8}, critic=critic)
    batch = mle.task.batch("train", np.arange(10))
    tokens, valid = torch.tensor(batch.tokens), torch.tensor(batch.valid_mask)
    prompts = mle.prompt_tokens(batch.examples)
    with torch.no_grad():
        wanted = mle.policy.eval().log_prob(tokens, valid, prompts)
        assert not torch.allclose(model.policy.language_model.log_prob(tokens, valid, prompts), wanted, atol=1e-2)
        model.policy.load_language_model(mle.policy)
        model.policy.set_training_mode(False)
        for t in range(int(batch.lengths.min())):
            seen = torch.full((10, mle.rules.limit), mle.rules.pad)
            seen[:, :t] = tokens[:, :t]
            observations = seen if prompts is None else {"prompt": prompts, "prefix": seen}
            assert torch.allclose(model.policy.evaluate_actions(observations, tokens[:, t])[1], wanted[:, t], atol=1e-5)
    if critic == "separate":
        own = model.policy.critic_model.state_dict()
        assert "output.weight" not in own
        assert all((own[name] == value).all() for name, value in mle.policy.state_dict().items() if name in own)
    model.learn(64)
    assert not torch.allclose(model.policy.language_model.log_prob(tokens, valid, prompts), wanted, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"critic": "separate", "critic_layers": (5,)}])
@KINDS
def test_stable_baselines3_saves_and_loads_it(kind, options, tmp_path):
    envs = parallel(task=ORACLE, reward="length")
    later = torch.zeros(SIZE).masked_fill(torch.arange(SIZE) == 5, -torch.inf)
    model = ppo(envs, kind, logit_mask=LogitMask(later, later, 0), **options).learn(64)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = PPO.load(tmp_path / "model", envs)
    observations, _ = some_prefixes(12, shortest=0)
    actions = torch.arange(12) % 5
    wanted = [part.detach() for part in model.policy.evaluate_actions(observations, actions)]
    for policy in (loaded.policy, TextPolicy.load(tmp_path / "policy")):
        for mine, other in zip(policy.evaluate_actions(observations, actions), wanted, strict=True):
            assert torch.equal(mine, other)
        assert torch.isneginf(policy.evaluate_actions(observations, torch.full((12,), 5))[1]).all()
    for one in (model, loaded):  # including the state of the optimiser
        one.set_random_seed(3)
        one.learn(32)
    for mine, other in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a2c_and_a_function_that_makes_the_model():
    made = []

    def make():
        made.append(make_policy(PolicySettings(embedding=4, hidden=6), SIZE))
        return made[-1]

    options = {"language_model": make, "critic": "separate"}
    model = A2C(TextPolicy, parallel(task=ORACLE, reward="length"), n_steps=4, policy_kwargs=options)
    assert len(made) == 2
    assert model.policy.language_model is made[0]
    before = made[0].output.weight.detach().clone()
    model.learn(32)
    assert (made[0].output.weight != before).any()


def test_callbacks_and_loggers_of_stable_baselines3(tmp_path):
    envs = parallel(task=ORACLE, reward="length")
    model = ppo(envs)
    model.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    scored = EvalCallback(parallel(task=ORACLE, reward="length"), n_eval_episodes=4, eval_freq=8, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, callback=[scored, CheckpointCallback(8, str(tmp_path), "at")])
    model.logger.close()
    assert scored.last_mean_reward == LENGTH
    assert PPO.load(tmp_path / "at_64_steps").num_timesteps == 64
    rows = (tmp_path / "log" / "progress.csv").read_text().splitlines()
    assert "train/clip_fraction" in rows[0]
    assert "eval/mean_reward" in rows[0]


def test_it_learns_what_pays():
    """The optimal sequence is 3, 3, 3, ..."""
    envs = parallel(16, task=ORACLE, reward=lambda tokens: (tokens == 3).mean(axis=1))
    options = {"n_steps": 4, "batch_size": 32, "learning_rate": 1e-2}
    model = PPO(TextPolicy, envs, seed=0, policy_kwargs={"language_model": {"hidden": 8}}, **options).learn(64 * 40)
    assert np.mean([e["r"] for e in model.ep_info_buffer]) > 0.9


# Errors.


def test_mistakes_are_told():
    for options, words in [
        ({"critic": "none"}, "there is no critic 'none'; give 'shared' or 'separate'"),
        ({"kind": {"hiden": 3}}, "no option 'hiden'.*Did you mean 'hidden'"),
        ({"kind": {"hidden": 0}}, "hidden must be"),
        ({"kind": {"policy": "lstn"}}, "Did you mean 'lstm'"),
        ({"kind": 5}, "language_model=5 is neither a dict nor a function"),
        ({"kind": "lstm"}, "language_model='lstm' is neither a dict nor a function"),
    ]:
        with pytest.raises(OptionError, match=words):
            ppo(**options)
    model = make_policy(PolicySettings(hidden=8), SIZE)
    with pytest.raises(OptionError, match="create a new model in every call"):
        ppo(kind=lambda: model, critic="separate")
    for env in ("CartPole-v1", "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"):
        with pytest.raises(OptionError, match="observations of TextGen-v0"):
            PPO(TextPolicy, env, n_steps=8, batch_size=8)
    other = spaces.Dict({"text": spaces.Box(0, 5, (3,), np.int64)})
    with pytest.raises(OptionError, match="observations of TextGen-v0"):
        PrefixExtractor(other)
    with pytest.raises(OptionError, match="creates a model of 7 tokens"):
        ppo(kind=lambda: make_policy(PolicySettings(hidden=8), 7))
