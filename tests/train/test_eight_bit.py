"""AdamW with moments in 8 bits: against numbers by hand, a naive twin and torch's; its bytes; resume and shards bit for bit."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from tiny_models import training
from torch import Tensor, nn

from prefdag.lifecycle.errors import ParamsError
from prefdag.train import eight_bit
from prefdag.train.eight_bit import AdamW8bit, in_blocks
from prefdag.train.loop import fit
from prefdag.train.optimizer import make_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: `make qlora`"
)

# Rows of whole blocks: an odd number of them, and one. The other weights stay in float32, where torch's own kernel rounds
# the last numbers of a part, fewer than a vector, in another way: there are none.
SCRIPT = """
import os, signal, sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tasks import task_of
from tiny_models import training
from torch import nn

from prefdag.distributed import sharding
from prefdag.distributed.process import process
from prefdag.lifecycle.interruption import Interrupted
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import Tasks

# Whole numbers and powers of two, whose sums do not depend on their order, and no clipping.
CONFIG = training(optimizer="adamw_8bit", epochs=3, micro_batch_size=1, weight_decay=0.1, max_grad_norm=1e9, checkpoint_every=2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.row, self.narrow = nn.Linear(512, 33), nn.Linear(4096, 1), nn.Linear(32, 200)

    def forward(self, x):
        return self.rows(x).sum(1) + self.row(x.repeat(1, 8))[:, 0] + self.narrow(x[:, :32]).sum(1)


def run(folder, stop_after=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (12, 512), generator=generator).float()

    def log(step, metrics):
        if step == stop_after and "learning_rate" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    model = Model()
    sharding.shard(model, [])
    task = task_of(lambda model, rows, epoch: (model(x[list(rows)]), {}), [1.0] * 12, [str(i) for i in range(12)])
    try:
        fit(model, Tasks(task, None), CONFIG, seed=0, checkpoints=Checkpoints(folder), log=log)
    except Interrupted:
        return
    sharding.reshard(model)
    weights = sharding.whole_on_first(dict(model.named_parameters()))
    if process().is_main_process:
        save_file(weights, folder / "weights.safetensors")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
    run(Path(sys.argv[2]), stop_after=4)
    run(Path(sys.argv[3]))
"""


def steps(optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]]) -> None:
    for each in gradients:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, gradient in zip(parameters, each, strict=True):
            p.grad = gradient.clone()
        optimizer.step()


def noise(n: int, *shapes: tuple[int, ...]) -> list[list[Tensor]]:
    """Gradients of some steps, between -1.5 and 1.5 and never nearly zero."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.rand(shape, generator=generator) + 0.5 * (1 if i % 3 else -3) for shape in shapes] for i in range(n)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *(((16, 256), True), ((1, 4096), True), ((8, 4, 128), True)),
        *(((15, 256), False), ((64, 255), False), ((4096,), False), ((0, 256), False), ((), False)),
    ],
    ids=str,
)
def test_what_is_in_blocks(shape: tuple[int, ...], expected: bool) -> None:
    assert in_blocks(torch.zeros(shape)) == expected
    assert not in_blocks(torch.zeros(64, 64, 2, 2).to(memory_format=torch.channels_last))


def test_without_any_weight_in_blocks_it_is_refused() -> None:
    with pytest.raises(
        ParamsError, match=r"^params.yaml: training.optimizer: adamw_8bit is adamw here: no trained weight"
    ):
        make_optimizer(list(nn.Linear(64, 64).parameters()), training(optimizer="adamw_8bit"))


def test_without_bitsandbytes_it_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ParamsError, match=r"adamw_8bit needs bitsandbytes; run `make qlora` to install it, or set it to adamw$"
    ):
        fit(nn.Linear(512, 33), None, training(optimizer="adamw_8bit"), seed=0, checkpoints=None, log=None)  # type: ignore[arg-type]


@needs_kernels
def test_two_steps_by_hand() -> None:
    """Learning rate 0.1, no decay, beta 0.9 and 0.999, gradients of 1 in the first row and of -1 in the others.

    The first step is that of AdamW: 0.1 against the sign. Its moments are the largest of their block, 0.1 in size. Such a
    positive number has the code 1, and is exact. The most negative code stands for -(1 - 0.9 / 64 / 2) = -0.99297, since 64
    numbers divide -0.1 to -1. So the second first moment is 0.9 (-0.099297) + 0.1 (-1) = -0.18937 in place of -0.19, and the
    step is 0.18937 / 0.19 of AdamW's. Second moments are positive, and exact.
    """
    weight = nn.Parameter(torch.zeros(16, 256))
    signs = torch.ones(16, 256).index_fill(0, torch.arange(1, 16), -1.0)
    optimizer = AdamW8bit([weight], 0.1, 0.0)
    steps(optimizer, [[signs]])
    torch.testing.assert_close(weight.detach(), -0.1 * signs)
    steps(optimizer, [[signs]])
    second = 0.9 * 0.1 * (1 - 0.9 / 64 / 2) + 0.1
    assert weight[0].tolist() == pytest.approx([-0.2] * 256)
    assert weight[1:].flatten().tolist() == pytest.approx([0.1 + 0.1 * second / 0.19] * 15 * 256)


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """Each number, in blocks of 256, as the nearest code times the largest of its block."""
    blocks = x.view(-1, 256)
    scale = blocks.abs().amax(1, keepdim=True)
    return (codes[(blocks / scale).unsqueeze(-1).sub(codes).abs().argmin(-1)] * scale).view_as(x)


