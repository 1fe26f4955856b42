"""Temperature sweeps: the quality/diversity plane, and the frontier of a model in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import NamedTuple

from agents.report.columns import column_of
from agents.report.run_files import Runs

ROUNDING = 1e-9  # tolerance in steps, so that round ends of a range are included
PLANES = [("nll_oracle", "nll_test"), ("bleu4", "self_bleu4")]  # quality and diversity


class Best(NamedTuple):
    """Point on a frontier: a model's best quality over the temperatures whose diversity metric is within a limit."""

    label: str
    limit: float
    mean: float
    """Mean over the seeds that have such a temperature; nan without one."""
    n: int
    """Number of seeds that have such a temperature."""
    seeds: int
    """Number of seeds with a temperature sweep."""


def plane_axes(results: Runs) -> tuple[str, str] | None:
    """Choose the metrics of quality and diversity, finite at most points of the sweeps; None if there are none."""
    sweeps = [row for run in results.runs.values() for row in run.sweep]
    for quality, diversity in PLANES:
        finite = [math.isfinite(row.get(quality, math.inf) + row.get(diversity, math.inf)) for row in sweeps]
        if sum(finite) > len(finite) / 2:
            return quality, diversity
    return None


def best_under(results: Runs, limits: Sequence[float] | None = None) -> list[Best]:
    """Compute the frontier of each model.

    With a known source it is the best NLL-oracle at an NLL-test of at most each limit, otherwise the best BLEU-4 at a
    self-BLEU-4 of at most each limit.


    Args:
        results: Runs with temperature sweeps.
        limits: Limits of NLL-test or self-BLEU-4; about five round numbers in the range of the sweeps if None.
    """
    keys = plane_axes(results)
    if keys is None:
        return []
    sweeps = {label: [run.sweep for run in results.of(label) if run.sweep] for label in results.labels}
    if limits is None:
        rows = [row for runs in sweeps.values() for sweep in runs for row in sweep if set(keys) <= set(row)]
        found = [row[keys[1]] for row in rows if math.isfinite(row[keys[0]] + row[keys[1]])]
        limits = round_numbers(min(found), far_end(found)) if found else []
    return [_best(label, sweeps[label], limit, keys) for label in results.labels if sweeps[label] for limit in limits]


def _best(label: str, sweeps: Sequence[Sequence[dict[str, float]]], limit: float, keys: tuple[str, str]) -> Best:
    quality, diversity = keys
    best_of = min if column_of(quality).better == "lower" else max
    within = [[row[quality] for row in sweep if set(keys) <= set(row) and row[diversity] <= limit] for sweep in sweeps]
    best = [best_of(values) for values in within if values]
    return Best(label, limit, fmean(best) if best else math.nan, len(best), len(sweeps))


def far_end(values: Sequence[float]) -> float:
    """Choose the end of an axis: the maximum, but at most three interquartile ranges above the third quartile."""
    if len(values) < 4:
        return max(values, default=0.0)
    first, _, third = quantiles(values, n=4)
    return min(max(values), third + 3 * (third - first))


def round_numbers(lowest: float, highest: float) -> list[float]:
    """List four to eight round numbers in a range, as an axis has.

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
