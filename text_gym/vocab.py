"""Vocabularies and tokenizers: encode texts to token ids, and decode ids to texts."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import Protocol, SupportsIndex, cast

import numpy as np
import numpy.typing as npt

from text_gym.errors import DataError, OptionError
from text_gym.extras import import_extra
from text_gym.validation import whole_number

EOS = "<eos>"
UNK = "<unk>"
HUGGING_FACE = "hf:"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken")


class Splitter:
    """Split texts into "word" tokens (at whitespace), "char" tokens, or the matches of a regular expression.

    >>> Splitter("word").split("a  b"), Splitter("char").split("ab")
    (['a', 'b'], ['a', 'b'])
    >>> Splitter(r"[a-z]+|[.,]").split("so, no.")
    ['so', ',', 'no', '.']
    """

    def __init__(self, pattern: str = "word", joiner: str | None = None) -> None:
        """Store the pattern, and the text that is put between tokens when they are joined."""
        if joiner is not None and not isinstance(joiner, str):
            raise OptionError(f"joiner must be a string, not {joiner!r}")
        self.pattern = pattern
        self.split: Callable[[str], list[str]]
        if pattern == "word":
            self.split = str.split
        elif pattern == "char":
            self.split = list
        else:
            self.split = self._compile(pattern)
        self.joiner = joiner if joiner is not None else ("" if pattern == "char" else " ")

    @staticmethod
    def _compile(pattern: str) -> Callable[[str], list[str]]:
        if pattern.isalpha():
            raise OptionError(
                f"unknown tokenizer {pattern!r}; give 'word', 'char', 'hf:' and the name of a Hugging Face model, a "
                "regular expression that matches a token, or an object with encode() and decode()"
            )
        try:
            compiled = re.compile(pattern)
        except re.error as problem:
            raise OptionError(f"tokenizer {pattern!r} is not a regular expression: {problem}") from problem
        if compiled.groups:
            raise OptionError(f"tokenizer {pattern!r} has capturing groups; write (?:...) instead of (...)")
        return compiled.findall

    def __reduce__(self) -> tuple[type[Splitter], tuple[str, str]]:
        return Splitter, (self.pattern, self.joiner)


def whole_characters(text: str) -> str:
    r"""Replace lone surrogates by U+FFFD, and join surrogate pairs to the character they encode.

    >>> whole_characters("cut \ud83d") == "cut \ufffd"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Vocabulary:
    """A fixed list of V tokens. The id of a token is its index; the id of PAD is V.

    >>> vocab = Vocabulary(("<eos>", "<unk>", "to", "be"), eos=0, unk=1)
    >>> vocab.encode("to be sure"), vocab.decode([2, 3, 0]), vocab.pad
    ([2, 3, 1], 'to be', 4)
    """

    def __init__(
        self,
        tokens: Sequence[str],
        eos: int | None = None,
        unk: int | None = None,
        splitter: Splitter | None = None,
    ) -> None:
        """Store the tokens in the order of their ids, and the ids of EOS and UNK."""
        self.tokens = tuple(tokens)
        self.eos = eos
        self.unk = unk
        self.splitter = splitter or Splitter()
        if not self.tokens:
            raise OptionError("the vocabulary is empty; give at least one token")
        if len(set(self.tokens)) != len(self.tokens):
            raise OptionError("the vocabulary has duplicate tokens; every token must be distinct")
        broken = next((token for token in self.tokens if whole_characters(token) is not token), None)
        if broken is not None:
            raise OptionError(
                f"the token {broken!r} has a lone surrogate, which cannot be encoded as UTF-8; "
                "replace it, for example by text_gym.vocab.whole_characters(token)"
            )
        for special in (eos, unk):
            if special is not None and not 0 <= special < len(self.tokens):
                raise OptionError(
                    f"the id {special} of EOS or UNK is not in the vocabulary; give an id in 0..{len(self.tokens) - 1}"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, eos={self.eos}, unk={self.unk})"

    @property
    def pad(self) -> int:
        """Id of PAD, which fills a row after its end; never an action."""
        return len(self)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids without EOS; unknown words become UNK, or raise DataError if there is no UNK."""
        return self.encode_tokens(self.splitter.split(text))

    def encode_tokens(self, tokens: Iterable[str]) -> list[int]:
        """Encode a list of tokens to ids; like encode(), but without tokenization."""
        tokens = list(tokens)
        get = self.ids.get
        unk = self.unk
        ids = [get(token, unk) for token in tokens]
        if self.eos is not None and self.eos in ids:
            raise DataError(
                f"the text contains {self.tokens[self.eos]!r}, which is reserved for the end of a sequence; remove it"
            )
        if None in ids:
            unknown = tokens[ids.index(None)]
            raise DataError(
                f"{unknown!r} is not in this vocabulary, which has no token for unknown words; use words of the task"
            )
        return ids  # type: ignore[return-value]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to a text, up to the first EOS and without PAD."""
        kept: list[int] = []
        for i in ids:
            if i == self.eos:
                break
            if i != self.pad:
                kept.append(int(i))
        return self._join(kept)

    def decode_rows(self, tokens: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[str]:
        """Decode each row of `tokens` [n, T] up to its end in `ends` [n]."""
        join = self.splitter.joiner.join
        rows = self._names[tokens].tolist()
        return [join(row[:end]) for row, end in zip(rows, ends.tolist(), strict=True)]

    def _join(self, ids: list[int]) -> str:
        return self.splitter.joiner.join([self.tokens[i] for i in ids])

    @cached_property
    def _names(self) -> npt.NDArray[np.object_]:
        return np.array([*self.tokens, ""], dtype=object)


class Tokenizer(Protocol):
    """A tokenizer with its own ids, such as a Hugging Face tokenizer."""

    @property
    def encode(self) -> Callable[..., Iterable[SupportsIndex]]:
        """Encode a text to ids."""

    def decode(self, ids: list[int], /) -> str:
        """Decode ids to a text."""


class TokenizerVocabulary(Vocabulary):
    """The vocabulary of an object with encode(text) and decode(ids), such as a Hugging Face tokenizer.

    The ids of the tokenizer are kept. If the tokenizer has no eos_token_id, an id for EOS is appended.
    The names of tokens are those of convert_ids_to_tokens(), or else the ids in brackets, such as <7>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap the tokenizer; its size is len(tokenizer) or tokenizer.vocab_size."""
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise OptionError(
                    f"the tokenizer {tokenizer!r} has no {method}() method; give one with encode and decode"
                )
        size = len(tokenizer) if isinstance(tokenizer, Sized) else getattr(tokenizer, "vocab_size", None)
        if not isinstance(size, int) or size < 1:
            raise OptionError(f"the tokenizer {tokenizer!r} has no size; define its len() or its vocab_size")
        self.tokenizer = tokenizer
        eos, unk = (getattr(tokenizer, name, None) for name in ("eos_token_id", "unk_token_id"))
        for special in (eos, unk):
            if special is not None:
                whole_number("eos_token_id or unk_token_id", special, least=0)
        names = _unique(_names(tokenizer, size) + ([EOS] if eos is None else []))
        super().__init__(names, eos=size if eos is None else int(eos), unk=unk)
        takes = _parameters(tokenizer.encode)
        self._encode_options = {"add_special_tokens": False} if "add_special_tokens" in takes else {}

    def encode(self, text: str) -> list[int]:
        """Encode a text by the tokenizer, without special tokens and without a final EOS."""
        try:
            ids = list(map(operator.index, self.tokenizer.encode(whole_characters(text), **self._encode_options)))
        except TypeError as problem:
            raise DataError(f"the tokenizer's encode() must return whole numbers: {problem}") from problem
        if ids and ids[-1] == self.eos:
            ids.pop()
        if self.eos in ids:
            raise DataError(f"{text[:60]!r} contains the tokenizer's EOS token; remove it from the text")
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            raise DataError(
                f"the tokenizer returned the ids {min(ids)}..{max(ids)}, but its size is {len(self)}; "
                "correct its len() or vocab_size"
            )
        return ids

    def decode_rows(self, tokens: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[str]:
        """Decode each row of `tokens` [n, T] up to its end in `ends` [n] by the tokenizer."""
        rows = zip(tokens.tolist(), ends.tolist(), strict=True)
        return [self._join(row[:end]) for row, end in rows]

    def _join(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode([i for i in ids if i != self.eos]))


def model_source(name: str, option: str) -> str:
    """Return what transformers loads a model from: a local folder, or a name on the Hugging Face Hub.

    A name on the Hub has at most one slash. A name with more slashes, or one that looks like a path in
    another way, must be an existing folder.

    Args:
        name: The name that the user gave.
        option: The option with this name, for the error message.

    Raises:
        OptionError: The name is a path, and the folder does not exist.

    >>> model_source("gpt2", "model='gpt2'"), model_source("google/flan-t5-small", "model='google/flan-t5-small'")
    ('gpt2', 'google/flan-t5-small')
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    looks_local = (
        folder.is_absolute()
        or name.startswith((".", "~"))
        or len(folder.parts) > 2
        or "\\" in name
        or name.endswith("/")
        or (len(folder.parts) == 2 and Path(folder.parts[0]).is_dir())
    )
    if looks_local:
        raise OptionError(
            f"{option}: there is no such folder (the working directory is {Path.cwd()}); is the path right?"
        )
    return name


def has_tokenizer(name: str) -> bool:
    """Return whether a folder has the files of a tokenizer; True for names that are not folders."""
    folder = Path(name).expanduser()
    return not folder.is_dir() or any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern))


def load_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer of a Hugging Face model, given by its name or folder."""
    transformers = import_extra("transformers", f"tokenizer='hf:{name}'", "hf")
    source = model_source(name, f"tokenizer='hf:{name}'")
    why = "the folder has no files of a tokenizer"
    if has_tokenizer(name):  # without files, transformers would create a default tokenizer
        try:
            return cast(Tokenizer, transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        except Exception as problem:  # tokenizers raise many types of exceptions
            why = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    raise OptionError(
        f"tokenizer='hf:{name}' cannot be loaded by transformers ({why}); give the folder of a model, or its name on "
        "the Hugging Face Hub"
    )


def _names(tokenizer: Tokenizer, size: int) -> list[str]:
    """Return the names of a tokenizer's tokens."""
    plain = [f"<{i}>" for i in range(size)]
    name_all = getattr(tokenizer, "convert_ids_to_tokens", None)
    if not callable(name_all):
        return plain
    try:
        names = list(name_all(list(range(size))))
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        return plain
    return [name if isinstance(name, str) else other for name, other in zip(names, plain, strict=True)]


def _unique(names: list[str]) -> list[str]:
    """Replace duplicate names by ids in brackets, in place."""
    taken = set(names)
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            name = f"<{i}>"
            while name in taken:
                name = f"<{name}>"
            taken.add(name)
            names[i] = name
        seen.add(name)
    return names


def _parameters(function: Callable[..., object]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()
