"""The policy as a model folder for transformers, and checks of it and of the adapter alone, as peft loads it."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefdag.distributed.process import process
from prefdag.export.readback import LogitDeviation, check_logits, check_tensors
from prefdag.lifecycle.errors import PrefdagError
from prefdag.pairs import turns
from prefdag.runtime.artifacts import read_json, read_table, write_json
from prefdag.text import trainable
from prefdag.text.model import load_adapter

if TYPE_CHECKING:
    from prefdag.tokenizer.tokenizer import ChatTokenizer

ROWS = 4  # held-out pairs to compare on; each token has tens of thousands of logits


class HeldoutRows(NamedTuple):
    """Held-out rows to compare on."""

    dialogues: list[turns.Asked]
    ids: list[list[int]]  # each prompt with its chosen response, as scored


def read_heldout(pairs: Path, validated: Path) -> HeldoutRows:
    """The first rows of the test split in the folder `pairs`, with their untruncated dialogues from the file `validated`."""
    rows = read_table(pairs / "test.parquet", columns=["id", "prompt_ids", "chosen_ids"]).to_pandas().head(ROWS)
    dialogues = turns.read_dialogues(validated, rows["id"])
    return HeldoutRows(
        [dialogues[name] for name in rows["id"]],
        [[*p.tolist(), *c.tolist()] for p, c in zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)],
    )


@torch.no_grad()
def logits(model: nn.Module, rows: Iterable[Sequence[int]]) -> Tensor:
    """The logits at every token of the rows: float32 (tokens, vocabulary), on the CPU."""
    device = next(model.parameters()).device
    return torch.cat(
        [model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float().cpu() for ids in rows]
    )


def merge(policy: nn.Module) -> nn.Module | None:
    """The policy as a model of plain layers. None for prefix tuning, since a prefix cannot be merged into weights."""
    if not isinstance(policy, PeftModel):
        return policy
    return None if policy.active_peft_config.is_prompt_learning else trainable.frozen_copy(policy)


def write_merged(merged: nn.Module, reference: Path, tokenizer: "ChatTokenizer", folder: Path) -> None:
    """Write a whole model to `folder`: config, safetensors, generation config, tokenizer with the chat template of training."""
    model: Any = merged
    model.save_pretrained(folder)
    generation = read_json(folder / "generation_config.json")
    generation.pop("_from_model_config", None)
    # The token that ends responses in training, which the model's configuration may not name, and the model's own list.
    stop_ids = list(tokenizer.stop_ids)
    generation["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else stop_ids
    if generation.get("pad_token_id") is None:
        generation["pad_token_id"] = tokenizer.eos_id
    write_json(folder / "generation_config.json", generation)
    shutil.copyfile(reference / "tokenizer.json", folder / "tokenizer.json")
    config = read_json(reference / "tokenizer_config.json")
    config.pop("chat_template", None)  # older folders have the template here; the new one is in its own file
    write_json(folder / "tokenizer_config.json", config | tokenizer.control_tokens)
    (folder / "chat_template.jinja").write_text(tokenizer.jinja(), "utf-8")


def check_merged(folder: Path, merged: nn.Module, expected: Tensor, rows: Iterable[Sequence[int]]) -> LogitDeviation:
    """Load the model in `folder` with transformers alone; compare its tensors with `merged` and its logits with the policy's.

    Raises:
        PrefdagError: a tensor is not bit-identical, or the logits differ.
    """
    model = plain(folder)
    check_tensors(folder.name, model.state_dict(), merged.state_dict())
    return check_logits(folder.name, logits(model, rows), expected)


def check_adapter(folder: Path, reference: Path, expected: Tensor, rows: Iterable[Sequence[int]]) -> LogitDeviation:
    """Apply the adapter in `folder` to the reference, and compare its logits with the policy's. Raises `PrefdagError`."""
    model = load_adapter(plain(reference).float(), folder)
    return check_logits(folder.name, logits(model, rows), expected)


def check_template(folder: Path, ours: "ChatTokenizer", dialogues: Iterable[turns.Asked]) -> None:
    """Check that the tokenizer in `folder`, loaded by transformers, gives the ids of training. Raises `PrefdagError`."""
    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for number, (messages, tools) in enumerate(dialogues):
        ids = theirs.apply_chat_template(
            ours.renderer(tools).form(messages, tools),
            tools=tools,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        if ids != ours.prompt(messages, tools=tools).ids:
            raise PrefdagError(
                f"{folder.name}: for held-out dialogue {number}, its chat template gives other tokens than training; "
                "nothing was exported; set `format_pairs.template: instruction`, or report a bug"
            )


def plain(folder: Path) -> nn.Module:
    """A model loaded by transformers alone, in eval mode, on the pipeline's device."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.eval().to(process().device)
