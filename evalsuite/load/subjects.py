"""What ``make bench-gateway`` compares: our gateway, LiteLLM's proxy and vllm-router, each started for itself.

Each is kept to one core, asks for a key and counts for Prometheus. The others are not among our dependencies: they
run from an executable of an environment of their own, and are said to be absent where there is none.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evalsuite.load import house
from evalsuite.load.machine import child
from serve.net import free_port

KEY = "sk-bench-2f6c8d0a"
START_SECONDS = 180.0
"""What LiteLLM takes to import all it needs on a slow machine, and room."""


@dataclass(frozen=True)
class Running:
    """A proxy that runs: whom to ask, for what, with which key; ``note`` says what is special about it."""

    name: str
    version: str
    url: str
    process: "subprocess.Popen[bytes]"
    model: str
    key: str | None
    log: Path
    note: str = ""


Start = Callable[[str, Path, set[int]], contextlib.AbstractContextManager[Running]]
"""Starts a proxy in front of an engine's URL, with a folder for its files, on these cores."""


@contextlib.contextmanager
def tenon(upstream: str, folder: Path, cores: set[int]) -> Iterator[Running]:
    """Our gateway, asked for an alias of an adapter, so that every answer must be renamed."""
    made = house.furnish(folder)
    house.tell_engine(folder, upstream)
    with house.gateway(folder, cores=cores) as (process, url):
        version = importlib.metadata.version("tenon-llm")
        yield Running("tenon", version, url, process, made.model, made.key, folder / "gateway.log")


def litellm(executable: Path) -> Start:
    """LiteLLM's proxy with one worker; its key is the master key, as others need a database."""

    @contextlib.contextmanager
    def start(upstream: str, folder: Path, cores: set[int]) -> Iterator[Running]:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port("127.0.0.1")
        engine = {"model": f"openai/{house.ADAPTER}", "api_base": f"{upstream}/v1", "api_key": "none"}
        config = {  # YAML, of which JSON is a part
            "model_list": [{"model_name": house.ADAPTER, "litellm_params": engine}],
            "litellm_settings": {"callbacks": ["prometheus"]},
            "general_settings": {"master_key": KEY},
        }
        (folder / "litellm.yaml").write_text(json.dumps(config))
        command = [str(executable), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--num_workers", "1"]
        variables = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
        }
        variables["PATH"] = f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        log = folder / "litellm.log"
        with child(command, log, variables=variables, cores=cores) as process:
            yield Running(
                "LiteLLM proxy",
                version_of(executable, "litellm"),
                f"http://127.0.0.1:{port}",
                process,
                house.ADAPTER,
                KEY,
                log,
                "one worker; master key; prometheus callback",
            )

    return start


def vllm_router(executable: Path) -> Start:
    """vllm-router in front of one worker."""

    @contextlib.contextmanager
    def start(upstream: str, folder: Path, cores: set[int]) -> Iterator[Running]:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port("127.0.0.1")
        command = [str(executable), "--worker-urls", upstream, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--policy", "round_robin", "--api-key", KEY, "--log-level", "error"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port("127.0.0.1"))]
        log = folder / "vllm-router.log"
        with child(command, log, cores=cores) as process:
            yield Running(
                "vllm-router",
                version_of(executable, "vllm-router"),
                f"http://127.0.0.1:{port}",
                process,
                house.ADAPTER,
                KEY,
                log,
                "Rust; round robin; one key; knows no adapters",
            )

    return start


def executable_of(given: Path | None, name: str) -> Path | None:
    """The executable that was given, or the one of that name on the PATH; None if there is none."""
    found = str(given) if given is not None else shutil.which(name)
    return Path(found).absolute() if found and Path(found).is_file() else None


def version_of(executable: Path, distribution: str) -> str:
    """The version of a distribution in the environment that an executable belongs to."""
    python = executable.parent / "python"
    code = f"import importlib.metadata; print(importlib.metadata.version({distribution!r}))"
    try:
        found = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
