"""Admission to one engine: what each rule does, and that every wait is bounded."""

import math
import random
from collections import Counter

import pytest
from balance_clock import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.load.slots import TICK, Arrival, Clock, Guarded, simulate
from serve.errors import Overloaded
from serve.gateway.balance.slots import Limits, Request, Slots, State, longest_wait


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(clock: FakeClock, slots: int = 2, **limits: float) -> Slots:
    return Slots(Limits(slots, **limits), clock)  # type: ignore[arg-type]


def submit(slots: Slots, names: str, cost: int = 10) -> list[Request]:
    return [slots.submit(None if name == "-" else name, cost) for name in names]


def running(requests: list[Request]) -> str:
    return "".join(r.adapter or "-" for r in requests if r.state is State.RUNNING)


def test_no_more_adapters_run_than_there_are_slots(clock: FakeClock) -> None:
    slots = make(clock)
    requests = submit(slots, "abcab-")
    assert running(requests) == "abab-"  # c waits, who holds a slot and the base do not
    assert slots.holders == {"a", "b"}
    assert (slots.running, slots.waiting, slots.load) == (5, 1, 6)
    assert slots.adapters == {"a", "b", "c"}


def test_a_free_slot_goes_to_who_waited_longest(clock: FakeClock) -> None:
    slots = make(clock, slots=1)
    first, *rest = submit(slots, "acbc")
    slots.end(first)
    assert running(rest) == "cc"


def test_who_waits_too_long_makes_the_one_with_most_service_drain(clock: FakeClock) -> None:
    slots = make(clock, patience=3.0)
    a, b, *_ = submit(slots, "ab")
    more = submit(slots, "aa")
    clock.advance(3)
    [c] = submit(slots, "c")
    clock.advance(2.9)
    slots.tick()
    assert slots.draining == set()
    clock.advance(0.1)
    slots.tick()
    assert slots.draining == {"a"}
    [late] = submit(slots, "a")
    assert late.state is State.WAITING
    for request in (a, *more):
        assert c.state is State.WAITING
        slots.end(request)
    assert c.state is State.RUNNING
    slots.end(b)  # a lined up again and gets the slot that b leaves
    assert late.state is State.RUNNING


def test_live_versions_drain_last(clock: FakeClock) -> None:
    slots = make(clock)
    slots.pinned = frozenset("a")
    submit(slots, "aaab")
    clock.advance(3)
    submit(slots, "c")
    clock.advance(3)
    slots.tick()
    assert slots.draining == {"b"}
    submit(slots, "d")
    clock.advance(3)
    slots.tick()
    assert slots.draining == {"a", "b"}  # preferred, not unfair


def test_a_turn_lasts_at_least_twice_as_long_as_patience(clock: FakeClock) -> None:
    slots = make(clock, slots=1, patience=3.0)
    [a] = submit(slots, "a")
    [b] = submit(slots, "b")
    submit(slots, "c")
    clock.advance(10)
    slots.end(a)
    assert b.state is State.RUNNING
    slots.tick()
    assert slots.draining == set()  # c has waited for ten seconds, but b has only begun
    clock.advance(5.9)
    slots.tick()
    assert slots.draining == set()
    clock.advance(0.1)
    slots.tick()
    assert slots.draining == {"b"}


def test_who_drains_for_nobody_goes_on(clock: FakeClock) -> None:
    slots = make(clock, slots=1)
    submit(slots, "a")
    [b] = submit(slots, "b")
    clock.advance(6)
    slots.tick()
    assert slots.draining == {"a"}
    [late] = submit(slots, "a")
    assert late.state is State.WAITING
    slots.end(b)
    assert late.state is State.RUNNING
    assert slots.draining == set()


def test_leaving_the_queue_makes_room_at_once(clock: FakeClock) -> None:
    slots = make(clock, slots=1, waiting=1)
    submit(slots, "a")
    [b] = submit(slots, "b")
    with pytest.raises(Overloaded) as caught:
        submit(slots, "b")
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "overloaded", 1)
    slots.end(b)
    slots.end(b)  # once more does no harm
    assert slots.waiting == 0
    [c] = submit(slots, "c")
    assert c.state is State.WAITING


def test_a_full_queue_does_not_stop_who_need_not_wait(clock: FakeClock) -> None:
    slots = make(clock, slots=1, waiting=1)
    submit(slots, "ab")
    assert slots.full("a")
    assert running(submit(slots, "a-")) == "a-"


def test_one_adapter_cannot_fill_the_queue(clock: FakeClock) -> None:
    slots = make(clock, slots=1, waiting_per_adapter=2)
    submit(slots, "abb")
    with pytest.raises(Overloaded):
        submit(slots, "b")
    submit(slots, "c")


def test_retry_after_tells_how_long_others_wait(clock: FakeClock) -> None:
    slots = make(clock, slots=1, waiting=2)
    submit(slots, "a")
    gone, _ = submit(slots, "bc")
    clock.advance(6.5)
    with pytest.raises(Overloaded) as caught:
        submit(slots, "d")
    assert caught.value.retry_after == 7
    slots.end(gone)
    clock.advance(100)
    assert slots.overloaded("x").retry_after == 30


