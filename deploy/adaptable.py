"""Whether the engine will serve what is about to be trained: found out before the training, not after it."""

from collections.abc import Callable
from dataclasses import replace

from deploy.fleet import check_device, engines_of
from serve.config import Settings
from serve.engine.abilities import abilities
from serve.engine.spec import is_given
from serve.errors import BaseModelError
from serve.registry.base import BaseIdentity, layer_name

OTHER_CLASS = "--model-impl"
"""vLLM's option by which a base is served by another class than the architecture's own."""


def adaptable(settings: Settings, model: str, base: BaseIdentity, say: Callable[[str], None]) -> BaseIdentity:
    """The base with the names of the layers that vLLM does not adapt; ``model`` is what it was asked for by.

    Raises :class:`BaseModelError` where engines of ours would serve no adapter of it. Of attached ones, which may be on
    another machine and of another version, nothing is known, nor where vLLM is not installed here.
    """
    engines = engines_of(settings, model)
    arguments = engines.extra_args if engines is not None else ()
    if engines is not None and engines.urls:
        return base
    check_device(base, arguments)
    if is_given(arguments, OTHER_CLASS):
        return base
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
    layers = set(map(layer_name, base.shapes))
    return replace(base, unadapted=frozenset(name for name in layers if not found.adapts_layer(name)))
