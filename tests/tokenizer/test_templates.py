"""Chat templates of well-known models: what ends a turn, and that a row is the dialogue as transformers renders it."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import MODELS, tokenizer_of, write_model_tokenizer
from dialogues import user, write_byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers.utils.chat_template_utils import render_jinja_template

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.pairs.observations import template_lines, turn_marks
from prefdag.tokenizer.marks import CLOSE, OPEN
from prefdag.tokenizer.template import either
from prefdag.tokenizer.tokenizer import ChatTokenizer

EARLIER = [*user("Name a colour."), {"role": "assistant", "content": "Red."}, *user("And another?")]
# Their prompts leave a block open, or their templates add an empty one: see the tests of blocks.
NO_BLOCKS = sorted(set(MODELS) - {"deepseek r1"})
CALL = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"query": "mills", "most": 3}}}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}]


def answer(content: str, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def whole(folder: Path, name: str, messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
    """The dialogue as transformers renders it, up to the token that ends the last turn."""
    model = MODELS[name]
    tokens = {"eos_token": model.eos, "bos_token": model.bos or ""}
    template = (folder / "chat_template.jinja").read_text()
    content = messages[-1]["content"]
    marked = [*messages[:-1], messages[-1] | {"content": "\u2603" if content else ""}]
    text: str = render_jinja_template([marked], tools, chat_template=template, **tokens, **options)[0][0]
    place = text.index("\u2603") if content else text.rindex("assistant")
    end = text.find(model.end, place)
    return (text[: end + len(model.end)] if end >= 0 else text.rstrip("\n") + model.end).replace("\u2603", content)


def pair(
    tokenizer: ChatTokenizer, messages: list[dict[str, Any]], turn: dict[str, Any], tools: Any = None
) -> list[int]:
    """The tokens of a prompt and its response."""
    dialogue = tokenizer.dialogue(messages, tools)
    return dialogue.prompt().ids + dialogue.response(turn).ids


@pytest.mark.parametrize("name", MODELS)
def test_the_end_of_a_turn_is_what_the_template_writes(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, name)
    assert tokenizer.decode([tokenizer.end_id]) == MODELS[name].end
    assert tokenizer.decode([tokenizer.eos_id]) == MODELS[name].eos
    assert set(tokenizer.stop_ids) == {tokenizer.end_id, tokenizer.eos_id}
    response = tokenizer.dialogue(user("hi")).response(answer("Blue."))
    assert tokenizer.decode(response.ids).endswith(f"Blue.{MODELS[name].end}") or name in (
        "llama 2",
        "chatml spelled out",
    )
    assert response.ids.count(tokenizer.end_id) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_BLOCKS)
@pytest.mark.parametrize("messages", [user("hi"), EARLIER], ids=["one turn", "three turns"])
@pytest.mark.parametrize("text", ["Blue.", "Blue:\n\n- as the sky", "im_end", "é€😀 1 + 1 = 2"])
def test_a_row_is_the_dialogue_as_transformers_renders_it(
    tmp_path: Path, name: str, messages: list[dict[str, Any]], text: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, name)
    expected = whole(tmp_path, name, [*messages, answer(text)])
    ids = pair(tokenizer, messages, answer(text))
    assert tokenizer.decode(ids) == expected
    assert ids == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(expected, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_BLOCKS)
def test_a_row_has_the_ids_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizer_of(tmp_path, name)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    ids = oracle.apply_chat_template([*EARLIER, answer("Blue.")], return_dict=False)
    row = pair(tokenizer, EARLIER, answer("Blue."))
    assert ids[: len(row)] == row or name == "chatml spelled out"  # has EOS, which transformers does not add
    assert tokenizer.decode(ids[len(row) :]).strip() in (
        "",
        "<|endoftext|>",
        "<|start_header_id|>assistant<|end_header_id|>",
    )


@pytest.mark.parametrize("name", ["llama 3", "gemma", "llama 2", "qwen 3"])
def test_white_space_that_a_template_removes_is_listed(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, name)
    dialogue = tokenizer.dialogue(user("hi"))
    text = "\n\nBlue." if name == "qwen 3" else " Blue.\n"
    response = dialogue.response(answer(text))
    assert response.ids == dialogue.response(answer("Blue.")).ids
    assert response.altered == "the template changes its text or its white space"
    assert dialogue.response(answer("Blue.")).altered == ""


def test_a_template_that_keeps_white_space(tmp_path: Path) -> None:
    response = tokenizer_of(tmp_path, "chatml").dialogue(user("hi")).response(answer(" Blue.\n"))
    assert (response.text, response.altered) == (" Blue.\n", "")


def test_a_template_that_drops_the_system_message_of_a_whole_dialogue(tmp_path: Path) -> None:
    """The prompt has it, so the row does too."""
    tokenizer = tokenizer_of(tmp_path, "mistral")
    messages = [{"role": "system", "content": "Be brief."}, *user("hi")]
    assert tokenizer.decode(pair(tokenizer, messages, answer("Blue."))) == "<s>[INST] Be brief.\n\nhi[/INST] Blue.</s>"


def test_a_template_without_a_generation_prompt(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    write_byte_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>"], template, eos_token="<|im_end|>")
    tokenizer = ChatTokenizer(tmp_path, "chat")
    assert tokenizer.decode(pair(tokenizer, user("hi"), answer("Blue."))) == (
        "<|im_start|>user\nhi<|im_end|>\nBlue.<|im_end|>"
    )
    assert template_lines(tokenizer)[0].startswith(
        "the chat template never marks where an answer starts: it writes '<|im_start|>"
    )


def test_tokenizers_that_put_a_space_before_a_text_do_not_put_it_before_a_response(tmp_path: Path) -> None:
    """As Llama 2's. The model reads "[/INST] Blue", so it never writes two spaces."""
    letters = sorted(set("▁ [INST]/hiBlue.\nassistantuser:"))
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *letters, "▁▁"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "▁")]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    write_model_tokenizer(tmp_path, "llama 2")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    expected = whole(tmp_path, "llama 2", [*user("hi"), answer("Blue.")])
    assert expected == "<s>[INST] hi [/INST] Blue. </s>"
    assert pair(ChatTokenizer(tmp_path, "chat"), user("hi"), answer("Blue.")) == tokenizer.encode(expected).ids


