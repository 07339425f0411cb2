"""What nothing needs any more: versions, and files that no version has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, delete

from serve.names import VersionRef
from serve.registry import aliases, versions, wants
from serve.registry.database import bump, clock, marks
from serve.registry.records import Version
from serve.registry.schema import versions as version_table
from serve.registry.store import Store

KEEP = 3
"""How many of the newest versions of each name are kept."""
ROLLBACKS = 3
"""How many versions that an alias meant before are kept, as far as its history goes back for them."""
YOUNG = timedelta(hours=1)
"""A version younger than this may be on its way to its first evaluation."""

HOLDING = ("loading", "ready", "draining")


@dataclass(frozen=True)
class Collection:
    """What was, or would be, removed: versions, and the ``files`` that go, as digest → bytes.

    ``kept`` says of every other version why it is needed. ``foreign`` are the marks of other registries that keep
    files in the same home; where there are any, no files go.
    """

    versions: tuple[Version, ...]
    files: Mapping[str, int]
    kept: Mapping[VersionRef, str]
    foreign: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What the files take."""
        return sum(self.files.values())


def look(connection: Connection, store: Store, keep: int, rollbacks: int, young: timedelta) -> Collection:
    """Find out what may go; with the write lock held, that stays true until the transaction ends."""
    rows = [versions.to_version(row, store) for row in versions.all_rows(connection, None)]
    reasons: dict[VersionRef, str] = {}
    for ref, reason in _needs(connection, store, rows, keep, rollbacks, young):
        reasons.setdefault(ref, reason)
    unneeded = tuple(version for version in rows if version.ref not in reasons)
    needed = {version.digest for version in rows if version.ref in reasons}
    foreign = tuple(str(mark) for mark in store.others(marks(connection)))
    files = {} if foreign else {found: store.size(found) for found in store.digests() if found not in needed}
    kept = {version.ref: reasons[version.ref] for version in rows if version.ref in reasons}
    return Collection(unneeded, files, kept, foreign)


def remove(connection: Connection, found: Collection) -> None:
    """Delete the versions that :func:`look` found in the same transaction."""
    for version in found.versions:
        name, number = version.ref
        same = (version_table.c.name == name) & (version_table.c.number == number)
        connection.execute(delete(version_table).where(same))
    if found.versions:
        bump(connection)


def _needs(
    connection: Connection, store: Store, rows: list[Version], keep: int, rollbacks: int, young: timedelta
) -> Iterator[tuple[VersionRef, str]]:
    existing = {version.ref for version in rows}
    for alias in aliases.read(connection, store):
        for ref in alias.refs:
            yield ref, f"the alias {alias.name} means it"
        for earlier in (alias.way_back, alias.previous):  # the second once the alias is not split any more
            if earlier is not None:
                yield earlier, f"the alias {alias.name} would roll back to it"
        for ref in _earlier(connection, alias.name, existing - set(alias.refs), rollbacks):
            yield ref, f"the alias {alias.name} meant it not long ago"
    yield from _in_use(connection)
    now = clock(connection)
    by_name: dict[str, list[Version]] = {}
    for version in rows:
        by_name.setdefault(version.ref.name, []).append(version)
        if version.created_at > now - young:
            yield version.ref, "it is young"
    for same in by_name.values():
        for version in sorted(same, key=lambda version: version.ref.number)[-keep:] if keep > 0 else ():
            yield version.ref, f"it is one of the newest {keep}" if keep > 1 else "it is the newest"


def _in_use(connection: Connection) -> Iterator[tuple[VersionRef, str]]:
    refs = {row.id: VersionRef(row.name, row.number) for row in versions.all_rows(connection, None)}
    for version_id, holder in wants.holders(connection):
        yield refs[version_id], f"{holder} wants it"
    for state in versions.loaded(connection, None):
        if state.state in HOLDING:
            yield state.ref, f"the engine {state.engine} holds it"


def _earlier(connection: Connection, alias: str, existing: set[VersionRef], most: int) -> list[VersionRef]:
    """The last versions that an alias meant before, newest first, as far as they exist."""
    found: dict[VersionRef, None] = {}
    for change in reversed(aliases.history(connection, alias)):
        for ref in change.refs:
            if ref in existing and len(found) < most:
                found[ref] = None
    return list(found)
