"""Where traces are sent: the standard OpenTelemetry variables, and ``TENON_OTLP_ENDPOINT``, which wins over them."""

import logging
import os
from collections.abc import Mapping

from serve.net import http_parts

logger = logging.getLogger(__name__)

PATH = "/v1/traces"
PROTOCOL = "http/protobuf"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def endpoint_problem(url: str) -> str | None:
    """What is wrong with the URL of a collector, without the URL itself; None if nothing is."""
    parts = http_parts(url)
    if parts is None:
        return "must look like http://HOST:4318"
    if parts.username or parts.password:
        # It stands in the engine's command line, which everybody on the machine can read.
        return "must hold no password; OTEL_EXPORTER_OTLP_HEADERS is for that"
    return None


def traces_endpoint(setting: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The full URL that spans are posted to, or None where nothing is traced.

    ``setting`` is a collector's address, to which the path of the protocol is added. What the standard
    variables ask for and we cannot do is told in one warning, as they may be meant for other programs.
    """
    if _off(environ):
        return None
    if setting:
        return _with_path(setting)
    full = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    short = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    if not full and not short:
        return None
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    problem = endpoint_problem(full or short)
    if protocol != PROTOCOL:
        problem = f"the protocol is {PROTOCOL}, and not {protocol[:20]!r}"
    if problem is not None:
        logger.warning("no traces are sent: the OTEL_EXPORTER_OTLP_ variables: %s", problem)
        return None
    return full or _with_path(short)


def _off(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def _with_path(url: str) -> str:
    url = url.strip().rstrip("/")
    return url if url.endswith(PATH) else url + PATH
