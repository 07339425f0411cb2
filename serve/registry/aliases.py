"""Aliases in the database: what each means now, what it meant before, and who changed it."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from serve.errors import Conflict
from serve.names import VersionRef, parse_version
from serve.registry import versions as version_rows
from serve.registry.database import bump
from serve.registry.records import Alias, AliasChange
from serve.registry.schema import alias_changes, aliases, versions
from serve.registry.store import Store


def read(connection: Connection, store: Store, name: str | None = None) -> list[Alias]:
    """All aliases by name, or the one of that name."""
    query = select(aliases).order_by(aliases.c.name)
    rows = connection.execute(query.where(aliases.c.name == name) if name is not None else query).all()
    return [_to_alias(connection, store, row) for row in rows]


def put(
    connection: Connection,
    name: str,
    ref: VersionRef,
    *,
    sampling: Mapping[str, Any] | None,
    verdict: str | None,
    forced: bool,
    by: str,
) -> None:
    """Let an alias mean a version and add that to its history; raises VersionNotFound, Conflict."""
    target = version_rows.find(connection, ref)
    if name == target.base_name:
        raise Conflict(f"{name} is the name of the base itself", "choose another name for the alias")
    before = connection.execute(select(aliases).where(aliases.c.name == name)).one_or_none()
    previous_id = None
    if before is not None:
        # The same version set again, for other sampling, must not lose the way back.
        previous_id = before.previous_id if before.version_id == target.id else before.version_id
    values = {
        "version_id": target.id,
        "previous_id": previous_id,
        "sampling": dict(sampling if sampling is not None else before.sampling if before is not None else {}),
        "verdict": verdict,
        "forced": forced,
        "changed_at": version_rows.now(),
    }
    if before is None:
        connection.execute(insert(aliases).values(name=name, **values))
    else:
        connection.execute(update(aliases).where(aliases.c.name == name).values(**values))
    previous = _ref_of(connection, previous_id)
    connection.execute(
        insert(alias_changes).values(
            alias=name,
            target=str(ref),
            digest=target.digest,
            previous=str(previous) if previous else None,
            sampling=values["sampling"],
            verdict=verdict,
            forced=forced,
            by=by,
            changed_at=values["changed_at"],
        )
    )
    bump(connection)


def history(connection: Connection, name: str) -> list[AliasChange]:
    """The changes of an alias, oldest first."""
    rows = connection.execute(
        select(alias_changes).where(alias_changes.c.alias == name).order_by(alias_changes.c.id)
    )
    return [
        AliasChange(
            alias=row.alias,
            target=parse_version(row.target),
            digest=row.digest,
            previous=parse_version(row.previous) if row.previous else None,
            sampling=row.sampling,
            verdict=row.verdict,
            forced=row.forced,
            by=row.by,
            changed_at=row.changed_at,
        )
        for row in rows
    ]


def _to_alias(connection: Connection, store: Store, row: Row[Any]) -> Alias:
    target = connection.execute(select(versions).where(versions.c.id == row.version_id)).one()
    return Alias(
        name=row.name,
        target=version_rows.to_version(target, store),
        previous=_ref_of(connection, row.previous_id),
        sampling=row.sampling,
        verdict=row.verdict,
        forced=row.forced,
        changed_at=row.changed_at,
    )


def _ref_of(connection: Connection, version_id: int | None) -> VersionRef | None:
    if version_id is None:
        return None
    row = connection.execute(
        select(versions.c.name, versions.c.number).where(versions.c.id == version_id)
    ).one()
    return VersionRef(row.name, row.number)
