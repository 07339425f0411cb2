"""Base models: where one is, and what tells it from every other."""

import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serve.errors import BaseModelError
from serve.registry.hub import HUB_ID, Say, download
from serve.registry.serving import CLASSIFYING, GENERATIVE, HEADS, TEXT, Serving, makes_head, serving_of
from serve.registry.tensor_file import Header, MalformedTensors, read_header

BUILTIN = "tenon-tiny"
SAMPLES = 16
SAMPLE_BYTES = 64 * 1024
MAX_HEADER_BYTES = 100_000_000
MAX_ENTRIES = 1_000_000
MAX_JSON_BYTES = 64 * 1024 * 1024
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
# They decide how a conversation becomes tokens and where an answer ends.
FORMATS = ("chat_template.jinja", "tokenizer_config.json", "generation_config.json")
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
EXPERTS = frozenset({"experts", "block_sparse_moe"})
SENTENCES = "modules.json"  # Sentence Transformers' list of what follows the model


@dataclass(frozen=True)
class BaseIdentity:
    """A base model and what its adapters must fit.

    ``shapes`` maps each tensor's name to its shape (a linear layer's weight is ``(out, in)``); ``max_length``
    and ``vocab_size`` are in tokens; ``digest`` is hexadecimal SHA-256, see :func:`identify_base`. ``serving`` is what
    its engines do with it; ``width`` is the size of the hidden state that a classification head reads, 0 where
    config.json does not say. ``unadapted`` names linear layers that its engines are known not to adapt.
    """

    name: str
    path: Path
    digest: str
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    max_length: int
    vocab_size: int
    serving: Serving = TEXT
    width: int = 0
    unadapted: frozenset[str] = frozenset()

    @property
    def has_experts(self) -> bool:
        """Whether some of its layers are experts, of which a token passes a few."""
        return any(EXPERTS.intersection(name.split(".")) for name in self.shapes)

    @property
    def head(self) -> str:
        """What the classification head is called: as in the base, or as vLLM calls the one that it adds."""
        return next((name for name in HEADS if f"{name}.weight" in self.shapes), HEADS[0])

    def layer(self, module: str) -> str:
        """The base's name of a module: what reads texts is often trained without the ``model.`` of what writes."""
        if self.serving.purpose == "generate" or f"{module}.weight" in self.shapes:
            return module
        return f"model.{module}" if f"model.{module}.weight" in self.shapes else module


def resolve_model(model: str, say: Say | None = None) -> Path:
    """The folder of a built-in base, a local folder in hub format or a hub id; raises BaseModelError.

    ``say`` is told how far a download is.
    """
    if model == BUILTIN:
        return _builtin()
    path = Path(model).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise BaseModelError(
            f"{model} is a file, not a model's folder", "give the folder that holds config.json"
        )
    if HUB_ID.fullmatch(model):
        return download(model, say)
    near = _nearby(path)
    raise BaseModelError(
        f"there is no base model {model!r}" + (f"; nearby: {', '.join(near)}" if near else ""),
        f"give a local folder in hub format, a hub id such as Qwen/Qwen3-0.6B, or {BUILTIN}",
    )


def identify_base(model: str, engine_args: Sequence[str] = (), say: Say | None = None) -> BaseIdentity:
    """Find a base model and compute its identity; raises BaseModelError. ``say`` is told how far a download is.

    ``engine_args`` are the further arguments of its engines, which may make vectors or classes of a base that writes.

    The digest covers config.json, the tokenizer, where present chat_template.jinja, tokenizer_config.json and
    generation_config.json (an adapter that learnt another prompt format is of another base) and, for each weight
    file, its name, size, header and 64 KiB at 16 evenly spaced places of its data. Reading all weights of a large
    base would take minutes at every start; two fine-tunes of one model differ throughout, so a sample tells them
    apart. It is no defence against someone who crafts a base to collide: whoever chooses the base's folder is
    trusted.
    """
    folder = resolve_model(model, say)
    config = _config(folder)
    architecture = _architecture(folder, config)
    digest = hashlib.sha256()
    formats = [name for name in FORMATS if (folder / name).is_file()]
    for name in ("config.json", _tokenizer(folder), *formats):
        _feed(digest, name, _read(folder / name))
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in _shards(folder):
        header = _sample(folder / shard, digest)
        shapes.update({name: entry.shape for name, entry in header.tensors.items()})
    serving = serving_of(architecture, config, engine_args, sentences=(folder / SENTENCES).is_file())
    if serving.purpose == "classify" and not makes_head(config, engine_args):
        _need_head(folder, shapes)
    return BaseIdentity(
        name=_public_name(model, folder),
        path=folder,
        digest=digest.hexdigest(),
        architecture=architecture,
        shapes=MappingProxyType(shapes),
        max_length=_number(folder, config, LENGTH_KEYS),
        vocab_size=_number(folder, config, ("vocab_size",)),
        serving=serving,
        width=_find(config, WIDTH_KEYS) or 0,
    )


