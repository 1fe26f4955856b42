"""A Hugging Face sequence classifier as a reward: the probability of a label, for example positive sentiment.

Needs the extra `hf`. The model is loaded when an environment is created. Rewards with the same
model on the same device share one copy.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, RewardError
from text_gym.extras import import_extra
from text_gym.rewards.reward import Reward
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import suggest, whole_number
from text_gym.vocab import model_source

if TYPE_CHECKING:
    import torch
    from transformers import BatchEncoding

Form = Literal["probability", "logit", "log_odds"]
POSITIVE = ("positive", "pos")
LONGEST = 1_000_000  # tokenizers without a maximum length report a larger number


class ClassifierReward(Reward):
    """Probability (or logit, or log-odds) of a label by a Hugging Face text classifier."""

    name = "classifier"

    def __init__(
        self,
        model: str | Path | None,
        label: str | int | None = None,
        form: Form = "probability",
        prompts: bool | Literal["pair"] = False,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str = "auto",
    ) -> None:
        """Store the options; the model is loaded by prepare().

        Args:
            model: A local folder, or a name on the Hugging Face Hub, of a model for sequence classification.
                None, the default of task "imdb" without a classifier, raises RewardError.
            label: Name or index of the label. By default the label named "positive" or "pos", else the
                last label of a model with one or two labels.
            form: The score: "probability" p, "logit" (the output of the model) or "log_odds",
                log p - log(1 - p).
            prompts: Whether the input contains the prompt: False, True (the prompt before the text) or
                "pair" (prompt and text as a pair of segments). An input that is too long is truncated
                at the beginning of the prompt first.
            batch_size: Number of texts per forward pass.
            max_length: Maximum number of tokens of an input; None takes the maximum of the model.
            device: "cpu", "cuda" or "auto" (a GPU if available, else the CPU).
        """
        if model is None:
            raise RewardError(
                "reward 'classifier' needs a model: give classifier(model='folder'), or imdb(folder=..., "
                "classifier='folder') for task 'imdb', or choose another reward; see docs/grue.md"
            )
        if form not in get_args(Form):
            raise OptionError(f"unknown form={form!r}." + suggest(str(form), get_args(Form)))
        if not (isinstance(prompts, bool) or prompts == "pair"):
            raise OptionError(f"prompts must be False, True or 'pair', not {prompts!r}")
        import_extra("transformers", "reward 'classifier'", "hf")
        self.model = str(model)
        self.label = label
        self.form = form
        self.prompts = prompts
        self.device = device
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.max_length = None if max_length is None else whole_number("max_length", max_length, least=1)
        self._reader: _Reader | None = None

    def prepare(self, task: Task) -> None:
        """Load the classifier if it is not loaded yet; RewardError if it needs prompts that the task does not have."""
        if self.prompts and not task.conditional:
            raise RewardError(
                f"classifier(prompts={self.prompts!r}) needs prompts, and task {task.name!r} has none; "
                "leave prompts out"
            )
        if self._reader is None:
            self._reader = _Reader.shared(self.model, self.device)
        self._number = self._reader.number_of(self.label)

    def score(self, batch: Batch) -> FloatArray:
        """Classify each row; equal rows are classified once."""
        if self._reader is None:
            raise RewardError("reward 'classifier' is not loaded; call prepare(task) before score()")
        rows = self._texts(batch)
        different = list(dict.fromkeys(rows))
        logits = self._reader.logits(different, self.batch_size, self.max_length, bool(self.prompts))
        scores = dict(zip(different, self._reader.formed(logits, self._number, self.form).tolist(), strict=True))
        return np.array([scores[row] for row in rows], dtype=np.float64)

    def _texts(self, batch: Batch) -> list[tuple[str, ...]]:
        """Return the model's input for each row: one text, or a pair of texts."""
        if self.prompts == "pair":
            return list(zip(batch.prompts, batch.texts, strict=True))
        if self.prompts and batch.examples is not None:
            rows = zip(batch.examples, batch.sentences, strict=True)
            return [(batch.vocab.decode([*example.prompt, *sentence]),) for example, sentence in rows]
        return [(text,) for text in batch.texts]


