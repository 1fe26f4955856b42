"""NLPO: its masks against a brute-force computation, its equality with MaskablePPO, and its adaptive KL weight."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym  # noqa: F401
from agents.networks.policies import frozen_copy
from text_gym.errors import OptionError

pytest.importorskip("sb3_contrib")

from agents.nlpo import NLPO, NucleusMasks
from agents.ppo import MaskablePPO
from tests.helpers.models import smallest_nucleus
from tests.helpers.vec_envs import recorded

ORACLE = "oracle(vocab_size=9, max_length=4)"
SMALL = {"n_envs": 8, "embedding": 8, "hidden": 8, "initial_std": 0.7, "batch_size": 16, "learning_rate": 1e-2}


def env_of(task=ORACLE, reward="length", **options):
    return gym.make("TextGen-v0", task=task, reward=reward, **options)


def small(learner=NLPO, env=None, seed=0, **hyper):
    return learner(env or env_of(), seed=seed, progress=False, **(SMALL | hyper))


def weights_of(agent):
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])


# Masks.


def logits_after(model, prefix, prompt, pad):
    """Compute the logits after a prefix with start() and step(), token by token."""
    logits, state = model.start(1, None if prompt is None else torch.tensor(prompt)[None])
    for token in prefix[prefix != pad].tolist():
        logits, state = model.step(torch.tensor([token]), state)
    return logits[0].double()


@pytest.mark.parametrize(
    ("task", "limits"),
    [
        (ORACLE, {}),
        ("grammar", {"min_length": 2, "banned": list(range(12, 209)), "max_length": 6}),
        ("grammar", {"constraint": "valid", "max_length": 7}),
        ("answers(size=20)", {}),
    ],
)
@torch.no_grad()
def test_masks_are_the_nucleus_of_the_mask_model_among_what_is_allowed(task, limits):
    """EOS is kept where the environment allows it, and so are mask_min_tokens, unless it allows fewer tokens."""
    agent = small(env=env_of(task, **limits), mask_top_p=0.6, mask_min_tokens=2, mask_update_freq=10)
    seen, pad, eos = recorded(agent).masks, agent.rules.pad, agent.rules.eos
    with torch.enable_grad():
        agent.learn(2)
    assert len(seen) == 2 * agent.rules.limit
    fewer = 0
    for prompts, prefixes, allowed, masks in seen[:: max(1, len(seen) // 6)]:
        for row, (prefix, possible, mask) in enumerate(zip(prefixes, allowed, masks, strict=True)):
            logits = logits_after(agent.mask_model, prefix, None if prompts is None else prompts[row], pad)
            shares = logits.masked_fill(~torch.tensor(possible), -torch.inf).softmax(0)
            wanted = smallest_nucleus(shares.tolist(), 0.6, 2)
            wanted |= set() if eos is None else {eos}
            assert set(np.flatnonzero(mask)) == wanted & set(np.flatnonzero(possible))
            assert mask.sum() >= min(2, possible.sum())
            fewer += mask.sum() < possible.sum()
            if eos is not None:
                assert mask[eos] == possible[eos]
    assert fewer > 5
    buffer = agent.model.rollout_buffer
    chosen = buffer.action_masks.reshape(len(buffer.actions), -1)
    assert (chosen[np.arange(len(chosen)), buffer.actions[:, 0].astype(int)] == 1).all()
    assert 0 < chosen.mean() < 1


def test_masks_change_when_the_mask_model_is_updated_and_not_before():
    agent = small(
        mask_top_p=0.5, mask_min_tokens=1, mask_update_freq=3, learning_rate=5e-2, kl={"weight": 0.0, "target": None}
    )
    seen, nothing, masks, copies = recorded(agent).masks, 9, [], []
    for _ in range(7):
        seen.clear()
        agent.learn(1)
        assert (seen[0].prefixes == nothing).all()
        masks.append(seen[0].masks[0].tolist())
        copies.append(torch.cat([p.flatten() for p in agent.mask_model.parameters()]).clone())
        for step in seen:  # within an iteration, equal prefixes have equal masks
            kinds = {}
            for prefix, mask in zip(step.prefixes.tolist(), step.masks.tolist(), strict=True):
                assert kinds.setdefault(tuple(prefix), mask) == mask
    assert masks[0] == masks[1] == masks[2]
    assert masks[3] == masks[4] == masks[5]
    assert len({str(mask) for mask in (masks[0], masks[3], masks[6])}) > 1
    assert [bool((copies[k] == copies[k + 1]).all()) for k in range(6)] == [True, True, False, True, True, False]


def test_other_methods_and_masks_of_some_environments():
    agent = small(mask_top_p=0.5, mask_min_tokens=1)
    envs = agent.model.get_env()
    envs.seed(0)
    envs.reset()
    for actions in ([1, 2, 3, 4, 5, 6, 7, 8], [1] * 8):
        envs.step(np.array(actions))
    whole = envs.env_method("action_masks")
    assert len({str(mask) for mask in whole}) > 1
    for rows in ([7, 6, 5, 4, 3, 2, 1, 0], [5, 2]):
        some = envs.env_method("action_masks", indices=rows)
        assert (np.stack(some) == np.stack(whole)[rows]).all()
    assert envs.env_method("render", indices=[0]) == [None]
    assert isinstance(envs, NucleusMasks)


# Training.


@pytest.mark.parametrize("kl", [{"weight": 0.0, "target": None}, {"weight": 0.3, "target": 0.05}])
@pytest.mark.parametrize("task", [ORACLE, "answers(size=20)"])
def test_with_all_tokens_it_is_maskable_ppo(task, kl):
    """Bit for bit, also with a KL penalty: no tokens are banned, so the log-ratio without masks is the same."""
    env = env_of(task)
    one, other = small(NLPO, env, mask_top_p=1.0, kl=kl).learn(3), small(MaskablePPO, env, kl=kl).learn(3)
    close = 0 if kl["weight"] == 0 else 1e-4  # the log-ratio is computed once while sampling, and once after it
    assert (weights_of(one) - weights_of(other)).abs().max() <= close
    assert one.kl.weight == pytest.approx(other.kl.weight, rel=1e-6)
    narrow = small(NLPO, env, mask_top_p=0.5, mask_min_tokens=1, kl=kl).learn(3)
    assert (weights_of(narrow) - weights_of(other)).abs().max() > 1e-3


def test_its_first_ratio_is_one():
    """Before the first update, the stored log-probabilities belong to the stored observations, actions and masks."""
    agent = small(env=env_of("grammar", max_length=6), mask_top_p=0.6, mask_min_tokens=3, n_epochs=2)
    agent.learn(2)
    found, train = [], agent.model.train

    def spy():
        buffer, policy = agent.model.rollout_buffer, agent.model.policy
        with torch.no_grad():
            for sample in buffer.get(24):
                now = policy.evaluate_actions(
                    sample.observations, sample.actions[:, 0], action_masks=sample.action_masks
                )
                without = policy.evaluate_actions(sample.observations, sample.actions[:, 0])
                found.append((now[1] - sample.old_log_prob, without[1] - sample.old_log_prob))
        train()

    agent.model.train = spy
    agent.learn(1)
    masked, unmasked = (torch.cat(part).exp() for part in zip(*found, strict=True))
    assert len(masked) == 48
    assert torch.allclose(masked, torch.ones(48), atol=1e-5)
    assert (unmasked - 1).abs().max() > 0.01


@torch.no_grad()
def weights_and_divergences(target):
    """Compute the KL weight before and after each of four iterations, and the mean log-ratio without masks, by hand."""
    options = {"mask_top_p": 0.6, "mask_min_tokens": 3, "kl": {"weight": 1e-6, "target": target}, "learning_rate": 3e-2}
    agent = small(env=env_of("grammar", max_length=6), **options)
    policies, train, found = [], agent.model.train, []

    def spy():
        policies.append(frozen_copy(agent.policy))
        with torch.enable_grad():
            train()

    agent.model.train = spy
    for _ in range(4):
        before = agent.kl.weight
        agent.learn(1)
        buffer, ratios = agent.model.rollout_buffer, []
        for prefix, action in zip(buffer.observations, buffer.actions[:, 0].astype(int), strict=True):
            models = policies[-1], agent.reference
            ours, theirs = (logits_after(model, prefix, None, 209).log_softmax(0)[action] for model in models)
            ratios.append(float(ours - theirs))
        found.append((before, agent.kl.weight, float(np.mean(ratios))))
    return found


def test_the_weight_follows_the_published_formula():
    """beta *= 1 + 0.1 * clip((KL - target) / target, -0.2, 0.2), with the log-ratio without masks."""
    last = weights_and_divergences(1.0)[3][2]
    assert last > 0.01
    for target, factor in ((last / 1.1, 1.01), (last / 0.9, 0.99), (last / 3, 1.02), (last * 3, 0.98)):
        found = weights_and_divergences(target)
        for before, after, divergence in found:
            error = min(max((divergence - target) / target, -0.2), 0.2)
            assert after == pytest.approx(before * (1 + 0.1 * error), rel=1e-4)
        assert found[3][1] / found[3][0] == pytest.approx(factor, abs=1e-3)


def test_the_mask_model_is_saved_and_resumed(tmp_path):
    def agent(folder):
        return small(
            folder=tmp_path / folder, mask_top_p=0.5, mask_min_tokens=1, mask_update_freq=3, learning_rate=3e-2
        )

    whole = agent("whole").learn(5)
    for steps in (2, 2, 1):  # also between two updates of the mask model
        parts = agent("parts").learn(steps)
    assert (weights_of(parts) == weights_of(whole)).all()
    for mine, other in zip(parts.mask_model.parameters(), whole.mask_model.parameters(), strict=True):
        assert (mine == other).all()
    loaded = NLPO.load(tmp_path / "whole", env_of(), progress=False)
    for mine, other in zip(loaded.mask_model.parameters(), whole.mask_model.parameters(), strict=True):
        assert (mine == other).all()
    same = [bool((a == b).all()) for a, b in zip(whole.mask_model.parameters(), whole.policy.parameters(), strict=True)]
    assert not all(same)


def test_the_policy_and_the_mask_model_start_from_another_agents_policy():
    first = small(seed=1).learn(1)
    agent = small(NLPO, seed=2, start=first)
    for mine, copied, other in zip(
        agent.policy.parameters(), agent.mask_model.parameters(), first.policy.parameters(), strict=True
    ):
        assert (mine == other).all()
        assert (copied == other).all()
        assert not copied.requires_grad
    again = small(NLPO, seed=3)
    again.load_policy(first.policy)
    for copied, other in zip(again.mask_model.parameters(), first.policy.parameters(), strict=True):
        assert (copied == other).all()


def test_mistakes_are_told():
    for settings, words in [
        ({"mask_top_p": 0}, r"mask_top_p=0 is out of range; give a number in \(0, 1\]"),
        ({"mask_top_p": 1.5}, "mask_top_p=1.5"),
        ({"mask_top_p": "all"}, "mask_top_p"),
        ({"mask_min_tokens": 0}, "mask_min_tokens must be"),
        ({"mask_update_freq": 0}, "mask_update_freq must be"),
        ({"kl": {"weight": -1}}, "kl.weight=-1 must not be negative"),
        ({"kl": {"target": -1}}, "kl.target=-1 .*must be above 0"),
        ({"kl": {"weight": 0}}, "kl.weight=0: both must be above 0; give kl.target=None"),
    ]:
        with pytest.raises(OptionError, match=words):
            NLPO.choose_settings(**settings)
    assert NLPO.choose_settings(kl={"weight": 0, "target": None}).kl.weight == 0
    assert small(mask_min_tokens=50).learn(1).steps_done == 1  # there are only nine tokens
