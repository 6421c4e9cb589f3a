"""What a MALMEN editor wants of outputs: against a plain reference, in chunks, at the identity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.malmen import MalmenEditor
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.places import Place

PLACES = (Place("a.weight", "a", 7, 4), Place("b.weight", "b", 7, 4), Place("c.weight", "c", 4, 7))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_factors(seed: int = 0) -> dict[str, Factors]:
    return {
        place.name: Factors(
            random(5 + i, place.width, seed=seed + 10 * i),
            1e-3 * random(5 + i, place.out, seed=seed + 10 * i + 1),
            torch.arange(5 + i),
        )
        for i, place in enumerate(PLACES)
    }


def an_editor(scrambled: bool = True, **settings: int) -> MalmenEditor:
    generator = torch.Generator().manual_seed(0)
    made = MalmenEditor(PLACES, MalmenEditorSettings(**settings), 0.3, -0.2, generator).double()  # type: ignore
    for seed in range(3):
        for normaliser, summary in made.observed(some_factors(100 + seed)):
            normaliser.merge(*summary)
    if scrambled:
        with torch.no_grad():
            for number, parameter in enumerate(made.parameters()):
                parameter.copy_(0.5 * random(*parameter.shape, seed=number))
    return made


def plain_values(editor: MalmenEditor, name: str, factors: Factors) -> Tensor:
    """What the sheet says, row by row: ``[N, out]``."""
    tensors = editor.tensors()
    number = [place.name for place in PLACES].index(name)
    place = PLACES[number]
    prefix, m = f"nets.{place.width}x{place.out}.", {"a.weight": 0, "b.weight": 1, "c.weight": 0}[name]
    spread = (tensors[f"{prefix}normaliser.m2"] / (tensors[f"{prefix}normaliser.count"] - 1)) ** 0.5
    found = []
    for key, gradient in zip(factors.inputs, factors.gradients, strict=True):
        h = (torch.cat([key, gradient]) - tensors[f"{prefix}normaliser.mean"]) / (
            spread + torch.finfo(torch.float32).eps
        )
        for block in range(2):
            part = {each: tensors[f"{prefix}blocks.{block}.{each}"] for each in ("A", "B", "bias", "scale", "shift")}
            before = h @ part["A"] @ part["B"] + part["bias"]
            h = h + part["scale"][m] * torch.where(before > 0, before, 0.0) + part["shift"][m]
        found.append(-tensors["eta"][number] * (key @ h[: place.width]) * h[place.width :])
    return torch.stack(found)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_wanted_changes_are_what_the_paper_says(chunk: int) -> None:
    """Whatever the size of chunks."""
    editor, factors = an_editor(chunk=chunk), some_factors()
    for name, values in editor.values(factors).items():
        torch.testing.assert_close(values, plain_values(editor, name, factors[name]), rtol=1e-9, atol=1e-12)


def test_a_wanted_change_is_that_of_its_own_rank_one_update() -> None:
    """``D_i`` is what the update ``-eta K^ G^^T`` changes for the key ``K_i``: at the start, the normalised pair."""
    editor, factors = an_editor(scrambled=False), some_factors()
    group = next(iter(editor.groups(factors)))
    rows = group.net.normaliser(group.rows)[: group.sizes[0]]
    keys, gradients = rows.split([7, 4], dim=-1)
    updates = -0.3 * torch.einsum("ni,no->nio", keys, gradients)
    wanted = torch.einsum("ni,nio->no", factors["a.weight"].inputs, updates)
    torch.testing.assert_close(editor.values(factors)["a.weight"], wanted, rtol=1e-6, atol=1e-9)


def test_from_the_start_everything_but_a_and_scale_learns() -> None:
    """``A`` and ``scale`` multiply a zero; the positive part must have a derivative there."""
    editor, factors = an_editor(scrambled=False), some_factors()
    total = sum((chunk.values.square().sum() for chunk in editor.chunks(factors)), torch.zeros(()))
    total.backward()
    for name, parameter in editor.named_parameters():
        leaf = name.rpartition(".")[2]
        if name == "log_ridge":
            assert parameter.grad is None
        elif leaf in ("A", "scale"):
            assert bool((parameter.grad == 0).all()), name
        else:
            assert bool((parameter.grad != 0).any()), name


def test_statistics_are_counted_chunk_by_chunk() -> None:
    """No more rows are put together than a chunk's, and it is what all rows together give."""
    sizes: list[int] = []
    editor, factors = an_editor(chunk=2), some_factors()
    wanted = [Normaliser.summary(group.rows) for group in editor.groups(factors)]
    with pytest.MonkeyPatch.context() as patch:
        counted = Normaliser.update
        patch.setattr(Normaliser, "update", lambda self, rows: (sizes.append(len(rows)), counted(self, rows))[1])
        found = editor.observed(factors)
    assert max(sizes) == 2
    assert [each for each, _ in found] == [group.net.normaliser for group in editor.groups(factors)]
    for (_, summary), whole in zip(found, wanted, strict=True):
        for one, other in zip(summary, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
