"""Sampling of tokens and sequences: exact distributions and log-probabilities."""

import itertools
import math
import platform

import numpy as np
import pytest
import torch

from tests.helpers.models import assert_counts_fit, probability, seeded, small_model, smallest_nucleus
from tests.helpers.programs import run
from text_gym.errors import OptionError
from text_gym.language_model import (
    WHOLE_SOFTMAX,
    Drawn,
    LanguageModel,
    Sampling,
    complete,
    draw_tokens,
    generate,
    map_state,
    nucleus_mask,
    tune_memory,
)


def draws_of(logits, n, sampling=WHOLE_SOFTMAX):
    tune_memory()  # otherwise clearing memory pages takes most of the time
    generator, rows = seeded(1), 1000 if len(logits) < 10_000 else 100
    parts = [draw_tokens(logits.expand(rows, -1), generator, sampling) for _ in range(n // rows)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@pytest.mark.parametrize("size", [1, 2, 100, 128, 129, 5000, 50_257])
def test_drawing_is_exact(size):
    """Chi-square test against the softmax, for vocabulary sizes that are multiples of the block and others."""
    logits = torch.randn(size, generator=seeded(size)) * 2
    logits[size // 2] = -math.inf if size > 1 else 0.0
    n = 200_000 if size < 50_000 else 50_000
    tokens, log_probs = draws_of(logits, n)
    counts = torch.bincount(tokens, minlength=size).numpy()
    assert len(counts) == size
    assert_counts_fit(counts, n * logits.double().softmax(0).numpy())
    exact = logits.double().log_softmax(0)[tokens]
    assert (log_probs - exact).abs().max() < 2e-5


@pytest.mark.parametrize(
    "sampling", [Sampling(0.5), Sampling(2.0), Sampling(top_k=7), Sampling(top_p=0.6), Sampling(0.8, 20, 0.7)]
)
def test_log_probs_are_those_of_the_distribution_drawn_from(sampling):
    logits = torch.randn(300, generator=seeded(0)) * 2
    tokens, log_probs = draws_of(logits, 100_000, sampling)
    probabilities = by_hand(logits.double(), sampling)
    assert_counts_fit(torch.bincount(tokens, minlength=300).numpy(), 100_000 * probabilities.numpy())
    assert (log_probs - probabilities[tokens].log()).abs().max() < 2e-5


def by_hand(logits, sampling):
    """Apply temperature, top_k and top_p to one row of logits, token by token."""
    probabilities = (logits / sampling.temperature).softmax(0)
    order = probabilities.argsort(descending=True).tolist()
    kept = order[: sampling.top_k or len(order)]
    total, nucleus = sum(probabilities[i].item() for i in kept), []
    for i in kept:
        if nucleus and sum(probabilities[j].item() for j in nucleus) / total >= sampling.top_p:
            break
        nucleus.append(i)
    result = torch.zeros_like(probabilities)
    result[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return result


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("min_tokens", [1, 3, 20])
def test_the_nucleus_by_brute_force(top_p, min_tokens):
    logits = torch.randn(60, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    logits[3, 2:] = logits[4, 1:] = -torch.inf  # tokens that an action mask does not allow
    for row, mask in zip(logits, nucleus_mask(logits, top_p, min_tokens), strict=True):
        chosen = smallest_nucleus(row.softmax(0).tolist(), top_p, min_tokens)
        possible = set(row.isfinite().nonzero()[:, 0].tolist())
        assert set(mask.nonzero()[:, 0].tolist()) & possible == chosen & possible
    assert nucleus_mask(logits, 1.0, min_tokens).all()


def test_of_equally_likely_tokens_those_with_smaller_ids_are_in_the_nucleus():
    assert nucleus_mask(torch.zeros(1, 30), 0.5).tolist() == [[True] * 15 + [False] * 15]
    adjusted = Sampling(top_p=0.5).adjust(torch.zeros(1, 30))
    assert adjusted.isfinite().tolist() == [[True] * 15 + [False] * 15]


@pytest.mark.parametrize(
    "sampling", [Sampling(0), Sampling(-1), Sampling(top_k=-1), Sampling(top_p=0), Sampling(top_p=2)]
)
def test_impossible_sampling_is_refused(sampling):
    with pytest.raises(OptionError, match="temperature >="):
        sampling.checked()


def test_sequences_have_the_probabilities_of_the_model():
    """Counts of all sequences of up to three tokens fit their enumerated probabilities; token 3 is EOS."""
    model, n = small_model(), 100_000
    samples = generate(model, n, 3, 3, seeded(0))
    sequences = [s for k in (1, 2, 3) for s in itertools.product(range(4), repeat=k)]
    sequences = [s for s in sequences if 3 not in s[:-1] and (len(s) == 3 or s[-1] == 3)]
    expected = np.array([n * math.exp(probability(model, s)) for s in sequences])
    assert expected.sum() == pytest.approx(n, rel=1e-5)
    rows = [tuple(t for t in row if t != 4) for row in samples.tokens.tolist()]
    where = {s: i for i, s in enumerate(sequences)}
    assert_counts_fit(np.bincount([where[row] for row in rows], minlength=len(sequences)), expected)
    assert samples.lengths.tolist() == [len(row) for row in rows]
    valid = samples.tokens != 4
    again = model.log_prob(samples.tokens, valid)
    assert (samples.log_probs[~valid] == 0).all()
    assert (samples.log_probs - again).abs().max() < 1e-5


def test_all_at_once_equals_step_by_step():
    model = small_model(7)
    tokens = torch.randint(0, 7, (5, 6), generator=seeded(0))
    valid = torch.arange(6) < torch.tensor([6, 5, 3, 1, 0])[:, None]
    padded = tokens.where(valid, 7)
    scores = model.log_prob(padded, valid)
    assert (scores[~valid] == 0).all()
    for row, length in enumerate([6, 5, 3, 1, 0]):
        assert scores[row].sum().item() == pytest.approx(probability(model, tokens[row, :length].tolist()), abs=1e-5)


def test_prompts_are_read_first_whatever_their_padding():
    model = small_model(7)
    prompts = torch.tensor([[1, 2, 3], [4, 7, 7], [7, 7, 7]])
    logits, state = model.start(3, prompts)
    for row, prompt in enumerate([[1, 2, 3], [4], []]):
        alone, alone_state = model.start(1)
        for token in prompt:
            alone, alone_state = model.step(torch.tensor([token]), alone_state)
        assert torch.allclose(logits[row], alone[0], atol=1e-6)
        assert torch.allclose(state[0][row], alone_state[0][0], atol=1e-6)
    tokens = torch.randint(0, 7, (3, 4), generator=seeded(1))
    valid = torch.ones(3, 4, dtype=torch.bool)
    joined = model.log_prob(torch.cat([prompts[:1], tokens[:1]], dim=1), torch.ones(1, 7, dtype=torch.bool))[0, 3:]
    assert torch.allclose(model.log_prob(tokens, valid, prompts)[0], joined, atol=1e-5)


def test_completions_go_on_from_the_cached_state():
    """Completions have the distribution of the model after the prefix, and the prefix is unchanged."""
    model, n = small_model(5), 60_000
    logits, state = model.start(1)
    for token in (2, 1):
        logits, state = model.step(torch.tensor([token]), state)
    many = torch.zeros(n, dtype=torch.long)
    prefixes = torch.tensor([[2, 1]])[many]
    samples = complete(model, prefixes, logits[many], map_state(lambda part: part[many], state), 4, None, seeded(2))
    assert (samples.tokens[:, :2] == torch.tensor([2, 1])).all()
    assert (samples.log_probs[:, :2] == 0).all()
    begin = probability(model, (2, 1))
    pairs = list(itertools.product(range(5), repeat=2))
    expected = np.array([n * math.exp(probability(model, (2, 1, *pair)) - begin) for pair in pairs])
    counts = torch.bincount(samples.tokens[:, 2] * 5 + samples.tokens[:, 3], minlength=25).numpy()
    assert_counts_fit(counts, expected)


def test_one_seed_one_sample():
    model = small_model(30)
    first, again, other = (generate(model, 20, 9, 0, seeded(s)).tokens for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("width", [0, 1])
def test_an_lstm_that_has_read_a_prompt_alone_says_what_comes_first(width):
    model, prompts = small_model(5), torch.tensor([[1, 2, 5], [3, 5, 5]])
    tokens = torch.tensor([[4], [0]])[:, :width]
    logits, _ = model.start(2, prompts)
    assert torch.equal(model.output(model.features(tokens, prompts)), logits[:, None][:, :width])
    log_probs = model.log_prob(tokens, torch.ones_like(tokens, dtype=torch.bool), prompts)
    assert torch.allclose(log_probs, logits.log_softmax(1).gather(1, tokens))


class Bigrams(LanguageModel):
    """A custom model: the logits of a token depend only on the preceding token."""

    def __init__(self, size):
        super().__init__()
        self.table = torch.nn.Embedding(size + 1, size)  # the last row has the logits of the first token

    def start(self, n, prompts=None):
        state = torch.full((n,), self.table.num_embeddings - 1)
        return self.table(state), state

    def step(self, tokens, state):
        return self.table(tokens), tokens

    def features(self, tokens, prompts=None):
        first = torch.full_like(tokens[:, :1], self.table.num_embeddings - 1)
        return torch.cat([first, tokens[:, :-1]], dim=1)[:, :, None]

    def output(self, features):
        return self.table(features[..., 0])


def test_a_model_of_ones_own_is_sampled_and_scored():
    torch.manual_seed(0)
    model, n = Bigrams(3), 60_000
    with torch.no_grad():
        shares = model.table.weight.double().softmax(dim=1)  # probabilities of the next token after each token
        samples = generate(model, n, 4, 2, seeded(0))
        scores = model.log_prob(samples.tokens, samples.valid_mask)
    assert_counts_fit(np.bincount(samples.tokens[:, 0], minlength=3), n * shares[3].numpy())
    for before in (0, 1):
        after = samples.tokens[samples.tokens[:, 0] == before, 1]
        assert_counts_fit(np.bincount(after, minlength=3), len(after) * shares[before].numpy())
    for row in range(50):
        sequence = [token for token in samples.tokens[row].tolist() if token < 3]
        pairs = zip([3, *sequence[:-1]], sequence, strict=True)
        expected = sum(math.log(shares[before, token]) for before, token in pairs)
        assert scores[row].sum().item() == pytest.approx(expected, abs=1e-5)
    assert model.state_size(4) == 1


@pytest.mark.parametrize("method", ["start", "step", "features"])
def test_a_model_that_lacks_a_method_cannot_be_created(method):
    with pytest.raises(TypeError, match=method):
        type("Lacking", (Bigrams,), {method: getattr(LanguageModel, method)})(3)


def test_the_mask_of_what_was_drawn():
    samples = Drawn(torch.tensor([[1, 0, 5], [0, 5, 5], [1, 1, 1]]), torch.tensor([2, 1, 3]), torch.zeros(3, 3))
    assert samples.valid_mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]


SHAPES = """
import ctypes, torch
from text_gym.language_model import tune_memory
tune_memory()
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
info = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = info
lstm, used = torch.nn.LSTM(32, 64, batch_first=True), []
with torch.no_grad():
    for n in range(1, 401):
        lstm(torch.zeros(n, 5, 32))
        used.append(mallinfo().uordblks)
print((used[-1] - used[0]) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads the memory statistics of glibc")
def test_memory_does_not_grow_with_every_new_shape_of_a_batch():
    """Without the limit, memory grows by 64 MiB on a CPU where oneDNN runs LSTMs."""
    assert float(run(SHAPES)) < 20
