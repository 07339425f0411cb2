"""The engines of one base, and how a request gets one of them.

    attempts = pool.attempts()
    async with pool.choose(engine_name, conversation, cost=tokens, tried=attempts.tried) as ticket:
        ...  # ask ticket.engine
        ticket.report(Outcome.OK)

Within the block the request holds its place on that engine; leaving it, however, gives the place back at once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from serve.errors import AdapterNotReady, EngineUnavailable
from serve.gateway.balance.hashing import Ring, pick
from serve.gateway.balance.health import Health
from serve.gateway.balance.member import EngineInfo, Member
from serve.gateway.balance.retry import Attempts, Outcome, RetryBudget
from serve.gateway.balance.slots import Request, Slots, State

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
SWEEP_SECONDS = 10.0
PROBE_SECONDS = 5.0
"""An engine that takes longer to say that it is well is not."""

Probe = Callable[[str], Awaitable[bool]]
"""Asks an engine, by name, whether it is well; what cannot be reached is not."""

Waiting = Callable[[], AbstractContextManager[None]]
"""Makes a context that is entered while a request waits, for the metrics."""


class EnginePool:
    """Chooses engines; ``update`` says which there are, ``running`` lets time pass.

    ``ejected`` is called with the name of each engine that is ejected. A choice takes O(engines), and what the
    parts take; see there.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        health: Health | None = None,
        budget: RetryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
        ejected: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.clock = clock
        self._ejected = ejected
        self.health = health or Health(clock=clock)
        self._probe = probe
        self._budget = budget or RetryBudget(clock=clock)
        self._members: dict[str, Member] = {}
        self._ring = Ring(())

    def update(self, engines: Iterable[EngineInfo], pinned: Iterable[str] = ()) -> None:
        """Take over which engines there are now; whoever waits where it cannot be served looks again.

        ``pinned`` are engine names, see :class:`Slots`. To be called with the whole truth, any number of times.
        """
        pins = frozenset(pinned)
        old, self._members = self._members, {}
        for info in engines:
            member = old.get(info.name)
            if member is None or member.info.limits != info.limits:
                member = Member(info, self.clock)
            else:
                old.pop(info.name)
            member.info = info
            member.slots.pinned = pins
            member.residency.observe(sorted(info.adapters | info.draining))
            self._members[info.name] = member
        if self._ring.engines != self._members.keys():
            self._ring = Ring(self._members)
        self.health.keep(list(self._members))
        for gone in old.values():
            gone.slots.displace()
        for member in self._members.values():
            member.slots.displace(member.slots.adapters - member.info.adapters - member.info.draining)

    def attempts(self) -> Attempts:
        """What a new request keeps of its attempts."""
        return Attempts(self._budget)

    def choose(
        self,
        adapter: str | None,
        conversation: str,
        *,
        cost: int,
        tried: frozenset[str] = frozenset(),
        place: bool = True,
        waiting: Waiting = contextlib.nullcontext,
        called: str = "",
    ) -> "EngineTicket":
        """A place on an engine for a request of ``cost`` tokens, to be entered with ``async with``.

        ``adapter`` is an engine name, or None for the base; ``tried`` are engines to be avoided if others can do
        it. Without ``place`` it needs none, as the engine's model has nothing to do; it never waits then. Errors
        name the adapter as it is ``called`` in public.
        Entering raises :class:`AdapterNotReady`, :class:`EngineUnavailable` or, when too many wait or it waited
        too long, :class:`Overloaded`.
        """
        return EngineTicket(self, Wish(adapter, conversation, cost, tried, place, waiting, called))

    def pick(self, adapter: str | None, conversation: str, tried: frozenset[str], called: str = "") -> Member:
        """The engine for a request; see :func:`hashing.pick`. One that drains the adapter is the last choice."""
        if not self._members:
            raise EngineUnavailable("no engine has been started yet", "try again shortly")
        holders = [name for name in self._members if self._holds(name, adapter)] or [
            name for name, member in self._members.items() if adapter in member.info.draining
        ]
        if not holders:
            what = called or "the adapter"
            raise AdapterNotReady(f"no engine holds {what} at this moment", "try again shortly")
        if len(holders) == 1:
            return self._members[holders[0]]
        usable = self.health.available([name for name in holders if name not in tried] or holders)
        roomy = [name for name in usable if not self._members[name].slots.full(adapter)] or usable
        loads = {name: self._members[name].slots.load for name in roomy}
        order = self._ring.walk(adapter or "", conversation)
        return self._members[pick(order, loads, lambda name: self._members[name].slots.starts(adapter))]

    def another(self, adapter: str | None, tried: frozenset[str]) -> bool:
        """Whether an engine that was not tried yet holds the adapter and may be asked."""
        out = tried | self.health.ejected
        return any(name not in out and self._holds(name, adapter) for name in self._members)

    def settle(self, member: Member, outcome: Outcome, sent: float) -> None:
        """Learn from how an attempt on an engine ended that was sent at the time ``sent``."""
        name = member.info.name
        if self._members.get(name) is not member or outcome.well is None:
            return
        if outcome.well:
            if self.health.succeeded(name, sent):
                logger.info("engine %s answers again", name)
        elif self.health.failed(name):
            logger.warning("engine %s has failed too often, it is not asked for now", name)
            self._ejected(name)
            member.slots.displace()

    def tick(self) -> None:
        """Let patience and time limits take effect, and move who waits here but could start elsewhere."""
        for member in self._members.values():
            member.slots.tick()
        for member in self._members.values():
            for adapter in member.slots.queued:
                spare = self._spare(adapter)
                if spare:
                    member.slots.displace([adapter], spare)

    def _spare(self, adapter: str | None) -> int:
        """How many requests of an adapter could start at once on some engine that may be asked."""
        holders = [name for name in self._members if self._holds(name, adapter)]
        usable = [self._members[name].slots for name in self.health.available(holders)]
        return max(
            (slots.limits.running - slots.running for slots in usable if slots.starts(adapter)), default=0
        )

    def _holds(self, name: str, adapter: str | None) -> bool:
        return self._members[name].info.holds(adapter)

    async def sweep(self) -> None:
        """Probe the engines whose ejection is over."""
        await asyncio.gather(*map(self._probe_one, self.health.sweep()))

    async def _probe_one(self, name: str) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                well = await self._probe(name)
        except TimeoutError:
            well = False
        self.health.probed(name, well=well)
        logger.info("engine %s %s", name, "answers again" if well else "still does not answer")

    def running(self) -> AbstractAsyncContextManager[None]:
        """Tick and sweep while the block runs."""
        return time_passes(lambda: [self])

    def used(self) -> dict[str, list[str]]:
        """The adapters of each engine that requests are or may be sent to, the least recently used first."""
        return {name: member.engaged for name, member in self._members.items()}

    def status(self) -> dict[str, dict[str, Any]]:
        """Each engine's load and health, for ``/api/status``."""
        ejected = self.health.ejected
        return {
            name: {**member.status(), "ejected": name in ejected} for name, member in self._members.items()
        }


