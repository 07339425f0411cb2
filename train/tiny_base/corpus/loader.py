"""Reads the corpus's data files: shared slots, the lexicon, and one file for each domain; checks all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from serve.errors import DataError
from train.tiny_base.corpus.entities import makers
from train.tiny_base.corpus.grammar import EntityMaker, Node, Template, compile_template, parse

_DATA = Path(__file__).parent / "data"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing that a message of a domain may be about; `name` is in plain lower-case words."""

    name: str
    phrasings: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """A field of life with its intents; `about` says in a few words what it covers."""

    name: str
    about: str
    intents: tuple[Intent, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """What every domain uses: slots, entity makers, and the lines set around a message."""

    slots: Mapping[str, Node]
    entities: Mapping[str, EntityMaker]
    greetings: tuple[str, ...]
    thanks: tuple[str, ...]
    fillers: tuple[Template, ...]
    tails: tuple[Template, ...]
    swaps: Mapping[str, tuple[str, ...]]


@cache
def lexicon() -> dict[str, tuple[str, ...]]:
    """Return the lists of names, places and things, by list name."""
    return {name: split_words(text) for name, text in read_yaml("lexicon.yaml").items()}


@cache
def shared() -> Shared:
    """Return the shared slots and lines, compiled."""
    raw = read_yaml("shared.yaml")
    entities = makers(lexicon())
    slots = compile_slots(raw["slots"], {}, entities)

    def lines(key: str) -> tuple[Template, ...]:
        return tuple(compile_template(line, slots, entities) for line in _branches(raw[key]))

    return Shared(
        slots=slots,
        entities=entities,
        greetings=tuple(_branches(raw["greetings"])),
        thanks=tuple(_branches(raw["thanks"])),
        fillers=lines("fillers"),
        tails=lines("tails"),
        swaps={word: split_words(text) for word, text in raw["swaps"].items()},
    )


@cache
def domains() -> tuple[Domain, ...]:
    """Return all domains, in the order of their file names; raises DataError naming the file and line at fault."""
    found = tuple(_read_domain(path.name) for path in sorted((_DATA / "domains").glob("*.yaml")))
    names = [domain.name for domain in found]
    if len(set(names)) != len(names):
        raise DataError("two domain files have the same name", hint="Give each domain a name of its own.")
    return found


def read_yaml(name: str) -> dict[str, Any]:
    """Return the mapping in one of the corpus's data files."""
    raw = yaml.load((_DATA / name).read_text(encoding="utf-8"), Loader=_LOADER)
    if not isinstance(raw, dict):
        raise DataError(f"{name} is not a mapping", hint="Start the file with key: value lines.")
    return raw


def split_words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def compile_slots(
    raw: Mapping[str, str], known: Mapping[str, Node], entities: Mapping[str, EntityMaker]
) -> dict[str, Node]:
    """Return `known` with further slots added; a slot may use the ones that stand before it."""
    slots = dict(known)
    for name, text in raw.items():
        if name in entities:
            raise DataError(f"slot {name!r} has the name of an entity kind", hint="Rename the slot.")
        slots[name] = parse(_trim(text), slots, entities)
    return slots


def _read_domain(name: str) -> Domain:
    raw = read_yaml(f"domains/{name}")
    base = shared()
    try:
        slots = compile_slots(raw.get("slots") or {}, base.slots, base.entities)
        intents = tuple(
            Intent(_intent_name(intent), compile_lines(text, slots, base.entities))
            for intent, text in raw["intents"].items()
        )
        return Domain(raw["name"], raw["about"], intents)
    except DataError as error:
        raise DataError(f"domains/{name}: {error.message}", hint=error.hint) from error


def compile_lines(
    text: str, slots: Mapping[str, Node], entities: Mapping[str, EntityMaker]
) -> tuple[Template, ...]:
    """Compile a block of text, one template for each line that is not empty."""
    return tuple(
        compile_template(line.strip(), slots, entities) for line in text.splitlines() if line.strip()
    )


def _intent_name(name: object) -> str:
    # YAML reads a bare `yes` or `no` as a truth value.
    if not isinstance(name, str):
        raise DataError(f"the intent name {name!r} is not text", hint="Put the name in quotes.")
    return name


def _branches(text: str) -> list[str]:
    """Split a list of lines at its top-level bars: those with spaces around, outside brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _trim(text: str) -> str:
    return "|".join(_branches(text))
