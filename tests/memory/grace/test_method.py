"""GRACE as a method: sequences, dropping, files, other patches below, plans, errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_codebook_tools import ALICE, BOB, FACTS, FRANCE, SHORT, UNRELATED, editor_on, last_logits, logits_of
from torch import Tensor
from warm_processes import run_warm

from kedit_core import Editor, EditPatch, EditRequest, LowRankDelta
from kedit_core.errors import HyperParamsError, InputError, RequestError
from kedit_core.patches import ModuleOperation
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_memory.grace import suggested_radius
from kedit_methods_memory.projections import projection
from kedit_methods_memory.reading import read
from kedit_methods_memory.rounding import rounding

QUICK: dict[str, Any] = {"layer": 1, "n_iter": 15, "edit_lr": 0.3, "eps0": 0.5}


def codebook(patch: EditPatch) -> ModuleOperation:
    (operation,) = patch.operations
    assert isinstance(operation, ModuleOperation) and operation.kind == "grace.codebook"
    return operation


def cases(patch: EditPatch) -> list[str]:
    return [edit["case"] for edit in patch.state.config["edits"]]


def near(editor: Editor, request: EditRequest, others: Sequence[str]) -> list[float]:
    """Distances at the codebook's place from a request's prompt."""
    tools, place = editor.context().forward, projection(editor.adapter, 1, "mlp_out")
    queries = read(tools, place, [tools.boundary.prompt(text).ids for text in (request.prompt, *others)]).inputs
    return [float(each) for each in (queries[1:] - queries[0]).norm(dim=1)]


# ------------------------------------------------------------------ what is edited, and what is not
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_fact_gets_its_own_value(family: str) -> None:
    """Acceptance 2 end to end: the target is what the model says, and unrelated prompts stay bit for bit."""
    editor = editor_on(family, "grace", **{**QUICK, "n_iter": 60})
    before = logits_of(editor, UNRELATED)
    result = editor.edit(SHORT, scenario="batch", protocols=("teacher_forced",))
    assert result.evaluation is not None
    assert result.evaluation.metrics["tf_token.reliability"].value == 1.0
    assert torch.equal(logits_of(editor, UNRELATED), before)
    assert cases(result.patch) == ["new", "new", "new"]
    digest = editor.stack.weights_digest()
    editor.restore()
    assert editor.stack.weights_digest() == digest  # acceptance 9: no weight is ever touched


def test_an_encoder_decoders_answers_become_likelier() -> None:
    """One state of a random encoder moves its decoder little, so not up to the first place."""
    editor = editor_on("t5", "grace", **{**QUICK, "n_iter": 60})
    prompts = [request.prompt for request in SHORT]
    ids = torch.tensor([editor.context().tokens.pair(each.prompt, each.target_new).target_ids for each in SHORT])
    before, others = last_logits(editor, prompts).log_softmax(-1).gather(1, ids), logits_of(editor, UNRELATED)
    editor.edit(SHORT, scenario="batch", evaluate=False)
    assert bool((last_logits(editor, prompts).log_softmax(-1).gather(1, ids) > before + 0.5).all())
    assert torch.equal(logits_of(editor, UNRELATED), others)


@pytest.mark.parametrize("fast", [True, False])
def test_a_sequence_is_a_batch(fast: bool) -> None:
    """Structure bit for bit; values too when they are trained one by one."""
    editor = editor_on("gpt2", "grace", **QUICK, fast=fast)
    batch = editor.edit(FACTS, scenario="batch", evaluate=False).patch
    editor.restore()
    sequence = editor.edit(FACTS, scenario="sequential", evaluate=False).patch
    ours, theirs = codebook(batch).tensors, codebook(sequence).tensors
    for role in ("keys", "radii"):
        assert torch.equal(ours[role], theirs[role])
    torch.testing.assert_close(ours["values"], theirs["values"], rtol=0, atol=1e-4)
    assert [fact["prompt"] for fact in sequence.requests] == [request.prompt for request in FACTS]  # type: ignore[union-attr]
    assert batch.state.config == sequence.state.config
    if not fast:
        assert batch.to_bytes() == sequence.to_bytes()


def test_training_one_edit_leaves_all_other_values_alone() -> None:
    """Acceptance 6."""
    editor = editor_on("llama", "grace", **QUICK)
    first = editor.edit(FACTS[:2], scenario="batch", evaluate=False).patch
    before = codebook(first).tensors["values"]
    context = editor.context()
    context.previous = first
    assert context.hparams is not None
    grown = editor.host.compute_patch(context, [BOB], context.hparams)
    assert torch.equal(codebook(grown).tensors["values"][:2], before) and len(codebook(grown).tensors["values"]) == 3


def test_the_round_before_does_not_show_in_what_is_read() -> None:
    """A warm value begins as the model's own output, not as the value that is there."""
    editor = editor_on("gpt2", "grace", **{**QUICK, "n_iter": 1, "edit_lr": 1e-9}, value_init="warm")
    place = projection(editor.adapter, 1, "mlp_out")
    base = read(editor.context().forward, place, [editor.context().tokens.prompt(FRANCE.prompt).ids]).outputs
    other = evolve(FRANCE, target_new="Rome")
    result = editor.edit([FRANCE, other], scenario="sequential", evaluate=False)
    assert cases(result.patch) == ["new", "overwritten"]
    torch.testing.assert_close(codebook(result.patch).tensors["values"], base.float(), rtol=0, atol=1e-6)


