"""An attached engine whose address holds a password: requests are sent with it, and nothing shows it."""

import asyncio
import json
import logging
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
from gateway_harness import MESSAGES, Bench, until
from support.guarded import guarded

from deploy.status import engine_part
from serve.engine.state import access_file, address_in, forget
from serve.engine.supervisor import Supervisor
from serve.records import read_json

USER, PASSWORD = "tenon", "s3cret/€:@"
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), "s3cret")


@asynccontextmanager
async def attached(bench: Bench, url: str) -> AsyncIterator[Supervisor]:
    """A supervisor that looks after the engine at ``url`` while the block runs."""
    record = bench.home / "run" / "engine.json"
    supervisor = Supervisor(
        bench.registry, bench.base, state_file=record, log_file=bench.home / "logs" / "x.log", engine_url=url
    )
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    try:
        yield supervisor
    finally:
        stop.set()
        await running


def shows_nothing(*texts: str) -> bool:
    return not any(secret in text for text in texts for secret in SECRETS)


async def test_requests_are_sent_with_the_password_and_nothing_shows_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    record = bench.home / "run" / "engine.json"
    async with guarded(bench.engine.url, USER, PASSWORD) as place:
        url = f"http://{USER}:{quote(PASSWORD, safe='')}@{place}"
        async with attached(bench, url) as supervisor:
            await until(lambda: bench.source.table.usable and bench.source.table.engine.url == url)  # type: ignore[union-attr]
            bench.registry.set_alias("support", bench.register().ref)
            await until(lambda: "support" in bench.source.table.routes)
            status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES})
            assert (status, answer["model"]) == (200, "support@v1")
            assert "support@v1" in await bench.stream()
            async with bench.http.get("/api/status") as reply:
                told = await reply.json()
            assert told["engine"]["url"] == f"http://{place}"
            part = await asyncio.to_thread(engine_part, record)
            assert (part.state, part.detail) == ("running", f"attached to http://{place}")
            assert read_json(record)["url"] == f"http://{place}"
            assert address_in(record, read_json(record)) == url
            assert stat.S_IMODE(access_file(record).stat().st_mode) == 0o600
            texts = [json.dumps(told), record.read_text(), caplog.text, str(part), str(supervisor.state)]
            assert shows_nothing(*texts, str(bench.source.table.engine))
    forget(record)
    assert list((bench.home / "run").glob("engine*")) == []


async def test_a_wrong_password_is_not_told_with_the_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    record = bench.home / "run" / "engine.json"
    async with (
        guarded(bench.engine.url, USER, "another") as place,
        attached(bench, f"http://{USER}:s3cret@{place}"),
    ):
        await until(lambda: "who are you?" in read_json(record).get("error", ""))
        assert place in read_json(record)["error"]
        assert shows_nothing(record.read_text(), caplog.text)
    async with attached(bench, f"http://{USER}:s3cret@{place}"):  # nobody is there any more
        await until(lambda: "does not answer" in read_json(record).get("error", ""))
        assert shows_nothing(record.read_text(), caplog.text)


async def test_without_a_password_no_file_is_left_that_holds_one(bench: Bench) -> None:
    record = bench.home / "run" / "engine.json"
    async with attached(bench, f"http://{USER}:s3cret@127.0.0.1:1"):
        await until(access_file(record).exists)
    async with attached(bench, bench.engine.url):
        await until(lambda: read_json(record)["url"] == bench.engine.url and bench.source.table.usable)
        assert not access_file(record).exists()
        assert (await bench.post({"model": "base", "messages": MESSAGES}))[0] == 200


async def test_a_record_of_older_code_is_used_and_does_not_show_its_password(bench: Bench) -> None:
    async with guarded(bench.engine.url, USER, "s3cret") as place:
        url = f"http://{USER}:s3cret@{place}"
        bench.tell_engine()
        record = bench.home / "run" / "engine.json"
        record.write_text(json.dumps({**read_json(record), "url": url}))
        await until(lambda: bench.source.table.engine.url == url)  # type: ignore[union-attr]
        assert (await bench.post({"model": "base", "messages": MESSAGES}))[0] == 200
        async with bench.http.get("/api/status") as reply:
            assert shows_nothing(await reply.text())
