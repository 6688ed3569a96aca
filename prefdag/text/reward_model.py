"""A reward model: a language model with a head of one number in the place of its output layer, trained on preference pairs.

The reward of a response is what the head says at its last token. sigmoid(r(x, y_w) - r(x, y_l)) is the probability that y_w is
preferred to y_l (Bradley and Terry 1952).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.lifecycle.progress import progress
from prefdag.stats.reward_model import figures
from prefdag.text.rewards import load, reward
from prefdag.text.scoring.formatted import FormattedPairs, LazyRows
from prefdag.text.scoring.packing import Group, pack
from prefdag.text.scoring.states import head, response_states
from prefdag.text.trainable import add_adapter, checkpoint_gradients, copy_tokenizer, frozen_copy, load_for_training
from prefdag.train.task import LossAndMetrics, Task

if TYPE_CHECKING:
    from prefdag.config.reward_model import RewardModel
    from prefdag.text.model import Policy

KEY = "reward_model.adapter"  # in params.yaml, for error messages
HEAD = "score.weight"  # the head's name in transformers' sequence classifiers


class RewardNetwork(nn.Module):
    """`policy` with a new head: called like a language model, it returns rewards, (1, S, 1), in the place of logits.

    The head starts at zero, so all rewards do, and the first loss is ln 2.
    """

    def __init__(self, policy: "Policy") -> None:
        super().__init__()
        self.policy = policy  # under this name, `states.py` finds the language model inside
        layer: Any = policy.get_output_embeddings()
        self.head = nn.Linear(layer.in_features, 1, bias=False, device=process().device)
        nn.init.zeros_(self.head.weight)
        if layer.weight is not policy.get_input_embeddings().weight:
            layer.requires_grad_(False)  # it is not used

    def forward(self, **inputs: Any) -> Any:
        output = self.policy(**inputs)  # whose output layer is skipped: these are hidden states
        output.logits = self.head(output.logits)
        return output


def new_reward_network(folder: Path, config: "RewardModel") -> RewardNetwork:
    """The language model in `folder` with a new head and, but for full fine-tuning, a new adapter.

    Raises:
        ParamsError: its architecture has no sequence classifier of this kind, or as `add_adapter`.
    """
    model = load_for_training(folder, config.adapter, KEY)
    names = model.state_dict().keys()
    policy = add_adapter(model, config.adapter, config.seed, KEY)
    if config.gradient_checkpointing:
        checkpoint_gradients(policy)
    if head(policy) is None or classifier_of(folder).state_dict().keys() - names != {HEAD}:
        raise ParamsError(
            f"params.yaml: reward_model.train: prefdag cannot train a reward model on {folder}, whose kind of model has no "
            "sequence classifier with one linear head; set it to false, and name a published one"
        )
    return RewardNetwork(policy)


def classifier_of(folder: Path) -> PreTrainedModel:
    """The sequence classifier with one label that has the architecture of the model in `folder`, without weights."""
    safe = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, num_labels=1, **safe)
    # Often it is the token that ends a response, and the head would look for the last token before it.
    config.pad_token_id = None
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError:
        raise ParamsError(
            f"params.yaml: reward_model.train: transformers has no sequence classifier for {config.model_type} models; "
            "set it to false, and name a published reward model"
        ) from None
    return model


def save(network: RewardNetwork, folder: Path, source: Path) -> None:
    """Write the reward model for transformers' AutoModelForSequenceClassification, with LoRA merged, and the tokenizer.

    Args:
        source: the folder of the language model that it was trained from.
    """
    classifier = classifier_of(source)
    merged = frozen_copy(network.policy) if isinstance(network.policy, PeftModel) else network.policy
    own = merged.state_dict() | {HEAD: network.head.weight.detach()}
    classifier.save_pretrained(folder, state_dict={name: own[name] for name in classifier.state_dict()})
    copy_tokenizer(source, folder)


def rewards(network: nn.Module, groups: Sequence[Group]) -> Tensor:
    """The rewards of all responses, in the order of the groups: (responses,), float32, in one forward pass."""
    # A token more, which nothing sees: the states that predict the responses then include that of each last token.
    longer = [Group(prompt, tuple(np.append(ids, 0) for ids in responses)) for prompt, responses in groups]
    packed = pack(longer).to(next(network.parameters()).device)
    lengths = torch.tensor([len(ids) for group in longer for ids in group.responses], device=packed.targets.device)
    return response_states(network, packed)[lengths.cumsum(0) - 1, 0].float()


def with_both(pairs: FormattedPairs) -> FormattedPairs:
    """The rows that have two responses; the others say nothing about preference between two."""
    return pairs.take(np.flatnonzero((pairs.lengths > 0).all(axis=1)))


def both_groups(pairs: FormattedPairs) -> Sequence[Group]:
    """Each prompt with its chosen and its rejected response, which every row must have (`with_both`)."""
    return LazyRows(range(len(pairs)), lambda row: Group(pairs.part(row, 0), (pairs.part(row, 1), pairs.part(row, 2))))


def check_lengths(pairs: FormattedPairs, network: RewardNetwork, where: str) -> None:
    """Raises `DataError` if a row, with the token more that `rewards` appends, has more tokens than the model has positions."""
    window = getattr(network.policy.config, "max_position_embeddings", None)
    tokens = pairs.lengths[:, 0] + pairs.lengths[:, 1:].max(axis=1) + 1
    if window and len(pairs) and int(tokens.max()) > window:
        raise DataError(
            f"{where}: {pairs.ids[int(tokens.argmax())]}: {int(tokens.max()) - 1} tokens; a reward model of this kind takes up "
            f"to {window - 1}: lower format_pairs.max_response_tokens"
        )


def heldout(folder: Path, pairs: FormattedPairs) -> dict[str, Any]:
    """The figures of the reward model that `save` wrote to `folder`, on pairs that all have two responses."""
    model = load(folder)
    rows = []
    with progress(len(pairs), "pair", "held-out pairs") as bar:
        for prompt, responses in both_groups(pairs):
            rows.append([reward(model, prompt, response) for response in responses])
            bar.update()
    chosen, rejected = torch.tensor(rows, dtype=torch.float64).T
    chosen_tokens, rejected_tokens = torch.tensor(pairs.lengths[:, 1:]).T
    return figures(chosen, rejected, torch.tensor(pairs.preference), (chosen_tokens, rejected_tokens))


def reward_task(pairs: FormattedPairs) -> Task:
    """The Bradley-Terry loss of pairs that all have two responses."""
    groups, labels = both_groups(pairs), torch.tensor(pairs.preference, dtype=torch.float32)

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        chosen, rejected = rewards(model, [groups[i] for i in rows]).view(-1, 2).unbind(1)
        return {"chosen": chosen, "rejected": rejected, "preference": labels[list(rows)].to(chosen)}

    return Task(forward, bradley_terry, [1.0] * len(pairs), pairs.ids)


def bradley_terry(outputs: Mapping[str, Tensor]) -> LossAndMetrics:
    """-p log sigmoid(m) - (1 - p) log sigmoid(-m), with the margin m = r(x, y_w) - r(x, y_l) and the preference p.

    arXiv:1706.03741, eq. 1; with p = 1, arXiv:2203.02155, eq. 1.
    """
    margin, p = outputs["chosen"] - outputs["rejected"], outputs["preference"]
    losses = -p * F.logsigmoid(margin) - (1 - p) * F.logsigmoid(-margin)
    metrics = {name: outputs[name].detach() for name in ("chosen", "rejected")}
    metrics |= {"margin": margin.detach(), "accuracy": (margin > 0).float()}
    return losses, {f"rewards/{name}": value for name, value in metrics.items()}
