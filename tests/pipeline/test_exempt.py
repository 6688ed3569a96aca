"""Modules that no stage depends on cannot change an output: with all of `EXEMPT` altered, outputs have the same bytes."""

import re
from collections.abc import Iterable
from pathlib import Path

from clones import Run
from full_disk import outs

from prefdag.dependencies import EXEMPT
from prefdag.runtime.artifacts import sha256

# Code that is appended to each module and changes its behaviour.
ALTERED = {
    "prefdag/check_code.py": "check_code = lambda script: None",
    "prefdag/check_params.py": "check_params = lambda tree, path: None",
    "prefdag/recorded.py": "recorded = lambda path: path",
    "prefdag/tracking/durations.py": "note_duration = lambda name, seconds: None",
    "prefdag/lifecycle/environment.py": "set_environment = lambda: os.environ.update(OMP_WAIT_POLICY='ACTIVE')",
    "prefdag/lifecycle/errors.py": "PrefdagError.__str__ = lambda self: 'altered'; PrefdagError.exit_code = 9",
    "prefdag/lifecycle/exits.py": "one_line_errors = lambda name: contextlib.nullcontext()",
    "prefdag/lifecycle/launcher.py": "to_launch = lambda: False; end_with_parent = lambda: None",
    "prefdag/lifecycle/lock.py": "stage_lock = lambda name: contextlib.nullcontext(); end_with_dvc = lambda: None",
    "prefdag/lifecycle/progress.py": "progress = lambda *_, **__: tqdm(disable=True)",
    "prefdag/lifecycle/secrets.py": "without_secrets = lambda text: 'altered'",
    "prefdag/lifecycle/version.py": "check_version = lambda: None",
    "prefdag/lifecycle/warm.py": "can_fork = lambda: False",
    "prefdag/own_losses/names.py": "check_own_options = lambda options: options",
    "prefdag/own_losses/checks.py": "check_loss = lambda *_: None",
    "prefdag/tracking/delivery.py": "send = deliver; deliver = lambda spool, store: [send(spool, store) for _ in range(2)]",
    "prefdag/tracking/keys.py": "accepted = lambda key: 'altered'",
    "prefdag/tracking/trackers.py": "requested = lambda: ['tensorboard']",
    "prefdag/tracking/runs.py": "log_ = RunLogger.log; RunLogger.log = lambda self, step, metrics: log_(self, step, {})",
    "prefdag/tracking/spool.py": "add = Spool.append; Spool.append = lambda self, event: add(self, event | {'time': 0})",
    "prefdag/tracking/store.py": "def refuse(*_): raise RefusalError('altered')\nStore.begin = refuse",
    "prefdag/lifecycle/interruption.py": "interruptible = lambda: contextlib.nullcontext(contextlib.nullcontext)",
}
# Together these stages use all of the modules: they check, train, evaluate and report.
STAGES = ["validate_pairs", "sft_ref", "dpo_image", "evaluate_image", "report"]
USED = "\nimport contextlib, os, pathlib\npathlib.Path(os.environ['USED'], __name__).touch()\n"


def test_every_exempt_module_is_altered() -> None:
    assert ALTERED.keys() == EXEMPT.keys()


def test_outputs_are_the_same_whatever_exempt_modules_do(tiny: Path, copy: Path, run: Run, tmp_path: Path) -> None:
    for module, change in ALTERED.items():
        path = copy / module
        path.write_text(path.read_text("utf-8") + USED + change + "\n", "utf-8")
    for stage in STAGES:
        output = run("python", "-m", f"stages.{stage}", USED=str(tmp_path), PYTHONPATH=str(copy)).stdout
        assert "Traceback" not in output
        for out in outs(copy, stage):
            assert sha256(copy / out) == sha256(tiny / out), f"{stage}: {out}"
    used = {f"{path.name.replace('.', '/')}.py" for path in tmp_path.iterdir()}
    assert used == EXEMPT.keys()


HEALTH, REPORT = {"health_text", "health_image"}, {"report"}
EDITS: list[tuple[Iterable[str], str, set[str]]] = [
    (["prefdag/train/loop.py", "prefdag/dpo/losses.py", "stages/dpo_text.py"], "# a comment", set()),
    (EXEMPT, "EDITED = True", set()),  # all of them together
    (["prefdag/health/findings.py"], "EDITED = True", HEALTH),
    (["prefdag/config/health.py"], "EDITED = True", HEALTH | REPORT),
    (["prefdag/config/report.py"], "EDITED = True", REPORT),
    # The test can fail.
    (
        ["prefdag/train/loop.py"],
        "EDITED = True",
        {
            *("sft_ref", "reward_model", "resnet_warmup", "control_image", "control_text", "dpo_text", "dpo_image"),
            "plan_rounds",
        },
    ),
]


def test_an_edit_reruns_only_the_stages_whose_code_it_changes(copy: Path, run: Run) -> None:
    """According to `dvc status`, after hash_code. A comment reruns nothing."""
    for paths, line, expected in EDITS:
        texts = {path: (copy / path).read_text("utf-8") for path in paths}
        for path, text in texts.items():
            (copy / path).write_text(f"{text}{line}\n", "utf-8")
        run("python", "-m", "stages.hash_code")
        changed = set(re.findall(r"^(?:\S+:)?(\S+):\n\tchanged deps:$", run("dvc", "status").stdout, re.MULTILINE))
        assert changed == expected | {"hash_code"}, paths
        for path, text in texts.items():
            (copy / path).write_text(text, "utf-8")


def test_code_that_changes_while_the_pipeline_runs_is_refused(copy: Path, run: Run) -> None:
    """Otherwise dvc.lock would record outputs of the new code with the hashes of the old one."""
    module = copy / "prefdag/health/findings.py"
    command = ["dvc", "repro", "--single-item", "--force", "dag/images/dvc.yaml:health_image"]
    text = module.read_text("utf-8")
    module.write_text(f"{text}# a comment\n", "utf-8")
    run(*command)
    module.write_text(f"{text}EDITED = True\n", "utf-8")
    done = run(*command, check=False)
    assert done.returncode
    assert "error: prefdag/health/findings.py: changed since hash_code read it" in done.stdout
