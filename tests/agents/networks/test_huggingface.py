"""Hugging Face models as policies, against the forward pass of transformers on single sequences without padding."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents import A2C, MLE, NLPO, PPO, MaskablePPO, Reinforce, ScheduledSampling, SeqGAN
from agents.cli.main import main
from agents.common.checkpoint import CheckpointError
from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values
from agents.networks.huggingface import HuggingFace, LinearOutput
from agents.networks.policies import architecture_of
from agents.networks.pretrained import load_policy
from tests.helpers.models import seeded
from tests.helpers.pretrained_models import (
    EOS,
    KINDS,
    MAIN,
    PROMPTS,
    TOKENS,
    V,
    env_of,
    fine_tuning,
    original,
    own_log_probs,
    own_logits,
    padded,
)
from text_gym.errors import OptionError
from text_gym.language_model import complete, draw_tokens, generate, map_state


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_likelihoods_are_the_models_own(folders, kind, prompted):
    """Sequences of several lengths after prompts of several lengths, one of which is empty."""
    # With large weights, float32 has rounding errors of 2e-5; not all models support float64.
    dtype, tolerance = (torch.float64, 1e-6) if kind in MAIN else (torch.float32, 2e-5)
    policy, model = load_policy(folders[kind], V).to(dtype), original(folders[kind]).to(dtype)
    tokens, prompts = padded(TOKENS), padded(PROMPTS) if prompted else None
    found = policy.log_prob(tokens, tokens < V, prompts)
    for i, row in enumerate(TOKENS):
        expected = own_log_probs(model, row, PROMPTS[i] if prompted else ())
        assert found[i, : len(row)].tolist() == pytest.approx(expected, abs=tolerance)
        assert (found[i, len(row) :] == 0).all()
        alone = policy.log_prob(
            tokens[i : i + 1], tokens[i : i + 1] < V, prompts if prompts is None else prompts[i : i + 1]
        )
        assert torch.allclose(alone, found[i : i + 1], atol=1e-5)
    assert found.std() > 0.3
    assert torch.isfinite(policy.features(tokens, prompts)).all()


@pytest.mark.parametrize("kind", [*MAIN, "capped", "alibi"])
@pytest.mark.parametrize("prompted", [False, True])
@torch.no_grad()
def test_written_with_the_cache_is_what_is_written_without(folders, kind, prompted):
    policy, model = load_policy(folders[kind], V), original(folders[kind])
    prompts = padded(PROMPTS) if prompted else None
    drawn = generate(policy, 4, 8, EOS, seeded(3), prompts=prompts)
    generator, done, rows = seeded(3), [False] * 4, [[] for _ in range(4)]
    while not all(done) and max(map(len, rows)) < 8:
        alive = [i for i in range(4) if not done[i]]
        logits = torch.stack([own_logits(model, [*rows[i], 0], PROMPTS[i] if prompted else ())[-1] for i in alive])
        for i, token in zip(alive, draw_tokens(logits, generator)[0].tolist(), strict=True):
            rows[i].append(token)
            done[i] = token == EOS
    assert drawn.tokens.tolist() == padded(rows, 8).tolist()
    assert len({tuple(row) for row in rows}) > 1


@pytest.mark.parametrize("kind", MAIN)
@torch.no_grad()
def test_completions_leave_the_state_they_go_on_from_alone(folders, kind):
    policy, model = load_policy(folders[kind], V), original(folders[kind])
    logits, state = policy.start(4, padded(PROMPTS))
    logits, state = policy.step(torch.tensor([4, 5, 6, 7]), state)
    before = map_state(torch.clone, state)
    rows = torch.tensor([3, 1, 1, 0, 3])
    inner = map_state(lambda part: part[rows], state)
    first = [torch.tensor([4, 5, 6, 7])[rows][:, None], logits[rows], inner, 7, EOS]
    drawn = complete(policy, *first, seeded(0))
    again = complete(policy, *first, seeded(0))
    assert (drawn.tokens == again.tokens).all()
    same = []
    map_state(lambda part: same.append(part.clone()) or part, before)
    map_state(lambda part: same.append(torch.equal(same.pop(0), part)) or part, state)
    assert len(same) > 4
    assert all(same)
    for row, tokens, length, log_probs in zip(rows.tolist(), drawn.tokens, drawn.lengths, drawn.log_probs, strict=True):
        expected = own_log_probs(model, tokens[:length].tolist(), PROMPTS[row])
        assert log_probs[1:length].tolist() == pytest.approx(expected[1:], abs=2e-5)


def test_rollouts_value_prefixes(folders):
    """With a reward that is a sum over tokens, the value of a prefix equals the mean over many new samples."""
    policy = load_policy(folders["t5"], V)
    prompts = padded(PROMPTS)
    drawn = generate(policy, 4, 4, EOS, seeded(0), prompts=prompts)

    def score(tokens, lengths, rows):
        return (tokens == 9).sum(dim=1).double() + 10.0 * rows

    values = rollout_values(policy, drawn.tokens, drawn.lengths, score, 300, EOS, seeded(1), prompts, from_start=True)
    fresh = generate(policy, 1200, 4, EOS, seeded(2), prompts=prompts.repeat_interleave(300, dim=0))
    expected = (fresh.tokens == 9).double().sum(dim=1).view(4, 300).mean(dim=1) + 10.0 * torch.arange(4)
    assert torch.allclose(values[:, 0], expected, atol=0.25)


@pytest.mark.parametrize("kind", [*MAIN, "capped", "biased", "large"])
def test_gradients_are_those_of_the_models_own_logits(folders, kind):
    policy, model = load_policy(folders[kind], V), original(folders[kind]).train(mode=False)
    tokens, weights = padded(TOKENS), torch.randn(4, 6, generator=seeded(5))
    weights = weights.where(tokens < V, 0.0)
    loss, _ = weighted_nll(policy, tokens, weights, padded(PROMPTS))
    loss.backward()
    own = sum(
        -(
            own_logits(model, row, prompt).log_softmax(1)[torch.arange(len(row)), torch.tensor(row)]
            * weight[: len(row)]
        ).sum()
        for row, prompt, weight in zip(TOKENS, PROMPTS, weights, strict=True)
    )
    own.backward()
    assert loss.item() == pytest.approx(own.item(), abs=1e-4)
    theirs = dict(model.named_parameters())
    assert {f"model.{name}" for name in theirs} == {name for name, _ in policy.named_parameters()}
    for name, weight in policy.named_parameters():
        gradient = theirs[name.removeprefix("model.")].grad
        assert torch.allclose(weight.grad, gradient, atol=1e-3 * max(1.0, gradient.abs().max().item())), name


def test_what_the_last_layer_is(folders):
    assert isinstance(load_policy(folders["gpt2"], V).output, LinearOutput)
    t5 = load_policy(folders["t5"], V)
    assert t5.scale == 32**-0.5
    bart, biased = load_policy(folders["bart"], V), load_policy(folders["biased"], V)
    assert (bart.output.bias == original(folders["bart"]).final_logits_bias[0]).all()
    assert (biased.output.bias == original(folders["biased"]).lm_head.bias).all()
    hardly = load_policy(folders["hardly_capped"], V)
    assert hardly.scale is None
    largest = hardly.features(padded(TOKENS)).abs().max().item()
    assert largest**3 / (3 * 1000**2) < 1e-4 * largest  # the effect on these logits is below the rounding error
    capped = load_policy(folders["capped"], V)
    assert not hasattr(capped.output, "weight")
    assert capped.features(padded(TOKENS)).abs().max() <= 3.0
    large = load_policy(folders["large"], V)
    assert large.output.weight.shape == (V, 32)
    assert large.start(1)[0].shape == (1, V)


def test_no_rows_at_all(folders):
    for kind in ("gpt2", "bart", "capped"):
        policy = load_policy(folders[kind], V)
        logits, state = policy.start(0)
        assert logits.shape == policy.step(torch.zeros(0, dtype=torch.long), state)[0].shape == (0, V)
        assert policy.output(policy.features(torch.zeros(0, 3, dtype=torch.long))).shape == (0, 3, V)
        assert generate(policy, 0, 5, EOS, seeded(0)).tokens.shape == (0, 5)


@pytest.mark.parametrize("kind", MAIN)
def test_the_size_of_a_state_is_known(folders, kind):
    policy = load_policy(folders[kind], V)
    _, state = policy.start(2, padded(PROMPTS[:2]))
    for token in (4, 5, 6):
        _, state = policy.step(torch.tensor([token, token]), state)
    sizes = []
    map_state(lambda part: sizes.append(part[0].numel()) or part, state)
    assert sum(sizes) <= policy.state_size(9) <= 2 * sum(sizes)


def test_dropout_is_the_models_own(folders):
    policy, tokens = load_policy(folders["gpt2"], V), padded(TOKENS)
    still = policy.features(tokens)
    assert torch.equal(still, policy.features(tokens))
    assert not torch.equal(still, policy.train().features(tokens))
    assert torch.equal(still, policy.eval().features(tokens))


# Learning.


def tensors_of_policy(agent):
    return {name: weight.detach().clone() for name, weight in agent.policy.named_parameters()}


@pytest.mark.parametrize("kind", MAIN)
def test_likelihood_is_raised_and_what_was_learned_is_kept(folders, lines, kind, tmp_path):
    env = env_of(lines / "asked.jsonl", folders[kind])
    agent = MLE(env, seed=0, folder=tmp_path, log=(), **fine_tuning(folders[kind]))
    before = agent.nll("train")
    assert agent.learn(1).nll("train") < before - 0.1
    again = MLE.load(tmp_path, env, progress=False)
    assert (again.sample(4, seed=0).tokens == agent.sample(4, seed=0).tokens).all()
    assert again.nll("train") == agent.nll("train")


def test_low_rank_changes_are_all_that_is_trained_and_kept(folders, lines, tmp_path):
    for kind in MAIN:
        env = env_of(lines / "asked.jsonl", folders[kind])
        options = fine_tuning(folders[kind], lora=2, log=())
        agent = MLE(env, seed=0, folder=tmp_path / kind, **options)
        start, first = agent.nll("train"), tensors_of_policy(agent)
        agent.learn(1)
        base = {f"model.{name}": weight for name, weight in original(folders[kind]).named_parameters()}
        changed = set()
        for name, weight in tensors_of_policy(agent).items():
            if "lora_" not in name:
                assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
            elif not torch.equal(weight, first[name]):
                changed.add(name)
        assert changed == set(agent.policy.state_dict())
        assert len(changed) >= 4
        assert agent.nll("train") < start
        (saved,) = (tmp_path / kind).glob("step-*/tensors.safetensors")
        whole = sum(weight.numel() for weight in base.values())
        assert sum(t.numel() for name, t in load_file(saved).items() if name.startswith("policy.")) < whole / 5
        untrained = agent.policy.model.get_input_embeddings().weight
        assert copy.deepcopy(agent.policy).model.get_input_embeddings().weight is untrained


@pytest.mark.parametrize("part", [{"lora": 2}, {"frozen_layers": 1}, {}])
def test_a_run_goes_on_bit_for_bit(folders, lines, tmp_path, part):
    """Bit for bit, with dropout, the state of Adam and the weights of the best epoch."""
    env = env_of(lines / "texts.txt", folders["gpt2"])
    options = fine_tuning(folders["gpt2"], seed=0, log=(), **part)
    whole = MLE(env, folder=tmp_path / "whole", **options).learn(3)
    MLE(env, folder=tmp_path / "parts", **options).learn(1)
    parts = MLE(env, folder=tmp_path / "parts", **options).learn(2)
    expected = tensors_of_policy(whole)
    for name, weight in tensors_of_policy(parts).items():
        assert torch.equal(weight, expected[name]), name
    assert (parts.sample(5, seed=0).tokens == whole.sample(5, seed=0).tokens).all()
    with pytest.raises(CheckpointError, match="the settings of the run"):
        MLE(env, folder=tmp_path / "parts", **options | {"dtype": "bfloat16"})


@pytest.mark.parametrize("learner", [MLE, Reinforce, PPO])
@pytest.mark.parametrize(
    ("part", "changed", "refused"),
    [
        ({"lora": 2}, "transformer.h.1.mlp.c_fc.bias", True),
        ({"frozen_layers": 1}, "transformer.h.0.mlp.c_fc.bias", True),
        ({"frozen_layers": 1}, "transformer.h.1.mlp.c_fc.bias", False),  # trained, so it is in the checkpoint
        ({}, "transformer.wte.weight", False),
    ],
)
def test_frozen_weights_that_changed_are_noticed(folders, lines, tmp_path, learner, part, changed, refused):
    base = shutil.copytree(folders["gpt2"], tmp_path / "base")
    env, own = env_of(lines / "texts.txt", folders["gpt2"]), {"policy": "hf", "model": str(base), "progress": False}
    run = learner(env, seed=0, folder=tmp_path / "run", log=(), **own, **part)
    run.checkpoint()
    assert learner.load(tmp_path / "run", env, progress=False).sample(3, seed=0).texts == run.sample(3, seed=0).texts
    tensors = load_file(base / "model.safetensors")
    tensors[changed].view(-1)[-1] += 0.1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    if not refused:
        again = learner.load(tmp_path / "run", env, progress=False)
        assert again.sample(3, seed=0).texts == run.sample(3, seed=0).texts
        return
    with pytest.raises(CheckpointError, match=r"the weights of .*base. have changed since the run.*restore the model"):
        learner.load(tmp_path / "run", env, progress=False)


@pytest.mark.parametrize("kind", MAIN)
def test_the_digest_of_frozen_weights_is_the_same_in_either_precision(folders, kind):
    whole, half = (load_policy(folders[kind], V, lora=2, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert whole.embeddings.dtype != half.embeddings.dtype
    assert whole.frozen_digest == half.frozen_digest == copy.deepcopy(whole).frozen_digest
    assert load_policy(folders[kind], V, frozen_layers=1).frozen_digest != whole.frozen_digest
    assert load_policy(folders[kind], V).frozen_digest is None


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_frozen_layers_stay_as_they_are(folders, lines, kind):
    agent = MLE(env_of(lines / "asked.jsonl", folders[kind]), seed=0, **fine_tuning(folders[kind], frozen_layers=1))
    first = tensors_of_policy(agent)
    agent.learn(1)
    changed = {name for name, weight in tensors_of_policy(agent).items() if not torch.equal(weight, first[name])}
    assert changed == set(agent.policy.state_dict())
    same = first.keys() - changed
    assert all(any(word in name for word in ("embed", "layers.0.", "shared")) for name in same)
    assert not any("embed_" in name or "layers.0." in name for name in changed)
    assert any("layers.1." in name for name in changed)
    blocks = {name.partition("layers.0.")[0] for name in same if "layers.0." in name}
    assert len(blocks) == (2 if kind == "bart" else 1)
    with pytest.raises(OptionError, match="frozen_layers=3 is more than the 2 layers"):
        load_policy(folders[kind], V, frozen_layers=3)


@pytest.mark.parametrize("part", [{"lora": 2}, {}])
def test_reinforce_goes_on_from_what_likelihood_learned(folders, lines, tmp_path, part):
    env = env_of(lines / "asked.jsonl", folders["gpt2"])
    start = MLE(env, seed=0, **fine_tuning(folders["gpt2"], **part)).learn(1)
    options = {"rollouts": 2, "batch_size": 6, "kl": {"weight": 0.1}, "rollout_ema_rate": 0.5, "progress": False}
    agent = Reinforce(env, seed=1, start=start, folder=tmp_path, log=(), learning_rate=1e-2, **options)
    batch = env.unwrapped.task.batch("train")
    given = (batch.tokens, batch.lengths, batch.examples)
    assert (agent.log_prob(*given) == start.log_prob(*given)).all()
    agent.learn(1)
    now, then = agent.log_prob(*given), start.log_prob(*given)
    assert (now != then).any()
    assert architecture_of(agent.policy) == {"policy": "hf", "model": folders["gpt2"]} | {
        "lora": part.get("lora", 0), "frozen_layers": 0, "dtype": "auto",
    }  # fmt: skip
    rows = agent.tensor(batch.tokens), agent.tensor(batch.valid_mask), agent.prompt_tokens(batch.examples)
    frozen = agent.reference.log_prob(*rows).double().sum(dim=1)
    assert frozen.tolist() == pytest.approx(then.tolist(), abs=1e-4)
    again = Reinforce.load(tmp_path, env, progress=False)
    assert (again.log_prob(*given) == now).all()
    for mine, theirs in zip(again.reference.parameters(), agent.reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(OptionError, match="lora=7 differs from the policy of the warm start, which has"):
        Reinforce(env, start=start, lora=7, **options)


def test_seqgan_and_scheduled_sampling(folders, lines):
    env = env_of(lines / "asked.jsonl", folders["t5"])
    start = ScheduledSampling(env, seed=0, decay_rate=0.5, **fine_tuning(folders["t5"])).learn(1)
    sizes = {"discriminator": {"filters": ((1, 4), (2, 4)), "embedding": 4}, "pretrain_d_steps": 1, "d_samples": 8}
    agent = SeqGAN(env, seed=0, start=start, rollouts=1, batch_size=4, progress=False, **sizes).learn(1)
    assert (agent.log_prob(*_of(env)) != start.log_prob(*_of(env))).any()


@pytest.mark.parametrize(("learner", "kind", "part"), [
    (PPO, "gpt2", {}), (PPO, "t5", {}), (MaskablePPO, "llama", {"lora": 2}), (NLPO, "gpt2", {"lora": 2}),
    (NLPO, "bart", {"frozen_layers": 1}),
])  # fmt: skip
def test_actor_critics_train_them_and_resume(folders, lines, tmp_path, learner, kind, part):
    """With a warm start from fine-tuning, and with prompts; a resumed run equals an uninterrupted one."""
    env = env_of(lines / "asked.jsonl", folders[kind])
    start = MLE(env, seed=0, **fine_tuning(folders[kind], **part)).learn(1)
    options = {"n_envs": 4, "n_epochs": 1, "kl": {"weight": 0.1}, "log": (), "learning_rate": 1e-3, "progress": False}
    whole = learner(env, seed=1, start=start, **options)
    assert (whole.log_prob(*_of(env)) == start.log_prob(*_of(env))).all()
    whole.learn(2)
    assert (whole.log_prob(*_of(env)) != start.log_prob(*_of(env))).any()
    learner(env, seed=1, start=start, folder=tmp_path, **options).learn(1)
    again = learner(env, seed=1, start=start, folder=tmp_path, **options).learn(1)
    assert again.steps_done == 2
    assert (again.log_prob(*_of(env)) == whole.log_prob(*_of(env))).all()


@pytest.mark.parametrize("learner", [PPO, A2C, MaskablePPO, NLPO])
def test_actor_critics_in_bfloat16(folders, lines, learner):
    env = env_of(lines / "asked.jsonl", folders["gpt2"])
    options = {"policy": "hf", "model": folders["gpt2"], "dtype": "bfloat16", "lora": 2, "n_envs": 4}
    agent = learner(env, seed=0, progress=False, **options).learn(1)
    assert next(agent.reference.parameters()).dtype == torch.bfloat16
    assert np.isfinite(agent.log_prob(*_of(env))).all()


@pytest.mark.parametrize("learner", [PPO, NLPO])
def test_what_is_learned_from_has_the_probability_that_it_was_written_with(folders, lines, learner, monkeypatch):
    """The probability ratio of the first minibatch is 1, because the dropout of the models is off during training."""
    env = env_of(lines / "asked.jsonl", folders["gpt2"])
    options = {"policy": "hf", "model": folders["gpt2"], "n_envs": 8, "n_epochs": 1, "progress": False}
    agent = learner(env, seed=0, **options)
    assert any(module.p > 0 for module in agent.policy.modules() if isinstance(module, torch.nn.Dropout))
    found = []
    evaluate = agent.model.policy.evaluate_actions

    def spied(*given, **options):
        results = evaluate(*given, **options)
        found.append(results[1].detach())
        return results

    monkeypatch.setattr(agent.model.policy, "evaluate_actions", spied)
    monkeypatch.setattr(np.random, "permutation", np.arange)
    agent.learn(1)
    buffer = agent.model.rollout_buffer  # the layout of minibatches: environment by environment
    assert found[0].numpy() == pytest.approx(buffer.log_probs.ravel()[: len(found[0])], abs=1e-4)


def test_a_critic_of_its_own_is_another_model(folders, lines):
    env = env_of(lines / "texts.txt", folders["gpt2"])
    options = {"policy": "hf", "model": folders["gpt2"], "critic": "separate", "n_envs": 4, "progress": False}
    agent = PPO(env, seed=0, learning_rate=1e-3, **options).learn(1)
    reader = agent.model.policy.vf_features_extractor.model
    moved = [not torch.equal(a, b) for a, b in zip(agent.policy.parameters(), reader.parameters(), strict=True)]
    assert any(moved)


def _of(env):
    batch = env.unwrapped.task.batch("train")
    return batch.tokens, batch.lengths, batch.examples


def test_seqgan_pretrains_by_itself(folders, lines):
    env = env_of(lines / "texts.txt", folders["gpt2"])
    sizes = {"discriminator": {"filters": ((1, 4),), "embedding": 4}, "pretrain_d_steps": 1, "d_samples": 8}
    sizes |= {"policy": "hf", "model": folders["gpt2"], "lora": 1, "pretrain_preset": "demo", "pretrain_epochs": 1}
    agent = SeqGAN(env, seed=0, rollouts=0, batch_size=4, progress=False, **sizes).learn(1)
    assert agent.policy.settings["lora"] == 1


def test_bfloat16(folders, lines):
    tokens = padded(TOKENS)
    for kind in MAIN:
        policy, exact = load_policy(folders[kind], V, dtype="bfloat16"), load_policy(folders[kind], V)
        assert {weight.dtype for weight in policy.parameters()} == {torch.bfloat16}
        assert policy.start(2)[0].dtype == policy.output(policy.features(tokens)).dtype == torch.float32
        found, wanted = (p.log_prob(tokens, tokens < V) for p in (policy, exact))
        assert (found - wanted).abs().mean() < 0.2
    assert {weight.dtype for weight in exact.parameters()} == {torch.float32}
    env = env_of(lines / "texts.txt", folders["gpt2"])
    for lora in (0, 2):
        agent = MLE(env, seed=0, **fine_tuning(folders["gpt2"], dtype="bfloat16", lora=lora))
        kept = {str(weight.dtype) for weight in agent.policy.state_dict().values()}
        assert kept == {"torch.float32" if lora else "torch.bfloat16"}
        before = agent.nll("train")
        assert agent.learn(2).nll("train") < before


def test_copies_and_parts_of_other_modules(folders):
    policy = load_policy(folders["gpt2"], V, lora=2)
    twin = copy.deepcopy(policy).requires_grad_(False)
    assert isinstance(twin, HuggingFace)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_" in name:
                weight.add_(1.0)
    tokens = padded(TOKENS)
    assert not torch.equal(twin.features(tokens), policy.features(tokens))
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.features(tokens), policy.features(tokens))
    wholes = [torch.nn.ModuleDict({"policy": p, "value": torch.nn.Linear(2, 1)}) for p in (policy, twin)]
    assert set(wholes[0].state_dict()) == {f"policy.{name}" for name in policy.state_dict()} | {
        "value.weight",
        "value.bias",
    }
    wholes[1].load_state_dict(wholes[0].state_dict())
    for lacking in (policy.trained, {"value.bias"}):
        state = wholes[0].state_dict()
        del state["value.bias" if "value.bias" in lacking else f"policy.{min(lacking)}"]
        with pytest.raises(RuntimeError, match="Missing key"):
            wholes[1].load_state_dict(state)


def test_the_command_line(folders, lines, tmp_path, capsys):
    task = f"{lines}/asked.jsonl(tokenizer='hf:{folders['llama']}', valid=0.3)"
    few = ["--samples", "20", "--references", "20", "--temperatures", "1", "--sweep-samples", "20", "--shown", "1"]
    line = ["train", "mle", "--policy", "hf", "--model", folders["llama"], "--lora", "2", "--task", task, *few]
    line += ["--schedule", "1", "0.01", "--out", str(tmp_path / "run")]
    assert main(line) == 0
    assert main(line) == 0  # the run is finished
    assert main(["sample", str(tmp_path / "run")]) == 0
    line = ["train", "reinforce", "--task", task, "--start", str(tmp_path / "run"), "--reward", "length", *few]
    line += ["--steps", "1", "--rollouts", "1", "--batch-size", "4", "--out", str(tmp_path / "more")]
    assert main(line) == 0
    results = json.loads((tmp_path / "more" / "results.json").read_text())
    assert results["settings"]["lora"] == 2
    assert results["settings"]["model"] == folders["llama"]
    capsys.readouterr()
