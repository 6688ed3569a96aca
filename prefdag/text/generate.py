"""Answers of reference and policy, greedy, so that the same question always gets the same answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefdag.data.chat import ChatTokenizer, Messages, TemplateName
from prefdag.errors import DataError
from prefdag.text.model import Models, load_models


@dataclass(frozen=True)
class Duo:
    """Reference and policy, and the tokenizer of both."""

    models: Models
    tokenizer: ChatTokenizer

    def answers(self, messages: Messages, max_new_tokens: int) -> tuple[str, str]:
        """What the reference and the policy say to a dialogue that ends with a user's turn."""
        return self.continuations(self.tokenizer.prompt(messages).ids, max_new_tokens)

    def continuations(self, prompt_ids: Sequence[int], max_new_tokens: int) -> tuple[str, str]:
        """How the reference and the policy go on after these tokens, without the EOS."""
        reference, policy = (
            self.tokenizer.decode(continuation(model, prompt_ids, max_new_tokens, self.tokenizer.eos_id))
            for model in self.models
        )
        return reference, policy


@torch.no_grad()
def continuation(model: nn.Module, prompt_ids: Sequence[int], max_new_tokens: int, eos_id: int) -> list[int]:
    """The most probable token after these, the most probable after that, and so on, up to the EOS, which is left out."""
    ids = torch.tensor([list(prompt_ids)], device=next(model.parameters()).device)
    generator: Any = model
    output = generator.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    new = output[0, ids.shape[1] :].tolist()
    return new[:-1] if new[-1:] == [eos_id] else new


def load_duo(reference: Path, policy: Path, template: TemplateName) -> Duo:
    """The pipeline's reference and policy, ready to answer. Raises `DataError` where they are not there."""
    for folder in (reference, policy):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; `dvc repro` makes it")
    return Duo(load_models(reference, policy, packed=False), ChatTokenizer(reference, template))
