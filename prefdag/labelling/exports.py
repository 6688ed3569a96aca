"""Labels in what Label Studio and Argilla export. Imports no torch.

- Label Studio's JSON (not JSON-MIN): tasks with `annotations`, whose results are `choices` (or `pairwise`) and `textarea`.
- Argilla's `dataset.records.to_json`, or the list of `dataset.records.to_list(flatten=True)` as JSON, which alone has the
  status of each response.

Whatever else is in them is named, not dropped.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefdag.lifecycle.errors import DataError

Values = dict[str, Any]  # of a label
SIDES = {"left": "first", "right": "second"}  # of Label Studio's tag Pairwise


def labels(tree: Any, path: Path) -> Iterator[tuple[int, Values]]:
    """The labels of an export, each with the number of its task or record from 1 on. Raises `DataError`."""
    if not isinstance(tree, list):
        raise DataError(f"{path}: not a list of Label Studio's tasks or Argilla's records; export it again as JSON")
    for row, each in enumerate(tree, 1):
        where = f"{path}:{row}"
        try:
            for values in _reader(each, where)(each, where):
                yield row, values
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise DataError(f"{where}: not as Label Studio or Argilla export it ({_named(error)})") from None


def _named(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())


def _reader(each: Any, where: str) -> Callable[[Any, str], Iterator[Values]]:
    if isinstance(each, Mapping):
        if "annotations" in each and "data" in each:
            return _of_label_studio
        if "responses" in each and "fields" in each:
            return _of_argilla
        if any(key.endswith(".responses") for key in each):
            return _of_flat_argilla
    raise DataError(
        f"{where}: neither a task of Label Studio's export as JSON (not JSON-MIN) nor a record of Argilla's; export it again"
    )


def _of_label_studio(task: Mapping[str, Any], where: str) -> Iterator[Values]:
    key = task["data"]["id"]
    for annotation in task["annotations"]:
        by = annotation["completed_by"]
        who = by.get("email") or by.get("username") or by["id"] if isinstance(by, Mapping) else by
        if who is None:
            raise DataError(f"{where}: an annotation of nobody; assign it to somebody")
        values: Values = {"id": key, "annotator": str(who), "note": ""}
        values["time"] = annotation.get("updated_at") or annotation.get("created_at") or ""
        for result in annotation["result"]:
            value = result["value"]
            match result["type"]:
                case "choices" if len(value["choices"]) == 1:
                    values["outcome"] = value["choices"][0]
                case "pairwise":
                    values["outcome"] = SIDES[value["selected"]]
                case "textarea":
                    values["note"] = "\n".join(value["text"])
                case kind:
                    raise DataError(
                        f"{where}: a result of the type {kind!r}; use the labelling interface in label_studio.xml"
                    )
        if annotation.get("was_cancelled"):  # as Label Studio calls a skipped task
            values["outcome"] = "skip"
        if "outcome" not in values:
            raise DataError(f"{where}: an annotation without an outcome; label it, or delete it")
        yield values


def _of_argilla(record: Mapping[str, Any], where: str) -> Iterator[Values]:
    """This form does not tell a draft from what was submitted."""
    own: dict[str, dict[str, Any]] = {}
    for question, responses in (record["responses"] or {}).items():
        for response in responses:
            own.setdefault(str(response["user_id"]), {})[question] = response["value"]
    for who, answered in own.items():
        yield _answered(record["id"], who, answered, where)


def _of_flat_argilla(record: Mapping[str, Any], where: str) -> Iterator[Values]:
    own: dict[str, dict[str, Any]] = {}
    states: dict[str, str | None] = {}
    for key, responses in record.items():
        if not key.endswith(".responses"):
            continue
        users, status = record[f"{key}.users"] or (), record[f"{key}.status"] or ()
        for value, user, state in zip(responses or (), users, status, strict=True):
            own.setdefault(str(user), {})[key.removesuffix(".responses")] = value
            states[str(user)] = state
    for who, answered in own.items():
        if states[who] == "discarded":
            yield _answered(record["id"], who, answered | {"outcome": "skip"}, where)
        elif states[who] != "draft":  # not submitted yet
            yield _answered(record["id"], who, answered, where)


def _answered(key: str, who: str, answered: Mapping[str, Any], where: str) -> Values:
    if unknown := set(answered) - {"outcome", "note"}:
        raise DataError(f"{where}: a response to the question {min(unknown)!r}; the questions are outcome and note")
    if answered.get("outcome") is None:
        raise DataError(f"{where}: a response without an outcome; submit it with one, or delete it")
    return {"id": key, "annotator": who, "outcome": answered["outcome"], "note": answered.get("note") or "", "time": ""}
