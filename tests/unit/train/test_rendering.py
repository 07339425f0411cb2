"""What is trained is what is asked: rows begin as the engine writes requests, for the templates of real families."""

import json
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_base import write_base
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from serve.engine.templates import content_format
from serve.errors import BaseModelError, DataError
from train.data.chat import conversation, tools
from train.data.examples import Cleaner
from train.methods.rendering import Rendering

SHIPPED = files("trl").joinpath("chat_templates")
FAMILIES = sorted(
    path.name.removesuffix(".jinja")
    for path in SHIPPED.iterdir()
    if path.name.endswith(".jinja") and "_training" not in path.name
)
OPEN_THOUGHTS = {"deepseek_r1_distill", "deepseekv3"}
"""Their prompts end amid a thought, which an answer that follows does not have."""

ASK = {"role": "user", "content": "Where is my card?"}
TELL = {"role": "system", "content": "Classify."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"order": "12"}'}}
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find an order.",
            "parameters": {"type": "object", "properties": {"order": {"type": "string"}}},
        },
    }
]
CASES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "one question": ([ASK], None),
    "system message": ([TELL, ASK], None),
    "turns": ([TELL, ASK, {"role": "assistant", "content": "card"}, ASK], None),
    "tools": ([TELL, ASK], TOOLS),
    "calls": ([TELL, ASK, CALL, {"role": "tool", "tool_call_id": "call_1", "content": "In Rome."}], TOOLS),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("rendering") / "base")


def with_template(base: Path, folder: Path, template: str) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


class Refused(Exception):
    """The template does not take a conversation."""


def asked(folder: Path, tokenizer: PreTrainedTokenizerBase, case: str) -> str:
    """The prompt that vLLM makes of the request, by the steps and with the options of its chat endpoint."""
    from vllm.config import ModelConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.chat_utils import parse_chat_messages
    from vllm.renderers.hf import safe_apply_chat_template

    messages, offered = CASES[case]
    template = (folder / "chat_template.jinja").read_text()
    body = {"model": "any", "messages": messages} | ({"tools": offered} if offered else {})
    request = ChatCompletionRequest.model_validate_json(json.dumps(body))
    defaults: dict[str, Any] = {"tokenize": False}
    defaults["tools"] = [tool.model_dump() for tool in request.tools] if request.tools else None
    if "enable_thinking" in template:
        defaults["enable_thinking"] = False
    params = request.build_chat_params(None, "auto").with_defaults(defaults)
    config = ModelConfig(model=str(folder), tokenizer=str(folder))
    told, _, _ = parse_chat_messages(request.messages, config, content_format=content_format(template))
    try:
        return safe_apply_chat_template(config, tokenizer, told, **params.get_apply_chat_template_kwargs())
    except VLLMValidationError as error:
        raise Refused from error


def row_of(case: str, answer: str) -> dict[str, Any]:
    messages, offered = CASES[case]
    cleaner = Cleaner(1_000)
    prompt, completion = conversation([*messages, {"role": "assistant", "content": answer}], cleaner)
    listed = tools(offered, None, cleaner)
    return {"prompt": prompt, "completion": [completion]} | ({"tools": listed} if listed else {})


@pytest.mark.xdist_group("vllm")
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in OPEN_THOUGHTS])
def test_rows_begin_as_the_engine_writes_requests(base: Path, tmp_path: Path, family: str) -> None:
    folder = with_template(base, tmp_path / "base", SHIPPED.joinpath(f"{family}.jinja").read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendering = Rendering(tokenizer)
    taken = []
    for case in CASES:
        try:
            expected = asked(folder, tokenizer, case)
        except Refused:
            with pytest.raises(DataError, match="none that the base's chat template takes"):
                rendering.texts(row_of(case, "An answer."))
            continue
        prompt, whole = rendering.texts(row_of(case, "An answer."))
        assert prompt == expected
        assert whole.startswith(prompt)
        assert whole.removeprefix(prompt).count("An answer.") == 1
        assert "Where is my card?" in prompt
        taken.append(case)
    assert "one question" in taken


@pytest.mark.parametrize("family", sorted(OPEN_THOUGHTS))
def test_prompts_that_end_amid_a_thought_are_refused(base: Path, tmp_path: Path, family: str) -> None:
    folder = with_template(base, tmp_path / "base", SHIPPED.joinpath(f"{family}.jinja").read_text("utf-8"))
    rendering = Rendering(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(BaseModelError, match=r"once an answer follows it \(without '<think>'\)"):
        rendering.texts(row_of("one question", "An answer."))


TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHAT = "{% for m in messages %}" + TURN + "{% endfor %}"


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", True),
        ("<|im_start|>assistant\n<|channel>thought\n<channel|>", True),
        ("<|im_start|>assistant\n<|START_THINKING|><|END_THINKING|>", True),
        ("<|im_start|>assistant\n<think>\n", False),
        ("<|im_start|>assistant\n<|START_THINKING|>", False),
        ("<|im_start|>assistant\nHere are my steps:\n", False),
    ],
)
def test_an_empty_thought_that_only_prompts_have_is_kept_where_it_is_closed(
    base: Path, tmp_path: Path, opening: str, expected: bool
) -> None:
    template = CHAT + "{% if add_generation_prompt %}" + opening + "{% endif %}"
    rendering = Rendering(AutoTokenizer.from_pretrained(with_template(base, tmp_path / "base", template)))
    row = row_of("system message", "An answer.")
    if not expected:
        with pytest.raises(BaseModelError, match="otherwise once an answer follows"):
            rendering.texts(row)
        return
    prompt, whole = rendering.texts(row)
    assert prompt.endswith(f"Where is my card?<|im_end|>\n{opening}")
    assert whole == f"{prompt}An answer.<|im_end|>\n"


def test_a_tag_that_differs_within_is_named_whole(base: Path, tmp_path: Path) -> None:
    template = CHAT.replace("{{ m.content }}", "<|START_TEXT|>{{ m.content }}").replace(
        "{{ m.role }}\n", "{{ m.role }}"
    )
    template += "{% if add_generation_prompt %}<|im_start|>assistant<|START_THINKING|>{% endif %}"
    rendering = Rendering(AutoTokenizer.from_pretrained(with_template(base, tmp_path / "base", template)))
    with pytest.raises(BaseModelError, match=r"\(without '<\|START_THINKING\|>'\)"):
        rendering.texts(row_of("one question", "An answer."))


def test_a_template_that_takes_no_answer_to_a_row_lends_its_ending(base: Path, tmp_path: Path) -> None:
    # As Cohere's, which takes a tool's result, but no answer after it.
    refuses = "{% if messages | length > 3 %}{{ raise_exception('too many') }}{% endif %}"
    template = refuses + CHAT + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    rendering = Rendering(AutoTokenizer.from_pretrained(with_template(base, tmp_path / "base", template)))
    row = row_of("system message", "An answer.")
    row["prompt"] = [*row["prompt"], ASK]
    prompt, whole = rendering.texts(row)
    assert whole == f"{prompt}An answer.<|im_end|>\n"
    assert prompt.count("Where is my card?") == 2
