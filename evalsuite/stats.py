"""Paired statistics: is one arm better than another on the same questions, and could we have seen it?

Everything here is paired: both arms answered the same questions, so a question's difficulty cancels out. A
metric is a function of sums over questions (``Statistic``), which lets one bootstrap and one permutation test
serve means, micro-averaged F1 and macro-F1 alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Statistic = Callable[[Floats], Floats]
"""Maps sums over questions, shape ``(..., columns)``, to the metric's value, shape ``(...)``."""
Verdict = Literal["better", "worse", "inconclusive"]

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000
# One chunk of resamples: 100,000 weights of 8 B stay inside the second-level cache, which makes counting
# draws ten times faster than with chunks of thousands of resamples.
CHUNK_CELLS = 100_000
FEW_PATTERNS = 64


class Interval(NamedTuple):
    """A bootstrap interval of the difference, candidate minus base, with its standard error."""

    low: float
    high: float
    standard_error: float


def mcnemar_exact(only_base: int, only_candidate: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts.

    ``only_base`` questions were answered rightly by the base alone, ``only_candidate`` by the candidate
    alone. Under the null hypothesis each discordant pair falls either way with probability one half, so p is
    twice the smaller binomial tail (McNemar 1947, exact form; not the mid-p variant, which can exceed its
    level).
    """
    discordant = only_base + only_candidate
    term, tail = 1, 0  # C(discordant, k) and their sum, exactly
    for k in range(min(only_base, only_candidate) + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    return float(min(1.0, 2 * tail / 2**discordant))


def paired_bootstrap(
    base: Floats,
    candidate: Floats,
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Interval:
    """Percentile interval of ``statistic(candidate) - statistic(base)`` when questions are drawn anew.

    ``base`` and ``candidate`` have shape ``(questions, columns)``, row i for question i in both. Level is
    ``1 - alpha``. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Swapping the
    arms mirrors the interval. Raises ValueError when the shapes differ or there is no question.
    """
    width = _check_pair(base, candidate)
    patterns, counts, which = _distinct(np.hstack([base, candidate]))
    total = _weighted_sums(patterns)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for start, weights in _resampled(counts, which, resamples, rng):
        sums = total(weights)
        drawn = statistic(sums[:, width:]) - statistic(sums[:, :width])
        differences[start : start + len(drawn)] = drawn
    low, high = np.quantile(differences, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high), float(differences.std(ddof=1)))


def paired_permutation(
    base: Floats,
    candidate: Floats,
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the difference when each question's two answers may swap their arms.

    Approximate randomisation (Noreen 1989), for metrics that McNemar does not fit. Shapes as in
    :func:`paired_bootstrap`. The observed difference counts as one of the permutations, so p is never zero
    (Phipson and Smyth 2010).
    """
    _check_pair(base, candidate)
    changed = np.any(base != candidate, axis=1)
    shift = (candidate - base)[changed]
    if not len(shift):
        return 1.0
    total_base, total_candidate = base.sum(axis=0, dtype=np.float64), candidate.sum(axis=0, dtype=np.float64)
    observed = abs(float(statistic(total_candidate) - statistic(total_base)))
    total = _weighted_sums(shift)
    rng = np.random.default_rng(seed)
    extreme = 0
    for start, stop in _chunks(resamples, len(shift)):
        moved = total(rng.integers(0, 2, size=(len(shift), stop - start), dtype=np.int8))
        drawn = statistic(total_candidate - moved) - statistic(total_base + moved)
        extreme += int(np.count_nonzero(np.abs(drawn) >= observed - 1e-9))
    return (extreme + 1) / (resamples + 1)


def standard_error(differences: Floats) -> float:
    """Standard error of a mean paired difference, ``sqrt(sum((d - mean)^2) / (n (n - 1)))``.

    ``differences`` has shape ``(questions,)``. Miller, Adding Error Bars to Evals (2024), arXiv 2411.00640.
    One question gives zero: nothing is known of the spread.
    """
    n = len(differences)
    return float(np.std(differences, ddof=1) / math.sqrt(n)) if n > 1 else 0.0


def minimum_detectable_effect(
    questions: int, discordance: float, *, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Smallest true difference that a paired test of ``questions`` would find with probability ``power``.

    ``discordance`` is the mean squared paired difference: for right-or-wrong answers the share of questions
    that exactly one arm answers rightly. The result is in the metric's units (0.05 is five points), at most
    1.

    ``(z_{1-alpha/2} + z_power) sqrt(discordance / n)`` (Miller 2024, section 4; Miettinen 1968). A difference
    cannot exceed its own discordance, so discordance is taken to be at least the value where the two meet:
    without it a test in which no answer differed would claim to have seen everything.
    """
    if questions < 1:
        return 1.0
    reach = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return min(1.0, reach * math.sqrt(max(discordance, reach**2 / questions) / questions))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979): family-wise error stays below
    alpha.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(low: float, high: float, p_value: float, *, alpha: float = ALPHA) -> Verdict:
    """*better* or *worse* only where the interval and the test agree, else *inconclusive*."""
    if p_value < alpha and low > 0:
        return "better"
    if p_value < alpha and high < 0:
        return "worse"
    return "inconclusive"


def _check_pair(base: Floats, candidate: Floats) -> int:
    if base.ndim != 2 or base.shape != candidate.shape or not len(base):
        raise ValueError(
            f"arms must be two equal (questions, columns) tables, got {base.shape}, {candidate.shape}"
        )
    return int(base.shape[1])


def _weighted_sums(rows: Floats) -> Callable[[NDArray[np.integer]], Floats]:
    """A function from weights, shape ``(rows, resamples)``, to column sums, shape ``(resamples, columns)``.

    A matrix product that skips zeros: a row of macro-F1 has three ones among hundreds of columns.
    """
    columns, places = np.nonzero(rows.T)
    values = rows[places, columns][:, None]
    filled, starts = np.unique(columns, return_index=True)

    def total(weights: NDArray[np.integer]) -> Floats:
        sums = np.zeros((weights.shape[1], rows.shape[1]))
        if len(filled):
            sums[:, filled] = np.add.reduceat(weights[places] * values, starts, axis=0).T
        return sums

    return total


def _distinct(rows: Floats) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct rows with their counts, and for each row which one it is.

    In order of first appearance, not of value: then swapping the arms leaves the order, and so the draws,
    alone.
    """
    patterns, first, which, counts = np.unique(
        rows, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    place = np.argsort(order)
    return patterns[order], counts[order], place[which.reshape(-1)]


def _chunks(resamples: int, columns: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_CELLS // max(1, columns))
    for start in range(0, resamples, size):
        yield start, min(resamples, start + size)


def _resampled(
    counts: NDArray[np.int64], which: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """How often each pattern is drawn in each resample: ``(first resample, weights)``, chunk by chunk.

    Weights have shape ``(patterns, resamples of the chunk)``.

    Drawing n questions with replacement is a multinomial draw over the distinct patterns. With few of them
    (right or wrong in two arms makes four) that is drawn directly; with many, counting drawn indices is
    faster.
    """
    n, kinds = len(which), len(counts)
    if kinds <= FEW_PATTERNS:
        for start, stop in _chunks(resamples, kinds):
            yield start, rng.multinomial(n, counts / n, size=stop - start).T
        return
    for start, stop in _chunks(resamples, n):
        size = stop - start
        drawn = which[rng.integers(0, n, size=(size, n), dtype=np.int32)] * size + np.arange(size)[:, None]
        yield start, np.bincount(drawn.ravel(), minlength=kinds * size).reshape(kinds, size)
