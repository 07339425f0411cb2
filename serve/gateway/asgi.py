"""The few pieces of raw ASGI that the data plane needs: read a body, answer with JSON, notice a hang-up."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any

from serve.errors import BadRequest, RequestTimeout, RequestTooLarge, UnsupportedContent

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Push = Callable[[bytes], bool]

PUSH = "tenon.push"
"""The extension of a server that can write a part of a streamed body at once; see ``ends.py``."""

MAX_BODY = 32 * 2**20
"""Longest request body, in bytes."""
BODY_SECONDS = 60.0
"""How long a body may take to arrive."""


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, most: int = MAX_BODY) -> bytes | bytearray:
    """Read the whole JSON body of a request, which may have ``most`` bytes.

    Raises UnsupportedContent, RequestTooLarge, RequestTimeout, BadRequest (two lengths) or ClientGone.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > most:
            raise _too_large(most)
        if name == b"content-type" and value.partition(b";")[0].strip().lower() != b"application/json":
            raise UnsupportedContent(
                f"the body is declared as {value.decode('latin-1')!r}",
                "send JSON with content-type: application/json",
            )
        if name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedContent("the body is compressed", "send it as plain JSON")
    at_once: Callable[[], bytes | None] | None = getattr(receive, "whole", None)  # see ``ends.py``
    if at_once is not None and (body := at_once()) is not None:
        return body
    try:
        async with asyncio.timeout(BODY_SECONDS):
            message = await receive()
            if not message.get("more_body"):
                return _part(message)
            return await _read_rest(_part(message), receive, most)
    except TimeoutError:
        raise RequestTimeout(
            f"the body took longer than {BODY_SECONDS:.0f} s to arrive", "send it faster"
        ) from None


async def _read_rest(first: bytes, receive: Receive, most: int) -> bytearray:
    body = bytearray(first)
    while True:
        message = await receive()
        body += _part(message)
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return body


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def _too_large(most: int) -> BadRequest:
    return RequestTooLarge(f"the body is longer than {most >> 20} MiB", "send less in one request")


async def send_json(
    send: Send, body: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with a JSON body, whole."""
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def push_of(scope: Scope) -> Push | None:
    """How to write parts of a streamed body at once, where the server can."""
    push: Push | None = (scope.get("extensions") or {}).get(PUSH)
    return push


class HangUp:
    """Ends a block when the client hangs up: ``with HangUp(receive): …`` raises ClientGone then.

    It cancels the task that runs the block, so that whatever the block waits for (an engine's connection) is
    closed at that moment and not at the next write. A server whose ``receive`` has ``when_gone`` tells of the
    hang-up itself, as our own does (``protocol.py``); with others, a task waits for it.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._tell: Callable[[Callable[[], None] | None], None] | None = getattr(receive, "when_gone", None)
        self._watcher: asyncio.Task[None] | None = None
        self._happened = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests run in tasks"
        self._task = task
        if self._tell is not None:
            self._tell(self._gone)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _gone(self) -> None:
        self._happened = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._tell is not None:
            self._tell(None)
        if self._watcher is not None:
            self._watcher.cancel()
        if self._happened and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientGone from error
