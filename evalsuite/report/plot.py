"""Coordinates of the forest plot, in percent of its width, so that it fits any screen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalsuite.compare import MetricComparison

TICKS = 6


@dataclass(frozen=True)
class ForestRow:
    """One metric's interval: positions in percent of the width."""

    metric: MetricComparison
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Forest:
    """A forest plot: paired differences with their intervals on one scale around zero."""

    rows: tuple[ForestRow, ...]
    ticks: tuple[tuple[float, float], ...]
    zero: float


def forest(metrics: Sequence[MetricComparison]) -> Forest:
    """Lay out ``metrics`` from top to bottom; ``ticks`` are pairs of difference and position."""
    step = _step(min(0.0, *(m.low for m in metrics)), max(0.0, *(m.high for m in metrics)))
    left = math.floor(min(-step / 2, *(m.low for m in metrics)) / step) * step
    right = math.ceil(max(step / 2, *(m.high for m in metrics)) / step) * step

    def place(difference: float) -> float:
        # A margin on both sides, for half a tick's text and the end of an interval.
        return round(4 + 92 * (difference - left) / (right - left), 2)

    rows = tuple(
        ForestRow(metric, place(metric.low), place(metric.difference), place(metric.high))
        for metric in metrics
    )
    count = round((right - left) / step) + 1
    ticks = tuple((left + index * step, place(left + index * step)) for index in range(count))
    return Forest(rows, ticks, place(0.0))


def _step(low: float, high: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    rough = max(high - low, 0.01) / (TICKS - 1)
    scale = float(10 ** math.floor(math.log10(rough)))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * 0.999)
