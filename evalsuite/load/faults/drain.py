"""SIGTERM while streams are open: they must end whole, and nobody new may be let in and then cut off."""

import argparse
import asyncio
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from evalsuite.load import house
from evalsuite.load.connection import Answer, Broken, Connection, request_to
from evalsuite.load.faults.found import Found
from evalsuite.load.faults.witness import Witness, question, until
from evalsuite.load.traffic import ask_once, until_answered
from evalsuite.load.verdict import Goal
from serve.config import DRAIN_SECONDS

TOKEN_SECONDS = 0.1
WORDS = 50
CLOSED_SECONDS = 1.0
"""How long after SIGTERM somebody new may still be let in."""


@dataclass
class Knocks:
    """Somebody new every tenth of a second: what became of each, with the seconds since ``began``."""

    url: str
    request: bytes
    began: float = field(default_factory=time.monotonic)
    seen: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> None:
        """Knock until cancelled."""
        while True:
            at = time.monotonic() - self.began
            self.seen.append((at, await self._once()))
            await asyncio.sleep(0.1)

    async def _once(self) -> str:
        """``refused`` (before anything came back), ``503``, ``answered`` or ``cut off``."""
        try:
            answer = await ask_once(self.url, self.request)
        except Broken as error:
            return "cut off" if error.answer is not None and error.answer.status else "refused"
        return "answered" if answer.status == 200 else str(answer.status)

    def last(self, kind: str) -> float:
        """When that was seen for the last time; 0 if never."""
        return max((at for at, seen in self.seen if seen == kind), default=0.0)


async def run(options: argparse.Namespace) -> Found:
    """``--streams`` streams of some five seconds, SIGTERM after the first event of each."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        made = house.furnish(home)
        async with Witness(made.engine_name, TOKEN_SECONDS) as engine:
            house.tell_engine(home, engine.url)
            with house.gateway(home) as (process, url):
                knock = request_to(url, {"model": made.model, "messages": question(1, 1)}, key=made.key)
                await until_answered(url, knock, 30, lambda: process.poll() is None)
                body = {"model": made.model, "messages": question(2, WORDS), "stream": True}
                clients = [await Connection.open(url) for _ in range(options.streams)]
                answers = [client.ask(request_to(url, body, key=made.key)) for client in clients]
                await asyncio.gather(*(client.first_event() for client in clients))
                process.send_signal(signal.SIGTERM)
                knocks = Knocks(url, knock)
                knocking = asyncio.create_task(knocks.run())
                ended = await asyncio.gather(*answers, return_exceptions=True)
                await until(lambda: process.poll() is not None, DRAIN_SECONDS + 5)
                lasted = time.monotonic() - knocks.began
                knocking.cancel()
                await asyncio.wait([knocking])
                code = process.poll()
    whole = sum(isinstance(end, Answer) and end.body.endswith(b"data: [DONE]\n\n") for end in ended)
    return verdict(knocks, whole, len(ended), lasted, code)


def verdict(knocks: Knocks, whole: int, streams: int, lasted: float, code: int | None) -> Found:
    """The table and the goals."""
    rows = [
        {"what": "streams open at SIGTERM", "count": streams},
        {"what": "ended whole", "count": whole},
        {"what": "seconds until the process ended", "count": round(lasted, 2)},
    ]
    counted = Counter(kind for _, kind in knocks.seen)
    rows += [{"what": f"new connections: {kind}", "count": count} for kind, count in sorted(counted.items())]
    goals = [
        Goal("streams that were cut off", streams - whole, 0),
        Goal(
            "seconds after SIGTERM when somebody new was last let in", knocks.last("answered"), CLOSED_SECONDS
        ),
        Goal("new requests that were let in and cut off", counted["cut off"], 0),
        Goal("seconds until the process ended", lasted, DRAIN_SECONDS),
        Goal("exit code", float("nan") if code is None else abs(code), 0),
    ]
    return Found("SIGTERM with open streams", rows, goals, {"knocks": knocks.seen, "exit_code": code})
