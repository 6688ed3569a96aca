"""params.yaml is complete and commented. A mistake is reported in one line that names the key and the remedy."""

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from prefdag.check_params import check_params, load_params
from prefdag.config.params import Params
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.yaml import flatten, read_yaml

PARAMS = ROOT / "params.yaml"
TREE = read_yaml(PARAMS)
Edit = Callable[[dict[str, Any]], Any]


def error(edit: Edit) -> str:
    """The error message for params.yaml after `edit`."""
    tree = copy.deepcopy(TREE)
    edit(tree)
    with pytest.raises(ParamsError) as caught:
        check_params(tree, Path("params.yaml"))
    assert caught.value.exit_code == 2
    return str(caught.value)


def put(dotted: str, value: Any) -> Edit:
    """An edit that sets one key."""
    *parents, last = dotted.split(".")

    def edit(tree: dict[str, Any]) -> None:
        for parent in parents:
            tree = tree[parent]
        tree[last] = value

    return edit


def rename(dotted: str, to: str) -> Edit:
    """An edit that misspells one key."""
    *parents, last = dotted.split(".")

    def edit(tree: dict[str, Any]) -> None:
        for parent in parents:
            tree = tree[parent]
        tree[to] = tree.pop(last)

    return edit


def test_the_default_is_valid_and_complete() -> None:
    params = load_params(PARAMS)
    assert flatten(params) == flatten(TREE)
    assert [field.name for field in dataclasses.fields(Params)] == list(TREE)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename("dpo_text.adapter.rank", "rnak"), "dpo_text.adapter.rnak: unknown key; did you mean 'rank'?"),
        (rename("beta", "Beta"), "Beta: unknown key; did you mean 'beta'?"),
        (put("dpo_text.health", {}), "dpo_text.health: moved; it is now the section health_text, beside dpo_text"),
        (put("dpo_image.gamma", 1), "dpo_image.gamma: unknown key; remove it"),
        (lambda tree: tree.pop("loss"), "loss: missing; every key is required"),
        (lambda tree: tree["sft_ref"]["adapter"].pop("alpha"), "sft_ref.adapter.alpha: missing; every key is required"),
        (put("beta", "strong"), "beta: input should be a valid number, not 'strong'"),
        (put("beta", 0), "beta: input should be greater than 0, not 0"),
        (put("beta", float("nan")), "beta: input should be a finite number, not nan"),
        (put("seed", 1.5), "seed: input should be a valid integer, not 1.5"),
        (put("seed", True), "seed: input should be a valid integer, not True"),
        (put("seed", -1), "seed: input should be greater than or equal to 0, not -1"),
        (
            put("loss", "xyz"),
            "loss: no loss 'xyz'; choose from sigmoid, robust, exo, hinge, ipo, discopop, sppo, nca, apo_zero, "
            "apo_down, kto, bco, aot, aot_unpaired, cpo, simpo, orpo, sft, or add it to stages/losses.py",
        ),
        (
            put("dpo_text.training.epochs", 0),
            "dpo_text.training.epochs: input should be greater than or equal to 1, not 0",
        ),
        (put("dpo_image.flip", "yes"), "dpo_image.flip: input should be a valid boolean, not 'yes'"),
        (put("format_pairs.max_pairs", 0), "format_pairs.max_pairs: input should be greater than or equal to 1, not 0"),
        (put("loss", {"sigmoid": -1.0}), "loss.sigmoid: input should be greater than 0, not -1.0"),
        (put("loss", "sigmiod"), "loss: no loss 'sigmiod'; did you mean 'sigmoid'?"),
        (put("loss", {"sigmiod": 1.0}), "loss.sigmiod: no loss 'sigmiod'; did you mean 'sigmoid'?"),
        (
            put("loss_options.own", {"margin": 1.0}),
            "loss_options.own: margin: no loss in stages/losses.py has this option",
        ),
        (put("loss", {}), "loss: dictionary should have at least 1 item"),
        (
            put("loss_options.label_smoothing", 0.5),
            "loss_options.label_smoothing: input should be less than 0.5, not 0.5",
        ),
        (put("constraints", {"lk": {}}), "constraints.lk: input should be 'kl' or 'chosen_drop', not 'lk'"),
        (
            put("constraints", {"kl": {"treshold": 1.0}}),
            "constraints.kl.treshold: unknown key; did you mean 'threshold'?",
        ),
        (
            put("dpo_text.adapter.target_modules", []),
            "dpo_text.adapter.target_modules: list should have at least 1 item",
        ),
        (
            put("dpo_text.adapter.target_modules", "c_attn"),
            "dpo_text.adapter.target_modules: input should be 'auto' or 'all-linear', not 'c_attn'",
        ),
        (put("dpo_text.adapter", {"kind": "full", "rank": 8}), "dpo_text.adapter.rank: unknown key; remove it"),
        (put("sft_ref.adapter", {"kind": "prefix", "tokens": 8}), "sft_ref.adapter: input tag 'prefix' found"),
        (put("sft_ref.training.schedule", "step"), "sft_ref.training.schedule: input should be 'constant', "),
        (
            put("sft_ref.training.schedule", {"kind": "step", "epoch": 6, "factor": 0.9}),
            "sft_ref.training.schedule.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            put("dpo_image.training.optimizer", {"kind": "adam", "momentum": 0.9}),
            "dpo_image.training.optimizer.kind: input should be 'sgd' or 'rmsprop', not 'adam'",
        ),
        (
            put("dpo_text.reference.update", "polyak"),
            "dpo_text.reference: update 'polyak' needs 'alpha'",
        ),
        (
            put("dpo_image.reference", {"update": "copy", "alpha": 0.5, "every": None}),
            "dpo_image.reference: update 'copy' does not use 'alpha'",
        ),
        (
            put("dpo_image.reference", {"update": "sync", "alpha": 0.5, "every": None}),
            "dpo_image.reference: update 'sync' needs 'every'",
        ),
        # Two kinds of update at once cannot be expressed. A cached reference that moves is refused.
        (
            put("dpo_text.reference", {"update": "polyak", "alpha": 0.001, "every": None, "logps": "cached"}),
            "dpo_text.reference: a reference that moves (update 'polyak') has no cached log-probabilities: set logps to live",
        ),
        (
            put("dpo_text.adapter.kind", "qlora"),
            "dpo_text: qlora trains 4-bit weights, not the weights that ref_logps scored",
        ),
        (
            lambda values: (
                put("dpo_text.adapter", {"kind": "prefix", "tokens": 8})(values)
                or put("dpo_text.gradient_checkpointing", True)(values)
            ),
            "dpo_text: gradient_checkpointing would lose the prefix",
        ),
        (
            lambda values: (
                put("dpo_text.adapter", {"kind": "prefix", "tokens": 8})(values)
                or put("dpo_text.shard", "full")(values)
            ),
            "dpo_text: shard full does not support adapters of kind prefix: set it to none",
        ),
        (
            lambda values: put("sft_ref.adapter.kind", "qlora")(values) or put("sft_ref.shard", "full")(values),
            "sft_ref: shard full does not support adapters of kind qlora: set it to none",
        ),
        (
            lambda values: (
                put("sft_ref.adapter", {"kind": "full"})(values) or put("sft_ref.load_dtype", "bfloat16")(values)
            ),
            "sft_ref: load_dtype bfloat16 does not support adapters of kind full: set it to float32",
        ),
        (
            put("dpo_text.load_dtype", "bfloat16"),
            "dpo_text: load_dtype bfloat16 needs training.precision bfloat16: set both to the same",
        ),
        (
            lambda values: (
                put("dpo_text.load_dtype", "bfloat16")(values)
                or put("dpo_text.training.precision", "bfloat16")(values)
                or put("dpo_text.reference", {"logps": "live", "update": "polyak", "alpha": 0.1, "every": None})(values)
            ),
            "dpo_text: load_dtype bfloat16 would round away the steps of a reference that moves: set it to float32",
        ),
        (
            put("validate_images.levels.invalid", "warn"),  # an unreadable image cannot be kept
            "validate_images.levels.invalid: input should be 'error' or 'drop', not 'warn'",
        ),
        (
            put("validate_pairs.columns", {"promt": "question"}),
            "validate_pairs.columns: unknown name 'promt'; did you mean 'prompt'?",
        ),
        (
            put("validate_pairs.columns", {"zzz": "question"}),
            "validate_pairs.columns: unknown name 'zzz'; use prompt, chosen, ",
        ),
        (put("validate_pairs.columns", {"prompt": 3}), "validate_pairs.columns.prompt: input should be a valid string"),
        (put("validate_pairs.score_scale", 0), "validate_pairs.score_scale: input should be greater than 0, not 0"),
        (
            put("validate_pairs.levels.invalid", "warn"),  # a row without a prompt, for example, cannot be kept
            "validate_pairs.levels.invalid: input should be 'error' or 'drop', not 'warn'",
        ),
        (
            lambda tree: tree["validate_pairs"]["shares"].pop("disagreement"),
            "validate_pairs.shares.disagreement: missing; every key is required",
        ),
        (
            put("validate_pairs.shares.length", {"warn": 0.5, "error": None}),
            "validate_pairs.shares.length: input should be 'longer_preferred', ",
        ),
        (
            put("validate_pairs.shares.disagreement", {"wran": 0.5, "error": None}),
            "validate_pairs.shares.disagreement.wran: unknown key; did you mean 'warn'?",
        ),
        (put("health_text.fail_on", ["drfit"]), "health_text.fail_on.0: input should be 'not_at_reference', "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(edit: Edit, message: str) -> None:
    line = error(edit)
    assert line.startswith(f"params.yaml: {message}")
    assert "\n" not in line


URL = {"kind": "url", "sha256": None}
DVC = {"kind": "dvc", "path": "data.csv", "revision": "0" * 40}
HUB = {"kind": "hub", "repo": "a/b", "repo_type": "dataset", "revision": "0" * 40, "files": ["*.jsonl"]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HUB | {"fils": 1}, ".fils: unknown key; did you mean 'files'?"),
        ({"kind": "path", "path": "x"}, ".sha256: missing; every key is required; `prefdag pin` writes it"),
        ({"kind": "path", "path": "x", "sha256": [1]}, ".sha256: input should be a valid string, not [1]"),
        ({"kind": "path", "path": "${HOME}/x", "sha256": None}, ".path: write $NAME instead of ${NAME}"),
        (URL | {"url": "data/rows.jsonl"}, ".url: not a URL, such as https://HOST/FILE; a local file or folder is"),
        (URL | {"url": "https://me:hunter2@host/x"}, ".url: it has a password or a token; put it into an environment"),
        (URL | {"url": "https://hunter2@host/x"}, ".url: it has a password or a token; put it into an environment"),
        (URL | {"url": "https://host/x?X-Amz-Signature=hunter2"}, ".url: its query may have credentials; put it into"),
        (URL | {"url": f"https://host/x?v={'hunter2' * 4}"}, ".url: its query may have credentials; put it into"),
        (URL | {"url": "https://host/x#token=hunter2"}, ".url: its query may have credentials; put it into"),
        (URL | {"url": "s3://me:hunter2@bucket/x"}, ".url: it has a password or a token; put it into"),
        (
            DVC | {"repo": "https://me:hunter2@host/x"},
            ".repo: it has a password or a token; put it into an environment",
        ),
        ({"kind": "cifar10"}, ": input tag 'cifar10' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_a_mistake_in_a_source_names_the_key_without_the_kind(source: dict[str, Any], message: str) -> None:
    line = error(put("download_pairs.source", source))
    assert line.startswith(f"params.yaml: download_pairs.source{message}")
    assert "hunter2" not in line


URLS = ["https://host/a?download=1", "https://$USER:$TOKEN@host/a", "https://me:$TOKEN@host/a", "s3://b/a", "$URL"]


@pytest.mark.parametrize(
    "source",
    [
        *({"kind": "path", "path": "x", "sha256": pin} for pin in (None, "...", "abc", 0, "F" * 64)),
        *(URL | {"url": url} for url in URLS),
        DVC | {"repo": "git@host:team/data.git"},
        DVC | {"repo": "ssh://git@host/team/data.git"},
        HUB | {"revision": None},
        HUB | {"revision": "main", "files": {"a.jsonl": None}},
    ],
)
def test_a_pin_may_be_missing_until_the_stage_runs(source: dict[str, Any]) -> None:
    tree = copy.deepcopy(TREE)
    put("download_pairs.source", source)(tree)
    check_params(tree, PARAMS)


@pytest.mark.parametrize("source", [HUB, {"kind": "path", "path": "x", "sha256": "0" * 64}])
def test_every_key_takes_every_kind_of_source(source: dict[str, Any]) -> None:
    tree = copy.deepcopy(TREE)
    for section, key in [("download_model", "source"), ("download_evals", "winogrande"), ("download_images", "source")]:
        tree[section][key] = source
    assert check_params(tree, PARAMS).download_evals.winogrande.kind == source["kind"]


def test_an_adapter_is_a_folder() -> None:
    """A source of one file cannot be one."""
    tree = copy.deepcopy(TREE)
    for source in (HUB, {"kind": "path", "path": "x", "sha256": None}, None):
        tree["download_model"]["adapter"] = source
        check_params(tree, PARAMS)
    tree["download_model"]["adapter"] = {"kind": "url", "url": "https://localhost/a", "sha256": None}
    with pytest.raises(ParamsError, match=r"params\.yaml: download_model\.adapter: input tag 'url'"):
        check_params(tree, PARAMS)


@pytest.mark.slow
@given(
    key=st.sampled_from(sorted([*TREE, *flatten(TREE)])),
    value=st.sampled_from([None, [], {}, "x", -1, float("inf"), [[]]]),
)
def test_no_value_ends_in_a_traceback(key: str, value: Any) -> None:
    tree = copy.deepcopy(TREE)
    put(key, value)(tree)
    line = "params.yaml: "
    try:
        check_params(tree, Path("params.yaml"))
    except ParamsError as caught:
        line = str(caught)
    assert line.startswith("params.yaml: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "edit",
    [
        put("loss", {"sigmoid": 0.8, "sft": 1.0}),
        put("constraints", {"kl": {"threshold": 1.0, "multiplier": 0.1, "dual_rate": 0.0}}),
        put("dpo_text.adapter", {"kind": "full"}),
        put("dpo_text.adapter", {"kind": "prefix", "tokens": 8}),
        put("dpo_text.adapter.target_modules", ["q_proj"]),
        put("dpo_text.reference", {"update": "polyak", "alpha": 0.001, "every": None, "logps": "live"}),
        put("dpo_image.training.schedule", {"kind": "step", "epochs": 6, "factor": 0.9}),
        put("dpo_image.training.optimizer", {"kind": "sgd", "momentum": 0.9}),
        put("download_resnet.source", {"kind": "path", "path": "x", "sha256": "0" * 64}),
    ],
)
def test_keys_with_several_forms_take_each_form(edit: Edit) -> None:
    tree = copy.deepcopy(TREE)
    edit(tree)
    assert flatten(check_params(tree, PARAMS)) == flatten(tree)


def test_an_integer_is_accepted_for_a_float() -> None:
    tree = copy.deepcopy(TREE)
    tree["beta"] = 1
    assert check_params(tree, PARAMS).beta == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "not valid YAML: "),
        (b"a: 1\na: 2", "not valid YAML: "),
        (b"a: \xff", "not valid YAML: "),
        (b"- a", "expected a mapping of keys to values at the top level"),
        (b"", "expected a mapping of keys to values at the top level"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_where_to_run() -> None:
    with pytest.raises(ParamsError, match=r"^nowhere\.yaml: not found; run from the repository root$"):
        load_params(Path("nowhere.yaml"))


def test_flatten_makes_dotted_keys_and_keeps_lists() -> None:
    assert flatten({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": None}
    assert flatten({"a": {}, "b": {"c": {}}}) == {"a": {}, "b.c": {}}


def test_every_key_is_commented() -> None:
    """The comment is on the key's line, on the first line with a key of that name, or on separate lines above."""
    explained: set[str] = set()
    bare = []
    for number, line in enumerate(PARAMS.read_text("utf-8").splitlines(), 1):
        content, _, comment = line.partition("#")
        key, colon, value = content.strip().partition(":")
        if not content.strip():
            explained |= set(re.findall(r"[a-z0-9_]+", comment))
        elif comment:
            explained.add(key)
        elif colon and value and key not in explained:
            bare.append(f"params.yaml:{number}: {key} has no comment")
            explained.add(key)  # report it once
    assert not bare, "\n" + "\n".join(bare)
