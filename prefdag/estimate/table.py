"""The table that `prefdag estimate` prints."""

import time
from collections.abc import Sequence

from prefdag.check_params import load_params
from prefdag.estimate.models import read_config
from prefdag.estimate.rows import longest_rows, read_rows
from prefdag.estimate.stages import StageEstimate, estimates
from prefdag.estimate.trace import checkpoint, peak

HEAD: tuple[str, ...] = ("stage", "GB a process", "weights", "gradients", "optimiser", "reference", "activations")
HEAD += ("GB a checkpoint", "tokens", "validated", "PFLOP", "hours")


def lines(model: str | None, pairs: int | None, gpus: int, tflops: float | None, *, shard: bool) -> list[str]:
    """The estimate of params.yaml. Raises `PrefdagError` if the model or the pairs are not there."""
    params, config = load_params(), read_config(model)
    rows = read_rows() if pairs is None else longest_rows(pairs, params.format_pairs)
    found = estimates(config, params, rows, gpus=gpus, shard=shard)
    rate = measured_tflops() if tflops is None else tflops
    source = "measured on this machine" if tflops is None else "as given"
    what = f"{found[-1].trace.parameters / 1e6:,.0f}M parameters, {gpus} {'process' if gpus == 1 else 'processes'}"
    return [
        f"{what}{', sharded' if found[-1].sharded else ''}, {rate:.3g} TFLOP/s each ({source})",
        *aligned([HEAD, *(row(each, gpus, rate) for each in found)]),
        "calculated; without Python and its libraries (1 GB), or a GPU's context",
    ]


def row(each: StageEstimate, gpus: int, tflops: float) -> tuple[str, ...]:
    """A stage as cells."""
    trace, shards = each.trace, gpus if each.sharded else 1
    parts = (trace.weights, trace.gradients, trace.optimizer, trace.reference)
    sizes = (peak(trace, shards), *(part / shards for part in parts), trace.working, checkpoint(trace))
    work = (f"{each.tokens:,}", f"{each.checked:,}", f"{each.flops / 1e15:.3g}", f"{each.hours(gpus, tflops):.2g}")
    return (each.stage, *map(gigabytes, sizes), *work)


def gigabytes(size: float) -> str:
    """10^9 bytes, with three significant digits at most."""
    return f"{size / 1e9:.0f}" if size >= 99.5e9 else f"{size / 1e9:.2g}" if size >= 0.5e7 else "0"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def measured_tflops() -> float:
    """10^12 additions and multiplications per second in products of square matrices: the best within a second."""
    import torch

    from prefdag.text.scoring.layers import linear

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    x = torch.randn(size, size, device=device, dtype=dtype)
    seconds: list[float] = []
    end = time.perf_counter() + 1
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        float(linear(x, x)[0, 0])  # waits for the GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12