# Typed control tokens

SPECIALS = sorted({token for model in MODELS.values() for token in model.controls})


@pytest.mark.slow
@given(
    name=st.sampled_from(NO_BLOCKS),
    question=st.lists(st.sampled_from([*SPECIALS, "hi", " ", "\n", OPEN, CLOSE, "</think>"])).map("".join),
    text=st.lists(st.sampled_from([*SPECIALS, "hi", " ", "\n", OPEN, CLOSE])).map("".join),
)
def test_typed_control_tokens_end_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, question: str, text: str
) -> None:
    """In every template, a row has the control tokens of a row without typed ones, and no others."""
    tokenizer = FIXED.setdefault(name, tokenizer_of(tmp_path_factory.mktemp("model"), name))
    plain, typed = (pair(tokenizer, user(a), answer(b)) for a, b in (("q", "a"), (f"q{question}q", f"a{text}a")))
    controls = {number for number in plain if tokenizer.pieces([number])[0][1]}
    assert [number for number in typed if number in controls] == [number for number in plain if number in controls]


FIXED: dict[str, ChatTokenizer] = {}


# Stop ids


def test_the_models_own_list_of_stop_ids_is_kept(tmp_path: Path) -> None:
    """But for ordinary tokens: the default of many configurations is 2, whatever that is in the vocabulary."""
    write_model_tokenizer(tmp_path, "chatml with another eos")
    vocabulary = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    eos, start, end = map(vocabulary.token_to_id, MODELS["chatml with another eos"].controls)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [eos, end]}))
    assert ChatTokenizer(tmp_path, "chat").stop_ids == (end, eos)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, start, 2]}))
    assert ChatTokenizer(tmp_path, "chat").stop_ids == (end, eos, start)
    assert ChatTokenizer(tmp_path, "instruction").stop_ids == (eos, start)


# Tools, calls and reasoning


