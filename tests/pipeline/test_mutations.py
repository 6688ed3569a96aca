"""Files of a finished run are mutated in many ways. What reads them refuses each in one line, or reads the same values."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from clones import Run
from safetensors.torch import load_file, save_file

from prefdag.image import data as image_data
from prefdag.image import model as resnet
from prefdag.lifecycle.errors import PrefdagError
from prefdag.pairs.eval_sets import read_eval_sets
from prefdag.pairs.schema import read_pairs
from prefdag.pairs.turns import read_dialogues
from prefdag.runtime.artifacts import read_csv, read_json, read_table
from prefdag.runtime.dvc_files import files
from prefdag.text import model as lm
from prefdag.text.scoring import rows
from prefdag.tokenizer.tokenizer import ChatTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
fuzz = pytest.mark.slow  # also in CI, with fewer files

PAIRS, REF_LOGPS, VALIDATED = Path("data/pairs"), Path("data/ref_logps"), Path("data/validated/pairs.parquet")
REFERENCE, POLICY, RESNET = Path("models/reference"), Path("models/policy"), Path("models/dpo_image")
IMAGES, IMAGE_PAIRS = Path("data/validated/images"), Path("data/image_pairs")
IN_CHAOS, IN_CI = 2000, 100


class Artefact(NamedTuple):
    """A file, and what the pipeline reads from it."""

    path: Path
    read: Callable[[], object]


def artefacts() -> list[Artefact]:
    names = rows.read_split(PAIRS, "val").ids
    ids = read_table(VALIDATED, columns=["id"])["id"].to_pylist()[:5]
    return [
        Artefact(PAIRS / "val.parquet", lambda: rows.read_split(PAIRS, "val")),
        Artefact(VALIDATED, lambda: read_dialogues(VALIDATED, ids)),
        Artefact(REF_LOGPS / "val.parquet", lambda: rows.read_ref_logps(REF_LOGPS, "val", names, PAIRS, REFERENCE)),
        Artefact(REF_LOGPS / "key.json", lambda: rows.read_ref_logps(REF_LOGPS, "val", names, PAIRS, REFERENCE)),
        Artefact(Path("reports/text/tokens.parquet"), lambda: read_table(Path("reports/text/tokens.parquet"))),
        Artefact(Path("reports/text/metrics.json"), lambda: read_json(Path("reports/text/metrics.json"))),
        Artefact(Path("reports/text/pairs.csv"), lambda: read_csv(Path("reports/text/pairs.csv"))),
        Artefact(POLICY / "history.csv", lambda: read_csv(POLICY / "history.csv")),
        Artefact(POLICY / "adapter_model.safetensors", policy),
        Artefact(POLICY / "adapter_config.json", policy),
        Artefact(REFERENCE / "model.safetensors", lambda: lm.load(REFERENCE, packed=False).state_dict()),
        Artefact(REFERENCE / "config.json", lambda: lm.load(REFERENCE, packed=False).state_dict()),
        Artefact(REFERENCE / "tokenizer.json", tokens),
        Artefact(REFERENCE / "tokenizer_config.json", tokens),
        Artefact(RESNET / "model.safetensors", lambda: resnet.load(RESNET)[0].state_dict()),
        Artefact(RESNET / "config.json", lambda: resnet.load(RESNET)[0].state_dict()),
        Artefact(IMAGES / "images.safetensors", lambda: image_data.load_splits(IMAGES, IMAGE_PAIRS)),
        Artefact(IMAGE_PAIRS / "pairs.parquet", lambda: image_data.load_splits(IMAGES, IMAGE_PAIRS)),
        Artefact(first_file("data/raw/pairs"), lambda: read_pairs(Path("data/raw/pairs"), "auto")),
        Artefact(first_file("data/raw/evals"), lambda: read_eval_sets(Path("data/raw/evals"))),
    ]


def first_file(folder: str) -> Path:
    return min(path for path in Path(folder).rglob("*") if path.is_file())


def policy() -> object:
    return lm.load_models(REFERENCE, POLICY, packed=False).policy.state_dict()


def tokens() -> object:
    return ChatTokenizer(REFERENCE, "auto").prompt([{"role": "user", "content": "Hi, who are you?"}]).ids


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One mutation: of a bit, of eight bytes, of a number in a header, of the end."""
    data, place = bytearray(content), draw.randrange(len(content))
    match draw.randrange(6):
        case 0:
            data[place] ^= 1 << draw.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place : place + 8] = draw.randbytes(8)
        case 3:
            data[:8] = draw.choice([0, 1, 7, 2**63, 2**64 - 1, len(data), len(data) - 8, 10**9]).to_bytes(8, "little")
        case 4:
            data += draw.randbytes(draw.randrange(1, 100))
        case _:
            data[min(place, 400)] ^= 1 << draw.randrange(8)
    return bytes(data)


