"""Values and gradients of the losses against TRL 1.16: its trainers' loss functions, without a trainer or a model.

TRL's names are private and change between releases, so its version is pinned, in a lock for this test alone. The model's
outputs are made up: log-probabilities of tokens, with respect to which both gradients are taken. Float64 where TRL allows it.
"""

import importlib.metadata
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from naive_losses import preference
from torch import Tensor

from prefdag.config.loss import LossName
from prefdag.dpo.pair_batch import PairBatch, Response

pytest.importorskip("trl", reason="these tests compare with TRL, which has a lock of its own")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a warning that experimental names may change: see above
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PROMPT, ROWS = 2, 6
UNEVEN = ([4, 2, 5, 1, 3, 2], [2, 5, 5, 3, 1, 4])  # tokens per chosen and per rejected response
EVEN = ([4] * ROWS, [4] * ROWS)


def test_trl_is_the_release_whose_private_names_are_used() -> None:
    assert importlib.metadata.version("trl").startswith("1.16.")


def accelerator() -> SimpleNamespace:
    """A single process: gathering returns its argument."""
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda t: t, gather_for_metrics=lambda t: t)


class Batch:
    """Log-probabilities (responses, tokens) under policy and reference: chosen responses first, then rejected ones."""

    def __init__(
        self, seed: int, lengths: Sequence[Sequence[int]] = UNEVEN, dtype: torch.dtype = torch.float64
    ) -> None:
        self.random = torch.Generator().manual_seed(seed)
        tokens = torch.tensor([n for side in lengths for n in side])
        width = PROMPT + int(tokens.max())
        position = torch.arange(width) - PROMPT
        self.completion_mask = ((position >= 0) & (position < tokens[:, None])).long()
        self.mask = self.completion_mask[:, 1:]
        self.tokens = tokens.to(dtype)
        self.leaf = self.draw(dtype).requires_grad_()
        self.reference = self.draw(dtype) * self.mask
        self.log_sum_squares = self.draw(dtype)
        self.kl = self.draw(dtype)[:, 0]  # log-ratios of mismatched responses
        self.ref_logps = self.reference.sum(1)

    def draw(self, dtype: torch.dtype) -> Tensor:
        return torch.rand(self.mask.shape, generator=self.random, dtype=torch.float64).to(dtype) * -3 - 0.05

    @property
    def logps(self) -> Tensor:
        return self.leaf * self.mask

    def model(self, **inputs: Any) -> SimpleNamespace:
        """The outputs that TRL expects of a model, without those of the prompt's tokens."""
        zeros = torch.zeros(self.mask.shape)
        return SimpleNamespace(
            log_probs=self.logps,
            log_sum_sq_probs=self.log_sum_squares,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )

    def pairs(self) -> PairBatch:
        """The same batch for our losses."""
        lengths = torch.stack(self.tokens.chunk(2)).min(0).values.repeat(2)
        shared = self.mask * (self.mask.cumsum(1) <= lengths[:, None])
        columns = (
            self.logps.sum(1),
            self.ref_logps,
            self.tokens,
            (self.logps * shared).sum(1),
            (self.reference * shared).sum(1),
            ((self.logps.detach() - self.log_sum_squares) * self.mask).sum(1) / self.tokens,
        )
        chosen, rejected = zip(*(column.chunk(2) for column in columns), strict=True)
        return PairBatch(Response(*chosen), Response(*rejected))


