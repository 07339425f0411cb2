"""What was used and is not in the registry yet, and how many tokens each key has used this month.

Use is added up in memory and written every few seconds by a thread, so that no request waits for a database. What
cannot be written is kept for the next time. Killed with ``kill -9``, a gateway forgets the use of these seconds.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import NamedTuple

from serve.errors import StorageError
from serve.gateway.metrics import OTHER
from serve.registry import Registry, UsageDelta
from serve.registry.usage import today

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two writes."""
READ_EVERY = 3
"""After so many intervals the month's use is read again, as other gateways write to the same registry."""
MAX_ROWS = 50_000
"""Sums of one day, key, adapter and version that are kept while the registry cannot be written."""


class Row(NamedTuple):
    """What use is summed up by."""

    day: date
    key_id: int
    adapter: str
    version: str


class Use(NamedTuple):
    """Use that can be added up."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "Use") -> "Use":
        """The sum of two."""
        return Use(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.engine_seconds + other.engine_seconds,
        )


class Ledger:
    """Gathers the use of one gateway; ``running`` writes it to the registry."""

    def __init__(self, registry: Registry, interval: float = INTERVAL, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._registry = registry
        self._interval = interval
        self._lock = threading.Lock()
        self._rows: dict[Row, Use] = {}
        self._month = today().replace(day=1)
        self._written: Counter[int] = Counter()
        self._unwritten: Counter[int] = Counter()
        self._broken = False

    def add(self, key_id: int, adapter: str, version: str, use: Use) -> None:
        """Count use of this moment."""
        day = today()
        row = Row(day, key_id, adapter, version)
        with self._lock:
            if row not in self._rows and len(self._rows) >= self._max_rows:
                row = Row(day, key_id, OTHER, OTHER)
            self._rows[row] = self._rows.get(row, Use()).plus(use)
            self._turn_month(day)
            self._unwritten[key_id] += use.tokens

    def month_tokens(self, key_id: int) -> int:
        """Tokens that a key has used this month (of UTC), as far as this gateway knows."""
        with self._lock:
            self._turn_month(today())
            return self._written[key_id] + self._unwritten[key_id]

    def _turn_month(self, day: date) -> None:
        if day.replace(day=1) != self._month:
            self._month = day.replace(day=1)
            self._written, self._unwritten = Counter(), Counter()

    def write(self) -> None:
        """Write what was gathered; blocks, and raises StorageError, after which nothing is lost."""
        with self._lock:
            rows, self._rows = self._rows, {}
        if not rows:
            return
        try:
            self._registry.add_usage(UsageDelta(*row, *use) for row, use in rows.items())
        except BaseException:
            with self._lock:
                for row, use in rows.items():
                    self._rows[row] = use.plus(self._rows.get(row, Use()))
            raise
        with self._lock:
            for row, use in rows.items():
                if row.day >= self._month:
                    self._written[row.key_id] += use.tokens
                    self._unwritten[row.key_id] -= use.tokens

    def read(self) -> None:
        """Read what all gateways have written of this month; blocks, and raises StorageError.

        To be called by the thread that writes, so that what it finds is all but what is unwritten here.
        """
        month = today().replace(day=1)
        sums = self._registry.usage(since=month, by=("key_id",))
        with self._lock:
            self._turn_month(month)
            self._written = Counter(
                {one.key_id or 0: one.prompt_tokens + one.completion_tokens for one in sums}
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write every few seconds while the block runs, and once after it."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="usage") as thread:
            await loop.run_in_executor(thread, self._round, True)

            async def keep_writing() -> None:
                rounds = 0
                while True:
                    await asyncio.sleep(self._interval)
                    rounds += 1
                    await loop.run_in_executor(thread, self._round, rounds % READ_EVERY == 0)

            task = asyncio.create_task(keep_writing())
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await loop.run_in_executor(thread, self._round, False)
                if self._rows:
                    logger.error("%d sums of use could not be written and are lost", len(self._rows))

    def _round(self, reading: bool) -> None:
        try:
            self.write()
            if reading:
                self.read()
        except StorageError as error:
            if not self._broken:
                logger.error("use cannot be written, it is kept for later: %s", error.message)
            self._broken = True
        except Exception:  # the edge of a background task: it must outlive what nobody foresaw
            logger.exception("use could not be written, it is kept for later")
        else:
            self._broken = False
