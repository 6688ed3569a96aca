"""Losses and checks of the user's own: their names and options, read from the syntax trees of stages/losses.py and
stages/verify.py.

The files are not run, so that params.yaml is checked without importing torch. `checks.py` checks the losses.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefdag.lifecycle.errors import suggestion

OWN_LOSSES, OWN_CHECKS = Path("stages/losses.py"), Path("stages/verify.py")
Value = bool | int | float | str
# What a value in params.yaml may be, by the annotation of the function's argument. Other annotations take any value.
TYPES: Mapping[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}
# The keyword-only arguments of a loss with their annotations. None: its function is not defined in the file.
Keywords = dict[str, str | None] | None


def own_losses(path: Path = OWN_LOSSES) -> dict[str, Keywords]:
    """The losses in the table `LOSSES` of the file, by name; none if there is no such file.

    Raises:
        ValueError: the file is not Python, or the table is not a dictionary with names as keys.
    """
    tree = _parsed(path)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name: _keywords(entry, functions) for name, entry in _entries(tree, "LOSSES", path)}


def own_checks(path: Path = OWN_CHECKS) -> list[str]:
    """The names in the table `CHECKS` of the file; none if there is no such file. Raises `ValueError` as `own_losses`."""
    return [name for name, _ in _entries(_parsed(path), "CHECKS", path)]


def _parsed(path: Path) -> ast.Module:
    """The syntax tree of a file; an empty one if there is no such file. Raises `ValueError`."""
    try:
        return ast.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return ast.parse("")
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{path}{line}: not Python ({getattr(error, 'msg', error)}); fix the file") from None


def _entries(tree: ast.Module, table: str, path: Path) -> Iterator[tuple[str, ast.expr]]:
    """The names and values in a table of the file. Raises `ValueError`."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            value = getattr(node, "value", None)
            if not isinstance(value, ast.Dict):
                raise ValueError(
                    f"{path}:{node.lineno}: {table} must be a dictionary, {{...}}: its names are read here"
                )
            for key, entry in zip(value.keys, value.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier()):
                    raise ValueError(
                        f"{path}:{entry.lineno}: a key of {table} must be a name in quotes, such as 'my_own'"
                    )
                yield key.value, entry


def _keywords(entry: ast.expr, functions: Mapping[str, ast.FunctionDef]) -> Keywords:
    """The keyword-only arguments of the function in `Loss(function, ...)`."""
    names = [node.id for node in ast.walk(entry) if isinstance(node, ast.Name) and node.id in functions]
    if not names:
        return None
    arguments = functions[names[0]].args.kwonlyargs
    return {each.arg: None if each.annotation is None else ast.unparse(each.annotation) for each in arguments}


def check_own_options(options: dict[str, Value]) -> dict[str, Value]:
    """`options`, if each is an argument of a loss in stages/losses.py and has its type. Raises `ValueError`."""
    losses = own_losses()
    known = {name: kind for keywords in losses.values() for name, kind in (keywords or {}).items()}
    for name, value in options.items():
        if name not in known:
            if None in losses.values():  # a function from another module; the stage checks its options
                continue
            raise ValueError(f"{name}: no loss in {OWN_LOSSES} has this option; {suggestion(name, known, 'remove it')}")
        types = TYPES.get(known[name] or "", (object,))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
            raise ValueError(f"{name}: should be of type {known[name]}, as in {OWN_LOSSES}, not {value!r}")
    return options
