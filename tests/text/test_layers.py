"""Our layers, and log-probabilities computed in parts of the tokens, against torch's own values and gradients."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated
from transformers.models.cohere import modeling_cohere
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Config, DeepseekV4MLP
from transformers.pytorch_utils import Conv1D

from prefdag.text.scoring import vocabulary
from prefdag.text.scoring.layers import Linear, TransposedLinear, speed_up, speed_up_adapters, speed_up_rotary

S, D, V = 23, 16, 50


def naive(states: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return torch.stack([head(state).log_softmax(-1)[y] for state, y in zip(states, targets, strict=True)])


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens at a time: three full parts and a remainder."""
    monkeypatch.setattr(vocabulary, "MAX_LOGITS", 7 * V)


def example(bias: bool = False, seed: int = 0) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(S, D, requires_grad=True), nn.Linear(D, V, bias=bias), torch.randint(0, V, (S,))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_parts_give_the_values_and_gradients_of_the_whole(trained: bool, bias: bool) -> None:
    states, head, targets = example(bias)
    head.requires_grad_(trained)
    upstream = torch.randn(S)
    inputs = [states, *(head.parameters() if trained else [])]
    logps, expected = vocabulary.token_logps(states, head, targets), naive(states, head, targets)
    torch.testing.assert_close(logps, expected)
    gradients = (torch.autograd.grad(output, inputs, upstream) for output in (logps, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("parts")
def test_states_may_be_logits() -> None:
    logits = torch.randn(S, V, requires_grad=True)
    targets = torch.randint(0, V, (S,))
    logps = vocabulary.token_logps(logits, None, targets)
    expected = -nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(logps, expected)
    a, b = (torch.autograd.grad(output.sum(), logits)[0] for output in (logps, expected))
    torch.testing.assert_close(a, b)


def test_a_head_in_bfloat16_gives_log_probabilities_in_float32() -> None:
    states, head, targets = example()
    low_head, low_states = head.to(torch.bfloat16).requires_grad_(False), states.detach().bfloat16().requires_grad_()
    logps = vocabulary.token_logps(low_states, low_head, targets)
    logits = (low_states @ low_head.weight.t()).float()  # rounded to bfloat16 once
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    logps.sum().backward()
    exact = torch.autograd.grad(naive(states, head.float(), targets).sum(), states)[0]
    torch.testing.assert_close(low_states.grad, exact, rtol=0.05, atol=0.05, check_dtype=False)


@pytest.mark.usefixtures("parts")
def test_collisions_and_kl_are_sums_over_the_vocabulary() -> None:
    states, head, targets = example()
    other, other_head, _ = example(seed=1)
    p, q = head(states).softmax(-1), other_head(other).softmax(-1)
    torch.testing.assert_close(vocabulary.log_collisions(states, head), (p**2).sum(-1).log())
    outputs = vocabulary.logps_and_kl(states, head, other, other_head, targets)
    torch.testing.assert_close(outputs.kl, (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(outputs.policy, p.log().gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(outputs.reference, q.log().gather(1, targets[:, None])[:, 0])


def test_the_logits_of_a_batch_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the two passes is larger than the parts that `MAX_LOGITS` allows."""
    monkeypatch.setattr(vocabulary, "MAX_LOGITS", 4 * V)
    states, head, targets = example()
    head.requires_grad_(False)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))
            return out

    with Watch():
        vocabulary.token_logps(states, head, targets).sum().backward()
    assert max(sizes) <= max(4 * V, S * D, V * D) < S * V


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D, V),
    "no bias": lambda: nn.Linear(D, V, bias=False),
    "transposed": lambda: Conv1D(V, D),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_our_linear_layers_equal_torchs(layer: str, trained: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = LAYERS[layer]().to(dtype).requires_grad_(trained)
    ours = LAYERS[layer]().to(dtype).requires_grad_(trained)
    ours.load_state_dict(plain.state_dict())
    speed_up(ours)
    assert isinstance(ours, Linear | TransposedLinear)
    x = torch.randn(2, 5, D, dtype=dtype, requires_grad=True)
    upstream = torch.randn(2, 5, V, dtype=dtype)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    results = []
    for module in (ours, plain):
        out = module(x)
        results.append((out, *torch.autograd.grad(out, [x, *(module.parameters() if trained else [])], upstream)))
    for ours_output, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours_output, expected, **tolerance)


def test_our_linear_layers_follow_autocast() -> None:
    layer = nn.Linear(D, V)
    speed_up(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, D)).dtype == torch.bfloat16


class Feed(nn.Module):
    """A gated layer with the usual attribute names."""

    def __init__(self, act_fn: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(D, V), nn.Linear(D, V), nn.Linear(V, D)
        self.act_fn, self.scale = act_fn, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_our_gated_layer_computes_the_same_and_keeps_less() -> None:
    torch.manual_seed(0)
    layer, x = Feed(nn.SiLU()).double(), torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, D, dtype=torch.float64)

    def run(module: nn.Module) -> tuple[int, list[Tensor]]:
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.data_ptr()] = t.numel() if t.shape == (5, V) else 0
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = module(x)
        return sum(kept.values()), [out, *torch.autograd.grad(out, [x, *module.parameters()], upstream)]

    before, expected = run(layer)
    speed_up(layer)
    after, outputs = run(layer)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert after < before


@pytest.mark.parametrize("layer", [Feed(nn.GELU()), Feed(nn.SiLU(), scale=2.0)])
def test_a_layer_with_the_same_names_but_another_function_is_left_unchanged(layer: Feed) -> None:
    x = torch.randn(5, D)
    expected = layer(x)
    speed_up(layer)
    torch.testing.assert_close(layer(x), expected)


class Norm(nn.Module):
    """RMSNorm as transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(D) + 0.5), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


@pytest.mark.parametrize("limits", [(10.0, 10.0), (1e9, 10.0)])
def test_a_layer_that_limits_large_values_is_left_alone(limits: tuple[float, float]) -> None:
    """By layer: the first of two may have a limit that is never reached."""
    config = DeepseekV4Config(hidden_size=D, intermediate_size=32)
    layers = nn.ModuleList([DeepseekV4MLP(config) for _ in limits])
    for layer, limit in zip(layers, limits, strict=True):
        layer.limit = limit
    speed_up(layers)
    assert ["forward" in vars(layer) for layer in layers] == [limit > 1e6 for limit in limits]


def test_a_norm_with_a_gate_is_left_alone() -> None:
    norm = BambaRMSNormGated(D, group_size=D)
    x, gate = torch.randn(2, S, D)
    expected = norm(x, gate)
    speed_up(norm)
    torch.testing.assert_close(norm(x, gate), expected)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_our_norm_equals_transformers_norm(dtype: torch.dtype, trained: bool) -> None:
    torch.manual_seed(0)
    norm = Norm().to(dtype).requires_grad_(trained)
    x = torch.randn(3, 5, D, dtype=dtype, requires_grad=True)
    upstream = torch.randn(3, 5, D, dtype=dtype)
    results = []
    for _ in range(2):
        out = norm(x)
        results.append((out, *torch.autograd.grad(out, [x, *(norm.parameters() if trained else [])], upstream)))
        speed_up(norm)
    assert "forward" in vars(norm)
    tolerance = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for output, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(output, expected, **tolerance)


def rotate_halves(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, ...]:
    """Rotary positions as in most models of transformers; only the first channels are rotated if cos is shorter."""
    cos, sin, n = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), cos.shape[-1]

    def rotate(x: Tensor) -> Tensor:
        a, b = x[..., : n // 2], x[..., n // 2 : n]
        return torch.cat([x[..., :n] * cos + torch.cat([-b, a], -1) * sin, x[..., n:]], -1)

    return rotate(q), rotate(k)


def test_our_rotation_equals_transformers_rotation() -> None:
    code = SimpleNamespace(apply_rotary_pos_emb=rotate_halves)
    speed_up_rotary(code)
    ours = code.apply_rotary_pos_emb
    assert ours is not rotate_halves
    speed_up_rotary(code)
    assert code.apply_rotary_pos_emb is ours
    q, k = (torch.randn(1, heads, 7, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2))
    cos, sin = torch.randn(2, 1, 7, 8, dtype=torch.float64)
    upstream = [torch.randn_like(q), torch.randn_like(k)]
    rotated, expected = ours(q, k, cos, sin), rotate_halves(q, k, cos, sin)
    gradients, of_expected = (torch.autograd.grad(out, [q, k], upstream) for out in (rotated, expected))
    for a, b in zip([*rotated, *gradients], [*expected, *of_expected], strict=True):
        torch.testing.assert_close(a, b)
    # Ours calls theirs for the rest: another axis of heads, only a part of the channels, mixed dtypes.
    transposed = [t.transpose(1, 2) for t in (q, k)]
    for arguments in ([*transposed, cos, sin, 2], [q, k, cos[..., :4], sin[..., :4]], [q.float(), k.float(), cos, sin]):
        for a, b in zip(ours(*arguments), rotate_halves(*arguments), strict=True):
            torch.testing.assert_close(a, b)


def test_a_rotation_of_neighbouring_channels_is_left_unchanged() -> None:
    original = modeling_cohere.apply_rotary_pos_emb
    code = SimpleNamespace(apply_rotary_pos_emb=original)
    speed_up_rotary(code)
    assert code.apply_rotary_pos_emb is original


@pytest.mark.parametrize("base", [lambda: nn.Linear(D, V), lambda: Conv1D(V, D)])
@pytest.mark.parametrize("of_x", [False, True])
def test_our_adapted_layer_equals_that_of_peft(base: Callable[[], nn.Module], of_x: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(base()).double()
    speed_up(model)
    policy = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))  # type: ignore[arg-type]
    layer: Any = policy.base_model.model[0]
    for p in layer.parameters():
        p.data = p.data.double()
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 5, D, dtype=torch.float64, requires_grad=of_x)
    upstream = torch.randn(2, 5, V, dtype=torch.float64)
    adapter = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    results = []
    for _ in range(2):
        out = layer(x)
        results.append((out, *torch.autograd.grad(out, [*([x] if of_x else []), *adapter], upstream)))
        with policy.disable_adapter():
            results[-1] = (*results[-1], layer(x))
        speed_up_adapters([layer])
    assert "forward" in vars(layer)
    for output, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_an_adapter_with_dropout_or_dora_is_left_to_peft(changes: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(D, V))
    speed_up(model)
    policy = get_peft_model(model, LoraConfig(r=3, target_modules=["0"], **changes))  # type: ignore[arg-type]
    layer: Any = policy.base_model.model[0]
    speed_up_adapters([layer])
    assert "forward" not in vars(layer)
