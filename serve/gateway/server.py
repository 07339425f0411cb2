"""Listens: binds the port, runs uvicorn, and leaves a record of itself in ``run/gateway.json``."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from serve.config import DRAIN_SECONDS, Settings
from serve.errors import TenonError
from serve.gateway.api.management import Management
from serve.gateway.app import Gateway
from serve.gateway.auth import Keyring
from serve.gateway.books import Books
from serve.gateway.counters import Counters
from serve.gateway.ledger import Ledger
from serve.gateway.protocol import GuardedProtocol
from serve.gateway.require import authorise
from serve.gateway.rules import Rules
from serve.gateway.source import RouteSource
from serve.gateway.tracing import tracing
from serve.net import check_reach, is_loopback, listen, url_of
from serve.operator import operator_key
from serve.prices import Prices
from serve.records import ProcessIdentity, write_json
from serve.registry import Registry, hash_of

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
NEW_OBJECTS = 10_000
"""After how many new objects the youngest are searched for cycles; Python's own 700 is for small programs."""

SWITCH_SECONDS = 0.0005
"""How long a thread, as the one that writes logs, may keep the event loop from going on; Python's own is 5 ms."""


class GatewayServer(uvicorn.Server):
    """A uvicorn server that tells other processes where it listens, from the first to the last moment."""

    def __init__(self, app: Gateway, sock: socket.socket, record: Path) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=GuardedProtocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        self.host, self.port = sock.getsockname()[:2]
        self._record = record

    @property
    def url(self) -> str:
        """Where clients reach the gateway."""
        return url_of(self.host, self.port)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then write the record."""
        await super().startup(sockets)
        if self.started:
            self._write_record()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish running requests, then remove the record."""
        await super().shutdown(sockets)
        with contextlib.suppress(OSError):  # a record of a process that is gone misleads nobody
            self._record.unlink(missing_ok=True)

    def _write_record(self) -> None:
        where = {"host": self.host, "port": self.port, "url": self.url, "started_at": time.time()}
        write_json(self._record, ProcessIdentity.of(os.getpid()).to_json() | where)


@contextlib.contextmanager
def keyring(settings: Settings, registry: Registry, sock: socket.socket) -> Iterator[Keyring]:
    """The keys that a gateway on this socket asks for, and the operator's in a file while the block runs.

    Raises ConfigError where other machines would reach a gateway that has no keys.
    """
    used, address = registry.keys_used(), sock.getsockname()[0]
    check_reach(sock, keys=used)
    if not used:
        logger.info("no keys: loopback only; whoever reaches %s may ask everything", address)
    with operator_key(settings.state) as secret:
        keys = Keyring(registry, loopback=is_loopback(address), operator=hash_of(secret))
        keys.open_metrics = settings.open_metrics
        yield keys


def spare_what_stays() -> None:
    """Keep the collector of cycles away from what was imported and built: it stays until the end.

    It went through all of that again and again, which cost requests a tenth of their processor time and the
    unlucky ones tens of milliseconds. The rest is looked through after ``NEW_OBJECTS`` more of them than before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


def serve(settings: Settings) -> None:
    """Run the gateway of one home until SIGTERM or SIGINT; raises PortInUse, ConfigError or StorageError."""
    with (
        listen(settings.host, settings.port) as sock,
        Registry.of(settings) as registry,
        keyring(settings, registry, sock) as keys,
        tracing(settings) as tracer,
    ):
        source = RouteSource(registry, settings.state / "engine.json", keys)
        books = Books(Ledger(registry), Prices.load(settings.prices))
        redis = settings.redis_url
        counters = Counters(redis.get_secret_value() if redis is not None else None)
        rules = Rules.of(settings)
        management = Management(registry, settings, source, rules, authorise)
        app = Gateway(source, rules, tracer, books, counters, management)
        server = GatewayServer(app, sock, settings.state / "gateway.json")
        spare_what_stays()
        sys.setswitchinterval(SWITCH_SECONDS)
        # uvicorn raises the signal again once it has shut down; the work is done then, and 0 is the truth.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[sock])
    if not server.started:
        raise TenonError("the gateway did not start", "its log says why")