def dynamic(signed: bool) -> Tensor:
    """0, 1, and the middles of equal parts of 0.1 to 1, of 0.01 to 0.1, ...: arXiv:2110.02861, section 2.2."""
    codes = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade * (1 if signed else 2)
        middles = [(0.1 + 0.9 * (i + 0.5) / parts) * 10.0 ** (decade - 6) for i in range(parts)]
        codes += [sign * middle for middle in middles for sign in ((1, -1) if signed else (1,))]
    return torch.tensor(codes, dtype=torch.float64)


@needs_kernels
def test_a_naive_twin() -> None:
    """In float64. A number between two codes may get the other one in the kernel: on average it is far closer than AdamW."""
    rate, decay = 0.01, 0.1
    gradients = [[gradient * torch.linspace(0.3, 1, 256)] for [gradient] in noise(12, (16, 256))]
    weight, exact = (nn.Parameter(torch.ones(16, 256)) for _ in range(2))
    steps(AdamW8bit([weight], rate, decay), gradients)
    steps(torch.optim.AdamW([exact], rate, weight_decay=decay), gradients)
    twin, m, v = torch.ones(16, 256).double(), torch.zeros(16, 256).double(), torch.zeros(16, 256).double()
    for step, [gradient] in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient.double(), 0.999 * v + 0.001 * gradient.double() ** 2
        twin *= 1 - rate * decay
        twin -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        m, v = nearest(m, dynamic(signed=True)), nearest(v, dynamic(signed=False))
    off, without_codes = ((p.detach() - twin).abs() for p in (weight, exact))
    assert off.mean() < 0.1 * without_codes.mean()
    assert off.max() < 0.1 * rate


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_it_stays_close_to_float32(rate: float) -> None:
    """300 noisy steps down a bowl that is 30 times as steep in some directions: a loss within 5%, weights within 10% of their
    norm. The weights that stay in float32 have the bits of torch's AdamW."""
    target, steep = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)), torch.logspace(-1, 0.5, 256)
    found = []
    for optimiser in (AdamW8bit, lambda *options: torch.optim.AdamW(*options[:2], weight_decay=options[2], fused=True)):
        weight, narrow = nn.Parameter(torch.zeros(16, 256)), nn.Parameter(torch.zeros(64, 255))
        optimizer = optimiser([weight, narrow], rate, 0.01)
        generator = torch.Generator().manual_seed(2)
        for _ in range(300):
            slope = steep * (weight.detach() - target)
            steps(
                optimizer,
                [[slope + torch.randn(16, 256, generator=generator), torch.randn(64, 255, generator=generator)]],
            )
        found.append((weight.detach(), narrow.detach(), float((steep * (weight.detach() - target) ** 2).mean())))
    (coded, narrow, loss), (exact, same, goal) = found
    assert torch.equal(narrow, same)
    assert 0 < float((coded - exact).norm()) < 0.1 * float(exact.norm())
    assert loss == pytest.approx(goal, rel=0.05)


@needs_kernels
def test_the_bytes_of_its_state() -> None:
    """Two codes of a byte for each number, two scales of 4 bytes for each 256, and a count; in float32 two of 4 bytes."""
    n = 32 * 512
    weights = [nn.Parameter(torch.zeros(32, 512)), nn.Parameter(torch.zeros(100))]
    optimizer = AdamW8bit(weights, 0.1, 0.0)
    steps(optimizer, noise(1, (32, 512), (100,)))
    sizes = [sum(t.nbytes for t in optimizer.state[p].values()) for p in weights]
    assert sizes == [2 * n + 2 * 4 * n // 256 + 4, 2 * 4 * 100 + 4]


@needs_kernels
def test_rows_without_gradients_stay() -> None:
    """As of tokens that never occur: their scale is zero."""
    weight = nn.Parameter(torch.ones(32, 256))
    gradient = torch.ones(32, 256).index_fill(0, torch.arange(16), 0.0)
    steps(AdamW8bit([weight], 0.1, 0.0), [[gradient]] * 3)
    assert torch.equal(weight[:16].detach(), torch.ones(16, 256))
    assert (weight[16:] < 0.8).all()


@pytest.mark.slow
@needs_kernels
def test_resume_and_shards_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process; stopped and resumed; two processes; resumed from one by two and from two by one."""
    (tmp_path / "script.py").write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("script", tmp_path / "script.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cases = ("one", "again", "two", "from-two", "from-one")
    one, again, two, from_two, from_one = (tmp_path / name for name in cases)
    script.run(one)
    script.run(again, stop_after=4)
    script.run(again)
    script.run(from_one, stop_after=4)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, tmp_path / "script.py", two, from_two, from_one]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-5000:]
    (stopped,) = from_two.glob("step-00000005")
    assert load_file(stopped / "state.safetensors")["optimizer/rows.weight/exp_avg"].dtype == torch.uint8
    script.run(from_two)
    results = [load_file(folder / "weights.safetensors") for folder in (one, again, two, from_two, from_one)]
    for name, result in zip(cases, results, strict=True):
        assert all(torch.equal(result[key], tensor) for key, tensor in results[0].items()), name
