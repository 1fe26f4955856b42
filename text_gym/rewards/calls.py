"""Call rewards, with errors that name the reward, time limits, and concurrent async rewards."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from text_gym.arrays import FloatArray
from text_gym.errors import RewardError, RewardTimeoutError, TextGymError
from text_gym.rewards.reward import Answer, Reward, Scores
from text_gym.sequences import Batch
from text_gym.validation import shown

T = TypeVar("T")
GRACE = 1.0  # seconds after the time limit for a cancelled async reward to end


def call_rewards(rewards: Mapping[str, Reward], batch: Batch, timeout: float | None) -> dict[str, FloatArray]:
    """Score a batch with each reward; a score that is not finite raises RewardError.

    Synchronous rewards run one after another, then all async rewards run concurrently in one event loop. With a timeout
    (seconds), rewards run in another thread. Python cannot stop a thread: after a timeout it continues in the
    background, and its result is ignored.
    """
    answers: dict[str, Scores] = {}
    waiting: dict[str, Awaitable[Scores]] = {}
    try:
        for name, reward in rewards.items():
            call = partial(reward.start, batch)
            answer = _guarded(name, reward, call if timeout is None else partial(_within, timeout, [name], batch, call))
            if isinstance(answer, Awaitable):
                waiting[name] = answer
            else:
                answers[name] = answer
    except BaseException:
        for awaitable in waiting.values():
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # not started yet
        raise
    if waiting:
        together = partial(_run, _finish_all(waiting, batch, timeout))
        limit = None if timeout is None else timeout + GRACE
        for name, result in zip(waiting, _within(limit, list(waiting), batch, together), strict=True):
            answers[name] = _guarded(name, rewards[name], partial(_unpacked, result))
    return {name: checked_scores(name, answers[name], batch) for name in rewards}


def finished(answer: Answer) -> Scores:
    """Return the scores, waiting for an awaitable."""

    async def wait(awaitable: Awaitable[Scores]) -> Scores:
        return await awaitable

    return _run(wait(answer)) if isinstance(answer, Awaitable) else answer


def checked_scores(name: str, scores: object, batch: Batch) -> FloatArray:
    """Convert the return value of a reward to finite float64 scores, [n]; RewardError names the reward and the text."""
    try:
        raw = scores if isinstance(scores, np.ndarray) else np.asarray(_without_tensors(scores))
        if raw.dtype.kind not in "biufO":
            raise TypeError(f"{raw.dtype} is not a number")
        values = raw.astype(np.float64, copy=False)
    except Exception as problem:  # array types of other libraries may raise anything
        raise RewardError(
            f"reward {name!r} must return one number for each sequence, not {shown(scores)} ({problem})"
        ) from problem
    if values.shape != (len(batch),):
        raise RewardError(
            f"reward {name!r} returned scores of shape {values.shape} for {len(batch)} sequences; "
            "it must return one number for each sequence"
        )
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise RewardError(f"reward {name!r} returned {values[row]} for {batch.texts[row]!r}; scores must be finite")
    return values


def _without_tensors(scores: Any) -> Any:
    """Convert a tensor or a list of tensors to arrays, from any device, with or without gradient, sparse or dense."""
    if isinstance(scores, list | tuple):
        return [0.0 if score is None else _without_tensors(score) for score in scores]
    if not hasattr(scores, "detach"):
        return scores
    tensor = scores.detach().cpu().to_dense()
    return (tensor if tensor.is_complex() else tensor.double()).numpy()


def _guarded(name: str, reward: Reward, call: Callable[[], T]) -> T:
    """Call a reward; exceptions of user code become a RewardError that names the reward."""
    try:
        return call()
    except TextGymError:
        raise
    except Exception as problem:  # user code may raise anything
        words = f"reward {name!r} failed with {type(problem).__name__}: {problem}"
        raise RewardError(words + reward.hint(problem)) from problem


def _within(timeout: float | None, names: list[str], batch: Batch, call: Callable[[], T]) -> T:
    """Call in another thread and wait for at most `timeout` seconds; None calls directly."""
    if timeout is None:
        return call()
    results: list[T | BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as problem:  # raised again in the calling thread
            results.append(problem)

    thread = Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(timeout)
    if not results:
        raise _too_slow(" and ".join(map(repr, names)), batch, timeout)
    result = results[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _unpacked(result: Scores | BaseException) -> Scores:
    if isinstance(result, BaseException):
        raise result
    return result


def _too_slow(names: str, batch: Batch, timeout: float) -> RewardTimeoutError:
    return RewardTimeoutError(
        f"reward {names} took longer than reward_timeout={timeout:g} seconds for {len(batch)} sequences; "
        "increase reward_timeout, or score fewer sequences at once"
    )


async def _finish_all(
    waiting: Mapping[str, Awaitable[Scores]], batch: Batch, timeout: float | None
) -> list[Scores | BaseException]:
    """Await all concurrently; the result of an awaitable that raises is its exception."""

    async def finish(name: str, awaitable: Awaitable[Scores]) -> Scores:
        task = asyncio.ensure_future(awaitable)
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            task.cancel()
            raise _too_slow(repr(name), batch, timeout or 0.0)
        return task.result()

    return await asyncio.gather(*(finish(*item) for item in waiting.items()), return_exceptions=True)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop; in another thread if this thread already runs one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
