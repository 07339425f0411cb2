"""Checks ``adapter_config.json``: whether the engine computes what was trained."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from serve.registry.tensor_file import no_duplicates, open_plain

MAX_CONFIG_BYTES = 1024 * 1024
PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Initialisations that leave the base as it was; the others change its weights, which the engine does not."""

PLAIN_LORA = "train it as plain LoRA"
UNSERVED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("uses DoRA", "train it with use_dora=False, or merge it into the base"),
    "lora_bias": ("has trained biases (lora_bias)", "train it with lora_bias=False"),
    "alora_invocation_tokens": ("is an activated LoRA (alora_invocation_tokens)", PLAIN_LORA),
    "layer_replication": ("replicates layers (layer_replication)", "train it without layer_replication"),
    "use_qalora": ("uses QALoRA", PLAIN_LORA),
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
WILDCARD = re.compile(r"\.\*|\.\+|\\d\+|\[0-9\]\+")


class Problem(NamedTuple):
    """Why an adapter is refused, and the way out."""

    reason: str
    hint: str


class UnreadableConfig(ValueError):
    """The file cannot be read as a configuration at all."""


@dataclass(frozen=True)
class LoraConfig:
    """What the weights must agree with: ranks by module, and the base that was named, if any."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    base: str | None

    def rank_of(self, module: str) -> int:
        """The rank of a module, by PEFT's rule: the first pattern that matches a dotted suffix wins."""
        for pattern, rank in self.rank_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return rank
        return self.rank


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


def check_config(config: Mapping[str, Any], max_rank: int) -> tuple[LoraConfig | None, list[Problem]]:
    """What the weights must agree with (None where that is unclear), and every problem.

    The refusals follow ``PEFTHelper`` of vLLM, which would answer them with an internal error at load time, and
    add what it ignores although the answers would be wrong.
    """
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        problem = Problem(
            f"peft_type is {peft_type!r}, not 'LORA'", "only LoRA adapters can be served; train it as LoRA"
        )
        return None, [problem]
    ranks = list(_rank_problems(config, max_rank))
    patterns = list(_pattern_problems(config, max_rank))
    problems = [*_feature_problems(config), *ranks, *patterns]
    if any(problem.hint != _too_high(max_rank) for problem in [*ranks, *patterns]):
        return None, problems
    base = config.get("base_model_name_or_path")
    pattern = dict(config.get("rank_pattern") or {})
    plain = LoraConfig(
        config["r"], float(config["lora_alpha"]), pattern, base if isinstance(base, str) else None
    )
    return plain, problems


def _feature_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    for key, (reason, hint) in UNSERVED.items():
        if config.get(key):
            yield Problem(reason, hint)
    if config.get("bias", "none") != "none":
        yield Problem(f"has trained biases (bias={config['bias']!r})", "train it with bias='none'")
    if config.get("modules_to_save"):
        yield Problem(
            f"brings whole layers (modules_to_save={config['modules_to_save']!r})",
            "train it without modules_to_save; LoRA on the same layers can be served",
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        yield Problem(
            f"its initialisation {init!r} changed the base's weights, which are not in the adapter",
            "convert it to plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        yield Problem(
            f"is made for the task type {task!r}, not for generating text", "train it for CAUSAL_LM"
        )


def _rank_problems(config: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _positive(rank):
        yield Problem(f"r is {rank!r}, not a whole number above zero", "correct r in adapter_config.json")
    elif rank > max_rank:
        yield Problem(f"its rank {rank} is above the engine's maximum of {max_rank}", _too_high(max_rank))
    if not _number(alpha) or alpha == 0:
        yield Problem(
            f"lora_alpha is {alpha!r}, not a number other than zero",
            "correct lora_alpha in adapter_config.json",
        )


def _pattern_problems(config: Mapping[str, Any], max_rank: int) -> Iterator[Problem]:
    for key, valid in (("rank_pattern", _positive), ("alpha_pattern", _number)):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            yield Problem(f"{key} is not an object", f"correct {key} in adapter_config.json")
            continue
        for pattern, value in patterns.items():
            if not _harmless(pattern):
                yield Problem(
                    f"{key} has a pattern that we will not run: {pattern[:60]!r}",
                    "write module names in full",
                )
            elif not valid(value):
                yield Problem(
                    f"{key} gives {pattern!r} the value {value!r}", f"correct {key} in adapter_config.json"
                )
            elif key == "rank_pattern" and value > max_rank:
                reason = f"its rank {value} for {pattern!r} is above the engine's maximum of {max_rank}"
                yield Problem(reason, _too_high(max_rank))


def _too_high(max_rank: int) -> str:
    return f"raise TENON_MAX_LORA_RANK (now {max_rank}) and restart the stack, or train with a lower rank"


def _positive(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _harmless(pattern: str) -> bool:
    """Whether a pattern is a valid expression whose matching takes no more than polynomial time."""
    rest, wildcards = WILDCARD.subn("", pattern)
    if len(pattern) > 256 or wildcards > 3 or any(sign in rest for sign in "*+?{"):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
