"""A patch from two checkpoints: it gives the second from the first, bit for bit, on folders and live, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.checkpoint_kit import edited_in_every_way, files, load, matrices, rewrite, save, state
from core.patches.patch_kit import bits, expected_weight
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_core.comparing.diff import diff_folders
from kedit_core.comparing.exact import exact_operation, size_of
from kedit_core.comparing.low_rank import leading, low_rank_operation
from kedit_core.errors import BaseMismatchError, InputError, KeditError
from kedit_core.folders import apply_to_folder, revert_folder
from kedit_core.patches import DenseDelta, EditPatch, PatchStack, Replace, SparseDelta, digests_of
from kedit_core.testing.tiny import tiny_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DOWN = "model.layers.1.mlp.down_proj.weight"


def check_round_trip(base: Path, edited: Path, work: Path, model: Any) -> EditPatch:
    """Diff, save, load; applied and reverted on the folder and on the loaded model: the same bytes."""
    before, wanted = files(base), state(edited)
    difference = diff_folders(base, edited)
    assert difference.exact
    assert all(each.exact and each.error == 0 for each in difference.places)
    assert not difference.left_out
    difference.patch.save(work / "diff.safetensors")
    patch = EditPatch.load(work / "diff.safetensors")
    assert patch.id == difference.patch.id == diff_folders(base, edited).patch.id

    apply_to_folder(base, patch, work / "applied")
    assert state(work / "applied") == wanted
    revert_folder(work / "applied", work / "reverted")
    assert files(work / "reverted") == files(base) == before

    live, other = load(base, model), load(edited, model)
    stack = PatchStack.of(live)
    untouched, storages = stack.weights_digest(), [value.data_ptr() for value in live.parameters()]
    stack.apply(patch)
    assert {name: bits(value) for name, value in live.state_dict().items()} == {
        name: bits(value) for name, value in other.state_dict().items()
    }
    stack.remove(patch)
    assert stack.weights_digest() == untouched
    assert [value.data_ptr() for value in live.parameters()] == storages
    return patch


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_applied_and_reverted_byte_for_byte(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype)
    base = save(model, tmp_path / "base")
    edited = save(edited_in_every_way(model), tmp_path / "edited", max_shard_size="30KB")
    patch = check_round_trip(base, edited, tmp_path, model)
    kinds = {operation.type for operation in patch.operations}
    assert {"sparse_delta", "dense_delta", "replace"} <= kinds
    assert patch.method.name == "diff"
    assert len(patch.operations) == 8


def test_fine_tuned_by_kedit_and_saved_by_transformers(tmp_path: Path) -> None:
    from ft_tools import FRANCE, editor_on

    editor = editor_on("gpt2", dtype=torch.bfloat16)
    base = save(editor.model, tmp_path / "base")
    result = editor.edit(FRANCE)
    edited = save(editor.model, tmp_path / "edited")
    patch = check_round_trip(base, edited, tmp_path, editor.model)
    assert set(patch.places) == set(result.patch.places)


def test_lora_trained_and_merged_by_peft(tmp_path: Path) -> None:
    import peft

    model = tiny_model("llama", dtype=torch.bfloat16)
    base = save(model, tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=4)
    wrapped = peft.get_peft_model(load(base, model), config)
    generator = torch.Generator().manual_seed(3)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = (0.1 * torch.randn(value.shape, generator=generator)).to(value.dtype)
    edited = save(wrapped.merge_and_unload(), tmp_path / "edited")
    patch = check_round_trip(base, edited, tmp_path, model)
    assert {place.rpartition(".")[0].rpartition(".")[2] for place in patch.places} == {"q_proj", "down_proj"}
    low = diff_folders(base, edited, rank=2, tolerance=0.3)
    assert {each.operation for each in low.places} == {"low_rank_delta"}
    assert all(0 < each.error <= 0.3 and each.rank == 2 and not each.exact for each in low.places)


@pytest.mark.parametrize(("stored", "loaded"), [("float16", "float32"), ("float32", "bfloat16")])
def test_a_checkpoint_loaded_in_another_dtype_than_stored(stored: str, loaded: str, tmp_path: Path) -> None:
    """As factworld: float16 in the files, float32 when loaded. Both come out bit for bit."""
    model = tiny_model("llama", dtype=getattr(torch, stored))
    folders = [save(model, tmp_path / "base"), save(edited_in_every_way(model), tmp_path / "edited")]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": loaded}))
    assert load(folders[0], model).dtype == getattr(torch, loaded)
    check_round_trip(*folders, tmp_path, model)


# ---------------------------------------------------------------------- one weight

FLOATS = {
    torch.float32: st.floats(width=32, allow_nan=False, allow_infinity=False),
    torch.float16: st.floats(width=16, allow_nan=False, allow_infinity=False),
}


@st.composite
def edits(draw: st.DrawFn) -> tuple[Tensor, Tensor, bool]:
    """A weight, what became of it, and whether it is stored transposed: any values, the extremes too."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    shape = draw(st.sampled_from([(4, 3), (1, 5), (6,), (1,), (3, 2, 2), (2, 0)]))
    count = torch.Size(shape).numel()
    values = FLOATS.get(dtype, FLOATS[torch.float32])
    base = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.float64)
    chosen = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool)
    new = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.float64)
    limit = torch.finfo(dtype).max
    base, new = (each.clamp(-limit, limit).to(dtype).reshape(shape) for each in (base, new))
    return base, torch.where(chosen.reshape(shape), new, base), len(shape) == 2 and draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(edits())
