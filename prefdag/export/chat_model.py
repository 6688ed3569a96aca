"""The registered language model: an OpenAI-like chat request in, an answer out.

MLflow keeps this file beside the exported folder and runs it to load the model ("models from code"), so that nothing is
pickled. It needs mlflow, torch and transformers, and nothing of this project.
"""

from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage, ChatParams, TokenUsageStats

MAX_TOKENS = 256  # of an answer, where the request names no bound
UNSUPPORTED = {"n": 1, "stream": False, "frequency_penalty": None, "presence_penalty": None, "tools": None}


class Policy(ChatModel):
    """The policy behind the chat template that it was trained with."""

    def load_context(self, context: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, only = context.artifacts["model"], {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **only)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **only)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.window = getattr(model.config, "max_position_embeddings", None)

    @torch.no_grad()
    def predict(self, context: Any, messages: list[ChatMessage], params: ChatParams) -> ChatCompletionResponse:
        """Temperature 0 is greedy; 1, MLflow's default as OpenAI's, samples from the model as it is."""
        for name, only in UNSUPPORTED.items():
            if (getattr(params, name) or only) != only:
                raise MlflowException.invalid_parameter_value(f"{name}: not supported; leave it out")
        # A control token that a user typed is text, as it was in training.
        prompt = self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content or ""} for message in messages],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        room = None if self.window is None else self.window - len(prompt)
        if room is not None and room < 1:
            raise MlflowException.invalid_parameter_value(
                f"messages: {len(prompt)} tokens, and the model has {self.window} positions; send less"
            )
        wanted = params.max_tokens or MAX_TOKENS
        ids = torch.tensor([prompt], device=self.model.device)
        sampling = {"do_sample": False}
        if params.temperature > 0:
            chosen = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k or 0}
            sampling = {"do_sample": True, **{name: value for name, value in chosen.items() if value is not None}}
        stop = {"stop_strings": params.stop, "tokenizer": self.tokenizer} if params.stop else {}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=wanted if room is None else min(wanted, room),
            **sampling,
            **stop,
        )
        new = output[0, len(prompt) :].tolist()
        ended = new[-1:] == [self.tokenizer.eos_token_id]
        text = self.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False)
        for each in params.stop or []:
            before, found, _ = text.partition(each)
            text, ended = before, ended or bool(found)
        return ChatCompletionResponse(
            choices=[ChatChoice(ChatMessage("assistant", text), finish_reason="stop" if ended else "length")],
            usage=TokenUsageStats(len(prompt), len(new), len(prompt) + len(new)),
        )


mlflow.models.set_model(Policy())
