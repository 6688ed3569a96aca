"""The language model in MLflow's registry: takes an OpenAI-style chat request, and returns an answer.

MLflow stores this file next to the exported folder, and runs it to load the model ("models from code"), so nothing is pickled.
It needs mlflow, torch and transformers, but nothing from this project.
"""

import time
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

MAX_TOKENS = 256  # longest answer if the request sets no limit


class PolicyModel(PythonModel):
    """The policy, with the chat template of its training."""

    def load_context(self, context: Any) -> None:
        """Load the exported folder. MLflow calls this once."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, only = context.artifacts["model"], {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **only)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **only)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        stops = model.generation_config.eos_token_id  # one id or a list
        self.stop_ids = set(stops if isinstance(stops, list) else [stops])
        self.window = getattr(model.config, "max_position_embeddings", None)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chat completion: greedy, unless the request sets a temperature above 0.

        Args:
            model_input: one row with messages and, optionally, temperature, top_p, top_k, max_tokens and stop.
        """
        if len(model_input) != 1:
            raise _bad_request(f"{len(model_input)} requests at once; send one")
        # An option that the request leaves out is missing, None or NaN.
        row = {str(key): values[0] for key, values in model_input.to_dict("list").items()}
        request = {key: value for key, value in row.items() if not pd.api.types.is_scalar(value) or not pd.isna(value)}
        prompt = self._prompt(request["messages"])
        new, ended = self._answer(prompt, request)
        text = self.tokenizer.decode(new, skip_special_tokens=False)
        for stop in request.get("stop", []):
            text, match, _ = text.partition(stop)
            ended = ended or bool(match)
        return {
            "id": f"chatcmpl-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "prefdag-text",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if ended else "length",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(new),
                "total_tokens": len(prompt) + len(new),
            },
        }

    def _prompt(self, messages: Any) -> list[int]:
        """The token ids of a dialogue. A control token typed by a user is treated as text, as in training."""
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                [{"role": message["role"], "content": message["content"]} for message in messages],
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
            )
        except Exception as error:  # templates may raise anything, for example for a system message
            raise _bad_request(f"messages: the chat template rejects them ({error})") from None
        if self.window is not None and len(ids) >= self.window:
            raise _bad_request(f"messages: {len(ids)} tokens, but the model's context is {self.window}; send fewer")
        return ids

    @torch.no_grad()
    def _answer(self, prompt: list[int], request: dict[str, Any]) -> tuple[list[int], bool]:
        """The token ids of an answer without its end, and whether the model ended it."""
        wanted = int(request.get("max_tokens", MAX_TOKENS))
        if wanted < 1:
            raise _bad_request(f"max_tokens: {wanted}; ask for 1 or more")
        limit = wanted if self.window is None else min(wanted, self.window - len(prompt))
        options: dict[str, Any] = {"do_sample": False}
        if request.get("temperature", 0.0) > 0:
            options = {"do_sample": True, "top_k": 0}  # the default in transformers is 50
            options |= {key: request[key] for key in ("temperature", "top_p", "top_k") if key in request}
        if "stop" in request:
            options |= {"stop_strings": list(request["stop"]), "tokenizer": self.tokenizer}
        ids = torch.tensor([prompt], device=self.model.device)
        output = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **options
        )
        new = output[0, len(prompt) :].tolist()
        ended = new[-1] in self.stop_ids
        return new[:-1] if ended else new, ended


def _bad_request(message: str) -> MlflowException:
    """An error that MLflow's server returns with status 400."""
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(PolicyModel())
