"""The engine of canned answers on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evalsuite.load.upstream import Pace, Upstream


@asynccontextmanager
async def canned(pause: float = 0.0) -> AsyncIterator[str]:
    """Its URL, while the block runs."""
    pace = Pace(pause)
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(pace), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
