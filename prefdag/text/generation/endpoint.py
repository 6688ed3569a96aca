"""Answers from an OpenAI-compatible server (/completions), such as vLLM, and the check that it serves the models on our disk.

A server cannot prove which weights it serves. `check` compares its log-probabilities of a few responses with ours. It takes
prompts as token ids, so that they are exactly those of the local sampler.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import requests
import torch
from torch import nn

from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.text.endpoint import Endpoint, key_from_environment
from prefdag.text.model import load, load_models
from prefdag.text.scoring.packing import Group, pack
from prefdag.text.scoring.rows import pair_rows
from prefdag.text.scoring.states import response_token_logps

if TYPE_CHECKING:
    from prefdag.config.answer_text import EndpointSampler
    from prefdag.config.round import ServedPolicy
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

KEY = "PREFDAG_SAMPLER_KEY"
PATH = "/completions"
# Without these, vLLM takes the defaults of the model's generation_config.json.
PLAIN = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
DESCRIBED = ("id", "root", "parent", "owned_by", "max_model_len")  # what is recorded of the server's list of models
CHECKED = 32  # responses on which served models and ours are compared
LONGEST = 500  # characters of a recorded text of the server
SURE = 0.25  # the largest standard error of a comparison that decides; the limit between two models is two of them away


@dataclass(frozen=True)
class ServedModel:
    """A model on a server, and the one on our disk that it should be."""

    server: Endpoint
    name: str  # under which the server serves it
    folder: Path  # of ours
    sha256: str  # of ours
    vocabulary: int  # how many token ids it knows
    kept_under: str  # what replies on disk are kept under: the hash of ours, and that of an adapter's base
    command: str = ""  # that serves it, for messages

    @property
    def remedy(self) -> str:
        return f"serve {self.folder}" + (f" ({self.command}), then run this again" if self.command else "")


class Completion(NamedTuple):
    """An answer of a server."""

    ids: list[int]  # with a stop id as the last one if the model ended there
    reply: str  # the part of the server's reply that is kept, as JSON
    reencoded: bool  # the server sent no token ids, so these are those of its text


def connect(
    config: "EndpointSampler", reference: Path, policy: Path, base: Path, test: "FormattedPairs"
) -> tuple[dict[str, ServedModel], dict[str, Any]]:
    """The served models by "reference" and "policy", and what is known of them and of their server.

    Args:
        reference, policy: the folders of ours.
        base: the model that the reference started from, which might be served in its place.
        test: pairs as `format_pairs` writes them; the models are compared on a few of them.

    Raises:
        SourceError: the server does not serve these models, as far as `check` can tell.
    """
    server = Endpoint("answer_text.sampler", config.url, config.timeout, "answers", KEY, key_from_environment(KEY))
    vocabulary = _vocabulary(reference)
    first, second = sha256(reference), sha256(policy)
    served = {
        "reference": ServedModel(server, config.reference, reference, first, vocabulary, first),
        "policy": ServedModel(server, config.policy, policy, second, vocabulary, f"{first} {second}"),
    }

    def ours() -> Iterator[tuple[Path, nn.Module]]:
        yield base, load(base)
        yield from zip((reference, policy), load_models(reference, policy), strict=True)

    return served, checked(served, ours(), config.tolerance, test)


def connect_policy(
    config: "ServedPolicy", where: str, reference: Path, policy: Path, others: Sequence[Path], rows: "FormattedPairs"
) -> tuple[ServedModel, dict[str, Any]]:
    """The served policy, and what is known of it and its server.

    Args:
        where: the server's key in params.yaml.
        others: other policies on the same reference, which might be served in its place.
        rows: as `test` of `connect`.

    Raises:
        SourceError: the server does not serve this policy, as far as `check` can tell.
    """
    server = Endpoint(where, config.url, config.timeout, "answers", KEY, key_from_environment(KEY))
    digest = sha256(policy)
    adapter = (policy / "adapter_config.json").exists()
    served = ServedModel(
        server,
        config.model,
        policy,
        digest,
        _vocabulary(reference),
        f"{sha256(reference)} {digest}",
        f"vllm serve {reference} --enable-lora --lora-modules {config.model}={policy}"
        if adapter
        else f"vllm serve {policy} --served-model-name {config.model}",
    )

    def ours() -> Iterator[tuple[Path, nn.Module]]:
        for other in others:
            yield other, load_models(reference, other).policy
        yield from zip((reference, policy), load_models(reference, policy), strict=True)

    return served, checked({"policy": served}, ours(), config.tolerance, rows)


def _vocabulary(reference: Path) -> int:
    return int(read_json(reference / "config.json").get("vocab_size", 2**31))


def checked(
    served: Mapping[str, ServedModel],
    ours: Iterable[tuple[Path, nn.Module]],
    tolerance: float | None,
    rows: "FormattedPairs",
) -> dict[str, Any]:
    """What is known of served models and their server, `check` included unless `tolerance` is None.

    Args:
        ours: models of ours by folder, one at a time: those that are served, and those that might be in their place.
    """
    description = describe(served)
    server = next(iter(served.values())).server
    if tolerance is None:
        log.warning("%s.tolerance is null: nothing shows that %s serves our models", server.name, server.url)
        return description
    groups = checked_groups(rows)
    logps = {folder: _our_logps(model, groups) for folder, model in ours}
    found = {name: check(model, logps, groups, tolerance) for name, model in served.items()}
    return {
        **description,
        **{name: description[name] | each for name, each in found.items()},
        "checked_tokens": len(next(iter(logps.values()))),
    }


def checked_groups(test: "FormattedPairs") -> list[Group]:
    """Prompts with one of their responses, evenly spaced over the rows, at most `CHECKED`."""
    pairs = pair_rows(test)
    rows = sorted({round(place) for place in np.linspace(0, len(pairs) - 1, CHECKED)})
    return [Group(pairs[row].prompt, pairs[row].group.responses[:1]) for row in rows]


def seed_of(parts: Sequence[int]) -> int:
    """A seed that every server accepts, 31 bits, from integers from 0 on."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0]) >> 1


