"""What is to be run and measured: settings of the metrics, of one run, and of a comparison. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path

from agents.report.run_files import FORMAT, RUN, Json, read_spec
from text_gym.corpus.readers import SUFFIXES
from text_gym.errors import DataError, OptionError
from text_gym.registry import parse_call
from text_gym.validation import LARGEST_SIZE, finite_number, whole_number
from text_gym.vocab import HUGGING_FACE

MOST_THREADS = 1024
INPUTS = "inputs"  # in run.json: digests of the files that a run was made from
LABEL = re.compile(r"[\w+-][\w.+-]*")
CODE = re.compile(r"\s*(?:[^()]*\.py|[\w.]+):[\w.]+\s*(?:\(|$)", re.DOTALL)


@dataclass(frozen=True)
class MetricSettings:
    """What is measured of each model, and on how much."""

    samples: int = 4_000
    """Sequences that likelihoods and shares are measured on."""
    references: int = 1_000
    """Held-out sequences that BLEU compares with, and sequences of the model in BLEU, self-BLEU and the shares of
    duplicates; fewer where the test split is smaller."""
    temperatures: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4)
    """Those of the sweep; none for no sweep."""
    sweep_samples: int = 2_000
    """Sequences that the sweep is measured on, and real ones."""
    also: tuple[str, ...] = ()
    """Rewards whose means are reported beside the rest: names, or module:attribute."""
    shown: int = 6
    """Samples of each model in the report."""
    credit_rollouts: int = 16
    """Completions of each of their prefixes, from which each token's credit is."""
    points: int = 20
    """Evaluations while a model learns, for its learning curve."""
    curve_samples: int = 1_000
    """Sequences drawn for each of them."""

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("samples", "references", "sweep_samples", "curve_samples"):
            whole_number(name, getattr(self, name), 2, LARGEST_SIZE)
        for name in ("shown", "credit_rollouts", "points"):
            whole_number(name, getattr(self, name), 0, LARGEST_SIZE)
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        object.__setattr__(self, "also", tuple(self.also))
        for temperature in self.temperatures:
            if finite_number("temperatures", temperature) < 1e-3:
                raise OptionError(f"temperatures={self.temperatures} must be at least 0.001")


@dataclass(frozen=True)
class RunSpec:
    """What is to be run: one agent with one seed."""

    label: str
    """Name of the model in reports."""
    agent: str
    """A name, or module:attribute."""
    seed: int = 0
    """Seed of everything random."""
    task: str = "grammar"
    """A name, name(option=value), or the path of a corpus."""
    reward: str | None = None
    """Reward of the environment; None for the task's own."""
    preset: str | None = None
    """Preset of hyper-parameters, for agents that have one of this name."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Single hyper-parameters."""
    start: str | None = None
    """Label of the model, of the same seed, whose policy this one starts from."""
    start_folder: str | None = None
    """Folder of the run that it starts from, if that is none of the same comparison."""
    begins_with: str = ""
    """What its policy begins with, in words: a label, a folder, "random weights"."""
    steps: int | None = None
    """Steps that it learns; None for as many as its settings say."""
    device: str = "auto"
    """See `Agent`."""
    threads: int = 1
    """Threads of torch. Results depend on it in the last digits, and so it is not left to the machine."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """What is measured when it has learned."""
    report_reward: bool = False
    """Whether the environment's reward is measured too."""
    kind: str = "agent"
    """Also "control" and "reference"."""
    order: int = 0
    """Place in reports."""
    baseline: str | None = None
    """Label of the model that others are compared with."""
    controls_for: tuple[str, ...] = ()
    """Labels of the models that a control puts to the test."""
    trivial: bool = False
    """Whether being better than this control shows nothing."""
    words: str = ""
    """What a sentence calls it."""
    command: str = ""
    """The command that was typed."""

    def __post_init__(self) -> None:
        """Refuse a task that cannot be written down."""
        if not isinstance(self.task, str):
            raise OptionError(
                f"a run names its task, for other processes to make it: give its name or its path as a string, and "
                f"not a {type(self.task).__name__}. Texts from Python are such a task once they are written to a file "
                'that ends in .jsonl: {"text": ...} or {"prompt": ..., "references": [...]} in each line'
            )

    def as_json(self) -> Json:
        """Return the content of run.json, with digests of the files that it names."""
        content: Json = json.loads(json.dumps({"format": FORMAT, **asdict(self), INPUTS: self.inputs()}))
        return content

    def inputs(self) -> dict[str, str]:
        """Digest the content of each file that the task, the agent and the rewards are read from."""
        named = [self.task, self.agent, self.reward, self.options.get("reward"), *self.metrics.also]
        paths = {path for name in named if name is not None for path in _files_in(str(name))}
        return {path: blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() for path in sorted(paths)}

    def code(self) -> list[str]:
        """List the code that it names, as "module:attribute" or "file.py:attribute", at whatever depth.

        An agent, a task and a reward may be code; so may what their options name, in lists, in dicts and in brackets
        within brackets. Everything else is data: numbers, texts, paths, and names of models, whose code is never run.
        """
        named = [self.agent, self.task, self.reward, self.options, self.metrics.also]
        return [text for text in _texts_in(named) if CODE.match(text) and not text.startswith(HUGGING_FACE)]

    @classmethod
    def read(cls, folder: Path) -> RunSpec:
        """Read the run.json of a folder."""
        content = read_spec(folder)
        known = {field.name for field in fields(cls)}
        if content["agent"] is None:
            raise DataError(f"{folder / RUN} is damaged: it names no agent")
        try:
            whole_number("threads", content.get("threads", 1), 1, MOST_THREADS)
            metrics = MetricSettings(**_tupled(content.pop("metrics", {})))
            return cls(**_tupled({k: v for k, v in content.items() if k in known}), metrics=metrics)
        except (TypeError, ValueError) as problem:
            raise DataError(f"{folder / RUN} is damaged: {problem}") from problem


