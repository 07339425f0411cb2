import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from registry_samples import write_base
from safetensors.numpy import save_file
from source_servers import COMMIT, add_repository, running, silent

from serve.errors import BaseModelError
from serve.names import check_name
from serve.registry.base import BUILTIN, identify_base, resolve_model, safe_name

BUILTIN_FOLDER = Path(__file__).parents[3] / "train" / "assets" / BUILTIN


def test_identity_of_a_folder(tmp_path: Path) -> None:
    base = identify_base(str(write_base(tmp_path / "My Base")))
    assert base.name == "my-base"
    assert base.path == tmp_path / "My Base"
    assert (base.architecture, base.max_length, base.vocab_size) == ("Qwen3ForCausalLM", 128, 32)
    assert base.shapes["model.layers.0.mlp.down_proj.weight"] == (16, 48)


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = identify_base(str(write_base(tmp_path / "a")))
    assert identify_base(str(write_base(tmp_path / "b"))).digest == first.digest
    assert identify_base(str(write_base(tmp_path / "c", seed=1))).digest != first.digest
    assert identify_base(str(write_base(tmp_path / "d", rope_theta=1))).digest != first.digest
    (tmp_path / "b" / "tokenizer.json").write_text('{"x": 1}')
    assert identify_base(str(tmp_path / "b")).digest != first.digest


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"])
def test_another_prompt_format_is_another_base(tmp_path: Path, name: str) -> None:
    folder = write_base(tmp_path / "a")
    digests = {identify_base(str(folder)).digest}
    for content in ("{}", '{"a": 1}'):
        (folder / name).write_text(content)
        digests.add(identify_base(str(folder)).digest)
    assert len(digests) == 3


def test_a_change_at_the_very_end_of_the_weights_is_seen(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "a", width=512)
    before = identify_base(str(folder)).digest
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert identify_base(str(folder)).digest != before


