"""The tasks of GRUE, made of the data sets' published files, each with the benchmark's reward.

The files are turned into JSON lines, one record at a time, and read as any corpus is; options of
`text_gym.corpus.corpus.CorpusOptions` say how. What is expected where stands in docs/grue.md.
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
"""The default tokenizer: a tag, a word, or a punctuation mark is a token."""
DEFAULTS: dict[str, object] = {"tokenizer": WORDS, "max_vocab": 20_000, "long_lines": "cut", "cut_prompts": "end"}
OWN = ("limit", "lowercase")  # options of these tasks beside those of corpora


def imdb_task(folder: str, classifier: str | None = None, prompt_words: int = 64, **options: object) -> Task:
    """Film reviews to be continued so that a classifier finds them positive (IMDB's files in a folder).

    Args:
        folder: Has train/pos, train/neg, test/pos and test/neg.
        classifier: The folder or name of the classifier of sentiment that the default reward asks.
        prompt_words: Words of a review that are the prompt; the rest is the reference.
        options: `limit`, `lowercase`, and `CorpusOptions`; `valid` is a share of train.
    """
    splits = published.imdb(_checked(folder), whole_number("prompt_words", prompt_words, least=1))
    model = None if classifier is None else str(classifier)
    reward = f"classifier(model={model!r}, prompts=True)"  # says what to do where there is none
    return _task("imdb", splits, reward, {"max_length": 49, "valid": 0.1} | options)


def commongen_task(folder: str, **options: object) -> Task:
    """Sentences with all of a few given concepts (CommonGen's files in a folder)."""
    reward = {"meteor": 1.0, "repetition": 1.0}
    sizes = {"max_length": 21, "max_prompt_length": 20}
    return _task("commongen", published.commongen(_checked(folder)), reward, sizes | options)


def cnn_dailymail_task(folder: str, **options: object) -> Task:
    """News articles to be summarised (CNN/DailyMail's files in a folder)."""
    sizes = {"max_length": 101, "max_prompt_length": 512}
    return _task("cnn_dailymail", published.cnn_dailymail(_checked(folder)), "meteor", sizes | options)


def totto_task(folder: str, **options: object) -> Task:
    """Table cells to be described in a sentence (ToTTo's files in a folder)."""
    sizes = {"max_length": 51, "max_prompt_length": 512}
    return _task("totto", published.totto(_checked(folder)), "meteor", sizes | options)


def iwslt_task(folder: str, source: str = "en", target: str = "de", **options: object) -> Task:
    """Talks to be translated (IWSLT's files in a folder; source and target are languages)."""
    sizes = {"max_length": 129, "max_prompt_length": 128}
    return _task("iwslt", published.iwslt(_checked(folder), source, target), "ter", sizes | options)


def narrativeqa_task(folder: str, **options: object) -> Task:
    """Questions to be answered from a story's summary (NarrativeQA's files in a folder)."""
    sizes = {"max_length": 51, "max_prompt_length": 512}
    return _task("narrativeqa", published.narrativeqa(_checked(folder)), "rouge", sizes | options)


def _checked(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"there is no folder {str(folder)!r} (seen from {Path.cwd()}); docs/grue.md says what it holds")
    return path


def _task(name: str, splits: published.Splits, reward: str | Mapping[str, float], options: dict[str, object]) -> Task:
    """Make a task of a data set's records, with the benchmark's reward."""
    known = {*CorpusOptions.__dataclass_fields__, *OWN} - {"encoding", "test"}
    known -= {"valid"} if "valid" in splits else set()
    for option in options:
        if option not in known:
            raise OptionError(f"task {name!r} has no option {option!r}." + suggest(option, known))
    options = DEFAULTS | options
    asked = options.pop("limit", None)
    limit = None if asked is None else whole_number("limit", asked, least=2)
    lowercase = bool(options.pop("lowercase", False))
    with TemporaryDirectory(prefix="text_gym_") as place:
        files = {split: Path(place) / f"{name}_{split}.jsonl" for split in SPLITS if split in splits}
        for split, file in files.items():
            if not _write(file, islice(_usable(splits[split]()), limit), lowercase):
                raise DataError(f"task {name!r}: the files of its {split!r} split hold no prompt with a reference")
        others = {split: str(file) for split, file in files.items() if split != "train"}
        made = file_task(files["train"], **options | others)
    return Task(
        name, made.vocab, made.max_length, made.split, made.prompt_length, default_reward=reward, report=made.report
    )


def _usable(records: Iterable[published.Published]) -> Iterator[published.Published]:
    """Keep records with a prompt and at least one reference."""
    for record in records:
        references = [text for text in record.references if text.strip()]
        if record.prompt.strip() and references:
            yield record._replace(references=references)


def _write(file: Path, records: Iterable[published.Published], lowercase: bool) -> int:
    """Write records as lines of JSON; return how many."""
    written = 0
    with file.open("w", encoding="utf-8") as out:
        for prompt, references, columns in records:
            texts = [prompt, *references]
            prompt, *references = map(str.lower, texts) if lowercase else texts
            out.write(json.dumps({"prompt": prompt, "references": references} | columns) + "\n")
            written += 1
    return written
