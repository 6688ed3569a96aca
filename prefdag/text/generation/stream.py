"""Streaming generation: an answer piece by piece as it is generated, greedy or sampled. The listener can stop it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from prefdag.tokenizer.tokenizer import ChatTokenizer

INCOMPLETE = "\ufffd"  # a tokenizer decodes the first bytes of a character to this until the others are there


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
    """Generate an answer and pass it to `listener`, one piece of text after each token. A piece may be empty.

    Joined, the pieces are the answer. Generation stops when `listener` returns False. At temperature 0 it is greedy search.
    Above 0, tokens are drawn from softmax(logits / temperature) over the whole vocabulary, and the same seed gives the same
    answer.

    Args:
        prompt_ids: the prompt's token ids, at least one.
        listener: takes a piece of text, and returns whether to go on.

    Returns:
        The number of tokens in the answer without its end, and whether the model ended it with one of its stop ids.
    """
    ids = torch.tensor([list(prompt_ids)], device=next(model.parameters()).device)
    streamer = _Streamer(tokenizer, ids.shape[1], listener)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # transformers' default of top_k = 50 would sample from another distribution.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(seed)
    generator: Any = model
    output = generator.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.end_id,
        stopping_criteria=StoppingCriteriaList([streamer]),
        **sampling,
    )
    new = output[0, ids.shape[1] :].tolist()
    ended = any(token in tokenizer.stop_ids for token in new[-1:])
    streamer.flush(new)
    return len(new) - ended, ended


class _Streamer(StoppingCriteria):
    """Called by `generate` after each token: passes on the new text, and stops when the listener returns False."""

    def __init__(self, tokenizer: "ChatTokenizer", prompt_tokens: int, listener: Callable[[str], bool]) -> None:
        self.tokenizer, self.prompt_tokens, self.listener = tokenizer, prompt_tokens, listener
        self.sent = ""
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        text = self._text(input_ids[0, self.prompt_tokens :].tolist())
        # A character of several tokens is sent whole, after the last of them.
        self.stopped = not self._send(text.rstrip(INCOMPLETE))
        return torch.full(input_ids.shape[:1], self.stopped, device=input_ids.device)

    def flush(self, new: list[int]) -> None:
        """Send what was held back for a character that remained incomplete."""
        if not self.stopped:
            self._send(self._text(new))

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids[:-1] if any(token in self.tokenizer.stop_ids for token in ids[-1:]) else ids)

    def _send(self, text: str) -> bool:
        piece = text[len(self.sent) :]
        self.sent += piece
        return self.listener(piece)
