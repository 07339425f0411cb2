import json
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.engine.device import installed_device
from serve.engine.spec import GIB, PLUGIN, START_PLUGIN, EngineSpec, kv_cache_gib
from serve.errors import ConfigError
from serve.registry.serving import Serving


def spec(**changes):
    return EngineSpec(**{"model": Path("/models/tiny"), "base_name": "tiny", "device": "cpu", **changes})


def value(argv, option):
    return argv[argv.index(option) + 1]


def test_the_command_line_says_what_the_spec_says():
    argv = spec(
        port=9001,
        max_loras=2,
        max_cpu_loras=5,
        max_lora_rank=32,
        max_model_len=2048,
        extra_args=("--seed", "7"),
    ).argv()
    assert value(argv, "--model") == "/models/tiny"
    assert value(argv, "--served-model-name") == "tiny"
    assert value(argv, "--port") == "9001"
    assert value(argv, "--max-loras") == "2"
    assert value(argv, "--max-cpu-loras") == "5"
    assert value(argv, "--max-lora-rank") == "32"
    assert value(argv, "--max-model-len") == "2048"
    assert argv[-2:] == ["--seed", "7"]
    assert "--enable-lora" in argv


@pytest.mark.parametrize(
    ("changes", "running"),
    [
        ({}, 128),
        ({"device": "cuda"}, 256),
        ({"max_num_seqs": 9}, 9),
        ({"max_num_seqs": 9, "extra_args": ("--max-num-seqs", "32")}, 32),
        ({"extra_args": ("--max_num_seqs=48",)}, 48),
        ({"extra_args": ("--max-num-seqs", "many")}, 128),
    ],
)
def test_what_runs_at_once_is_known_from_the_command_line(changes, running):
    limits = spec(max_loras=3, **changes).limits
    assert (limits.max_loras, limits.max_cpu_loras, limits.max_num_seqs) == (3, 16, running)
    argv = spec(**changes).argv()
    assert ("--max-num-seqs" in argv) == (
        running in (9, 32) or "--max-num-seqs" in changes.get("extra_args", ())
    )


def test_heads_of_adapters_have_room_for_their_labels():
    serving = Serving("classify", 3, 32)
    assert value(spec(serving=serving).argv(), "--max-lora-cls-labels") == "32"
    assert "--max-lora-cls-labels" not in spec(serving=Serving("embed")).argv()
    given = spec(serving=Serving("classify", 3, 5), extra_args=("--max_lora_cls_labels=5",)).argv()
    assert [word for word in given if "labels" in word] == ["--max_lora_cls_labels=5"]


def test_the_engine_listens_on_this_machine_only():
    assert value(spec().argv(port=1), "--host") == "127.0.0.1"


def test_nothing_is_imported_from_the_folder_that_we_are_called_from():
    python, option, module = spec().argv()[:3]
    assert (Path(python).name[:6], option, module) == ("python", "-P", "-m")
    assert spec().environment({})["PYTHONSAFEPATH"] == "1"


def test_a_chosen_port_wins_over_an_open_one():
    assert value(spec(port=0).argv(port=4711), "--port") == "4711"


def test_cpu_settings_stay_off_the_gpu():
    cuda = spec(device="cuda")
    assert "--enforce-eager" not in cuda.argv()
    assert "--block-size" not in cuda.argv()
    assert not {"VLLM_TARGET_DEVICE", "VLLM_CPU_KVCACHE_SPACE"} & set(cuda.environment({}))
    assert spec().environment({})["VLLM_TARGET_DEVICE"] == "cpu"


@pytest.mark.parametrize(
    ("extra", "given"),
    [
        ((), ["--gpu-memory-utilization", "0.7"]),
        (("--gpu-memory-utilization", "0.5"), ["--gpu-memory-utilization", "0.5"]),
        (("--gpu_memory_utilization=0.5",), ["--gpu_memory_utilization=0.5"]),
    ],
)
def test_a_gpu_is_left_room_for_training_unless_the_user_says_how_much(extra, given):
    argv = spec(device="cuda", extra_args=extra).argv()
    assert argv[-len(given) :] == given
    assert sum("utilization" in arg for arg in argv) == 1
    assert "--gpu-memory-utilization" not in spec().argv()


@pytest.mark.parametrize(
    ("extra", "sizes"), [((), ["32"]), (("--block-size", "64"), ["64"]), (("--block_size=64",), [])]
)
def test_on_a_cpu_short_starts_are_kept_unless_the_user_says_otherwise(extra, sizes):
    argv = spec(extra_args=extra).argv()
    assert [size for option, size in pairwise(argv) if option == "--block-size"] == sizes


