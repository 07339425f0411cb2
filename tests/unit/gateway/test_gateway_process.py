"""The gateway as a process: its record, its exit codes, and how it ends."""

import asyncio
import os
import signal
import socket
import stat
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from gateway_harness import MESSAGES, running_bench, until
from support.ports import free_port
from support.postgres import Cluster

from serve.engine.fake import FakeEngine
from serve.engine.state import EngineState
from serve.gateway.command import main
from serve.operator import operator_secret
from serve.records import ProcessIdentity, write_json
from serve.registry import Registry, Rights


async def start(home: Path, *options: str, **variables: str) -> Process:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TENON_")} | variables
    command = [sys.executable, "-m", "serve.gateway", "--home", str(home), "--host", "127.0.0.1", *options]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environ)


@asynccontextmanager
async def running(
    home: Path, *options: str, **variables: str
) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    process = await start(home, "--port", str(free_port()), *options, **variables)
    record = home / "run" / "gateway.json"
    try:
        await until(lambda: record.exists() or process.returncode is not None, 20)
        assert process.returncode is None, (await process.communicate())[1].decode()
        yield process, orjson.loads(record.read_bytes())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_record_says_where_it_listens_and_goes_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as (process, record):
        assert record["pid"] == process.pid
        assert ProcessIdentity.read(record) == ProcessIdentity.of(process.pid)
        assert record["url"] == f"http://{record['host']}:{record['port']}"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{record['url']}/healthz") as reply:
                assert reply.status == 200
            for path, status in (("healthz", 200), ("readyz", 503)):
                async with http.head(f"{record['url']}/{path}") as reply:
                    assert (reply.status, await reply.read()) == (status, b"")
                    assert int(reply.headers["content-length"]) > 0
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not (tmp_path / "run" / "gateway.json").exists()


async def test_a_port_that_is_taken_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await start(tmp_path, "--port", str(port))
        _, errors = await process.communicate()
    assert process.returncode == 4
    assert errors.decode().count("\n") == 1
    assert f"port {port}" in errors.decode()


Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, home: Path, host: str = "127.0.0.1") -> tuple[int, list[str]]:
    """The exit code and the lines on stderr of a start, in this process, that comes to nothing."""
    code = main(["--home", str(home), "--host", host, "--port", str(free_port())])
    return code, capsys.readouterr().err.splitlines()


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    code, lines = refused(capsys, tmp_path / "file")
    assert (code, len(lines)) == (7, 1)


async def test_a_record_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "gateway.json" / "in the way").mkdir(parents=True)
    process = await start(tmp_path, "--port", str(free_port()))
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 7
    assert "gateway.json cannot be written" in errors.decode().splitlines()[-1]


async def test_running_streams_are_finished_after_sigterm(tmp_path: Path) -> None:
    async with FakeEngine(seconds_per_token=0.05) as engine:
        state = EngineState("ready", url=engine.url, base_name="base")
        write_json(tmp_path / "run" / "engine.json", state.to_json())
        async with running(tmp_path) as (process, record), aiohttp.ClientSession(record["url"]) as http:

            async def stream() -> str:
                body = {"model": "base", "messages": MESSAGES * 3, "stream": True}
                async with http.post("/v1/chat/completions", json=body) as reply:
                    return await reply.text()

            streams = [asyncio.create_task(stream()) for _ in range(20)]
            await until(lambda: engine.stats.running == 20)
            process.send_signal(signal.SIGTERM)
            for text in await asyncio.gather(*streams):
                assert text.endswith("data: [DONE]\n\n")
            assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_what_was_used_is_written_at_the_end(tmp_path: Path) -> None:
    async with FakeEngine() as engine:
        state = EngineState("ready", url=engine.url, base_name="base")
        write_json(tmp_path / "run" / "engine.json", state.to_json())
        async with running(tmp_path) as (process, record), aiohttp.ClientSession(record["url"]) as http:
            for _ in range(3):
                async with http.post(
                    "/v1/chat/completions", json={"model": "base", "messages": MESSAGES}
                ) as reply:
                    assert reply.status == 200
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
    with Registry.open(tmp_path) as registry:
        (used,) = registry.usage()
    assert (used.requests, used.prompt_tokens, used.adapter) == (3, 9, "base")
    assert used.engine_seconds > 0


