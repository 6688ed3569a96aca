"""One training of `bench_gpu`, or one of its checks, in this process. Prints its measurements as JSON.

    python -m benchmarks.gpu_child train SIDE SHAPE ADAPTER TOKENS SHARE PAIRS BATCH [--checkpointing] [--device cpu]
    python -m benchmarks.gpu_child attention | compiled SHAPE

The weights are random, made on the device. What does not fit into memory prints {"out_of_memory": 1}.
"""

import argparse
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_cells import ADAPTER_NAMES, SHAPES, SIDES, WARMUP, config_of

if TYPE_CHECKING:
    from torch import Tensor

    from prefdag.text.scoring.logps import Pair


def random_model(shape: str, dtype: Any) -> Any:
    """A model of this shape with random weights, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)


def random_pairs(shape: str, tokens: int, share: float, count: int, *, varied: bool = False) -> "list[Pair]":
    """Pairs of random tokens; prompt and response have `tokens` together, of which the prompt has `share`.

    With `varied`, lengths are drawn between a quarter and all of these.
    """
    import numpy as np

    from prefdag.text.scoring.logps import Pair

    rng = np.random.default_rng(0)
    prompt = round(share * tokens)
    lengths = np.array([prompt, tokens - prompt, tokens - prompt])

    def pair() -> Pair:
        drawn = (lengths * rng.uniform(0.25, 1, 3)).astype(int).clip(1) if varied else lengths
        ids = rng.integers(3, SHAPES[shape]["vocab_size"], drawn.sum())
        return Pair(*(part.tolist() for part in np.split(ids, drawn.cumsum()[:2])))

    return [pair() for _ in range(count)]


def train(args: argparse.Namespace) -> dict[str, float]:
    """Train one side. LoRA's frozen weights are in bfloat16, except for TRL as it comes, whose default is float32."""
    import torch

    from benchmarks.dpo_training import Run, train_ours, train_trl
    from prefdag.distributed.process import process

    if args.side == "ours":
        process()  # before the first product, as in a stage; TRL has no such settings
    pairs = random_pairs(args.shape, args.tokens, args.share, args.pairs)
    run = Run(
        args.adapter, args.pairs, args.batch, WARMUP, precision="bfloat16", scoring_tokens=2 * args.tokens * args.batch
    )
    low = args.adapter == "lora" and args.side != "trl"
    model = random_model(args.shape, torch.bfloat16 if low else torch.float32)
    if args.side == "ours":
        policy = prepared(model, args.adapter, checkpointing=args.checkpointing)
        return {**train_ours(policy, pairs, run), "packed": float(model.prefdag_forward_mode.packed)}
    rows = [{"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]
    options: dict[str, Any] = {"max_length": args.tokens}
    if args.side == "trl best":
        model.set_attn_implementation("flash_attention_2" if installed("flash_attn") else "sdpa")
        options |= {"precompute_ref_log_probs": True, "gradient_checkpointing": args.checkpointing}
        options |= {"use_liger_kernel": installed("liger_kernel")}
    elif args.adapter == "full":
        options["ref_model"] = random_model(args.shape, torch.float32)
    return train_trl(model, rows, tokenizer(), pairs, run, **options)


def installed(package: str) -> bool:
    """Whether a package of GPU kernels can be used here."""
    import torch

    return torch.cuda.is_available() and find_spec(package) is not None


def prepared(model: Any, adapter: str, *, checkpointing: bool) -> Any:
    """The policy, as stage dpo_text would have it of a folder with these weights."""
    from benchmarks.dpo_training import ADAPTERS
    from prefdag.text import trainable
    from prefdag.text.scoring.layers import speed_up
    from prefdag.text.scoring.trial import set_forward_mode

    model.eval().prefdag_attention = model.config._attn_implementation
    speed_up(model)
    set_forward_mode(model)
    policy = trainable.add_adapter(model, ADAPTERS[adapter], 0, "adapter")
    if checkpointing:
        trainable.checkpoint_gradients(policy)
    return policy


def tokenizer() -> Any:
    """A tokenizer that TRL can ask for its padding token. It tokenises nothing."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="?")


def attention() -> dict[str, float]:
    """FlexAttention's mask, compiled, and the pieces, against the pieces in float64: values and gradients of packed rows.

    Each is the largest difference as a share of the largest entry. On a CPU, FlexAttention is not compiled and has no
    gradients, so values are all that is compared.
    """
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from prefdag.text.scoring.chunked import chunked_attention
    from prefdag.text.scoring.flex import flex_for, flex_packed_attention
    from prefdag.text.scoring.packing import Segment

    cuda = torch.cuda.is_available()
    rows = (Segment(0, 300, (200, 117)), Segment(617, 77, (64,)), Segment(758, 3, (5,)))
    tokens, generator = 766, torch.Generator().manual_seed(0)

    def drawn(heads: int) -> "Tensor":
        return torch.randn(1, heads, tokens, 64, generator=generator)

    inputs, upstream = [drawn(8), drawn(2), drawn(2)], torch.randn(1, tokens, 8, 64, generator=generator)
    exact = values_and_gradients(
        lambda q, k, v: chunked_attention(q, k, v, rows, None, 0.0, None, None), inputs, upstream, torch.float64, "cpu"
    )
    found = {}
    for dtype in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
        on_device = [x.to("cuda" if cuda else "cpu", dtype) for x in inputs]
        flex = flex_for(*on_device, None, None, None) if cuda else flex_attention
        if flex is None:
            raise RuntimeError("FlexAttention does not compile here")
        sides = {
            "flex": lambda q, k, v, flex=flex: flex_packed_attention(flex, q, k, v, rows),
            "pieces": lambda q, k, v: chunked_attention(q, k, v, rows, None, 0.0, None, None),
        }
        for side, function in sides.items():
            results = values_and_gradients(function, inputs, upstream, dtype, "cuda" if cuda else "cpu")
            for name, result, value in zip(("values", "dq", "dk", "dv"), results, exact, strict=False):
                off = (result.double().cpu() - value).abs().max() / value.abs().max()
                found[f"{side}, {str(dtype).removeprefix('torch.')}, {name}"] = float(off)
    return found


def values_and_gradients(
    function: Any, inputs: "Sequence[Tensor]", upstream: "Tensor", dtype: Any, device: str
) -> "list[Tensor]":
    """The output of an attention and, on a GPU, its gradients of the inputs."""
    import torch

    leaves = [x.to(device, dtype).requires_grad_(torch.cuda.is_available()) for x in inputs]
    out = function(*leaves)
    return [out, *(torch.autograd.grad(out, leaves, upstream.to(out)) if out.requires_grad else ())]


def compiled(args: argparse.Namespace) -> dict[str, float]:
    """What torch.compile compiles after the first ten steps, where every pair has other lengths."""
    import torch

    from benchmarks.dpo_training import Run, train_ours
    from prefdag.distributed.process import process

    process()
    count = 4 * 3 * WARMUP
    pairs = random_pairs(args.shape, args.tokens, 0.5, count, varied=True)
    policy = prepared(random_model(args.shape, torch.bfloat16), "lora", checkpointing=False)
    run = Run("lora", count, 4, WARMUP, precision="bfloat16", scoring_tokens=4 * args.tokens)
    return {"compiled after ten steps": train_ours(policy, pairs, run)["compiled_later"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("side", choices=SIDES)
    training.add_argument("shape", choices=SHAPES)
    training.add_argument("adapter", choices=ADAPTER_NAMES)
    training.add_argument("tokens", type=int)
    training.add_argument("share", type=float)
    training.add_argument("pairs", type=int)
    training.add_argument("batch", type=int)
    training.add_argument("--checkpointing", action="store_true")
    commands.add_parser("attention")
    recompiling = commands.add_parser("compiled")
    recompiling.add_argument("shape", choices=SHAPES)
    recompiling.add_argument("tokens", type=int)
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses several without a launcher
    import torch

    try:
        found = {"train": lambda: train(args), "attention": attention, "compiled": lambda: compiled(args)}[
            args.command
        ]()
    except torch.OutOfMemoryError:
        found = {"out_of_memory": 1.0}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