def test_whatever_was_edited_comes_out_bit_for_bit(edit: tuple[Tensor, Tensor, bool]) -> None:
    base, edited, transposed = edit
    layout = "in_out" if transposed else "as_stored"
    operation = exact_operation("w", base, edited, layout)  # type: ignore[arg-type]
    assert bits(expected_weight(base, transposed, [operation])) == bits(edited)
    assert size_of(operation) <= edited.numel() * max(4, edited.element_size())
    wide = exact_operation("w", base, edited, layout, torch.float64)  # type: ignore[arg-type]
    for dtype in (base.dtype, torch.float64):
        assert bits(expected_weight(base.to(dtype), transposed, [wide])) == bits(edited.to(dtype))


def one_weight(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    base = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    return base, base.clone()


@pytest.mark.parametrize("transposed", [False, True], ids=["out_in", "in_out"])
def test_the_smallest_operation_is_taken(transposed: bool) -> None:
    layout: Any = "in_out" if transposed else "out_in"

    def operation(change: Callable[[Tensor], object], dtype: torch.dtype = torch.float32) -> Any:
        base, edited = one_weight(dtype)
        change(edited)
        found = exact_operation(
            "w", base.T.contiguous() if transposed else base, edited.T if transposed else edited, layout
        )
        assert bits(expected_weight(base.T if transposed else base, transposed, [found])) == bits(
            edited.T if transposed else edited
        )
        return found

    row = operation(lambda w: w[2].add_(0.25))
    assert (type(row), row.axis, row.indices.tolist()) == (SparseDelta, "row", [2])
    column = operation(lambda w: w[:, 5].mul_(2))
    assert (type(column), column.axis, column.indices.tolist()) == (SparseDelta, "column", [5])
    element = operation(lambda w: w[1].__setitem__(2, w[1, 2] * 2))
    assert (type(element), element.axis, element.indices.tolist()) == (SparseDelta, "element", [8])
    half = operation(lambda w: w.mul_(2), torch.bfloat16)
    assert (type(half), half.values.dtype) == (DenseDelta, torch.bfloat16)
    fine = operation(lambda w: w.copy_(-w.roll(1, 0)), torch.bfloat16)
    assert (type(fine), fine.values.dtype) == (DenseDelta, torch.float32)
    lost = operation(lambda w: w.view(-1)[0].fill_(1e-20))
    assert (type(lost), lost.values.dtype) == (Replace, torch.float32)
    sign = operation(lambda w: w[0].fill_(-0.0))
    assert type(sign) is Replace


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_low_rank_is_the_best_of_its_rank(layout: Any) -> None:
    """Held against a full SVD in float64."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(40, 30, generator=generator)
    delta = torch.randn(40, 30, generator=generator) @ torch.diag(0.6 ** torch.arange(30.0))
    edited = base + delta
    exact = (edited.double() - base.double()).T if layout == "in_out" else edited.double() - base.double()
    left, values, right = torch.linalg.svd(exact)
    for rank, tolerance in ((3, 0.0), (12, 0.1), (2, 0.99)):
        found = low_rank_operation("w", base, edited, layout, rank, tolerance)
        assert found is not None
        tail = [float(values[k:].norm() / values.norm()) for k in range(1, rank + 1)]
        wanted = next((k for k, error in enumerate(tail, 1) if error <= tolerance), rank)
        assert found.operation.rank == wanted
        assert found.error == pytest.approx(tail[wanted - 1], rel=1e-3)
        assert not found.exact
        best = left[:, :wanted] @ torch.diag(values[:wanted]) @ right[:wanted]
        assert found.operation.delta(tuple(exact.shape), torch.float64).sub(best).norm() < 1e-3 * values.norm()


def test_low_rank_is_the_smallest_also_where_rounding_counts() -> None:
    """The tail says 9, whose product rounded to bfloat16 misses more than the tail; then 10 is wanted, not the last."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(40, 30, generator=generator).bfloat16()
    change = torch.randn(40, 30, generator=generator) @ torch.diag(0.6 ** torch.arange(30.0))
    edited, tolerance = (base.float() + change).bfloat16(), 0.0096
    values = torch.linalg.svdvals(edited.double() - base.double())
    assert values[9:].norm() / values.norm() <= tolerance < values[8:].norm() / values.norm()
    errors = {}
    for rank in (9, 10, 24):
        found = low_rank_operation("w", base, edited, "out_in", rank, tolerance)
        assert found is not None
        errors[rank] = found.error
        assert found.operation.rank == min(rank, 10)
    assert errors[9] > tolerance >= errors[10] == errors[24]


def test_leading_singular_values_of_any_shape() -> None:
    for shape in ((3, 50), (50, 3), (1, 1), (60, 60)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        matrix[:, : shape[1] // 2] *= 10
        count = min(4, *shape)
        left, values, right = leading(matrix, count)
        assert values.shape == (count,)
        assert torch.allclose(values, torch.linalg.svdvals(matrix)[:count], rtol=0.02)
        assert torch.allclose(left.T @ left, torch.eye(count, dtype=torch.float64))
        assert torch.allclose(left.T @ matrix @ right, torch.diag(values), atol=1e-8)


# ---------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """BASE and EDITED, a llama with one matrix and one norm changed."""
    top = tmp_path_factory.mktemp("pair")
    model = tiny_model("llama")
    base = save(model, top / "base")
    model.get_parameter(DOWN).data += torch.randn(32, 1) @ torch.randn(1, 80)
    model.model.norm.weight.data[3] = 2
    return base, save(model, top / "edited")


@pytest.fixture
def copies(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be spoilt."""
    first, second = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair)
    return first, second


def test_what_the_patch_says(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    difference = diff_folders(base, edited, name="org/model", revision="abc", places=["*"])
    patch, live = difference.patch, load(base, tiny_model("llama"))
    assert patch.base == PatchStack.of(live).base_of([DOWN, "model.norm.weight"], name="org/model", revision="abc")
    assert patch.hparams == {"rank": None, "tolerance": None, "places": ["*"]}
    new = load(edited, live)
    assert patch.state.config == {
        "edited_sha256": {name: digests_of(new.get_parameter(name))["float32"] for name in patch.places}
    }
    assert (patch.parents, patch.requests, patch.seed) == ((), (), None)
    assert difference.to_dict()["places"][1] == {
        "place": "model.norm.weight",
        "operation": "sparse_delta",
        "axis": "element",
        "rank": None,
        "exact": True,
        "error": 0.0,
        "refused_error": None,
        "nbytes": 12,
    }


def test_how_files_are_cut_does_not_matter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = pair
    model = load(edited, tiny_model("llama"))
    cut = save(model, tmp_path / "cut", max_shard_size="20KB")
    assert len(list(cut.glob("*.safetensors"))) > 3
    assert diff_folders(base, cut).patch.id == diff_folders(base, edited).patch.id


def test_names_and_masks_of_old_checkpoints(tmp_path: Path) -> None:
    """As the GPT-2 on the Hub: names without ``transformer.``, and masks that no model reads any more."""
    model = tiny_model("gpt2")
    base = save(model, tmp_path / "base")
    edited = save(edited_in_every_way(model), tmp_path / "edited")
    plain = diff_folders(base, edited).patch

    def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = {f"h.{i}.attn.bias": torch.ones(4, 4, dtype=torch.uint8).tril() for i in range(2)}
        return {name.removeprefix("transformer."): value for name, value in tensors.items()} | masks

    rewrite(base, old)
    found = diff_folders(base, edited)
    assert found.patch.id == plain.id
    assert found.notes == (
        "2 stored tensors are not read by GPT2LMHeadModel, such as h.0.attn.bias; they were not compared",
    )
    apply_to_folder(base, found.patch, tmp_path / "out")
    assert diff_of(tmp_path / "out", edited) == "agree in every weight"


def diff_of(base: Path, edited: Path) -> str:
    with pytest.raises(KeditError) as caught:
        diff_folders(base, edited)
    return "agree in every weight" if "agree in every weight" in str(caught.value) else str(caught.value)


def test_a_rank_is_taken_where_it_is_close_and_told_where_not(pair: tuple[Path, Path]) -> None:
    low = diff_folders(*pair, rank=4)
    matrix, norm = low.places
    assert (matrix.operation, matrix.rank, norm.operation) == ("low_rank_delta", 1, "sparse_delta")
    assert 0 <= matrix.error <= 1e-3
    assert low.patch.hparams["rank"] == 4
    strict = diff_folders(*pair, rank=4, tolerance=0.0)
    assert strict.places[0].operation in ("dense_delta", "replace")
    assert strict.places[0].refused_error is not None
    assert 0 < strict.places[0].refused_error < 1e-3
    assert strict.exact


def test_only_some_places(pair: tuple[Path, Path]) -> None:
    found = diff_folders(*pair, places=["*.norm.*"])
    assert found.patch.places == ("model.norm.weight",)
    assert found.left_out == (DOWN,)
    assert "1 more parameters differ" in found.notes[0]
    with pytest.raises(InputError, match=r"called like '\*.nonsense'"):
        diff_folders(*pair, places=["*", "*.nonsense"])
    with pytest.raises(KeditError, match="agree at the places that were asked for"):
        diff_folders(*pair, places=["*.q_proj.*"])


def test_nothing_differs(pair: tuple[Path, Path]) -> None:
    with pytest.raises(KeditError, match="agree in every weight") as caught:
        diff_folders(pair[0], pair[0])
    assert caught.value.exit_code == 1


def test_of_an_edited_base_as_it_is_or_the_originals(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = pair
    patch = diff_folders(base, edited).patch
    apply_to_folder(base, patch, tmp_path / "out")
    with pytest.raises(KeditError, match="agree"):
        diff_folders(tmp_path / "out", edited)
    assert diff_folders(tmp_path / "out", tmp_path / "out", originals=True).patch.id == patch.id
    taken_off = diff_folders(tmp_path / "out", base)
    back = taken_off.patch
    assert any("has patches of kedit on it" in note and "a copy without .kedit" in note for note in taken_off.notes)
    shutil.copytree(tmp_path / "out", tmp_path / "copy", ignore=shutil.ignore_patterns(".kedit"))
    apply_to_folder(tmp_path / "copy", back, tmp_path / "applied")
    assert state(tmp_path / "applied") == state(base)
    assert back.base.tensors[DOWN].sha256 == digests_of(load(edited, tiny_model("llama")).get_parameter(DOWN))
    with pytest.raises(InputError, match="was not edited by kedit"):
        diff_folders(base, edited, originals=True)


def test_what_a_patch_cannot_hold_is_told(copies: tuple[Path, Path]) -> None:
    base, edited = copies
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5, "transformers_version": "0"}))
    (base / "tokenizer_config.json").write_text('{"a": 1, "b": [2]}')
    (edited / "tokenizer_config.json").write_text('{"b": [3], "a": 1}')
    (base / "same.json").write_text('{"a": 1, "b": 2}')
    (edited / "same.json").write_text('{"b": 2, "a": 1}')
    (base / "merges.txt").write_text("a")
    (edited / "merges.txt").write_text("b")
    (edited / "chat_template.jinja").write_text("x")
    (edited / "README.md").write_text("for people")
    for folder in copies:
        rewrite(folder, lambda tensors: {**tensors, "score.weight": torch.ones(2)})
    notes = diff_folders(base, edited).notes
    assert [note.partition(";")[0] for note in notes] == [
        "config.json differs in rms_norm_eps",
        "chat_template.jinja is in EDITED only",
        "merges.txt differs",
        "tokenizer_config.json differs in b",
        "1 stored tensors are not read by LlamaForCausalLM, such as score.weight",
    ]


# ---------------------------------------------------------------------- refusals


def spoil_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_what_no_patch_can_say_is_refused(copies: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = copies

    def refused(match: str, spoil: Callable[[Path], object], error: type[KeditError] = BaseMismatchError) -> None:
        folder = Path(shutil.copytree(edited, tmp_path / "spoilt"))
        spoil(folder)
        with pytest.raises(error, match=match):
            diff_folders(base, folder)
        shutil.rmtree(folder)

    def cast(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN].half()

    refused("stored as F16, and as F32 in BASE.*load both in one dtype", lambda folder: rewrite(folder, cast))

    def eighth(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN].to(torch.float8_e4m3fn)

    refused("stored as F8_E4M3", lambda folder: rewrite(folder, eighth))
    refused(
        "do not hold it",
        lambda folder: rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if k != DOWN}),
    )

    def poison(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN][0, 0] = float("nan")

    refused("NaN or infinity", lambda folder: rewrite(folder, poison), InputError)
    refused("MistralForCausalLM", lambda folder: save(tiny_model("mistral"), folder))

    def another_size(folder: Path) -> None:
        def grow(tensors: dict[str, Tensor]) -> None:
            for name in ("lm_head.weight", "model.embed_tokens.weight"):
                if name in tensors:
                    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

        rewrite(folder, grow)
        spoil_config(folder, vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"] + 1)

    refused("resize the base", another_size)
    refused("no such parameter", lambda folder: spoil_config(folder, num_hidden_layers=2))
    refused("pickled", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), InputError)
    with pytest.raises(InputError, match="rank of at least 1"):
        diff_folders(base, edited, rank=0)
    with pytest.raises(InputError, match="tolerance"):
        diff_folders(base, edited, rank=1, tolerance=1.0)


def test_ties(tmp_path: Path) -> None:
    """Untied in EDITED: refused. Tied there, or stored twice, and two parameters or one in BASE: as BASE has it."""
    model = tiny_model("gpt2")
    base = save(model, tmp_path / "base")
    place = "transformer.wte.weight"
    model.transformer.wte.weight.data[5] += 1
    edited = save(model, tmp_path / "edited")
    once = diff_folders(base, edited).patch
    assert once.base.tensors[place].aliases == ("lm_head.weight",)

    rewrite(edited, lambda tensors: {**tensors, "lm_head.weight": tensors[place].clone()})
    assert diff_folders(base, edited).patch.id == once.id
    rewrite(edited, lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1})
    with pytest.raises(BaseMismatchError, match=r"two in EDITED.*untie the base"):
        diff_folders(base, edited)

    rewrite(base, lambda tensors: {**tensors, "lm_head.weight": tensors[place] + 2})
    apart = check_round_trip(base, edited, tmp_path, model)
    assert apart.places == (place, "lm_head.weight")


def test_experts_that_transformers_joins(tmp_path: Path) -> None:
    """Unchanged they are in nobody's way; changed they cannot be named."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    model = MixtralForCausalLM(config)
    base = save(model, tmp_path / "base")
    model.model.norm.weight.data[0] = 3
    edited = save(model, tmp_path / "edited")
    check_round_trip(base, edited, tmp_path, model)
    model.model.layers[0].mlp.experts.down_proj.data[0, 0, 0] = 3
    with pytest.raises(BaseMismatchError, match=r"experts.down_proj.*in a form that no patch can name"):
        diff_folders(base, save(model, tmp_path / "experts"))
    assert diff_folders(base, tmp_path / "experts", places=["*.norm.*"]).patch.places == ("model.norm.weight",)


def test_buffers(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "first_k_dense_replace": 0,
    }
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
    }
    config = DeepseekV3Config(**sizes, **heads, **experts, kv_lora_rank=8, q_lora_rank=8)
    model = DeepseekV3ForCausalLM(config)
    base = save(model, tmp_path / "base")
    model.model.norm.weight.data[0] = 3
    edited = save(model, tmp_path / "edited")
    assert diff_folders(base, edited).patch.places == ("model.norm.weight",)
    model.model.layers[0].mlp.gate.e_score_correction_bias.data += 1
    with pytest.raises(BaseMismatchError, match="a buffer"):
        diff_folders(base, save(model, tmp_path / "buffer"))


def test_nothing_is_written(pair: tuple[Path, Path]) -> None:
    before = [files(folder) for folder in pair]
    diff_folders(*pair, rank=2)
    assert [files(folder) for folder in pair] == before


def test_matrices_of_the_kit_cover_what_they_say() -> None:
    """The edits of the round trips really are of these kinds."""
    model = tiny_model("gpt2")
    changed = [
        (old != new).sum().item()
        for (_, old), (_, new) in zip(matrices(model), matrices(edited_in_every_way(model)), strict=True)
    ]
    assert changed[0] == 32
    assert changed[2] == 2
    assert all(changed[:7])
