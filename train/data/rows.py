"""The rows that are written: conversational prompt and completion, one JSON object per line."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.examples import Example
from train.data.spec import SPLITS


def rows(examples: Sequence[Example], system: str) -> list[str]:
    """Each example as JSON with ``id``, ``prompt``, ``completion`` (and ``tools`` where it has some).

    ``system`` goes before prompts that have no system message. ``id`` is the start of the SHA-256 of the row
    and of how often it occurred before, so it is unique within the file.
    """
    seen: Counter[str] = Counter()
    lines = []
    for example in examples:
        prompt = example.prompt
        if system and all(message["role"] != "system" for message in prompt):
            prompt = [{"role": "system", "content": system}, *prompt]
        row: dict[str, Any] = {"prompt": prompt, "completion": [example.completion]}
        if example.tools:
            row["tools"] = example.tools
        body = _dump(row)
        content = _id(body)
        seen[content] += 1
        lines.append(_dump({"id": _id(f"{body}\n{seen[content]}"), **row}))
    return lines


def fingerprint(lines: Mapping[str, Sequence[str]]) -> str:
    """The SHA-256 of all rows by split, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(lines):
        digest.update(f"{name} {len(lines[name])}\n".encode())
        for line in sorted(lines[name]):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the splits that lie in ``folder`` now; raises OSError or ValueError where they are no text."""
    # Not splitlines(): an answer may hold U+2028 or U+0085, which would cut a JSON line in two.
    texts = {name: (folder / f"{name}.jsonl").read_bytes().decode() for name in SPLITS}
    return fingerprint(
        {name: text.removesuffix("\n").split("\n") if text else [] for name, text in texts.items()}
    )


def _id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dump(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))
