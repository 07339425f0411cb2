"""The registry: immutable versions, the aliases that mean them, and what the engines should and do hold."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from sqlalchemy import insert, select

from serve.errors import AdapterRejected, InputError, StorageError
from serve.names import check_name
from serve.registry import aliases, versions
from serve.registry.base import BaseIdentity
from serve.registry.database import Database, revision
from serve.registry.records import (
    AdapterFacts,
    Alias,
    AliasChange,
    EvaluationRecord,
    Lineage,
    LoadState,
    Version,
)
from serve.registry.schema import evaluations
from serve.registry.store import Store
from serve.registry.validate import validate_adapter
from serve.registry.versions import AnyRef, as_ref

__all__ = ["Alias", "AliasChange", "EvaluationRecord", "Lineage", "LoadState", "Registry", "Version"]


class Registry:
    """What is registered in one Tenon home; safe for many threads and processes at once.

    Every method raises :class:`StorageError` where the disk or the database fails, and InputError for a malformed
    name. A write has happened, and is on disk, when its method returns; if it raises, nothing has changed.
    """

    def __init__(self, home: Path, database: Database) -> None:
        self.home = home
        self._database = database
        self._store = Store(home / "adapters")

    @classmethod
    def open(cls, home: Path) -> "Registry":
        """Open the registry of a home, creating both where needed."""
        home = home.expanduser().absolute()
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {home} cannot be made: {error.strerror}",
                "set TENON_HOME to a folder that can be written",
            ) from error
        return cls(home, Database.open(home / "registry.db"))

    def close(self) -> None:
        """Close the database; the registry cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def register(
        self, folder: Path, name: str, base: BaseIdentity, *, max_rank: int, lineage: Lineage | None = None
    ) -> Version:
        """Validate an adapter's folder and make it the next version of ``name``.

        The files are copied, so that the folder may change or go. Raises AdapterRejected with every problem.
        """
        check_name(name)
        if name == base.name:
            raise InputError(f"{name} is the name of the base itself", "choose another name for the adapter")
        folder = folder.expanduser().absolute()
        lineage = lineage or Lineage(source=str(folder))
        shown = str(folder) if lineage.source == "run" else lineage.source.split("#", 1)[0]
        if lineage.base_digest not in (None, base.digest):
            raise AdapterRejected(
                f"the adapter in {shown} was trained on another base than {base.name}",
                "serve it with the base that it was trained on, or train it on this one",
            )
        facts = validate_adapter(folder, base, max_rank, shown=shown)
        lineage = replace(lineage, base_digest=base.digest)
        with self._store.stage(folder) as (staged, digest):
            # What is stored is what was checked, even if the folder changed in between.
            # Notes differ, as the copy has the two files alone.
            if (
                replace(validate_adapter(staged, base, max_rank, shown=shown), warnings=facts.warnings)
                != facts
            ):
                raise AdapterRejected(f"the adapter in {shown} changed while it was read", "try again")
            try:
                with self._database.write() as connection:
                    ref = versions.add(connection, name, digest, facts, lineage, base.name)
                    self._store.place(staged, digest)
                    return versions.to_version(versions.find(connection, ref), self._store)
            except StorageError:
                # The disk may have filled up after the files were in place: they go where no version has them.
                with suppress(StorageError):
                    self._discard_unless_shared(digest)
                raise

    def version(self, ref: AnyRef) -> Version:
        """The version ``name@vN``; raises VersionNotFound, with the nearest that exist in its hint."""
        with self._database.read() as connection:
            return versions.to_version(versions.find(connection, as_ref(ref)), self._store)

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or those of one name, by name and number."""
        with self._database.read() as connection:
            return [versions.to_version(row, self._store) for row in versions.all_rows(connection, name)]

    def verify(self, ref: AnyRef) -> AdapterFacts:
        """Read a version's files again; raises StorageError unless they are still the ones that were validated."""
        version = self.version(ref)
        found = self._store.digest(version.digest)
        if found != version.digest:
            raise StorageError(
                f"the files of {version.ref} in {version.path} were changed: their digest is {found[:12]}…, "
                f"not {version.digest[:12]}…",
                "register the adapter again from its source, which restores them; find out what changed them",
            )
        return version.facts

    def remove(self, ref: AnyRef) -> None:
        """Remove a version; raises VersionInUse if an alias means it or would roll back to it.

        Its number is never given again. Its files go unless another version has the same.
        """
        with self._database.write() as connection:
            digest = versions.remove(connection, as_ref(ref))
        # In a second transaction: killed in between, we leave files without a version, never the opposite.
        self._discard_unless_shared(digest)

    def aliases(self) -> list[Alias]:
        """All aliases, by name."""
        with self._database.read() as connection:
            return aliases.read(connection, self._store)

    def alias(self, name: str) -> Alias | None:
        """The alias of that name, or None."""
        with self._database.read() as connection:
            return next(iter(aliases.read(connection, self._store, name)), None)

    def set_alias(
        self,
        name: str,
        ref: AnyRef,
        *,
        sampling: Mapping[str, Any] | None = None,
        verdict: str | None = None,
        forced: bool = False,
        by: str = "cli",
    ) -> Alias:
        """Let an alias mean a version from now on; what it meant is kept as ``previous``, and in its history.

        ``sampling`` replaces the alias's sampling defaults; None keeps them. Raises VersionNotFound, and Conflict
        for the name of the base.
        """
        check_name(name)
        with self._database.write() as connection:
            aliases.put(
                connection, name, as_ref(ref), sampling=sampling, verdict=verdict, forced=forced, by=by
            )
            return aliases.read(connection, self._store, name)[0]

    def history(self, name: str) -> list[AliasChange]:
        """Every change of an alias, oldest first; empty for a name that never was one."""
        with self._database.read() as connection:
            return aliases.history(connection, name)

    def want(self, ref: AnyRef) -> None:
        """Ask that a version be loaded, whether or not an alias means it; raises VersionNotFound."""
        with self._database.write() as connection:
            versions.want(connection, as_ref(ref), True)

    def unwant(self, ref: AnyRef) -> None:
        """Take :meth:`want` back; raises VersionNotFound."""
        with self._database.write() as connection:
            versions.want(connection, as_ref(ref), False)

    def desired(self) -> list[Version]:
        """The versions that engines should hold: wanted, meant by an alias, or needed for its rollback."""
        with self._database.read() as connection:
            return [versions.to_version(row, self._store) for row in versions.desired_rows(connection)]

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

    def record_evaluation(
        self, ref: AnyRef, *, base_digest: str, result: Mapping[str, Any], verdict: str, report: str
    ) -> int:
        """Keep the result (plain JSON) of an evaluation of a version and return its id; raises VersionNotFound."""
        with self._database.write() as connection:
            version_id = versions.find(connection, as_ref(ref)).id
            values = {
                "base_digest": base_digest,
                "result": dict(result),
                "verdict": verdict,
                "report": report,
            }
            done = connection.execute(
                insert(evaluations)
                .values(version_id=version_id, created_at=versions.now(), **values)
                .returning(evaluations.c.id)
            )
            return int(done.scalar_one())

    def evaluations(self, ref: AnyRef) -> list[EvaluationRecord]:
        """The evaluations of a version, oldest first; raises VersionNotFound."""
        chosen = as_ref(ref)
        with self._database.read() as connection:
            version_id = versions.find(connection, chosen).id
            query = (
                select(evaluations).where(evaluations.c.version_id == version_id).order_by(evaluations.c.id)
            )
            return [
                EvaluationRecord(
                    row.id, chosen, row.base_digest, row.result, row.verdict, row.report, row.created_at
                )
                for row in connection.execute(query)
            ]

    def revision(self) -> int:
        """A number that grows with every change that routing depends on: versions, aliases, wants, load states."""
        with self._database.read() as connection:
            return revision(connection)

    def _discard_unless_shared(self, digest: str) -> None:
        with self._database.write() as connection:
            if not versions.shared(connection, digest):
                self._store.discard(digest)
