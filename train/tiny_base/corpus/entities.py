"""Makers of entity values: the amounts, dates, names and numbers that stand in a message."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from train.tiny_base.corpus.grammar import EntityMaker

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_SIGNS = ("$", "£", "€")
_CURRENCIES = (
    "dollars",
    "euros",
    "pounds",
    "USD",
    "EUR",
    "GBP",
    "francs",
    "CHF",
    "yen",
    "rupees",
    "bucks",
    "kr",
)
_MAIL_HOSTS = ("example.com", "mail.test", "post.example", "inbox.test", "example.org", "home.example")
_SMALL = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
_ORDER_STYLES = ("#{}", "{}", "ORD-{}", "A{}", "no. {}", "SO{}", "{}-X", "W-{}")
_DATE_STYLES = (
    "{d} {m}",
    "{m} {d}",
    "{d}.{n}.{y}",
    "{y}-{n:02d}-{d:02d}",
    "{d}/{n}",
    "the {d}th of {m}",
    "{m} {d}, {y}",
)


def pick(rng: random.Random, items: Sequence[str]) -> str:
    """Return one of the items; faster than `random.choice` on the hot path."""
    return items[int(rng.random() * len(items))]


def digits(rng: random.Random, count: int) -> str:
    """Return `count` random digits, the first not zero."""
    return str(int(10 ** (count - 1) + rng.random() * 9 * 10 ** (count - 1)))


def letters(rng: random.Random, count: int) -> str:
    """Return `count` random capital letters without the ones that look like digits."""
    return "".join(pick(rng, _LETTERS) for _ in range(count))


def _number(rng: random.Random) -> str:
    scale = (10, 100, 1000, 5000)[int(rng.random() * 4)]
    value = 1 + rng.random() * scale
    style = rng.random()
    if style < 0.45:
        return str(int(value))
    if style < 0.9:
        return f"{value:.2f}"
    return f"{value:,.2f}"


def _amount(rng: random.Random) -> str:
    number = _number(rng)
    style = rng.random()
    if style < 0.5:
        return pick(rng, _SIGNS) + number
    if style < 0.55:
        return number + pick(rng, _SIGNS)
    return f"{number} {pick(rng, _CURRENCIES)}"


def _time(rng: random.Random) -> str:
    hour, minute = int(rng.random() * 24), pick(rng, ("00", "15", "30", "45", "20", "10", "05", "50"))
    style = rng.random()
    if style < 0.4:
        return f"{hour:02d}:{minute}"
    half = "am" if hour < 12 else "pm"
    short = (hour - 1) % 12 + 1
    if style < 0.7:
        return f"{short} {half}"
    return f"{short}:{minute}{half}" if style < 0.9 else f"{short} o'clock"


def _phone(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.4:
        return f"555-{digits(rng, 4)}"
    if style < 0.7:
        return f"0{digits(rng, 3)} 555 {digits(rng, 3)}"
    return f"+{digits(rng, 2)} 555 {digits(rng, 3)} {digits(rng, 2)}"


def _order(rng: random.Random) -> str:
    return pick(rng, _ORDER_STYLES).format(digits(rng, 4 + int(rng.random() * 4)))


def _reference(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.5:
        return letters(rng, 6) if style < 0.2 else f"{letters(rng, 2)}{digits(rng, 4)}"
    return (
        f"{letters(rng, 3)}-{digits(rng, 3)}"
        if style < 0.8
        else f"{digits(rng, 3)}-{letters(rng, 2)}-{digits(rng, 2)}"
    )


def _count(rng: random.Random) -> str:
    return pick(rng, _SMALL) if rng.random() < 0.4 else str(2 + int(rng.random() ** 2 * 28))


def makers(words: Mapping[str, Sequence[str]]) -> dict[str, EntityMaker]:
    """Return one maker for each entity kind, fed from the lexicon's lists."""

    def listed(name: str) -> EntityMaker:
        items = words[name]
        return lambda rng: pick(rng, items)

    def date(rng: random.Random) -> str:
        if rng.random() < 0.2:
            return pick(rng, words["weekdays"])
        month = int(rng.random() * 12)
        # 4 to 20 and 24 to 28 all take "th", so that no style needs the other endings.
        day = 4 + int(rng.random() * 17) if rng.random() < 0.8 else 24 + int(rng.random() * 5)
        year = 2019 + int(rng.random() * 12)
        return pick(rng, _DATE_STYLES).format(d=day, m=words["months"][month], n=month + 1, y=year)

    def person(rng: random.Random) -> str:
        first, last = pick(rng, words["first_names"]), pick(rng, words["last_names"])
        style = rng.random()
        if style < 0.65:
            return f"{first} {last}"
        return first if style < 0.85 else f"{pick(rng, ('Mr', 'Mrs', 'Ms', 'Dr'))} {last}"

    def email(rng: random.Random) -> str:
        first, last = pick(rng, words["first_names"]).lower(), pick(rng, words["last_names"]).lower()
        name = (f"{first}.{last}", f"{first}{digits(rng, 2)}", f"{first[0]}{last}")[int(rng.random() * 3)]
        return f"{name.replace(chr(39), '')}@{pick(rng, _MAIL_HOSTS)}"

    products = words["products"]
    pairs = [product for product in products if " " in product]

    def product(rng: random.Random) -> str:
        """A product of the list, or two halves of two of them: where a name ends must be read, it cannot be known."""
        if rng.random() < 0.6:
            return pick(rng, products)
        return f"{pick(rng, pairs).split()[0]} {pick(rng, products).split()[-1]}"

    return {
        "amount": _amount,
        "time": _time,
        "phone": _phone,
        "order_no": _order,
        "ref_code": _reference,
        "count": _count,
        "date": date,
        "person": person,
        "email": email,
        "first_name": listed("first_names"),
        "city": listed("cities"),
        "country": listed("countries"),
        "merchant": listed("merchants"),
        "product": product,
        "dish": listed("dishes"),
        "song": listed("songs"),
        "title": listed("titles"),
        "street": lambda rng: f"{1 + int(rng.random() * 180)} {pick(rng, words['streets'])}",
        "weekday": listed("weekdays"),
        "month": listed("months"),
        "last_four": lambda rng: digits(rng, 4),
        "account_no": lambda rng: digits(rng, 6 + int(rng.random() * 5)),
        "postcode": lambda rng: (
            digits(rng, 5)
            if rng.random() < 0.6
            else f"{letters(rng, 2)}{digits(rng, 1)} {digits(rng, 1)}{letters(rng, 2)}"
        ),
        "plate": lambda rng: f"{letters(rng, 2)} {digits(rng, 3)} {letters(rng, 1)}",
        "flight": lambda rng: f"{letters(rng, 2)}{digits(rng, 3)}",
        "percent": lambda rng: f"{1 + int(rng.random() * 98)}%",
        "size": lambda rng: pick(
            rng, ("S", "M", "L", "XL", "size 38", "size 42", "size 9", "medium", "small", "large", "size 10")
        ),
        "colour": lambda rng: pick(
            rng,
            ("red", "blue", "black", "green", "white", "grey", "yellow", "pink", "navy", "beige", "purple"),
        ),
    }
