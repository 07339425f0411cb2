"""A row becomes text by the base's own chat template: the prompt as a request has it, and the answer after it."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from serve.engine.templates import content_format, default_template, in_format
from serve.errors import BaseModelError, DataError

MARK = "an answer to be found again"
NEXT = "a question to be found again"

CLOSED = re.compile(r"(</[\w:-]+>|<\w+\|>|<\|END_\w+\|>)\s*$")
"""How a thought ends that templates put into a prompt, so that the answer follows at once."""
OPEN = re.compile(r"(<(think|thinking|thought|reasoning)>|<\|START_THINKING\|>|\[THINK\])\s*$", re.IGNORECASE)
"""How a prompt ends that has the model think first."""

REFUSALS = (TemplateError, TypeError, ValueError)
"""What rendering raises over messages that a template does not take."""


class Rendering:
    """Writes rows as the template of ``tokenizer`` has them, given messages as the engine gives them to it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._format = content_format(default_template(tokenizer.chat_template))
        self._endings: dict[bool, tuple[str, str]] = {}

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The prompt as a request has it, and the same with the answer after it.

        Raises DataError for a row that the template does not take, BaseModelError for a template that is not one to
        learn by.
        """
        tools = row.get("tools")
        try:
            prompt = self._render(row["prompt"], tools, add_generation_prompt=True)
        except TemplateSyntaxError as error:
            raise BaseModelError(
                f"the base's chat template is broken: {error}", "fetch the base anew"
            ) from error
        except REFUSALS as error:
            raise DataError(
                f"the base's chat template does not take it: {error}",
                "change the row's roles, tools or calls; a template without a place for a system message wants "
                "data.system: ''",
            ) from error
        if thought := OPEN.search(prompt):
            raise BaseModelError(
                f"the base's chat template ends a prompt with {thought.group(1)}, so that an answer would be trained "
                "where a thought belongs",
                "choose a base whose thoughts can be switched off, or give it a chat_template.jinja without this",
            )
        whole = self._try([*row["prompt"], *row["completion"]], tools)
        if whole.startswith(prompt):
            return prompt, whole
        before, after = self._ending(tools)
        return prompt, f"{prompt}{before}{row['completion'][0].get('content') or ''}{after}"

    def _ending(self, tools: Any) -> tuple[str, str]:
        """What stands before and after an answer that follows its prompt, as in a conversation of one question.

        For templates that write a prompt otherwise once an answer follows: some write a system message into the last
        turn, others end a prompt with an empty thought.
        """
        if bool(tools) not in self._endings:
            self._endings[bool(tools)] = self._learn_ending(tools)
        return self._endings[bool(tools)]

    def _learn_ending(self, tools: Any) -> tuple[str, str]:
        prompt = self._try(_said("x"), tools, add_generation_prompt=True)
        before, found, after = self._try(_said("x", MARK), tools).partition(MARK)
        if found and before.startswith(prompt):
            return before[len(prompt) :], after
        at = _parting(prompt, before)
        only, opening = prompt[at:], before[at:]
        if found and CLOSED.search(only):
            # Some close an empty thought in both.
            return "" if prompt.endswith(opening) else opening, after
        without = f" (without {only.strip()!r})" if only.strip() else ""
        raise BaseModelError(
            f"the base's chat template writes a prompt otherwise once an answer follows it{without}, so that what is "
            "trained would not be what is asked",
            "give the base a chat_template.jinja whose conversations begin with their prompts, or choose another base",
        )

    @cached_property
    def between(self) -> str:
        """What the template writes before the next question, after what closes an answer; empty if it takes none."""
        closed = self._try(_said("x", MARK))
        going_on = self._try(_said("x", MARK, NEXT))
        between, found, _ = going_on.removeprefix(closed).partition(NEXT)
        return between if found and going_on.startswith(closed) else ""

    def _try(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **options: Any) -> str:
        """What the template makes of the messages, empty where it does not take them."""
        try:
            return self._render(messages, tools, **options)
        except REFUSALS:
            return ""

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Any, **options: Any) -> str:
        # Templates of models that think put an empty thought before an answer. With thinking off it ends the prompt,
        # where the engine is told to put it too (serve.engine.spec); templates that know no such switch ignore it.
        given = in_format(messages, self._format)
        return str(
            self._tokenizer.apply_chat_template(
                given, tools=tools, tokenize=False, enable_thinking=False, **options
            )
        )


def _said(*texts: str) -> list[dict[str, str]]:
    """What user and assistant say in turn."""
    return [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]


def _parting(prompt: str, other: str) -> int:
    """Where ``other`` goes on otherwise: at the beginning of a tag that differs."""
    at = next((at for at, letter in enumerate(prompt) if not other.startswith(letter, at)), len(prompt))
    tag = prompt.rfind("<", 0, at)
    return tag if tag > prompt.rfind(">", 0, at) else at
