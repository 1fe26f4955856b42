"""Minibatches of whole copies, the sequences of a rollout, and the price of going astray: by labels and by hand."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from agents.common.kl import AdaptiveKL
from agents.networks.policies import LogitMask, PolicySettings, frozen_copy, make_policy
from agents.sb3.actor_critic import TextPolicy
from agents.sb3.buffers import CopiesBuffer, DictCopiesBuffer, KLPenalty, Written, transition_log_probs, written
from agents.sb3.vec_env import TextGenVecEnv
from tests.helpers.models import seeded, small_model
from text_gym.errors import OptionError

STEPS, COPIES, SIZE, LENGTH = 5, 4, 9, 3
PREFIX = spaces.Box(0, SIZE, (LENGTH,), np.int64)
ORACLE = "oracle(vocab_size=9, max_length=4)"


def envs_of(**options):
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=COPIES, autoreset_mode="SameStep", **options))


# Minibatches.


def buffers(prompted, masked):
    """Ours and theirs, and what they hold."""
    space = spaces.Dict({"prompt": PREFIX, "prefix": PREFIX}) if prompted else PREFIX
    if not masked:
        return (DictCopiesBuffer, DictRolloutBuffer, space) if prompted else (CopiesBuffer, RolloutBuffer, space)
    theirs = pytest.importorskip("sb3_contrib.common.maskable.buffers")
    from agents.sb3 import maskable as ours

    if prompted:
        return ours.DictCopiesBuffer, theirs.MaskableDictRolloutBuffer, space
    return ours.CopiesBuffer, theirs.MaskableRolloutBuffer, space


def filled(kind, space):
    """A buffer in which every number says whose it is: copy and step, and after the point the field."""
    buffer = kind(STEPS, space, spaces.Discrete(SIZE), n_envs=COPIES)
    buffer.reset()
    for step in range(STEPS):
        label = 10 * np.arange(COPIES) + step
        rows = np.repeat(label[:, None], LENGTH, axis=1)
        observation = {"prompt": rows + 1000, "prefix": rows} if isinstance(space, spaces.Dict) else rows
        masks = {"action_masks": np.repeat(label[:, None] % 2, SIZE, axis=1)} if "Mask" in str(kind.__mro__) else {}
        floats = torch.tensor(label, dtype=torch.float32)
        buffer.add(observation, label[:, None], label + 0.25, np.zeros(COPIES), floats + 0.5, floats + 0.125, **masks)
    buffer.compute_returns_and_advantage(torch.zeros(COPIES), np.ones(COPIES))
    buffer.advantages[:] = buffer.values + 2000
    buffer.returns[:] = buffer.values + 3000
    return buffer


def rows_of(sample):
    """A transition a row, all its fields in one list of numbers."""
    parts = [sample.observations] if torch.is_tensor(sample.observations) else [*sample.observations.values()]
    parts += sample[1:]
    return [tuple(row) for row in torch.cat([part.reshape(len(part), -1).double() for part in parts], dim=1).tolist()]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize(("size", "copies_each"), [(None, [4]), (1, [1] * 4), (10, [2, 2]), (19, [3, 1]), (64, [4])])
def test_minibatches_hold_whole_copies_and_each_transition_once(prompted, masked, size, copies_each):
    ours, theirs, space = buffers(prompted, masked)
    everything = sorted(row for sample in filled(theirs, space).get(7) for row in rows_of(sample))
    assert len(set(everything)) == STEPS * COPIES
    buffer = filled(ours, space)
    orders = []
    for _ in range(4):  # epochs
        samples = list(buffer.get(size))
        assert sorted(row for sample in samples for row in rows_of(sample)) == everything
        assert [len(sample.actions) // STEPS for sample in samples] == copies_each
        for sample in samples:
            of_copies = sample.actions[:, 0].long().view(-1, STEPS)
            assert (of_copies % 10 == torch.arange(STEPS)).all()
            assert (of_copies // 10 == of_copies[:, :1] // 10).all()
        orders.append([row for sample in samples for row in rows_of(sample)])
    assert any(order != orders[0] for order in orders)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_buffer_that_is_filled_again_gives_what_is_new(prompted, masked):
    ours, _, space = buffers(prompted, masked)
    buffer = filled(ours, space)
    list(buffer.get(10))
    buffer.reset()
    with pytest.raises(AssertionError):
        list(buffer.get(10))


# The sequences of a rollout.


class Told(BaseCallback):
    """Keeps what each copy wrote, token by token, and compares it with what written() finds."""

    def __init__(self, pad):
        super().__init__()
        self.pad, self.episodes, self.begins, self.cut, self.old = pad, None, [], 0, 0

    def _on_rollout_start(self):
        if self.episodes is None:
            self.episodes = [[[]] for _ in range(COPIES)]  # of each copy, lists of tokens
            self.prompts = [[] for _ in range(COPIES)]
        self.at = []

    def _on_step(self):
        now = []
        observation = self.model._last_obs
        for copy, (action, done) in enumerate(zip(self.locals["actions"], self.locals["dones"], strict=True)):
            episode = self.episodes[copy][-1]
            now.append((episode, len(episode), observation["prompt"][copy] if isinstance(observation, dict) else None))
            episode.append(int(action))
            if done:
                self.episodes[copy].append([])
        self.at.append(now)
        return True

    def _on_rollout_end(self):
        found = written(self.model.rollout_buffer, self.pad)
        assert found.rows.shape == found.places.shape == (len(self.at), COPIES)
        assert found.tokens.dtype == np.int64
        assert (found.prompts is None) == (self.at[0][0][2] is None)
        assert sorted(set(found.rows.ravel().tolist())) == list(range(len(found.tokens)))
        for step, copies in enumerate(self.at):
            for copy, (episode, place, prompt) in enumerate(copies):
                row = found.rows[step, copy]
                assert [t for t in found.tokens[row].tolist() if t != self.pad] == episode
                assert (found.tokens[row, len(episode) :] == self.pad).all()
                assert found.places[step, copy] == place
                if prompt is not None:
                    assert (found.prompts[row] == prompt).all()
        self.old += sum(place > 0 for _, place, _ in self.at[0])
        self.cut += sum(bool(episodes[-1]) for episodes in self.episodes)


@pytest.mark.parametrize("task", ["grammar", "answers"])
def test_written_finds_what_each_copy_wrote(task):
    """Episodes of unequal length, cut by the rollout's end, and begun before it."""
    size = len(gym.make("TextGen-v0", task=task).unwrapped.task.vocab)
    envs = envs_of(task=task)
    policy = "MlpPolicy" if task == "grammar" else "MultiInputPolicy"
    model = PPO(policy, envs, seed=0, n_steps=11, batch_size=44, n_epochs=1)
    with torch.no_grad():
        model.policy.action_net.bias[0] = math.log(size / 4)  # EOS in one of five draws
    told = Told(size)
    model.learn(44 * 4, callback=told)
    lengths = {len(episode) for copies in told.episodes for episode in copies[:-1]}
    assert len(lengths) > 3
    assert told.cut > 3
    assert told.old > 3


