"""The body of ``/v1/responses``: one answer to what the request itself holds, as no answers are kept here."""

from typing import Annotated, Literal, Required

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, with_config
from typing_extensions import TypedDict

from serve.gateway.bodies.fields import (
    Effort,
    Flag,
    Label,
    LogitBias,
    Metadata,
    Named,
    TemplateKwargs,
    TokenIds,
    TopCount,
)
from serve.gateway.bodies.messages import MAX_MESSAGES, MAX_PARTS, check_media
from serve.gateway.bodies.schemas import MAX_TOOLS, Description, Schema, StructuredOutputs, check_tools
from serve.gateway.sampling import STRICT, CommonSampling, TokenLimit


def _check_image(url: str, info: ValidationInfo) -> str:
    return check_media("image", url, info)


@with_config(STRICT)
class InputText(TypedDict):
    """Text, said or answered."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


@with_config(STRICT)
class Refusal(TypedDict):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: str


@with_config(STRICT)
class InputImage(TypedDict, total=False):
    """An image."""

    type: Required[Literal["input_image"]]
    image_url: Required[Annotated[str, AfterValidator(_check_image)]]
    detail: Literal["auto", "low", "high"] | None


Part = Annotated[InputText | Refusal | InputImage, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]
Content = Annotated[str | Parts, Field(union_mode="left_to_right")]
Progress = Literal["in_progress", "completed", "incomplete"] | None


@with_config(STRICT)
class Message(TypedDict, total=False):
    """A message; ``type`` may be left out."""

    type: Literal["message"]
    role: Required[Literal["system", "developer", "user", "assistant"]]
    content: Required[Content]
    id: Label | None
    status: Progress


@with_config(STRICT)
class Call(TypedDict, total=False):
    """A function that the model called."""

    type: Required[Literal["function_call"]]
    call_id: Required[Label]
    name: Required[Label]
    arguments: Required[str]
    id: Label | None
    status: Progress


@with_config(STRICT)
class CallOutput(TypedDict, total=False):
    """What a called function returned."""

    type: Required[Literal["function_call_output"]]
    call_id: Required[Label]
    output: Required[Content]
    id: Label | None
    status: Progress


@with_config(STRICT)
class Thoughts(TypedDict, total=False):
    """What the model thought before an earlier answer."""

    type: Required[Literal["reasoning"]]
    id: Label
    summary: Required[Parts]
    content: Parts | None
    encrypted_content: str | None
    status: Progress


def _kind(item: object) -> str:
    return str(item.get("type", "message")) if isinstance(item, dict) else "message"


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[Call, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[Thoughts, Tag("reasoning")],
    Discriminator(_kind),
]


@with_config(STRICT)
class FunctionTool(TypedDict, total=False):
    """A function that the model may call; tools that a server would run are not offered."""

    type: Required[Literal["function"]]
    name: Required[Label]
    description: Description
    parameters: Schema | None
    strict: Flag


@with_config(STRICT)
class ChosenFunction(TypedDict):
    """The function that must be called."""

    type: Literal["function"]
    name: Label


@with_config(STRICT)
class PlainFormat(TypedDict):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


@with_config(STRICT)
class SchemaFormat(TypedDict, total=False):
    """JSON by a schema."""

    type: Required[Literal["json_schema"]]
    name: Required[Label]
    schema: Required[Schema]
    description: Description
    strict: Flag


@with_config(STRICT)
class TextOptions(TypedDict, total=False):
    """The form of the answer."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None
    verbosity: Literal["low", "medium", "high"] | None


@with_config(STRICT)
class Reasoning(TypedDict, total=False):
    """How much the model thinks, and tells of it."""

    effort: Effort
    summary: Literal["auto", "concise", "detailed"] | None


@with_config(STRICT)
class ResponsesBody(Named, CommonSampling, total=False):
    """``POST /v1/responses``."""

    input: Required[
        Annotated[
            Annotated[str, Field(min_length=1)]
            | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)],
            Field(union_mode="left_to_right"),
        ]
    ]
    instructions: str | None
    preset: str | None
    max_output_tokens: TokenLimit
    max_tool_calls: Annotated[int, Field(ge=1, le=128)] | None
    stream: Flag
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS), AfterValidator(check_tools)] | None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None
    parallel_tool_calls: Flag
    text: TextOptions | None
    reasoning: Reasoning | None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None
    include_reasoning: Flag
    top_logprobs: TopCount
    logit_bias: LogitBias
    stop_token_ids: TokenIds
    ignore_eos: Flag
    include_stop_str_in_output: Flag
    skip_special_tokens: Flag
    chat_template_kwargs: TemplateKwargs
    structured_outputs: StructuredOutputs
    truncation: Literal["auto", "disabled"] | None
    metadata: Metadata
    # Keeping answers or working on them in the background is not done here.
    background: Literal[False] | None
