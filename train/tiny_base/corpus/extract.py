"""Tasks from text to JSON: the values of a message under keys that the instruction names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container
from typing import Any

from train.tiny_base.corpus.entities import pick
from train.tiny_base.corpus.grammar import Entity, Template
from train.tiny_base.corpus.labels import STYLES, random_style
from train.tiny_base.corpus.loader import domains, shared
from train.tiny_base.corpus.message import Message, compose, pick_template
from train.tiny_base.corpus.rows import Row, asked, to_json

# Other names that a schema may use for a kind of value; a role's own name is always possible.
_KEYS: dict[str, tuple[str, ...]] = {
    "amount": ("amount", "sum", "price", "total", "value", "money"),
    "time": ("time", "hour", "at", "clock time"),
    "phone": ("phone", "phone number", "telephone", "contact number", "mobile"),
    "order_no": ("order number", "order id", "order", "order no"),
    "ref_code": ("reference", "code", "booking reference", "ref"),
    "count": ("count", "number", "quantity", "how many"),
    "date": ("date", "day", "when", "on date"),
    "person": ("name", "person", "customer name", "full name", "customer"),
    "email": ("email", "email address", "mail", "contact email"),
    "city": ("city", "town", "place", "location"),
    "country": ("country", "nation"),
    "merchant": ("merchant", "shop", "store", "seller"),
    "product": ("product", "item", "article", "thing"),
    "dish": ("dish", "food", "meal"),
    "street": ("street", "address", "street address"),
    "last_four": ("last four digits", "card digits", "ends with"),
    "account_no": ("account number", "customer number", "account", "account id"),
    "postcode": ("postcode", "zip code", "postal code"),
    "flight": ("flight", "flight number"),
    "plate": ("licence plate", "plate", "car"),
    "percent": ("percentage", "percent", "rate"),
    "size": ("size",),
    "colour": ("colour", "color"),
    "song": ("song", "track"),
    "title": ("title", "book", "film"),
    "weekday": ("weekday", "day"),
    "month": ("month",),
    "first_name": ("first name", "name"),
}
_TASKS = (
    "Extract {keys} from the message as JSON.",
    "Return a JSON object with the keys {keys}.",
    "Read the text and fill in: {keys}. Answer in JSON only.",
    "Find {keys} in the message. Output JSON.",
    "You extract fields. Fields: {keys}. Reply with one JSON object.",
    "Give {keys} as JSON.",
    "Pull the following out of the customer's message: {keys}. JSON, please.",
    "Information extraction. Schema: {keys}.",
)
_MISSING_NULL = (
    " Use null for what is missing.",
    " Missing fields are null.",
    " If a field is not given, write null.",
)
_MISSING_OMIT = (
    " Leave out what is not there.",
    " Omit missing fields.",
    " Only include fields that are in the text.",
)
_ALL_TASKS = (
    "Extract all details from the message as JSON with {style} keys.",
    "List every value of the message in a JSON object, keys in {style}.",
    "Turn the message into JSON ({style} keys), values exactly as written.",
)
_OPEN_INTENT_TASKS = (
    "Return JSON: the {intent} and whatever details are given.",
    "Read the {domain} message. Answer with JSON: the {intent} and the details given, keys in {style}.",
    "Give the {intent} and every detail of the message as one JSON object ({style}).",
)
_PRESENT_TASKS = (
    "Which of these does the message give: {keys}? List them.",
    "Say which of the fields {keys} can be filled from the text.",
    "Look for {keys}. Name those that are there.",
)
_INTENT_TASKS = (
    "Return JSON with the {intent} and {keys}.",
    "Classify the {domain} message and extract {keys}. JSON keys: {intent}, {keys}.",
    'Output {{"{intent}": ..., ...}} with the fields {keys}.',
    "For this {domain} request give {intent} ({style}) and {keys} as JSON.",
)
_MONEY_TASKS = (
    "Find the sum of money: JSON with number and currency, null if there is none.",
    "Split the amount into number and currency (JSON; null where no amount is given).",
    "Money mentioned? Keys: number, currency. Null if absent.",
)
_NUMBER = re.compile(r"\d[\d.,]*")
_ONE_TASKS = (
    "What is the {key}? Copy it from the text.",
    "Quote the {key} exactly as written.",
    "Which {key} is mentioned? Answer with the value only.",
    "Give me only the {key}.",
    "Copy the {key}.",
)


def fields(rng: random.Random) -> Row:
    """Extract named fields; absent ones are null or left out, as the instruction says."""
    found = _rich(rng)
    if rng.random() < 0.1:
        return _money(rng, found)
    write = _key_style(rng)
    keys = _keys(rng, found, write)
    if rng.random() < 0.12:
        style = pick(rng, ("snake_case", "camelCase"))
        named = {STYLES[style](entity.role): entity.surface for entity in reversed(found.entities)}
        return asked(rng, pick(rng, _ALL_TASKS).format(style=style), found.text, to_json(rng, named))
    chosen = rng.sample(list(keys), 1 + int(rng.random() * len(keys)))
    wanted: dict[str, str | None] = {keys[role]: found.fields()[role] for role in chosen}
    absent = _absent(rng, found, set(keys.values()), write) if rng.random() < 0.75 else []
    order = [*wanted, *absent]
    rng.shuffle(order)
    if absent and rng.random() < 0.1:
        task = pick(rng, _PRESENT_TASKS).format(keys=", ".join(order))
        return asked(rng, task, found.text, ", ".join(key for key in order if key in wanted))
    task = pick(rng, _TASKS).format(keys=", ".join(order))
    if absent:
        task, order = _with_absent(rng, task, order, wanted)
    return asked(rng, task, found.text, to_json(rng, {key: wanted.get(key) for key in order}))


def intent_and_fields(rng: random.Random) -> Row:
    """Give the intent's name and the fields of the message in one object."""
    found_domains = domains()
    domain = found_domains[int(rng.random() * len(found_domains))]
    intent = domain.intents[int(rng.random() * len(domain.intents))]
    found = compose(rng, _with_entities(rng, intent.phrasings), int(rng.random() * 3))
    write = _key_style(rng)
    keys = _keys(rng, found, write)
    style = random_style(rng)
    head = pick(rng, ("intent", "label", "category", "type", "topic", "request"))
    answer: dict[str, Any] = {head: STYLES[style](intent.name)}
    answer.update({keys[role]: value for role, value in found.fields().items() if keys[role] != head})
    if rng.random() < 0.15:
        task = pick(rng, _OPEN_INTENT_TASKS).format(intent=head, domain=domain.name, style=style)
        return asked(rng, task, found.text, to_json(rng, answer))
    present = list(answer)[1:]
    absent = _absent(rng, found, set(answer), write) if rng.random() < 0.75 else []
    order = [*present, *absent]
    rng.shuffle(order)
    listed = ", ".join(order) or "nothing else"
    task = pick(rng, _INTENT_TASKS).format(intent=head, keys=listed, domain=domain.name, style=style)
    if absent:
        task, order = _with_absent(rng, task, order, answer)
    return asked(rng, task, found.text, to_json(rng, {key: answer.get(key) for key in [head, *order]}))


