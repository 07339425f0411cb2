"""A private PostgreSQL server for the tests, from the binaries of a package such as Debian's ``postgresql``."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import sql

from support.ports import free_port

USER, PASSWORD = "tenon", "s3cret/p@ss"
PACKAGES = Path("/usr/lib/postgresql")
START_SECONDS = 30.0


def binaries() -> Path | None:
    """The folder that has ``initdb`` and ``postgres``, if there is one."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(PACKAGES.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


def required() -> bool:
    """Whether tests on PostgreSQL must run, rather than be skipped where it is missing."""
    return bool(os.environ.get("CI") or os.environ.get("TENON_TEST_REQUIRE_POSTGRES"))


class Cluster:
    """One server in a folder of its own: by Unix socket without a password, by TCP with one.

    It sorts text by English rules, so that what relies on the order of bytes is found out. It ends with us, also
    when we are killed.
    """

    def __init__(self, folder: Path) -> None:
        self.binaries = folder
        self.port = free_port()
        # Not below pytest's folders, which other users may not enter: as root, the server runs as another user.
        self.folder = Path(tempfile.mkdtemp(prefix="tenon-pg-"))
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run(
            "initdb", "--username", USER, "--pwfile", str(secret), "--no-sync", "--encoding=UTF8",
            "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US",
            "--auth-local=trust", "--auth-host=scram-sha-256", "--pgdata", str(self.folder / "data"),
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",  # processes are killed in the tests, machines are not
            "shared_buffers": "16MB",
            "max_connections": 200,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        with log:
            self._server = subprocess.Popen(
                self._command("postgres", "-D", str(self.folder / "data"), *options),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server; SIGQUIT does so at once, as a crash would, so that it recovers at its next start."""
        if self._server is not None:
            self._server.send_signal(number)
            self._server.wait(START_SECONDS)
            self._server = None

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """A database by Unix socket."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, password: str = "s3cret%2Fp%40ss", port: int | None = None) -> str:
        """A database by TCP, which asks for the password."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{port or self.port}/{database}"

    def create(self) -> str:
        """Create an empty database and return its URL."""
        name = f"tenon_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            self._command(program, *arguments), cwd="/", check=True, capture_output=True, text=True
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        # The server gets SIGQUIT when we die.
        return ["setpriv", *self._as_user, "--pdeathsig", "QUIT", str(self.binaries / program), *arguments]
