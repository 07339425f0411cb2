"""A real gateway on a real port, in front of a fake engine and a real registry."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import openai

from evalsuite.load.adapters import write_adapter
from evalsuite.load.house import small_base
from serve.engine.fake import FakeEngine
from serve.engine.state import EngineState
from serve.engine.supervisor import Supervisor
from serve.engine.watcher import Watcher
from serve.gateway.api.management import Management
from serve.gateway.app import Gateway
from serve.gateway.counters import Counters
from serve.gateway.server import GatewayServer, listen
from serve.gateway.source import RouteSource
from serve.records import write_json
from serve.registry import Registry, Version
from serve.registry.base import BaseIdentity

ENGINE = "engine"
Keeper = TypeVar("Keeper", Supervisor, Watcher)
MESSAGES: Any = [{"role": "user", "content": "one two three"}]


async def hang_up(engine: FakeEngine, asking: Coroutine[Any, Any, Any], after: float = 0.0) -> None:
    """Ask, and hang up ``after`` seconds from when the engine has the request; returns when it has let go."""
    task = asyncio.ensure_future(asking)
    await until(lambda: engine.stats.running == 1)
    await asyncio.sleep(after)
    assert task.cancel(), "the answer came first"
    await asyncio.wait([task])
    await until(lambda: engine.stats.running == 0)


async def until(true: Any, seconds: float = 30.0) -> None:
    """Wait until ``true()`` is."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for happens in other processes and threads too
            await asyncio.sleep(0.01)


@asynccontextmanager
async def kept(keeper: Keeper) -> AsyncIterator[Keeper]:
    """Let what looks after an engine run meanwhile."""
    stop = asyncio.Event()
    task = asyncio.create_task(keeper.run(stop))
    try:
        yield keeper
    finally:
        stop.set()
        await task


@dataclass
class Bench:
    """Everything a test needs to speak to the gateway and to change the world behind it."""

    home: Path
    registry: Registry
    engine: FakeEngine
    source: RouteSource
    server: GatewayServer
    gateway: Gateway
    client: openai.AsyncOpenAI
    http: aiohttp.ClientSession
    base: BaseIdentity = field(default_factory=small_base)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)

    def register(self, name: str = "support") -> Version:
        """A new version, not loaded; each has other weights."""
        count = len(self.registry.versions())
        folder = write_adapter(self.home / "made" / str(count), self.base, seed=count)
        return self.registry.register(folder, name, self.base, max_rank=64)

    def set_state(self, version: Version, state: str, reason: str = "") -> None:
        """What the controller would write of the engine; only ``ready`` means that the engine has it."""
        self.states[str(version.ref)] = (state, reason)
        if state == "ready":
            self.engine.adapters[version.engine_name] = str(version.path)
        self.registry.set_loaded(ENGINE, self.states)

    async def deploy(self, name: str = "support", sampling: Mapping[str, Any] | None = None) -> Version:
        """Register a new version, make it ready, point the alias at it, and wait for the gateway."""
        version = self.register(name)
        self.registry.want(version.ref)
        self.set_state(version, "ready")
        self.registry.set_alias(name, version.ref, sampling=sampling)
        await self.follow()
        return version

    async def follow(self) -> None:
        """Wait until the gateway routes by what the registry says now."""
        revision = self.registry.revision()
        await until(lambda: self.source.table.revision >= revision)

    def tell_engine(self, **changes: Any) -> None:
        """Write ``run/engine.json`` as the controller would."""
        state = EngineState(url=self.engine.url, base_name=self.engine.base_name)
        write_json(self.home / "run" / "engine.json", state.but(**{"state": "ready", **changes}).to_json())

    async def post(self, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any, Mapping[str, str]]:
        """Send raw JSON or bytes; return status, decoded answer and headers."""
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self.http.post(path, headers={"content-type": "application/json"}, data=data) as reply:
            return reply.status, await reply.json(), reply.headers

    async def stream(self, **body: Any) -> str:
        """Stream a chat and return the raw events."""
        body = {"model": "support", "messages": MESSAGES, "stream": True, **body}
        async with self.http.post("/v1/chat/completions", json=body) as reply:
            return await reply.text()

    async def metrics(self) -> dict[str, float]:
        """The samples of ``/metrics`` by name and labels as written."""
        async with self.http.get("/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return {key: float(value) for key, _, value in (x.rpartition(" ") for x in lines if x[0] != "#")}


Manage = Callable[[Registry, RouteSource], Management]


@asynccontextmanager
async def running_bench(
    home: Path, counters: Counters | None = None, manage: Manage | None = None
) -> AsyncIterator[Bench]:
    """A gateway that serves ``base`` and nothing else yet."""
    (home / "run").mkdir(parents=True)
    registry = Registry.open(home)
    source = RouteSource(registry, home / "run" / "engine.json")
    sock = listen("127.0.0.1", 0)
    management = manage(registry, source) if manage is not None else None
    gateway = Gateway(source, counters=counters, management=management)
    server = GatewayServer(gateway, sock, home / "run" / "gateway.json")
    async with (
        FakeEngine() as engine,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        aiohttp.ClientSession(server.url) as http,
    ):
        bench = Bench(home, registry, engine, source, server, gateway, client, http)
        bench.tell_engine()
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        try:
            yield bench
        finally:
            server.should_exit = True
            await serving
            registry.close()
