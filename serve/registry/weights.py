"""Checks an adapter's tensors against the base: names, pairs, shapes, ranks, finite values."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from serve.registry.adapter_config import PEFT_FILE, LoraConfig, Problem
from serve.registry.base import BaseIdentity
from serve.registry.serving import HEADS, LABELS
from serve.registry.tensor_file import (
    Header,
    MalformedTensors,
    TensorEntry,
    open_plain,
    read_chunks,
    read_header,
)

# The engine strips this prefix wherever it is, and needs none.
PREFIX = "base_model.model."
LORA_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<side>[AB])(?P<weight>\.weight)?", re.DOTALL
)
HEAD_NAME = re.compile(rf"(?P<head>{'|'.join(HEADS)})\.(?P<parameter>weight|bias)")
FROZEN_COPY = re.compile(r"(?P<module>.+\.(?:embed_tokens|lm_head))\.base_layer\.weight", re.DOTALL)
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
QUANTISED = (
    ".qweight",
    ".weight_packed",
    ".weight.quant_state.bitsandbytes__nf4",
    ".weight.quant_state.bitsandbytes__fp4",
)
MIN_HEADER_BYTES = 1024 * 1024
BYTES_PER_ENTRY = 512

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
SAVED_BY_PEFT = "save it with the save_pretrained of the unwrapped PEFT model, not from its state_dict"
BROKEN_FILE = "save the adapter again with save_pretrained(…, safe_serialization=True)"
OTHER_BASE = "it was trained on another base: serve it with that one, or train it on this one"


@dataclass
class Weights:
    """What the weight file holds.

    ``sides`` maps module and side ("A", "B") to the tensor's name, ``head`` the parameter of a classification head
    ("weight", "bias") to its.
    """

    problems: list[Problem] = field(default_factory=list)
    sides: dict[str, dict[str, str]] = field(default_factory=dict)
    head: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    parameters: int = 0
    bytes: int = 0
    all_zero: bool = False


def check_weights(path: Path, base: BaseIdentity, config: LoraConfig | None) -> Weights:
    """Read the whole file and collect its problems; raises nothing that its content could cause.

    The base bounds what is believed: an adapter has at most two tensors for each of the base's. ``config`` is
    None where the configuration is unclear; ranks are then only checked against each other.
    """
    found = Weights()
    entries = 2 * len(base.shapes) + 16
    try:
        with open_plain(path) as file:
            header = read_header(
                file, max_bytes=max(MIN_HEADER_BYTES, BYTES_PER_ENTRY * entries), max_entries=entries
            )
            found.bytes = header.file_bytes
            found.problems += _structure(header, base, config, found)
            if not found.problems:
                found.problems += _values(file, header, found)
    except MalformedTensors as error:
        found.problems.append(Problem(f"{path.name} is malformed: {error}", BROKEN_FILE))
    except OSError as error:
        found.problems.append(Problem(f"{path.name} cannot be read: {error.strerror or error}", BROKEN_FILE))
    return found


def _structure(
    header: Header, base: BaseIdentity, config: LoraConfig | None, found: Weights
) -> Iterator[Problem]:
    for name, entry in header.tensors.items():
        if entry.dtype not in DTYPES:
            hint = "save the adapter in float32, float16 or bfloat16"
            yield Problem(f"tensor {name} has the dtype {entry.dtype}", hint)
        match, copy = LORA_NAME.fullmatch(without_prefix(name)), FROZEN_COPY.fullmatch(name)
        if match and bool(match["table"]) != bool(match["weight"]):
            sides = found.sides.setdefault(match["module"], {})
            if sides.setdefault(match["side"], name) != name:
                yield Problem(f"{name} and {sides[match['side']]} are the same weight", BROKEN_FILE)
        elif copy:
            yield from _frozen_copy(name, entry, base, without_prefix(copy["module"]))
        elif (
            config is not None
            and (own := HEAD_NAME.fullmatch(without_prefix(name)))
            and own["head"] in config.saved
        ):
            yield from _head_name(name, own["head"], own["parameter"], base, found)
        else:
            yield _unknown(name)
    if not header.tensors:
        yield Problem("it holds no weights", BROKEN_FILE)
    yield from _head(header, base, found)
    if found.head and not found.sides:
        # vLLM answers such a load with an empty internal error.
        yield Problem("it holds a head and no LoRA weights", "train it with target_modules beside the head")
    yield from _pairs(header, base, config, found)


def _pairs(
    header: Header, base: BaseIdentity, config: LoraConfig | None, found: Weights
) -> Iterator[Problem]:
    named: dict[str, str] = {}
    for module, sides in found.sides.items():
        if named.setdefault(base.layer(module), module) != module:
            yield Problem(f"{module} and {named[base.layer(module)]} are the same layer", BROKEN_FILE)
            continue
        if len(sides) == 1:
            here, missing = ("A", "B") if "A" in sides else ("B", "A")
            yield Problem(f"{module} has lora_{here} but no lora_{missing}", BROKEN_FILE)
            continue
        a, b = header.tensors[sides["A"]].shape, header.tensors[sides["B"]].shape
        tables = {".lora_embedding_" in name for name in sides.values()}
        if len(tables) > 1:
            yield Problem(f"{module} is half an embedding and half a linear layer", BROKEN_FILE)
            continue
        yield from _module(module, a, b, tables.pop(), base, config)
        found.rank = max(found.rank, a[0] if a else 0)
        found.parameters += math.prod(a) + math.prod(b)


def _module(
    module: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    table: bool,
    base: BaseIdentity,
    config: LoraConfig | None,
) -> Iterator[Problem]:
    """Check one pair: A is (rank, in) and B is (out, rank), where the base's weight is (out, in)."""
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
        yield Problem(f"{module}: A {_shape(a)} and B {_shape(b)} are no pair of one rank", BROKEN_FILE)
        return
    layer = base.layer(module)
    quantised = any(layer + suffix in base.shapes for suffix in QUANTISED)
    shape = base.shapes.get(f"{layer}.weight")
    if not quantised and (shape is None or len(shape) != 2):
        yield _no_layer(module, base)
        return
    # Patterns are matched last: against names that the base has, so that no name makes a match slow.
    if config is not None and config.targets is not None and module.rpartition(".")[2] not in config.targets:
        yield Problem(
            f"{module} is updated, but is none of the target_modules of adapter_config.json", PEFT_FILE
        )
    if config is not None and a[0] != config.rank_of(module):
        reason = f"{module} has rank {a[0]}, where adapter_config.json says {config.rank_of(module)}"
        yield Problem(reason, "use the adapter_config.json that was saved with these weights")
    if quantised or shape is None:
        return
    # An embedding's weight is (vocabulary, width), and its A is indexed by token: the other way round.
    out, inner = reversed(shape) if table else shape
    if (b[0], a[1]) != (out, inner):
        yield Problem(
            f"{module} is {b[0]}×{a[1]} in the adapter and {out}×{inner} in the base {base.name}", OTHER_BASE
        )


