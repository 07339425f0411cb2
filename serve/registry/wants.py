"""What engines should hold: what aliases mean, and what holders want by leases that end unless renewed.

Code before the leases knows the table ``wants`` alone. A lease is shown to it there by a row that is marked as
``leased``; a row without the mark is such code's own want. That has no end, so a day is taken for one: no command
runs longer, and a command that was killed never takes it back.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Subquery,
    delete,
    exists,
    insert,
    literal,
    select,
    tuple_,
    union,
    update,
)

from serve.errors import InputError
from serve.names import VersionRef
from serve.registry import versions as version_rows
from serve.registry.database import bump, clock
from serve.registry.schema import alias_targets, aliases, leases, targets_hold, versions, wants
from serve.registry.ways_back import ways_back

LONGEST_HOLDER = 128
UNNAMED = "unnamed"
"""The holder of wants that name none, those of older code included."""
OLD_WANT = timedelta(days=1)


def want(connection: Connection, ref: VersionRef, holder: str, seconds: float | None) -> None:
    """Let a holder want a version from now, for some seconds or until it is taken back; raises VersionNotFound."""
    if not 0 < len(holder) <= LONGEST_HOLDER:
        raise InputError(f"{holder!r} is no holder of a want", f"give 1 to {LONGEST_HOLDER} characters")
    version_id, now = version_rows.find(connection, ref).id, clock(connection)
    ended = sweep(connection, now)
    ends_at = now + timedelta(seconds=seconds) if seconds is not None else None
    mine = (leases.c.version_id == version_id) & (leases.c.holder == holder)
    renewed = connection.execute(update(leases).where(mine).values(ends_at=ends_at)).rowcount
    if not renewed:
        values = {"version_id": version_id, "holder": holder, "wanted_at": now, "ends_at": ends_at}
        connection.execute(insert(leases).values(**values))
    if connection.execute(select(wants).where(wants.c.version_id == version_id)).first() is None:
        connection.execute(insert(wants).values(version_id=version_id, wanted_at=now, leased=True))
    if ended or not renewed:
        bump(connection)


def unwant(connection: Connection, ref: VersionRef, holder: str) -> None:
    """End a holder's want; raises VersionNotFound."""
    version_id, now = version_rows.find(connection, ref).id, clock(connection)
    mine = (leases.c.version_id == version_id) & (leases.c.holder == holder)
    gone = connection.execute(delete(leases).where(mine)).rowcount
    if holder == UNNAMED:
        old = (wants.c.version_id == version_id) & wants.c.leased.is_not(True)
        gone += connection.execute(delete(wants).where(old)).rowcount
    if sweep(connection, now) or gone:
        bump(connection)


def holder_for(alias: str) -> str:
    """Who wants a version until an alias may mean it, where nobody waits for that as long as it takes."""
    return f"api:{alias}"


def release(connection: Connection, holder: str) -> None:
    """End all wants of a holder; whoever calls this counts the revision up."""
    connection.execute(delete(leases).where(leases.c.holder == holder))
    sweep(connection, clock(connection))


def sweep(connection: Connection, now: datetime) -> bool:
    """Remove what has ended, and what older code was shown of it; whether there was anything."""
    ended = connection.execute(delete(leases).where(~_live(now))).rowcount
    lease = exists().where(leases.c.version_id == wants.c.version_id)
    over = wants.c.leased.is_(True) & ~lease | wants.c.leased.is_not(True) & (
        wants.c.wanted_at <= now - OLD_WANT
    )
    return bool(ended + connection.execute(delete(wants).where(over)).rowcount)


def desired_rows(connection: Connection) -> Sequence[Row[Any]]:
    """The versions that engines should hold: wanted, meant by an alias, or needed for its rollback."""
    ids = union(select(_pairs(clock(connection)).c.version_id), meant_ids())
    back = [tuple(ref) for ref in ways_back(connection).values()]
    needed = versions.c.id.in_(ids) | tuple_(versions.c.name, versions.c.number).in_(back)
    return connection.execute(
        select(versions).where(needed).order_by(versions.c.name, versions.c.number)
    ).all()


def wanted_refs(connection: Connection) -> list[VersionRef]:
    """The versions that somebody wants now, whether or not an alias means them."""
    ids = select(_pairs(clock(connection)).c.version_id)
    rows = connection.execute(select(versions.c.name, versions.c.number).where(versions.c.id.in_(ids)))
    return [VersionRef(row.name, row.number) for row in rows]


def holders(connection: Connection) -> list[tuple[int, str]]:
    """Who wants what now: the ids of versions, and a holder of each."""
    pairs = _pairs(clock(connection))
    return [
        (row.version_id, row.holder) for row in connection.execute(select(pairs).order_by(pairs.c.holder))
    ]


def meant_ids() -> Select[tuple[int]]:
    """The ids of versions that an alias means, or meant before; of split ones, see :mod:`ways_back`, too."""
    ids = union(
        select(aliases.c.version_id),
        select(aliases.c.previous_id).where(aliases.c.previous_id.is_not(None)),
        select(alias_targets.c.version_id).join(aliases, targets_hold),
    ).subquery()
    return select(ids.c.version_id)


def _pairs(now: datetime) -> Subquery:
    old = wants.c.leased.is_not(True) & (wants.c.wanted_at > now - OLD_WANT)
    return union(
        select(leases.c.version_id, leases.c.holder).where(_live(now)),
        select(wants.c.version_id, literal(UNNAMED).label("holder")).where(old),
    ).subquery()


def _live(now: datetime) -> ColumnElement[bool]:
    return leases.c.ends_at.is_(None) | (leases.c.ends_at > now)
