"""Edits with MALMEN: one solve for all, blocks, accumulated rounds, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from meta_tools import editor_on, records, stacked, trained
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.errors import BaseMismatchError, InputError, RequirementError
from kedit_core.patches import EditPatch
from kedit_core.testing.snapshot import Snapshot
from kedit_core.training import EditorFolder
from kedit_core.training.writing import write_editor
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.malmen import MalmenEditor
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.spill import Spill

FEW = {"batch_size": 4, "eta": 1e-2}
LOG_2 = 0.6931471805599453


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("malmen")


def source(folders: Path, family: str = "gpt2", dtype: torch.dtype = torch.float64) -> Path:
    return trained(folders / f"{family}-{str(dtype)[6:]}", family, "malmen", dtype, **FEW)


def rewritten(folder: Path, of: Path, config: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A copy of an editor's folder with other tensors and settings."""
    found = EditorFolder.read(of)
    settings = {**found.config["settings"], **(config or {})}
    state = {**found.state, "config": {**found.config, "settings": settings}}
    write_editor(folder, {**found.tensors, **tensors}, state)
    return folder


def on(folder: Path, family: str = "gpt2", dtype: torch.dtype = torch.float64, **hparams: Any) -> Editor:
    return editor_on(family, "malmen", folder, dtype, hparams=hparams)


def change(*patches: EditPatch) -> dict[str, Tensor]:
    """What patches add together, ``[out, in]`` by weight."""
    shapes = {
        name: each.shape[::-1] if each.layout == "in_out" else each.shape
        for name, each in patches[0].base.tensors.items()
    }
    return stacked([operation for patch in patches for operation in patch.operations], shapes)


def same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, each in one.items():
        scale = float(each.abs().max())
        assert scale > 0
        torch.testing.assert_close(each, other[name], rtol=0, atol=rtol * scale)


def test_1_a_step_size_of_zero_changes_no_bit(folders: Path, tmp_path: Path) -> None:
    """Acceptance check 1, first half."""
    editor = on(rewritten(tmp_path / "still", source(folders), eta=torch.zeros(2, dtype=torch.float32)))
    ids = editor.tokenizer("Alice number 0 lives in", return_tensors="pt")["input_ids"]
    before = editor.model(ids).logits
    editor.edit(records(3), evaluate=False)
    assert torch.equal(editor.model(ids).logits, before)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("count", [2, 12])
def test_an_edit_is_the_solution_for_all_tokens(folders: Path, family: str, count: int) -> None:
    """Plain normal equations of all keys, for few tokens (factors) and many (dense)."""
    editor = on(source(folders, family), family)
    context = editor.context()
    folder = EditorFolder.load(context)
    module = MalmenEditor.of(context.adapter, folder.config, folder.tensors)
    pairs = [context.tokens.pair(each.prompt, each.target_new) for each in records(count)]
    if family == "t5":
        pairs = [evolve(pair, target_ids=(*pair.target_ids, editor.tokenizer.eos_token_id)) for pair in pairs]
    factors = read(context.forward, pairs, module.places, module.settings)
    values = module.values(factors)
    wanted = {}
    for number, place in enumerate(module.places):
        keys, each = factors[place.name].inputs, values[place.name].double()
        gram = keys.T @ keys + module.log_ridge[number].detach().double().exp() * torch.eye(place.width).double()
        wanted[place.name] = torch.linalg.solve(gram, keys.T @ each).T
    patch = editor.compute(records(count))
    same(change(patch), wanted)
    tokens = patch.state.config["tokens"]
    for operation in patch.operations:
        dense = tokens[operation.place] * (80 + 32) >= 80 * 32
        assert operation.type == ("dense_delta" if dense else "low_rank_delta")


def test_5_with_a_sum_micro_batches_of_any_size_give_the_same(folders: Path, tmp_path: Path) -> None:
    """Acceptance check 5: also with each edit's own mean, our default; the published mean depends on it."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for reduction in ("sum", "edit_mean", "portion_mean"):
        for size in (1, 3, 32):
            where = tmp_path / f"{reduction}-{size}"
            rewritten(where, source(folders), {"reduction": reduction, "micro_batch": size})
            editor = on(where)
            found.setdefault(reduction, []).append(change(editor.compute(records(6))))
    for reduction in ("sum", "edit_mean"):
        for other in found[reduction][1:]:
            same(found[reduction][0], other, 1e-4)
    first, last = found["portion_mean"][0], found["portion_mean"][-1]
    assert all(float((first[name] - last[name]).norm()) > 1e-3 * float(first[name].norm()) for name in first)


def test_6_twice_the_edits_with_twice_the_ridge(folders: Path, tmp_path: Path) -> None:
    """Acceptance check 6, through the whole method."""
    ridge = EditorFolder.read(source(folders)).tensors["log_ridge"]
    doubled = rewritten(tmp_path / "doubled", source(folders), log_ridge=ridge + LOG_2)
    again = [evolve(each, case_id=f"again-{i}") for i, each in enumerate(records(3))]
    same(change(on(source(folders)).compute(records(3))), change(on(doubled).compute([*records(3), *again])), 1e-4)


def test_7_what_is_removed_leaves_every_bit(folders: Path) -> None:
    """Acceptance check 7, second half."""
    editor = on(source(folders, "llama", torch.float32), "llama", torch.bfloat16)
    before = Snapshot(editor.model)
    editor.edit(records(4), scenario="sequential", batch_size=2, evaluate=False)
    editor.restore()
    assert not before.differences(editor.model)


def test_company_is_solved_for(folders: Path) -> None:
    """One solve for all is not the sum of each one's own."""
    editor = on(source(folders))
    together = change(editor.compute(records(3)))
    alone = [change(editor.compute([each])) for each in records(3)]
    assert any(not torch.allclose(each, sum(one[name] for one in alone), rtol=1e-3) for name, each in together.items())


