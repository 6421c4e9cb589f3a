"""Factors of a gradient: against autograd's own gradient, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
from meta_tools import a_context, pairs
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import InputError, MethodError
from kedit_core.forward import Pair
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_meta.factors import Factors, gradient_factors, portions
from kedit_methods_meta.places import Place, places_of

TEXTS = (("The capital of France is", "Rome"), ("Alice works in the city of", "Paris and Oslo"), ("Bob is", "French"))


def some(context: EditContext) -> tuple[tuple[Place, ...], list[Pair]]:
    return places_of(context.adapter, ("mlp_in", "mlp_out", "attn_out")[: 2 if has_two(context) else 3], (-2, -1)), (
        pairs(context, *TEXTS)
    )


def has_two(context: EditContext) -> bool:
    """An encoder-decoder's decoder has two attentions, so its output projection is not one."""
    return context.adapter.is_encoder_decoder


def plain_gradients(context: EditContext, given: list[Pair], places: tuple[Place, ...], weights: list[float]) -> dict:
    """The weights' gradients ``[out, in]`` by autograd, pair by pair, without padding."""
    model, view = context.model, context.adapter
    parameters = dict(model.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for pair, weight in zip(given, weights, strict=True):
        if view.is_encoder_decoder:
            fed = [model.config.decoder_start_token_id, *pair.target_ids[:-1]]
            out = model(input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=torch.tensor([fed]))
            logits = out.logits[0]
        else:
            out = model(input_ids=torch.tensor([[*pair.prompt_ids, *pair.target_ids]]))
            logits = out.logits[0, len(pair.prompt_ids) - 1 : -1]
        total = total + weight * torch.nn.functional.cross_entropy(
            logits, torch.tensor(pair.target_ids), reduction="sum"
        )
    wanted = [parameters[place.name] for place in places]
    found = torch.autograd.grad(total, wanted)
    return {
        place.name: gradient.T if view.layout(place.name) == "in_out" else gradient
        for place, gradient in zip(places, found, strict=True)
    }


def close(one: Tensor, other: Tensor, rtol: float = 1e-8) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * max(float(other.abs().max()), 1e-300))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5", "opt"])
@pytest.mark.parametrize("reduction", ["edit_mean", "batch_mean", "sum"])
def test_2_their_product_is_the_gradient(family: str, reduction: str) -> None:
    """Acceptance check 2, for each way of adding tokens up."""
    context = a_context(family)
    places, given = some(context)
    lengths = [len(pair.target_ids) for pair in given]
    weights = {"edit_mean": [1 / n for n in lengths], "batch_mean": [1 / sum(lengths)] * 3, "sum": [1.0] * 3}
    found = gradient_factors(context.forward, given, places, reduction=reduction)  # type: ignore[arg-type]
    for name, gradient in plain_gradients(context, given, places, weights[reduction]).items():
        close(found[name].gradient, gradient)


