"""Checkpoints: all that a killed stage needs to resume to the same bits. Safetensors and JSON, never pickle.

They are kept outside the stage's outs, which DVC deletes before a stage runs. Their folder is keyed by everything that
determines the result (`artifacts.stage_key`), so a run never resumes from another run's state.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefdag.distributed.sharding import put, whole_on_first
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, scratch, sha256, stage_key, write_json, writing

log = logging.getLogger(__name__)

STATE, HISTORY, MANIFEST = "state.safetensors", "history.json", "sha256.json"
KEEP = 2  # if the newest is damaged, the one before it is used


@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as named tensors: trainable parameters, buffers, and the state of the optimiser
    and of the hooks (such as a moving reference). Random numbers follow from the step (`random_state.seed_step`)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    hooks: Mapping[str, Tensor] = field(default_factory=dict)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all these tensors by name, detached, on the CPU. All processes must call it; only the first gets them."""
        named: dict[str, Tensor] = {f"model/{name}": p for name, p in self.trainable().items()}
        named |= {f"buffer/{name}": b for name, b in self.model.named_buffers()}
        for name, p in self.trainable().items():
            named |= {f"optimizer/{name}/{key}": value for key, value in self.optimizer.state[p].items()}
        named |= {f"hook/{name}": t for name, t in self.hooks.items()}
        return whole_on_first(named)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "buffer": {}, "optimizer": {}, "hook": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            groups[kind][rest] = tensor
        with torch.no_grad():
            for name, p in self.trainable().items():
                put(p, groups["model"][name])
            for name, b in self.model.named_buffers():
                put(b, groups["buffer"][name])
            for name, t in self.hooks.items():
                put(t, groups["hook"][name])
        for path, tensor in groups["optimizer"].items():
            name, _, key = path.rpartition("/")
            p = self.trainable()[name]
            like = self.optimizer.state[p].get(key)
            if like is None:
                # In the parameter's memory layout: fused optimisers walk both in memory order.
                like = torch.empty_like(p, dtype=tensor.dtype) if tensor.shape == p.shape else tensor.to(p.device)
            put(like, tensor)
            self.optimizer.state[p][key] = like


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in `folder`. The newest `KEEP` are kept."""

    folder: Path

    @classmethod
    def of_stage(cls, stage: str, params: Mapping[str, Any]) -> "Checkpoints":
        """The checkpoints of a stage with these parameters and the current inputs and code."""
        return cls(scratch("checkpoints", stage, stage_key(stage, params)))

    def save(self, step: int, tensors: dict[str, Tensor], train: list[Any], validation: list[Any]) -> None:
        """Write the state before step `step`, atomically, and delete the oldest checkpoint.

        Args:
            tensors: those of `TrainState.tensors`.
        """
        with writing(self.folder / f"step-{step:08d}") as folder:
            folder.mkdir()
            save_file(tensors, folder / STATE)
            # Keys keep their order: they become the columns of a table.
            history = json.dumps({"step": step, "train": train, "validation": validation}, indent=2, allow_nan=False)
            (folder / HISTORY).write_text(history, "utf-8")
            write_json(folder / MANIFEST, {name: sha256(folder / name) for name in (STATE, HISTORY)})
        for old in self._newest_first()[KEEP:]:
            shutil.rmtree(old)

    def restore(self, state: TrainState, train: list[Any], validation: list[Any]) -> int:
        """Load the newest intact checkpoint into `state` and extend the histories. Returns the step to resume at, or 0.

        A damaged checkpoint is renamed to damaged-..., and the one before it is used.
        """
        for folder in self._newest_first():
            try:
                manifest = read_json(folder / MANIFEST)
                for name in (STATE, HISTORY):
                    if sha256(folder / name) != manifest[name]:
                        raise DataError(f"{folder / name}: content does not match {MANIFEST}")
            except (DataError, OSError, KeyError, TypeError) as error:
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                log.warning("checkpoint set aside as %s: %s", aside, error)
                continue
            state.load(load_file(folder / STATE))
            history = read_json(folder / HISTORY)
            train += history["train"]
            validation += history["validation"]
            log.info("continuing from step %d", history["step"])
            return int(history["step"])
        return 0

    def clear(self) -> None:
        """Delete all checkpoints, once the run's result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)