THINKING = "{% if enable_thinking is false %}<think></think>{% endif %}"


@pytest.mark.parametrize(
    ("file", "content", "thinks"),
    [
        ("chat_template.jinja", THINKING, True),
        ("chat_template.jinja", "{{ messages }}", False),
        ("tokenizer_config.json", json.dumps({"chat_template": THINKING}), True),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "default", "template": THINKING}]}),
            True,
        ),
        ("tokenizer_config.json", json.dumps({"enable_thinking": True}), False),
        ("tokenizer_config.json", "no JSON", False),
        ("config.json", "{}", False),
    ],
)
def test_thinking_is_off_where_the_template_has_the_switch(tmp_path, file, content, thinks):
    (tmp_path / file).write_text(content)
    argv = spec(model=tmp_path).argv()
    assert ("--default-chat-template-kwargs" in argv) == thinks
    if thinks:
        assert json.loads(value(argv, "--default-chat-template-kwargs")) == {"enable_thinking": False}


def test_the_template_beside_the_tokenizer_wins_over_the_one_in_its_config(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": THINKING}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert "--default-chat-template-kwargs" not in spec(model=tmp_path).argv()


@pytest.mark.parametrize(
    "extra",
    [
        ("--default-chat-template-kwargs", "{}"),
        ("--default-chat-template-kwargs.enable_thinking", "true"),
    ],
)
def test_the_users_own_template_settings_win(tmp_path, extra):
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    argv = spec(model=tmp_path, extra_args=extra).argv()
    assert sum(arg.startswith("--default-chat-template-kwargs") for arg in argv) == 1


IN_PARTS = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "extra", "forms"),
    [
        (IN_PARTS, (), ["openai"]),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", (), ["string"]),
        (IN_PARTS, ("--chat-template-content-format", "string"), ["string"]),
        (IN_PARTS, ("--chat_template_content_format=auto",), []),
        (IN_PARTS, ("--chat-template", "own.jinja"), []),
        (None, (), []),
    ],
)
def test_the_engine_gives_messages_to_the_template_as_training_does(tmp_path, template, extra, forms):
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    argv = spec(model=tmp_path, extra_args=extra).argv()
    assert [after for before, after in pairwise(argv) if before == "--chat-template-content-format"] == forms


@pytest.mark.parametrize(
    ("name", "extra", "modes"),
    [
        ("tekken.json", (), ["hf"]),
        ("tokenizer.model.v3", (), ["hf"]),
        ("tekken.json", ("--tokenizer-mode", "mistral"), ["mistral"]),
        ("tokenizer.model", (), []),
    ],
)
def test_mistrals_own_tokenizer_does_not_stand_in_for_the_template(tmp_path, name, extra, modes):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / name).write_text("{}")
    argv = spec(model=tmp_path, extra_args=extra).argv()
    assert [after for before, after in pairwise(argv) if before == "--tokenizer-mode"] == modes


HERMES = '{{ tools }}<tool_call>\n{"name": <function-name>}</tool_call>'


@pytest.mark.parametrize(
    ("template", "extra", "parsers"),
    [
        (HERMES, (), ["hermes"]),
        (HERMES, ("--tool-call-parser", "xlam"), ["xlam"]),
        ("<tool_call>\n<function=name>", (), []),
        ("{{ messages }}", (), []),
    ],
)
def test_tools_can_be_called_where_the_template_says_how(tmp_path, template, extra, parsers):
    (tmp_path / "chat_template.jinja").write_text(template)
    argv = spec(model=tmp_path, extra_args=extra).argv()
    assert [after for before, after in pairwise(argv) if before == "--tool-call-parser"] == parsers
    assert ("--enable-auto-tool-choice" in argv) == (parsers == ["hermes"])


def test_the_environment_keeps_what_the_user_set():
    environment = spec().environment({"VLLM_CPU_KVCACHE_SPACE": "7", "OMP_NUM_THREADS": "3", "X": "y"})
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["X"] == "y"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_the_engine_may_cache_its_bytecode():
    assert "PYTHONDONTWRITEBYTECODE" not in spec().environment({"PYTHONDONTWRITEBYTECODE": "1"})


