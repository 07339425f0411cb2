"""An engine that costs next to nothing, for measuring what stands in front of it.

``python -m evalsuite.load.upstream --port 9000`` answers every POST with a canned chat in OpenAI's form, whole or
(``"stream": true``) as ``max_tokens`` server-sent events, each written by itself and ``--pause`` seconds after the
last; a PUT of other seconds changes the pause of streams to come. It prints its URL and does no more than it must;
``serve/engine/fake.py`` is the one that behaves like vLLM.
"""

import argparse
import asyncio
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import httptools
import uvloop

from serve.net import listen, url_of

MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
STREAM = re.compile(rb'"stream"\s*:\s*true')
USAGE = re.compile(rb'"include_usage"\s*:\s*true')
TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
EVENTS = 100
"""Tokens of a stream whose request does not say how many."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
SENTENCE = (
    b"Your parcel left our house on Monday and is on its way; it should be with you by Thursday evening. "
)


@functools.lru_cache(256)
def whole(model: bytes) -> bytes:
    """The response that answers as ``model`` at once, about 0.7 kB of JSON."""
    body = (
        b'{"id":"chatcmpl-8f1c2d3e4a5b6c7d","object":"chat.completion","created":1763700000,"model":"%b",'
        b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b","refusal":null,"annotations":null,'
        b'"audio":null,"function_call":null,"tool_calls":[],"reasoning":null},"logprobs":null,'
        b'"finish_reason":"stop","stop_reason":null,"token_ids":null}],"service_tier":null,'
        b'"system_fingerprint":null,"usage":{"prompt_tokens":96,"total_tokens":160,"completion_tokens":64,'
        b'"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}'
    ) % (model, SENTENCE * 2)
    return HEAD % len(body) + body


@functools.lru_cache(256)
def chunks(model: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """The chunks of a stream: its opening, one token, its last token with the reason, the usage."""
    head = (
        b'data: {"id":"chatcmpl-8f1c2d3e4a5b6c7d","object":"chat.completion.chunk","created":1763700000,'
        b'"model":"%b","choices":['
    ) % model
    choice = b'{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}]}\n\n'
    opening = head + choice % (b'"role":"assistant","content":""', b"null")
    token = head + choice % (b'"content":" parcel"', b"null")
    last = head + choice % (b'"content":"."', b'"length"')
    usage = head + b'],"usage":{"prompt_tokens":96,"total_tokens":196,"completion_tokens":100}}\n\n'
    first, middle, end, account = (_chunk(event) for event in (opening, token, last, usage))
    return first, middle, end, account


def _chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


DONE = _chunk(b"data: [DONE]\n\n") + LAST_CHUNK


@dataclass
class Pace:
    """How fast streams come: ``pause`` seconds before each of their events, none to be as fast as can be."""

    pause: float = 0.0


class Upstream(asyncio.Protocol):
    """One connection; requests come one after the other. The pace is shared by all connections."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._pause = 0.0
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._left = 0
        self._chunks: tuple[bytes, bytes, bytes, bytes] | None = None
        self._usage = False
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """End whatever is being streamed."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """Answer it."""
        body, method = self._body, self._parser.get_method()
        if method == b"PUT":
            self._pace.pause = float(body)
            self._transport.write(HEAD % 0)
            return
        found = MODEL.search(body)
        model = found[1] if found else b"base"
        if not STREAM.search(body):
            self._transport.write(_list(model) if method == b"GET" else whole(model))
            return
        self._pause = self._pace.pause
        asked = TOKENS.search(body)
        self._left = int(asked[1]) if asked else EVENTS
        self._chunks = chunks(model)
        self._usage = USAGE.search(body) is not None
        self._transport.write(STREAM_HEAD + self._chunks[0])
        self._again()

    def _again(self) -> None:
        if self._pause:
            self._timer = self._loop.call_later(self._pause, self._token)
        else:
            self._timer = self._loop.call_soon(self._token)

    def _token(self) -> None:
        assert self._chunks is not None
        _, token, last, usage = self._chunks
        self._left -= 1
        if self._left > 0:
            self._transport.write(token)
            self._again()
            return
        self._transport.write(last)
        self._transport.write(usage + DONE if self._usage else DONE)


def _list(model: bytes) -> bytes:
    """What every GET answers: good enough as ``/v1/models`` and as a sign of health."""
    card = (
        b'{"object":"list","data":[{"id":"%b","object":"model","created":1763700000,"owned_by":"vllm"}]}'
        % model
    )
    return HEAD % len(card) + card


async def _serve(host: str, port: int, pause: float) -> None:
    sock = listen(host, port)
    pace = Pace(pause)
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(pace), sock=sock)
    print(url_of(*sock.getsockname()[:2]), flush=True)  # noqa: T201 - for who started us
    async with server:
        await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (0: a free one)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each event of a stream")
    options = parser.parse_args(argv)
    uvloop.run(_serve(options.host, options.port, options.pause))


if __name__ == "__main__":
    main()
