"""Two arms on the same questions, metric by metric."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evalsuite.scoring import Mark, Metric
from evalsuite.stats import (
    ALPHA,
    Verdict,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    standard_error,
    verdict,
)


@dataclass(frozen=True)
class MetricComparison:
    """One metric: both values, and their difference (candidate minus baseline) with its uncertainty.

    ``p_value`` is of the test named in ``test``; ``p_adjusted`` is Holm's, over the metrics or comparisons
    that it was tried along with, and is what ``verdict`` rests on, with the interval.
    """

    name: str
    title: str
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    p_adjusted: float
    test: Literal["exact McNemar", "paired permutation"]
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline arm on ``questions`` questions. The first metric is the primary one.

    ``fixed`` questions only the candidate answered rightly, ``broken`` only the baseline.
    """

    candidate: str
    baseline: str
    role: Literal["base", "live"]
    questions: int
    both_right: int
    both_wrong: int
    fixed: int
    broken: int
    minimum_detectable_effect: float
    metrics: tuple[MetricComparison, ...]

    @property
    def primary(self) -> MetricComparison:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def verdict(self) -> Verdict:
        """The primary metric's verdict."""
        return self.primary.verdict


def compare(
    metrics: Sequence[Metric],
    baseline_marks: Sequence[Mark],
    candidate_marks: Sequence[Mark],
    baseline: str,
    candidate: str,
    role: str,
    seed: int = 0,
) -> Comparison:
    """Compare two arms' marks of the same questions, in the same order; the first metric decides."""
    pairs = [(one.right, other.right) for one, other in zip(baseline_marks, candidate_marks, strict=True)]
    primary = metrics[0]
    differences = _means(primary, candidate_marks) - _means(primary, baseline_marks)
    return Comparison(
        candidate=candidate,
        baseline=baseline,
        role="live" if role == "live" else "base",
        questions=len(pairs),
        both_right=pairs.count((True, True)),
        both_wrong=pairs.count((False, False)),
        fixed=pairs.count((False, True)),
        broken=pairs.count((True, False)),
        minimum_detectable_effect=minimum_detectable_effect(len(pairs), float(np.mean(differences**2))),
        metrics=tuple(
            compare_metric(metric, baseline_marks, candidate_marks, seed=seed) for metric in metrics
        ),
    )


def compare_metric(
    metric: Metric, baseline_marks: Sequence[Mark], candidate_marks: Sequence[Mark], *, seed: int = 0
) -> MetricComparison:
    """Value, difference, interval, test and verdict of one metric, not yet adjusted for others."""
    baseline, candidate = metric.rows(baseline_marks), metric.rows(candidate_marks)
    interval = paired_bootstrap(baseline, candidate, metric.statistic, seed=seed)
    error = interval.standard_error
    if metric.binary:
        ahead = candidate[:, 0] - baseline[:, 0]
        p_value = mcnemar_exact(int((ahead < 0).sum()), int((ahead > 0).sum()))
        error = standard_error(ahead)
    else:
        p_value = paired_permutation(baseline, candidate, metric.statistic, seed=seed)
    low_value, high_value = metric.value(baseline_marks), metric.value(candidate_marks)
    return MetricComparison(
        name=metric.name,
        title=metric.title,
        baseline=low_value,
        candidate=high_value,
        difference=high_value - low_value,
        low=interval.low,
        high=interval.high,
        standard_error=error,
        p_value=p_value,
        p_adjusted=p_value,
        test="exact McNemar" if metric.binary else "paired permutation",
        verdict=verdict(interval.low, interval.high, p_value),
    )


def adjust(comparisons: Sequence[Comparison], *, alpha: float = ALPHA) -> list[Comparison]:
    """Adjust p-values and verdicts for how many questions the evaluation asks of its data (Holm).

    Primary metrics form one family over the comparisons, so that the secondary metrics cost them no power;
    each comparison's secondary metrics form a family of their own.
    """
    primaries = holm([comparison.primary.p_value for comparison in comparisons])
    adjusted = []
    for comparison, p_primary in zip(comparisons, primaries, strict=True):
        secondary = comparison.metrics[1:]
        p_values = [p_primary, *holm([metric.p_value for metric in secondary])]
        metrics = tuple(
            replace(metric, p_adjusted=p, verdict=verdict(metric.low, metric.high, p, alpha=alpha))
            for metric, p in zip(comparison.metrics, p_values, strict=True)
        )
        adjusted.append(replace(comparison, metrics=metrics))
    return adjusted


def _means(metric: Metric, marks: Sequence[Mark]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The per-question values of a metric that is a mean, as every primary metric is."""
    return np.asarray(metric.rows(marks)[:, 0], np.float64)
