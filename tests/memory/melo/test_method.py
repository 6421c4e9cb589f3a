"""MELO as a method: batches, sequences, capacity, dropping, files, other patches below, plans, errors."""

from __future__ import annotations

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
from kedit_methods_memory.melo.kind import Blocks
from kedit_methods_memory.projections import projection
from kedit_methods_memory.reading import read
from kedit_methods_memory.rounding import rounding

QUICK: dict[str, Any] = {
    "scope_layer": 0,
    "layers": [1, 2],
    "num_iter": 15,
    "lr": 0.01,
    "radius": 0.3,
    "blocks": 6,
    "edits_per_block": 1,
}
LEARNT = {**QUICK, "num_iter": 60, "lr_step": 60}


def operation(patch: EditPatch) -> ModuleOperation:
    (found,) = patch.operations
    assert isinstance(found, ModuleOperation) and found.kind == "melo.blocks"
    return found


def edits(patch: EditPatch, role: str) -> list[Any]:
    return [edit[role] for edit in patch.state.config["edits"]]


def adapters(patch: EditPatch) -> dict[str, Tensor]:
    return {role: tensor for role, tensor in operation(patch).tensors.items() if role[:2] in ("a.", "b.")}


def distance(editor: Editor) -> float:
    """Between the prompts of the first two facts, where prompts are told apart."""
    tools, place = editor.context().forward, projection(editor.adapter, 0, "mlp_out")
    both = read(tools, place, [tools.boundary.prompt(text).ids for text in (FRANCE.prompt, ALICE.prompt)]).outputs
    return float((both[1] - both[0]).norm())


