"""What a request's body must look like before any engine sees it."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, Field, StrictBool, ValidationError

from serve.errors import BadRequest
from serve.gateway.sampling import SamplingFields

Endpoint = Literal["chat", "completion"]

MAX_N = 128
INTERNAL = frozenset(
    {
        "api_base",
        "cache_salt",
        "chat_template",
        "ec_transfer_params",
        "kv_transfer_params",
        "lora_name",
        "lora_path",
        "lora_request",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "vllm_xargs",
    }
)
"""Fields that steer an engine from within: files, caches, templates, scheduling. No client sets them."""
INTERNAL_TEMPLATE_KEYS = frozenset({"chat_template", "tokenize", "return_tensors", "return_dict"})
"""Keys of ``chat_template_kwargs`` that change how the engine renders and not what the template says."""


def _check_template_kwargs(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value and (bad := INTERNAL_TEMPLATE_KEYS & value.keys()):
        raise ValueError(f"must not set {', '.join(sorted(bad))}")
    return value


class StreamOptions(BaseModel):
    """``stream_options`` of a request."""

    include_usage: StrictBool | None = None


class Turn(BaseModel):
    """One message of a chat; the engine checks the rest of it."""

    role: Annotated[str, Field(min_length=1)]


Count = Annotated[int, Field(ge=1, le=MAX_N)] | None
TopCount = Annotated[int, Field(ge=-1, le=1024)] | None


class RequestFields(SamplingFields):
    """What both endpoints know."""

    n: Count = None
    best_of: Count = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    prompt_logprobs: TopCount = None
    logit_bias: Annotated[dict[str, float], Field(max_length=4096)] | None = None
    response_format: dict[str, Any] | None = None


class ChatFields(RequestFields):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopCount = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, AfterValidator(_check_template_kwargs)] = None


class CompletionFields(RequestFields):
    """``POST /v1/completions``."""

    prompt: Annotated[list[Any], Field(min_length=1)] | str
    logprobs: TopCount = None
    echo: bool | None = None


VALIDATORS = {
    "chat": ChatFields.__pydantic_validator__,
    "completion": CompletionFields.__pydantic_validator__,
}


def parse_body(raw: bytes) -> dict[str, Any]:
    """Read a JSON object that names a model, else raise BadRequest.

    NaN, infinite numbers, lone surrogates and nesting beyond 1,024 levels are no JSON here.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}", "send one JSON object") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is JSON, but not an object", "send one JSON object")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("the request names no model", "set model; GET /v1/models lists them", param="model")
    return body


def check_request(body: dict[str, Any], endpoint: Endpoint) -> None:
    """Raise BadRequest, which names the field, unless the engine may see ``body``."""
    if INTERNAL & body.keys():
        for name in sorted(INTERNAL & body.keys()):
            if body[name] is not None:
                raise BadRequest(
                    f"{name} is internal and cannot be set by a request", "leave it out", param=name
                )
    try:
        VALIDATORS[endpoint].validate_python(body)
    except ValidationError as error:
        raise _bad_field(error) from None


def _bad_field(error: ValidationError) -> BadRequest:
    item = error.errors(include_url=False, include_context=False)[0]
    param = str(item["loc"][0])
    if param == "messages":  # the one field whose items are checked
        param += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"][1:])
    if item["type"] == "missing":
        return BadRequest(f"{param}: this field is required", param=param)
    value = "" if isinstance(item["input"], list | dict) else f" (got {str(item['input'])[:100]!r})"
    return BadRequest(f"{param}: {item['msg'].removeprefix('Value error, ')}{value}", param=param)
