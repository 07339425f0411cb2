"""Sick engines are out for a while, longer each time, and there is always one to ask."""

import pytest
from balance_clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.balance.health import Health, HealthPolicy

ENGINES = ["a", "b", "c"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock=clock)


def fail(health: Health, engine: str, times: int = 5) -> bool:
    return [health.failed(engine) for _ in range(times)][-1]


def test_five_failures_in_a_row_eject(health: Health) -> None:
    assert not fail(health, "a", 4)
    assert health.available(ENGINES) == ENGINES
    assert health.failed("a")
    assert health.available(ENGINES) == ["b", "c"]


def test_a_success_between_starts_the_count_again(health: Health, clock: FakeClock) -> None:
    fail(health, "a", 4)
    health.succeeded("a", clock())
    assert not fail(health, "a", 4)
    assert health.available(ENGINES) == ENGINES


def test_it_returns_by_a_probe_after_its_time(health: Health, clock: FakeClock) -> None:
    fail(health, "a")
    clock.advance(29.9)
    assert health.sweep() == []
    clock.advance(0.1)
    assert health.sweep() == ["a"]
    assert health.available(ENGINES) == ["b", "c"]  # the time alone returns nobody
    health.probed("a", well=True)
    assert health.available(ENGINES) == ENGINES


def test_each_ejection_is_twice_as_long_up_to_a_limit(health: Health, clock: FakeClock) -> None:
    fail(health, "a")
    for seconds in (30, 60, 120, 240, 300, 300):
        clock.advance(seconds - 0.5)
        assert health.sweep() == []
        clock.advance(0.5)
        assert health.sweep() == ["a"]
        health.probed("a", well=False)


def test_sweeps_that_find_it_well_make_the_next_ejection_shorter(health: Health, clock: FakeClock) -> None:
    fail(health, "a")
    clock.advance(30)
    health.probed("a", well=True)
    health.sweep()
    fail(health, "a")
    clock.advance(30)
    assert health.sweep() == ["a"]


def test_when_all_are_out_the_one_that_failed_least_recently_is_asked(
    health: Health, clock: FakeClock
) -> None:
    for engine in ("b", "c", "a"):
        fail(health, engine)
        clock.advance(1)
    assert health.available(ENGINES) == ["b"]
    health.failed("b")
    assert health.available(ENGINES) == ["c"]
    assert health.available([]) == []


def test_a_request_that_was_sent_after_the_ejection_returns_the_engine(
    health: Health, clock: FakeClock
) -> None:
    earlier = clock()
    clock.advance(5)
    fail(health, "a")
    assert not health.succeeded("a", earlier)  # a stream that outlived what broke
    assert health.ejected == {"a"}
    clock.advance(1)
    assert health.succeeded("a", clock())
    assert not health.ejected


def test_who_leaves_is_forgotten(health: Health) -> None:
    fail(health, "a")
    health.keep(["b"])
    health.keep(ENGINES)
    assert health.available(ENGINES) == ENGINES


def test_a_probe_of_who_is_in_changes_nothing(health: Health) -> None:
    health.probed("a", well=False)
    assert health.available(ENGINES) == ENGINES


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "probe", "late"]), st.sampled_from(ENGINES))))
def test_the_pool_is_never_empty(steps: list[tuple[str, str]]) -> None:
    clock = FakeClock()
    health = Health(HealthPolicy(failures=2), clock)
    for kind, engine in steps:
        clock.advance(1)
        if kind == "ok":
            health.succeeded(engine, clock())
        elif kind == "bad":
            health.failed(engine)
        elif kind == "probe":
            health.probed(engine, well=False)
        else:
            clock.advance(50)
            health.sweep()
        usable = health.available(ENGINES)
        assert usable
        assert len(usable) == 1 or not health.ejected & set(usable)
