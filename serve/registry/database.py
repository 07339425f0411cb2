"""The registry's SQLite file: connections, transactions, migrations and what its errors mean."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from serve.errors import StorageError
from serve.registry.migrations import HEAD
from serve.registry.schema import revisions

BUSY_TIMEOUT = 30.0
"""Seconds that a writer waits for another."""

WRITES = "tenon_writes"
HINTS = {
    "full": "free disk space and try again; nothing was changed",
    "readonly": "make the registry's folder writable, or set TENON_HOME to one that is",
    "locked": "another process holds the registry; end it, or try again",
    "malformed": "restore the registry's folder from a backup",
    "not a database": "restore the registry's folder from a backup",
    "unable to open": "check that the folder exists and may be read and written",
    "disk i/o": "check the disk and free space on it",
}


class Database:
    """One SQLite file in WAL mode, safe for many threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = _engine(path)

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open the file, creating it or bringing its schema up to date where needed; raises StorageError."""
        database = cls(path)
        try:
            with database.errors():
                # A newer schema than ours is used as it is: migrations only add, so that old code keeps serving.
                if not path.exists() or (database._schema_version() or "") < HEAD:
                    database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one consistent snapshot."""
        with self.errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that holds the write lock from its start: what it reads stays true until it commits."""
        writer = self._engine.execution_options(**{WRITES: True})
        with self.errors(), writer.begin() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the database and of files into StorageError."""
        try:
            yield
        except DBAPIError as error:
            words = str(error.orig)
            hint = next((hint for key, hint in HINTS.items() if key in words.lower()), "see the message")
            raise StorageError(f"the registry {self.path} cannot be used: {words}", hint) from error
        except OSError as error:
            raise StorageError(
                f"the registry {self.path} cannot be used: {error}", HINTS["unable to open"]
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _schema_version(self) -> str | None:
        with self._engine.begin() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return str(found) if found is not None else None

    def _migrate(self) -> None:
        # Imported here, as it takes longer than everything else that opening a registry does.
        from alembic import command
        from alembic.config import Config

        config = Config()
        folder = str(Path(__file__).parent / "migrations")
        config.set_main_option("script_location", folder.replace("%", "%%"))
        # SQLite does not wait when two processes switch a new file to WAL at once, so one goes after the other.
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._engine.connect() as connection:
                cursor: Any = connection.connection.cursor()
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.close()
            if (self._schema_version() or "") >= HEAD:
                return
            with self._engine.execution_options(**{WRITES: True}).begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, HEAD)


def bump(connection: Connection) -> None:
    """Count the revision up, so that whoever routes by the registry reads it again."""
    connection.execute(update(revisions).values(value=revisions.c.value + 1))


def revision(connection: Connection) -> int:
    """The number of changes so far that routing depends on."""
    return int(connection.execute(select(revisions.c.value)).scalar_one())


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT}, pool_size=8
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, record: object) -> None:
    # The driver's own transactions begin late and deferred; we say BEGIN ourselves.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
