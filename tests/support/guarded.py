"""A proxy that asks for a user name and a password before it lets anybody speak to an engine."""

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from aiohttp import web

from serve.net import listen


@asynccontextmanager
async def guarded(url: str, user: str, password: str) -> AsyncIterator[str]:
    """Stand before the server at ``url``; gives the host and port, to be asked with HTTP's basic authentication."""
    wanted = "Basic " + b64encode(f"{user}:{password}".encode()).decode()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != wanted:
            return web.Response(status=401, text="who are you?")
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        body = await request.read()
        async with session.request(
            request.method, f"{url}{request.path_qs}", data=body, headers=headers
        ) as reply:
            passed = web.StreamResponse(status=reply.status, headers={"content-type": reply.content_type})
            await passed.prepare(request)
            async for part in reply.content.iter_any():
                await passed.write(part)
            return passed

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    sock = listen("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        await web.SockSite(runner, sock).start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            await runner.cleanup()


@contextmanager
def guarding(url: str, user: str, password: str) -> Iterator[str]:
    """:func:`guarded`, in a thread of its own."""
    found: list[str] = []
    up, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with guarded(url, user, password) as place:
            found.append(place)
            up.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert up.wait(10)
    try:
        yield found[0]
    finally:
        over.set()
        thread.join()
