"""The management API of a stack that `tenon up` started: from a folder to an answer without a command."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.commands import tenon
from support.ports import free_port
from support.stack import RunningStack, until

from deploy import stack as stacks
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.registry.base import identify_base

ROOT = str(Path(__file__).parents[2])
ASK = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 8}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    stacks.down(tmp_path / "home")


def test_from_a_folder_to_an_answer(home: Path, tmp_path: Path, fake_engine: str) -> None:
    write_adapter(tmp_path / "allowed" / "greeter", identify_base("tenon-tiny"))
    up = ("up", "--detach", "--port", str(free_port()), "--engine-url", fake_engine)
    done = tenon(home, *up, PYTHONPATH=ROOT, TENON_API_ADAPTER_FOLDER=str(tmp_path / "allowed"))
    assert done.returncode == 0, done.stderr
    with httpx.Client(base_url=str(status(home).url), timeout=60) as client:
        added = client.post("/api/adapters", json={"source": "./greeter"})
        assert (added.status_code, added.json()["version"]) == (201, "greeter@v1")
        moved = client.put("/api/aliases/greeter", json={"target": "greeter@v1", "force": True})
        assert (moved.status_code, moved.json()["target"]) == (200, "greeter@v1")
        answer = client.post("/v1/chat/completions", json={"model": "greeter", **ASK})
        assert (answer.status_code, answer.json()["model"]) == (200, "greeter@v1")
        engines = client.get("/api/engines").json()["engines"]
        assert [(row["base"], row["state"]) for row in engines] == [("tenon-tiny", "ready")]
        made = client.post("/api/keys", json={"name": "boss", "scopes": ["admin", "inference"]})
        assert made.status_code == 201
        secret = {"authorization": f"Bearer {made.json()['secret']}"}
        until(lambda: client.get("/api/keys").status_code == 401)
        assert client.get("/api/keys", headers=secret).json()["keys"][0]["name"] == "boss"
        assert client.delete("/api/adapters/greeter@v1", headers=secret).status_code == 409
        gone = tenon(home, "aliases", "remove", "greeter")
        assert gone.returncode == 0, gone.stderr
        body = {"model": "greeter", **ASK}
        absent = client.post("/v1/chat/completions", json=body, headers=secret)
        assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")
        assert client.delete("/api/adapters/greeter@v1", headers=secret).status_code == 204


def test_an_alias_moves_and_comes_back_on_the_real_engine(stack: RunningStack) -> None:
    first, second = stack.add("managed", seed=71), stack.add("managed", seed=72)
    with httpx.Client(base_url=stack.url, timeout=90) as client:
        for version in (first, second):
            body = {"target": str(version.ref), "force": True, "wait": 60}
            moved = client.put("/api/aliases/managed", json=body)
            assert (moved.status_code, moved.json()["target"]) == (200, str(version.ref)), moved.text
            answer = client.post("/v1/chat/completions", json={"model": "managed", **ASK})
            assert answer.json()["model"] == str(version.ref)
        back = client.post("/api/aliases/managed/rollback")
        assert (back.status_code, back.json()["target"]) == (200, str(first.ref))
        answer = client.post("/v1/chat/completions", json={"model": "managed", **ASK})
        assert answer.json()["model"] == str(first.ref)
