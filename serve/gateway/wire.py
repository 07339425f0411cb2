"""Connections to engines: HTTP/1.1 by httptools, kept open between requests. No more than the data plane needs.

A general client spends more on a request than all the rest of the gateway together. What is raised are aiohttp's
errors, as for the rest of our code an engine that cannot be reached is the same however it was asked.
"""

import asyncio
import base64
import io
from collections import deque
from collections.abc import Callable, Mapping
from typing import Self

import aiohttp
import httptools
from yarl import URL

NO_BODY = (204, 304)
CONTINUES = 200
"""Statuses below this one announce another answer."""
SWEEP_SECONDS = 1.0

Origin = tuple[str, str, int]


class NotConnected(aiohttp.ConnectionTimeoutError):
    """No connection to the engine could be made, so that it has got nothing of the request."""


class Reply:
    """An answer, of which the head has come; the body comes through :meth:`readany` or :meth:`read`."""

    __slots__ = ("_complete", "_error", "_parts", "_sink", "_size", "_waiter", "_wire", "status")

    def __init__(self, wire: "Wire") -> None:
        self.status = 0
        self._wire: Wire | None = wire
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._complete = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    def at_eof(self) -> bool:
        """Whether all has been read."""
        return self._complete and not self._parts

    async def readany(self) -> bytes:
        """What has come since the last time, at least something; empty at the end. Raises aiohttp's errors."""
        if not self._parts and not self._complete:
            await self._more()
        return self._take()

    async def read(self) -> bytes:
        """The whole body. Raises aiohttp's errors."""
        got = []
        while not self._complete:
            await self._more()
            if not self._complete:
                got.append(self._take())
        return b"".join([*got, self._take()])

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Give what has come, and then all that comes in the moment in which it comes, to ``sink``.

        It goes on until ``sink`` returns False, which makes this True, or until the end, which makes it False. No task
        runs in between, which is most of what a small part costs. Raises aiohttp's errors; a ValueError of ``sink`` is
        the engine's fault, whose answer it could not read.
        """
        while self._parts:
            if not sink(self._take()):
                return True
        if self._complete:
            return False
        if self._error is not None:
            raise self._error
        self._sink, self._waiter = sink, asyncio.get_running_loop().create_future()
        try:
            await self._waiter
            stopped = self._sink is None
        finally:
            self._sink = self._waiter = None
        if self._error is not None and not stopped:
            raise self._error
        return stopped

    def close(self) -> None:
        """End the connection unless the answer is complete."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.cut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def feed(self, part: bytes, most: int) -> bool:
        """Take a part of the body; whether more than ``most`` bytes wait to be read."""
        self._parts.append(part)
        self._size += len(part)
        if self._sink is None:
            self._wake()
        return self._size > most

    def pass_on(self) -> None:
        """Give what has come to the sink, if there is one."""
        if self._sink is not None and self._parts and not self._sink(self._take()):
            self._sink = None
            self._wake()

    def finish(self, error: BaseException | None = None) -> None:
        """Note that nothing more will come, as the answer is complete or for an error."""
        self.pass_on()
        self._wire = None
        if error is None:
            self._complete = True
        else:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        """Wait until something happens; what came before an error is given out before it."""
        if self._parts and self._error is None:
            return
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None and not self._parts:
            raise self._error

    def _take(self) -> bytes:
        parts = self._parts
        taken = parts.popleft() if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        if self._wire is not None:
            self._wire.resume()
        return taken


