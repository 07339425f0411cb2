"""Asks the running stack to hold a version, waits until it answers as itself, and moves aliases."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from deploy.net import get_json
from deploy.status import controller_part, processes, require_up
from serve.config import Settings
from serve.engine.kinds import OPENAI
from serve.engine.state import records_by_engine
from serve.errors import (
    AdapterLoadFailed,
    EngineUnavailable,
    StorageError,
    TenonError,
    VersionNotFound,
)
from serve.names import VersionRef, check_name
from serve.registry import Alias, Registry, Version
from serve.registry.evidence import answered, check_gate, verdict_of

LOAD_TIMEOUT = 300.0  # seconds, an engine that restarts meanwhile included
ALIASES_PATIENCE = 60.0  # seconds that a stack which comes up is given to load what aliases mean
ROUTE_TIMEOUT = 10.0  # seconds for the gateway to route by a change of the registry
POLL = 0.05
LEASE = 60.0  # seconds that a command's want outlives the command
BEATS = 4  # renewals in that time
COMING = ("pending", "loading")  # a pending row with a reason has no room

log = logging.getLogger(__name__)


@contextmanager
def wanted(registry: Registry, ref: VersionRef, seconds: float = LEASE) -> Iterator[None]:
    """Ask that a version be loaded for as long as the block runs; an alias that takes it keeps it loaded.

    Others may want it at the same time: none takes it from another. Killed, we want it for ``seconds`` more.
    """
    holder = f"{_ours()}{secrets.token_hex(4)}"
    done = threading.Event()
    registry.want(ref, holder, seconds)
    beat = threading.Thread(target=_renew, args=(registry, ref, holder, seconds, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        # Removed meanwhile, or in a database that is gone, it ends by itself; what the block raised matters more.
        with suppress(VersionNotFound, StorageError):
            registry.unwant(ref, holder)


def _machine() -> str:
    return f"{socket.gethostname()[:64]}:"


def _ours() -> str:
    return f"{_machine()}{os.getpid()}:"


def of_another_command(holder: str) -> bool:
    """Whether a want is that of another command on this machine, which uses the stack here, too."""
    return holder.startswith(_machine()) and not holder.startswith(_ours())


def _renew(registry: Registry, ref: VersionRef, holder: str, seconds: float, done: threading.Event) -> None:
    while not done.wait(seconds / BEATS):
        try:
            registry.renew(ref, holder, seconds)
        except StorageError as error:  # the next beat may reach it
            log.warning("the want of %s was not renewed: %s", ref, error.message)
        except VersionNotFound:
            return


def wait_until_loaded(
    registry: Registry, settings: Settings, ref: VersionRef, say: Callable[[str], None]
) -> float:
    """Wait until a probe saw a wanted version answer as itself and requests reach it; returns seconds.

    All engines of its base that are up must hold it, so that none of them is a surprise; one that is down gets it when
    it comes back. Raises :class:`NotUp`, :class:`AdapterLoadFailed` with the engine's own words, or
    :class:`EngineUnavailable` when it takes too long.
    """
    require_up(settings.home)
    base = registry.version(ref).base_digest
    started = time.monotonic()
    while time.monotonic() - started < LOAD_TIMEOUT:
        every, able = engines_up(settings, base)
        states = {row.engine: row for row in registry.loaded() if row.ref == ref and row.engine in every}
        for row in states.values():
            if row.state == "failed" and (row.engine in able or not able):
                raise AdapterLoadFailed(
                    f"the engine does not serve {ref}: {row.reason}",
                    f"see `tenon status` and the log of {row.engine}",
                )
        missing = [name for name in able if name not in states or states[name].state != "ready"]
        if able and not missing:
            wait_for_routes(registry, require_up(settings.home).url)
            return time.monotonic() - started
        state = states[missing[0]].state if missing and missing[0] in states else "pending"
        say(f"{ref} is {state}" + (f" on {missing[0]}" if len(able) > 1 else ""))
        time.sleep(POLL)
    raise EngineUnavailable(
        f"{ref} was not loaded after {LOAD_TIMEOUT:.0f} s", "see `tenon status` and the engine's log"
    )


def wait_for_aliases(settings: Settings, say: Callable[[str], None]) -> list[str]:
    """Wait until what aliases mean answers requests; returns the versions that are still on their way after a minute.

    What failed, and what no engine here could load, is not waited for. For a stack that is up: an engine that ends
    meanwhile is waited for, too, as it is started again; the end of what would start it ends the wait.
    """
    until = time.monotonic() + ALIASES_PATIENCE
    with suppress(TenonError), Registry.of(settings) as registry:
        while coming := on_their_way(registry, settings):
            say(", ".join(coming))
            if time.monotonic() > until or not controller_part(settings.state).running:
                return coming
            time.sleep(5 * POLL)
        wait_for_routes(registry, require_up(settings.home).url)
    return []


def on_their_way(registry: Registry, settings: Settings) -> list[str]:
    """Versions that aliases mean and no engine of this stack answers for yet, though one of them will.

    That is one that answers, or where none does one that is started again.
    """
    rows = {(row.engine, row.ref): row for row in registry.loaded()}
    found = []
    for ref in sorted({ref for alias in registry.aliases() for ref in alias.refs}, key=str):
        base = registry.version(ref).base_digest
        _, able = engines_up(settings, base)
        states = [rows.get((name, ref)) for name in able or returning(settings, base)]
        ready = any(row is not None and row.state == "ready" for row in states)
        if not ready and any(row is None or (row.state in COMING and not row.reason) for row in states):
            found.append(str(ref))
    return found


def why_silent(registry: Registry, settings: Settings, ref: VersionRef) -> str | None:
    """Why no engine of this stack will answer for a version, None where one may."""
    if registry.shared and answered(registry, ref):
        return None  # on another machine, which the gateway asks
    base = registry.version(ref).base_digest
    rows = {row.engine: row for row in registry.loaded() if row.ref == ref}
    reasons = []
    for name, record in records_by_engine(settings.state).items():
        if may_hold(record, base):
            row = rows.get(name)
            if record.get("state") != "ready" or row is None or row.state != "failed":
                return None  # it is away, or has not said yet
            reasons.append(row.reason)
    return reasons[0] if reasons else "no engine here has its base"


def base_served(settings: Settings, version: Version) -> tuple[str, int | None]:
    """What the engines call the base of a version, and the tokens of its context, where they tell."""
    records = [record for record in records_by_engine(settings.state).values() if record.get("base_name")]
    own = [record for record in records if record.get("base_digest") == version.base_digest]
    unknown = [record for record in records if record.get("base_digest") is None]
    found = own or unknown or [{"base_name": version.base_name}]
    contexts = [int(record["max_model_len"]) for record in found if record.get("max_model_len")]
    return str(found[0]["base_name"]), min(contexts, default=None)


def engines_up(settings: Settings, base_digest: str) -> tuple[set[str], list[str]]:
    """The engines of the stack, and those of a base that answer, as their records say, by their registry's names."""
    records = records_by_engine(settings.state)
    able = [
        name
        for name, record in records.items()
        if record.get("state") == "ready" and may_hold(record, base_digest)
    ]
    return set(records), able


