"""What a stage depends on: code, data, models, reports and keys of params.yaml. The code is read for it, not imported."""

import ast
import functools
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import sha256

LIBRARY = "requirements.txt"  # pins the library in a project that `prefdag init` made, which has only its stages
CODE = ("prefdag/", "stages/")
READS_DOCSTRINGS = re.compile(r"\b(__doc__|getdoc|getsource)\b")
PLAIN_TEXT = re.compile(r"[rbu]*['\"]", re.IGNORECASE)  # no f-string, which can call something
CACHE = "__pycache__"  # which modules name too
ARTIFACT = re.compile(r"(data|models|reports|evals|labels)/\S+|\$\{item\.\w+\}")

# Modules that cannot change an output (see docs/pipeline.md), with the reason.
EXEMPT: Mapping[str, str] = {
    "prefdag/check_code.py": "refuses code that changed since its hashes were written",
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


@functools.cache
def imports(file: str, root: Path) -> frozenset[str]:
    """The project's modules that `file` imports, also inside functions, as paths relative to `root`.

    Packages are left out, since they hold only a docstring, and so are imports for type checkers.
    """
    names: set[str] = set()
    for node in executed(parse(root / file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise DataError(f"{file}: line {node.lineno}: relative import; name the module in full")
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


def arguments(tree: ast.Module) -> list[str]:
    """The arguments of a script's `main`, without a positional-only one (see `prefdag.runtime.stage`)."""
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return [argument.arg for argument in main.args.args + main.args.kwonlyargs]


def parsed(stage: str, root: Path) -> ast.Module:
    """The script of a stage."""
    return parse(root / "stages" / f"{stage}.py")


def parse(path: Path) -> ast.Module:
    """A module. Raises `DataError` if it is not Python."""
    try:
        return ast.parse(path.read_text("utf-8"))
    except SyntaxError as error:
        row = f"line {error.lineno}: " if error.lineno else ""
        raise DataError(f"{path}: {row}not Python ({error.msg})") from None
    except ValueError as error:  # not UTF-8
        raise DataError(f"{path}: not Python ({error})") from None


# What of the code can change a stage's outputs


def code_hashes(stage: str, root: Path) -> dict[str, str]:
    """The hash of each part of the code that a stage depends on (see `code` and `code_hash`), by path."""
    return {path: code_hash(root / path) for path in code(stage, root)}


def fingerprint(stage: str, sections: Mapping[str, Any], root: Path) -> str:
    """A hash of a stage's code and parameters: everything but data that can change its outputs.

    Args:
        sections: of params.yaml, by key: at least those that the stage takes.
    """
    taken = {key: to_jsonable_python(sections[key]) for key in arguments(parsed(stage, root))}
    return hashlib.sha256(json.dumps([code_hashes(stage, root), taken], sort_keys=True).encode()).hexdigest()


def code_hash(path: Path) -> str:
    """SHA-256 of a file or a folder; of a module, only of what can change what it does (see `statements`)."""
    return _module_hash(path.read_text("utf-8")) if path.suffix == ".py" else sha256(path)


@functools.cache
def _module_hash(source: str) -> str:
    return hashlib.sha256(statements(source).encode()).hexdigest()


def statements(source: str) -> str:
    """The tokens of a module, without comments, blank lines, line breaks inside a statement, and docstrings.

    A module that reads docstrings keeps its own. The result is the same in every version of Python.
    """
    keeps_text = READS_DOCSTRINGS.search(source) is not None
    rows = io.StringIO(source).readlines()
    found: list[str] = []
    tokens: list[str] = []  # of the current statement
    only_text, start, depth = True, (0, 0), 0
    for token in tokenize.generate_tokens(iter(rows).__next__):
        kind = tokenize.tok_name[token.type]
        if kind == "NEWLINE":
            if keeps_text or not only_text:
                found.append("\0".join(tokens))
            tokens, only_text = [], True
        elif kind in ("INDENT", "DEDENT"):
            found.append(kind[0] + "\0")  # no statement ends so
        elif kind == "FSTRING_START":  # since Python 3.12, an f-string is several tokens, and others may be inside
            start, depth, only_text = start if depth else token.start, depth + 1, False
        elif kind == "FSTRING_END":
            depth -= 1
            if not depth:
                tokens.append(_between(rows, start, token.end))
        elif not depth and kind not in ("COMMENT", "NL", "ENDMARKER"):
            tokens.append(token.string)
            only_text = only_text and kind == "STRING" and PLAIN_TEXT.match(token.string) is not None
    return "\0\0".join(found)


def _between(rows: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The source between two places: rows, from 1, and columns, from 0."""
    text = rows[start[0] - 1 : end[0]]
    text[-1] = text[-1][: end[1]]
    text[0] = text[0][start[1] :]
    return "".join(text)
