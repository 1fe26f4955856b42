"""Sweeps over temperatures: the quality that a model has where its diversity keeps within a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import NamedTuple

from agents.report.columns import column_of
from agents.report.run_files import Runs

ROUNDING = 1e-9  # in steps: an end of the range that is a round number is one of them
PLANES = [("nll_oracle", "nll_test"), ("bleu4", "self_bleu4")]  # quality and diversity


class Best(NamedTuple):
    """A model's best quality among the temperatures that keep its diversity within a limit."""

    label: str
    limit: float
    mean: float
    """Mean over the seeds in which some temperature does; nan if none does."""
    n: int
    """Number of those seeds."""
    seeds: int
    """Number of seeds that were swept."""


def plane_axes(results: Runs) -> tuple[str, str] | None:
    """Choose the figures of quality and of diversity that the sweep has, both finite somewhere; None without one."""
    sweeps = [row for run in results.runs.values() for row in run.sweep]
    for quality, diversity in PLANES:
        if any(math.isfinite(row.get(quality, math.inf) + row.get(diversity, math.inf)) for row in sweeps):
            return quality, diversity
    return None


def best_under(results: Runs, limits: Sequence[float] | None = None) -> list[Best]:
    """Find the best NLL-oracle at an NLL-test no higher than each limit; without a source, BLEU-4 and self-BLEU-4.

    Args:
        results: A comparison.
        limits: About five round numbers within the swept range, if not given.
    """
    keys = plane_axes(results)
    if keys is None:
        return []
    sweeps = {label: [run.sweep for run in results.of(label) if run.sweep] for label in results.labels}
    if limits is None:
        rows = [row for its in sweeps.values() for sweep in its for row in sweep if set(keys) <= set(row)]
        found = [row[keys[1]] for row in rows if math.isfinite(row[keys[0]] + row[keys[1]])]
        limits = round_numbers(min(found), far_end(found)) if found else []
    return [_best(label, sweeps[label], limit, keys) for label in results.labels if sweeps[label] for limit in limits]


def _best(label: str, sweeps: Sequence[Sequence[dict[str, float]]], limit: float, keys: tuple[str, str]) -> Best:
    quality, diversity = keys
    of = min if column_of(quality).better == "lower" else max
    within = [[row[quality] for row in sweep if set(keys) <= set(row) and row[diversity] <= limit] for sweep in sweeps]
    best = [of(values) for values in within if values]
    return Best(label, limit, fmean(best) if best else math.nan, len(best), len(sweeps))


def far_end(values: Sequence[float]) -> float:
    """Choose where a chart ends: no farther than three interquartile ranges above most values."""
    if len(values) < 4:
        return max(values, default=0.0)
    first, _, third = quantiles(values, n=4)
    return min(max(values), third + 3 * (third - first))


def round_numbers(lowest: float, highest: float) -> list[float]:
    """List about five round numbers of a range.

    >>> round_numbers(5.6, 8.3), round_numbers(0.31, 0.52), round_numbers(2.0, 2.0)
    ([6.0, 6.5, 7.0, 7.5, 8.0], [0.35, 0.4, 0.45, 0.5], [2.0])
    >>> round_numbers(1.4, 1.525)
    [1.4, 1.425, 1.45, 1.475, 1.5, 1.525]
    """
    found = [highest]
    for intervals in (5, 6, 7, 8) if highest > lowest else ():
        least = (highest - lowest) / intervals
        power = 10.0 ** math.floor(math.log10(least))
        step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= least)
        ticks = range(math.ceil(lowest / step - ROUNDING), math.floor(highest / step + ROUNDING) + 1)
        found = [round(tick * step, 6) for tick in ticks] or found
        if len(found) >= 4:
            break
    return found
