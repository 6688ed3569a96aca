"""DPO on a dataframe: the pipeline's own readers, template, scoring, losses and trainer, without DVC, MLflow or params.yaml."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import AutoTokenizer

from prefdag.distributed.process import process
from prefdag.dpo.preference import Preference
from prefdag.lifecycle.errors import DataError, ParamsError, SourceError
from prefdag.notebook.settings import (
    LOSS,
    OTHER,
    ROWS,
    TRAINING,
    Settings,
    as_arguments,
    split_options,
    terms_of,
    train_settings,
)
from prefdag.pairs.annotators import merge_annotators
from prefdag.pairs.formatting import format_pairs
from prefdag.pairs.schema import ignored_columns, read_pairs, write_pairs
from prefdag.runtime.artifacts import read_json, read_table, write_json
from prefdag.text import trainable
from prefdag.text.dpo_run import dpo_run, new_policy
from prefdag.text.model import ADAPTER_CONFIG, prepare_generation
from prefdag.text.scoring.logps import all_pair_logps
from prefdag.text.scoring.rows import read_split
from prefdag.tokenizer.files import positions
from prefdag.tokenizer.tokenizer import ChatTokenizer
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefdag.text.model import Policy
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.text.scoring.logps import Pair, PairLogps

ROWS_FILE = "frame.jsonl"
MODEL_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained policy, ready to generate, and how it was trained."""

    policy: "Policy"  # a PeftModel, or the model itself if all weights were trained
    tokenizer: Any  # transformers' tokenizer of the model
    history: pd.DataFrame  # a row per optimiser step, before its update
    validation: pd.DataFrame  # a row per validation; empty without val_fraction
    model: str  # the reference: a folder, or a repository on the hub
    revision: str | None
    folder: Path  # the reference's files

    def save(self, folder: str | Path) -> Path:
        """Write the policy (the adapter, or the whole model), the tokenizer and both histories to a new folder.

        `AutoPeftModelForCausalLM.from_pretrained(folder)` (or `AutoModelForCausalLM`, for a whole model) loads it.

        Raises:
            DataError: the folder exists and is not empty.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists and is not empty; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        trainable.save_policy(self.policy, folder, self.folder)
        if (folder / ADAPTER_CONFIG).exists():
            config = read_json(folder / ADAPTER_CONFIG)
            write_json(
                folder / ADAPTER_CONFIG, config | {"base_model_name_or_path": self.model, "revision": self.revision}
            )
        trainable.copy_tokenizer(self.folder, folder)
        for name, table in (("history", self.history), ("validation", self.validation)):
            table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        return folder


def train(
    frame: "pd.DataFrame | Iterable[Mapping[str, Any]]",
    model: str | Path,
    *,
    revision: str | None = None,
    loss: Any = "sigmoid",
    beta: float = 0.1,
    seed: int = 0,
    adapter: str | Mapping[str, Any] = "lora",
    reference: Mapping[str, Any] | None = None,
    constraints: Mapping[str, Any] | None = None,
    **options: Any,
) -> Trained:
    """Train a language model with DPO on the rows of a dataframe. The model itself is the reference.

        trained = dpo.train(frame, "models/base", beta=0.1, epochs=2)
        trained.history.plot(x="step", y="loss")

    The steps are those of the pipeline's stages, so the same rows and settings give the same weights. The data gate is not
    run: an unreadable row stops, but duplicates and contradictions are not looked for.

    Args:
        frame: columns as in a file for the pipeline (docs/data.md), such as prompt, chosen, rejected: text or messages.
        model: a folder with a causal language model (safetensors), or a repository on the Hugging Face hub.
        revision: for a repository: its commit, 40 hex digits.
        loss: a name (see `dpo.loss_table`), a function like those in prefdag/dpo/losses.py, a `dpo.Loss`, or a weighted sum
            of these: {"sigmoid": 0.8, "sft": 0.2}.
        seed: of the data order, the adapter and dropout.
        adapter: lora, qlora, prefix or full, or a mapping as in params.yaml; what it leaves out keeps its default.
        reference: {"update": "polyak", "alpha": 0.001} and so on, as in params.yaml; None: it does not move.
        constraints: as in params.yaml.
        options: all optional.
            Training: epochs=1, batch_size=8, micro_batch_size=4, optimizer="adamw", learning_rate=1e-4, weight_decay=0.0,
            warmup_fraction=0.1, schedule="cosine", max_grad_norm=1.0, precision="float32", validate_every=0.1,
            gradient_checkpointing=False, tokens_per_batch=4096 (when the reference is scored).
            Rows: template="chat", template_options={}, max_prompt_tokens="auto", max_response_tokens="auto" (lengths that
            hold 95% of the rows), max_auto_tokens=2048 (of both together), max_left_out=0.05, max_rendered=0.1,
            val_fraction=0.0 (share of the prompts held out for validation). The column split keeps test rows out of training.
            The loss: `loss_options` of params.yaml, such as label_smoothing, and those of a function.

    Raises:
        ParamsError: no such loss or option, or a value out of range.
        DataError: a row that cannot be read, or a folder without a model.
        NumericError: a loss or gradient is not finite.
        KeyboardInterrupt: interrupted; nothing is kept.
    """
    terms, given = split_options(terms_of(loss), options, {**TRAINING, **ROWS, **OTHER, **LOSS})
    settings = train_settings(beta, seed, adapter, reference, constraints, given)
    with as_arguments():
        preference = Preference(terms.weights, beta, settings.loss_options, settings.constraints, terms.own)
        preference.check_reference(settings.dpo_text.reference, "reference")
    folder = _model_folder(model, revision)
    rows = settings.format_pairs
    with TemporaryDirectory() as temporary, as_arguments(ROWS_FILE):
        chat = ChatTokenizer(folder, rows.template, rows.template_options)
        splits = _formatted(frame, folder, chat, settings, Path(temporary))
        policy = new_policy(folder, settings.dpo_text, seed)
        history = _fit(policy, splits, preference, settings, Checkpoints(Path(temporary, "checkpoints")))
    prepare_generation(policy)
    _stop_at(policy, chat.stop_ids)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.chat_template = chat.jinja()
    tables = (pd.DataFrame(history.train), pd.DataFrame(history.validation))
    return Trained(policy, tokenizer, *tables, model=str(model), revision=revision, folder=folder)


def _stop_at(policy: "Policy", stop_ids: "Sequence[int]") -> None:
    """Let `generate` stop where an answer ends in training, and at the model's own stop ids."""
    model: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    model.generation_config.eos_token_id = list(stop_ids)


