"""Losses on arrays: the values of the losses themselves, the kinds of arrays, and mistakes in one line."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag import dpo
from prefdag.config.loss import LossName
from prefdag.dpo.losses import LOSSES
from prefdag.lifecycle.errors import DataError, ParamsError, PrefdagError

# Log-probabilities of two pairs: log-ratios (1, -2) and (-0.5, 0.25), so margins 1.5 and -2.25.
CHOSEN, REJECTED = [-3.0, -6.0], [-4.5, -3.75]
REF_CHOSEN, REF_REJECTED = [-4.0, -4.0], [-4.0, -4.0]
MARGINS = [1.5, -2.25]
PAIRS = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
TOKENS = {"chosen_tokens": [2, 4], "rejected_tokens": [3, 3]}


def focal(chosen: Tensor, rejected: Tensor, beta: float, *, gamma: float = 1.0) -> Tensor:
    z = beta * (chosen - rejected)
    return -((-z).sigmoid() ** gamma) * F.logsigmoid(z)


def test_dpo_by_hand() -> None:
    losses = dpo.loss("sigmoid", *PAIRS, beta=0.5)
    assert isinstance(losses, np.ndarray)
    assert losses == pytest.approx([math.log1p(math.exp(-0.5 * margin)) for margin in MARGINS])


def test_options_and_sums_by_hand() -> None:
    smoothed = dpo.loss("sigmoid", *PAIRS, beta=0.5, label_smoothing=0.1)
    plain, swapped = (dpo.loss("sigmoid", *arrays, beta=0.5) for arrays in (PAIRS, (REJECTED, CHOSEN, *PAIRS[2:])))
    assert smoothed == pytest.approx(0.9 * plain + 0.1 * swapped)
    assert dpo.loss("sigmoid", *PAIRS, beta=0.5, preference=[1.0, 0.25]) == pytest.approx(
        [plain[0], 0.25 * plain[1] + 0.75 * swapped[1]]
    )
    # sft: the mean log-probability of a chosen token, 3 / 2 and 6 / 4
    both = dpo.loss({"sigmoid": 0.8, "sft": 2.0}, *PAIRS, beta=0.5, **TOKENS)
    assert both == pytest.approx(0.8 * plain + [3.0, 3.0])
    assert dpo.loss("ipo", *PAIRS, beta=0.5, reduction="mean", **TOKENS) == pytest.approx(
        [(1 / 2 + 0.5 / 3 - 1) ** 2, (-2 / 4 - 0.25 / 3 - 1) ** 2]
    )
    assert dpo.loss("simpo", CHOSEN, REJECTED, beta=2.0, simpo_gamma=0.0, **TOKENS) == pytest.approx(
        [math.log(2), math.log1p(math.exp(-2 * (-1.5 + 1.25)))]
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_every_loss_takes_arrays(name: LossName) -> None:
    kl = {"kl": [0.1, 0.2]} if name == "kto" else {}
    losses = dpo.loss(name, *PAIRS, **TOKENS, **kl)
    assert losses.shape == (2,)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_result_is_of_the_arguments_kind(dtype: str) -> None:
    arrays = [np.array(values, dtype) for values in PAIRS]
    losses = dpo.loss("hinge", *arrays)
    assert (type(losses), losses.dtype) == (np.ndarray, dtype)
    tensors = [torch.from_numpy(array) for array in arrays]
    chosen = tensors[0].clone().requires_grad_()
    as_tensor = dpo.loss("hinge", chosen, *tensors[1:])
    assert as_tensor.dtype == getattr(torch, dtype)
    assert as_tensor.detach().numpy() == pytest.approx(losses)
    as_tensor.sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.1, -0.1])  # slope -beta left of the margin 1 / beta


def test_half_precision_and_integers_are_widened() -> None:
    halves = [torch.tensor(values, dtype=torch.bfloat16) for values in PAIRS]
    assert dpo.loss("sigmoid", *halves).dtype == torch.float32
    assert dpo.loss("sigmoid", [-3, -6], [-4, -3], [-4, -4], [-4, -4]).dtype == np.float64


def test_a_function_is_a_loss() -> None:
    def mine(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
        return -F.logsigmoid(beta * (chosen - rejected))

    expected = dpo.loss("sigmoid", *PAIRS)
    assert dpo.loss(mine, *PAIRS) == pytest.approx(expected)
    assert dpo.loss({mine: 0.5, "sigmoid": 0.5}, *PAIRS) == pytest.approx(expected)
    assert dpo.loss(focal, *PAIRS, gamma=0.0) == pytest.approx(expected)
    assert dpo.loss(focal, *PAIRS) == pytest.approx([x * (1 - math.exp(-x)) for x in expected])
    # As a loss of the margin, it takes an f-divergence.
    assert dpo.loss(dpo.Loss(mine, of_margin=True), *PAIRS, f_divergence="js") == pytest.approx(
        dpo.loss("sigmoid", *PAIRS, f_divergence="js")
    )


MISTAKES: list[tuple[type[PrefdagError], str, Any, dict[str, Any]]] = [
    (ParamsError, "loss: no loss 'sigmiod'; did you mean 'sigmoid'?", "sigmiod", {}),
    (ParamsError, "loss: no loss 'xyz'; choose from sigmoid, ", "xyz", {}),
    (ParamsError, "loss: 3: pass a name, a function, ", 3, {}),
    (ParamsError, "loss: weight 0 of 'sigmoid': use a number above 0", {"sigmoid": 0}, {}),
    (ParamsError, "label_smothing: unknown option; did you mean 'label_smoothing'?", "ipo", {"label_smothing": 0.1}),
    (ParamsError, "gama: unknown option; did you mean 'gamma'?", focal, {"gama": 0.1}),
    (ParamsError, "label_smoothing: input should be less than 0.5, not 0.5", "sigmoid", {"label_smoothing": 0.5}),
    (ParamsError, "label_smoothing: loss 'ipo' does not use it; leave it out", "ipo", {"label_smoothing": 0.1}),
    (ParamsError, "beta: input should be greater than 0, not 0", "ipo", {"beta": 0}),
    (ParamsError, "wpo: needs the log-probabilities of single tokens", "ipo", {"wpo": True}),
    (DataError, "loss 'simpo' needs chosen_tokens and rejected_tokens", "simpo", {}),
    (DataError, "loss 'kto' needs kl; pass kl", "kto", {}),
    (DataError, "kl: loss 'ipo' does not use it; leave it out", "ipo", {"kl": [0.0, 0.0]}),
    (DataError, "preference: shape (1,); needs (2,), one number per pair", "ipo", {"preference": [1.0]}),
    (DataError, "preference: not all between 0 and 1", "ipo", {"preference": [1.0, 2.0]}),
    (DataError, "preference: column preference: loss 'aot' sorts rows", "aot", {"preference": [1.0, 0.5]}),
    (DataError, "chosen_tokens: lengths below 1", "ipo", {"chosen_tokens": [0, 1]}),
]


@pytest.mark.parametrize(("kind", "message", "loss", "options"), MISTAKES)
def test_a_mistake_is_one_line(kind: type[PrefdagError], message: str, loss: Any, options: dict[str, Any]) -> None:
    with pytest.raises(kind) as caught:
        dpo.loss(loss, *PAIRS, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((CHOSEN, REJECTED), "loss 'sigmoid' needs ref_chosen and ref_rejected; pass ref_chosen and ref_rejected"),
        ((CHOSEN, REJECTED[:1], *PAIRS[2:]), "rejected: shape (1,); needs (2,)"),
        (([], [], [], []), "chosen: shape (0,); pass at least one pair"),
        ((1.0, 2.0), "chosen: shape (); needs (pairs,)"),
        ((["a", "b"], REJECTED), "chosen: not an array of numbers"),
        (([math.nan, 0.0], *PAIRS[1:]), "chosen: element 0 is not finite"),
    ],
)
def test_wrong_arrays_are_named(arrays: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        dpo.loss("sigmoid", *arrays)
    assert str(caught.value).startswith(message)


def test_the_table_lists_every_loss() -> None:
    table = dpo.loss_table()
    assert list(table.index) == list(LOSSES)
    assert table.loc["sigmoid", "formula"] == "-(1 - e) log s(z) - e log s(-z)"
    assert table.loc["simpo", "paper"] == "arXiv:2405.14734"
    assert table.loc["simpo", "options"] == "simpo_gamma=0.5, label_smoothing=0, wpo"
    assert table["paper"].str.fullmatch(r"arXiv:\d{4}\.\d{5}").all()


@pytest.mark.slow
def test_importing_the_losses_imports_nothing_of_the_notebook() -> None:
    code = (
        "import sys, prefdag.dpo.losses; print(*[name for name in sys.modules if name.startswith('prefdag.notebook')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_what_the_package_offers() -> None:
    assert {"loss", "loss_table", "train", "Loss"} <= set(dir(dpo))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dpo.trian  # type: ignore[attr-defined]
