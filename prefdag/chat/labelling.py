"""The labelling page of `prefdag label`: two answers side by side, and what people say of them, on the chat's server.

GET  /?annotator=NAME                   the page
GET  /v1/comparisons?annotator=NAME     the next comparison of a person
POST /v1/labels                         a label; replies with the next comparison
POST /v1/undo                           takes the person's last label back, and replies with its comparison

People see neither which model answered nor which answer was sampled first. Nobody sees what others said.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field

from prefdag.chat.protocol import StrictModel, error_body
from prefdag.chat.server import PAGE, guarded_app
from prefdag.labelling.labels import Label, Outcome, append, latest, read_labels
from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.lock import only_one

if TYPE_CHECKING:
    from prefdag.labelling.comparisons import Comparison

FILES = {
    "chat.css": "text/css",
    "label.css": "text/css",
    "label.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
Side = Literal["first", "second"]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # also the name of a file
MAX_NOTE = 2000
SWAPPED: dict[Side, Side] = {"first": "second", "second": "first"}


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("a name has the letters a to z, digits, - and _, at most 32")
    return name


def _one_line(note: str) -> str:
    """A note without what cannot be shown or stored."""
    return "".join(c if c.isprintable() else " " for c in note).strip()


class Person(StrictModel):
    """Who labels."""

    annotator: Annotated[str, AfterValidator(_name)]


class LabelRequest(Person):
    """What a person said of a comparison."""

    id: str
    outcome: Literal["left", "right", "tie", "skip"]
    note: Annotated[str, Field(max_length=MAX_NOTE), AfterValidator(_one_line)] = ""


class Labels:
    """The labels in a folder, and the comparisons that they are of. Each person has a file of their own."""

    def __init__(self, folder: Path, comparisons: Sequence["Comparison"]) -> None:
        self.folder = folder
        self.comparisons = {each.id: each for each in comparisons}
        self.counted = {
            key: label for key, label in latest(read_labels(folder)).items() if label.id in self.comparisons
        }

    def add(self, said: LabelRequest) -> None:
        """Raises `KeyError` if there is no such comparison."""
        left = side(said.annotator, self.comparisons[said.id])
        outcomes: dict[str, Outcome] = {"left": left, "right": SWAPPED[left], "tie": "tie", "skip": "skip"}
        label = Label(
            id=said.id,
            annotator=said.annotator,
            outcome=outcomes[said.outcome],
            note=said.note,
            time=_now(),
            left=left,
        )
        self._append(label)
        self.counted.pop((said.annotator, said.id), None)  # the new one is the last one
        self.counted[said.annotator, said.id] = label

    def undo(self, annotator: str) -> Label | None:
        """Take the person's last label back, and return it; None if there is none."""
        last = next((label for (name, _), label in reversed(self.counted.items()) if name == annotator), None)
        if last is not None:
            self._append(Label(id=last.id, annotator=annotator, outcome="undone", time=_now()))
            del self.counted[annotator, last.id]
        return last

    def _append(self, label: Label) -> None:
        append(self.folder / f"{label.annotator}.jsonl", label)

    def next(self, annotator: str) -> "Comparison | None":
        """What a person sees next: first what nobody has labelled. Comparisons of one prompt come together, and people
        begin with different ones."""
        people = Counter(key for _, key in self.counted)
        open_ = [each for each in self.comparisons.values() if (annotator, each.id) not in self.counted]

        def place(each: "Comparison") -> tuple[bool, int, int]:
            return people[each.id] > 0, _drawn(annotator, each.prompt_id), _drawn(annotator, each.id)

        return min(open_, key=place, default=None)

    def state(self, annotator: str, shown: "Comparison | None", note: str = "") -> dict[str, Any]:
        """What the page shows a person."""
        own = sum(name == annotator for name, _ in self.counted)
        labelled = len({key for _, key in self.counted})
        state: dict[str, Any] = {"done": own, "total": len(self.comparisons), "labelled": labelled, "comparison": None}
        if shown is not None:
            left = side(annotator, shown)
            texts = shown._asdict()
            state["comparison"] = {
                "id": shown.id,
                "turns": [turn._asdict() for turn in shown.turns],
                "left": texts[left],
                "right": texts[SWAPPED[left]],
                "note": note,
            }
        return state


def side(annotator: str, comparison: "Comparison") -> Side:
    """Which answer a person sees on the left: at random, and always the same."""
    return "first" if _drawn(annotator, comparison.id, "side") % 2 else "second"


def _drawn(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def make_app(labels: Labels) -> FastAPI:
    """The application. Its requests run one after the other, so no label overtakes another one."""
    app = guarded_app("prefdag label", FILES)

    @app.exception_handler(OSError)
    async def not_written(_: Request, error: OSError) -> JSONResponse:
        message = PrefdagError(f"the label is not saved: {error.strerror or error}")
        return JSONResponse(error_body(str(message), "server_error"), 500)

    @app.get("/")
    async def index() -> Response:
        return Response((PAGE / "label.html").read_bytes(), media_type="text/html")

    @app.get("/v1/comparisons")
    async def comparisons(annotator: Annotated[str, AfterValidator(_name)]) -> dict[str, Any]:
        return labels.state(annotator, labels.next(annotator))

    @app.post("/v1/labels")
    async def label(body: LabelRequest) -> Any:
        if body.id not in labels.comparisons:
            message = "no such comparison; reload the page"
            return JSONResponse(error_body(message, param="id"), 404)
        labels.add(body)
        return labels.state(body.annotator, labels.next(body.annotator))

    @app.post("/v1/undo")
    async def undo(body: Person) -> Any:
        taken = labels.undo(body.annotator)
        if taken is None:
            return JSONResponse(error_body("there is no label of yours to undo"), 409)
        return labels.state(body.annotator, labels.comparisons[taken.id], taken.note)

    return app


def only_server(name: str) -> AbstractContextManager[None]:
    """Refuse a second server for the same labels in this directory: it would not see what the first one saved."""
    refusal = f"labels/{name}: another `prefdag label` serves it; use its page, or stop it"
    return only_one(f"label-{name}", refusal)
