"""The shipped fake engine, with a note of when each request began and when its client was seen to be gone."""

import asyncio
import time
from typing import Any

from aiohttp import web

from serve.engine.fake import FakeEngine
from serve.engine.fake_http import json_body


def question(number: int, words: int) -> list[dict[str, Any]]:
    """The messages of a request whose number the witness reads; the answer has ``words`` tokens and a few more."""
    return [{"role": "user", "content": f"{number} " + "x " * words}]


class Witness(FakeEngine):
    """``began`` and ``gone`` are times (``perf_counter``) by the number that a request's question starts with."""

    def __init__(self, engine_name: str, seconds_per_token: float = 0.0) -> None:
        super().__init__([engine_name], seconds_per_token=seconds_per_token)
        self.began: dict[int, float] = {}
        self.gone: dict[int, float] = {}

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        number = int((await json_body(request))["messages"][-1]["content"].split()[0])
        self.began[number] = time.perf_counter()
        try:
            return await super()._generate(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone[number] = time.perf_counter()
            raise
        finally:
            self.bodies.clear()  # thousands of requests need not be kept


async def until(true: Any, seconds: float) -> bool:
    """Wait until ``true()`` is; whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True
