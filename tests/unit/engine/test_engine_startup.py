import pytest

from serve.engine.startup import FIRST_STAGE, explain, stage_of, telling_lines

LOG = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
(APIServer pid=7089) INFO 11-21 01:47:11 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}
(APIServer pid=7089) INFO 11-21 01:47:11 [model.py:733] Resolved architecture: Qwen3ForCausalLM
(EngineCore pid=7180) INFO 11-21 01:47:20 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model
(Worker pid=7488) INFO 11-21 01:47:30 [cpu_model_runner.py:68] Starting to load model /tmp/rnd...
(Worker pid=7488) INFO 11-21 01:47:30 [default_loader.py:501] Loading weights took 0.08 seconds
(EngineCore pid=7180) INFO 11-21 01:47:31 [kv_cache_utils.py:2327] CPU KV cache size: 349,440 tokens, Maximum
(EngineCore pid=7180) INFO 11-21 01:47:35 [core.py:402] init engine (profile, create kv cache, warmup model) took
(APIServer pid=7089) INFO 11-21 01:47:37 [entry.py:140] Starting vLLM server on http://127.0.0.1:8999
"""


def test_stages_follow_the_log_in_order():
    lines = LOG.splitlines()
    stages = [stage_of("\n".join(lines[:count])) for count in range(1, len(lines) + 1)]
    assert stages == [
        FIRST_STAGE,
        "reading the settings",
        "reading the model's config",
        "starting the engine core",
        "loading weights",
        "preparing the model",
        "allocating the KV cache",
        "starting the server",
        "ready in a moment",
    ]


def test_the_cause_comes_before_what_follows_from_it():
    log = """\
(EngineCore pid=9) ERROR 11-21 01:58:04 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-21 01:58:04 [core.py:1512]     raise ValueError("x")
(EngineCore pid=9) ERROR 11-21 01:58:04 [core.py:1512] ValueError: Model architectures ['Foo'] are not supported
ValueError: Model architectures ['Foo'] are not supported
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    assert telling_lines(log) == ["ValueError: Model architectures ['Foo'] are not supported"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("OSError: [Errno 98] Address already in use", "port"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "TENON_MAX_MODEL_LEN"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate", "memory"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("ValueError: Model architectures ['Foo'] are not supported for now.", "architecture"),
        ("Value error, The checkpoint has model type `foo` but Transformers does not recognize this architecture. "
         "error: x", "architecture"),
        ("ValueError: max_lora_rank (24) must be one of (1, 8, 16)", "TENON_MAX_LORA_RANK"),
        ("vllm_server.py: error: unrecognized arguments: --nope", "TENON_ENGINE_ARGS"),
        ("ModuleNotFoundError: No module named 'vllm'", "make setup"),
        ("ModuleNotFoundError: No module named 'torchvision'", "whl/cpu"),
        ("RuntimeError: Failed to infer device type, please set the environment variable x", "nvidia-smi"),
        ("RuntimeError: No CUDA GPUs are available", "nvidia-smi"),
        ("ValueError: User-specified max_model_len (4096) is greater than the derived max_model_len", "MAX_MODEL_LEN"),
    ],
)  # fmt: skip
def test_known_causes_have_a_way_out(line, word):
    said, hint = explain(f"INFO something\n{line}\n", 1)
    assert line[:40] in said
    assert word in hint


def test_a_kill_from_outside_is_named():
    assert "killed from outside" in explain("INFO working\n", -9)[1]


def test_an_empty_log_is_said_to_be_empty():
    assert explain("", 1) == ("it wrote nothing to its log", "read the whole log")


def test_without_any_error_the_last_lines_are_quoted():
    assert telling_lines("one\ntwo\nthree\nfour\n", most=2) == ["three", "four"]