async def test_after_the_deadline_streams_end_with_an_error(tmp_path: Path) -> None:
    async with running_bench(tmp_path / "home") as bench:
        bench.server.config.timeout_graceful_shutdown = 1
        bench.engine.seconds_per_token = 0.5
        running_stream = asyncio.create_task(
            bench.stream(model="base", messages=[{"role": "user", "content": "x " * 99}])
        )
        await until(lambda: bench.engine.stats.tokens > 0)
        bench.server.should_exit = True
        events = await asyncio.wait_for(running_stream, 10)
    assert "[DONE]" not in events
    assert "shutting down" in events.strip().split("\n\n")[-1]


async def test_it_follows_a_registry_in_postgresql(cluster: Cluster, tmp_path: Path) -> None:
    url = cluster.create()
    async with running(tmp_path, TENON_DATABASE_URL=url) as (_, record), aiohttp.ClientSession() as http:
        with Registry.open(tmp_path, url) as registry:
            registry.create_key("shop")

        for _ in range(200):
            async with http.get(f"{record['url']}/healthz") as reply:
                revision = (await reply.json())["revision"]
            if revision == 1:
                break
            await asyncio.sleep(0.05)
        assert revision == 1
    assert not (tmp_path / "registry.db").exists()


def test_presets_that_cannot_be_read_are_one_line_and_exit_code_2(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "presets.yaml").write_text("a: {temperature: 9}")
    code, lines = refused(capsys, tmp_path)
    assert code == 2
    assert lines[-1].startswith("gateway: ")
    assert "presets.yaml: a: temperature" in lines[-1]


async def test_without_keys_it_listens_on_the_loopback_address_only(tmp_path: Path, capsys: Capture) -> None:
    code, lines = refused(capsys, tmp_path, host="0.0.0.0")
    assert code == 2
    assert "tenon keys create" in lines[-1]
    with Registry.open(tmp_path) as registry:
        secret = registry.create_key("shop", Rights(scopes=("admin",))).secret
    async with running(tmp_path, "--host", "0.0.0.0") as (_, record):
        with Registry.open(tmp_path) as registry:
            registry.revoke_key("shop")
            revision = registry.revision()
        operator = operator_secret(tmp_path / "run")
        async with aiohttp.ClientSession(record["url"]) as http:
            for given, status in ((secret, 401), ("", 401), (operator, 200)):
                headers = {"authorization": f"Bearer {given}"}
                while True:
                    async with http.get("/healthz") as reply:
                        if (await reply.json())["revision"] >= revision:
                            break
                async with http.get("/metrics", headers=headers) as reply:
                    assert reply.status == status
    assert operator_secret(tmp_path / "run") == operator, "it was killed"


async def test_the_operators_key_comes_and_goes_with_the_process(tmp_path: Path) -> None:
    async with running(tmp_path, TENON_OPEN_METRICS="true") as (process, record):
        path = tmp_path / "run" / "operator.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Registry.open(tmp_path) as registry:
            registry.create_key("shop")
        async with aiohttp.ClientSession(record["url"]) as http:
            for _ in range(100):
                async with http.get("/v1/models") as reply:
                    if reply.status == 401:
                        break
                await asyncio.sleep(0.02)
            assert reply.status == 401
            async with http.get("/metrics") as reply:
                assert reply.status == 200
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not path.exists()


def test_prices_that_cannot_be_read_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text("default: {promt: 1}")
    monkeypatch.setenv("TENON_PRICES", str(tmp_path / "prices.yaml"))
    code, lines = refused(capsys, tmp_path)
    assert code == 2
    assert "did you mean prompt?" in lines[-1]
