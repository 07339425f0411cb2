"""How the engine is started: its command line and environment, for a CPU or a GPU."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Literal

import psutil

from serve.engine.device import Device, installed_device
from serve.engine.limits import EngineLimits
from serve.engine.processor import multiplies_bfloat16
from serve.engine.templates import chat_template, format_of
from serve.errors import ConfigError
from serve.registry.serving import LABELS, TEXT, Serving
from serve.telemetry import PROTOCOL

GIB = 2**30
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts for ``--max-lora-rank``, but for 1: an engine that takes rank 1 alone helps nobody."""

PLUGIN, START_PLUGIN = "tenon_cpu_lora", "tenon_forked_core"
"""Our entry points in ``vllm.general_plugins``."""

TEMPLATE_DEFAULTS = "--default-chat-template-kwargs"
TEMPLATE, CONTENT_FORMAT = "--chat-template", "--chat-template-content-format"
TOKENIZER = "--tokenizer-mode"
TOOL_PARSER = "--tool-call-parser"
HERMES_CALL, CODER_CALL = "<tool_call>", "<function="
"""What the chat templates say of models that call tools as Hermes did (Qwen 2.5 and 3), and as Qwen 3 Coder does. Of
all others the operator must know how they call tools."""

BLOCK = "--block-size"
CPU_BLOCK = 32
"""Tokens of a block of the KV cache on a CPU, where vLLM takes 128. Only whole blocks are found again, so that a system
instruction of less than 128 tokens would be computed for every request. vLLM's CPU kernels take no smaller ones."""

GPU_SHARE = "--gpu-memory-utilization"
TRACES = "--otlp-traces-endpoint"
DEFAULT_GPU_SHARE = 0.7
"""Share of the GPU's memory that the engine takes; the rest is for a training beside it."""