def test_who_waited_too_long_is_sent_away(clock: FakeClock) -> None:
    slots = make(clock, slots=1, timeout=5.0)
    submit(slots, "a")
    woken = []
    request = slots.submit("b", 1, wake=lambda: woken.append("b"))
    sooner = slots.submit("b", 1, deadline=clock() + 2)
    clock.advance(2)
    slots.tick()
    assert (request.state, sooner.state) == (State.WAITING, State.EXPIRED)
    clock.advance(3)
    slots.tick()
    assert request.state is State.EXPIRED
    assert woken == ["b"]
    assert slots.waiting == 0


def test_displaced_requests_are_told(clock: FakeClock) -> None:
    slots = make(clock, slots=1)
    a, *rest = submit(slots, "abbc")
    slots.displace({"b", "unknown"})
    assert [r.state for r in rest] == [State.DISPLACED, State.DISPLACED, State.WAITING]
    slots.displace()
    assert rest[2].state is State.DISPLACED
    assert a.state is State.RUNNING
    assert slots.load == 1


def admitted(slots: Slots, requests: list[Request], steps: int) -> Counter[str]:
    """Which tokens are admitted when whatever has run longest ends, a number of times."""
    order = [request for request in requests if request.state is State.RUNNING]
    tokens: Counter[str] = Counter()
    for _ in range(steps):
        slots.end(order.pop(0))
        new = [r for r in requests if r.state is State.RUNNING and r not in order]
        tokens.update({r.adapter or "-": 0 for r in new})
        for request in new:
            tokens[request.adapter or "-"] += request.cost
        order += new
    return tokens


def test_capacity_is_shared_by_tokens_and_not_by_requests(clock: FakeClock) -> None:
    slots = make(clock, slots=2, running=4, quantum=100)
    large = [slots.submit("a", 100) for _ in range(100)]
    small = [slots.submit("b", 10) for _ in range(250)]
    base = [slots.submit(None, 50) for _ in range(100)]
    tokens = admitted(slots, [*large, *small, *base], 150)
    assert max(tokens.values()) - min(tokens.values()) <= 200


def test_a_request_longer_than_the_quantum_is_charged_for_one(clock: FakeClock) -> None:
    slots = make(clock, slots=1, quantum=100)
    assert slots.submit("a", 10**9).cost == 100
    assert slots.submit("a", 0).cost == 1


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"running": 0}, {"quantum": 0}, {"patience": -1}, {"timeout": 0}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**{"slots": 1, **wrong})  # type: ignore[arg-type]


@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.sampled_from([2, 5, 1000]),
    st.sampled_from([20, 60, 1000]),
    st.sampled_from([0.05, 0.3, 2.0]),
)
@settings(deadline=None, max_examples=60)
def test_nobody_waits_longer_than_the_bound(
    seed: int, slots: int, most: int, quantum: int, gap: float
) -> None:
    draw = random.Random(seed)
    at, arrivals = 0.0, []
    for number in range(200):
        at += draw.expovariate(1 / gap)
        adapter = min(draw.randrange(7), 4)  # one adapter is asked more often
        tokens, seconds = draw.randint(5, 60), draw.uniform(0.1, 4.0)
        arrivals.append(Arrival(number, at, f"a{adapter}", tokens, seconds))
    limits = Limits(slots, most, 200, 200, quantum, patience=0.5, timeout=math.inf)
    clock = Clock()
    waited = simulate(arrivals, Guarded(limits, clock), clock)
    bound = longest_wait(limits, adapters=5, request_seconds=4.0, tick_seconds=TICK, cheapest=5, dearest=60)
    assert len(waited) == len(arrivals)
    assert max(waited.values()) <= bound


def test_with_room_to_run_the_bound_is_near() -> None:
    """A turn and draining for each of the four that share a slot, once more for who came too late, and a start."""
    limits = Limits(4, running=10**9)
    bound = longest_wait(limits, adapters=16, request_seconds=10.0, tick_seconds=0.1)
    assert bound == pytest.approx(5 * (10.0 + 10.0 + 0.2) + 10.0)


def test_long_answers_make_turns_no_longer_than_the_time_limit_allows() -> None:
    limits = Limits(4, timeout=60.0)
    assert [limits.least_turn(patience) for patience in (1.0, 3.0, 10.0, 30.0)] == [2.0, 6.0, 15.0, 30.0]


def test_who_waits_when_the_turn_begins_is_served_in_it(clock: FakeClock) -> None:
    slots = make(clock, slots=1, running=2, patience=1.0)
    [first] = submit(slots, "a")
    queued = submit(slots, "bbbbb")
    submit(slots, "c")
    slots.end(first)
    for number in range(5):
        late = submit(slots, "b")
        clock.advance(5)
        slots.tick()
        assert slots.draining == (set() if number < 3 else {"b"})
        slots.end(queued[number])
    assert late[0].state is State.WAITING


def test_a_flood_of_one_adapter_does_not_starve_another() -> None:
    """vLLM would make ``rare`` wait until the flood ends, after 100 s."""
    flood = [Arrival(n, n * 0.1, "hot", 50, 1.0) for n in range(1000)]
    rare = [Arrival(1000 + n, 5.0 + n * 10, "rare", 50, 1.0) for n in range(9)]
    clock = Clock()
    limits = Limits(1, patience=2.0, timeout=math.inf, waiting=10**6, waiting_per_adapter=10**6)
    waited = simulate([*flood, *rare], Guarded(limits, clock), clock)
    assert max(waited[arrival.number] for arrival in rare) <= 2.0 + 1.0 + 2 * TICK
    assert max(waited[arrival.number] for arrival in flood) <= 1.0 + 2.0 + 1.0 + 2 * TICK
