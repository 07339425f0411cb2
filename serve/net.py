"""Listening sockets and the addresses that reach them."""

import contextlib
import errno
import ipaddress
import socket
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

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


def free_port(host: str, port: int = 0) -> int:
    """A port that nobody listens on at this moment: the given one, or for 0 any; raises as :func:`listen` does."""
    with contextlib.closing(listen(host, port)) as sock:
        return int(sock.getsockname()[1])


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a server that is bound to this numeric address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_reach(sock: socket.socket, *, keys: bool) -> None:
    """Raise ConfigError if other machines reach a gateway on this socket and no API key was ever created."""
    address = sock.getsockname()[0]
    if not keys and not is_loopback(address):
        raise ConfigError(
            f"other machines reach {address}, and there is no API key yet: anybody could use the gateway",
            "create one with `tenon keys create NAME` first, or listen on --host 127.0.0.1",
        )


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


def http_parts(url: str) -> SplitResult | None:
    """The parts of a URL of an HTTP server, or None if it is none."""
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # whose words would show parts of a password
        return None
    return parts if well else None


def address_problem(url: str) -> str | None:
    """What is wrong with the address of an engine, without the address itself; None if nothing is."""
    parts = http_parts(url)
    if parts is None or parts.query or parts.fragment or "@" in parts.path or any(map(str.isspace, url)):
        return "must look like http://HOST:8000 or http://USER:PASSWORD@HOST:8000, special characters as %XX"
    return None


def access_in(url: str) -> tuple[str, Mapping[str, str]]:
    """A URL without the user name and password in it, and the header that sends these."""
    parts = urlsplit(url)
    access, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = access.partition(":")
    secret = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"authorization": f"Basic {secret}"}


def bare(url: str) -> str:
    """A URL as messages, logs and records may show it: without a user name and password."""
    try:
        return access_in(url)[0]
    except ValueError:  # it is no URL
        return url.rpartition("@")[2]
