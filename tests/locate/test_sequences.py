"""Edits on edits: later ones leave earlier ones' keys alone, whatever way these came onto the model; nothing is
remembered that is not on it, and nothing is factorised twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, TEMPLATES
from plain_spread import PlainSpread, deltas_of, ridge
from spread_editors import apart, made_up, matrices_of, orphaned, relative, spread_editor

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_locate.batch_state import past_keys
from kedit_methods_locate.stats import Identity, Statistic, predecessors

pytestmark = pytest.mark.slow

SPAIN = evolve(PARIS, prompt="The king of Spain is", subject="Spain", target_new="Brink")
A, B, C = (PARIS, MIRA), (OREN,), (SPAIN,)
REMEMBERING = ("memit", "pmet", "alphaedit")


def written(editor: Editor, *batches: Sequence[EditRequest]) -> list[EditPatch]:
    return [editor.edit(batch, evaluate=False).patch for batch in batches]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_later_edits_see_the_keys_of_all_earlier_ones(method: str, family: str, tmp_path: Path) -> None:
    """Against the plain loop whose matrix has them (AlphaEdit's is compared in its own tests)."""
    editor = spread_editor(family, tmp_path, method, mom2_update_weight=1.0)
    patches = written(editor, A, B, C)
    past: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for number, batch in enumerate((A, B)):
        plain = PlainSpread(editor, batch, TEMPLATES)
        for patch in patches[: number + 1]:
            plain.write(patch)  # keys are those of the weights that the batch left behind
        for layer, columns in past.items():
            columns.append(plain.keys(layer))
            kept = patches[number].state.tensors[f"keys.{layer}.mlp_out"].T
            assert relative(kept, columns[-1]) < 1e-8
    found = deltas_of(patches[2])
    for protect in (True, False):
        plain = PlainSpread(editor, C, TEMPLATES)
        for patch in patches[:2]:
            plain.write(patch)
        keys = {layer: torch.cat(columns, 1) for layer, columns in past.items()} if protect else None
        (name,) = [name for name in patches[2].state.tensors if name in ("targets.block", "targets.mlp_out")]
        wanted = plain.spread(
            (0, 1), patches[2].state.tensors[name], ridge(matrices_of(editor), 1.0, keys),
            module=plain.view.mlp_out(1) if method == "pmet" else None,
            share=(lambda left: float(left**-0.5)) if method == "pmet" else (lambda left: 1 / left),
        )  # fmt: skip
        error = max(relative(found[editor.adapter.mlp_out_weight(layer)], wanted[layer]) for layer in (0, 1))
        assert (error < 1e-8) is protect, "and the keys matter"


@pytest.mark.parametrize("method", REMEMBERING)
def test_without_protection_no_keys_are_kept_or_seen(method: str, tmp_path: Path) -> None:
    careless = spread_editor("gpt2", tmp_path, method, protect_past=False)
    first, second = written(careless, A, B)
    assert not [name for patch in (first, second) for name in patch.state.tensors if name.startswith("keys.")]
    careful = spread_editor("gpt2", tmp_path, method)
    before, after = written(careful, A, B)
    assert apart(before, first) < 1e-12, "a first edit knows of none"
    assert apart(after, second) > 1e-6


@pytest.mark.parametrize("method", [*REMEMBERING, "emmet"])
def test_undone_edits_are_forgotten(method: str, tmp_path: Path) -> None:
    """Editing, undoing and editing again gives the same bytes; so does an edit after another one that was undone."""
    editor = spread_editor("gpt2", tmp_path, method)
    before = Snapshot(editor.model)
    (first,) = written(editor, A)
    editor.remove(first)
    assert before.differences(editor.model) == []
    (other,) = written(editor, B)
    editor.restore()
    assert other.to_bytes() == written(spread_editor("gpt2", tmp_path, method), B)[0].to_bytes()
    assert first.to_bytes() == written(editor, A)[0].to_bytes()


@pytest.mark.parametrize("method", REMEMBERING)
def test_an_edit_taken_out_from_below_is_forgotten(method: str, tmp_path: Path) -> None:
    """What is on the model then is the second edit, made on top of the first; a fresh Editor with that alone agrees."""
    editor = spread_editor("gpt2", tmp_path, method)
    first, second = written(editor, A, B)
    with_both = editor.compute(C)
    editor.remove(first)
    found = editor.compute(C)
    fresh = spread_editor("gpt2", tmp_path, method)
    fresh.apply(evolve(second, parents=()))
    assert orphaned(fresh.compute(C)) == orphaned(found)
    assert apart(with_both, found) > 1e-6
    editor.restore()
    assert orphaned(editor.compute(C)) == orphaned(spread_editor("gpt2", tmp_path, method).compute(C))


@pytest.mark.parametrize("method", REMEMBERING)
def test_patches_from_files_count_as_past(method: str, tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path, method)
    for number, patch in enumerate(written(editor, A, B)):
        patch.save(tmp_path / f"{number}.safetensors")
    other = spread_editor("gpt2", tmp_path, method)
    for number in (0, 1):
        other.apply(EditPatch.load(tmp_path / f"{number}.safetensors"))
    assert other.compute(C).to_bytes() == editor.compute(C).to_bytes()


@pytest.mark.parametrize("method", REMEMBERING)
def test_rounds_joined_into_one_patch_count_each(method: str, tmp_path: Path) -> None:
    """A sequence is joined when it is done; what comes after sees the keys of all its rounds."""
    single = spread_editor("gpt2", tmp_path, method)
    apiece = written(single, [PARIS], [MIRA])
    joined = spread_editor("gpt2", tmp_path, method)
    result = joined.edit(A, scenario="sequential", batch_size=1, evaluate=False)
    assert [orphaned(patch) for patch in result.patches] == [orphaned(patch) for patch in apiece]
    assert len(result.patch.states()) == 2
    assert orphaned(joined.compute(C)) == orphaned(single.compute(C))
    past = past_keys(joined.context(), 1, "mlp_out")
    assert len({name for name, _ in past}) == 2 and all(keys.shape == (1, 80) for _, keys in past)


def test_other_methods_edits_have_no_part(tmp_path: Path) -> None:
    """Their keys were never promised anything; the weights they wrote are of course seen."""
    memit = spread_editor("gpt2", tmp_path, "memit")
    (patch,) = written(memit, A)
    pmet = spread_editor("gpt2", tmp_path, "pmet")
    pmet.apply(patch)
    assert past_keys(memit.context(), 0, "mlp_out")
    assert past_keys(pmet.context(), 0, "mlp_out") == []
    assert past_keys(pmet.context(), 2, "mlp_out") == []


class Counter:
    """Counts factorisations of ``[80, 80]`` matrices, and decompositions of any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.big = self.small = 0
        for name in ("cholesky_ex", "solve_ex", "eigh"):
            monkeypatch.setattr(torch.linalg, name, self._counting(getattr(torch.linalg, name)))

    def _counting(self, function: Any) -> Any:
        def counted(matrix: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if matrix.shape[-1] == 80:
                self.big += 1
            else:
                self.small += 1
            return function(matrix, *args, **kwargs)

        return counted


@pytest.mark.parametrize("method", [*REMEMBERING, "emmet"])
def test_the_next_edit_of_a_sequence_factorises_nothing_again(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each layer in the Editor's life (and the null space once); then matrices over the facts only."""
    editor = spread_editor("gpt2", tmp_path, method)
    count = Counter(monkeypatch)
    written(editor, A)
    # two layers: each a factor, or, for AlphaEdit, which never solves with the statistic, its eigenvectors
    assert count.big == 2
    small = count.small
    assert small > 0
    for batch in (B, C, [evolve(SPAIN, target_new="Eskel")]):
        written(editor, batch)
    assert count.big == 2
    # a sequence's edit has its own solve a layer, and its predecessor's keys are added once a layer
    solves = 3 * 2
    assert count.small - small == (solves if method == "emmet" else 2 * solves)


def test_a_removal_makes_the_past_anew_but_factorises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = spread_editor("gpt2", tmp_path)
    first, _ = written(editor, A, B)
    count = Counter(monkeypatch)
    editor.remove(first)
    editor.compute(C)
    assert count.big == 0 and count.small == 4


def test_the_identity_remembers_too(tmp_path: Path) -> None:
    """Without a statistic there is nothing to look up, and still the keys of earlier edits count."""
    editor = spread_editor("gpt2", tmp_path, mom2_adjustment=False)
    first, second = written(editor, A, B)
    careless = spread_editor("gpt2", tmp_path, mom2_adjustment=False, protect_past=False)
    assert apart(written(careless, A, B)[1], second) > 1e-6
    assert Identity(80).width == first.state.tensors["keys.0.mlp_out"].shape[1]


# ------------------------------------------------------------------ begun with another statistic
def others_told(editor: Editor, batch: Sequence[EditRequest]) -> list[tuple[float | None, str]]:
    """Layer and message of each ``other_statistic`` of an edit."""
    warnings = editor.edit(batch, evaluate=False).warnings
    return [(each.number, each.message) for each in warnings if each.code == "other_statistic"]


def slightly_other(editor: Editor, changed: int) -> list[Statistic]:
    """The statistics of both layers, that of one with its keys a little longer."""
    made = [made_up(editor.adapter, layer) for layer in (0, 1)]
    return [evolve(each, sum=each.sum * (1.01 if each.layer == changed else 1)) for each in made]


@pytest.mark.parametrize("method", [*REMEMBERING, "emmet"])
def test_a_sequence_that_goes_on_with_another_statistic_is_told(method: str, tmp_path: Path) -> None:
    first = spread_editor("gpt2", tmp_path, method)
    assert others_told(first, A) == [] and others_told(first, B) == [], "and none about oneself"
    joined = EditPatch.join([entry.patch for entry in first.stack.patches])
    statistics = slightly_other(first, changed=1)
    (tmp_path / "other").mkdir()
    other = spread_editor("gpt2", tmp_path / "other", method, statistics=statistics)
    other.apply(joined)
    ((layer, message),) = others_told(other, C)
    assert layer == 1 and "another statistic" in message and joined.id[:12] in message
    other.restore()
    assert others_told(other, C) == [], "what was taken off has no part in it"


def test_other_methods_statistics_have_no_part(tmp_path: Path) -> None:
    (patch,) = written(spread_editor("gpt2", tmp_path, "memit"), A)
    (tmp_path / "other").mkdir()
    statistics = slightly_other(spread_editor("gpt2", tmp_path), changed=0)
    pmet = spread_editor("gpt2", tmp_path / "other", "pmet", statistics=statistics)
    pmet.apply(patch)
    assert others_told(pmet, C) == []


def test_a_sequence_that_goes_on_in_another_null_space_is_told(tmp_path: Path) -> None:
    (patch,) = written(spread_editor("gpt2", tmp_path, "alphaedit"), A)
    spaces = patch.state.config["null_spaces"]
    rank = spaces[0]["rank"]
    for settings, told in (
        ({}, []),
        # the same directions by another rule in layer 0; layer 1's own rank is another
        ({"nullspace_rule": "rank", "nullspace_rank": rank}, [i for i in (0, 1) if spaces[i]["rank"] != rank]),
        ({"nullspace_rule": "rank", "nullspace_rank": rank - 5}, [0, 1]),
    ):
        editor = spread_editor("gpt2", tmp_path, "alphaedit", **settings)
        editor.apply(patch)
        found = others_told(editor, B)
        assert [layer for layer, _ in found] == told
        assert all("another null space" in message for _, message in found)


def test_the_same_null_space_in_other_bits_is_not_told(tmp_path: Path) -> None:
    """Eigenvectors come out a little different on another machine."""
    editor = spread_editor("gpt2", tmp_path, "alphaedit")
    (patch,) = written(editor, A)
    context = editor.context()
    predecessors.other_null_space(context, 0, patch.state.config["null_spaces"][0]["rank"], "other bits")
    assert context.warnings == []
    predecessors.other_null_space(context, 0, 7, "other bits")
    assert [warning.number for warning in context.warnings] == [0]
