"""Random rows in every format, with texts that occur once, and what a reader must make of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Draw = st.DrawFn
COUNTER = iter(range(10**9))
SPEAKERS = {"user": ["user", "human"], "assistant": ["assistant", "gpt", "model"], "system": ["system"]}
TURN_EXTRAS = ["name", "weight", "train", "reasoning_content", "tool_calls", "images", "thinking", "loss"]
# Names that some format or some reader knows, for columns beside those of the row's own format.
KNOWN = [
    name
    for line in (
        "annotator answers chosen chosen_score completion context conversations generations history id images input",
        "instruction label messages meta model output preference prompt question rank rating rejected response",
        "responses score score_chosen source split system thinking tool_calls tools votes_chosen weight winner",
    )
    for name in line.split()
]


@dataclass
class Built:
    """The rows of a file that are one pair, and the pair."""

    rows: list[dict[str, Any]]
    prompt: list[tuple[str, str]]  # role and text of each turn
    chosen: str | None
    rejected: str | None
    left_out: tuple[str, ...] = ()  # responses that are neither the best nor the worst one


def mark() -> str:
    """A text that occurs once, so that it can be found again."""
    return f"mark{next(COUNTER)}x"


# Texts that a reader may take for something else: a list, an object, the end of a turn, a number.
before = st.sampled_from(
    ["", "", " ", "\n", "[", "{", '["', "[1] ", "[{", "'", '"', "é ", "\u2028", "- ", "Human: ", "<|im_end|>", "\t"]
)
after = st.sampled_from(
    ["", "", " ", "\n", "]", '"]', "}]", "\r\n", "é", "\u2028", "\n\nhuman: a", "\\n", "\x00", "'"]
) | st.text(max_size=5)
texts = st.builds(lambda first, last: f"{first}{mark()}{last}", before, after)
inner_values = (
    st.builds(mark) | st.builds(lambda: [mark()]) | st.builds(lambda: {"a": mark(), "b": [{"c": mark()}]}) | st.none()
)
column_values = st.builds(mark) | st.builds(lambda: [[mark(), mark()]]) | st.integers(-2, 2) | inner_values


def columns(names: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Columns beside those of a format."""
    return st.dictionaries(names, column_values, max_size=3)


@st.composite
def turn(draw: Draw, role: str, text: str, keys: tuple[str, str]) -> dict[str, Any]:
    """A turn in one of the spellings, with content as text or as parts, and sometimes with more in it."""
    content: Any = text
    if keys[1] == "content" and draw(st.booleans()):
        content = [{"type": "text", "text": text}]
    own = {keys[0]: draw(st.sampled_from(SPEAKERS[role])), keys[1]: content}
    return own | draw(st.dictionaries(st.sampled_from(TURN_EXTRAS), inner_values, max_size=1))


