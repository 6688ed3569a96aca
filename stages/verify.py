"""Checks of answers of your own. No stage: judge_text imports this file, so an edit reruns it and what follows.

A check takes the prompt's dialogue, an answer, and the chosen response of the prompt's pair (None if it has none). It returns
how good the answer is: a bool or a number, higher is better. It must give the same number every time. docs/answers.md explains
how checks are combined.

    from prefdag.pairs.turns import Messages

    def asks_back(messages: Messages, answer: str, chosen: str | None) -> float:
        return answer.rstrip().endswith("?")

    CHECKS: dict[str, Function] = {"asks_back": asks_back}

Then, in params.yaml: `judge_text.judge: {kind: verify, checks: [{kind: function, function: asks_back}]}`.
"""

from prefdag.text.evaluation.verify import Function

CHECKS: dict[str, Function] = {}