def test_a_base_in_shards(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    weights = {"model.x.weight": "model-1.safetensors", "model.y.weight": "model-2.safetensors"}
    for name, shard in weights.items():
        save_file({name: np.ones((2, 3), np.float32)}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    base = identify_base(str(folder))
    assert dict(base.shapes) == {"model.x.weight": (2, 3), "model.y.weight": (2, 3)}
    save_file({"model.y.weight": np.zeros((2, 3), np.float32)}, folder / "model-2.safetensors")
    assert identify_base(str(folder)).digest != base.digest
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"misses model-2\.safetensors"):
        identify_base(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret"}}')
    with pytest.raises(BaseModelError, match="outside the folder"):
        identify_base(str(folder))


def test_limits_of_a_nested_config(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "a")
    config = {
        "architectures": ["X2ForConditionalGeneration"],
        "text_config": {"vocab_size": 7, "n_positions": 9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    base = identify_base(str(folder))
    assert (base.vocab_size, base.max_length) == (7, 9)


def test_folders_that_are_no_base(tmp_path: Path) -> None:
    def broken(name: str, damage: str, content: str | None = None) -> str:
        folder = write_base(tmp_path / name)
        (folder / damage).unlink()
        if content is not None:
            (folder / damage).write_text(content)
        return str(folder)

    no_weights = broken("a", "model.safetensors")
    Path(no_weights, "pytorch_model.bin").write_bytes(b"x")
    cases = {
        broken("b", "config.json"): "no config.json",
        broken("c", "config.json", "{"): "not valid JSON",
        broken("d", "config.json", "[]"): "not a JSON object",
        broken("e", "config.json", '{"architectures": ["BertForMaskedLM"]}'): "no causal language model",
        broken("f", "config.json", '{"architectures": ["XForCausalLM"]}'): "max_position_embeddings",
        broken("g", "tokenizer.json"): "no tokenizer",
        broken("h", "model.safetensors", "junk"): "cannot be used",
        no_weights: r"no model\.safetensors, only pytorch_model\.bin",
        str(tmp_path / "b" / "tokenizer.json"): "is a file",
    }
    for model, said in cases.items():
        with pytest.raises(BaseModelError, match=said) as caught:
            identify_base(model)
        assert caught.value.hint


def test_a_folder_of_an_adapter_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError) as caught:
        identify_base(str(tmp_path))
    assert "holds an adapter" in caught.value.hint


def test_an_unknown_folder_names_nearby_ones_and_hub_ids(tmp_path: Path) -> None:
    write_base(tmp_path / "my-model")
    with pytest.raises(BaseModelError, match="my-model") as caught:
        resolve_model(str(tmp_path / "my-modle"))
    assert "Qwen/Qwen3-0.6B" in caught.value.hint


class Hub(BaseHTTPRequestHandler):
    """Refuses every model for the reason in its name, in the way that the hub does."""

    def do_GET(self) -> None:
        reason = self.path.split("/")[4]
        self.send_response({"missing": 404, "gated": 403}.get(reason, 500))
        self.send_header("X-Error-Code", {"missing": "RepoNotFound", "gated": "GatedRepo"}.get(reason, ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


RESOLVE = """
import sys
from serve.errors import BaseModelError
from serve.registry.base import resolve_model
try:
    resolve_model(sys.argv[1])
except BaseModelError as error:
    print(error.message, "|", error.hint)
"""


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("org/missing", {}, "there is no hub model org/missing"),
        ("org/gated", {}, "the hub model org/gated is gated"),
        ("org/offline", {"HF_HUB_OFFLINE": "1"}, "the hub cannot be reached"),
        ("org/unreachable", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        ("org/broken", {}, "org/broken is not on this machine"),
        ("org/missing", {"HF_HUB_DOWNLOAD_TIMEOUT": "ten"}, "org/missing cannot be fetched: ValueError"),
    ],
)
def test_the_hubs_refusals_become_plain_words(
    tmp_path: Path, hub: str, model: str, settings: dict[str, str], said: str
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), **settings}
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, model], env=environment, capture_output=True, text=True, check=True
    )
    message, _, hint = run.stdout.partition("|")
    assert said in message
    assert hint.strip()


IDENTIFY = """
import json, sys
from serve.registry.base import identify_base
said = []
print(json.dumps([identify_base(sys.argv[1], say=said.append).digest, said]))
"""


def test_a_base_of_the_hub_is_fetched_with_progress_and_then_found(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", width=512)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = sum(map(len, files.values())) / 2**20
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with running() as server:
        unwanted = {"pytorch_model.bin": b"pickle", "evil.py": b"x", "consolidated.safetensors": b"again"}
        add_repository(server, "org/base", {**files, **unwanted})
        environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        found = []
        for offline in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-c", IDENTIFY, "org/base"],
                env={**environment, "HF_HUB_OFFLINE": offline},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            found.append(json.loads(done.stdout))
        fetched = {line.rpartition("/")[2] for line in server.seen if "/resolve/" in line}
    digest = identify_base(str(folder)).digest
    (first, said), (second, nothing) = found
    assert (first, second, nothing) == (digest, digest, [])
    assert said[-1] == f"org/base: {size:,.1f} of {size:,.1f} MiB"
    assert fetched == set(files)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_download_ends_at_once_with_its_command(tmp_path: Path, number: signal.Signals) -> None:
    folder = write_base(tmp_path / "base")
    with running() as server:
        add_repository(server, "org/base", {path.name: path.read_bytes() for path in folder.iterdir()})
        weights = f"/org/base/resolve/{COMMIT}/model.safetensors"
        told = server.routes[weights]
        server.routes[weights] = lambda request: (told if request.command == "HEAD" else silent)(request)
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        command = subprocess.Popen(
            [sys.executable, "-c", IDENTIFY, "org/base"],
            env={**os.environ, **environment, "HF_HUB_DOWNLOAD_TIMEOUT": "100"},
            stderr=subprocess.DEVNULL,
        )
        while f"GET {weights}" not in server.seen:
            assert command.poll() is None
            time.sleep(0.02)
        (download,) = psutil.Process(command.pid).children()
        command.send_signal(number)
        assert command.wait(30) == -number
        download.wait(30)


@pytest.mark.skipif(not BUILTIN_FOLDER.is_dir(), reason="the built-in base is not in this tree")
def test_the_builtin_base_is_found_by_name() -> None:
    assert resolve_model(BUILTIN) == BUILTIN_FOLDER


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B", "/a/B c/", "///", "..", "-x-", "ü" * 90, "a" * 200])
def test_safe_names_are_names(text: str) -> None:
    assert check_name(safe_name(text))


def test_a_copied_base_has_the_same_identity(tmp_path: Path) -> None:
    source = write_base(tmp_path / "a")
    shutil.copytree(source, tmp_path / "moved")
    assert identify_base(str(tmp_path / "moved")).digest == identify_base(str(source)).digest
