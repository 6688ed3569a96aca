"""The estimate of memory and time: numbers worked out by hand, real trainings, and the command."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from paths import ROOT
from tiny_models import ADAPTERS, training, with_adapter, write_model
from typer.testing import CliRunner, Result

from prefdag.check_params import load_params
from prefdag.cli import app
from prefdag.config.adapter import Lora
from prefdag.estimate import page, table
from prefdag.estimate.models import PUBLISHED, read_config
from prefdag.estimate.rows import Rows, groups, largest_micro_batch, longest_rows, read_rows, tokens
from prefdag.estimate.stages import estimates
from prefdag.estimate.trace import ALLOCATOR, KERNELS, Peak, Trace, checkpoint, peak, trace_scoring, trace_training
from prefdag.text import trainable
from prefdag.text.scoring.logps import Pair, response_logps
from prefdag.text.scoring.packing import Group, pack

pytestmark = pytest.mark.slow

GROUPS = [Group(range(20), (range(30), range(14)))] * 2  # 128 tokens
QLORA = Lora(kind="qlora", rank=2, alpha=4, dropout=0.0, target_modules=["q_proj"], rslora=False, dora=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / kind, kind) for kind in ("llama", "gpt2")}


def traced(model: Path, adapter: Any = ADAPTERS["full"], config: Any = None, **options: Any) -> Trace:
    return trace_training(read_config(str(model)), adapter, config or training(), GROUPS, "adapter", **options)


# Memory


def test_weights_in_bfloat16_take_half_but_the_adapter(models: dict[str, Path]) -> None:
    whole, half = (traced(models["llama"], ADAPTERS["lora"], dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert whole.weights - half.weights == 2 * 22688  # numbers of the frozen model, as below
    assert half.gradients == whole.gradients == 4 * half.trained
    assert half.optimizer == whole.optimizer


def test_the_parts_of_a_tiny_llama_by_hand(models: dict[str, Path]) -> None:
    """Width 32, MLP 64, 2 layers, 4 heads of 8 and 2 key heads, 64 tokens.

    A layer: q and o 32 x 32 each, k and v 16 x 32 each, three of the MLP 64 x 32 each, two norms of 32: 9,280. Outside of the
    two: embedding and head 64 x 32 each, and a norm. 21 tensors; AdamW has two moments of each, and counts its steps.
    """
    layer, outside = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32, 2 * 64 * 32 + 32
    trace = traced(models["llama"])
    assert trace.parameters == trace.trained == 2 * layer + outside == 22688
    assert trace.weights == trace.gradients == 4 * 22688
    assert trace.optimizer == 8 * 22688 + 4 * 21
    assert trace.largest_unit == 4 * layer
    assert trace.reference == 0


def test_the_parts_of_lora_by_hand(models: dict[str, Path]) -> None:
    """Rank 2 on q, 32 to 32, and on v, 32 to 16, of two layers: 2 (2 (32 + 32) + 2 (32 + 16)) = 448 numbers."""
    trace = traced(models["llama"], ADAPTERS["lora"])
    assert (trace.parameters, trace.trained) == (22688 + 448, 448)
    assert trace.gradients == 4 * 448
    assert traced(models["llama"], ADAPTERS["lora"], reference="live").reference == 0
    assert traced(models["llama"], ADAPTERS["lora"], reference="moving").reference == 2 * 4 * (32 * 32 + 16 * 32)
    assert traced(models["llama"], reference="live").reference == 4 * 22688


def test_moments_in_eight_bits_by_hand(models: dict[str, Path]) -> None:
    """Width 256 and MLP 512: all matrices have rows of whole blocks, and the five norms have not.

    A layer: q and o 256 x 256 each, k and v 128 x 256 each, three of the MLP 512 x 256 each. Embedding and head: 64 x 256 each.
    """
    config = read_config(str(models["llama"]))
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 64
    n = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256) + 2 * 64 * 256
    trace = trace_training(config, ADAPTERS["full"], training(optimizer="adamw_8bit"), GROUPS, "adapter")
    assert trace.trained == n + 5 * 256
    assert trace.optimizer == 2 * n + 2 * 4 * n // 256 + 8 * 5 * 256 + 4 * (2 * 7 + 2 + 5)
    assert trace.gradients == 4 * trace.trained


def test_what_a_layer_keeps_by_hand(models: dict[str, Path]) -> None:
    """One layer more keeps, per token, in floats: width d = 32, keys k = 16, heads 4 of h = 8, MLP m = 64.

    Two norms: input and scale, 2 (d + 1); their outputs, the inputs of q, k, v and of the MLP, 2 d; the rotation, h; queries,
    keys, values, output and sums of attention, d + k + k + d + 4; the input of o, d; gate, up and their product, 3 m.
    """
    config = read_config(str(models["llama"]))
    working = []
    for layers in (4, 5):
        config.num_hidden_layers = layers
        working.append(trace_training(config, ADAPTERS["full"], training(), GROUPS, "adapter").working)
    floats = 2 * 33 + 2 * 32 + 8 + (2 * 32 + 2 * 16 + 4) + 32 + 3 * 64
    assert working[1] - working[0] == 4 * 128 * floats


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_with_data_takes_as_much(kind: str, name: str, checkpointing: bool, models: dict[str, Path]) -> None:
    """The same count over a real pass of the loaded model, with its own attention. Its masks and slices are the difference."""
    policy = with_adapter(models[kind], ADAPTERS[name])
    if checkpointing:
        trainable.checkpoint_gradients(policy)
    for p in policy.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    rows = [Group(list(g.prompt), tuple(list(r) for r in g.responses)) for g in GROUPS]
    with Peak() as real:
        response_logps(policy, pack(rows)).sum().backward()
    assert traced(models[kind], ADAPTERS[name], checkpointing=checkpointing).working == pytest.approx(
        real.most, rel=0.15
    )


def test_memory_that_is_freed_is_not_counted_twice() -> None:
    with Peak() as counted:
        for _ in range(3):
            x = torch.zeros(1000)
            x.view(10, 100).add_(1)
            del x
        assert (counted.now, counted.most) == (0, 4000)
        y = torch.zeros(500), torch.zeros(750)
    assert (counted.now, counted.most) == (5000, 5000)
    del y


def test_gradient_checkpointing_and_references_and_precision(models: dict[str, Path]) -> None:
    plain = traced(models["llama"])
    assert traced(models["llama"], checkpointing=True).working < 0.7 * plain.working
    assert traced(models["llama"], accumulates=False).working < plain.working
    sgd = traced(models["llama"], config=training(optimizer="sgd"))
    assert sgd.optimizer == 0
    low, deep = training(precision="bfloat16"), read_config(str(models["llama"]))
    deep.num_hidden_layers, few = 6, [Group(range(2), (range(2), range(2)))]
    kept, unit_by_unit = (
        trace_training(deep, ADAPTERS["full"], low, few, "adapter", checkpointing=True, sharded=sharded).working
        for sharded in (False, True)
    )
    assert kept > unit_by_unit + 2 * 3 * 9280  # what autocast keeps, of half of the layers
    half = trace_scoring(read_config(str(models["llama"])), GROUPS, "bfloat16")
    assert (half.weights, half.gradients, half.optimizer) == (2 * 22688, 0, 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_adapter_has_an_estimate(kind: str, name: str, models: dict[str, Path]) -> None:
    trace = traced(models[kind], ADAPTERS[name], reference="moving")
    assert 0 < trace.reference <= trace.weights
    assert trace.working > 0


def test_four_bits_by_hand(models: dict[str, Path]) -> None:
    """The linear layers of two layers, 9,216 numbers each, take 0.5 + 1/64 + 1/4096 bytes instead of 4."""
    saved = 2 * 9216 * (4 - 0.5 - 1 / 64 - 1 / 4096)
    plain = traced(models["llama"], dataclasses.replace(QLORA, kind="lora"))
    assert traced(models["llama"], QLORA).weights == round(plain.weights - saved)


def test_shards_by_hand() -> None:
    trace = Trace(10, 10, weights=40, largest_unit=12, reference=0, optimizer=80, gradients=40, working=100)
    assert peak(trace) == round(ALLOCATOR * (40 + 80 + 40 + 100) + KERNELS)
    assert peak(trace, 4) == round(ALLOCATOR * (10 + 20 + 10 + 12 + 100) + KERNELS)
    assert checkpoint(trace) == 120


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("smollm2-1.7b", 1_711_376_384),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_published_models_have_their_parameters(name: str, parameters: int) -> None:
    assert name in PUBLISHED
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(read_config(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_layers_of_other_models_stay_as_they_are(models: dict[str, Path]) -> None:
    """Tracing claims that fake layers equal ours. A real model that is loaded after it is still compared."""
    traced(models["llama"])
    from prefdag.text.scoring.layers import _agrees, rms_norm_forward

    norm = torch.nn.RMSNorm(4)
    norm.variance_epsilon = 1.0  # type: ignore[assignment]
    assert not _agrees(rms_norm_forward, norm)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_training_takes_what_is_foretold() -> None:
    """In a process of its own, by the pipeline's trainer: within 15% of the peak of the resident memory."""
    from benchmarks.harness import Contender, measure

    numbers = measure(Contender("one", [sys.executable, "-m", "benchmarks.bench_estimate", "small, full"], ROOT))
    assert 0.85 < numbers["estimated_per_measured"] < 1.15, numbers