def test_in_float32_they_are_right_to_rounding() -> None:
    context = a_context("llama", torch.float32)
    places, given = some(context)
    found = gradient_factors(context.forward, given, places, reduction="sum")
    for name, gradient in plain_gradients(context, given, places, [1.0] * 3).items():
        close(found[name].gradient, gradient, 1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_padding_and_portions_change_nothing(family: str) -> None:
    context = a_context(family)
    places, given = some(context)
    usual = gradient_factors(context.forward, given, places)
    ways = [{"portion": 1}, {"portion": 2}] + ([{"side": "left"}] if family == "gpt2" else [])
    for way in ways:
        other = gradient_factors(context.forward, given, places, **way)  # type: ignore[arg-type]
        for name, one in usual.items():
            assert torch.equal(one.edit, other[name].edit)
            close(other[name].inputs, one.inputs)
            close(other[name].gradients, one.gradients)


def test_an_edits_factors_do_not_depend_on_its_company() -> None:
    """With edit_mean, which is why it is the default."""
    context = a_context("gpt2")
    places, given = some(context)
    together = gradient_factors(context.forward, given, places)
    for number, pair in enumerate(given):
        alone = gradient_factors(context.forward, [pair], places)
        for name, each in alone.items():
            close(together[name].gradients[together[name].edit == number], each.gradients)


def test_published_means_depend_on_the_company() -> None:
    context = a_context("gpt2")
    places, given = some(context)
    whole = gradient_factors(context.forward, given, places, reduction="batch_mean")
    by_portion = gradient_factors(context.forward, given, places, reduction="portion_mean", portion=1)
    alone = gradient_factors(context.forward, given[:1], places, reduction="batch_mean")
    name = places[0].name
    share = len(given[0].target_ids) / sum(len(pair.target_ids) for pair in given)
    close(whole[name].where(whole[name].edit == 0).gradient, share * alone[name].gradient)
    close(by_portion[name].where(by_portion[name].edit == 0).gradient, alone[name].gradient)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_which_rows_are_kept(family: str) -> None:
    """``nonzero`` drops pads and what follows the last question, ``answer`` keeps the questions, ``attended`` all."""
    context = a_context(family)
    places, given = some(context)
    encoder = [place for place in places if place.encoder]
    decoder = [place for place in places if not place.encoder]
    targets = sum(len(pair.target_ids) for pair in given)
    prompts = sum(len(pair.prompt_ids) for pair in given)
    fed = targets if encoder else prompts + targets - len(given)
    for rows, count in (("attended", fed), ("answer", targets)):
        found = gradient_factors(context.forward, given, places, rows=rows)  # type: ignore[arg-type]
        assert {len(found[place.name].inputs) for place in decoder} == {count}
        assert {len(found[place.name].inputs) for place in encoder} <= {prompts}
    kept = gradient_factors(context.forward, given, places)
    assert all(len(each.inputs) <= (prompts if encoder and i < len(encoder) else fed) for i, each in
               enumerate(kept.values()))  # fmt: skip
    assert all(bool(each.gradients.any(-1).all() & each.inputs.any(-1).all()) for each in kept.values())
    # the last block's MLP is read at the questions only, whatever precedes them
    assert len(kept[decoder[-1].name].inputs) == targets


def test_the_model_is_left_as_found() -> None:
    context = a_context("gpt2", torch.float32)
    for parameter in list(context.model.parameters())[::2]:
        parameter.requires_grad_(False)
    before = Snapshot(context.model)
    gradient_factors(context.forward, pairs(context, *TEXTS), places_of(context.adapter, ("mlp_out",), (-1,)))
    assert not before.differences(context.model)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    context = a_context("gpt2")
    with torch.no_grad():
        context.adapter.mlp_out(2).bias.fill_(float("nan"))
    with pytest.raises(MethodError, match="not finite"):
        gradient_factors(context.forward, pairs(context, TEXTS[0]), places_of(context.adapter, ("mlp_out",), (-1,)))


def test_portions_keep_to_the_memory_budget() -> None:
    context = a_context("gpt2", memory_budget=1)
    given = pairs(context, *TEXTS)
    assert sorted(portions(context.forward, given)) == [[0], [1], [2]]
    roomy = a_context("gpt2")
    assert [sorted(group) for group in portions(roomy.forward, given)] == [[0, 1, 2]]


def test_factors_are_renumbered() -> None:
    each = Factors(torch.ones(3, 2), torch.ones(3, 2), torch.tensor([0, 0, 2]))
    assert each.of(torch.tensor([5, 6, 7])).edit.tolist() == [5, 5, 7]


@pytest.mark.parametrize(
    ("family", "parts", "layers", "decoder", "names"),
    [
        ("gpt2", ("mlp_out",), (-1,), None, ["transformer.h.2.mlp.c_proj.weight"]),
        (
            "llama",
            ("mlp_in",),
            (0,),
            None,
            ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"],
        ),
        ("llama", ("attn_out",), (1,), (), ["model.layers.1.self_attn.o_proj.weight"]),
        (
            "t5",
            ("mlp_out",),
            (3,),
            (0, -1),
            [
                "encoder.block.3.layer.1.DenseReluDense.wo.weight",
                "decoder.block.0.layer.2.DenseReluDense.wo.weight",
                "decoder.block.2.layer.2.DenseReluDense.wo.weight",
            ],
        ),
    ],
)
def test_places_are_found_by_what_they_are(
    family: str, parts: tuple, layers: tuple, decoder: tuple, names: list
) -> None:
    context = a_context(family)
    found = places_of(context.adapter, parts, layers, decoder)
    assert [place.name for place in found] == names
    parameters = dict(context.model.named_parameters())
    for place in found:
        shape = tuple(parameters[place.name].shape)
        assert (place.out, place.width) == (shape[::-1] if context.adapter.layout(place.name) == "in_out" else shape)
        assert place.encoder == place.name.startswith("encoder")


def test_places_that_are_not_there_are_refused() -> None:
    context, two = a_context("gpt2"), a_context("t5")
    for layers in ((3,), (-4,)):
        with pytest.raises(InputError, match="0 to 2"):
            places_of(context.adapter, ("mlp_out",), layers)
    with pytest.raises(InputError, match="encoder-decoder"):
        places_of(context.adapter, ("mlp_out",), (0,), (1,))
    with pytest.raises(InputError, match="no weight"):
        places_of(two.adapter, ("mlp_out",), (), ())
    with pytest.raises(InputError, match="2 parts called 'o'"):
        places_of(two.adapter, ("attn_out",), (0,))
