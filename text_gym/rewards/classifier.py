"""A sequence classifier as a reward: the probability of a label, of sentiment for example.

The classifier is a Hugging Face model, the extra `hf`, and is loaded when an environment is made.
Rewards with the same model on the same device share it.
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
LONGEST = 1_000_000  # tokenizers without a limit give a larger number


class ClassifierReward(Reward):
    """A text classifier's probability of a label, or its logit or log-odds."""

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
        """Choose the classifier, the label and the form of the score.

        Args:
            model: A local folder, or a name on the Hugging Face hub, of a model for sequence classification;
                None, as in a task that waits for one, is refused.
            label: The label's name or number. If not given, the one called "positive", else number 1 of
                two, else the only one.
            form: "probability"; "logit", the model's own number; or "log_odds", log p - log(1 - p).
            prompts: Whether the prompt is read too: True puts it before the text, "pair" gives
                both as the model's first and second text. Of what is too long, the prompt's beginning is
                left out, and the text's own only where no prompt is left.
            batch_size: Texts that the model reads at once.
            max_length: Tokens that it reads of a text at most; as many as the model can if not given.
            device: "cpu", "cuda", or "auto" for a GPU where there is one.
        """
        if model is None:
            raise RewardError(
                "the reward is a classifier, and none is named: give classifier(model='folder'), or for task 'imdb' "
                "name one by imdb(folder=..., classifier='folder'), or choose another reward; see docs/grue.md"
            )
        if form not in get_args(Form):
            raise OptionError(f"form={form!r} is unknown." + suggest(str(form), get_args(Form)))
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
        """Load the classifier once."""
        if self.prompts and not task.conditional:
            raise RewardError(f"classifier(prompts={self.prompts!r}) reads prompts, and task {task.name!r} has none")
        if self._reader is None:
            self._reader = _Reader.shared(self.model, self.device)
        self._number = self._reader.number_of(self.label)

    def score(self, batch: Batch) -> FloatArray:
        """Read each different text once."""
        if self._reader is None:
            raise RewardError("call prepare(task) before score(): 'classifier' is loaded then")
        rows = self._texts(batch)
        different = list(dict.fromkeys(rows))
        logits = self._reader.logits(different, self.batch_size, self.max_length, bool(self.prompts))
        scores = dict(zip(different, self._reader.formed(logits, self._number, self.form).tolist(), strict=True))
        return np.array([scores[row] for row in rows], dtype=np.float64)

    def _texts(self, batch: Batch) -> list[tuple[str, ...]]:
        """Collect the model's input for each row: a text, or two."""
        if self.prompts == "pair":
            return list(zip(batch.prompts, batch.texts, strict=True))
        if self.prompts and batch.examples is not None:
            rows = zip(batch.examples, batch.sentences, strict=True)
            return [(batch.vocab.decode([*example.prompt, *sentence]),) for example, sentence in rows]
        return [(text,) for text in batch.texts]


