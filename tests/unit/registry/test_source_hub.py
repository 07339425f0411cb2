"""Adapters from the hub: huggingface_hub's own code against a stand-in for its server, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_samples import write_adapter
from source_servers import COMMIT, WebServer, add_repository, endless, running, sending, status

from serve.registry.store import FILES, WEIGHTS

FETCHER = [sys.executable, str(Path(__file__).with_name("source_fetcher.py"))]
ROOT = Path(__file__).parents[3]
MIB = 2**20


@pytest.fixture
def hub() -> Iterator[WebServer]:
    with running() as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_adapter(tmp_path / "lora")
    return {name: (folder / name).read_bytes() for name in FILES}


def fetch(hub: WebServer | None, tmp_path: Path, source: str, **environment: str) -> dict[str, Any]:
    """What came of it; nothing may be left in the home, and nothing in the hub's own cache."""
    limits = json.dumps({"weights_bytes": MIB, "seconds": 20, "connect": 5, "stall": 5})
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    command = [*FETCHER, str(tmp_path / "home"), source, limits]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [path for path in (tmp_path / "home").rglob("*") if path.name != "downloads"] == []
    assert [path for path in (tmp_path / "hf").rglob(WEIGHTS)] == []
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_exactly_two_files_of_the_commit_are_fetched(
    hub: WebServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    extra = {"README.md": b"#", "training_args.bin": b"pickle", "evil.py": b"x"}
    add_repository(hub, "org/lora", {**files, **extra}, revisions=("main", "v1"))
    found = fetch(hub, tmp_path, "hf://org/lora@v1", HF_TOKEN="hf_geheim")
    assert found["origin"] == f"hf://org/lora@{COMMIT}"
    assert found["sizes"] == {name: len(content) for name, content in files.items()}
    assert {line.split(" ")[1] for line in hub.seen} == {
        "/api/models/org/lora/revision/v1",
        *(f"/org/lora/resolve/{COMMIT}/{name}" for name in FILES),
    }
    assert "geheim" not in json.dumps(found)


def test_a_folder_of_a_repository(hub: WebServer, files: dict[str, bytes], tmp_path: Path) -> None:
    add_repository(hub, "org/lora", {f"step-10/{name}": content for name, content in files.items()})
    found = fetch(hub, tmp_path, "hf://org/lora@main/step-10")
    assert found["origin"] == f"hf://org/lora@{COMMIT}/step-10"
    assert found["sizes"].keys() == set(FILES)


def test_what_is_announced_above_the_limit_is_not_read(
    hub: WebServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    add_repository(hub, "org/lora", {**files, WEIGHTS: b"x" * (MIB + 1)})
    found = fetch(hub, tmp_path, "org/lora")
    assert (found["code"], "at most 1.0 MiB" in found["message"]) == ("adapter_rejected", True)
    assert hub.seen == ["GET /api/models/org/lora"]


def test_a_hub_that_sends_more_than_it_announced(
    hub: WebServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    add_repository(hub, "org/lora", files)
    place = f"/org/lora/resolve/{COMMIT}/{WEIGHTS}"
    polite = hub.routes[place]
    hub.routes[place] = lambda request: (polite if request.command == "HEAD" else endless())(request)
    found = fetch(hub, tmp_path, "org/lora")
    assert found["code"] == "adapter_rejected"
    assert "more than 1.0 MiB" in found["message"]


def test_a_file_that_comes_short(hub: WebServer, files: dict[str, bytes], tmp_path: Path) -> None:
    add_repository(hub, "org/lora", files)
    place = f"/org/lora/resolve/{COMMIT}/{WEIGHTS}"
    polite, short = hub.routes[place], sending(files[WEIGHTS][:100])
    hub.routes[place] = lambda request: (polite if request.command == "HEAD" else short)(request)
    assert fetch(hub, tmp_path, "org/lora")["code"] == "source_unavailable"


def test_a_pickle_is_refused_unread(hub: WebServer, files: dict[str, bytes], tmp_path: Path) -> None:
    add_repository(
        hub, "org/lora", {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"x"}
    )
    found = fetch(hub, tmp_path, "org/lora")
    assert "only adapter_model.bin, a pickle" in found["message"]
    assert "safe_serialization=True" in found["hint"]
    assert hub.seen == ["GET /api/models/org/lora"]


def test_a_repository_without_an_adapter(hub: WebServer, tmp_path: Path) -> None:
    add_repository(hub, "org/model", {"config.json": b"{}", "model.safetensors": b"x"})
    assert "has no adapter_config.json" in fetch(hub, tmp_path, "org/model")["message"]


@pytest.mark.parametrize(
    ("code", "reason", "kind", "said"),
    [
        (404, "RepoNotFound", "invalid_source", "the hub has no hf://org/lora"),
        (404, "RevisionNotFound", "invalid_source", "no such revision"),
        (403, "GatedRepo", "invalid_source", "is gated"),
        (500, "", "source_unavailable", "did not deliver"),
    ],
)
def test_what_the_hub_refuses(
    hub: WebServer, tmp_path: Path, code: int, reason: str, kind: str, said: str
) -> None:
    hub.routes["/api/models/org/lora"] = sending(b"{}", code, X_Error_Code=reason)
    found = fetch(hub, tmp_path, "org/lora")
    assert (found["code"], said in found["message"]) == (kind, True)
    assert found["hint"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_that_cannot_be_reached(tmp_path: Path, offline: str) -> None:
    found = fetch(None, tmp_path, "org/lora", HF_HUB_OFFLINE=offline)
    assert found["code"] == "source_unavailable"
    assert "cannot be reached" in found["message"]


def test_files_that_go_while_they_are_fetched(
    hub: WebServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    add_repository(hub, "org/lora", files)
    hub.routes[f"/org/lora/resolve/{COMMIT}/{WEIGHTS}"] = status(404)
    assert fetch(hub, tmp_path, "org/lora")["code"] == "source_unavailable"