def test_tools_and_calls_are_rendered(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "qwen 3")
    messages = [*user("hi"), answer("", tool_calls=[CALL]), {"role": "tool", "content": "found: 1"}]
    turn = answer("", tool_calls=[CALL, CALL], reasoning_content="Again.")
    dialogue = tokenizer.dialogue(messages, TOOLS)
    assert tokenizer.decode(dialogue.prompt().ids + dialogue.response(turn).ids) == whole(
        tmp_path, "qwen 3", [*messages, turn], TOOLS
    )
    response = tokenizer.decode(dialogue.response(turn).ids)
    call = '<tool_call>\n{"name": "find", "arguments": {"query": "mills", "most": 3}}\n</tool_call>'
    assert response == f"<think>\nAgain.\n</think>\n\n{call}\n{call}<|im_end|>"
    assert '"description": "Finds."' in dialogue.prompt().text
    assert "<tool_response>\nfound: 1" in dialogue.prompt().text


def test_calls_whose_arguments_a_template_wants_as_text(tmp_path: Path) -> None:
    """As objects they would be written as Python's, or the template fails; it asks whether the content is null."""
    tokenizer = tokenizer_of(tmp_path, "deepseek r1")
    text = tokenizer.prompt([*user("hi"), answer("", tool_calls=[CALL]), *user("go on")]).text
    assert '<｜tool｜>find\n{"query": "mills", "most": 3}<｜end｜>' in text
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{calls}{{% endfor %}}"
    write_byte_tokenizer(tmp_path, ["</s>"], template, eos_token="</s>")
    text = ChatTokenizer(tmp_path, "chat").prompt([*user("hi"), answer("", tool_calls=[CALL]), *user("go on")]).text
    assert text == 'hifind{"query": "mills", "most": 3}go on'


def test_calls_start_with_their_own_control_token(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "mistral")
    response = tokenizer.dialogue(user("hi"), TOOLS).response(answer("", tool_calls=[CALL]))
    pieces = tokenizer.pieces(response.ids)
    assert pieces[0] == ("[TOOL_CALLS]", True)
    assert pieces[-1] == ("</s>", True)
    assert not any(control for _, control in pieces[1:-1])


def test_a_control_token_typed_in_a_call_stays_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "qwen 3")
    call = {"type": "function", "function": {"name": "find", "arguments": {"query": "<|im_end|>"}}}
    response = tokenizer.dialogue(user("hi"), TOOLS).response(answer("", tool_calls=[call]))
    assert '{"query": "<|im_end|>"}' in response.text
    assert response.ids.count(tokenizer.end_id) == 1


@pytest.mark.parametrize(
    ("name", "messages", "tools", "error"),
    [
        ("chatml", user("hi"), TOOLS, r"^tools: the chat template ignores it"),
        ("chatml", [*user("a"), answer("b", tool_calls=[CALL]), *user("c")], None, r"^prompt\[1\].tool_calls: "),
        (
            "chatml",
            [*user("a"), answer("b", reasoning_content="x"), *user("c")],
            None,
            r"^prompt\[1\].reasoning_content: ",
        ),
        ("deepseek r1", [*user("a"), {"role": "tool", "content": "x"}], None, r"^prompt\[1\].content \(role tool\): "),
        ("gemma", [{"role": "system", "content": "x"}, *user("a")], None, r"rejects this dialogue \(System role not"),
    ],
)
def test_what_a_template_ignores_in_a_dialogue_is_refused(
    tmp_path: Path, name: str, messages: list[dict[str, Any]], tools: Any, error: str
) -> None:
    with pytest.raises(DataError, match=error):
        tokenizer_of(tmp_path, name).dialogue(messages, tools)


@pytest.mark.parametrize(
    ("name", "turn", "error"),
    [
        ("chatml", answer("b", tool_calls=[CALL]), "^tool_calls: the chat template ignores it"),
        ("chatml", answer("b", reasoning_content="x"), "^reasoning_content: the chat template ignores it"),
        ("deepseek r1", answer("b", reasoning_content="x"), "^reasoning_content: "),
        ("deepseek r1", answer("", tool_calls=[CALL]), r"than its generation prompt \('<｜Assistant｜><think>"),
        ("mistral", answer("text", tool_calls=[CALL]), "^the chat template loses a part of it"),
    ],
)
def test_what_a_template_ignores_in_a_response_is_refused(
    tmp_path: Path, name: str, turn: dict[str, Any], error: str
) -> None:
    with pytest.raises(DataError, match=error):
        tokenizer_of(tmp_path, name).dialogue(user("hi")).response(turn)


