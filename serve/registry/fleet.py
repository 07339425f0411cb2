"""The registry's part that engines live by: what they should hold, what they do hold, and where they are."""

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import delete, insert, select, update

from serve.names import VersionRef
from serve.registry import versions, wants
from serve.registry.database import Database, bump, clock
from serve.registry.records import EngineSeen, LoadState, Version
from serve.registry.schema import engines
from serve.registry.store import Store
from serve.registry.versions import AnyRef, as_ref

FRESH_SECONDS = 20.0
"""For so long an engine of another machine is believed to be what was last said of it."""


class Fleet:
    """Methods of :class:`~serve.registry.Registry`."""

    _database: Database
    _store: Store

    def want(self, ref: AnyRef, holder: str = wants.UNNAMED, seconds: float | None = None) -> None:
        """Ask that a version be loaded, whether or not an alias means it; raises VersionNotFound.

        Each holder's want ends by itself after ``seconds``, or else when :meth:`unwant` takes it back. Asked again,
        it ends only so many seconds from then.
        """
        with self._database.write() as connection:
            wants.want(connection, as_ref(ref), holder, seconds)

    def renew(self, ref: AnyRef, holder: str, seconds: float) -> None:
        """:meth:`want` under the name that a holder's heartbeat looks for: a want that has ended begins again."""
        self.want(ref, holder, seconds)

    def unwant(self, ref: AnyRef, holder: str = wants.UNNAMED) -> None:
        """Take a holder's :meth:`want` back; raises VersionNotFound."""
        with self._database.write() as connection:
            wants.unwant(connection, as_ref(ref), holder)

    def desired(self) -> list[Version]:
        """The versions that engines should hold: wanted, meant by an alias, or needed for its rollback.

        A want that ends by itself does not count the revision up: look again every few seconds.
        """
        with self._database.read() as connection:
            return [versions.to_version(row, self._store) for row in wants.desired_rows(connection)]

    def holders(self) -> list[str]:
        """Who wants any version now, by the names that they gave."""
        with self._database.read() as connection:
            return sorted({holder for _, holder in wants.holders(connection)})

    def wanted(self) -> list[VersionRef]:
        """The versions that somebody wants now, whether or not an alias means them."""
        with self._database.read() as connection:
            return wants.wanted_refs(connection)

    def set_loaded(
        self,
        engine: str,
        states: Mapping[str, tuple[str, str]],
        *,
        load_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Record what an engine holds: ``name@vN`` → (state, reason), replacing all that was recorded of it.

        ``load_seconds`` gives load times by the same keys; times not given stay. Writes only what has changed.
        """
        seconds = load_seconds or {}
        with self._database.read() as connection:
            if versions.changed_states(connection, engine, states, seconds) is None:
                return
        with self._database.write() as connection:
            rows = versions.changed_states(connection, engine, states, seconds)
            if rows is not None:
                versions.replace_states(connection, engine, rows)

    def loaded(self, engine: str | None = None) -> list[LoadState]:
        """What the engines, or one of them, hold."""
        with self._database.read() as connection:
            return versions.loaded(connection, engine)

    def see_engine(self, name: str, url: str, base_name: str, state: str, reason: str = "") -> None:
        """Say where an engine is and how; said again every few seconds, it tells that somebody watches it.

        Only a change of what is said counts the revision up.
        """
        said = {"url": url, "base_name": base_name, "state": state, "reason": reason.replace("\0", "")}
        with self._database.write() as connection:
            before = connection.execute(select(engines).where(engines.c.name == name)).one_or_none()
            values = {**said, "seen_at": clock(connection)}
            if before is None:
                connection.execute(insert(engines).values(name=name, **values))
            else:
                connection.execute(update(engines).where(engines.c.name == name).values(**values))
            if before is None or any(getattr(before, key) != value for key, value in said.items()):
                bump(connection)

    def engines(self, within: float | None = None) -> list[EngineSeen]:
        """The engines by name, or those that were seen within so many seconds."""
        with self._database.read() as connection:
            query = select(engines).order_by(engines.c.name)
            if within is not None:
                query = query.where(engines.c.seen_at >= clock(connection) - timedelta(seconds=within))
            return [EngineSeen(**row._mapping) for row in connection.execute(query)]

    def forget_engine(self, name: str) -> None:
        """Remove an engine and what it was said to hold; one that is not known is fine."""
        with self._database.write() as connection:
            gone = connection.execute(delete(engines).where(engines.c.name == name)).rowcount
            if versions.loaded(connection, name):
                versions.replace_states(connection, name, [])
            elif gone:
                bump(connection)
