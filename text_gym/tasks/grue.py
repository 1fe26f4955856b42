"""The tasks of the GRUE benchmark, read from the published files of the datasets, with the benchmark's rewards.

The files are converted to temporary .jsonl files, which are read like any other corpus, with the
options of `text_gym.corpus.corpus.CorpusOptions`. docs/grue.md lists the expected files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from text_gym.corpus.corpus import CorpusOptions
from text_gym.errors import DataError, OptionError
from text_gym.sequences import SPLITS
from text_gym.tasks import grue_files as published
from text_gym.tasks.files import file_task
from text_gym.tasks.task import Task
from text_gym.validation import suggest, whole_number

WORDS = r"</?\w+>|\w+(?:['\u2019-]\w+)*|[^\w\s]"
"""Default tokenizer, a regular expression: a token is a tag, a word or a punctuation mark."""
DEFAULTS: dict[str, object] = {"tokenizer": WORDS, "max_vocab": 20_000, "long_lines": "cut", "cut_prompts": "end"}
OWN_OPTIONS = ("limit", "lowercase")  # options of these tasks in addition to CorpusOptions


def imdb_task(folder: str, classifier: str | None = None, prompt_words: int = 64, **options: object) -> Task:
    """IMDB (needs folder=...): continue film reviews with positive sentiment, as scored by a classifier.

    Args:
        folder: The published folder, with train/pos, train/neg, test/pos and test/neg.
        classifier: Folder or name of the sentiment classifier of the default reward.
        prompt_words: Number of words at the beginning of a review that are the prompt; the rest is the reference.
        options: `limit` (maximum number of examples per split), `lowercase`, and the options of `CorpusOptions`.
            `valid` is a share of the training data.
    """
    splits = published.imdb(_checked(folder), whole_number("prompt_words", prompt_words, least=1))
    model = None if classifier is None else str(classifier)
    reward = f"classifier(model={model!r}, prompts=True)"  # model=None raises an error that says what to do
    return _task("imdb", splits, reward, {"max_length": 49, "valid": 0.1} | options)


def commongen_task(folder: str, **options: object) -> Task:
    """CommonGen (needs folder=...): write a sentence that contains all given concepts."""
    reward = {"meteor": 1.0, "repetition": 1.0}
    sizes = {"max_length": 21, "max_prompt_length": 20}
    return _task("commongen", published.commongen(_checked(folder)), reward, sizes | options)


def cnn_dailymail_task(folder: str, **options: object) -> Task:
    """CNN/DailyMail (needs folder=...): summarise news articles."""
    sizes = {"max_length": 101, "max_prompt_length": 512}
    return _task("cnn_dailymail", published.cnn_dailymail(_checked(folder)), "meteor", sizes | options)


def totto_task(folder: str, **options: object) -> Task:
    """ToTTo (needs folder=...): describe the highlighted cells of a table in a sentence."""
    sizes = {"max_length": 51, "max_prompt_length": 512}
    return _task("totto", published.totto(_checked(folder)), "meteor", sizes | options)


def iwslt_task(folder: str, source: str = "en", target: str = "de", **options: object) -> Task:
    """IWSLT (needs folder=...): translate the sentences of talks, by default from English to German."""
    sizes = {"max_length": 129, "max_prompt_length": 128}
    return _task("iwslt", published.iwslt(_checked(folder), source, target), "ter", sizes | options)


def narrativeqa_task(folder: str, **options: object) -> Task:
    """NarrativeQA (needs folder=...): answer questions about a story from its summary."""
    sizes = {"max_length": 51, "max_prompt_length": 512}
    return _task("narrativeqa", published.narrativeqa(_checked(folder)), "rouge", sizes | options)


def _checked(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(
            f"no folder {str(folder)!r} (the working directory is {Path.cwd()}); give the folder of the dataset's "
            "published files, which docs/grue.md lists"
        )
    return path


def _task(name: str, splits: published.Splits, reward: str | Mapping[str, float], options: dict[str, object]) -> Task:
    """Create a task from the records of a dataset, with the reward of the benchmark."""
    known = {*CorpusOptions.__dataclass_fields__, *OWN_OPTIONS} - {"encoding", "test"}
    known -= {"valid"} if "valid" in splits else set()
    for option in options:
        if option not in known:
            raise OptionError(f"task {name!r} has no option {option!r}." + suggest(option, known))
    options = DEFAULTS | options
    given = options.pop("limit", None)
    limit = None if given is None else whole_number("limit", given, least=2)
    lowercase = bool(options.pop("lowercase", False))
    with TemporaryDirectory(prefix="text_gym_") as place:
        files = {split: Path(place) / f"{name}_{split}.jsonl" for split in SPLITS if split in splits}
        for split, file in files.items():
            if not _write(file, islice(_usable(splits[split]()), limit), lowercase):
                raise DataError(
                    f"task {name!r}: the files of the {split!r} split have no prompt with a reference; "
                    "are they complete?"
                )
        others = {split: str(file) for split, file in files.items() if split != "train"}
        made = file_task(files["train"], **options | others)
    return Task(
        name, made.vocab, made.max_length, made.split, made.prompt_length, default_reward=reward, report=made.report
    )


def _usable(records: Iterable[published.Published]) -> Iterator[published.Published]:
    """Yield the records that have a prompt and at least one reference, without empty references."""
    for record in records:
        references = [text for text in record.references if text.strip()]
        if record.prompt.strip() and references:
            yield record._replace(references=references)


def _write(file: Path, records: Iterable[published.Published], lowercase: bool) -> int:
    """Write records as lines of JSON, and return their number."""
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for prompt, references, columns in records:
            texts = [prompt, *references]
            prompt, *references = map(str.lower, texts) if lowercase else texts
            out.write(json.dumps({"prompt": prompt, "references": references} | columns) + "\n")
            count += 1
    return count
