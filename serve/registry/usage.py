"""What was used: requests, tokens and engine time by day, key, adapter and version."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, func, select

from serve.registry.schema import usage

NO_KEY = 0
"""The ``key_id`` of requests without a key."""

UsageField = Literal["day", "key_id", "adapter", "version"]
FIELDS: tuple[str, ...] = get_args(UsageField)
COUNTS = ("requests", "prompt_tokens", "completion_tokens", "engine_seconds")


def today() -> date:
    """The day that usage of this moment counts for, in UTC."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class UsageDelta:
    """What is to be added: usage of one key, adapter and version on one day (of UTC).

    ``adapter`` and ``version`` are as in the metrics: ``support`` and ``support@v3``, or twice the base's name.
    ``engine_seconds`` is the share of an engine's time.
    """

    day: date
    key_id: int
    adapter: str
    version: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0


@dataclass(frozen=True)
class UsageSum:
    """What was used in all; the fields that it was not asked by are None."""

    day: date | None
    key_id: int | None
    adapter: str | None
    version: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    engine_seconds: float


def add(connection: Connection, deltas: Iterable[UsageDelta]) -> None:
    """Add deltas to what is counted; several of one key, adapter, version and day are fine."""
    sums: dict[tuple[Any, ...], list[float]] = {}
    for delta in deltas:
        place = sums.setdefault(tuple(getattr(delta, name) for name in FIELDS), [0] * len(COUNTS))
        for index, name in enumerate(COUNTS):
            place[index] += getattr(delta, name)
    if not sums:
        return
    rows = [dict(zip(FIELDS + COUNTS, (*key, *values), strict=True)) for key, values in sums.items()]
    # The two spell it alike, but SQLAlchemy keeps what is not standard SQL apart. Imported here, as PostgreSQL's takes
    # long and few need it.
    dialect: Any
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite as dialect
    else:
        from sqlalchemy.dialects import postgresql as dialect
    new = dialect.insert(usage)
    more = {name: usage.c[name] + new.excluded[name] for name in COUNTS}
    connection.execute(new.on_conflict_do_update(index_elements=list(FIELDS), set_=more), rows)


def read(
    connection: Connection, since: date | None, until: date | None, by: Sequence[UsageField]
) -> list[UsageSum]:
    """The sums from a day to the day before another, by some fields and in their order."""
    columns = [usage.c[name] for name in by]
    query = select(*columns, *(func.sum(usage.c[name]).label(name) for name in COUNTS))
    if since is not None:
        query = query.where(usage.c.day >= since)
    if until is not None:
        query = query.where(usage.c.day < until)
    rows = connection.execute(query.group_by(*columns).order_by(*columns) if columns else query).all()
    return [
        UsageSum(
            **{name: getattr(row, name, None) for name in FIELDS},
            requests=int(row.requests),
            prompt_tokens=int(row.prompt_tokens),
            completion_tokens=int(row.completion_tokens),
            engine_seconds=float(row.engine_seconds),
        )
        for row in rows
        if row.requests is not None
    ]
