"""Bodies of what reads and does not write: embeddings, classes, scores, and the tokenizer's endpoints."""

from typing import Annotated, Literal, Required

from pydantic import Field, PlainValidator, with_config
from typing_extensions import TypedDict

from serve.gateway.bodies.fields import (
    MAX_INPUTS,
    Flag,
    Inputs,
    Named,
    Side,
    TemplateKwargs,
    Tokens,
    Truncation,
)
from serve.gateway.bodies.messages import Messages
from serve.gateway.bodies.schemas import Tools
from serve.gateway.sampling import MAX_INT, STRICT

MAX_TOKENS = 2**20
"""Token ids in one request to ``/detokenize``: a million, more than any context."""


def _check_texts(value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not 0 < len(value) <= MAX_INPUTS or set(map(type, value)) != {str}:
        raise ValueError(f"must be a text or a list of 1 to {MAX_INPUTS:,} texts")
    return value


Texts = Annotated[str | list[str], PlainValidator(_check_texts)]


@with_config(STRICT)
class PoolingOptions(Named, total=False):
    """What all endpoints that read know."""

    truncate_prompt_tokens: Truncation
    truncation_side: Side
    use_activation: Flag


@with_config(STRICT)
class ReadingBody(PoolingOptions, total=False):
    """``input``, or the ``messages`` of a chat."""

    input: Inputs
    messages: Messages
    add_special_tokens: Flag
    add_generation_prompt: Flag
    continue_final_message: Flag
    chat_template_kwargs: TemplateKwargs


@with_config(STRICT)
class EmbeddingBody(ReadingBody, total=False):
    """``POST /v1/embeddings``."""

    dimensions: Annotated[int, Field(ge=1, le=65536)] | None
    encoding_format: Literal["float", "base64"] | None
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None
    endianness: Literal["native", "big", "little"] | None


@with_config(STRICT)
class ClassifyBody(ReadingBody, total=False):
    """``POST /classify``."""


@with_config(STRICT)
class PoolingBody(EmbeddingBody, total=False):
    """``POST /pooling``."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None


@with_config(STRICT)
class PairOptions(PoolingOptions, total=False):
    """What scores and ranks share."""

    instruction: str | None
    max_tokens_per_query: Annotated[int, Field(ge=0, le=MAX_INT)] | None
    max_tokens_per_doc: Annotated[int, Field(ge=0, le=MAX_INT)] | None
    chat_template_kwargs: TemplateKwargs


@with_config(STRICT)
class ScoreBody(PairOptions, total=False):
    """``POST /score``; one of the pairs that PAIRS lists."""

    queries: Texts
    documents: Texts
    items: Texts
    text_1: Texts
    text_2: Texts
    data_1: Texts
    data_2: Texts


PAIRS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


@with_config(STRICT)
class RerankBody(PairOptions, total=False):
    """``POST /rerank``."""

    query: Required[str]
    documents: Required[Texts]
    top_n: Annotated[int, Field(ge=0, le=MAX_INT)] | None


@with_config(STRICT)
class TokenizeBody(Named, total=False):
    """``POST /tokenize``: a ``prompt``, or the ``messages`` of a chat."""

    prompt: str
    messages: Messages
    add_special_tokens: bool
    add_generation_prompt: bool
    continue_final_message: bool
    return_token_strs: Flag
    tools: Tools
    chat_template_kwargs: TemplateKwargs


@with_config(STRICT)
class DetokenizeBody(TypedDict, total=False):
    """``POST /detokenize``."""

    model: str
    tokens: Required[Annotated[list[Tokens], Field(max_length=MAX_TOKENS)]]
