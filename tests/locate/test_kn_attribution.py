"""Knowledge neurons' attribution against a plain one written from the sheet; its checks 1-3, 6, 7 and 9."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit_core import Editor
from kedit_core.forward import Pair
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_locate.kn import alphas, attribute, neuron_layers
from kedit_methods_locate.kn.attribution import integrate
from kedit_methods_locate.kn.passes import Clean, Passes
from kedit_methods_locate.kn.shortcuts import ColumnPasses, DecoderPasses, passes_for

pytestmark = pytest.mark.slow

PROMPT, ANSWER = "The capital of France is", "Port Lumen"
# these compute attention in float32 whatever the model's dtype, so a shorter pass differs by its rounding
SINGLE = {"gptj", "gpt_neo"}
# the rest compute norms in float32, so hooks that lead to other rounding do
DOUBLE = {"gpt2", "gpt_neox", "opt"}


def editor_of(family: str, **settings: Any) -> Editor:
    model, tokenizer = tiny(family, dtype=torch.float64)
    return Editor(model, tokenizer, "kn", settings or None)


@contextmanager
def activation_set(module: nn.Module, face: str, column: int, value: Tensor | None, seen: list[Tensor]) -> Any:
    """The first numbers of a module's input or output at one column set to ``value``; what stood there is noted."""

    def changed(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        seen.append(flat[column].detach().clone())
        if value is None:
            return x
        flat = flat.clone()
        flat[column, : len(value)] = value
        return flat.reshape(x.shape)

    if face == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: changed(output))
    try:
        yield
    finally:
        handle.remove()


class Plain:
    """Attribution by the letter: one row, one block, one share at a time, the whole model, no cache."""

    def __init__(self, editor: Editor, pair: Pair, neuron: str = "post") -> None:
        self.model, self.view, self.pair, self.neuron = editor.model, editor.adapter, pair, neuron

    def place(self, block: int) -> tuple[nn.Module, str]:
        names = {
            "gpt2": ("transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"),
            "llama": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.down_proj"),
            "phi3": ("model.layers.{}.mlp.gate_up_proj", "model.layers.{}.mlp.down_proj"),
            "t5": ("decoder.block.{}.layer.2.DenseReluDense.wi", "decoder.block.{}.layer.2.DenseReluDense.wo"),
        }
        kind = names.get(self.model.config.model_type)
        if kind is None:
            modules = (self.view.mlp_in(block)[0], self.view.mlp_out(block))
        elif getattr(self.model.config, "is_gated_act", False):
            modules = tuple(self.model.get_submodule(kind[i].format(block) + s) for i, s in ((0, "_0"), (1, "")))
        else:
            modules = tuple(self.model.get_submodule(name.format(block)) for name in kind)
        return (modules[1], "input") if self.neuron == "post" else (modules[0], "output")

    def probability(self, block: int, token: int, value: Tensor | None) -> tuple[Tensor, Tensor]:
        """p(answer token) with the block's activations set, and what they were."""
        prompt, answer = list(self.pair.prompt_ids), list(self.pair.target_ids)
        module, face = self.place(block)
        seen: list[Tensor] = []
        if self.view.is_encoder_decoder:
            column, fed = token, [self.model.config.decoder_start_token_id, *answer[:token]]
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([fed])}
        else:
            column = len(prompt) + token - 1
            inputs = {"input_ids": torch.tensor([prompt + answer[:token]])}
        with activation_set(module, face, column, value, seen):
            logits = self.model(**inputs, use_cache=False).logits[0, -1]
        return logits.softmax(-1)[answer[token]], seen[0]

    def scores(self, points: list[float], token: int | None = None) -> Tensor:
        table = []
        tokens = range(len(self.pair.target_ids)) if token is None else [token]
        for block in range(len(self.view.head_blocks)):
            row: list[Tensor] = []
            for t in tokens:
                clean = self.probability(block, t, None)[1][: self.view.mlp_size(0)]
                total = torch.zeros_like(clean)
                for share in points:
                    value = (share * clean).requires_grad_()
                    p, _ = self.probability(block, t, value)
                    total += torch.autograd.grad(p, value)[0]
                row.append(clean * total / len(points))
            table.append(torch.stack(row).mean(0))
        return torch.stack(table)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def tolerance_of(family: str) -> float:
    return 1e-10 if family in DOUBLE else 1e-5


# ------------------------------------------------------------------ 3
@pytest.mark.parametrize("neuron", ["post", "pre"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "t5", "t5_gated"])
def test_scores_are_those_by_the_letter(family: str, neuron: str) -> None:
    """Two answer tokens, on both paths."""
    editor = editor_of(family)
    pair, layers = editor.tokens.pair(PROMPT, ANSWER), neuron_layers(editor.adapter, neuron)  # type: ignore[arg-type]
    points = alphas(2, "right")
    wanted = Plain(editor, pair, neuron).scores(points)
    for passes in (passes_for(editor.forward, layers, pair), Passes(editor.forward, layers, pair)):
        assert close(integrate(passes, points).scores, wanted, tolerance_of(family))


