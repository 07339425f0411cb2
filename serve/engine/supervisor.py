"""Keeping one engine up and its adapters as the registry wants them.

An engine of our own is started (or adopted, when an earlier controller left it running), watched, and started
again when it ends or stops answering; an attached one is only watched. Whatever happens is written to
``run/engine.json``, from which the gateway and ``tenon status`` learn where the engine is and how it does.

Only an engine that is gone is given up. A database that is locked, a full disk, an adapter that does not go or
a mistake of ours leave one that answers as it is; they are logged, and what they stopped is tried again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.engine.account import REGISTRY, Account
from serve.engine.client import EngineClient
from serve.engine.interface import AdapterEngine, Engine, ModelCard
from serve.engine.limits import EngineLimits, GivenLimits, slots_of
from serve.engine.process import EngineProcess, EngineRecord
from serve.engine.recognition import Recognition
from serve.engine.reconcile import Memory, reconcile
from serve.engine.reference import References
from serve.engine.spec import EngineSpec
from serve.engine.state import FIRST, EngineState, StateFile
from serve.engine.trouble import Troubles
from serve.engine.use import Use
from serve.engine.wishes import Room
from serve.errors import (
    ConfigError,
    EngineStartFailed,
    EngineUnavailable,
    PortInUse,
    StorageError,
    TenonError,
)
from serve.net import bare
from serve.records import read_json
from serve.registry.base import BaseIdentity, safe_name
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

ATTACH_HINT = "is it running? started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1?"


@dataclass(frozen=True)
class Served:
    """The base under the name that the engine serves it by."""

    name: str
    digest: str


class Supervisor:
    """Runs one engine: ``spec`` (started and stopped here) or ``engine_url`` (attached, never touched).

    ``base`` is the base that the adapters must be made for, ``state_file`` usually ``run/engine.json`` and
    ``log_file`` ``logs/engine.log`` under the home; ``limits`` is what is said of an attached engine. ``engine_id`` is
    its name in the registry; ``elsewhere`` are the digests of bases that other engines serve, whose adapters are no
    business of this one; ``used_file`` is where the gateway says what it uses; ``answers`` is the folder of what
    adapters answered when they were first proven (None: that is not kept); ``announced``: gateways of other
    machines may ask the engine, so the registry is told every few seconds how it does. Raises
    :class:`ConfigError` unless one of ``spec`` and ``engine_url`` is given.
    """

    def __init__(
        self,
        registry: Registry,
        base: BaseIdentity,
        *,
        state_file: Path,
        log_file: Path,
        spec: EngineSpec | None = None,
        engine_url: str | None = None,
        limits: GivenLimits | None = None,
        start_timeout: float = 600.0,
        engine_id: str = FIRST,
        elsewhere: Collection[str] = (),
        used_file: Path | None = None,
        answers: Path | None = None,
        announced: bool = False,
    ) -> None:
        if (spec is None) == (engine_url is None):
            raise ConfigError(
                "an engine is either started here or attached to", "give a spec or an engine_url"
            )
        self.registry, self.base = registry, base
        self.spec, self.engine_url = spec, engine_url
        self.log_file = log_file
        self.start_timeout = start_timeout
        self.engine_id = engine_id
        self._given = limits or GivenLimits()
        self._slots: int | None = None
        self._troubles = Troubles()
        self._account = Account(registry, engine_id, self._troubles, announced=announced)
        self._file = StateFile(
            state_file,
            EngineState(
                attached=spec is None,
                url=engine_url,
                engine_id=engine_id,
                base_name=base.name,
                base_digest=base.digest,
                base_path=str(base.path),
                serving=base.serving,
            ),
            self._troubles,
        )
        self._elsewhere = frozenset(elsewhere) - {base.digest}
        references = References(answers, spec.numerics if spec is not None else ("attached",))
        self._memory = Memory(
            exclusive=spec is not None, crowded=announced, recognition=Recognition(references)
        )
        self._used_file = used_file
        self._crowded = False
        self._process: EngineProcess | None = None
        self._backoff = FIRST_BACKOFF
        self._last_pass, self._revision = float("-inf"), -1

    @property
    def state(self) -> EngineState:
        """What is known of the engine now."""
        return self._file.state

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the engine up until ``stop`` is set; an engine of our own ends with this.

        Whatever goes wrong until then is retried.
        """
        # What an earlier controller left is ours from the first moment, so that no interruption orphans it.
        record = EngineRecord.read(read_json(self._file.path))
        self._process = EngineProcess(record) if record is not None else None
        work = asyncio.create_task(self._keep_up())
        try:
            await stop.wait()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._discard()
            await self._account.mark_pending(self.state)
            self._file.tell("down", pid=None)

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._live()
            except Exception:  # the edge of a background task: an engine must outlive what nobody foresaw
                log.exception("looking after the engine failed, it is left as it is")
                await self._pause()

    async def _live(self) -> None:
        """One life of the engine, from the start or adoption until it is gone."""
        try:
            async with self._engine() as client:
                await self._serve(client)
        except (EngineUnavailable, EngineStartFailed, PortInUse) as error:
            await self._after_death(error)

    @contextlib.asynccontextmanager
    async def _engine(self) -> AsyncIterator[AdapterEngine]:
        """A client of an engine that answers: attached, adopted or started."""
        if self.spec is None:
            await self._retire()  # of earlier settings, under which the engine was our own
            assert self.engine_url is not None  # one of the two is given
            url, facts = self.engine_url, dict[str, Any](pid=None)
        else:
            process = await self._own(self.spec)
            url, facts = process.url, process.record.to_json()
        async with EngineClient(url, health_timeout=HEALTH_TIMEOUT) as client:
            card = self._base_card(url, await client.list())
            self._served = Served(card.name, self.base.digest)
            facts |= {"url": url, "base_name": card.name, "max_model_len": card.max_model_len}
            self._slots = slots_of(await client.metrics()) if self.spec is None else None
            self._file.tell("ready", **facts, **self._told_limits(), error="", hint="")
            yield client

    @property
    def _limits(self) -> EngineLimits:
        """What the engine does at once, as far as one knows."""
        return self.spec.limits if self.spec is not None else self._given.beside(self._slots)

    def _told_limits(self) -> dict[str, Any]:
        """The limits for the record, with what is wrong with them, which is logged, too."""
        warning = self._given.contradiction(self._slots) if self.spec is None else ""
        if warning and warning != self.state.warning:
            log.warning("%s: %s", self.engine_id, warning)
        return {**asdict(self._limits), "warning": warning}

    async def _learn_limits(self, client: Engine) -> None:
        """Ask an attached engine again for what it did not say yet."""
        if self.spec is None and self._slots is None:
            self._slots = slots_of(await client.metrics())
            if self._slots is not None:
                log.info("%s computes %d adapters at once", self.engine_id, self._slots)
                self._file.tell(self.state.state, **self._told_limits())

    def _base_card(self, url: str, cards: Sequence[ModelCard]) -> ModelCard:
        """The card of our base, else :class:`EngineUnavailable`: adapters fit no other base."""
        bases = [card for card in cards if card.parent is None]
        for card in bases:
            same_folder = (
                Path(card.root).is_absolute() and Path(card.root).resolve() == self.base.path.resolve()
            )
            # A hub id such as Qwen/Qwen3-0.6B, which vLLM takes for the name, is qwen3-0.6b with us.
            if safe_name(card.name) == self.base.name or same_folder:
                return card
        served = ", ".join(f"{card.name} (from {card.root})" for card in bases) or "no base"
        raise EngineUnavailable(
            f"the engine at {bare(url)} serves {served}, not {self.base.name} (from {self.base.path})",
            "set TENON_MODEL to the base that it serves, or attach to one that was started with "
            f"--served-model-name {self.base.name}",
        )

    async def _own(self, spec: EngineSpec) -> EngineProcess:
        if self._process is not None:
            if await self._process.serves(spec):
                log.info("engine %d runs already and is kept", self._process.record.pid)
                return self._process
            await self._retire()
        await self._account.mark_pending(self.state)
        self._memory.inherited = False  # what is ready in a new process, its own probes show
        try:
            self._process = await EngineProcess.start(spec, self.log_file)
        except StorageError as error:
            raise EngineStartFailed(error.message, error.hint) from error
        self._file.tell("starting", **self._process.record.to_json(), stage="")
        await self._process.wait_ready(self.start_timeout, self._progress)
        return self._process

    async def _retire(self) -> None:
        """End an engine that is not wanted any more, after telling so; it stays on record until it has ended."""
        if self._process is not None:
            self._file.tell("down", **self._process.record.to_json())
            await self._account.mark_pending(self.state)
            await self._discard()

    async def _discard(self, grace: float = 15.0) -> None:
        """End our engine and all that is left of it; it is forgotten only when it has ended."""
        if self._process is not None:
            await self._process.stop(grace)
            self._process = None

    def _progress(self, stage: str) -> None:
        if stage != self.state.stage:
            self._file.tell("starting", stage=stage)

    async def _serve(self, client: AdapterEngine) -> None:
        """Watch and reconcile until the engine is gone, which raises :class:`EngineUnavailable`."""
        begin, failures = time.monotonic(), 0
        self._last_pass = float("-inf")
        while True:
            if self._process is not None and not self._process.alive():
                raise EngineUnavailable(f"the engine ended (exit code {self._process.exit_code})")
            failures = 0 if await client.health() else failures + 1
            if failures >= PATIENCE:
                raise EngineUnavailable(f"the engine failed {failures} health checks in a row")
            if time.monotonic() - begin > HEALTHY:
                self._backoff = FIRST_BACKOFF
            self._file.catch_up()
            if not failures:
                await self._look(client)
            await asyncio.sleep(TICK)

    async def _look(self, client: AdapterEngine) -> None:
        """Reconcile if there is a reason to."""
        try:
            revision = await asyncio.to_thread(self.registry.revision)
            late = time.monotonic() - self._last_pass > FULL_PASS
            if revision != self._revision or late or self._memory.due() or REGISTRY in self._troubles:
                await self._reconcile(client)
                await self._account.announce(self.state)
                self._last_pass, self._revision = time.monotonic(), revision
        except StorageError as error:
            self._troubles.note(REGISTRY, error)

    async def _reconcile(self, client: AdapterEngine) -> None:
        use = Use.read(self._used_file) if self._used_file is not None else Use()
        try:
            result = await reconcile(
                self.registry,
                client,
                self.engine_id,
                self._served,
                self._memory,
                self._elsewhere,
                Room(self._limits.max_cpu_loras, use.order(self.engine_id)),
                use.engaged(self.engine_id),
            )
        except EngineUnavailable as error:
            log.warning("reconciling stopped: %s", error)  # whether the engine is gone, the next look decides
            return
        if result.excess and not self._crowded:
            log.warning(
                "%d adapters more are needed at once than %s keeps in memory; raise TENON_MAX_CPU_LORAS",
                result.excess,
                self.engine_id,
            )
        self._crowded = result.excess > 0
        for engine_name in result.loaded:
            log.info("loaded %s", engine_name)
        for engine_name in result.unloaded:
            log.info("unloaded %s", engine_name)
        for engine_name, reason in result.failed.items():
            log.error("%s failed: %s", engine_name, reason)
        if result.unwritten is not None:
            self._troubles.note(REGISTRY, result.unwritten)
        else:
            self._troubles.over(REGISTRY)
        with contextlib.suppress(EngineUnavailable):  # the next pass asks again
            await self._learn_limits(client)

    async def _after_death(self, error: TenonError) -> None:
        """Tell first, so that the gateway sends nothing more; then clear away what is left, then wait."""
        exit_code = self._process.exit_code if self._process is not None else None
        hint = error.hint or (ATTACH_HINT if self.spec is None else "")
        log.error("%s (%s)", error.message, hint or "it is started again")
        self._file.tell("down", error=error.message, hint=hint, last_exit=exit_code)
        await self._account.mark_pending(self.state)
        self._memory = self._memory.reborn()
        if self.spec is not None:
            await self._discard(grace=1.0)
            self._file.tell("backoff", pid=None, restarts=self.state.restarts + 1)
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._backoff)
        self._backoff = min(self._backoff * 2, LAST_BACKOFF)
