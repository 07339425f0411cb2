"""Attacks by an adapter's files, 17 to 23 of the list that this project tests, through ``POST /api/adapters``.

Each is answered by a typed 4xx that names what is wrong; store, registry and engine stay as they were.
"""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_harness import Answer, Api
from safetensors.numpy import load_file, save_file
from unit.registry.source_servers import endless, redirecting, running, sending

from evalsuite.load.adapters import write_adapter
from serve.registry.base import identify_base
from serve.registry.store import CONFIG, WEIGHTS

BASE = identify_base("tenon-tiny")
Spoil = Callable[[Path], None]


def configured(**change: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**content, **change}))

    return spoil


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def coded(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit")


def linked(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "real")
    (folder / WEIGHTS).symlink_to(folder.parent / "real")


def piped(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def raw_weights(header: bytes, data: bytes = b"", length: int | None = None) -> Spoil:
    def spoil(folder: Path) -> None:
        size = len(header) if length is None else length
        (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + header + data)

    return spoil


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folder / WEIGHTS)


def of_another_base(folder: Path) -> None:
    narrow = {name: (shape[0] + 8, *shape[1:]) for name, shape in BASE.shapes.items()}
    write_adapter(folder, type(BASE)(**{**vars(BASE), "shapes": narrow}))


def many_entries() -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"t{number}": entry for number in range(100_000)}).encode()


ATTACKS: dict[str, tuple[Spoil, str]] = {
    "17 pickle": (pickled, "a pickle"),
    "18 code": (coded, "modeling_evil.py is code"),
    "18 auto_map": (configured(auto_map={"AutoModel": "evil.py"}), "code"),
    "19 link": (linked, "symbolic link"),
    "19 pipe": (piped, "not a regular file"),
    "19 device": (device, "symbolic link"),
    "20 huge header": (raw_weights(b"{}", length=2**63), "header"),
    "20 many entries": (raw_weights(many_entries()), "header"),
    "20 overflowing shape": (
        raw_weights(
            b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}', b"xxxx"
        ),
        "does not need",
    ),
    "20 truncated": (truncated, "truncated"),
    "20 NaN": (not_finite, "NaN"),
    "21 r 0": (configured(r=0), "r is 0"),
    "21 r -1": (configured(r=-1), "r is -1"),
    "21 r huge": (configured(r=10**6), "rank 1000000"),
    "21 r text": (configured(r="8"), "r is '8'"),
    "21 DoRA": (configured(use_dora=True), "DoRA"),
    "21 modules": (configured(modules_to_save=["lm_head"]), "modules_to_save"),
    "21 regex": (configured(rank_pattern={"(a+)+": 4}), "pattern"),
    "21 other base": (of_another_base, "base"),
}


def untouched(api: Api) -> bool:
    """Whether no file, version or want came of it, and the engine was asked for nothing."""
    home = api.bench.home
    left = [path for folder in ("adapters", "downloads") for path in (home / folder).glob("*")]
    return left == [] and api.registry.versions() == [] and api.bench.engine.adapters == {}


async def post(api: Api, source: str) -> Answer:
    return await api.ask("POST", "/api/adapters", {"source": source, "name": "bad"})


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_adapter_that_attacks(api: Api, tmp_path: Path, attack: str) -> None:
    spoil, said = ATTACKS[attack]
    spoil(write_adapter(tmp_path / "allowed" / "bad", BASE))
    refused = await post(api, "./bad")
    assert (refused.status, refused.code) == (400, "adapter_rejected")
    assert said in refused.message
    assert untouched(api)


async def test_17_to_19_from_a_web_server(api: Api, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "made", BASE)
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "../../evil")
    with running() as server:
        url = server.serve_folder(folder, at="/pickle/")
        server.routes["/pickle/adapter_model.bin"] = sending(b"\x80\x04.")
        del server.routes[f"/pickle/{WEIGHTS}"]
        assert "a pickle" in (await post(api, url)).message
        assert not any("GET /pickle/adapter_model.bin" in seen for seen in server.seen)
        server.routes["/made.tar.gz"] = sending(archive.read_bytes())
        refused = await post(api, f"{server.url}/made.tar.gz")
        assert (refused.code, "archives are not taken" in refused.message) == ("invalid_source", True)
        assert untouched(api)


async def test_20_more_bytes_than_are_taken(api: Api, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "made", BASE)
    with running() as server:
        url = server.serve_folder(folder)
        server.routes[f"/lora/{CONFIG}"] = endless(b" " * 2**16)
        refused = await post(api, url)
        assert (refused.status, refused.code) == (400, "adapter_rejected")
        server.serve_folder(folder)
        server.routes[f"/lora/{WEIGHTS}"] = sending(b"x", announced=2**40)
        assert "TENON_MAX_ADAPTER_MIB" in (await post(api, url)).message
        server.routes[f"/lora/{WEIGHTS}"] = sending(b"xx", announced=100)
        broken = await post(api, url)
        assert (broken.status, broken.code) == (503, "source_unavailable")
        assert untouched(api)


async def test_sources_inside_the_network(api: Api) -> None:
    with running() as server:
        server.routes[f"/lora/{CONFIG}"] = redirecting("http://169.254.169.254/latest/meta-data/")
        for source in (
            "http://169.254.169.254/latest/",
            "http://[fd00:ec2::254]/x/",
            f"{server.url}/lora/",
            "http://0.0.0.0/x/",
            "http://user:secret@169.254.169.254/x/",
            "file:///etc/passwd",
            "ftp://host/x",
            "http://host\\@127.0.0.1/x/",
            "hf://../../etc",
            "s3://bucket/../x",
        ):
            refused = await post(api, source)
            assert (refused.status, refused.code) == (400, "invalid_source"), source
            assert "secret" not in refused.message
    assert untouched(api)


async def test_21_the_base_that_an_adapter_names_is_not_looked_for(api: Api, tmp_path: Path) -> None:
    notes = []
    for name in ("there", "never"):
        hint = tmp_path / name / "some-model"
        if name == "there":
            hint.mkdir(parents=True)
        folder = write_adapter(tmp_path / "allowed" / name, BASE)
        configured(base_model_name_or_path=str(hint))(folder)
        added = await api.ask("POST", "/api/adapters", {"source": f"./{name}"})
        assert added.status == 201
        notes.append([warning.replace(name, "?") for warning in added.content["warnings"]])
    assert notes[0] == notes[1]


async def test_22_files_that_change_after_approval(api: Api, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "allowed" / "good", BASE)
    added = await api.ask("POST", "/api/adapters", {"source": "./good"})
    pickled(folder)
    (folder / CONFIG).write_text("{}")
    assert api.registry.verify(added.content["version"]).rank == added.content["rank"]


async def test_23_an_alias_waits_for_the_engines_own_proof(api: Api, tmp_path: Path) -> None:
    write_adapter(tmp_path / "allowed" / "good", BASE)
    version = (await api.ask("POST", "/api/adapters", {"source": "./good"})).content
    # The engine says that it has it; that is no probe, so that nobody is sent there.
    api.bench.engine.adapters[version["engine_name"]] = "somewhere"
    body = {"target": version["version"], "force": True, "wait": 0}
    pending = await api.ask("PUT", "/api/aliases/good", body)
    assert (pending.status, api.registry.alias("good")) == (202, None)
    api.bench.set_state(api.registry.version(version["version"]), "failed", "it answers exactly as the base")
    refused = await api.ask("PUT", "/api/aliases/good", body)
    assert (refused.status, "answers exactly as the base" in refused.message) == (503, True)
    assert api.registry.alias("good") is None
