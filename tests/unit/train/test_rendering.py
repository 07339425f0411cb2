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
        {"id": "call12345", "type": "function", "function": {"name": "find", "arguments": '{"order": "12"}'}}
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
    "calls": ([TELL, ASK, CALL, {"role": "tool", "tool_call_id": "call12345", "content": "In Rome."}], TOOLS),
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
            with pytest.raises(DataError, match="chat template does not take it"):
                rendering.texts(row_of(case, "An answer."))
            continue
        prompt, whole = rendering.texts(row_of(case, "An answer."))
        assert prompt == expected
        assert whole.startswith(prompt)
        assert whole.removeprefix(prompt).count("An answer.") == 1
        # Some leave out what a tool says, in the engine as well.
        said = [
            str(message["content"]) for message in CASES[case][0] if message["role"] in ("system", "user")
        ]
        assert all(text in prompt for text in said)
        # Not as Python or JSON writes a list, whatever both sides agree on.
        assert not any(f"'text': '{text}'" in prompt or f'"text": "{text}"' in prompt for text in said)
        taken.append(case)
    assert "one question" in taken


@pytest.mark.parametrize("family", sorted(OPEN_THOUGHTS))
def test_prompts_that_end_amid_a_thought_are_refused(base: Path, tmp_path: Path, family: str) -> None:
    folder = with_template(base, tmp_path / "base", SHIPPED.joinpath(f"{family}.jinja").read_text("utf-8"))
    rendering = Rendering(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(
        BaseModelError, match="ends a prompt with <think>, so that an answer would be trained"
    ):
        rendering.texts(row_of("one question", "An answer."))


TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHAT = "{% for m in messages %}" + TURN + "{% endfor %}"


def rendering_of(base: Path, folder: Path, template: str) -> Rendering:
    return Rendering(AutoTokenizer.from_pretrained(with_template(base, folder, template)))


@pytest.mark.parametrize(
    "thought",
    ["<think>\n\n</think>\n\n", "<|channel>thought\n<channel|>", "<|START_THINKING|><|END_THINKING|>"],
)
@pytest.mark.parametrize("opening", ["", "<|START_RESPONSE|>"])
def test_an_empty_thought_that_only_prompts_have_is_kept(
    base: Path, tmp_path: Path, thought: str, opening: str
) -> None:
    says = "{% if m.role == 'assistant' %}" + opening + "{% endif %}{{ m.content }}"
    template = CHAT.replace("{{ m.content }}", says)
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n" + thought + "{% endif %}"
    rendering = rendering_of(base, tmp_path / "base", template)
    prompt, whole = rendering.texts(row_of("system message", "An answer."))
    assert prompt.endswith(f"Where is my card?<|im_end|>\n<|im_start|>assistant\n{thought}")
    assert whole == f"{prompt}{opening}An answer.<|im_end|>\n"


def test_a_thought_that_is_closed_in_both_is_not_closed_twice(base: Path, tmp_path: Path) -> None:
    says = "{% if m.role == 'assistant' %}</think>{% endif %}{{ m.content }}"
    template = CHAT.replace("{{ m.content }}", says)
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>{% endif %}"
    prompt, whole = rendering_of(base, tmp_path / "base", template).texts(
        row_of("one question", "An answer.")
    )
    assert whole == f"{prompt}An answer.<|im_end|>\n"


@pytest.mark.parametrize("opening", ["<think>\n", "<|START_THINKING|>", "[THINK]"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_prompt_that_ends_amid_a_thought_is_refused_whatever_follows_it(
    base: Path, tmp_path: Path, opening: str, kept: bool
) -> None:
    says = "{% if m.role == 'assistant' %}" + (opening if kept else "") + "{% endif %}{{ m.content }}"
    template = CHAT.replace("{{ m.content }}", says)
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n" + opening + "{% endif %}"
    with pytest.raises(BaseModelError, match=r"ends a prompt with .*where a thought belongs"):
        rendering_of(base, tmp_path / "base", template).texts(row_of("one question", "An answer."))


def test_a_prompt_that_is_written_otherwise_before_an_answer_is_refused(base: Path, tmp_path: Path) -> None:
    template = CHAT + "{% if add_generation_prompt %}<|im_start|>assistant\nHere are my steps:\n{% endif %}"
    with pytest.raises(BaseModelError, match=r"follows it \(without 'Here are my steps:'\)"):
        rendering_of(base, tmp_path / "base", template).texts(row_of("one question", "An answer."))


def test_a_call_is_written_as_requests_have_it(base: Path, tmp_path: Path) -> None:
    # As Mistral's templates, which write a call out as it is.
    template = CHAT.replace(
        "{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}"
    )
    prompt, _ = rendering_of(base, tmp_path / "base", template).texts(row_of("calls", "An answer."))
    call = (
        '{"id": "call12345", "function": {"arguments": {"order": "12"}, "name": "find"}, "type": "function"}'
    )
    assert f"[{call}]" in prompt


def test_a_tag_that_differs_within_is_named_whole(base: Path, tmp_path: Path) -> None:
    template = CHAT.replace("{{ m.content }}", "<|START_TEXT|>{{ m.content }}").replace(
        "{{ m.role }}\n", "{{ m.role }}"
    )
    template += "{% if add_generation_prompt %}<|im_start|>assistant<|START_STEPS|>{% endif %}"
    rendering = rendering_of(base, tmp_path / "base", template)
    with pytest.raises(BaseModelError, match=r"\(without '<\|START_STEPS\|>'\)"):
        rendering.texts(row_of("one question", "An answer."))


def test_a_template_that_takes_no_answer_to_a_row_lends_its_ending(base: Path, tmp_path: Path) -> None:
    # As Cohere's, which takes a tool's result, but no answer after it.
    refuses = "{% if messages | length > 3 %}{{ raise_exception('too many') }}{% endif %}"
    template = refuses + CHAT + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    rendering = rendering_of(base, tmp_path / "base", template)
    row = row_of("system message", "An answer.")
    row["prompt"] = [*row["prompt"], ASK]
    prompt, whole = rendering.texts(row)
    assert whole == f"{prompt}An answer.<|im_end|>\n"
    assert prompt.count("Where is my card?") == 2
