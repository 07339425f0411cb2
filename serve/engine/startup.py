"""Reading the engine's log: how far a start is, and why it failed."""

import re

FIRST_STAGE = "importing vLLM"

_STAGES = (
    (r"non-default args", "reading the settings"),
    (r"Resolved architecture", "reading the model's config"),
    (r"Initializing a V1 LLM engine", "starting the engine core"),
    (r"Starting to load model", "loading weights"),
    (r"Loading weights took|Model loading took", "preparing the model"),
    (r"KV cache size|KV cache memory", "allocating the KV cache"),
    (
        r"torch\.compile takes|Dynamo bytecode|Compiling a graph|[Ww]arming up|Capturing CUDA",
        "compiling, warming up",
    ),
    (r"init engine .* took", "starting the server"),
    (r"Starting vLLM (API )?server|Application startup complete", "ready in a moment"),
)
STAGES = tuple((re.compile(pattern), stage) for pattern, stage in _STAGES)
"""What the engine's log says, and what the engine does from then on, in the order of a start."""

_CAUSES = (
    (
        r"address already in use",
        "another process listens on the engine's port: stop it, or leave the port open to get a free one",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|No available memory for the cache blocks"
        r"|Free memory on device|less than desired (GPU|CPU) memory utilization",
        "the device has too little free memory: stop what else uses it, lower TENON_MAX_MODEL_LEN or "
        "TENON_MAX_LORAS, or pass --gpu-memory-utilization through TENON_ENGINE_ARGS",
    ),
    (
        r"Cannot allocate memory|MemoryError|DefaultCPUAllocator|std::bad_alloc|not enough memory",
        "the machine has too little free memory: stop what else uses it or choose a smaller base",
    ),
    (r"No space left on device", "the disk is full: free some space (also in /tmp and /dev/shm)"),
    (
        r"architectures? .*(is|are) not supported|does not recognize this architecture"
        r"|has no vLLM implementation|not compatible with vLLM",
        "this vLLM cannot serve the model's architecture: choose another base",
    ),
    (
        r"max_lora_rank|max-lora-rank|LoRA rank",
        "vLLM does not take this LoRA rank: set TENON_MAX_LORA_RANK to 8, 16, 32, 64, 128, 256, 320 or 512",
    ),
    (r"does not support LoRA", "vLLM has no LoRA for this architecture: choose another base"),
    (
        r"max seq len|maximum number of tokens|max_model_len",
        "the context does not fit: lower TENON_MAX_MODEL_LEN",
    ),
    (
        r"unrecognized arguments|expected one argument|invalid choice|invalid \w+ value",
        "the engine does not know one of its arguments: check TENON_ENGINE_ARGS",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver"
        r"|driver on your system is too old",
        "vLLM finds no GPU that it can use: `nvidia-smi` must list one (is the driver too old, or the container "
        "without access to it?); for an engine on the CPU run `make setup DEVICE=cpu`",
    ),
    (
        r"No module named '?torchvision",
        "vLLM needs torchvision for this base: install the build for your torch, on a CPU with `.venv/bin/pip install "
        "--no-deps torchvision --index-url https://download.pytorch.org/whl/cpu`",
    ),
    (r"No module named '?vllm", "vLLM is not installed in this environment: run `make setup`"),
    (
        r"not a valid model identifier|Repo id must be|Invalid repository ID|No such file or directory.*config\.json"
        r"|should have a `model_type` key",
        "the base is no model folder in hub format: it needs config.json, the tokenizer and *.safetensors",
    ),
    (r"deserializing header|SafetensorError", "the base's weights are damaged: fetch them again"),
)
CAUSES = tuple((re.compile(pattern, re.IGNORECASE), hint) for pattern, hint in _CAUSES)
"""What the log of a failed start says, and what to do about it; the first that fits is taken."""

_PREFIX = re.compile(r"^(\([^)]*\)\s*)?((INFO|WARNING|ERROR|DEBUG)\s+[\d-]+\s+[\d:.]+\s+\[[^\]]*\]\s*)?")
_TELLING = re.compile(
    r"(^|[\s.])(\w*(Error|Exception)\b\s*:|error:|Value error,|Killed\b|fatal\b|No module named)"
)
_NOISE = re.compile(
    r"Engine core initialization failed|[Ss]ee root cause|^\s*raise |^\s*File |WorkerProc failed"
    r"|\d+ validation errors? for "
)
_LONGEST = 400


def stage_of(log: str) -> str:
    """What the engine does now, in words: the furthest stage that its log mentions."""
    for pattern, stage in reversed(STAGES):
        if pattern.search(log):
            return stage
    return FIRST_STAGE


def telling_lines(log: str, most: int = 3) -> list[str]:
    """The lines that say what went wrong, without prefixes and repetitions, the cause first.

    vLLM's processes each print a traceback, and the later ones only say that another process failed.
    """
    lines = [_PREFIX.sub("", line).strip()[:_LONGEST] for line in log.splitlines()]
    telling = [line for line in lines if _TELLING.search(line) and not _NOISE.search(line)]
    if not telling:
        telling = [line for line in lines if line][-most:]
    return list(dict.fromkeys(telling))[:most]


def explain(log: str, exit_code: int | None) -> tuple[str, str]:
    """(The telling lines, what to do) for the log of a start that failed with ``exit_code``."""
    lines = telling_lines(log)
    said = " | ".join(lines) if lines else "it wrote nothing to its log"
    for pattern, hint in CAUSES:
        if pattern.search("\n".join(lines)):
            return said, hint
    if exit_code == -9:
        return said, "it was killed from outside, as the kernel does when memory runs out: free some memory"
    return said, "read the whole log"