def completions(
    served: ServedModel,
    tokenizer: "ChatTokenizer",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    parallel: int,
    name: str,
    seeds: Sequence[int],
    sampling: tuple[float, float] | None = None,
) -> list[Completion]:
    """The served model's answer to each prompt, at most `max_new_tokens` ids each, as `decoding.continuations`.

    A reply is kept on disk, under a hash of the server, the request and our model: what a killed run got is not asked again.

    Args:
        parallel: answers asked for at once.
        name: of the progress bar.
        seeds: one per prompt.
        sampling: temperature and top_p. None: greedy decoding.

    Raises:
        SourceError: the server fails, or sends what cannot be the answer to the request.
    """
    temperature, top_p = sampling or (0.0, 1.0)
    stops = tokenizer.stop_ids

    def ask(session: requests.Session, number: int) -> Completion:
        body = {
            "model": served.name,
            "prompt": list(prompts[number]),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            **PLAIN,
            "seed": seeds[number],
            "stop_token_ids": list(stops),
            "ignore_eos": True,  # a model's configuration may name an end that is none of ours
            "skip_special_tokens": False,
            "return_token_ids": True,
        }

        def read(answer: Any) -> str:
            kept = _kept(answer)
            if problem := _fault(kept, max_new_tokens, served.vocabulary):
                raise _error(served, f"prompt {number}: {problem}")
            ids = _answer_ids(kept, tokenizer, max_new_tokens)
            if not ids:
                raise _error(served, f"prompt {number}: the answer has neither text nor token ids")
            texts = (kept["text"], kept["system_fingerprint"] or "", tokenizer.decode(ids))
            if (key := served.server.key) and any(key in text for text in texts):
                raise _error(served, f"prompt {number}: the reply repeats the key in {KEY}; take a longer one")
            return json.dumps(kept, sort_keys=True)

        reply = served.server.ask(session, PATH, body, read, served.kept_under)
        kept = json.loads(reply)
        return Completion(_answer_ids(kept, tokenizer, max_new_tokens), reply, kept["token_ids"] is None)

    return served.server.for_each(range(len(prompts)), ask, parallel, "answer", name)


