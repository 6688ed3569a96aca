"""Losses of the user's own: read from stages/losses.py without running it, checked before training, trained like the others."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from tasks import NO_OPTIONS, without_tracking
from text_project import dpo_settings, write_text_project
from torch import Tensor

from prefdag.check_params import check_params
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.dpo.losses import LOSSES, Loss
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.dpo.preference import Preference
from prefdag.lifecycle.errors import ParamsError
from prefdag.own_losses import checks
from prefdag.own_losses.names import OWN_LOSSES, own_losses
from prefdag.runtime.artifacts import sha256
from prefdag.runtime.yaml import read_yaml
from stages import dpo_text, losses, ref_logps

FILE = """
    import torch.nn.functional as F
    from torch import Tensor
    from prefdag.dpo.losses import Loss
    from elsewhere import imported

    def helper(x: Tensor) -> Tensor:
        return x

    def focal(chosen: Tensor, rejected: Tensor, beta: float, *, gamma: float = 1.0, steps: int = 1, on: bool = True):
        return helper(F.logsigmoid(beta * (chosen - rejected)))

    LOSSES: dict[str, Loss] = {"focal": Loss(focal, of_margin=True)%s}
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes stages/losses.py, which is never run: it imports a module that does not exist."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        OWN_LOSSES.parent.mkdir(exist_ok=True)
        OWN_LOSSES.write_text(textwrap.dedent(text))

    write(FILE % "")
    return write


def check(**changes: Any) -> None:
    """Check params.yaml with other values of `loss` and `loss_options`."""
    tree = read_yaml(ROOT / "params.yaml")
    tree["loss"] = changes.pop("loss", "sigmoid")
    tree["loss_options"] |= changes
    check_params(tree, Path("params.yaml"))


# params.yaml


def test_params_may_name_an_own_loss_and_its_options(own_file: Callable[[str], None]) -> None:
    check(loss="focal")
    check(loss={"focal": 0.5, "sft": 0.5})
    check(loss="focal", own={"gamma": 2, "steps": 3, "on": False})
    check(loss="focal", own={"gamma": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "focl"}, "loss: no loss 'focl'; did you mean 'focal'?"),
        ({"loss": {"focl": 1.0}}, "loss.focl: no loss 'focl'; did you mean 'focal'?"),
        ({"loss": "helper"}, "loss: no loss 'helper'; choose from sigmoid, "),
        ({"loss": {"focal": 0}}, "loss.focal: input should be greater than 0"),
        (
            {"own": {"gama": 1.0}},
            "loss_options.own: gama: no loss in stages/losses.py has this option; did you mean 'gamma'?",
        ),
        (
            {"own": {"gamma": "big"}},
            "loss_options.own: gamma: should be of type float, as in stages/losses.py, not 'big'",
        ),
        ({"own": {"gamma": True}}, "loss_options.own: gamma: should be of type float"),
        ({"own": {"steps": 1.5}}, "loss_options.own: steps: should be of type int"),
        ({"own": {"on": 1}}, "loss_options.own: on: should be of type bool"),
        ({"own": {"gamma": None}}, "loss_options.own.gamma"),
        ({"own": 3}, "loss_options.own: input should be an object, not 3"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], message: str, own_file: Callable[[str], None]) -> None:
    with pytest.raises(ParamsError) as caught:
        check(**changes)
    assert str(caught.value).startswith(f"params.yaml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "stages/losses.py:1: not Python (invalid syntax); fix the file"),
        ("\0", "stages/losses.py: not Python"),
        ("LOSSES = dict(a=1)", "stages/losses.py:1: LOSSES must be a dictionary"),
        ("LOSSES = {**other}", "stages/losses.py:1: a key of LOSSES must be a name in quotes"),
        ("LOSSES = {'my-loss': 1}", "stages/losses.py:1: a key of LOSSES must be a name in quotes"),
    ],
)
def test_a_broken_file_is_one_line(text: str, message: str, own_file: Callable[[str], None]) -> None:
    own_file(text)
    with pytest.raises(ParamsError) as caught:
        check(loss="focal")
    assert re.match(r"params\.yaml: loss: ", str(caught.value))
    assert message in str(caught.value)
    check(loss="sigmoid")  # a built-in loss does not need the file