# Rows and time


@pytest.fixture
def rows() -> Rows:
    """Training pairs of 3 + 2 + 1 tokens and one of 10 + 4 + 6; one pair of 4 + 1 + 1 to validate on."""
    short, long = Pair(range(3), range(2), range(1)), Pair(range(10), range(4), range(6))
    return {"train": [short, short, long, short], "val": [Pair(range(4), range(1), range(1))], "test": []}


def test_the_largest_micro_batch_has_the_longest_row(rows: Rows) -> None:
    config = training(batch_size=4, micro_batch_size=2)
    largest = largest_micro_batch(groups(rows["train"]), config, 0, 1)
    assert [len(largest), tokens(largest)] == [2, 26]
    assert tokens(largest_micro_batch(groups(rows["train"]), config, 0, 4)) == 20
    assert tokens(groups(rows["val"], mismatched=True)) == 7


def test_arithmetic_by_hand(rows: Rows, models: dict[str, Path]) -> None:
    """N = 22,688, and 448 more with LoRA. Training has 38 tokens, and 31 if only chosen responses count.

    Validations, before the first step, and after the last: 2 of 6 tokens, or of 5.
    """
    params = load_params(ROOT / "params.yaml")
    steps = {"batch_size": 4, "micro_batch_size": 4, "validate_every": 5}
    sft_steps = dataclasses.replace(params.sft_ref.training, **steps)
    once = dataclasses.replace(params.dpo_text.training, **steps)
    params = dataclasses.replace(
        params,
        sft_ref=dataclasses.replace(
            params.sft_ref, adapter=ADAPTERS["full"], training=sft_steps, gradient_checkpointing=True
        ),
        dpo_text=dataclasses.replace(params.dpo_text, adapter=ADAPTERS["lora"], training=once),
    )
    config = read_config(str(models["llama"]))
    sft, scored, dpo = estimates(config, params, rows)
    n, m = 22688, 22688 + 448
    assert (sft.tokens, sft.checked, sft.flops) == (29, 10, 8 * n * 29 + 2 * n * 10)
    assert (scored.tokens, scored.flops) == (44, 2 * n * 44)
    assert (dpo.tokens, dpo.checked, dpo.flops) == (38, 12, 4 * m * 38 + 2 * m * 12)
    assert dpo.hours(2, 1e-6) == dpo.flops / 2e6 / 3600
    often = dataclasses.replace(params.dpo_text, training=dataclasses.replace(once, batch_size=1, validate_every=0.5))
    assert (
        estimates(config, dataclasses.replace(params, dpo_text=often), rows)[-1].checked == 18
    )  # one more, in the middle
    live = dataclasses.replace(params.dpo_text.reference, logps="live")
    params = dataclasses.replace(params, dpo_text=dataclasses.replace(params.dpo_text, reference=live))
    assert estimates(config, params, rows)[-1].flops == 6 * m * 38 + 4 * m * 12
    base = dataclasses.replace(params.sft_ref, training=dataclasses.replace(params.sft_ref.training, epochs=0))
    assert estimates(config, dataclasses.replace(params, sft_ref=base), rows)[0].stage == "ref_logps"


