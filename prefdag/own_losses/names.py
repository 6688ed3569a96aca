"""Losses of the user's own: their names and options, read from the syntax tree of stages/losses.py.

The file is not run, so that params.yaml is checked without importing torch. `checks.py` checks the functions.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

from prefdag.lifecycle.errors import suggestion

OWN_LOSSES = Path("stages/losses.py")
TABLE = "LOSSES"
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
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{path}{line}: not Python ({getattr(error, 'msg', error)}); fix the file") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    losses: dict[str, Keywords] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == TABLE for target in targets):
            value = getattr(node, "value", None)
            if not isinstance(value, ast.Dict):
                raise ValueError(
                    f"{path}:{node.lineno}: {TABLE} must be a dictionary, {{...}}: its names are read here"
                )
            for key, entry in zip(value.keys, value.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier()):
                    raise ValueError(
                        f"{path}:{entry.lineno}: a key of {TABLE} must be a name in quotes, such as 'my_loss'"
                    )
                losses[key.value] = _keywords(entry, functions)
    return losses


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