def rounds(editor: Editor, blocks: Sequence[Sequence[EditRequest]]) -> list[EditPatch]:
    found = []
    for block in blocks:
        found.append(editor.compute(list(block)))
        editor.apply(found[-1])
    return found


@pytest.mark.parametrize("size", [1, 8])
def test_accumulated_rounds_are_one_batch_in_any_order(folders: Path, size: int) -> None:
    """Of few tokens (dual, factors) and many (primal, dense deltas)."""
    edits = records(3 * size)
    blocks = [edits[:size], edits[size : 2 * size], edits[2 * size :]]
    whole = change(on(source(folders)).compute(edits))
    plain = rounds(on(source(folders)), blocks)
    assert any(not torch.allclose(each, whole[name], rtol=1e-3) for name, each in change(*plain).items())
    for order in (blocks, blocks[::-1]):
        made = rounds(on(source(folders), accumulate=True), order)
        same(change(*made), whole, 1e-4)
        kinds = {operation.type for operation in made[-1].operations}
        assert kinds == ({"low_rank_delta"} if size == 1 else {"dense_delta"})


def test_accumulated_rounds_of_a_sequence_are_one_batch(folders: Path) -> None:
    edits = records(4)
    result = on(source(folders), accumulate=True).edit(edits, scenario="sequential", batch_size=1, evaluate=False)
    same(change(*result.patches), change(on(source(folders)).compute(edits)), 1e-4)


def test_after_one_round_is_taken_off_the_rest_is_solved_for(folders: Path) -> None:
    """The next round then makes the sum that of the edits that are still there."""
    edits = records(4)
    editor = on(source(folders), accumulate=True)
    first, second = rounds(editor, [edits[:1], edits[1:2]])
    editor.remove(first)
    (third,) = rounds(editor, [edits[2:3]])
    same(change(second, third), change(on(source(folders)).compute(edits[1:3])), 1e-4)


def test_accumulating_needs_rounds_that_were_accumulated(folders: Path, tmp_path: Path) -> None:
    plain = on(source(folders)).compute(records(1))
    editor = on(source(folders), accumulate=True)
    editor.apply(plain)
    with pytest.raises(InputError, match="made without accumulate"):
        editor.edit(records(1, 1), evaluate=False)
    eta = EditorFolder.read(source(folders)).tensors["eta"]
    other = on(rewritten(tmp_path / "other", source(folders), eta=2 * eta), accumulate=True).compute(records(1))
    editor = on(source(folders), accumulate=True)
    editor.apply(other)
    with pytest.raises(InputError, match="another editor"):
        editor.edit(records(1, 1), evaluate=False)


def test_patches_made_apart_are_solved_for_together_by_the_next(folders: Path) -> None:
    """Their sum is not the solution of their rows, although nothing was taken off."""
    edits = records(3)
    editor = on(source(folders), accumulate=True)
    apart = [editor.compute([each]) for each in edits[:2]]
    for each in apart:
        editor.apply(each)
    last = editor.compute([edits[2]])
    whole = change(on(source(folders)).compute(edits))
    pair = change(on(source(folders)).compute(edits[:2]))
    assert all(not torch.allclose(each, pair[name], rtol=1e-2) for name, each in change(*apart).items())
    same(change(*apart, last), whole, 1e-4)
    assert {each.type for each in last.operations} == {"dense_delta"}
    # so do rounds that were joined to one patch, of which nothing is solved for anew
    joined = on(source(folders), accumulate=True).edit(edits[:2], scenario="sequential", evaluate=False).patch
    editor = on(source(folders), accumulate=True)
    editor.apply(joined)
    last = editor.compute([edits[2]])
    same(change(joined, last), whole, 1e-4)
    assert {each.type for each in last.operations} == {"low_rank_delta"}


def test_a_fact_of_an_accumulated_round_is_dropped(folders: Path) -> None:
    edits = records(3)
    editor = on(source(folders), accumulate=True)
    first, second = rounds(editor, [edits[:1], edits[1:]])
    made = editor.drop(second, edits[1].id)
    same(change(first, made), change(on(source(folders)).compute([edits[0], edits[2]])), 1e-4)


