"""A fact taken out of a patch of MEMIT, EMMET, PMET or AlphaEdit: as if the others alone had been edited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS
from spread_editors import METHODS, apart, made_up, relative, spread_editor

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.errors import InputError
from kedit_core.patches import PrivateRequests
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate import pmet, spread_method
from kedit_methods_locate.batch_state import stored
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats import Statistic, save_statistics

pytestmark = pytest.mark.slow

FACTS = tuple(evolve(fact, case_id=name) for fact, name in zip((PARIS, MIRA, OREN), "abc", strict=True))
SPAIN = evolve(PARIS, prompt="The king of Spain is", subject="Spain", target_new="Brink")
OTHERS = (FACTS[0], FACTS[2])


def dropped_like(editor: Editor, patch: EditPatch, name: str, wanted: EditPatch, monkeypatch: Any) -> EditPatch:
    """Drop, without any search, with the model left as found; compared with the edit of the others."""

    def search(*args: Any, **kwargs: Any) -> None:
        raise InputError("searched")

    before, on = Snapshot(editor.model), editor.stack.patches
    with monkeypatch.context() as patched:
        patched.setattr(spread_method, "search", search)
        patched.setattr(pmet, "search", search)
        made = editor.drop(patch, name)
    assert before.differences(editor.model) == [] and editor.stack.patches == on
    assert apart(made, wanted) < 1e-6
    assert made.parents == wanted.parents and made.hparams == wanted.hparams
    assert made.state.tensors.keys() == wanted.state.tensors.keys()
    for name_, rows in wanted.state.tensors.items():
        assert relative(made.state.tensors[name_], rows) < 1e-6
    assert made.requests == wanted.requests
    assert made.state.config["context_templates"] == wanted.state.config["context_templates"]
    for mine, theirs in zip(made.state.config["edits"], wanted.state.config["edits"], strict=True):
        assert mine["token"] == theirs["token"] and mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    return made


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_is_the_edit_of_the_others(method: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = spread_editor(family, tmp_path, method)
    patch = editor.compute(FACTS)
    dropped_like(editor, patch, "b", editor.compute(OTHERS), monkeypatch)


@pytest.mark.parametrize("projections", [("mlp_out", "attn_out"), ("attn_out",)], ids="+".join)
def test_pmets_other_projections(projections: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = spread_editor("gpt2", tmp_path, "pmet", projections=list(projections))
    dropped_like(editor, editor.compute(FACTS), "b", editor.compute(OTHERS), monkeypatch)


@pytest.mark.parametrize("method", METHODS)
def test_on_top_of_other_edits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parents' keys count; the patch itself and what came after do not, though all are on the model."""
    editor = spread_editor("gpt2", tmp_path, method)
    editor.edit(SPAIN, evaluate=False)
    wanted = editor.compute(OTHERS)
    patch = editor.edit(FACTS, evaluate=False).patch
    later = editor.edit(evolve(SPAIN, target_new="Eskel"), evaluate=False).patch
    assert len(patch.parents) == 1
    made = dropped_like(editor, patch, "b", wanted, monkeypatch)
    # what is worked out for the past while dropping is not taken for the present afterwards
    again = spread_editor("gpt2", tmp_path, method)
    for entry in editor.stack.patches:
        again.apply(entry.patch)
    assert again.compute(OTHERS).to_bytes() == editor.compute(OTHERS).to_bytes()
    editor.remove(later)
    editor.remove(patch)
    editor.apply(made)
    assert [entry.patch.id for entry in editor.stack.patches] == [patch.parents[0], made.id]


def test_one_after_the_other_and_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = spread_editor("gpt2", tmp_path)
    editor.compute(FACTS).save(tmp_path / "p.safetensors")
    other = spread_editor("gpt2", tmp_path)
    once = dropped_like(other, EditPatch.load(tmp_path / "p.safetensors"), "b", editor.compute(OTHERS), monkeypatch)
    dropped_like(other, once, "a", editor.compute([FACTS[2]]), monkeypatch)
    with pytest.raises(InputError, match="remove the whole patch instead"):
        other.drop(other.drop(once, "a"), "c")