def test_reasoning_that_a_template_leaves_out_of_earlier_turns_is_listed(tmp_path: Path) -> None:
    messages = [*user("a"), answer("b", reasoning_content="x"), *user("c")]
    prompt = tokenizer_of(tmp_path, "qwen 3").prompt(messages)
    assert prompt.altered == "the template leaves out or changes the reasoning of turn 1"
    prompt = tokenizer_of(tmp_path, "deepseek r1").prompt([*user("a"), answer("x</think>b"), *user("c")])
    assert prompt.altered == "the template leaves out or changes the text of turn 1"
    assert "x</think>" not in prompt.text


def test_reasoning_has_the_control_tokens_of_its_channel(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "harmony")
    response = tokenizer.dialogue(user("hi")).response(answer("Blue.", reasoning_content="Sky."))
    assert tokenizer.decode(response.ids) == (
        "<|channel|>analysis<|message|>Sky.<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|return|>"
    )


# Options and blocks


def test_an_option_of_the_template(tmp_path: Path) -> None:
    empty = "<think>\n\n</think>\n\n"
    thinking, off = tokenizer_of(tmp_path, "qwen 3"), tokenizer_of(tmp_path, "qwen 3", enable_thinking=False)
    assert not thinking.prompt(user("hi")).text.endswith(empty)
    assert off.prompt(user("hi")).text.endswith(f"<|im_start|>assistant\n{empty}")
    # The whole dialogue is the same, but the empty block is scored only if the model has to write it.
    assert thinking.dialogue(user("hi")).response(answer("Blue.")).text == f"{empty}Blue."
    assert off.dialogue(user("hi")).response(answer("Blue.")).text == "Blue."
    assert pair(thinking, user("hi"), answer("Blue.")) == pair(off, user("hi"), answer("Blue."))
    assert template_lines(thinking) == [
        "the chat template writes '<think>\\n\\n</think>\\n\\n' before every response, so it is trained and scored; an "
        "option in format_pairs.template_options may move it into the prompt"
    ]
    assert template_lines(off) == []


def test_the_options_of_training_are_defaults_of_the_exported_template(tmp_path: Path) -> None:
    """Whoever loads the model may still set them."""
    options = {"enable_thinking": False, "note": "it's 1 {{ '}}' }}\n", "more": [{"a": None}]}
    template = MODELS["qwen 3"].template + "{{ note is defined }}{{ more is defined }}"
    write_model_tokenizer(tmp_path, "qwen 3")
    (tmp_path / "chat_template.jinja").write_text(template)
    ours = ChatTokenizer(tmp_path, "chat", options)

    def rendered(source: str, **given: Any) -> str:
        text: str = render_jinja_template(
            [user("hi")], chat_template=source, add_generation_prompt=True, eos_token="", bos_token="", **given
        )[0][0]
        return text

    assert rendered(ours.jinja()) == ours.prompt(user("hi")).text
    assert rendered(ours.jinja(), enable_thinking=True) == ours.prompt(user("hi")).text.replace(
        "<think>\n\n</think>\n\n", ""
    )
    assert rendered(ours.jinja() + "{{ note }}{{ more }}").endswith(f"{options['note']}{options['more']}")
    assert ChatTokenizer(tmp_path, "chat").jinja() == template


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        (
            "qwen 3",
            {"enable_thinkin": False},
            r"options.enable_thinkin: .* \(it has enable_thinking\); did you mean 'enable_th",
        ),
        ("qwen 3", {"date": "today"}, r"template_options.date: .*; remove it$"),
        ("chatml", {"enable_thinking": False}, r"does not mention it \(it has no options\); remove it$"),
        ("qwen 3", {"tools": []}, r"template_options.tools: the pipeline sets it; remove it$"),
    ],
)
def test_an_option_that_the_template_does_not_mention_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ParamsError, match=error):
        tokenizer_of(tmp_path, name, **options)


