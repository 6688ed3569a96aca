"""Stage dpo_text with every kind of reference and of policy, on a tiny model."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks import NO_OPTIONS, slow, without_tracking
from text_project import dpo_settings, write_text_project
from tiny_models import weights
from torch import nn

from prefdag.config.adapter import Full, Prefix
from prefdag.config.constraints import Constraint
from prefdag.config.dpo_text import DpoText, TextReference
from prefdag.config.health import Health
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.text import model as lm
from prefdag.train.loop import History
from stages import dpo_text, health_text, ref_logps

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

CACHED = TextReference(logps="cached", update="none", alpha=None, every=None)
LIVE = TextReference(logps="live", update="none", alpha=None, every=None)
COPY = TextReference(logps="live", update="copy", alpha=None, every=None)
POLYAK = TextReference(logps="live", update="polyak", alpha=0.5, every=None)
SYNC = TextReference(logps="live", update="sync", alpha=1.0, every=2)


@pytest.fixture(params=["llama", slow("gpt2")])
def ran(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[History, nn.Module]]:
    """What each run of the stage trained, in a project of eight pairs per split."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_text_project(tmp_path, request.param)
    return without_tracking(monkeypatch, tmp_path / "checkpoints")


def dpo(loss: Any = "sigmoid", constraints: Any = None, options: Any = None, **changes: Any) -> None:
    """Run the stage with beta 0.5 for two epochs of four steps."""
    base = dpo_settings(epochs=2, batch_size=2, micro_batch_size=1)
    config: DpoText = dataclasses.replace(base, **changes)
    given = LossOptions(**{**NO_OPTIONS, **(options or {})})
    dpo_text.main(0.5, loss, 0, given, constraints or {}, config)


def close(a: History, b: History) -> bool:
    """Equal except for rounding: the log-probabilities were computed in different batches."""
    return all(
        x[name] == pytest.approx(y[name], abs=2e-3)
        for rows in ((a.train, b.train), (a.validation, b.validation))
        for x, y in zip(*rows, strict=True)
        for name in ("loss", "rewards/margin", "logps/chosen")
    )


def test_live_references_equal_cached_ones(ran: list[tuple[History, nn.Module]]) -> None:
    """The policy without its adapters gives what ref_logps computed from the artefact. Training changes neither."""
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    before = sha256(dpo_text.REFERENCE)
    for reference in (CACHED, LIVE):
        dpo(reference=reference)
    assert close(ran[0][0], ran[1][0])
    assert sha256(dpo_text.REFERENCE) == before
    assert ran[1][0].validation[-1]["drift/reference"] == 0


def test_a_live_reference_needs_no_cache(ran: list[tuple[History, nn.Module]]) -> None:
    """This project has no data/ref_logps."""
    dpo(reference=LIVE)
    assert abs(ran[0][0].train[0]["rewards/margin"]) < 1e-4


def test_a_copied_reference_under_lora_is_the_policy_at_each_epochs_end(ran: list[tuple[History, nn.Module]]) -> None:
    """It is copied after steps 4 and 8 of 8: rewards are zero in the fifth step and in the last validation."""
    dpo(reference=COPY)
    history, _ = ran[0]
    reward = [abs(row["rewards/chosen"]) + abs(row["rewards/rejected"]) for row in history.train]
    assert [r < 1e-3 for r in reward] == [True, False, False, False, True, False, False, False]
    assert history.validation[-1]["kl"] < 1e-6


@pytest.mark.parametrize("reference", [POLYAK, SYNC], ids=lambda r: r.update)
def test_a_moving_reference_stays_closer_to_the_policy(
    ran: list[tuple[History, nn.Module]], reference: TextReference
) -> None:
    """Its artefact and the weights under the adapters stay the same, bit for bit."""
    before, base = sha256(dpo_text.REFERENCE), weights(lm.load(dpo_text.REFERENCE))
    for setting in (LIVE, reference):
        dpo(reference=setting)
    frozen, moving = ran[0][0], ran[1][0]
    assert moving.train[0] == frozen.train[0]
    assert moving.validation[-1]["kl"] < 0.8 * frozen.validation[-1]["kl"]
    assert sha256(dpo_text.REFERENCE) == before
    trained: Any = ran[1][1]
    under_adapters = weights(trained.unload())
    assert all(torch.equal(under_adapters[name], t) for name, t in base.items())


@pytest.mark.parametrize("reference", [LIVE, POLYAK], ids=lambda r: r.update)
def test_full_fine_tuning_starts_at_its_reference_and_learns(
    ran: list[tuple[History, nn.Module]], reference: TextReference
) -> None:
    dpo(adapter=Full(kind="full"), reference=reference)
    assert abs(ran[0][0].train[0]["rewards/margin"]) < 1e-4
    models = lm.load_models(dpo_text.REFERENCE, dpo_text.POLICY)
    before, after = weights(models.reference), weights(models.policy)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_prefix_tuning_does_not_start_at_its_reference(ran: list[tuple[History, nn.Module]]) -> None:
    """The stage does not stop at step 0, and the health verdict lists the finding as not checked."""
    dpo(adapter=Prefix(kind="prefix", tokens=3), reference=LIVE)
    assert abs(ran[0][0].train[0]["rewards/chosen"]) > 1e-3
    config = dataclasses.replace(dpo_settings(), adapter=Prefix(kind="prefix", tokens=3), reference=LIVE)
    shutil.copytree("models/dpo_text", "models/policy")
    Path("reports/rounds").mkdir(parents=True)
    Path("reports/rounds/table.csv").write_text("round\n")  # none
    health_text.main(config, Health(kl_budget=1000.0, fail_on=[]))
    assert "not_at_reference" in read_json(health_text.HEALTH)["not_checked"]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("kto", {}),
        ("bco", {}),
        ("aot", {}),
        ("orpo", {}),
        ("simpo", {}),
        ("sigmoid", {"wpo": True}),
        ("sigmoid", {"ld_alpha": 0.5}),
        ({"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}, {}),
    ],
    ids=str,
)
def test_every_kind_of_loss_runs_on_cached_references(
    ran: list[tuple[History, nn.Module]], loss: Any, options: dict[str, Any]
) -> None:
    """KTO needs mismatched responses, which are not in the cache; LD-DPO needs parts of responses, which are."""
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    dpo(loss, options=options, reference=CACHED, training=dpo_settings(epochs=6, micro_batch_size=2).training)
    history, _ = ran[0]
    assert history.train[-1]["loss"] < history.train[0]["loss"]


def test_a_constraint_holds_the_policy_back(ran: list[tuple[History, nn.Module]]) -> None:
    """With a strong, adapted penalty on the KL, the policy ends closer to its reference, and the multiplier has grown."""
    strict = {"kl": Constraint(threshold=0.0, multiplier=5.0, dual_rate=1.0)}
    for constraints in ({}, strict):
        dpo(constraints=constraints, reference=LIVE)
    free, held = ran[0][0].validation[-1], ran[1][0].validation[-1]
    assert held["kl"] < 0.5 * free["kl"]
    assert held["multiplier/kl"] > 5.0