def dpo_loss(batch: Batch, losses: Mapping[str, float], **settings: Any) -> Tensor:
    """TRL's loss of a batch."""
    settings = {"beta": 0.3, "label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False, **settings}
    ref_logps = batch.ref_logps
    if settings["ld_alpha"] is not None:  # TRL precomputes them with the tokens' weights applied
        of: Any = batch.pairs()
        ref_logps = torch.cat(
            [
                response.ref_shared_logps + settings["ld_alpha"] * (response.ref_logps - response.ref_shared_logps)
                for response in (of.chosen, of.rejected)
            ]
        )
    trainer = SimpleNamespace(
        **{"f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": None, **settings},
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros_like(batch.completion_mask),
        "attention_mask": torch.ones_like(batch.completion_mask),
        "completion_mask": batch.completion_mask,
        "ref_chosen_logps": ref_logps.chunk(2)[0],
        "ref_rejected_logps": ref_logps.chunk(2)[1],
    }
    return DPOTrainer._compute_loss(trainer, batch.model, inputs, False)


def agree(ours: Tensor, trl: Tensor, leaf: Tensor, tolerance: float = 1e-6) -> None:
    """Asserts equal losses and gradients. TRL computes label smoothing, and some other numbers, in float32."""
    torch.testing.assert_close(ours, trl.to(ours), atol=tolerance, rtol=tolerance)
    gradients = [torch.autograd.grad(loss, leaf)[0] for loss in (ours, trl)]
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "options", "trl", "settings"),
    [
        ("sigmoid", {}, "sigmoid", {}),
        ("sigmoid", {"reduction": "mean"}, "sigmoid_norm", {}),
        ("hinge", {}, "hinge", {}),
        ("ipo", {"reduction": "mean"}, "ipo", {}),
        ("robust", {"label_smoothing": 0.1}, "robust", {"label_smoothing": 0.1}),
        ("exo", {"label_smoothing": 0.1}, "exo_pair", {"label_smoothing": 0.1}),
        ("discopop", {}, "discopop", {}),
        ("nca", {}, "nca_pair", {}),
        ("sppo", {}, "sppo_hard", {}),
        ("apo_zero", {}, "apo_zero", {}),
        ("apo_down", {}, "apo_down", {}),
        ("aot", {}, "aot", {}),
        ("aot", {"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
        ("aot_unpaired", {}, "aot_unpaired", {}),
        ("aot_unpaired", {"label_smoothing": 0.1}, "aot_unpaired", {"label_smoothing": 0.1}),
        ("sigmoid", {"f_divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
        ("hinge", {"f_divergence": "forward_kl"}, "hinge", {"f_divergence_type": "forward_kl"}),
        ("sigmoid", {"f_divergence": "js"}, "sigmoid", {"f_divergence_type": "js_divergence"}),
        ("discopop", {"f_divergence": "js"}, "discopop", {"f_divergence_type": "js_divergence"}),
        ("sigmoid", {"ld_alpha": 0.4}, "sigmoid", {"ld_alpha": 0.4}),
        ("nca", {"ld_alpha": 0.0}, "nca_pair", {"ld_alpha": 0.0}),
        ("aot", {"ld_alpha": 0.4}, "aot", {"ld_alpha": 0.4}),
        (
            "sigmoid",
            {"ld_alpha": 0.4, "f_divergence": "js"},
            "sigmoid",
            {"ld_alpha": 0.4, "f_divergence_type": "js_divergence"},
        ),
        ("sigmoid", {"wpo": True}, "sigmoid", {"use_weighting": True}),
        ("sppo", {"wpo": True}, "sppo_hard", {"use_weighting": True}),
        ("nca", {"wpo": True, "ld_alpha": 0.4}, "nca_pair", {"use_weighting": True, "ld_alpha": 0.4}),
    ],
)
def test_dpo_losses(seed: int, loss: LossName, options: dict[str, Any], trl: str, settings: dict[str, Any]) -> None:
    batch = Batch(seed)
    ours, _ = preference(loss, 0.3, **options)(batch.pairs())
    agree(ours.mean(), dpo_loss(batch, {trl: 1.0}, **settings), batch.leaf)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("loss", "trl"), [("sigmoid", "sigmoid"), ("hinge", "hinge"), ("exo", "exo_pair")])
def test_alpha_divergences(seed: int, alpha: float, loss: LossName, trl: str) -> None:
    """TRL's coefficient is 1 - alpha, where 1 is the reverse KL. It computes the divergences in float32."""
    batch = Batch(seed, dtype=torch.float32)
    e: dict[str, Any] = {"label_smoothing": 0.1} if loss == "exo" else {}
    ours, _ = preference(loss, 0.3, f_divergence="alpha", f_alpha=alpha, **e)(batch.pairs())
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha}
    agree(ours.mean(), dpo_loss(batch, {trl: 1.0}, **settings, **e), batch.leaf, tolerance=2e-4)


def without_shift(batch: Batch) -> Batch:
    """Shifts the reference so that all rewards of the batch have mean 0, because TRL's BCO has no shift."""
    batch.ref_logps = batch.ref_logps + (batch.logps.sum(1) - batch.ref_logps).mean().detach()
    return batch


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("losses", "trl"),
    [
        ({"bco": 1.0}, {"bco_pair": 1.0}),
        (
            {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0},
            {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0},
        ),  # MPO, arXiv:2411.10442
        ({"sigmoid": 1.0, "sft": 0.7}, {"sigmoid": 1.0, "sft": 0.7}),
        ({"hinge": 2.0, "apo_zero": 0.5, "sppo": 0.1}, {"hinge": 2.0, "apo_zero": 0.5, "sppo_hard": 0.1}),
    ],
)
def test_sums_of_losses(seed: int, losses: dict[LossName, float], trl: dict[str, float]) -> None:
    """TRL's cross-entropy is a mean over the batch's tokens, ours over each response's: equal if all lengths are."""
    batch = without_shift(Batch(seed, EVEN))
    ours, _ = preference(losses, 0.3)(batch.pairs())
    agree(ours.mean(), dpo_loss(batch, trl), batch.leaf)