class _Reader:
    """A classifier with its tokenizer, on a device."""

    def __init__(self, name: str, device: str) -> None:
        """Load both, but no code that comes with them; refuse a model that was not trained to classify."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = model_source(name, f"classifier(model={name!r})")
        try:
            self.model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as problem:  # many kinds, from files that are missing to layouts that are unknown
            said = str(problem).strip().partition("\n")[0]
            raise OptionError(f"classifier(model={name!r}) cannot be loaded: {said}") from problem
        if loaded["missing_keys"]:
            lacking = sorted(loaded["missing_keys"])[0]
            raise OptionError(f"{name!r} holds no classifier: its weights lack {lacking!r}; train one, or name another")
        self._set_padding(name)
        self.places = self._places()
        self.side = self.tokenizer.truncation_side
        self.name = name
        self.device = _device(device)
        self.model.eval().to(self.device)

    @classmethod
    def shared(cls, name: str, device: str) -> _Reader:
        """Return the reader that is in use already, or a new one."""
        folder = Path(name).expanduser()
        files = sorted(folder.glob("*.*")) if folder.is_dir() else []
        stamps = [(file.name, file.stat().st_mtime_ns) for file in files]
        key = repr((str(folder.resolve()) if files else name, str(_device(device)), stamps))
        reader = _READERS.get(key)
        if reader is None:
            _READERS[key] = reader = cls(name, device)
        return reader

    def _set_padding(self, name: str) -> None:
        """Pad by EOS where there is no token for padding, as for decoders such as GPT-2."""
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise OptionError(f"the tokenizer of {name!r} has neither a pad_token nor an eos_token; give it one")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def number_of(self, label: str | int | None) -> int:
        """Find the index of a label among the model's outputs."""
        names = {int(number): str(name) for number, name in self.model.config.id2label.items()}
        lowered = {name.lower(): number for number, name in names.items()}
        if label is None:
            found = [lowered[name] for name in POSITIVE if name in lowered]
            if not found and len(names) > 2:
                raise OptionError(f"{self.name!r} has the labels {', '.join(names.values())}; say which by label=...")
            return found[0] if found else len(names) - 1
        if isinstance(label, str) and label.lower() in lowered:
            return lowered[label.lower()]
        if isinstance(label, int) and not isinstance(label, bool) and label in names:
            return label
        raise OptionError(f"{self.name!r} has no label {label!r}." + suggest(str(label), names.values()))

    def logits(self, rows: list[tuple[str, ...]], batch_size: int, max_length: int | None, prompts: bool) -> FloatArray:
        """Compute the logits of each row, [n, labels]; rows of similar length are read together."""
        import torch

        longest = self._longest(max_length)
        self.tokenizer.truncation_side = "left" if prompts else self.side  # the text stands behind its prompt
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
        """Remove the prompt of each pair whose second text leaves no room for one; also say which these are."""
        if not rows or len(rows[0]) == 1:
            return rows, [False] * len(rows)
        texts = [text for _, text in rows]
        lengths = map(len, self.tokenizer([""] * len(rows), texts, verbose=False)["input_ids"])
        crowded = [length >= longest for length in lengths]
        return [("", row[1]) if full else row for row, full in zip(rows, crowded, strict=True)], crowded

    def _encoded(self, rows: list[tuple[str, ...]], longest: int, cut: str) -> BatchEncoding:
        """Encode rows to ids and an attention mask, on the device."""
        if not self.tokenizer("")["input_ids"]:  # nothing at all is no input for a model
            names = ("bos_token", "eos_token", "unk_token", "pad_token")
            blank = next(filter(None, (getattr(self.tokenizer, name) for name in names)))
            rows = [row if any(map(str.strip, row)) else (blank, *row[1:]) for row in rows]
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoded: BatchEncoding = self.tokenizer(
            *columns, padding=True, truncation=cut, max_length=longest, return_tensors="pt"
        )
        return encoded.to(self.device)

    def _longest(self, asked: int | None) -> int:
        """Compute the maximal number of tokens that the model reads."""
        limits = [asked, self.tokenizer.model_max_length, self.places]
        return min([limit for limit in limits if limit is not None and limit < LONGEST], default=LONGEST)

    def _places(self) -> int | None:
        """Compute the number of position embeddings; RoBERTa and its kin count them from behind the padding's."""
        tables = [module for name, module in self.model.named_modules() if name.endswith("position_embeddings")]
        behind = [len(t.weight) - t.padding_idx - 1 for t in tables if getattr(t, "padding_idx", None) is not None]
        stated = getattr(self.model.config, "max_position_embeddings", None)
        return min([*behind, *([] if stated is None else [stated])], default=None)

    def formed(self, logits: FloatArray, number: int, form: Form) -> FloatArray:
        """Convert logits to the probability, logit or log-odds of a label, [n]."""
        logit = logits[:, number]
        if form == "logit":
            return logit
        several = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        if several or logits.shape[1] == 1:  # each label is a question of its own
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
        raise OptionError(f"device={name!r} is none: give 'auto', 'cpu' or 'cuda'") from problem
