"""Scores of several answers to a prompt, by judges that see two at a time."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.config.judges import EndpointJudge, ImplicitJudge, Judge
from prefdag.pairs.turns import Asked
from prefdag.rounds import judging

TEXTS = {"p": ["a", "bbb", "cc"], "q": ["dddd", "e"]}
ANSWERS = pd.DataFrame(
    [
        {"id": key, "prompt_ids": [1], "text": text, "ids": [len(text)], "tokens": len(text)}
        for key, texts in TEXTS.items()
        for text in texts
    ]
)
DIALOGUES = {key: Asked([{"role": "user", "content": key}], None) for key in TEXTS}
ENDPOINT = EndpointJudge(kind="endpoint", url="https://host/v1", model="m", max_tokens=9, timeout=9.0)


def scores(judge: Judge) -> list[float]:
    anything: Any = None
    return list(judging.scores(judge, ANSWERS, DIALOGUES, anything, anything))


def test_each_answer_gets_its_own_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers to one prompt are two contests, and no contest has answers to different prompts."""

    def rewards(config: Any, pairs: pd.DataFrame, *_: Any) -> pd.DataFrame:
        for row in pairs.to_dict("records"):
            assert {row["text_reference"], row["text_policy"]} <= set(TEXTS[row["id"]])
            assert row["messages"] == [{"role": "user", "content": row["id"]}]
        return pd.DataFrame({f"reward_{side}": pairs[f"text_{side}"].map(len) for side in ("reference", "policy")})

    monkeypatch.setattr(judging, "verdicts", rewards)
    assert scores(ImplicitJudge(kind="implicit")) == [1, 3, 2, 4, 1]


def test_a_judge_that_compares_sees_every_two_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer_wins(config: Any, pairs: pd.DataFrame, *_: Any) -> pd.DataFrame:
        assert len(pairs) == 3 + 1
        sign = np.sign(pairs["tokens_policy"] - pairs["tokens_reference"])
        return pd.DataFrame({"outcome": sign.map({1: "win", 0: "tie", -1: "loss"})})

    monkeypatch.setattr(judging, "verdicts", longer_wins)
    assert scores(ENDPOINT) == [0.0, 1.0, 0.5, 1.0, 0.0]
