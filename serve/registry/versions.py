"""Versions in the database: numbering, reading, what the engines should hold and say they hold."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from serve.errors import VersionInUse, VersionNotFound
from serve.names import VersionRef, parse_version
from serve.registry.database import bump
from serve.registry.records import LOAD_STATES, AdapterFacts, Lineage, LoadState, Version
from serve.registry.schema import alias_targets, aliases, load_states, names, targets_hold, versions
from serve.registry.store import Store
from serve.registry.ways_back import ways_back

Record = TypeVar("Record", AdapterFacts, Lineage)
AnyRef = str | VersionRef


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def as_ref(ref: AnyRef) -> VersionRef:
    """Accept ``name@vN`` as text or as a reference; raises InputError."""
    return ref if isinstance(ref, VersionRef) else parse_version(ref)


def to_version(row: Row[Any], store: Store) -> Version:
    """The record of a row of ``versions``."""
    ref = VersionRef(row.name, row.number)
    facts = _known(AdapterFacts, row.facts)  # whose tuples JSON has made lists
    return Version(
        ref=ref,
        digest=row.digest,
        path=store.path(row.digest),
        engine_name=ref.engine_name(row.digest),
        base_name=row.base_name,
        base_digest=row.base_digest,
        facts=replace(facts, target_modules=tuple(facts.target_modules), warnings=tuple(facts.warnings)),
        lineage=_known(Lineage, row.lineage),
        created_at=row.created_at,
    )


def add(
    connection: Connection, name: str, digest: str, facts: AdapterFacts, lineage: Lineage, base_name: str
) -> VersionRef:
    """Insert a version under the next number of its name; ``lineage.base_digest`` must be known."""
    last = connection.execute(select(names.c.last_number).where(names.c.name == name)).scalar()
    number = (last or 0) + 1
    if last is None:
        connection.execute(insert(names).values(name=name, last_number=number))
    else:
        connection.execute(update(names).where(names.c.name == name).values(last_number=number))
    connection.execute(
        insert(versions).values(
            name=name,
            number=number,
            digest=digest,
            base_name=base_name,
            base_digest=lineage.base_digest,
            facts=asdict(facts),
            lineage=asdict(lineage),
            created_at=now(),
        )
    )
    bump(connection)
    return VersionRef(name, number)


def find(connection: Connection, ref: VersionRef) -> Row[Any]:
    """The row of a version; raises VersionNotFound, with the nearest that exist."""
    row = connection.execute(
        select(versions).where(versions.c.name == ref.name, versions.c.number == ref.number)
    ).one_or_none()
    if row is not None:
        return row
    known = [
        str(VersionRef(*pair))
        for pair in connection.execute(_order(select(versions.c.name, versions.c.number)))
    ]
    same = [text for text in known if text.startswith(f"{ref.name}@")]
    near = same[-5:] or difflib.get_close_matches(str(ref), known, 3, 0.5)
    hint = f"there are {', '.join(near)}" if near else "tenon adapters list shows what is registered"
    raise VersionNotFound(f"no version {ref} is registered", hint)


def all_rows(connection: Connection, name: str | None) -> Sequence[Row[Any]]:
    """All versions, or those of one name, by name and number."""
    query = _order(select(versions))
    return connection.execute(query.where(versions.c.name == name) if name is not None else query).all()


def remove(connection: Connection, ref: VersionRef) -> str:
    """Delete a version that no alias needs and return its digest; raises VersionNotFound, VersionInUse."""
    row = find(connection, ref)
    shared_with = (
        select(alias_targets.c.alias).join(aliases, targets_hold).where(alias_targets.c.version_id == row.id)
    )
    means = (aliases.c.version_id == row.id) | aliases.c.name.in_(shared_with)
    users = connection.execute(
        select(aliases.c.name, means)
        .where(means | (aliases.c.previous_id == row.id))
        .order_by(aliases.c.name)
    ).all()
    why = {name: "means it" if live else "would roll back to it" for name, live in users}
    for name, back in ways_back(connection).items():
        if back == ref:
            why.setdefault(name, "would roll back to it")
    if why:
        reasons = [f"the alias {name} {reason}" for name, reason in sorted(why.items())]
        raise VersionInUse(
            f"{ref} cannot be removed: {'; '.join(reasons)}",
            "deploy other versions there first, or remove the alias",
        )
    connection.execute(delete(versions).where(versions.c.id == row.id))
    bump(connection)
    return str(row.digest)


def shared(connection: Connection, digest: str) -> bool:
    """Whether any version has this digest."""
    return (
        connection.execute(select(versions.c.id).where(versions.c.digest == digest).limit(1)).first()
        is not None
    )


def loaded(connection: Connection, engine: str | None) -> list[LoadState]:
    """What the engines, or one of them, said last."""
    query = _order(
        select(load_states, versions.c.name, versions.c.number, versions.c.digest).join(versions)
    ).order_by(load_states.c.engine)
    rows = connection.execute(query.where(load_states.c.engine == engine) if engine is not None else query)
    return [_to_load_state(row) for row in rows]


def changed_states(
    connection: Connection,
    engine: str,
    states: Mapping[str, tuple[str, str]],
    load_seconds: Mapping[str, float],
) -> list[dict[str, Any]] | None:
    """The rows that ``engine`` should have from now on, or None where they are as they should be.

    A version that was removed meanwhile is left out. What is not said of load times stays as it was.
    """
    before = {str(state.ref): state for state in loaded(connection, engine)}
    ids = {str(VersionRef(row.name, row.number)): row.id for row in all_rows(connection, None)}
    rows, same = [], before.keys() == states.keys() & ids.keys()
    for ref in states.keys() & ids.keys():
        state, reason = (
            states[ref][0],
            (states[ref][1] or "").replace("\0", ""),
        )  # which PostgreSQL cannot keep
        if state not in LOAD_STATES:
            raise ValueError(f"{state!r} is no load state")
        old = before.get(ref)
        seconds = load_seconds.get(ref, old.load_seconds if old else None)
        kept = old is not None and (old.state, old.reason, old.load_seconds) == (state, reason, seconds)
        same = same and kept
        rows.append(
            {
                "engine": engine,
                "version_id": ids[ref],
                "state": state,
                "reason": reason,
                "load_seconds": seconds,
                "changed_at": old.changed_at if old is not None and kept else now(),
            }
        )
    return None if same else rows


def replace_states(connection: Connection, engine: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put ``rows`` in the place of what ``engine`` said before."""
    connection.execute(delete(load_states).where(load_states.c.engine == engine))
    if rows:
        connection.execute(insert(load_states), list(rows))
    bump(connection)


def _order(query: Select[Any]) -> Select[Any]:
    return query.order_by(versions.c.name, versions.c.number)


def _known(kind: type[Record], content: Mapping[str, Any]) -> Record:
    # Newer code may have written fields that we do not know.
    return kind(**{item.name: content[item.name] for item in fields(kind) if item.name in content})


def _to_load_state(row: Row[Any]) -> LoadState:
    ref = VersionRef(row.name, row.number)
    return LoadState(
        row.engine, ref, ref.engine_name(row.digest), row.state, row.reason, row.load_seconds, row.changed_at
    )