def test_an_exact_edit_loses_the_fact_that_collides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three facts exactly reached, two are exactly reached afterwards."""
    editor = spread_editor("gpt2", tmp_path, "emmet", exact=True)
    made = dropped_like(editor, editor.compute(FACTS), "b", editor.compute(OTHERS), monkeypatch)
    assert made.state.config["ridge"] == 0


# ------------------------------------------------------------------ what the hook itself refuses
def hook(editor: Editor, patch: EditPatch, request_id: str) -> EditPatch | None:
    return editor.host.drop_request(editor.context(), patch, request_id)


def id_of(fact: EditRequest, editor: Editor) -> str:
    (prepared,) = editor.host.prepare_requests(editor.context(), [fact])
    return prepared.id


def test_what_cannot_be_taken_out(tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path)
    before = Snapshot(editor.model)
    patch = editor.compute(FACTS)
    wanted = id_of(FACTS[0], editor)
    alone = editor.compute(FACTS[0])
    joined = editor.edit(FACTS, scenario="sequential", batch_size=1, evaluate=False).patch
    editor.restore()
    private = evolve(patch, requests=PrivateRequests.of([fact.fact for fact in FACTS]))
    strange = evolve(patch, state=evolve(patch.state, tensors={}))
    for bad, name, why in (
        (patch, "0" * 16, "has no fact of the id '0000000000000000'"),
        (alone, wanted, "no other fact; take the whole patch off"),
        (private, wanted, "kept private"),
        (joined, wanted, r"made in 3 rounds, .* keep one patch for each round"),
        (strange, wanted, "does not hold the targets of its 3 facts"),
    ):
        with pytest.raises(InputError, match=why):
            hook(editor, bad, name)
    assert before.differences(editor.model) == []
    made = hook(editor, patch, wanted)
    assert made is not None and len(made.requests) == 2  # type: ignore[arg-type]


# ------------------------------------------------------------------ what the patch stands on
def changed(editor: Editor, layer: int, projection: Projection) -> list[Statistic]:
    """The statistics of :func:`spread_editor`, that of one layer and projection being another."""
    found = []
    for each in range(3):
        for part in ("mlp_out", "attn_out"):
            made = made_up(editor.adapter, each, part)
            if (each, part) == (layer, projection):
                made = evolve(made, count=made.count + 1)
            found.append(made)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_other_statistics_are_refused(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = spread_editor("gpt2", tmp_path, method).compute(FACTS)
    (tmp_path / "other").mkdir()
    other = spread_editor("gpt2", tmp_path / "other", method)
    save_statistics(tmp_path / "other" / "gpt2.safetensors", changed(other, 1, "mlp_out"))
    refused(other, patch, r"at layer 1 \(mlp_out\) .* stands on the statistic .* \(--stats FILE, or", monkeypatch)
    resources = dict(patch.state.config["resources"])
    del resources["statistics.0"]
    silent = evolve(patch, state=evolve(patch.state, config={**patch.state.config, "resources": resources}))
    refused(spread_editor("gpt2", tmp_path, method), silent, "at layer 0 .* does not say", monkeypatch)


def test_other_statistics_of_the_attention_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is edited; else nobody asks for them."""
    for projections in (["mlp_out"], ["mlp_out", "attn_out"]):
        patch = spread_editor("gpt2", tmp_path, "pmet", projections=projections).compute(FACTS)
        folder = tmp_path / str(len(projections))
        folder.mkdir()
        other = spread_editor("gpt2", folder, "pmet", projections=projections)
        save_statistics(folder / "gpt2.safetensors", changed(other, 0, "attn_out"))
        if len(projections) == 1:
            assert len(other.drop(patch, "b").requests) == 2  # type: ignore[arg-type]
        else:
            refused(other, patch, r"at layer 0 \(attn_out\)", monkeypatch)


@pytest.mark.parametrize("method", ["memit", "pmet", "emmet"])
def test_without_statistics_none_are_compared(method: str, tmp_path: Path) -> None:
    patch = spread_editor("gpt2", tmp_path, method, mom2_adjustment=False).compute(FACTS)
    assert "resources" not in patch.state.config
    other = spread_editor("gpt2", tmp_path, method, mom2_adjustment=False)
    del other.options["stats"]
    assert len(other.drop(patch, "b").requests) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_another_dtype_is_refused(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is verified in either dtype, but keys and states are not the same."""
    editor = spread_editor("gpt2", tmp_path, method, dtype=torch.float32)
    patch = editor.compute(FACTS)
    assert patch.state.config["model_dtype"] == "float32"
    half = spread_editor("gpt2", tmp_path, method, model=tiny("gpt2", dtype=torch.float32)[0].to(torch.bfloat16))
    refused(half, patch, "made on a model in float32 and this one is in bfloat16.*--dtype float32", monkeypatch)
    made = editor.drop(patch, "b")
    assert made.state.config["model_dtype"] == "float32"


def refused(editor: Editor, patch: EditPatch, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """InputError, with nothing run on the model and all as it was."""
    before, calls = Snapshot(editor.model), list[int]()
    with monkeypatch.context() as patched:
        patched.setattr(spread_method, "spread", lambda *args, **more: calls.append(1))
        with pytest.raises(InputError, match=why):
            editor.drop(patch, "b")
    assert calls == [] and before.differences(editor.model) == [] and not editor.stack.patches


def test_what_is_stored_is_the_edit(tmp_path: Path) -> None:
    """Facts with the spans that were found, and one target and record for each."""
    editor = spread_editor("gpt2", tmp_path, "pmet")
    patch = editor.compute(FACTS)
    whole = stored(patch)
    assert whole.requests == tuple(editor.host.prepare_requests(editor.context(), FACTS))
    assert set(whole.targets) == {"mlp_out", "attn_out"}
    rest = whole.without(whole.requests[1].id)
    assert [each.case_id for each in rest.requests] == ["a", "c"]
    for name, rows in rest.targets.items():
        assert (rows == whole.targets[name][[0, 2]]).all()
    assert rest.edits == (whole.edits[0], whole.edits[2])
