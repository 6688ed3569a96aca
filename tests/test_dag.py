"""dvc.yaml against the code, without running any of it: DVC sees neither imports nor which parameters a stage reads.

A module that is missing from `deps` is a change that trains nothing; one too many is a training for nothing.
"""

import ast
import copy
import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefdag.config.params import Params
from prefdag.runtime.yaml import read_yaml

ROOT = Path(__file__).parents[1]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
DATA_STAGES = [
    *("download_pairs", "download_evals", "download_images", "validate_pairs", "validate_images"),
    *("format_pairs", "label_pairs"),
]
CODE = ("prefdag/", "stages/")
ARTIFACT = re.compile(r"(data|models|reports|evals)/\S+")
HEAVY = {"torch", "torchvision", "transformers", "peft", "accelerate", "mlflow", "great_expectations", "matplotlib"}

# What the code says


@functools.cache
def imports(file: str, root: Path) -> frozenset[str]:
    """The project's modules that `file` imports, also inside functions, as paths from `root`; packages left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((root / file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative import; name the module in full"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {f"{name.replace('.', '/')}.py" for name in names}
    return frozenset(path for path in paths if path.startswith(CODE) and (root / path).is_file())


def reached(file: str, root: Path) -> dict[str, str]:
    """Every module that runs with `file`, itself too, and through which other one it is first imported."""
    found = {file: "dvc"}
    queue = [file]
    while queue:
        importer = queue.pop(0)
        for path in sorted(imports(importer, root) - found.keys()):
            found[path] = importer
            queue.append(path)
    return found


@functools.cache
def companions(module: str, root: Path) -> frozenset[str]:
    """Files of `module`'s package that are no code (templates, styles), and that it names, or whose folder it names."""
    text, folder = (root / module).read_text("utf-8"), (root / module).parent
    return frozenset(
        file.relative_to(root).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and package(file) == folder
        if any(re.search(rf"\b{re.escape(part)}\b", text) for part in file.relative_to(folder).parts)
    )


def package(file: Path) -> Path:
    """The nearest folder above `file` that holds modules."""
    return next(folder for folder in file.parents if any(folder.glob("*.py")))


def arguments(tree: ast.Module) -> set[str]:
    """The keys of params.yaml that a stage's `main` takes; `params` stands for all of them."""
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    names = {argument.arg for argument in main.args.args + main.args.kwonlyargs}
    return {field.name for field in dataclasses.fields(Params)} if names == {"params"} else names


def strings(tree: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


# What dvc.yaml says


def listed(entry: dict[str, Any], *keys: str) -> set[str]:
    """The names under `keys` of a stage; an item is a name, or a mapping of one name to its options."""
    items = [item for key in keys for item in entry.get(key) or []]
    return {name for item in items for name in ([item] if isinstance(item, str) else item)}


def covers(dep: str, path: str) -> bool:
    return path == dep or path.startswith(dep.rstrip("/") + "/")


def faults(name: str, entry: dict[str, Any], root: Path) -> list[str]:
    """All that has to be added to or removed from stage `name` of dvc.yaml for it to agree with the code."""
    script = f"stages/{name}.py"
    tree = ast.parse((root / script).read_text("utf-8"))
    found = [] if entry["cmd"] == f"python -m stages.{name}" else [f"cmd: make it `python -m stages.{name}`"]

    modules = reached(script, root)
    needed = {file: module for module in modules for file in companions(module, root)} | modules
    code = {dep for dep in listed(entry, "deps") if dep.startswith(CODE)}
    found += [
        f"deps: add {path} (used by {importer})"
        for path, importer in sorted(needed.items())
        if not any(covers(dep, path) for dep in code)
    ]
    found += [
        f"deps: remove {dep} (not imported)" for dep in sorted(code) if not any(covers(dep, path) for path in needed)
    ]

    params, keys = listed(entry, "params"), arguments(tree)
    found += [f"params: add {key} (an argument of main)" for key in sorted(keys - params)]
    found += [f"params: remove {key} (no argument of main)" for key in sorted(params - keys)]

    files = listed(entry, "deps", "outs", "metrics", "plots") - code
    literals = {text for text in strings(tree) if ARTIFACT.fullmatch(text) or text in files}
    found += [f"deps or outs: add {path} (named in {script})" for path in sorted(literals - files)]
    found += [f"deps or outs: remove {path} (not named in {script})" for path in sorted(files - literals)]
    return [f"dvc.yaml: {name}.{fault}" for fault in found]


@pytest.fixture(scope="module")
def dag() -> dict[str, Any]:
    stages: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]
    return stages


