"""The Transformer against torch's TransformerEncoder, enumeration, and its own step-by-step results."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values
from agents.networks.transformer import Transformer
from tests.helpers.gradients import EOS, PAD, SEQUENCES, WORTH, padded, worth
from tests.helpers.models import assert_counts_fit, seeded
from text_gym import language_model as models
from text_gym.errors import OptionError
from text_gym.language_model import complete, generate, map_state

PROMPTS = [[1, 2, 3, 0], [4], [], [5, 5]]
LENGTHS = [6, 1, 4, 0]


def small_transformer(size=7, seed=0, dropout=0.0):
    """A random Transformer whose distributions are far from uniform."""
    model = Transformer(size, width=12, inner=10, layers=2, heads=3, dropout=dropout, start_token=size - 1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=seeded(1000 * seed + number)))
    return model.eval()


def prompt_tokens(width, size=7):
    """Pad prompts on the right to a width."""
    return torch.tensor([prompt + [size] * (width - len(prompt)) for prompt in PROMPTS])


def some_tokens(length=6, size=7):
    return torch.randint(0, size, (len(PROMPTS), length), generator=seeded(1))


def torchs_encoder(model):
    """Create a torch.nn.TransformerEncoder with the weights of a model."""
    width, inner = model.embed.embedding_dim, model.blocks[0].inner_in.out_features
    layer = nn.TransformerEncoderLayer(
        width, model.blocks[0].heads, inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, len(model.blocks), nn.LayerNorm(width), enable_nested_tensor=False)
    encoder.norm.load_state_dict(model.norm.state_dict())
    for theirs, ours in zip(encoder.layers, model.blocks, strict=True):
        parts = {"in_proj_weight": ours.attention_in.weight, "in_proj_bias": ours.attention_in.bias}
        parts |= {f"out_proj.{k}": v for k, v in ours.attention_out.state_dict().items()}
        theirs.self_attn.load_state_dict(parts)
        for mine, other in [("attention_norm", "norm1"), ("inner_norm", "norm2")]:
            getattr(theirs, other).load_state_dict(getattr(ours, mine).state_dict())
        theirs.linear1.load_state_dict(ours.inner_in.state_dict())
        theirs.linear2.load_state_dict(ours.inner_out.state_dict())
    return encoder.eval()


@torch.no_grad()
def by_torch(model, sequence):
    """Compute the hidden states of torch's encoder for one sequence after the start token, [1 + T, width]."""
    width = model.embed.embedding_dim
    rates = [10_000 ** (-2 * i / width) for i in range(width // 2)]
    positions = [
        [math.sin(t * rate) for rate in rates] + [math.cos(t * rate) for rate in rates]
        for t in range(1 + len(sequence))
    ]
    embedded = model.embed(torch.tensor([[model.start_token, *sequence]])) + torch.tensor([positions])
    mask = nn.Transformer.generate_square_subsequent_mask(embedded.shape[1])
    return torchs_encoder(model)(embedded, mask=mask, is_causal=True)[0]


def exact_probability(model, sequence):
    """Compute the probability of a sequence with torch's encoder."""
    logits = model.output(by_torch(model, sequence[:-1]))
    return math.exp(sum(row.log_softmax(0)[token].item() for row, token in zip(logits, sequence, strict=True)))


@torch.no_grad()
def by_steps(model, tokens, prompts=None):
    """Compute the log-probability of each token step by step with the cache, [n, T]."""
    logits, state = model.start(len(tokens), prompts)
    scores = []
    for column in tokens.unbind(dim=1):
        scores.append(logits.log_softmax(1).gather(1, column[:, None])[:, 0])
        logits, state = model.step(column, state)
    return torch.stack(scores, dim=1)


@pytest.mark.parametrize("with_prompts", [False, True])
def test_features_equal_those_of_torchs_encoder(with_prompts):
    model, tokens = small_transformer(), some_tokens()
    features = model.features(tokens, prompt_tokens(5) if with_prompts else None)
    assert features.shape == (4, 6, 12)
    for row, prompt in enumerate(PROMPTS if with_prompts else [[]] * 4):
        expected = by_torch(model, prompt + tokens[row, :-1].tolist())[len(prompt) :]
        assert torch.allclose(features[row], expected, atol=1e-5)


def test_weights_begin_as_torchs_defaults():
    model = Transformer(5)
    assert (model.blocks[0].attention_norm.weight == 1).all()
    assert model.blocks[1].inner_in.weight.abs().max() <= 1 / 8
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert names == {"embed", "blocks", "norm", "output"}, "positions are not learned"


@pytest.mark.parametrize("with_prompts", [False, True])
def test_step_by_step_equals_all_at_once(with_prompts):
    model, tokens = small_transformer(), some_tokens()
    prompts = prompt_tokens(4) if with_prompts else None
    valid = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    scores = model.log_prob(tokens.where(valid, 7), valid, prompts)
    assert (scores[~valid] == 0).all()
    assert torch.allclose(scores, by_steps(model, tokens, prompts).where(valid, 0.0), atol=1e-5)


@pytest.mark.parametrize("width", [5, 9])
def test_the_width_of_prompt_padding_does_not_matter(width):
    model, tokens = small_transformer(), some_tokens()
    narrow, wide = prompt_tokens(4), prompt_tokens(width)
    wide[wide == 7] += 3  # all ids from V on are padding
    assert torch.allclose(model.start(4, narrow)[0], model.start(4, wide)[0], atol=1e-5)
    assert torch.allclose(model.features(tokens, narrow), model.features(tokens, wide), atol=1e-5)
    assert torch.allclose(by_steps(model, tokens, narrow), by_steps(model, tokens, wide), atol=1e-5)


def test_padding_too_has_something_to_look_at(monkeypatch):
    """Attention with a fully masked row is NaN in some versions and kernels of torch, and zero in others."""
    attention = nn.functional.scaled_dot_product_attention

    def checked(*arguments, attn_mask):
        assert attn_mask.any(dim=-1).all()
        return attention(*arguments, attn_mask=attn_mask)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", checked)
    assert small_transformer().features(some_tokens(), prompt_tokens(5)).isfinite().all()


def test_prompts_of_padding_alone_are_no_prompts():
    model, tokens = small_transformer(), some_tokens()
    nothing = torch.full((4, 3), 7)
    assert torch.allclose(model.features(tokens, nothing), model.features(tokens), atol=1e-5)
    assert torch.allclose(model.start(4, nothing)[0], model.start(4)[0], atol=1e-5)
    assert torch.allclose(model.features(tokens, nothing[:, :0]), model.features(tokens), atol=1e-5)


@pytest.mark.parametrize("with_prompts", [False, True])
def test_a_token_changes_nothing_before_it(with_prompts):
    model, tokens = small_transformer(), some_tokens()
    prompts = prompt_tokens(4) if with_prompts else None
    features = model.features(tokens, prompts)
    for t in range(6):
        other = tokens.clone()
        other[:, t] = (other[:, t] + 1) % 7
        changed = (model.features(other, prompts) - features).abs().amax(dim=2)  # [n, T]
        assert (changed[:, : t + 1] == 0).all()
        assert (changed[:, t + 1 :] > 1e-3).all()


def test_a_step_reads_one_token_and_leaves_the_old_state_alone():
    model, tokens = small_transformer(), some_tokens()
    _, state = model.start(4, prompt_tokens(4))
    sizes = []
    model.blocks[0].register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[:2]))
    first, _ = model.step(tokens[:, 0], state)
    other, _ = model.step(tokens[:, 1], state)
    again, _ = model.step(tokens[:, 0], state)
    assert sizes == [(4, 1)] * 3
    assert (first == again).all()
    assert (first != other).any()


