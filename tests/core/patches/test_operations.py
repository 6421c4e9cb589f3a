"""Operations check themselves, own their tensors and form their deltas as documented."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from core.patches.patch_kit import expected_weight, random_operation

from kedit_core.errors import PatchFormatError
from kedit_core.patches import DenseDelta, LowRankDelta, ModuleOperation, Replace, RouterOperation, SparseDelta
from kedit_core.patches.operations import check_shape, out_in_shape
from kedit_core.patches.weights import form_weight


def test_tensors_are_owned_contiguous_and_finite() -> None:
    left, right = torch.randn(6, 4).T, torch.randn(6, 3, requires_grad=True)
    delta = LowRankDelta("w", left, right)
    left.zero_()
    assert delta.left.abs().sum() > 0
    assert delta.left.is_contiguous() and not delta.right.requires_grad
    for bad in (float("nan"), float("inf")):
        with pytest.raises(PatchFormatError, match="NaN or infinity"):
            DenseDelta("w", torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRankDelta("w", torch.ones(4, 2), torch.ones(3, 5)),
        lambda: LowRankDelta("w", torch.ones(4, 0), torch.ones(0, 5)),
        lambda: LowRankDelta("", torch.ones(4, 1), torch.ones(1, 5)),
        lambda: LowRankDelta("__metadata__", torch.ones(4, 1), torch.ones(1, 5)),
        lambda: DenseDelta("w", torch.ones(3, dtype=torch.int64)),
        lambda: DenseDelta("w", [1.0]),  # type: ignore[arg-type]
        lambda: SparseDelta("w", "diagonal", torch.tensor([0]), torch.ones(1)),  # type: ignore[arg-type]
        lambda: SparseDelta("w", "element", torch.tensor([1, 1]), torch.ones(2)),
        lambda: SparseDelta("w", "element", torch.tensor([2, 1]), torch.ones(2)),
        lambda: SparseDelta("w", "element", torch.tensor([-1, 1]), torch.ones(2)),
        lambda: SparseDelta("w", "element", torch.tensor([1], dtype=torch.int32), torch.ones(1)),
        lambda: ModuleOperation((), "a.b"),
        lambda: ModuleOperation("mlp", "a.b"),  # type: ignore[arg-type]
        lambda: ModuleOperation(("mlp", "mlp"), "a.b"),
        lambda: ModuleOperation(("mlp",), "A B"),
        lambda: ModuleOperation(("mlp",), "a.b", 0),
        lambda: ModuleOperation(("mlp",), "a.b", 1, {"x": float("nan")}),
        lambda: ModuleOperation(("mlp",), "a.b", 1, {"x": {1: 2}}),
        lambda: RouterOperation("a.b", 1, {"x": object()}),
        lambda: RouterOperation("a.b", 1, {}, {"__metadata__": torch.ones(1)}),
        lambda: RouterOperation("a.b", 1, {}, {"x": torch.ones(1, dtype=torch.complex64)}),
        lambda: RouterOperation("a.b", 1, {}, {"x": torch.tensor([float("inf")])}),
    ],
)
def test_what_cannot_be_meant_is_refused(make: object) -> None:
    with pytest.raises(PatchFormatError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("operation", "shape", "layout", "fits"),
    [
        (LowRankDelta("w", torch.ones(4, 1), torch.ones(1, 6)), (4, 6), "out_in", True),
        (LowRankDelta("w", torch.ones(4, 1), torch.ones(1, 6)), (6, 4), "in_out", True),
        (LowRankDelta("w", torch.ones(4, 1), torch.ones(1, 6)), (6, 4), "out_in", False),
        (DenseDelta("w", torch.ones(4, 6)), (6, 4), "in_out", True),
        (DenseDelta("w", torch.ones(7)), (7,), "as_stored", True),
        (Replace("w", torch.ones(6, 4)), (6, 4), "in_out", True),
        (Replace("w", torch.ones(4, 6)), (6, 4), "in_out", False),
        (SparseDelta("w", "row", torch.tensor([3]), torch.ones(1, 6)), (4, 6), "out_in", True),
        (SparseDelta("w", "row", torch.tensor([4]), torch.ones(1, 6)), (4, 6), "out_in", False),
        (SparseDelta("w", "column", torch.tensor([5]), torch.ones(4, 1)), (4, 6), "out_in", True),
        (SparseDelta("w", "column", torch.tensor([0]), torch.ones(1)), (7,), "as_stored", False),
        (SparseDelta("w", "element", torch.tensor([23]), torch.ones(1)), (4, 6), "out_in", True),
        (SparseDelta("w", "element", torch.tensor([24]), torch.ones(1)), (4, 6), "out_in", False),
        (SparseDelta("w", "row", torch.tensor([6]), torch.ones(1)), (7,), "as_stored", True),
    ],
)
def test_shapes_are_compared_in_the_terms_of_the_layout(operation, shape, layout, fits) -> None:  # type: ignore[no-untyped-def]
    if fits:
        check_shape(operation, shape, layout)
    else:
        with pytest.raises(PatchFormatError, match="does not fit"):
            check_shape(operation, shape, layout)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["low_rank_delta", "dense_delta", "sparse_delta", "replace"])
def test_weights_are_formed_as_the_formula_says(kind: str, dtype: torch.dtype, layout: str) -> None:
    base = torch.randn(40, 56, generator=torch.Generator().manual_seed(1)).to(dtype)
    base[::3, ::2] = -0.0
    operations = [
        random_operation("w", base.shape, layout, kind, seed, given)
        for seed, given in enumerate((torch.float32, torch.float64, torch.bfloat16))
    ]
    for count in (1, 2, 3):
        weight, _ = form_weight(base, layout, operations[:count])  # type: ignore[arg-type]
        expected = expected_weight(base, layout == "in_out", operations[:count])
        assert weight.dtype == dtype and torch.equal(weight.view(torch.uint8), expected.view(torch.uint8))


def test_appending_to_a_running_sum_gives_the_same_bits() -> None:
    base = torch.randn(33, 17).to(torch.bfloat16)
    draw = partial(random_operation, "w", base.shape, "out_in", "low_rank_delta", dtype=torch.float32)
    operations = [draw(seed=seed) for seed in range(6)]
    _, total = form_weight(base, "out_in", operations[:2])  # type: ignore[arg-type]
    for count in range(3, 7):
        appended, total = form_weight(base, "out_in", operations[:count], total, count - 1)  # type: ignore[arg-type]
        anew, _ = form_weight(base, "out_in", operations[:count])  # type: ignore[arg-type]
        assert torch.equal(appended, anew)


def test_surroundings_do_not_change_bits() -> None:
    base = torch.randn(8, 8)
    operation = random_operation("w", base.shape, "out_in", "low_rank_delta", 2, torch.float32)
    expected, _ = form_weight(base, "out_in", [operation])  # type: ignore[list-item]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(form_weight(base, "out_in", [operation])[0], expected)  # type: ignore[list-item]
    with torch.inference_mode():
        weight, _ = form_weight(base, "out_in", [operation])  # type: ignore[list-item]
    assert not weight.is_inference() and torch.equal(weight, expected)


def test_scalars_and_empty_parameters() -> None:
    assert form_weight(torch.tensor(1.0), "as_stored", [DenseDelta("w", torch.tensor(2.0))])[0] == 3.0
    empty = torch.empty(0, 4)
    assert form_weight(empty, "out_in", [DenseDelta("w", torch.empty(0, 4))])[0].shape == (0, 4)
    assert out_in_shape((2, 3), "in_out") == (3, 2)
