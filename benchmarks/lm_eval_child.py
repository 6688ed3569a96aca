"""The child process of `lm_eval.py`, run by lm-evaluation-harness's own interpreter. Imports nothing from this project.

    PYTHON -I benchmarks/lm_eval_child.py FOLDER MODEL DTYPE

FOLDER holds tasks in YAML. lm-evaluation-harness builds the requests and scores them. FOLDER/DTYPE.json then contains

    {"versions": {package: version}, "tasks": {task: {"accuracy": ..., "rows": [[log-likelihood of each choice], ...]}}}
"""

import json
import sys
from importlib import metadata
from pathlib import Path


def main(folder: Path, model: str, dtype: str) -> None:
    """Score all tasks of `folder` on the CPU."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = sorted(path.stem for path in folder.glob("*.yaml"))
    evaluation = simple_evaluate(
        model=HFLM(pretrained=model, dtype=dtype, device="cpu", batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    tasks = {}
    for name in names:
        samples = sorted(evaluation["samples"][name], key=lambda sample: sample["doc_id"])
        rows = [[logp for [(logp, _)] in sample["resps"]] for sample in samples]
        tasks[name] = {"accuracy": evaluation["results"][name]["acc,none"], "rows": rows}
    versions = {package: metadata.version(package) for package in ("lm_eval", "torch", "transformers")}
    (folder / f"{dtype}.json").write_text(json.dumps({"versions": versions, "tasks": tasks}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
