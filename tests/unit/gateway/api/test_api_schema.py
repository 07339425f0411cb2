"""Every route of the control plane against its own description, by requests that fit it and requests that do not."""

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_harness import OPERATOR, Api, running_api

from evalsuite.load.adapters import write_adapter
from serve.registry import UsageDelta
from serve.registry.base import identify_base
from serve.registry.usage import today

AS_OPERATOR = {"authorization": f"Bearer {OPERATOR}"}
EXAMPLES = 12
"""Random requests for each route, beside those that schemathesis derives from each limit in the description."""
CONFIG = """
[checks.not_a_server_error]
# What cannot be had now is a 503, where the description says so; another check looks at that.
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[checks.positive_data_acceptance]
# A description cannot say which sources and sampling values there are.
enabled = false
"""


async def fill(api: Api) -> None:
    """Something of each noun, so that there is something to be found, changed and removed."""
    await api.bench.deploy("support")
    await api.bench.deploy("support")
    base = identify_base("tenon-tiny")
    write_adapter(api.bench.home.parent / "allowed" / "mine", base)
    api.key("boss", "admin", "adapters", "inference")
    api.key("shop", "inference", adapters=("support",), monthly_tokens=10**6)
    api.registry.add_usage([UsageDelta(today(), 1, "support", "support@v1", 1, 10, 10, 1.0)])
    await api.bench.follow()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that runs in a thread of its own while the tests of this module do."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "allowed").mkdir()
    found: list[str] = []
    up, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with running_api(folder / "home", "tenon-tiny", api_adapter_folder=folder / "allowed") as api:
            await fill(api)
            found.append(api.bench.server.url)
            up.set()
            await asyncio.to_thread(over.wait)

    with pytest.MonkeyPatch.context() as patch:
        # Random text may be a hub id, and no test asks the hub.
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        assert up.wait(30)
        yield found[0]
        over.set()
        thread.join()


def operations(url: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each route that the gateway tells of."""
    for path, methods in httpx.get(f"{url}/openapi.json", headers=AS_OPERATOR).json()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_no_request_is_answered_by_a_server_error(url: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {OPERATOR}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--seed", "7", "--generation-deterministic", "--no-shrink", "--request-timeout", "20"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    made = re.search(r"([0-9]+) generated, [0-9]+ passed", done.stdout)
    assert made is not None, done.stdout
    assert int(made[1]) > 300


def test_every_route_needs_a_key_but_those_that_tell_health(url: str) -> None:
    for method, path, _ in operations(url):
        filled = path.format(version="support@v1", name="support", key="shop")
        body = {"json": {}} if method in ("post", "put", "patch") else {}
        status = httpx.request(method, f"{url}{filled}", **body).status_code
        opened = path in ("/healthz", "/readyz")
        assert opened or status == 401, (method, path)


def test_the_description_names_the_errors_of_each_route(url: str) -> None:
    for method, path, operation in operations(url):
        answers = operation["responses"]
        assert "422" not in answers
        if path.startswith("/api/") and path != "/api/status":
            assert {"400", "401", "403", "429", "503"} <= answers.keys(), (method, path)
            assert "retry-after" in answers["503"]["headers"]
