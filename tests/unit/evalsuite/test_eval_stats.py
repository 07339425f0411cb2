"""Statistics against oracles (scipy), against symmetry, and against their own promises in simulation."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from evalsuite.scoring import macro_f1, mean
from evalsuite.stats import (
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    standard_error,
    verdict,
)

counts = st.integers(0, 400)
MIRROR = {"better": "worse", "worse": "better", "inconclusive": "inconclusive"}


def rows(values: object) -> np.ndarray:
    column = np.asarray(values, float)
    return np.column_stack([column, np.ones_like(column)])


def mcnemar_verdict(base: np.ndarray, candidate: np.ndarray) -> str:
    low, high, _ = paired_bootstrap(rows(base), rows(candidate), mean, resamples=1000)
    ahead = candidate - base
    return verdict(low, high, mcnemar_exact(int((ahead < 0).sum()), int((ahead > 0).sum())))


@given(counts, counts)
def test_mcnemar_is_the_binomial_test(only_base: int, only_candidate: int) -> None:
    n = only_base + only_candidate
    expected = oracle.binomtest(only_base, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(only_base, only_candidate) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_survives_thousands_of_discordant_pairs() -> None:
    assert mcnemar_exact(0, 5000) == 0.0
    assert 0.9 < mcnemar_exact(2500, 2501) <= 1.0


def test_the_interval_agrees_with_scipys_bootstrap_of_the_paired_difference() -> None:
    rng = np.random.default_rng(3)
    base, candidate = rng.beta(2, 3, 400), rng.beta(3, 2, 400)
    ours = paired_bootstrap(rows(base), rows(candidate), mean)
    theirs = oracle.bootstrap((candidate - base,), np.mean, method="percentile", n_resamples=9999, rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.003)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.05)
    assert ours.standard_error == pytest.approx(standard_error(candidate - base), rel=0.05)


def test_few_and_many_patterns_draw_from_the_same_distribution() -> None:
    rng = np.random.default_rng(5)
    base, candidate = rng.integers(0, 2, 500).astype(float), rng.integers(0, 2, 500).astype(float)
    few = paired_bootstrap(rows(base), rows(candidate), mean)
    nudge = rng.normal(0, 1e-9, 500)  # makes every row distinct, and so takes the other way of drawing
    many = paired_bootstrap(rows(base + nudge), rows(candidate), mean)
    assert few.low == pytest.approx(many.low, abs=0.006)
    assert few.high == pytest.approx(many.high, abs=0.006)
    assert few.standard_error == pytest.approx(many.standard_error, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=120), st.integers(0, 9))
def test_swapping_the_arms_mirrors_interval_and_verdict(pairs: list[tuple[bool, bool]], seed: int) -> None:
    base, candidate = (np.array(arm, float) for arm in zip(*pairs, strict=True))
    one = paired_bootstrap(rows(base), rows(candidate), mean, resamples=500, seed=seed)
    other = paired_bootstrap(rows(candidate), rows(base), mean, resamples=500, seed=seed)
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)
    assert mcnemar_verdict(base, candidate) == MIRROR[mcnemar_verdict(candidate, base)]
    forth = paired_permutation(rows(base), rows(candidate), mean, resamples=200, seed=seed)
    assert forth == paired_permutation(rows(candidate), rows(base), mean, resamples=200, seed=seed)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_equal_arms_are_never_told_apart(values: list[float]) -> None:
    low, high, error = paired_bootstrap(rows(values), rows(values), mean, resamples=100)
    assert (low, high, error) == (0.0, 0.0, 0.0)
    assert paired_permutation(rows(values), rows(values), mean) == 1.0


def test_the_permutation_test_agrees_with_scipys() -> None:
    rng = np.random.default_rng(11)
    base = rng.beta(2, 2, 80)
    candidate = np.clip(base + rng.normal(0.03, 0.15, 80), 0, 1)
    theirs = oracle.permutation_test(
        (candidate, base), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=9999, rng=1
    )
    assert paired_permutation(rows(base), rows(candidate), mean) == pytest.approx(theirs.pvalue, abs=0.015)


def test_false_verdicts_are_rarer_than_five_in_a_hundred() -> None:
    rng = np.random.default_rng(17)
    trials, false = 600, 0
    for _ in range(trials):
        hard = rng.random(150)  # shared difficulty, so that the arms' answers are paired
        base, candidate = ((rng.random(150) < hard).astype(float) for _ in range(2))
        false += mcnemar_verdict(base, candidate) != "inconclusive"
    # 0.05 and three standard errors of the simulation itself
    assert false / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert false > 0, "a test that never errs cannot see anything either"


def test_a_difference_of_the_minimum_detectable_effect_is_found_four_times_in_five() -> None:
    n, discordance = 600, 0.25
    effect = minimum_detectable_effect(n, discordance)
    rng = np.random.default_rng(23)
    chances = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    draws = rng.multinomial(n, chances, size=3000)
    found = np.mean([mcnemar_exact(int(broken), int(fixed)) < 0.05 for fixed, broken, _ in draws])
    assert 0.76 <= found <= 0.84


@pytest.mark.parametrize(("n", "expected"), [(100, 0.125), (500, 0.056), (1000, 0.040)])
def test_minimum_detectable_effects_are_the_published_ones(n: int, expected: float) -> None:
    assert minimum_detectable_effect(n, 0.2) == pytest.approx(expected, abs=0.0005)


def test_a_test_in_which_nothing_differed_does_not_claim_to_see_everything() -> None:
    assert minimum_detectable_effect(100, 0.0) == pytest.approx(7.85 / 100, abs=0.001)
    assert minimum_detectable_effect(0, 0.5) == minimum_detectable_effect(5, 0.0) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    by_p = sorted(zip(p_values, adjusted, strict=True))
    assert [after for _, after in by_p] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_holm_on_a_textbook_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.2, 0.01, "better"),
        (-0.2, -0.01, 0.01, "worse"),
        (0.01, 0.2, 0.05, "inconclusive"),
        (0.0, 0.2, 0.01, "inconclusive"),
        (-0.1, 0.2, 0.001, "inconclusive"),
    ],
)
def test_a_verdict_needs_interval_and_test(low: float, high: float, p: float, expected: str) -> None:
    assert verdict(low, high, p) == expected


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equal"):
        paired_bootstrap(rows([1, 0]), rows([1]), mean)
    with pytest.raises(ValueError, match="equal"):
        paired_permutation(rows([]), rows([]), mean)


def test_one_question_has_no_spread() -> None:
    assert standard_error(np.array([1.0])) == 0.0


def test_ten_thousand_resamples_of_a_large_test_take_seconds() -> None:
    rng = np.random.default_rng(1)
    n, labels = 3080, 77
    base, candidate = (rng.random(n) for _ in range(2))
    began = time.process_time()
    paired_bootstrap(rows(base), rows(candidate), mean)
    assert time.process_time() - began < 4, "means: 0.4 s on an idle core"
    expected = np.eye(labels)[np.arange(n) % labels]
    tables = []
    for skill in (0.3, 0.7):
        given_label = np.eye(labels)[
            np.where(rng.random(n) < skill, np.arange(n) % labels, rng.integers(0, labels, n))
        ]
        tables.append(np.hstack([given_label * expected, given_label, expected]))
    began = time.process_time()
    low, high, _ = paired_bootstrap(tables[0], tables[1], macro_f1)
    assert time.process_time() - began < 4, "macro-F1: 0.5 s on an idle core"
    assert 0.3 < low < high < 0.5
