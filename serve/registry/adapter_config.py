"""Checks ``adapter_config.json``: whether the engine computes what was trained."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from serve.registry.serving import CONVERT as CONVERT_OPTION
from serve.registry.serving import HEADS, RUNNER, TEXT, Purpose, Serving
from serve.registry.tensor_file import no_duplicates, open_plain

MAX_CONFIG_BYTES = 1024 * 1024
PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Initialisations that leave the base as it was; the others change its weights, which the engine does not."""

PLAIN_LORA = "train it as plain LoRA"
CONVERT = "convert it with PEFT's save_as_lora(path, model, rank=…)"
UNSERVED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("uses DoRA", f"train it with use_dora=False, or {CONVERT}"),
    "lora_bias": ("has trained biases (lora_bias)", "train it with lora_bias=False"),
    "alora_invocation_tokens": ("is an activated LoRA (alora_invocation_tokens)", PLAIN_LORA),
    "layer_replication": ("replicates layers (layer_replication)", "train it without layer_replication"),
    "use_qalora": ("uses QALoRA", "train it with use_qalora=False"),
    "use_bdlora": ("uses block-diagonal LoRA", PLAIN_LORA),
    "arrow_config": ("routes between adapters (arrow_config)", PLAIN_LORA),
    "kasa_config": ("uses KaSA, which changes the base's weights", PLAIN_LORA),
    "monteclora_config": ("uses MonteCLoRA", PLAIN_LORA),
    "trainable_token_indices": (
        "trains or adds tokens (trainable_token_indices)",
        "train it without new tokens",
    ),
    "target_parameters": (
        "adapts raw parameters (target_parameters)",
        "adapt linear layers with target_modules",
    ),
    "auto_map": ("names code to run (auto_map)", "remove auto_map; adapters bring no code"),
}
PEFT_FILE = "use the adapter_config.json that PEFT wrote when it saved these weights"
CONVERTIBLE = {
    *("ADALORA", "BOFT", "BONE", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LOHA", "LOKR"),
    *("MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA", "WAVEFT"),
}
"""PEFT types that change linear layers by a matrix, so that a LoRA can come close to them."""
KNOWN_INITS = ("pissa", "olora", "corda", "loftq")
TASKS: Mapping[str, tuple[Purpose, str]] = {
    "FEATURE_EXTRACTION": ("embed", "texts as vectors"),
    "SEQ_CLS": ("classify", "classifying texts"),
}
"""PEFT's tasks beside CAUSAL_LM, what a base must be served for to answer them, and in words."""
NO_TASKS: Mapping[str, str] = {
    "TOKEN_CLS": "vLLM has no head of an adapter's own for single tokens",
    "SEQ_2_SEQ_LM": "only bases that are one causal language model are served",
    "QUESTION_ANS": "vLLM has no head for it",
}
DOES: Mapping[Purpose, str] = {
    "generate": "generates text",
    "embed": "makes vectors of texts",
    "classify": "classifies texts",
}
PLAIN_NAME = re.compile(r"[\w.]+")
TIED = ("embed_tokens", "lm_head")
"""Layers of which PEFT updates both where it is told to keep them the same, whichever is named."""
BF16_MAX = (2 - 2**-7) * 2.0**127
MAX_PATTERNS = 2000
MAX_WILD_PATTERNS = 64
BROAD = re.compile(r"\.\*|\.\+")
NARROW = re.compile(r"\\d\+|\[0-9\]\+")


class Problem(NamedTuple):
    """Why an adapter is refused, and the way out."""

    reason: str
    hint: str


class UnreadableConfig(ValueError):
    """The file cannot be read as a configuration at all."""


@dataclass(frozen=True)
class LoraConfig:
    """What the weights must agree with: ranks by module, and the base that was named, if any.

    ``saved`` are the whole layers that the adapter brings: classification heads. ``targets`` are the names of the
    layers that it updates, None where an expression says which, which we do not run.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    base: str | None
    saved: tuple[str, ...] = ()
    targets: frozenset[str] | None = None

    @cached_property
    def _ranks(self) -> list[tuple[re.Pattern[str], int]]:
        return [(re.compile(rf"(.*\.)?({key})$"), rank) for key, rank in self.rank_pattern.items()]

    def rank_of(self, module: str) -> int:
        """The rank of a module, by PEFT's rule: the first pattern that matches a dotted suffix wins."""
        return next((rank for pattern, rank in self._ranks if pattern.match(module)), self.rank)


def read_config(path: Path) -> dict[str, Any]:
    """The file's JSON object; raises UnreadableConfig."""
    try:
        with open_plain(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise UnreadableConfig(f"{path.name} cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise UnreadableConfig(f"{path.name} is larger than {MAX_CONFIG_BYTES:,} bytes")
    try:
        content = json.loads(raw, object_pairs_hook=no_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnreadableConfig(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableConfig(f"{path.name} is not a JSON object")
    return content


def check_config(
    config: Mapping[str, Any], max_rank: int, serving: Serving = TEXT
) -> tuple[LoraConfig | None, list[Problem]]:
    """What the weights must agree with (None where that is unclear), and every problem.

    ``serving`` is what the base is served for: generating text, unless told otherwise.

    The refusals follow ``PEFTHelper`` of vLLM, which would answer them with an internal error at load time, and
    add what it ignores although the answers would be wrong.
    """
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        way_out = "only LoRA adapters can be served; train it as LoRA"
        if isinstance(peft_type, str) and peft_type.upper() in CONVERTIBLE:
            way_out = f"only LoRA adapters can be served; {CONVERT}, or train it as LoRA"
        return None, [Problem(f"peft_type is {brief(peft_type)}, not 'LORA'", way_out)]
    ranks = list(_rank_problems(config, max_rank))
    patterns = list(_pattern_problems(config, max_rank))
    asked = [*_task_problems(config, serving), *_saved_problems(config, serving)]
    targeted = list(_target_problems(config))
    problems = [*_feature_problems(config), *targeted, *asked, *ranks, *patterns]
    if any(problem.hint != _too_high(max_rank) for problem in [*targeted, *ranks, *patterns]):
        return None, problems
    base = config.get("base_model_name_or_path")
    pattern = dict(config.get("rank_pattern") or {})
    targets = config["target_modules"]
    tied = TIED if config.get("ensure_weight_tying") else ()
    plain = LoraConfig(
        config["r"],
        float(config["lora_alpha"]),
        pattern,
        base if isinstance(base, str) else None,
        saved=tuple(name for name in HEADS if name in _list(config.get("modules_to_save"))),
        targets=frozenset(name.rpartition(".")[2] for name in [*targets, *tied])
        if isinstance(targets, list) and all(map(PLAIN_NAME.fullmatch, targets))
        else None,
    )
    return plain, problems


def _feature_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    for key, (reason, hint) in UNSERVED.items():
        if config.get(key):
            yield Problem(reason, hint)
    if config.get("bias", "none") != "none":
        yield Problem(f"has trained biases (bias={brief(config['bias'])})", "train it with bias='none'")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        known = init.lower().startswith(KNOWN_INITS)
        yield Problem(
            f"its initialisation {brief(init)} "
            + ("changed the base's weights, which are not in the adapter" if known else "is not known here"),
            "convert it to plain LoRA where it was trained: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=FOLDER_SAVED_BEFORE_TRAINING)",
        )
    if type(config.get("use_rslora", False)) is not bool:
        yield Problem(f"use_rslora is {brief(config['use_rslora'])}, not true or false", PEFT_FILE)


def _target_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    targets = config.get("target_modules")
    if targets is None:
        yield Problem("names no target_modules, which the engine asks for", PEFT_FILE)
        return
    names = targets if isinstance(targets, list) else [targets]
    if not names or not all(isinstance(name, str) and name for name in names):
        yield Problem(f"target_modules is {brief(targets)}, not names of layers", PEFT_FILE)


def _task_problems(config: Mapping[str, Any], serving: Serving) -> Iterator[Problem]:
    """A head or a vector that was trained needs an engine that asks for it; plain LoRA fits every purpose."""
    task = config.get("task_type")
    if task in (None, "CAUSAL_LM"):
        return
    purpose, words = TASKS.get(task, (None, "")) if isinstance(task, str) else (None, "")
    if purpose is None:
        why = NO_TASKS.get(task, "") if isinstance(task, str) else ""
        reason = f"is made for the task type {brief(task)}, which no engine serves" + (
            f": {why}" if why else ""
        )
        yield Problem(reason, f"train it for CAUSAL_LM, {' or '.join(TASKS)}")
    elif purpose != serving.purpose:
        yield Problem(
            f"is made for {words} ({task}), and the base {DOES[serving.purpose]} here", _served_for(purpose)
        )


def _saved_problems(config: Mapping[str, Any], serving: Serving) -> Iterator[Problem]:
    """vLLM takes whole layers only where they are the head of an engine that classifies (``PEFTHelper``)."""
    saved = config.get("modules_to_save")
    if not saved:
        return
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        yield Problem(f"modules_to_save is {brief(saved)}, not a list of names", PEFT_FILE)
    elif any(name not in HEADS for name in saved):
        yield Problem(
            f"brings whole layers (modules_to_save={brief(saved)})",
            "train it without modules_to_save and without new tokens; LoRA on the same layers can be served",
        )
    elif serving.purpose != "classify":
        yield Problem(
            f"brings a classification head (modules_to_save={brief(saved)}), and the base "
            f"{DOES[serving.purpose]} here",
            _served_for("classify"),
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _served_for(purpose: Purpose) -> str:
    return (
        f"serve the base with TENON_ENGINE_ARGS='{RUNNER} pooling {CONVERT_OPTION} {purpose}' "
        "(docs/adapters.md), or train it for CAUSAL_LM"
    )


def _rank_problems(config: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _positive(rank):
        yield Problem(
            f"r is {brief(rank)}, not a whole number above zero", "correct r in adapter_config.json"
        )
    elif rank > max_rank:
        yield Problem(f"its rank {rank} is above the engine's maximum of {max_rank}", _too_high(max_rank))
    if not _number(alpha) or alpha == 0:
        yield Problem(
            f"lora_alpha is {brief(alpha)}, not a number other than zero that the engine can hold",
            "correct lora_alpha in adapter_config.json",
        )


def _pattern_problems(config: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    for key, valid in (("rank_pattern", _positive), ("alpha_pattern", _number)):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            yield Problem(f"{key} is not an object", f"correct {key} in adapter_config.json")
            continue
        if len(patterns) > MAX_PATTERNS or sum(map(_wild, patterns)) > MAX_WILD_PATTERNS:
            yield Problem(
                f"{key} has {len(patterns):,} patterns, which would take long to match",
                f"write at most {MAX_PATTERNS:,} patterns, {MAX_WILD_PATTERNS} of them with wildcards",
            )
            continue
        for pattern, value in patterns.items():
            if not _harmless(pattern):
                yield Problem(
                    f"{key} has a pattern that we will not run: {pattern[:60]!r}",
                    "write module names in full",
                )
            elif not valid(value):
                yield Problem(
                    f"{key} gives {pattern!r} the value {brief(value)}",
                    f"correct {key} in adapter_config.json",
                )
            elif key == "rank_pattern" and value > max_rank:
                reason = f"its rank {value} for {pattern!r} is above the engine's maximum of {max_rank}"
                yield Problem(reason, _too_high(max_rank))


def _too_high(max_rank: int) -> str:
    return f"raise TENON_MAX_LORA_RANK (now {max_rank}) and restart the stack, or train with a lower rank"


def _positive(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    # JSON has integers that no float can hold; the comparison is exact, and false for NaN.
    return type(value) in (int, float) and abs(value) <= BF16_MAX


def brief(value: Any) -> str:
    """A value as a message shows it: a file may hold a megabyte where a word belongs."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _wild(pattern: str) -> bool:
    return bool(BROAD.search(pattern) or NARROW.search(pattern) or "|" in pattern)


def _harmless(pattern: str) -> bool:
    """Whether a pattern is a valid expression that takes a bounded number of steps; the engine runs it too.

    Beside repetition, alternatives multiply: thirty times ``(.|.)`` before a letter that never comes take hours.
    """
    rest, broad = BROAD.subn("", pattern)
    rest, narrow = NARROW.subn("", rest)
    if len(pattern) > 256 or broad > 2 or broad + narrow > 3 or any(sign in rest for sign in "*+?{"):
        return False
    if rest.count("(") > 3 or rest.count("|") > 16:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
