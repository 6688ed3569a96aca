"""A server as the sampler, with the models of the tiny run: the tokens of the local sampler, after a kill, in two processes."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clones import ENVIRONMENT, Run, set_params, stages_run
from completion_server import CompletionServer, Handler

from prefdag.runtime.artifacts import read_json
from prefdag.text.model import load_models
from prefdag.tokenizer.tokenizer import ChatTokenizer
from stages import answer_text


def greedy(table: pd.DataFrame) -> list[Any]:
    rows = table[table["decoding"] == "greedy"]
    return [*zip(rows["id"], rows["model"], rows["text"], rows["ids"].map(tuple), strict=True)]


def test_a_killed_run_goes_on_and_has_the_tokens_of_the_local_sampler(
    copy: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    local = pd.read_parquet(answer_text.ANSWERS)
    models = load_models(answer_text.REFERENCE, answer_text.POLICY, packed=False)
    tokenizer = ChatTokenizer(answer_text.REFERENCE, "chat")
    with CompletionServer(models._asdict(), tokenizer.decode).running() as server:
        names = {"reference": "reference", "policy": "policy"}
        sampler = {"kind": "endpoint", "url": server.url, **names, "timeout": 60, "tolerance": 0.01, "parallel": 1}
        set_params(copy, {"answer_text.sampler": sampler})
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.answer_text"], env={**os.environ, **ENVIRONMENT}, cwd=copy
        )
        send = server.send

        def kill(handler: Handler, body: dict[str, Any]) -> None:
            if len(server.asked) == 4:
                process.kill()
            else:
                send(handler, body)

        server.send = kill
        assert process.wait() == -9
        time.sleep(0.1)
        assert len(server.asked) == 4
        assert greedy(pd.read_parquet(answer_text.ANSWERS)) == greedy(local)  # as it was
        server.send = send
        output = run(
            *("dvc", "repro", "--single-item", "answer_text"),
            PREFDAG_LAUNCHER="torchrun --standalone --nproc-per-node 2",
        ).stdout
        assert stages_run(output) == ["answer_text"]
    served = pd.read_parquet(answer_text.ANSWERS)
    assert greedy(served) == greedy(local)
    assert len(server.asked) == len(served) + 1  # only the one that was under way is asked for again
    found = read_json(answer_text.STATISTICS)["sampler"]
    assert max(found[name]["difference"] for name in names) < 1e-3