def mutations(count: int, content: bytes, draw: random.Random) -> Iterator[bytes]:
    while count:
        if (changed := mutated(content, draw)) != content:
            count -= 1
            yield changed


def same(a: Any, b: Any) -> bool:
    """Whether two results of reading have the same values."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, pd.DataFrame):
        return bool(a.equals(b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def outcome(artefact: Artefact, content: bytes, expected: object) -> str:
    artefact.path.unlink()  # never in place: the file may be a link
    artefact.path.write_bytes(content)
    try:
        result = artefact.read()
    except PrefdagError as error:
        return "a line" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "same values" if same(result, expected) else "other values"


def outcomes(count: int) -> Counter[tuple[str, str]]:
    """How often each file had each outcome."""
    draw, counts, all_artefacts = random.Random(1), Counter[tuple[str, str]](), artefacts()
    for number, artefact in enumerate(all_artefacts):
        content, expected = artefact.path.read_bytes(), artefact.read()
        share = count // len(all_artefacts) + (number < count % len(all_artefacts))
        for changed in mutations(share, content, draw):
            counts[str(artefact.path), outcome(artefact, changed, expected)] += 1
        artefact.path.unlink()
        artefact.path.write_bytes(content)
    return counts


@pytest.fixture
def count(pytestconfig: pytest.Config) -> int:
    """How many files to mutate: `make chaos` takes its time."""
    return IN_CHAOS if pytestconfig.getoption("markexpr") == "chaos" else IN_CI


@pytest.fixture(autouse=True)
def _in_the_copy(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    torch.manual_seed(0)


@fuzz
def test_no_mutation_is_read_as_what_a_stage_wrote(count: int) -> None:
    counts = outcomes(count)
    assert counts.total() == count
    assert {what for _, what in counts} <= {"a line", "same values"}, counts
    assert counts.total() / 2 < sum(n for (_, what), n in counts.items() if what == "a line")


@fuzz
def test_without_dvc_lock_too_a_mutation_is_no_traceback(count: int) -> None:
    """Then nothing says what a stage wrote, and another value is data."""
    for lock in files(Path("dvc.lock")):
        lock.unlink()
    counts = outcomes(count // 2)
    assert {what for _, what in counts} <= {"a line", "same values", "other values"}, counts


@pytest.mark.parametrize("command", [["export", "--to", "out"], ["chat", "--prompt", "Hi!", "--max-new-tokens", "2"]])
def test_a_policy_that_changed_is_neither_exported_nor_chatted_with(command: list[str], copy: Path, run: Run) -> None:
    """Even with --force, which says so, an adapter without a tensor is refused. A changed value is then taken, by the chat
    (an export takes half a minute)."""
    path = copy / "models/policy/adapter_model.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    for changed, forced in (
        ({name: tensor for name, tensor in tensors.items() if name != first}, f"{first}: missing"),
        (tensors | {first: tensors[first] * 1e3}, None),
    ):
        if forced is None and command[0] == "export":
            continue
        path.unlink()
        save_file(changed, path, metadata={"format": "pt"})
        done = run("prefdag", *command, check=False)
        assert done.returncode == 2
        assert "error: models/policy: changed since its stage wrote it" in done.stdout
        assert "`--force` takes it as it is" in done.stdout
        assert not (copy / "out").exists()
        done = run("prefdag", *command, "--force", check=False)
        assert "warning: models/policy: changed since" in done.stdout
        assert done.returncode == (2 if forced else 0), done.stdout
        assert (forced or "") in done.stdout
        assert "Traceback" not in done.stdout


def test_a_stage_refuses_what_changed(copy: Path, run: Run) -> None:
    path = copy / "data/pairs/train.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = run("python", "-m", "stages.sft_ref", check=False)
    assert done.returncode == 2
    assert "error: data/pairs: changed since its stage wrote it, as dvc.lock shows" in done.stdout
    assert "Traceback" not in done.stdout