def _need_head(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """vLLM starts without one all the same, and classifies by what happens to be in its memory."""
    if not any(f"{name}.weight" in shapes for name in HEADS):
        raise BaseModelError(
            f"{folder} is to classify and has no classification head ({HEADS[0]}.weight)",
            "save the base with one: AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=…)"
            ".save_pretrained(FOLDER), see docs/adapters.md",
        )


def layer_name(tensor: str) -> str:
    """What the layer of a weight is called, as in ``lora.target_modules``."""
    return tensor.removesuffix(".weight").rpartition(".")[2]


def safe_name(text: str) -> str:
    """The last part of a path or hub id, spelt as :mod:`serve.names` wants names."""
    last = text.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:64].strip("._-") or "base"


def _public_name(model: str, folder: Path) -> str:
    return safe_name(model) if not Path(model).expanduser().is_dir() else safe_name(folder.resolve().name)


def _builtin() -> Path:
    spec = importlib.util.find_spec("train")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        folder = Path(place) / "assets" / BUILTIN
        if folder.is_dir():
            return folder
    raise BaseModelError(
        f"the built-in base {BUILTIN} is not installed here",
        "reinstall tenon-llm, or name another model: a local folder in hub format or a hub id",
    )


def _nearby(path: Path) -> list[str]:
    parent = path.parent
    try:
        folders = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    except PermissionError:
        return []
    return [str(parent / name) for name in difflib.get_close_matches(path.name, folders, 3, 0.5)]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BaseModelError(
                f"{path} is larger than {MAX_JSON_BYTES:,} bytes", "check that it is the right file"
            )
        return path.read_bytes()
    except OSError as error:
        raise BaseModelError(
            f"{path} cannot be read: {error.strerror}", "check the folder and its permissions"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BaseModelError(
            f"{path} is not valid JSON: {error}", "download or save the model again"
        ) from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{path} is not a JSON object", "download or save the model again")
    return content


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        hint = "give the folder that holds config.json, the tokenizer and *.safetensors"
        if (folder / "adapter_config.json").is_file():
            hint = "this folder holds an adapter; give the base that it was trained on"
        raise BaseModelError(f"{folder} has no config.json, so it is no model in hub format", hint)
    return _json(folder / "config.json")


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    known = isinstance(name, str) and name.endswith((*GENERATIVE, CLASSIFYING))
    if not isinstance(name, str) or not known or config.get("is_encoder_decoder"):
        raise BaseModelError(
            f"{folder}/config.json names the architecture {name!r}, which is no causal language model and no "
            "classifier made of one",
            f"use a model whose architecture ends in ForCausalLM or {CLASSIFYING}",
        )
    return name


def _tokenizer(folder: Path) -> str:
    for name in TOKENIZERS:
        if (folder / name).is_file():
            return name
    raise BaseModelError(f"{folder} has no tokenizer", f"add the model's {TOKENIZERS[0]} to the folder")


def _number(folder: Path, config: Mapping[str, Any], keys: Iterable[str]) -> int:
    found = _find(config, keys)
    if found is None:
        raise BaseModelError(
            f"{folder}/config.json has no {' or '.join(keys)}", "complete the model's config.json"
        )
    return found


def _find(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for key in keys:
            value = section.get(key)
            if type(value) is int and value > 0:
                return value
    return None


def _shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BaseModelError(f"{index} has no weight_map", "download or save the model again")
        names = sorted({str(name) for name in weight_map.values()})
        foreign = [name for name in names if Path(name).name != name]
        missing = [name for name in names if name not in foreign and not (folder / name).is_file()]
        if foreign or missing:
            what = (
                f"names files outside the folder: {foreign[0]!r}"
                if foreign
                else f"misses {', '.join(missing[:5])}"
            )
            raise BaseModelError(f"{index} {what}", "download or save the model again")
        return names
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    raise BaseModelError(
        f"{folder} has no model.safetensors" + (f", only {pickles[0]}" if pickles else ""),
        "save the model with save_pretrained(…, safe_serialization=True)",
    )


def _feed(digest: Any, name: str, content: bytes) -> None:
    digest.update(f"{name}\n{len(content)}\n".encode())
    digest.update(content)


def _sample(path: Path, digest: Any) -> Header:
    try:
        with path.open("rb") as file:
            header = read_header(file, max_bytes=MAX_HEADER_BYTES, max_entries=MAX_ENTRIES)
            _feed(digest, f"{path.name}\n{header.file_bytes}", header.raw)
            room = max(0, header.file_bytes - header.data_start - SAMPLE_BYTES)
            for place in range(SAMPLES):
                file.seek(header.data_start + room * place // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except MalformedTensors as error:
        raise BaseModelError(f"{path} cannot be used: {error}", "download or save the model again") from error
    except OSError as error:
        raise BaseModelError(
            f"{path} cannot be read: {error.strerror}", "check the folder and its permissions"
        ) from error
    return header