def test_bco_shifts_where_trl_does_not() -> None:
    """TRL's `bco_pair` is the paper's loss without its reward shift. On shifted rewards, both losses are equal."""
    batch = Batch(0)
    ours, metrics = preference("bco", 0.3)(batch.pairs())
    assert ours.mean().item() != pytest.approx(dpo_loss(batch, {"bco_pair": 1.0}).item(), rel=1e-2)
    shift = (metrics["rewards/chosen"].mean() + metrics["rewards/rejected"].mean()) / 2
    batch.ref_logps = batch.ref_logps + shift / 0.3
    agree(ours.mean(), dpo_loss(batch, {"bco_pair": 1.0}), batch.leaf)


def test_ld_alpha_beside_cross_entropy() -> None:
    """The chosen responses are longer than the rejected ones, and of equal length."""
    batch = Batch(0, ([4] * ROWS, [2] * ROWS))
    ours, _ = preference({"sigmoid": 1.0, "sft": 1.0}, 0.3, ld_alpha=0.4)(batch.pairs())
    agree(ours.mean(), dpo_loss(batch, {"sigmoid": 1.0, "sft": 1.0}, ld_alpha=0.4), batch.leaf)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "options", "settings"),
    [
        ("cpo", {"sft_weight": 0.0}, {"loss_type": "sigmoid"}),
        ("cpo", {"sft_weight": 0.0, "label_smoothing": 0.1}, {"loss_type": "sigmoid", "label_smoothing": 0.1}),
        ("sigmoid", {"reference_free": True, "label_smoothing": 0.1}, {"loss_type": "sigmoid", "label_smoothing": 0.1}),
        ("hinge", {"reference_free": True}, {"loss_type": "hinge"}),
        ("ipo", {"reference_free": True}, {"loss_type": "ipo"}),
        ("ipo", {"reference_free": True, "reduction": "mean"}, {"loss_type": "ipo"}),
        ("simpo", {}, {"loss_type": "simpo"}),
        (
            "simpo",
            {"simpo_gamma": 1.3, "label_smoothing": 0.1},
            {"loss_type": "simpo", "simpo_gamma": 1.3, "label_smoothing": 0.1},
        ),
    ],
)
def test_losses_without_a_reference(
    seed: int, loss: LossName, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    """For SimPO and IPO, TRL passes means over tokens to `cpo_loss`."""
    batch = Batch(seed)
    by_token = loss == "simpo" or "reduction" in options
    logps = batch.logps.sum(1) / (batch.tokens if by_token else 1)
    trainer = SimpleNamespace(
        **{"simpo_gamma": 0.5, "label_smoothing": 0.0, **settings}, beta=0.3, alpha=0.0, accelerator=accelerator()
    )
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, *logps.chunk(2))
    ours, metrics = preference(loss, 0.3, **options)(batch.pairs())
    torch.testing.assert_close(metrics["rewards/chosen"], chosen)
    torch.testing.assert_close(metrics["rewards/rejected"], rejected)
    torch.testing.assert_close(ours, losses)
    agree(ours.mean(), losses.mean(), batch.leaf)


@pytest.mark.parametrize("seed", range(3))
def test_cdpo(seed: int) -> None:
    """TRL's DPO ignores label smoothing. Its CPO does not, and CPO of log-ratios is conservative DPO."""
    batch = Batch(seed)
    trainer = SimpleNamespace(loss_type="sigmoid", label_smoothing=0.2, beta=0.3, alpha=0.0, accelerator=accelerator())
    losses, *_ = CPOTrainer.cpo_loss(trainer, *(batch.logps.sum(1) - batch.ref_logps).chunk(2))
    ours, _ = preference("sigmoid", 0.3, label_smoothing=0.2)(batch.pairs())
    torch.testing.assert_close(ours, losses)
    agree(ours.mean(), losses.mean(), batch.leaf)


@pytest.mark.parametrize("seed", range(3))
def test_orpo(seed: int) -> None:
    """TRL computes the odds in float32, and returns the negative of the penalty."""
    batch = Batch(seed)
    means = (batch.logps.sum(1) / batch.tokens).chunk(2)
    trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
    negative, _, _, _, log_odds = ORPOTrainer.odds_ratio_loss(trainer, *means)
    ours, metrics = preference("orpo", 0.3, sft_weight=0.0)(batch.pairs())
    assert metrics["rewards/margin"].mean().item() == pytest.approx(log_odds.item(), rel=1e-5)
    agree(ours.mean(), -negative.mean(), batch.leaf, tolerance=1e-5)
    with_cross_entropy, _ = preference("orpo", 0.3)(batch.pairs())
    torch.testing.assert_close(with_cross_entropy - ours, -means[0])