def test_later_rounds_train_as_fast_as_the_first() -> None:
    """The round before must not close the fast paths."""
    editor = editor_on("gpt2", "grace", **QUICK)
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    editor.edit(FACTS[:1], scenario="batch", evaluate=False)
    editor.restore()
    first = len(calls)
    calls.clear()
    editor.edit(FACTS, scenario="sequential", evaluate=False)
    assert len(calls) <= 3 * first


def test_the_same_prompt_again() -> None:
    editor = editor_on("gpt2", "grace", **{**QUICK, "n_iter": 60})
    other = evolve(FRANCE, target_new="Rome")
    result = editor.edit([FRANCE, FRANCE, other], scenario="sequential", evaluate=False)
    assert cases(result.patch) == ["new", "covered", "overwritten"]
    assert len(codebook(result.patch).tensors["keys"]) == 1
    context = editor.context()
    (first, *_) = context.tokens.pair(FRANCE.prompt, "Rome").target_ids
    assert int(last_logits(editor, [FRANCE.prompt]).argmax()) == first


def test_paraphrases_share_a_key() -> None:
    """Acceptance 5 on a model: the same answer within both radii, whatever white space the prompt ends with."""
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": 1.0})
    (distance,) = near(editor, FRANCE, [ALICE.prompt])
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": distance / 1.5})
    same = evolve(ALICE, target_new=FRANCE.target_new)
    patch = editor.edit([FRANCE, same], scenario="batch", evaluate=False).patch
    assert cases(patch) == ["new", "expand"] and len(codebook(patch).tensors["keys"]) == 1
    base = editor_on("gpt2", "grace", **QUICK)
    assert bool(
        (last_logits(editor, [FRANCE.prompt, ALICE.prompt]) != last_logits(base, [FRANCE.prompt, ALICE.prompt]))
        .any(1)
        .all()
    )


def test_contradicting_neighbours_each_get_their_own() -> None:
    """Acceptance 4 on a model."""
    editor = editor_on("gpt2", "grace", **QUICK)
    (distance,) = near(editor, FRANCE, [ALICE.prompt])
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": distance, "n_iter": 60})
    result = editor.edit(SHORT[:2], scenario="batch", protocols=("teacher_forced",))
    assert cases(result.patch) == ["new", "split"] and result.evaluation is not None
    assert result.evaluation.metrics["tf_token.reliability"].value == 1.0
    radii = codebook(result.patch).tensors["radii"]
    assert float(radii.sum()) < distance


# ------------------------------------------------------------------ dropping
def test_dropping_is_editing_the_others_only() -> None:
    editor = editor_on("gpt2", "grace", **QUICK, fast=False)
    patch = editor.edit(FACTS, scenario="sequential", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "b")
    alone = (
        editor_on("gpt2", "grace", **QUICK, fast=False).edit([FRANCE, BOB], scenario="sequential", evaluate=False).patch
    )
    assert left.to_bytes() == alone.to_bytes()


def test_dropping_brings_back_what_was_overwritten() -> None:
    editor = editor_on("gpt2", "grace", **QUICK, fast=False)
    other = evolve(FRANCE, target_new="Rome", case_id="again")
    patch = editor.edit([FRANCE, ALICE, other], scenario="sequential", evaluate=False).patch
    editor.restore()
    assert cases(patch) == ["new", "new", "overwritten"]
    left = editor.drop(patch, "again")
    alone = (
        editor_on("gpt2", "grace", **QUICK, fast=False).edit([FRANCE, ALICE], scenario="batch", evaluate=False).patch
    )
    assert left.to_bytes() == alone.to_bytes()


