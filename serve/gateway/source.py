"""Keeps the route table fresh: looks at the registry's revision and the engines' records ten times a second.

The looking happens in a thread of its own, so that no request waits for a disk. When the registry cannot be
read, the last table goes on serving.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from serve.errors import StorageError
from serve.gateway.auth import Keyring
from serve.gateway.build import build_table
from serve.gateway.engines import Engines
from serve.gateway.metrics import Metrics
from serve.gateway.routes import EMPTY, FIRST, EngineView, RouteTable
from serve.records import read_json
from serve.registry import Registry

logger = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two looks."""
FOLDER = "engines"
"""Where, beside ``engine.json``, the records of further engines lie, each named as its engine."""


class RouteSource:
    """Owns the current :class:`RouteTable` (``table``), the engines and the ``keys``; ``running`` keeps them fresh.

    ``engine_file`` is the record of the first engine; those of others lie in a folder beside it.
    """

    def __init__(self, registry: Registry, engine_file: Path, keys: Keyring | None = None) -> None:
        self.keys = keys or Keyring(registry)
        self.table: RouteTable = EMPTY
        self.metrics = Metrics(lambda: self.engine_ready)
        self.engines = Engines(self.metrics)
        self._registry = registry
        self._engine_file = engine_file
        self._views: dict[str, EngineView] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._broken = False

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
            self.keys.look(revision)
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

    def _read_engines(self) -> None:
        """Read the records that have changed; the first engine comes first, the others by name."""
        files = {FIRST: self._engine_file}
        with contextlib.suppress(OSError):
            others = sorted((self._engine_file.parent / FOLDER).glob("*.json"))
            files |= {path.stem: path for path in others if not path.name.startswith(".")}
        found = {name: view for name, path in files.items() if (view := self._read_engine(name, path))}
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
            return EngineView.of(read_json(path), name)
        return self._views.get(name)
