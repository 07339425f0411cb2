"""``make bench-hangups``: clients that hang up on a real engine, half of them while it reads their prompts.

Starts an engine with one adapter and a gateway in front of it. Waves of clients come and leave as in
``python -m evalsuite.load.faults disconnects``. An engine tells how many requests it has, not which, so a client's
request counts as gone when the last of its wave is: the times are upper bounds.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from evalsuite.load import house, stand
from evalsuite.load.connection import Broken, Connection, request_to
from evalsuite.load.faults import disconnects
from evalsuite.load.faults.found import Found
from evalsuite.load.lora_cpu import add_base_options, chosen_base
from evalsuite.load.machine import describe
from evalsuite.load.verdict import add_json_option, report

READ_SECONDS = 60.0
"""How long an engine may take until it has all requests of a wave, or has begun to answer them."""
POLL_SECONDS = 0.01


@dataclass
class Leavers:
    """Runs waves of clients of ``model``, whose prompts and answers have so many sentences and tokens."""

    url: str
    key: str
    model: str
    engine: str
    sentences: int
    tokens: int
    drawn: random.Random = field(default_factory=lambda: random.Random(1))
    number: int = 0
    answered: int = 0
    """Streams that had begun to come when their clients left in prefill: too late to count as that."""

    async def wave(self, where: str, stream: bool, count: int) -> list[float]:
        """Seconds from each client's leaving to the engine's having none; ``inf`` where that never came."""
        reading = where == "prefill"
        clients = [await self._client(stream, self.sentences if reading else 1) for _ in range(count)]
        if not await self._has(count, READ_SECONDS):
            raise Broken("the engine did not get every request")
        if not reading and stream:
            await asyncio.gather(*(client.first_event() for client in clients))
        left = await asyncio.gather(*(disconnects.hang_up(client, self.drawn) for client in clients))
        if reading:
            self.answered += sum(client.answer.first > 0 for client in clients)
        empty = await self._has(0, disconnects.GONE_SECONDS)
        gone = time.perf_counter() if empty else float("inf")
        return [gone - moment for moment in left]

    async def _client(self, stream: bool, sentences: int) -> Connection:
        self.number += 1
        body = stand.chat(self.model, self.number, sentences=sentences, tokens=self.tokens)
        client = await Connection.open(self.url)
        client.ask(request_to(self.url, {**body, "stream": stream}, key=self.key))
        return client

    async def _has(self, wanted: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while await self.requests() != wanted:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def requests(self) -> int:
        """Requests that the engine has, computed or waiting."""
        found = await stand.counters(self.engine)
        return int(found.get(stand.RUNNING, 0) + found.get(stand.WAITING, 0))


async def measure(options: argparse.Namespace) -> Found:
    """Start engine and gateway, and let clients leave."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = chosen_base(options, folder)
        async with stand.loaded(options, base, folder) as engine:
            with house.gateway(engine.home) as (process, url):
                await stand.wait_for(url, [house.ADAPTER], engine.key)
                port = int(engine.url.rpartition(":")[2])
                leavers = Leavers(
                    url, engine.key, house.ADAPTER, engine.url, options.sentences, options.tokens
                )
                before = await disconnects.rest(process.pid, port, None)
                times = await disconnects.leave(leavers, options.requests)
                after = await disconnects.rest(process.pid, port, before)
                found = disconnects.verdict(times, before, after, await leavers.requests())
    more = {**found.more, "answered_in_prefill": leavers.answered}
    return Found(found.title, found.rows, found.goals, more)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m evalsuite.load.hangups", description=__doc__)
    add_base_options(made)
    stand.add_engine_options(made)
    made.add_argument("--requests", type=int, default=1000, help="clients")
    made.add_argument("--sentences", type=int, default=40, help="sentences of a prompt that is being read")
    made.add_argument("--tokens", type=int, default=200, help="tokens of an answer that nobody waits for")
    add_json_option(made)
    return made


def main() -> int:
    """Measure, print, and say by the exit code whether the goals are met."""
    options = parser().parse_args()
    machine = describe()
    found = uvloop.run(measure(options))
    content = {"machine": machine, "options": {name: str(value) for name, value in vars(options).items()}}
    base = options.shape or options.model
    return report(f"{base}: {found.title}", {**content, **found.more}, found.rows, found.goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