def _fit(
    policy: "Policy",
    splits: Mapping[str, "FormattedPairs"],
    preference: Preference,
    settings: Settings,
    checkpoints: Checkpoints,
) -> History:
    training = settings.dpo_text.training

    def cached(split: str, ids: "Sequence[str]", pairs: "Sequence[Pair]") -> "PairLogps":
        half = training.precision == "bfloat16"  # as the policy is scored
        with torch.autocast(process().device.type, torch.bfloat16) if half else nullcontext():
            return all_pair_logps(trainable.before_training(policy), pairs, settings.tokens_per_batch, "reference")

    run = dpo_run(policy, splits, preference, settings.dpo_text, cached, lambda split: "frame")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return fit(
        policy,
        run.tasks,
        training,
        seed=settings.seed,
        checkpoints=checkpoints,
        log=lambda step, metrics: None,
        hooks=run.hooks,
    )


def _formatted(
    frame: Any, model: Path, tokenizer: ChatTokenizer, settings: Settings, folder: Path
) -> "dict[str, FormattedPairs]":
    """The rows of the frame as the stage `format_pairs` writes them, by split; "val" only if there are such rows."""
    raw, out, pairs_file = folder / "raw", folder / "pairs", folder / "pairs.parquet"
    raw.mkdir()
    out.mkdir()
    records = (frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(list(frame))).to_dict("records")
    if not records:
        raise DataError("frame: has no rows")
    lines = [json.dumps(record, default=_plain) for record in map(_without_nan, records)]
    (raw / ROWS_FILE).write_text("\n".join(lines) + "\n", "utf-8")
    pairs, _ = merge_annotators(read_pairs(raw, "auto", named_by="frame"))
    faulty = pairs[pairs["fault"].notna()]
    if len(faulty):
        first = faulty.iloc[0]
        column = "" if pd.isna(first["fault_column"]) else f"{first['fault_column']}: "
        more = f" ({len(faulty)} such rows)" if len(faulty) > 1 else ""
        raise DataError(f"{first['source']}: {column}{first['fault']}{more}")
    if ignored := ignored_columns(pairs):
        listed = ", ".join(f"{name} ({rows})" for name, rows in ignored.items())
        logger.warning("columns that were not read, with the rows that have them: %s", listed)
    write_pairs(pairs_file, pairs)
    rows = settings.format_pairs
    report = format_pairs(pairs_file, out, folder / "changes.csv", tokenizer, rows, positions(model))
    written = report.summary["rows"]
    splits = {split: read_split(out, split) for split in ("train", "val") if split == "train" or written[split]}
    return {split: replace(each, ids=_row_numbers(out / f"{split}.parquet")) for split, each in splits.items()}


def _row_numbers(path: Path) -> list[str]:
    """The number in the frame of each formatted row: errors name rows by it."""
    return [source.rpartition(":")[2] for source in read_table(path, columns=["source"])["source"].to_pylist()]


def _without_nan(record: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with null for what pandas calls missing."""

    def missing(value: Any) -> bool:
        return value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)

    return {str(key): None if missing(value) else value for key, value in record.items()}


def _plain(value: Any) -> Any:
    """A NumPy value, which a dataframe read from parquet has, as JSON's own."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date):  # also a datetime or a timestamp
        return value.isoformat()
    raise DataError(f"frame: a {type(value).__name__} in a row; use text, numbers, lists and dictionaries")


def _model_folder(model: str | Path, revision: str | None) -> Path:
    """The folder with the model's files, from the hub's cache if `model` is a repository. Raises `DataError`."""
    folder = Path(model).expanduser()
    if revision is None and not folder.is_dir():
        raise DataError(f"{model}: no such folder; for a repository on the hub, pass revision, its commit")
    if revision is not None:
        folder = _from_hub(str(model), revision)
    if (folder / ADAPTER_CONFIG).exists():
        raise DataError(f"{model}: has an adapter ({ADAPTER_CONFIG}); merge it into its model first")
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise DataError(f"{model}: needs config.json and .safetensors weights; it is no folder of a language model")
    return folder


def _from_hub(repo: str, revision: str) -> Path:
    """The repository's files at a commit, in the hub's own cache."""
    import huggingface_hub
    from huggingface_hub import errors

    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ParamsError(
            f"revision: '{revision}' is no commit; pass its 40 hex digits, which the repository's page shows"
        )
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILES))
    except (errors.HTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise SourceError(f"{repo} at {revision}: cannot be fetched: {' '.join(str(error).split())}") from None
