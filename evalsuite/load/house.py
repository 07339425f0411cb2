"""A home with one adapter, one key and an engine that is said to be ready; and a gateway that serves it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evalsuite.load.adapters import write_adapter
from evalsuite.load.machine import child
from serve.engine.state import EngineState
from serve.errors import Unavailable
from serve.net import listen
from serve.records import read_json, write_json
from serve.registry import Registry
from serve.registry.base import BaseIdentity

BASE = "base"
ADAPTER = "support"
START_SECONDS = 30.0


@dataclass(frozen=True)
class House:
    """What a client of the home must know: the name to ask for and the key; the engine's name for the adapter."""

    home: Path
    model: str
    engine_name: str
    key: str


def small_base() -> BaseIdentity:
    """A base of one linear layer; engines without a model need no files of it."""
    return BaseIdentity(
        name=BASE,
        path=Path("/nowhere"),
        digest="0" * 64,
        architecture="Qwen3ForCausalLM",
        shapes={"model.layers.0.self_attn.q_proj.weight": (16, 16)},
        max_length=1024,
        vocab_size=64,
    )


def furnish(home: Path) -> House:
    """Make the home: a registered adapter, said to be loaded, behind an alias, and a key without limits."""
    with Registry.open(home) as registry:
        folder = write_adapter(home / "made" / ADAPTER, small_base())
        version = registry.register(folder, ADAPTER, small_base(), max_rank=64)
        registry.want(version.ref)
        registry.set_loaded("engine", {str(version.ref): ("ready", "")})
        registry.set_alias(ADAPTER, version.ref)
        key = registry.create_key("bench").secret
    return House(home, ADAPTER, version.engine_name, key)


def tell_engine(home: Path, url: str) -> None:
    """Write the record of an engine that is ready, as the controller would."""
    state = EngineState(url=url, base_name=BASE, max_model_len=1024)
    write_json(home / "run" / "engine.json", state.but(state="ready").to_json())


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with listen("127.0.0.1", 0) as sock:
        port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def gateway(home: Path, *, cores: set[int] | None = None) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """A gateway process of the home, which listens, and its URL; raises Unavailable with its log's end."""
    log = home / "gateway.log"
    command = [sys.executable, "-m", "serve.gateway", "--home", str(home)]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    with child(command, log, cores=cores) as process:
        record, deadline = home / "run" / "gateway.json", time.monotonic() + START_SECONDS
        while not record.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"the gateway did not start: {log.read_text()[-2000:]}", f"see {log}")
            time.sleep(0.05)
        yield process, str(read_json(record)["url"])
