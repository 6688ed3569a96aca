"""Chat templates of well-known models, shortened where a test does not reach, with the tokens that they need."""

from pathlib import Path
from typing import Any, NamedTuple

from dialogues import CHATML, write_byte_tokenizer

from prefdag.tokenizer.tokenizer import ChatTokenizer

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
)
LLAMA_3_START = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% else %}{{ raise_exception('Only user and assistant') }}"
    "{% endif %}{% endfor %}"
)
# The system message goes into the last turn, but only if that is the user's: the whole dialogue does not have it.
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and m == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' }}{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}"
    "{{ ']' + eos_token }}{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{% endif %}{% endfor %}"
)
QWEN_3 = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == 'user' %}
        {%- set ns.looking = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {%- set arguments = tool_call.function.arguments %}
            {{- arguments if arguments is string else arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
# The prompt opens the block, and the reasoning of earlier answers is left out.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' and message['content'] is none %}{{ '<｜Assistant｜>' }}"
    "{% for call in message['tool_calls'] %}{% set function = call['function'] %}"
    "{{ '<｜tool｜>' + function['name'] + '\n' + function['arguments'] }}{% endfor %}{{ '<｜end｜>' }}"
    "{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
# What OpenAI's open models use: an answer starts inside its turn, with the name of its channel.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


class Model(NamedTuple):
    """What the folder of a model has beside its weights."""

    template: str
    end: str  # what ends a turn of the assistant
    eos: str
    controls: tuple[str, ...]
    words: tuple[str, ...] = ()  # added tokens that are no control tokens
    bos: str | None = None


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MODELS = {
    "chatml": Model(CHATML, "<|im_end|>", "<|im_end|>", IM),
    "chatml with another eos": Model(CHATML, "<|im_end|>", "<|endoftext|>", IM),
    "chatml with words": Model(CHATML, "<|im_end|>", "<|endoftext|>", IM[:1], IM[1:]),
    "chatml spelled out": Model(CHATML, "<|endoftext|>", "<|endoftext|>", IM[:1]),
    "llama 3": Model(
        f"{LLAMA_3}{{% if add_generation_prompt %}}{LLAMA_3_START}{{% endif %}}",
        *("<|eot_id|>", "<|end_of_text|>", HEADERS, (), "<|begin_of_text|>"),
    ),
    "llama 3, always": Model(
        LLAMA_3 + LLAMA_3_START, "<|eot_id|>", "<|end_of_text|>", HEADERS, (), "<|begin_of_text|>"
    ),
    "gemma": Model(
        GEMMA, "<end_of_turn>", "<eos>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("\n\n",), "<bos>"
    ),
    "phi 3": Model(PHI_3, "<|end|>", "<|endoftext|>", ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "zephyr": Model(ZEPHYR, "</s>", "</s>", ("<s>", "</s>"), (), "<s>"),
    "llama 2": Model(LLAMA_2, "</s>", "</s>", ("<s>", "</s>"), (), "<s>"),
    "mistral": Model(MISTRAL, "</s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"), (), "<s>"),
    "qwen 3": Model(QWEN_3, "<|im_end|>", "<|endoftext|>", IM, ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "deepseek r1": Model(
        DEEPSEEK_R1,
        "<｜end｜>",
        "<｜end｜>",
        ("<s>", "<｜User｜>", "<｜Assistant｜>", "<｜end｜>"),
        ("<think>", "</think>"),
        "<s>",
    ),
    "harmony": Model(
        HARMONY, "<|return|>", "<|return|>", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
    ),
}


def write_model_tokenizer(folder: Path, name: str, **config: Any) -> Path:
    """The tokenizer and the template of one of `MODELS`."""
    model = MODELS[name]
    tokens = {"eos_token": model.eos} | ({"bos_token": model.bos} if model.bos else {})
    return write_byte_tokenizer(
        folder,
        list(model.controls),
        model.template,
        words=model.words,
        tokenizer_class="TokenizersBackend",
        **tokens,
        **config,
    )


def tokenizer_of(folder: Path, name: str, **options: Any) -> ChatTokenizer:
    """The tokenizer of one of `MODELS`, with these options of its template."""
    return ChatTokenizer(write_model_tokenizer(folder, name), "chat", options)