def test_options_of_an_imported_function_are_left_to_the_stage(own_file: Callable[[str], None]) -> None:
    own_file(FILE % ', "other": Loss(imported)')
    assert own_losses() == {"focal": {"gamma": "float", "steps": "int", "on": "bool"}, "other": None}
    check(loss="other", own={"anything": 1.0})


def test_without_the_file_there_are_no_own_losses(tmp_path: Path) -> None:
    assert own_losses(tmp_path / "losses.py") == {}


def test_the_shipped_file_has_none_and_shows_a_valid_example() -> None:
    assert losses.LOSSES == own_losses(ROOT / OWN_LOSSES) == {}
    text = losses.__doc__ or ""
    example = textwrap.dedent(text[text.index("    import") : text.index("\nThen,")])
    names: dict[str, Any] = {"Loss": Loss}
    exec(example, names)
    (loss,) = names["LOSSES"].values()
    checks.check_loss("focal", loss, 0.1, {})


# The function


def mine(chosen: Tensor, rejected: Tensor, beta: float, *, margin: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    z = beta * (chosen - rejected) - margin
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def preference(own: dict[str, Loss], loss: Any, beta: float = 0.5, /, **options: Any) -> Preference:
    return Preference(loss, beta, options_of(options), {}, own)


def options_of(options: dict[str, Any]) -> Any:
    """Options as a stage gets them, but with own ones that no file declares."""
    own = options.pop("own", None)
    values = LossOptions(**{**NO_OPTIONS, **options})
    object.__setattr__(values, "own", own)
    return values


def batch() -> PairBatch:
    torch.manual_seed(0)
    chosen, rejected = (Response(-torch.rand(5), -torch.rand(5), torch.arange(1, 6).float()) for _ in "wl")
    return PairBatch(chosen, rejected)


def test_an_own_loss_with_a_built_in_formula_equals_it() -> None:
    own = {"mine": Loss(mine, of_margin=True)}
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "mean"}, {"f_divergence": "js"}, {}):
        expected = preference({}, "sigmoid", **options).losses(batch())
        assert torch.equal(preference(own, "mine", **options).losses(batch()), expected)
    both = preference(own, {"mine": 0.5, "sigmoid": 0.5, "sft": 1.0}).losses(batch())
    torch.testing.assert_close(both, preference({}, {"sigmoid": 1.0, "sft": 1.0}).losses(batch()))
    simpo = {"mine": Loss(mine, "mean_logps")}
    torch.testing.assert_close(
        preference(simpo, "mine", own={"margin": 0.7}).losses(batch()),
        preference({}, "simpo", simpo_gamma=0.7).losses(batch()),
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_every_built_in_loss_passes_the_check(name: str) -> None:
    checks.check_loss(name, LOSSES[name], 0.1, {})
    checks.check_loss(name, LOSSES[name], 2.0, {})


WRONG: list[tuple[Loss, str]] = [
    (Loss(lambda c, r, b: (c - r).mean()), r"returns shape \(\) for 5 pairs; return one loss per pair, \(pairs,\)"),
    (Loss(lambda c, r, b: (c - r)[:, None]), r"returns shape \(5, 1\) for 5 pairs"),
    (Loss(lambda c, r, b: 1.0), "returns float for 5 pairs"),
    (Loss(lambda c, r, b: (c, r)), "returns tuple for 5 pairs; return one loss per pair"),
    (Loss(lambda c, r, b: c - r, unpaired=True), "return the losses of chosen and of rejected"),
    (Loss(lambda c, r, b: (c - r).log()), "loss -inf at chosen 0, rejected 0; it must be finite"),
    (Loss(lambda c, r, b: (c - r).abs().sqrt()), "gradient (inf|nan) at chosen 0, rejected 0; it must be finite"),
    (Loss(lambda c, r, b: (c - r).detach() ** 2), "has no gradient"),
    (Loss(lambda c, r, b: (c - r) * 0), "its gradient is zero"),
    (Loss(lambda c, r, b: (c - r - (c - r).mean()) ** 2), "depends on the other pairs; register it with jointly=True"),
    (Loss(lambda c, r, b: c**2 - r, of_margin=True), "depends on more than chosen - rejected"),
    (Loss(lambda c, r: c - r), "raises TypeError: .* takes 2 positional arguments but 3 were given"),
    (Loss(lambda c, r, b, *, x: c - r), "option 'x' has no default; give it one"),
    (Loss(lambda c, r, b: c - r, "logratio"), "input 'logratio': use logratios, logps, mean_logps or log_odds"),
    (Loss(lambda c, r, b: c - r, sorts=True), "sorts=True needs jointly=True"),
]


@pytest.mark.parametrize(("loss", "message"), WRONG)
def test_a_loss_that_cannot_be_trained_on_is_one_line(
    loss: Loss, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file and line of the function."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParamsError) as caught:
        preference({"mine": loss}, "mine")
    assert re.match(rf"tests/own_losses/test_own_losses\.py:\d+: loss 'mine': .*{message}", str(caught.value))
    assert "\n" not in str(caught.value)
    preference({"mine": loss}, "sigmoid")  # only the losses in use are checked


def test_a_loss_that_depends_on_all_pairs_is_declared() -> None:
    joint = Loss(lambda c, r, b: (c - r - (c - r).mean()) ** 2, jointly=True)
    assert preference({"mine": joint}, "mine").jointly
    assert not preference({"mine": joint}, "sigmoid").jointly


def test_names_of_built_in_losses_are_taken() -> None:
    with pytest.raises(ParamsError, match=r"^stages/losses\.py: 'ipo' is the name of a built-in loss; choose another"):
        preference({"ipo": Loss(mine)}, "sigmoid")


@pytest.mark.parametrize(
    ("loss", "own", "message"),
    [
        ("sigmoid", {"margin": 1.0}, "own.margin: loss 'sigmoid' does not use it; remove it"),
        ("mine", {"marign": 1.0}, "own.marign: loss 'mine' does not use it; remove it"),
        ("mine", {"label_smoothing": 0.1}, "own.label_smoothing: set loss_options.label_smoothing instead"),
    ],
)
def test_own_options_that_are_not_used_are_refused(loss: str, own: dict[str, float], message: str) -> None:
    with pytest.raises(ParamsError, match=rf"^params\.yaml: loss_options\.{re.escape(message)}"):
        preference({"mine": Loss(mine)}, loss, own=own)


# The stage


@pytest.mark.slow
def test_the_stage_trains_on_an_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """With the formula of a built-in loss, the policy has the same bytes."""
    monkeypatch.chdir(tmp_path)
    dpo_text.REFERENCE.parent.mkdir()
    write_text_project(tmp_path, "llama")
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=64, shard="none"))
    without_tracking(monkeypatch, tmp_path / "checkpoints")
    monkeypatch.setattr(losses, "LOSSES", {"mine": Loss(mine, of_margin=True)})
    hashes = []
    for loss in ("sigmoid", "mine"):
        dpo_text.main(0.5, loss, 0, options_of({}), {}, dpo_settings(epochs=2))
        hashes.append(sha256(dpo_text.POLICY / "adapter_model.safetensors"))
    assert hashes[0] == hashes[1]
    dpo_text.main(0.5, "mine", 0, options_of({"own": {"margin": 0.5}}), {}, dpo_settings(epochs=2))
    assert sha256(dpo_text.POLICY / "adapter_model.safetensors") != hashes[0]