def test_rows_of_a_state_can_be_chosen_and_repeated():
    model, tokens = small_transformer(), some_tokens()
    prompts = prompt_tokens(4)
    _, state = model.start(4, prompts)
    _, state = model.step(tokens[:, 0], state)
    rows = torch.tensor([3, 0, 0, 2, 1, 3])
    chosen, _ = model.step(tokens[rows, 1], map_state(lambda part: part[rows], state))
    assert torch.allclose(chosen, model.step(tokens[:, 1], state)[0][rows], atol=1e-5)
    assert map_state(len, state) == (4, ((4, 4), (4, 4)))


@pytest.mark.parametrize("eos", [None, 0])
@pytest.mark.parametrize("with_prompts", [False, True])
def test_sampling_says_with_what_probability_it_drew(eos, with_prompts):
    model = small_transformer()
    prompts = prompt_tokens(4).repeat(50, 1) if with_prompts else None
    drawn = generate(model, 200, 9, eos, seeded(0), prompts=prompts)
    valid = torch.arange(9) < drawn.lengths[:, None]
    assert (drawn.tokens[~valid] == 7).all()
    assert (drawn.log_probs - model.log_prob(drawn.tokens, valid, prompts)).abs().max() < 1e-5
    if eos is not None:
        assert len(drawn.lengths.unique()) > 4, "the test would see nothing"


