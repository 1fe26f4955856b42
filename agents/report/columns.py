"""Metrics of a model: name, description, unit, range and direction. docs/glossary.md defines each metric in full."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Literal, NamedTuple


class Column(NamedTuple):
    """One metric."""

    key: str
    """Name in files."""
    title: str
    """Name in tables and sentences."""
    better: Literal["lower", "higher", "neither"]
    """Direction that is better."""
    about: str
    """Description: one sentence, which also opens the metric's entry in docs/glossary.md."""
    unit: str
    """Unit, for example "nats per token"."""
    range: str
    """Possible values, for example "0 to 1"."""
    headline: bool = False
    """Whether the metric is tested against the baseline and has verdicts."""
    form: str = ".3f"
    """Format of the values; "%" shows a share as a percentage."""
    same_as: str = ""
    """Key of a metric that differs only by a constant of the task. If a model has both, only that one is tested."""

    @property
    def facts(self) -> str:
        """Unit, range and direction as a sentence.

        >>> COLUMNS["js"].facts
        'Nats per sequence, 0 to 0.693; lower is better.'
        """
        direction = "" if self.better == "neither" else f"; {self.better} is better"
        return f"{self.unit[0].upper()}{self.unit[1:]}, {self.range}{direction}."

    @property
    def help(self) -> str:
        """Description with unit, range and direction."""
        same = f" Tested together with {COLUMNS[self.same_as].title} as one metric." if self.same_as else ""
        return f"{self.about} {self.facts}{same}"

    def show(self, value: float | None, signed: bool = False) -> str:
        """Format a value of this metric.

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


TOKENS_COUNTED = (
    "Metrics in nats per token count EOS and <unk> as tokens. BLEU, self-BLEU, distinct-n and length leave EOS out and "
    "count <unk> as a token."
)
PER_TOKEN, PER_SEQUENCE = "nats per token", "nats per sequence"
_ANY = "0 to infinity"
_LIKELIHOODS = [
    Column(
        "nll_oracle",
        "NLL-oracle",
        "lower",
        "Negative log-likelihood of the model's samples under the task's source (the oracle).",
        PER_TOKEN,
        _ANY,
        headline=True,
    ),
    Column(
        "nll_valid",
        "NLL-valid",
        "lower",
        "Negative log-likelihood of the validation split under the model, measured during training.",
        PER_TOKEN,
        _ANY,
    ),
    Column(
        "nll_test",
        "NLL-test",
        "lower",
        "Negative log-likelihood of the held-out test split under the model.",
        PER_TOKEN,
        _ANY,
        headline=True,
    ),
    Column(
        "entropy",
        "entropy",
        "neither",
        "Negative log-likelihood of the model's samples under the model itself; low entropy means low diversity.",
        PER_TOKEN,
        "0 to log(vocabulary size)",
    ),
    Column(
        "kl_model_data",
        "KL(model, data)",
        "lower",
        "Kullback-Leibler divergence of the model from the source; high if the model generates what the data lack.",
        PER_TOKEN,
        _ANY,
        headline=True,
    ),
    Column(
        "kl_data_model",
        "KL(data, model)",
        "lower",
        "Kullback-Leibler divergence of the source from the model; high if the model lacks part of the data.",
        PER_TOKEN,
        _ANY,
        headline=True,
        same_as="nll_test",
    ),
    Column(
        "kl_sum",
        "KL sum",
        "lower",
        "Sum of KL(model, data) and KL(data, model); high if either of them is high.",
        PER_TOKEN,
        _ANY,
        headline=True,
    ),
    Column(
        "js",
        "JS divergence",
        "lower",
        "Jensen-Shannon divergence between the model and the source; finite even if the supports differ.",
        PER_SEQUENCE,
        "0 to 0.693",
        headline=True,
    ),
]
_SUCCESS = [
    Column(
        "reward",
        "reward",
        "higher",
        "Mean reward of the model's samples under the environment's reward.",
        "units of the reward",
        "depends on the reward",
        headline=True,
    ),
    Column(
        "validity",
        "validity",
        "higher",
        "Share of the model's samples that belong to the task's language.",
        "share",
        "0 to 100 %",
        headline=True,
        form="%",
    ),
    Column(
        "coverage",
        "coverage",
        "higher",
        "Share of the grammar transitions in the test split that also occur in the model's samples.",
        "share",
        "0 to 100 %",
        headline=True,
        form="%",
    ),
    Column(
        "exact_match",
        "exact match",
        "higher",
        "Share of the model's answers that are equal to a reference of their prompt.",
        "share",
        "0 to 100 %",
        headline=True,
        form="%",
    ),
    Column(
        "rouge_l",
        "ROUGE-L",
        "higher",
        "Mean ROUGE-L F-measure of the model's answers against the best-matching reference of their prompt.",
        "score",
        "0 to 1",
        headline=True,
    ),
]
_BLEU = [
    Column(
        f"bleu{n}",
        f"BLEU-{n}",
        "higher",
        "Mean sentence BLEU of the model's samples against held-out sequences, or the references of their prompt.",
        "score",
        "0 to 1",
        headline=n == 4,
    )
    for n in (2, 3, 4, 5)
]
_DIVERSITY = [
    *[
        Column(
            f"self_bleu{n}",
            f"self-BLEU-{n}",
            "lower",
            "Mean sentence BLEU of each sample against the model's other samples; high values mean low diversity.",
            "score",
            "0 to 1",
            headline=n == 4,
        )
        for n in (2, 3, 4, 5)
    ],
    *[
        Column(
            f"distinct{n}",
            f"distinct-{n}",
            "higher",
            "Share of distinct n-grams among all n-grams of the model's samples.",
            "share",
            "0 to 100 %",
            form="%",
        )
        for n in (1, 2, 3, 4)
    ],
    Column(
        "duplicates",
        "duplicates",
        "lower",
        "Share of the model's samples that repeat an earlier sample.",
        "share",
        "0 to 100 %",
        form="%",
    ),
    Column(
        "copies",
        "copies",
        "neither",
        "Share of the model's samples that are also training sequences.",
        "share",
        "0 to 100 %",
        form="%",
    ),
    Column(
        "length",
        "length",
        "neither",
        "Mean length of the model's samples without EOS.",
        "tokens",
        "0 to the task's maximal length",
        form=".1f",
    ),
]
_COST = [
    Column(
        "seconds",
        "training time",
        "neither",
        "Wall-clock training time, without the training of the warm start.",
        "seconds",
        "0 to infinity",
        form=".0f",
    ),
    Column(
        "sequences",
        "sampled sequences",
        "neither",
        "Number of sequences sampled during training, rollout completions included.",
        "sequences",
        "0 to infinity",
        form=",.0f",
    ),
]

COLUMNS: dict[str, Column] = {column.key: column for column in (*_LIKELIHOODS, *_SUCCESS, *_BLEU, *_DIVERSITY, *_COST)}
"""All named metrics, in the order of tables."""

ALSO = "also:"  # prefix of the keys of rewards that --also adds


def column_of(key: str) -> Column:
    """Look up the column of a key; a reward added by --also has the key `also:name`.

    >>> column_of("also:validity").title
    'reward validity'
    """
    if key in COLUMNS:
        return COLUMNS[key]
    name = key.removeprefix(ALSO)
    about = f"Mean of the reward {name} over the model's samples."
    unit, limits = COLUMNS["reward"].unit, COLUMNS["reward"].range
    return Column(key, f"reward {name}", "neither", about, unit, limits, headline=True)


def in_order(keys: Set[str]) -> list[Column]:
    """List the columns of these keys in the order of tables; rewards added by --also come last."""
    return [COLUMNS[key] for key in COLUMNS if key in keys] + [column_of(key) for key in sorted(keys - COLUMNS.keys())]
