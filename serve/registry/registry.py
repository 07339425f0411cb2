"""The registry: immutable versions, the aliases that mean them, and what the engines should and do hold."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import insert, select

from serve.errors import AdapterRejected, InputError, StorageError
from serve.names import check_adapter_name, check_name
from serve.registry import aliases, garbage, versions
from serve.registry.accounts import Accounts
from serve.registry.base import BaseIdentity
from serve.registry.database import Database, identity, marks, revision
from serve.registry.fleet import Fleet
from serve.registry.garbage import Collection
from serve.registry.records import (
    AdapterFacts,
    Alias,
    AliasChange,
    EvaluationRecord,
    Lineage,
    Version,
)
from serve.registry.schema import evaluations
from serve.registry.sqlite import SQLite, has_versions
from serve.registry.store import Store
from serve.registry.validate import validate_adapter
from serve.registry.versions import AnyRef, as_ref

if TYPE_CHECKING:
    from serve.config import Settings


class Registry(Accounts, Fleet):
    """What is registered in one Tenon home; safe for many threads and processes at once.

    Every method raises :class:`StorageError` where the disk or the database fails, and InputError for a malformed
    name. A write has happened, and is on disk, when its method returns; if it raises, nothing has changed. (A
    PostgreSQL server that is lost in the middle of a commit leaves open which; the error's hint says so.)
    """

    def __init__(self, home: Path, database: Database) -> None:
        self.home = home
        self._database = database
        self._store = Store(home / "adapters")

    @classmethod
    def open(cls, home: Path, database_url: str | None = None) -> "Registry":
        """Open the registry of a home, creating both where needed.

        It is the SQLite file ``registry.db`` in the home, or a PostgreSQL database; the adapters' files lie in the
        home either way, so machines that share a database share the folder ``adapters``, too.
        """
        home = home.expanduser().absolute()
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {home} cannot be made: {error.strerror}",
                "set TENON_HOME to a folder that can be written",
            ) from error
        if database_url is None:
            return cls(home, SQLite.open(home / "registry.db"))
        from serve.registry.postgres import PostgreSQL

        if has_versions(home / "registry.db"):
            Store(home / "adapters").claim("sqlite")
        return cls(home, PostgreSQL.open(database_url))

    @classmethod
    def of(cls, settings: "Settings") -> "Registry":
        """Open the registry that the settings name."""
        url = settings.database_url
        return cls.open(settings.home, url.get_secret_value() if url is not None else None)

    def close(self) -> None:
        """Close the database; the registry cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shared(self) -> bool:
        """Whether other machines may use the same registry, with engines of their own."""
        return self._database.shared

    def register(
        self,
        folder: Path,
        name: str,
        base: BaseIdentity,
        *,
        max_rank: int,
        lineage: Lineage | None = None,
        remote: bool = False,
    ) -> Version:
        """Validate an adapter's folder and make it the next version of ``name``.

        The files are copied, so that the folder may change or go. Where the lineage has the digest of the base that it
        was trained on, that decides, and not what it calls its base. Raises AdapterRejected with every problem; for a
        ``remote`` caller it tells nothing of what else is on this machine.
        """
        check_adapter_name(name, base.name)
        folder = folder.expanduser().absolute()
        lineage = lineage or Lineage(source=str(folder))
        shown = str(folder) if lineage.source == "run" else lineage.source.split("#", 1)[0]
        if lineage.base_digest not in (None, base.digest):
            raise AdapterRejected(
                f"the adapter in {shown} was trained on another base than {base.name}",
                "serve it with the base that it was trained on, or train it on this one",
            )
        # What names itself after a folder or after the built-in base may be of another one that is called so.
        trained_here = lineage.base_digest is not None
        facts = validate_adapter(
            folder, base, max_rank, shown=shown, remote=remote, trained_here=trained_here
        )
        lineage = replace(lineage, base_digest=base.digest)
        with self._store.stage(folder) as (staged, digest):
            # What is stored is what was checked, even if the folder changed in between.
            # Notes differ, as the copy has the two files alone.
            again = validate_adapter(
                staged, base, max_rank, shown=shown, remote=remote, trained_here=trained_here
            )
            if replace(again, warnings=facts.warnings) != facts:
                raise AdapterRejected(f"the adapter in {shown} changed while it was read", "try again")
            try:
                with self._database.write() as connection:
                    ref = versions.add(connection, name, digest, facts, lineage, base.name)
                    self._store.claim(identity(connection))
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

    def strangers(self, ref: AnyRef) -> list[str]:
        """What lies beside a version's two files, which nobody reads; raises VersionNotFound and StorageError."""
        return self._store.strangers(self.version(ref).digest)

    def remove(self, ref: AnyRef) -> None:
        """Remove a version; raises VersionInUse if an alias means it or would roll back to it.

        Its number is never given again. Its files go unless another version has the same, or another registry
        keeps files in the same home.
        """
        with self._database.write() as connection:
            digest = versions.remove(connection, as_ref(ref))
        # In a second transaction: killed in between, we leave files without a version, never the opposite.
        self._discard_unless_shared(digest)

    def collect(
        self,
        *,
        keep: int = garbage.KEEP,
        rollbacks: int = garbage.ROLLBACKS,
        young: timedelta = garbage.YOUNG,
        dry_run: bool = False,
    ) -> Collection:
        """Remove what nothing needs: versions, and files that no version has; ``dry_run`` only says what.

        Needed is what an alias means, would roll back to, or meant among the last ``rollbacks`` before; what is
        wanted or held by an engine; the newest ``keep`` of each name; and what is younger than ``young``.
        """
        if dry_run:
            with self._database.read() as connection:
                found = garbage.look(connection, self._store, keep, rollbacks, young)
        else:
            with self._database.write() as connection:
                found = garbage.look(connection, self._store, keep, rollbacks, young)
                garbage.remove(connection, found)
            for digest in found.files:
                self._discard_unless_shared(digest)
            self._store.sweep()
        return found

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
        ref: AnyRef | None = None,
        *,
        targets: Mapping[AnyRef, int] | None = None,
        sampling: Mapping[str, Any] | None = None,
        verdict: str | None = None,
        forced: bool = False,
        by: str = "cli",
    ) -> Alias:
        """Let an alias mean a version from now on; what it meant is kept as ``previous``, and in its history.

        Instead of one version there may be several ``targets`` with integer weights, by which conversations are
        split among them; the largest weight leads. ``sampling`` replaces the alias's sampling defaults; None keeps
        them. Raises VersionNotFound, Conflict for the name of the base, and InputError for weights that are
        negative or all zero.
        """
        check_name(name)
        if (ref is None) == (targets is None):
            raise InputError("an alias needs either one version or weighted targets", "give one of the two")
        given: Mapping[AnyRef, int] = {ref: 1} if ref is not None else targets or {}
        chosen = [(as_ref(one), weight) for one, weight in given.items()]
        aliases.check_targets(chosen)
        with self._database.write() as connection:
            aliases.put(connection, name, chosen, sampling=sampling, verdict=verdict, forced=forced, by=by)
            return aliases.read(connection, self._store, name)[0]

    def remove_alias(self, name: str, *, by: str = "cli") -> Alias:
        """Let an alias mean nothing any more and return what it was; raises NotFound.

        Its versions stay registered, but engines need not hold them for it, nor for its rollback. Its history stays,
        with this as its last entry, and goes on if the name is given again. Keys that name it stay as they are.
        """
        with self._database.write() as connection:
            return aliases.remove(connection, self._store, name, by)

    def history(self, name: str | None = None) -> list[AliasChange]:
        """Every change of an alias, or of all, oldest first; empty for a name that never was one."""
        with self._database.read() as connection:
            return aliases.history(connection, name)

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
            if not versions.shared(connection, digest) and not self._store.others(marks(connection)):
                self._store.discard(digest)
