import json
from pathlib import Path

import pytest

from serve.engine.templates import chat_template, content_format, default_template, format_of, in_format

TEXT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PARTS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
)
BOTH = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part['text'] }}{% endfor %}{% endif %}\n{% endfor %}"
)
SYSTEM_AS_TEXT = "{{ messages[0].content }}\n" + BOTH.replace("in messages", "in messages[1:]")
CALLS_AS_TEXT = BOTH.replace("m.content is string", "m.content is string or m.tool_calls")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (TEXT, "string"),
        (TEXT.replace("m.content", "m.content + ' '"), "string"),
        ("{# a text #}" + TEXT, "string"),
        (PARTS, "openai"),
        (BOTH, "openai"),
        (NO_SYSTEM + BOTH, "openai"),
        (NO_SYSTEM + "{# a text #}" + TEXT, "string"),
        # A list where a text is wanted, as Python and as JSON write it.
        (SYSTEM_AS_TEXT, "string"),
        (SYSTEM_AS_TEXT.replace("messages[0].content", "messages[0].content | tojson"), "string"),
        ("{% generation %}{% endgeneration %}" + BOTH, "openai"),
        (CALLS_AS_TEXT, "string"),
        (BOTH + "{% if messages[-1].tool_calls %}{{ raise_exception('no calls') }}{% endif %}", "openai"),
        ("text {% for %}", "string"),
        ("text", "string"),
        ("", "string"),
    ],
)
def test_messages_are_given_as_the_template_writes_them_out(template: str, form: str) -> None:
    assert content_format(template) == form


def test_parts_hold_what_was_said_and_a_tool_says_text() -> None:
    messages = [
        {"role": "user", "content": "hello", "name": "a"},
        {"role": "assistant", "content": "", "tool_calls": [{}]},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "3"},
    ]
    assert in_format(messages, "string") == messages
    assert in_format(messages, "openai") == [
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "a"},
        {"role": "assistant", "content": [], "tool_calls": [{}]},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        {"role": "tool", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"chat_template.jinja": TEXT, "tokenizer_config.json": '{"chat_template": "x"}'}, TEXT),
        ({"tokenizer_config.json": json.dumps({"chat_template": TEXT})}, TEXT),
        ({"tokenizer_config.json": "{}"}, ""),
        ({"tokenizer_config.json": "[]"}, ""),
        ({"tokenizer_config.json": "no JSON"}, ""),
        ({}, ""),
    ],
)
def test_the_template_of_a_folder(tmp_path: Path, files: dict[str, str], found: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert chat_template(tmp_path) == found


def test_of_several_templates_all_are_looked_into(tmp_path: Path) -> None:
    named = [{"name": "default", "template": TEXT}, {"name": "tool_use", "template": "<tool_call>"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert "<tool_call>" in chat_template(tmp_path)
    assert "m.content" in chat_template(tmp_path)
    assert format_of(tmp_path) == "string"
    named[0]["template"] = PARTS
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert format_of(tmp_path) == "openai"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("x", "x"),
        ({"default": "x", "tool_use": "y"}, "x"),
        ([{"name": "tool_use", "template": "y"}, {"name": "default", "template": "x"}], "x"),
        ({"tool_use": "y"}, ""),
        (None, ""),
    ],
)
def test_of_named_templates_the_one_for_chats_says_the_form(template: object, found: str) -> None:
    assert default_template(template) == found