def _kept(answer: Any) -> dict[str, Any]:
    """What is kept of a reply: all that does not differ from one request to the next, such as its id and time.

    Raises `ValueError`, `LookupError` or `TypeError` if it has another form.
    """
    (choice,) = answer["choices"]
    text, reason = choice["text"], choice["finish_reason"]
    ids, stop = choice.get("token_ids"), choice.get("stop_reason")
    fingerprint, count = answer.get("system_fingerprint"), (answer.get("usage") or {}).get("completion_tokens")
    if not isinstance(text, str) or not isinstance(ids, list | None) or not isinstance(reason, str | None):
        raise TypeError
    return {
        "text": text.encode("utf-8", "replace").decode(),  # JSON can hold half of a surrogate pair, a file cannot
        "token_ids": ids,
        "finish_reason": reason,
        "stop_reason": stop if type(stop) is int else None,
        "completion_tokens": count if type(count) is int else None,
        "system_fingerprint": fingerprint[:LONGEST] if isinstance(fingerprint, str) else None,
    }


def _fault(kept: Mapping[str, Any], max_new_tokens: int, vocabulary: int) -> str:
    """Why a reply cannot be an answer to the request; empty if it can."""
    ids, reason = kept["token_ids"], kept["finish_reason"]
    count = kept["completion_tokens"] if ids is None else len(ids)
    if reason not in ("stop", "length"):
        return "the answer neither ended nor reached max_new_tokens"
    if ids is not None and not all(type(each) is int and 0 <= each < vocabulary for each in ids):
        return f"the answer has token ids outside the vocabulary of {vocabulary}"
    if count is not None and count > max_new_tokens:
        return f"the answer has {count} tokens, more than max_new_tokens"
    if reason == "length" and count is not None and count < max_new_tokens:
        return f"the answer was cut after {count} tokens; raise the server's context (vLLM: --max-model-len)"
    return ""


def _answer_ids(kept: Mapping[str, Any], tokenizer: "ChatTokenizer", max_new_tokens: int) -> list[int]:
    """The token ids of the answer in a reply, up to its first stop id."""
    ids, stops, ended = kept["token_ids"], tokenizer.stop_ids, kept["finish_reason"] == "stop"
    if ids is None:
        text, *rest = re.split(
            "|".join(re.escape(tokenizer.decode([stop])) for stop in stops), kept["text"], maxsplit=1
        )
        encoded = tokenizer.response(text).ids[:-1]
        return [*encoded[: max_new_tokens - 1], tokenizer.end_id] if ended or rest else encoded[:max_new_tokens]
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    if end is not None:
        return list(ids[: end + 1])
    # Some servers leave the token out at which the answer ended.
    stop = kept["stop_reason"] if kept["stop_reason"] in stops else tokenizer.end_id
    return [*ids, stop] if ended else list(ids)


def describe(served: Mapping[str, ServedModel]) -> dict[str, Any]:
    """What a server says of itself and of the models: its software, its version if it is vLLM, their entries in /models.

    Raises:
        SourceError: it does not serve one of them.
    """
    server = next(iter(served.values())).server

    def said(value: Any) -> Any:
        """A value as it may be recorded: a short text without the key, or a number."""
        if isinstance(value, str):
            text = value[:LONGEST].encode("utf-8", "replace").decode()
            return text.replace(server.key, "***") if server.key else text
        return value if type(value) is int and abs(value) < 2**31 else None

    with server.session() as session:
        entries = server.fetch(session, "/models", None, lambda models: {each["id"]: each for each in models["data"]})
        for model in served.values():
            if model.name not in entries:
                known = ", ".join(str(said(each)) for each in list(entries)[:5])
                remedy = f"; {model.remedy}" if model.command else ""
                raise _error(model, f"not served; the server has {known or 'no models'}{remedy}")
        response = server.request(session, f"{server.url.rstrip('/').removesuffix('/v1')}/version")
    try:
        version = json.loads(response.body)["version"]
    except (ValueError, LookupError, TypeError, RecursionError):  # only vLLM has this address
        version = None
    models = {
        key: {each: said(entries[model.name].get(each)) for each in DESCRIBED} | {"sha256": model.sha256}
        for key, model in served.items()
    }
    return {"url": server.url, "server": said(response.server), "version": said(version), **models}


