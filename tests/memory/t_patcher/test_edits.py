"""Sequences of edits: acceptance check 9 on tiny models, dropping, histories, and files handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from t_patcher_tools import ALICE, BOB, FRANCE, REQUESTS, editor_on, edits_of, logits_of, neurons_of
from warm_processes import run_warm

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.errors import InputError, PatchFormatError
from kedit_core.patches import LowRankDelta, ModuleOperation, PrivateRequests
from kedit_core.patches.format import State
from kedit_core.testing.snapshot import Snapshot, weights
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.records import carried


def bytes_of(neurons: Neurons) -> tuple[bytes, ...]:
    return tuple(each.numpy().tobytes() for each in (neurons.keys, neurons.bias, neurons.values))


def first_rows(neurons: Neurons, count: int) -> Neurons:
    return neurons.rows(torch.arange(len(neurons.bias)) < count)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_each_round_adds_its_neurons_behind_the_others(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    held: list[Neurons] = []
    for number, request in enumerate(REQUESTS, start=1):
        result = editor.edit(request, evaluate=False)
        neurons = neurons_of(result.patch)
        assert len(editor.stack.patches) == 1 and result.patch.parents == ()
        assert [fact["prompt"] for fact in result.patch.requests] == [each.prompt for each in REQUESTS[:number]]
        assert sum(each["neurons"] for each in edits_of(result.patch)) == len(neurons.bias)
        if held:
            assert bytes_of(first_rows(neurons, len(held[-1].bias))) == bytes_of(held[-1])
            assert len(neurons.bias) > len(held[-1].bias)
        held.append(neurons)
    again = editor_on(family, tmp_path, torch.float32).edit(REQUESTS, scenario="sequential", evaluate=False)
    assert again.patch.id == result.patch.id


def test_a_later_edit_is_learnt_on_the_model_with_the_earlier_ones(tmp_path: Path) -> None:
    """The same fact with another answer: the second one wins, and was trained against the first one's neurons."""
    for scenario in ("sequential", "batch"):
        editor = editor_on("gpt2", tmp_path, torch.float32, max_epochs=150)
        other = evolve(FRANCE, target_new="Brink", case_id="z")
        result = editor.edit([FRANCE, other], scenario=scenario, evaluate=False)
        assert [each["right"] for each in edits_of(result.patch)] == [True, True]
        assert editor.generate(FRANCE.prompt, max_new_tokens=6).strip().startswith("Brink")


@pytest.mark.parametrize("family", ["gpt2", "opt", "t5"])
def test_check_9_dropping_an_edit_drops_its_rows(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    patches = [editor.edit(request, evaluate=False).patch for request in REQUESTS]
    whole = neurons_of(patches[-1])
    counts = [each["neurons"] for each in edits_of(patches[-1])]
    before, on = Snapshot(editor.model), editor.stack.patches
    for number, request in enumerate(REQUESTS):
        made = editor.drop(patches[-1], str(request.case_id))
        kept = torch.tensor([i != number for i, count in enumerate(counts) for _ in range(count)])
        assert bytes_of(neurons_of(made)) == bytes_of(whole.rows(kept))
        assert [each["neurons"] for each in edits_of(made)] == counts[:number] + counts[number + 1 :]
        assert made.state.config["resources"] == patches[-1].state.config["resources"]
    assert not before.differences(editor.model) and editor.stack.patches == on
    # without the last one, it is the model of the round before, bit for bit
    editor.restore()
    bare = logits_of(editor)
    with editor.applied(patches[1]):
        wanted = logits_of(editor)
    with editor.applied(editor.drop(patches[2], "c")):
        assert torch.equal(logits_of(editor), wanted)
    alone = editor.drop(editor.drop(patches[2], "c"), "b")
    with editor.applied(patches[0]):
        wanted = logits_of(editor)
    with editor.applied(alone):
        assert torch.equal(logits_of(editor), wanted)
    assert torch.equal(logits_of(editor), bare)


def test_a_fact_without_neurons_is_dropped_too(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32, max_epochs=150)
    editor.edit(FRANCE, evaluate=False)
    same = evolve(FRANCE, case_id="same")
    patch = editor.edit(same, evaluate=False).patch
    assert [each["neurons"] for each in edits_of(patch)][1] == 0
    editor.restore()
    assert bytes_of(neurons_of(editor.drop(patch, "same"))) == bytes_of(neurons_of(patch))
    left = editor.drop(patch, "a")
    assert not left.operations and edits_of(left) == [{"neurons": 0}]
    editor.apply(left)
    editor.restore()


def test_what_cannot_be_dropped(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32)
    patch = editor.edit(REQUESTS, evaluate=False).patch
    editor.restore()
    private = evolve(patch, requests=PrivateRequests.of([request.fact for request in REQUESTS]))
    with pytest.raises(InputError, match="private"):
        editor.drop(private, "a")
    with pytest.raises(PatchFormatError, match="which of its"):
        editor.drop(evolve(patch, state=State({"edits": edits_of(patch)[:2]})), "a")
    first, *others = edits_of(patch)
    for wrong in (None, 3, [3, *others], [{}, *others], [{**first, "neurons": "1"}, *others]):
        with pytest.raises(PatchFormatError, match="does not say what"):
            editor.drop(evolve(patch, state=State({"edits": wrong})), "a")
    broken = evolve(patch, state=State({**patch.state.config, "resources": []}))
    editor.apply(broken)
    with pytest.raises(PatchFormatError, match="resources"):
        carried(evolve(editor.context(), previous=broken), "relu")


def test_what_is_above_and_below_counts_as_the_model(tmp_path: Path) -> None:
    """An edit on top of another method's patch is right there; its parent is named."""
    editor = editor_on("gpt2", tmp_path, torch.float32, max_epochs=150)
    below = editor.context().new_patch([delta_at(editor, 1, 1)], [BOB])
    editor.apply(below)
    result = editor.edit(FRANCE, evaluate=False)
    assert result.patch.parents == (below.id,) and edits_of(result.patch)[0]["right"]
    assert editor.generate(FRANCE.prompt, max_new_tokens=6).strip().startswith("Port Lumen"[:4])


def delta_at(editor: Editor, layer: int, seed: int) -> LowRankDelta:
    draw = torch.Generator().manual_seed(seed)
    rows, columns = editor.adapter.down_weight(layer).shape
    left, right = torch.randn(rows, 1, generator=draw), torch.randn(1, columns, generator=draw)
    return LowRankDelta(editor.adapter.mlp_out_weight(layer), left, 0.1 * right)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Editor, list[EditPatch], dict[tuple[int, ...], bytes]]:
    """An editor, two patches of neurons and two of weights, and the logits of every stack that was seen."""
    folder = tmp_path_factory.mktemp("history")
    editor = editor_on("gpt2", folder, torch.float32, max_epochs=30)
    patches = [editor.compute(request) for request in (FRANCE, ALICE)]
    context = editor.context()
    patches += [context.new_patch([delta_at(editor, layer, layer)], [BOB]) for layer in (0, 2)]
    return editor, patches, {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 3), max_size=8))
