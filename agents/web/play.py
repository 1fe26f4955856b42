"""A page to play with a trained agent: next tokens, completions, the credit of tokens, and what rewards say."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agents.common.agent import Agent
from agents.common.credit import prefix_values
from agents.common.generation import next_logits
from agents.experiments.run import load_model, refusing_damage
from agents.experiments.settings import RunSpec
from agents.networks.discriminators import GENERATED, REAL, Discriminator
from agents.report.templates import find_template
from agents.web.server import Json
from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, TextGymError
from text_gym.language_model import Sampling, complete
from text_gym.rewards import Scorer, registered_rewards
from text_gym.sequences import Batch, Example, make_batch
from text_gym.validation import finite_number, whole_number

SHOWN = 20  # likeliest next tokens
MOST_COMPLETIONS = 64
MOST_ROLLOUTS = 4096  # completions for one sequence's credit
LISTED = 2000  # tokens, and prompts, that the page offers while one types
LONGEST_TEXT = 10_000  # characters
RUN_REWARD, TASK_REWARD = "reward of the run", "reward of the task"
NEEDS_A_MODEL = "classifier"  # a reward that says nothing without options


class Player:
    """A trained agent, and the calls of the page that plays with it.

    Args:
        folder: Folder of a run.
        trust: Whether to load Python code that the run names.
        rewards: Rewards to offer beside the registered ones.
    """

    def __init__(self, folder: Path, trust: bool = False, rewards: Sequence[str] = ()) -> None:
        """Load the agent."""
        self.spec = RunSpec.read(folder)
        model = load_model(folder, trust)
        if not isinstance(model, Agent):
            raise OptionError(
                f"{self.spec.label} in {folder} is no agents.Agent, so its next tokens are not known; "
                "text-gym sample prints its sequences"
            )
        self.folder, self.agent = folder, model
        self.task, self.vocab, self.limit = model.task, model.task.vocab, model.rules.limit
        self._pool = model.task.test if len(model.task.test) else model.task.train  # of prompts
        self.named = list(dict.fromkeys([*rewards, *(name for name in registered_rewards() if name != NEEDS_A_MODEL)]))
        self._asked = frozenset(rewards)  # which the user has typed, and vouches for
        self._scorers: dict[str, Scorer] = {}
        self._lock = threading.Lock()
        self._template = find_template("play.html", "agents.web")

    @property
    def calls(self) -> dict[str, Callable[[Json], Json]]:
        """What the page may call; one call at a time."""
        functions = (self.next, self.completions, self.credit, self.score)
        return {f"/{function.__name__}": self._alone(function) for function in functions}

    def _alone(self, function: Callable[[Json], Json]) -> Callable[[Json], Json]:
        def call(asked: Json) -> Json:
            with self._lock, torch.no_grad(), refusing_damage(self.folder):
                return function(asked)

        return call

    def page(self, nonce: str, token: str) -> str:
        """Render the page."""
        prompts = self._pool
        return self._template.render(
            nonce=nonce,
            token=token,
            palette=(),
            title=f"{self.spec.label} on the task {self.spec.task}",
            folder=str(self.folder),
            seed=self.spec.seed,
            agent=self.spec.agent,
            steps=self.agent.steps_done,
            size=len(self.vocab),
            limit=self.limit,
            ends=self.vocab.eos is not None,
            eos=self.vocab.eos,
            tokens=self.vocab.tokens if len(self.vocab) <= LISTED else (),
            conditional=self.task.conditional,
            prompts=[self.task.decode(prompts[i].prompt) for i in range(min(len(prompts), LISTED // 10))]
            if self.task.conditional
            else [],
            rewards=[RUN_REWARD, TASK_REWARD, *self.named],
            most_completions=MOST_COMPLETIONS,
        )

    # Calls of the page.

    def next(self, asked: Json) -> Json:
        """Compute the distribution of the token after a prefix; `text` is appended to the prefix first."""
        ids, example = self._ids(asked), self._example(asked)
        text = asked.get("text", "")
        if not isinstance(text, str) or len(text) > LONGEST_TEXT:
            raise OptionError(f"text must be at most {LONGEST_TEXT} characters")
        ids = self._checked([*ids, *self.vocab.encode(text)])
        answer = {"tokens": self._named(ids), "text": self.task.decode(ids), "ended": self._has_ended(ids)}
        if not answer["ended"]:
            answer |= self._distribution(ids, example, _sampling(asked))
        return answer

    def _distribution(self, ids: Sequence[int], example: Example | None, sampling: Sampling) -> Json:
        model = self.agent.restricted(self.agent.policy.eval())
        prefix = torch.tensor([ids], dtype=torch.long, device=self.agent.device)
        logits = next_logits(model, prefix, self._prompts(example, 1), self.vocab.pad)
        probabilities = sampling.adjust(logits.double()).softmax(dim=1)[0]
        likeliest = probabilities.topk(min(SHOWN, len(self.vocab)))
        shown = list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
        entropy = float(torch.special.entr(probabilities).sum())
        return {
            "top": [{"id": i, "text": self.vocab.tokens[i], "probability": p} for i, p in shown],
            "rest": {"tokens": len(self.vocab) - len(shown), "probability": max(0.0, 1 - sum(p for _, p in shown))},
            "entropy": entropy,
            "choices": math.exp(entropy),
        }

    def completions(self, asked: Json) -> Json:
        """Sample completions of a prefix, each with its reward and log-probability."""
        ids, example = self._ids(asked), self._example(asked)
        n = _whole(asked, "n", 8, 1, MOST_COMPLETIONS)
        if self._has_ended(ids):
            raise OptionError("the sequence has ended; go back to an earlier token to complete it anew")
        seed = secrets.randbits(31) if asked.get("seed") is None else _whole(asked, "seed", 0, 0, 2**63 - 1)
        batch = self._completed(ids, example, n, _sampling(asked), seed)
        rewards, problem = self._rewards(asked.get("reward", RUN_REWARD), batch)
        log_probs = self._log_prob(batch)
        rows = [batch.tokens[i, : batch.lengths[i]].tolist() for i in range(n)]
        completions = [
            {
                "tokens": self._named(row),
                "text": batch.texts[i],
                "rest": self.task.decode(row[len(ids) :]),
                "reward": None if rewards is None else float(rewards[i]),
                "log_prob": float(log_probs[i]),
            }
            for i, row in enumerate(rows)
        ]
        mean = None if rewards is None else float(rewards.mean())
        return {
            "seed": seed,
            "text": self.task.decode(ids),
            "completions": completions,
            "mean": mean,
            "problem": problem,
        }

    def _completed(self, ids: Sequence[int], example: Example | None, n: int, sampling: Sampling, seed: int) -> Batch:
        """Sample n completions; without a prefix they are what `sample` returns for this seed."""
        model = self.agent.restricted(self.agent.policy.eval())
        generator = torch.Generator(self.agent.device).manual_seed(seed)
        prefixes = torch.tensor([ids] * n, dtype=torch.long, device=self.agent.device).view(n, len(ids))
        logits, state = model.start(n, self._prompts(example, n))
        for column in prefixes.unbind(dim=1):
            logits, state = model.step(column, state)
        drawn = complete(model, prefixes, logits, state, self.limit, self.vocab.eos, generator, sampling)
        examples = None if example is None else [example] * n
        return Batch(drawn.tokens.cpu().numpy(), drawn.lengths.cpu().numpy(), self.vocab, examples)

    def credit(self, asked: Json) -> Json:
        """Estimate the credit of each token of a sequence, with the completions that it is estimated from."""
        ids, example, ended_here = self._finished(asked)
        most = min(MOST_COMPLETIONS, MOST_ROLLOUTS // len(ids))
        rollouts = _whole(asked, "rollouts", min(16, most), 1, most)
        seed = _whole(asked, "seed", 0, 0, 2**63 - 1)
        scorer = self._scorer(asked.get("reward", RUN_REWARD))
        seen: list[tuple[list[int], float]] = []

        def score(batch: Batch) -> FloatArray:
            rewards = scorer(batch)
            rows = zip(batch.tokens.tolist(), batch.lengths.tolist(), rewards.tolist(), strict=True)
            seen.extend((row[:length], reward) for row, length, reward in rows)
            return rewards

        values = prefix_values(self.agent, self._batch(ids, example), rollouts, seed, score)[0].tolist()
        tokens = [
            token | {"before": values[t], "after": values[t + 1], "credit": values[t + 1] - values[t]}
            for t, token in enumerate(self._named(ids))
        ]
        completions = [  # of each prefix that has any; the sequence itself was scored first
            [
                {"rest": self.task.decode(row[t:]), "reward": reward}
                for row, reward in seen[1 + t * rollouts : 1 + (t + 1) * rollouts]
            ]
            for t in range(len(ids))
        ]
        return {
            "tokens": tokens,
            "reward": seen[0][1],
            "completions": completions,
            "rollouts": rollouts,
            "ended_here": ended_here,
        }

    def score(self, asked: Json) -> Json:
        """Score a sequence: by the agent, by the task, by a discriminator, and by rewards that are named."""
        ids, example, ended_here = self._finished(asked)
        batch = self._batch(ids, example)
        names = asked.get("names", [])
        if not isinstance(names, list) or len(names) > len(self.named):
            raise OptionError(f"names must be a list of at most {len(self.named)} rewards")
        named = [(str(name), self._by_name(name)) for name in names]
        rows = [self._row("log-probability", "under the agent, in nats", self._log_prob, batch)]
        discriminator = getattr(self.agent, "discriminator", None)
        has_discriminator = isinstance(discriminator, Discriminator)
        own = "discriminator" if has_discriminator else ", ".join(self.agent.rules.scorer.rewards)
        rows.append(self._row(RUN_REWARD, own, self._scorer(RUN_REWARD), batch))
        if has_discriminator:
            rows.append(self._row("discriminator", "probability that the sequence is real", self._real, batch))
        rows.append(self._row(TASK_REWARD, str(self.task.default_reward), self._scorer(TASK_REWARD), batch))
        if self.task.knows("log_prob"):
            about = "under the source of the data, in nats"
            rows.append(self._row("source log-probability", about, self._source_log_prob, batch))
        rows += [self._row(name, registered_rewards().get(name, ""), scorer, batch) for name, scorer in named]
        return {"rows": rows, "text": batch.texts[0], "ended_here": ended_here}

    def _row(self, name: str, about: str, score: Callable[[Batch], FloatArray], batch: Batch) -> Json:
        try:
            return {"name": name, "about": about, "value": float(score(batch)[0])}
        except TextGymError as problem:
            return {"name": name, "about": about, "problem": str(problem)}

    # Rewards.

    def _scorer(self, name: object) -> Callable[[Batch], FloatArray]:
        """Look up a reward that the page offers."""
        if name == RUN_REWARD:
            return self.agent.rewards
        if name == TASK_REWARD:
            return self._by_scorer(TASK_REWARD)
        if not isinstance(name, str) or name not in self.named:
            raise OptionError(f"there is no reward {name!r} here; say --reward to offer another one")
        return self._by_scorer(name)

    def _by_name(self, name: object) -> Callable[[Batch], FloatArray]:
        if name in (RUN_REWARD, TASK_REWARD):
            raise OptionError(f"{name} is scored in any case")
        return self._scorer(name)

    def _by_scorer(self, name: str) -> Callable[[Batch], FloatArray]:
        def score(batch: Batch) -> FloatArray:
            if name not in self._scorers:
                spec = self.task.default_reward if name == TASK_REWARD else name
                self._scorers[name] = Scorer(spec, self.task, trust=name in self._asked)
            return self._scorers[name](batch).total

        return score

    def _rewards(self, name: object, batch: Batch) -> tuple[FloatArray | None, str]:
        """Score completions, or say why they have no reward."""
        scorer = self._scorer(name)
        try:
            return scorer(batch), ""
        except TextGymError as problem:
            return None, str(problem)

    def _log_prob(self, batch: Batch) -> FloatArray:
        return self.agent.log_prob(batch.tokens, batch.lengths, batch.examples, as_sampled=True)

    def _source_log_prob(self, batch: Batch) -> FloatArray:
        return self.task.log_prob(batch.tokens, batch.lengths)

    def _real(self, batch: Batch) -> FloatArray:
        discriminator: Discriminator = self.agent.discriminator  # type: ignore[attr-defined]
        logits = discriminator.logits(discriminator.rows(batch)).double()
        real: FloatArray = (logits[:, REAL] - logits[:, GENERATED]).sigmoid().cpu().numpy()
        return real

    # What the page sends.

    def _ids(self, asked: Json) -> list[int]:
        ids = asked.get("tokens", [])
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < len(self.vocab) for i in ids):
            raise OptionError(f"tokens must be a list of ids in 0..{len(self.vocab) - 1}")
        return self._checked(ids)

    def _checked(self, ids: list[int]) -> list[int]:
        if len(ids) > self.limit:
            raise OptionError(f"{len(ids)} tokens, and a sequence has at most {self.limit}")
        if self.vocab.eos in ids[:-1]:
            raise OptionError("the sequence has ended; go back to an earlier token to go on from there")
        return ids

    def _has_ended(self, ids: Sequence[int]) -> bool:
        return len(ids) == self.limit or (len(ids) > 0 and ids[-1] == self.vocab.eos)

    def _finished(self, asked: Json) -> tuple[list[int], Example | None, bool]:
        """Read a finished sequence; one that is not ends here, and that is the third value."""
        ids, example = self._ids(asked), self._example(asked)
        if self._has_ended(ids):
            return ids, example, False
        if self.vocab.eos is None:
            raise OptionError(
                f"the sequence has {len(ids)} of {self.limit} tokens, and only finished ones have a reward; complete it"
            )
        return [*ids, self.vocab.eos], example, True

    def _batch(self, ids: list[int], example: Example | None) -> Batch:
        batch = make_batch([ids], [len(ids)], self.vocab, self.limit)
        return batch if example is None else Batch(batch.tokens, batch.lengths, self.vocab, [example])

    def _example(self, asked: Json) -> Example | None:
        """Find the prompt: the number of a prompt that the page lists, or a text."""
        prompt = asked.get("prompt")
        if not self.task.conditional:
            return None
        if isinstance(prompt, int) and not isinstance(prompt, bool):
            return self._pool[whole_number("prompt", prompt, 0, len(self._pool) - 1)]
        if not isinstance(prompt, str) or len(prompt) > LONGEST_TEXT:
            raise OptionError(f"give a prompt of at most {LONGEST_TEXT} characters")
        example = self.agent.rules.find_example(prompt)
        number = self._pool.by_prompt.get(example.prompt)
        return example if number is None else self._pool[number]

    def _prompts(self, example: Example | None, n: int) -> torch.Tensor | None:
        return self.agent.prompt_tokens(None if example is None else [example] * n)

    def _named(self, ids: Sequence[int]) -> list[Json]:
        return [{"id": i, "text": self.vocab.tokens[i]} for i in ids]


def _sampling(asked: Json) -> Sampling:
    temperature, top_p = (finite_number(name, asked.get(name, 1.0)) for name in ("temperature", "top_p"))
    return Sampling(temperature, _whole(asked, "top_k", 0, 0, 2**31), top_p).checked()


def _whole(asked: Json, name: str, default: int, least: int, most: int) -> int:
    return whole_number(name, asked.get(name, default), least, most)
