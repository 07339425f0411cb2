"""Turns tracing on where somebody asked for it; elsewhere OpenTelemetry is not even imported."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from serve.config import Settings
from serve.gateway.observe import Tracer
from serve.telemetry import traces_endpoint

logger = logging.getLogger(__name__)

PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


@contextmanager
def tracing(settings: Settings) -> Iterator[Tracer | None]:
    """The tracer of a gateway while the block runs, or None; the last spans are sent when it ends."""
    endpoint = traces_endpoint(settings.otlp_endpoint)
    if endpoint is None:
        yield None
        return
    if not _installed():
        logger.warning("no traces are sent: OpenTelemetry is missing: pip install 'tenon-llm[otel]'")
        yield None
        return
    from serve.gateway.spans import SpanTracer

    tracer = SpanTracer(endpoint)
    try:
        yield tracer
    finally:
        tracer.close()


def _installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in PACKAGES)
    except ModuleNotFoundError:  # a parent of the last one is missing
        return False
