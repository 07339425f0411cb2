"""Adapters from buckets: s3fs against moto's server, gcsfs against a stand-in for Google's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from registry_samples import write_adapter
from source_servers import GoogleStorage, WebServer, running

from serve.registry.store import CONFIG, FILES, WEIGHTS

FETCHER = [sys.executable, str(Path(__file__).with_name("source_fetcher.py"))]
ROOT = Path(__file__).parents[3]
MIB = 2**20


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_adapter(tmp_path / "lora")
    return {name: (folder / name).read_bytes() for name in FILES}


def put(endpoint: str, bucket: str, objects: dict[str, bytes], **more: Any) -> dict[str, str]:
    """Store objects and return their etags."""
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket=bucket)
    etags = {}
    for key, content in objects.items():
        etags[key] = client.put_object(Bucket=bucket, Key=key, Body=content, **more)["ETag"].strip('"')
    client.close()
    return etags


def fetch(tmp_path: Path, source: str, **environment: str) -> dict[str, Any]:
    """What came of it; nothing may be left in the home."""
    limits = json.dumps({"weights_bytes": MIB, "seconds": 20, "connect": 2, "stall": 5})
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_"))}
    settings = {**clean, "PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true", **environment}
    settings |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    command = [*FETCHER, str(tmp_path / "home"), source, limits]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [path for path in (tmp_path / "home").rglob("*") if path.name != "downloads"] == []
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def keys(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "schluessel",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def test_two_objects_are_fetched_with_their_etags(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    objects = {f"a/b/{name}": content for name, content in files.items()}
    etags = put(s3, "plain", {**objects, "a/b/optimizer.pt": b"x" * 2 * MIB})
    found = fetch(tmp_path, "s3://plain/a/b/", **keys(s3))
    stamps = "&".join(f"{name}={etags[f'a/b/{name}']}" for name in FILES)
    assert found == {
        "origin": f"s3://plain/a/b#{stamps}",
        "sizes": {name: len(content) for name, content in files.items()},
    }


def test_a_bucket_itself_may_be_the_folder(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    put(s3, "root", files)
    assert fetch(tmp_path, "s3://root", **keys(s3))["origin"].startswith(f"s3://root#{CONFIG}=")


def test_a_public_bucket_needs_no_keys(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    put(s3, "public", files, ACL="public-read")
    put(s3, "private", files)
    environment = {"AWS_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "us-east-1"}
    assert fetch(tmp_path, "s3://public", **environment)["origin"].startswith("s3://public#")
    found = fetch(tmp_path, "s3://private", **environment)
    assert (found["code"], "AWS_PROFILE" in found["hint"]) == ("invalid_source", True)


def test_too_large_an_object_is_not_read(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    put(s3, "large", {**files, WEIGHTS: b"x" * (MIB + 1)})
    found = fetch(tmp_path, "s3://large", **keys(s3))
    assert (found["code"], "at most 1.0 MiB" in found["message"]) == ("adapter_rejected", True)


def test_a_pickle_is_refused_unread(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    put(s3, "pickled", {f"x/{CONFIG}": files[CONFIG], "x/adapter_model.bin": b"x"})
    found = fetch(tmp_path, "s3://pickled/x", **keys(s3))
    assert "only adapter_model.bin, a pickle" in found["message"]


def test_what_is_not_there(s3: str, files: dict[str, bytes], tmp_path: Path) -> None:
    put(s3, "half", {CONFIG: files[CONFIG], f"{WEIGHTS}/nested": b"a folder of that name"})
    assert f"has no {WEIGHTS}" in fetch(tmp_path, "s3://half", **keys(s3))["message"]
    found = fetch(tmp_path, "s3://no-such-bucket/x", **keys(s3))
    assert found["code"] in ("adapter_rejected", "invalid_source")


def test_an_endpoint_that_does_not_answer(tmp_path: Path) -> None:
    found = fetch(tmp_path, "s3://plain/x", **keys("http://127.0.0.1:1"))
    assert found["code"] == "source_unavailable"
    assert "geheim" not in json.dumps(found)
    assert found["hint"]


@pytest.fixture
def google() -> Iterator[WebServer]:
    with running() as server:
        yield server


def test_google_cloud_storage(google: WebServer, files: dict[str, bytes], tmp_path: Path) -> None:
    GoogleStorage(google, "bucket", {f"a/b/{name}": content for name, content in files.items()})
    found = fetch(tmp_path, "gs://bucket/a/b", STORAGE_EMULATOR_HOST=google.url)
    assert found == {
        "origin": f"gs://bucket/a/b#{CONFIG}=1700000000000001&{WEIGHTS}=1700000000000001",
        "sizes": {name: len(content) for name, content in files.items()},
    }


def test_google_cloud_storage_without_the_weights(
    google: WebServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    GoogleStorage(google, "bucket", {f"a/{CONFIG}": files[CONFIG], "a/adapter_model.bin": b"x"})
    found = fetch(tmp_path, "gs://bucket/a", STORAGE_EMULATOR_HOST=google.url)
    assert "only adapter_model.bin, a pickle" in found["message"]


@pytest.mark.parametrize(("source", "extra"), [("s3://bucket/a", "s3"), ("gs://bucket/a", "gcs")])
def test_a_missing_library_is_named(tmp_path: Path, source: str, extra: str) -> None:
    for package in ("s3fs", "gcsfs"):
        (tmp_path / "without").mkdir(exist_ok=True)
        (tmp_path / "without" / f"{package}.py").write_text("raise ImportError")
    path = os.pathsep.join((str(tmp_path / "without"), str(ROOT)))
    found = fetch(tmp_path, source, PYTHONPATH=path)
    assert found["code"] == "invalid_config"
    assert f"tenon-llm[{extra}]" in found["hint"]
