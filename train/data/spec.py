"""What a user asks for: which files, in which form, split how."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from train.section import Section

FormName = Literal["chat", "prompt_completion", "question_answer", "instruction", "labelled"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
FieldName = Literal[
    "messages",
    "tools",
    "system",
    "prompt",
    "completion",
    "question",
    "answer",
    "context",
    "instruction",
    "input",
    "output",
    "text",
    "label",
]

MIN_ROWS = 10

Name = Annotated[str, StringConstraints(min_length=1)]


class DataSpec(Section):
    """The ``data`` section of a recipe."""

    train: Name = Field("builtin:support", description="'builtin:support' or a file to train on")
    validation: Name | None = Field(None, description="a file to choose checkpoints by; else part of train")
    test: Name | None = Field(None, description="a file to evaluate on; else part of train")
    format: Literal["auto"] | FormName = Field("auto", description="form of the rows; auto: by their columns")
    columns: dict[FieldName, Name] = Field({}, description="column of each field where its name is not known")
    label_column: Name | None = Field(None, description="column with the label; short for columns.label")
    system: str | None = Field(
        None, description="system instruction, {labels} is filled in; empty: none; unset: by the form"
    )
    validation_fraction: float = Field(0.1, ge=0, le=0.45, description="share of the rows for validation")
    test_fraction: float = Field(0.1, ge=0, le=0.45, description="share of the rows for the test")
    seed: int = Field(0, description="another seed splits the rows another way")
    max_chars: int = Field(32_000, ge=1, description="a row with more characters than this is dropped")
    limit: int | None = Field(None, ge=MIN_ROWS, description="train on a sample of this many rows at most")

    @model_validator(mode="after")
    def _one_label_column(self) -> Self:
        if self.label_column is None:
            return self
        if self.columns.get("label", self.label_column) != self.label_column:
            raise ValueError("label_column and columns.label name two columns; give one of them")
        if self.format not in ("auto", "labelled"):
            raise ValueError(f"label_column is for labelled text, but format is {self.format}")
        return self

    def overrides(self) -> dict[str, str]:
        """The columns that the user named, by field."""
        named = {str(name): column for name, column in self.columns.items()}
        return named if self.label_column is None else {**named, "label": self.label_column}
