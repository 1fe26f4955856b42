"""The KL penalty of a rollout, against log-probabilities, rewards and advantages computed by hand."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from agents.common.kl import AdaptiveKL
from agents.networks.policies import LogitMask, PolicySettings, frozen_copy, make_policy
from agents.sb3.actor_critic import TextPolicy
from agents.sb3.buffers import RolloutSequences, rollout_sequences
from agents.sb3.kl_penalty import KLPenalty, transition_log_probs
from agents.sb3.vec_env import TextGenVecEnv
from tests.helpers.models import seeded, small_model
from text_gym.errors import OptionError

SIZE, NUM_ENVS = 9, 4
ORACLE = "oracle(vocab_size=9, max_length=4)"


def envs_of(**options):
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=NUM_ENVS, autoreset_mode="SameStep", **options))


# Log-probabilities.


def by_hand(model, prefix, prompt, token, extra=None, mask=None):
    """Compute the log-probability of a token after a prefix, step by step."""
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
    for step, env in np.ndindex(3, 2):
        masks[step, env, tokens[rows[step, env], places[step, env]]] = True
    early, later = torch.randn(2, size, generator=seeded(0))
    early[4] = -torch.inf
    logit_mask = LogitMask(early, later, min_length=2)
    sequences = RolloutSequences(tokens, prompts, rows, places)
    for mask in (None, masks, masks.astype(np.float32)):
        for extra in (None, logit_mask):
            found = transition_log_probs(model, sequences, mask, extra)
            assert found.shape == (3, 2)
            for step, env in np.ndindex(3, 2):
                row, place = rows[step, env], places[step, env]
                added = early if place < 2 else later
                wanted = by_hand(
                    model, tokens[row, :place], None if prompts is None else prompts[row], tokens[row, place],
                    None if extra is None else added, None if mask is None else mask[step, env],
                )  # fmt: skip
                assert found[step, env] == pytest.approx(wanted, abs=1e-5)


# The penalty.


class Around(BaseCallback):
    """A callback that copies the arrays of the rollout buffer."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts")
        self.kept = {name: getattr(buffer, name).copy() for name in names}
        with torch.no_grad():  # values of the observations after the last step
            last = self.model.policy.predict_values(obs_as_tensor(self.locals["new_obs"], "cpu"))
        self.last = last.numpy().ravel().copy(), self.locals["dones"].copy()
        self.sequences = rollout_sequences(buffer, self.model.policy.features_extractor.pad)
        masks = getattr(buffer, "action_masks", None)
        self.masks = None if masks is None else masks.reshape(*buffer.rewards.shape, -1).copy()
        self.policy = frozen_copy(self.model.policy.language_model)
        self.metrics = dict(self.logger.name_to_value)


def gae(rewards, values, starts, last, gamma, lam):
    """Compute advantages by definition: discounted sums of TD errors until the end of the episode."""
    last_values, dones = last
    steps, envs = rewards.shape
    ends = np.concatenate([starts[1:], dones[None]]) > 0
    after = np.concatenate([values[1:], last_values[None]])
    errors = rewards + gamma * after * ~ends - values
    advantages = np.zeros_like(rewards)
    for env in range(envs):
        for step in range(steps):
            factor = 1.0
            for later in range(step, steps):
                advantages[step, env] += factor * errors[later, env]
                if ends[later, env]:
                    break
                factor *= gamma * lam
    return advantages


def log_ratios(around, reference, masked=True):
    """Compute the log-ratio of policy and reference for each transition."""
    masks = around.masks if masked else None
    ratios = np.zeros(around.kept["rewards"].shape)
    for step, env in np.ndindex(*ratios.shape):
        row, place = around.sequences.rows[step, env], around.sequences.positions[step, env]
        tokens = around.sequences.tokens[row]
        prompt = None if around.sequences.prompts is None else around.sequences.prompts[row]
        given = tokens[:place], prompt, tokens[place], None, None if masks is None else masks[step, env]
        ratios[step, env] = by_hand(around.policy, *given) - by_hand(reference, *given)
    return ratios


def learner(envs, algorithm=PPO, policy=TextPolicy, seed=0):
    """Create a small algorithm with a policy that is far from uniform, and another policy as reference."""
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
    """In consecutive rollouts of Stable-Baselines3, whose episodes may start before them and end after them."""
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
    """The metric uses the masks of the rollout; the penalty may use the log-ratio without masks."""
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
    """Banned tokens are masked in policy and reference, so the divergence of equal models is zero."""
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
