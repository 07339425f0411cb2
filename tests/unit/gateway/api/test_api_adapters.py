"""Versions over HTTP: reading, registering, removing."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from api_harness import Api, running_api
from unit.registry.registry_samples import write_base
from unit.registry.source_servers import Behaviour, running, sending

from evalsuite.load.adapters import write_adapter
from serve.gateway.api.management import MAX_REGISTRATIONS
from serve.registry import Registry
from serve.registry.base import identify_base
from serve.registry.serving import Serving

BASE = identify_base("tenon-tiny")


def allowed(api: Api, name: str = "mine", **options: object) -> Path:
    """An adapter below the folder that the operator allows."""
    return write_adapter(api.bench.home.parent / "allowed" / name, BASE, **options)  # type: ignore[arg-type]


async def test_versions_are_listed_with_aliases_states_and_the_engines_words(api: Api) -> None:
    version = await api.bench.deploy()
    other = api.bench.register("other")
    api.bench.set_state(other, "failed", f"no memory for {other.path}")
    listed = await api.ask("GET", "/api/adapters")
    rows = {row["version"]: row for row in listed.content["adapters"]}
    assert rows["support@v1"]["aliases"] == ["support"]
    assert rows["support@v1"]["digest"] == version.digest
    assert [state["state"] for state in rows["support@v1"]["engines"]] == ["ready"]
    failed = rows["other@v1"]["engines"][0]
    assert (failed["state"], failed["reason"]) == ("failed", f"no memory for {other.engine_name}")
    shown = await api.ask("GET", "/api/adapters/support@v1")
    assert shown.content["source"] == "folder"
    assert str(api.bench.home) not in str(shown.content)
    assert shown.content.items() >= rows["support@v1"].items()


async def test_what_is_no_version(api: Api) -> None:
    assert (await api.ask("GET", "/api/adapters/support@v9")).code == "version_not_found"
    for path in ("support", "support@v0", "Support@v1", "a%00b@v1"):
        wrong = await api.ask("GET", f"/api/adapters/{path}")
        assert (wrong.status, wrong.code) == (400, "invalid_request")
    assert (await api.ask("GET", "/api/adapters/a%2Fb@v1")).status == 404


async def test_an_adapter_is_registered_from_a_web_server(api: Api, tmp_path: Path) -> None:
    secret = api.key("shop", "adapters")
    with running() as server:
        url = server.serve_folder(write_adapter(tmp_path / "made", BASE), at="/My-LoRA/")
        added = await api.ask("POST", "/api/adapters", {"source": url}, secret)
        named = await api.ask("POST", "/api/adapters", {"source": url, "name": "other"}, secret)
    assert (added.status, added.content["version"]) == (201, "my-lora@v1")
    assert added.headers["location"] == "/api/adapters/my-lora@v1"
    assert added.content["source"].startswith(f"{url}#adapter_config.json=")
    assert added.content["registered_by"] == "shop"
    assert named.content["version"] == "other@v1"
    assert api.registry.version("my-lora@v1").lineage.by == "shop"
    assert list((api.bench.home / "downloads").iterdir()) == []


async def test_a_folder_is_taken_only_below_the_one_that_is_allowed(api: Api, tmp_path: Path) -> None:
    folder = allowed(api)
    write_adapter(tmp_path / "outside", BASE)
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "outside")
    answers = {
        source: await api.ask("POST", "/api/adapters", {"source": source})
        for source in (
            "../outside",
            "./link",
            str(tmp_path / "outside"),
            "/etc",
            "/nowhere",
            "./missing",
            ".",
            "~/x",
        )
    }
    assert {answer.status for answer in answers.values()} == {400}
    # What is there and may not be read is told from what is not there by nothing.
    assert len({answer.message for answer in answers.values()}) == 1
    assert (await api.ask("POST", "/api/adapters", {"source": "./mine"})).content["version"] == "mine@v1"
    again = await api.ask("POST", "/api/adapters", {"source": str(folder), "name": "again"})
    assert (again.status, again.content["source"]) == (201, "folder")


async def test_no_folder_is_taken_unless_the_operator_says_so(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "made", BASE)
    async with running_api(tmp_path / "home", "tenon-tiny") as api:
        for source in (str(folder), "/nowhere", "./made", "file:///etc"):
            refused = await api.ask("POST", "/api/adapters", {"source": source, "name": "x"})
            assert (refused.status, refused.code) == (400, "invalid_source")
        assert api.registry.versions() == []


async def test_the_base_is_one_that_is_served(api: Api, tmp_path: Path) -> None:
    allowed(api)
    other = write_base(tmp_path / "narrow", width=24)
    api.bench.tell_engine(base_name="other", base_path=str(other))
    source = {"source": "./mine"}
    wrong = await api.ask("POST", "/api/adapters", {**source, "base": "other"})
    assert (wrong.code, "other" in wrong.message) == ("adapter_rejected", True)
    absent = await api.ask("POST", "/api/adapters", {**source, "base": str(other)[:64]})
    assert (absent.status, absent.code) == (404, "not_found")
    api.bench.tell_engine(base_name="called-so", base_path=str(BASE.path))
    added = await api.ask("POST", "/api/adapters", {**source, "base": "called-so"})
    assert (added.status, added.content["base"]) == (201, "called-so")


async def test_what_a_base_is_served_for_is_in_its_engines_record(api: Api) -> None:
    folder = allowed(api)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "FEATURE_EXTRACTION"}))
    api.bench.tell_engine(base_name="writes", base_path=str(BASE.path))
    refused = await api.ask("POST", "/api/adapters", {"source": "./mine", "base": "writes"})
    assert (refused.code, "generates text here" in refused.message) == ("adapter_rejected", True)
    api.bench.tell_engine(base_name="reads", base_path=str(BASE.path), serving=Serving("embed"))
    added = await api.ask("POST", "/api/adapters", {"source": "./mine", "base": "reads"})
    assert (added.status, added.content["base"]) == (201, "reads")


async def test_a_hub_id_is_no_folder_of_the_gateway(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_adapter(tmp_path / "org" / "name", BASE)
    monkeypatch.chdir(tmp_path)
    refused = await api.ask("POST", "/api/adapters", {"source": "org/name"})
    assert refused.status in (400, 503)
    assert "hf://org/name" in refused.message
    assert api.registry.versions() == []


async def test_only_so_many_at_once_and_the_rest_of_the_gateway_answers(api: Api, tmp_path: Path) -> None:
    with running() as server:
        folder = write_adapter(tmp_path / "made", BASE)
        started, go_on = threading.Semaphore(0), threading.Event()
        for number in range(MAX_REGISTRATIONS):
            server.serve_folder(folder, at=f"/a{number}/")
            config = sending((folder / "adapter_config.json").read_bytes())

            def waiting(request: BaseHTTPRequestHandler, config: Behaviour = config) -> None:
                started.release()
                go_on.wait(20)
                config(request)

            server.routes[f"/a{number}/adapter_config.json"] = waiting
        slow = [
            asyncio.create_task(api.ask("POST", "/api/adapters", {"source": f"{server.url}/a{number}/"}))
            for number in range(MAX_REGISTRATIONS)
        ]
        for _ in slow:
            await asyncio.to_thread(started.acquire, timeout=10)
        refused = await api.ask("POST", "/api/adapters", {"source": f"{server.url}/a0/", "name": "more"})
        assert (refused.status, refused.code) == (503, "overloaded")
        assert (await api.ask("GET", "/healthz")).status == 200
        assert not any(task.done() for task in slow)
        go_on.set()
        assert [(await task).status for task in slow] == [201, 201]
    assert (await api.ask("POST", "/api/adapters", {"source": str(allowed(api))})).status == 201


async def test_a_version_that_is_needed_stays(api: Api) -> None:
    await api.bench.deploy()
    await api.bench.deploy()
    await api.bench.deploy()
    for version, status in (("support@v3", 409), ("support@v2", 409), ("support@v1", 204)):
        gone = await api.ask("DELETE", f"/api/adapters/{version}")
        assert gone.status == status
        assert status == 204 or gone.code == "version_in_use"
    assert (await api.ask("DELETE", "/api/adapters/support@v1")).status == 404
    assert [str(version.ref) for version in api.registry.versions()] == ["support@v2", "support@v3"]


async def test_a_registry_that_is_broken_is_unavailable(api: Api) -> None:
    api.broken = True
    api.registry.close()
    for path in api.bench.home.glob("registry.db*"):
        path.write_bytes(b"garbage" * 1000)
    broken = await api.ask("GET", "/api/adapters")
    assert (broken.status, broken.code) == (503, "storage_error")
    assert str(api.bench.home) not in broken.message


async def test_bodies_are_checked_before_anything_else(api: Api) -> None:
    for body, status, code in (
        (b"{", 400, "invalid_request"),
        (b"[1]", 400, "invalid_request"),
        (b'{"source": NaN}', 400, "invalid_request"),
        (b'{"source": "\\ud800"}', 400, "invalid_request"),
        (b'{"source": ' + b'{"a":' * 100 + b"1" + b"}" * 101, 400, "invalid_request"),
        (b'{"source": "x", "path": "/etc"}', 400, "invalid_request"),
        (b"{}", 400, "invalid_request"),
        (b"", 400, "invalid_request"),
        (b'{"source": "' + b"x" * 2**20 + b'"}', 413, "request_too_large"),
        (b'{"source": "x", "name": "../x"}', 400, "invalid_request"),
    ):
        answer = await api.ask("POST", "/api/adapters", body)
        assert (answer.status, answer.code) == (status, code), body[:40]
    text = {"content-type": "text/plain"}
    async with api.bench.http.post("/api/adapters", data=b'{"source": "x"}', headers=text) as reply:
        assert reply.status == 415


def registry_is_as_it_was(registry: Registry, home: Path) -> bool:
    """Whether nothing is registered and no file lies about."""
    left = [path for folder in ("adapters", "downloads") for path in (home / folder).glob("*")]
    return registry.versions() == [] and left == []
