"""Keeping one engine up and its adapters as the registry wants them.

An engine of our own is started (or adopted, when an earlier controller left it running), watched, and started
again when it ends or stops answering; an attached one is only watched. Whatever happens is written to
``run/engine.json``, from which the gateway and ``tenon status`` learn where the engine is and how it does.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess, EngineRecord
from serve.engine.reconcile import Base, Memory, reconcile
from serve.engine.spec import EngineSpec
from serve.engine.state import EngineState, read_state, write_state
from serve.errors import ConfigError, EngineUnavailable, TenonError
from serve.registry.registry import Registry

log = logging.getLogger(__name__)

TICK = 0.5
"""Seconds between two looks at the engine."""

FULL_PASS = 5.0
"""Seconds after which a pass is made although neither the registry nor the engine gave a reason."""

HEALTH_TIMEOUT = 10.0
PATIENCE = 3
"""An engine whose process lives is given up after this many failed health checks in a row. One whose core is
dead says so at once, which takes a second or so; silence takes half a minute."""

FIRST_BACKOFF = 0.5
LAST_BACKOFF = 30.0
HEALTHY = 60.0
"""Seconds between starts: the first, doubling to the last, and the first after so many healthy seconds."""


@dataclass(frozen=True)
class Served:
    """The base under the name that the engine serves it by."""

    name: str
    digest: str


class Supervisor:
    """Runs one engine: ``spec`` (started and stopped here) or ``engine_url`` (attached, never touched).

    ``base`` is the base that the adapters must be made for, ``state_file`` usually ``run/engine.json`` and
    ``log_file`` ``logs/engine.log`` under the home. Raises :class:`ConfigError` unless one of the two is
    given.
    """

    def __init__(
        self,
        registry: Registry,
        base: Base,
        *,
        state_file: Path,
        log_file: Path,
        spec: EngineSpec | None = None,
        engine_url: str | None = None,
        start_timeout: float = 600.0,
        engine_id: str = "engine",
    ) -> None:
        if (spec is None) == (engine_url is None):
            raise ConfigError(
                "an engine is either started here or attached to", "give a spec or an engine_url"
            )
        self.registry, self.base = registry, base
        self.spec, self.engine_url = spec, engine_url
        self.state_file, self.log_file = state_file, log_file
        self.start_timeout = start_timeout
        self.engine_id = engine_id
        self.state = EngineState(attached=spec is None, url=engine_url, base_name=base.name)
        self._memory = Memory(exclusive=spec is not None)
        self._process: EngineProcess | None = None
        self._backoff = FIRST_BACKOFF

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the engine up until ``stop`` is set; an engine of our own ends with this.

        Raises :class:`~serve.errors.StorageError` when state cannot be written; what ails the engine is
        retried.
        """
        work = asyncio.create_task(self._keep_up())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stopped):
                task.cancel()
            (outcome, _) = await asyncio.gather(work, stopped, return_exceptions=True)
            await self._end()
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome

    async def _end(self) -> None:
        if self._process is not None:
            await self._process.stop()
        await asyncio.to_thread(self._mark_pending)
        self._tell("down", pid=None)

    async def _keep_up(self) -> None:
        while True:
            try:
                async with self._engine() as client:
                    await self._serve(client)
            except TenonError as error:
                await self._after_death(error)

    @contextlib.asynccontextmanager
    async def _engine(self) -> AsyncIterator[EngineClient]:
        """A client of an engine that answers: attached, adopted or started."""
        url = self.engine_url if self.spec is None else (await self._own(self.spec)).url
        assert url is not None
        async with EngineClient(url, health_timeout=HEALTH_TIMEOUT) as client:
            cards = await client.cards()
            bases = [card for card in cards if card.parent is None]
            if not bases:
                raise EngineUnavailable(f"the engine at {url} serves no base", "is it a vLLM server?")
            self._served = Served(bases[0].name, self.base.digest)
            self._tell(
                "ready", base_name=bases[0].name, max_model_len=bases[0].max_model_len, error="", hint=""
            )
            yield client

    async def _own(self, spec: EngineSpec) -> EngineProcess:
        record = EngineRecord.read(read_state(self.state_file)) if self._process is None else None
        if record is not None:
            adopted = await EngineProcess.adopt(record, spec)
            if adopted is not None:
                log.info("engine %d of an earlier controller is adopted", record.pid)
                self._process = adopted
                self._tell("ready", **adopted.content())
                return adopted
            await EngineProcess(record, None).stop()
        await asyncio.to_thread(self._mark_pending)
        self._process = await EngineProcess.start(spec, self.log_file)
        self._tell("starting", **self._process.content(), stage="", stage_seconds=0.0)
        await self._process.wait_ready(self.start_timeout, self._progress)
        return self._process

    def _progress(self, stage: str, seconds: float) -> None:
        if stage != self.state.stage:
            self._tell("starting", stage=stage, stage_seconds=round(seconds, 1))

    async def _serve(self, client: EngineClient) -> None:
        """Watch and reconcile until the engine is gone, which raises :class:`EngineUnavailable`."""
        begin, last_pass, revision, failures = time.monotonic(), float("-inf"), -1, 0
        while True:
            if self._process is not None and not self._process.alive():
                raise EngineUnavailable(f"the engine ended (exit code {self._process.exit_code})")
            failures = 0 if await client.health() else failures + 1
            if failures >= PATIENCE:
                raise EngineUnavailable(f"the engine failed {failures} health checks in a row")
            if time.monotonic() - begin > HEALTHY:
                self._backoff = FIRST_BACKOFF
            now = await asyncio.to_thread(self.registry.revision)
            late = time.monotonic() - last_pass > FULL_PASS
            if not failures and (now != revision or late or self._memory.due()):
                await self._reconcile(client)
                last_pass = time.monotonic()
                revision = await asyncio.to_thread(self.registry.revision)
            await asyncio.sleep(TICK)

    async def _reconcile(self, client: EngineClient) -> None:
        try:
            result = await reconcile(self.registry, client, self.engine_id, self._served, self._memory)
        except EngineUnavailable as error:
            log.warning("reconciling stopped: %s", error)  # whether the engine is gone, the next look decides
            return
        for engine_name in result.loaded:
            log.info("loaded %s", engine_name)
        for engine_name in result.unloaded:
            log.info("unloaded %s", engine_name)
        for engine_name, reason in result.failed.items():
            log.error("%s failed: %s", engine_name, reason)

    async def _after_death(self, error: TenonError) -> None:
        """Tell first, so that the gateway sends nothing more; then clear away what is left, then wait."""
        log.error("%s", error.message)
        exit_code = self._process.exit_code if self._process is not None else None
        self._tell("down", error=error.message, hint=error.hint, last_exit=exit_code)
        await asyncio.to_thread(self._mark_pending)
        if self._process is not None:
            await self._process.stop(grace=1.0)
            self._process = None
        self._memory = self._memory.reborn()
        self._tell("backoff", pid=None, restarts=self.state.restarts + 1)
        await asyncio.sleep(self._backoff)
        self._backoff = min(self._backoff * 2, LAST_BACKOFF)

    def _mark_pending(self) -> None:
        rows = {str(row.ref): row for row in self.registry.loaded(self.engine_id)}
        states = {
            ref: ("failed", row.reason) if row.state == "failed" else ("pending", "")
            for ref, row in rows.items()
        }
        self.registry.set_loaded(self.engine_id, states)

    def _tell(self, state: str, **changes: object) -> None:
        self.state = self.state.but(state=state, **changes)
        write_state(self.state_file, self.state)
