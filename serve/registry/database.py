"""The registry's database: transactions, migrations and what its errors mean, on SQLite and PostgreSQL alike."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, event, inspect, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve.errors import StorageError
from serve.registry.migrations import HEAD
from serve.registry.schema import identities, revisions

BUSY_TIMEOUT = 30.0
"""Seconds that a writer waits for another."""

WRITES = "tenon_writes"


class Database(ABC):
    """A database that many threads and processes use at once; :meth:`write` lets in one of them at a time.

    ``place`` is what messages call it: it names no password. ``shared``: several machines may use it.
    """

    shared = False

    def __init__(self, place: str, engine: Engine, **writing: Any) -> None:
        self.place = place
        event.listen(engine, "begin", self._begin)
        self._engine = engine
        self._writer = engine.execution_options(**{WRITES: True}, **writing)

    @abstractmethod
    def _begin(self, connection: Connection) -> None:
        """Begin a transaction; one with the option WRITES must take the write lock first."""

    @abstractmethod
    def _explain(self, error: DBAPIError) -> tuple[str, str]:
        """The driver's words on one line, and what to do about it."""

    def _exists(self) -> bool:
        return True

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        """A connection that keeps all other writers and migrations out."""
        with self._writer.begin() as connection:
            yield connection

    def opened(self) -> Self:
        """Create the tables, or bring them up to date, where needed; raises StorageError, and is closed then."""
        try:
            with self.errors():
                # A newer schema than ours is used as it is: migrations only add, so that old code keeps serving.
                if not self._exists() or self._schema_version() < HEAD:
                    with self._migrating() as connection:
                        if _version_in(connection) < HEAD:
                            _upgrade(connection)
        except BaseException:
            self.close()
            raise
        return self

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one consistent snapshot."""
        with self.errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that holds the write lock from its start: what it reads stays true until it commits."""
        with self.errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the database and of files into StorageError."""
        try:
            yield
        except DBAPIError as error:
            words, hint = self._explain(error)
            raise StorageError(f"the registry {self.place} cannot be used: {words}", hint) from error
        except PoolTimeout as error:
            raise StorageError(
                f"the registry {self.place} is busy: no connection came free", "try again"
            ) from error
        except OSError as error:
            raise StorageError(
                f"the registry {self.place} cannot be used: {error}",
                "check that the folder exists and may be read and written",
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _schema_version(self) -> str:
        with self._engine.begin() as connection:
            return _version_in(connection)


def bump(connection: Connection) -> None:
    """Count the revision up, so that whoever routes by the registry reads it again."""
    connection.execute(update(revisions).values(value=revisions.c.value + 1))


def revision(connection: Connection) -> int:
    """The number of changes so far that routing depends on."""
    return int(connection.execute(select(revisions.c.value)).scalar_one())


def identity(connection: Connection) -> str:
    """What tells this database from every other: given once, when its tables are made."""
    return str(connection.execute(select(identities.c.value)).scalar_one())


def marks(connection: Connection) -> tuple[str, str]:
    """By what this database marks a folder of adapters as its own: its identity, and what others call it."""
    return identity(connection), connection.dialect.name


def clock(connection: Connection) -> datetime:
    """The database's time, in UTC: one clock for all machines that share it."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    found: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return found.astimezone(UTC)


def _version_in(connection: Connection) -> str:
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _upgrade(connection: Connection) -> None:
    # Imported here, as it takes longer than everything else that opening a registry does.
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    attributes: dict[str, Any] = config.attributes
    attributes["connection"] = connection
    command.upgrade(config, HEAD)
