"""The codebook on a live model: which rows it answers for, and that the others do not notice it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_codebook_tools import FAMILIES, FRANCE, UNRELATED, editor_on, last_logits, logits_of, padded
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import PatchFormatError, PluginError, ScopeError
from kedit_core.forward import ModuleSite
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.facts import facts_of
from kedit_methods_memory.grace.training import train
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.projections import projection
from kedit_methods_memory.reading import read

PROMPTS = ("The capital of France is", "Alice works in the city of")


def codebook(
    editor: Editor,
    prompts: tuple[str, ...] = PROMPTS,
    layer: int = 1,
    part: str = "mlp_out",
    radius: float = 0.01,
    values: Tensor | None = None,
    **config: Any,
) -> EditPatch:
    """A patch with the inputs of prompts as keys; values, unless given, are large and drawn at random."""
    place = projection(editor.adapter, layer, part)
    tools = editor.context().forward
    keys = read(tools, place, [tools.boundary.prompt(text).ids for text in prompts]).inputs.float()
    if values is None:
        values = 9 * torch.randn(len(keys), place.out, generator=torch.Generator().manual_seed(1))
    operation = ModuleOperation(
        (place.name,),
        "grace.codebook",
        1,
        {"replacement": "replace_last", "token": "last_prompt", "requery": False, **config},
        {"keys": keys, "values": values, "radii": torch.full((len(keys),), radius)},
    )
    return editor.context().new_patch([operation], [])


def outputs(
    editor: Editor, prompts: tuple[str, ...], side: str = "right", layer: int = 1, part: str = "mlp_out"
) -> Tensor:
    """``[rows, columns, out]`` of the projection, as what follows sees it."""
    place = projection(editor.adapter, layer, part)
    seen: list[Tensor] = []
    handle = place.module.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    try:
        named = padded(editor, prompts, side)
        with torch.no_grad():
            editor.model(**named)
    finally:
        handle.remove()
    return seen[0].reshape(*named["input_ids"].shape, -1)


# ------------------------------------------------------------------ acceptance 1: nothing fires, nothing changes
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt", "replace_all"])
def test_rows_for_which_no_key_fires_are_bit_identical(family: str, replacement: str) -> None:
    editor = editor_on(family, "grace", layer=1)
    mixed = (UNRELATED[0], PROMPTS[0], *UNRELATED[1:])
    before = {texts: logits_of(editor, texts) for texts in (UNRELATED, mixed)}
    editor.apply(codebook(editor, replacement=replacement))
    assert torch.equal(logits_of(editor, UNRELATED), before[UNRELATED])
    changed = (logits_of(editor, mixed) != before[mixed]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False]


def test_only_the_nearest_key_is_asked() -> None:
    """A farther key whose ball is larger never fires."""
    editor = editor_on("gpt2", "grace", layer=1)
    before = last_logits(editor, PROMPTS)
    patch = codebook(editor)
    (operation,) = patch.operations
    assert isinstance(operation, ModuleOperation)
    tensors = {**operation.tensors, "radii": torch.tensor([1e-9, 1e9])}
    tensors["keys"] = tensors["keys"] + torch.tensor([[1e-3], [0.0]])  # the first is near its prompt, and too small
    editor.apply(
        editor.context().new_patch(
            [ModuleOperation(operation.places, operation.kind, 1, operation.config, tensors)], []
        )
    )
    changed = (last_logits(editor, PROMPTS) != before).any(dim=1)
    assert changed.tolist() == [False, True]


# ------------------------------------------------------------------ acceptance 2: what fires gives the value itself
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt", "replace_all"])
def test_what_stands_there_is_the_value(family: str, side: str, replacement: str) -> None:
    editor = editor_on(family, "grace", layer=1)
    texts = (UNRELATED[1], PROMPTS[1], PROMPTS[0])
    base = outputs(editor, texts, side)
    patch = codebook(editor, replacement=replacement)
    values = patch.operations[0].tensors["values"]
    editor.apply(patch)
    given = outputs(editor, texts, side)
    mask = padded(editor, texts, side)["attention_mask"].bool()
    assert torch.equal(given[0], base[0])
    for row, value in ((1, values[1]), (2, values[0])):
        tokens = mask[row].nonzero()[:, 0]
        end = int(tokens[-1])
        wanted = base[row].clone()
        where = {"replace_last": [end], "replace_prompt": list(range(end)), "replace_all": list(range(mask.shape[1]))}
        wanted[where[replacement]] = value
        # padding is masked for all that follow, so what stands there is nobody's
        assert torch.equal(given[row][tokens], wanted[tokens])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_the_value_rounded_once(dtype: torch.dtype) -> None:
    editor = editor_on("llama", "grace", dtype=dtype, layer=1)
    base = outputs(editor, PROMPTS)
    patch = codebook(editor, radius=1.0)
    editor.apply(patch)
    given, ends = outputs(editor, PROMPTS), padded(editor, PROMPTS, "right")["attention_mask"].sum(1) - 1
    for row in range(2):
        assert torch.equal(given[row, ends[row]], patch.operations[0].tensors["values"][row].to(dtype))
        assert torch.equal(given[row, : ends[row]], base[row, : ends[row]])


@pytest.mark.parametrize("part", ["mlp_in", "attn_out"])
def test_other_projections(part: str) -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    patch = codebook(editor, part=part)
    editor.apply(patch)
    given = outputs(editor, PROMPTS[:1], part=part)
    assert torch.equal(given[0, -1], patch.operations[0].tensors["values"][0])


# ------------------------------------------------------------------ acceptance 7: with a cache and without
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt", "replace_all"])
def test_cached_and_uncached_decoding_are_the_same(family: str, replacement: str) -> None:
    """Uncached: the whole row is read anew for each token, the scope told that the prompt ends where it did."""
    editor = editor_on(family, "grace", torch.float64, layer=1)
    editor.apply(codebook(editor, replacement=replacement))
    context = editor.context()
    prompts = (PROMPTS[0], UNRELATED[1], PROMPTS[1])
    cached = editor.generate(list(prompts), max_new_tokens=6)
    for prompt, text in zip(prompts, cached, strict=True):
        ids = list(context.tokens.prompt(prompt).ids)
        new: list[int] = []
        for _ in range(6):
            batch = context.forward.batch([[*ids, *new]], prompt_lengths=[len(ids)])
            cell = torch.tensor([[0, len(ids) + len(new) - 1]])
            logits = context.forward.run(batch, logits_at=cell).logits
            assert logits is not None
            token = int(logits[0].argmax())
            if token == context.tokens.tokenizer.eos_token_id:
                break
            new.append(token)
        assert context.tokens.continuation(ids, new) == text


def test_a_bare_generate_is_followed_too() -> None:
    editor = editor_on("llama", "grace", layer=1)
    editor.apply(codebook(editor))
    prompts = [PROMPTS[0], UNRELATED[1]]
    ours = editor.generate(prompts, max_new_tokens=5)
    named = padded(editor, tuple(prompts), "left")
    model: Any = editor.model
    ids = model.generate(**named, max_new_tokens=5, do_sample=False)
    texts = editor.tokenizer.batch_decode(ids[:, named["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [text.strip() for text in ours]


def test_an_encoder_decoder_writes_on_from_what_its_encoder_gave() -> None:
    editor = editor_on("t5", "grace", layer=1)
    prompts, context = (PROMPTS[0], UNRELATED[1]), editor.context()
    before = editor.generate(prompts, max_new_tokens=5)
    # a value that makes the decoder say something else
    facts = facts_of(context.tokens, [FRANCE])
    place = projection(editor.adapter, 1, "mlp_out")
    hparams = GraceHyperParams(layer=1, n_iter=30)
    value = train(context.forward, place, facts, torch.rand(1, place.out), hparams).values
    editor.apply(codebook(editor, PROMPTS[:1], values=value))
    after = editor.generate(prompts, max_new_tokens=5)
    assert after[0] != before[0] and after[1] == before[1]


# ------------------------------------------------------------------ acceptance 8: a batch is its rows
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_its_rows(family: str, side: str) -> None:
    editor = editor_on(family, "grace", torch.float64, layer=1)
    editor.apply(codebook(editor, replacement="replace_prompt"))
    texts = (UNRELATED[1], PROMPTS[1], UNRELATED[0], PROMPTS[0])
    together = last_logits(editor, texts, side)
    alone = torch.cat([last_logits(editor, (text,), side) for text in texts])
    # llama's norms compute in float32, whatever the model's dtype
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 if family == "llama" else 1e-9)


def test_scoring_a_target_asks_the_prompt_only() -> None:
    """What follows the prompt never takes part in the decision."""
    editor = editor_on("gpt2", "grace", torch.float64, layer=1)
    context = editor.context()
    editor.apply(codebook(editor))
    pair = context.tokens.pair(PROMPTS[0], "Port Lumen")
    batch = context.forward.batch([(*pair.prompt_ids, *pair.target_ids)], prompt_lengths=[len(pair.prompt_ids)])
    place = projection(editor.adapter, 1, "mlp_out")
    found = context.forward.run(batch, capture=[ModuleSite(place.name)]).activations[ModuleSite(place.name)][0]
    value = editor.stack.patches[0].patch.operations[0].tensors["values"][0].double()
    assert [torch.equal(cell, value) for cell in found] == [
        column == len(pair.prompt_ids) - 1 for column in range(len(found))
    ]


# ------------------------------------------------------------------ compat
def test_requery_asks_at_every_written_token() -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    plain = editor.generate(PROMPTS[0], max_new_tokens=4)
    everywhere = codebook(editor, radius=1e9, requery=True)
    once = codebook(editor, radius=1e9)
    texts = {}
    for name, patch in (("everywhere", everywhere), ("once", once)):
        with editor.applied(patch):
            texts[name] = editor.generate(PROMPTS[0], max_new_tokens=4)
    assert texts["everywhere"] != texts["once"] != plain


def test_one_token_late_means_the_first_token_of_the_target() -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    context = editor.context()
    pair = context.tokens.pair(PROMPTS[0], "Port Lumen")
    place = projection(editor.adapter, 1, "mlp_out")
    key = read(context.forward, place, [(*pair.prompt_ids, *pair.target_ids[:1])]).inputs
    config = {"replacement": "replace_prompt", "token": "first_target", "requery": False}
    tensors = {"keys": key, "values": torch.full((1, place.out), 3.0), "radii": torch.tensor([0.01])}
    base = outputs(editor, PROMPTS[:1])
    patch = context.new_patch([ModuleOperation((place.name,), "grace.codebook", 1, config, tensors)], [])
    editor.apply(patch)
    assert torch.equal(outputs(editor, PROMPTS[:1]), base)  # the prompt alone has no such token
    batch = context.forward.batch([(*pair.prompt_ids, *pair.target_ids)], prompt_lengths=[len(pair.prompt_ids)])
    found = context.forward.run(batch, capture=[place.output]).activations[place.output][0]
    assert (found == 3.0).all(dim=1).tolist() == [column < len(pair.prompt_ids) for column in range(len(found))]


# ------------------------------------------------------------------ what it refuses
@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"replacement": "replace_some"}, {}),
        ({"token": "second"}, {}),
        ({}, {"radii": torch.zeros(3)}),
        ({}, {"values": torch.zeros(0, 32)}),
        ({}, {"keys": torch.zeros(2, 80, dtype=torch.int64)}),
    ],
)
def test_a_codebook_that_does_not_fit_together_is_refused(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    (good,) = codebook(editor).operations
    assert isinstance(good, ModuleOperation)
    wrong = ModuleOperation(good.places, good.kind, 1, {**good.config, **config}, {**good.tensors, **tensors})
    patch = editor.context().new_patch([wrong], [])
    with pytest.raises(PatchFormatError, match=r"a grace\.codebook has"):
        editor.apply(patch)
    assert not editor.stack.patches


def test_a_module_called_on_its_own_is_an_error() -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    editor.apply(codebook(editor))
    place = projection(editor.adapter, 1, "mlp_out")
    with pytest.raises((ScopeError, PluginError), match="prompt"):
        place.module(torch.zeros(1, 3, place.width))


def test_a_codebook_put_on_between_a_prompt_and_its_answer_is_an_error() -> None:
    """Beside another codebook, so that calls are followed already; what was asked of the prompt is not known."""
    editor = editor_on("gpt2", "grace", layer=1)
    editor.apply(codebook(editor))
    model: Any = editor.model
    with torch.no_grad():
        cache = model(torch.tensor([editor.tokens.prompt(PROMPTS[0]).ids]), use_cache=True).past_key_values
        editor.apply(codebook(editor, layer=2, replacement="replace_all"))
        with pytest.raises(ScopeError, match="read the prompt again"):
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


def test_gradients_go_through_rows_that_fire_not() -> None:
    editor = editor_on("gpt2", "grace", layer=1)
    editor.apply(codebook(editor))
    batch = padded(editor, (PROMPTS[0], UNRELATED[1]), "right")
    model: Any = editor.model
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    editor.model(inputs_embeds=embedded, **batch).logits.sum().backward()
    assert embedded.grad is not None and bool((embedded.grad[1, :3] != 0).any())
