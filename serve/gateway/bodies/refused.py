"""Names that no request may set, those that are not offered here, and those that mean nothing to an engine."""

INTERNAL = frozenset(
    {
        "adapter",
        "adapter_id",
        "api_base",
        "api_key",
        "base_url",
        "cache_salt",
        "chat_template",
        "data_parallel_rank",
        "ec_transfer_params",
        "enable_response_messages",
        "extra_args",
        "guided_decoding_backend",
        "kv_transfer_params",
        "lora_id",
        "lora_int_id",
        "lora_name",
        "lora_path",
        "lora_request",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "multi_modal_data",
        "multi_modal_uuids",
        "previous_input_messages",
        "priority",
        "prompt_embeds",
        "request_id",
        "return_mm_kwargs",
        "routed_experts_prompt_start",
        "session_id",
        "vllm_xargs",
    }
)
"""Fields that steer an engine from within: files, caches, templates, scheduling."""

_REMOVED = "engines do not follow it any more; use structured_outputs or response_format"
_KEPT = "answers are not kept here; send the whole conversation in input"
UNSERVED = {
    "audio": "answers are text",
    "conversation": _KEPT,
    "function_call": "it was replaced by tool_choice",
    "functions": "it was replaced by tools",
    "guided_choice": _REMOVED,
    "guided_grammar": _REMOVED,
    "guided_json": _REMOVED,
    "guided_regex": _REMOVED,
    "guided_whitespace_pattern": _REMOVED,
    "length_penalty": "there is no beam search",
    "normalize": "it was replaced by use_activation",
    "previous_response_id": _KEPT,
    "suffix": "engines do not fill in the middle",
    "use_beam_search": "it costs a multiple of what it shows; use n",
    "web_search_options": "nothing is searched here",
}
"""Fields that change the answer but are not offered, and why."""

IGNORED = frozenset(
    {
        "metadata",
        "modalities",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "return_documents",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
"""Fields of OpenAI's and Cohere's APIs that change no answer here: taken, and not passed on."""
