"""Loads of requests: closed loops that keep a server busy, and open ones that come whether it is ready or not."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from evalsuite.load.connection import Answer, Broken, Connection, Tally

TICK = 0.001
"""Seconds between two looks of an open loop at what is due; the event loop's timers are no finer."""
GIVE_UP = 60.0
"""Seconds after which what an open loop still waits for counts as failed."""


@asynccontextmanager
async def closed_loop(url: str, request: bytes, at_once: int) -> AsyncIterator[Tally]:
    """Keep ``at_once`` requests running while the block does; the tally counts what has been answered.

    A connection that breaks is made anew; that, and every status but 200, counts as a failure.
    """
    tally = Tally()

    async def worker() -> None:
        connection: Connection | None = None
        while True:
            try:
                if connection is None or connection.closed:
                    connection = await Connection.open(url, tally)
                answer = await connection.ask(request)
            except Broken:
                connection = None
                tally.failures += 1
                await asyncio.sleep(0.01)
                continue
            except asyncio.CancelledError:
                if connection is not None:
                    connection.hang_up()
                raise
            if answer.status == 200:
                tally.answers += 1
            else:
                tally.failures += 1

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        yield tally
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def answered(answer: Answer) -> bool:
    """Whether it is a good answer, going by its status."""
    return answer.status == 200


@dataclass
class OpenLoop:
    """Requests at ``rate`` per second (Poisson, rounded to ``TICK``) for ``seconds``, whatever becomes of them.

    Each goes out on a connection that is free, or else on a new one. ``latencies`` are the seconds from the
    sending, connecting included, to the answer's end; ``lags`` how late the client itself was; ``failures`` the
    statuses and reasons of what was not answered with 200, or what ``good`` does not find whole.
    """

    url: str
    request: Callable[[int], bytes]
    rate: float
    seconds: float
    seed: int = 1
    good: Callable[[Answer], bool] = answered
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Send until the time is over or ``stop`` is set, then wait for what is open."""
        self._free: list[Connection] = []
        begin, drawn = time.perf_counter(), random.Random(self.seed)
        running: set[asyncio.Task[None]] = set()
        due, number = begin + drawn.expovariate(self.rate), 0
        while due < begin + self.seconds and not (stop is not None and stop.is_set()):
            now = time.perf_counter()
            while due <= min(now, begin + self.seconds):
                self.lags.append(now - due)
                task = asyncio.create_task(self._one(self.request(number)))
                running.add(task)
                task.add_done_callback(running.discard)
                due, number = due + drawn.expovariate(self.rate), number + 1
            await asyncio.sleep(max(TICK, due - now))
        if running:
            _, late = await asyncio.wait(running, timeout=GIVE_UP)
            for task in late:
                task.cancel()
                self.failures.append(f"no answer within {GIVE_UP:.0f} s")
        for connection in self._free:
            connection.hang_up()

    async def _one(self, request: bytes) -> None:
        started = time.perf_counter()
        try:
            answer = await self._ask(request)
        except Broken as error:
            self.failures.append(str(error))
            return
        if self.good(answer):
            self.latencies.append(answer.done - started)
        else:
            self.failures.append(f"HTTP {answer.status}: {answer.body[-200:].decode(errors='replace')}")

    async def _ask(self, request: bytes) -> Answer:
        connection = None
        while self._free and connection is None:
            connection = self._free.pop()
            connection = None if connection.closed else connection
        if connection is None:
            connection = await Connection.open(self.url)
        answer = await connection.ask(request)
        if not connection.closed:
            self._free.append(connection)
        return answer


async def ask_once(url: str, request: bytes) -> Answer:
    """One request on a connection of its own; raises Broken."""
    connection = await Connection.open(url)
    try:
        return await connection.ask(request)
    finally:
        connection.hang_up()


async def until_answered(url: str, request: bytes, seconds: float, alive: Callable[[], bool]) -> None:
    """Wait until the request is answered with 200; raises Broken with the last answer when it is not in time."""
    deadline, last = time.monotonic() + seconds, Broken("never asked")
    while time.monotonic() < deadline and alive():
        with contextlib.suppress(TimeoutError):
            try:
                answer = await asyncio.wait_for(ask_once(url, request), 10)
            except Broken as error:
                last = error
            else:
                if answer.status == 200:
                    return
                last = Broken(f"HTTP {answer.status}: {answer.body[:500].decode(errors='replace')}", answer)
        await asyncio.sleep(0.1)
    raise last
