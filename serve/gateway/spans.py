"""One OpenTelemetry span for each request of the data plane, sent to a collector by a thread of its own.

Names are those of OpenTelemetry's conventions for HTTP servers and generative AI. A span tells what the
access line tells; neither prompts, answers, headers nor queries are in it. Spans wait in a queue of fixed
size; whatever goes wrong with the collector costs spans and never a request.

This module needs the packages of the extra ``otel``; ``tracing`` imports it when there is an endpoint.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.gateway.call import Call
from serve.gateway.endpoints import ENDPOINTS, INFO, TOKENIZER_INFO

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0
"""How long the last spans may take when the gateway ends."""
OPERATIONS = {
    "chat": "chat",
    "responses": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
}
"""The conventions' names for what an endpoint does; the others have ours."""
PROPAGATOR = TraceContextTextMapPropagator()
W3C = {b"traceparent": "traceparent", b"tracestate": "tracestate"}


class SpanTracer:
    """Makes the spans; ``close`` sends those that wait and forgets what cannot be sent in time."""

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._libraries = logging.getLogger("opentelemetry")
        self._level = self._libraries.level
        self._libraries.setLevel(logging.CRITICAL + 1)  # it would tell of every single try
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(Watched(exporter, endpoint)))
        self._tracer = self._provider.get_tracer("tenon.gateway")

    def begin(self, call: Call) -> None:
        """Start the span of a request to the data plane, below the client's own if it sent one."""
        endpoint = INFO if call.path == TOKENIZER_INFO else ENDPOINTS.get(call.path)
        if endpoint is None:
            return
        scope, carrier = call.scope, _carrier(call)
        host, port = scope.get("server") or (None, None)
        attributes = {
            "http.request.method": call.method,
            "http.route": call.path,
            "url.path": call.path,
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
            "server.address": host,
            "server.port": port,
            "gen_ai.operation.name": OPERATIONS.get(endpoint.kind, endpoint.kind),
            "gen_ai.provider.name": "vllm",
            "tenon.request_id": call.id,
        }
        span = self._tracer.start_span(
            f"{call.method} {call.path}",
            context=PROPAGATOR.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_known(attributes),
        )
        call.span = span
        call.trace_id = format_trace_id(span.get_span_context().trace_id)
        headers: dict[str, str] = {}
        PROPAGATOR.inject(headers, set_span_in_context(span))
        call.trace_headers = headers

    def end(self, call: Call) -> None:
        """End the span with what became known of its request."""
        span = call.span
        if span is None:
            return
        outcome = call.ended_as()
        attributes = {
            "http.response.status_code": call.status,
            "gen_ai.request.model": call.model,
            "gen_ai.request.stream": call.stream or None,
            "gen_ai.response.model": call.version,
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.completion_tokens,
            "gen_ai.response.time_to_first_chunk": call.first_token,
            "tenon.outcome": outcome,
        }
        if outcome != "ok":
            refused = call.status is not None and call.status >= 400
            attributes["error.type"] = str(call.status) if refused else outcome
        if outcome in ("failed", "unavailable"):
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(_known(attributes))
        span.end()

    def close(self) -> None:
        """Send what waits, for up to CLOSE_SECONDS."""
        # The library itself would wait for half a minute; a daemon does not keep a process from ending.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning("the last spans are lost, as the collector of traces does not answer")
        self._libraries.setLevel(self._level)


class Watched(SpanExporter):
    """An exporter that says once that its collector does not take spans, and once that it does again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; runs in the processor's thread, never in the event loop."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                logger.warning("traces do not reach %s, spans are lost until they do", self._endpoint)
            self._lost += len(spans)
        elif self._lost:
            logger.info("traces reach %s again, %d spans were lost", self._endpoint, self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def _carrier(call: Call) -> dict[str, list[str]]:
    """The client's W3C headers; two parents are none."""
    carrier: dict[str, list[str]] = {}
    for name, value in call.scope["headers"]:
        if name in W3C:
            carrier.setdefault(W3C[name], []).append(value.decode("latin-1"))
    return carrier if len(carrier.get("traceparent", ())) == 1 else {}


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _resource() -> Resource:
    """Who sends the spans; what the standard variables say of it wins."""
    ours = {}
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        ours["service.name"] = "tenon-gateway"
    with contextlib.suppress(PackageNotFoundError):  # a checkout that is not installed
        ours["service.version"] = version("tenon-llm")
    return Resource.create(ours)