def _head_name(name: str, head: str, parameter: str, base: BaseIdentity, found: Weights) -> Iterator[Problem]:
    if head != base.head:
        hint = f"name it {base.head} in the weights and in modules_to_save, as it is there"
        yield Problem(f"{name} is a head that the base {base.name} calls {base.head}", hint)
    elif found.head.setdefault(parameter, name) != name:
        yield Problem(f"{name} and {found.head[parameter]} are the same weight", BROKEN_FILE)


def _head(header: Header, base: BaseIdentity, found: Weights) -> Iterator[Problem]:
    """Check an adapter's own classification head: (labels, width), and a bias of one number per label."""
    if not found.head:
        return
    if "weight" not in found.head:
        yield Problem(f"its head {base.head} has a bias but no weight", BROKEN_FILE)
        return
    shape = header.tensors[found.head["weight"]].shape
    if len(shape) != 2 or shape[0] < 1 or (base.width and shape[1] != base.width):
        wanted = f"labels×{base.width}" if base.width else "labels×width"
        yield Problem(f"its head {base.head} is {_shape(shape)}, where the base takes {wanted}", OTHER_BASE)
        return
    if shape[0] > base.serving.labels > 0:
        reason = f"its head has {shape[0]} labels, and the engine takes {base.serving.labels} at most"
        yield Problem(reason, f"add {LABELS} {shape[0]} to TENON_ENGINE_ARGS and restart the stack")
    found.parameters += math.prod(shape)
    if "bias" in found.head:
        bias = header.tensors[found.head["bias"]].shape
        found.parameters += math.prod(bias)
        if bias != shape[:1]:
            reason = f"its head {base.head} has a bias of {_shape(bias)} for {shape[0]} labels"
            yield Problem(reason, BROKEN_FILE)


