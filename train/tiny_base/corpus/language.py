"""Tasks about the language itself: tone, paraphrase, correction, completion, keywords, word facts, running text."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from train.tiny_base.corpus.entities import pick
from train.tiny_base.corpus.grammar import Template
from train.tiny_base.corpus.loader import (
    Intent,
    compile_lines,
    compile_slots,
    domains,
    lexicon,
    read_yaml,
    shared,
)
from train.tiny_base.corpus.message import compose, misspell, pick_template, shorthand
from train.tiny_base.corpus.rows import Row, asked, chat, plain

_PARAPHRASE = (
    "Say it in other words.",
    "Paraphrase the message.",
    "Rewrite this with the same meaning.",
    "Write another message with the same intent.",
    "How else could the customer put it?",
    "Rephrase.",
)
_WRITE = (
    "Write a customer message. Domain: {domain}. Intent: {intent}.",
    "Give an example of '{intent}' ({domain}).",
    "What could a customer say? {domain}, {intent}",
)
_CORRECT = (
    "Correct the spelling.",
    "Fix the typing mistakes in this message.",
    "Rewrite without spelling errors.",
    "Proofread the text.",
)
_COMPLETE = (
    "Complete the sentence.",
    "Continue the message.",
    "Finish what the customer began.",
    "What comes next?",
)
_KEYWORDS = (
    "List the keywords, separated by commas.",
    "Which words matter most? Separate them by commas.",
    "Extract the keywords.",
)
_EXPAND = ("Write the short forms in full.", "Expand the abbreviations.", "Rewrite in plain English.")
_TONES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sentiment": (
        ("positive", "negative", "neutral"),
        (
            "What is the sentiment? {labels}",
            "Classify the sentiment as {labels}.",
            "Is the text {labels}?",
            "Sentiment analysis. Answer with one of {labels}.",
            "How does the writer feel? {labels}",
        ),
    ),
    "urgency": (
        ("urgent", "relaxed"),
        (
            "Is the message {labels}?",
            "Rate the urgency: {labels}.",
            "How pressing is it? Answer with {labels}.",
        ),
    ),
    "politeness": (
        ("polite", "rude"),
        ("Is the tone {labels}?", "Judge the manners: {labels}.", "Politeness check. Reply {labels}."),
    ),
    "register": (
        ("formal", "casual"),
        (
            "Is the style {labels}?",
            "Register of the text: {labels}.",
            "Answer with {labels} for the language used.",
        ),
    ),
}


@cache
def tones() -> dict[str, tuple[Template, ...]]:
    """Return the lines of each tone: a line of choices counts as one template for each choice."""
    raw = read_yaml("tones.yaml")
    base = shared()
    slots = compile_slots(raw["slots"], base.slots, base.entities)
    return {name: compile_lines(text, slots, base.entities) for name, text in raw.items() if name != "slots"}


def tone(rng: random.Random) -> Row:
    """Judge sentiment, urgency, politeness or register; the labels are named in the prompt."""
    name = pick(rng, ("sentiment", "sentiment", "urgency", "politeness", "register"))
    labels, tasks = _TONES[name]
    answer = labels[int(rng.random() * len(labels))]
    line = pick_template(rng, tones()[answer])
    clean = name == "register" and answer == "formal"
    text = compose(rng, line).text if name == "sentiment" else _toned(rng, line, clean=clean)
    shown = list(labels)
    write: Callable[[str], str] = (str, str.upper, str.capitalize, str)[int(rng.random() * 4)]
    rng.shuffle(shown)
    joined = " or ".join(write(label) for label in shown)
    return asked(rng, pick(rng, tasks).format(labels=joined), text, write(answer))


def question(rng: random.Random) -> Row:
    """Say whether a message asks or states, also when the question mark is missing."""
    template = pick_template(rng, _intent(rng).phrasings)
    asks = template.source.endswith("?")
    yes, no = ("question", "statement") if rng.random() < 0.6 else ("yes", "no")
    task = (
        "Is this a question?"
        if yes == "yes"
        else pick(rng, ("Question or statement?", "Does it ask or tell? question/statement"))
    )
    return asked(rng, task, compose(rng, template).text, yes if asks else no)


def paraphrase(rng: random.Random) -> Row:
    """Write another clean message with the same intent, or one for a named intent."""
    found = domains()
    domain = found[int(rng.random() * len(found))]
    intent = domain.intents[int(rng.random() * len(domain.intents))]
    bare = [template for template in intent.phrasings if not template.roles()] or intent.phrasings
    target = compose(rng, bare[int(rng.random() * len(bare))], clean=True).text
    if rng.random() < 0.4:
        return chat(pick(rng, _WRITE).format(domain=domain.name, intent=intent.name), target)
    source = compose(rng, bare[int(rng.random() * len(bare))]).text
    return asked(rng, pick(rng, _PARAPHRASE), source, target)


def correction(rng: random.Random) -> Row:
    """Undo typing slips, or write short forms in full."""
    text = _clean(rng)
    words = text.split(" ")
    if rng.random() < 0.25:
        return asked(rng, pick(rng, _EXPAND), " ".join(shorthand().get(word, word) for word in words), text)
    for index, word in enumerate(words):
        if rng.random() < 0.3:
            words[index] = misspell(rng, word)
    return asked(rng, pick(rng, _CORRECT), " ".join(words), text)


def completion(rng: random.Random) -> Row:
    """Continue a message that was cut off."""
    text = _clean(rng)
    words = text.split(" ")
    if len(words) < 4:
        return plain(text)
    cut = 2 + int(rng.random() * (len(words) - 3))
    return asked(rng, pick(rng, _COMPLETE), " ".join(words[:cut]), " ".join(words[cut:]))


def keywords(rng: random.Random) -> Row:
    """Copy the words that carry the meaning."""
    text = compose(rng, pick_template(rng, _intent(rng).phrasings)).text
    stop_words = lexicon()["stop_words"]
    found = [word.strip(".,?!") for word in text.split(" ") if word.strip(".,?!:").lower() not in stop_words]
    picked = [word for word in dict.fromkeys(found) if len(word) > 2][:5]
    return asked(rng, pick(rng, _KEYWORDS), text, ", ".join(picked) or "none")


def quoting(rng: random.Random) -> Row:
    """Copy text: the whole, its first or last words, or one word by its place."""
    text = compose(rng, pick_template(rng, _intent(rng).phrasings), 1).text
    words = text.split(" ")
    kind = int(rng.random() * 4)
    if kind == 0:
        return asked(
            rng,
            pick(rng, ("Repeat the text exactly.", "Copy the message word for word.", "Echo.")),
            text,
            text,
        )
    count = 1 + int(rng.random() * min(4, len(words)))
    if kind == 1:
        return asked(rng, f"Quote the first {count} words.", text, " ".join(words[:count]))
    if kind == 2:
        return asked(rng, f"Quote the last {count} words.", text, " ".join(words[-count:]))
    return asked(rng, f"Which word stands at place {count}?", text, words[count - 1])


def dialogue(rng: random.Random) -> Row:
    """Write a short talk between a customer and an agent."""
    first, second = _intent(rng), _intent(rng)
    names = pick(rng, ("Customer/Agent", "User/Assistant", "A/B", "Caller/Clerk")).split("/")
    replies = (
        "I can help with that.",
        "Let me check.",
        "One moment, please.",
        "I understand.",
        "Of course.",
        "Sorry to hear that.",
    )
    lines = [
        f"{names[0]}: {compose(rng, pick_template(rng, first.phrasings)).text}",
        f"{names[1]}: {pick(rng, replies)} So it is about {first.name}?",
        f"{names[0]}: {pick(rng, ('Yes.', 'Yes, exactly.', 'Right.', 'That is it.'))}",
    ]
    if rng.random() < 0.4:
        lines[2] = f"{names[0]}: No, I meant this: {compose(rng, pick_template(rng, second.phrasings)).text}"
        lines.append(f"{names[1]}: I see, {second.name}. {pick(rng, replies)}")
    return plain("\n".join(lines))


def _toned(rng: random.Random, line: Template, *, clean: bool) -> str:
    """Return a message with a remark of the wanted tone before or after it."""
    remark = line.expand(rng).finish()
    body = compose(rng, pick_template(rng, _intent(rng).phrasings), clean=clean).text
    if remark.endswith((",", ":")) or rng.random() < 0.5:
        return f"{remark} {body}"
    return f"{body.rstrip('.')} {remark}" if rng.random() < 0.3 else f"{body} {remark}"


def _clean(rng: random.Random) -> str:
    return compose(rng, pick_template(rng, _intent(rng).phrasings), clean=True).text


def _intent(rng: random.Random) -> Intent:
    found = domains()
    intents = found[int(rng.random() * len(found))].intents
    return intents[int(rng.random() * len(intents))]
