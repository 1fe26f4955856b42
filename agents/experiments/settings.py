"""Settings of the metrics, of a run, and of a comparison. Does not import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from agents.report.run_files import FORMAT, RUN, Json, read_spec
from text_gym.corpus.readers import SUFFIXES
from text_gym.errors import DataError, OptionError
from text_gym.registry import parse_call
from text_gym.validation import LARGEST_SIZE, finite_number, shown, whole_number
from text_gym.vocab import HUGGING_FACE

MAX_THREADS = 1024
INPUTS = "inputs"  # key in run.json: digests of the files that the run reads
LABEL = re.compile(r"[\w+-][\w.+-]*")
CODE = re.compile(r"\s*(?:[^()]*\.py|[\w.]+):[\w.]+\s*(?:\(|$)", re.DOTALL)


@dataclass(frozen=True)
class MetricSettings:
    """Settings of the evaluation."""

    samples: int = 4_000
    """Samples for likelihoods, divergences, validity, coverage and rewards."""
    references: int = 1_000
    """References of BLEU, and samples for BLEU, self-BLEU and diversity; at most the size of the test split."""
    temperatures: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4)
    """Temperatures of the temperature sweep; give no values to skip the sweep."""
    sweep_samples: int = 2_000
    """Samples, and held-out sequences, for each temperature of the sweep."""
    also: tuple[str, ...] = ()
    """Additional rewards to report: names, name(option=value), or module:attribute."""
    shown: int = 6
    """Samples of each model that the report shows."""
    credit_rollouts: int = 16
    """Rollouts from each prefix of these samples, which estimate the credit of each token; 0 for no credit."""
    points: int = 20
    """Evaluations during training, for the learning curve; 0 for no curve."""
    curve_samples: int = 1_000
    """Samples for each evaluation of the learning curve."""

    def __post_init__(self) -> None:
        """Raise an OptionError if a number is out of range."""
        for name in ("samples", "references", "sweep_samples", "curve_samples"):
            whole_number(name, getattr(self, name), 2, LARGEST_SIZE)
        for name in ("shown", "credit_rollouts", "points"):
            whole_number(name, getattr(self, name), 0, LARGEST_SIZE)
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        object.__setattr__(self, "also", tuple(self.also))
        for temperature in self.temperatures:
            if finite_number("temperatures", temperature) < 1e-3:
                raise OptionError(f"temperatures={self.temperatures} must be at least 0.001")


class RunSettings(Protocol):
    """Settings that `text-gym train` and every run of a comparison have in common."""

    @property
    def reward(self) -> str | None:
        """Reward of the environment; None for the task's default reward."""

    @property
    def device(self) -> str:
        """Device of the run."""

    @property
    def threads(self) -> int:
        """Number of torch threads."""

    @property
    def metrics(self) -> MetricSettings:
        """Settings of the evaluation."""


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run: one agent with one seed."""

    label: str
    """Name of the model in reports."""
    agent: str
    """Agent: a name, name(option=value), or module:attribute."""
    seed: int = 0
    """Random seed."""
    task: str = "grammar"
    """Task: a name, name(option=value), or the path of a corpus."""
    reward: str | None = None
    """Reward of the environment; None for the task's default reward."""
    preset: str | None = None
    """Preset of hyperparameters, ignored by agents without a preset of this name."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Hyperparameters that differ from the preset."""
    start: str | None = None
    """Label of the warm start: the model of the same comparison and seed that provides the initial policy."""
    start_folder: str | None = None
    """Run folder of the warm start, if it is not part of the same comparison."""
    begins_with: str = ""
    """Description of the initial policy: a label, a folder, "random weights"."""
    steps: int | None = None
    """Training steps; None for the agent's default."""
    device: str = "auto"
    """Device: "cpu", "cuda", or "auto" (cuda if available)."""
    threads: int = 1
    """Number of torch threads. It is fixed because the last digits of the results depend on it."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """Settings of the evaluation."""
    report_reward: bool = False
    """Whether the evaluation includes the environment's reward."""
    kind: str = "agent"
    """Kind of model: "agent", "control" or "reference"."""
    order: int = 0
    """Position in reports."""
    baseline: str | None = None
    """Label of the model that the report compares others with."""
    controls_for: tuple[str, ...] = ()
    """Labels of the agents that this control belongs to."""
    trivial: bool = False
    """Whether an agent that beats this control has shown nothing by it."""
    words: str = ""
    """Name of the model in the sentences of a report, for example "a constant reward"."""
    command: str = ""
    """Command line that created the run."""

    def __post_init__(self) -> None:
        """Raise an OptionError if the task is not a string, which run.json could not store."""
        if not isinstance(self.task, str):
            raise OptionError(
                f"the task of a run must be a string, a name or a path, not a {type(self.task).__name__}; write texts "
                'from Python to a .jsonl file, one {"text": ...} or {"prompt": ..., "references": [...]} per line, '
                "and give its path"
            )

    @classmethod
    def template(cls, settings: RunSettings, task: str, command: str) -> RunSpec:
        """Return a specification with the common settings of runs; its label and its agent are empty."""
        return cls(
            label="",
            agent="",
            task=task,
            reward=settings.reward,
            device=settings.device,
            threads=settings.threads,
            metrics=settings.metrics,
            report_reward=settings.reward is not None,
            command=command,
        )

    def as_json(self) -> Json:
        """Return the content of run.json, with digests of the files that the run reads."""
        content: Json = json.loads(json.dumps({"format": FORMAT, **asdict(self), INPUTS: self.inputs()}))
        return content

    def inputs(self) -> dict[str, str]:
        """Compute the digest of each file that the task, the agent and the rewards are read from."""
        named = [self.task, self.agent, self.reward, self.options.get("reward"), *self.metrics.also]
        paths = {path for name in named if name is not None for path in _files_in(str(name))}
        return {path: blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() for path in sorted(paths)}

    def code(self) -> list[str]:
        """List the Python code that the run names as "module:attribute" or "file.py:attribute".

        The agent, the task and the rewards may be code, and so may the values of their options, nested in lists,
        dicts and brackets at any depth. Everything else is data: numbers, strings, paths, and names of Hugging Face
        models, which are loaded without their code.
        """
        named = [self.agent, self.task, self.reward, self.options, self.metrics.also]
        return [text for text in _texts_in(named) if CODE.match(text) and not text.startswith(HUGGING_FACE)]

    @classmethod
    def read(cls, folder: Path) -> RunSpec:
        """Read the run.json of a folder."""
        content = read_spec(folder)
        known = {field.name for field in fields(cls)}
        if content["agent"] is None:
            raise DataError(f"{folder / RUN} is damaged: there is no agent in it")
        try:
            whole_number("threads", content.get("threads", 1), 1, MAX_THREADS)
            metrics = MetricSettings(**_tupled(content.pop("metrics", {})))
            return cls(**_tupled({k: v for k, v in content.items() if k in known}), metrics=metrics)
        except (TypeError, ValueError) as problem:
            raise DataError(f"{folder / RUN} is damaged: {problem}") from problem


