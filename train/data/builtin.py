"""The built-in dataset: what customers write to an online shop, answered with an intent and its details as JSON.

Everything is written by this project: the phrasings stand in ``builtin_support/``, this module fills them in.
A phrasing belongs to one split, and some products, cities and all order numbers of the test are new to it, so that
the score tells whether a model has learnt to read such messages and not whether it remembers them.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")
SIZES = {"train": 4800, "validation": 300, "test": 600}
# The order of the details in an answer. "product" and the like are also the names of the slots in the phrasings.
FIELDS = ("order", "product", "date", "amount", "city", "email")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_LOWERCASE_SHARE = 0.1
_GREETING_SHARE = 0.2
# What surrounds a phrasing is varied most in training: that is what lets a small model find the phrasing itself.
_ASIDE_SHARE = {"train": 0.5, "validation": 0.15, "test": 0.15}
_TYPO_SHARE = {"train": 0.1, "validation": 0.03, "test": 0.03}
_UNSEEN_SHARE = 0.1
# How often a detail brings another one along, as in "the kettle from order K48213". Only in training: it teaches that
# any detail may stand beside any other, whatever the customer wants.
_COMPANY_SHARE = {"train": 0.3, "validation": 0.0, "test": 0.0}
_COMPANY = {
    "{order}": (
        "{order} with the {product}",
        "{order} (the {product})",
        "{order}, the {product},",
        "{order} of {date}",
        "{order} from {date}",
        "{order} for {amount}",
        "{order} to {city}",
    ),
    "{product}": (
        "{product} from order {order}",
        "{product} from {order}",
        "{product} ({order})",
        "{product} in order {order}",
        "{product} bought on {date}",
        "{product} from {date}",
        "{product} for {amount}",
        "{product} that cost {amount}",
        "{product} sent to {city}",
    ),
}
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def system_message() -> str:
    """The instruction that every row begins with."""
    return str(_source()["system"])


def intents() -> tuple[str, ...]:
    """The names of the intents, in the order of ``shop.yaml``."""
    return tuple(_source()["intents"])


def phrasings(split: str) -> tuple[tuple[str, str], ...]:
    """The (intent, phrasing) pairs of one split, with their slots and choices still open."""
    return tuple(
        (intent, text) for intent, by_split in _source()["intents"].items() for text in by_split[split]
    )


def generate(seed: int = 0) -> dict[str, list[Row]]:
    """The whole dataset: 4,800 rows to train on, 300 to validate with, 600 to test with.

    Each row is ``{"id", "prompt": [system, user], "completion": [assistant]}``; the assistant's content is compact
    JSON with the intent first and then those of FIELDS that occur, each value as the customer wrote it. The same
    seed gives the same rows; no message occurs twice, within a split or across splits.
    """
    seen: set[str] = set()
    return {split: _split_rows(split, random.Random(f"{split}-{seed}"), seen) for split in SPLITS}


@cache
def _source() -> dict[str, Any]:
    """What ``shop.yaml`` says, and under ``intents`` the phrasings of each intent by split."""
    folder = Path(__file__).with_name("builtin_support")
    source: dict[str, Any] = _read(folder / "shop.yaml")
    source["intents"] = {intent: _read(folder / f"{intent}.yaml") for intent in source["intents"]}
    return source


def _read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)


def _split_rows(split: str, chance: random.Random, seen: set[str]) -> list[Row]:
    rows: list[Row] = []
    for intent, phrasing in _take_turns(split, chance):
        message, details = _write(phrasing, split, chance)
        key = message.casefold()
        if key in seen:
            continue
        seen.add(key)
        rows.append(_row(message, {"intent": intent, **details}))
        if len(rows) == SIZES[split]:
            break
    chance.shuffle(rows)
    return rows


def _take_turns(split: str, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (intent, phrasing): intents in turn, and within an intent every phrasing before any comes again.

    A phrasing with choices comes more often than one without, as it says more different things.
    """
    source = _source()["intents"]
    waiting: dict[str, list[str]] = {intent: [] for intent in source}
    while True:
        for intent, queue in waiting.items():
            if not queue:
                queue.extend(text for text in source[intent][split] for _ in range(1 + text.count("[")))
                chance.shuffle(queue)
            yield intent, queue.pop()


