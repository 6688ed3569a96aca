"""Training on a GPU: the numbers of a CPU, exact resume, bfloat16 and 4-bit weights."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_models import MODELS, long_groups, write
from gradients import assert_close, gradients
from naive_logps import naive_logps
from tasks import preference_of
from tiny_models import random_groups, training, weights
from transformers import AutoModelForCausalLM

from prefdag.config.adapter import Full, Lora
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.dpo_task import cached_logps, dpo_task
from prefdag.text.scoring.logps import Pair, all_pair_logps, response_logps
from prefdag.text.scoring.packing import pack
from prefdag.text.scoring.states import forward_mode
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History, fit
from prefdag.train.task import Tasks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LORA = Lora(kind="lora", rank=4, alpha=8, dropout=0.1, target_modules=["q_proj", "v_proj"], rslora=False, dora=False)


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_on_a_gpu_are_those_of_eager_attention_on_a_cpu(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, name, 0.1, width=16)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model = lm.load(folder)
    assert next(model.parameters()).is_cuda
    assert forward_mode(model).packed == MODELS[name][2]
    expected = naive_logps(plain, long_groups())
    results = response_logps(model, pack(long_groups()).to(torch.device("cuda")))
    torch.testing.assert_close(results.cpu(), expected, rtol=1e-5, atol=1e-3)
    of_ours = {key: grad.cpu() for key, grad in gradients(results, model).items()}
    assert_close(of_ours, gradients(expected, plain), 5e-3)


def pairs() -> list[Pair]:
    return [Pair(g.prompt, *g.responses) for g in random_groups(12, longest=12) if len(g.responses) == 2]


def trained(
    folder: Path, checkpoints: Path, adapter: Any, kill: int | None = None, **changes: Any
) -> tuple[Any, History]:
    policy = trainable.add_adapter(trainable.load_for_training(folder, adapter, "adapter"), adapter, 0, "adapter")
    rows = pairs()
    ids = [str(i) for i in range(len(rows))]
    preference = preference_of("sigmoid", 0.5)
    ref = cached_logps(all_pair_logps(trainable.before_training(policy), rows, 512, "reference"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if step == kill and "learning_rate" in metrics:
            raise KeyboardInterrupt

    task = dpo_task(rows, ids, preference, ref)
    config = training(epochs=2, batch_size=4, micro_batch_size=2, checkpoint_every=1, validate_every=2, **changes)
    history = fit(
        policy, Tasks(task, task), config, seed=0, checkpoints=Checkpoints(checkpoints), log=log, hooks=[preference]
    )
    return policy, history


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [LORA, Full(kind="full")], ids=["lora", "full"])
def test_a_run_that_is_killed_on_a_gpu_resumes_exactly(adapter: Any, precision: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama", 0.3, width=16)
    policy, history = trained(folder, tmp_path / "a", adapter, precision=precision)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "b", adapter, kill=3, precision=precision)
    again, resumed = trained(folder, tmp_path / "b", adapter, precision=precision)
    assert history.train == resumed.train
    for name, value in weights(policy).items():
        assert torch.equal(value, weights(again)[name]), name


def test_qlora_trains_saves_and_loads(tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    folder = write(tmp_path / "model", "llama", 0.1, width=64)
    adapter = Lora(
        kind="qlora", rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"], rslora=False, dora=False
    )
    policy, history = trained(folder, tmp_path / "a", adapter, learning_rate=1e-2)
    assert history.train[0]["loss"] == pytest.approx(0.693, abs=1e-3)
    assert history.train[-1]["loss"] < history.train[0]["loss"]
    (tmp_path / "policy").mkdir()
    trainable.save_policy(policy, tmp_path / "policy", folder)
    loaded = lm.load_models(folder, tmp_path / "policy")
    few = pack(random_groups(3, responses=None)).to(torch.device("cuda"))
    assert (response_logps(loaded.policy, few) - response_logps(loaded.reference, few)).abs().max() > 0.1


def test_bfloat16_scores_are_within_rounding(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", 0.1, width=64)
    few = pack(long_groups()).to(torch.device("cuda"))
    exact, rounded = (response_logps(lm.load(folder, dtype), few) for dtype in ("float32", "bfloat16"))
    assert (exact - rounded).abs().max() < 1.0
