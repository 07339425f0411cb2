"""A Redis server for the tests: the real one where it is installed, else one in Python that speaks its protocol."""

import shutil
import socket
import subprocess
import threading
import time
from typing import Any

from fakeredis import FakeRedis, TcpFakeServer
from limits.aio.storage.redis.bridge import RedisBridge

from support.ports import free_port

PASSWORD = "s3cret"
START_SECONDS = 10.0


class PatientServer(TcpFakeServer):
    """Lets more than five connect at once: what waits beyond that is reset now and then."""

    request_queue_size = 128


class RedisServer:
    """A server on a port of its own, with a password; without persistence."""

    def __init__(self) -> None:
        self.port = free_port()
        self.program = shutil.which("redis-server") or shutil.which("valkey-server")
        self._process: subprocess.Popen[bytes] | None = None
        self._fake: Any = None

    @property
    def url(self) -> str:
        """Where it answers."""
        password = f":{PASSWORD}@" if self.program else ""
        return f"redis://{password}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until the port is open."""
        if self.program is None:
            self._fake = PatientServer(("127.0.0.1", self.port), server_type="redis")
            self._fake.daemon_threads = True
            # It hangs up after every error, also after the one that asks the client for the script.
            FakeRedis(server=self._fake.fake_server).script_load(RedisBridge.SCRIPT_INCR_EXPIRE)
            threading.Thread(target=self._fake.serve_forever, daemon=True).start()
            return
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "requirepass": PASSWORD}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([self.program, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once; what was counted is gone."""
        if self._fake is not None:
            self._fake.shutdown()
            self._fake.server_close()
            self._fake = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