def may_hold(record: Mapping[str, Any], base_digest: str) -> bool:
    """Whether the engine of a record may load versions of a base; a server that is only asked loads nothing."""
    return record.get("base_digest") in (None, base_digest) and record.get("kind") != OPENAI


def returning(settings: Settings, base_digest: str) -> list[str]:
    """The engines of our own, of a base, that ended and are started again, by their registry's names."""
    return [
        name
        for name, record in records_by_engine(settings.state).items()
        if record.get("base_digest") == base_digest and not record.get("attached") and record.get("error")
    ]


def wait_for_routes(registry: Registry, url: str | None) -> None:
    """Wait until the gateway at a URL routes by what the registry says now."""
    revision = registry.revision()
    deadline = time.monotonic() + ROUTE_TIMEOUT
    while int(get_json(f"{url}/healthz").get("revision", -1)) < revision:
        if time.monotonic() > deadline:
            raise EngineUnavailable(
                f"the gateway at {url} does not follow the registry",
                "see `tenon status` and the gateway's log",
            )
        time.sleep(POLL)


def remove_alias(registry: Registry, settings: Settings, name: str) -> Alias:
    """Let an alias mean nothing any more, and return once no request finds it; raises NotFound."""
    removed = registry.remove_alias(name)
    now = processes(settings.home)
    if now.gateway.running:
        wait_for_routes(registry, now.url)
    return removed


def move_alias(
    registry: Registry,
    settings: Settings,
    name: str,
    version: Version,
    *,
    sampling: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> Alias:
    """Point the alias ``name`` at a version whose evaluation lets it answer users; returns the alias.

    Without such an evaluation raises :class:`GateRefused`, unless ``force``, which is recorded.
    """
    return split_alias(registry, settings, name, {version.ref: 1}, sampling=sampling, force=force, say=say)


def split_alias(
    registry: Registry,
    settings: Settings,
    name: str,
    weights: Mapping[VersionRef, int],
    *,
    sampling: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> Alias:
    """Split the conversations of the alias ``name`` among versions by whole weights; returns the alias.

    The gate holds for every version whose weight is above 0: without an evaluation that lets it answer users
    raises :class:`GateRefused`, unless ``force``, which is recorded. All of them are loaded before any answers.
    """
    check_name(name)
    answering = [registry.version(ref) for ref, weight in weights.items() if weight]
    against = check_gate(registry, name, answering, overruled=force, force="--force")
    verdict = verdict_of(registry, registry.version(max(weights, key=weights.__getitem__)))
    with ExitStack() as wants:
        for ref in weights:
            wants.enter_context(wanted(registry, ref))
        for ref in weights:
            wait_until_loaded(registry, settings, ref, say)
        alias = registry.set_alias(
            name,
            targets=dict(weights),
            sampling=sampling,
            verdict=verdict,
            forced=against,
        )
    wait_for_routes(registry, require_up(settings.home).url)
    return alias
