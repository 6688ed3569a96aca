"""Losses on arrays: log-probabilities in, one loss per pair out."""

import inspect
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prefdag.dpo.losses import EXTRAS, LOSSES, Loss
from prefdag.dpo.options import used_options
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.dpo.preference import Preference
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.notebook.settings import LOSS, as_arguments, loss_settings, split_options, terms_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Loss", "loss", "loss_table"]

# Options that need the probabilities of single tokens.
PER_TOKEN = ("wpo", "ld_alpha")


def loss(
    loss: Any,
    chosen: "ArrayLike | Tensor",
    rejected: "ArrayLike | Tensor",
    ref_chosen: "ArrayLike | Tensor | None" = None,
    ref_rejected: "ArrayLike | Tensor | None" = None,
    *,
    beta: float = 0.1,
    chosen_tokens: "ArrayLike | Tensor | None" = None,
    rejected_tokens: "ArrayLike | Tensor | None" = None,
    preference: "ArrayLike | Tensor | None" = None,
    kl: "ArrayLike | Tensor | None" = None,
    **options: Any,
) -> Any:
    """The loss of each pair, (pairs,): a NumPy array, or a tensor, with gradient, if any argument is one.

        dpo.loss("sigmoid", chosen, rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.1)

    Args:
        loss: a name (see `loss_table`), a function like those in prefdag/dpo/losses.py, a `Loss`, or a weighted sum of these:
            {"sigmoid": 0.8, "sft": 0.2}.
        chosen: log pi(chosen response | prompt), summed over the response's tokens, in nats, (pairs,).
        rejected: the same of the rejected responses.
        ref_chosen: log pi_ref(chosen response | prompt); only needed if the loss has a reference. So is `ref_rejected`.
        chosen_tokens: the lengths of the responses in tokens, (pairs,); needed by losses of mean log-probabilities.
        preference: probabilities that chosen is preferred, (pairs,); None: 1.
        kl: only for kto: each pair's estimate of KL(policy || reference), (pairs,).
        options: `loss_options` of params.yaml, and those of a function. `wpo` and `ld_alpha` need single tokens.

    Raises:
        ParamsError: no such loss or option, or a value out of range.
        DataError: arrays of other shapes, or one that the loss needs is missing.
    """
    arrays = {
        "chosen": chosen,
        "rejected": rejected,
        "ref_chosen": ref_chosen,
        "ref_rejected": ref_rejected,
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
        "preference": preference,
        "kl": kl,
    }
    terms, given = split_options(terms_of(loss), options, LOSS)
    settings = loss_settings(beta, given)
    for key in PER_TOKEN:
        if given.get(key) is not None:
            raise ParamsError(f"{key}: needs the log-probabilities of single tokens, which dpo.loss does not have")
    with as_arguments():
        objective = Preference(terms.weights, beta, settings.loss_options, {}, terms.own)
        tensors = _tensors(arrays)
        _check_present(objective, tensors)
        if preference is not None:
            objective.check_rows(tensors["preference"], True, "preference")
    zeros, ones = torch.zeros_like(tensors["chosen"]), torch.ones_like(tensors["chosen"])
    first, second = (
        Response(tensors[side], tensors.get(f"ref_{side}", zeros), tensors.get(f"{side}_tokens", ones))
        for side in ("chosen", "rejected")
    )
    losses = objective.losses(PairBatch(first, second, kl=tensors.get("kl"), preference=tensors.get("preference")))
    return losses if any(isinstance(array, Tensor) for array in arrays.values()) else losses.numpy()


def _tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays that are given, (pairs,), on one device and of one dtype, float32 or wider. Raises `DataError`."""
    tensors: dict[str, Tensor] = {}
    device = next((array.device for array in arrays.values() if isinstance(array, Tensor)), torch.device("cpu"))
    for name, array in arrays.items():
        if array is None:
            continue
        try:
            tensor = array if isinstance(array, Tensor) else torch.tensor(np.asarray(array))
        except (TypeError, ValueError):
            raise DataError(f"{name}: not an array of numbers") from None
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise DataError(f"{name}: {tensor.dtype} numbers; pass real ones")
        wanted = (len(tensors["chosen"]),) if tensors else ("pairs",)
        if tensor.ndim != 1 or (tensors and tensor.shape != wanted):
            raise DataError(f"{name}: shape {tuple(tensor.shape)}; needs ({wanted[0]},), one number per pair")
        tensors[name] = tensor.to(device)
    if not len(tensors["chosen"]):
        raise DataError("chosen: shape (0,); pass at least one pair")
    measured = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    dtype = torch.float64 if not measured or torch.float64 in measured else torch.float32
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DataError(f"{name}: element {int((~tensor.isfinite()).nonzero()[0])} is not finite")
    for name in ("chosen_tokens", "rejected_tokens"):
        if name in tensors and not (tensors[name] >= 1).all():
            raise DataError(f"{name}: lengths below 1; pass numbers of tokens")
    if "preference" in tensors and not ((tensors["preference"] >= 0) & (tensors["preference"] <= 1)).all():
        raise DataError("preference: not all between 0 and 1; pass probabilities")
    return tensors


def _check_present(objective: Preference, tensors: dict[str, Tensor]) -> None:
    """Check that every array that the loss reads is given. Raises `DataError`."""
    name = " + ".join(f"'{name}'" for name in objective.terms)
    keywords = {key for each in objective.terms.values() for key in each.keywords}
    of_means = any(each.input in ("mean_logps", "log_odds") for each in objective.terms.values())
    needed = {
        ("ref_chosen", "ref_rejected"): objective.uses_reference or "ref_margin" in keywords,
        ("chosen_tokens", "rejected_tokens"): of_means or objective.options.get("reduction") == "mean",
        ("chosen_tokens",): "chosen_mean_logps" in keywords,
        ("kl",): objective.uses_kl,
    }
    for arrays, used in needed.items():
        missing = [array for array in arrays if array not in tensors]
        if used and missing:
            raise DataError(f"loss {name} needs {' and '.join(arrays)}; pass {' and '.join(missing)}")
    if "kl" in tensors and not objective.uses_kl:
        raise DataError(f"kl: loss {name} does not use it; leave it out")


def loss_table() -> pd.DataFrame:
    """The built-in losses: name (the index), formula, paper, and options with their defaults.

    In the formulas, r is beta times the response's input (its log-ratio, unless `input` names another), h the chosen input
    minus the rejected one, z = beta h, s the sigmoid and e the label smoothing.
    """
    rows = []
    for name, entry in LOSSES.items():
        text = inspect.getdoc(entry.function) or ""
        paper = re.search(r"arXiv:\d{4}\.\d{5}", text)
        own = {key: default for key, default in entry.keywords.items() if key not in EXTRAS}
        shared = sorted(used_options({name: entry}, {}) - set(own)) if name != "sft" else []
        rows.append(
            {
                "loss": name,
                "formula": " ".join(text.split("\n\n")[0].split()),
                "paper": paper[0] if paper else "",
                "input": entry.input,
                "options": ", ".join([*(f"{key}={default:g}" for key, default in own.items()), *shared]),
            }
        )
    return pd.DataFrame(rows).set_index("loss")
