"""Counts within minutes, of requests and tokens by key: in this process, or in Redis for all gateways together.

The storage is that of the library ``limits``. A minute of a key begins with its first request and ends 60 seconds
later, with everything in it (a fixed window). While Redis cannot be reached, each process counts for itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from serve.errors import ConfigError

if TYPE_CHECKING:
    from limits.aio.storage import MemoryStorage

logger = logging.getLogger(__name__)

WINDOW = 60
"""Seconds."""
TIMEOUT = 0.25
"""Seconds that Redis has for an answer: requests wait for it."""
RETRY_AFTER = 5.0
"""Seconds after which Redis is tried again, by one request."""
CONNECTIONS = 64
PREFIX = "tenon"


class Window(NamedTuple):
    """What was counted in a minute, and when (``time.time()``) it ends."""

    used: int
    ends: float


class LocalCounts:
    """Counts in this process.

    Each owner has a storage of its own, as one looks through all that it holds with every count. Nothing here
    waits, so that a count is not interrupted.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        from limits.aio.storage import MemoryStorage

        self._new = MemoryStorage
        self._clock = clock
        self._owners: dict[str, MemoryStorage] = {}
        self._sweep_at = 256

    async def add(self, owner: str, what: str, amount: int) -> Window:
        """Count; ``amount`` may be negative within the minute that it corrects."""
        storage = self._owners.get(owner) or self._add_owner(owner)
        count = await storage.incr(what, WINDOW, amount)
        return Window(count, await storage.get_expiry(what))

    async def look(self, owner: str, what: str) -> Window:
        """What is counted now."""
        storage = self._owners.get(owner)
        if storage is None:
            return Window(0, self._clock())
        return Window(await storage.get(what), await storage.get_expiry(what))

    def _add_owner(self, owner: str) -> "MemoryStorage":
        if len(self._owners) >= self._sweep_at:
            now = self._clock()
            self._owners = {
                name: storage
                for name, storage in self._owners.items()
                if any(ends > now for ends in storage.expirations.values())
            }
            self._sweep_at = 256 + 2 * len(self._owners)
        return self._owners.setdefault(owner, self._new())


class RedisCounts:
    """Counts in Redis; raises ``limits.errors.StorageError`` where that fails."""

    def __init__(self, url: str, timeout: float) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise ConfigError(
                "TENON_REDIS_URL needs the package redis", "run `pip install 'tenon-llm[redis]'`"
            ) from error
        from limits.aio.storage import RedisStorage

        try:
            self._pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:  # whose words may show the password
            raise ConfigError(
                "TENON_REDIS_URL cannot be used", "write it as redis://:PASSWORD@HOST:6379/0"
            ) from None
        options: dict[str, Any] = {"connection_pool": self._pool}
        self._storage: RedisStorage = RedisStorage(
            f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix=PREFIX, **options
        )
        self._ends: dict[str, float] = {}

    async def add(self, owner: str, what: str, amount: int) -> Window:
        """As :meth:`LocalCounts.add`."""
        key = f"{owner}/{what}"
        count = await self._storage.incr(key, WINDOW, amount)
        if count == amount:
            return Window(count, self._note(key, time.time() + WINDOW))
        return Window(count, await self._end_of(key))

    async def look(self, owner: str, what: str) -> Window:
        """As :meth:`LocalCounts.look`."""
        key = f"{owner}/{what}"
        count = await self._storage.get(key)
        return Window(count, await self._end_of(key) if count else time.time())

    async def _end_of(self, key: str) -> float:
        known = self._ends.get(key, 0.0)  # what we know spares us a second question
        return known if known > time.time() else self._note(key, await self._storage.get_expiry(key))

    def _note(self, key: str, ends: float) -> float:
        if len(self._ends) >= 10_000:
            self._ends.clear()
        self._ends[key] = ends
        return ends

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class Counters:
    """Counts in Redis where there is one, and in this process where not and as long as Redis fails.

    ``timeout`` is how many seconds Redis has for an answer.
    """

    def __init__(self, redis_url: str | None = None, timeout: float = TIMEOUT) -> None:
        from limits.errors import StorageError

        self._failed = StorageError
        self._local = LocalCounts()
        self._redis = RedisCounts(redis_url, timeout) if redis_url is not None else None
        self._retry_at = self._lost_at = 0.0
        self._down = False
        self._tasks: set[asyncio.Task[Window]] = set()

    async def add(self, owner: str, what: str, amount: int) -> Window:
        """Count ``amount`` for an owner in the minute of now; returns what there is with it."""
        if self._redis is not None and self._may_try():
            began = time.monotonic()
            try:
                window = await self._redis.add(owner, what, amount)
            except self._failed as error:
                self._lost(error)
            else:
                self._found(began)
                return window
        return await self._local.add(owner, what, amount)

    async def look(self, owner: str, what: str) -> Window:
        """What is counted for an owner in the minute of now."""
        if self._redis is not None and self._may_try():
            try:
                return await self._redis.look(owner, what)
            except self._failed as error:
                self._lost(error)
        return await self._local.look(owner, what)

    async def correct(self, owner: str, what: str, amount: int) -> None:
        """Count without anybody waiting for it."""
        if self._redis is None:
            await self._local.add(owner, what, amount)
            return
        task = asyncio.create_task(self.add(owner, what, amount))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_try(self) -> bool:
        if not self._down:
            return True
        if time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + RETRY_AFTER  # one finds out, the others do not wait
        return True

    def _lost(self, error: Exception) -> None:
        if not self._down:
            # Not the error's own words, which may show the URL.
            cause = error.__cause__ or error
            logger.error("Redis fails (%s): each gateway counts for itself meanwhile", type(cause).__name__)
        self._down = True
        self._lost_at = time.monotonic()
        self._retry_at = self._lost_at + RETRY_AFTER

    def _found(self, began: float) -> None:
        if self._down and began > self._lost_at:  # and not one that was under way when it failed
            self._down = False
            logger.info("Redis answers again")

    async def close(self) -> None:
        """Wait for corrections under way, then close all connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * TIMEOUT)
        if self._redis is not None:
            await self._redis.close()