def _tupled(content: Json) -> Json:
    """Replace the lists that JSON was read as by tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value: in lists and dicts, their keys among them, and in options in brackets."""
    left = [value]
    for value in left:  # which grows meanwhile
        if isinstance(value, str):
            yield value
            try:
                left.append(parse_call(value)[1])
            except OptionError:
                continue  # it stands for nothing, since it cannot be read
        elif isinstance(value, Mapping):
            left += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value


def _files_in(name: str) -> list[str]:
    """List the files that a name stands for, as captions.txt(valid='more.txt') or mine.py:Mine does."""
    plain, options = (name, {}) if name.endswith(SUFFIXES) else parse_call(name)
    texts = [plain, plain.rpartition(":")[0], *(str(value) for value in options.values())]
    return [text for text in texts if text and Path(text).is_file()]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    agents: tuple[str, ...] = ("mle", "ss", "pg-bleu", "seqgan")
    """Names, name(option=value), or module:attribute; with label= before it to call it otherwise."""
    task: str = "grammar"
    """A name, name(option=value), or the path of a corpus."""
    seeds: int = 3
    """How many: each model is trained with seeds 0, 1, ..."""
    out: Path = Path("runs/compare")
    """The folder of the comparison. The same command goes on where it stopped."""
    preset: str | None = None
    """A set of hyper-parameters for all agents that have it: "paper", "fast", "demo"."""
    reward: str | None = None
    """The environment's reward; the task's own if not given."""
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Single hyper-parameters by label."""
    controls: bool = True
    """Whether to run the controls: a constant and a random reward under each agent's update rule, likelihood
    stopped early, uniform tokens, and real data."""
    baseline: str | None = None
    """The label that others are measured against; the start, if not given."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """What is measured of each model, and on how much."""
    jobs: int | None = None
    """Runs at a time; as many as there are cores for if not given."""
    threads: int = 1
    """Torch threads of each run. Other threads give other last digits; other jobs give the same numbers."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" for a GPU where there is one."""
    ray: str | None = None
    """The address of a Ray cluster that executes the runs; "local" starts one here."""

    def __post_init__(self) -> None:
        """Check every number, and that there is an agent."""
        whole_number("seeds", self.seeds, least=1)
        whole_number("threads", self.threads, least=1)
        if self.jobs is not None:
            whole_number("jobs", self.jobs, least=1)
        if not self.agents:
            raise OptionError("name the agents to compare, for example: mle seqgan")


def split_label(named: str) -> tuple[str, str]:
    """Split "label=agent" into the label and the agent; without a label it is the agent's own name.

    >>> split_label("strong=mle(preset='strong')"), split_label("mine.py:Plain(hidden=32)"), split_label("seqgan")
    (('strong', "mle(preset='strong')"), ('Plain', 'mine.py:Plain(hidden=32)'), ('seqgan', 'seqgan'))
    """
    label, equals, agent = named.partition("=")
    if not (equals and LABEL.fullmatch(label)):
        agent = named
        label = parse_call(agent)[0].rpartition(":")[2]
    if not LABEL.fullmatch(label):
        raise OptionError(
            f"{label!r} is no name for a folder; write label=agent, with letters, digits and _ . + - in the label"
        )
    return label, agent
