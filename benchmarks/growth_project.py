"""Projects of any size for `bench_growth`: rows of random words, and a small model with random weights and a token per word."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[1]
SPECIALS = ("<|im_start|>", "<|im_end|>", "?")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
FRAME = 6  # tokens of the template in a row
BATCH = 16  # rows of a training step
NEVER = 10**6  # steps; validations every so many steps would grow with the square of the rows


class Size(NamedTuple):
    """What the growth is measured against. Half of a row's tokens are the prompt's."""

    rows: int = 250
    tokens: int = 64
    vocabulary: int = 1_024
    rank: int = 8
    images: int = 100


def write_project(folder: Path, size: Size) -> None:
    """Write what the first stages read: rows, images, a base model, params.yaml and the evaluation sets."""
    (folder / "reports/rounds").mkdir(parents=True)
    for number in (1, 2, 3):  # as rounds that are off leave it
        (folder / f"reports/rounds/{number}.json").write_text("null")
        for made in (f"models/rounds/{number}", f"data/rounds/{number}/pairs"):
            (folder / made).mkdir(parents=True)
            (folder / made / "off").touch()
    (folder / "models/base").mkdir(parents=True)
    for name in ("prefdag", "stages", "evals", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "dag", folder / "dag", ignore=shutil.ignore_patterns("dvc.lock"))
    words = [f"w{i:x}" for i in range(size.vocabulary - len(SPECIALS))]
    write_model(folder / "models/base", size, words)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(size, np.array(words)))
    write_images(folder / "images.csv", size.images)
    write_params(folder / "params.yaml", size)


def rows(size: Size, words: Any, seed: int = 0) -> Iterator[dict[str, str]]:
    """Preference rows of random words, of which some are frequent, as in texts."""
    rng = np.random.default_rng(seed)
    shares = 1 / (np.arange(len(words)) + 10)
    cumulated = np.cumsum(shares) / shares.sum()
    prompt, response = size.tokens // 2 - FRAME, size.tokens - size.tokens // 2 - 1
    for _ in range(size.rows):
        drawn = words[np.searchsorted(cumulated, rng.random(prompt + 2 * response))]
        parts = np.split(drawn, [prompt, prompt + response])
        yield {name: " ".join(part) for name, part in zip(("prompt", "chosen", "rejected"), parts, strict=True)}


def write_model(folder: Path, size: Size, words: list[str]) -> None:
    """A Llama of two layers with random weights, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIALS, *words])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS[:2]])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8_192,
            initializer_range=0.1,
            tie_word_embeddings=True,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)


def write_images(path: Path, count: int, seed: int = 0) -> None:
    """Images of 28 x 28 pixels as in MNIST's CSV file: a bright square at the class's place, with noise."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            image = rng.integers(0, 60, (28, 28))
            top, left = divmod(i % 10, 4)
            image[8 * top : 8 * top + 8, 7 * left : 7 * left + 7] += 150
            file.write(",".join(map(str, [*image.ravel(), i % 10])) + "\n")


def write_params(path: Path, size: Size) -> None:
    """The default parameters, with the sources and the sizes of this project."""
    from ruamel.yaml import YAML

    params: Any = YAML(typ="safe").load(ROOT / "params.yaml")
    params["download_pairs"]["source"] = {"kind": "path", "path": "rows.jsonl", "sha256": None}
    params["download_images"]["source"] = {"kind": "path", "path": "images.csv", "sha256": None}
    params["format_pairs"] |= {"max_prompt_tokens": size.tokens, "max_response_tokens": size.tokens}
    batches = {"batch_size": BATCH, "micro_batch_size": BATCH}
    for name in ("sft_ref", "dpo_text", "resnet_warmup", "dpo_image"):
        params[name]["training"] |= {**batches, "validate_every": NEVER}
    for name in ("sft_ref", "dpo_text"):
        params[name]["adapter"] |= {"rank": size.rank, "alpha": 2 * size.rank}
    params["answer_text"] |= {"prompts": None, "max_new_tokens": 8}
    params["judge_text"]["judge"] = {"kind": "implicit"}
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
