"""Patches compared: against whole matrices and numpy, and what must hold for any pair of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core.patches.patch_kit import loose_patch, near_key, random_operation, whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_core.comparing.overlaps import Comparison, Pair, compare
from kedit_core.comparing.spectra import Spectrum, summed
from kedit_core.errors import BaseMismatchError, InputError, MissingExtraError
from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    MethodRef,
    Operation,
    Replace,
    SparseDelta,
    digests_of,
)

SHAPE = (12, 20)
SHAPES = {"w": SHAPE, "v": (15, 9)}


def low_rank(rank: int, seed: int, place: str = "w", dtype: torch.dtype = torch.float64) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    out, inner = SHAPES[place]
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, inner, generator=generator, dtype=torch.float64)
    return LowRankDelta(place, left.to(dtype), right.to(dtype))


def patch(*operations: Operation) -> EditPatch:
    return loose_patch(operations, SHAPES)


def whole(one: EditPatch, place: str = "w") -> np.ndarray:
    """The change of a place, formed whole."""
    total = torch.zeros(SHAPES[place], dtype=torch.float64)
    for operation in one.operations:
        if getattr(operation, "place", None) == place:
            total += operation.delta(SHAPES[place], torch.float64)  # type: ignore[union-attr]
    return total.numpy()


def range_of(matrix: np.ndarray) -> np.ndarray:
    u, values, _ = np.linalg.svd(matrix)
    return u[:, : int((values > 1e-6 * values[0]).sum())]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def reference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Overlap of the column spaces, by chance, and weighted: from whole matrices alone."""
    one, other = range_of(a), range_of(b)
    angles = np.linalg.svd(one.T @ other)[1]
    smaller = min(one.shape[1], other.shape[1])
    chance = max(one.shape[1], other.shape[1]) / a.shape[0]
    return float((angles**2).sum() / smaller), chance, cosine(a @ a.T, b @ b.T)


def only_pair(comparison: Comparison, place: int = 0) -> Pair:
    (pair,) = comparison.places[place].pairs
    return pair


def check_against_whole_matrices(first: EditPatch, second: EditPatch, place: str = "w") -> None:
    compared = compare([first, second])
    (here,) = [each for each in compared.places if each.place == place]
    a, b = whole(first, place), whole(second, place)
    for matrix, change in zip((a, b), here.changes, strict=True):
        assert change is not None
        assert change.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-10)
        assert change.rank == range_of(matrix).shape[1]
    (pair,) = here.pairs
    assert pair.cosine == pytest.approx(cosine(a, b), abs=1e-10)
    for overlap, (x, y) in ((pair.columns, (a, b)), (pair.rows, (a.T, b.T))):
        assert overlap is not None
        assert (overlap.value, overlap.by_chance, overlap.weighted) == pytest.approx(reference(x, y), abs=1e-8)


# ------------------------------------------------------------------ against whole matrices
@pytest.mark.parametrize("ranks", [(1, 1), (2, 5), (7, 7), (12, 3)])
def test_low_rank_changes(ranks: tuple[int, int]) -> None:
    check_against_whole_matrices(patch(low_rank(ranks[0], 1)), patch(low_rank(ranks[1], 2)))


def test_operations_of_one_place_are_summed() -> None:
    shared = low_rank(2, 1)
    first = patch(shared, low_rank(1, 2), low_rank(2, 7, "v"))
    check_against_whole_matrices(first, patch(low_rank(2, 3), shared))
    undone = LowRankDelta("w", -shared.left, shared.right)
    compared = compare([patch(shared, low_rank(1, 2), undone), patch(low_rank(1, 2))])
    change = compared.places[0].changes[0]
    assert change is not None and change.rank == 1 and only_pair(compared).cosine == pytest.approx(1)


