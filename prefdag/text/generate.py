"""Answers of reference and policy, greedy, so that the same question always gets the same answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from prefdag.data.chat import ChatTokenizer, Messages, TemplateName
from prefdag.errors import DataError
from prefdag.text.model import load_policy


@dataclass(frozen=True)
class Duo:
    """Policy and reference in one model: with and without its adapters."""

    model: PeftModel
    tokenizer: ChatTokenizer

    def answers(self, messages: Messages, max_new_tokens: int) -> tuple[str, str]:
        """What the reference and the policy say to a dialogue that ends with a user's turn."""
        return self.continuations(self.tokenizer.prompt(messages).ids, max_new_tokens)

    def continuations(self, prompt_ids: Sequence[int], max_new_tokens: int) -> tuple[str, str]:
        """How the reference and the policy go on after these tokens, without the EOS."""
        with self.model.disable_adapter():
            reference = self._continue(prompt_ids, max_new_tokens)
        return reference, self._continue(prompt_ids, max_new_tokens)

    @torch.no_grad()
    def _continue(self, prompt_ids: Sequence[int], max_new_tokens: int) -> str:
        ids = torch.tensor([list(prompt_ids)], device=self.model.device)
        model: Any = self.model
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
        )
        new = output[0, ids.shape[1] :].tolist()
        return self.tokenizer.decode(new[:-1] if new[-1:] == [self.tokenizer.eos_id] else new)


def load_duo(reference: Path, adapter: Path, template: TemplateName) -> Duo:
    """The pipeline's reference and policy, ready to answer. Raises `DataError` where they are not there."""
    for folder in (reference, adapter):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; `dvc repro` makes it")
    model = load_policy(reference, adapter)
    base: Any = model.get_base_model()
    base.set_attn_implementation("sdpa")  # generation caches keys and values, and packs nothing
    return Duo(model, ChatTokenizer(reference, template))
