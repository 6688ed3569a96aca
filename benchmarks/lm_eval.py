"""Multiple-choice scores: ours against EleutherAI's lm-evaluation-harness, on the same rows and model, on the CPU.

    python -m benchmarks.lm_eval --harness PYTHON --truthfulqa FILE --winogrande FILE --model FOLDER [--rows 40]

PYTHON is the interpreter of an environment with `lm-eval[hf]`. The FILEs are TruthfulQA's mc_task.json and WinoGrande's JSON
lines; the first rows of each are used. The harness runs its own tasks unchanged, except for the location of the rows. It scores
the best and the wrong answers of TruthfulQA twice, for MC1 and for MC2; ours are compared with both.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness import end_in_one_line, positive, write
from prefdag.lifecycle.errors import PrefdagError
from prefdag.pairs.eval_sets import EvalRow, read_truthfulqa, read_winogrande
from prefdag.text.scoring.packing import Group

RESULTS = Path(__file__).with_suffix(".csv")
SCRIPT = Path(__file__).with_name("lm_eval_child.py")
DTYPES = ("float32", "float64")
TOKENS = 1024  # per forward pass of ours
# The first compares two float64 computations of the same; the others show the effect of rounding to float32.
COMPARED = (
    ("ours float64", "harness float64"),
    ("ours float32", "harness float32"),
    ("ours float32", "harness float64"),
    ("harness float32", "harness float64"),
)
# By task: the harness's own task file that it includes, relative to the harness's task folder, and the folder of the rows.
TASKS = {
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa"),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa"),
    "winogrande": ("winogrande/default.yaml", "winogrande"),
}
METRICS = {"truthfulqa_mc1": "mc1", "truthfulqa_mc2": "mc2", "winogrande": "accuracy"}


def hub_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of mc_task.json in the form that the harness loads from the hub: two lists instead of a mapping."""
    targets = {
        name: {"choices": list(row[name]), "labels": list(row[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **targets}


def write_rows(folder: Path, truthfulqa: Path, winogrande: Path, n: int) -> dict[str, list[dict[str, Any]]]:
    """Write the first `n` rows of each file to its own folder as JSON lines, and return them."""
    rows = {
        "truthfulqa": [hub_form(row) for row in json.loads(truthfulqa.read_text("utf-8"))[:n]],
        "winogrande": [json.loads(line) for line in winogrande.read_text("utf-8").splitlines()[:n]],
    }
    for name, records in rows.items():
        (folder / name).mkdir()
        (folder / name / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return rows


def harness(python: Path, folder: Path, model: Path, dtype: str) -> dict[str, Any]:
    """The results of `lm_eval_child.py`, run by `python`. Raises `PrefdagError` if it fails."""
    locate = [python, "-Ic", "import lm_eval, pathlib; print(pathlib.Path(lm_eval.__file__).parent / 'tasks')"]
    located = subprocess.run(locate, stdout=subprocess.PIPE, text=True, check=False)
    if located.returncode:
        raise PrefdagError(f"{python}: lm_eval is missing; install lm-eval[hf] there")
    for task, (file, rows) in TASKS.items():
        config = {
            "include": str(Path(located.stdout.strip()) / file),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(folder / rows / "rows.jsonl")}},
            "training_split": None,
        }
        (folder / f"{task}.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [python, "-I", SCRIPT, folder, model.resolve(), dtype]
    env = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if subprocess.run(list(map(str, command)), env=env, check=False).returncode:
        raise PrefdagError(f"{SCRIPT.name}: failed under {python}; its output is above")
    results: dict[str, Any] = json.loads((folder / f"{dtype}.json").read_text())
    return results


def ours(sets: Mapping[str, Sequence[EvalRow]], folder: Path, dtype: str) -> dict[str, pd.DataFrame]:
    """The tables of `choices.py` by set: one row per question or sentence."""
    import torch
    from transformers import AutoModelForCausalLM

    from prefdag.text import model as lm
    from prefdag.text.evaluation import choices
    from prefdag.text.scoring.logps import group_logps
    from prefdag.text.scoring.trial import set_forward_mode
    from prefdag.tokenizer.files import positions
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    if dtype == "float32":
        model = lm.load(folder)
    else:  # transformers' own layers: they compute norms in float32 even here, ours do not
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        set_forward_mode(model)
    tokenizer = ChatTokenizer(folder, "chat")
    found = {}
    for name, rows in sets.items():
        task = choices.TASKS[name]
        groups = task.groups(rows, tokenizer, positions(folder))
        of_groups = group_logps if dtype == "float32" else group_logps_float64
        found[name] = task.table(rows, of_groups(model, groups, TOKENS, f"{name}, {dtype}"))
    return found


def group_logps_float64(model: Any, groups: Sequence[Group], max_tokens: int, name: str) -> np.ndarray:
    """`logps.group_logps` with the softmax over the vocabulary and the sums in float64; the pipeline uses float32."""
    import torch

    from prefdag.text.scoring.logps import packs
    from prefdag.text.scoring.states import head, response_states

    found = []
    with torch.no_grad():
        for packed in packs(model, groups, max_tokens, name):
            states, layer = response_states(model, packed), head(model)
            logits = states if layer is None else layer(states)
            logps = logits.log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]
            found.append(logps.new_zeros(packed.n_responses).index_add(0, packed.owners, logps).numpy())
    return np.concatenate(found)


def in_order(
    task: str, records: Sequence[Mapping[str, Any]], rows: Sequence[EvalRow], table: pd.DataFrame
) -> np.ndarray:
    """Our log-probabilities in nats, shape (choices of all rows,), in the harness's order of choices."""
    from prefdag.text.evaluation.choices import answers

    ordered: list[float] = []
    for record, row, mine in zip(records, rows, table.to_dict("records"), strict=True):
        if task == "winogrande":
            right_first = [mine["logp_right"], mine["logp_wrong"]]
            ordered += right_first if record["answer"] == "1" else right_first[::-1]
        else:
            by_answer = dict(zip(answers(row), [*mine["logps_right"], *mine["logps_wrong"]], strict=True))
            ordered += [
                by_answer[answer] for answer in record[f"{task.removeprefix('truthfulqa_')}_targets"]["choices"]
            ]
    return np.array(ordered)


def main() -> None:
    """The command line."""
    from prefdag.text.evaluation import choices

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", type=Path, required=True, help="Python interpreter with lm-eval[hf]")
    parser.add_argument("--truthfulqa", type=Path, required=True, help="TruthfulQA's mc_task.json")
    parser.add_argument("--winogrande", type=Path, required=True, help="WinoGrande's JSON lines")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--rows", type=positive, default=40, help="rows used of each file")
    args = parser.parse_args()

    # By scorer and dtype, then by task.
    logps: dict[str, dict[str, np.ndarray]] = {}
    accuracy: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = write_rows(folder, args.truthfulqa, args.winogrande, args.rows)
        readers = {"truthfulqa": read_truthfulqa, "winogrande": read_winogrande}
        sets = {name: read(folder / name) for name, read in readers.items()}
        for dtype in DTYPES:
            results = harness(args.harness, folder, args.model, dtype)
            tables = ours(sets, args.model, dtype)
            theirs, mine = f"harness {dtype}", f"ours {dtype}"
            logps[theirs] = {task: np.concatenate(results["tasks"][task]["rows"]) for task in TASKS}
            accuracy[theirs] = {task: results["tasks"][task]["accuracy"] for task in TASKS}
            logps[mine] = {
                task: in_order(task, records[name], sets[name], tables[name]) for task, (_, name) in TASKS.items()
            }
            accuracy[mine] = {
                task: choices.TASKS[name].metrics(tables[name])[METRICS[task]] for task, (_, name) in TASKS.items()
            }
    lines = []
    for task, (_, name) in TASKS.items():
        for scores, against in COMPARED:
            apart = np.abs(logps[scores][task] - logps[against][task])
            lines.append(
                {
                    "task": task,
                    "scores": scores,
                    "against": against,
                    "n": len(sets[name]),
                    "choices": len(apart),
                    "max_difference": apart.max(),
                    "median_difference": np.median(apart),
                    "accuracy": accuracy[scores][task],
                    "accuracy_against": accuracy[against][task],
                }
            )
    summary = pd.DataFrame(lines)
    versions = ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    write(RESULTS, summary.assign(harness_versions=versions))
    print(summary.to_string(index=False))


if __name__ == "__main__":
    end_in_one_line(main)