def test_the_lengths_of_pairs_are_read(tmp_path: Path) -> None:
    """Without the end of a truncated response, which is not scored, and without an absent one."""
    row = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6, 7, 8]}
    cut = {"chosen_truncated": False, "rejected_truncated": True}
    table = pa.Table.from_pylist([row | cut, row | cut | {"rejected_ids": [], "rejected_truncated": False}])
    for split in ("train", "val"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    pair = Pair(range(3), range(2), range(2))
    assert read_rows(tmp_path) == {key: [pair, pair._replace(rejected=None)] for key in ("train", "val")}


def test_the_longest_rows_follow_the_limits() -> None:
    config = dataclasses.replace(
        load_params(ROOT / "params.yaml").format_pairs, max_prompt_tokens="auto", max_auto_tokens=64
    )
    made = longest_rows(100, config)
    assert {split: len(pairs) for split, pairs in made.items()} == {"train": 67, "val": 8, "test": 25}
    assert tokens(groups(made["train"][:1])) == 32 + 2 * 48


# The command


def prefdag(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_a_table(project: Path, models: dict[str, Path]) -> None:
    done = prefdag("--model", str(models["llama"]), "--pairs", "100", "--gpus", "2", "--shard", "--tflops", "0.001")
    assert done.exit_code == 0, done.output
    first, head, *stages, last = done.stdout.splitlines()
    assert first.endswith("M parameters, 2 processes, sharded, 0.001 TFLOP/s each (as given)")
    assert [line.split()[0] for line in (head, *stages)] == ["stage", "sft_ref", "ref_logps", "dpo_text"]
    assert len({len(line) for line in (head, *stages)}) == 1
    assert last.startswith("calculated")


def test_a_config_is_enough_and_the_rate_is_measured(project: Path, models: dict[str, Path]) -> None:
    (project / "config.json").write_text((models["gpt2"] / "config.json").read_text())
    done = prefdag("--model", "config.json", "--pairs", "20")
    assert done.exit_code == 0, done.output
    assert "(measured on this machine)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (
            ["--pairs", "9"],
            None,
            "models/base/config.json: not found; run `dvc repro download_model`, or give --model a folder",
        ),
        (["--model", "nope"], None, "nope/config.json: not found; give --model a folder, or one of gpt2, "),
        (["--model", "config.json"], "{", "config.json: not a model's config: "),
        (["--model", "config.json"], '{"model_type": "nope"}', "config.json: not a model's config: "),
        (["--model", "config.json"], '{"model_type": "vit"}', "config.json: vit is not a causal language model"),
        (["--model", "gpt2"], None, "data/pairs: not found; run `dvc repro format_pairs`, or give --pairs"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], config: str | None, message: str, project: Path) -> None:
    if config is not None:
        (project / "config.json").write_text(config)
    done = prefdag(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (4e6, "0"), (7.1e6, "0.0071"), (1.26e9, "1.3"), (31.2e9, "31"), (123.4e9, "123")]
)
def test_gigabytes(size: float, text: str) -> None:
    assert table.gigabytes(size) == text


def test_the_page_of_sizes_matches_the_code() -> None:
    """The text and the rows of GPT-2. Those of the larger models take a minute."""
    text = (ROOT / "docs" / "sizes.md").read_text("utf-8")
    expected = "".join(f"| {' | '.join(cells)} |\n" for cells in page.rows("gpt2"))
    assert text.startswith(page.INTRO + expected), "run `make docs`"
    assert all(f"| {name} | full | 32 |" in text for name in page.MODELS.values())
