"""A stage with a given body, in a project of its own."""

import shutil
from pathlib import Path
from textwrap import dedent

from paths import ROOT


def make_project(folder: Path) -> None:
    """A folder in which a stage can start: parameters, and the modules that are no stages."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "stages").mkdir()
    for name in ("__init__.py", "losses.py"):
        shutil.copy(ROOT / "stages" / name, folder / "stages")


def write_stage(folder: Path, head: str, body: str) -> None:
    """The stage `toy`: `head` is the module up to `main`, which it begins, and `body` the last line of `main`."""
    code = f"{dedent(head)}{' ' * 4}{body}\n\nif __name__ == '__main__':\n    main.run()\n"
    (folder / "stages/toy.py").write_text(code)