def without_prefix(name: str) -> str:
    """The name of a tensor as the engine reads it, without the prefix that PEFT gives."""
    return name.replace(PREFIX, "") if name.startswith(PREFIX) else name


def _no_layer(module: str, base: BaseIdentity) -> Problem:
    reason, way_out = f"{module} is no layer of the base {base.name} that LoRA can change", OTHER_BASE
    if any(wrapper in module for wrapper in WRAPPERS) or module.startswith("module."):
        way_out = SAVED_BY_PEFT
    elif module == "lm_head" and f"{module}.weight" not in base.shapes:
        reason = f"{reason}: it shares the embeddings' weights"
        way_out = "train it without lm_head among the target_modules"
    return Problem(reason, way_out)


def _frozen_copy(name: str, entry: TensorEntry, base: BaseIdentity, module: str) -> Iterator[Problem]:
    # PEFT saves the untouched embedding beside a LoRA on it; the engine skips it. Another size means new tokens.
    shape = base.shapes.get(f"{module}.weight")
    if shape is not None and shape != entry.shape:
        hint = "train it without new tokens, on the base's own tokenizer"
        yield Problem(
            f"{name} is {_shape(entry.shape)}, where the base has {_shape(shape)}: tokens were added", hint
        )


def _unknown(name: str) -> Problem:
    if "embed_tokens" in name or "lm_head" in name:
        reason = f"{name} replaces a whole embedding, as adapters with added tokens do"
        return Problem(reason, "train it without new tokens: save_pretrained(…, save_embedding_layers=False)")
    if re.search(r"\.lora_(embedding_)?[AB]\.", name) and not name.endswith("bias"):
        return Problem(f"{name} has the adapter's name in it", SAVED_BY_PEFT)
    if "lora_magnitude_vector" in name:
        return Problem(f"{name} belongs to DoRA", "train it with use_dora=False")
    if name.endswith("bias"):
        return Problem(f"{name} is a bias", "train it with bias='none' and lora_bias=False")
    if HEAD_NAME.fullmatch(without_prefix(name)):
        hint = (
            "name the head in modules_to_save, as PEFT does for SEQ_CLS, and serve the base for classifying"
        )
        return Problem(f"{name} is no LoRA weight but a head that modules_to_save does not name", hint)
    return Problem(
        f"{name} is no LoRA weight", "train it as plain LoRA on linear layers, without modules_to_save"
    )


def _values(file: BinaryIO, header: Header, found: Weights) -> Iterator[Problem]:
    zero: dict[str, bool] = {}
    for tensors in (found.head, *found.sides.values()):
        for name in tensors.values():
            finite, zero[name] = _scan(file, header, header.tensors[name])
            if not finite:
                hint = "train it again: lower the learning rate or clip gradients"
                yield Problem(f"tensor {name} holds values that are not finite (NaN or infinity)", hint)
    found.all_zero = _silent(found.sides, zero) and not found.head


def _silent(sides: Mapping[str, Mapping[str, str]], zero: Mapping[str, bool]) -> bool:
    return all(zero[pair["A"]] or zero[pair["B"]] for pair in sides.values())


def _scan(file: BinaryIO, header: Header, entry: TensorEntry) -> tuple[bool, bool]:
    """Whether all values are finite, and whether all are zero."""
    finite, zero = True, True
    for chunk in read_chunks(file, header, entry):
        values = np.frombuffer(chunk, DTYPES[entry.dtype])
        if entry.dtype == "BF16":
            # numpy has no bfloat16; all exponent bits set means infinity or NaN, the sign does not count for zero
            finite = finite and not bool(np.any((values & 0x7F80) == 0x7F80))
            zero = zero and not bool(np.any(values & 0x7FFF))
        else:
            finite = finite and bool(np.isfinite(values).all())
            zero = zero and not bool(values.any())
    return finite, zero


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
