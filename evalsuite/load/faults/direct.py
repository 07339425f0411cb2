"""The gateway beside the engine that it stands in front of: tokens per second of many streams, in turns.

Tokens, not events: an engine that is busy puts several tokens into one event. Every answer has just as many tokens
as were asked for, so those of whole answers are counted.
"""

import argparse
import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from evalsuite.load.connection import Broken, Connection, request_to
from evalsuite.load.faults.found import Found
from evalsuite.load.verdict import Goal

QUESTION = "Where is my parcel? I ordered a kettle last week and it has not come yet."
T_95 = (
    12.71,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
"""Two-sided 95 % quantiles of Student's t with 1 to 15 degrees of freedom."""


@dataclass
class Side:
    """One of the two that are asked; ``rates`` are tokens per second, by round."""

    name: str
    url: str
    model: str
    key: str | None
    rates: list[float] = field(default_factory=list)
    events: int = 0
    failures: int = 0

    async def round(self, options: argparse.Namespace, numbers: Iterator[int]) -> None:
        """Stream ``--requests`` answers, ``--at-once`` at a time; note the tokens per second."""
        left = iter(range(options.requests))
        started = time.perf_counter()
        whole = sum(
            await asyncio.gather(*(self._worker(left, options, numbers) for _ in range(options.at_once)))
        )
        self.rates.append(whole * options.tokens / (time.perf_counter() - started))

    async def _worker(self, left: Iterator[int], options: argparse.Namespace, numbers: Iterator[int]) -> int:
        whole, connection = 0, None
        for _ in left:
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": f"{next(numbers)}. {QUESTION}"}],
                "max_tokens": options.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            try:
                if connection is None or connection.closed:
                    connection = await Connection.open(self.url)
                answer = await connection.ask(request_to(self.url, body, key=self.key))
            except Broken:
                self.failures, connection = self.failures + 1, None
                continue
            whole += answer.whole
            self.failures += not answer.whole
            self.events += answer.events
        if connection is not None:
            connection.hang_up()
        return whole


def ratio_of(through: Sequence[float], without: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the rounds' ratios, and its 95 % interval (Student's t on the logarithms).

    Needs two pairs at least, and at most sixteen.
    """
    logs = [math.log(one / other) for one, other in zip(through, without, strict=True)]
    middle = statistics.fmean(logs)
    half = T_95[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


async def run(options: argparse.Namespace) -> Found:
    """``--rounds`` pairs of measurements, whose order alternates; one pair before them warms up."""
    engine_model = options.engine_model or options.model
    sides = [
        Side("gateway", options.gateway.rstrip("/"), options.model, options.key),
        Side("engine", options.engine.rstrip("/"), engine_model, None),
    ]
    numbers = itertools.count()
    for turn in range(options.rounds + 1):
        for side in sides if turn % 2 else reversed(sides):
            await side.round(options, numbers)
    through, without = (side.rates[1:] for side in sides)
    ratio, low, high = ratio_of(through, without)
    rows = [
        {
            "asked": side.name,
            "tokens/s": statistics.median(side.rates[1:]),
            "lowest": min(side.rates[1:]),
            "highest": max(side.rates[1:]),
            "events": side.events,
            "failed": side.failures,
        }
        for side in sides
    ]
    goals = [
        Goal("gateway's tokens per second, of the engine's", ratio, 0.97, at_least=True),
        Goal("failed streams", sum(side.failures for side in sides), 0),
    ]
    title = (
        f"{options.at_once} streams at once, {options.rounds} rounds: "
        f"{ratio:.3f} (95 % interval {low:.3f} to {high:.3f})"
    )
    more = {"interval": (low, high), "gateway": through, "engine": without}
    return Found(title, rows, goals, more)
