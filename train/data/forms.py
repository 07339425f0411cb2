"""The forms that rows come in: told by the columns, or named by the user; a record becomes an example."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import DataError
from train.data import chat
from train.data.examples import EMPTY_TEXT, Cleaner, Example, Message, Unusable, too_long
from train.data.read import Record, Table
from train.data.report import Ledger, some
from train.data.spec import DataSpec, FieldName, FormName

Values = Mapping[str, Any]
Draft = tuple[list[Message], Message]

# Names that a field goes by, the best first: where a file has a number and a name for the label, the name.
_NAMES: dict[FieldName, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "tools": ("tools",),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "input"),
    "completion": ("completion", "response", "output"),
    "question": ("question", "query"),
    "answer": ("answer", "response"),
    "context": ("context", "passage"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "text": (
        "text",
        "sentence",
        "utterance",
        "message",
        "content",
        "query",
        "question",
        "review",
        "comment",
        "tweet",
        "document",
        "input",
    ),
    "label": (
        "label_text",
        "label_name",
        "label",
        "category",
        "intent",
        "class",
        "target",
        "sentiment",
        "topic",
        "tag",
    ),
}


@dataclass(frozen=True, slots=True)
class Form:
    """A way to lay out a row: the fields it needs, those it may have, and how they become an example."""

    name: FormName
    required: tuple[FieldName, ...]
    optional: tuple[FieldName, ...]
    draft: Callable[[Values, Cleaner], Draft]

    @property
    def signature(self) -> str:
        """``question_answer (question, answer, [context])``."""
        optional = [f"[{name}]" for name in self.optional]
        return f"{self.name} ({', '.join([*self.required, *optional])})"


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a file, and the column of each field that it has."""

    form: Form
    columns: dict[str, str]

    def __str__(self) -> str:
        fields = [name if name == column else f"{name} = {column}" for name, column in self.columns.items()]
        return f"{self.form.name} ({', '.join(fields)})"


def _chat(values: Values, cleaner: Cleaner) -> Draft:
    return chat.conversation(values["messages"], cleaner, values["system"])


def _prompt_completion(values: Values, cleaner: Cleaner) -> Draft:
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(completion, Mapping) and "role" in completion:
        completion = [completion]
    if not chat.is_messages(prompt) and not chat.is_messages(completion):
        return _pair(values, [cleaner.text(prompt)], cleaner.answer(completion), cleaner)
    before = prompt if chat.is_messages(prompt) else [{"role": "user", "content": prompt}]
    after = completion if chat.is_messages(completion) else [_assistant(cleaner.answer(completion))]
    return chat.conversation([*before, *after], cleaner, values["system"])


def _question_answer(values: Values, cleaner: Cleaner) -> Draft:
    question = cleaner.text(values["question"])
    parts = [cleaner.text(values["context"]), question] if question else []
    return _pair(values, parts, cleaner.answer(values["answer"]), cleaner)


def _instruction(values: Values, cleaner: Cleaner) -> Draft:
    parts = [cleaner.text(values["instruction"]), cleaner.text(values["input"])]
    return _pair(values, parts, cleaner.answer(values["output"]), cleaner)


def _labelled(values: Values, cleaner: Cleaner) -> Draft:
    return _pair(values, [cleaner.text(values["text"])], cleaner.label(values["label"]), cleaner)


def _pair(values: Values, parts: Sequence[str], answer: str, cleaner: Cleaner) -> Draft:
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise Unusable(EMPTY_TEXT)
    system = cleaner.text(values.get("system"))
    prompt = [{"role": "system", "content": system}] if system else []
    return [*prompt, {"role": "user", "content": text}], _assistant(answer)


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