@pytest.mark.parametrize("kind", ["low_rank_delta", "dense_delta", "sparse_delta"])
@pytest.mark.parametrize("seed", range(6))
def test_every_type_of_delta(kind: str, seed: int) -> None:
    first = patch(random_operation("w", SHAPE, "out_in", kind, seed, torch.float32))
    check_against_whole_matrices(first, patch(low_rank(3, 9, dtype=torch.float32)))
    check_against_whole_matrices(first, patch(random_operation("w", SHAPE, "out_in", "dense_delta", 5, torch.float64)))
    mixed = patch(first.operations[0], low_rank(1, 4))
    check_against_whole_matrices(mixed, patch(random_operation("w", SHAPE, "out_in", "sparse_delta", 8, torch.float32)))


def test_inner_sizes_beyond_the_smaller_side() -> None:
    many = patch(*[low_rank(3, seed) for seed in range(7)])
    assert sum(operation.rank for operation in many.operations) > min(SHAPE)  # type: ignore[union-attr]
    check_against_whole_matrices(many, patch(low_rank(3, 1)))


def test_a_low_rank_change_is_never_formed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the change was formed whole")

    few_rows = SparseDelta("w", "row", torch.tensor([1, 4]), torch.ones(2, 20))
    few_cells = SparseDelta("w", "element", torch.tensor([3, 25, 27]), torch.tensor([1.0, 2.0, 3.0]))
    for cls in (LowRankDelta, SparseDelta):
        monkeypatch.setattr(cls, "delta", refuse)
    for operations in ([low_rank(2, 0), low_rank(3, 1)], [few_rows, low_rank(1, 2)], [few_cells]):
        assert isinstance(summed(operations, SHAPE), Spectrum)
    rows = summed([few_rows], SHAPE).spectrum()
    assert rows.rank(1e-6) == 1 and float(rows.norm) == pytest.approx(40**0.5)


def test_a_transposed_layout_is_seen_in_out_in_terms() -> None:
    """GPT-2's Conv1D stores [in, out]; deltas, and so columns and rows, are [out, in] whatever the storage."""
    stored = BaseTensor(shape=tuple(reversed(SHAPE)), layout="in_out")
    method = MethodRef(name="test", distribution="kedit-test", version="1.0")
    made = [
        EditPatch(
            method=method, base=Base(architecture="Nothing", tensors={"w": stored}), operations=[low_rank(2, seed)]
        )
        for seed in (1, 2)
    ]
    straight = compare([patch(low_rank(2, 1)), patch(low_rank(2, 2))])
    assert compare(made).places == straight.places


def test_what_is_no_matrix_has_norm_and_cosine_only() -> None:
    shapes: dict[str, tuple[int, ...]] = {"bias": (6,), "experts": (2, 3, 4)}
    draw = torch.Generator().manual_seed(0)
    values = [{name: torch.randn(shape, generator=draw) for name, shape in shapes.items()} for _ in range(2)]
    tensors = {name: BaseTensor(shape=shape, layout="as_stored") for name, shape in shapes.items()}
    made = [
        EditPatch(
            method=MethodRef(name="test", distribution="kedit-test", version="1.0"),
            base=Base(architecture="Nothing", tensors=tensors),
            operations=[DenseDelta(name, each) for name, each in drawn.items()],
        )
        for drawn in values
    ]
    compared = compare(made)
    for here in compared.places:
        one, other = (each[here.place].double() for each in values)
        (pair,) = here.pairs
        assert pair.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()))
        assert pair.columns is None and pair.rows is None
        assert [change.rank for change in here.changes if change is not None] == [None, None]
    json.dumps(compared.to_dict(), allow_nan=False)


def test_the_whole_patch_counts_all_places() -> None:
    first, second = patch(low_rank(2, 1), low_rank(1, 2, "v")), patch(low_rank(3, 3))
    compared = compare([first, second])
    a, b = (np.concatenate([whole(each, place).ravel() for place in SHAPES]) for each in (first, second))
    assert compared.norms == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)))
    assert compared.cosines[0][1] == compared.cosines[1][0] == pytest.approx(cosine(a, b))
    assert compared.cosines[0][0] == pytest.approx(1)
    assert [each.place for each in compared.places] == ["w", "v"]
    assert compared.places[1].changes[1] is None and compared.places[1].pairs == ()
    assert list(compared.table["v"]) == [first.id[:12]]