def _write(phrasing: str, split: str, chance: random.Random) -> tuple[str, dict[str, str]]:
    """One message made from a phrasing, and the details that it mentions, in the order of FIELDS."""
    text = _choose(phrasing, chance)
    if chance.random() < _COMPANY_SHARE[split]:
        text = _add_company(text, chance)
    if chance.random() < _ASIDE_SHARE[split]:
        text = _add_aside(text, split, chance)
    if chance.random() < _TYPO_SHARE[split]:
        text = _misspell(text, chance)
    if chance.random() < _LOWERCASE_SHARE:
        text = text[0].lower() + text[1:].rstrip(".")
    values = {slot: _value(slot, split, chance) for slot in _SLOT.findall(text)}
    message = _SLOT.sub(lambda match: values[match[1]], text)
    manners = _source()
    pool = "test" if split == "test" else "train"
    if chance.random() < _GREETING_SHARE:
        message = chance.choice(manners["openers"][pool]) + message
    if chance.random() < _GREETING_SHARE:
        message += chance.choice(manners["closers"][pool])
    return message, {field: values[field] for field in FIELDS if field in values}


def _choose(phrasing: str, chance: random.Random) -> str:
    return _CHOICE.sub(lambda match: chance.choice(match[1].split("|")), phrasing)


def _add_aside(text: str, split: str, chance: random.Random) -> str:
    """Put a sentence before or after, if it brings in nothing that the text mentions already."""
    aside = _choose(chance.choice(_source()["asides"][split]), chance)
    if set(_SLOT.findall(aside)) & set(_SLOT.findall(text)):
        return text
    return f"{aside} {text}" if chance.random() < 0.3 else f"{text} {aside}"


def _add_company(text: str, chance: random.Random) -> str:
    """Let one detail be followed by another that the text does not mention yet."""
    slot = chance.choice([slot for slot in _COMPANY if slot in text] or ["{order}"])
    company = chance.choice(_COMPANY[slot])
    if set(_SLOT.findall(company)) & (set(_SLOT.findall(text)) - {slot[1:-1]}):
        return text
    return text.replace(slot, company)


def _misspell(text: str, chance: random.Random) -> str:
    """Swap, drop or double one letter inside one longer word, never in a slot."""
    words = [match for match in re.finditer(r"(?<![{\w])[a-z]{5,}(?![}\w])", text)]
    if not words:
        return text
    word = chance.choice(words)
    at = word.start() + chance.randrange(1, len(word[0]) - 2)
    a, b = text[at], text[at + 1]
    return text[:at] + chance.choice((b + a, b, a + a + b)) + text[at + 2 :]


def _value(slot: str, split: str, chance: random.Random) -> str:
    if slot in ("product", "city"):
        pools = _source()["products" if slot == "product" else "cities"]
        unseen = split == "test" and chance.random() < _UNSEEN_SHARE
        return str(chance.choice(pools["test" if unseen else "train"]))
    return {"order": _order_number, "date": _date, "amount": _amount, "email": _email}[slot](chance)


def _order_number(chance: random.Random) -> str:
    return f"{chance.choice('ABCDEFGHKLMNPRSTWXZ')}{chance.randrange(10000, 100000)}"


def _date(chance: random.Random) -> str:
    day, month = chance.randrange(1, 29), chance.choice(_MONTHS)
    shapes = (
        f"{day} {month}",
        f"{month} {day}",
        f"{day:02}/{_MONTHS.index(month) + 1:02}",
        chance.choice(_WEEKDAYS),
    )
    return chance.choice(shapes)


def _amount(chance: random.Random) -> str:
    cents = chance.choice(("00", "50", "90", "95", "99", str(chance.randrange(10, 99))))
    number = f"{chance.randrange(3, 400)}.{cents}"
    return chance.choice((f"£{number}", f"${number}", f"{number} euros", f"€{number}", f"{number} pounds"))


def _email(chance: random.Random) -> str:
    parts = _source()["email"]
    first, last = chance.choice(parts["first_names"]), chance.choice(parts["last_names"])
    name = chance.choice((f"{first}.{last}", f"{first}{chance.randrange(1, 100)}", f"{first[0]}{last}"))
    return f"{name}@{chance.choice(parts['hosts'])}"


def _row(message: str, answer: dict[str, str]) -> Row:
    completion = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    identity = hashlib.sha256(f"{message}\x00{completion}".encode()).hexdigest()[:12]
    return {
        "id": identity,
        "prompt": [{"role": "system", "content": system_message()}, {"role": "user", "content": message}],
        "completion": [{"role": "assistant", "content": completion}],
    }
