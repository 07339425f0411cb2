"""The registry in a PostgreSQL database, for several machines: the same tables, the same rules.

Writers go one after the other, by an advisory lock that each transaction takes first. Serializable transactions
that are tried again were the alternative: but a write also moves files, which must happen once, and while
nobody else does.
"""

from typing import Any, Self

from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from serve.errors import ConfigError
from serve.registry.database import BUSY_TIMEOUT, WRITES, Database
from serve.registry.schema import to_json

LOCK = 0x74656E6F6E
"""The key of the advisory lock: "tenon" in ASCII. Such locks belong to one database, not to the server."""

STALL_TIMEOUT = 120.0
"""Seconds after which the server ends a write whose client has gone silent, so that the lock comes free."""

# Waits for the lock no longer than BUSY_TIMEOUT; a commit is on the server's disk even if its default is laxer.
TAKE_LOCK = f"""
SELECT set_config('lock_timeout', '{BUSY_TIMEOUT:.0f}s', true),
       set_config('idle_in_transaction_session_timeout', '{STALL_TIMEOUT:.0f}s', true),
       CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END,
       pg_advisory_xact_lock({LOCK})
"""

# What libpq is told unless the URL says otherwise: a server that vanishes is noticed within half a minute.
CONNECTING = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "tenon",
}

STATES = {
    "08": "see whether the server runs and can be reached; a write that was under way may have happened",
    "28": "check the user name and the password in TENON_DATABASE_URL, and the server's pg_hba.conf",
    "3D": "create the database with `createdb NAME`, or name another one in TENON_DATABASE_URL",
    "53100": "free disk space on the database server and try again; nothing was changed",
    "53": "the server has run out of connections or memory; try again, or raise its limits",
    "55P03": "another process holds the registry; end it, or try again",
    "42501": "grant the user the right to create and use tables in the database",
    "25006": "the server only answers reads; name the primary server in TENON_DATABASE_URL",
    "25P03": "the write took too long; try again",
    "57": "the server is stopping or starting; try again; a write that was under way may have happened",
    "58": "check the database server's disk and its log",
    "XX": "check the database server's disk and its log, and restore it from a backup if need be",
}
# Errors of connecting carry no code, only words, which follow the server's language where it was changed.
WORDS = {
    "authentication failed": STATES["28"],
    "no password supplied": STATES["28"],
    "pg_hba.conf": STATES["28"],
    "does not exist": f"{STATES['3D']}; check the user name, too",
    "too many": STATES["53"],
    "starting up": STATES["57"],
    "shutting down": STATES["57"],
    "recovery mode": STATES["57"],
    "no space left": STATES["53100"],
    "could not translate": "check the host's name in TENON_DATABASE_URL",
    "failed to resolve": "check the host's name in TENON_DATABASE_URL",
    "invalid connection option": "check what stands after '?' in TENON_DATABASE_URL",
    "refused": STATES["08"],
    "no such file": STATES["08"],
    "timeout": STATES["08"],
    "closed": STATES["08"],
}


class PostgreSQL(Database):
    """One database of a PostgreSQL server, by URL."""

    shared = True

    def __init__(self, url: str) -> None:
        target = make_url(url).set(drivername="postgresql+psycopg")
        given = {name: value for name, value in CONNECTING.items() if name not in target.query}
        try:
            engine = create_engine(
                target,
                # Poolers that hand a connection from transaction to transaction lose prepared statements.
                connect_args={**given, "prepare_threshold": None},
                isolation_level="REPEATABLE READ",
                pool_pre_ping=True,
                pool_size=8,
                json_serializer=to_json,
                hide_parameters=True,  # or a traceback would show rows, hashes of keys among them
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"TENON_DATABASE_URL needs the package {error.name}",
                "run `pip install 'tenon-llm[postgres]'`",
            ) from error
        # Each statement of a write sees what was committed before it got the lock, not before it began to wait.
        super().__init__(shown(target), engine, isolation_level="READ COMMITTED")

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect, creating the tables or bringing them up to date where needed; raises StorageError."""
        return cls(url).opened()

    def _begin(self, connection: Connection) -> None:
        if connection.get_execution_options().get(WRITES, False):
            connection.exec_driver_sql(TAKE_LOCK)

    def _explain(self, error: DBAPIError) -> tuple[str, str]:
        words = " ".join(str(error.orig).split())
        state = getattr(error.orig, "sqlstate", None) or ""
        hints = [hint for code, hint in STATES.items() if state.startswith(code)]
        hints += [hint for word, hint in WORDS.items() if word in words.lower()]
        return words, hints[0] if hints else "see the message, and the server's log"


def shown(url: URL) -> str:
    """The URL as people may see it: where the database is, and nothing that may be secret or mistyped."""
    query: dict[str, Any] = {name: value for name, value in url.query.items() if name in ("host", "port")}
    plain = URL.create(
        "postgresql", url.username, host=url.host, port=url.port, database=url.database, query=query
    )
    return plain.render_as_string()
