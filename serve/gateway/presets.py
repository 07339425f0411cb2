"""Presets: sets of sampling values with a name, the built-in ones and those of a YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve.errors import ConfigError, InputError
from serve.gateway.policy import nearest, sampling_values
from serve.names import check_name

Presets = Mapping[str, Mapping[str, Any]]

BUILT_IN: Presets = {
    "deterministic": {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": 0},
    "balanced": {"temperature": 0.7, "top_p": 0.9},
    "creative": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.05},
}
MAX_FILE = 2**20


def read_presets(file: Path, *, needed: bool = False) -> Presets:
    """The built-in presets with those of ``file`` on top, which holds ``name: {field: value}``.

    A file that is not there is fine unless ``needed``. Raises ConfigError that lists every problem.
    """
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file}: longer than {MAX_FILE >> 20} MiB", "see docs/serving.md for presets")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not needed:
            return BUILT_IN
        raise ConfigError(f"{file}: no such file", "TENON_PRESETS names a YAML file of presets") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}", "see docs/serving.md for presets") from error
    if content is None:
        return BUILT_IN
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: not a mapping of names to fields", "see docs/serving.md for presets")
    problems: list[str] = []
    presets = {}
    for name, values in content.items():
        found: list[str] = []
        try:
            presets[check_name(str(name))] = sampling_values(values or {}, "preset", found)
        except InputError as error:
            found.append(error.message)
        problems += [f"{name}: {problem}" for problem in found]
    if problems:
        raise ConfigError(f"{file}: " + "; ".join(problems), "see docs/serving.md for presets")
    return {**BUILT_IN, **presets}


def find_preset(presets: Presets, name: str) -> Mapping[str, Any]:
    """The values of a preset, else InputError that lists the names."""
    if name not in presets:
        raise InputError(
            f"no preset is called {name[:100]!r}{nearest(name, list(presets))}",
            f"known presets: {', '.join(presets)}",
        )
    return presets[name]