@st.composite
def turns(draw: Draw, dialogue: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A dialogue as a list of turns."""
    keys = draw(st.sampled_from([("role", "content"), ("from", "value"), ("role", "text")]))
    return [draw(turn(role, text, keys)) for role, text in dialogue]


@st.composite
def asked(draw: Draw) -> list[tuple[str, str]]:
    """The turns of a prompt."""
    roles = draw(st.sampled_from([("user",), ("user",), ("system", "user"), ("user", "assistant", "user")]))
    return [(role, draw(texts)) for role in roles]


@st.composite
def stored(draw: Draw, value: Any) -> Any:
    """A list of turns as it is, or as text."""
    return draw(st.sampled_from([lambda same: same, json.dumps, repr]))(value)


@st.composite
def prompt_of(draw: Draw, dialogue: list[tuple[str, str]], *, text: bool = True) -> Any:
    """A prompt as text, if it is one turn, or as turns."""
    if text and len(dialogue) == 1 and draw(st.booleans()):
        return dialogue[0][1]
    return draw(stored(draw(turns(dialogue))))


@st.composite
def response_of(draw: Draw, text: str) -> Any:
    """A response as text, as a turn, or as a list of one."""
    form = draw(st.sampled_from(["text", "turn", "turns"]))
    spelled = draw(turns([("assistant", text)]))
    return {"text": text, "turn": spelled[0], "turns": draw(stored(spelled))}[form]


@st.composite
def pair(draw: Draw, prompt: list[str], chosen: list[str], rejected: list[str], *, as_text: bool = True) -> Built:
    """A prompt and two responses, by one of these names each."""
    dialogue, sides = draw(asked()), (draw(texts), draw(texts))
    names = [draw(st.sampled_from(each)) for each in (prompt, chosen, rejected)]
    parts = [draw(prompt_of(dialogue, text=as_text)), *(draw(response_of(side)) for side in sides)]
    return Built([dict(zip(names, parts, strict=True))], dialogue, *sides)


@st.composite
def whole_dialogues(draw: Draw, chosen: str, rejected: str) -> Built:
    """Two dialogues that differ in the last turn."""
    dialogue, sides = draw(asked()), (draw(texts), draw(texts))
    spelled = draw(turns(dialogue))
    replies = [draw(stored(spelled + draw(turns([("assistant", side)])))) for side in sides]
    return Built([dict(zip((chosen, rejected), replies, strict=True))], dialogue, *sides)


@st.composite
def axolotl(draw: Draw) -> Built:
    return draw(pair(["messages"], ["chosen"], ["rejected"], as_text=False))


@st.composite
def openai(draw: Draw) -> Built:
    dialogue, sides = draw(asked()), (draw(texts), draw(texts))
    body = {"messages": draw(turns(dialogue))} | draw(columns(st.sampled_from(["tools", "parallel_tool_calls", "x"])))
    chosen, rejected = (draw(turns([("assistant", side)])) for side in sides)
    return Built([{"input": body, "preferred_output": chosen, "non_preferred_output": rejected}], dialogue, *sides)


@st.composite
def hh_rlhf(draw: Draw) -> Built:
    dialogue = [(role, text) for role, text in draw(asked()) if role != "system"]
    sides = (draw(texts), draw(texts))
    speakers = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    start = "".join(speakers[role] + text for role, text in dialogue)
    return Built(
        [{name: f"{start}\n\nAssistant: {side}" for name, side in zip(("chosen", "rejected"), sides, strict=True)}],
        dialogue,
        *sides,
    )


@st.composite
def in_order(
    draw: Draw,
    first: str,
    second: str,
    verdict: Callable[[bool], dict[str, Any]],
    prompt: list[str],
    *,
    as_text: bool = True,
) -> Built:
    """Two responses, of which `verdict` says whether the first one is better."""
    built = draw(pair(prompt, [first], [second], as_text=as_text))
    first_is_better = draw(st.booleans())
    if not first_is_better:
        built.chosen, built.rejected = built.rejected, built.chosen
    return Built([built.rows[0] | verdict(first_is_better)], built.prompt, built.chosen, built.rejected)


@st.composite
def arena(draw: Draw) -> Built:
    built = draw(whole_dialogues("conversation_a", "conversation_b"))
    built.rows[0]["winner"] = draw(st.sampled_from(["model_a", "tie"]))
    return built


@st.composite
def arena_55k(draw: Draw) -> Built:
    question, sides = draw(texts), (draw(texts), draw(texts))
    lists = [json.dumps([text]) for text in (question, *sides)]
    row = dict(zip(("prompt", "response_a", "response_b"), lists, strict=True))
    return Built([row | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}], [("user", question)], *sides)


@st.composite
def rated(draw: Draw, spell: Callable[[str, list[str], list[float]], list[dict[str, Any]]]) -> Built:
    """A prompt and several responses with ratings, the higher the better."""
    question, answers = draw(texts), draw(st.lists(texts, min_size=2, max_size=4))
    points = draw(st.lists(st.integers(-9, 9), min_size=len(answers), max_size=len(answers), unique=True))
    best, worst = (answers[points.index(choice(points))] for choice in (max, min))
    others = tuple(text for text in answers if text not in (best, worst))
    return Built(
        spell(question, answers, [float(point) for point in points]), [("user", question)], best, worst, others
    )


def nectar(prompt: str, answers: list[str], points: list[float]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answers": [{"answer": a, "rank": -p} for a, p in zip(answers, points, strict=True)]}]


def ultrafeedback(prompt: str, answers: list[str], points: list[float]) -> list[dict[str, Any]]:
    completions = [{"response": a, "overall_score": p} for a, p in zip(answers, points, strict=True)]
    return [{"instruction": prompt, "completions": completions}]


def distilabel(prompt: str, answers: list[str], points: list[float]) -> list[dict[str, Any]]:
    return [{"instruction": prompt, "generations": answers, "ratings": points}]


def helpsteer2(prompt: str, answers: list[str], points: list[float]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "response": a, "helpfulness": p} for a, p in zip(answers, points, strict=True)]


@st.composite
def unpaired(draw: Draw) -> Built:
    built = draw(pair(["prompt", "instruction", "question"], ["completion", "output", "response"], ["rejected"]))
    del built.rows[0]["rejected"]
    return _labelled(built, draw)


@st.composite
def kto(draw: Draw) -> Built:
    built = draw(whole_dialogues(draw(st.sampled_from(["messages", "conversations"])), "rejected"))
    del built.rows[0]["rejected"]
    return _labelled(built, draw)


def _labelled(built: Built, draw: Draw) -> Built:
    label = draw(st.sampled_from([True, False, 1, 0, "true", "False", 1.0]))
    is_good = str(label).lower() in ("true", "1", "1.0")
    row = built.rows[0] | {draw(st.sampled_from(["label", "kto_tag"])): label}
    return Built([row], built.prompt, *((built.chosen, None) if is_good else (None, built.chosen)))


QUESTIONS = ["prompt", "instruction", "question"]
BUILDERS: Mapping[str, st.SearchStrategy[Built]] = {
    "sharegpt": pair(["conversations"], ["chosen"], ["rejected"], as_text=False),
    "axolotl": axolotl(),
    "openai": openai(),
    "argilla": pair(QUESTIONS, ["chosen_response"], ["rejected_response"]),
    "shp": in_order("human_ref_A", "human_ref_B", lambda first: {"labels": int(first)}, ["history"]),
    "helpsteer3": in_order(
        "response1", "response2", lambda first: {"overall_preference": -1 if first else 2}, ["prompt", "context"]
    )
    | in_order("response_1", "response_2", lambda first: {"preference_strength": -1 if first else 2}, ["prompt"]),
    "safe-rlhf": in_order("response_0", "response_1", lambda first: {"better_response_id": int(not first)}, ["prompt"]),
    "arena": arena(),
    "versus": in_order("response_a", "answer_b", lambda first: {"winner": "A" if first else "model_b"}, QUESTIONS)
    | arena_55k(),
    "pku": pair(["context"], ["chosen"], ["rejected"], as_text=False),
    "plain": pair(["prompt"], ["chosen"], ["rejected"]),
    "alpaca": pair(["instruction"], ["chosen", "output"], ["rejected"]),
    "orca": pair(["question", "input", "query"], ["chosen"], ["rejected"]),
    "messages": whole_dialogues("chosen", "rejected"),
    "hh-rlhf": hh_rlhf(),
    "nectar": rated(nectar),
    "ultrafeedback": rated(ultrafeedback),
    "distilabel": rated(distilabel),
    "helpsteer2": rated(helpsteer2),
    "unpaired": unpaired(),
    "kto": kto(),
}