@pytest.mark.parametrize("eos", [None, EOS])
def test_sequences_have_the_probabilities_of_torchs_encoder(eos):
    model, n = small_transformer(3, seed=1), 50_000
    sequences = SEQUENCES if eos else list(itertools.product(range(3), repeat=3))
    expected = np.array([n * exact_probability(model, s) for s in sequences])
    assert expected.sum() == pytest.approx(n, rel=1e-5)
    drawn = generate(model, n, 3, eos, seeded(0))
    where = {s: i for i, s in enumerate(sequences)}
    rows = [where[tuple(t for t in row if t != PAD)] for row in drawn.tokens.tolist()]
    assert_counts_fit(np.bincount(rows, minlength=len(sequences)), expected)


def test_completions_go_on_from_the_cached_state():
    model, n = small_transformer(3, seed=1), 50_000
    logits, state = model.start(1)
    logits, state = model.step(torch.tensor([1]), state)
    many = torch.zeros(n, dtype=torch.long)
    prefixes = torch.ones(n, 1, dtype=torch.long)
    drawn = complete(model, prefixes, logits[many], map_state(lambda part: part[many], state), 3, None, seeded(2))
    first = model.output(by_torch(model, ())).log_softmax(1)[0, 1].exp().item()
    pairs = itertools.product(range(3), repeat=2)
    expected = np.array([n * exact_probability(model, (1, *pair)) / first for pair in pairs])
    assert (drawn.tokens[:, 0] == 1).all()
    assert_counts_fit(torch.bincount(drawn.tokens[:, 1] * 3 + drawn.tokens[:, 2], minlength=9).numpy(), expected)


def test_values_of_rollouts_equal_enumeration():
    """The value of a prefix is the expected reward of its completions, within 4.5 standard errors."""
    model, rollouts = small_transformer(3, seed=1), 2000
    probabilities = {s: exact_probability(model, s) for s in SEQUENCES}
    tokens, lengths = padded(SEQUENCES), torch.tensor([len(s) for s in SEQUENCES])
    score = lambda completed, *_: torch.tensor(worth(completed))  # noqa: E731
    values = rollout_values(model, tokens, lengths, score, rollouts, EOS, seeded(3), from_start=True)
    for row, sequence in enumerate(SEQUENCES):
        for t in range(len(sequence) + 1):
            after = {s: p for s, p in probabilities.items() if s[:t] == sequence[:t]}
            total = sum(after.values())
            mean = sum(p * WORTH[s] for s, p in after.items()) / total
            spread = math.sqrt(sum(p * (WORTH[s] - mean) ** 2 for s, p in after.items()) / total)
            assert values[row, t].item() == pytest.approx(mean, abs=4.5 * spread / math.sqrt(rollouts) + 1e-6)


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("with_prompts", [False, True])
def test_the_gradient_of_the_likelihood_loss_is_autograds(with_prompts):
    model = small_transformer().double()
    tokens, prompts = some_tokens(), prompt_tokens(4) if with_prompts else None
    weights = torch.randn(4, 6, dtype=torch.float64, generator=seeded(2))
    valid = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    tokens, weights = tokens.where(valid, 7), weights.where(valid, 0.0)
    loss, each = weighted_nll(model, tokens, weights, prompts)
    logs = model.log_prob(tokens, valid, prompts)
    assert torch.allclose(each, -logs, atol=1e-12)
    ours, expected = gradient(model, loss), gradient(model, -(weights * logs).sum())
    assert expected.abs().max() > 0.1
    assert torch.allclose(ours, expected, atol=1e-12)
    if prompts is not None:  # the padding of prompts has no gradient
        wider = gradient(model, weighted_nll(model, tokens, weights, prompt_tokens(9))[0])
        assert torch.allclose(ours, wider, atol=1e-12)


