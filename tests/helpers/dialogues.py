"""Messages, chat templates, and a byte tokenizer for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("h", "i"), ("Ġ", "hi"), ("i", "m"), ("Ġ", "a")]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = "{% for m in messages %}{{ bos_token + '[' + m['content'] + ']' }}{% endfor %}"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write_byte_tokenizer(
    folder: Path,
    specials: list[str],
    template: str | None,
    bos_first: bool = False,
    merges: Sequence[tuple[str, str]] = MERGES,
    words: Sequence[str] = (),
    **config: Any,
) -> Path:
    """Write a model folder whose tokenizer has the 256 bytes, then `merges`, `specials` and `words`.

    Both are added tokens, but only `specials` are control tokens.
    """
    vocab = {token: i for i, token in enumerate([*BYTES, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in words])
    if bos_first:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
