"""profiles/few-shot.yaml, as its first lines say: from the export of one run to the training of another."""

import shutil
from pathlib import Path

import pytest
from clones import Run
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_training_starts_from_the_exported_policy(copy: Path, run: Run) -> None:
    exported = copy.parent / "general"
    shutil.rmtree(exported, ignore_errors=True)
    try:
        run("prefdag", "export", "--to", "../general")
        run("prefdag", "profile", "few-shot", "--force")
        run("dvc", "repro", "sft_ref")
        policy, base, reference = (
            load_file(folder / "model.safetensors")
            for folder in (exported / "text", copy / "models/base", copy / "models/reference")
        )
    finally:
        shutil.rmtree(exported, ignore_errors=True)
    for found in (base, reference):
        assert found.keys() == policy.keys()
        assert all(found[name].equal(policy[name]) for name in policy)
    assert (copy / "models/base/chat_template.jinja").read_text()