def test_dropping_one_side_of_a_split_gives_the_ball_back() -> None:
    editor = editor_on("gpt2", "grace", **QUICK)
    (distance,) = near(editor, FRANCE, [ALICE.prompt])
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": distance})
    patch = editor.edit([FRANCE, ALICE], scenario="batch", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "b")
    assert codebook(left).tensors["radii"].tolist() == pytest.approx([distance])
    assert torch.equal(codebook(left).tensors["values"], codebook(patch).tensors["values"][:1])


def test_dropping_the_founder_leaves_the_shared_value_to_the_other() -> None:
    editor = editor_on("gpt2", "grace", **QUICK)
    (distance,) = near(editor, FRANCE, [ALICE.prompt])
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": distance / 1.5})
    same = evolve(ALICE, target_new=FRANCE.target_new)
    patch = editor.edit([FRANCE, same, BOB], scenario="batch", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "a")
    place = projection(editor.adapter, 1, "mlp_out")
    query = read(editor.context().forward, place, [editor.context().tokens.prompt(ALICE.prompt).ids]).inputs
    assert torch.equal(codebook(left).tensors["keys"][:1], query.float())
    assert torch.equal(codebook(left).tensors["values"][0], codebook(patch).tensors["values"][0])


def test_facts_that_share_a_value_only_after_a_drop_are_trained_together() -> None:
    """What is left is what editing the others alone gives, the value that both need now included."""
    third = evolve(BOB, prompt="Bob works in the city of", target_new=FRANCE.target_new)
    editor = editor_on("gpt2", "grace", **QUICK)
    to_first, to_second = near(editor, third, [FRANCE.prompt, ALICE.prompt])
    assert to_second < to_first
    settings = {**QUICK, "eps0": 1.01 * to_first, "fast": False}
    editor = editor_on("gpt2", "grace", **settings)
    patch = editor.edit([FRANCE, ALICE, third], scenario="sequential", evaluate=False).patch
    editor.restore()
    assert cases(patch) == ["new", "split", "split"]
    left = editor.drop(patch, "b")
    assert cases(left) == ["new", "covered"] and len(codebook(left).tensors["values"]) == 1
    assert not torch.equal(codebook(left).tensors["values"][0], codebook(patch).tensors["values"][2])
    alone = editor_on("gpt2", "grace", **settings).edit([FRANCE, third], scenario="sequential", evaluate=False).patch
    assert left.to_bytes() == alone.to_bytes()


def test_targets_missed_by_what_is_trained_after_a_drop_are_told() -> None:
    third = evolve(BOB, prompt="Bob works in the city of", target_new=FRANCE.target_new)
    (to_first,) = near(editor_on("gpt2", "grace", **QUICK), third, [FRANCE.prompt])
    editor = editor_on("gpt2", "grace", **{**QUICK, "eps0": 1.01 * to_first, "n_iter": 1, "edit_lr": 1e-6})
    patch = editor.edit([FRANCE, ALICE, third], scenario="batch", evaluate=False).patch
    editor.restore()
    told: list[str] = []
    editor.drop(patch, "b", on_warning=lambda warning: told.append(warning.code))
    assert told == ["target_not_reached"]


def test_radii_are_replayed_with_the_slack_of_the_model_that_was_edited() -> None:
    """Not with that of a copy in another dtype, on which a fact is dropped."""
    (distance,) = near(editor_on("gpt2", "grace", **QUICK), FRANCE, [ALICE.prompt])
    settings = {**QUICK, "eps0": distance / 1.5, "n_iter": 1}
    same = evolve(ALICE, target_new=FRANCE.target_new)
    editor = editor_on("gpt2", "grace", **settings)
    patch = editor.edit([FRANCE, same, BOB], scenario="batch", evaluate=False).patch
    editor.restore()
    assert cases(patch)[:2] == ["new", "expand"]
    half = editor_on("gpt2", "grace", torch.bfloat16, **settings)
    left = half.drop(patch, "c")
    assert torch.equal(codebook(left).tensors["radii"], codebook(editor.drop(patch, "c")).tensors["radii"])
    assert left.state.config["slack"] == rounding(editor.model) != rounding(half.model)


