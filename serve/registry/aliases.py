"""Aliases in the database: what each means now, what it meant before, and who changed it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from serve.errors import Conflict, InputError, NotFound
from serve.names import VersionRef, parse_version
from serve.registry import versions as version_rows
from serve.registry import wants
from serve.registry.database import bump
from serve.registry.records import Alias, AliasChange
from serve.registry.schema import alias_changes, alias_targets, aliases, versions
from serve.registry.store import Store
from serve.registry.ways_back import ways_back

MOST_WEIGHT = 1_000_000

Targets = Sequence[tuple[VersionRef, int]]


def read(connection: Connection, store: Store, name: str | None = None) -> list[Alias]:
    """All aliases by name, or the one of that name."""
    query = select(aliases).order_by(aliases.c.name)
    rows = connection.execute(query.where(aliases.c.name == name) if name is not None else query).all()
    back = ways_back(connection)
    return [_to_alias(connection, store, row, back.get(row.name)) for row in rows]


def check_targets(targets: Targets) -> None:
    """Raise InputError unless there are targets, each once, with weights that are not all zero."""
    refs = [ref for ref, _ in targets]
    weights = [weight for _, weight in targets]
    if len(set(refs)) != len(refs):
        raise InputError("an alias names a version twice", "give each version once, with its weight")
    if any(type(weight) is not int or not 0 <= weight <= MOST_WEIGHT for weight in weights):
        raise InputError("a weight is wrong", f"give whole numbers from 0 to {MOST_WEIGHT:,}")
    if not any(weights):
        raise InputError("an alias needs a target with a weight above 0", "give one, such as support@v3=1")


def put(
    connection: Connection,
    name: str,
    targets: Targets,
    *,
    sampling: Mapping[str, Any] | None,
    verdict: str | None,
    forced: bool,
    by: str,
) -> None:
    """Let an alias mean versions and add that to its history; raises VersionNotFound, Conflict."""
    rows = {ref: version_rows.find(connection, ref) for ref, _ in targets}
    if any(name == row.base_name for row in rows.values()):
        raise Conflict(f"{name} is the name of the base itself", "choose another name for the alias")
    before = connection.execute(select(aliases).where(aliases.c.name == name)).one_or_none()
    # The largest weight leads; of several, the one that led before, so that a tie changes nothing.
    ref, _ = max(
        targets, key=lambda pair: (pair[1], before is not None and rows[pair[0]].id == before.version_id)
    )
    target = rows[ref]
    previous_id = None
    if before is not None:
        # The same version set again, for other sampling or weights, must not lose the way back.
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
    _put_targets(connection, name, [(rows[ref].id, weight) for ref, weight in targets], values["changed_at"])
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
            by=by[:64],
            changed_at=values["changed_at"],
            targets=[[str(ref), weight] for ref, weight in targets] if len(targets) > 1 else None,
        )
    )
    bump(connection)


def remove(connection: Connection, store: Store, name: str, by: str) -> Alias:
    """Let an alias mean nothing any more, add that to its history, and return what it was; raises NotFound.

    What was wanted for it alone is not wanted any more.
    """
    found = read(connection, store, name)
    if not found:
        raise NotFound(f"there is no alias {name}", "tenon aliases list shows what there is")
    (alias,) = found
    connection.execute(
        insert(alias_changes).values(
            alias=name,
            target=str(alias.target.ref),
            digest=alias.target.digest,
            previous=str(alias.previous) if alias.previous else None,
            sampling=dict(alias.sampling),
            verdict=alias.verdict,
            forced=False,
            by=by[:64],
            changed_at=version_rows.now(),
            # No change but this one leaves all weights at zero.
            targets=[[str(ref), 0] for ref in alias.refs],
        )
    )
    connection.execute(delete(alias_targets).where(alias_targets.c.alias == name))
    connection.execute(delete(aliases).where(aliases.c.name == name))
    wants.release(connection, wants.holder_for(name))
    bump(connection)
    return alias


def history(connection: Connection, name: str | None = None) -> list[AliasChange]:
    """The changes of an alias, or of all, oldest first."""
    query = select(alias_changes).order_by(alias_changes.c.id)
    rows = connection.execute(query.where(alias_changes.c.alias == name) if name is not None else query)
    return [
        AliasChange(
            alias=row.alias,
            target=parse_version(row.target),
            targets=tuple((parse_version(ref), weight) for ref, weight in row.targets or ()),
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


def _put_targets(connection: Connection, name: str, targets: Sequence[tuple[int, int]], at: Any) -> None:
    connection.execute(delete(alias_targets).where(alias_targets.c.alias == name))
    if len(targets) > 1:
        rows = [
            {"alias": name, "version_id": found, "position": place, "weight": weight, "changed_at": at}
            for place, (found, weight) in enumerate(targets)
        ]
        connection.execute(insert(alias_targets), rows)


def _to_alias(connection: Connection, store: Store, row: Row[Any], back: VersionRef | None) -> Alias:
    target = connection.execute(select(versions).where(versions.c.id == row.version_id)).one()
    found = connection.execute(
        select(versions, alias_targets.c.weight)
        .join(alias_targets)
        .where(alias_targets.c.alias == row.name, alias_targets.c.changed_at == row.changed_at)
        .order_by(alias_targets.c.position)
    ).all()
    main = version_rows.to_version(target, store)
    return Alias(
        name=row.name,
        target=main,
        targets=tuple((version_rows.to_version(each, store), each.weight) for each in found),
        previous=_ref_of(connection, row.previous_id),
        way_back=back,
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