def one_value(rng: random.Random) -> Row:
    """Copy one value of a message, as text."""
    found = _rich(rng)
    entity = found.entities[int(rng.random() * len(found.entities))]
    key = _key_words(rng, entity)
    return asked(rng, pick(rng, _ONE_TASKS).format(key=key), found.text, found.fields()[entity.role])


def _money(rng: random.Random, found: Message) -> Row:
    """Split an amount of money into number and currency, each as written."""
    amounts = [entity.surface for entity in found.entities if entity.kind == "amount"]
    if not amounts or len(amounts) > 1:
        answer: dict[str, str | None] = {"number": None, "currency": None}
        if amounts:
            return one_value(rng)
    else:
        match = _NUMBER.search(amounts[0])
        number = match.group() if match else ""
        answer = {"number": number, "currency": amounts[0].replace(number, "").strip()}
    task = pick(rng, _MONEY_TASKS)
    return asked(rng, task, found.text, to_json(rng, answer))


def _rich(rng: random.Random) -> Message:
    """Compose a message that holds at least one value."""
    while True:
        found_domains = domains()
        domain = found_domains[int(rng.random() * len(found_domains))]
        intent = domain.intents[int(rng.random() * len(domain.intents))]
        found = compose(rng, _with_entities(rng, intent.phrasings), 1 + int(rng.random() * 3))
        if found.entities:
            return found


def _with_entities(rng: random.Random, templates: tuple[Template, ...]) -> Template:
    template = pick_template(rng, templates)
    # A second draw makes sentences with values of their own more frequent than bare ones with tails.
    return template if "=" in template.source else pick_template(rng, templates)


def _key_words(rng: random.Random, entity: Entity) -> str:
    if entity.role != entity.kind:
        return entity.role.replace("_", " ")
    return pick(rng, _KEYS.get(entity.kind, (entity.kind.replace("_", " "),)))


def _key_style(rng: random.Random) -> Callable[[str], str]:
    return STYLES[
        pick(rng, ("snake_case", "snake_case", "snake_case", "camelCase", "plain words", "Title Case"))
    ]


def _keys(rng: random.Random, found: Message, write: Callable[[str], str]) -> dict[str, str]:
    """Return a key for each role, all in one style and no two alike."""
    keys: dict[str, str] = {}
    for entity in found.entities:
        key = write(_key_words(rng, entity))
        keys.setdefault(entity.role, key if key not in keys.values() else write(entity.role))
    return keys


def _absent(rng: random.Random, found: Message, taken: set[str], write: Callable[[str], str]) -> list[str]:
    """Keys of up to four kinds of values that the message does not hold."""
    present = {entity.kind for entity in found.entities}
    kinds = [kind for kind in rng.sample(list(_KEYS), 8) if kind not in present and kind in shared().entities]
    names = [write(pick(rng, _KEYS[kind])) for kind in kinds[: 1 + int(rng.random() * 4)]]
    return [name for name in dict.fromkeys(names) if name not in taken]


def _with_absent(
    rng: random.Random, task: str, order: list[str], present: Container[str]
) -> tuple[str, list[str]]:
    """Say in the task what becomes of keys without a value: null, or left out; and the keys to answer with."""
    if rng.random() < 0.4:
        return task + pick(rng, _MISSING_NULL), order
    return task + pick(rng, _MISSING_OMIT), [key for key in order if key in present]
