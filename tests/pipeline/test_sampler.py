"""A server as the sampler, with the models of the tiny run and two processes: the tokens of the local sampler."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clones import Run, set_params, stages_run
from completion_server import CompletionServer

from prefdag.runtime.artifacts import read_json
from prefdag.text.model import load_models
from prefdag.tokenizer.tokenizer import ChatTokenizer
from stages import answer_text

LAUNCHER = {"PREFDAG_LAUNCHER": "torchrun --standalone --nproc-per-node 2"}


def greedy(table: pd.DataFrame) -> list[Any]:
    rows = table[table["decoding"] == "greedy"]
    return [*zip(rows["id"], rows["model"], rows["text"], rows["ids"].map(tuple), strict=True)]


def test_a_server_gives_the_tokens_of_the_local_sampler(copy: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    local = pd.read_parquet(answer_text.ANSWERS)
    models = load_models(answer_text.REFERENCE, answer_text.POLICY, packed=False)
    tokenizer = ChatTokenizer(answer_text.REFERENCE, "chat")
    with CompletionServer(models._asdict(), tokenizer.decode).running() as server:
        names = {"reference": "reference", "policy": "policy"}
        sampler = {"kind": "endpoint", "url": server.url, **names, "timeout": 120, "tolerance": 0.001}
        set_params(copy, {"answer_text.sampler": sampler})
        output = run("dvc", "repro", "--single-item", "dag/evaluation/dvc.yaml:answer_text", **LAUNCHER).stdout
    assert stages_run(output) == ["answer_text"]
    served = pd.read_parquet(answer_text.ANSWERS)
    assert greedy(served) == greedy(local[local["model"] != "control"])  # the server does not serve the control
    assert len(server.asked) == len(served)  # by one of the two processes
    assert read_json(answer_text.STATISTICS)["sampler"]["policy"]["not_told_from"] == []
