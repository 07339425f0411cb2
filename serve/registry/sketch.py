"""What an adapter's weights mean, in a few numbers: to tell one adapter that was saved twice from two adapters.

Files of one adapter may differ in dtype, in zeros that fill up the rank, in the names' prefix, and in whether a factor
stands in alpha or in B. What counts is what each layer gets added, ``D = alpha/r · B·A``, and of a classification
head the head. Of D its products with a few fixed vectors x of random signs are taken: as E‖Dx‖² is the squared
Frobenius norm of D, distances between products estimate those between the changes, without the large matrices.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from serve.registry.adapter_config import read_config
from serve.registry.store import CONFIG, WEIGHTS
from serve.registry.tensor_file import Header, open_plain, read_chunks, read_header
from serve.registry.weights import (
    BYTES_PER_ENTRY,
    DTYPES,
    HEAD_NAME,
    LORA_NAME,
    MIN_HEADER_BYTES,
    without_prefix,
)

PROBES = 4
"""Random vectors per layer; what they miss in one layer, the other layers show."""

MOST_ENTRIES = 100_000

Sketch = Mapping[str, NDArray[np.float32]]
"""By layer the products, one behind the other."""


def sketch(folder: Path) -> Sketch:
    """Read the files of a registered adapter; raises ValueError or OSError where they are none any more."""
    config = read_config(folder / CONFIG)
    products = {}
    with open_plain(folder / WEIGHTS) as file:
        header = read_header(
            file,
            max_bytes=max(MIN_HEADER_BYTES, BYTES_PER_ENTRY * MOST_ENTRIES),
            max_entries=MOST_ENTRIES,
        )
        pairs: dict[str, dict[str, str]] = {}
        for name in header.tensors:
            if match := LORA_NAME.fullmatch(without_prefix(name)):
                pairs.setdefault(match["module"], {})[match["side"]] = name
            elif HEAD_NAME.fullmatch(without_prefix(name)):
                layer = without_prefix(name)
                values = _read(file, header, name)
                products[layer] = _product(layer, values) if values.ndim == 2 else values
        for module, sides in pairs.items():
            a, b = (_read(file, header, sides[side]) for side in ("A", "B"))
            layer = module.removeprefix("model.")  # what reads texts is often trained without it
            products[layer] = _scale(config, module, a.shape[0]) * (b @ _product(layer, a))
    return products


def apart(left: Sketch, right: Sketch) -> float:
    """How far two adapters are from each other: in the middle layer, as a share of the larger change.

    0 for the same, about 1.4 for two that have nothing to do with each other. The middle one of all layers that
    either changes, as an engine may ignore some (an embedding's, a head that is not asked).
    """
    shares = []
    for layer in left.keys() | right.keys():
        one, other = left.get(layer), right.get(layer)
        sizes = [float(np.linalg.norm(side)) for side in (one, other) if side is not None]
        if not any(sizes):
            continue
        if one is None or other is None or one.shape != other.shape:
            shares.append(1.0)
        else:
            shares.append(float(np.linalg.norm(one - other)) / max(sizes))
    return median(shares) if shares else 0.0


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha/r, with PEFT's rule for ``alpha_pattern``; of rsLoRA the root of r."""
    patterns = dict(config.get("alpha_pattern") or {})
    found = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = float(found[0] if found else config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _product(layer: str, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "big")
    signs = np.random.default_rng(seed).integers(0, 2, (matrix.shape[1], PROBES)) * 2 - 1
    return matrix @ signs.astype(np.float32)


def _read(file: BinaryIO, header: Header, name: str) -> NDArray[np.float32]:
    entry = header.tensors[name]
    values = np.frombuffer(b"".join(read_chunks(file, header, entry)), DTYPES[entry.dtype])
    if entry.dtype == "BF16":  # numpy has none: they are the upper halves of float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(entry.shape)
