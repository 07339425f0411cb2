"""Tasks from text to label: options in the prompt, fixed tasks, few examples, domains, pairs, odd ones out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from train.tiny_base.corpus.entities import pick
from train.tiny_base.corpus.labels import STYLES, arbitrary, name_all, random_style
from train.tiny_base.corpus.loader import Domain, Intent, domains
from train.tiny_base.corpus.message import compose, pick_template
from train.tiny_base.corpus.rows import Row, asked, chat

_OPTION_TASKS = (
    "Classify the message. Options: {labels}. Answer with one option only.",
    "Which of these labels fits the text? {labels}",
    "Choose the right category for the customer's message from this list: {labels}. Reply with the category only.",
    "Pick one: {labels}",
    "You label {domain} messages. Possible labels: {labels}. Give the label and nothing else.",
    "What is the intent? Possible intents are {labels}.",
    "Sort the message into one of: {labels}",
    "Labels: {labels}\nReturn the label that describes the message best.",
    "You are a classifier. Allowed answers: {labels}.",
    "Select the topic of the request. The topics are: {labels}.",
    "Decide what the writer wants. Answer with exactly one of {labels}.",
    "Assign the text to one class. Classes: {labels}",
)
_KEYED_TASKS = (
    "Classify the message. Answer with the code.\n{labels}",
    "Which line describes the message? Reply with its key only.\n{labels}",
    "Choose the matching entry and give its key.\n{labels}",
    "Key:\n{labels}\nAnswer with the right key.",
)
_FIXED_TASKS = (
    "You classify messages about {domain}. Answer with the intent in {style}.",
    "Name the intent of this {domain} message in {style}. No other words.",
    "Intent detection for {domain} ({style}).",
    "What does the customer want? Field: {domain}. Label style: {style}.",
    "Task {code}: classify the {domain} message.",
    "[{code}]",
    "Run classifier {code} on the message and print the label.",
    "You route {domain} requests to the right team. Write the queue's name in {style}.",
    "Label the customer's question with one intent of {domain}. Format: {style}.",
    "{domain}: intent?",
)
_GLOBAL_TASKS = (
    "Name the domain and the intent of the message as 'domain: intent'.",
    "Give domain and intent, separated by a colon.",
    "Tag this text as domain: intent.",
)
_DOMAIN_TASKS = (
    "What is this message about? Name the domain.",
    "Which field does the text belong to? Answer with the domain only.",
    "Classify the topic of the text.",
    "Detect the domain.",
    "Name the subject area in one to three words.",
    "Domain classification. Reply with the name of the domain.",
)
_SAME_TASKS = (
    ("Do both messages ask for the same thing? Answer yes or no.", "yes", "no"),
    ("Same intent or different intent?", "same", "different"),
    ("Compare the two texts. Reply true if the writers want the same, else false.", "true", "false"),
    ("Are these two duplicates in meaning? Yes/No", "Yes", "No"),
    ("Say 1 when the two sentences share their intent and 0 otherwise.", "1", "0"),
)
_ODD_TASKS = (
    "One of these messages is about something else. Which number?",
    "Find the odd one out. Answer with its number.",
    "All but one mean the same. Give the number of the one that differs.",
)
_SHOT_FRAMES = (
    ("{text} => {label}", "{text} =>"),
    ("Text: {text}\nLabel: {label}", "Text: {text}\nLabel:"),
    ("Q: {text}\nA: {label}", "Q: {text}\nA:"),
    ("{text} | {label}", "{text} |"),
    ("Input: {text}\nOutput: {label}", "Input: {text}\nOutput:"),
)
_SHOT_TASKS = (
    "Label the last text as in the examples.",
    "Continue the pattern.",
    "Learn from the examples, then answer the last one.",
    "Examples come first; give the missing label.",
)


@dataclass(frozen=True, slots=True)
class FixedTask:
    """A task whose labels are not in the prompt: the model has to know them from the instruction."""

    instruction: str
    system: bool
    intents: tuple[Intent, ...]
    labels: tuple[str, ...]


def _domain(rng: random.Random) -> Domain:
    found = domains()
    # Large domains are drawn more often, so that each intent is seen about equally.
    first, second = found[int(rng.random() * len(found))], found[int(rng.random() * len(found))]
    return first if len(first.intents) >= len(second.intents) else second


def _some(rng: random.Random, domain: Domain, count: int) -> list[Intent]:
    return rng.sample(domain.intents, min(count, len(domain.intents)))


def message(rng: random.Random, intent: Intent) -> str:
    """Return a noisy message with this intent, sometimes with a further sentence."""
    tails = 1 if rng.random() < 0.08 else 0
    return compose(rng, pick_template(rng, intent.phrasings), tails).text


def with_options(rng: random.Random) -> Row:
    """Classify among 2 to 12 options that stand in the prompt."""
    domain = _domain(rng)
    intents = _some(rng, domain, 2 + int(rng.random() ** 1.4 * 11))
    answer = int(rng.random() * len(intents))
    names = [intent.name for intent in intents]
    text = message(rng, intents[answer])
    if rng.random() < 0.3:
        keys = arbitrary(rng, len(names))
        sign = pick(rng, (": ", ") ", " = ", " - "))
        listing = "\n".join(f"{key}{sign}{name}" for key, name in zip(keys, names, strict=True))
        return asked(rng, pick(rng, _KEYED_TASKS).format(labels=listing), text, keys[answer])
    labels = name_all(rng, names)
    joined = pick(rng, (", ", " | ", "; ", " / ", "\n- ")).join(labels)
    if "\n- " in joined:
        joined = f"\n- {joined}\n"
    task = pick(rng, _OPTION_TASKS).format(labels=joined, domain=domain.name)
    return asked(rng, task, text, labels[answer])


@cache
def fixed_tasks() -> tuple[FixedTask, ...]:
    """Return the fixed tasks: several for each domain, the same in every stream."""
    return tuple(_fixed_task(domain, number) for domain in domains() for number in range(6))


def _fixed_task(domain: Domain, number: int) -> FixedTask:
    rng = random.Random(f"{domain.name}/{number}")
    style = random_style(rng)
    code = f"{domain.name.split()[0]}-{number}"
    whole = number < 4
    intents = domain.intents if whole else tuple(_some(rng, domain, len(domain.intents) * 2 // 3))
    names = [intent.name for intent in intents]
    coded = number == 5
    labels = arbitrary(rng, len(names)) if coded else [STYLES[style](name) for name in names]
    choices = _FIXED_TASKS[4:7] if coded or not whole else _FIXED_TASKS
    instruction = pick(rng, choices).format(domain=domain.name, style=style, code=code)
    return FixedTask(instruction, rng.random() < 0.7, intents, tuple(labels))


def fixed(rng: random.Random) -> Row:
    """Classify in a fixed task, its labels not shown."""
    tasks = fixed_tasks()
    first, second = tasks[int(rng.random() * len(tasks))], tasks[int(rng.random() * len(tasks))]
    task = first if len(first.intents) >= len(second.intents) else second
    answer = int(rng.random() * len(task.intents))
    text = message(rng, task.intents[answer])
    if task.system:
        return chat(text, task.labels[answer], task.instruction)
    return chat(f"{task.instruction}\n{text}", task.labels[answer])


def described(rng: random.Random) -> Row:
    """Classify in a domain with the label style named, the labels not shown."""
    domain = _domain(rng)
    intent = domain.intents[int(rng.random() * len(domain.intents))]
    style = random_style(rng)
    task = pick(rng, _FIXED_TASKS[:4]).format(domain=domain.name, style=style)
    return asked(rng, task, message(rng, intent), STYLES[style](intent.name), system=0.8)


def everything(rng: random.Random) -> Row:
    """Name domain and intent at once, among all there are."""
    domain = _domain(rng)
    intent = domain.intents[int(rng.random() * len(domain.intents))]
    return asked(rng, pick(rng, _GLOBAL_TASKS), message(rng, intent), f"{domain.name}: {intent.name}")


def topic(rng: random.Random) -> Row:
    """Name the domain, from a list in the prompt or from all."""
    domain = _domain(rng)
    text = message(rng, domain.intents[int(rng.random() * len(domain.intents))])
    if rng.random() < 0.4:
        others = [other for other in rng.sample(domains(), min(8, len(domains()))) if other is not domain]
        options = [domain, *others[: 1 + int(rng.random() * 7)]]
        rng.shuffle(options)
        labels = name_all(rng, [option.name for option in options])
        task = pick(rng, _OPTION_TASKS).format(labels=", ".join(labels), domain="customer")
        return asked(rng, task, text, labels[options.index(domain)])
    return asked(rng, pick(rng, _DOMAIN_TASKS), text, domain.name)


def same_intent(rng: random.Random) -> Row:
    """Say whether two messages have one intent; half of the pairs do, the others are close neighbours."""
    domain = _domain(rng)
    first, second = _some(rng, domain, 2)
    same = rng.random() < 0.5
    task, yes, no = _SAME_TASKS[int(rng.random() * len(_SAME_TASKS))]
    one, two = message(rng, first), message(rng, first if same else second)
    frame = pick(rng, ("1. {}\n2. {}", "A: {}\nB: {}", "{}\n{}", "First: {}\nSecond: {}"))
    return asked(rng, task, frame.format(one, two), yes if same else no)


def odd_one_out(rng: random.Random) -> Row:
    """Find the one of three to five messages whose intent differs."""
    first, second = _some(rng, _domain(rng), 2)
    count = 3 + int(rng.random() * 3)
    odd = int(rng.random() * count)
    lines = [f"{index + 1}. {message(rng, second if index == odd else first)}" for index in range(count)]
    return asked(rng, pick(rng, _ODD_TASKS), "\n".join(lines), str(odd + 1))


def few_shot(rng: random.Random) -> Row:
    """Label a text after two to six examples whose labels may be arbitrary."""
    count = 2 + int(rng.random() * 2)
    domain = _domain(rng)
    intents: Sequence[Intent] = _some(rng, domain, count)
    if rng.random() < 0.3:
        intents = [_some(rng, _domain(rng), 1)[0] for _ in range(count)]
        if len({intent.name for intent in intents}) < count:
            intents = _some(rng, domain, count)
    labels = name_all(rng, [intent.name for intent in intents], codes=0.7)
    order = list(range(count)) + [int(rng.random() * count) for _ in range(int(rng.random() * 3))]
    rng.shuffle(order)
    answer = int(rng.random() * count)
    example, query = _SHOT_FRAMES[int(rng.random() * len(_SHOT_FRAMES))]
    shots = [example.format(text=message(rng, intents[index]), label=labels[index]) for index in order]
    last = query.format(text=message(rng, intents[answer]))
    text = pick(rng, ("\n", "\n\n")).join([*shots, last])
    if rng.random() < 0.4:
        return chat(text, labels[answer])
    return asked(rng, pick(rng, _SHOT_TASKS), text, labels[answer])
