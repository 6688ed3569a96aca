"""Hash the code of every stage: one file for each, on which the stage depends. If its code changes, its file does.

Comments and docstrings do not count, nor do modules that the stage does not import. A second output has the hashes of all files
as they are; a stage compares them before it starts (see `prefdag.check_code`).
"""

from pathlib import Path

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import sha256, write_json, writing
from prefdag.runtime.stage import stage

CODE = Path("data/code")
FILES = Path("data/code.json")


@stage
def main() -> None:
    from prefdag.dependencies import code_hashes
    from prefdag.runtime.dvc_files import read_dag, script

    root, stages = Path(), set(map(script, read_dag()))
    hashes: dict[str, dict[str, str]] = {}
    for name in sorted(path.stem for path in (root / "stages").glob("[!_]*.py")):
        try:
            hashes[name] = code_hashes(name, root)
        except DataError:
            if name in stages:
                raise  # any other may be unfinished. If it is not, dvc.yaml may have it as a stage by the next run
    paths = sorted({path for parts in hashes.values() for path in parts})
    with writing(CODE) as folder, writing(FILES) as files:
        for name, parts in hashes.items():
            write_json(folder / f"{name}.json", parts)
        write_json(files, {path: sha256(root / path) for path in paths})


if __name__ == "__main__":
    main.run()
