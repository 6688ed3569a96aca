"""A fake OpenAI-compatible server whose answers are those of real models: /v1/models, /v1/completions, /version, as vLLM's."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import torch

Handler = BaseHTTPRequestHandler


def write(handler: Handler, data: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def send_json(handler: Handler, value: Any, status: int = 200) -> None:
    write(handler, json.dumps(value).encode(), status)


class CompletionServer:
    """Serves models by name. `asked` and `headers` record the requests for completions.

    `send` answers them; a test may replace it. `checks` answers those that ask for the prompt's log-probabilities.
    """

    def __init__(self, models: Mapping[str, Any], decode: Callable[[Sequence[int]], str]) -> None:
        self.models, self.decode = dict(models), decode
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.send: Callable[[Handler, dict[str, Any]], None] = lambda handler, body: send_json(
            handler, self.reply(body)
        )
        self.checks: Callable[[Handler, dict[str, Any]], None] = lambda handler, body: send_json(
            handler, self.reply(body)
        )
        self.listing: tuple[int, bytes] | None = None  # status and body of /v1/models in place of the right ones
        self.lock = Lock()
        outer = self

        class Requests(BaseHTTPRequestHandler):
            def version_string(self) -> str:
                return "uvicorn"

            def do_GET(self) -> None:
                if self.path == "/version":
                    send_json(self, {"version": "0.99.0"})
                elif self.path == "/v1/models":
                    if outer.listing is not None:
                        write(self, outer.listing[1], outer.listing[0])
                        return
                    entry = {"object": "model", "owned_by": "vllm", "parent": None, "max_model_len": 128}
                    send_json(
                        self, {"data": [{"id": name, "root": f"/models/{name}", **entry} for name in outer.models]}
                    )
                else:
                    write(self, b"", 404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/completions" or body["model"] not in outer.models:
                    write(self, b"", 404)
                    return
                with suppress(OSError):
                    if body.get("echo"):
                        outer.checks(self, body)
                        return
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.send(self, body)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator["CompletionServer"]:
        Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.http.shutdown()
            self.http.server_close()

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply of vLLM, from the model itself."""
        model, prompt = self.models[body["model"]], body["prompt"]
        ids = torch.tensor([prompt])
        with self.lock, torch.no_grad():
            if body.get("echo"):
                logps = model(input_ids=ids).logits[0].log_softmax(-1)
                values = [float(logps[place, token]) for place, token in enumerate(prompt[1:])]
                logprobs = {"token_logprobs": [None, *values, -1.0]}
                return {"choices": [{"text": "", "finish_reason": "length", "logprobs": logprobs}]}
            sampling: dict[str, Any] = {"do_sample": False}
            if body["temperature"] > 0:
                torch.manual_seed(body["seed"])
                options = {"temperature": body["temperature"], "top_p": body["top_p"], "top_k": 0}
                sampling = {"do_sample": True, **options}
            stops = body["stop_token_ids"]
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=body["max_tokens"],
                eos_token_id=stops,
                pad_token_id=stops[0],
                **sampling,
            )
        new = output[0, len(prompt) :].tolist()
        ended = new[-1] in stops
        return {
            "id": f"cmpl-{len(self.asked)}",
            "created": len(self.asked),
            "model": body["model"],
            "system_fingerprint": "fake",
            "usage": {"completion_tokens": len(new)},
            "choices": [
                {
                    "index": 0,
                    "text": self.decode(new[:-1] if ended else new),
                    "finish_reason": "stop" if ended else "length",
                    "stop_reason": new[-1] if ended else None,
                    "token_ids": new if body.get("return_token_ids") else None,
                }
            ],
        }
