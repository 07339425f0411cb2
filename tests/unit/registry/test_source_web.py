"""Adapters from web servers that behave, and from those that do not; real sockets throughout."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs

import psutil
import pytest
from registry_samples import write_adapter
from source_servers import (
    Behaviour,
    WebServer,
    endless,
    redirecting,
    running,
    sending,
    silent,
    slowly,
    status,
)

from serve.errors import AdapterRejected, SourceError, SourceUnavailable, StorageError, TenonError
from serve.registry import Lineage, Registry
from serve.registry.base import BaseIdentity
from serve.registry.sources import Limits, fetched
from serve.registry.sources.addresses import why_not
from serve.registry.store import CONFIG, FILES, WEIGHTS

LIMITS = Limits(weights_bytes=2**20, seconds=20, connect=5, stall=20, allow_private=True)
FETCHER = [sys.executable, str(Path(__file__).with_name("source_fetcher.py"))]
# The packages of this checkout, wherever another is installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.fixture
def server() -> Iterator[WebServer]:
    with running() as server:
        yield server


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "lora")


def leftovers(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.name != "downloads")


def refused(url: str, home: Path, kind: type[TenonError], limits: Limits = LIMITS) -> str:
    with pytest.raises(kind) as caught, fetched(url, home, limits):
        pytest.fail("it was fetched")
    assert caught.value.hint
    assert leftovers(home) == []
    return caught.value.message


def test_exactly_two_files_are_fetched_and_registered(
    server: WebServer, lora: Path, tmp_path: Path, base: BaseIdentity, registry: Registry
) -> None:
    url = server.serve_folder(lora)
    with fetched(url, registry.home, LIMITS) as found:
        assert sorted(path.name for path in found.folder.rglob("*")) == sorted(FILES)
        lineage = Lineage(source=found.origin)
        version = registry.register(found.folder, "web", base, max_rank=64, lineage=lineage)
    assert server.seen == [f"GET /lora/{name}" for name in FILES]
    sizes = [(lora / name).stat().st_size for name in FILES]
    etags = [f"{name}=%22etag-of-{size}%22" for name, size in zip(FILES, sizes, strict=True)]
    assert version.lineage.source == f"{url}#{'&'.join(etags)}"
    assert (version.path / WEIGHTS).read_bytes() == (lora / WEIGHTS).read_bytes()
    assert list((registry.home / "downloads").iterdir()) == []
    with fetched(version.lineage.source, tmp_path / "again", LIMITS) as again:
        assert again.origin == version.lineage.source


def test_credentials_are_sent_and_kept_nowhere(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora).replace("http://", "http://user:geheim@") + "?sig=geheim%2Fx"
    with fetched(url, tmp_path / "home", LIMITS) as found:
        assert "geheim" not in found.origin
        kept = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
        assert not any(b"geheim" in content for content in kept)
    assert all(headers["Authorization"] == "Basic dXNlcjpnZWhlaW0=" for headers in server.headers)
    assert [parse_qs(query) for query in server.queries] == [{"sig": ["geheim/x"]}] * 2


def test_credentials_do_not_follow_a_redirect_elsewhere(
    server: WebServer, lora: Path, tmp_path: Path
) -> None:
    with running() as other:
        target = other.serve_folder(lora)
        for name in FILES:
            server.routes[f"/lora/{name}"] = redirecting(f"{target}{name}")
        with fetched(
            f"{server.url.replace('//', '//user:geheim@')}/lora/", tmp_path / "home", LIMITS
        ) as found:
            assert found.origin.startswith(f"{server.url}/lora/#")
        assert not any("Authorization" in headers for headers in other.headers)
        assert all("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize("name", FILES)
def test_an_announced_size_above_the_limit_is_not_read(
    server: WebServer, lora: Path, tmp_path: Path, name: str
) -> None:
    url = server.serve_folder(lora)
    server.routes[f"/lora/{name}"] = endless(announced=2**31)
    assert name in refused(url, tmp_path / "home", AdapterRejected)


@pytest.mark.parametrize("name", FILES)
def test_an_endless_file_is_cut_at_the_limit(
    server: WebServer, lora: Path, tmp_path: Path, name: str
) -> None:
    url = server.serve_folder(lora)
    server.routes[f"/lora/{name}"] = endless()
    message = refused(url, tmp_path / "home", AdapterRejected)
    assert f"{name} of {url} is more than 1.0 MiB" in message


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        (sending(b"x" * 100, announced=200), SourceUnavailable, "broke off"),
        (silent, SourceUnavailable, "sent nothing for 0.5 seconds"),
        (status(503), SourceUnavailable, "cannot be had now"),
        (status(429), SourceUnavailable, "cannot be had now"),
        (status(404), AdapterRejected, "has no adapter_model.safetensors"),
        (status(401), SourceError, "not given to us"),
        (status(403), SourceError, "not given to us"),
        (status(204), SourceError, "HTTP 204"),
        (sending(b"x", 206), SourceError, "HTTP 206"),
        (sending(b"<html>", Content_Type="text/html"), SourceError, "web page"),
        (sending(b"x", Content_Encoding="gzip"), SourceError, "compressed"),
        (redirecting("/lora/adapter_model.safetensors"), SourceError, "more than 5 times"),
        (redirecting("https://127.0.0.1/x"), SourceError, "from http to https"),
        (redirecting("file:///etc/passwd"), SourceError, "from http to file"),
        (redirecting("ftp://127.0.0.1/x"), SourceError, "from http to ftp"),
        (redirecting("http://169.254.169.254/latest/meta-data"), SourceError, "169.254.169.254 is a link-local"),
        (redirecting("http://[::ffff:169.254.169.254]/"), SourceError, "169.254.169.254 is a link-local"),
        (redirecting("//"), SourceError, "redirects"),
        (redirecting(""), SourceError, "redirects"),
        (redirecting("http://[bad"), SourceError, "no URL"),
    ],
)  # fmt: skip
def test_servers_that_misbehave(
    server: WebServer, lora: Path, tmp_path: Path, behaviour: object, kind: type[TenonError], said: str
) -> None:
    url = server.serve_folder(lora)
    server.routes[f"/lora/{WEIGHTS}"] = behaviour  # type: ignore[assignment]
    limits = replace(LIMITS, stall=0.5) if behaviour is silent else LIMITS
    assert said in refused(url, tmp_path / "home", kind, limits)


def test_a_drip_ends_at_the_deadline(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    server.routes[f"/lora/{WEIGHTS}"] = endless(b"x", pause=0.05)
    began = time.monotonic()
    message = refused(url, tmp_path / "home", SourceUnavailable, replace(LIMITS, seconds=1))
    assert "in 1 seconds" in message
    assert time.monotonic() - began < 15


def test_a_pickle_is_asked_for_but_never_read(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    del server.routes[f"/lora/{WEIGHTS}"]
    server.routes["/lora/adapter_model.bin"] = sending(b"pickle")
    assert "only adapter_model.bin, a pickle" in refused(url, tmp_path / "home", AdapterRejected)
    assert server.seen[-1] == "HEAD /lora/adapter_model.bin"


def test_hosts_that_do_not_answer(tmp_path: Path, server: WebServer) -> None:
    assert "cannot be reached" in refused("http://127.0.0.1:1/a/", tmp_path / "home", SourceUnavailable)
    nowhere = "http://no-such-host.invalid/a/"
    assert "cannot be reached" in refused(nowhere, tmp_path / "home", SourceUnavailable)
    plain = server.url.replace("http:", "https:")
    refused(f"{plain}/a/", tmp_path / "home", SourceUnavailable)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "0x7f.1"]
)
def test_our_own_machine_is_not_asked_without_leave(server: WebServer, tmp_path: Path, host: str) -> None:
    port = server.server_address[1]
    strict = replace(LIMITS, allow_private=False)
    message = refused(f"http://{host}:{port}/lora/", tmp_path / "home", TenonError, strict)  # type: ignore[type-abstract]
    assert server.seen == []
    if host in ("127.0.0.1", "localhost", "[::1]"):
        assert "is an address of this machine or of a private network" in message


@pytest.mark.parametrize(
    ("address", "strict", "private"),
    [
        ("8.8.8.8", True, True),
        ("2606:4700::1111", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("172.16.0.1", False, True),
        ("192.168.1.1", False, True),
        ("100.64.0.1", False, True),
        ("::1", False, True),
        ("fd12::1", False, True),
        ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::7f00:1", False, True),
        ("2002:7f00:1::", False, True),
        ("169.254.169.254", False, False),
        ("fe80::1%eth0", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("fd00:ec2::254", False, False),
        ("100.100.100.200", False, False),
        ("224.0.0.1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
    ],
)
def test_which_addresses_are_asked(address: str, strict: bool, private: bool) -> None:
    assert (why_not(address, allow_private=False) is None) is strict
    assert (why_not(address, allow_private=True) is None) is private


def test_a_full_disk_says_so(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    home = tmp_path / "home"
    home.write_text("a file where a folder should be")
    with pytest.raises(StorageError), fetched(url, home, LIMITS):
        pass


def test_a_local_folder_has_limits_too(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "big")
    with (folder / WEIGHTS).open("ab") as file:
        file.truncate(2**21)
    refused(str(folder), tmp_path / "home", AdapterRejected)


def together(count: int, pids: Sequence[int], behaviour: Behaviour) -> Behaviour:
    """Behave so once as many download the same or wait for it: each of these has the file ``turn`` open."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        def inside() -> int:
            files = [file.path for pid in pids for file in psutil.Process(pid).open_files()]
            return sum(Path(path).name == "turn" for path in files)

        while inside() < count and not request.server.over.wait(0.02):  # type: ignore[attr-defined]
            pass
        behaviour(request)

    return behave


