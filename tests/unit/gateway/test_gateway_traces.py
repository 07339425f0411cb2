"""Traces: spans of a gateway process at a real OTLP receiver, and what the engine gets of them."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_harness import MESSAGES, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from test_gateway_logs import CHAT, PROMPT, SECRET, Place, gateway

from serve.engine.fake import Fault

BODY = {"model": "base", "messages": MESSAGES}
PARENT, TRACE = "b7ad6b7169203331", "0af7651916cd43dd8448eb211c80319c"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Collector:
    """An OTLP/HTTP receiver; ``status`` is what it answers, None not at all."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.status: int | None = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        content = ExportTraceServiceRequest.FromString(await request.read())
        self.headers.append(request.headers)
        if self.status is None:
            await asyncio.Event().wait()
        if self.status == 200:
            for group in content.resource_spans:
                self.resources.append(attributes(group.resource))
                for scope in group.scope_spans:
                    self.spans += scope.spans
        return web.Response(status=self.status or 500, content_type="application/x-protobuf")

    async def span(self) -> Span:
        """The next span that comes."""
        await until(lambda: self.spans, 10)
        return self.spans.pop(0)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in of.attributes}


def engine_context(place: Place) -> re.Match[str] | None:
    return re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])", place.engine.headers[-1]["traceparent"])


async def test_a_request_is_a_span_between_the_clients_and_the_engines(tmp_path: Path) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1,b=2", "x-request-id": "mine"}
    async with collecting() as collector:
        async with gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON) as place:
            await place.ask(BODY, **headers)
            span = await collector.span()
            sent = engine_context(place)
            assert sent is not None
            assert place.engine.headers[-1]["tracestate"] == "a=1,b=2"
        line = place.access("mine")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert sent.groups() == (TRACE, span.span_id.hex(), "01")
    assert line["trace_id"] == TRACE
    assert (span.name, span.kind, span.status.code) == (f"POST {CHAT}", Span.SPAN_KIND_SERVER, 0)
    assert span.end_time_unix_nano > span.start_time_unix_nano
    told = attributes(span)
    assert told.pop("server.port") == int(place.url.rpartition(":")[2])
    assert told == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "base",
        "gen_ai.response.model": "base",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "tenon.request_id": "mine",
        "tenon.outcome": "ok",
    }
    assert collector.resources[0]["service.name"] == "tenon-gateway"


async def test_streams_failures_and_other_endpoints(tmp_path: Path) -> None:
    async with collecting() as collector:
        url = f"{collector.url}/v1/traces"
        async with gateway(tmp_path, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url, **SOON) as place:
            await place.ask({**BODY, "stream": True})
            stream = await collector.span()
            place.engine.faults = [Fault("die_mid_stream", after=2)]
            await place.ask({**BODY, "stream": True})
            broken = await collector.span()
            place.engine.faults = [Fault("error", status=500)]
            await place.ask(BODY)
            failed = await collector.span()
            await place.ask({**BODY, "model": "nobody's"})
            refused = await collector.span()
            await place.ask({"model": "base", "input": "x"}, "/v1/embeddings")
            embedding = await collector.span()
            await place.ask({}, "/nothing")
            async with place.http.get("/healthz") as reply:
                assert reply.status == 200
        assert collector.spans == []
    told = attributes(stream)
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < 10
    assert told["gen_ai.request.stream"] is True
    assert stream.parent_span_id == b""
    told = attributes(broken)
    assert (told["http.response.status_code"], told["error.type"], told["tenon.outcome"]) == (
        200,
        "failed",
        "failed",
    )
    assert broken.status.code == Status.STATUS_CODE_ERROR
    assert (attributes(failed)["error.type"], failed.status.code) == ("502", Status.STATUS_CODE_ERROR)
    told = attributes(refused)
    assert (told["error.type"], refused.status.code) == ("404", Status.STATUS_CODE_UNSET)
    assert "gen_ai.request.model" not in told
    assert attributes(embedding)["gen_ai.operation.name"] == "embeddings"


