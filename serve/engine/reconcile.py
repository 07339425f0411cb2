"""Moving an engine towards what the registry wants: level-triggered, so it may be run at any time, any number
of times.

Desired are the versions that an alias, a rollback or an evaluation needs; observed is what the engine's
``/v1/models`` says. What is missing is loaded and probed, targets of aliases first; what nobody wants is
drained and unloaded, and so is what has no room (``wishes`` says which). While it drains the gateway routes nothing
new to it, and it stays for the requests that were routed before, those that wait in the gateway among them. The
registry learns each step as it happens, and nothing is written when nothing changed.
"""

import asyncio
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from serve.engine.interface import AdapterEngine
from serve.engine.probe import probe_effect
from serve.engine.recognition import Recognition
from serve.engine.wishes import NO_ROOM, Room, Wishes
from serve.errors import AdapterLoadFailed, StorageError
from serve.names import VERSION
from serve.registry.records import Version
from serve.registry.registry import Registry

ENGINE_NAME = re.compile(rf"{VERSION.pattern}-[0-9a-f]{{8}}")
"""What our engine names look like; on an engine of our own everything of this shape is ours."""

FIRST_RETRY = 5.0
LAST_RETRY = 300.0
"""Seconds before a failed load is tried again: the first, doubling to the last."""

DRAIN = 2.0
"""Seconds at least between telling the gateway that a version goes and unloading it: until then it has heard, and has
said what it still uses."""

LONGEST_DRAIN = 60.0 + 30.0
"""Seconds until a version is unloaded whatever the gateway says: a request waits for 60 s at most for its place
(:class:`~serve.gateway.balance.flow.Limits`), and what runs then gets half a minute. vLLM even lets it end."""

UNLOAD_RETRY = 30.0
"""Seconds until an adapter that the engine did not unload is told to go again."""


class Base(Protocol):
    """What must be known of the base that an engine serves."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102


@dataclass
class Failure:
    """A version that could not be served, and when to try again (in ``time.monotonic`` seconds)."""

    reason: str
    attempts: int
    retry_at: float


@dataclass
class Memory:
    """What one life of one engine has shown so far; a new life starts with a new one.

    ``exclusive``: the engine is ours alone, so adapters on it that no row mentions may be unloaded. ``crowded``:
    gateways may ask it that do not tell us what they use, so that each drain takes as long as one can.
    ``recognition`` knows the answers of the ``proven``. ``inherited``: an earlier controller may have proven adapters
    in this very life of the engine, so that what it wrote down as ready counts until our own probe.
    """

    exclusive: bool = True
    crowded: bool = False
    recognition: Recognition = field(default_factory=Recognition)
    inherited: bool = True
    proven: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    draining: dict[str, float] = field(default_factory=dict)  # engine name → since when; later: not before
    loading: str | None = None

    def fail(self, engine_name: str, reason: str) -> None:
        """Note a failure; the next try waits twice as long as the one before."""
        earlier = self.failures.get(engine_name)
        attempts = earlier.attempts + 1 if earlier else 1
        wait = min(FIRST_RETRY * 2 ** (attempts - 1), LAST_RETRY)
        self.failures[engine_name] = Failure(reason, attempts, time.monotonic() + wait)

    def waits(self, engine_name: str) -> bool:
        """Whether a failed version is not to be tried again yet."""
        failure = self.failures.get(engine_name)
        return failure is not None and time.monotonic() < failure.retry_at

    def due(self) -> bool:
        """Whether time alone gives a pass something to do."""
        now = time.monotonic()
        return any(now - since >= self.drain for since in self.draining.values()) or any(
            now >= failure.retry_at for failure in self.failures.values()
        )

    @property
    def drain(self) -> float:
        """Seconds that a drain takes at least."""
        return LONGEST_DRAIN if self.crowded else DRAIN

    def drained(self, engine_name: str, engaged: Collection[str]) -> bool:
        """Whether an adapter that drains may go: long enough, and nobody is on it as far as one can know."""
        seconds = time.monotonic() - self.draining[engine_name]
        return seconds >= self.drain and (engine_name not in engaged or seconds >= LONGEST_DRAIN)

    def reborn(self) -> "Memory":
        """The next life's memory: an adapter whose loading ended the last life is not tried at once."""
        memory = Memory(self.exclusive, self.crowded, self.recognition.reborn(), inherited=False)
        if self.loading is not None:
            memory.failures = {name: item for name, item in self.failures.items() if name == self.loading}
            memory.fail(self.loading, "the engine ended while it loaded this adapter")
        return memory


