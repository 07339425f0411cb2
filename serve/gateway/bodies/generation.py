"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``."""

from typing import Annotated, Literal, Required

from pydantic import Field, with_config
from typing_extensions import TypedDict

from serve.gateway.bodies.fields import (
    BadWords,
    Count,
    Documents,
    Effort,
    Flag,
    LogitBias,
    Metadata,
    Named,
    Prompt,
    ServiceTier,
    Side,
    TemplateKwargs,
    TokenIds,
    Tokens,
    TopCount,
    Truncation,
)
from serve.gateway.bodies.messages import Messages
from serve.gateway.bodies.schemas import ResponseFormat, StructuredOutputs, ToolChoice, Tools
from serve.gateway.sampling import MAX_INT, STRICT, CommonSampling, TokenLimit


@with_config(STRICT)
class StreamOptions(TypedDict, total=False):
    """How a stream is told."""

    include_usage: Flag
    continuous_usage_stats: Flag


@with_config(STRICT)
class GenerationBody(Named, CommonSampling, total=False):
    """What both endpoints know."""

    preset: str | None
    n: Count
    min_tokens: Tokens | None
    stream: Flag
    stream_options: StreamOptions | None
    stream_interval: Annotated[int, Field(ge=1, le=1024)] | None
    logit_bias: LogitBias
    prompt_logprobs: TopCount
    logprob_token_ids: Annotated[list[Tokens], Field(max_length=128)] | None
    stop_token_ids: TokenIds
    allowed_token_ids: TokenIds
    bad_words: BadWords
    ignore_eos: Flag
    include_stop_str_in_output: Flag
    skip_special_tokens: Flag
    spaces_between_special_tokens: Flag
    add_special_tokens: Flag
    truncate_prompt_tokens: Truncation
    truncation_side: Side
    return_token_ids: Flag
    return_tokens_as_token_ids: Flag
    thinking_token_budget: Annotated[int, Field(ge=-1, le=MAX_INT)] | None
    response_format: ResponseFormat
    structured_outputs: StructuredOutputs


@with_config(STRICT)
class ChatBody(GenerationBody, total=False):
    """``POST /v1/chat/completions``."""

    messages: Required[Messages]
    max_tokens: TokenLimit
    max_completion_tokens: TokenLimit
    logprobs: Flag
    top_logprobs: TopCount
    tools: Tools
    tool_choice: ToolChoice
    parallel_tool_calls: Flag
    reasoning_effort: Effort
    include_reasoning: Flag
    chat_template_kwargs: TemplateKwargs
    documents: Documents
    echo: Flag
    add_generation_prompt: Flag
    continue_final_message: Flag
    # Checked, but of no meaning to an engine here; they do not reach it.
    metadata: Metadata
    modalities: list[Literal["text"]] | None
    service_tier: ServiceTier


@with_config(STRICT)
class CompletionBody(GenerationBody, total=False):
    """``POST /v1/completions``."""

    prompt: Required[Prompt]
    # None at all where the prompt alone is echoed, with its log-probabilities.
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None
    best_of: Count
    logprobs: TopCount
    echo: Flag
