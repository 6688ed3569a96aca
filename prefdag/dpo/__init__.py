"""Preference losses and reference models, shared by both tracks. Depends on neither text nor images.

In a notebook, `from prefdag import dpo` gives `dpo.loss`, `dpo.loss_table`, `dpo.train` and `dpo.Loss`; see docs/notebook.md.
"""


def __getattr__(name: str) -> object:
    """What notebooks use, imported at its first use (PEP 562): a stage imports nothing of it."""
    from importlib import import_module

    places = {"loss": "arrays", "loss_table": "arrays", "train": "training", "Loss": "arrays"}
    if name not in places:
        raise AttributeError(f"module 'prefdag.dpo' has no attribute {name!r}")
    return getattr(import_module(f"prefdag.notebook.{places[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), "Loss", "loss", "loss_table", "train"]
