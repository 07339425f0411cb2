"""What a base is served for, by vLLM's rules: generating text, embedding texts as vectors, or classifying them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Purpose = Literal["generate", "embed", "classify"]

GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
CLASSIFYING = "ForSequenceClassification"
HEADS = ("score", "classifier")
"""What vLLM calls a head that turns a text's hidden state into one number per label."""

RUNNER, CONVERT, LABELS = "--runner", "--convert", "--max-lora-cls-labels"
OVERRIDES = "--hf-overrides"
USUAL_LABELS = 32
"""Labels that an adapter's own head may have where nobody says otherwise; room for 32 costs next to nothing."""


@dataclass(frozen=True)
class Serving:
    """The purpose; where that is to classify, the base's own labels, and the most that an adapter's head may have."""

    purpose: Purpose = "generate"
    base_labels: int = 0
    labels: int = 0

    @classmethod
    def of_json(cls, value: Any) -> "Serving":
        """What an engine's record says; one of another release of Tenon may say nothing, or more."""
        given = value if isinstance(value, dict) else {}
        return cls(**{field.name: given.get(field.name, field.default) for field in fields(cls)})


TEXT = Serving()
"""What a base is served for unless somebody says otherwise."""


def serving_of(
    architecture: str, config: Mapping[str, Any], engine_args: Sequence[str], *, sentences: bool = False
) -> Serving:
    """What an engine that is started with ``engine_args`` makes of a base, as ``ModelConfig`` of vLLM decides it.

    ``sentences``: the folder has what Sentence Transformers writes, so that vLLM makes vectors unless told otherwise.
    """
    config = {**config, **_overrides(engine_args)}
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        architecture = names[0]
    classifies = architecture.endswith(CLASSIFYING)
    runner, convert = option(engine_args, RUNNER) or "auto", option(engine_args, CONVERT) or "auto"
    if runner == "auto":
        pooling = convert not in ("auto", "none") or classifies or sentences
        runner = "pooling" if pooling else "generate"
    if runner != "pooling":
        return TEXT
    if convert == "auto":
        convert = "classify" if classifies else "embed"
    if convert != "classify" and not (convert == "none" and classifies):
        return Serving("embed")
    own = _labels(config)
    given = option(engine_args, LABELS) or ""
    return Serving("classify", own, int(given) if given.isdigit() else max(own, USUAL_LABELS))


def makes_head(config: Mapping[str, Any], engine_args: Sequence[str]) -> bool:
    """Whether vLLM makes a classification head of the base's output layer, as for rerankers that answer yes or no."""
    config = {**config, **_overrides(engine_args)}
    return bool(config.get("classifier_from_token") or config.get("method"))


def option(args: Sequence[str], name: str) -> str | None:
    """The value that a command line gives an option, the last one; vLLM takes underscores for hyphens."""
    found = None
    for place, arg in enumerate(args):
        key, sign, value = arg.partition("=")
        if key.replace("_", "-") != name:
            continue
        if sign:
            found = value
        elif place + 1 < len(args):
            found = args[place + 1]
    return found


def _labels(config: Mapping[str, Any]) -> int:
    names, number = config.get("id2label"), config.get("num_labels")
    if isinstance(names, dict) and names:
        return len(names)
    return (
        number if type(number) is int and number > 0 else 2
    )  # what transformers takes where nothing is said


def _overrides(args: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(option(args, OVERRIDES) or "{}")
    except ValueError:
        return {}  # vLLM says what is wrong with it
    return found if isinstance(found, dict) else {}
