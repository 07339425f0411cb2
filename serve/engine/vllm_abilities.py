"""``python -m serve.engine.vllm_abilities ARCHITECTURE`` says, in JSON, what vLLM can adapt of it."""

import json
import os
import sys

from serve.imports import collector_resting


def abilities(architecture: str) -> dict[str, object]:
    """As :class:`serve.engine.abilities.Abilities` has it."""
    with collector_resting():
        from vllm.model_executor.models import ModelRegistry
        from vllm.model_executor.models.interfaces import supports_lora

    model = ModelRegistry.models.get(architecture)
    if model is None:  # of its Transformers backend, if of any, which adapts layers by their own names
        return {"adapts": True, "parts": {}}
    try:
        found = model.load_model_cls()
    except Exception as error:  # noqa: BLE001  a model's module may need anything
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    packed = getattr(found, "packed_modules_mapping", {})
    return {"adapts": bool(supports_lora(found)), "parts": packed if isinstance(packed, dict) else {}}


if __name__ == "__main__":
    said = json.dumps(abilities(sys.argv[1]))
    sys.stdout.write(f"\n{said}\n")
    sys.stdout.flush()
    os._exit(0)  # Python takes apart what is imported, which takes a second and prints complaints
