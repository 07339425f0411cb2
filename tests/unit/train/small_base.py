"""A base so small that a training takes a second, made without torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from serve.registry.base import BaseIdentity
from train.data.prepare import Prepared
from train.data.report import DropReport
from train.data.tasks import Task

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, INNER = 64, 2, 4, 2, 16, 96
TOPICS = {"card": "billing", "login": "access", "parcel": "delivery", "refund": "money"}
FILLERS = [
    "please",
    "help",
    "me",
    "with",
    "my",
    "problem",
    "it",
    "is",
    "about",
    "the",
    "thing",
    "again",
    "today",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_base(folder: Path, *, template: str = TEMPLATE, poison: bool = False) -> Path:
    """A random Qwen3 in hub format with a word-level tokenizer; ``poison`` puts a NaN into its weights."""
    folder.mkdir(parents=True)
    words = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<unk>",
        "\n",
        "system",
        "user",
        "assistant",
        "classify",
    ]
    words += [*TOPICS, *TOPICS.values(), *dict.fromkeys(FILLERS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    split = pre_tokenizers.Split
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(" ", "removed"), split("\n", "isolated")])
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": len(words),
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = _weights(len(words))
    if poison:
        weights["model.norm.weight"][0] = np.nan
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (WIDTH,),
            f"{at}.post_attention_layernorm.weight": (WIDTH,),
            f"{at}.self_attn.q_norm.weight": (HEAD,),
            f"{at}.self_attn.k_norm.weight": (HEAD,),
            f"{at}.self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
            f"{at}.self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
            f"{at}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.down_proj.weight": (WIDTH, INNER),
        }
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else generator.normal(0, 0.15, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def make_row(number: int, *, answer: str | None = None) -> dict[str, object]:
    """A message about one topic, and its label unless ``answer`` is given."""
    generator = np.random.default_rng(number)
    topic = list(TOPICS)[number % len(TOPICS)]
    words = [*generator.choice(FILLERS, generator.integers(2, 7)), topic]
    generator.shuffle(words)
    return {
        "id": f"{number:012x}",
        "prompt": [{"role": "system", "content": "classify"}, {"role": "user", "content": " ".join(words)}],
        "completion": [{"role": "assistant", "content": TOPICS[topic] if answer is None else answer}],
    }


def write_data(folder: Path, train: list[dict[str, object]], validation: list[dict[str, object]]) -> Prepared:
    """What the data room would have prepared."""
    folder.mkdir(parents=True)
    splits = {"train": train, "validation": validation, "test": []}
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    counts = {name: len(rows) for name, rows in splits.items()}
    task = Task("label", tuple(sorted(TOPICS.values())), None, None, 8, 8)
    fingerprint = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    longest = max(len(json.dumps(row)) for row in train)
    return Prepared(folder, task, counts, DropReport(), fingerprint, longest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Room:
    """A base and data to train on."""

    base: BaseIdentity
    prepared: Prepared
