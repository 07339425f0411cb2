"""A home with adapters, one key and an engine that is said to be ready; and a gateway that serves it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from evalsuite.load.adapters import write_adapter
from evalsuite.load.machine import child
from serve.engine.limits import EngineLimits
from serve.engine.spec import RANKS
from serve.engine.state import FIRST, EngineState, record_file
from serve.errors import Unavailable
from serve.net import free_port
from serve.records import read_json, write_json
from serve.registry import Registry, Version
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
    folder = write_adapter(home / "made" / ADAPTER, small_base())
    [version], key = deploy(home, small_base(), {ADAPTER: folder})
    return House(home, ADAPTER, version.engine_name, key)


def deploy(home: Path, base: BaseIdentity, folders: Mapping[str, Path]) -> tuple[list[Version], str]:
    """Register adapters, each behind an alias of its name, and say that the engine holds them; and make a key."""
    with Registry.open(home) as registry:
        versions = [
            registry.register(folder, name, base, max_rank=RANKS[-1]) for name, folder in folders.items()
        ]
        for version in versions:
            registry.want(version.ref)
        registry.set_loaded(FIRST, {str(version.ref): ("ready", "") for version in versions})
        for version in versions:
            registry.set_alias(version.ref.name, version.ref)
        key = registry.create_key("bench").secret
    return versions, key


def tell_engine(
    home: Path,
    url: str,
    *,
    base_name: str = BASE,
    max_model_len: int = 1024,
    limits: EngineLimits | None = None,
) -> None:
    """Write the record of an engine that is ready, as the controller would."""
    known = asdict(limits) if limits is not None else {}
    state = EngineState(url=url, base_name=base_name, max_model_len=max_model_len, **known)
    write_json(record_file(home / "run", FIRST), state.but(state="ready").to_json())


@contextlib.contextmanager
def gateway(home: Path, *, cores: set[int] | None = None) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """A gateway process of the home, which listens, and its URL; raises Unavailable with its log's end."""
    log, record = home / "gateway.log", home / "run" / "gateway.json"
    record.unlink(missing_ok=True)  # of one that was killed
    command = [sys.executable, "-m", "serve.gateway", "--home", str(home)]
    command += ["--host", "127.0.0.1", "--port", str(free_port("127.0.0.1"))]
    with child(command, log, cores=cores) as process:
        deadline = time.monotonic() + START_SECONDS
        while not record.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"the gateway did not start: {log.read_text()[-2000:]}", f"see {log}")
            time.sleep(0.05)
        yield process, str(read_json(record)["url"])