# Log-probabilities.


def by_hand(model, prefix, prompt, token, extra=None, mask=None):
    """The log-probability of a token after a prefix, read token by token."""
    logits, state = model.start(1, None if prompt is None else torch.tensor(prompt)[None])
    for before in prefix:
        logits, state = model.step(torch.tensor([before]), state)
    logits = logits[0].double()
    if extra is not None:
        logits = logits + extra
    if mask is not None:
        logits = logits.where(torch.tensor(mask > 0), -torch.inf)
    return float(logits.log_softmax(0)[token])


@torch.no_grad()
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("chunk", [1 << 21, 64])
def test_transition_log_probs_by_hand(prompted, chunk, monkeypatch):
    monkeypatch.setattr("agents.common.losses.CHUNK_BYTES", (chunk, chunk))
    model, size = small_model(5), 5
    tokens = np.array([[1, 4, 5], [2, 5, 5], [0, 3, 2]])
    prompts = np.array([[1, 2], [3, 5], [4, 0]]) if prompted else None
    rows, places = np.array([[0, 2], [0, 2], [1, 2]]), np.array([[0, 0], [1, 1], [0, 2]])
    random = np.random.default_rng(0)
    masks = random.random((3, 2, size)) < 0.5
    for step, copy in np.ndindex(3, 2):
        masks[step, copy, tokens[rows[step, copy], places[step, copy]]] = True
    early, later = torch.randn(2, size, generator=seeded(0))
    early[4] = -torch.inf
    logit_mask = LogitMask(early, later, min_length=2)
    sequences = Written(tokens, prompts, rows, places)
    for mask in (None, masks, masks.astype(np.float32)):
        for extra in (None, logit_mask):
            found = transition_log_probs(model, sequences, mask, extra)
            assert found.shape == (3, 2)
            for step, copy in np.ndindex(3, 2):
                row, place = rows[step, copy], places[step, copy]
                added = early if place < 2 else later
                wanted = by_hand(
                    model, tokens[row, :place], None if prompts is None else prompts[row], tokens[row, place],
                    None if extra is None else added, None if mask is None else mask[step, copy],
                )  # fmt: skip
                assert found[step, copy] == pytest.approx(wanted, abs=1e-5)