@dataclass
class Reconciliation:
    """What one pass did: engine names loaded and unloaded, and those that failed with the reason.

    ``excess`` is how many more adapters are needed at once than the engine keeps. ``unwritten`` is why the registry
    could not be told; the engine is moved all the same, as far as that is safe.
    """

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    excess: int = 0
    unwritten: StorageError | None = None

    @property
    def changed(self) -> bool:
        """Whether the pass did anything."""
        return bool(self.loaded or self.unloaded or self.failed)


async def reconcile(
    registry: Registry,
    client: AdapterEngine,
    engine_id: str,
    base: Base,
    memory: Memory | None = None,
    elsewhere: Collection[str] = (),
    room: Room | None = None,
    engaged: Collection[str] = (),
) -> Reconciliation:
    """Make one pass; ``base.name`` is the name that the engine serves its base under.

    A version of another base is failed, but for those whose base's digest is among ``elsewhere``; what has no
    ``room`` stays pending. ``engaged`` are engine names that requests may be on, as the gateway says. Raises
    :class:`~serve.errors.EngineUnavailable` when the engine stops answering and
    :class:`~serve.errors.StorageError` when the registry cannot be read; what was done until then is recorded, and
    a later pass goes on from there.
    """
    work = _Pass(
        registry, client, engine_id, base, memory if memory is not None else Memory(), elsewhere, room
    )
    await work.observe()
    await work.load_missing()
    await work.unload_unwanted(engaged)
    return work.result


