"""``tenon adapters add SOURCE`` as a user runs it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_samples import write_adapter, write_base
from source_servers import WebServer, endless, running
from support.commands import TENON, cause_and_hint, environment, files_below, tenon

from serve.registry.store import FILES, WEIGHTS

ROOT = str(Path(__file__).parents[3])
PRIVATE = {"TENON_ALLOW_PRIVATE_SOURCES": "1"}


@pytest.fixture
def server() -> Iterator[WebServer]:
    with running() as server:
        yield server


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(write_base(tmp_path / "tiny"))


def test_a_source_becomes_a_version(server: WebServer, base: str, tmp_path: Path) -> None:
    url = server.serve_folder(write_adapter(tmp_path / "out"), at="/My-LoRA/")
    add = ("adapters", "add", url, "--model", base)
    done = tenon(tmp_path / "home", *add, "--allow-private-hosts", PYTHONPATH=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Registered my-lora@v1" in done.stdout
    assert url in done.stdout
    again = tenon(tmp_path / "home", *add, "--name", "other", "--json", PYTHONPATH=ROOT, **PRIVATE)
    found = json.loads(again.stdout)
    assert found["version"] == "other@v1"
    assert found["source"].startswith(f"{url}#adapter_config.json=")
    shown = tenon(tmp_path / "home", "adapters", "show", "my-lora@v1", "--json", PYTHONPATH=ROOT)
    assert json.loads(shown.stdout)["source"] == found["source"]
    assert len(server.seen) == 2 * len(FILES)


def test_refusals_say_the_way_out(server: WebServer, base: str, tmp_path: Path) -> None:
    url = server.serve_folder(write_adapter(tmp_path / "out"))
    done = tenon(tmp_path / "home", "adapters", "add", url, "--model", base, PYTHONPATH=ROOT)
    assert done.returncode == 2
    cause, hint = cause_and_hint(done)
    assert "127.0.0.1 is an address of this machine" in cause
    assert "--allow-private-hosts" in hint
    big = tenon(
        tmp_path / "home", "adapters", "add", url, "--model", base, "--name", "x", PYTHONPATH=ROOT,
        TENON_MAX_ADAPTER_MIB="0",
    )  # fmt: skip
    assert (big.returncode, "max_adapter_mib" in big.stderr) == (2, True)
    wrong = tenon(tmp_path / "home", "adapters", "add", "ftp://host/x", "--model", base, PYTHONPATH=ROOT)
    assert "ftp://" in cause_and_hint(wrong)[0]
    assert server.seen == []


def test_a_refused_adapter_is_called_by_its_source(server: WebServer, base: str, tmp_path: Path) -> None:
    url = server.serve_folder(write_adapter(tmp_path / "out", use_dora=True))
    done = tenon(tmp_path / "home", "adapters", "add", url, "--model", base, PYTHONPATH=ROOT, **PRIVATE)
    error = done.stderr.splitlines()[0]
    assert (done.returncode, f"the adapter in {url} is refused: uses DoRA" in error) == (2, True)
    assert list((tmp_path / "home" / "downloads").iterdir()) == []


def test_control_c_during_a_download_leaves_nothing(server: WebServer, base: str, tmp_path: Path) -> None:
    url = server.serve_folder(write_adapter(tmp_path / "out"))
    server.routes[f"/lora/{WEIGHTS}"] = endless(b"x", pause=0.05)
    home = tmp_path / "home"
    with subprocess.Popen(
        [*TENON, "adapters", "add", url, "--model", base],
        env=environment(home, PYTHONPATH=ROOT, **PRIVATE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        while len(server.seen) < 2 and command.poll() is None:
            time.sleep(0.02)
        os.kill(command.pid, signal.SIGINT)
        assert command.wait(20) == 130
    assert all(name.startswith("registry.") for name in files_below(home))
    assert list((home / "downloads").iterdir()) == []