@pytest.mark.parametrize(
    "text", ["<think>\nSky.\n</think>\n\nBlue.", "Sky.\n</think>\n\nBlue.", "<think>Sky.\n</think>\n\nBlue."]
)
def test_a_block_that_the_prompt_opens_is_opened_once(tmp_path: Path, text: str) -> None:
    tokenizer = tokenizer_of(tmp_path, "deepseek r1")
    dialogue = tokenizer.dialogue(user("hi"))
    response = dialogue.response(answer(text))
    row = tokenizer.decode(dialogue.prompt().ids + response.ids)
    assert row == "<s><｜User｜>hi<｜Assistant｜><think>\nSky.\n</think>\n\nBlue.<｜end｜>"
    assert dialogue.unclosed(response) is None


@pytest.mark.parametrize(
    "turn",
    [
        answer("Blue.", reasoning_content="Sky."),
        answer("<think>\nSky.\n</think>\n\nBlue."),
        answer("Sky.\n</think>\n\nBlue."),
    ],
)
def test_a_prompt_that_opens_the_block_of_a_template_that_closes_it(tmp_path: Path, turn: dict[str, Any]) -> None:
    """As in Qwen3's models that always think."""
    write_model_tokenizer(tmp_path, "qwen 3")
    template = MODELS["qwen 3"].template.replace(
        "{{- '<|im_start|>assistant\\n' }}\n    {%- if", "{{- '<|im_start|>assistant\\n<think>\\n' }}\n    {%- if"
    )
    assert template != MODELS["qwen 3"].template
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = ChatTokenizer(tmp_path, "chat")
    row = tokenizer.decode(pair(tokenizer, user("hi"), turn))
    start = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert row == f"{start}Sky.\n</think>\n\nBlue.<|im_end|>"
    plain = tokenizer.dialogue(user("hi")).response(answer("Blue."))
    assert plain.text == "\n</think>\n\nBlue."  # the template closes the block


@pytest.mark.parametrize(
    ("name", "text", "block"),
    [
        ("deepseek r1", "Blue.", "<think>"),
        ("deepseek r1", "<think>\nBlue.", "<think>"),
        ("qwen 3", "Blue.", None),  # the template closes it
        ("qwen 3", "<think>\nBlue.", None),
        ("chatml", "<think>\nBlue.", None),  # a tag like any other to a model without reasoning
    ],
)
def test_a_response_in_a_block_that_it_never_closes(tmp_path: Path, name: str, text: str, block: str | None) -> None:
    dialogue = tokenizer_of(tmp_path, name).dialogue(user("hi"))
    assert dialogue.unclosed(dialogue.response(answer(text))) == block


# Several templates by name


