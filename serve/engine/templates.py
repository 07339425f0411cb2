"""A base's chat template: where it is, and in which form it wants what a message says."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

ContentFormat = Literal["string", "openai"]
"""What a message says is given to the template as text, or as OpenAI's list of parts (both are vLLM's names)."""

CONVERSATIONS = (("system", "user", "assistant", "user"), ("user", "assistant", "user"))
"""Roles of the conversations that a template is tried with; many take no system message."""


def chat_template(model: Path) -> str:
    """The chat template of a model folder, or of several the text that holds them all; empty if there is none."""
    try:
        if (model / "chat_template.jinja").is_file():
            return (model / "chat_template.jinja").read_text(encoding="utf-8")
        config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = config.get("chat_template") if isinstance(config, dict) else None
        if not template or isinstance(template, str):
            return template or ""
        return json.dumps(template)  # a list of named ones
    except (OSError, ValueError):
        return ""  # vLLM says what is wrong with it


@lru_cache(maxsize=32)
def content_format(template: str) -> ContentFormat:
    """The form in which ``template`` writes out what messages say, parts where it can do both.

    Found by rendering a conversation. vLLM reads the template instead, and gives parts to some that write those of a
    system message as Python writes a list. A template that cannot be rendered is given text.
    """
    if not re.search(r"\btext\b", template):
        return "string"  # it looks into no part
    for roles in CONVERSATIONS:
        said = {role: f"this is what the {role} says" for role in roles}
        chat = [{"role": role, "content": said[role]} for role in roles]
        if _tells(template, in_format(chat, "openai"), said.values()):
            return "openai"
        if _tells(template, chat, said.values()):
            return "string"
    return "string"


def in_format(messages: Sequence[Mapping[str, Any]], form: ContentFormat) -> list[Mapping[str, Any]]:
    """Messages whose content is text, as vLLM gives them to a template that wants ``form``."""
    if form == "string":
        return list(messages)
    return [
        # What a tool says stays text.
        message if message["role"] == "tool" else {**message, "content": _parts(message.get("content"))}
        for message in messages
    ]


def _parts(content: str | None) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if content else []


def _tells(template: str, chat: Sequence[Mapping[str, Any]], said: Iterable[str]) -> bool:
    """Whether the template writes out all that is said, and not as Python or JSON has a text of a list."""
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
    try:
        shown = (
            _environment()
            .from_string(template)
            .render(messages=chat, tools=None, documents=None, enable_thinking=False, **tokens)
        )
    except Exception:  # noqa: BLE001  a template may fail in any way over what it does not expect
        return False
    return all(text in shown and not re.search(f"[\"']{text}", shown) for text in said)


@lru_cache(maxsize=1)
def _environment() -> "SandboxedEnvironment":
    """Jinja as transformers and vLLM set it up for chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a model has said, and changes nothing in it."""

        tags = {"generation"}  # noqa: RUF012  as Jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment
