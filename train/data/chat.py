"""Conversations, in OpenAI's ``messages`` or ShareGPT's ``from``/``value``, become prompt and completion."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from serve.errors import BadRequest
from train.data.examples import EMPTY_ANSWER, EMPTY_TEXT, Cleaner, Message, Unusable

NO_MESSAGES = "without a list of messages"
NO_ASSISTANT = "without an assistant message to learn from"
NO_PROMPT = "without a message before the answer"
TOOL_CALL = "whose answer is a tool call, which is not scored yet"
NOT_TOOLS = "with tools that are not a list of functions with names"
NOT_CALLS = "with tool calls that are not a list of functions with names"
NOT_ARGUMENTS = "with a tool call whose arguments are no JSON object"
UNKNOWN_ROLE = "with a role that is none of system, developer, user, assistant, tool"
NOT_TEXT_PART = "with content that is not text, such as an image"

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def is_messages(value: object) -> bool:
    """Whether ``value`` is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def conversation(messages: object, cleaner: Cleaner, system: object = None) -> tuple[list[Message], Message]:
    """Split ``messages`` into what comes before the answer and the answer.

    ``system`` is the row's own field for the system message; one that is among the messages wins.

    The answer is the last assistant message whose ``weight`` is not 0; what follows it is cut off. A
    conversation of several assistant turns makes one example, on that last turn; the turns before it are
    context. Tool calls and tool messages are context too, but an answer that calls a tool is not learnt, as it
    could not be scored. ``developer`` becomes ``system``, and an empty system
    message is left out. Raises :class:`Unusable`.
    """
    if isinstance(messages, str):
        messages = _from_json(messages, NO_MESSAGES)
    if not isinstance(messages, list) or not is_messages(messages):
        raise Unusable(NO_MESSAGES)
    last = max((index for index, item in enumerate(messages) if _is_learnt(item)), default=-1)
    if last < 0:
        raise Unusable(NO_ASSISTANT)
    cleaned = [_message(item, cleaner) for item in messages[: last + 1]]
    *prompt, completion = [item for item in cleaned if item["role"] != "system" or item["content"]]
    if (instruction := cleaner.text(system)) and all(item["role"] != "system" for item in prompt):
        prompt = [{"role": "system", "content": instruction}, *prompt]
    if not prompt:
        raise Unusable(NO_PROMPT)
    if any(not item["content"] and item["role"] == "user" for item in prompt):
        raise Unusable(EMPTY_TEXT)
    if "tool_calls" in completion:
        raise Unusable(TOOL_CALL)
    if not completion["content"]:
        raise Unusable(EMPTY_ANSWER)
    return prompt, completion


def tools(value: object, functions: object, cleaner: Cleaner) -> list[Any] | None:
    """The tools that a row offers, None without any; ``functions`` is OpenAI's older way to list them."""
    value = _parsed(value, NOT_TOOLS) or _parsed(functions, NOT_TOOLS)
    if not value:
        return None
    # With the keys, also where there is nothing in them, that the engine's template is given.
    return [
        {
            "type": "function",
            "function": {
                "name": function["name"],
                "description": function.get("description"),
                "parameters": cleaner.value(
                    _parsed(_either(function, "parameters", "input_schema"), NOT_TOOLS)
                ),
            }
            | ({"strict": function["strict"]} if "strict" in function else {}),
        }
        for _, function in _functions(value, NOT_TOOLS, cleaner)
    ]


def _calls(value: object, cleaner: Cleaner) -> list[Any]:
    """The calls of a message, their arguments as objects, as the engine's template is given them."""
    calls = []
    for item, function in _functions(value, NOT_CALLS, cleaner):
        named = {"id": text} if (text := cleaner.text(item.get("id"))) else {}
        arguments = _parsed(_either(function, "arguments", "parameters"), NOT_ARGUMENTS) or {}
        if not isinstance(arguments, Mapping):
            raise Unusable(NOT_ARGUMENTS)
        # In the order that the engine's requests have, as some templates write a call out as it is.
        called = {"arguments": cleaner.value(arguments), "name": function["name"]}
        calls.append({**named, "function": called, "type": "function"})
    return calls


def _functions(
    value: object, reason: str, cleaner: Cleaner
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Tools or calls, each with its function, which many data sets give without the wrapper that requests have."""
    value = _parsed(value, reason)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Unusable(reason)
    functions = []
    for item in value:
        function = _parsed(item.get("function") or item, reason)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unusable(reason)
        functions.append((item, cleaner.value(function)))
    return functions


def _either(function: Mapping[str, Any], *names: str) -> object:
    """What stands under the first of these names that is there."""
    return next((function[name] for name in names if name in function), None)


def _parsed(value: object, reason: str) -> object:
    """What a file holds as JSON text, else the value itself."""
    return _from_json(value, reason) if isinstance(value, str) else value


def refused(prompt: Sequence[Message], tools: Sequence[Any] | None) -> str | None:
    """The field for which the gateway would refuse to ask this, None where it would ask."""
    if not tools and not any(message.keys() - {"role", "content"} for message in prompt):
        return None  # nothing but texts
    from serve.gateway.validate import check_request

    body: dict[str, Any] = {"model": "any", "messages": [_asked(message) for message in prompt]}
    if tools:
        body["tools"] = list(tools)
    try:
        check_request(body, "chat")
    except BadRequest as error:
        return re.sub(r"\[\d+\]", "", error.param or "messages")
    return None


def _asked(message: Message) -> Message:
    """A message of a request, in which the arguments of a call are text, whatever they are in the file."""
    calls = [
        call | {"function": call["function"] | {"arguments": "{}"}} for call in message.get("tool_calls", ())
    ]
    return message | {"tool_calls": calls} if calls else message


def _from_json(text: str, reason: str) -> object:
    """What a file holds as JSON text, None where there is nothing; raises for ``reason`` where it is no JSON."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise Unusable(reason) from None


def _role(item: Mapping[str, Any]) -> str:
    role = item.get("role") or item.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable(UNKNOWN_ROLE)
    return _ROLES[role]


def _is_learnt(item: Mapping[str, Any]) -> bool:
    return _role(item) == "assistant" and not _is_zero(item.get("weight"))


def _is_zero(weight: object) -> bool:
    """Whether a message's ``weight`` says that it is not learnt; a CSV file holds it as text."""
    try:
        return isinstance(weight, str | int | float) and float(weight) == 0
    except (ValueError, OverflowError):
        return False


def _message(item: Mapping[str, Any], cleaner: Cleaner) -> Message:
    content = item.get("content" if "role" in item else "value")
    message: Message = {"role": _role(item), "content": _content(content, cleaner)}
    for name in ("name", "tool_call_id"):
        if text := cleaner.text(item.get(name)):
            message[name] = text
    if calls := _parsed(item.get("tool_calls"), NOT_CALLS):
        message["tool_calls"] = _calls(calls, cleaner)
    return message


def _content(value: object, cleaner: Cleaner) -> str:
    if not isinstance(value, list):
        return cleaner.text(value)
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            raise Unusable(NOT_TEXT_PART)
        parts.append(cleaner.text(part.get("text")))
    return "\n".join(parts)