def check(
    model: ServedModel, ours: Mapping[Path, np.ndarray], groups: Sequence[Group], tolerance: float
) -> dict[str, Any]:
    """Compare a served model's log-probabilities of a few responses with those of our models.

    Returns:
        `difference`, from the model that it should be: root mean square, in nats per token. `not_told_from`: other models of
        ours that are so near to it that the rounding of the server hides which one it serves.

    Args:
        ours: log-probabilities of the tokens of all responses under each model of ours, (tokens,), by its folder.
        groups: prompts with one response each.
        tolerance: the largest difference that rounding and precision explain.

    Raises:
        SourceError: the model differs by more, or it is nearer to another one of ours.
    """
    theirs = np.concatenate(_prompt_logps(model, groups))
    off = {folder: _distance(theirs, logps) for folder, logps in ours.items()}
    own = off[model.folder]
    if not own <= tolerance:
        raise _error(
            model,
            f"is not {model.folder}: its log-probabilities differ by {own:.3g} nats per token; {model.remedy}, or "
            f"raise {model.server.name}.tolerance ({tolerance:g}) if only its precision differs",
        )
    hidden = []
    for folder in sorted(ours.keys() - {model.folder}):
        # Where `theirs` lies on the line from ours (0) to the other one (1) has this standard error.
        apart = _distance(ours[model.folder], ours[folder])
        if not own < SURE * apart * math.sqrt(len(theirs)):
            hidden.append(str(folder))
        elif off[folder] < own:
            raise _error(model, f"is nearer to {folder} than to {model.folder}; {model.remedy}")
    if hidden:
        log.warning("%s may be %s: they differ by less than the server's rounding", model.name, " or ".join(hidden))
    return {"difference": own, "not_told_from": hidden}


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The root mean square of the difference."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


@torch.no_grad()
def _our_logps(model: nn.Module, groups: Sequence[Group]) -> np.ndarray:
    """The log-probabilities of the tokens of all responses under a model of ours, (tokens,)."""
    device = next(model.parameters()).device
    each = [response_token_logps(model, pack([group]).to(device)) for group in groups]
    return torch.cat(each).double().cpu().numpy()


def _prompt_logps(model: ServedModel, groups: Sequence[Group]) -> list[np.ndarray]:
    """The served model's log-probabilities of the tokens of each group's response. They are never taken from the disk."""

    def ask(session: requests.Session, group: Group) -> np.ndarray:
        (response,) = group.responses
        ids = [int(each) for each in (*group.prompt, *response)]  # JSON has no int32
        body = {"model": model.name, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}

        def read(answer: Any) -> np.ndarray:
            (choice,) = answer["choices"]
            logps = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(logps) not in (len(ids), len(ids) + 1):  # with or without the token that was generated
                raise _error(
                    model,
                    "comes without log-probabilities of the prompt (echo with logprobs), so its weights cannot be "
                    f"checked; take a server that sends them, such as vLLM, or set {model.server.name}.tolerance to null",
                )
            values = np.array([float(each) for each in logps[len(group.prompt) : len(ids)]])
            if not all(map(math.isfinite, values)):
                raise ValueError
            return values

        return model.server.fetch(session, PATH, body, read)

    return model.server.for_each(groups, ask, 1, "row", f"check of {model.name}")


def _error(model: ServedModel, problem: str) -> SourceError:
    return SourceError(f"params.yaml: {model.server.name}: model {model.name!r} at {model.server.url}: {problem}")
