"""Small made-up files for everything that the report reads, and a parser of its page."""

from html.parser import HTMLParser
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from prefdag.health import verdict as health
from prefdag.image import evaluate
from prefdag.rounds import table as round_table
from prefdag.runtime.artifacts import write_json
from prefdag.text.generation import answers

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> & </article>"
N_TEST, N_IMAGES = 40, 300
HEALTH = health.Verdict(
    [health.Finding("kl_out_of_budget", "KL to the reference at the end: 12.5 nats per response")],
    ["kl_out_of_budget", "divergence"],
    ["length_exploitation"],
)


def history(rng: np.random.Generator, steps: int, every: int, *, dpo: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A plausible run: the columns of history.csv and validation.csv."""

    def rows(at: np.ndarray, noise: float) -> pd.DataFrame:
        progress, wobble = at / steps, rng.normal(size=len(at)) * noise
        if not dpo:
            loss = 2.1 - 0.4 * progress + wobble
            return pd.DataFrame(
                {"step": at, "loss": loss, "cross_entropy": loss, "accuracy": 0.3 + 0.6 * progress + wobble / 9}
            )
        chosen, rejected = -0.6 * progress + wobble, -1.2 * progress - wobble
        frame = pd.DataFrame({"step": at, "loss": log(2) - 0.1 * progress + wobble / 5})
        return frame.assign(
            **{
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margin": chosen - rejected,
                "rewards/accuracy": np.clip(0.5 + 0.12 * progress + wobble, 0, 1),
                "logps/chosen": -180 + 10 * chosen,
                "logps/rejected": -190 + 10 * rejected,
            }
        )

    train = rows(np.arange(1, steps + 1), 0.12).assign(epoch=0, learning_rate=1e-4, grad_norm=0.9)
    return train, rows(np.unique([*range(0, steps, every), steps]), 0.02)


def write_run(folder: Path, rng: np.random.Generator, steps: int, *, dpo: bool) -> None:
    folder.mkdir(parents=True)
    for name, frame in zip(("history.csv", "validation.csv"), history(rng, steps, 10, dpo=dpo), strict=True):
        frame.to_csv(folder / name, index=False)
    (folder / "model.safetensors").write_bytes(b"weights")


def write_gate(folder: Path, *tables: str) -> None:
    """The outputs of a gate stage: the results of each table, and the offending rows."""
    results, offending = {}, []
    for table in tables:
        blank = {
            "name": f"{table}-1",
            "expectation": "expect_column_values_to_not_be_blank",
            "description": "the response holds text",
            "kwargs": {"column": "chosen"},
            "success": True,
        }
        copies = {"name": f"{table}-2", "kwargs": {"column": "copy_of"}, "success": False}
        results[table] = {"success": False, "results": [blank, blank | copies | {"description": "no row stands twice"}]}
        offending += [
            [f"{table}.json:{row}", "copy_of", "drop", "the same as an earlier row", HOSTILE, f"{table}-2"]
            for row in range(1, 31)
        ]
    write_json(folder / "results.json", results)
    columns = ["source", "column", "level", "reason", "excerpt", "expectation"]
    pd.DataFrame(offending, columns=columns).to_csv(folder / "offending.csv", index=False)
    met = {"rows": 44, "met": 7, "met_exactly": 5, "pairs": 9, "met_by_kept": 1}
    counts = {"read": 1300, "merged": 12, "dropped": 30, "kept": 1258}
    write_json(
        folder / "summary.json",
        {
            "rows": counts,
            "ignored_columns": {HOSTILE: 1300},
            "evals": {"truthfulqa": met},
            "kinds": {"sure": 1250, "tied": 8},
            "origins": {HOSTILE: 8, "a.json": 1250},
            "scripts": {"LATIN": 1258},
        },
    )
    shares = [
        ("all rows", "longer_preferred", 0.5624, 0.5352, 0.5892, 1258),
        ("all rows", "largest_origin", 0.99, 0.99, 0.99, 1258),
        (HOSTILE, "longer_preferred", 0.25, 0.0714, 0.5907, 8),
    ]
    pd.DataFrame(shares, columns=["source", "measure", "share", "low", "high", "n"]).to_csv(
        folder / "shares.csv", index=False
    )


def write_formatted(folder: Path) -> None:
    """The files that format_pairs writes next to the pairs."""
    lengths = {"length_p50": 120, "length_p100": 2048, "truncated": 0.625}
    parts = dict.fromkeys(("prompt", "chosen", "rejected"), lengths)
    summary = {
        "max_prompt_tokens": 96,
        "max_response_tokens": 96,
        "leaked": {"val": 0, "test": 0},
        "boundary": {"responses": 2516, "joined": 76, "share": 0.0302},
        **parts,
    }
    write_json(folder / "summary.json", summary)
    read = {"text": HOSTILE, "control": False, "kind": "read"}
    tokens = [
        {"text": "Bread.", "control": False, "kind": "scored"},
        {"text": "</s>", "control": True, "kind": "not scored"},
    ]
    write_json(
        folder / "examples.json",
        [{"source": "demo.json:7", "prompt": [read], "chosen": tokens, "rejected": tokens[:1]}],
    )
    rows = [["demo.json:1", "rejected", "left out", "the cut leaves the same tokens as of chosen"]]
    rows += [[f"demo.json:{i}", "prompt", "cut", f"{i + 96} tokens, keeps its last 96"] for i in range(2, 25)]
    pd.DataFrame(rows, columns=["source", "column", "change", "reason"]).to_csv(folder / "changes.csv", index=False)


def write_answers(folder: Path, ids: list[str], texts: dict[str, list[str]]) -> None:
    """The outputs of answer_text and judge_text for two prompts: both models' answers with both decodings."""
    prompts = pd.DataFrame({"id": ids, "prompt": [f"Bake bread! {HOSTILE}", "plain text"]})
    table = pd.concat(
        [
            answers.rows(prompts.assign(decoding=decoding, model=model), replies, [[5, 6, 7, 8, 9], [5, 0]], (0,))
            for decoding in ("greedy", "sampled")
            for model, replies in texts.items()
        ],
        ignore_index=True,
    )
    table.to_parquet(folder / "answers.parquet")
    write_json(folder / "answers.json", answers.statistics(table))
    verdicts = (
        table[["id", "decoding"]]
        .drop_duplicates()
        .assign(outcome=["win", "unread", "loss", "tie"], against="reference")
    )
    verdicts.to_parquet(folder / "verdicts.parquet")
    counts = {"n": 1, "wins": 1, "ties": 0, "losses": 0, "unread": 1}
    rate = {"win_rate": 1.0, "win_rate_low": 0.6034, "win_rate_high": 1.0}
    controlled = {f"length_controlled{end}": 0.5 for end in ("", "_low", "_high")}
    write_json(folder / "win_rate.json", {"implicit": {"greedy": counts | rate, "sampled": counts | rate | controlled}})


def write_tokens(path: Path, validated: pd.DataFrame, rng: np.random.Generator) -> None:
    """Tokens of five characters: the first twelve in even rows, which were cut; in the others all of them and an EOS."""
    rows = []
    for i, row in enumerate(validated.to_dict("records")):
        for side in ("chosen", "rejected"):
            texts = [row[side][at : at + 5] for at in range(0, len(row[side]), 5)]
            texts = texts[:12] if i % 2 == 0 else [*texts, "</s>"]
            values = rng.normal(0, 0.2, len(texts)).astype(np.float32)
            rows.append(
                {"id": row["id"], "side": side, "tokens": [7] * len(texts), "texts": texts, "logratios": values}
            )
    pd.DataFrame(rows).to_parquet(path)


def share(value: float, spread: float) -> dict[str, float]:
    return {"accuracy": value, "accuracy_low": max(0.0, value - spread), "accuracy_high": min(1.0, value + spread)}


def write_inputs(folder: Path) -> None:
    """Everything that the stage reads, as the other stages write it; 40 held-out pairs and 300 test images."""
    rng = np.random.default_rng(0)
    ids = [f"{i:016x}" for i in range(N_TEST)]
    texts = ["Sure! Bread needs flour, water, salt and time.", HOSTILE, "Ein längerer Satz. " * 60, ""]
    conversation = [
        {"role": "user", "content": "Hello\N{LINE SEPARATOR}there"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": f"How do I bake bread? {HOSTILE}"},
    ]
    pairs = folder / "data/pairs"
    pairs.mkdir(parents=True)
    validated = pd.DataFrame(
        {
            "id": ids,
            "source": [f"demo.json:{i + 1}" for i in range(N_TEST)],
            "prompt": [conversation[-1:] if i % 2 else conversation for i in range(N_TEST)],
            "chosen": [texts[i % 3] for i in range(N_TEST)],
            "rejected": [texts[(i + 1) % 3] for i in range(N_TEST)],
        }
    )
    (folder / "data/validated/images").mkdir(parents=True)
    validated.to_parquet(folder / "data/validated/pairs.parquet")
    responses = {side: validated[side] for side in ("chosen", "rejected")}
    for split in ("train", "val", "test"):
        cut = {f"{side}_truncated": [i % 2 == 0 for i in range(N_TEST)] for side in ("chosen", "rejected")}
        pd.DataFrame({"id": ids, "preference": 1.0, **cut, **responses}).to_parquet(pairs / f"{split}.parquet")
    write_formatted(folder / "reports/validation/formatted")
    chosen, rejected = rng.normal(-0.6, 0.5, N_TEST), rng.normal(-1.0, 0.7, N_TEST)
    text = folder / "reports/text"
    text.mkdir(parents=True)
    heldout = pd.DataFrame(
        {"id": ids, "reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected}
    )
    heldout.to_csv(text / "pairs.csv", index=False)
    write_tokens(text / "tokens.parquet", validated, rng)
    sets = {
        name: {
            "n_rows": 40 + i,
            "n_tokens": 3456 + 1000 * i,
            **{
                model: {"cross_entropy": 2.4 + i - 0.05 * j, "perplexity": float(np.exp(2.4 + i - 0.05 * j))}
                for j, model in enumerate(("base", "reference", "policy"))
            },
            "differences": {
                "policy_reference": {
                    "difference": -0.05,
                    "difference_low": -0.0712,
                    "difference_high": 0.0034 * (i - 1),
                }
            },
        }
        for i, name in enumerate(("heldout", "truthfulqa", "winogrande"))
    }
    margin = {"margin": 0.412, "margin_low": 0.121, "margin_high": 0.703}
    sets["heldout"] |= {
        "n_pairs": N_TEST,
        "kl": 0.0312,
        "rewards": {
            **share(0.675, 0.14),
            "chosen": -0.61,
            "rejected": -1.02,
            "log_loss": 0.652,
            "calibration_error": 0.081,
            "by_length": 0.525,
            "by_length_low": 0.375,
            "by_length_high": 0.671,
            "length_controlled": 0.6412,
            "length_controlled_low": 0.512,
            "length_controlled_high": 0.77,
        }
        | margin,
    }
    picked = {"mc1": 0.25, "mc1_low": 0.1, "mc1_high": 0.4, "mc2": 0.375, "mc2_low": 0.3, "mc2_high": 0.45, "n": 44}
    accuracy = {"accuracy": 0.55, "accuracy_low": 0.4, "accuracy_high": 0.693, "n": 40}
    models = ("base", "reference", "policy")
    choices = {"truthfulqa": dict.fromkeys(models, picked), "winogrande": dict.fromkeys(models, accuracy)}
    write_json(text / "metrics.json", sets | {"choices": choices})
    write_answers(text, ids[:2], {"reference": [texts[0], ""], "policy": [HOSTILE, texts[2]]})
    image = folder / "reports/image"
    image.mkdir(parents=True)
    labels = np.arange(N_IMAGES) % 10
    reference, policy, control = (
        np.where(np.arange(N_IMAGES) % k < r, (labels + 1) % 10, labels) for k, r in ((20, 1), (25, 1), (24, 1))
    )
    policy[20] = (labels[20] + 2) % 10
    probability = {f"{m}_probability": rng.uniform(0.2, 1, N_IMAGES) for m in evaluate.MODELS}
    confidence = {f"{m}_confidence": rng.uniform(0.2, 1, N_IMAGES) for m in evaluate.MODELS}
    predictions = {
        "index": np.arange(N_IMAGES),
        "label": labels,
        "y_l": (labels + 3) % 10,
        "reference": reference,
        "policy": policy,
        "control": control,
    }
    table = pd.DataFrame(predictions | probability | confidence)
    classes = [str(digit) for digit in range(10)]
    for name, frame in (
        ("predictions", table),
        ("classes", evaluate.by_class(table, classes)),
        ("confusion", evaluate.confusion(table, classes)),
        ("calibration", evaluate.calibration(table)),
    ):
        frame.to_csv(image / f"{name}.csv", index=False)
    accuracy = {name: float((predictions[name] == labels).mean()) for name in evaluate.MODELS}
    models_metrics: dict[str, Any] = {
        name: {**share(value, 0.02), "cross_entropy": 0.13, "calibration_error": 0.031 + i / 100}
        for i, (name, value) in enumerate(accuracy.items())
    }
    models_metrics |= {f"policy_against_{m}": evaluate.compared(table, "policy", m) for m in ("reference", "control")}
    rewards = {**share(0.981, 0.011), "chosen": 0.31, "rejected": -0.77, "margin": 1.08}
    write_json(image / "metrics.json", {"n_test": N_IMAGES, "kl": 0.0123, "rewards": rewards, **models_metrics})
    grid = np.hypot(*np.meshgrid(np.arange(28) - 14, np.arange(28) - 14))
    images = [[np.clip(255 - 60 * np.abs(grid - 2 - label), 0, 255).astype(np.uint8)] for label in labels]
    save_file(
        {"images": np.array(images), "labels": labels.astype(np.int64)},
        folder / "data/validated/images/images.safetensors",
    )
    write_json(folder / "data/validated/images/classes.json", classes)
    write_json(folder / "data/image_pairs/summary.json", {"straddling": {"exact": 0, "perceptual": 0}})
    splits = np.repeat(["train", "val", "test"], [N_IMAGES - 90, 30, 60])
    pd.DataFrame({"index": np.arange(N_IMAGES), "split": splits}).to_parquet(folder / "data/image_pairs/pairs.parquet")
    write_json(
        folder / "data/ref_logps/key.json",
        {"reference_sha256": "ab" * 32, "pairs_sha256": "cd" * 32, "dtype": "float32"},
    )
    for name, tables in (("pairs", ("pairs",)), ("images", ("files", "images"))):
        write_gate(folder / f"reports/validation/{name}", *tables)
    copies = {"exact_copies": 2, "near_copies": 3, "conflicting_copies": 1}
    altered = {"turned_upright": 12, "converted": {"opaque alpha": 1, "palette": 1100}, "unreadable_exif": 0}
    left = {
        "files_not_read": {"count": 21, "first": [HOSTILE, *(f"{i}.csv" for i in range(19))]},
        "files_skipped": {"count": 0, "first": []},
    }
    noise = {"estimate": 0.0162, "judge_accuracy": 0.9331}
    write_json(
        folder / "reports/validation/images/summary.json",
        {"read": 302, "written": N_IMAGES, "label_noise": noise, **copies, **altered, **left},
    )
    for name, dpo in (
        ("reference", False),
        ("policy", True),
        ("resnet_reference", False),
        ("dpo_image", True),
        ("control_image", False),
    ):
        write_run(folder / "models" / name, rng, 27, dpo=dpo)
    chosen = {"round": 0, "at_reference": True, "reasons": [], "model": "models/dpo_text"}
    write_json(folder / "reports/rounds/chosen.json", chosen)
    round_table.write(folder / "reports/rounds/table.csv", [])
    for track in ("text", "image"):
        write_json(folder / f"reports/{track}/reward_model.json", None)
    write_json(folder / "reports/text/health.json", health.to_json(HEALTH))
    write_json(folder / "reports/image/health.json", health.to_json(health.Verdict([], ["drift", "divergence"], [])))


def estimate(name: str, value: float, spread: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - spread, f"{name}_high": value + spread}


def write_rounds(folder: Path) -> None:
    """Two rounds, of which the first is chosen, since the second went beyond the KL budget; three pairs each."""
    rates = estimate("win_rate", 0.7, 0.11) | estimate("length_controlled", 0.61, 0.12)
    before = {
        **estimate("tokens", 20.5, 2.5),
        **estimate("distinct", 0.62, 0.05),
    }
    shares = {**estimate("repetition", 0.125, 0.02), **estimate("ended", 0.5, 0.1), **estimate("refused", 0.25, 0.05)}
    first = {
        "go": True,
        "before": before | shares | estimate("kl_to_reference", 0.4, 0.1),
        "after": {**before, **shares, **estimate("tokens", 31.5, 3.5)},
        "change": estimate("distinct_change", -0.031, 0.02),
        "judge": rates | {"n": 64},
        "stopping_judge": estimate("win_rate", 0.45, 0.12) | {"n": 64},
        "agreement": estimate("agreement", 0.66, 0.1) | estimate("gap", 0.25, 0.2),
        "pairs": {"prompts": 64, "prompts_kept": 51, "prompts_rejected": 13, "pairs": 51, "round": 1},
        **estimate("kl_to_reference", 2.25, 0.5),
    }
    second = first | {"go": False} | estimate("kl_to_reference", 12.75, 1.5)
    round_table.write(folder / "reports/rounds/table.csv", round_table.rows({1: first, 2: second, 3: None}, 1))
    reasons = ["the KL of 12.8 nats per response is above rounds.kl_budget, 10"]
    chosen = {"round": 1, "at_reference": False, "reasons": reasons, "model": "models/rounds/1"}
    write_json(folder / "reports/rounds/chosen.json", chosen)
    pairs = []
    for number in (1, 2):
        answered = [
            {"id": f"p{i}", "sample": j, "text": f"{HOSTILE} {number} {i} {j}"} for i in range(3) for j in range(2)
        ]
        pairs += [
            {
                "round": number,
                "id": f"{worse['id']}/round-{number}/1-0",
                "prompt_id": worse["id"],
                "prompt": f"Ask {HOSTILE}",
                "policy": f"{number}" * 64,
                "sampler": '{"kind": "local", "temperature": 1.0}',
                "seed": 7,
                "judge": '{"kind": "endpoint", "model": "m"}',
                "chosen": better["text"],
                "chosen_sample": 1,
                "chosen_score": 1.5,
                "chosen_tokens": 9,
                "rejected": worse["text"],
                "rejected_sample": 0,
                "rejected_score": -0.25,
                "rejected_tokens": 8,
            }
            for worse, better in zip(answered[::2], answered[1::2], strict=True)
        ]
        for name in ("samples", "pairs"):
            (folder / f"data/rounds/{number}/{name}").mkdir(parents=True)
        pd.DataFrame(answered).to_parquet(folder / f"data/rounds/{number}/samples/answers.parquet")
        pd.DataFrame(pairs).to_parquet(folder / f"data/rounds/{number}/pairs/train.parquet")
        write_json(folder / f"data/rounds/{number}/pairs/summary.json", {"round": number, "pairs": 3})


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and whether its tags are balanced."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