# The penalty.


class Around(BaseCallback):
    """Keeps a copy of the rollout's numbers as they are when it is called."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts")
        self.kept = {name: getattr(buffer, name).copy() for name in names}
        with torch.no_grad():  # of the observations that nobody has acted on yet
            last = self.model.policy.predict_values(obs_as_tensor(self.locals["new_obs"], "cpu"))
        self.last = last.numpy().ravel().copy(), self.locals["dones"].copy()
        self.sequences = written(buffer, self.model.policy.features_extractor.pad)
        masks = getattr(buffer, "action_masks", None)
        self.masks = None if masks is None else masks.reshape(*buffer.rewards.shape, -1).copy()
        self.policy = frozen_copy(self.model.policy.language_model)
        self.metrics = dict(self.logger.name_to_value)


def gae(rewards, values, starts, last, gamma, lam):
    """Advantages by the definition: discounted sums of one-step errors up to the episode's end."""
    last_values, dones = last
    steps, copies = rewards.shape
    ends = np.concatenate([starts[1:], dones[None]]) > 0
    after = np.concatenate([values[1:], last_values[None]])
    errors = rewards + gamma * after * ~ends - values
    advantages = np.zeros_like(rewards)
    for copy in range(copies):
        for step in range(steps):
            factor = 1.0
            for later in range(step, steps):
                advantages[step, copy] += factor * errors[later, copy]
                if ends[later, copy]:
                    break
                factor *= gamma * lam
    return advantages


def log_ratios(around, reference, masked=True):
    """What the policy drew by, against the reference, transition by transition."""
    masks = around.masks if masked else None
    ratios = np.zeros(around.kept["rewards"].shape)
    for step, copy in np.ndindex(*ratios.shape):
        row, place = around.sequences.rows[step, copy], around.sequences.places[step, copy]
        tokens = around.sequences.tokens[row]
        prompt = None if around.sequences.prompts is None else around.sequences.prompts[row]
        given = tokens[:place], prompt, tokens[place], None, None if masks is None else masks[step, copy]
        ratios[step, copy] = by_hand(around.policy, *given) - by_hand(reference, *given)
    return ratios


def learner(envs, algorithm=PPO, policy=TextPolicy, seed=0):
    """A small algorithm whose policy is far from uniform, and a reference that is another."""
    kind = {"embedding": 4, "hidden": 6, "initial_std": 0.8}
    options = {"n_steps": 10, "gamma": 0.9, "gae_lambda": 0.8, "learning_rate": 1e-2, "seed": seed}
    options |= {} if algorithm is A2C else {"batch_size": 40, "n_epochs": 2}
    model = algorithm(policy, envs, policy_kwargs={"language_model": kind}, **options)
    torch.manual_seed(9)
    return model, make_policy(PolicySettings(**kind), int(envs.action_space.n)).requires_grad_(False)


@torch.no_grad()
def assert_penalised(before, after, reference, weight, unmasked=False):
    ratios = log_ratios(before, reference, masked=not unmasked)
    assert np.abs(ratios).max() > 0.1
    assert after.kept["rewards"] == pytest.approx(before.kept["rewards"] - weight * ratios, abs=1e-4)
    advantages = gae(after.kept["rewards"], after.kept["values"], after.kept["episode_starts"], after.last, 0.9, 0.8)
    assert after.kept["advantages"] == pytest.approx(advantages, abs=1e-4)
    assert after.kept["returns"] == pytest.approx(advantages + after.kept["values"], abs=1e-4)
    drawn = log_ratios(before, reference)
    assert after.metrics["train/kl_to_start"] == pytest.approx(drawn.mean(), abs=1e-4)
    assert after.metrics["train/kl_weight"] == pytest.approx(weight)
    return float(ratios.mean())


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("task", [ORACLE, "answers(size=20)"])
def test_rewards_pay_for_the_log_ratio_and_returns_follow(algorithm, task):
    """Rollout after rollout of plain Stable-Baselines3, whose episodes begin before and end behind them."""
    model, reference = learner(envs_of(task=task, reward="length", max_length=4), algorithm)
    before, after, kl = Around(), Around(), AdaptiveKL(0.3, target=0.2)
    for rollout in range(3):
        callbacks = [before, KLPenalty(reference, kl), after]
        weight = kl.weight
        model.learn(40, callback=callbacks, reset_num_timesteps=not rollout)
        divergence = assert_penalised(before, after, reference, weight)
        error = min(max((divergence - 0.2) / 0.2, -0.2), 0.2)
        assert kl.weight == pytest.approx(weight * (1 + 0.1 * error), rel=1e-5)