def test_a_patch_without_its_rows_is_refused(folders: Path) -> None:
    editor = on(source(folders), accumulate=True)
    whole = editor.compute(records(1))
    name = next(each for each in whole.state.tensors if each.startswith("keys."))
    for tensors in (
        {key: value for key, value in whole.state.tensors.items() if key != name},
        {**whole.state.tensors, name: whole.state.tensors[name][:, 1:]},
        {**whole.state.tensors, name: whole.state.tensors[name][1:]},
    ):
        patch = evolve(whole, state=evolve(whole.state, tensors=tensors))
        editor.apply(patch)
        with pytest.raises(InputError, match="lacks its keys or values"):
            editor.edit(records(1, 1), evaluate=False)
        editor.remove(patch)


def test_spilling_changes_no_bit(folders: Path, tmp_path: Path) -> None:
    """Keys and gradients in files; a folder that is not there is refused before any work."""
    for token in ("ans", "mask"):
        where = rewritten(tmp_path / token, source(folders), {"micro_batch": 2, "token": token})
        (tmp_path / "spill").mkdir(exist_ok=True)
        plain, spilled = (
            editor_on("gpt2", "malmen", where, torch.float64, options=options).compute(records(5))
            for options in ({}, {"spill": tmp_path / "spill"})
        )
        assert plain.to_bytes() == spilled.to_bytes()
        assert not list((tmp_path / "spill").iterdir())
    for wrong in (tmp_path / "nowhere", 3):
        with pytest.raises(InputError, match="no folder"):
            editor_on("gpt2", "malmen", where, torch.float64, options={"spill": wrong}).edit(records(1))


def test_what_is_spilled_is_mapped_and_not_held(tmp_path: Path) -> None:
    """Rows come back as they were, from files that have no name; also none at all, and to be written to."""
    kept = Spill(tmp_path)
    rows = torch.arange(12.0).view(4, 3)
    for first, part in ((0, rows[:3]), (3, rows[3:])):
        kept.add({"a": Factors(part, part[:, :2] + 1, torch.arange(first, first + len(part))),
                  "b": Factors(part[:0], part[:0, :2], torch.arange(0))})  # fmt: skip
    assert not list(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        mapped: list[int] = []
        real = np.memmap
        patch.setattr(
            np, "memmap", lambda *args, **named: (found := real(*args, **named), mapped.append(found.nbytes))[0]
        )
        found = kept.factors()
    assert mapped == [rows.nbytes, rows[:, :2].nbytes]
    assert torch.equal(found["a"].inputs, rows) and torch.equal(found["a"].gradients, rows[:, :2] + 1)
    assert found["a"].edit.tolist() == [0, 1, 2, 3]
    assert found["b"].inputs.shape == (0, 3) and found["b"].gradients.shape == (0, 2)
    found["a"].inputs.add_(1)


def test_strength_scales(folders: Path) -> None:
    usual, half = (change(on(source(folders), strength=each).compute(records(2))) for each in (1.0, 0.5))
    same({name: 0.5 * each for name, each in usual.items()}, half)


def test_what_does_not_fit_is_refused_before_any_work(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="for the role 'editor', and none was given"):
        editor_on("gpt2", "malmen").edit(records(1), evaluate=False)
    with pytest.raises(BaseMismatchError, match="architecture"):
        on(source(folders), "llama").edit(records(1), evaluate=False)
    mend = trained(tmp_path / "mend", "gpt2", "mend", torch.float64)
    with pytest.raises(InputError, match="trained for the method 'mend'"):
        on(mend).edit(records(1), evaluate=False)


def test_a_fact_is_dropped_by_editing_again(folders: Path) -> None:
    edits = records(3)
    editor = on(source(folders))
    patch = editor.compute(edits)
    made = editor.drop(patch, edits[1].id)
    same(change(made), change(editor.compute([edits[0], edits[2]])))
    two = [edits[0], evolve(edits[1], case_id=edits[0].case_id), edits[2]]
    same(change(editor.drop(editor.compute(two), str(edits[0].case_id))), change(editor.compute([edits[2]])))
    several = on(source(folders)).edit(edits, scenario="sequential", batch_size=1, evaluate=False).patch
    with pytest.raises(InputError, match="made in 3 rounds"):
        editor.drop(several, edits[1].id)


def test_a_plan_tells_size_and_memory(folders: Path) -> None:
    for family in ("gpt2", "t5"):
        for settings in ({}, {"accumulate": True}):
            editor = on(source(folders, family), family, **settings)
            plan, made = editor.plan(records(2)), editor.compute(records(2))
            assert plan["places"] == list(made.base.tensors)
            held = [each for operation in made.operations for each in operation.tensors.values()]
            numbers = sum(each.numel() for each in [*held, *made.state.tensors.values()])
            assert plan["patch_bytes"] == 4 * numbers