def write_named(folder: Path, form: str, **templates: str) -> Path:
    """A model folder with these templates, in one of the forms that transformers reads."""
    write_model_tokenizer(folder, "qwen 3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink()
    if form == "files":
        more = folder / "additional_chat_templates"
        more.mkdir()
        for name, source in templates.items():
            (folder / "chat_template.jinja" if name == "default" else more / f"{name}.jinja").write_text(source)
        config["chat_template"] = "{{ 'files go first' }}"
    elif form == "list":
        config["chat_template"] = [{"name": name, "template": source} for name, source in templates.items()]
    else:
        config["chat_template"] = templates
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


CHATML, QWEN_3 = MODELS["chatml"].template, MODELS["qwen 3"].template
FORMS = ["files", "list", "object"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_tools_have_the_template_for_tools(tmp_path: Path, form: str) -> None:
    tokenizer = ChatTokenizer(
        write_named(tmp_path, form, tool_use=QWEN_3, rag="{{ 'x' }}", default=CHATML),
        "chat",
        {"enable_thinking": False},
    )
    both = [(None, CHATML), (TOOLS, QWEN_3)]
    for tools, source in both:
        options = {"eos_token": "<|endoftext|>", "bos_token": "", "enable_thinking": False}
        expected = render_jinja_template([EARLIER], tools, chat_template=source, add_generation_prompt=True, **options)[
            0
        ][0]
        assert tokenizer.prompt(EARLIER, tools=tools).text == expected
        assert render_jinja_template(
            [EARLIER], tools, chat_template=tokenizer.jinja(), add_generation_prompt=True, **options
        )[0] == [expected]
    turn = answer("", tool_calls=[CALL])
    assert tokenizer.dialogue(user("hi"), TOOLS).response(turn).text.startswith("<tool_call>")
    with pytest.raises(DataError, match=r"^tool_calls: the chat template ignores it"):
        tokenizer.dialogue(user("hi")).response(turn)
    assert ChatTokenizer(tmp_path, "instruction").prompt(user("hi")).text.startswith("Below is")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_named_templates_give_the_ids_of_transformers(tmp_path: Path, form: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = ChatTokenizer(write_named(tmp_path, form, default=CHATML, tool_use=QWEN_3), "chat")
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    for tools in (None, TOOLS):
        ids = oracle.apply_chat_template(EARLIER, tools=tools, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer.prompt(EARLIER, tools=tools).ids


def test_a_template_for_tools_that_ignores_them_is_refused(tmp_path: Path) -> None:
    """Although without tools the row has another template, so another text."""
    write_named(tmp_path, "files", default=QWEN_3, tool_use=CHATML)
    with pytest.raises(DataError, match=r"^tools: the chat template ignores it"):
        ChatTokenizer(tmp_path, "chat").dialogue(user("hi"), TOOLS)


def test_each_template_ends_a_turn_in_its_own_way(tmp_path: Path) -> None:
    write_named(tmp_path, "files", default=CHATML, tool_use=QWEN_3.replace("<|im_end|>", "</tool_call>"))
    tokenizer = ChatTokenizer(tmp_path, "chat")
    ends = [
        tokenizer.decode(tokenizer.dialogue(user("hi"), tools).response(answer("a")).ids[-1:])
        for tools in (None, TOOLS)
    ]
    assert ends == ["<|im_end|>", "</tool_call>"]
    assert [tokenizer.decode([number]) for number in tokenizer.stop_ids] == [*ends, "<|endoftext|>"]


@pytest.mark.parametrize("form", FORMS)
def test_named_templates_without_a_default_one_are_refused(tmp_path: Path, form: str) -> None:
    write_named(tmp_path, form, tool_use=QWEN_3, rag="{{ 'x' }}")
    with pytest.raises(ParamsError) as error:
        ChatTokenizer(tmp_path, "chat")
    assert str(error.value) == (
        f"params.yaml: format_pairs.template: {tmp_path} has chat templates only by the names rag, tool_use, and no default "
        "one; set `format_pairs.template: instruction`, or use a copy of the model in which chat_template.jinja is one of them"
    )


@pytest.mark.parametrize(
    "value", [7, ["x"], [{"name": "default"}], {"default": 7}, [{"name": "default", "template": None}]]
)
def test_a_key_that_is_no_template_is_named(tmp_path: Path, value: Any) -> None:
    write_byte_tokenizer(tmp_path, ["</s>"], None, eos_token="</s>", chat_template=value)
    with pytest.raises(DataError, match=r"tokenizer_config.json: chat_template: neither a template nor a list of"):
        ChatTokenizer(tmp_path, "chat")


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(["a", " ", "\n", "{{ 'b' }}", "{% if true %}", "{%- if true %}", "{# c #}"])),
    st.lists(st.sampled_from(["a", " ", "\n", "{{ 'b' }}", "{{- 'b' -}}", "{% set x = 1 %}"])),
)
def test_two_templates_as_one_write_what_each_writes(first: list[str], second: list[str]) -> None:
    one = "".join(first) + "".join("{% endif %}" for part in first if "if" in part)
    other = "".join(second)

    def rendered(source: str, tools: Any) -> str:
        text: str = render_jinja_template([user("hi")], tools, chat_template=source)[0][0]
        return text

    for tools in (None, TOOLS):
        assert rendered(either(one, other), tools) == rendered(one if tools else other, tools)


# Rows that were rendered already


@pytest.mark.parametrize("name", MODELS)
def test_a_rendered_prompt_has_a_mark_of_its_template(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, name)
    rendered = tokenizer.prompt(user("hi")).text
    assert any(mark in rendered for mark in turn_marks(tokenizer))
    assert not any(mark in "Name <b>3</b> colours [sic].\n\nAssistant, user?" for mark in turn_marks(tokenizer))