@dataclass(slots=True)
class Wish:
    """What a request wants of a pool; see :meth:`EnginePool.choose`."""

    adapter: str | None
    conversation: str
    cost: int
    tried: frozenset[str]
    place: bool
    waiting: Waiting
    called: str


class EngineTicket:
    """One request's place on one engine, from the moment it may be sent until its answer has ended.

    Once entered, ``engine`` is the engine's name and ``waited`` the seconds until then; once left, ``held`` is for
    how many seconds the engine had the request and ``outcome`` how that ended.
    """

    def __init__(self, pool: EnginePool, wish: Wish) -> None:
        self.engine = ""
        self.waited = 0.0
        self.held = 0.0
        self.outcome = Outcome.UNKNOWN
        self._pool = pool
        self._wish = wish
        self._sent = 0.0

    def report(self, outcome: Outcome) -> None:
        """Say how the attempt ended; the last word counts, and without one nothing is learned of the engine."""
        self.outcome = outcome

    async def __aenter__(self) -> Self:
        started = self._pool.clock()
        self._member, self._request = await self._admission()
        self.engine = self._member.info.name
        self._sent = self._pool.clock()
        self.waited = self._sent - started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held = self._pool.clock() - self._sent
        self._pool.settle(self._member, self.outcome, self._sent)
        if self._request is not None:
            if self.outcome is Outcome.OK:
                self._member.learn(self.held)
            self._member.slots.end(self._request)

    async def _admission(self) -> tuple[Member, Request | None]:
        wish, tried, deadline = self._wish, self._wish.tried, None
        while True:
            member = self._pool.pick(wish.adapter, wish.conversation, tried, wish.called)
            if wish.adapter is not None:
                member.residency.touch(wish.adapter)
            if not wish.place:
                return member, None
            request = member.slots.submit(wish.adapter, wish.cost, deadline=deadline)
            deadline = request.deadline
            if request.state is State.WAITING:
                with wish.waiting():
                    await _decided(member.slots, request)
            if request.state is State.RUNNING:
                return member, request
            if request.state is State.EXPIRED:
                raise member.slots.overloaded("the request waited too long for a place on the engine")
            tried = frozenset()  # time has passed; who is sent away from one engine must be able to take any


async def _decided(slots: Slots, request: Request) -> None:
    """Wait until a request waits no more; whoever is cancelled here frees its place."""
    future = asyncio.get_running_loop().create_future()
    request.wake = lambda: None if future.done() else future.set_result(None)
    try:
        await future
    except asyncio.CancelledError:
        slots.end(request)
        raise


@contextlib.asynccontextmanager
async def time_passes(pools: Callable[[], Iterable[EnginePool]]) -> AsyncIterator[None]:
    """Tick and sweep the pools that there are while the block runs."""

    async def ticking() -> None:
        for pool in list(pools()):
            pool.tick()

    async def sweeping() -> None:
        await asyncio.gather(*(pool.sweep() for pool in pools()))

    tasks = [
        asyncio.create_task(_every(TICK_SECONDS, ticking)),
        asyncio.create_task(_every(SWEEP_SECONDS, sweeping)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except Exception:  # the edge of a background task: it must outlive what nobody foresaw
            logger.exception("the pool of engines could not be looked after, trying again")