def test_every_script_is_a_stage(dag: dict[str, Any]) -> None:
    assert sorted(dag) == STAGES


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_agrees_with_the_code(name: str, dag: dict[str, Any]) -> None:
    if found := faults(name, dag[name], ROOT):
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("name", STAGES)
def test_one_wrong_line_in_dvc_yaml_is_found(name: str, dag: dict[str, Any]) -> None:
    """The test above can fail: on any line less, and on any line more."""
    for section in ("deps", "params", "outs", "metrics", "plots"):
        for i in range(len(dag[name].get(section) or [])):
            doctored = copy.deepcopy(dag[name])
            removed = doctored[section].pop(i)
            assert faults(name, doctored, ROOT), f"{section}: {removed} can go unnoticed"
    wrong = {"deps": ["prefdag/dpo/nowhere.py", "data/nowhere"], "outs": ["models/nowhere"], "params": ["nowhere"]}
    for section, lines in wrong.items():
        for line in lines:
            doctored = copy.deepcopy(dag[name])
            doctored[section] = [*(doctored.get(section) or []), line]
            assert any(f"remove {line}" in fault for fault in faults(name, doctored, ROOT))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one stage, which uses a module inside a function, that one another, and that one a template."""
    files = {
        "stages/page.py": """
            IN, OUT = "data/rows", "reports/page.html"
            def main(beta, page):
                from prefdag.report import page
            """,
        "prefdag/report/page/report_page.py": "import prefdag.errors\nfrom prefdag.report.parts import NAME",
        "prefdag/report/parts.py": 'NAME = "page.html.jinja"',
        "prefdag/report/page.html.jinja": "",
        "prefdag/report/unused.py": "",
        "prefdag/report/unused.css": "",
        "prefdag/runtime/errors.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"^ {12}", "", text, flags=re.MULTILINE))
    return tmp_path


RIGHT = {
    "cmd": "python -m stages.page",
    "deps": [
        *(
            "stages/page.py",
            "prefdag/runtime/errors.py",
            "prefdag/report/page/report_page.py",
            "prefdag/report/parts.py",
        ),
        *("prefdag/report/page.html.jinja", "data/rows"),
    ],
    "params": ["beta", "page"],
    "outs": [{"reports/page.html": {"cache": False}}],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"deps": ["stages/page.py", "prefdag/runtime/errors.py", "prefdag/report", "data/rows"]}, []),
        ({"cmd": "python stages/page.py"}, ["cmd: make it `python -m stages.page`"]),
        (
            {"deps": ["stages/page.py", "prefdag/report/page/report_page.py", "prefdag/report/unused.py", "data/rows"]},
            [
                "deps: add prefdag/runtime/errors.py (used by prefdag/report/page/report_page.py)",
                "deps: add prefdag/report/page.html.jinja (used by prefdag/report/parts.py)",
                "deps: add prefdag/report/parts.py (used by prefdag/report/page/report_page.py)",
                "deps: remove prefdag/report/unused.py (not imported)",
            ],
        ),
        (
            {"params": ["beta", "loss"]},
            ["params: add page (an argument of main)", "params: remove loss (no argument of main)"],
        ),
        (
            {"outs": ["reports/other.html"]},
            [
                "deps or outs: add reports/page.html (named in stages/page.py)",
                "deps or outs: remove reports/other.html (not named in stages/page.py)",
            ],
        ),
    ],
)
def test_faults_say_what_to_add_and_to_remove(change: dict[str, Any], expected: list[str], project: Path) -> None:
    assert faults("page", RIGHT | change, project) == [f"dvc.yaml: page.{fault}" for fault in expected]


def test_params_stands_for_every_key() -> None:
    assert arguments(ast.parse("def main(params): ...")) >= {"beta", "dpo_text", "report"}


# Imports


def area(file: str) -> str:
    """The part of the project that a module belongs to; the modules directly under prefdag/ are the ground floor."""
    first, second, *rest = file.split("/")
    if first == "stages" or second == "cli.py":
        return "top"
    return second if rest else "ground"


def may_import(importer: str, imported: str) -> bool:
    """stages -> export, chat -> report, text, image -> dpo, data -> ground floor; never up, never across."""
    under = {"ground", "dpo", "data", "report", "text", "image"}
    below = {"top": {*under, "export", "chat"}, "export": under, "dpo": {"ground"}, "data": {"ground"}}
    own, other = area(importer), area(imported)
    if own == other:
        return own != "top"  # what two stages share belongs into the library
    return own != "ground" and other in below.get(own, {"ground", "dpo", "data"})


def test_imports_run_one_way() -> None:
    files = [path.relative_to(ROOT).as_posix() for top in CODE for path in sorted((ROOT / top).rglob("*.py"))]
    edges = [(importer, imported) for importer in files for imported in sorted(imports(importer, ROOT))]
    assert len(edges) > len(files)
    wrong = [f"{importer} imports {imported}" for importer, imported in edges if not may_import(importer, imported)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("stages/dpo_text.py", "prefdag/text/scoring/logps.py", True),
        ("stages/dpo_text.py", "stages/dpo_image.py", False),
        ("prefdag/text/scoring/logps.py", "prefdag/dpo/losses.py", True),
        ("prefdag/text/scoring/logps.py", "prefdag/image/model.py", False),
        ("prefdag/export/text.py", "prefdag/text/model.py", True),
        ("prefdag/text/model.py", "prefdag/export/text.py", False),
        ("prefdag/dpo/losses.py", "prefdag/train/loop.py", True),
        ("prefdag/dpo/losses.py", "prefdag/text/scoring/logps.py", False),
        ("prefdag/dpo/losses.py", "prefdag/pairs/formatting.py", False),
        ("prefdag/config.py", "prefdag/runtime/errors.py", True),
        ("prefdag/config.py", "prefdag/dpo/losses.py", False),
        ("prefdag/audio/logps.py", "prefdag/dpo/losses.py", True),
        ("prefdag/audio/logps.py", "prefdag/text/scoring/logps.py", False),
    ],
)
def test_the_import_rule(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_packages_hold_a_docstring_and_nothing_else() -> None:
    """Importing a module runs its packages, which `deps` leave out."""
    for path in [*ROOT.glob("prefdag/**/__init__.py"), ROOT / "stages" / "__init__.py"]:
        body = ast.parse(path.read_text("utf-8")).body
        assert [type(node) for node in body] == [ast.Expr], path
        assert isinstance(body[0], ast.Expr), path
        assert isinstance(body[0].value, ast.Constant), path


@pytest.mark.parametrize("name", [name for name in DATA_STAGES if name in STAGES])
def test_data_stages_never_import_torch(name: str) -> None:
    """Not inside a function either, except for torchvision's CIFAR-10, which only that source needs."""
    for file in reached(f"stages/{name}.py", ROOT):
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            wrong = [each for each in names if each.split(".")[0] in {"torch", "transformers", "peft", "accelerate"}]
            # The one module of transformers that renders chat templates without torch.
            assert set(wrong) <= {"transformers.utils.chat_template_utils"}, f"{file}:{getattr(node, 'lineno', 0)}"


# Running `python -m stages.NAME --help`


@pytest.fixture(scope="module")
def helped() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """The finished `python -m stages.NAME --help` of every stage, with the imports that it took on stderr."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", f"stages.{name}", "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(STAGES, pool.map(run, STAGES), strict=True)).__getitem__


@pytest.mark.parametrize("name", STAGES)
def test_help_works_and_is_quick(name: str, helped: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    done = helped(name)
    assert done.returncode == 0, done.stderr
    purpose = ast.get_docstring(ast.parse((ROOT / "stages" / f"{name}.py").read_text("utf-8")))
    assert purpose
    assert purpose.split()[0] in done.stdout
    imported = set(re.findall(r"^import time:.*\|\s+(\w+)$", done.stderr, re.MULTILINE))
    assert {"argparse", "prefdag"} <= imported
    assert not imported & HEAVY