def test_threads_that_ask_at_once_share_one_download(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    server.routes[f"/lora/{CONFIG}"] = together(8, [os.getpid()], server.routes[f"/lora/{CONFIG}"])

    def fetch() -> bytes:
        with fetched(url, tmp_path / "home", LIMITS) as found:
            return (found.folder / WEIGHTS).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        results = {future.result() for future in [pool.submit(fetch) for _ in range(8)]}
    assert results == {(lora / WEIGHTS).read_bytes()}
    assert len(server.seen) == 2
    assert leftovers(tmp_path / "home") == []


def test_processes_that_ask_at_once_share_one_download(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    pids: list[int] = []
    server.routes[f"/lora/{CONFIG}"] = together(2, pids, server.routes[f"/lora/{CONFIG}"])
    limits = '{"allow_private": true}'
    command = [*FETCHER, str(tmp_path / "home"), url, limits]
    fetchers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)
    ]
    pids += [fetcher.pid for fetcher in fetchers]
    answers = [fetcher.communicate(timeout=60)[0] for fetcher in fetchers]
    assert answers[0] == answers[1]
    assert "etag-of" in answers[0]
    assert len(server.seen) == 2
    assert leftovers(tmp_path / "home") == []


def test_who_waited_for_a_failed_download_tries_again(server: WebServer, lora: Path, tmp_path: Path) -> None:
    url = server.serve_folder(lora)
    good, tries = server.routes[f"/lora/{WEIGHTS}"], []

    def first_fails(request: object) -> None:
        tries.append(1)
        (slowly(status(503), 0.3) if len(tries) == 1 else good)(request)  # type: ignore[arg-type]

    server.routes[f"/lora/{WEIGHTS}"] = first_fails

    def fetch() -> str:
        try:
            with fetched(url, tmp_path / "home", LIMITS):
                return "fetched"
        except SourceUnavailable:
            return "failed"

    with ThreadPoolExecutor(3) as pool:
        results = sorted(future.result() for future in [pool.submit(fetch) for _ in range(3)])
    assert results == ["failed", "fetched", "fetched"]
    assert leftovers(tmp_path / "home") == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing(
    server: WebServer, lora: Path, tmp_path: Path, how: signal.Signals
) -> None:
    url = server.serve_folder(lora)
    home = tmp_path / "home"
    good = server.routes[f"/lora/{WEIGHTS}"]
    server.routes[f"/lora/{WEIGHTS}"] = endless(b"x", pause=0.05)
    command = [*FETCHER, str(home), url, '{"allow_private": true}']
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as fetcher:
        while not (len(server.seen) > 1 and leftovers(home)) and fetcher.poll() is None:
            time.sleep(0.02)
        assert leftovers(home)
        os.kill(fetcher.pid, how)
        assert fetcher.wait(10) != 0
    if how == signal.SIGINT:
        assert leftovers(home) == []
    server.routes[f"/lora/{WEIGHTS}"] = good
    with fetched(url, home, LIMITS) as found:  # the next one sweeps what a killed process left
        assert (found.folder / WEIGHTS).read_bytes() == (lora / WEIGHTS).read_bytes()
    assert leftovers(home) == []
