"""Reads safetensors files without torch: the header under caps, the data in plain chunks.

The layout (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, little
endian; the header, a JSON object from tensor name to dtype, shape and data offsets; the data, without holes.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
CHUNK = 8 * 1024 * 1024


class MalformedTensors(ValueError):
    """A safetensors file breaks its format; callers turn this into an error that names their remedy."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: ``begin`` and ``end`` are bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: its tensors, its own bytes and where the data starts in the file."""

    tensors: dict[str, TensorEntry]
    raw: bytes
    data_start: int
    file_bytes: int


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading; a link, device or pipe raises OSError, also if it was swapped in just now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_header(file: BinaryIO, *, max_bytes: int, max_entries: int) -> Header:
    """Read and check the header of an open file; raises MalformedTensors.

    ``max_bytes`` and ``max_entries`` bound the work before anything is believed. Sizes are Python integers,
    so no shape can overflow; every byte of the data must belong to exactly one tensor.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise MalformedTensors("the file is too short to hold a safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > max_bytes:
        raise MalformedTensors(
            f"its header claims {length:,} bytes, where at most {max_bytes:,} can be needed"
        )
    raw = file.read(length)
    if len(raw) < length or not raw.startswith(b"{"):
        raise MalformedTensors("its header is cut off or is not JSON")
    content = _parse(raw)
    content.pop("__metadata__", None)
    if len(content) > max_entries:
        raise MalformedTensors(
            f"it lists {len(content):,} tensors, where at most {max_entries:,} can be needed"
        )
    tensors = {name: _entry(name, value) for name, value in content.items()}
    _check_layout(tensors, file_bytes - 8 - length)
    return Header(tensors, raw, 8 + length, file_bytes)


def read_chunks(file: BinaryIO, header: Header, entry: TensorEntry) -> Iterator[bytes]:
    """The data of one tensor in chunks of whole items; raises MalformedTensors if the file has become shorter.

    Plain reads and no memory map: a file that shrinks under a map kills the process with SIGBUS.
    """
    file.seek(header.data_start + entry.begin)
    left = entry.end - entry.begin
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk or len(chunk) % ITEM_BYTES[entry.dtype]:
            raise MalformedTensors("the file became shorter while it was read")
        left -= len(chunk)
        yield chunk


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for :func:`json.loads` that raises ValueError for a key given twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedTensors(f"its header is not valid JSON ({error})") from error
    return dict(content)


def _entry(name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict):
        raise MalformedTensors(f"the header's entry for {name!r} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedTensors(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise MalformedTensors(f"tensor {name!r} has a malformed shape or offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise MalformedTensors(
            f"tensor {name!r} has {end - begin:,} bytes, which its shape {shape} does not need"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            problem = "overlaps another tensor" if entry.begin < reached else "leaves a hole before it"
            raise MalformedTensors(f"tensor {name!r} {problem}")
        reached = entry.end
    if reached > data_bytes:
        raise MalformedTensors(
            f"the file is truncated: {reached:,} bytes of weights are listed, {data_bytes:,} are there"
        )
    if reached < data_bytes:
        raise MalformedTensors(f"{data_bytes - reached:,} bytes at its end belong to no tensor")
