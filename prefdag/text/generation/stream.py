"""An answer piece by piece while it is made, greedy or sampled, which whoever listens can end."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from prefdag.pairs.tokenizer import ChatTokenizer

UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a character to while the others are not there


@torch.no_grad()
def stream(
    model: nn.Module,
    tokenizer: "ChatTokenizer",
    prompt_ids: Sequence[int],
    listener: Callable[[str], bool],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> tuple[int, bool]:
    """Tell `listener` how a model goes on after these tokens: a piece of text, maybe an empty one, after each token.

    The pieces together are the answer, which ends where `listener` returns False. At temperature 0 it is greedy, the one
    that greedy search gives; above, each token is drawn from softmax(logits / temperature) over the whole
    vocabulary, and the same seed draws the same answer.

    Args:
        prompt_ids: the prompt's token ids, at least one.

    Returns:
        How many tokens the answer has, and whether the model ended it (by EOS, which is not counted).
    """
    ids = torch.tensor([list(prompt_ids)], device=next(model.parameters()).device)
    telling = _Telling(tokenizer, ids.shape[1], listener)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # The libraries' habit of 50 candidates would be another distribution than the one asked for.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(seed)
    generator: Any = model
    output = generator.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        stopping_criteria=StoppingCriteriaList([telling]),
        **sampling,
    )
    new = output[0, ids.shape[1] :].tolist()
    ended = new[-1:] == [tokenizer.eos_id]
    telling.rest(new)
    return len(new) - ended, ended


class _Telling(StoppingCriteria):
    """Called by `generate` after each token: tells what is new, and stops where the listener wants no more."""

    def __init__(self, tokenizer: "ChatTokenizer", prompt_tokens: int, listener: Callable[[str], bool]) -> None:
        self.tokenizer, self.prompt_tokens, self.listener = tokenizer, prompt_tokens, listener
        self.told = ""
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        text = self._text(input_ids[0, self.prompt_tokens :].tolist())
        # A character of several tokens waits for the last of them, and is told whole.
        self.stopped = not self._tell(text.rstrip(UNFINISHED))
        return torch.full(input_ids.shape[:1], self.stopped, device=input_ids.device)

    def rest(self, new: list[int]) -> None:
        """Tell what was held back for a character that never came."""
        if not self.stopped:
            self._tell(self._text(new))

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids[:-1] if ids[-1:] == [self.tokenizer.eos_id] else ids)

    def _tell(self, text: str) -> bool:
        piece = text[len(self.told) :]
        self.told += piece
        return self.listener(piece)
