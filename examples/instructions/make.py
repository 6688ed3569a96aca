"""Make pairs.jsonl: prompts with an instruction that a program can check, and a model's own answers, one of which follows it.

    python -m examples.instructions.make        # needs models/base: dvc repro download_model

It takes 15 minutes on two cores. On another processor, sampled answers can differ in a few places.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefdag.text.evaluation.instructions import found
from prefdag.text.generation.decoding import continuations
from prefdag.text.model import load
from prefdag.tokenizer.tokenizer import ChatTokenizer

BASE = Path("models/base")
PAIRS = Path(__file__).parent / "pairs.jsonl"

SAMPLES = 6  # answers to a prompt
SAMPLING = (0.8, 0.95)  # temperature and top_p
MAX_TOKENS = 40  # of an answer: one that has not ended by then is in no pair, so that none needs to be cut
SEEDS = {"train": 2, "test": 1}

TOPICS = {
    "train": """
maps, climbing, libraries, birthdays, patience, bread, rice, jokes, letters, clouds, winter, mornings, owls, clocks,
forests, laughter, rainbows, islands, chocolate, chess, cats, films, swimming, schools, museums, painting, roses,
silence, castles, rain, dogs, penguins, courage, gold, books, holidays, mushrooms, bicycles, stairs, evenings, fishing,
music, mirrors, ships, the sun, cooking, milk, mountains, stories, wood, apples, riddles, snow, spring, coffee, rivers,
paper, grass, poems, bridges, candles, water, hospitals, lamps, glass, soup, whales, gardens, dreams, markets
""",
    "test": """
honey, pencils, tea, the moon, summer, trees, the sea, running, caves, cars, windows, storms, cheese, sleep, memory,
friendship, autumn, lighthouses, horses, planes, trains, dancing, photographs, salt, stone, wool, silk, stars, sewing,
bees, volcanoes, football, deserts, spiders, kites, ponds, onions, drums, ladders, parks, shells, fog
""",
}
QUESTIONS = (
    "What is special about {}?",
    "Tell me something about {}.",
    "Why do people like {}?",
    "What would you tell a child about {}?",
    "Describe {}.",
    "What comes to mind when you think of {}?",
)
SENTENCES = [f"Answer in exactly {n}." for n in ("one sentence", "two sentences", "three sentences")]
AT_MOST = [f"Use at most {n} words." for n in (10, 12, 15, "ten")]
AT_LEAST = [f"Use at least {n} words." for n in (15, 20, 25)]
WORDS = ("wonderful", "never", "green", "quiet", "money", "strange", "often", "little", "brave", "simple")
INSTRUCTIONS = (  # every topic has a prompt for each
    SENTENCES,
    AT_MOST,
    AT_LEAST,
    ["End your answer with a question."],
    ["Do not use any commas.", "Use no commas."],
    [f'Use the word "{word}".' for word in WORDS],
    SENTENCES,
    SENTENCES,
    AT_MOST,
    AT_LEAST,
)


class Answer(NamedTuple):
    text: str
    tokens: int
    follows: bool


def prompts(split: str) -> list[str]:
    """The prompts of a split, whose topics are in no other split."""
    rng = random.Random(SEEDS[split])
    topics = (topic.strip() for topic in TOPICS[split].split(","))
    return [_prompt(topic, instructions, rng) for topic in topics for instructions in INSTRUCTIONS]


def _prompt(topic: str, instructions: list[str], rng: random.Random) -> str:
    question, instruction = rng.choice(QUESTIONS).format(topic), rng.choice(instructions)
    return f"{question} {instruction}" if rng.random() < 0.7 else f"{instruction} {question}"


def sampled(asked: list[str], name: str) -> list[list[Answer]]:
    """The base model's answers to each prompt, without those that did not end."""
    tokenizer = ChatTokenizer(BASE, "chat", {})
    dialogues = [tokenizer.dialogue([{"role": "user", "content": prompt}], None) for prompt in asked]
    answers = continuations(
        load(BASE, packed=False),
        [dialogue.prompt(1000).ids for dialogue in dialogues],
        [[[7, row, sample] for sample in range(SAMPLES)] for row in range(len(asked))],
        sampling=SAMPLING,
        max_new_tokens=MAX_TOKENS,
        stop_ids=tokenizer.stop_ids,
        batch_size=8,
        name=name,
    )

    def kept(prompt: str, ids: list[int]) -> Iterator[Answer]:
        text = tokenizer.decode(ids[:-1])
        if ids[-1] in tokenizer.stop_ids and text.strip():
            yield Answer(text, len(ids), all(each.followed for each in found(prompt, text)))

    return [[each for ids in some for each in kept(prompt, ids)] for prompt, some in zip(asked, answers, strict=True)]


def pairs(asked: list[str], answers: list[list[Answer]]) -> Iterator[dict[str, Any]]:
    """A pair for each prompt that has an answer that follows the instruction, and one that does not.

    The chosen answer is the longer one as often as the shorter one, as far as the answers allow: length tells nothing.
    """
    longer = 0  # chosen answers that were longer, minus those that were shorter
    for prompt, some in zip(asked, answers, strict=True):
        couples = [(good, bad) for good in some for bad in some if good.follows and not bad.follows]
        if not couples:
            continue
        random.Random(prompt).shuffle(couples)
        wanted = -1 if longer > 0 else 1
        chosen, rejected = next((couple for couple in couples if _sign(*couple) == wanted), couples[0])
        longer += _sign(chosen, rejected)
        yield {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text}


def _sign(one: Answer, other: Answer) -> int:
    return (one.tokens > other.tokens) - (one.tokens < other.tokens)


def main() -> None:
    with PAIRS.open("w", encoding="utf-8") as file:
        for split in TOPICS:
            asked = prompts(split)
            for pair in pairs(asked, sampled(asked, split)):
                file.write(json.dumps({"split": split, **pair}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