class _Pass:
    """One pass: ``states`` are the engine's rows in the registry as they should be now."""

    def __init__(
        self,
        registry: Registry,
        client: AdapterEngine,
        engine_id: str,
        base: Base,
        memory: Memory,
        elsewhere: Collection[str],
        room: Room | None,
    ) -> None:
        self.registry, self.client, self.engine_id = registry, client, engine_id
        self.base, self.memory, self.elsewhere, self.room = base, memory, elsewhere, room
        self.result = Reconciliation()
        self.states: dict[str, tuple[str, str]] = {}

    async def observe(self) -> None:
        """Compare desired and actual, and write down the states that follow from that alone."""
        versions, wishes, rows = await asyncio.to_thread(self._read)
        self.desired = {version.engine_name: version for version in wishes.loaded}
        self.left_out = {version.engine_name: ("pending", NO_ROOM) for version in wishes.left_out}
        self.result.excess = wishes.excess
        self.actual = {card.name for card in await self.client.list()} - {self.base.name}
        self.known = {engine_name: ref for ref, (engine_name, _) in rows.items()}
        for engine_name, version in self.desired.items():
            self.states[str(version.ref)] = self._state(engine_name, rows.get(str(version.ref)))
        for version in versions:
            if version.base_digest != self.base.digest and version.base_digest not in self.elsewhere:
                reason = (
                    f"it was made for another base ({version.base_name}) than the engine's ({self.base.name})"
                )
                self.states[str(version.ref)] = ("failed", reason)
        for version in wishes.left_out:
            self.states[str(version.ref)] = ("pending", NO_ROOM)
        for engine_name in self._unwanted():
            self.states[self._ref(engine_name)] = ("draining", "")
        self.memory.proven &= self.actual
        for gone in set(self.memory.failures) - set(self.desired):
            del self.memory.failures[gone]
        await self._write()

    def _read(self) -> tuple[list[Version], Wishes, dict[str, tuple[str, str]]]:
        rows = {
            str(row.ref): (row.engine_name, str(row.state)) for row in self.registry.loaded(self.engine_id)
        }
        versions = self.registry.desired()
        ours = [version for version in versions if version.base_digest == self.base.digest]
        wishes = Wishes.of(ours, self.registry.aliases(), self.registry.wanted(), self.room)
        return versions, wishes, rows

    def _state(self, engine_name: str, row: tuple[str, str] | None) -> tuple[str, str]:
        if engine_name in self.memory.failures:
            return "failed", self.memory.failures[engine_name].reason
        if engine_name in self.actual:
            # Loaded by an earlier controller and ready then: it stays so until a probe says otherwise.
            before = self.memory.inherited and row == (engine_name, "ready")
            ready = engine_name in self.memory.proven or before
            return ("ready", "") if ready else ("loading", "")
        return "pending", ""

    def _unwanted(self) -> list[str]:
        """What is loaded and ours, but no longer desired."""
        unwanted = self.actual - set(self.desired)
        if not self.memory.exclusive:
            return sorted(unwanted & (set(self.known) | set(self.memory.draining)))
        return sorted(name for name in unwanted if ENGINE_NAME.fullmatch(name))

    async def load_missing(self) -> None:
        """Load and probe one after the other, the most wanted first: a load halts the engine for all."""
        for engine_name, version in self.desired.items():
            proven = engine_name in self.actual and engine_name in self.memory.proven
            if proven or self.memory.waits(engine_name):
                continue
            try:
                await self._load(engine_name, version)
            except AdapterLoadFailed as error:
                self.memory.loading = None
                reason = f"{error.message} ({error.hint})" if error.hint else error.message
                self.memory.fail(engine_name, reason)
                self.result.failed[engine_name] = reason
                self.states[str(version.ref)] = ("failed", reason)
                await self._write()
                await self._unload(engine_name)

    async def _load(self, engine_name: str, version: Version) -> None:
        ref = str(version.ref)
        if engine_name not in self.actual:
            self.states[ref] = ("loading", "")
            await self._write()
            await self._check_files(version)
            self.memory.loading = engine_name  # stays set when the engine ends here
            self.memory.seconds[ref] = await self.client.load(engine_name, version.path)
            self.memory.loading = None
            self.result.loaded.append(engine_name)
        probe = await probe_effect(self.client, self.base.name, engine_name, all_zero=version.facts.all_zero)
        await asyncio.to_thread(self.memory.recognition.check, version, probe)
        self.actual.add(engine_name)
        self.memory.proven.add(engine_name)
        self.memory.failures.pop(engine_name, None)
        self.states[ref] = ("ready", "")
        await self._write()

    async def _check_files(self, version: Version) -> None:
        """Files that were changed since they were approved are not loaded."""
        try:
            await asyncio.to_thread(self.registry.verify, version.ref)
        except StorageError as error:
            raise AdapterLoadFailed(error.message, error.hint) from error

    async def unload_unwanted(self, engaged: Collection[str]) -> None:
        """Unload what has drained and nobody is on any more; what is new among the unwanted starts to drain.

        As long as the registry cannot be told, the gateway may still send requests there: nothing drains.
        """
        if self.result.unwritten is not None:
            self.memory.draining = dict.fromkeys(self.memory.draining, time.monotonic())
            return
        unwanted = self._unwanted()
        now = time.monotonic()
        self.memory.draining = {name: self.memory.draining.get(name, now) for name in unwanted}
        for engine_name in unwanted:
            if not self.memory.drained(engine_name, engaged):
                continue
            if not await self._unload(engine_name):
                self.memory.draining[engine_name] = now + UNLOAD_RETRY - self.memory.drain
                continue
            del self.memory.draining[engine_name]
            self.memory.proven.discard(engine_name)
            self.states.pop(self._ref(engine_name), None)
            if engine_name in self.left_out:
                self.states[self._ref(engine_name)] = self.left_out[engine_name]
            self.result.unloaded.append(engine_name)
        await self._write()

    async def _unload(self, engine_name: str) -> bool:
        try:
            await self.client.unload(engine_name)
        except AdapterLoadFailed as error:
            self.result.failed.setdefault(engine_name, error.message)
            return False
        return True

    def _ref(self, engine_name: str) -> str:
        return self.known.get(engine_name, engine_name.rsplit("-", 1)[0])

    async def _write(self) -> None:
        if self.result.unwritten is not None:
            return  # a locked database has cost this pass half a minute already
        states, seconds = dict(self.states), dict(self.memory.seconds)
        try:
            await asyncio.to_thread(self.registry.set_loaded, self.engine_id, states, load_seconds=seconds)
        except StorageError as error:
            self.result.unwritten = error