# The first whose required fields are all there is taken, so the more telling names stand first.
FORMS: tuple[Form, ...] = (
    Form("chat", ("messages",), ("system", "tools"), _chat),
    Form("instruction", ("instruction", "output"), ("input", "system"), _instruction),
    Form("question_answer", ("question", "answer"), ("context", "system"), _question_answer),
    Form("prompt_completion", ("prompt", "completion"), ("system", "tools"), _prompt_completion),
    Form("labelled", ("text", "label"), (), _labelled),
)


def detect(table: Table, spec: DataSpec) -> Layout:
    """The layout of ``table``: the form that ``spec`` names, or the first of FORMS that its columns fill.

    Columns that ``spec`` names win over the names that we know; those are compared without regard to case.
    Raises :class:`DataError` where no form fits.
    """
    overrides = spec.overrides()
    for name, column in overrides.items():
        if column not in table.columns:
            near = difflib.get_close_matches(column, table.columns, 1)
            raise DataError(
                f"{table.name} has no column {column!r} for {name} (found: {_columns(table)})",
                f"did you mean {near[0]!r}?" if near else f"name one of them in data.columns.{name}",
            )
    known = {column.strip().casefold().replace(" ", "_"): column for column in table.columns}
    wanted = "labelled" if spec.label_column else spec.format
    forms = [form for form in FORMS if wanted in ("auto", form.name)]
    for form in forms:
        fields = (*form.required, *form.optional)
        found = {name: overrides.get(name) or _find(name, known) for name in fields}
        if set(overrides) <= set(fields) and all(found[name] for name in form.required):
            return Layout(form, {str(name): column for name, column in found.items() if column})
    raise _no_form(table, forms)


def _find(name: FieldName, known: Mapping[str, str]) -> str | None:
    return next((known[alias] for alias in _NAMES[name] if alias in known), None)


def _no_form(table: Table, forms: Sequence[Form]) -> DataError:
    kinds = "; ".join(form.signature for form in forms)
    if len(forms) == 1:
        form = forms[0]
        message = f"{table.name} has no columns for the form {form.name} (found: {_columns(table)})"
        names = " ".join(f"data.columns.{name}=YOUR_COLUMN" for name in form.required)
        return DataError(message, f"it needs {kinds}; name the columns: {names}")
    return DataError(
        f"{table.name} has no columns of a known form (found: {_columns(table)})",
        f"known forms: {kinds}. Example of labelled, as CSV: a first line text,label and then lines such as "
        "my card is lost,lost_card. Is the first line of your file a header? If its columns have other "
        "names, say which is which: data.columns.text=YOUR_COLUMN data.columns.label=YOUR_COLUMN (or "
        "data.format=FORM and the columns of that form)",
    )


def _columns(table: Table) -> str:
    return some(table.columns, 12) or "none"


def examples(table: Table, layout: Layout, spec: DataSpec, ledger: Ledger) -> list[Example]:
    """The rows of ``table`` that can be used; the others go into ``ledger``."""
    cleaner = Cleaner(spec.max_chars)
    usable = []
    for record in table.records:
        try:
            usable.append(_example(record, layout, cleaner))
        except Unusable as reason:
            ledger.drop(table.name, str(reason), record.number)
    return usable


def _example(record: Record, layout: Layout, cleaner: Cleaner) -> Example:
    if record.problem:
        raise Unusable(record.problem)
    form = layout.form
    values: dict[str, Any] = dict.fromkeys((*form.required, *form.optional))
    values |= {name: record.fields.get(column) for name, column in layout.columns.items()}
    if all(value is None or value == "" for value in values.values()):
        raise Unusable(EMPTY_TEXT)
    functions = record.fields.get("functions") if "tools" in values else None
    tools = chat.tools(values.get("tools"), functions, cleaner)
    prompt, completion = form.draft(values, cleaner)
    if field := chat.refused(prompt, tools):
        raise Unusable(f"that no request could ask ({field})")
    example = Example(record.number, prompt, completion, tools)
    if example.chars > cleaner.max_chars:
        raise Unusable(too_long(cleaner.max_chars))
    return example