# ------------------------------------------------------------------ what holds for any pair
ranks = st.integers(1, 12)
seeds = st.integers(0, 10_000)


@settings(max_examples=25, deadline=None)
@given(ranks, ranks, seeds, seeds)
def test_overlaps_are_symmetric_and_between_0_and_1(rank: int, other_rank: int, seed: int, other_seed: int) -> None:
    first, second = patch(low_rank(rank, seed)), patch(low_rank(other_rank, other_seed))
    forth, back = (only_pair(compare(each, names="ab")) for each in ((first, second), (second, first)))
    for there, here in ((forth.columns, back.columns), (forth.rows, back.rows)):
        assert there is not None and here is not None
        for value, mirrored in ((there.value, here.value), (there.weighted, here.weighted)):
            assert 0 <= value <= 1 and value == pytest.approx(mirrored, abs=1e-9)
    assert forth.cosine == pytest.approx(back.cosine, abs=1e-9)
    assert -1 <= (forth.cosine or 0) <= 1


@settings(max_examples=25, deadline=None)
@given(ranks, seeds, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_only_the_change_counts_and_not_how_it_is_factored(rank: int, seed: int, scale: float, random: Any) -> None:
    """A patch against itself with its factors scaled and put in another order: the same change."""
    delta = low_rank(rank, seed)
    order = list(range(rank))
    random.shuffle(order)
    other = LowRankDelta("w", scale * delta.left[:, order], delta.right[order] / scale)
    pair = only_pair(compare([patch(delta), patch(other)], names=("one", "other")))
    assert pair.columns is not None and pair.rows is not None
    found = (pair.cosine, pair.columns.value, pair.columns.weighted, pair.rows.value, pair.rows.weighted)
    assert found == pytest.approx((1,) * 5, abs=1e-8)
    third = patch(low_rank(4, seed + 1))
    a, b = (only_pair(compare([patch(each), third], names=("one", "third"))) for each in (delta, other))
    assert a.columns is not None and b.columns is not None
    assert (a.cosine, a.columns.value) == pytest.approx((b.cosine, b.columns.value), abs=1e-8)


def test_orthogonal_and_nested_changes() -> None:
    eye, ones = torch.eye(12, dtype=torch.float64), torch.eye(20, dtype=torch.float64)
    two = patch(LowRankDelta("w", eye[:, :2], ones[:2]))
    apart = patch(LowRankDelta("w", eye[:, 4:7], ones[5:8]))
    inside = patch(LowRankDelta("w", eye[:, :1], 3 * ones[1:2]))
    none = only_pair(compare([two, apart]))
    assert none.columns is not None and none.rows is not None
    assert (none.cosine, none.columns.value, none.rows.value, none.columns.weighted) == (0, 0, 0, 0)
    assert (none.columns.by_chance, none.rows.by_chance) == (3 / 12, 3 / 20)
    nested = only_pair(compare([two, inside]))
    assert nested.columns is not None and nested.rows is not None
    assert (nested.columns.value, nested.rows.value) == pytest.approx((1, 1))
    assert nested.columns.weighted == pytest.approx(0.5**0.5)
    against = patch(LowRankDelta("w", -0.5 * eye[:, :2], ones[:2]))
    assert only_pair(compare([two, against])).cosine == pytest.approx(-1)


def test_a_zero_change_overlaps_with_nothing() -> None:
    zero = patch(LowRankDelta("w", torch.zeros(12, 1), torch.zeros(1, 20)))
    nothing = patch(SparseDelta("w", "row", torch.empty(0, dtype=torch.int64), torch.empty(0, 20)))
    for empty in (zero, nothing):
        compared = compare([empty, patch(low_rank(1, 1))])
        change, pair = compared.places[0].changes[0], only_pair(compared)
        assert change is not None and (change.norm, change.rank) == (0, 0)
        assert (pair.cosine, pair.columns, pair.rows) == (None, None, None)
        assert compared.cosines[0] == (None, None)


def test_the_tolerance_decides_what_counts_as_zero() -> None:
    weak = low_rank(1, 2)
    made = patch(low_rank(1, 1), LowRankDelta("w", 1e-4 * weak.left, weak.right))
    for tolerance, rank in ((1e-6, 2), (1e-2, 1)):
        change = compare([made, patch(low_rank(1, 3))], tolerance=tolerance).places[0].changes[0]
        assert change is not None and change.rank == rank


def test_quick_leaves_out_what_needs_a_dense_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = patch(random_operation("w", SHAPE, "out_in", "dense_delta", 1, torch.float32))
    made = [dense, patch(low_rank(2, 2)), patch(low_rank(2, 3))]
    slow, fast = compare(made), compare(made, quick=True)
    for full, here in zip(slow.places[0].pairs, fast.places[0].pairs, strict=True):
        assert here.cosine == full.cosine
        assert (here.columns, here.rows) == (
            (None, None) if 0 in (here.first, here.second) else (full.columns, full.rows)
        )
    assert [change.rank for change in fast.places[0].changes if change is not None] == [None, 2, 2]
    assert fast.norms == slow.norms


# ------------------------------------------------------------------ the base
def based(weight: Tensor, layout: str, *operations: Operation) -> EditPatch:
    tensor = BaseTensor(shape=tuple(weight.shape), layout=layout, sha256=digests_of(weight))  # type: ignore[arg-type]
    base = Base(architecture="Nothing", tensors={"w": tensor})
    return EditPatch(
        method=MethodRef(name="test", distribution="kedit-test", version="1.0"), base=base, operations=operations
    )


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_gives_relative_norms_and_what_replacements_change(layout: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE if layout == "out_in" else SHAPE[::-1], generator=draw).to(dtype)
    instead = (weight + torch.randn(weight.shape, generator=draw).to(dtype)).to(dtype)
    replaced = based(weight, layout, Replace("w", 0 * instead), Replace("w", instead), low_rank(1, 1))
    nudged = based(weight, layout, low_rank(2, 2))
    compared = compare([replaced, nudged], base={"w": weight}.__getitem__)
    difference = (instead.double() - weight.double()).numpy()
    a = (difference if layout == "out_in" else difference.T) + whole(patch(low_rank(1, 1)))
    b = whole(patch(low_rank(2, 2)))
    (pair,) = compared.places[0].pairs
    assert pair.cosine == pytest.approx(cosine(a, b), abs=1e-10)
    assert pair.columns is not None
    assert (pair.columns.value, pair.columns.by_chance, pair.columns.weighted) == pytest.approx(reference(a, b))
    size = float(weight.double().norm())
    for matrix, change in zip((a, b), compared.places[0].changes, strict=True):
        assert change is not None
        assert change.norm == pytest.approx(np.linalg.norm(matrix))
        assert change.relative == pytest.approx(np.linalg.norm(matrix) / size)
    assert compared.places[0].changes[0].types == ("replace", "low_rank_delta")  # type: ignore[union-attr]
    assert compared.left_out == () and compared.notes == ()


def test_without_the_base_a_replacement_is_left_out() -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    compared = compare([based(weight, "out_in", Replace("w", weight)), based(weight, "out_in", low_rank(1, 1))])
    assert compared.places[0].changes[0] is None and compared.places[0].pairs == ()
    (left,) = compared.left_out
    assert (left.patch, left.operation) == (0, "replace at w") and "beside the base" in left.reason


def test_another_base_is_refused_or_said() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, other = (torch.randn(SHAPE, generator=draw) for _ in range(2))
    first, second = based(weight, "out_in", low_rank(1, 1)), based(other, "out_in", low_rank(1, 2))
    (note,) = compare([first, second], names="ab").notes
    assert note == "a and b were made for different values of w"
    with pytest.raises(BaseMismatchError, match=r"other values .* than in the one that b was made for"):
        compare([first, second], base={"w": weight}.__getitem__, names="ab")
    with pytest.raises(BaseMismatchError, match=r"stored as \[20, 12\]"):
        compare([first, second], base={"w": weight.T}.__getitem__, names="ab")
    blind = patch(low_rank(1, 3))
    notes = compare([first, blind], base={"w": weight}.__getitem__, names="ab").notes
    assert any("b has no digest of w as float32" in note for note in notes)


# ------------------------------------------------------------------ what cannot be compared
def test_modules_and_routers_are_listed() -> None:
    module, router = near_key(["block"], 4), whisper()
    compared = compare([patch(low_rank(1, 1), module), patch(router)])
    assert [(each.patch, each.operation) for each in compared.left_out] == [
        (0, "module test.near_key at block"),
        (1, "router test.whisper"),
    ]
    assert compared.norms[1] == 0 and compared.cosines[0] == (pytest.approx(1), None)
    assert compare([patch(module), patch(router)]).places == ()


def test_refusals() -> None:
    one = patch(low_rank(1, 1))
    with pytest.raises(InputError, match="two patches or more, and got 1"):
        compare([one])
    with pytest.raises(InputError, match="give each patch once"):
        compare([one, one])
    with pytest.raises(InputError, match="name of its own"):
        compare([one, patch(low_rank(1, 2))], names=["one"])
    elsewhere = EditPatch(
        method=one.method, base=Base(architecture="Other", tensors=one.base.tensors), operations=one.operations
    )
    with pytest.raises(InputError, match=r"for a Nothing and .* for a Other"):
        compare([one, elsewhere])
    wider = loose_patch([LowRankDelta("w", torch.ones(12, 1), torch.ones(1, 21))], {"w": (12, 21)})
    with pytest.raises(InputError, match=r"is \[12, 20\] .* and \[12, 21\]"):
        compare([one, wider])


# ------------------------------------------------------------------ as JSON and as a picture
def made_three() -> Comparison:
    module = near_key(["block"], 4)
    return compare(
        [patch(low_rank(2, 1), low_rank(1, 5, "v")), patch(low_rank(3, 2), module), patch(low_rank(1, 3, "v"))],
        names=["one", "two", "three"],
    )


def test_as_json() -> None:
    compared = made_three()
    data = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert [each["name"] for each in data["patches"]] == ["one", "two", "three"]
    place, other = data["places"]
    assert (place["place"], place["shape"], [each["patch"] for each in place["changes"]]) == ("w", [12, 20], [0, 1])
    (pair,) = place["pairs"]
    assert (pair["first"], pair["second"], pair["columns"]["value"]) == (
        *(0, 1),
        only_pair(compared).columns.value,  # type: ignore[union-attr]
    )
    assert [(each["first"], each["second"]) for each in other["pairs"]] == [(0, 2)]
    assert data["left_out"] == [
        {"patch": 1, "operation": "module test.near_key at block", "reason": "it changes no weight"}
    ]
    # 1 and 2 share no weight, so nothing can be said of their spaces
    heat = compared.mean_overlaps("columns")
    assert heat[1][2] is None and heat[0][0] == 1
    assert heat[0][1] == heat[1][0] == only_pair(compared).columns.value  # type: ignore[union-attr]


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture(ending: str, begins: bytes, tmp_path: Path) -> None:
    import matplotlib

    backend = matplotlib.get_backend()
    made_three().plot(tmp_path / f"compared.{ending}")
    assert (tmp_path / f"compared.{ending}").read_bytes().startswith(begins)
    assert matplotlib.get_backend() == backend
    if ending == "svg":
        text = (tmp_path / "compared.svg").read_text()
        assert text.count("<!-- three -->") >= 3  # legend and both heat maps name the patch


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends with one of .*png"):
        made_three().plot(tmp_path / "compared.txt")
    with pytest.raises(InputError, match="nothing to draw"):
        compare([patch(whisper()), patch(near_key(["block"], 4))]).plot(tmp_path / "none.png")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kedit-core\[plot\]'"):
        made_three().plot(tmp_path / "compared.png")
    assert list(tmp_path.iterdir()) == []
