"""docs/losses.md, made from the losses themselves: `make docs` writes it, a test holds it against the code."""

import inspect
import re
from typing import TYPE_CHECKING

from prefdag.config.loss_options import LossOptions
from prefdag.dpo.losses import EXTRAS, LOSSES, Loss
from prefdag.dpo.options import used_options

if TYPE_CHECKING:
    from prefdag.config.loss import LossName

INTRO = """# Losses

Generated from `prefdag/dpo/losses.py` by `make docs`; do not edit.

A response's log-ratio is log pi(y|x) - log pi_ref(y|x), its reward r is beta times its score; h is the chosen score minus
the rejected one, z = beta h, s the sigmoid, e the `label_smoothing`. The score is the log-ratio unless the table says
otherwise. `loss` in `params.yaml` is a name, or a weighted sum of losses with one kind of score (MPO, arXiv:2411.10442):

```sh
dvc exp run -S loss=ipo -S loss_options.reduction=mean
dvc exp run -S 'loss={sigmoid: 0.8, bco: 0.2, sft: 1.0}'
```
"""
OPTIONS = """
## Options

They stand in `loss_options`; null is what the paper takes, or nothing. One that a loss does not use stops the run.

| option | losses that take it |
|---|---|
"""
NOTES = """
`f_alpha` goes with `f_divergence: alpha`; `f_divergence` does not go with `reference_free`, nor `ld_alpha` with
`reduction: mean`. In a sum, an option must be one that all its losses of preference take, or a loss's own.

Losses marked *joint* look at all rows of an optimiser step. They, too, do not depend on `micro_batch_size`: the trainer
computes the scores of the whole step first, then the gradient, micro-batch by micro-batch (GradCache, arXiv:2101.06983).
*Unpaired*: rows with a chosen or a rejected response alone will do (`validate_pairs.format: unpaired`).
"""


def page() -> str:
    """The whole page as Markdown."""
    head = "\n| loss | formula | its own options | kind | paper |\n|---|---|---|---|---|\n"
    rows = "".join(f"{row(name, loss)}\n" for name, loss in LOSSES.items())
    takers = {key: [name for name in LOSSES if name != "sft" and key in taken(name)] for key in options()}
    listed = "".join(f"| {key} | {', '.join(names)} |\n" for key, names in takers.items())
    return INTRO + head + rows + OPTIONS + listed + NOTES


def row(name: "LossName", loss: Loss) -> str:
    """A loss as a row of the table."""
    text = inspect.getdoc(loss.function) or ""
    formula = re.split(r"\n\s*\n", text)[0].replace("\n", " ").replace("|", "\\|")
    paper = re.search(r"arXiv:\d{4}\.\d{5}(v\d)?(, (eq\.|section|table) \d+(\.\d+)?( and \d+)?)?", text)
    own = ", ".join(f"{key} {default:g}" for key, default in loss.keywords.items() if key not in EXTRAS)
    kinds = [loss.score.replace("_", " ")] if loss.score != "logratios" else []
    kinds += [word for word, holds in (("joint", loss.jointly), ("unpaired", loss.unpaired)) if holds]
    return f"| {name} | {formula} | {own} | {', '.join(kinds)} | {paper[0] if paper else ''} |"


def options() -> list[str]:
    """All options, in the order of params.yaml."""
    return list(LossOptions.__dataclass_fields__)


def taken(name: "LossName") -> set[str]:
    """The options that a loss takes, each by itself or with the one that it belongs to."""
    used = used_options({name: 1.0}, {})
    return used | (used_options({name: 1.0}, {"f_divergence": "alpha"}) if "f_divergence" in used else set())


if __name__ == "__main__":
    print(page(), end="")