class _Reader:
    """A classifier and its tokenizer on a device."""

    def __init__(self, name: str, device: str) -> None:
        """Load the model and the tokenizer, never remote code; OptionError if the model has no classification head."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = model_source(name, f"classifier(model={name!r})")
        try:
            self.model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as problem:  # transformers raises many types: missing files, unknown architectures, ...
            reason = str(problem).strip().partition("\n")[0]
            raise OptionError(f"classifier(model={name!r}) cannot be loaded: {reason}") from problem
        if loaded["missing_keys"]:
            lacking = sorted(loaded["missing_keys"])[0]
            raise OptionError(
                f"{name!r} is not a classifier: its weights lack {lacking!r}; give a model that was fine-tuned for "
                "sequence classification"
            )
        self._set_padding(name)
        self.places = self._places()
        self.side = self.tokenizer.truncation_side
        self.name = name
        self.device = _device(device)
        self.model.eval().to(self.device)

    @classmethod
    def shared(cls, name: str, device: str) -> _Reader:
        """Return the loaded reader of this model and device, or load it."""
        folder = Path(name).expanduser()
        files = sorted(folder.glob("*.*")) if folder.is_dir() else []
        stamps = [(file.name, file.stat().st_mtime_ns) for file in files]
        key = repr((str(folder.resolve()) if files else name, str(_device(device)), stamps))
        reader = _READERS.get(key)
        if reader is None:
            _READERS[key] = reader = cls(name, device)
        return reader

    def _set_padding(self, name: str) -> None:
        """Use EOS as the padding token if the tokenizer has none, as in GPT-2."""
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise OptionError(
                    f"the tokenizer of {name!r} has neither a pad_token nor an eos_token; set its pad_token"
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def number_of(self, label: str | int | None) -> int:
        """Return the index of a label in the model's outputs; None chooses the default label."""
        names = {int(number): str(name) for number, name in self.model.config.id2label.items()}
        lowered = {name.lower(): number for number, name in names.items()}
        if label is None:
            found = [lowered[name] for name in POSITIVE if name in lowered]
            if not found and len(names) > 2:
                raise OptionError(f"{self.name!r} has the labels {', '.join(names.values())}; choose one by label=...")
            return found[0] if found else len(names) - 1
        if isinstance(label, str) and label.lower() in lowered:
            return lowered[label.lower()]
        if isinstance(label, int) and not isinstance(label, bool) and label in names:
            return label
        raise OptionError(f"{self.name!r} has no label {label!r}." + suggest(str(label), names.values()))

    def logits(self, rows: list[tuple[str, ...]], batch_size: int, max_length: int | None, prompts: bool) -> FloatArray:
        """Compute the logits of each row, [n, labels]; rows of similar length are batched together."""
        import torch

        longest = self._longest(max_length)
        self.tokenizer.truncation_side = "left" if prompts else self.side  # truncate the prompt before the text
        answers = np.zeros((len(rows), self.model.config.num_labels))
        rows, crowded = self._without_crowded_prompts(rows, longest)
        order = sorted(range(len(rows)), key=lambda i: (crowded[i], sum(map(len, rows[i]))))
        split = len(rows) - sum(crowded)
        for part, cut in ((order[:split], "only_first"), (order[split:], "longest_first")):
            for start in range(0, len(part), batch_size):
                chosen = part[start : start + batch_size]
                inputs = self._encoded([rows[i] for i in chosen], longest, cut)
                with torch.inference_mode():
                    answers[chosen] = self.model(**inputs).logits.double().cpu().numpy()
        return answers

    def _without_crowded_prompts(
        self, rows: list[tuple[str, ...]], longest: int
    ) -> tuple[list[tuple[str, ...]], list[bool]]:
        """Remove the prompt of each pair whose text alone fills the model's input.

        Returns:
            The rows, and for each row whether its prompt was removed.
        """
        if not rows or len(rows[0]) == 1:
            return rows, [False] * len(rows)
        texts = [text for _, text in rows]
        lengths = map(len, self.tokenizer([""] * len(rows), texts, verbose=False)["input_ids"])
        crowded = [length >= longest for length in lengths]
        return [("", row[1]) if full else row for row, full in zip(rows, crowded, strict=True)], crowded

    def _encoded(self, rows: list[tuple[str, ...]], longest: int, cut: str) -> BatchEncoding:
        """Encode rows as input ids and an attention mask, on the device."""
        if not self.tokenizer("")["input_ids"]:  # the model needs at least one token
            names = ("bos_token", "eos_token", "unk_token", "pad_token")
            blank = next(filter(None, (getattr(self.tokenizer, name) for name in names)))
            rows = [row if any(map(str.strip, row)) else (blank, *row[1:]) for row in rows]
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoded: BatchEncoding = self.tokenizer(
            *columns, padding=True, truncation=cut, max_length=longest, return_tensors="pt"
        )
        return encoded.to(self.device)

    def _longest(self, asked: int | None) -> int:
        """Return the maximum number of input tokens: the minimum of all limits."""
        limits = [asked, self.tokenizer.model_max_length, self.places]
        return min([limit for limit in limits if limit is not None and limit < LONGEST], default=LONGEST)

    def _places(self) -> int | None:
        """Return the number of usable position embeddings; in models like RoBERTa they start at padding_idx + 1."""
        tables = [module for name, module in self.model.named_modules() if name.endswith("position_embeddings")]
        behind = [len(t.weight) - t.padding_idx - 1 for t in tables if getattr(t, "padding_idx", None) is not None]
        stated = getattr(self.model.config, "max_position_embeddings", None)
        return min([*behind, *([] if stated is None else [stated])], default=None)

    def formed(self, logits: FloatArray, number: int, form: Form) -> FloatArray:
        """Convert logits [n, labels] to the probability, logit or log-odds of a label, [n]."""
        logit = logits[:, number]
        if form == "logit":
            return logit
        several = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        if several or logits.shape[1] == 1:  # sigmoid: labels are independent
            odds = logit
        else:
            odds = logit - np.logaddexp.reduce(np.delete(logits, number, axis=1), axis=1)
        if form == "log_odds":
            return odds
        return np.exp(-np.logaddexp(0, -odds))


_READERS: weakref.WeakValueDictionary[str, _Reader] = weakref.WeakValueDictionary()


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except (RuntimeError, TypeError) as problem:
        raise OptionError(f"unknown device={name!r}; give 'auto', 'cpu' or 'cuda'") from problem
