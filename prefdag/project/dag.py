"""Writes the `deps` and `params` of every stage in every dvc.yaml from the code, and the table of reruns in docs/pipeline.md.

docs/pipeline.md tells the rule. `cmd`, `outs`, `metrics` and `plots` are written by hand. `make dag` runs this module:

    python -m prefdag.project.dag
"""

import ast
import functools
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from prefdag.config.params import Params
from prefdag.runtime.artifacts import writing
from prefdag.runtime.dvc_files import files, names, read_dag, script

DVC, PAGE = Path("dvc.yaml"), Path("docs/pipeline.md")
LIBRARY = "requirements.txt"  # pins the library in a project that `prefdag init` made, which has only its stages
CODE = ("prefdag/", "stages/")
CACHE = "__pycache__"  # which modules name too
ARTIFACT = re.compile(r"(data|models|reports|evals)/\S+|\$\{item\.\w+\}")
BEGIN, END = "<!-- written by `make dag` -->\n", "<!-- end -->\n"

# Modules that cannot change an output (see docs/pipeline.md), with the reason.
EXEMPT: Mapping[str, str] = {
    "prefdag/check_params.py": "accepts or rejects params.yaml",
    "prefdag/recorded.py": "refuses outputs that changed since a stage wrote them",
    "prefdag/own_losses/names.py": "accepts or rejects names of losses, options and checks",
    "prefdag/own_losses/checks.py": "accepts or rejects a loss of the user's own",
    "prefdag/tracking/durations.py": "records how long a stage took, outside its outputs",
    "prefdag/lifecycle/environment.py": "turns telemetry off and lets waiting threads sleep",
    "prefdag/lifecycle/errors.py": "defines errors; a stage that fails writes nothing",
    "prefdag/lifecycle/exits.py": "ends a failed stage with one line and an exit code",
    "prefdag/lifecycle/interruption.py": "ends training after a complete step",
    "prefdag/lifecycle/launcher.py": "runs a stage in several processes; the first writes and ends as they end",
    "prefdag/lifecycle/lock.py": "refuses a second run of a stage and ends a stage whose DVC was killed",
    "prefdag/lifecycle/secrets.py": "removes secrets from what is logged and sent to MLflow",
    "prefdag/lifecycle/progress.py": "draws progress bars",
    "prefdag/lifecycle/warm.py": "runs a stage in a process that has its libraries imported",
    "prefdag/lifecycle/version.py": "refuses to run with another version than the one the project pins",
    "prefdag/tracking/delivery.py": "sends spools to MLflow",
    "prefdag/tracking/keys.py": "rewrites the names that MLflow refuses",
    "prefdag/tracking/runs.py": "records runs for MLflow",
    "prefdag/tracking/spool.py": "keeps unsent runs on disk",
    "prefdag/tracking/store.py": "talks to MLflow",
    "prefdag/tracking/trackers.py": "reports runs to TensorBoard and Weights & Biases",
}


# What a stage reads


@functools.cache
def imports(file: str, root: Path) -> frozenset[str]:
    """The project's modules that `file` imports, also inside functions, as paths relative to `root`.

    Packages are left out, since they hold only a docstring, and so are imports for type checkers.
    """
    names: set[str] = set()
    for node in executed(ast.parse((root / file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative import; name the module in full"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {f"{name.replace('.', '/')}.py" for name in names}
    return frozenset(path for path in paths if path.startswith(CODE) and (root / path).is_file())


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those below `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from executed(node)


def reached(file: str, root: Path) -> set[str]:
    """`file` and every module that it imports, directly or indirectly, without `EXEMPT`."""
    modules, queue = {file}, [file]
    while queue:
        new = imports(queue.pop(), root) - modules - EXEMPT.keys()
        modules |= new
        queue += new
    return modules


def code(stage: str, root: Path) -> list[str]:
    """The code that a stage depends on, sorted: modules and the template folders that they read, or the library's pin."""
    modules = reached(f"stages/{stage}.py", root)
    library = set() if (root / CODE[0]).is_dir() else {LIBRARY}
    return sorted(modules | library | {folder for module in modules for folder in _folders(module, root)})


def whole_folders(paths: list[str], root: Path) -> list[str]:
    """`paths`, sorted, with a folder in place of its modules if all of them are listed: DVC is faster with fewer deps."""
    listed, all_modules = set(paths), _modules(root)
    for folder in {Path(path).parent for path in paths}:
        modules = {module for module in all_modules if Path(module).parent == folder}
        plain = not any(any(child.glob("*.py")) for child in (root / folder).iterdir() if child.is_dir())
        if plain and len(modules) > 1 and modules <= listed:
            listed = (listed - modules) | {folder.as_posix()}
    return sorted(listed)


@functools.cache
def _folders(module: str, root: Path) -> frozenset[str]:
    """Folders without modules, beside `module` or above it, that it names: templates and styles."""
    text = (root / module).read_text("utf-8")
    parents = [parent for parent in (root / module).parents if root / CODE[0] in (parent, *parent.parents)]
    return frozenset(
        folder.relative_to(root).as_posix()
        for parent in parents
        for folder in parent.iterdir()
        if folder.is_dir() and folder.name != CACHE and not any(folder.rglob("*.py")) and f'"{folder.name}"' in text
    )


def artifacts(tree: ast.Module) -> list[str]:
    """The data, models and reports that a script names, in its order; for the stages of a `foreach`, as dvc.yaml does."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return list(dict.fromkeys(text for text in constants if isinstance(text, str) and ARTIFACT.fullmatch(text)))


def params(tree: ast.Module) -> list[str]:
    """The keys of params.yaml that a script's `main` takes; `params` stands for all of them.

    A positional-only argument is not one of them (see `prefdag.runtime.stage`).
    """
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    names = [argument.arg for argument in main.args.args + main.args.kwonlyargs]
    return [field.name for field in fields(Params)] if names == ["params"] else names


def written(dag: dict[str, Any], root: Path) -> dict[str, Any]:
    """Set `deps` and `params` of every stage in `dag`, the content of dvc.yaml, from the scripts below `root`, in place."""
    for stage, stages in dag["stages"].items():
        entry = stages.get("do", stages)  # of a `foreach`
        tree = ast.parse((root / "stages" / f"{stage}.py").read_text("utf-8"))
        outs = names(entry, "outs", "metrics", "plots")
        for key, values in {
            "deps": [*(path for path in artifacts(tree) if path not in outs), *whole_folders(code(stage, root), root)],
            "params": params(tree),
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
