"""Whether the engine will serve what is about to be trained: found out before the training, not after it."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from serve.config import Settings
from serve.engine.abilities import abilities
from serve.engine.device import installed_device
from serve.errors import BaseModelError
from serve.registry.base import BaseIdentity

EXPERTS_ON_CPU = "vLLM serves no adapters on a base with experts on a CPU"


def check_device(base: BaseIdentity) -> None:
    """Raise :class:`BaseModelError` where an engine of ours could not serve adapters of this base on this machine."""
    if base.has_experts and find_spec("vllm") is not None and installed_device() == "cpu":
        raise BaseModelError(
            f"{EXPERTS_ON_CPU}, and {base.name} has some",
            "choose a base without experts, or a machine with a GPU",
        )


def adaptable(settings: Settings, base: BaseIdentity, say: Callable[[str], None]) -> BaseIdentity:
    """The base with the names of the layers that vLLM does not adapt.

    Raises :class:`BaseModelError` where it would serve no adapter of the base. Where vLLM is not installed here,
    nothing is known. Attached engines may be on other machines, so the device is not asked for where there may be some.
    """
    if settings.engine_url is None and settings.fleet is None:
        check_device(base)
    say(f"asking vLLM what it adapts of {base.architecture}")
    found = abilities(base.architecture, settings.home)
    if found is None:
        return base
    if found.problem:
        raise BaseModelError(f"vLLM cannot load {base.architecture}: {found.problem}", found.hint)
    if not found.adapts:
        raise BaseModelError(
            f"vLLM adapts no {base.architecture}, which {base.name} is", "choose another base"
        )
    layers = {name.removesuffix(".weight").rpartition(".")[2] for name in base.shapes}
    return replace(base, unadapted=frozenset(name for name in layers if not found.adapts_layer(name)))
