"""Adapters from several parties, and one for an architecture of somebody's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pluggy
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from kedit_core.contract import PROJECT, HookSpecs, hookimpl
from kedit_core.errors import DuplicateNameError, KeditError, UnsupportedModelError
from kedit_core.models import AdapterRegistry, ModelAdapter, When
from kedit_core.models.builtin import ADAPTERS, GPT2, LLAMA, T5, T5_GATED, plugin
from kedit_core.testing.tiny import tiny_model


# ------------------------------------------------------------------ an architecture discovery cannot do
class OwnConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "kedit_test_own"

    def __init__(self, vocab_size: int = 50, width: int = 16, depth: int = 2, **more: Any) -> None:
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        super().__init__(**more)


class OwnMixer(nn.Module):
    """Every position reads the mean of those up to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        counts = torch.arange(1, stream.shape[1] + 1).view(1, -1, 1)
        return self.out(stream.cumsum(1) / counts)  # type: ignore[no-any-return]


class OwnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.up, self.down = OwnMixer(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.mix(stream)
        return stream + self.down(self.up(stream).relu())  # type: ignore[no-any-return]


class OwnForCausalLM(PreTrainedModel):  # type: ignore[misc]
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.stack = nn.ModuleList([OwnBlock(config.width) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width)
        self.answer = nn.Linear(config.width, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.answer

    def forward(self, input_ids: Tensor) -> Any:
        stream = self.tokens(input_ids)
        for block in self.stack:
            stream = block(stream)
        # The head's module is never run, which discovery has no way to follow.
        return SimpleNamespace(logits=nn.functional.linear(self.norm(stream), self.answer.weight, self.answer.bias))


OWN = ModelAdapter(
    architectures=("OwnForCausalLM",),
    block="stack.{}",
    mlp="stack.{}.down",
    mlp_in=("stack.{}.up",),
    mlp_out="stack.{}.down",
    attn="stack.{}.mix",
    attn_out="stack.{}.mix.out",
    embeddings="tokens",
    final_norm=("norm",),
    lm_head="answer",
    num_layers="depth",
    hidden_size="width",
)


class OwnPlugin:
    @hookimpl
    def register_adapters(self) -> list[ModelAdapter]:
        return [OWN]


def own_model() -> OwnForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OwnForCausalLM(OwnConfig()).eval()


def test_discovery_refuses_it() -> None:
    with pytest.raises(UnsupportedModelError, match="its weight is used without it"):
        AdapterRegistry(ADAPTERS).for_model(own_model())


def test_a_plugin_adapter_binds_it() -> None:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    for each in (plugin, OwnPlugin()):
        manager.register(each)
    manager.check_pending()
    registry = AdapterRegistry(adapter for answer in manager.hook.register_adapters() for adapter in answer)
    model = own_model()
    view = registry.for_model(model)
    assert (view.num_layers, view.hidden_size, view.mlp_size(1), view.vocab_size) == (2, 16, 24, 50)
    outputs: list[Tensor] = []
    handle = view.head_blocks[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        logits = model(torch.arange(8).view(2, 4)).logits
        assert torch.allclose(view.head(outputs[0]), logits, atol=1e-6)
    handle.remove()
    assert registry.for_model(tiny_model("gpt2")).adapter is GPT2


# ------------------------------------------------------------------ names
def test_the_same_adapter_twice_is_one() -> None:
    registry = AdapterRegistry([*ADAPTERS, *ADAPTERS, attrs.evolve(GPT2, distribution="somebody")])
    assert registry.adapter_for("GPT2LMHeadModel", None) is GPT2


def test_two_different_ones_name_both_parties() -> None:
    mine = attrs.evolve(LLAMA, parallel=True, distribution="kedit-mine")
    with pytest.raises(DuplicateNameError, match=r"LlamaForCausalLM .*kedit-core.* and kedit-mine") as caught:
        AdapterRegistry([attrs.evolve(LLAMA, distribution="kedit-core"), mine])
    assert "KEDIT_PLUGINS" in str(caught.value)


def test_two_of_one_party_are_said_to_be() -> None:
    one = attrs.evolve(OWN, distribution="kedit-mine")
    with pytest.raises(DuplicateNameError, match="kedit-mine, twice"):
        AdapterRegistry([one, attrs.evolve(one, parallel=True)])


def test_conditions_choose_between_adapters_of_one_class() -> None:
    registry = AdapterRegistry(ADAPTERS)
    assert registry.for_model(tiny_model("t5")).adapter is T5
    assert registry.for_model(tiny_model("t5_gated")).adapter is T5_GATED
    registry.register(attrs.evolve(T5, only_if=When("feed_forward_proj", "relu"), parallel=True, distribution="x"))
    with pytest.raises(DuplicateNameError, match="T5ForConditionalGeneration"):
        registry.for_model(tiny_model("t5"))
    assert registry.for_model(tiny_model("t5_gated")).adapter is T5_GATED


def test_a_derived_class_uses_its_base_classs_adapter() -> None:
    model = tiny_model("qwen2")
    model.__class__ = type("FSDPQwen2ForCausalLM", (type(model),), {})
    assert AdapterRegistry(ADAPTERS).for_model(model).adapter is LLAMA


def test_architectures_are_listed() -> None:
    listed = AdapterRegistry([*ADAPTERS, OWN]).architectures
    assert listed == tuple(sorted(listed)) and {"OwnForCausalLM", "Qwen3ForCausalLM"} <= set(listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_out": "stack.down"}, "mlp_out of the adapter for OwnForCausalLM"),
        ({"attn": "other.{}.mix"}, "must lie inside of its block"),
        ({"block": "stack"}, "block of the adapter"),
        ({"mlp_in": ()}, "mlp_in of an adapter is empty"),
        ({"architectures": ()}, "architectures of an adapter is empty"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attrs.evolve(OWN, **change)


def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(KeditError, match="a str was registered"):
        AdapterRegistry(["model.layers.{}"])  # type: ignore[list-item]


def test_an_adapter_that_names_what_is_not_there_is_refused_with_all_of_it() -> None:
    wrong = attrs.evolve(OWN, mlp_out="stack.{}.downwards", final_norm=("norm", "norm2"))
    with pytest.raises(UnsupportedModelError, match=r"'stack.0.downwards'.*'stack.1.downwards'.*'norm2'"):
        AdapterRegistry([wrong]).for_model(own_model())
    blocks = attrs.evolve(
        OWN, block="h.{}", mlp="h.{}.d", mlp_in=("h.{}.u",), mlp_out="h.{}.d", attn="h.{}.m", attn_out="h.{}.m.o"
    )
    with pytest.raises(UnsupportedModelError, match="a list of blocks 'h'"):
        AdapterRegistry([blocks]).for_model(own_model())
