"""Ports that can be listened on, and servers that answer."""

import json
import os
import socket
import urllib.request
from typing import Any

from serve.errors import ConfigError, PortInUse

PROBE_TIMEOUT = 2.0  # seconds that a part is given to answer a health check


def check_port(host: str, port: int) -> None:
    """Raise :class:`PortInUse` unless the gateway could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == 99:
                raise ConfigError(f"{host} is no address of this machine", "use --host 127.0.0.1") from error
            raise PortInUse(
                f"port {port} of {host} cannot be listened on: {os.strerror(error.errno or 0)}",
                "stop what listens there, or choose another with --port",
            ) from error


def dial(host: str) -> str:
    """The address that reaches a server listening on ``host`` from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def answers(url: str) -> bool:
    """Whether a GET of ``url`` is answered with success in time."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def get_json(url: str) -> dict[str, Any]:
    """The JSON that ``url`` answers, or an empty mapping where it does not."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT) as response:
            content = json.loads(response.read())
            return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
