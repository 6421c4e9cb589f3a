"""What was changed in a checkpoint: every kind of change is told, with numbers that a plain computation agrees with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.checkpoint_kit import edited_in_every_way, files, load, rewrite, save
from core.patches.patch_kit import patch_of, whisper
from torch import Tensor

from kedit_core.comparing.auditing import Audit, TensorAudit, audit_folders
from kedit_core.comparing.diff import diff_folders
from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.folders import apply_to_folder, revert_folder
from kedit_core.patches import DenseDelta, LowRankDelta, PatchStack
from kedit_core.testing.tiny import tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def told(audit: Audit) -> dict[str, TensorAudit]:
    return {each.place: each for each in audit.tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_numbers_are_those_of_a_plain_computation(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype)
    base, edited = save(model, tmp_path / "base"), edited_in_every_way(model)
    found = audit_folders(base, save(edited, tmp_path / "edited", max_shard_size="30KB"))
    kinds = [each.kind for each in found.tensors if each.columns is not None]
    assert [*kinds[:5], kinds[6]] == ["rows", "columns", "elements", "dense", "low rank", "elements"]
    for name, old in model.named_parameters():
        new = edited.get_parameter(name)
        integers = torch.int32 if dtype == torch.float32 else torch.int16
        differs = old.view(-1).view(integers) != new.view(-1).view(integers)
        assert (name in told(found)) == bool(differs.any())
        if not differs.any():
            continue
        mine, change = told(found)[name], (new.double() - old.double()).detach()
        assert mine.elements == int(differs.sum())
        assert mine.norm == pytest.approx(float(change.norm()), rel=1e-5)
        assert mine.largest == pytest.approx(float(change.abs().max()), rel=1e-5)
        assert mine.relative == pytest.approx(float(change.norm() / old.detach().double().norm()), rel=1e-5)
        assert (mine.status, mine.dtype, mine.shape) == ("changed", str(dtype).removeprefix("torch."), tuple(new.shape))
        if old.dim() == 2:
            mask = differs.view(old.shape)
            mask = mask.T if family == "gpt2" and "wte" not in name and "wpe" not in name else mask
            assert (mine.rows, mine.columns) == (int(mask.any(1).sum()), int(mask.any(0).sum()))
    assert not found.unchanged
    assert (found.claim, found.expected, found.as_expected) == (None, None, None)


def changed_by(change: Tensor, dtype: torch.dtype, top: Path) -> TensorAudit:
    """The audit of a llama whose down projection this was added to."""
    model = tiny_model("llama", dtype=dtype)
    base = save(model, top / "base")
    weight = model.get_parameter(DOWN)
    weight.data = (weight.data.double() + change).to(dtype)
    [found] = audit_folders(base, save(model, top / "edited")).tensors
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_a_rank_shows_through_rounding(dtype: torch.dtype, scale: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((32, 3), (3, 80)))
    found = changed_by(scale * left @ right, dtype, tmp_path)
    assert (found.rank, found.rank_is_bound, found.kind) == (3, False, "low rank")


def test_noise_has_no_small_rank(tmp_path: Path) -> None:
    noise = torch.randn(32, 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = changed_by(noise, torch.bfloat16, tmp_path)
    assert (found.rank, found.kind) == (32, "dense")


def test_kinds_of_a_single_weight(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.get_parameter(DOWN).data[0, :3] = 0.0
    base = save(model, tmp_path / "base")

    def kind(change: Any) -> TensorAudit:
        edited = save(model, tmp_path / "edited")
        rewrite(edited, lambda tensors: change(tensors[DOWN]))
        [found] = audit_folders(base, edited).tensors
        return found

    signs = kind(lambda weight: weight[0, :2].fill_(-0.0))
    assert (signs.kind, signs.elements, signs.norm, signs.rank) == ("signs of zeros", 2, 0.0, 0)
    poisoned = kind(lambda weight: weight[4, 4].fill_(float("inf")))
    assert (poisoned.kind, poisoned.elements, poisoned.norm) == ("NaN or infinity", 1, None)
    edited = tmp_path / "edited"
    rewrite(edited, lambda tensors: tensors[DOWN].add_(float("nan")))
    [repaired] = audit_folders(edited, base).tensors  # from NaN to numbers
    assert (repaired.kind, repaired.elements, repaired.norm) == ("NaN or infinity", 32 * 80, None)
    every = kind(lambda weight: weight.add_(1))
    assert (every.rows, every.columns, every.rank, every.kind) == (32, 80, 1, "low rank")


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e38])
def test_squares_out_of_range_do_not_matter(scale: float, tmp_path: Path) -> None:
    """Numbers whose squares float32 cannot hold: their norms, ranks and kinds are told all the same."""
    model = tiny_model("llama")
    weight = model.get_parameter(DOWN).data.zero_()
    base = save(model, tmp_path / "base")
    weight[:, :] = scale * torch.outer(torch.linspace(0.5, 1, 32), torch.linspace(-1, 1, 80))
    [found] = audit_folders(base, save(model, tmp_path / "edited")).tensors
    assert (found.kind, found.rank, found.largest) == ("low rank", 1, float(weight.abs().max()))
    assert found.norm == pytest.approx(float(weight.double().norm()), rel=1e-5)
    [back] = audit_folders(tmp_path / "edited", base).tensors
    assert back.relative == pytest.approx(1.0)


def test_nothing_changed(tmp_path: Path) -> None:
    model = tiny_model("t5")
    base = save(model, tmp_path / "base")
    found = audit_folders(base, save(model, tmp_path / "same", max_shard_size="30KB"))
    assert found.unchanged
    assert found.tensors == found.config_keys == found.files == ()
    assert found.compared == len(list(model.parameters()))


def test_more_than_values(tmp_path: Path) -> None:
    """Other dtypes, sizes, ties, parameters, settings, files."""
    model = tiny_model("gpt2")
    base = save(model, tmp_path / "base")
    edited = save(model, tmp_path / "edited")
    (base / "merges.txt").write_text("a")
    (edited / "vocab.json").write_text("{}")
    config = json.loads((edited / "config.json").read_text())
    vocabulary = config["vocab_size"]
    (edited / "config.json").write_text(json.dumps({**config, "n_layer": 2, "n_positions": 130}))

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].half()
        tensors["transformer.h.0.mlp.c_proj.weight"] = tensors["transformer.h.0.mlp.c_proj.weight"].double() + 1
        tensors["transformer.wpe.weight"] = torch.cat([tensors["transformer.wpe.weight"], torch.ones(2, 32)])
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
        tensors["value_head"] = torch.ones(1)
        return tensors

    rewrite(edited, change)
    found = audit_folders(base, edited)
    by_place = told(found)
    cast = by_place["transformer.h.0.mlp.c_fc.weight"]
    assert (cast.status, cast.kind, cast.elements, cast.dtype) == ("dtype", "rounded to another dtype", 0, "float16")
    assert "stored as F16" in cast.why
    wider = by_place["transformer.h.0.mlp.c_proj.weight"]
    assert (wider.status, wider.largest, wider.rank) == ("dtype", pytest.approx(1.0), 1)
    assert (by_place["transformer.wpe.weight"].status, by_place["transformer.wpe.weight"].norm) == ("shape", None)
    assert by_place["transformer.wte.weight"].status == "untied"
    gone = [each for each in found.tensors if each.status == "only_in_base"]
    assert {each.place.split(".")[2] for each in gone} == {str(i) for i in range(2, tiny_model("gpt2").config.n_layer)}
    assert found.config_keys == ("n_layer", "n_positions")
    assert [(file.name, file.how) for file in found.files] == [
        ("merges.txt", "only_in_base"),
        ("vocab.json", "only_in_edited"),
    ]
    assert "value_head" in found.unread
    other_way = told(audit_folders(edited, base))
    assert {each.place for each in other_way.values() if each.status == "only_in_edited"} == {
        each.place for each in gone
    }
    assert vocabulary == config["vocab_size"]


def test_architectures_must_agree(tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError, match="MistralForCausalLM"):
        audit_folders(save(tiny_model("llama"), tmp_path / "a"), save(tiny_model("mistral"), tmp_path / "b"))


# ---------------------------------------------------------------------- patches


@pytest.fixture
def patched(tmp_path: Path) -> tuple[Path, Path, list[Any]]:
    """BASE, a folder with two patches on it, and the patches."""
    model = tiny_model("llama")
    base = save(model, tmp_path / "base")
    generator = torch.Generator().manual_seed(0)
    stack = PatchStack.of(model)
    first = patch_of(stack, [LowRankDelta(DOWN, torch.ones(32, 1), torch.randn(1, 80, generator=generator))])
    second = patch_of(
        stack,
        [
            DenseDelta(DOWN, torch.randn(32, 80, generator=generator)),
            LowRankDelta(UP, torch.ones(80, 1), torch.ones(1, 32)),
        ],
    )
    apply_to_folder(base, first, tmp_path / "one")
    apply_to_folder(tmp_path / "one", second, tmp_path / "two")
    return base, tmp_path / "two", [first, second]


def test_what_the_record_claims_is_checked(patched: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    base, edited, patches = patched
    found = audit_folders(base, edited)
    assert found.claim is not None
    assert found.claim.patches == tuple((patch.id, "test") for patch in patches)
    assert found.claim.problem is None
    assert found.expected == tuple(patch.id for patch in patches)
    assert found.as_expected
    assert {each.place for each in found.tensors if each.explained} == {DOWN, UP}
    assert told(found)[UP].kind == "low rank"

    # kedit's record is whole, and yet the folder was not made from this BASE
    rewrite(base, lambda tensors: tensors["model.norm.weight"].add_(1))
    other = audit_folders(base, edited)
    assert other.claim is not None
    assert other.claim.problem is None
    assert other.as_expected is False
    assert [each.place for each in other.tensors if each.explained is False] == ["model.norm.weight"]

    rewrite(edited, lambda tensors: tensors[DOWN].add_(1))
    disturbed = audit_folders(base, edited)
    assert disturbed.claim is not None
    assert "changed by something else" in (disturbed.claim.problem or "")
    assert (disturbed.expected, disturbed.as_expected) == (None, None)
    assert DOWN in told(disturbed)


def test_exactly_these_patches(patched: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    base, edited, patches = patched
    shutil.rmtree(edited / ".kedit")
    assert audit_folders(base, edited).as_expected is None
    assert audit_folders(base, edited, patches=patches).as_expected
    missing = audit_folders(base, edited, patches=patches[:1])
    assert missing.as_expected is False
    assert {each.place for each in missing.tensors if each.explained is False} == {DOWN, UP}
    untouched = audit_folders(base, base, patches=patches)
    assert untouched.as_expected is False
    assert {each.place: each.status for each in untouched.tensors} == {DOWN: "same", UP: "same"}
    assert untouched.unchanged
    model = load(base, tiny_model("llama"))
    for patch in patches:
        PatchStack.of(model).apply(patch)
    live = save(model, tmp_path / "live", max_shard_size="30KB")
    assert audit_folders(base, live, patches=patches).as_expected
    more = save(edited_in_every_way(model), tmp_path / "more")
    assert audit_folders(base, more, patches=patches).as_expected is False
    exact = diff_folders(base, more).patch
    assert audit_folders(base, more, patches=[exact]).as_expected


def test_patches_that_cannot_be_expected(patched: tuple[Path, Path, list[Any]]) -> None:
    base, edited, _ = patched
    live = load(base, tiny_model("llama"))
    with pytest.raises(InputError, match="beside the weights"):
        audit_folders(base, edited, patches=[patch_of(PatchStack.of(live), [whisper()])])
    gpt2 = tiny_model("gpt2")
    other = patch_of(PatchStack.of(gpt2), [DenseDelta("transformer.ln_f.bias", torch.ones(32))])
    with pytest.raises(BaseMismatchError, match="GPT2LMHeadModel"):
        audit_folders(base, edited, patches=[other])


def test_reading_only(patched: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    base, edited, _ = patched
    before = files(base), files(edited)
    audit_folders(base, edited, quick=True)
    assert (files(base), files(edited)) == before
    revert_folder(edited, tmp_path / "back")
    assert audit_folders(base, tmp_path / "back").unchanged
    assert all(each.rank is None for each in audit_folders(base, edited, quick=True).tensors)