def test_dropout_acts_in_training_only():
    model, tokens = small_transformer(dropout=0.5), some_tokens()
    without = small_transformer().features(tokens)
    assert torch.allclose(model.features(tokens), without, atol=1e-6)
    model.train()
    torch.manual_seed(0)
    first, second = model.features(tokens), model.features(tokens)
    torch.manual_seed(0)
    assert (first != second).any()
    assert (first == model.features(tokens)).all()
    nothing_left = small_transformer(dropout=1.0).train()  # drops the embeddings and the output of each block
    assert torch.allclose(nothing_left.features(tokens), nothing_left.norm.bias.expand(4, 6, 12))


def test_no_rows_and_no_tokens():
    model = small_transformer()
    for prompts in (None, torch.zeros(0, 3, dtype=torch.long)):
        logits, state = model.start(0, prompts)
        logits, _ = model.step(torch.zeros(0, dtype=torch.long), state)
        assert logits.shape == (0, 7)
        assert model.features(torch.zeros(0, 5, dtype=torch.long), prompts).shape == (0, 5, 12)
        assert generate(model, 0, 4, 0, seeded(0), prompts=prompts).tokens.shape == (0, 4)
    for prompts in (None, prompt_tokens(4)):
        assert model.features(torch.zeros(4, 0, dtype=torch.long), prompts).shape == (4, 0, 12)


def test_there_is_no_longest_sequence():
    model = small_transformer()
    tokens = torch.randint(0, 7, (1, 1500), generator=seeded(0))
    assert torch.allclose(
        model.log_prob(tokens, torch.ones(1, 1500, dtype=torch.bool)), by_steps(model, tokens), atol=1e-4
    )


def test_everything_is_made_where_the_weights_are():
    """Tensors on the meta device cannot be mixed with tensors on the CPU, so this finds misplaced tensors."""
    model = small_transformer().to("meta")
    tokens = some_tokens().to("meta")
    for prompts in (None, prompt_tokens(4).to("meta")):
        logits, state = model.start(4, prompts)
        logits, _ = model.step(tokens[:, 0], state)
        assert logits.device.type == "meta"
        assert model.log_prob(tokens, torch.ones_like(tokens, dtype=torch.bool), prompts).device.type == "meta"


@pytest.mark.parametrize(
    "sizes", [{"width": 63}, {"heads": 5}, {"width": 15, "heads": 3}, {"heads": 0}, {"layers": 0}, {"width": -64}]
)
def test_sizes_that_do_not_fit_are_told(sizes):
    with pytest.raises(OptionError, match="give for example width=64 and heads=4"):
        Transformer(5, **sizes)


def test_a_start_token_outside_the_vocabulary_is_not_taken_for_padding():
    with pytest.raises(IndexError):
        Transformer(5, start_token=5).start(2, torch.tensor([[1], [2]]))


def test_the_caches_of_sequences_drawn_together_are_bounded(monkeypatch):
    """The number of sequences per chunk is limited by state_size(), which equals the actual size of a state."""
    model, sizes = Transformer(7, width=8, inner=8).eval(), []
    _, state = model.start(3)
    for _ in range(5):
        _, state = model.step(torch.zeros(3, dtype=torch.long), state)
    numbers = sum(part.numel() for cache in state[1] for part in cache)
    assert numbers == 3 * model.state_size(5)
    start = model.start
    monkeypatch.setattr(models, "CACHED_AT_ONCE", (4 * model.state_size(5), 1))
    monkeypatch.setattr(model, "start", lambda n, prompts=None: sizes.append(n) or start(n, prompts))
    assert generate(model, 10, 5, None, seeded(0)).tokens.shape == (10, 5)
    assert sizes == [0, 4, 4, 2]
    assert generate(model, 0, 5, None, seeded(0)).tokens.shape == (0, 5)