def kto_loss(batch: Batch, rows: Sequence[int], **settings: Any) -> tuple[Tensor, float]:
    """TRL's loss of the batch's responses `rows`, and its estimate of the KL."""
    index = torch.tensor(rows)

    def model(**inputs: Any) -> SimpleNamespace:
        if (inputs["input_ids"] == 1).any():  # the mismatched responses
            zeros = torch.zeros(len(rows), batch.mask.shape[1] - 1, dtype=batch.kl.dtype)
            return SimpleNamespace(log_probs=torch.cat([batch.kl[index, None], zeros], 1))
        return SimpleNamespace(**{name: values[index] for name, values in vars(batch.model()).items()})

    trainer = SimpleNamespace(
        **{"loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0, "beta": 0.3, **settings},
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=settings.get("loss_type", "kto") == "kto",
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = lambda model, inputs: KTOTrainer._compute_kl_logps(trainer, model, inputs)
    ids, ones = torch.zeros_like(batch.completion_mask[index]), torch.ones_like(batch.completion_mask[index])
    inputs = {
        "input_ids": ids,
        "attention_mask": ones,
        "completion_mask": batch.completion_mask[index],
        "KL_input_ids": ids + 1,
        "KL_attention_mask": ones,
        "KL_completion_mask": batch.completion_mask[index],
        "label": index < ROWS,
        "ref_logps": batch.ref_logps[index],
        "ref_KL_logps": torch.zeros(len(rows), dtype=batch.kl.dtype),
    }
    return KTOTrainer._compute_loss(trainer, model, inputs, False), trainer._metrics["train"]["kl"][0]


def unpaired(batch: Batch, rows: Sequence[int]) -> PairBatch:
    """The same responses for our losses, one per row. An absent response has log-probability 0 and one token."""
    index = torch.tensor(rows)
    logps, ref_logps, tokens = batch.logps.sum(1)[index], batch.ref_logps[index], batch.tokens[index]
    chosen, rejected = (
        Response(logps * has, ref_logps * has, tokens * has + (1 - has), present=has)
        for has in ((index < ROWS).to(tokens), (index >= ROWS).to(tokens))
    )
    return PairBatch(chosen, rejected, kl=batch.kl[index])


PAIRED = list(range(2 * ROWS))
SINGLES = [0, 2, 3, 4, 7, 11]
KTO_OPTIONS: list[dict[str, Any]] = [{}, {"desirable_weight": 0.8, "undesirable_weight": 1.5}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sign", [1, -1], ids=["kl", "no kl"])
@pytest.mark.parametrize("options", KTO_OPTIONS)
@pytest.mark.parametrize("rows", [PAIRED, SINGLES, [1, 2], [8, 9, 10]], ids=["both", "mixed", "chosen", "rejected"])
def test_kto_of_rows_with_one_response(seed: int, sign: int, options: dict[str, Any], rows: list[int]) -> None:
    """Every response has its own mismatched response. If their mean log-ratio is negative, the KL is zero."""
    batch = Batch(seed)
    batch.kl = batch.kl.abs() * sign
    trl, kl = kto_loss(batch, rows, **options)
    of = unpaired(batch, rows)
    assert max(0.0, batch.kl[torch.tensor(rows)].mean().item()) == pytest.approx(kl)
    ours, _ = preference("kto", 0.3, **options)(of)
    agree(ours.mean(), trl, batch.leaf)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", KTO_OPTIONS)
def test_kto_of_pairs(seed: int, options: dict[str, Any]) -> None:
    """TRL counts a pair as two rows and takes the mean over them; so our pair's KL is the mean of those two rows."""
    batch = Batch(seed)
    batch.kl = batch.kl.abs()
    of = batch.pairs()._replace(kl=torch.stack(batch.kl.chunk(2)).mean(0))
    ours, metrics = preference("kto", 0.3, **options)(of)
    agree(ours.mean(), kto_loss(batch, PAIRED, **options)[0], batch.leaf)
    assert not math.isclose(metrics["rewards/margin"].mean().item(), 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [SINGLES, [1, 2], [8, 9, 10]], ids=["mixed", "chosen", "rejected"])
def test_apo_zero_of_rows_with_one_response(seed: int, rows: list[int]) -> None:
    batch = Batch(seed)
    trl, _ = kto_loss(batch, rows, loss_type="apo_zero_unpaired")
    ours, _ = preference("apo_zero", 0.3)(unpaired(batch, rows))
    agree(ours.mean(), trl, batch.leaf)
