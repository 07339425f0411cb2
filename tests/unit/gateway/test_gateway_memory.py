"""A gateway in a process of its own keeps its size whatever is thrown at it."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from gateway_harness import MESSAGES
from test_gateway_attacks import BODIES
from test_gateway_process import running

from serve.engine.fake import FakeEngine
from serve.engine.state import EngineState
from serve.records import write_json

MOST = 64 * 2**20
"""Growth of resident memory that the whole hostile set may cause, in bytes."""
GIB = 2**30
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"

AMPLIFIED = (
    b"[" * 10**6,
    b"[" * 10**6 + b"]" * 10**6,
    b"[" + b"[]," * 10**6 + b"[]]",
    b"[" + b"0," * 4 * 10**6 + b"0]",
)
"""Texts of a few MiB whose values would take many times as much."""


class Target:
    """Where the gateway listens, and what it weighs."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.port = record["port"]
        self._process = psutil.Process(record["pid"])

    @property
    def bytes(self) -> int:
        return int(self._process.memory_info().rss)

    async def send(self, head: str, pieces: Any = (), *, end: str = "\r\n\r\n") -> bytes:
        """Send a head and pieces of a body, to the end or until the gateway cuts; return what it said."""

        def speak() -> bytes:
            # Not by asyncio, which on a failed write throws away what was said before the cut.
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall((head + end).encode())
                    for piece in pieces:
                        connection.sendall(piece)
                with contextlib.suppress(ConnectionError):
                    return connection.recv(2**16)
            return b""

        return await asyncio.to_thread(speak)

    async def post(self, body: bytes) -> bytes:
        return await self.send(f"{HEAD}connection: close\r\ncontent-length: {len(body)}", [body])


def pieces(count: int, size: int = 2**20) -> Any:
    piece = b" " * size
    return (piece for _ in range(count))


def chunks(count: int, size: int = 2**20) -> Any:
    piece = b"%x\r\n" % size + b" " * size + b"\r\n"
    return (piece for _ in range(count))


@pytest.mark.timeout(300)
async def test_the_whole_hostile_set(tmp_path: Path) -> None:
    async with FakeEngine() as engine:
        state = EngineState(url=engine.url, base_name=engine.base_name)
        write_json(tmp_path / "run" / "engine.json", state.but(state="ready").to_json())
        async with running(tmp_path) as (_, record):
            target = Target(record)
            good = orjson.dumps({"model": "base", "messages": MESSAGES})
            for _ in range(50):
                assert b"200 OK" in await target.post(good)
            asked, before = sum(engine.stats.paths.values()), target.bytes
            await throw_everything(target)
            grown = target.bytes - before
            assert sum(engine.stats.paths.values()) == asked, "no engine is asked"
            assert grown <= MOST, f"grew by {grown >> 20} MiB"
            assert b"200 OK" in await target.post(good)


async def throw_everything(target: Target) -> None:
    for bodies in BODIES.values():
        for body in bodies:
            assert b"HTTP/1.1 4" in await target.post(json.dumps(body).encode())
    for body in AMPLIFIED:
        assert b"HTTP/1.1 4" in await target.post(body)
    # A gibibyte: announced, announced as ten bytes, and not announced at all.
    assert b"413" in await target.send(f"{HEAD}content-length: {GIB}", pieces(1024))
    await target.send(f"{HEAD}content-length: 10", pieces(1024))
    assert b"413" in await target.send(f"{HEAD}transfer-encoding: chunked", chunks(1024))
    # A head of 64 MiB, and of a million headers.
    many = (b"x: y\r\n" * 1000 for _ in range(1000))
    assert b"431" in await target.send(
        "GET / HTTP/1.1\r\nhost: x\r\nx: y", (b"y" * 2**20 for _ in range(64)), end=""
    )
    assert b"431" in await target.send("GET / HTTP/1.1\r\nhost: x", many, end="\r\n")
    # Two hundred clients that send one byte and wait.
    slow = [asyncio.open_connection("127.0.0.1", target.port) for _ in range(200)]
    connections = await asyncio.gather(*slow)
    for _, writer in connections:
        writer.write(f"{HEAD}content-length: 33554432\r\n\r\n{{".encode())
    await asyncio.sleep(0.5)
    for _, writer in connections:
        writer.close()
    await asyncio.sleep(0.5)
