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

ROLES = (("system", "user", "assistant", "user"), ("user", "assistant", "user"))
"""Of the conversations that a template is tried with; many take no system message."""


def chat_template(model: Path) -> str:
    """The chat template of a model folder, or of several the text that holds them all; empty if there is none."""
    template = _template(model)
    return template if isinstance(template, str) else json.dumps(template)


def default_template(template: object) -> str:
    """Of named templates, as a list or by name, the one for chats without tools; a single one as it is."""
    if isinstance(template, list):
        template = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def format_of(model: Path) -> ContentFormat:
    """:func:`content_format` of a model folder."""
    return content_format(default_template(_template(model)))


def _template(model: Path) -> Any:
    try:
        if (model / "chat_template.jinja").is_file():
            return (model / "chat_template.jinja").read_text(encoding="utf-8")
        config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        return (isinstance(config, dict) and config.get("chat_template")) or ""
    except (OSError, ValueError):
        return ""  # vLLM says what is wrong with it


@lru_cache(maxsize=32)
def content_format(template: str) -> ContentFormat:
    """The form in which ``template`` writes out what messages say, parts where it can do both.

    Found by rendering conversations. vLLM reads the template instead, and gives parts to some that write those of a
    system message, or beside a call, as Python writes a list. A template that cannot be rendered is given text.
    """
    if not re.search(r"\btext\b", template):
        return "string"  # it looks into no part
    found = next((form for roles in ROLES if (form := _form(template, _chat(*roles)))), None)
    if found is None or found == "string":
        return "string"
    # A template that takes no calls says nothing of them.
    return _form(template, _chat("user", "caller")) or found


def _form(template: str, chat: Sequence[Mapping[str, Any]]) -> ContentFormat | None:
    """The form in which the template writes this conversation out; None where it does so in none."""
    said = [str(message["content"]) for message in chat]
    forms: tuple[ContentFormat, ...] = ("openai", "string")
    return next((form for form in forms if _tells(template, in_format(chat, form), said)), None)


def _chat(*roles: str) -> list[dict[str, Any]]:
    """A conversation in which each says something, and a caller calls a function as well."""
    call = {"id": "call12345", "function": {"arguments": {}, "name": "find"}, "type": "function"}
    return [
        {"role": "assistant", "content": "this is what the caller says", "tool_calls": [call]}
        if role == "caller"
        else {"role": role, "content": f"this is what the {role} says"}
        for role in roles
    ]


def in_format(messages: Sequence[Mapping[str, Any]], form: ContentFormat) -> list[Mapping[str, Any]]:
    """Messages whose content is text, as vLLM gives them to a template that wants ``form``."""
    if form == "string":
        return list(messages)
    return [
        # What a tool says stays text.
        message if message["role"] == "tool" else {**message, "content": _parts(message)}
        for message in messages
    ]


def _parts(message: Mapping[str, Any]) -> list[dict[str, str]]:
    # An assistant that called tools and said nothing has no content in a request, any other an empty text.
    text = message["content"]
    return [] if not text and message.get("tool_calls") else [{"type": "text", "text": text}]


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
    """Jinja as transformers and vLLM set it up for chat templates; neither is imported here, which takes seconds."""
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
