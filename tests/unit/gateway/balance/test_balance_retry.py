"""Retries are few, early and only where the engine did nothing."""

import pytest
from balance_clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.balance.retry import Attempts, Outcome, RetryBudget

STEPS = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5)), min_size=1, max_size=80)


@given(STEPS)
def test_retries_stay_within_the_budget_whatever_happens(steps: list[tuple[float, int]]) -> None:
    clock = FakeClock()
    budget = RetryBudget(share=0.2, per_second=3.0, burst=10.0, clock=clock)
    allowed, made = 10.0, 0
    for gap, wishes in steps:
        clock.advance(gap)
        budget.deposit()
        allowed += max(0.2, 3.0 * gap)
        made += sum(budget.withdraw() for _ in range(wishes))
        assert made <= allowed + 1e-6


@pytest.mark.parametrize(("rate", "expected"), [(100, 20.0), (2, 3.0)])
def test_the_larger_of_share_and_least_rate_counts(rate: int, expected: float) -> None:
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    made = 0
    for _ in range(60 * rate):
        clock.advance(1 / rate)
        budget.deposit()
        made += sum(budget.withdraw() for _ in range(20))
    assert made == pytest.approx(60 * expected + 10, abs=3)


def test_a_total_outage_costs_a_fifth_more_attempts() -> None:
    clock = FakeClock()
    budget = RetryBudget(per_second=0.0, burst=1.0, clock=clock)
    attempts = 0
    for _ in range(500):
        request = Attempts(budget)
        attempts += 1
        while request.again("a", Outcome.REFUSED, begun=False):
            attempts += 1
    assert 590 <= attempts <= 601


def test_time_alone_fills_no_more_than_the_bucket_holds() -> None:
    clock = FakeClock()
    budget = RetryBudget(burst=4.0, clock=clock)
    clock.advance(3600)
    assert [budget.withdraw() for _ in range(6)] == [True] * 4 + [False] * 2
    clock.advance(1)
    assert [budget.withdraw() for _ in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize("outcome", Outcome)
def test_only_who_did_nothing_is_asked_again(outcome: Outcome) -> None:
    retried = Attempts(RetryBudget()).again("a", outcome, begun=False)
    assert retried == (outcome in (Outcome.REFUSED, Outcome.UNAVAILABLE, Outcome.LOST, Outcome.CUT))
    assert not Attempts(RetryBudget()).again("a", outcome, begun=True)


def test_three_attempts_at_most_and_the_failed_are_known() -> None:
    request = Attempts(RetryBudget())
    assert request.again("a", Outcome.REFUSED, begun=False)
    assert request.again("b", Outcome.UNAVAILABLE, begun=False)
    assert not request.again("c", Outcome.REFUSED, begun=False)
    assert request.tried == {"a", "b", "c"}


def test_a_request_that_broke_two_engines_off_gets_no_third() -> None:
    request = Attempts(RetryBudget())
    assert request.again("a", Outcome.CUT, begun=False)
    assert not request.again("b", Outcome.CUT, begun=False)


@pytest.mark.parametrize(
    ("status", "outcome", "well"),
    [
        (200, Outcome.OK, True),
        (400, Outcome.REJECTED, True),
        (404, Outcome.REJECTED, True),
        (429, Outcome.REJECTED, True),
        (500, Outcome.FAILED, False),
        (501, Outcome.REJECTED, True),
        (503, Outcome.UNAVAILABLE, False),
        (504, Outcome.FAILED, False),
    ],
)
def test_what_a_status_says_of_the_engine(status: int, outcome: Outcome, well: bool) -> None:
    assert Outcome.of_status(status) is outcome
    assert outcome.well is well


def test_a_client_that_leaves_says_nothing_of_the_engine() -> None:
    assert Outcome.UNKNOWN.well is None
