"""The arithmetic that DPO needs, counted by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder that count."""

    layers: int
    width: int  # of hidden states
    weights: int  # of all layers
    vocabulary: int

    @classmethod
    def llama(cls, config: Mapping[str, Any]) -> "Model":
        """That of a Llama's config.json."""
        layers, width = config["num_hidden_layers"], config["hidden_size"]
        keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
        # Queries and output, keys and values, three matrices of the gated product, two norms.
        each = 2 * width**2 + 2 * width * keys + 3 * width * config["intermediate_size"] + 2 * width
        return cls(layers, width, layers * each, config["vocab_size"])

    def flops(self, prompt: int, responses: Sequence[int], per_weight: int) -> float:
        """Multiplications and additions for a prompt and its responses, in tokens, with the prompt computed once.

        `per_weight` is their number for each weight and token: 2 in a forward pass, 4 with the gradient of activations too, 6
        with that of the weights. The head counts for responses only. Attention takes 4 times the width for each token attended
        to, 12 with gradients. LoRA's own products are left out.
        """
        seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
        attention = (4 if per_weight == 2 else 12) * self.width * seen * self.layers
        head = self.vocabulary * self.width
        return per_weight * (self.weights * (prompt + sum(responses)) + head * sum(responses)) + attention
