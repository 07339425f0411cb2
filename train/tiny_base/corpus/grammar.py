"""Phrasing templates: text with `(a|b)` choices and `{slot}` references, compiled once and expanded often.

A template is one line. `(a|b|)` picks one branch (a branch may be empty and may nest), `{name}` expands a word
slot, and `{name}` or `{name=role}` of an entity kind (`{amount}`, `{city=destination}`) makes a fresh value that
is remembered under its role, so that extraction tasks know the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from serve.errors import DataError

# Entities stand in the raw text as two private characters, so that noise and casing never touch their values.
MARK = "\ue000"
_FIRST_INDEX = 0xE100
_TOKEN = re.compile(r"\{([a-z_0-9]+)(?:=([a-z_0-9]+))?\}|([()|])|([^{}()|]+)")

EntityMaker = Callable[[random.Random], str]
Node = Union[str, tuple["Node", ...], "Choice", "EntitySlot"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several branches, each equally likely."""

    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class EntitySlot:
    """A place where a fresh value of an entity kind is made."""

    kind: str
    role: str
    make: EntityMaker


@dataclass(frozen=True, slots=True)
class Entity:
    """A value that was placed in a text: its kind, its role in the sentence, and the words as written."""

    kind: str
    role: str
    surface: str


@dataclass(slots=True)
class Draft:
    """An expanded template before casing and noise: text with marks, and the entities the marks stand for."""

    text: str
    entities: list[Entity] = field(default_factory=list)

    def finish(self) -> str:
        """Return the text with every mark replaced by its entity's words."""
        text = self.text
        for index, entity in enumerate(self.entities):
            text = text.replace(mark(index), entity.surface)
        return text


def mark(index: int) -> str:
    """Return the two characters that stand for the entity at `index` in a draft's text."""
    return MARK + chr(_FIRST_INDEX + index)


class Template:
    """A compiled phrasing."""

    __slots__ = ("root", "source")

    def __init__(self, source: str, root: Node) -> None:
        self.source = source
        self.root = root

    def expand(self, rng: random.Random) -> Draft:
        """Return one random expansion, with spaces tidied."""
        out: list[str] = []
        entities: list[Entity] = []
        _expand(self.root, rng, out, entities)
        return Draft(tidy("".join(out)), entities)

    def size(self) -> int:
        """Return how many different expansions exist, each entity counted as one."""
        return _size(self.root)

    def roles(self) -> set[str]:
        """Return the roles of all entities that may occur."""
        return _roles(self.root)


def tidy(text: str) -> str:
    """Collapse the spaces that empty branches leave behind."""
    if "  " in text:
        text = re.sub(r" {2,}", " ", text)
    return text.strip().replace(" ,", ",").replace(" ?", "?").replace(" .", ".")


def compile_template(source: str, slots: Mapping[str, Node], entities: Mapping[str, EntityMaker]) -> Template:
    """Compile one line; raises DataError naming the line when a slot is unknown or brackets do not match."""
    return Template(source, parse(source, slots, entities))


def parse(source: str, slots: Mapping[str, Node], entities: Mapping[str, EntityMaker]) -> Node:
    """Parse a template's text to a node (see the module's text for the syntax)."""
    stack: list[list[list[Node]]] = [[[]]]
    position = 0
    for match in _TOKEN.finditer(source):
        if match.start() != position:
            raise _bad(source, f"unexpected {source[position]!r}")
        position = match.end()
        name, role, sign, text = match.groups()
        if text is not None:
            stack[-1][-1].append(text)
        elif name is not None:
            stack[-1][-1].append(_reference(source, name, role, slots, entities))
        elif sign == "(":
            stack.append([[]])
        elif sign == "|":
            stack[-1].append([])
        elif len(stack) == 1:
            raise _bad(source, "a ')' without its '('")
        else:
            branches = stack.pop()
            stack[-1][-1].append(_choice(branches))
    if position != len(source) or len(stack) != 1:
        raise _bad(source, "an unfinished '{' or '('")
    return _choice(stack[0])


def _choice(branches: Sequence[list[Node]]) -> Node:
    nodes = tuple(branch[0] if len(branch) == 1 else tuple(branch) for branch in branches)
    return nodes[0] if len(nodes) == 1 else Choice(nodes)


def _reference(
    source: str, name: str, role: str | None, slots: Mapping[str, Node], entities: Mapping[str, EntityMaker]
) -> Node:
    if name in entities:
        return EntitySlot(name, role or name, entities[name])
    if name in slots and role is None:
        return slots[name]
    raise _bad(source, f"unknown slot {name!r}")


def _bad(source: str, what: str) -> DataError:
    return DataError(
        f"the phrasing {source!r} does not parse: {what}",
        hint="Write choices as (a|b), word slots and entity kinds as {name}, roles as {kind=role}.",
    )


def _expand(node: Node, rng: random.Random, out: list[str], entities: list[Entity]) -> None:
    if isinstance(node, str):
        out.append(node)
    elif isinstance(node, tuple):
        for part in node:
            _expand(part, rng, out, entities)
    elif isinstance(node, Choice):
        branches = node.branches
        _expand(branches[int(rng.random() * len(branches))], rng, out, entities)
    else:
        out.append(mark(len(entities)))
        entities.append(Entity(node.kind, node.role, node.make(rng)))


def _size(node: Node) -> int:
    if isinstance(node, tuple):
        product = 1
        for part in node:
            product *= _size(part)
        return product
    if isinstance(node, Choice):
        return sum(_size(branch) for branch in node.branches)
    return 1


def _roles(node: Node) -> set[str]:
    if isinstance(node, EntitySlot):
        return {node.role}
    parts = node if isinstance(node, tuple) else node.branches if isinstance(node, Choice) else ()
    return {role for part in parts for role in _roles(part)}
