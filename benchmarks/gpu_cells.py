"""What `bench_gpu` measures: shapes of models, cells and sides."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.arithmetic import Model

SIDES = ("ours", "trl", "trl best")
ADAPTER_NAMES = ("lora", "full")
TOKENS = (4_096, 512)
SHARES = (0.5, 0.2, 0.8)
WARMUP, TIMED = 10, 10  # steps; kernels are compiled in the first ones
SHAPES: Mapping[str, Mapping[str, Any]] = {  # as in the config.json of each
    "8B": {  # Llama-3.1-8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "1.7B": {  # SmolLM2-1.7B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "135M": {  # SmolLM2-135M
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny": {  # for tests
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "tie_word_embeddings": True,
    },
}
STEP_TOKENS = {"8B": 16_384, "1.7B": 32_768, "135M": 65_536, "tiny": 256}  # of a step: chosen and rejected rows


class Cell(NamedTuple):
    """A setting in which the sides are compared. A row is a prompt and a response; `share` of its tokens are the prompt's."""

    shape: str
    adapter: str
    tokens: int
    share: float

    @property
    def batch(self) -> int:
        """Pairs of a step."""
        return max(1, STEP_TOKENS[self.shape] // (2 * self.tokens))

    @property
    def pairs(self) -> int:
        """Pairs of a training."""
        return self.batch * (WARMUP + TIMED)


def model_of(shape: str) -> Model:
    """The sizes of a Llama of this shape."""
    return Model.llama(SHAPES[shape])


def config_of(shape: str) -> Any:
    """The config of a Llama of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, bos_token_id=None, eos_token_id=1, pad_token_id=0)
