"""The parts together: who gets which engine, and what happens when one fails, goes or comes back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
from balance_clock import FakeClock

from serve.errors import AdapterNotReady, EngineUnavailable, Overloaded
from serve.gateway.balance.health import Health
from serve.gateway.balance.member import EngineInfo
from serve.gateway.balance.pool import EnginePool, EngineTicket
from serve.gateway.balance.retry import Outcome, RetryBudget
from serve.gateway.balance.slots import Limits

LIMITS = Limits(2, running=8, patience=3.0, timeout=20.0)
ADAPTERS = ("x", "y", "z")


class Probes:
    """Which engines a probe finds well, and who was asked."""

    def __init__(self) -> None:
        self.well: set[str] = set()
        self.asked: list[str] = []
        self.slow = False

    async def __call__(self, engine: str) -> bool:
        self.asked.append(engine)
        if self.slow:
            raise TimeoutError
        return engine in self.well


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def probes() -> Probes:
    return Probes()


@pytest.fixture
def pool(clock: FakeClock, probes: Probes) -> EnginePool:
    pool = EnginePool(probes, clock=clock)
    pool.update(engines("abc"))
    return pool


def engines(names: str, adapters: Iterable[str] = ADAPTERS, limits: Limits = LIMITS) -> list[EngineInfo]:
    return [EngineInfo(name, frozenset(adapters), limits) for name in names]


async def ask(
    pool: EnginePool, adapter: str | None = None, key: str = "k", outcome: Outcome = Outcome.OK
) -> str:
    async with pool.choose(adapter, key, cost=10) as ticket:
        ticket.report(outcome)
        return ticket.engine


async def turns() -> None:
    """Let all that can go on do so, however slow the machine is."""
    for _ in range(20):
        await asyncio.sleep(0)


async def eject(pool: EnginePool, engine: str) -> None:
    """Let an engine fail until it is out."""
    others = frozenset("abc") - {engine}
    while engine not in pool.health.ejected:
        async with pool.choose(None, "k", cost=1, tried=others) as ticket:
            assert ticket.engine == engine
            ticket.report(Outcome.FAILED)


async def waiting(pool: EnginePool, adapter: str, clock: FakeClock) -> tuple[asyncio.Task[str], EngineTicket]:
    """A request that waits for a place."""
    ticket = pool.choose(adapter, "k", cost=10)

    async def run() -> str:
        async with ticket:
            return ticket.engine

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    assert not task.done()
    return task, ticket


@pytest.fixture
async def full(pool: EnginePool) -> AsyncIterator[EngineTicket]:
    """One engine, ``a``, both of whose slots are taken, by ``x`` and ``y``."""
    pool.update(engines("a"))
    async with pool.choose("x", "k", cost=10) as first, pool.choose("y", "k", cost=10):
        yield first


async def test_a_conversation_keeps_its_engine(pool: EnginePool) -> None:
    chosen = {await ask(pool, "x", "one conversation") for _ in range(20)}
    assert len(chosen) == 1
    assert len({await ask(pool, "x", f"conversation {number}") for number in range(50)}) == 3


async def test_only_engines_that_hold_the_adapter_are_asked(pool: EnginePool) -> None:
    pool.update([*engines("ab", ()), *engines("c", ["x"])])
    assert {await ask(pool, "x", str(number)) for number in range(20)} == {"c"}
    with pytest.raises(AdapterNotReady):
        await ask(pool, "y")
    pool.update([])
    with pytest.raises(EngineUnavailable):
        await ask(pool)


async def test_load_is_bounded_even_for_one_conversation(pool: EnginePool) -> None:
    tickets = [pool.choose(None, "hot", cost=1) for _ in range(12)]
    for ticket in tickets:
        await ticket.__aenter__()
    counts = Counter(ticket.engine for ticket in tickets)
    assert max(counts.values()) <= 5  # 125 % of four
    for ticket in tickets:
        await ticket.__aexit__(None, None, None)
    assert all(status["running"] == 0 for status in pool.status().values())


async def test_an_engine_with_a_free_slot_is_preferred_to_waiting(pool: EnginePool) -> None:
    pool.update(engines("ab"))
    seen = []
    tickets = [pool.choose(adapter, "k", cost=1) for adapter in ("x", "y", "z")]
    for ticket in tickets:
        async with asyncio.timeout(1):
            await ticket.__aenter__()
        seen.append(ticket.engine)
    assert set(seen) == {"a", "b"}
    for ticket in tickets:
        await ticket.__aexit__(None, None, None)


async def test_a_request_waits_until_a_slot_is_free(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, ticket = await waiting(pool, "z", clock)
    assert pool.status()["a"]["waiting"] == 1
    clock.advance(2)
    await full.__aexit__(None, None, None)
    assert await task == "a"
    assert ticket.waited == 2


async def test_who_hangs_up_while_waiting_leaves_no_trace(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.status()["a"] == {
        "running": 2,
        "waiting": 0,
        "adapters_running": ["x", "y"],
        "adapters_draining": [],
        "patience": 3.0,
        "ejected": False,
    }


async def test_who_is_admitted_and_hangs_up_in_the_same_moment_gives_the_place_back(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    await full.__aexit__(None, None, None)  # admitted, but not yet awake
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.status()["a"]["adapters_running"] == ["y"]


async def test_waiting_has_a_limit(pool: EnginePool, full: EngineTicket, clock: FakeClock) -> None:
    task, _ = await waiting(pool, "z", clock)
    clock.advance(20)
    pool.tick()
    with pytest.raises(Overloaded, match="waited too long"):
        await task


async def test_an_engine_that_fails_is_ejected_soon_and_clients_see_little_of_it(pool: EnginePool) -> None:
    errors, asked = 0, Counter[str]()
    for number in range(1000):
        attempts = pool.attempts()
        while True:
            async with pool.choose("x", str(number), cost=1, tried=attempts.tried) as ticket:
                asked[ticket.engine] += 1
                outcome = Outcome.REFUSED if ticket.engine == "a" else Outcome.OK
                ticket.report(outcome)
            if outcome is Outcome.OK:
                break
            if not attempts.again(ticket.engine, outcome, begun=False):
                errors += 1
                break
    assert asked["a"] <= 6
    assert errors == 0
    assert asked["b"] + asked["c"] == 1000


async def test_when_all_fail_the_pool_is_not_empty_and_attempts_are_few(
    clock: FakeClock, probes: Probes
) -> None:
    pool = EnginePool(probes, clock=clock, budget=RetryBudget(per_second=0, burst=1, clock=clock))
    pool.update(engines("abc"))
    asked = 0
    for number in range(500):
        attempts = pool.attempts()
        again = True
        while again:
            async with pool.choose("x", str(number), cost=1, tried=attempts.tried) as ticket:
                asked += 1
                ticket.report(Outcome.REFUSED)
            again = attempts.again(ticket.engine, Outcome.REFUSED, begun=False)
    assert pool.health.ejected == set("abc")
    assert asked <= 1.2 * 500 + 1
    assert await ask(pool) in "abc"
    assert len(pool.health.ejected) == 2  # an answer brings it back


async def test_mistakes_of_clients_and_hang_ups_eject_nobody(pool: EnginePool) -> None:
    for number in range(50):
        await ask(pool, "x", str(number), Outcome.REJECTED)
        await ask(pool, "x", str(number), Outcome.UNKNOWN)
        with pytest.raises(ZeroDivisionError):
            async with pool.choose("x", str(number), cost=1):
                raise ZeroDivisionError
    assert not pool.health.ejected
    assert all(status["running"] == 0 for status in pool.status().values())


async def test_an_ejected_engine_returns_by_a_probe(
    pool: EnginePool, probes: Probes, clock: FakeClock
) -> None:
    await eject(pool, "a")
    await pool.sweep()
    assert probes.asked == []
    clock.advance(30)
    await pool.sweep()
    assert probes.asked == ["a"]
    assert pool.health.ejected == {"a"}
    clock.advance(60)
    probes.slow = True
    await pool.sweep()
    assert pool.health.ejected == {"a"}
    clock.advance(120)
    probes.slow, probes.well = False, {"a"}
    await pool.sweep()
    assert not pool.health.ejected


async def test_who_waits_on_an_engine_that_is_ejected_goes_elsewhere(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    pool.update(engines("ab"))
    assert not task.done()
    await eject(pool, "a")
    assert await task == "b"


async def test_who_waits_where_the_adapter_goes_looks_again(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    pool.update([*engines("a", ["x", "y"]), *engines("b")])
    assert await task == "b"


async def test_who_waits_moves_when_it_could_start_elsewhere(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    tasks = [(await waiting(pool, "z", clock))[0] for _ in range(5)]
    pool.update([*engines("a"), *engines("b", limits=Limits(1, running=2))])
    pool.tick()
    await turns()
    assert [task.done() for task in tasks] == [True] * 2 + [False] * 3  # as many as can start, and the oldest
    pool.tick()
    pool.tick()
    await turns()
    pool.tick()
    async with asyncio.timeout(5):
        assert {await task for task in tasks} == {"b"}


async def test_who_waits_on_an_engine_that_is_gone_is_told_when_there_is_no_other(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    pool.update([])
    with pytest.raises(EngineUnavailable):
        await task


async def test_an_engine_that_came_back_with_other_limits_starts_anew(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    pool.update(engines("a", limits=Limits(3)))
    assert await task == "a"
    full.report(Outcome.FAILED)  # of a life that is over


async def test_updates_that_change_nothing_disturb_nobody(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    for _ in range(3):
        pool.update(engines("a"))
    await asyncio.sleep(0)
    assert not task.done()
    assert pool.status()["a"]["waiting"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def draining(name: str, adapters: str, drains: str) -> EngineInfo:
    return EngineInfo(name, frozenset(adapters), LIMITS, frozenset(drains))


async def test_what_drains_serves_who_came_before_and_counts_as_used_until_nobody_is_on_it(
    pool: EnginePool, full: EngineTicket, clock: FakeClock
) -> None:
    task, _ = await waiting(pool, "z", clock)
    pool.update([draining("a", "xy", "z")])
    await asyncio.sleep(0)
    assert not task.done()
    assert pool.used() == {"a": ["x", "y", "z"]}
    await full.__aexit__(None, None, None)
    assert await task == "a"
    assert pool.used() == {"a": ["x", "y"]}


async def test_what_drains_on_one_engine_is_asked_on_another(pool: EnginePool) -> None:
    pool.update([draining("a", "y", "x"), draining("b", "xy", "")])
    assert {await ask(pool, "x", f"talk {number}") for number in range(20)} == {"b"}


async def test_time_passes_by_itself(probes: Probes) -> None:
    pool = EnginePool(probes, health=Health())
    pool.update(engines("a", limits=Limits(1, timeout=0.15)))
    async with pool.running(), pool.choose("x", "k", cost=1):
        with pytest.raises(Overloaded):
            async with asyncio.timeout(5), pool.choose("y", "k", cost=1):
                pass
