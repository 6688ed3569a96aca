"""dvc.yaml and imports follow the rules of docs/pipeline.md. The pipeline is not run."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag import check_code, dependencies
from prefdag.config.params import Params
from prefdag.dependencies import CODE
from prefdag.project import dag
from prefdag.rounds.plan import SCRIPTS
from prefdag.runtime.dvc_files import files, read_dag, script
from prefdag.runtime.yaml import read_yaml

STAGES = sorted(
    path.stem for path in (ROOT / "stages").glob("*.py") if path.stem not in ("__init__", "losses", "verify")
)
DATA_STAGES = [
    *("download_pairs", "download_evals", "download_images", "validate_pairs", "validate_images"),
    *("format_pairs", "label_pairs", "health_text", "health_image"),
]
HEAVY = {"torch", "torchvision", "transformers", "peft", "accelerate", "mlflow", "great_expectations", "matplotlib"}


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    """The entries of dvc.yaml, each with its code. Those that run again by their plan have the parameters that are in it."""
    entries = {name: entry for file in files(ROOT / "dvc.yaml") for name, entry in read_yaml(file)["stages"].items()}
    stages = {name: {"params": [], **entry.get("do", entry)} for name, entry in entries.items()}
    for name in dag.planned(ROOT):
        stages[name]["params"] = dependencies.arguments(dependencies.parsed(name, ROOT))
    del stages[check_code.STAGE]  # it runs again for any code
    return {name: {**entry, "code": dependencies.code(name, ROOT)} for name, entry in stages.items()}


def test_every_stage_depends_on_the_hashes_of_its_code() -> None:
    """Those under `foreach` depend on them by their plan."""
    every = read_dag(ROOT / "dvc.yaml")
    assert every[check_code.STAGE]["deps"] == ["prefdag", "stages"]
    written = dag.names(every[check_code.STAGE], "outs")
    assert written == [str(check_code.CODE), str(check_code.FILES)]
    for name, entry in every.items():
        by_plan = name != script(name)
        found = {path for path in entry["deps"] if path.startswith(f"{check_code.CODE}/")}
        readers = {dag.PLANNER, *SCRIPTS.values()} if name == dag.PLANNER else {name} - {check_code.STAGE}
        assert found == (set() if by_plan else {str(check_code.hashes_of(reader)) for reader in readers}), name


def test_the_plan_has_what_changes_the_stages_of_rounds() -> None:
    assert set(dag.planned(ROOT)) == set(SCRIPTS.values())
    entry = read_dag(ROOT / "dvc.yaml")[dag.PLANNER]
    for name in SCRIPTS.values():
        assert set(dependencies.arguments(dependencies.parsed(name, ROOT))) <= set(entry["params"])


def test_every_script_is_a_stage(stages: dict[str, Any]) -> None:
    assert sorted([*stages, check_code.STAGE]) == STAGES
    for name, entry in stages.items():
        command = f"python -m stages.{name}"
        assert entry["cmd"] == command or re.fullmatch(rf"if .*; else {command} \${{key}}; fi", entry["cmd"]), name


def test_dvc_yaml_matches_the_code() -> None:
    for file in files(ROOT / dag.DVC):
        assert dag.dump(dag.written(dag.load(file), ROOT)) == file.read_text("utf-8"), "run `make dag`"


def test_the_table_of_reruns_matches_the_code() -> None:
    text = (ROOT / dag.PAGE).read_text("utf-8")
    assert dag.page(text, ROOT) == text, "run `make dag`"


def test_every_output_is_named_in_its_script(stages: dict[str, Any]) -> None:
    """`outs` and `metrics` are written by hand. Every file that a script names is one of them or a dependency."""
    for name, entry in stages.items():
        named = dependencies.artifacts(ast.parse((ROOT / "stages" / f"{name}.py").read_text("utf-8")))
        assert set(dag.names(entry, "outs", "metrics")) <= set(named), name


def test_every_input_is_made_by_a_stage_or_in_git() -> None:
    """A misspelt path in a script would be a dependency that no stage makes."""
    every = read_dag(ROOT / "dvc.yaml")
    outs = {out for entry in every.values() for out in dag.names(entry, "outs", "metrics")}
    for name, entry in every.items():
        for dep in entry["deps"]:
            made = any(out == dep or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in outs)
            assert made or (ROOT / dep).exists(), f"{name}: {dep}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one stage: it imports a module inside a function, which imports another, which names a template."""
    files = {
        "stages/page.py": """
            IN, OUT = "data/rows", "reports/page.html"
            def main(beta, page):
                from prefdag.report import page
            """,
        "prefdag/report/page.py": "import prefdag.lifecycle.errors, prefdag.stats.b\nfrom prefdag.report.parts import NAME",
        "prefdag/stats/__init__.py": "",
        "prefdag/stats/a.py": "",
        "prefdag/stats/b.py": "import prefdag.stats.a",
        "prefdag/report/parts.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from prefdag.report.unused import Type
            NAME, LEFT_OUT = "templates", "__pycache__"
            """,
        "prefdag/report/templates/page.html.jinja": "",
        "prefdag/report/unused.py": "",
        "prefdag/report/others/unused.css": "",
        "prefdag/report/__pycache__/parts.pyc": "",
        "prefdag/lifecycle/errors.py": "import prefdag.runtime.words",
        "prefdag/runtime/words.py": "",
        "dvc.yaml": """
            # a comment that stays
            stages:
              page:
                cmd: python -m stages.page
                deps:
                  - prefdag/gone.py
                params: [gamma]
                outs:
                  - reports/page.html: {cache: false}
            """,
        "docs/pipeline.md": f"before\n{dag.BEGIN}old\n{dag.END}after\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return tmp_path


def test_deps_and_params_are_written_from_the_code(project: Path) -> None:
    """Inputs, and the hashes of the code."""
    dag.main(project)
    text = (project / "dvc.yaml").read_text()
    assert text.startswith("# a comment that stays\n")
    assert "params: [beta, page]" in text
    (entry,) = read_yaml(project / "dvc.yaml")["stages"].values()
    assert entry == {
        "cmd": "python -m stages.page",
        "deps": ["data/rows", "data/code/page.json"],
        "params": ["beta", "page"],
        "outs": [{"reports/page.html": {"cache": False}}],
    }
    dag.main(project)
    assert (project / "dvc.yaml").read_text() == text


def test_the_code_of_a_stage(project: Path) -> None:
    """Imported modules and templates, but no exempt modules, nor modules imported only by those or only for types."""
    assert dependencies.code("page", project) == [
        *("prefdag/report/page.py", "prefdag/report/parts.py", "prefdag/report/templates"),
        *("prefdag/stats/a.py", "prefdag/stats/b.py", "stages/page.py"),
    ]


def test_the_table_says_what_a_module_reruns(project: Path) -> None:
    dag.main(project)
    before, _, rest = (project / "docs/pipeline.md").read_text().partition(dag.BEGIN)
    table, _, after = rest.partition(dag.END)
    assert (before, after) == ("before\n", "after\n")
    assert "| report | page, parts, templates | every stage |" in table
    assert "| report | unused | nothing |" in table
    assert "| runtime | words | nothing |" in table
    assert "old" not in table
    assert "| `prefdag/lifecycle/errors.py` |" in table


def test_a_stage_that_takes_params_depends_on_every_key() -> None:
    assert dag.params(ast.parse("def main(params): ...")) == [field.name for field in dataclasses.fields(Params)]


# What an edit reruns

TRAININGS = {
    "sft_ref",
    "reward_model",
    "resnet_warmup",
    "control_image",
    "control_text",
    "dpo_text",
    "dpo_image",
    "dpo_round",
}


def reruns(path: str, stages: dict[str, Any]) -> set[str]:
    """The stages whose code a file is part of, by name or by its folder."""
    folders = {parent.as_posix() for parent in Path(path).parents}
    return {name for name, entry in stages.items() if {path, *folders} & set(entry["code"])}


@pytest.mark.parametrize("path", sorted(dependencies.EXEMPT))
def test_an_exempt_module_exists_and_reruns_nothing(path: str, stages: dict[str, Any]) -> None:
    assert (ROOT / path).is_file()
    assert reruns(path, stages) == set()
    assert any(path in dependencies.imports(file, ROOT) for file in modules()), (
        "nothing imports it: remove it from the list"
    )


@pytest.mark.parametrize("module", ["findings", "verdict"])
def test_an_edit_of_health_reruns_no_training(module: str, stages: dict[str, Any]) -> None:
    rerun = reruns(f"prefdag/health/{module}.py", stages)
    assert {"health_text", "health_image"} <= rerun
    assert not rerun & TRAININGS


def test_a_parameter_of_health_reruns_no_training(stages: dict[str, Any]) -> None:
    for key in ("health_text", "health_image"):
        assert {name for name, entry in stages.items() if key in entry["params"]} == {key, "report"}


SECTIONS = {
    name: kind.__module__
    for name, kind in typing.get_type_hints(Params).items()
    if str(getattr(kind, "__module__", "")).startswith("prefdag.config.") and isinstance(kind, type)
}


@pytest.mark.parametrize("section", SECTIONS)
def test_an_edit_of_a_sections_class_reruns_the_stages_that_read_it(section: str, stages: dict[str, Any]) -> None:
    module = SECTIONS[section]
    shared = {name for name, other in SECTIONS.items() if other == module}  # health_text and health_image
    readers = {name for name, entry in stages.items() if shared & set(entry["params"])}
    assert reruns(f"{module.replace('.', '/')}.py", stages) == readers


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_checks_its_sections_as_params_does(name: str) -> None:
    """The arguments of `main` have the types of the fields of `Params`."""
    main = importlib.import_module(f"stages.{name}").main
    fields = typing.get_type_hints(Params, include_extras=True)
    for argument, kind in main.types.items():
        if argument != "params":
            assert kind == fields[argument], argument


USE_LOSSES = {
    *("dpo_text", "dpo_image", "evaluate_text", "evaluate_image", "judge_text"),
    *("judge_round", "dpo_round", "evaluate_round"),
}


def test_an_edit_of_the_users_losses_reruns_the_stages_that_use_them(stages: dict[str, Any]) -> None:
    assert reruns("stages/losses.py", stages) == USE_LOSSES
    assert {name for name, entry in stages.items() if "loss_options" in entry["params"]} >= USE_LOSSES


def test_an_edit_of_the_users_checks_reruns_the_judges_alone(stages: dict[str, Any]) -> None:
    assert reruns("stages/verify.py", stages) == {"judge_text", "judge_round", "evaluate_round"}


def test_what_notebooks_use_reruns_nothing(stages: dict[str, Any]) -> None:
    for file in (ROOT / "prefdag" / "notebook").glob("*.py"):
        assert reruns(file.relative_to(ROOT).as_posix(), stages) == set()


# Imports


# A package imports only from floors below its own.
FLOORS = [
    *(
        "distributed",
        "lifecycle",
        "runtime",
        "config dependencies",
        "check_code check_params recorded sources stats tracking",
        "formats tokenizer",
        "pairs train",
        "images dpo health labelling",
        "gate text image own_losses",
        "rounds",
        "report",
    ),
    *("export chat notebook estimate", "cli project", "__main__ stages"),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def modules() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for top in CODE for path in sorted((ROOT / top).rglob("*.py"))]


def room(file: str) -> str:
    """The package of a module. Modules at the top, such as cli.py, count as packages."""
    first, second, *_ = file.split("/")
    return first if first == "stages" else second.removesuffix(".py")


def may_import(importer: str, imported: str) -> bool:
    if (
        imported in dependencies.EXEMPT
    ):  # what only checks or reports may be called from anywhere: `stage` checks all of params.yaml
        return True
    own, other = room(importer), room(imported)
    if own == other:
        # Code shared by stages belongs in prefdag/, except for losses of the user's own.
        return own != "stages" or imported in ("stages/losses.py", "stages/verify.py")
    return FLOOR[other] < FLOOR[own] or (own, other) == ("cli", "project")


def test_imports_go_one_way() -> None:
    files = modules()
    edges = [(importer, imported) for importer in files for imported in sorted(dependencies.imports(importer, ROOT))]
    assert len(edges) > len(files)
    wrong = [f"{importer} imports {imported}" for importer, imported in edges if not may_import(importer, imported)]
    assert not wrong, "\n".join(wrong)


def test_no_two_classes_have_the_same_name() -> None:
    names = [
        (node.name, file)
        for file in modules()
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    places = dict(names)
    assert len(places) > 250
    assert not [f"{name}: {file}, {places[name]}" for name, file in names if places[name] != file]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("stages/dpo_text.py", "prefdag/text/scoring/logps.py", True),
        ("stages/dpo_text.py", "stages/dpo_image.py", False),
        ("stages/dpo_text.py", "stages/losses.py", True),
        ("prefdag/text/model.py", "prefdag/notebook/training.py", False),
        ("prefdag/text/scoring/logps.py", "prefdag/dpo/losses.py", True),
        ("prefdag/text/scoring/logps.py", "prefdag/image/model.py", False),
        ("prefdag/export/text.py", "prefdag/text/model.py", True),
        ("prefdag/text/model.py", "prefdag/export/text.py", False),
        ("prefdag/dpo/losses.py", "prefdag/dpo/preference.py", True),
        ("prefdag/dpo/losses.py", "prefdag/text/scoring/logps.py", False),
        ("prefdag/train/loop.py", "prefdag/dpo/losses.py", False),
        ("prefdag/check_params.py", "prefdag/lifecycle/errors.py", True),
        ("prefdag/lifecycle/errors.py", "prefdag/config/params.py", False),
        ("prefdag/runtime/stage.py", "prefdag/check_params.py", True),
        ("prefdag/pairs/schema.py", "prefdag/gate/checks.py", False),
        ("prefdag/formats/records.py", "prefdag/pairs/schema.py", False),
        ("prefdag/tokenizer/tokenizer.py", "prefdag/pairs/schema.py", False),
    ],
)
def test_the_import_rule(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_packages_contain_only_a_docstring() -> None:
    """Importing a module runs its packages, but they are not part of its code."""
    for path in [*ROOT.glob("prefdag/**/__init__.py"), ROOT / "stages" / "__init__.py"]:
        body = ast.parse(path.read_text("utf-8")).body
        if path == ROOT / "prefdag" / "dpo" / "__init__.py":  # what notebooks use, imported at its first use
            assert [getattr(node, "name", None) for node in body[1:]] == ["__getattr__", "__dir__"]
            body = body[:1]
        if path == ROOT / "stages" / "__init__.py":  # Ctrl-C while Python imports a stage
            assert [type(node) for node in body[1:]] == [ast.Import, ast.ImportFrom, ast.If]
            body = body[:1]
        assert [type(node) for node in body] == [ast.Expr], path
        assert isinstance(body[0], ast.Expr), path
        assert isinstance(body[0].value, ast.Constant), path


@pytest.mark.parametrize("stage", [name for name in DATA_STAGES if name in STAGES])
def test_data_stages_never_import_torch(stage: str) -> None:
    """Not even inside functions, except for torchvision's CIFAR-10, which only that source needs."""
    for file in dependencies.reached(f"stages/{stage}.py", ROOT):
        for node in dependencies.executed(ast.parse((ROOT / file).read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            wrong = [name for name in names if name.split(".")[0] in {"torch", "transformers", "peft", "accelerate"}]
            # This module of transformers renders chat templates without torch.
            assert set(wrong) <= {"transformers.utils.chat_template_utils"}, f"{file}:{getattr(node, 'lineno', 0)}"


# Running `python -m stages.NAME --help`


@pytest.fixture(scope="module")
def helped() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """The completed process of `python -m stages.NAME --help` for every stage, with its imports on stderr."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", f"stages.{name}", "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(STAGES, pool.map(run, STAGES), strict=True)).__getitem__


@pytest.mark.slow
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