def test_single_facts_are_not_taken_out_of_a_patch_that_was_joined() -> None:
    editor = editor_on("gpt2", "grace", **{**QUICK, "n_iter": 1})
    joined = EditPatch.join([editor.compute([FRANCE]), editor.compute([ALICE])])
    with pytest.raises(InputError, match="joined from several"):
        editor.drop(joined, "a")


# ------------------------------------------------------------------ files, history
_OTHER_PROCESS = """
import sys, torch
sys.path.insert(0, {tests!r})
from memory_codebook_tools import editor_on, last_logits
from kedit_core import EditPatch
torch.set_num_threads(1)  # as in tests: sums in another order round otherwise
editor = editor_on({family!r}, "grace", layer=1)
editor.apply(EditPatch.load({patch!r}))
torch.save(last_logits(editor, {prompts!r}), {out!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_another_process_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    """Acceptance 9."""
    editor = editor_on(family, "grace", **QUICK)
    result = editor.edit(FACTS, scenario="batch", evaluate=False)
    result.patch.save(tmp_path / "patch.safetensors")
    prompts = [FRANCE.prompt, UNRELATED[0], BOB.prompt]
    code = _OTHER_PROCESS.format(
        tests=str(Path(__file__).parents[2]),
        family=family,
        patch=str(tmp_path / "patch.safetensors"),
        prompts=prompts,
        out=str(tmp_path / "logits"),
    )
    run_warm(code).check_returncode()
    assert torch.equal(torch.load(tmp_path / "logits"), last_logits(editor, prompts))


@pytest.fixture(scope="module")
def shelf() -> tuple[Editor, list[EditPatch], dict[tuple[int, ...], Tensor]]:
    """An editor with patches that are not on: codebooks on two layers, and two weight patches, made for the base."""
    editor = editor_on("gpt2", "grace", **QUICK)
    patches = []
    for layer in (1, 2):
        made = editor_on("gpt2", "grace", **{**QUICK, "layer": layer})
        patches.append(made.compute([FACTS[layer - 1]]))
    draw = torch.Generator().manual_seed(5)
    for layer in (0, 2):
        out, width = editor.adapter.down_weight(layer).shape
        left, right = torch.randn(out, 1, generator=draw), torch.randn(1, width, generator=draw)
        delta = LowRankDelta(editor.adapter.mlp_out_weight(layer), 0.1 * left, 0.1 * right)
        patches.append(editor.context().new_patch([delta], []))
    return editor, patches, {}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), max_size=10))
def test_any_history_equals_what_remains(shelf: Any, steps: list[int]) -> None:
    """Apply and remove in any order, with weight patches below and above: exact, and nothing is left at the end."""
    editor, patches, fresh = shelf
    before = Snapshot(editor.model)
    on: list[int] = []
    for step in steps:
        if step in on:
            editor.remove(patches[step])
            on.remove(step)
        else:
            editor.apply(patches[step])
            on.append(step)
    given = last_logits(editor, [request.prompt for request in FACTS])
    editor.restore()
    assert not before.differences(editor.model)
    if tuple(on) not in fresh:
        for each in on:
            editor.apply(patches[each])
        fresh[tuple(on)] = last_logits(editor, [request.prompt for request in FACTS])
        editor.restore()
    assert torch.equal(given, fresh[tuple(on)])


def test_weight_patches_below_count_as_the_model() -> None:
    """Keys are what the patched model reads, so an edit on top of a weight patch works there."""
    editor = editor_on("gpt2", "grace", **{**QUICK, "n_iter": 60})
    out, width = editor.adapter.down_weight(0).shape
    draw = torch.Generator().manual_seed(5)
    delta = LowRankDelta(
        editor.adapter.mlp_out_weight(0),
        0.3 * torch.randn(out, 1, generator=draw),
        torch.randn(1, width, generator=draw),
    )
    below = editor.context().new_patch([delta], [])
    bare = editor.compute(SHORT[:1])
    editor.apply(below)
    result = editor.edit(SHORT[:1], scenario="batch", protocols=("teacher_forced",))
    assert result.evaluation is not None and result.evaluation.metrics["tf_token.reliability"].value == 1.0
    assert result.patch.parents == (below.id,)
    assert not torch.equal(codebook(result.patch).tensors["keys"], codebook(bare).tensors["keys"])


@pytest.mark.slow
def test_half_precision_models_are_edited_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        editor = editor_on("llama", "grace", dtype, **{**QUICK, "n_iter": 60, "eps0": 1.0})
        result = editor.edit(SHORT, scenario="sequential", protocols=("teacher_forced",))
        assert result.evaluation is not None and result.evaluation.metrics["tf_token.reliability"].value == 1.0
        assert {tensor.dtype for tensor in codebook(result.patch).tensors.values()} == {torch.float32}


# ------------------------------------------------------------------ compat, radius, plan, errors
def test_compat_original_takes_the_key_one_token_late() -> None:
    editor = editor_on("gpt2", "grace", **QUICK, compat="original", replacement="replace_prompt")
    pair = editor.context().tokens.pair(FRANCE.prompt, FRANCE.target_new)
    patch = editor.compute([FRANCE])
    place = projection(editor.adapter, 1, "mlp_out")
    late = read(editor.context().forward, place, [(*pair.prompt_ids, *pair.target_ids[:1])]).inputs
    assert torch.equal(codebook(patch).tensors["keys"], late.float())
    assert codebook(patch).config["token"] == "first_target"
    assert editor_on("gpt2", "grace", **QUICK).compute([FRANCE]).operations[0].config["token"] == "last_prompt"  # type: ignore[union-attr]


def test_compat_easyedit_asks_again_at_every_token() -> None:
    patch = editor_on("gpt2", "grace", **QUICK, compat="easyedit").compute([FRANCE])
    assert codebook(patch).config == {"replacement": "replace_last", "token": "last_prompt", "requery": True}


def test_a_radius_from_data() -> None:
    editor = editor_on("gpt2", "grace", **QUICK)
    prompts = [request.prompt for request in FACTS] + list(UNRELATED)
    tools, place = editor.context().forward, projection(editor.adapter, 1, "mlp_out")
    queries = read(tools, place, [tools.boundary.prompt(text).ids for text in prompts]).inputs
    nearest = [
        min(float((one - other).norm()) for j, other in enumerate(queries) if i != j) for i, one in enumerate(queries)
    ]
    found = suggested_radius(tools, [*prompts, prompts[0]], 1)
    assert found == pytest.approx(float(torch.tensor(nearest).quantile(0.05)), rel=1e-5)
    assert suggested_radius(tools, prompts, 1, quantile=0.0) == pytest.approx(min(nearest), rel=1e-5)
    with pytest.raises(InputError, match="at least two"):
        suggested_radius(tools, [prompts[0], prompts[0]], 1)


def test_a_plan_says_what_it_takes() -> None:
    editor = editor_on("gpt2", "grace", **QUICK)
    plan = editor.plan(FACTS)
    assert plan["places"] == ["transformer.h.1.mlp.c_proj"]
    assert plan["seconds"] > 0 and plan["memory_bytes"] > plan["patch_bytes"] == 4 * 3 * (80 + 32 + 1)


@pytest.mark.parametrize(
    ("family", "hparams", "message"),
    [
        ("gpt2", {"layer": 3}, "layer 3 is not in this model of 3 layers"),
        ("llama", {"layer": 1, "part": "mlp_in"}, r"gate_proj and .*up_proj in this model, and one module is needed"),
    ],
)
def test_places_that_are_not_there_are_refused_before_any_work(
    family: str, hparams: dict[str, Any], message: str
) -> None:
    editor = editor_on(family, "grace", **hparams)
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=message):
        editor.edit(FACTS, evaluate=False)
    assert not calls


def test_a_radius_that_rounding_would_lose_is_refused() -> None:
    """Specification: GRACE, "Numerical cautions"."""
    with pytest.raises(HyperParamsError, match="eps0"):
        editor_on("gpt2", "grace", **{**QUICK, "eps0": 9e-5})
    assert editor_on("gpt2", "grace", **{**QUICK, "eps0": 1e-4}).compute([FRANCE]).operations


def test_a_prompt_too_long_for_the_model_is_refused_before_any_work() -> None:
    editor = editor_on("gpt2", "grace", **QUICK)
    long = EditRequest(prompt="river " * 200 + "is", target_new="Rome")
    with pytest.raises(RequestError, match="128 positions"):
        editor.edit([FRANCE, long], evaluate=False)


def test_values_that_do_not_reach_the_target_are_told() -> None:
    editor = editor_on("gpt2", "grace", **{**QUICK, "n_iter": 1, "edit_lr": 1e-6})
    result = editor.edit(FACTS, scenario="batch", evaluate=False)
    (warning,) = result.warnings
    assert warning.code == "target_not_reached" and "n_iter" in warning.remedy