FEW_CORES = 8
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""By default vLLM computes in a process of its own on a CPU, to bind its threads to the cores of a NUMA
node. With few cores there is nothing to bind, and with one process less it starts in 17 s instead of 24, takes
0.7 GiB less memory and answers more requests (2 cores, 4 M parameters). Named in full, since vLLM turns plain
``uni`` into ``mp``."""


def cores() -> int:
    """Physical cores that this process may use; 1 at least."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def kv_cache_gib(weights_bytes: int, memory_bytes: int) -> int:
    """GiB of memory for the KV cache on a CPU: as much as the weights take, 1 at least, a quarter of all at
    most.

    A cache the size of the weights holds some ten thousand tokens for the usual model shapes. vLLM takes
    whole GiB.
    """
    return max(1, min(-(-weights_bytes // GIB), memory_bytes // 4 // GIB))


USUAL_SEQUENCES: Mapping[Device, int] = {"cpu": 128, "cuda": 256}
"""vLLM's own ``--max-num-seqs`` for its API server; on a GPU of 70 GiB and more it is 1,024."""


@dataclass(frozen=True)
class EngineSpec:
    """One engine; two specs that are equal but for the port serve alike.

    ``model`` is a folder in hub format, ``base_name`` the name it is served under, ``port`` 0 takes a free
    one at each start, ``serving`` what the base is served for with ``extra_args``, ``otlp_endpoint`` the full URL
    that its traces are posted to, ``cpu_lora`` whether LoRA on a CPU is computed by our code, ``command`` is what
    runs instead of vLLM (the fake engine, in tests). Raises
    :class:`ConfigError` for limits that vLLM would refuse half a minute later.
    """

    model: Path
    base_name: str
    port: int = 0
    max_loras: int = EngineLimits.max_loras
    max_cpu_loras: int = EngineLimits.max_cpu_loras
    max_lora_rank: int = 64
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    extra_args: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    cpu_lora: bool = True
    serving: Serving = TEXT
    device: Device = field(default_factory=installed_device)
    # -P: a user's train.py or logging.py in the folder that we were called from is none of ours.
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "serve.engine.vllm_server")

    def __post_init__(self) -> None:
        problems = []
        if self.max_cpu_loras < self.max_loras:
            problems.append(f"max_cpu_loras ({self.max_cpu_loras}) is below max_loras ({self.max_loras})")
        if self.max_lora_rank not in RANKS:
            problems.append(f"max_lora_rank ({self.max_lora_rank}) is none of {', '.join(map(str, RANKS))}")
        if problems:
            raise ConfigError("; ".join(problems), "see docs/settings.md")

    def argv(self, port: int | None = None) -> list[str]:
        """The command line; ``port`` is the one that was chosen when the spec leaves it open."""
        argv = [
            *self.command,
            *("--model", str(self.model)),
            *("--served-model-name", self.base_name),
            *("--host", "127.0.0.1"),  # the engine has no authentication: only this machine may reach it
            *("--port", str(self.port if port is None else port)),
            "--enable-lora",
            *("--max-loras", str(self.max_loras)),
            *("--max-cpu-loras", str(self.max_cpu_loras)),
            *("--max-lora-rank", str(self.max_lora_rank)),
            "--disable-uvicorn-access-log",
            "--enable-tokenizer-info-endpoint",  # lm-eval counts tokens by it; the gateway passes it on
        ]
        if self.max_model_len is not None:
            argv += ["--max-model-len", str(self.max_model_len)]
        if self.max_num_seqs is not None:
            argv += ["--max-num-seqs", str(self.max_num_seqs)]
        if self.device == "cpu":
            argv += ["--dtype", self.cpu_type, "--enforce-eager"]
            if not self._user_sets(BLOCK):
                argv += [BLOCK, str(CPU_BLOCK)]
            if cores() <= FEW_CORES:
                argv += ["--distributed-executor-backend", ONE_PROCESS]
        elif not self._user_sets(GPU_SHARE):
            argv += [GPU_SHARE, str(DEFAULT_GPU_SHARE)]
        argv += self._chat_options()
        if self.otlp_endpoint is not None and not self._user_sets(TRACES):
            argv += [TRACES, self.otlp_endpoint]
        if self.serving.labels and not self._user_sets(LABELS):
            # vLLM's own limit is the base's number of labels, and a base without a head has 2.
            argv += [LABELS, str(self.serving.labels)]
        return argv + list(self.extra_args)

    def _chat_options(self) -> list[str]:
        """How prompts of chats are written, as in training, and how calls of tools are read."""
        options: list[str] = []
        template = chat_template(self.model)
        if "enable_thinking" in template and not self._user_sets(TEMPLATE_DEFAULTS):
            # Adapters are trained on prompts with thinking off; a request may still turn it on.
            options += [TEMPLATE_DEFAULTS, json.dumps({"enable_thinking": False})]
        if template and not self._user_sets(CONTENT_FORMAT) and not self._user_sets(TEMPLATE):
            options += [CONTENT_FORMAT, format_of(self.model)]
        if template and _of_mistral(self.model) and not self._user_sets(TOKENIZER):
            # vLLM would write prompts by Mistral's own program, which knows nothing of the template.
            options += [TOKENIZER, "hf"]
        if HERMES_CALL in template and CODER_CALL not in template and not self._user_sets(TOOL_PARSER):
            options += ["--enable-auto-tool-choice", TOOL_PARSER, "hermes"]
        return options

    @property
    def limits(self) -> EngineLimits:
        """What the engine will do at once, as far as its command line says."""
        return EngineLimits(
            self._given("--max-loras") or self.max_loras,
            self._given("--max-cpu-loras") or self.max_cpu_loras,
            self._given("--max-num-seqs") or self.max_num_seqs or USUAL_SEQUENCES[self.device],
        )

    @property
    def cpu_type(self) -> Literal["bfloat16", "float32"]:
        """What the engine computes in on a CPU: float32 where that is faster and half of the memory holds it."""
        if multiplies_bfloat16() or 2 * weights_bytes(self.model) > psutil.virtual_memory().total // 2:
            return "bfloat16"
        return "float32"

    def _given(self, option: str) -> int | None:
        """The number that ``extra_args`` gives for an option, the last one; None without one."""
        words = [word for arg in self.extra_args for word in arg.split("=", 1)]
        values = [
            value for name, value in pairwise(words) if name.replace("_", "-") == option and value.isdigit()
        ]
        return int(values[-1]) if values else None

    def _user_sets(self, option: str) -> bool:
        return is_given(self.extra_args, option)

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """The child's environment: ``inherited`` (by default ours) with what the engine needs on top."""
        environment = dict(os.environ if inherited is None else inherited)
        # Without its bytecode cache the engine compiles some thousand modules again at every start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment |= {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",  # the model is a folder; nothing is to be asked of the hub
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # what -P is for the API server, for the interpreters that vLLM starts
        }
        environment["VLLM_PLUGINS"] = self._plugins(environment.get("VLLM_PLUGINS", ""))
        environment.pop("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", None)  # answers are nobody's to log
        if self.otlp_endpoint is not None and not self._user_sets(TRACES):
            environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = PROTOCOL  # vLLM's own default is gRPC
            environment.setdefault("OTEL_SERVICE_NAME", "tenon-engine")
        if self.device == "cpu":
            environment["VLLM_TARGET_DEVICE"] = "cpu"
            size = weights_bytes(self.model) * (2 if self.cpu_type == "float32" else 1)
            gib = kv_cache_gib(size, psutil.virtual_memory().total)
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(gib))
            # With LoRA, vLLM compiles nothing on a CPU but one helper of the log-probabilities,
            # for which the first request that asks for them would wait 3 to 12 seconds.
            environment.setdefault("TORCHDYNAMO_DISABLE", "1")
            if cores() <= FEW_CORES:
                # One core is left to the API server, as vLLM does where it places the threads itself.
                environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() - 1)))
        return environment

    def _plugins(self, given: str) -> str:
        """The names that vLLM takes plugins by: the user's own, and ours, of which LoRA's may be off.

        The variable is always set, as without it vLLM takes all that are installed, its own resolvers among them,
        which load adapters by names that clients make up. It compares names as they are, blanks included.
        """
        others = [name.strip() for name in given.split(",")]
        others = [name for name in others if name not in ("", PLUGIN, START_PLUGIN)]
        return ",".join([*others, *([PLUGIN] if self.cpu_lora else []), START_PLUGIN])

    @property
    def numerics(self) -> tuple[str, ...]:
        """What decides the last digits of the engine's answers, as far as its command line says."""
        for name in ("vllm-cpu", "vllm"):
            try:
                version = f"{name} {distribution(name).version}"
                break
            except PackageNotFoundError:
                version = "no vllm"
        own = self.device == "cpu" and self.cpu_lora
        computes = (self.device, self.cpu_type, PLUGIN if own else "") if self.device == "cpu" else ("cuda",)
        return (version, *computes, *self.extra_args)

    def fingerprint(self) -> str:
        """Twelve hex digits, equal for specs that serve alike; only such an engine is adopted."""
        words = [*self.argv(port=0), *(() if self.cpu_lora else ("without", PLUGIN))]
        return hashlib.sha256(shlex.join(words).encode()).hexdigest()[:12]


def is_given(arguments: Sequence[str], option: str) -> bool:
    """Whether ``arguments`` have ``option``, which vLLM takes with underscores and as ``option.key`` too."""
    return option in (re.split("[=.]", argument, maxsplit=1)[0].replace("_", "-") for argument in arguments)


def weights_bytes(model: Path) -> int:
    """Bytes of all weight files in a model folder; 0 if there are none."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _of_mistral(model: Path) -> bool:
    """Whether the folder has the files by which vLLM tells Mistral's own tokenizer."""
    return any(path for name in ("tekken.json", "tokenizer.model.v*") for path in model.glob(name))
