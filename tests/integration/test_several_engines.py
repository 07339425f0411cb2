"""A stack with several engines and two bases: all attached, each a process that behaves as vLLM does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.commands import tenon
from support.ports import free_port
from support.stack import until

from deploy import stack
from deploy.net import answers, get_json
from deploy.serving import split_alias
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.base import identify_base, resolve_model

Launch = Callable[[str], "tuple[str, subprocess.Popen[bytes]]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts engines of a base; returns URL and process."""
    running: list[subprocess.Popen[bytes]] = []

    def start(base: str) -> "tuple[str, subprocess.Popen[bytes]]":
        port = free_port()
        command = [sys.executable, "-m", "serve.engine.fake", "--port", str(port), "--model", base]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: answers(f"http://127.0.0.1:{port}/health"), 30)
        return f"http://127.0.0.1:{port}", running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    stack.down(tmp_path / "home")


def ask(url: str, model: str, text: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def weights_of(alias: str, url: str) -> dict[str, int]:
    told = get_json(f"{url}/api/status")["aliases"]
    return next(dict(one["weights"]) for one in told if one["name"] == alias)


def other_base(folder: Path, byte: bytes = b"\x01") -> Path:
    """A base of another digest: the built-in one, but for one byte of its weights."""
    shutil.copytree(resolve_model("tenon-tiny"), folder)
    with (folder / "model.safetensors").open("r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(8 + header)
        file.write(byte)
    return folder


def test_two_bases_three_engines_and_a_canary(home: Path, launch: Launch, tmp_path: Path) -> None:
    second = other_base(tmp_path / "second")
    (one, _), (two, doomed), (three, _) = launch("tenon-tiny"), launch("tenon-tiny"), launch("second")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(f"- model: {second}\n  urls: [{three}]\n  max_loras: 2\n")
    settings = Settings.read(home=home, port=free_port(), engine_url=f"{one}, {two}", fleet=fleet)
    now, _ = stack.up(settings, lambda _: None)
    url = str(now.url)
    assert sorted(now.engines) == ["engine", "engine-2", "second"]
    assert (now.healthy, now.base) == (True, "tenon-tiny, second")

    bases = [identify_base(settings.model), identify_base(str(second))]
    with Registry.of(settings) as registry:
        for seed, (name, base) in enumerate(
            [("support", bases[0]), ("support", bases[0]), ("ticket", bases[1])]
        ):
            registry.register(write_adapter(tmp_path / str(seed), base, seed=seed), name, base, max_rank=64)
        canary = {VersionRef("support", 1): 3, VersionRef("support", 2): 1}
        for name, weights in (("support", canary), ("ticket", {VersionRef("ticket", 1): 1})):
            split_alias(registry, settings, name, weights, force=True, say=lambda _: None)
        held = {(row.engine, str(row.ref)): str(row.state) for row in registry.loaded()}
    assert held == {
        ("engine", "support@v1"): "ready",
        ("engine", "support@v2"): "ready",
        ("engine-2", "support@v1"): "ready",
        ("engine-2", "support@v2"): "ready",
        ("second", "ticket@v1"): "ready",
    }
    first = {number: ask(url, "support", f"talk {number}").headers["x-tenon-version"] for number in range(30)}
    assert set(first.values()) == {"support@v1", "support@v2"}
    assert [get_json(f"{engine}/_fake/stats")["by_model"] != {} for engine in (one, two, three)] == [True] * 3
    assert ask(url, "ticket", "x").json()["model"] == "ticket@v1"
    assert ask(url, "second", "x").json()["model"] == "second"
    listed = json.loads(tenon(home, "adapters", "list", "support", "--json").stdout)
    assert [row["shares"] for row in listed] == [{"support": "75 %"}, {"support": "25 %"}]
    assert "support (25 %)" in tenon(home, "adapters", "list").stdout

    questions = tmp_path / "questions.csv"
    rows = [f"message {number},{'ab'[number % 2]}" for number in range(12)]
    questions.write_text("\n".join(["text,label", *rows]))
    third = identify_base(str(other_base(tmp_path / "third", b"\x02")))
    with Registry.of(settings) as registry:
        for seed, base in enumerate([third, bases[0]]):
            registry.register(
                write_adapter(tmp_path / f"m{seed}", base, seed=seed), "moved", base, max_rank=64
            )
        registry.set_alias("moved", "moved@v1", forced=True)
    for version, base in (("ticket@v1", "second"), ("moved@v2", "tenon-tiny")):
        done = tenon(home, "eval", version, "--data", str(questions), "--json")
        assert done.returncode == 3, done.stderr
        assert [arm["model"] for arm in json.loads(done.stdout)["arms"]] == [base, version]
    assert "not asked, as it cannot answer: moved@v1" in done.stderr
    with Registry.of(settings) as registry:
        assert registry.evaluations("moved@v2")[-1].result["gate"]["silent"] == "moved@v1"
        done = tenon(home, "eval", "moved@v2", "--data", str(questions), "--limit", "8", "--json")
        assert (done.returncode, len(json.loads(done.stdout)["questions"])) == (3, 8)
        evidence = [each.result["gate"]["evidence"] for each in registry.evaluations("moved@v2")]
        assert evidence == [True, False]

    doomed.kill()
    replies = [ask(url, "support", f"talk {number}") for number in range(30)]
    assert {answer.status_code for answer in replies} == {200}
    assert {number: answer.headers["x-tenon-version"] for number, answer in enumerate(replies)} == first
    until(lambda: not status(home).engines["engine-2"].running)
    until(lambda: status(home).engines["second"].running)
    done = tenon(home, "deploy", "support@v2", "support@v1=5", "--force", "--json")
    assert json.loads(done.stdout)["weights"] == {"support@v2": 95, "support@v1": 5}, done.stderr
    until(lambda: weights_of("support", url)["support@v2"] == 95)
    assert tenon(home, "status").returncode == 5
    assert tenon(home, "down").returncode == 0
    assert status(home).down
    assert httpx.get(f"{one}/health").status_code == 200


def test_an_engine_that_is_not_there_keeps_nobody_from_coming_up_and_is_forgotten(
    home: Path, launch: Launch
) -> None:
    alive, _ = launch("tenon-tiny")
    nobody = f"http://127.0.0.1:{free_port()}"
    port = str(free_port())
    done = tenon(home, "up", "--detach", "--port", port, "--engine-url", f"{alive},{nobody}")
    assert done.returncode == 0, done.stderr
    wanted = {"engine": "running", "engine-2": "down"}
    until(lambda: {name: part.state for name, part in status(home).engines.items()} == wanted)
    assert ask(str(status(home).url), "tenon-tiny", "x").status_code == 200
    tenon(home, "down")
    with Registry.open(home) as registry:  # as if it had been there once
        registry.set_loaded("engine-2", {})
        registry.see_engine("engine-2", nobody, "tenon-tiny", "ready")
    assert tenon(home, "up", "--detach", "--port", port, "--engine-url", alive).returncode == 0
    assert list(status(home).engines) == ["engine"]
