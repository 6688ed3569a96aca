"""Writes the `deps` and `params` of every stage in every dvc.yaml from the code, and the table of reruns in docs/pipeline.md.

docs/pipeline.md tells the rule. `cmd`, `outs`, `metrics` and `plots` are written by hand. `make dag` runs this module:

    python -m prefdag.project.dag
"""

import ast
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from prefdag import check_code
from prefdag.config.params import Params
from prefdag.dependencies import CODE, EXEMPT, LIBRARY, arguments, artifacts, code, parsed
from prefdag.runtime.artifacts import writing
from prefdag.runtime.dvc_files import files, names, read_dag, script

DVC, PAGE = Path("dvc.yaml"), Path("docs/pipeline.md")
PLANNER = "plan_rounds"
BEGIN, END = "<!-- written by `make dag` -->\n", "<!-- end -->\n"


def params(tree: ast.Module) -> list[str]:
    """The keys of params.yaml that a script's `main` takes; `params` stands for all of them."""
    taken = arguments(tree)
    return [field.name for field in fields(Params)] if taken == ["params"] else taken


def planned(root: Path) -> list[str]:
    """The scripts of stages under `foreach`. Their code and parameters are dependencies of `PLANNER`, not of each round.

    It writes a hash of them into the plan of each round that is on. So DVC compares and records them once, and a round that
    is off does not run again for them.
    """
    return list(dict.fromkeys(script(name) for name in read_dag(root / DVC) if name != script(name)))


def hashes(stage: str, by_plan: list[str], root: Path) -> list[str]:
    """What a stage depends on for its code: the hashes of it, or for `check_code.STAGE`, which writes them, all of the code."""
    if stage == check_code.STAGE:
        return [path for path in (*(folder.rstrip("/") for folder in CODE), LIBRARY) if (root / path).exists()]
    readers = [] if stage in by_plan else [stage, *by_plan] if stage == PLANNER else [stage]
    return [check_code.hashes_of(reader).as_posix() for reader in readers]


def written(dag: dict[str, Any], root: Path) -> dict[str, Any]:
    """Set `deps` and `params` of every stage in `dag`, the content of dvc.yaml, from the scripts below `root`, in place."""
    by_plan = planned(root)
    for stage, stages in dag["stages"].items():
        entry = stages.get("do", stages)  # of a `foreach`
        tree = parsed(stage, root)
        outs = names(entry, "outs", "metrics", "plots")
        for key, values in {
            "deps": [*(path for path in artifacts(tree) if path not in outs), *hashes(stage, by_plan, root)],
            "params": [] if stage in by_plan else params(tree),
        }.items():
            if values != list(entry.get(key, [])):
                sequence = entry[key] = CommentedSeq(values)
                if key == "params":
                    sequence.fa.set_flow_style()
    return dag


# Which stages a change of a module reruns


def table(root: Path) -> str:
    """A Markdown table of the modules, by package, and the stages that a change reruns; then a table of `EXEMPT`."""
    stages = list(dict.fromkeys(map(script, read_dag(root / DVC))))
    readers: dict[str, list[str]] = {}
    for stage in stages:
        for path in code(stage, root):
            readers.setdefault(path, []).append(stage)
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path in sorted(_modules(root) | readers.keys()):
        if not path.startswith("stages/") and path not in EXEMPT:
            room, _, name = path.removeprefix("prefdag/").rpartition("/")
            rows.setdefault((room, tuple(readers.get(path, ()))), []).append(name.removesuffix(".py"))
    lines = ["| room | modules | a change reruns |", "|---|---|---|"]
    for (room, rerun), modules in sorted(rows.items(), key=lambda row: (row[0][0], -len(row[0][1]))):
        shown = "every stage" if len(rerun) == len(stages) else ", ".join(rerun) or "nothing"
        lines.append(f"| {room} | {', '.join(modules)} | {shown} |")
    lines += ["", "Exempt, since they cannot change an output:", "", "| module | what it does |", "|---|---|"]
    lines += [f"| `{path}` | {reason} |" for path, reason in EXEMPT.items()]
    return "\n".join(lines) + "\n"


def _modules(root: Path) -> set[str]:
    files = (root / CODE[0]).rglob("*.py")
    return {file.relative_to(root).as_posix() for file in files if file.name != "__init__.py"}


def page(text: str, root: Path) -> str:
    """The text of docs/pipeline.md with a new table."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(root)}\n{END}{rest.partition(END)[2]}"


def dump(dag: dict[str, Any]) -> str:
    """The text of dvc.yaml, with comments and formatting kept."""
    stream = io.StringIO()
    _yaml().dump(dag, stream)
    return stream.getvalue()


def load(path: Path) -> dict[str, Any]:
    """Load dvc.yaml with its comments, for `dump`."""
    read_dag(path)  # reports a mistake in one line
    tree: dict[str, Any] = _yaml().load(path)
    return tree


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def main(root: Path = Path()) -> None:
    """Write every dvc.yaml and, if there is one, the table in docs/pipeline.md below `root`."""
    # All are computed before one is written. That is safe: the table reads only stage names from dvc.yaml.
    texts = {path: dump(written(load(path), root)) for path in files(root / DVC)}
    if (root / PAGE).exists():
        texts[root / PAGE] = page((root / PAGE).read_text("utf-8"), root)
    for path, text in texts.items():
        with writing(path) as temporary:
            temporary.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
