"""Requests at fixed times, whatever becomes of them, and what a client sees of each.

A schedule is drawn once and can be replayed against anything that answers chats, so that what is compared has had the
same to do. Times count from when a request was due, not from when it could be sent: a server that makes
others wait cannot hide it, nor can a client that is late itself.
"""

import asyncio
import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evalsuite.load.connection import Answer, Broken, Connection
from evalsuite.load.verdict import quantile

GIVE_UP = 120.0
"""Seconds after the last request is due after which what has no answer counts as failed."""
LEAD = 0.05
"""Seconds between the call and the first moment of the schedule."""


@dataclass(frozen=True)
class Call:
    """A request of a schedule: due ``at`` seconds from its begin, to one adapter, for so many tokens."""

    at: float
    adapter: int
    sentences: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """Poisson arrivals at ``rate`` per second; adapter k (from 0) of ``adapters`` has a share of 1/(k+1)**``skew``.

    Answers have log-normal lengths with a median of ``tokens`` and a sigma of 0.6, from a quarter of it to four
    times as many; questions have one to ``sentences`` sentences.
    """

    adapters: int = 16
    rate: float = 8.0
    skew: float = 1.0
    seconds: float = 20.0
    tokens: int = 48
    sentences: int = 4
    seed: int = 1

    def calls(self) -> list[Call]:
        """The schedule, in order of time."""
        draw = random.Random(self.seed)
        shares = [1 / number**self.skew for number in range(1, self.adapters + 1)]
        found: list[Call] = []
        at = draw.expovariate(self.rate)
        while at < self.seconds:
            [adapter] = draw.choices(range(self.adapters), shares)
            length = round(draw.lognormvariate(math.log(self.tokens), 0.6))
            tokens = min(max(length, self.tokens // 4, 1), 4 * self.tokens)
            found.append(Call(at, adapter, draw.randint(1, self.sentences), tokens))
            at += draw.expovariate(self.rate)
        return found


@dataclass(frozen=True)
class Seen:
    """What became of a call: seconds from when it was due to its first and last token, or why it failed.

    ``lag`` is how late the client sent it.
    """

    call: Call
    lag: float
    first: float = math.nan
    last: float = math.nan
    failure: str = ""


async def replay(url: str, calls: Sequence[Call], request: Callable[[Call], bytes]) -> list[Seen]:
    """Send the requests when they are due, each on a connection that is free or on a new one; in their order."""
    free: list[Connection] = []
    begin = time.perf_counter() + LEAD

    async def send(call: Call) -> Seen:
        due = begin + call.at
        await asyncio.sleep(due - time.perf_counter())
        lag = time.perf_counter() - due
        try:
            answer = await _ask(url, request(call), free)
        except Broken as error:
            return Seen(call, lag, failure=str(error))
        if not answer.whole:
            return Seen(call, lag, failure=_words(answer))
        return Seen(call, lag, answer.first - due, answer.done - due)

    tasks = [asyncio.create_task(send(call)) for call in calls]
    if tasks:
        await asyncio.wait(tasks, timeout=LEAD + calls[-1].at + GIVE_UP)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in free:
        connection.hang_up()
    late = f"no answer within {GIVE_UP:.0f} s"
    return [
        Seen(call, math.nan, failure=late) if task.cancelled() else task.result()
        for call, task in zip(calls, tasks, strict=True)
    ]


async def _ask(url: str, request: bytes, free: list[Connection]) -> Answer:
    connection = None
    while free and connection is None:
        connection = free.pop()
        connection = None if connection.closed else connection
    if connection is None:
        connection = await Connection.open(url)
    try:
        answer = await connection.ask(request)
    except asyncio.CancelledError:
        connection.hang_up(hard=True)
        raise
    if not connection.closed:
        free.append(connection)
    return answer


def _words(answer: Answer) -> str:
    return f"HTTP {answer.status}: {answer.body[-200:].decode(errors='replace')}"


@dataclass(frozen=True)
class Waits:
    """Times to the first token in seconds, of what was answered whole.

    ``worst_p50`` and ``worst_p99`` are the highest of the adapters' own quantiles, ``tokens_per_second`` counts from
    the first request to the end of the last answer, ``lag_p99`` is how late the client was.
    """

    requests: int
    failed: int
    mean: float
    p50: float
    p99: float
    worst_p50: float
    worst_p99: float
    tokens_per_second: float
    lag_p99: float
    failures: dict[str, int]


def summarise(rounds: Sequence[Sequence[Seen]]) -> Waits:
    """The quantiles (nearest rank) over the requests of all rounds; tokens per second are the rounds' median."""
    everything = [seen for found in rounds for seen in found]
    whole = [seen for seen in everything if not seen.failure]
    own: dict[int, list[float]] = defaultdict(list)
    for seen in whole:
        own[seen.call.adapter].append(seen.first)
    firsts = sorted(seen.first for seen in whole)
    lags = sorted(seen.lag for seen in everything if not math.isnan(seen.lag))

    def worst(share: float) -> float:
        return max((quantile(sorted(times), share) for times in own.values()), default=math.nan)

    return Waits(
        requests=len(everything),
        failed=len(everything) - len(whole),
        mean=statistics.fmean(firsts) if firsts else math.nan,
        p50=quantile(firsts, 0.5),
        p99=quantile(firsts, 0.99),
        worst_p50=worst(0.5),
        worst_p99=worst(0.99),
        tokens_per_second=statistics.median(map(pace, rounds)),
        lag_p99=quantile(lags, 0.99),
        failures=dict(Counter(seen.failure for seen in everything if seen.failure)),
    )


def pace(seen: Sequence[Seen]) -> float:
    """Tokens per second of one replay, from when its first request was due to the end of its last answer."""
    whole = [one for one in seen if not one.failure]
    if not whole:
        return 0.0
    begin, end = min(one.call.at for one in seen), max(one.call.at + one.last for one in whole)
    return sum(one.call.tokens for one in whole) / (end - begin)
