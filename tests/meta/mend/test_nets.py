"""MEND's networks and normaliser: against a plain reference, at the identity, shared between weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_core.errors import InputError, MethodError
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.mend import MendEditorSettings
from kedit_methods_meta.mend import MendEditor
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.places import Place

WIDE = Place("a.weight", "a", 7, 4)
PLACES = (WIDE, Place("b.weight", "b", 7, 4), Place("c.weight", "c", 4, 7))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_factors(places: tuple[Place, ...] = PLACES, rows: int = 6, seed: int = 0) -> dict[str, Factors]:
    return {
        place.name: Factors(
            random(rows + i, place.width, seed=seed + 10 * i),
            1e-3 * random(rows + i, place.out, seed=seed + 10 * i + 1),
            torch.zeros(rows + i, dtype=torch.long),
        )
        for i, place in enumerate(places)
    }


def an_editor(seen: int = 3, **settings: Any) -> MendEditor:
    made = MendEditor(PLACES, MendEditorSettings(**settings), 0.3, torch.Generator().manual_seed(0)).double()
    for seed in range(seen):
        for normaliser, summary in made.observed(some_factors(seed=100 + seed)):
            normaliser.merge(*summary)
    return made


def scrambled(editor: MendEditor) -> MendEditor:
    """No parameter at its first value."""
    with torch.no_grad():
        for number, parameter in enumerate(editor.parameters()):
            parameter.copy_(0.5 * random(*parameter.shape, seed=number))
    return editor


# ---------------------------------------------------------------- the normaliser
def test_statistics_are_welfords() -> None:
    """Merged in batches of any size they are those of one row after another."""
    rows = 3 + 100 * random(57, 5)
    mean, spread, count = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), 0
    for row in rows:
        count += 1
        moved = mean + (row - mean) / count
        spread = spread + (row - mean) * (row - moved)
        mean = moved
    normaliser = Normaliser(5, 1e-7)
    for part in rows.split([1, 3, 0, 40, 13]):
        normaliser.update(part)
    torch.testing.assert_close(normaliser.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(normaliser.deviation, (spread / (count - 1)).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(normaliser(rows), (rows - mean) / (rows.std(0) + 1e-7), rtol=1e-10, atol=1e-10)


def test_8_normalising_counts_nothing() -> None:
    """Acceptance check 8, half: only ``update`` changes statistics; nets do not, in any mode."""
    for mode in (True, False):
        editor = an_editor().train(mode)
        before = {name: value.clone() for name, value in editor.named_buffers()}
        editor(some_factors(seed=5))
        assert all(torch.equal(before[name], value) for name, value in editor.named_buffers())


def test_one_row_is_too_few_to_edit_with_and_enough_to_begin_training() -> None:
    """The first edit of a training may have one token: it is its own mean, and a later one has a deviation."""
    normaliser = Normaliser(3, 1e-7)
    for rows in (0, 1):
        normaliser.eval().update(torch.ones(rows, 3))
        with pytest.raises(MethodError, match=f"after {rows} rows"):
            normaliser(torch.ones(1, 3))
        with pytest.raises(InputError, match=f"after {rows} rows"):
            normaliser.check()
        assert torch.equal(normaliser.train()(torch.ones(1, 3)), torch.zeros(1, 3))
    normaliser.update(3 * torch.ones(1, 3))
    normaliser.check()
    torch.testing.assert_close(normaliser(torch.ones(1, 3)), torch.full((1, 3), -(2**-0.5)), rtol=1e-6, atol=0)
    normaliser.m2.neg_()
    with pytest.raises(InputError, match="squares below 0"):
        normaliser.check()


def test_a_floor_keeps_constants_from_exploding() -> None:
    rows = torch.ones(4, 2) * torch.tensor([5.0, 0.0])
    plain, floored = Normaliser(2, 1e-7), Normaliser(2, 1e-7, floor=True)
    for each in (plain, floored):
        each.update(rows)
    other = rows + 1
    assert plain(other).min() > 1e6
    torch.testing.assert_close(floored(other)[0], torch.tensor([1 / 5.1e-6, 1 / 1.1e-6]), rtol=1e-5, atol=0)


# ---------------------------------------------------------------- the nets
def plain_update(editor: MendEditor, name: str, factors: Factors, names: list[str]) -> Tensor:
    """What the sheet says, row by row: ``[out, in]``."""
    tensors = editor.tensors()
    place = next(place for place in editor.places if place.name == name)
    prefix = f"nets.{place.width}x{place.out}."
    mean, m2 = tensors[f"{prefix}normaliser.mean"], tensors[f"{prefix}normaliser.m2"]
    spread = (m2 / (tensors[f"{prefix}normaliser.count"] - 1)) ** 0.5
    total = torch.zeros(place.out, place.width, dtype=torch.float64)
    for x, delta in zip(factors.inputs, factors.gradients, strict=True):
        h = (torch.cat([x, delta]) - mean) / (spread + 1e-7)
        for number in range(2):
            layer = {key: tensors[f"{prefix}nets.both.layers.{number}.{key}"] for key in ("U", "V", "bias")}
            before = layer["U"] @ (layer["V"] @ h) + layer["bias"]
            m = names.index(name)
            before = before * tensors[f"{prefix}nets.both.layers.{number}.scale"][m]
            before = before + tensors[f"{prefix}nets.both.layers.{number}.shift"][m]
            h = h + torch.where(before > 0, before, 0.0)
        total += torch.outer(h[place.width :], h[: place.width])
    return editor.settings.sign * tensors["alpha"][[p.name for p in editor.places].index(name)] * total


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_update_is_what_the_paper_says(sign: int) -> None:
    editor = scrambled(an_editor(sign=sign))
    factors = some_factors(seed=7)
    for name, change in editor(factors).items():
        names = ["c.weight"] if name == "c.weight" else ["a.weight", "b.weight"]
        wanted = plain_update(editor, name, factors[name], names)
        torch.testing.assert_close(change.outputs.T @ change.inputs, wanted, rtol=1e-9, atol=1e-12)


def test_3_at_the_start_it_is_the_identity() -> None:
    """Acceptance check 3: normalised factors come out; U, b and shift learn at once, V and scale not yet."""
    editor, factors = an_editor(), some_factors(seed=7)
    changes = editor(factors)
    for group in editor.groups(factors):
        inputs, gradients = group.net.normaliser(group.rows).split([group.net.width, group.net.out], dim=-1)
        torch.testing.assert_close(torch.cat([changes[name].inputs for name in group.names]), inputs)
        torch.testing.assert_close(torch.cat([changes[name].outputs for name in group.names]), -0.3 * gradients)
    sum((change.outputs.T @ change.inputs).square().sum() for change in changes.values()).backward()
    for name, parameter in editor.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in ("V", "scale"):
            assert bool((parameter.grad == 0).all()), name
        else:
            assert bool((parameter.grad != 0).any()), name


def test_without_the_residual_nothing_is_the_identity() -> None:
    editor, factors = an_editor(init="xavier"), some_factors(seed=7)
    start = editor.tensors()
    assert all(bool(start[name].any()) for name in start if name.endswith((".U", ".V")))
    # the last layer is rectified and has no skip connection
    assert all(bool((change.inputs >= 0).all()) for change in editor(factors).values())
    assert all(bool((change.outputs <= 0).all()) for change in editor(factors).values())


def test_7_equal_shapes_share_a_net_with_scales_of_their_own() -> None:
    """Acceptance check 7: a transposed shape has its own net."""
    editor, factors = an_editor(), some_factors(seed=7)
    assert sorted(editor.nets) == ["4x7", "7x4"]
    assert editor.tensors()["nets.7x4.nets.both.layers.0.scale"].shape == (2, 11)
    assert editor.tensors()["nets.4x7.nets.both.layers.0.scale"].shape == (1, 11)
    scrambled(editor)
    both = editor({"a.weight": factors["a.weight"], "b.weight": factors["a.weight"]})
    assert not torch.allclose(both["a.weight"].inputs, both["b.weight"].inputs)
    with torch.no_grad():
        for name, parameter in editor.named_parameters():
            if name.endswith(("scale", "shift")):
                parameter[-1] = parameter[0]
    both = editor({"a.weight": factors["a.weight"], "b.weight": factors["a.weight"]})
    torch.testing.assert_close(both["a.weight"].inputs, both["b.weight"].inputs)
    apart = an_editor(shared=False)
    assert sorted(apart.nets) == ["4x7-2", "7x4-0", "7x4-1"]


def test_the_order_of_rows_and_weights_does_not_matter() -> None:
    editor, factors = scrambled(an_editor()), some_factors(seed=7)
    together = editor(factors)
    for name, each in factors.items():
        torch.testing.assert_close(editor({name: each})[name].outputs, together[name].outputs)


@pytest.mark.parametrize(
    ("transform", "kinds"),
    [
        ("combined", {"a.weight": {"both"}, "c.weight": {"both"}}),
        ("separate", {"a.weight": {"inputs", "gradients"}, "c.weight": {"inputs", "gradients"}}),
        ("inputs", {"a.weight": {"inputs"}, "c.weight": {"inputs"}}),
        ("gradients", {"a.weight": {"gradients"}, "c.weight": {"gradients"}}),
        ("smaller", {"a.weight": {"gradients"}, "c.weight": {"inputs"}}),
    ],
)
def test_variants_transform_what_they_say(transform: str, kinds: dict[str, set[str]]) -> None:
    """A side without a net is normalised only."""
    editor, factors = scrambled(an_editor(transform=transform)), some_factors(seed=7)
    with torch.no_grad():
        editor.alpha.fill_(-1)
    changes = editor(factors)
    for group in editor.groups(factors):
        inputs, gradients = group.net.normaliser(group.rows).split([group.net.width, group.net.out], dim=-1)
        name = group.names[0]
        assert set(group.net.nets) == kinds[name]
        rows = slice(0, group.sizes[0])
        changed = {"inputs", "gradients"} if "both" in kinds[name] else kinds[name]
        assert torch.allclose(changes[name].inputs, inputs[rows]) is ("inputs" not in changed)
        assert torch.allclose(changes[name].outputs, gradients[rows]) is ("gradients" not in changed)


def test_without_norm_factors_go_in_as_they_are() -> None:
    editor, factors = an_editor(norm=False, seen=0), some_factors(seed=7)
    change = editor(factors)["c.weight"]
    torch.testing.assert_close(change.inputs, factors["c.weight"].inputs)


def test_ranks_and_depth_are_those_asked_for() -> None:
    tensors = an_editor(rank=5, n_hidden=3).tensors()
    assert tensors["nets.7x4.nets.both.layers.3.U"].shape == (11, 5)
    assert "nets.7x4.nets.both.layers.4.U" not in tensors
    assert an_editor().tensors()["nets.7x4.nets.both.layers.0.V"].shape == (11, 11)


def test_what_is_loaded_is_what_was_saved() -> None:
    editor, factors = scrambled(an_editor()), some_factors(seed=7)
    other = MendEditor(PLACES, editor.settings).double()
    other.load(editor.tensors())
    for name, change in editor(factors).items():
        assert torch.equal(other(factors)[name].outputs, change.outputs)
    for tensors in ({}, {**editor.tensors(), "more": torch.ones(1)}, {**editor.tensors(), "alpha": torch.ones(9)}):
        with pytest.raises(InputError, match="do not go with its settings"):
            other.load(tensors)
    for wrong in (torch.full((3,), torch.nan), torch.full((3,), torch.inf), torch.ones(3, dtype=torch.long)):
        with pytest.raises(InputError, match="'alpha' is not of finite numbers"):
            other.load({**editor.tensors(), "alpha": wrong})
