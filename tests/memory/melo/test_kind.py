"""The adapters on a live model: which block acts for which row, and that the others do not notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from memory_codebook_tools import FAMILIES, UNRELATED, editor_on, last_logits, logits_of, padded
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import PatchFormatError, PluginError, ScopeError
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.hparams.melo import MeloHyperParams
from kedit_methods_memory.melo.database import NONE
from kedit_methods_memory.melo.method import Places
from kedit_methods_memory.reading import read

PROMPTS = ("The capital of France is", "Alice works in the city of")
RANK, FACTOR = 2, 3.0


def places_of(editor: Editor) -> Places:
    more = {"layers": [1], "decoder_layers": [0, 1]} if editor.adapter.is_encoder_decoder else {"layers": [1, 2]}
    return Places.of(editor.adapter, MeloHyperParams.from_dict({"scope_layer": 0, **more}))


def operation_for(editor: Editor, radius: float = 0.01, size: float = 0.3) -> ModuleOperation:
    """Block 0 for the second prompt, block 1 for the first; a third cluster has no block; A and B drawn at random."""
    places, tools = places_of(editor), editor.context().forward
    texts = [*PROMPTS, UNRELATED[3]]
    centres = read(tools, places.scope, [tools.boundary.prompt(text).ids for text in texts]).outputs.float()
    draw = torch.Generator().manual_seed(1)
    tensors = {
        "centres": centres,
        "radii": torch.full((3,), radius),
        # cluster 0 has two points, the nearer one of block 1
        "points": torch.cat([centres, centres[:1] + 0.5]),
        "point_block": torch.tensor([1, 0, NONE, 0]),
        "point_cluster": torch.tensor([0, 1, 2, 0]),
    }
    for i, target in enumerate(places.targets):
        tensors[f"a.{i}"] = size * torch.randn(2, target.width, RANK, generator=draw)
        tensors[f"b.{i}"] = size * torch.randn(2, RANK, target.out, generator=draw)
    names = (places.scope.name, *(target.name for target in places.targets))
    return ModuleOperation(names, "melo.blocks", 1, {"factor": FACTOR}, tensors)


def patch_of(editor: Editor, operation: ModuleOperation) -> EditPatch:
    return editor.context().new_patch([operation], [])


def by_hand(editor: Editor, operation: ModuleOperation, named: Mapping[str, Tensor], block: int) -> Tensor:
    """Logits of one row with a block of all adapters added by plain hooks."""
    handles = []
    for i, name in enumerate(operation.places[1:]):
        a, b = operation.tensors[f"a.{i}"][block], operation.tensors[f"b.{i}"][block]

        def add(_: object, args: tuple[Tensor, ...], output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            exact = torch.promote_types(output.dtype, torch.float32)
            added = FACTOR * (args[0].to(exact) @ (a.to(exact) @ b.to(exact)))
            return (output.to(exact) + added).to(output.dtype)

        handles.append(editor.model.get_submodule(name).register_forward_hook(add))
    with torch.no_grad():
        logits: Tensor = editor.model(**named).logits
    for handle in handles:
        handle.remove()
    return logits


# ------------------------------------------------------------------ acceptance 1: rows without a block
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_without_a_block_are_bit_identical(family: str, side: str) -> None:
    """Unrelated ones, and the last: inside a cluster that has lost its points."""
    editor = editor_on(family, "melo", scope_layer=0, layers=[1])
    mixed = (UNRELATED[0], PROMPTS[0], *UNRELATED[1:])
    before = {texts: logits_of(editor, texts, side) for texts in (UNRELATED, mixed)}
    editor.apply(patch_of(editor, operation_for(editor)))
    assert torch.equal(logits_of(editor, UNRELATED, side), before[UNRELATED])
    changed = (logits_of(editor, mixed, side) != before[mixed]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False]


# ------------------------------------------------------------------ acceptance 2: what is added
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_is_the_block_by_hand(family: str) -> None:
    editor = editor_on(family, "melo", torch.float64, scope_layer=0, layers=[1])
    operation = operation_for(editor)
    wanted = {}
    for text, block in ((PROMPTS[0], 1), (PROMPTS[1], 0)):
        named = padded(editor, (text,), "right")
        wanted[text] = by_hand(editor, operation, named, block), named
    patch = patch_of(editor, operation)
    editor.apply(patch)
    for logits, named in wanted.values():
        with torch.no_grad():
            given = editor.model(**named).logits
        # norms of these families compute in float32, whatever the model's dtype
        close = 1e-9 if family in ("gpt2", "gpt_neox", "opt") else 2e-5
        torch.testing.assert_close(given, logits, rtol=close, atol=close)
    editor.remove(patch)
    with torch.no_grad():
        base = editor.model(**named).logits
    assert float((base - logits).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_the_sum_rounded_once(dtype: torch.dtype) -> None:
    editor = editor_on("llama", "melo", dtype, scope_layer=0, layers=[1])
    operation = operation_for(editor, radius=1.0)
    named = padded(editor, PROMPTS[:1], "right")
    wanted = by_hand(editor, operation, named, 1)
    editor.apply(patch_of(editor, operation))
    with torch.no_grad():
        torch.testing.assert_close(editor.model(**named).logits, wanted, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------ a batch is its rows; decoding
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_its_rows(family: str, side: str) -> None:
    editor = editor_on(family, "melo", torch.float64, scope_layer=0, layers=[1])
    editor.apply(patch_of(editor, operation_for(editor)))
    texts = (UNRELATED[1], PROMPTS[1], UNRELATED[0], PROMPTS[0])
    together = last_logits(editor, texts, side)
    alone = torch.cat([last_logits(editor, (text,), side) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 if family == "llama" else 1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_choice_holds_for_what_is_written(family: str) -> None:
    """With a cache, and without one: the whole row read anew for each token, the prompt ending where it did."""
    editor = editor_on(family, "melo", torch.float64, scope_layer=0, layers=[1])
    texts = (PROMPTS[0], UNRELATED[1], PROMPTS[1])
    before = editor.generate(list(texts), max_new_tokens=6)
    editor.apply(patch_of(editor, operation_for(editor)))
    context = editor.context()
    cached = editor.generate(list(texts), max_new_tokens=6)
    assert [one != other for one, other in zip(cached, before, strict=True)] == [True, False, True]
    for prompt, text in zip(texts, cached, strict=True):
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


def test_an_encoders_choice_holds_for_all_steps_of_its_decoder() -> None:
    editor = editor_on("t5", "melo", torch.float64, scope_layer=0, layers=[1])
    texts = (PROMPTS[0], UNRELATED[1])
    before = editor.generate(list(texts), max_new_tokens=5)
    operation = operation_for(editor)
    editor.apply(patch_of(editor, operation))
    after = editor.generate(list(texts), max_new_tokens=5)
    editor.restore()
    assert after[0] != before[0] and after[1] == before[1]
    # without a cache and with hooks of one's own
    context = editor.context()
    named = padded(editor, texts[:1], "right")
    new: list[int] = []
    for _ in range(5):
        row = {**named, "decoder_input_ids": torch.tensor([[0, *new]])}
        token = int(by_hand(editor, operation, row, 1)[0, -1].argmax())
        if token == context.tokens.tokenizer.eos_token_id:
            break
        new.append(token)
    assert context.tokens.tokenizer.decode(new, skip_special_tokens=True).strip() == after[0].strip()


def test_a_bare_generate_is_followed_too() -> None:
    editor = editor_on("llama", "melo", scope_layer=0, layers=[1])
    editor.apply(patch_of(editor, operation_for(editor)))
    texts = (PROMPTS[0], UNRELATED[1])
    ours = editor.generate(list(texts), max_new_tokens=5)
    named = padded(editor, texts, "left")
    model: Any = editor.model
    ids = model.generate(**named, max_new_tokens=5, do_sample=False)
    written = editor.tokenizer.batch_decode(ids[:, named["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in written] == [text.strip() for text in ours]


# ------------------------------------------------------------------ what it refuses
@pytest.mark.parametrize(
    "changes",
    [
        {"radii": torch.zeros(2)},
        {"point_block": torch.tensor([1, 0, NONE, 2])},
        {"point_cluster": torch.tensor([0, 1, 1, 0])},
        {"points": torch.zeros(4, 3)},
        {"a.0": torch.zeros(1, 32, RANK)},
        {"extra": torch.zeros(1)},
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Tensor]) -> None:
    editor = editor_on("gpt2", "melo", scope_layer=0, layers=[1])
    good = operation_for(editor)
    wrong = ModuleOperation(good.places, good.kind, 1, good.config, {**good.tensors, **changes})
    with pytest.raises(PatchFormatError, match=r"melo\.blocks has"):
        editor.apply(patch_of(editor, wrong))
    assert not editor.stack.patches


def test_a_module_called_on_its_own_is_an_error() -> None:
    editor = editor_on("gpt2", "melo", scope_layer=0, layers=[1])
    editor.apply(patch_of(editor, operation_for(editor)))
    target = places_of(editor).targets[0]
    with pytest.raises((ScopeError, PluginError), match="prompt"):
        target.module(torch.zeros(1, 3, target.width))


def test_gradients_go_through_all_rows() -> None:
    editor = editor_on("gpt2", "melo", scope_layer=0, layers=[1])
    editor.apply(patch_of(editor, operation_for(editor)))
    batch = padded(editor, (PROMPTS[0], UNRELATED[1]), "right")
    model: Any = editor.model
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    editor.model(inputs_embeds=embedded, **batch).logits.sum().backward()
    assert embedded.grad is not None and bool((embedded.grad[:, :3] != 0).any(dim=2).all())
