"""Small random bases of many families, and what PEFT makes of adapters for them.

``python -m train.families make NAME FOLDER`` writes one, with the tokenizer and the template of the built-in base;
``python -m train.families score FOLDER ADAPTER ID…`` says, in JSON, the log-probabilities (nats) of the tokens after
the first by the base and by the adapter, in float32. ``make check-bases`` compares them with the engine's.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.registry.base import BUILTIN, resolve_model

HEADS = {"head_dim": 32}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "apertus": ("ApertusConfig", {}),
    "arcee": ("ArceeConfig", {}),
    "cohere2": ("Cohere2Config", HEADS),
    "ernie4.5": ("Ernie4_5Config", HEADS),
    "exaone4": ("Exaone4Config", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3": ("Gemma3TextConfig", HEADS),
    "gemma4": ("Gemma4TextConfig", {**HEADS, "num_hidden_layers": 4}),
    "glm": ("GlmConfig", HEADS),
    "glm4": ("Glm4Config", HEADS),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "granite": ("GraniteConfig", {}),
    "hunyuan": ("HunYuanDenseV1Config", HEADS),
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "nemotron": ("NemotronConfig", HEADS),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", HEADS),
    "seed-oss": ("SeedOssConfig", HEADS),
    "smollm3": ("SmolLM3Config", {}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2": ("Starcoder2Config", {}),
}
"""The class of each family's configuration in transformers, and what it needs besides the sizes."""

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def make(name: str, folder: Path) -> None:
    """Write the base of a family, its weights drawn anew but always alike."""
    import torch
    import transformers

    built_in = resolve_model(BUILTIN)
    config = json.loads((built_in / "config.json").read_text(encoding="utf-8"))
    tokens = {key: config.get(key) for key in ("eos_token_id", "pad_token_id", "vocab_size")}
    class_name, more = FAMILIES[name]
    made = getattr(transformers, class_name)(**{**SIZES, **tokens, "bos_token_id": None, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in built_in.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)


def score(folder: Path, adapter: Path, ids: Sequence[int]) -> dict[str, list[float]]:
    """Log-probabilities (nats) of the tokens after the first, by the base and by the adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([list(ids)])

    def told(model: Any) -> list[float]:
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].log_softmax(-1)
        return [float(value) for value in logits.gather(1, tokens[0, 1:, None])[:, 0]]

    return {"base": told(base), "adapter": told(PeftModel.from_pretrained(base, adapter))}


def main(arguments: Sequence[str]) -> None:
    """As the module says."""
    if arguments[0] == "make":
        make(arguments[1], Path(arguments[2]))
    else:
        folder, adapter, *ids = arguments[1:]
        sys.stdout.write(json.dumps(score(Path(folder), Path(adapter), list(map(int, ids)))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