@pytest.mark.parametrize("unmasked", [False, True])
def test_within_masks(unmasked):
    """The metric is of what was drawn from; what is paid for may be the ratio without masks."""
    contrib = pytest.importorskip("sb3_contrib")
    from agents.sb3.maskable import MaskableTextPolicy

    envs = envs_of(task=ORACLE, reward="length", constraint=every_third_is_missing)
    model, reference = learner(envs, contrib.MaskablePPO, MaskableTextPolicy)
    before, after, kl = Around(), Around(), AdaptiveKL(0.3, target=0.2)
    model.learn(40, callback=[before, KLPenalty(reference, kl, unmasked=unmasked), after])
    assert 0 < before.masks.mean() < 1
    divergence = assert_penalised(before, after, reference, 0.3, unmasked)
    assert ("train/kl_unmasked" in after.metrics) == unmasked
    if unmasked:
        assert after.metrics["train/kl_unmasked"] == pytest.approx(divergence, abs=1e-4)
        assert abs(divergence - after.metrics["train/kl_to_start"]) > 1e-3
    error = min(max((divergence - 0.2) / 0.2, -0.2), 0.2)
    assert kl.weight == pytest.approx(0.3 * (1 + 0.1 * error), rel=1e-5)


def every_third_is_missing(prefixes, lengths):
    return (np.arange(9) + lengths[:, None]) % 3 > 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_policy_is_at_no_distance_from_itself(masked):
    options = {"task": ORACLE, "reward": "length"}
    if masked:
        contrib = pytest.importorskip("sb3_contrib")
        from agents.sb3.maskable import MaskableTextPolicy

        parts = contrib.MaskablePPO, MaskableTextPolicy
        options["constraint"] = every_third_is_missing
    else:
        parts = PPO, TextPolicy
    model, _ = learner(envs_of(**options), *parts)
    before, after = Around(), Around()
    reference = frozen_copy(model.policy.language_model)
    model.learn(40, callback=[before, KLPenalty(reference, AdaptiveKL(5.0), unmasked=masked), after])
    assert after.metrics["train/kl_to_start"] == pytest.approx(0, abs=1e-6)
    assert after.kept["rewards"] == pytest.approx(before.kept["rewards"], abs=1e-5)


def test_the_reference_has_the_policys_own_mask():
    """Where tokens are forbidden, both are within what may be written, so that the distance to itself is zero."""
    early, later = torch.zeros(2, SIZE)
    early[[0, 5]] = later[5] = -torch.inf
    logit_mask = LogitMask(early, later, min_length=2)
    envs = envs_of(task=ORACLE, reward="length")
    options = {"language_model": {"hidden": 6, "initial_std": 0.8}, "logit_mask": logit_mask}
    model = PPO(TextPolicy, envs, seed=0, n_steps=10, batch_size=40, n_epochs=1, policy_kwargs=options)
    reference = frozen_copy(model.policy.language_model)
    for given, expected in ((logit_mask, pytest.approx(0, abs=1e-6)), (None, pytest.approx(0.2, abs=0.15))):
        after = Around()
        model.learn(40, callback=[KLPenalty(reference, AdaptiveKL(0.1), given), after])
        assert after.metrics["train/kl_to_start"] == expected
        reference = frozen_copy(model.policy.language_model)


def test_without_a_weight_rewards_are_left_alone():
    model, reference = learner(envs_of(task=ORACLE, reward="length"))
    before, after = Around(), Around()
    model.learn(40, callback=[before, KLPenalty(reference, AdaptiveKL(0.0)), after])
    for name, value in before.kept.items():
        assert (after.kept[name] == value).all()
    assert after.metrics["train/kl_to_start"] > 0.1


def test_a_policy_without_a_language_model_is_refused():
    model = PPO("MlpPolicy", envs_of(task=ORACLE), n_steps=10, batch_size=40)
    _, reference = learner(envs_of(task=ORACLE))
    with pytest.raises(OptionError, match="TextPolicy"):
        model.learn(40, callback=KLPenalty(reference, AdaptiveKL(0.1)))
