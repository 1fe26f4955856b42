"""Discriminators: the published CNN in numpy, the encoding of batches, and training on separable classes."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents.networks import discriminators
from agents.networks.discriminators import (
    CNN,
    NETWORKS,
    PAPER_FILTERS,
    Discriminator,
    DiscriminatorSettings,
    has_bfloat16,
)
from tests.helpers.models import seeded
from text_gym.errors import OptionError, RewardError, TrainingError
from text_gym.rewards import Scorer
from text_gym.sequences import Batch, Example, make_batch

FILTERS = ((1, 8), (2, 8), (3, 8))


def small(task, length=None, **options):
    torch.manual_seed(0)
    options = {"embedding": 8, "hidden": 8, "filters": FILTERS, "learning_rate": 5e-3, "bfloat16": False} | options
    return Discriminator(task, length or task.max_length, DiscriminatorSettings(**options))


def test_the_network_is_the_published_one():
    """The CNN equals a computation with loops over numpy arrays."""
    torch.manual_seed(1)
    settings = DiscriminatorSettings(embedding=5, filters=((1, 3), (4, 2), (6, 2), (7, 9)), dropout=0.5)
    network = CNN(12, 10, 6, settings).eval()
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(number)) * 0.5)
    rows = torch.tensor([[1, 4, 3, 9, 11, 0], [2, 2, 7, 10, 10, 10]])
    expected = np.stack([by_hand(network, row) for row in rows.tolist()])
    assert network(rows).detach().numpy() == pytest.approx(expected, abs=1e-5)


def by_hand(network, row):
    embedded = network.embed.weight.detach().numpy()[row]
    features = []
    for width, convolution in zip((1, 4, 6), network.convolutions, strict=True):
        weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
        for f in range(len(weight)):
            kernel = weight[f].reshape(width, 5)
            sums = [(kernel * embedded[t : t + width]).sum() + bias[f] for t in range(len(row) - width + 1)]
            features.append(max(0.0, *sums))
    features = np.array(features)
    highway, output = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (network.highway, network.output)
    )
    new, gate = np.split(highway[0] @ features + highway[1], 2)
    share = 1 / (1 + np.exp(-gate))
    mixed = share * np.maximum(new, 0) + (1 - share) * features
    return output[0] @ mixed + output[1]


def test_the_sizes_are_the_published_ones():
    assert [sum(n for w, n in PAPER_FILTERS if w <= length) for length in (20, 10)] == [1720, 1400]
    network = CNN(5002, 5000, 20, DiscriminatorSettings())
    assert network.output.in_features == 1720
    assert network.embed.weight.abs().max() <= 1
    assert network.embed.weight.std().item() == pytest.approx(1 / 3**0.5, rel=0.02)  # uniform on (-1, 1)
    weights = torch.cat([c.weight.flatten() for c in network.convolutions]).detach()
    assert weights.abs().max() <= 0.2  # truncated at two standard deviations
    assert all((c.bias == 0.1).all() for c in network.convolutions)
    assert (network.highway.bias == 0).all()
    assert network.highway.weight.abs().max().item() == pytest.approx(
        (6 / (2 * 1720)) ** 0.5, rel=1e-3
    )  # Glorot-uniform


def test_what_it_reads_is_prompt_mark_answer(answers):
    judge = small(answers, 4)
    pad, mark = answers.vocab.pad, answers.vocab.pad + 1
    examples = [Example((5, 6), (), {}), Example((7,), (), {})]
    rows = judge.rows(Batch(np.array([[1, 2, 0], [3, 0, pad]]), np.array([3, 2]), answers.vocab, examples))
    empty = [pad] * (answers.prompt_length - 2)
    assert rows.tolist() == [[*empty, 5, 6, mark, 1, 2, 0, pad], [*empty, pad, 7, mark, 3, 0, pad, pad]]


def test_what_it_reads_without_prompts(grammar):
    batch = make_batch([[4, 5, 0]], [3], grammar.vocab)
    assert small(grammar, 5).rows(batch).tolist() == [[4, 5, 0, grammar.vocab.pad, grammar.vocab.pad]]
    with pytest.raises(RewardError, match="at most 2 tokens"):
        small(grammar, 2).rows(batch)


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_learns_to_tell_word_order(grammar, kind):
    """It learns to separate sentences from their shuffled words; the accuracy is on held-out sentences."""
    judge = small(grammar, kind=kind, embedding=16, hidden=16)
    random = np.random.default_rng(0)

    def both(split, n):
        real = grammar.batch(split, np.arange(n))
        shuffled = real.tokens.copy()
        for row, length in zip(shuffled, real.content_lengths, strict=True):
            row[:length] = random.permutation(row[:length])
        return judge.rows(real), judge.rows(Batch(shuffled, real.lengths, grammar.vocab))

    train, unseen = both("train", 2000), both("test", 500)
    losses, accuracy = [], 0.5
    while accuracy <= 0.75 and len(losses) < 6:
        losses.append(judge.train_epoch(*train, seeded(len(losses))))
        accuracy = (judge.share_real(unseen[0]) + 1 - judge.share_real(unseen[1])) / 2
    assert losses == sorted(losses, reverse=True)
    assert accuracy > 0.75


@pytest.mark.parametrize("kind", NETWORKS)
def test_with_prompts_it_judges_the_answer_to_the_prompt(kind):
    """It learns to separate right answers from answers to other prompts, which needs the prompt."""
    answers = text_gym.make_task("answers", size=200)
    filters = ((1, 32), (2, 32), (4, 64), (8, 64))
    judge = small(answers, kind=kind, filters=filters, embedding=32, hidden=64, l2=0.0, learning_rate=2e-3)
    real = answers.batch("train")
    wrong = Batch(np.roll(real.tokens, 1, axis=0), np.roll(real.lengths, 1), answers.vocab, real.examples)
    rows = judge.rows(real), judge.rows(wrong)
    difference, epoch = 0.0, 0
    while difference <= 0.4 and epoch < 50:
        judge.train_epoch(*rows, seeded(epoch))
        difference, epoch = judge.share_real(rows[0]) - judge.share_real(rows[1]), epoch + 1
    assert difference > 0.4


def test_the_forms_of_the_reward(grammar):
    batch = grammar.sample(50, seed=0)
    judges = {form: small(grammar, reward=form) for form in ("probability", "logit", "log_ratio")}
    logits = judges["logit"].logits(judges["logit"].rows(batch)).double().numpy()
    scores = {form: judge.score(batch) for form, judge in judges.items()}
    assert scores["logit"] == pytest.approx(logits[:, 1])
    assert scores["probability"] == pytest.approx(np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1))
    assert scores["log_ratio"] == pytest.approx(np.log(scores["probability"] / (1 - scores["probability"])))
    assert scores["probability"].std() > 0


def test_only_the_output_layer_is_kept_small(grammar):
    rows, classes = small(grammar).rows(grammar.sample(8, seed=0)), torch.tensor([0, 1] * 4)
    gradients = []
    for l2 in (0.0, 0.2):
        judge = small(grammar, l2=l2, dropout=0.0)
        names = dict(judge.network.named_parameters())
        gradients.append(dict(zip(names, torch.autograd.grad(judge.loss(rows, classes), names.values()), strict=True)))
    for name, plain in gradients[0].items():
        added = 0.2 * names[name] if name.startswith("output") else torch.zeros_like(plain)
        assert torch.allclose(gradients[1][name] - plain, added, atol=1e-6), name


def test_in_bfloat16_it_learns_the_same_up_to_rounding(grammar):
    """The losses of an epoch agree. Gradients differ by a few per cent, because two windows may be almost equal."""
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("this CPU has no bfloat16")
    judges = [small(grammar, filters=PAPER_FILTERS, bfloat16=mixed, learning_rate=1e-4) for mixed in (False, True)]
    real, written = (judges[0].rows(grammar.sample(640, seed=seed)) for seed in (0, 1))
    written = written.flip(1)
    gradients = []
    for judge in judges:
        judge.network.eval()
        loss = judge.loss(torch.cat([real[:32], written[:32]]), torch.tensor([1, 0]).repeat_interleave(32))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(judge.network.parameters()))]))
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
    losses = [judge.train_epoch(real, written, seeded(0)) for judge in judges]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_padding_stays_zero_and_dropout_acts_in_training_only(grammar):
    judge = small(grammar, dropout=0.5, batch_size=16)
    batch = grammar.sample(64, seed=0)
    rows = judge.rows(batch)
    assert (judge.score(batch) == judge.score(batch)).all()
    judge.network.train()
    assert (judge.network(rows) != judge.network(rows)).any()
    judge.train_epoch(rows, rows.flip(1), seeded(0))
    assert (judge.network.embed.weight[grammar.vocab.pad] == 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_more_padding_changes_nothing(grammar, kind):
    """Up to rounding. The backward half of a GRU, however, reads the padding first."""
    batch = grammar.sample(20, seed=0)
    short, long = (small(grammar, length, kind=kind).network.eval() for length in (21, 30))
    weights = short.state_dict()
    if kind == "transformer":
        weights["places"] = torch.cat([weights["places"], torch.randn(9, 8)])
    long.load_state_dict(weights)
    rows = small(grammar, 21).rows(batch), small(grammar, 30).rows(batch)
    assert rows[1].shape == (20, 30)
    assert torch.allclose(short(rows[0]), long(rows[1]), atol=1e-6 if kind != "recurrent" else 2e-2)
    with torch.no_grad():
        short.embed.weight[grammar.vocab.pad] = 100.0  # the embedding of masked padding has no effect
    if kind == "transformer":
        assert torch.allclose(short(rows[0]), long(rows[1]), atol=1e-6)


def test_the_recurrent_network_takes_no_maximum_over_padding(grammar):
    """The maximum over time ignores the states at padding."""
    network = small(grammar, 21, kind="recurrent").network.eval()
    rows = small(grammar, 21).rows(grammar.sample(20, seed=0))
    states, _ = network.gru(network.embed(rows))
    real = rows != grammar.vocab.pad
    expected = torch.stack([row[mask].amax(dim=0) for row, mask in zip(states, real, strict=True)])
    assert torch.allclose(network(rows), network.output(expected), atol=1e-6)
    assert not torch.allclose(states.amax(dim=1), expected, atol=1e-6)


def test_long_rows_are_scored_in_smaller_parts(grammar, monkeypatch):
    judge, parts = small(grammar, kind="cnn"), []
    batch = grammar.sample(40, seed=0)
    whole = judge.score(batch)
    monkeypatch.setattr(discriminators, "MAX_NUMBERS", 7 * judge.network.numbers_per_row)
    judge.network.register_forward_hook(lambda network, inputs, outputs: parts.append(len(outputs)))
    assert judge.score(batch) == pytest.approx(whole, abs=1e-6)
    assert parts == [7, 7, 7, 7, 7, 5]


def test_it_is_a_reward_that_goes_on_learning(grammar):
    judge = small(grammar, batch_size=8)
    env = gym.make("TextGen-v0", task=grammar, reward=judge)
    batch = grammar.sample(20, seed=0)
    before = env.unwrapped.rules.scorer(batch).total
    judge.train_epoch(judge.rows(batch), judge.rows(grammar.sample(20, seed=1)), seeded(0))
    assert (env.unwrapped.rules.scorer(batch).total != before).all()
    with pytest.raises(RewardError, match="was made for"):
        Scorer(judge, text_gym.make_task("oracle(vocab_size=9)"))


def test_mistakes_are_told(grammar):
    judge = small(grammar)
    with pytest.raises(OptionError, match="another kind or size"):
        judge.load_weights(small(grammar, kind="recurrent"))
    with pytest.raises(OptionError, match="from 'bleu'; give a Discriminator"):
        judge.load_weights("bleu")
    with pytest.raises(RewardError, match="was made for"):
        judge.load_weights(small(text_gym.make_task("oracle(vocab_size=209, max_length=21)")))
    with torch.no_grad():
        judge.network.output.weight.fill_(float("nan"))
    rows = judge.rows(grammar.sample(8, seed=0))
    with pytest.raises(TrainingError, match="diverged"):
        judge.train_epoch(rows, rows, seeded(0))
