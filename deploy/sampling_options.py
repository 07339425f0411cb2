"""``--set``, ``--min``, ``--max``, ``--fix`` and ``--preset`` of ``tenon deploy`` become a sampling policy."""

from typing import Any

import yaml

from serve.config import Settings
from serve.errors import InputError


def policy_of(
    settings: Settings,
    *,
    defaults: list[str] | None,
    minimum: list[str] | None,
    maximum: list[str] | None,
    forced: list[str] | None,
    preset: str | None,
) -> dict[str, Any] | None:
    """The JSON that the alias keeps; None when nothing was said, as the alias then keeps what it has.

    The values of a preset are written out, so that an alias does not change when a file does; ``--set`` wins
    over them. Raises InputError that lists every problem.
    """
    if not any((defaults, minimum, maximum, forced, preset)):
        return None
    from serve.gateway.policy import SamplingPolicy
    from serve.gateway.presets import find_preset, read_presets

    values: dict[str, Any] = {}
    if preset is not None:
        presets = read_presets(settings.presets_file, needed=settings.presets is not None)
        values |= find_preset(presets, preset)
    parts = {
        "defaults": values | assignments(defaults or [], "--set"),
        "min": assignments(minimum or [], "--min"),
        "max": assignments(maximum or [], "--max"),
        "force": assignments(forced or [], "--fix"),
        "preset": preset,
    }
    return SamplingPolicy.parse(parts).stored()


def assignments(pairs: list[str], option: str) -> dict[str, Any]:
    """``key=value`` pairs with the values read as YAML."""
    content: dict[str, Any] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark:
            raise InputError(f"{option} {pair}: it is not KEY=VALUE", "write it as temperature=0.7")
        try:
            content[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"{option} {pair}: the value is not YAML", "quote it, such as 'stop=[\"\\n\"]'"
            ) from error
    return content
