"""dvc.yaml and dvc.lock, read with their shape checked: what others read from them is there and has the right type.

A stage has the name that DVC gives it. A stage under `foreach` is several, such as sample_round@1 and sample_round@2.

Most stages are in other files, `dag/*/dvc.yaml`, and recorded in `dag/*/dvc.lock`: after each stage, DVC reads and writes the
whole dvc.lock that records it, which costs less if it is small. Their paths start at the root, too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.yaml import parse_mapping, read_text, read_yaml

DAG, LOCK = Path("dvc.yaml"), Path("dvc.lock")
FOLDERS = "dag/*"  # that have files of their own
RESTORE = "`git restore {}` takes the committed one"


def check_files() -> None:
    """Check params.yaml, and each dvc.yaml and dvc.lock, if they exist, before DVC reads them without limits.

    Raises `ParamsError`.
    """
    for path, read in ((Path("params.yaml"), read_yaml), (DAG, read_dag), (LOCK, read_lock)):
        if path.exists():
            read(path)


def files(path: Path) -> list[Path]:
    """A dvc.yaml or a dvc.lock, and those of its name in folders."""
    return [path, *sorted(path.parent.glob(f"{FOLDERS}/{path.name}"))]


def read_dag(path: Path = DAG) -> dict[str, dict[str, Any]]:
    """The stages in dvc.yaml and in those in folders by name, those under `foreach` one by one. Raises `ParamsError`.

    Each comes after those whose outputs it needs, and otherwise they are in the order of the files.
    """
    return _ordered({name: entry for file in files(path) for name, entry in _read_dag(file).items()})


def read_stage(name: str) -> dict[str, Any]:
    """A stage in one of these files; those after it are not read. Raises `ParamsError`."""
    for stages in map(_read_dag, files(DAG)):
        if name in stages:
            return stages[name]
    raise ParamsError(f"{DAG}: stages: has no {name}; {RESTORE.format(DAG)}")


def _read_dag(path: Path) -> dict[str, dict[str, Any]]:
    where = str(path)
    stages = dict(_expanded(_stages(parse_mapping(read_text(path), where), where), path))
    for name, entry in stages.items():
        for key in ("deps", "outs", "metrics", "plots", "params"):
            for item in _list(entry, key, f"{where}: stages.{name}", path):
                one = isinstance(item, Mapping) and len(item) == 1 and isinstance(next(iter(item)), str)
                if not isinstance(item, str) and not one:
                    raise ParamsError(f"{where}: stages.{name}.{key}: expected names; {RESTORE.format(path)}")
    return stages


def read_lock(path: Path = LOCK) -> dict[str, dict[str, Any]]:
    """The stages in dvc.lock and in those in folders by name. Raises `ParamsError`."""
    return {name: entry for file in files(path) for name, entry in parse_lock(read_text(file), str(file)).items()}


def parse_lock(text: str, where: str) -> dict[str, dict[str, Any]]:
    """The stages in the text of a dvc.lock by name. Raises `ParamsError`, which starts with `where`."""
    stages = _stages(parse_mapping(text, where), where)
    file = where.rpartition(": ")[2]
    for name, entry in stages.items():
        at = f"{where}: stages.{name}"
        for key in ("deps", "outs"):
            for item in _list(entry, key, at, file):
                if not isinstance(item, Mapping) or not all(
                    isinstance(item.get(part), str) for part in ("path", "md5")
                ):
                    raise ParamsError(f"{at}.{key}: expected entries with a path and an md5; {RESTORE.format(file)}")
        params = {} if entry.get("params") is None else entry["params"]
        if not isinstance(params, Mapping) or not all(isinstance(values, Mapping) for values in params.values()):
            raise ParamsError(f"{at}.params: expected values by file and key; {RESTORE.format(file)}")
    return stages


def names(entry: Mapping[str, Any], *keys: str) -> list[str]:
    """The names under `keys` of a stage in dvc.yaml. An item is a name, or a mapping from one name to its options."""
    items = [item for key in keys for item in entry.get(key) or []]
    return [name for item in items for name in ([item] if isinstance(item, str) else item)]


def file_of(name: str) -> Path:
    """The dvc.yaml that has a stage."""
    return next((file for file in files(DAG) if DAG.exists() and name in _read_dag(file)), DAG)


def lock_of(name: str) -> Path:
    """The dvc.lock in which DVC records a stage."""
    return file_of(name).with_suffix(LOCK.suffix)


def target(name: str) -> str:
    """A stage as DVC's commands name it: `dag/images/dvc.yaml:dpo_image`, or its name alone if it is in the root's dvc.yaml."""
    file = file_of(name)
    return name if file == DAG else f"{file.as_posix()}:{name}"


def script(name: str) -> str:
    """The name of the script that a stage runs: sample_round for sample_round@1."""
    return name.partition("@")[0]


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with each `${NAME}` in its texts replaced, also in lists and mappings; unknown names stay."""
    if isinstance(value, str):
        for name, text in variables.items():
            value = value.replace(f"${{{name}}}", text)
        return value
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    if isinstance(value, Mapping):
        return {filled(key, variables): filled(each, variables) for key, each in value.items()}
    return value


def _ordered(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    writers = {out: name for name, entry in stages.items() for out in names(entry, "outs", "metrics", "plots")}
    needs = {
        name: [
            writers[path]
            for dep in names(entry, "deps")
            for path in (dep, *map(str, PurePath(dep).parents))
            if path in writers
        ]
        for name, entry in stages.items()
    }
    ordered: dict[str, dict[str, Any]] = {}
    for name in stages:
        path = [name]  # of stages that each need the next one
        while path:
            missing = (each for each in needs[path[-1]] if each not in ordered and each not in path)
            if first := next(missing, None):
                path.append(first)
            else:
                last = path.pop()
                ordered[last] = stages[last]
    return ordered


def _expanded(stages: Mapping[str, dict[str, Any]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each stage, and in place of one with `foreach` one for each of its keys."""
    for name, entry in stages.items():
        if "foreach" not in entry:
            yield name, entry
            continue
        items, do = entry["foreach"], entry.get("do")
        if not isinstance(items, Mapping) or not isinstance(do, Mapping):
            raise ParamsError(f"{path}: stages.{name}: expected foreach and do to be mappings; {RESTORE.format(path)}")
        for key, item in items.items():
            variables = {"key": str(key)}
            if isinstance(item, Mapping):
                variables |= {f"item.{field}": str(value) for field, value in item.items()}
            yield f"{name}@{key}", dict(filled(do, variables))


def _stages(tree: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise ParamsError(f"{where}: stages: expected a mapping of stages; {RESTORE.format(where.rpartition(': ')[2])}")
    return {str(name): entry for name, entry in stages.items()}


def _list(entry: Mapping[str, Any], key: str, at: str, path: Path | str) -> list[Any]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ParamsError(f"{at}.{key}: expected a list; {RESTORE.format(path)}")
    return value


if __name__ == "__main__":  # make repro and make sweep, before `dvc`
    from prefdag.lifecycle.exits import one_line_errors

    with one_line_errors("prefdag"):
        check_files()
