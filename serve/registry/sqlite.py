"""The registry in one SQLite file, in WAL mode: the default, for one machine."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, create_engine, event, inspect, select
from sqlalchemy.exc import DBAPIError

from serve.errors import StorageError
from serve.registry.database import BUSY_TIMEOUT, WRITES, Database
from serve.registry.schema import to_json, versions

HINTS = {
    "full": "free disk space and try again; nothing was changed",
    "readonly": "make the registry's folder writable, or set TENON_HOME to one that is",
    "locked": "another process holds the registry; end it, or try again",
    "malformed": "restore the registry's folder from a backup",
    "not a database": "restore the registry's folder from a backup",
    "unable to open": "check that the folder exists and may be read and written",
    "disk i/o": "check the disk and free space on it",
}


class SQLite(Database):
    """One file; writers wait for each other by SQLite's own lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        engine = create_engine(
            URL.create("sqlite+pysqlite", database=str(path)),
            connect_args={"timeout": BUSY_TIMEOUT},
            pool_size=8,
            json_serializer=to_json,
            hide_parameters=True,  # or a traceback would show rows, hashes of keys among them
        )
        event.listen(engine, "connect", _prepare)
        super().__init__(str(path), engine)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, creating it or bringing its schema up to date where needed; raises StorageError."""
        return cls(path).opened()

    def _begin(self, connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _explain(self, error: DBAPIError) -> tuple[str, str]:
        words = str(error.orig)
        return words, next((hint for key, hint in HINTS.items() if key in words.lower()), "see the message")

    def _exists(self) -> bool:
        return self.path.exists()

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        # SQLite does not wait when two processes switch a new file to WAL at once, so one goes after the other.
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._engine.connect() as connection:
                cursor: Any = connection.connection.cursor()
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.close()
            with super()._migrating() as writer:
                yield writer


def has_versions(path: Path) -> bool:
    """Whether a registry in that file has versions, whose files must stay; True where it cannot be read."""
    if not path.exists():
        return False
    database = SQLite(path)
    try:
        with database.read() as connection:
            return inspect(connection).has_table("versions") and bool(
                connection.execute(select(versions.c.id).limit(1)).first()
            )
    except StorageError:
        return True
    finally:
        database.close()


def _prepare(connection: Any, record: object) -> None:
    # The driver's own transactions begin late and deferred; we say BEGIN ourselves.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
