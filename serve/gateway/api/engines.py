"""``/api/engines``: the engines that this gateway knows, and what they hold."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serve.engine.state import records_by_engine
from serve.gateway.api.answers import reading
from serve.gateway.api.management import NEEDS_KEY, AdaptersCaller, Here, Management
from serve.registry import LoadState

router = APIRouter(prefix="/api/engines", tags=["engines"], dependencies=[NEEDS_KEY])


class Engine(BaseModel):
    """One engine as its supervisor last told of it."""

    name: str
    base: str
    state: str
    reason: str
    versions: dict[str, int] = Field(description="How many versions it has in each state.")
    since: datetime | None = Field(description="When this state began, where that is known.")
    seen_at: datetime | None = Field(description="When the supervisor of another machine last told of it.")


class EngineList(BaseModel):
    """Engines by name."""

    engines: list[Engine]


@router.get("", responses=reading(), summary="List engines")
def list_engines(here: Here, caller: AdaptersCaller) -> EngineList:
    """The engines of this machine, and those that the registry knows of others; not where they are."""
    loaded = here.registry.loaded()
    found = {name: _of_record(name, record, loaded) for name, record in records_of(here).items()}
    for seen in here.registry.engines():
        found.setdefault(
            seen.name,
            Engine(
                name=seen.name,
                base=seen.base_name,
                state=seen.state,
                reason=seen.reason,
                versions=_counts(seen.name, loaded),
                since=None,
                seen_at=seen.seen_at,
            ),
        )
    return EngineList(engines=[found[name] for name in sorted(found)])


def records_of(here: Management) -> dict[str, dict[str, Any]]:
    """What the engines of this machine were last said to be, by their names in the registry."""
    records = records_by_engine(here.settings.state)
    return {name: record for name, record in records.items() if record.get("base_name")}


def _of_record(name: str, record: dict[str, Any], loaded: list[LoadState]) -> Engine:
    since = record.get("since")
    return Engine(
        name=name,
        base=str(record["base_name"]),
        state=str(record.get("state") or "unknown"),
        reason=str(record.get("error") or ""),
        versions=_counts(name, loaded),
        since=datetime.fromtimestamp(since, UTC) if isinstance(since, int | float) and since > 0 else None,
        seen_at=None,
    )


def _counts(engine: str, loaded: list[LoadState]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in loaded:
        if row.engine == engine:
            counts[row.state] = counts.get(row.state, 0) + 1
    return counts
