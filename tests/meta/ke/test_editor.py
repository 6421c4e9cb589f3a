"""The editor: its update against the paper's formula written out, what it reads, what it edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ke_tools import a_context, gradients, new_editor, plain_update

from kedit_core.editing import EditContext
from kedit_core.errors import HyperParamsError, InputError
from kedit_core.forward import Pair
from kedit_core.testing.tiny import FAMILIES
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.hparams.ke import KeEditorSettings, KeTrainingHyperParams
from kedit_methods_meta.ke import KeEditor
from kedit_methods_meta.ke.condition import answers_so_far, condition_ids, condition_text
from kedit_methods_meta.ke.places import editable_places

TEXTS = (("The capital of France is", "Rome"), ("Alice works in the city of", "Paris and Bern"), ("Bob is", "a nurse"))
EXACT = ("gpt2", "gpt_neox", "t5")


def pairs_of(context: EditContext) -> list[Pair]:
    return [context.tokens.pair(prompt, answer) for prompt, answer in TEXTS]


def conditions_of(context: EditContext) -> list[tuple[int, ...]]:
    return [condition_ids(context, condition_text("Lyon", new, prompt), 32) for prompt, new in TEXTS]


def whole(change: LowRank, edit: int) -> torch.Tensor:
    mine = change.edit == edit
    return change.outputs[mine].T @ change.inputs[mine]


@pytest.mark.parametrize("editable", ["all", "chosen"])
@pytest.mark.parametrize("family", EXACT)
def test_the_update_is_the_papers_formula(family: str, editable: Any) -> None:
    context = a_context(family)
    editor = new_editor(context, editable=editable, max_scale=2.0)
    pairs, conditions = pairs_of(context), conditions_of(context)
    with torch.no_grad():
        edits = editor(conditions, gradient_factors(context.forward, pairs, editor.places))
    for number, (pair, condition) in enumerate(zip(pairs, conditions, strict=True)):
        with torch.no_grad():
            wanted = plain_update(editor, condition, gradients_of(context, editor, pair))
        for place in editor.places:
            made = whole(edits[place.name], number)
            assert wanted[place.name].abs().max() > 1e-4
            torch.testing.assert_close(made, wanted[place.name], rtol=1e-8, atol=1e-10)


def gradients_of(context: EditContext, editor: KeEditor, pair: Pair) -> dict[str, torch.Tensor]:
    with torch.enable_grad():
        return gradients(context, pair, [place.name for place in editor.places])


@pytest.mark.parametrize("family", EXACT)
def test_its_rank_is_at_most_the_tokens_and_one(family: str) -> None:
    context = a_context(family)
    editor = new_editor(context)
    pairs, conditions = pairs_of(context), conditions_of(context)
    edits = editor(conditions, gradient_factors(context.forward, pairs, editor.places))
    longest = 0
    for number, pair in enumerate(pairs):
        tokens = len(pair.prompt_ids) + len(pair.target_ids)
        for change in edits.values():
            rank = int(torch.linalg.matrix_rank(whole(change.__class__(**_detached(change)), number)))
            assert rank <= int((change.edit == number).sum()) <= tokens + 1
            longest = max(longest, rank)
    assert longest > 1


def _detached(change: LowRank) -> dict[str, torch.Tensor]:
    return {"inputs": change.inputs.detach(), "outputs": change.outputs.detach(), "edit": change.edit}


def test_rows_of_the_mask_are_shares_of_its_column() -> None:
    context = a_context("gpt2")
    editor = new_editor(context)
    read = editor.encoder(conditions_of(context))
    for place, head in zip(editor.places, editor.heads, strict=True):
        gates = head(read)
        for row, column in ((gates.mask_row, gates.mask_column), (gates.shift_row, gates.shift_column)):
            assert row.shape == (3, place.out) and column.shape == (3, place.width)
            assert row.min() > 0
            formed = row.unsqueeze(2) * column.unsqueeze(1)
            torch.testing.assert_close(formed.sum(1), column, rtol=1e-12, atol=1e-14)
        assert gates.scale.shape == (3, 1) and gates.scale.min() > 0 and gates.scale.max() < 1


def test_an_edit_does_not_depend_on_its_company() -> None:
    context = a_context("t5")
    editor = new_editor(context)
    pairs, conditions = pairs_of(context), conditions_of(context)
    together = editor(conditions, gradient_factors(context.forward, pairs, editor.places))
    for number in range(3):
        factors = gradient_factors(context.forward, pairs[number : number + 1], editor.places)
        alone = editor(conditions[number : number + 1], factors)
        for name, change in together.items():
            torch.testing.assert_close(whole(change, number), whole(alone[name], 0), rtol=1e-9, atol=1e-12)


def test_texts_are_read_to_their_own_ends() -> None:
    context = a_context("gpt2")
    editor = new_editor(context)
    conditions = conditions_of(context)
    assert len({len(each) for each in conditions}) == 3
    read = editor.encoder(conditions)
    for each, wanted in zip(conditions, read, strict=True):
        torch.testing.assert_close(editor.encoder([each])[0], wanted, rtol=1e-12, atol=1e-14)
    changed = [*conditions[:2], (*conditions[2][:-1], conditions[2][-1] + 1)]
    assert not torch.allclose(editor.encoder(changed)[2], read[2])
    torch.testing.assert_close(editor.encoder(changed)[:2], read[:2], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "t5", "llama"])
def test_embeddings_are_a_copy_with_the_tokenizers_pad(family: str) -> None:
    context = a_context(family, torch.float32)
    base = context.adapter.embeddings.weight
    assert isinstance(base, torch.Tensor)
    editor = new_editor(context)
    own = editor.encoder.embedding
    assert torch.equal(own.weight, base) and own.weight.data_ptr() != base.data_ptr()
    assert own.padding_idx == context.tokenizer.pad_token_id != 0 or context.tokenizer.pad_token_id == 0
    shared = {each.data_ptr() for each in context.model.parameters()}
    assert not shared & {each.data_ptr() for each in editor.parameters()}


def test_making_one_leaves_the_global_random_state() -> None:
    context = a_context("gpt2")
    before = torch.get_rng_state()
    first, again, other = (new_editor(context, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.0.second.v"], other["heads.0.second.v"])


def test_it_starts_as_torch_starts_such_layers() -> None:
    editor = new_editor(a_context("gpt2", torch.float32), spread=1.0, condition_size=400, lstm_size=100)
    linear, lstm, head = editor.encoder.linear, editor.encoder.lstm, editor.heads[0]
    for weight, bound in ((linear.weight, 200**-0.5), (lstm.weight_hh_l0, 0.1), (lstm.bias_ih_l0_reverse, 0.1)):
        assert 0.97 * bound < weight.abs().max() <= bound
        assert abs(float(weight.detach().std()) / (bound / 3**0.5) - 1) < 0.1
    assert torch.allclose(head.first.g, head.first.v.norm(dim=1, keepdim=True))
    plain = torch.nn.functional.linear(torch.ones(400), head.first.v, head.first.bias)
    torch.testing.assert_close(head.first(torch.ones(400)), plain)


# ------------------------------------------------------------------ what is edited


@pytest.mark.parametrize("family", FAMILIES)
def test_all_projections_of_all_blocks_are_edited_by_default(family: str) -> None:
    context = a_context(family, torch.float32)
    model, view = context.model, context.adapter
    places = editable_places(context.forward, KeEditorSettings())
    words = ("bias", "norm", "embed", "shared", "classifier", "pooler", "positions", "wte", "wpe", "lm_head", "ln_")
    wanted = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and not any(word in name.lower() for word in words)
        and "project_" not in name and "embed_out" not in name and "embed_in" not in name
    ]  # fmt: skip
    assert [place.name for place in places] == wanted
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for place in places:
        stored = shapes[place.name]
        assert (place.out, place.width) == (stored[::-1] if view.layout(place.name) == "in_out" else stored)


def test_keys_and_values_of_the_encoder_are_read_on_its_tokens() -> None:
    places = editable_places(a_context("t5").forward, KeEditorSettings())
    for place in places:
        across = "EncDecAttention.k" in place.module or "EncDecAttention.v" in place.module
        assert place.encoder == (place.module.startswith("encoder.") or across)


def test_large_models_are_edited_where_it_is_said() -> None:
    context = a_context("llama", torch.float32)
    chosen = editable_places(context.forward, KeEditorSettings(editable="chosen", layers=(-1,), parts=("mlp_out",)))
    last = context.adapter.num_layers - 1
    assert [place.name for place in chosen] == [f"model.layers.{last}.mlp.down_proj.weight"]
    with pytest.raises(InputError, match="block 9"):
        editable_places(context.forward, KeEditorSettings(editable="chosen", layers=(9,)))


# ------------------------------------------------------------------ texts and settings


def test_the_text_of_an_edit() -> None:
    context = a_context("gpt2")
    assert condition_text("Paris", "Rome", "The capital of France is") == "Paris >> Rome || The capital of France is"
    text = condition_text("Paris", "Rome", "The capital of France is")
    ids = condition_ids(context, text, 32)
    assert context.tokens.decode(ids) == text
    assert condition_ids(context, text, 5) == ids[:5]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_answer_so_far_is_what_the_model_says(family: str) -> None:
    context = a_context(family, torch.float32)
    pair = context.tokens.pair("The capital of France is", "Rome and Milan")
    model: Any = context.model
    ids = model.generate(
        torch.tensor([pair.prompt_ids]), max_new_tokens=len(pair.target_ids), do_sample=False, pad_token_id=0
    )[0].tolist()
    new = ids[1:] if family == "t5" else ids[len(pair.prompt_ids) :]
    said = context.tokens.continuation(pair.prompt_ids, new).strip()
    assert said and answers_so_far(context, [pair])[0] == said.splitlines()[0]


def test_an_editor_is_made_again_from_its_folder_part() -> None:
    context = a_context("gpt2", torch.float32)
    editor = new_editor(context, editable="chosen", layers=(0,))
    again = KeEditor.of(context.forward, editor.config(), editor.tensors())
    assert again.places == editor.places and again.settings == editor.settings
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in editor.tensors().items())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"settings": None}, "no settings"),
        ({"settings": {"layers": "all"}}, "layers"),
        ({"places": []}, "not those"),
        ({"layers": [1]}, "not those"),
        ({"padding": 1.5}, "no padding"),
        ({"padding": 10**6}, "no padding"),
        ({"encoder.embedding.weight": None}, "no embeddings"),
        ({"encoder.embedding.weight": torch.zeros(3)}, "no embeddings"),
        ({"encoder.linear.bias": None}, "do not go with"),
        ({"more": torch.zeros(1)}, "do not go with"),
        ({"heads.0.first.g": torch.full((16, 1), torch.nan)}, "finite"),
        ({"heads.0.first.g": torch.zeros(16, 1, dtype=torch.int64)}, "finite"),
        ({"heads.0.first.g": torch.zeros(15, 1)}, "do not go with"),
    ],
)
def test_what_is_no_whole_editor_of_this_model_is_refused(wrong: dict[str, Any], match: str) -> None:
    context = a_context("gpt2", torch.float32)
    editor = new_editor(context, editable="chosen", layers=(0,))
    config, tensors = editor.config(), editor.tensors()
    for name, value in wrong.items():
        if name == "layers":
            config["settings"] = {**config["settings"], "layers": value}
        elif name in config:
            config[name] = value
        elif value is None:
            del tensors[name]
        else:
            tensors[name] = value
    with pytest.raises(InputError, match=match):
        KeEditor.of(context.forward, config, tensors)


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 1e-6},
        {"weight_margin": 1e-9},
        {"warmup": 10, "updates": 5},
        {"smoothing": 1.0},
        {"loss": "efk"},
        {"parts": ["mlp"]},
        {"max_scale": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        KeTrainingHyperParams.from_dict(wrong)
