"""Many streams at once of one engine, and what is seen of them: its tokens per second, and the times of each."""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalsuite.load import stand
from evalsuite.load.connection import Broken, TimedConnection, request_to
from evalsuite.load.verdict import Spread
from serve.engine.client import EngineClient

SPREAD = 37
"""Answers have half of the longest length and more, all lengths in turn: of one length, they would begin together."""
QUIET_SECONDS = 10.0
"""How long the engine has to get rid of streams that were left."""


@dataclass(frozen=True)
class Sample:
    """One span of a load: tokens per second, seconds to the first token and between tokens, failed streams.

    Who still waits for the first token counts with the time so far.
    """

    tokens_per_second: float
    ttft: Sequence[float]
    gaps: Sequence[float]
    failed: int


@dataclass(frozen=True)
class Speed:
    """What the samples of a mix say together; ``rates`` are their tokens per second, which have the median."""

    mix: str
    tokens_per_second: float
    ttft: Spread
    itl: Spread
    failed: int
    rates: list[float]

    @classmethod
    def of(cls, mix: str, samples: Sequence[Sample]) -> "Speed":
        """Of one sample or more."""
        rates = [sample.tokens_per_second for sample in samples]
        return cls(
            mix,
            statistics.median(rates),
            Spread.of([seconds for sample in samples for seconds in sample.ttft]),
            Spread.of([seconds for sample in samples for seconds in sample.gaps]),
            sum(sample.failed for sample in samples),
            rates,
        )


def chat(options: argparse.Namespace, model: str, number: int, tokens: int) -> dict[str, object]:
    """The chat of this number that the options ask for."""
    sentences, instruction = options.sentences, options.instruction
    return stand.chat(model, number, sentences=sentences, tokens=tokens, instruction=instruction)


@dataclass
class Streams:
    """So many streams at once of models that take turns, for as long as the block runs."""

    url: str
    models: Sequence[str]
    options: argparse.Namespace
    numbers: Iterator[int]
    key: str | None = None
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failed: int = 0
    since: float = float("inf")

    def watch(self) -> None:
        """From now on note what is seen."""
        self.since = time.perf_counter()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep them running."""
        workers = [asyncio.create_task(self._worker()) for _ in range(self.options.at_once)]
        try:
            yield
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self) -> None:
        connection: TimedConnection | None = None
        while True:
            number = next(self.numbers)
            model, longest = self.models[number % len(self.models)], self.options.tokens
            tokens = longest // 2 + number * SPREAD % (longest - longest // 2) + 1
            body = chat(self.options, model, number, tokens)
            sent = time.perf_counter()
            try:
                if connection is None or connection.closed:
                    connection = await TimedConnection.open(self.url)
                answer = await connection.ask(request_to(self.url, body, key=self.key))
            except Broken:
                self.failed, connection = self.failed + 1, None
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if connection is not None:
                    self._note(sent, connection.moments)
                    connection.hang_up(hard=True)
                raise
            else:
                self.failed += not answer.whole
                self._note(sent, connection.moments[:-1])

    def _note(self, sent: float, moments: Sequence[float]) -> None:
        if sent >= self.since:
            self.ttft.append((moments[0] if moments else time.perf_counter()) - sent)
        pairs = itertools.pairwise(moments[1:])  # the first is a stream's opening
        self.gaps += [later - earlier for earlier, later in pairs if earlier >= self.since]


class Bench:
    """One running engine with its adapters; ``engine_names`` are those that mixes are made of, in this order."""

    def __init__(self, url: str, base: str, options: argparse.Namespace, numbers: Iterator[int]) -> None:
        self.url = url
        self.base = base
        self.options = options
        self.engine_names: list[str] = []
        self._numbers = numbers

    async def sample(self, models: Sequence[str], url: str | None = None, key: str | None = None) -> Sample:
        """Measure a mix once, directly or by another URL; the engine has nothing to do afterwards."""
        streams = Streams(url or self.url, models, self.options, self._numbers, key)
        async with streams.running():
            await asyncio.sleep(self.options.warm)
            before, began = await self._tokens(), time.perf_counter()
            streams.watch()
            await asyncio.sleep(self.options.window)
            tokens, lasted = await self._tokens() - before, time.perf_counter() - began
        await self._quiet()
        return Sample(tokens / lasted, streams.ttft, streams.gaps, streams.failed)

    async def hot_load(self, client: EngineClient, name: str, path: Path) -> tuple[float, float]:
        """Seconds to load an adapter, and from the begin of that to its first token; it is unloaded again."""
        began = time.perf_counter()
        load = await client.load(name, path)
        connection = await TimedConnection.open(self.url)
        body = chat(self.options, name, next(self._numbers), 2)
        answer = await connection.ask(request_to(self.url, body))
        connection.hang_up()
        if not answer.whole:
            raise Broken(f"{name} does not answer: {answer.body[-500:].decode(errors='replace')}", answer)
        await client.unload(name)
        return load, answer.first - began

    async def turns(self, gateway: str, key: str, names: Sequence[str]) -> list[tuple[Sample, Sample]]:
        """Pairs of the gateway, asked for ``names``, and the engine, asked for the same adapters; in turns."""
        found: list[tuple[Sample, Sample]] = []
        own = self.engine_names[: len(names)]
        for turn in range(self.options.rounds):
            if turn % 2:
                through = await self.sample(names, gateway, key)
                found.append((through, await self.sample(own)))
            else:
                direct = await self.sample(own)
                found.append((await self.sample(names, gateway, key), direct))
        return found

    async def _tokens(self) -> float:
        return (await stand.counters(self.url))[stand.TOKENS]

    async def _quiet(self) -> None:
        deadline = time.monotonic() + QUIET_SECONDS
        while (await stand.counters(self.url)).get(stand.RUNNING, 0.0) > 0 and time.monotonic() < deadline:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.1)