class Chosen:
    """Which block each row of the last prompts got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        lookup = Blocks._lookup

        def kept(kind: Blocks, hidden: Tensor) -> Tensor:
            found = lookup(kind, hidden)
            self.rows = found.tolist()
            return found

        monkeypatch.setattr(Blocks, "_lookup", kept)


# ------------------------------------------------------------------ what is edited, and what is not
@pytest.mark.parametrize("family", ["gpt2", *(pytest.param(each, marks=pytest.mark.slow) for each in ("llama", "t5"))])
@pytest.mark.parametrize("scenario", ["batch", "sequential"])
def test_facts_are_learnt_and_nothing_else(family: str, scenario: Any) -> None:
    more = {"layers": [1], "decoder_layers": [0, 1]} if family == "t5" else {}
    editor = editor_on(family, "melo", **{**LEARNT, **more})
    before = logits_of(editor, UNRELATED)
    result = editor.edit(SHORT, scenario=scenario, protocols=("teacher_forced",))
    assert result.evaluation is not None
    assert result.evaluation.metrics["tf_token.reliability"].value == 1.0
    assert torch.equal(logits_of(editor, UNRELATED), before)
    digest = editor.stack.weights_digest()
    editor.restore()
    assert editor.stack.weights_digest() == digest and torch.equal(logits_of(editor, UNRELATED), before)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_prompt_gets_its_batchs_block(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 5."""
    editor = editor_on("gpt2", "melo", **{**QUICK, "edits_per_block": size})
    patch = editor.edit(FACTS, scenario="batch", evaluate=False).patch
    wanted = [i // size for i in range(3)]
    assert edits(patch, "block") == wanted and patch.state.config["next_block"] == wanted[-1] + 1
    assert operation(patch).tensors["a.0"].shape == (wanted[-1] + 1, 32, 2)
    chosen = Chosen(monkeypatch)
    last_logits(editor, [*(fact.prompt for fact in FACTS), *UNRELATED[:1]])
    assert chosen.rows == [*wanted, -1]


def test_a_sequence_is_a_batch_of_single_blocks() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    batch = editor.edit(FACTS, scenario="batch", evaluate=False).patch
    editor.restore()
    sequence = editor.edit(FACTS, scenario="sequential", evaluate=False).patch
    assert batch.to_bytes() == sequence.to_bytes()


def test_an_untrained_block_changes_nothing() -> None:
    """Acceptance 6: B begins as zero."""
    editor = editor_on("gpt2", "melo", **{**QUICK, "num_iter": 1, "lr": 1e-30})
    before = last_logits(editor, [fact.prompt for fact in FACTS])
    editor.edit(FACTS, scenario="batch", evaluate=False)
    assert torch.equal(last_logits(editor, [fact.prompt for fact in FACTS]), before)


def test_a_later_batch_leaves_the_blocks_before_alone() -> None:
    """Acceptance 3 from round to round."""
    editor = editor_on("llama", "melo", **QUICK)
    first = editor.edit(FACTS[:2], scenario="batch", evaluate=False).patch
    context = editor.context()
    context.previous = first
    assert context.hparams is not None
    grown = editor.host.compute_patch(context, [BOB], context.hparams)
    for role, tensor in adapters(first).items():
        assert torch.equal(adapters(grown)[role][:2], tensor) and len(adapters(grown)[role]) == 3
    # and what is learnt on top is what is learnt alone
    alone = editor_on("llama", "melo", **QUICK).compute([BOB])
    assert all(torch.equal(adapters(grown)[role][2], tensor[0]) for role, tensor in adapters(alone).items())


def test_paraphrases_with_one_answer_share_a_cluster() -> None:
    editor = editor_on("gpt2", "melo", **{**QUICK, "radius": distance(editor_on("gpt2", "melo", **QUICK)) / 1.5})
    same = evolve(ALICE, target_new=FRANCE.target_new)
    patch = editor.edit([FRANCE, same], scenario="sequential", evaluate=False).patch
    assert edits(patch, "case") == ["new", "joined"] and len(operation(patch).tensors["centres"]) == 1
    assert operation(patch).tensors["point_block"].tolist() == [0, 1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cluster_that_grew_answers_all_its_prompts_in_any_batch(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding rounds otherwise than reading alone, and one of the prompts lies on the edge."""
    prompts = (FRANCE.prompt, "Alice plays the", "Bob works in the city of")
    editor = editor_on("llama", "melo", **QUICK)
    tools, place = editor.context().forward, projection(editor.adapter, 0, "mlp_out")
    states = read(tools, place, [tools.boundary.prompt(text).ids for text in prompts]).outputs.float()
    settings = {**QUICK, "num_iter": 1, "radius": 0.45 * float(torch.cdist(states, states).max())}
    editor = editor_on("llama", "melo", **settings)
    facts = [evolve(FRANCE, prompt=text, subject=None, case_id=text) for text in prompts]
    patch = editor.edit(facts, scenario="sequential", evaluate=False).patch
    assert edits(patch, "case") == ["new", "joined", "joined"]
    assert float(operation(patch).tensors["radii"]) > 1.01 * settings["radius"]
    assert patch.state.config["slack"] == rounding(editor.model)
    chosen = Chosen(monkeypatch)
    last_logits(editor, [*prompts, "The river is long and the day was long and nobody came because of the rain"], side)
    assert chosen.rows == [0, 1, 2, -1]


def test_the_slack_is_that_of_the_model_that_was_edited() -> None:
    """Dropping on a copy in another dtype replays the database as it was."""
    near = distance(editor_on("gpt2", "melo", **QUICK)) / 1.5
    editor = editor_on("gpt2", "melo", **{**QUICK, "radius": near / 1.5})
    same = evolve(ALICE, target_new=FRANCE.target_new)
    patch = editor.edit([FRANCE, same, BOB], scenario="sequential", evaluate=False).patch
    half = editor_on("gpt2", "melo", torch.bfloat16, **{**QUICK, "radius": near / 1.5})
    left = half.drop(patch, "c")
    assert left.state.config["slack"] == patch.state.config["slack"] == rounding(editor.model) != rounding(half.model)
    editor.restore()
    assert operation(left).tensors["radii"].tolist() == operation(editor.drop(patch, "c")).tensors["radii"].tolist()


def test_an_edit_made_again_gets_its_new_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left that would still ask for the block it had."""
    editor = editor_on("gpt2", "melo", **{**QUICK, "edits_per_block": 2})
    again = evolve(FRANCE, case_id="again")
    patch = editor.edit([FRANCE, ALICE, again, BOB], scenario="batch", evaluate=False).patch
    assert edits(patch, "case") == ["new", "new", "renewed", "new"] and edits(patch, "block") == [0, 0, 1, 1]
    chosen = Chosen(monkeypatch)
    last_logits(editor, [fact.prompt for fact in FACTS])
    assert chosen.rows == [1, 0, 1]


def test_contradicting_neighbours_each_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = editor_on("gpt2", "melo", **{**LEARNT, "radius": distance(editor_on("gpt2", "melo", **QUICK))})
    result = editor.edit(SHORT[:2], scenario="sequential", protocols=("teacher_forced",))
    assert edits(result.patch, "case") == ["new", "conflict"] and result.patch.state.config["conflicts"] == 1
    assert result.evaluation is not None
    assert result.evaluation.metrics["tf_token.reliability"].value == 1.0 and not result.warnings


def test_what_is_forgotten_is_told() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    other = evolve(FRANCE, target_new="Rome")
    result = editor.edit([FRANCE, other], scenario="sequential", evaluate=False)
    assert edits(result.patch, "case") == ["new", "overwritten"]
    assert (result.patch.state.config["conflicts"], result.patch.state.config["forgotten"]) == (1, 1)
    told = {each.code: each for each in result.warnings}
    assert told["edits_overwritten"].number == 1.0 and "one target" in told["edits_overwritten"].remedy
    assert "edits_forgotten" not in told


def test_what_lies_too_near_is_told_apart_from_what_is_overwritten() -> None:
    """Two prompts with one answer, and a third near one of them that takes the ball from both."""
    prompts = (FRANCE.prompt, "Bob works in the city of", "The capital of Norway is")
    editor = editor_on("llama", "melo", **QUICK)
    tools, place = editor.context().forward, projection(editor.adapter, 0, "mlp_out")
    states = read(tools, place, [tools.boundary.prompt(text).ids for text in prompts]).outputs.float()
    editor = editor_on("llama", "melo", **{**QUICK, "num_iter": 1, "radius": float(torch.cdist(states, states).max())})
    facts = [evolve(FRANCE, prompt=text, subject=None, case_id=text) for text in prompts]
    facts[2] = evolve(facts[2], target_new="Rome")
    result = editor.edit(facts, scenario="sequential", evaluate=False)
    assert edits(result.patch, "case") == ["new", "joined", "conflict"]
    gone = edits(result.patch, "forgotten")[2]
    assert gone > 0
    told = {each.code: each for each in result.warnings}
    assert told["edits_forgotten"].number == gone and "radius" in told["edits_forgotten"].remedy
    assert "edits_overwritten" not in told


# ------------------------------------------------------------------ acceptance 7: capacity
def test_too_many_edits_are_refused_before_any_work() -> None:
    editor = editor_on("gpt2", "melo", **{**QUICK, "blocks": 2})
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    before = Snapshot(editor.model)
    with pytest.raises(InputError, match="3 requests need 3 blocks, and 2 of 2 are left; set blocks to 3"):
        editor.edit(FACTS, scenario="batch", evaluate=False)
    with pytest.raises(InputError, match=r"3 requests need 3 blocks, and 2 of 2 are left; .* batch_size"):
        editor.edit(FACTS, scenario="sequential", evaluate=False)
    assert not calls
    assert not before.differences(editor.model) and not editor.stack.patches
    first = editor.edit(FACTS[:2], scenario="batch", evaluate=False).patch
    assert first.state.config["next_block"] == 2
    calls.clear()
    with pytest.raises(InputError, match="1 requests need 1 blocks, and 0 of 2 are left"):
        editor.edit(BOB, scenario="sequential", evaluate=False)
    assert not calls


def test_what_a_sequence_needs_is_counted_round_by_round() -> None:
    """Rounds of two in blocks of two need a block each; so do equal requests, and a sequence after another edit."""
    settings = {**QUICK, "blocks": 3, "edits_per_block": 2, "num_iter": 1}
    editor = editor_on("gpt2", "melo", **settings)
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match="4 requests need 4 blocks"):
        editor.edit([FRANCE, ALICE, FRANCE, FRANCE], scenario="sequential", evaluate=False)
    with pytest.raises(InputError, match="7 requests need 4 blocks"):
        editor.edit([FRANCE] * 7, scenario="sequential", batch_size=2, evaluate=False)
    assert not calls
    made = editor.edit([FRANCE] * 5, scenario="sequential", batch_size=2, evaluate=False).patch
    assert made.state.config["next_block"] == 3
    editor.restore()
    editor.edit([FRANCE], scenario="sequential", evaluate=False)
    calls.clear()
    with pytest.raises(InputError, match="3 requests need 3 blocks, and 2 of 3 are left; set blocks to 4"):
        editor.edit([ALICE, ALICE, FRANCE], scenario="sequential", evaluate=False)
    assert not calls
    editor.edit([FRANCE, FRANCE], scenario="sequential", evaluate=False)


# ------------------------------------------------------------------ dropping
def test_dropping_a_block_is_editing_the_others_only() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    patch = editor.edit(FACTS, scenario="sequential", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "b")
    alone = editor_on("gpt2", "melo", **QUICK).edit([FRANCE, BOB], scenario="sequential", evaluate=False).patch
    assert left.to_bytes() == alone.to_bytes()


def test_dropping_one_of_a_batch_trains_the_rest_anew() -> None:
    settings = {**QUICK, "edits_per_block": 2}
    editor = editor_on("gpt2", "melo", **settings)
    patch = editor.edit(FACTS, scenario="batch", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "b")
    assert edits(left, "block") == [0, 1] and left.state.config["next_block"] == 2
    alone = editor_on("gpt2", "melo", **settings).compute([FRANCE])
    for role, tensor in adapters(alone).items():
        assert torch.equal(adapters(left)[role][0], tensor[0])
        assert torch.equal(adapters(left)[role][1], adapters(patch)[role][1])


def test_dropping_brings_back_what_was_forgotten() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    other = evolve(FRANCE, target_new="Rome", case_id="again")
    patch = editor.edit([FRANCE, ALICE, other], scenario="sequential", evaluate=False).patch
    editor.restore()
    left = editor.drop(patch, "again")
    alone = editor_on("gpt2", "melo", **QUICK).edit([FRANCE, ALICE], scenario="sequential", evaluate=False).patch
    assert left.to_bytes() == alone.to_bytes()


def test_single_facts_are_not_taken_out_of_a_patch_that_was_joined() -> None:
    editor = editor_on("gpt2", "melo", **{**QUICK, "num_iter": 1})
    joined = EditPatch.join([editor.compute([FRANCE]), editor.compute([ALICE])])
    with pytest.raises(InputError, match="joined from several"):
        editor.drop(joined, "a")


# ------------------------------------------------------------------ files, history
_OTHER_PROCESS = """
import sys, torch
sys.path.insert(0, {tests!r})
from memory_codebook_tools import editor_on, last_logits
from kedit_core import EditPatch
from kedit_methods_memory.melo.kind import Blocks
lookup, seen = Blocks._lookup, []
Blocks._lookup = lambda kind, hidden: seen.append(lookup(kind, hidden)) or seen[-1]
torch.set_num_threads(1)  # as in tests: sums in another order round otherwise
editor = editor_on("gpt2", "melo", scope_layer=0, layers=[1, 2])
editor.apply(EditPatch.load({patch!r}))
torch.save((last_logits(editor, {prompts!r}), seen[-1]), {out!r})
"""


@pytest.mark.slow
def test_another_process_gives_the_same_blocks_and_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 8."""
    editor = editor_on("gpt2", "melo", **QUICK)
    digest = editor.stack.weights_digest()
    editor.edit(FACTS, scenario="batch", evaluate=False).patch.save(tmp_path / "patch.safetensors")
    prompts = [FRANCE.prompt, UNRELATED[0], BOB.prompt]
    code = _OTHER_PROCESS.format(
        tests=str(Path(__file__).parents[2]),
        patch=str(tmp_path / "patch.safetensors"),
        prompts=prompts,
        out=str(tmp_path / "logits"),
    )
    run_warm(code).check_returncode()
    logits, blocks = torch.load(tmp_path / "logits")
    chosen = Chosen(monkeypatch)
    assert torch.equal(logits, last_logits(editor, prompts))
    assert blocks.tolist() == chosen.rows == [0, -1, 2]
    editor.restore()
    assert editor.stack.weights_digest() == digest


@pytest.fixture(scope="module")
def shelf() -> tuple[Editor, list[EditPatch], dict[tuple[int, ...], Tensor]]:
    """An editor with patches that are not on: adapters with other scopes, and two weight patches, made for the base."""
    editor = editor_on("gpt2", "melo", **QUICK)
    patches = []
    for scope, layers, fact in ((0, [1, 2], FRANCE), (1, [2], ALICE)):
        made = editor_on("gpt2", "melo", **{**QUICK, "scope_layer": scope, "layers": layers})
        patches.append(made.compute([fact]))
    draw = torch.Generator().manual_seed(5)
    for layer in (0, 2):
        out, width = editor.adapter.down_weight(layer).shape
        left, right = torch.randn(out, 1, generator=draw), torch.randn(1, width, generator=draw)
        delta = LowRankDelta(editor.adapter.mlp_out_weight(layer), 0.01 * left, 0.01 * right)
        patches.append(editor.context().new_patch([delta], []))
    return editor, patches, {}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), max_size=10))
def test_any_history_equals_what_remains(shelf: Any, steps: list[int]) -> None:
    """Apply and remove in any order, with weight patches below and above: exact, and nothing is left at the end."""
    editor, patches, fresh = shelf
    before = Snapshot(editor.model)
    prompts = [request.prompt for request in FACTS]
    on: list[int] = []
    for step in steps:
        if step in on:
            editor.remove(patches[step])
            on.remove(step)
        else:
            editor.apply(patches[step])
            on.append(step)
    given = last_logits(editor, prompts)
    editor.restore()
    assert not before.differences(editor.model)
    if tuple(on) not in fresh:
        for each in on:
            editor.apply(patches[each])
        fresh[tuple(on)] = last_logits(editor, prompts)
        editor.restore()
    assert torch.equal(given, fresh[tuple(on)])


def test_patches_of_the_shelf_show(shelf: Any) -> None:
    """So that the histories above compare something."""
    editor, patches, _ = shelf
    base = last_logits(editor, [request.prompt for request in FACTS])
    for number, patch in enumerate(patches):
        with editor.applied(patch):
            changed = (last_logits(editor, [request.prompt for request in FACTS]) != base).any(dim=1)
        assert changed.tolist() == ([number == 0, number == 1, False] if number < 2 else [True] * 3)


def test_weight_patches_below_count_as_the_model() -> None:
    editor = editor_on("gpt2", "melo", **LEARNT)
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
    assert not torch.equal(operation(result.patch).tensors["centres"], operation(bare).tensors["centres"])


@pytest.mark.slow
def test_half_precision_models_are_edited_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        editor = editor_on("llama", "melo", dtype, **{**LEARNT, "radius": 0.5})
        result = editor.edit(SHORT, scenario="sequential", protocols=("teacher_forced",))
        assert result.evaluation is not None and result.evaluation.metrics["tf_token.reliability"].value == 1.0
        assert {tensor.dtype for tensor in adapters(result.patch).values()} == {torch.float32}


# ------------------------------------------------------------------ plan, errors
def test_a_plan_says_what_it_takes() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    plan = editor.plan(FACTS)
    assert plan["places"][0] == "transformer.h.0.mlp.c_proj" and len(plan["places"]) == 5
    numbers = 2 * 4 * (32 + 80)
    assert plan["patch_bytes"] == 4 * (3 * numbers + 3 * (32 + 1))
    assert plan["seconds"] > 0 and plan["memory_bytes"] > plan["patch_bytes"]


@pytest.mark.parametrize(
    ("family", "hparams", "message"),
    [
        ("gpt2", {"layers": [1, 3]}, "layers 3 is not in this model of 3 layers"),
        ("gpt2", {"decoder_layers": [0]}, "decoder_layers are for the MLPs of an encoder-decoder"),
        ("t5", {"layers": [1], "decoder_layers": [7]}, "decoder_layers has block 7"),
        ("llama", {"scope_part": "mlp_in"}, r"gate_proj and .*up_proj in this model, and one module is needed"),
    ],
)
def test_places_that_are_not_there_are_refused_before_any_work(
    family: str, hparams: dict[str, Any], message: str
) -> None:
    editor = editor_on(family, "melo", **{**QUICK, **hparams})
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=message):
        editor.edit(FACTS, evaluate=False)
    assert not calls


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"layers": []}, "layers is empty"),
        ({"layers": [0, 1]}, "runs before the decision"),
        ({"layers": [2, 1]}, "ascending order"),
        ({"parts": ["mlp_out", "mlp_out"]}, "twice"),
    ],
)
def test_settings_that_cannot_be_are_refused(hparams: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperParamsError, match=message):
        editor_on("gpt2", "melo", **{**QUICK, **hparams})


def test_a_prompt_too_long_for_the_model_is_refused_before_any_work() -> None:
    editor = editor_on("gpt2", "melo", **QUICK)
    long = EditRequest(prompt="river " * 200 + "is", target_new="Rome")
    with pytest.raises(RequestError, match="128 positions"):
        editor.edit([FRANCE, long], evaluate=False)


def test_targets_that_are_not_reached_are_told() -> None:
    editor = editor_on("gpt2", "melo", **{**QUICK, "num_iter": 1, "lr": 1e-9})
    result = editor.edit(FACTS, scenario="batch", evaluate=False)
    assert {warning.code for warning in result.warnings} == {"target_not_reached"}
