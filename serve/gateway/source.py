"""Keeps the route table fresh: looks at the registry's revision and ``run/engine.json`` ten times a second.

The looking happens in a thread of its own, so that no request waits for a disk. When the registry cannot be
read, the last table goes on serving.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve.errors import StorageError
from serve.gateway.auth import Keyring
from serve.gateway.build import build_table
from serve.gateway.metrics import Metrics
from serve.gateway.routes import EMPTY, EngineView, RouteTable
from serve.records import read_json
from serve.registry import Registry

logger = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two looks."""
UNREACHABLE_SECONDS = 5.0
"""How long the engine counts as down after a request could not reach it."""


class RouteSource:
    """Owns the current :class:`RouteTable` (``table``) and the ``keys``; ``running`` keeps both fresh."""

    def __init__(self, registry: Registry, engine_file: Path, keys: Keyring | None = None) -> None:
        self.keys = keys or Keyring(registry)
        self.table: RouteTable = EMPTY
        self.metrics = Metrics(lambda: self.engine_ready)
        self._registry = registry
        self._engine_file = engine_file
        self._stamp: tuple[int, ...] | None = None
        self._engine: EngineView | None = None
        self._unreachable_until = 0.0
        self._broken = False

    @property
    def registry(self) -> Registry:
        """The registry that the routes are read from."""
        return self._registry

    @property
    def engine_ready(self) -> bool:
        """Whether the engine is said to be ready and the last request reached it."""
        engine = self.table.engine
        return engine is not None and engine.state == "ready" and time.monotonic() >= self._unreachable_until

    def note_unreachable(self) -> None:
        """Remember that a request could not reach the engine, before anybody else found out."""
        self._unreachable_until = time.monotonic() + UNREACHABLE_SECONDS

    def note_reached(self) -> None:
        """Remember that a request reached the engine."""
        self._unreachable_until = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep ``table`` fresh while the block runs; it is filled before the block starts."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="routes") as thread:
            await loop.run_in_executor(thread, self.look)

            async def keep_looking() -> None:
                while True:
                    await asyncio.sleep(INTERVAL)
                    try:
                        await loop.run_in_executor(thread, self.look)
                    except Exception:  # the edge of a background task: it must outlive what nobody foresaw
                        logger.exception("the routes could not be refreshed, the last ones stay")

            task = asyncio.create_task(keep_looking())
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def look(self) -> None:
        """Build a new table if the registry or the engine changed; blocks on the disk."""
        self._read_engine()
        try:
            revision = self._registry.revision()
            self.keys.look(revision)
            if revision != self.table.revision or self._engine is not self.table.engine:
                self.table = build_table(self._registry, self._engine, self.metrics)
        except StorageError as error:
            if not self._broken:
                logger.error("the registry cannot be read, the last routes stay: %s", error.message)
            self._broken = True
        else:
            self._broken = False

    def _read_engine(self) -> None:
        try:
            status = self._engine_file.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
        except OSError:
            self._engine = self._stamp = None
            return
        self._stamp = stamp
        self._engine = EngineView.of(read_json(self._engine_file))
        self.note_reached()
