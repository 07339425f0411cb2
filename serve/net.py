"""Listening sockets and the addresses that reach them."""

import errno
import ipaddress
import socket
from urllib.parse import urlsplit

from serve.errors import ConfigError, PortInUse

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port (0: a free one); raises :class:`PortInUse` or :class:`ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is taken by another process",
                "stop what listens there, or choose another with --port",
            ) from error
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host} is no address of this machine", "use --host 127.0.0.1") from error
        raise PortInUse(
            f"port {port} of {host} cannot be listened on: {error.strerror or error}",
            "choose another with --port",
        ) from error
    return sock


def check_port(host: str, port: int) -> None:
    """Raise what :func:`listen` would raise."""
    listen(host, port).close()


def url_of(host: str, port: int) -> str:
    """The URL that reaches, from this machine, a server listening on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(url: str) -> bool:
    """Whether a URL names this machine by its loopback address, so that another machine would find itself there."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