PARENTS: list[tuple[dict[str, str], bool, bool]] = [
    ({"traceparent": f"00-{TRACE}-{PARENT}-00"}, False, True),
    ({"traceparent": "00-nonsense-01"}, True, False),
    ({"traceparent": f"00-{'0' * 32}-{PARENT}-01"}, True, False),
    ({"traceparent": f"ff-{TRACE}-{PARENT}-01"}, True, False),
    ({"tracestate": "a=1"}, True, False),
    ({"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "x" * 9000}, True, True),
]


async def test_a_parent_is_taken_if_it_is_one(tmp_path: Path) -> None:
    async with collecting() as collector:
        async with gateway(tmp_path, TENON_OTLP_ENDPOINT=collector.url) as place:
            for headers, sampled, joined in PARENTS:
                await place.ask(BODY, **headers)
                sent = engine_context(place)
                assert sent is not None
                assert (sent[1] == TRACE) == joined
                assert int(sent[3]) % 2 == sampled
                assert "tracestate" not in place.engine.headers[-1]
        assert len(collector.spans) == 5  # they waited, and were sent at the end


async def test_nothing_that_was_said_is_in_a_span(tmp_path: Path) -> None:
    async with (
        collecting() as collector,
        gateway(tmp_path, TENON_OTLP_ENDPOINT=collector.url, **SOON) as place,
    ):
        for stream in (False, True):
            await place.ask({"model": "base", "messages": PROMPT, "stream": stream})
        await place.ask({"model": SECRET, "messages": PROMPT})
        await place.ask({"model": "base", "messages": PROMPT, "n": SECRET})
        await until(lambda: len(collector.spans) == 4)
    assert SECRET not in str(collector.spans)
    assert SECRET not in str(collector.resources)


@pytest.mark.parametrize("failure", ["down", 503, None])
async def test_a_collector_that_fails_costs_spans_and_one_warning(tmp_path: Path, failure: Any) -> None:
    async with collecting() as collector:
        collector.status = failure
        url = "http://127.0.0.1:9" if failure == "down" else collector.url
        variables = {**SOON, "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "4"}
        variables["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "2"
        async with gateway(tmp_path, TENON_OTLP_ENDPOINT=url, **variables) as place:
            async with asyncio.timeout(20):  # were each to wait for the collector, it would take 30 seconds
                for _ in range(30):
                    assert (await place.ask(BODY))[0] == 200
            await asyncio.sleep(2.5)
            assert (await place.ask(BODY))[0] == 200
    warnings = [line["message"] for line in place.lines if line["level"] not in ("info", "debug")]
    assert warnings[0] == f"traces do not reach {url}/v1/traces, spans are lost until they do"
    assert set(warnings[1:]) <= {"the last spans are lost, as the collector of traces does not answer"}


async def test_a_collector_that_comes_back_is_told(tmp_path: Path) -> None:
    async with collecting() as collector:
        collector.status = 400
        async with gateway(tmp_path, TENON_OTLP_ENDPOINT=collector.url, **SOON) as place:
            await place.ask(BODY)
            await until(lambda: len(collector.headers) == 1)
            collector.status = 200
            await place.ask(BODY)
            await collector.span()
    told = [line["message"] for line in place.lines if "traces" in line["message"]]
    assert told[1] == f"traces reach {collector.url}/v1/traces again, 1 spans were lost"


async def test_what_others_variables_ask_for_in_vain_is_a_warning(tmp_path: Path) -> None:
    async with gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://u:{SECRET}@127.0.0.1:4318") as place:
        assert (await place.ask(BODY))[0] == 200
    (warning,) = [line["message"] for line in place.lines if line["level"] == "warning"]
    assert warning.startswith("no traces are sent: ")
    assert SECRET.encode() not in place.log


async def test_without_an_endpoint_no_header_is_sent(tmp_path: Path) -> None:
    async with gateway(tmp_path) as place:
        await place.ask(BODY, traceparent=f"00-{TRACE}-{PARENT}-01")
        assert "traceparent" not in place.engine.headers[-1]


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    code = """
import sys
from serve.config import Settings
from serve.gateway.server import serve
from serve.gateway.tracing import tracing
with tracing(Settings.read()) as tracer:
    assert tracer is None
found = [name for name in sys.modules if name.startswith("opentelemetry")]
assert found == [], found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
