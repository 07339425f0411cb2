"""Keys in a whole stack with a fake engine: from none to the first, the commands' own requests, usage and the end."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import cause_and_hint, tenon
from support.ports import free_port

from deploy import stack
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.registry.base import identify_base


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    stack.down(tmp_path / "home")


def ask(url: str, secret: str = "none") -> int:
    body = {"model": "tenon-tiny", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 4}
    headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def soon(true: object, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_life_of_keys(home: Path, fake_engine: str, tmp_path: Path) -> None:
    refused = tenon(home, "up", "--detach", "--host", "0.0.0.0", "--engine-url", fake_engine)
    assert refused.returncode == 2
    assert "tenon keys create" in cause_and_hint(refused)[1]

    done = tenon(home, "up", "--detach", "--port", str(free_port()), "--engine-url", fake_engine)
    assert done.returncode == 0, done.stderr
    assert "no keys: loopback only" in done.stdout
    assert "no keys: loopback only" in (home / "logs" / "gateway.log").read_text()
    url = str(status(home).url)
    assert ask(url) == 200
    operator = home / "run" / "operator.key"
    assert operator.stat().st_mode & 0o777 == 0o600

    key = json.loads(tenon(home, "keys", "create", "shop", "--json").stdout)
    soon(lambda: ask(url) == 401)
    assert ask(url, key["secret"]) == 200
    assert tenon(home, "status").returncode == 0

    # The commands' own requests go on: they load, wait for and question a version through the gateway.
    folder = write_adapter(tmp_path / "adapter", identify_base("tenon-tiny"), seed=1)
    assert tenon(home, "adapters", "add", str(folder), "--name", "support").returncode == 0
    questions = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(40)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    judged = tenon(home, "eval", "support@v1", "--data", str(questions))
    assert "refuses the key" not in judged.stderr
    assert judged.returncode in (0, 3), judged.stderr
    assert tenon(home, "deploy", "support@v1", "--force").returncode == 0

    def used() -> dict[str | None, int]:
        rows = json.loads(tenon(home, "usage", "--json").stdout)["rows"]
        return {row["name"]: row["requests"] for row in rows}

    soon(lambda: used().get("shop") == 1)
    own = urllib.request.Request(f"{url}/api/usage", headers={"authorization": f"Bearer {key['secret']}"})
    with urllib.request.urlopen(own, timeout=10) as response:
        told = json.loads(response.read())
    assert [row["requests"] for row in told["rows"]] == [1], "a key sees its own use, and no other's"
    # What came without a key, and the operator's; gateways write what was used every few seconds.
    soon(lambda: used().get(None, 0) >= 1 + 2 * 40)
    tenon(home, "keys", "revoke", "shop")
    soon(lambda: ask(url, key["secret"]) == 401)
    assert ask(url) == 401, "the end of the last key opens nothing"
    stack.down(home)
    assert not operator.exists()
