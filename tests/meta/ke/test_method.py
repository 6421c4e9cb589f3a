"""Edits with a trained editor: once or again, one or several, and what a patch says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ke_tools import descending, editor_on, gradients, plain_update, trained
from meta_tools import records, stacked
from meta_tools import trained as family_trained

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.errors import BaseMismatchError, InputError, RequestError, RequirementError
from kedit_core.testing.snapshot import Snapshot, weights
from kedit_core.training import EditorFolder
from kedit_methods_meta.ke import KeEditor
from kedit_methods_meta.ke.condition import answers_so_far, condition_ids, condition_text

ONE = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a")
TWO = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
LARGE = {"lr": 1e-2, "max_scale": 4.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("ke")
    return lambda family, dtype=torch.float32, **settings: trained(
        root / f"{family}-{dtype}-{sorted(settings.items())}".replace("/", "_"), family, dtype, **{**LARGE, **settings}
    )


def deltas(editor: Editor, patch: EditPatch) -> dict[str, torch.Tensor]:
    shapes = {
        name: tuple(parameter.shape)[::-1] if editor.adapter.layout(name) == "in_out" else tuple(parameter.shape)
        for name, parameter in editor.model.named_parameters()
        if name in patch.base.tensors
    }
    return stacked(patch.operations, shapes)


def written_out(editor: Editor, request: EditRequest) -> dict[str, torch.Tensor]:
    """The update of a request on the model as it is, by the paper's formula."""
    context = editor.context()
    folder = EditorFolder.load(context)
    module = KeEditor.of(context.forward, folder.config, folder.tensors).to(next(editor.model.parameters()).dtype)
    pair = context.tokens.pair(request.prompt, request.target_new)
    if context.adapter.is_encoder_decoder:
        pair = type(pair)(pair.prompt_ids, (*pair.target_ids, context.tokenizer.eos_token_id))
    text = condition_text(answers_so_far(context, [pair])[0], request.target_new, request.prompt)
    names = [place.name for place in module.places]
    flags = [parameter.requires_grad for parameter in editor.model.parameters()]
    gradient = gradients(context, pair, names)
    for parameter, flag in zip(editor.model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    with torch.no_grad():
        return plain_update(module, condition_ids(context, text, 32), gradient)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
def test_a_patch_is_the_update_of_the_paper(family: str, folders: Any) -> None:
    editor = editor_on(family, folders(family), hparams={"iterations": 1})
    patch = editor.compute([ONE])
    wanted = written_out(editor, ONE)
    found = deltas(editor, patch)
    assert set(found) == set(wanted)
    for name, delta in found.items():
        torch.testing.assert_close(delta.float(), wanted[name], rtol=1e-4, atol=1e-6)
    assert any(float(delta.abs().max()) > 1e-3 for delta in found.values())


def test_no_scale_no_change(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2", max_scale=0.0))
    before = weights(editor.model)
    said = editor.generate(ONE.prompt)
    result = editor.edit([ONE], evaluate=False)
    assert weights(editor.model) == before and editor.generate(ONE.prompt) == said
    assert not result.patch.operations
    editor.restore()
    assert weights(editor.model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_taken_off_every_bit_is_back(family: str, dtype: torch.dtype, folders: Any) -> None:
    editor = editor_on(family, folders(family), dtype)
    before = weights(editor.model)
    editor.edit([ONE], evaluate=False)
    assert weights(editor.model) != before
    editor.restore()
    assert weights(editor.model) == before


def test_equal_texts_and_weights_give_equal_bytes(folders: Any) -> None:
    made = [editor_on("t5", folders("t5")).compute([ONE]).to_bytes() for _ in range(2)]
    assert made[0] == made[1]
    assert editor_on("t5", folders("t5")).compute([TWO]).to_bytes() != made[0]


# ------------------------------------------------------------------ applied again


def answers(editor: Editor, request: EditRequest) -> bool:
    pair = editor.context().tokens.pair(request.prompt, request.target_new)
    ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
    with torch.no_grad():
        said = editor.model(input_ids=ids).logits[0].argmax(-1)
    return said[len(pair.prompt_ids) - 1 : -1].tolist() == list(pair.target_ids)


def test_it_is_applied_until_the_model_answers_and_not_again(folders: Any, tmp_path: Path) -> None:
    folder = descending(tmp_path / "descending", folders("gpt2"), 0.02)
    limit, counts = 8, []
    for request in records(5):
        again = editor_on("gpt2", folder, hparams={"iterations": limit})
        count = again.edit([request], evaluate=False).patch.state.config["iterations"]
        counts.append(count)
        assert answers(again, request) or count == limit
        if count > 1:  # one fewer was not enough
            fewer = editor_on("gpt2", folder, hparams={"iterations": count - 1})
            fewer.edit([request], evaluate=False)
            assert not answers(fewer, request)
    assert min(counts) < limit and len(set(counts)) > 1, counts


def test_with_an_even_mask_and_no_shift_it_is_a_step_down_the_gradient(folders: Any, tmp_path: Path) -> None:
    editor = editor_on("gpt2", descending(tmp_path / "descending", folders("gpt2"), 0.02), hparams={"iterations": 1})
    context = editor.context()
    pair = context.tokens.pair(ONE.prompt, ONE.target_new)
    found = deltas(editor, editor.compute([ONE]))
    wanted = gradients(context, pair, list(found))
    for name, delta in found.items():
        torch.testing.assert_close(delta.float(), -0.02 * wanted[name], rtol=1e-4, atol=1e-7)


def test_the_gradient_is_taken_anew_on_the_weights_so_far(folders: Any) -> None:
    folder = folders("gpt2")
    editor = editor_on("gpt2", folder, hparams={"iterations": 3})
    patch = editor.compute([ONE])
    assert patch.state.config["iterations"] == 3 and not answers(editor, ONE)
    step = editor_on("gpt2", folder, hparams={"iterations": 1})
    kept, text = EditorFolder.read(folder), ""
    total: dict[str, torch.Tensor] = {}
    for _ in range(3):
        context = step.context()
        pair = context.tokens.pair(ONE.prompt, ONE.target_new)
        # the text stays that of the first time
        text = text or condition_text(answers_so_far(context, [pair])[0], ONE.target_new, ONE.prompt)
        module = KeEditor.of(context.forward, kept.config, kept.tensors)
        flags = [parameter.requires_grad for parameter in step.model.parameters()]
        gradient = gradients(context, pair, [place.name for place in module.places])
        with torch.no_grad():
            update = plain_update(module, condition_ids(context, text, 32), gradient)
            for name, parameter in step.model.named_parameters():
                if name in update:
                    parameter += update[name].T if context.adapter.layout(name) == "in_out" else update[name]
                    total[name] = total.get(name, 0) + update[name]
        for parameter, flag in zip(step.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    for name, delta in deltas(editor, patch).items():
        torch.testing.assert_close(delta.float(), total[name], rtol=1e-3, atol=1e-5)


def test_the_same_update_can_be_applied_again(folders: Any) -> None:
    once, thrice = (
        editor_on("gpt2", folders("gpt2"), hparams={"iterations": count, "again": "same"}) for count in (1, 3)
    )
    first, whole = deltas(once, once.compute([ONE])), deltas(thrice, thrice.compute([ONE]))
    for name, delta in whole.items():
        torch.testing.assert_close(delta, 3 * first[name], rtol=1e-5, atol=1e-7)


def test_several_at_once_are_edited_apart_and_summed(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 4})
    both = editor.compute([ONE, TWO])
    assert (both.state.config["batched"], both.state.config["iterations"]) == (True, 1)
    apart = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 1})
    sums: dict[str, torch.Tensor] = {}
    for request in (ONE, TWO):
        for name, delta in deltas(apart, apart.compute([request])).items():
            sums[name] = sums.get(name, 0) + delta
    for name, delta in deltas(editor, both).items():
        torch.testing.assert_close(delta, sums[name], rtol=1e-4, atol=1e-6)


def test_a_sequence_takes_gradients_on_the_weights_of_the_rounds_before(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 1})
    result = editor.edit([ONE, TWO], scenario="sequential", evaluate=False)
    assert len(result.patches) == 2
    second = deltas(editor, result.patches[1])
    fresh = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 1})
    unlike = deltas(fresh, fresh.compute([TWO]))
    assert any(not torch.allclose(second[name], unlike[name], rtol=1e-3, atol=1e-6) for name in second)
    fresh.apply(result.patches[0])
    for name, delta in deltas(fresh, fresh.compute([TWO])).items():
        torch.testing.assert_close(second[name], delta, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------ what a patch says


def test_a_patch_says_what_made_it_and_not_the_fact_beside_its_requests(folders: Any) -> None:
    folder = folders("gpt2")
    editor = editor_on("gpt2", folder)
    patch = editor.compute([ONE])
    config = patch.state.config
    assert config["resources"]["editor"] == EditorFolder.read(folder).digest
    assert config["trained_as"] == "ke" and len(config["conditions_sha256"]) == 1
    assert "Rome" not in str(config)


def test_the_port_is_named_so(folders: Any) -> None:
    patch = editor_on("gpt2", folders("gpt2", loss="mend")).compute([ONE])
    assert patch.state.config["trained_as"] == "ke-efk"


def test_a_plan_names_what_is_edited(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2"))
    before = Snapshot(editor.model)
    told = editor.plan([ONE, TWO])
    assert not before.differences(editor.model)
    places = told.places if hasattr(told, "places") else told["places"]
    assert len(places) == 4 * editor.adapter.num_layers


# ------------------------------------------------------------------ what is refused


def refused(editor: Editor, error: type[Exception], match: str, requests: Sequence[EditRequest] = (ONE,)) -> None:
    before = weights(editor.model)
    with pytest.raises(error, match=match):
        editor.edit(list(requests), evaluate=False)
    assert weights(editor.model) == before


def test_no_editor_or_that_of_another_method_or_base_is_refused(folders: Any, tmp_path: Path) -> None:
    refused(editor_on("gpt2"), RequirementError, "for the role 'editor', and none was given")
    refused(editor_on("llama", folders("gpt2")), BaseMismatchError, "architecture")
    other = editor_on("gpt2", folders("gpt2"))
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    refused(other, BaseMismatchError, "other weights")
    refused(editor_on("gpt2", family_trained(tmp_path / "mend", "gpt2", "mend")), InputError, "'mend'")


def test_requests_longer_than_the_model_are_refused(folders: Any) -> None:
    long = EditRequest(prompt="word " * 200, target_new="Rome")
    refused(editor_on("gpt2", folders("gpt2")), RequestError, "positions", [ONE, long])
