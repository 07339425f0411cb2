"""Clients that hang up: how long until the engine is rid of their requests, and whether anything is left over."""

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from evalsuite.load import house
from evalsuite.load.connection import Broken, Connection, request_to
from evalsuite.load.faults.found import Found
from evalsuite.load.faults.witness import Witness, question, until
from evalsuite.load.traffic import until_answered
from evalsuite.load.verdict import Goal, Spread
from serve.engine.fake import Fault

WAVE = 50
"""Clients that are there at once."""
GONE_SECONDS = 10.0
"""How long to wait for the engine to see that a client is gone; beyond, the request counts as never ended."""
TOKEN_SECONDS = 0.2
KINDS = [(where, stream) for where in ("prefill", "mid-stream") for stream in (True, False)]


@dataclass
class Leavers:
    """Runs waves of clients that leave at some moment of the tenth of a second after their request is on its way."""

    url: str
    key: str
    model: str
    engine: Witness
    drawn: random.Random = field(default_factory=lambda: random.Random(1))
    number: int = 0

    async def wave(self, where: str, stream: bool, count: int) -> list[float]:
        """Seconds from each client's leaving to the engine's noticing; ``inf`` for those that never ended."""
        prefill = Fault("slow_prefill", seconds=60.0, times=-1)
        self.engine.faults = [prefill] if where == "prefill" else []
        numbers = range(self.number, self.number + count)
        self.number += count
        clients = [await self._client(number, stream) for number in numbers]
        began = await until(lambda: all(number in self.engine.began for number in numbers), GONE_SECONDS)
        if not began:
            raise Broken("the engine did not get every request")
        if where != "prefill":  # so that each has some tokens; a streaming client has seen the first
            waits = (
                [client.first_event() for client in clients] if stream else [asyncio.sleep(2 * TOKEN_SECONDS)]
            )
            await asyncio.gather(*waits)
        moments = await asyncio.gather(*(hang_up(client, self.drawn) for client in clients))
        left = dict(zip(numbers, moments, strict=True))
        await until(lambda: all(number in self.engine.gone for number in numbers), GONE_SECONDS)
        return [self.engine.gone.get(number, float("inf")) - left[number] for number in numbers]

    async def _client(self, number: int, stream: bool) -> Connection:
        body = {"model": self.model, "messages": question(number, 200), "stream": stream}
        client = await Connection.open(self.url)
        client.ask(request_to(self.url, body, key=self.key))
        return client


async def hang_up(client: Connection, drawn: random.Random) -> float:
    """Leave at some moment of the next tenth of a second, by a close or a reset; when that was."""
    await asyncio.sleep(drawn.uniform(0.0, 0.1))
    left = time.perf_counter()
    client.hang_up(hard=drawn.random() < 0.5)
    return left


def holdings(pid: int, engine_port: int) -> tuple[int, int]:
    """Open files of the gateway, without the registry's, and its connections to the engine.

    The registry's pool opens its second connection whenever two threads happen to need one.
    """
    process = psutil.Process(pid)
    registry = sum(Path(file.path).name.startswith("registry.db") for file in process.open_files())
    connections = process.net_connections(kind="tcp")
    return process.num_fds() - registry, sum(
        bool(connection.raddr) and connection.raddr.port == engine_port for connection in connections
    )


async def run(options: argparse.Namespace) -> Found:
    """``--requests`` clients: half leave before the first byte, half later; half of each stream."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        made = house.furnish(home)
        async with Witness(made.engine_name, TOKEN_SECONDS) as engine:
            house.tell_engine(home, engine.url)
            with house.gateway(home) as (process, url):
                first = {"model": made.model, "messages": question(10**9, 1)}
                await until_answered(
                    url, request_to(url, first, key=made.key), 30, lambda: process.poll() is None
                )
                before = await rest(process.pid, engine.port, None)
                times = await leave(Leavers(url, made.key, made.model, engine), options.requests)
                after = await rest(process.pid, engine.port, before)
                running = engine.stats.running
    return verdict(times, before, after, running)


class Waves(Protocol):
    """Whatever lets clients come and leave."""

    async def wave(self, where: str, stream: bool, count: int) -> list[float]: ...  # noqa: D102


async def leave(leavers: Waves, requests: int) -> dict[tuple[str, bool], list[float]]:
    """The times of ``requests`` clients by kind."""
    times: dict[tuple[str, bool], list[float]] = {kind: [] for kind in KINDS}
    for kind, found in times.items():
        share = requests // len(KINDS)
        while len(found) < share:
            found += await leavers.wave(*kind, min(WAVE, share - len(found)))
    return times


async def rest(pid: int, engine_port: int, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """What the gateway holds once it is at rest: after its unused connections to the engine were closed."""
    if wanted is None:
        await until(lambda: holdings(pid, engine_port)[1] == 0, 10)
    else:
        await until(lambda: holdings(pid, engine_port) == wanted, 10)
    return holdings(pid, engine_port)


def verdict(
    times: dict[tuple[str, bool], list[float]], before: tuple[int, int], after: tuple[int, int], running: int
) -> Found:
    """The table and the goals."""
    rows: list[dict[str, Any]] = []
    everyone = [seconds for found in times.values() for seconds in found]
    for (where, stream), found in [*times.items(), (("all", None), everyone)]:
        spread = Spread.of(found)
        rows.append(
            {
                "left in": where,
                "streaming": {True: "yes", False: "no", None: ""}[stream],
                "clients": spread.count,
                "p50, ms": spread.p50 * 1e3,
                "p99, ms": spread.p99 * 1e3,
                "longest, ms": spread.longest * 1e3,
            }
        )
    goals = [
        Goal("p99 of seconds until the engine is rid of the request", Spread.of(everyone).p99, 1.0),
        Goal("requests still running in the engine", running, 0),
        Goal("open files of the gateway more than before", after[0] - before[0], 0),
        Goal("connections to the engine more than before", after[1] - before[1], 0),
    ]
    return Found("Clients that hang up", rows, goals, {"before": before, "after": after})