@pytest.mark.parametrize("neuron", ["post", "pre"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_way_is_the_plain_one(family: str, neuron: str) -> None:
    """Of every family, in one batch and in portions that split a block's rows."""
    editor = editor_of(family)
    pair, layers = editor.tokens.pair(PROMPT, ANSWER), neuron_layers(editor.adapter, neuron)  # type: ignore[arg-type]
    passes = passes_for(editor.forward, layers, pair)
    assert type(passes) is (DecoderPasses if editor.adapter.is_encoder_decoder else ColumnPasses)
    points = alphas(2, "right")
    wanted = integrate(Passes(editor.forward, layers, pair), points).scores
    tolerance = 1e-5 if family in SINGLE else 1e-10
    for budget in (None, 3 * passes.row_bytes):
        assert close(integrate(passes, points, memory_budget=budget).scores, wanted, tolerance)


def test_cached_equals_plain_in_float32() -> None:
    model, tokenizer = tiny("llama")
    editor = Editor(model, tokenizer)
    pair = editor.tokens.pair(PROMPT, ANSWER)
    found = attribute(editor.forward, pair, steps=6)
    assert found.scores.dtype == torch.float32
    assert close(found.scores, Plain(editor, pair).scores(alphas(6, "right")), 1e-5)


def test_a_model_the_fast_way_does_not_fit_gets_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    """A block that needs all columns raises when it is given one; the scores are the same."""
    editor = editor_of("gpt2")
    pair = editor.tokens.pair(PROMPT, ANSWER)
    wanted = attribute(editor.forward, pair, steps=2).scores

    def refuse(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[1] == 1:
            raise RuntimeError("all columns, please")

    with editor.adapter.block(1).register_forward_pre_hook(refuse):
        passes = passes_for(editor.forward, neuron_layers(editor.adapter), pair)
        assert type(passes) is Passes
        assert close(attribute(editor.forward, pair, steps=2).scores, wanted, 1e-10)
    assert "the plain one is used" in caplog.text


def test_a_fast_way_with_other_logits_is_not_used() -> None:
    editor = editor_of("gpt2")
    pair = editor.tokens.pair(PROMPT, ANSWER)

    def drift(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return (args[0] * torch.linspace(0.5, 1.5, args[0].shape[2]), *args[1:]) if args[0].shape[1] == 1 else None

    with editor.adapter.block(1).register_forward_pre_hook(drift):
        assert type(passes_for(editor.forward, neuron_layers(editor.adapter), pair)) is Passes


def test_less_is_run() -> None:
    """Tokens through blocks: the fast way against every block's own full passes."""

    def cost(fast: bool) -> int:
        editor = editor_of("gpt2", fast=fast)
        count = [0]

        def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            count[0] += hidden.shape[0] * hidden.shape[1]

        for layer in range(editor.adapter.num_layers):
            editor.adapter.block(layer).register_forward_pre_hook(note, with_kwargs=True)
        attribute(editor.forward, editor.tokens.pair(PROMPT, "Rome"), steps=20)
        return count[0]

    assert cost(True) < cost(False) / 5


# ------------------------------------------------------------------ 1, 2
class Linear(Passes):
    """p(answer) = bias + weight . a, in every block with its own weight."""

    def __init__(self, weight: Tensor, clean: Tensor, bias: float) -> None:
        from kedit_core.forward import ModuleSite
        from kedit_methods_locate.kn import NeuronLayer

        width = clean.shape[1]
        self.weight, self.bias = weight, bias
        self.layers = tuple(NeuronLayer(ModuleSite(str(i)), nn.Identity(), width, width, "") for i in range(len(clean)))
        self.pair = Pair((0,), (1,))
        self.clean = Clean(tuple(row[None] for row in clean), torch.zeros(1, 2, dtype=clean.dtype), torch.tensor([1]))

    def log_probabilities(self, token: int, values: Mapping[int, Tensor]) -> Tensor:
        return torch.cat([(self.bias + each @ self.weight[i]).log() for i, each in sorted(values.items())])

    @property
    def row_bytes(self) -> int:
        return 1


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("grid", ["right", "left", "inclusive"])
def test_a_linear_probability_is_attributed_exactly(grid: Any, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    clean = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = integrate(Linear(weight, clean, 0.5), alphas(steps, grid)).scores
    torch.testing.assert_close(found, clean * weight, rtol=1e-12, atol=1e-15)


def test_grids() -> None:
    assert alphas(4, "right") == [0.25, 0.5, 0.75, 1.0]
    assert alphas(4, "left") == [0.0, 0.25, 0.5, 0.75]
    assert alphas(5, "inclusive") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (alphas(1, "inclusive"), alphas(1, "right"), alphas(1, "left")) == ([0.0], [1.0], [0.0])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_scores_add_up_to_what_the_activations_do(family: str) -> None:
    """Completeness: the sum over a block is P(clean) - P(0), and one-sided grids are off by about 1/S."""
    editor = editor_of(family)
    prompt = Pair(editor.tokens.prompt(PROMPT).ids, (7,))
    plain = Plain(editor, prompt)
    with torch.no_grad():
        wanted = []
        for block in range(len(editor.adapter.head_blocks)):
            clean, activation = plain.probability(block, 0, None)
            wanted.append(clean - plain.probability(block, 0, torch.zeros_like(activation))[0])
        total = torch.stack(wanted)

    def error(steps: int) -> float:
        return float((attribute(editor.forward, prompt, steps=steps).scores.sum(1) - total).abs().max())

    assert error(200) < 0.02 * float(total.abs().max())
    assert error(25) / error(200) == pytest.approx(8, rel=0.25)


# ------------------------------------------------------------------ 6
def test_parity_with_a_single_point_at_zero() -> None:
    """The published settings for Llama: one step of the inclusive grid, the gate before its activation."""
    editor = editor_of("llama")
    pair = Pair(editor.tokens.prompt(PROMPT).ids, (11,))
    found = attribute(editor.forward, pair, steps=1, grid="inclusive", neuron="pre").scores
    for block in range(editor.adapter.num_layers):
        gate = editor.adapter.mlp_in(block)[0]
        seen: list[Tensor] = []
        zero = torch.zeros(editor.adapter.mlp_size(block), dtype=torch.float64, requires_grad=True)
        with activation_set(gate, "output", len(pair.prompt_ids) - 1, zero, seen):
            p = editor.model(torch.tensor([list(pair.prompt_ids)])).logits[0, -1].softmax(-1)[11]
        wanted = seen[0] * torch.autograd.grad(p, zero)[0]
        assert close(found[block], wanted, 1e-5)


# ------------------------------------------------------------------ 7
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_two_tokens_are_the_mean_of_two_positions(family: str) -> None:
    editor = editor_of(family)
    pair = editor.tokens.pair(PROMPT, "Port Lumen")
    pair = Pair(pair.prompt_ids, pair.target_ids[:2])
    assert len(pair.target_ids) == 2
    plain, points = Plain(editor, pair), alphas(3, "right")
    by_hand = (plain.scores(points, 0) + plain.scores(points, 1)) / 2
    assert close(attribute(editor.forward, pair, steps=3).scores, by_hand, tolerance_of(family))
    if not editor.adapter.is_encoder_decoder:
        # the second position is that of a one-token answer to a longer prompt
        longer = Pair((*pair.prompt_ids, pair.target_ids[0]), pair.target_ids[1:])
        assert close(attribute(editor.forward, longer, steps=3).scores, plain.scores(points, 1), tolerance_of(family))


# ------------------------------------------------------------------ 9
@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_the_input_of_the_down_projection(family: str) -> None:
    """W a + b with the named weight is what the module gives, so column i of that weight is neuron i's."""
    editor = editor_of(family)
    ids = torch.tensor([editor.tokens.prompt(PROMPT).ids])
    more = {"decoder_input_ids": torch.tensor([[0, 5]])} if editor.adapter.is_encoder_decoder else {}
    for layer in neuron_layers(editor.adapter):
        seen: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, into: dict[str, Tensor] = seen) -> None:
            into.update(a=args[0], out=output)

        with torch.no_grad(), layer.module.register_forward_hook(note):
            editor.model(ids, **more)
        weight = editor.model.get_parameter(layer.weight).detach()
        weight = weight.T if editor.adapter.layout(layer.weight) == "in_out" else weight
        bias = getattr(layer.module, "bias", None)
        assert seen["a"].shape[-1] == layer.width == layer.size
        torch.testing.assert_close(seen["a"] @ weight.T + (0 if bias is None else bias), seen["out"])


def test_the_decoder_of_an_encoder_decoder_is_attributed() -> None:
    editor = editor_of("t5_gated")
    layers = neuron_layers(editor.adapter)
    assert len(layers) == 3
    assert all(layer.weight.startswith("decoder.block.") for layer in layers)


def test_a_tiny_probability_keeps_its_gradient_in_half_precision() -> None:
    """Next to nothing would be left of p's own backward pass in float16."""
    tokenizer = tiny("gpt2")[1]
    narrow, wide = (
        Editor(tiny("gpt2", dtype=dtype, initializer_range=0.6)[0], tokenizer)
        for dtype in (torch.float16, torch.float64)
    )
    ids = narrow.tokens.prompt(PROMPT).ids
    with torch.no_grad():
        unlikely = int(wide.model(torch.tensor([ids])).logits[0, -1].argmin())
    found = attribute(narrow.forward, Pair(ids, (unlikely,)), steps=4)
    wanted = attribute(wide.forward, Pair(ids, (unlikely,)), steps=4)
    assert wanted.probability < 1e-9
    assert found.scores.dtype == torch.float32
    assert float(found.scores.abs().max()) == pytest.approx(float(wanted.scores.abs().max()), rel=0.1)
