"""The registered language model: an OpenAI-like chat request in, an answer out.

MLflow keeps this file beside the exported folder and runs it to load the model ("models from code"), so that nothing is
pickled. It needs mlflow, torch and transformers, and nothing of this project.
"""

import time
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

MAX_TOKENS = 256  # of an answer, where the request names no bound


class Policy(PythonModel):
    """The policy behind the chat template that it was trained with."""

    def load_context(self, context: Any) -> None:
        """Read the exported folder. MLflow calls it once."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, only = context.artifacts["model"], {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **only)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **only)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.window = getattr(model.config, "max_position_embeddings", None)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chat completion: greedy, unless the request names a temperature above 0.

        Args:
            model_input: one row: messages, and what else the request has of temperature, top_p, top_k, max_tokens, stop.
        """
        if len(model_input) != 1:
            raise _refusal(f"{len(model_input)} requests at once; send one")
        # An option that the request leaves out is not there, None or NaN.
        row = {str(key): values[0] for key, values in model_input.to_dict("list").items()}
        request = {key: value for key, value in row.items() if not pd.api.types.is_scalar(value) or not pd.isna(value)}
        prompt = self._prompt(request["messages"])
        new, ended = self._answer(prompt, request)
        text = self.tokenizer.decode(new, skip_special_tokens=False)
        for each in request.get("stop", []):
            text, found, _ = text.partition(each)
            ended = ended or bool(found)
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
        """The ids of a dialogue. A control token that a user typed is text, as it was in training."""
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                [{"role": message["role"], "content": message["content"]} for message in messages],
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
            )
        except Exception as error:  # a template raises what it likes: it may know no system message
            raise _refusal(f"messages: the chat template does not take them ({error})") from None
        if self.window is not None and len(ids) >= self.window:
            raise _refusal(f"messages: {len(ids)} tokens, and the model has {self.window} positions; send less")
        return ids

    @torch.no_grad()
    def _answer(self, prompt: list[int], request: dict[str, Any]) -> tuple[list[int], bool]:
        """The ids of an answer, without the EOS, and whether there was one."""
        wanted = int(request.get("max_tokens", MAX_TOKENS))
        if wanted < 1:
            raise _refusal(f"max_tokens: {wanted}; ask for 1 or more")
        room = wanted if self.window is None else min(wanted, self.window - len(prompt))
        how: dict[str, Any] = {"do_sample": False}
        if request.get("temperature", 0.0) > 0:
            how = {"do_sample": True, "top_k": 0}  # transformers would cut at 50
            how |= {key: request[key] for key in ("temperature", "top_p", "top_k") if key in request}
        if "stop" in request:
            how |= {"stop_strings": list(request["stop"]), "tokenizer": self.tokenizer}
        ids = torch.tensor([prompt], device=self.model.device)
        output = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, **how)
        new = output[0, len(prompt) :].tolist()
        ended = new[-1] == self.tokenizer.eos_token_id
        return new[:-1] if ended else new, ended


def _refusal(message: str) -> MlflowException:
    """What the server answers with 400."""
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(Policy())
