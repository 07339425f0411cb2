"""Keeps the route table fresh: looks at the registry's revision and the engines' records ten times a second.

The looking happens in a thread of its own, so that no request waits for a disk. When the registry cannot be
read, the last table goes on serving.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from serve.engine.state import address_in, record_files, registered_name, used_file
from serve.engine.use import tell_use
from serve.errors import StorageError
from serve.gateway.auth import Keyring
from serve.gateway.build import build_table
from serve.gateway.engines import Engines
from serve.gateway.metrics import Metrics
from serve.gateway.routes import EMPTY, EngineView, RouteTable
from serve.net import bare
from serve.records import read_json
from serve.registry import Registry
from serve.registry.fleet import FRESH_SECONDS

logger = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two looks."""
ASK_SECONDS = 1.0
"""Seconds between two looks at the engines of other machines."""
TELL_SECONDS = 5.0
"""Seconds between two accounts of what is used; that something is used no more is told at once."""


class RouteSource:
    """Owns the current :class:`RouteTable` (``table``), the engines and the ``keys``; ``running`` keeps them fresh.

    ``engine_file`` is the record of the first engine, ``run/engine.json``; those of others lie beside it.
    """

    def __init__(self, registry: Registry, engine_file: Path, keys: Keyring | None = None) -> None:
        self.keys = keys or Keyring(registry)
        self.table: RouteTable = EMPTY
        self.metrics = Metrics(lambda: self.engine_ready)
        self.engines = Engines(self.metrics)
        self.shared = registry.shared
        self._registry = registry
        self._state = engine_file.parent
        self._views: dict[str, EngineView] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._read: dict[str, EngineView | None] = {}
        self._others: Mapping[str, EngineView] = {}
        self._asked_at = float("-inf")
        self._broken = False
        self._told: Mapping[str, list[str]] | None = None
        self._told_at = float("-inf")

    @property
    def registry(self) -> Registry:
        """The registry that the routes are read from."""
        return self._registry

    @property
    def engine_ready(self) -> bool:
        """Whether each base has an engine that is said to be ready and that requests reach."""
        return self.engines.ready

    @property
    def lacking(self) -> str:
        """What keeps the gateway from being ready, in words."""
        bases = self.table.bases
        if not bases:
            return "the engine has not been started yet"
        if len(bases) == 1:
            states = ", ".join(view.state for view in self.table.engines.values())
            return f"the engine is not ready (state: {states})"
        return f"no engine is ready for {', '.join(self.engines.lacking)}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep ``table`` and ``engines`` fresh while the block runs; they are filled before the block starts."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="routes") as thread:
            self._take(await loop.run_in_executor(thread, self.look))

            async def keep_looking() -> None:
                while True:
                    await asyncio.sleep(INTERVAL)
                    try:
                        self._take(await loop.run_in_executor(thread, self.look))
                        await loop.run_in_executor(thread, self._tell_use, self.engines.used())
                    except Exception:  # the edge of a background task: it must outlive what nobody foresaw
                        logger.exception("the routes could not be refreshed, the last ones stay")

            task = asyncio.create_task(keep_looking())
            try:
                async with self.engines.running():
                    yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def look(self) -> RouteTable:
        """The table as it should be now, the same one if nothing has changed; blocks on the disk."""
        self._read_engines()
        table = self.table
        try:
            revision = self._registry.revision()
            if self.keys.look(revision):
                self.metrics.keep_keys(self.keys.table.names)
            if revision != table.revision or self._views != table.engines:
                table = build_table(self._registry, dict(self._views), self.metrics)
        except StorageError as error:
            if not self._broken:
                logger.error("the registry cannot be read, the last routes stay: %s", error.message)
            self._broken = True
            table = replace(table, engines=dict(self._views)) if self._views != table.engines else table
        else:
            self._broken = False
        return table

    def _take(self, table: RouteTable) -> None:
        """Route by a table from now on."""
        if table is not self.table:
            self.engines.update(table)
            self.table = table

    def _tell_use(self, used: Mapping[str, list[str]]) -> None:
        """Tell the controller which adapters are used: others than before at once, else every few seconds."""
        now, told = time.monotonic(), self._told
        if used == told:
            return
        others = told is not None and _names(used) != _names(told)
        if not others and now < self._told_at + TELL_SECONDS:
            return
        self._told, self._told_at = used, now
        try:
            tell_use(used_file(self._state), used)
        except StorageError:  # the next one may work; what is evicted is then chosen by age
            self._told = None
            logger.debug("what is used could not be told", exc_info=True)

    def _read_engines(self) -> None:
        """Read the records that have changed; the first engine comes first, the others by name."""
        files = record_files(self._state)
        views = [view for name, path in files.items() if (view := self._read_engine(name, path))]
        found = {view.name: view for view in views}
        found |= {name: view for name, view in self._elsewhere(views).items() if name not in found}
        if found != self._views:
            self._views = found

    def _read_engine(self, name: str, path: Path) -> EngineView | None:
        try:
            status = path.stat()
        except OSError:
            self._stamps.pop(name, None)
            return None
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamps.get(name):
            self._stamps[name] = stamp
            record = read_json(path)
            url = address_in(path, record)
            self._read[name] = EngineView.of(record, registered_name(name, record), url)
        return self._read[name]

    def _elsewhere(self, ours: Sequence[EngineView]) -> Mapping[str, EngineView]:
        """Engines that controllers of other machines look after, where the registry is shared with them."""
        now = time.monotonic()
        if self.shared and now >= self._asked_at + ASK_SECONDS:
            self._asked_at = now
            try:
                seen = self._registry.engines(within=FRESH_SECONDS)
            except StorageError:  # said by the look at the revision; what was known goes on being asked
                return self._others
            urls = {bare(view.url).rstrip("/") for view in ours}
            self._others = {
                engine.name: EngineView(engine.url, engine.base_name, engine.state, {}, engine.name)
                for engine in seen
                if engine.state == "ready" and bare(engine.url).rstrip("/") not in urls
            }
        return self._others


def _names(used: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """What is used, in no order."""
    return {engine: set(names) for engine, names in used.items()}
