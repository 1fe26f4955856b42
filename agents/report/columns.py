"""What is reported of a model: each figure's name, what it means, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Literal, NamedTuple


class Column(NamedTuple):
    """One figure of a model."""

    key: str
    """Name in files."""
    title: str
    """Name in tables."""
    better: Literal["lower", "higher", "neither"]
    """Direction that is better."""
    about: str
    """Description, in a sentence."""
    headline: bool = False
    """Whether claims are made about it."""
    form: str = ".3f"
    """Format of its values; "%" for shares."""
    same_as: str = ""
    """Key of the figure that it equals but for a constant of the task: where both are there, one is tested."""

    def show(self, value: float | None, signed: bool = False) -> str:
        """Write a value of this column.

        >>> COLUMNS["nll_oracle"].show(8.7364), COLUMNS["validity"].show(0.8333), COLUMNS["validity"].show(-0.02, True)
        ('8.736', '83.3 %', '-2.0 %')
        >>> COLUMNS["kl_sum"].show(float("inf")), COLUMNS["js"].show(None)
        ('inf', '')
        """
        if value is None or math.isnan(value):
            return ""
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f} %" if self.form == "%" else f"{value:{sign}{self.form}}"


def _lower(key: str, title: str, about: str, headline: bool = False, form: str = ".3f") -> Column:
    return Column(key, title, "lower", about, headline, form)


def _higher(key: str, title: str, about: str, headline: bool = False, form: str = ".3f") -> Column:
    return Column(key, title, "higher", about, headline, form)


def _neither(key: str, title: str, about: str, form: str = ".3f") -> Column:
    return Column(key, title, "neither", about, False, form)


_PER_TOKEN = "in nats per token; EOS and <unk> count as tokens"
_LIKELIHOODS = [
    _lower(
        "nll_oracle",
        "NLL-oracle",
        f"negative log-likelihood of the model's sequences under the source, {_PER_TOKEN}; falls as a model says less",
        True,
    ),
    _lower(
        "nll_test", "NLL-test", f"negative log-likelihood of held-out sequences under the model, {_PER_TOKEN}", True
    ),
    _neither("entropy", "entropy", f"negative log-likelihood of the model's sequences under itself, {_PER_TOKEN}"),
    _lower(
        "kl_model_data",
        "KL(model, data)",
        "NLL-oracle less entropy, in nats per token: what the model generates and the data do not have",
        True,
    ),
    _lower(
        "kl_data_model",
        "KL(data, model)",
        "NLL-test less the data's entropy, in nats per token: what the model leaves out. The data's entropy is the "
        "same for all models, so this is tested and counted as one figure with NLL-test",
        True,
    )._replace(same_as="nll_test"),
    _lower("kl_sum", "KL sum", "KL(model, data) and KL(data, model) added up, in nats per token", True),
    _lower("js", "JS", "Jensen-Shannon divergence, in nats per sequence: 0 to 0.693", True),
]
_SUCCESS = [
    _higher("reward", "reward", "the mean reward of the task's environment", True),
    _higher("validity", "valid", "sequences that belong to the language", True, "%"),
    _higher(
        "coverage", "coverage", "steps of real sequences through the language that occur in written ones", True, "%"
    ),
    _higher("exact_match", "exact", "answers that equal a reference", True, "%"),
    _higher("rouge_l", "ROUGE-L", "mean ROUGE-L against the prompt's own references", True),
]
_WORDS = "EOS is left out, <unk> counts as a word"
_BLEU = [
    _higher(
        f"bleu{n}",
        f"BLEU-{n}",
        f"mean BLEU-{n}, 0 to 1, against held-out sequences, or the prompt's own references; {_WORDS}",
        n == 4,
    )
    for n in (2, 3, 4, 5)
]
_VARIETY = [
    *[
        _lower(
            f"self_bleu{n}", f"self-BLEU-{n}", f"mean BLEU-{n} against the model's other sequences; {_WORDS}", n == 4
        )
        for n in (2, 3, 4, 5)
    ],
    *[
        _higher(
            f"distinct{n}",
            f"distinct-{n}",
            f"distinct {n}-grams among all {n}-grams of the model's sequences; {_WORDS}",
            form="%",
        )
        for n in (1, 2, 3, 4)
    ],
    _lower("duplicates", "duplicates", "sequences written before among the same", form="%"),
    _neither("copies", "copies", "sequences that stand in the training data", "%"),
    _neither("length", "length", "mean number of tokens, EOS not counted, <unk> counted", ".1f"),
]
_COST = [
    _neither("seconds", "seconds", "wall-clock time of learning, without that of the common start", ".0f"),
    _neither("sequences", "drawn", "sequences drawn in learning, completions included", ",.0f"),
]

COLUMNS: dict[str, Column] = {column.key: column for column in (*_LIKELIHOODS, *_SUCCESS, *_BLEU, *_VARIETY, *_COST)}
"""Every figure that has a name of its own, in the order of tables."""

ALSO = "also:"  # before the name of a reward that the user has asked to see


def column_of(key: str) -> Column:
    """Look up the column of a key; rewards that were asked for beside the named columns have keys `also:name`.

    >>> column_of("also:validity").title
    'reward validity'
    """
    if key in COLUMNS:
        return COLUMNS[key]
    name = key.removeprefix(ALSO)
    return Column(key, f"reward {name}", "neither", f"the mean of the reward {name}", True)


def in_order(keys: Set[str]) -> list[Column]:
    """List the columns of these keys, in the order of tables, the asked-for ones last."""
    return [COLUMNS[key] for key in COLUMNS if key in keys] + [column_of(key) for key in sorted(keys - COLUMNS.keys())]
