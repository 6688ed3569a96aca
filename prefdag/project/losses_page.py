"""Generates docs/losses.md from the losses. `make docs` writes it; a test compares it with the code."""

import inspect
import re

from prefdag.config.loss_options import LossOptions
from prefdag.dpo.losses import EXTRAS, LOSSES, Loss
from prefdag.dpo.options import used_options

INTRO = """# Losses

Generated from `prefdag/dpo/losses.py` by `make docs`; do not edit.

A loss takes one input per response: its log-ratio log pi(y|x) - log pi_ref(y|x), unless the table names another. A
response's reward r is beta times its input. h is the chosen response's input minus the rejected one's, z = beta h, s the
sigmoid, e the `label_smoothing`. `loss` in `params.yaml` is a name, or a weighted sum of losses that take the same input
(MPO, arXiv:2411.10442):

```sh
dvc exp run -S loss=ipo -S loss_options.reduction=mean
dvc exp run -S 'loss={sigmoid: 0.8, bco: 0.2, sft: 1.0}'
```

[notebook.md](notebook.md#losses-of-your-own) explains how to add a loss of your own.
"""
OPTIONS = """
## Options

Set in `loss_options`. null means the paper's value, or off. An option that the loss does not use stops the run.

| option | losses that take it |
|---|---|
"""
NOTES = """
`f_alpha` needs `f_divergence: alpha`. `f_divergence` cannot be combined with `reference_free`, nor `ld_alpha` with
`reduction: mean`. In a sum, an option must be taken by all its preference losses, or be one loss's own.

*Joint* losses depend on all rows of an optimiser step together. They do not depend on `micro_batch_size` either: the trainer
first computes the log-probabilities of the whole step, then the gradient per micro-batch (GradCache, arXiv:2101.06983).
*Unpaired* losses also take rows with only a chosen or only a rejected response (`validate_pairs.format: unpaired`).
"""


def page() -> str:
    """The whole page as Markdown."""
    head = "\n| loss | formula | its own options | kind | paper |\n|---|---|---|---|---|\n"
    rows = "".join(f"{row(name, loss)}\n" for name, loss in LOSSES.items())
    takers = {key: [name for name in LOSSES if name != "sft" and key in taken(name)] for key in options()}
    listed = "".join(f"| {key} | {', '.join(names)} |\n" for key, names in takers.items())
    return INTRO + head + rows + OPTIONS + listed + NOTES


def row(name: str, loss: Loss) -> str:
    """One loss as a row of the table."""
    text = inspect.getdoc(loss.function) or ""
    formula = re.split(r"\n\s*\n", text)[0].replace("\n", " ").replace("|", "\\|")
    paper = re.search(r"arXiv:\d{4}\.\d{5}(v\d)?(, (eq\.|section|table) \d+(\.\d+)?( and \d+)?)?", text)
    own = ", ".join(f"{key} {default:g}" for key, default in loss.keywords.items() if key not in EXTRAS)
    kinds = [loss.input.replace("_", " ")] if loss.input != "logratios" else []
    kinds += [word for word, holds in (("joint", loss.jointly), ("unpaired", loss.unpaired)) if holds]
    return f"| {name} | {formula} | {own} | {', '.join(kinds)} | {paper[0] if paper else ''} |"


def options() -> list[str]:
    """All options of the built-in losses, in the order of params.yaml."""
    return [name for name in LossOptions.__dataclass_fields__ if name != "own"]


def taken(name: str) -> set[str]:
    """The options that a loss takes, including f_alpha, which needs another option."""
    term = {name: LOSSES[name]}
    used = used_options(term, {})
    return used | (used_options(term, {"f_divergence": "alpha"}) if "f_divergence" in used else set())


if __name__ == "__main__":
    print(page(), end="")
