"""The benchmark of GPUs: what it keeps, what its page says, and its trainings and checks on a CPU with a tiny model."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from paths import ROOT

from benchmarks import bench_gpu, gpu_page
from benchmarks.arithmetic import Model
from benchmarks.gpu_cells import SHAPES, SIDES, Cell, config_of, model_of
from prefdag.lifecycle.errors import ParamsError, PrefdagError

LARGE = Cell("8B", "lora", 4_096, 0.5)
H100 = "a processor, 8 cores, 100 GB, NVIDIA H100 80GB HBM3"
SPEEDS = {"ours": 4.0, "trl": 1.0, "trl best": 2.5}  # pairs per second
CALLS: list[tuple[object, ...]] = []


def measured(side: str) -> dict[str, float]:
    """What a training of a side prints. TRL as it comes computes the reference during training."""
    found = {"pairs_per_second": SPEEDS[side], "useful_tflops": 500.0, "peak_gpu_gb": 60.0, "loss_8": 0.69}
    return found if side == "trl" else found | {"reference_pairs_per_second": 10.0}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, bool], Any]:
    """By side and whether it checkpoints, what its training prints or raises; the trainings are kept in `CALLS`."""
    answers: dict[tuple[str, bool], Any] = {(side, again): measured(side) for side in SIDES for again in (False, True)}

    def child(device: str, *arguments: object) -> dict[str, float]:
        CALLS.append(arguments)
        answer = answers[str(arguments[1]), "--checkpointing" in arguments]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    CALLS.clear()
    monkeypatch.setattr(bench_gpu, "child", child)
    monkeypatch.setattr(bench_gpu, "hardware", lambda: H100)
    return answers


def run(path: Path, rounds: int = 3) -> pd.DataFrame:
    bench_gpu.run([LARGE], rounds, "cuda", path)
    return pd.read_csv(path, keep_default_na=False)


# What is kept


@pytest.mark.slow
def test_sides_take_turns_and_a_stopped_run_continues(children: dict[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    rows = run(path)
    assert list(zip(rows["round"], rows["side"], strict=True)) == [(i, side) for i in range(3) for side in SIDES]
    path.write_text("\n".join(path.read_text().splitlines()[:6]) + "\n")  # after five of nine
    CALLS.clear()
    assert len(run(path)) == 9
    assert [call[1] for call in CALLS] == ["trl best", *SIDES]
    run(path)
    assert len(CALLS) == 4


def test_what_another_machine_measured_does_not_count(
    children: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "gpu.csv")
    monkeypatch.setattr(bench_gpu, "hardware", lambda: "another machine, NVIDIA A100")
    assert len(run(tmp_path / "gpu.csv")) == 18


def test_what_does_not_fit_is_repeated_with_checkpointing_and_then_named(
    children: dict[Any, Any], tmp_path: Path
) -> None:
    full = {"out_of_memory": 1.0}
    children.update({("ours", False): full, ("trl best", False): full, ("trl best", True): full})
    rows = run(tmp_path / "gpu.csv")
    ours, best = rows[rows["side"] == "ours"], rows[rows["side"] == "trl best"]
    assert ours["checkpointing"].tolist() == [True] * 3
    assert best["note"].tolist() == [bench_gpu.TOO_LARGE]  # not tried again
    assert len([call for call in CALLS if call[1] == "ours"]) == 4  # without checkpointing only once
    made = gpu_page.page(tmp_path / "gpu.csv", tmp_path / "none", tmp_path / "none")
    assert "| 8B | lora | 4096 | 0.5 | ours, checkpointing | 4 |" in made
    assert "| trl best, checkpointing | does not fit into memory |" in made


def test_a_training_that_fails_is_named(children: dict[Any, Any], tmp_path: Path) -> None:
    children["trl", False] = PrefdagError("train trl: ended with exit code 1; its output is above")
    rows = run(tmp_path / "gpu.csv", rounds=1)
    assert rows["side"].tolist() == list(SIDES)
    assert "ended with exit code 1" in gpu_page.page(tmp_path / "gpu.csv", tmp_path / "none", tmp_path / "none")


def test_figures_of_a_cpu_do_not_replace_those_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--shape", "tiny", "--device", "cpu"])
    with pytest.raises(ParamsError, match="give --results and --checks"):
        bench_gpu.main()


# The page


def test_the_page_has_ratios_goals_and_the_cost(children: dict[Any, Any], tmp_path: Path) -> None:
    run(tmp_path / "gpu.csv")
    made = gpu_page.page(tmp_path / "gpu.csv", tmp_path / "none", tmp_path / "none", price=2.0)
    assert "| 4; >= 3: met | 3 |" in made
    assert "| 1.6; >= 1.6: met | 3 |" in made
    assert "| 0.506; >= 0.45: met |" in made  # 500 of 989 TFLOP/s
    # 60,000 pairs at 4 a second, and the reference's at 10 a second: 21,000 s; TRL as it comes, 60,000 s.
    assert "| NVIDIA H100 80GB HBM3 | lora | 4096 | 0.5 | ours | 5.83 | 11.7 |" in made
    assert "| NVIDIA H100 80GB HBM3 | lora | 4096 | 0.5 | trl | 16.7 | 33.3 |" in made


def test_without_measurements_the_page_says_so(tmp_path: Path) -> None:
    made = gpu_page.page(*[tmp_path / "none"] * 3)
    assert gpu_page.NOT_MEASURED in made
    assert "there are no dollars to give" in made
    assert "$" not in made


def test_the_arithmetic_of_a_pair_by_hand() -> None:
    """A prompt of two tokens, and responses of one and two; layers of 10 weights, width 4, a vocabulary of 5."""
    model = Model(layers=3, width=4, weights=30, vocabulary=5)
    # Five tokens meet 30 weights, three of them the head's 20. The prompt's tokens see 1 and 2, the responses' 3, and 3 and 4.
    products, seen = 5 * 30 + 3 * 20, 1 + 2 + 3 + 3 + 4
    assert model.flops(2, [1, 2], 2) == 2 * products + 4 * 4 * seen * 3
    assert model.flops(2, [1, 2], 6) == 6 * products + 12 * 4 * seen * 3


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_have_the_weights_of_the_models(shape: str) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape))
    layers = sum(each.numel() for name, each in model.named_parameters() if ".layers." in name)
    assert model_of(shape).weights == layers


def test_the_page_matches_the_results() -> None:
    assert (ROOT / "docs/gpu.md").read_text("utf-8") == gpu_page.page(), "run `make docs`"


# Trainings and checks


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_both_sides_train_the_same(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU and a tiny model, in bfloat16: all that has a goal is measured, and the losses agree."""
    pytest.importorskip("trl", reason="TRL is the peer that these tests compare with; it is in a lock of its own")
    from benchmarks import dpo_training, gpu_child

    monkeypatch.setattr(dpo_training, "product_rate", lambda precision: 1e12)  # takes seconds
    found = {}
    for side in SIDES:
        args = argparse.Namespace(side=side, shape="tiny", adapter=adapter, tokens=32, share=0.5, checkpointing=False)
        found[side] = gpu_child.train(argparse.Namespace(**vars(args), pairs=24, batch=2))
    assert found["ours"]["packed"] == 1
    assert found["ours"]["compiled_later"] == 0
    for name, each in found.items():
        assert {"pairs_per_second", "tokens_per_second", "useful_tflops", "loss_8"} <= each.keys(), name
        assert ("reference_pairs_per_second" in each) == (name != "trl"), name
        losses = [abs(each[f"loss_{i}"] - found["ours"][f"loss_{i}"]) for i in range(1, 9)]
        assert max(losses) < 0.02, name