def _tupled(content: Json) -> Json:
    """Convert the lists of a JSON object to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _texts_in(value: object) -> Iterator[str]:
    """Yield every string in a value: in lists, in keys and values of dicts, and in options in brackets."""
    queue = [value]
    for value in queue:  # the queue grows during the loop
        if isinstance(value, str):
            yield value
            try:
                queue.append(parse_call(value)[1])
            except OptionError:
                continue  # not of the form name(option=value)
        elif isinstance(value, Mapping):
            queue += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            queue += value


def _files_in(name: str) -> list[str]:
    """List the existing files in a name such as captions.txt(valid='more.txt') or mine.py:Mine."""
    plain, options = (name, {}) if name.endswith(SUFFIXES) else parse_call(name)
    texts = [plain, plain.rpartition(":")[0], *(str(value) for value in options.values())]
    return [text for text in texts if text and Path(text).is_file()]


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison."""

    agents: tuple[str, ...] = ("mle", "ss", "pg-bleu", "seqgan")
    """Agents: names, name(option=value), or module:attribute; write label=agent to choose the label."""
    task: str = "grammar"
    """Task: a name, name(option=value), or the path of a corpus."""
    seeds: int = 3
    """Number of seeds: every model is trained with seeds 0, 1, ..."""
    out: Path = Path("runs/compare")
    """Folder of the comparison. To resume a comparison that was stopped, run the same command again."""
    preset: str | None = None
    """Preset of hyperparameters for all agents that have it, for example paper, fast or demo."""
    reward: str | None = None
    """Reward: a name, name(option=value), or module:attribute; None for the task's default reward."""
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Hyperparameters of the agents, by label."""
    controls: bool = True
    """Whether to add the controls (constant and random rewards, early-stopped MLE, uniform tokens) and real data."""
    baseline: str | None = None
    """Label of the model that the report compares others with; None for the warm start."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """Settings of the evaluation."""
    jobs: int | None = None
    """Number of runs executed in parallel; None for the number of cores divided by --threads, or 1 on a GPU."""
    threads: int = 1
    """Number of torch threads per run. The last digits of the results depend on it, but not on --jobs."""
    device: str = "auto"
    """Device: cpu, cuda, or auto (cuda if available)."""
    ray: str | None = None
    """Address of a Ray cluster that executes the runs; local starts a cluster on this machine."""

    def __post_init__(self) -> None:
        """Raise an OptionError for numbers out of range, and for agents and rewards that processes cannot find."""
        whole_number("seeds", self.seeds, least=1)
        whole_number("threads", self.threads, least=1)
        if self.jobs is not None:
            whole_number("jobs", self.jobs, least=1)
        if not self.agents:
            raise OptionError("name the agents to compare, for example: mle seqgan")
        for what, value in [*(("agent", agent) for agent in self.agents), ("reward", self.reward or "")]:
            if not isinstance(value, str):
                raise OptionError(
                    f"the {what} of a comparison must be a string, not {shown(value)}; give a registered name, "
                    '"module:attribute" or "file.py:attribute"'
                )
        for text in _texts_in([self.agents, self.task, self.reward, self.options, self.metrics.also]):
            if "__main__:" in text:
                raise OptionError(
                    f"{text} is in the program itself, which the processes of runs do not import; move it to a file "
                    "of its own and write file.py:attribute"
                )


def split_label(named: str) -> tuple[str, str]:
    """Split "label=agent" into the label and the agent; the default label is the agent's name.

    >>> split_label("strong=mle(preset='strong')"), split_label("mine.py:Plain(hidden=32)"), split_label("seqgan")
    (('strong', "mle(preset='strong')"), ('Plain', 'mine.py:Plain(hidden=32)'), ('seqgan', 'seqgan'))
    """
    label, equals, agent = named.partition("=")
    if not (equals and LABEL.fullmatch(label)):
        agent = named
        label = parse_call(agent)[0].rpartition(":")[2]
    if not LABEL.fullmatch(label):
        raise OptionError(
            f"{label!r} is not a valid folder name; write label=agent with a label of letters, digits and _ . + -"
        )
    return label, agent