def test_any_history_leaves_what_remains(world: Any, steps: list[int]) -> None:
    editor, patches, seen = world
    editor.restore()
    bare = weights(editor.model)
    on: list[int] = []
    for number in steps:
        if number in on:
            editor.remove(patches[number])
            on.remove(number)
        else:
            editor.apply(patches[number])
            on.append(number)
        found = logits_of(editor).numpy().tobytes()
        if tuple(on) not in seen:
            model, tokenizer = tiny("gpt2")
            fresh = Editor(model, tokenizer)
            for each in on:
                fresh.apply(patches[each])
            seen[tuple(on)] = logits_of(fresh).numpy().tobytes()
        assert found == seen[tuple(on)]
    editor.restore()
    assert weights(editor.model) == bare


_ELSEWHERE = """
import sys, json, torch
from kedit_core import EditPatch, Editor
from kedit_core.testing.tiny import tiny
torch.set_num_threads(1)
model, tokenizer = tiny(sys.argv[2])
editor = Editor(model, tokenizer)
editor.apply(EditPatch.load(sys.argv[1]))
inputs = json.loads(sys.argv[3])
with torch.no_grad():
    logits = editor.model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
print(logits.numpy().tobytes().hex())
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_saved_here_and_loaded_elsewhere(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32)
    editor.edit(FRANCE, evaluate=False).patch.save(tmp_path / "patch.safetensors")
    inputs = {"input_ids": [list(editor.tokens.prompt(FRANCE.prompt).ids)]}
    done = run_warm(_ELSEWHERE, tmp_path / "patch.safetensors", family, json.dumps(inputs))
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        here = editor.model(torch.tensor(inputs["input_ids"])).logits
    assert done.stdout.strip() == here.numpy().tobytes().hex()


def test_the_patch_is_small_and_says_what_was_done(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32)
    result = editor.edit(REQUESTS, evaluate=False)
    (operation,) = result.patch.operations
    assert isinstance(operation, ModuleOperation) and operation.places == ("transformer.h.2.mlp",)
    assert set(result.patch.base.tensors) == {
        f"transformer.h.2.mlp.{name}" for name in ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")
    }
    assert not result.patch.state.tensors
    for record, request in zip(edits_of(result.patch), REQUESTS, strict=True):
        assert set(record) == {"neurons", "positions", "epochs", "right", "loss", "memory_loss", "fires_on"}
        assert len(record["positions"]) == record["neurons"] and isinstance(request, EditRequest)
    assert "neurons" in json.dumps(result.patch.manifest())


def test_the_plan_tells_what_an_edit_takes(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path, torch.float32)
    plan = editor.plan(REQUESTS)
    assert plan["places"] == ["transformer.h.2.mlp"] and plan["seconds"] > 0 and plan["fits"]
    assert plan["memory_bytes"] > 4 * 32 * 5000
    patch = editor.edit(REQUESTS, evaluate=False).patch
    held = sum(each.numel() * each.element_size() for each in (*patch.operations[0].tensors.values(),))
    # what was wrong at first may be right by the time it comes
    assert plan["patch_bytes"] >= held
    assert "corpus.txt" in " ".join(plan["notes"])
