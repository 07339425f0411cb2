"""Has engines load versions for a caller who waits, but not for long."""

import asyncio
import time
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from serve.errors import AdapterLoadFailed
from serve.gateway.api.management import Management
from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.records import RANKS

LEASE = 600.0
"""Seconds for which a version that was asked for stays wanted, so that a caller who asks again finds it loaded."""
POLL = 0.1
ROUTE_SECONDS = 5.0


def state_of(registry: Registry, ref: VersionRef) -> tuple[str, str]:
    """The best state that an engine has a version in, and its words."""
    rows = [row for row in registry.loaded() if row.ref == ref]
    best = min(rows, key=lambda row: RANKS.index(row.state), default=None)
    return ("pending", "") if best is None else (best.state, best.reason)


async def loaded(
    here: Management, refs: Sequence[VersionRef], holder: str, wait: float
) -> dict[VersionRef, str]:
    """Want versions and wait at most ``wait`` seconds for them; returns those that are not ready, with their states.

    They stay wanted for a while and no longer, so that nothing needs to be taken back. Raises AdapterLoadFailed with
    an engine's words.
    """
    deadline = time.monotonic() + wait
    for ref in refs:
        await run_in_threadpool(here.registry.want, ref, holder, LEASE)
    while True:
        missing = await run_in_threadpool(_missing, here.registry, refs)
        left = deadline - time.monotonic()
        if not missing or left <= 0:
            return missing
        await asyncio.sleep(min(POLL, left))


def _missing(registry: Registry, refs: Sequence[VersionRef]) -> dict[VersionRef, str]:
    missing = {}
    for ref in refs:
        state, reason = state_of(registry, ref)
        if state == "failed":
            raise AdapterLoadFailed(
                f"the engine does not serve {ref}: {reason.replace(str(registry.version(ref).path), str(ref))}",
                f"GET /api/adapters/{ref} shows what each engine says",
            )
        if state != "ready":
            missing[ref] = state
    return missing


async def routed(here: Management) -> bool:
    """Wait a little until this gateway routes by what the registry says now; whether it does."""
    revision = await run_in_threadpool(here.registry.revision)
    deadline = time.monotonic() + ROUTE_SECONDS
    while here.source.table.revision < revision:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL)
    return True