@pytest.mark.parametrize(
    ("weights", "memory", "gib"),
    [
        (0, 64 * GIB, 1),
        (12 * 2**20, 64 * GIB, 1),
        (GIB + 1, 64 * GIB, 2),
        (14 * GIB, 64 * GIB, 14),
        (14 * GIB, 16 * GIB, 4),
        (14 * GIB, GIB, 1),
    ],
)
def test_the_cache_grows_with_the_weights_within_a_quarter_of_the_memory(weights, memory, gib):
    assert kv_cache_gib(weights, memory) == gib


@pytest.mark.parametrize(
    ("able", "weights", "memory", "dtype", "gib"),
    [
        (True, GIB + 1, 64 * GIB, "bfloat16", 2),
        (False, GIB + 1, 64 * GIB, "float32", 3),
        (False, 16 * GIB, 64 * GIB, "float32", 16),
        (False, 16 * GIB + 1, 64 * GIB, "bfloat16", 16),
    ],
)
def test_the_engine_computes_in_the_faster_type_that_fits(
    monkeypatch, tmp_path, able, weights, memory, dtype, gib
):
    monkeypatch.setattr("serve.engine.spec.multiplies_bfloat16", lambda: able)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=memory))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    assert value(spec(model=tmp_path).argv(), "--dtype") == dtype
    assert spec(model=tmp_path).environment({})["VLLM_CPU_KVCACHE_SPACE"] == str(gib)
    assert "--dtype" not in spec(model=tmp_path, device="cuda").argv()


def test_our_plugins_are_installed_and_the_only_ones_loaded():
    assert spec().environment({})["VLLM_PLUGINS"] == f"{PLUGIN},{START_PLUGIN}"
    assert {PLUGIN, START_PLUGIN} <= {entry.name for entry in entry_points(group="vllm.general_plugins")}


@pytest.mark.parametrize(
    ("given", "users"),
    [
        ({}, ""),
        ({"VLLM_PLUGINS": ""}, ""),
        ({"VLLM_PLUGINS": "mine"}, "mine,"),
        ({"VLLM_PLUGINS": f"mine, {PLUGIN} ,yours,{START_PLUGIN}"}, "mine,yours,"),
    ],
)
def test_plugins_of_the_users_own_stay_and_that_for_lora_is_there_unless_it_is_off(given, users):
    assert spec().environment(given)["VLLM_PLUGINS"] == f"{users}{PLUGIN},{START_PLUGIN}"
    assert spec(cpu_lora=False).environment(given)["VLLM_PLUGINS"] == f"{users}{START_PLUGIN}"


def test_an_engine_that_computes_otherwise_is_not_adopted():
    assert spec().fingerprint() != spec(cpu_lora=False).fingerprint()


def test_equal_specs_but_for_the_port_serve_alike():
    assert spec(port=1).fingerprint() == spec(port=2).fingerprint()
    assert spec().fingerprint() != spec(max_loras=1).fingerprint()


def test_all_bad_limits_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        spec(max_loras=8, max_cpu_loras=2, max_lora_rank=24)
    with pytest.raises(ConfigError, match=r"max_lora_rank \(1\)"):
        spec(max_lora_rank=1)
    assert "max_cpu_loras (2)" in caught.value.message
    assert "max_lora_rank (24)" in caught.value.message


def test_the_installed_device_is_one_we_know():
    assert installed_device() in ("cpu", "cuda")


TRACES = "http://collector:4318/v1/traces"


def test_the_engine_sends_its_spans_where_ours_go():
    traced = spec(otlp_endpoint=TRACES)
    assert value(traced.argv(), "--otlp-traces-endpoint") == TRACES
    environment = traced.environment({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"})
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert environment["OTEL_SERVICE_NAME"] == "tenon-engine"
    assert traced.environment({"OTEL_SERVICE_NAME": "mine"})["OTEL_SERVICE_NAME"] == "mine"


def test_without_a_collector_the_engine_traces_nothing():
    assert "--otlp-traces-endpoint" not in spec().argv()
    assert not any(name.startswith("OTEL_") for name in spec().environment({}))


def test_a_collector_of_the_users_own_is_left_to_vllm():
    traced = spec(otlp_endpoint=TRACES, extra_args=("--otlp_traces_endpoint=grpc://mine:4317",))
    assert "--otlp-traces-endpoint" not in traced.argv()
    assert not any(name.startswith("OTEL_") for name in traced.environment({}))


def test_the_engine_logs_neither_prompts_nor_answers():
    argv = spec(otlp_endpoint=TRACES).argv()
    assert not any("log-request" in part or "log-output" in part for part in argv)
    assert "VLLM_DEBUG_LOG_API_SERVER_RESPONSE" not in spec().environment(
        {"VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true"}
    )