@pytest.mark.slow
def test_a_check_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_child

    def child(device: str, *arguments: object) -> dict[str, float]:
        CALLS.append(arguments)
        if arguments[0] == "attention":  # as a process, as it is run
            return as_process(device, *arguments)
        return gpu_child.compiled(argparse.Namespace(shape=arguments[1], tokens=arguments[2]))

    CALLS.clear()
    as_process = bench_gpu.child
    monkeypatch.setattr(bench_gpu, "child", child)
    monkeypatch.setattr("benchmarks.dpo_training.product_rate", lambda precision: 1e12)
    for _ in range(2):
        bench_gpu.check("tiny", 32, "cpu", tmp_path / "checks.csv")
    assert CALLS == [("attention",), ("compiled", "tiny", 32)]
    rows = pd.read_csv(tmp_path / "checks.csv")
    assert rows["check"].tolist() == ["attention", "attention", "compiled, tiny"]
    assert (rows["value"] < 1e-6).all()
    assert len({len(pair.prompt) for pair in gpu_child.random_pairs("tiny", 64, 0.5, 50, varied=True)}) > 10


@pytest.mark.slow
def test_what_is_compiled_again_is_counted() -> None:
    import torch

    from benchmarks.dpo_training import Clock

    twice = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    clock = Clock()
    for length in (3, 3, 4):
        twice(torch.zeros(length))
        clock.tick()
    first, second, third = clock.compiled
    assert (second - first, third - second) == (0, 1)