class Wire(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, pool: "Wires", origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._head: asyncio.Future[Reply] | None = None
        self._framed = False
        self._paused = False
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._reply is None and not self._transport.is_closing()

    async def ask(self, head: bytes, payload: bytes) -> Reply:
        """Send a request and wait for the head of its answer; whoever is cancelled here ends the connection."""
        reply = self._reply = Reply(self)
        self._head = self._loop.create_future()
        self._heard = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._pool.silence, self._listen)
        if len(payload) < self._pool.buffer:
            self._transport.write(head + payload)
        else:
            self._transport.writelines([head, payload])
        try:
            return await self._head
        except BaseException:
            reply.close()
            raise

    def cut(self) -> None:
        """End the connection, and with it the engine's work."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # an engine that does not read could hold it open
        else:
            self._transport.close()

    def resume(self) -> None:
        """Read on, after a pause because nobody took what had come."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """End, cleanly only for an answer whose end is the connection's."""
        if self._timer is not None:
            self._timer.cancel()
        reply = self._reply
        if reply is not None and reply.status >= CONTINUES and not self._framed and error is None:
            self._reply = None
            reply.finish()
        else:
            self._break(error or aiohttp.ServerDisconnectedError())

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._heard = self._loop.time()
        reply = self._reply
        if reply is None:
            self._transport.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
            reply.pass_on()
        except (httptools.HttpParserError, ValueError) as error:
            self._break(aiohttp.ClientPayloadError(f"the engine's answer cannot be read: {error}"))
            self._transport.abort()

    def on_message_begin(self) -> None:
        """A head begins; one that nobody asked for makes the connection useless."""
        self._framed = False
        if self._reply is None:
            self._transport.abort()

    def on_header(self, name: bytes, _: bytes) -> None:
        """A line of it; two say where the body ends."""
        if len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """The head is complete; unless it only announces another."""
        status = self._parser.get_status_code()
        if status < CONTINUES or self._reply is None:
            return
        self._framed = self._framed or status in NO_BODY
        self._reply.status = status
        if self._head is not None and not self._head.done():
            self._head.set_result(self._reply)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if self._reply is not None and self._reply.feed(part, self._pool.buffer) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is complete, and the connection free for the next request if it can be."""
        reply = self._reply
        if reply is None or reply.status < CONTINUES or not self._framed:
            return  # or the connection's end is the answer's
        self._reply = None
        reply.finish()
        self.resume()
        if self._parser.should_keep_alive() and not self._transport.get_write_buffer_size():
            self._pool.give_back(self)
        else:
            self._transport.close()

    def _listen(self) -> None:
        """Break off when the engine has been silent for too long; rest while nothing is asked of it."""
        left = self._heard + self._pool.silence - self._loop.time()
        self._timer = None
        if self._reply is None:
            return
        if left > 0 or self._paused:
            self._timer = self._loop.call_later(max(left, SWEEP_SECONDS), self._listen)
        else:
            self._break(aiohttp.ServerTimeoutError("the engine has been silent for too long"))
            self._transport.abort()

    def _break(self, error: BaseException) -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        reply.finish(error)
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)


class Wires:
    """All connections of one gateway; times in seconds, ``buffer`` in bytes that may wait to be read."""

    def __init__(self, *, connect: float, silence: float, keep: float, buffer: int) -> None:
        self.silence = silence
        self.buffer = buffer
        self._connect = connect
        self._keep = keep
        self._idle: dict[Origin, list[Wire]] = {}
        self._heads: dict[tuple[str, URL], tuple[str, Origin]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def get(self, url: URL, *, headers: Mapping[str, str]) -> Reply:
        """Ask with GET; the answer's head has come. Raises aiohttp's errors."""
        return await self._ask("GET", url, b"", headers)

    async def post(self, url: URL, *, data: bytes | io.BytesIO, headers: Mapping[str, str]) -> Reply:
        """Ask with POST; the answer's head has come. Raises aiohttp's errors."""
        return await self._ask("POST", url, data if isinstance(data, bytes) else data.getvalue(), headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sweep(all_of_them=True)
        await asyncio.sleep(0)  # for the connections to close

    def give_back(self, wire: Wire) -> None:
        """Keep a connection for the next request."""
        loop = asyncio.get_running_loop()
        wire.idle_since = loop.time()
        self._idle.setdefault(wire.origin, []).append(wire)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def _ask(self, method: str, url: URL, payload: bytes, headers: Mapping[str, str]) -> Reply:
        head, origin = self._heads.get((method, url)) or self._head(method, url)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header must be one line")
        text = f"{head}{lines}content-length: {len(payload)}\r\n\r\n" if payload else f"{head}{lines}\r\n"
        wire = self._free(origin)
        if wire is None:
            wire = await self._open(origin)
        return await wire.ask(text.encode(), payload)

    def _head(self, method: str, url: URL) -> tuple[str, Origin]:
        """The lines that all requests to a URL have, and whom they go to; URLs are our own endpoints', so few."""
        if len(self._heads) > 1000:
            self._heads.clear()
        text = f"{method} {url.raw_path_qs} HTTP/1.1\r\nhost: {url.host_port_subcomponent}\r\n"
        if url.user is not None:
            secret = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
            text += f"authorization: Basic {secret}\r\n"
        found = self._heads[method, url] = text, (url.scheme, url.raw_host or "", url.port or 80)
        return found

    def _free(self, origin: Origin) -> Wire | None:
        """The connection that was used last, if it is open and not so old that the engine may be closing it."""
        idle = self._idle.get(origin)
        while idle:
            wire = idle.pop()
            if not wire.open:
                continue
            if wire.idle_since + self._keep > asyncio.get_running_loop().time():
                return wire
            wire.cut()
        return None

    async def _open(self, origin: Origin) -> Wire:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect):
                _, wire = await loop.create_connection(
                    lambda: Wire(self, origin), host, port, ssl=True if scheme == "https" else None
                )
        except (OSError, TimeoutError) as error:
            raise NotConnected(f"cannot connect to {host}:{port}: {error or 'no answer in time'}") from error
        return wire

    def _sweep(self, *, all_of_them: bool = False) -> None:
        """Close connections that have not been used for a while."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep
        for origin, idle in list(self._idle.items()):
            kept = [] if all_of_them else [wire for wire in idle if wire.open and wire.idle_since > oldest]
            for wire in idle:
                if wire not in kept:
                    wire.cut()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
