"""Patches on model folders: what is written, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit_core.errors import (
    BaseMismatchError,
    InputError,
    KeditError,
    RequirementError,
    StackDisturbedError,
    StackOrderError,
)
from kedit_core.folders import FolderBase, apply_to_folder, revert_folder
from kedit_core.folders import _replacing as replacing
from kedit_core.folders._record import FOLDER
from kedit_core.folders._shards import Shard
from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    MethodRef,
    ModuleOperation,
    Replace,
    Requirement,
    RouterOperation,
    SparseDelta,
    digests_of,
)
from kedit_core.testing.tiny import tiny_model

pytestmark = pytest.mark.slow

GPT2_DOWN = "transformer.h.1.mlp.c_proj.weight"
GPT2_UP = "transformer.h.0.mlp.c_fc.weight"
LLAMA_DOWN = "model.layers.1.mlp.down_proj.weight"
LLAMA_UP = "model.layers.0.mlp.up_proj.weight"
LAYOUTS = {"gpt2": "in_out", "llama": "out_in", "t5": "out_in", "qwen2": "out_in", "opt": "out_in"}


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    (folder / "README.md").write_text("a card\n")
    (folder / "extra").mkdir()
    (folder / "extra" / "note.bin").write_bytes(b"\x00\x01")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load(folder: Path, like: Any) -> Any:
    return type(like).from_pretrained(folder, dtype="auto")


def base_tensor(model: Any, place: str, layout: str) -> BaseTensor:
    parameter = model.get_parameter(place)
    aliases = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    return BaseTensor(
        shape=tuple(parameter.shape),
        layout=layout,  # type: ignore[arg-type]
        aliases=tuple(name for name in aliases if name != place),
        sha256=digests_of(parameter),
    )


def patch_for(
    model: Any,
    layouts: Mapping[str, str],
    operations: Callable[[Mapping[str, tuple[int, int]]], list[Any]],
    **more: Any,
) -> EditPatch:
    """``layouts``: place -> layout; ``operations`` gets the shapes in [out, in] terms."""
    tensors = {place: base_tensor(model, place, layout) for place, layout in layouts.items()}
    shapes: Any = {
        place: tensor.shape[::-1] if tensor.layout == "in_out" else tensor.shape for place, tensor in tensors.items()
    }
    return EditPatch(
        method=MethodRef(name="by_hand", distribution="kedit-tests", version="0"),
        seed=0,
        base=Base(architecture=type(model).__name__, tensors=tensors),
        operations=tuple(operations(shapes)),
        **more,
    )


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rank_one(model: Any, place: str, layout: str, seed: int = 0, **more: Any) -> EditPatch:
    def operations(shapes: Mapping[str, tuple[int, int]]) -> list[Any]:
        out, inner = shapes[place]
        return [LowRankDelta(place, random((out, 1), seed), random((1, inner), seed + 1))]

    return patch_for(model, {place: layout}, operations, **more)


def expected(model: Any, *patches: EditPatch) -> dict[str, Tensor]:
    """The formula, written out again: cast(base in float32 + (((0 + d1) + d2) + ...))."""
    sums: dict[str, Tensor] = {}
    for patch in patches:
        for operation in patch.operations:
            known = patch.base.tensors[operation.place]
            shape = known.shape[::-1] if known.layout == "in_out" else known.shape
            delta = operation.delta(shape, torch.float32)
            delta = delta.t() if known.layout == "in_out" else delta
            sums[operation.place] = sums.get(operation.place, torch.zeros(known.shape)) + delta
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for place, total in sums.items():
        edited = (weights[place].float() + total).to(weights[place].dtype)
        known = next(patch.base.tensors[place] for patch in patches if place in patch.base.tensors)
        for name in (place, *known.aliases):
            weights[name] = edited
    return weights


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


@pytest.fixture
def gpt2(tmp_path: Path) -> tuple[Any, Path]:
    model = tiny_model("gpt2")
    return model, save(model, tmp_path / "base")


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Any, Path]:
    model = tiny_model("llama")
    return model, save(model, tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shards", [None, "12KB"], ids=["single", "sharded"])
@pytest.mark.parametrize(
    ("family", "place"),
    [
        ("gpt2", GPT2_DOWN),
        ("gpt2", "transformer.wte.weight"),
        ("llama", LLAMA_DOWN),
        ("opt", "model.decoder.layers.1.fc2.weight"),
        ("t5", "encoder.block.1.layer.1.DenseReluDense.wo.weight"),
        ("qwen2", "model.embed_tokens.weight"),
    ],
)
def test_apply_gives_the_formula_and_revert_the_same_files(
    family: str, place: str, shards: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    if family == "t5" and dtype == torch.float16:
        pytest.skip("transformers loads this parameter in float32")
    model = tiny_model(family, dtype=dtype)
    base = save(model, tmp_path / "base", **({"max_shard_size": shards} if shards else {}))
    assert (base / "model.safetensors.index.json").exists() == (shards is not None)
    before = files(base)
    layout = "out_in" if place.endswith(("wte.weight", "embed_tokens.weight")) else LAYOUTS[family]
    patch = rank_one(model, place, layout)

    change = apply_to_folder(base, patch, tmp_path / "out")

    assert files(base) == before
    assert change.patches == (patch.id,)
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))
    kept = files(tmp_path / "out")
    assert {name for name in kept if not name.startswith(FOLDER)} == set(before)
    assert {name for name in before if kept[name] != before[name]} == {
        name for name in before if "safetensors" in name
    } & {FolderBase.open(base).checkpoint.file_of[key] for key in change.tensors}
    assert hashlib.sha256(kept[f"{FOLDER}/patches/{patch.id}.safetensors"]).hexdigest() == patch.id

    revert_folder(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == before


def test_all_weight_operations_together(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = gpt2

    def operations(shapes: Mapping[str, tuple[int, int]]) -> list[Any]:
        out, inner = shapes[GPT2_DOWN]
        return [
            LowRankDelta(GPT2_DOWN, random((out, 2), 0), random((2, inner), 1)),
            DenseDelta(GPT2_DOWN, random((out, inner), 2)),
            SparseDelta(GPT2_DOWN, "row", torch.tensor([0, 3]), random((2, inner), 3)),
            SparseDelta(GPT2_UP, "element", torch.tensor([5, 9]), random((2,), 4)),
        ]

    patch = patch_for(model, {GPT2_DOWN: "in_out", GPT2_UP: "in_out"}, operations)
    apply_to_folder(base, patch, tmp_path / "out")
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))


def test_replace_stands_below_deltas(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    values = random(tuple(model.get_parameter(LLAMA_DOWN).shape), 7)
    delta = rank_one(model, LLAMA_DOWN, "out_in")
    swap = patch_for(model, {LLAMA_DOWN: "out_in"}, lambda _: [Replace(LLAMA_DOWN, values)])
    apply_to_folder(base, delta, tmp_path / "one")
    apply_to_folder(tmp_path / "one", swap, tmp_path / "two")
    wanted = values + (torch.zeros_like(values) + delta.operations[0].delta(tuple(values.shape), torch.float32))
    assert torch.equal(load(tmp_path / "two", model).get_parameter(LLAMA_DOWN), wanted)


def rename(folder: Path, new: Callable[[str], str], extra: Mapping[str, Tensor] | None = None) -> None:
    tensors = {new(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, **(extra or {})}, folder / "model.safetensors", metadata={"format": "pt"})


def test_headless_checkpoint(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    """As the GPT-2 on the Hub: names without ``transformer.``."""
    model, base = gpt2
    rename(base, lambda name: name.removeprefix("transformer."))
    before = files(base)
    patch = rank_one(model, GPT2_DOWN, "in_out")
    change = apply_to_folder(base, patch, tmp_path / "out")
    assert change.tensors == ("h.1.mlp.c_proj.weight",)
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))
    revert_folder(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == before


def test_tied_weight_stored_twice(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = gpt2
    rename(base, str, {"lm_head.weight": model.transformer.wte.weight.detach().clone()})
    before = files(base)
    patch = rank_one(model, "transformer.wte.weight", "out_in")
    change = apply_to_folder(base, patch, tmp_path / "out")
    assert change.tensors == ("lm_head.weight", "transformer.wte.weight")
    edited = load(tmp_path / "out", model)
    assert edited.lm_head.weight is edited.transformer.wte.weight
    same(edited.state_dict(), expected(model, patch))
    revert_folder(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == before


def test_tied_weight_stored_under_the_other_name(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = gpt2
    rename(base, lambda name: "lm_head.weight" if name == "transformer.wte.weight" else name)
    patch = rank_one(model, "transformer.wte.weight", "out_in")
    assert apply_to_folder(base, patch, tmp_path / "out").tensors == ("lm_head.weight",)
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))


def test_copies_that_differ_are_not_tied(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = gpt2
    rename(base, str, {"lm_head.weight": model.transformer.wte.weight.detach() + 1})
    tied = rank_one(model, "transformer.wte.weight", "out_in")
    with pytest.raises(BaseMismatchError, match="tied to"):
        apply_to_folder(base, tied, tmp_path / "out")
    patch = rank_one(load(base, model), "transformer.wte.weight", "out_in")
    assert apply_to_folder(base, patch, tmp_path / "out").tensors == ("transformer.wte.weight",)


@pytest.fixture
def three(llama: tuple[Any, Path]) -> tuple[Any, Path, list[EditPatch]]:
    model, base = llama
    places = (LLAMA_DOWN, LLAMA_UP, LLAMA_DOWN)
    return model, base, [rank_one(model, place, "out_in", seed=10 * i) for i, place in enumerate(places)]


def test_append_and_revert_the_middle_one(three: tuple[Any, Path, list[EditPatch]], tmp_path: Path) -> None:
    model, base, patches = three
    before = files(base)
    out = tmp_path / "out"
    apply_to_folder(base, patches[0], out)
    apply_to_folder(out, patches[1], out)
    change = apply_to_folder(out, patches[2], out)
    assert change.patches == tuple(patch.id for patch in patches)
    same(load(out, model).state_dict(), expected(model, *patches))

    revert_folder(out, tmp_path / "without", patches[1].id[:10])
    same(load(tmp_path / "without", model).state_dict(), expected(model, patches[0], patches[2]))
    fresh = tmp_path / "fresh"
    apply_to_folder(base, patches[0], fresh)
    apply_to_folder(fresh, patches[2], fresh)
    assert files(fresh) == files(tmp_path / "without")

    revert_folder(out, out)
    assert files(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out", "without", "fresh"}


def test_reverting_one_by_one_ends_at_the_original(three: tuple[Any, Path, list[EditPatch]], tmp_path: Path) -> None:
    _, base, patches = three
    out = tmp_path / "out"
    apply_to_folder(base, patches[0], out)
    for patch in patches[1:]:
        apply_to_folder(out, patch, out)
    for i in (1, 0, 2):
        revert_folder(out, out, patches[i].id)
    assert files(out) == files(base)


def test_parents(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    first = rank_one(model, LLAMA_DOWN, "out_in")
    second = rank_one(model, LLAMA_DOWN, "out_in", seed=5, parents=(first.id,))
    with pytest.raises(StackOrderError, match=first.id[:12]):
        apply_to_folder(base, second, tmp_path / "out")
    apply_to_folder(base, first, tmp_path / "out")
    with pytest.raises(StackOrderError, match="already"):
        apply_to_folder(tmp_path / "out", first, tmp_path / "twice")
    apply_to_folder(tmp_path / "out", second, tmp_path / "out")
    assert revert_folder(tmp_path / "out", tmp_path / "orphan", first.id).orphans == (second.id,)
    with pytest.raises(StackOrderError, match="no patch"):
        revert_folder(tmp_path / "out", tmp_path / "back", "0" * 64)


def test_wrong_base_is_refused_and_force_is_the_callers(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    other = tiny_model("llama", seed=1)
    patch = rank_one(other, LLAMA_DOWN, "out_in")
    with pytest.raises(BaseMismatchError, match=LLAMA_DOWN):
        apply_to_folder(base, patch, tmp_path / "out")
    with pytest.raises(BaseMismatchError, match="GPT2LMHeadModel"):
        apply_to_folder(base, rank_one(tiny_model("gpt2"), GPT2_DOWN, "in_out"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    apply_to_folder(base, patch, tmp_path / "out", force=True)
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))
    assert json.loads((tmp_path / "out" / FOLDER / "stack.json").read_text())["patches"][0]["forced"] is True


@pytest.mark.parametrize(
    "operation",
    [ModuleOperation(places=("model.layers.1.mlp",), kind="test.echo"), RouterOperation(kind="test.route")],
    ids=["module", "router"],
)
def test_what_runs_beside_the_weights_is_refused(operation: Any, llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    patch = patch_for(model, {}, lambda _: [operation])
    with pytest.raises(InputError, match=f"{operation.type} {operation.kind}"):
        apply_to_folder(base, patch, tmp_path / "out")


def test_folders_that_cannot_be_edited(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    patch = rank_one(model, LLAMA_DOWN, "out_in")

    def refused(match: str, spoil: Callable[[Path], object]) -> None:
        folder = Path(shutil.copytree(base, tmp_path / "spoilt"))
        spoil(folder)
        with pytest.raises(InputError, match=match):
            apply_to_folder(folder, patch, tmp_path / "out")
        shutil.rmtree(folder)

    def with_config(**more: Any) -> Callable[[Path], object]:
        def spoil(folder: Path) -> None:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, **more}))

        return spoil

    refused("config.json", lambda folder: (folder / "config.json").unlink())
    refused("quantis", with_config(quantization_config={"quant_method": "bitsandbytes"}))
    refused("directly in the folder", with_config(transformers_weights="../model.safetensors"))
    refused("merge the adapter", lambda folder: (folder / "adapter_config.json").write_text("{}"))
    refused("save_pretrained", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"))
    refused("no weights", lambda folder: (folder / "model.safetensors").unlink())
    refused("not a readable", lambda folder: os.truncate(folder / "model.safetensors", 2000))
    refused("circle", lambda folder: (folder / "loop").symlink_to(folder))
    integers = {name: tensor.to(torch.int8) for name, tensor in model.state_dict().items()}
    refused("I8", lambda folder: save_file(integers, folder / "model.safetensors"))
    assert not (tmp_path / "out").exists()


def test_where_out_may_be(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    first, second = (rank_one(model, LLAMA_DOWN, "out_in", seed=seed) for seed in (0, 5))
    before = files(base)
    for out, match in (
        (base, "base folder"),
        (base / "inside", "within"),
        (tmp_path, "within"),
        (tmp_path / "no" / "where", "does not exist"),
    ):
        with pytest.raises(InputError, match=match):
            apply_to_folder(base, first, out)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(InputError, match="not a folder that kedit wrote"):
        apply_to_folder(base, first, tmp_path / "precious", overwrite=True)
    apply_to_folder(base, first, tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        apply_to_folder(base, second, tmp_path / "out")
    apply_to_folder(base, second, tmp_path / "out", overwrite=True)
    same(load(tmp_path / "out", model).state_dict(), expected(model, second))
    with pytest.raises(InputError, match="nothing to revert"):
        revert_folder(base, tmp_path / "back")
    (tmp_path / "empty").mkdir()
    apply_to_folder(base, first, tmp_path / "empty")
    assert files(base) == before


def test_links_are_copied_as_files(llama: tuple[Any, Path], tmp_path: Path) -> None:
    """As in the Hugging Face cache, where a snapshot is made of links."""
    model, base = llama
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in base.iterdir():
        (snapshot / path.name).symlink_to(path)
    apply_to_folder(snapshot, rank_one(model, LLAMA_DOWN, "out_in"), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / "extra" / "note.bin").read_bytes() == b"\x00\x01"


def test_no_room(llama: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = llama
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(replacing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KeditError, match="make room"):
        apply_to_folder(base, rank_one(model, LLAMA_DOWN, "out_in"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def _breaking(real: Callable[..., Any], after: int, error: BaseException) -> Callable[..., Any]:
    calls = 0

    def broken(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return real(*args, **options)

    return broken


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
@pytest.mark.parametrize(
    ("what", "after"),
    [("rename", 0), ("rename", 1), ("fsync", 0), ("fsync", 1), ("fsync", 4), ("fsync", 6), ("copy", 0), ("mkdir", 1)],
)
def test_an_interruption_leaves_everything_as_it_was(
    what: str,
    after: int,
    error: BaseException,
    three: tuple[Any, Path, list[EditPatch]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, base, patches = three
    out = tmp_path / "out"
    apply_to_folder(base, patches[0], out)
    there = {folder: files(folder) for folder in (base, out)}
    for appending in (True, False):
        with monkeypatch.context() as broken:
            owner: Any = {"rename": Path, "fsync": os, "copy": Shard, "mkdir": Path}[what]
            limit = min(after, 0) if what == "rename" and not appending else after
            broken.setattr(
                owner, what, _once(_breaking(getattr(owner, what), limit, error), getattr(owner, what), error)
            )
            with pytest.raises(type(error)):
                apply_to_folder(out if appending else base, patches[1], out if appending else tmp_path / "new")
        assert {folder: files(folder) for folder in (base, out)} == there
        assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


def _once(broken: Callable[..., Any], real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Fails one time only, as a disk that is full or a key that is pressed does while things are put back."""
    done = False

    def call(*args: Any, **options: Any) -> Any:
        nonlocal done
        if done:
            return real(*args, **options)
        try:
            return broken(*args, **options)
        except type(error):
            done = True
            raise

    return call


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["stack.json", "undo.safetensors", "patch", "weights", "missing", "swapped"])
def test_tampering_is_refused(what: str, three: tuple[Any, Path, list[EditPatch]], tmp_path: Path) -> None:
    _, base, patches = three
    out = tmp_path / "out"
    apply_to_folder(base, patches[0], out)
    apply_to_folder(out, patches[1], out)
    kept = out / FOLDER
    if what in ("stack.json", "undo.safetensors"):
        _spoil(kept / what)
    elif what == "patch":
        _spoil(kept / "patches" / f"{patches[0].id}.safetensors")
    elif what == "missing":
        (kept / "undo.safetensors").unlink()
    elif what == "swapped":
        record = json.loads((kept / "stack.json").read_text())
        record["patches"].reverse()
        (kept / "stack.json").write_text(json.dumps(record, sort_keys=True, separators=(",", ":")))
    else:
        tensors = load_file(out / "model.safetensors")
        tensors[LLAMA_DOWN] += 1
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    before = files(out)
    for attempt in (
        lambda: revert_folder(out, tmp_path / "back"),
        lambda: revert_folder(out, out, patches[0].id),
        lambda: apply_to_folder(out, patches[2], out),
    ):
        with pytest.raises(StackDisturbedError, match="not as kedit left it"):
            attempt()
    assert files(out) == before
    assert not (tmp_path / "back").exists()


def test_folder_base_reads_the_original(three: tuple[Any, Path, list[EditPatch]], tmp_path: Path) -> None:
    model, base, patches = three
    apply_to_folder(base, patches[0], tmp_path / "out")
    edited = FolderBase.open(tmp_path / "out")
    assert edited.names.architecture == "LlamaForCausalLM"
    assert edited.patches[0].id == patches[0].id
    assert torch.equal(edited.tensor(LLAMA_DOWN), model.get_parameter(LLAMA_DOWN))
    assert edited.digest(LLAMA_DOWN) == digests_of(model.get_parameter(LLAMA_DOWN))["float32"]
    assert [check.problem for check in edited.compare(patches[0].base)] == [None]
    other = rank_one(tiny_model("llama", seed=3), LLAMA_DOWN, "out_in")
    (check,) = edited.compare(other.base)
    assert check.problem is not None and "digest" in check.problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("family", "place"), [("gpt2", GPT2_DOWN), ("llama", LLAMA_DOWN), ("gpt2", "transformer.wte.weight")]
)
def test_a_live_model_gets_the_same_bits(family: str, place: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from kedit_core.patches import PatchStack

    model = tiny_model(family, dtype=dtype)
    base = save(model, tmp_path / "base")
    live = load(base, model)
    stack = PatchStack.of(live)
    for seed in (0, 5):
        out, inner = live.get_parameter(place).shape[:: -1 if "c_proj" in place else 1]
        operations = (
            LowRankDelta(place, random((out, 3), seed), random((3, inner), seed + 1)),
            LowRankDelta(place, random((out, 1), seed + 2), random((1, inner), seed + 3)),
        )
        patch = EditPatch(
            method=MethodRef(name="by_hand", distribution="kedit-tests", version="0"),
            base=stack.base_of(operations),
            parents=tuple(entry.patch.id for entry in stack.patches if entry.patch),
            operations=operations,
        )
        stack.apply(patch, way="merged")
        apply_to_folder(base if seed == 0 else tmp_path / "out", patch, tmp_path / "out")
    same(load(tmp_path / "out", model).state_dict(), live.state_dict())


def test_requirements_are_asked_for(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    patch = rank_one(model, LLAMA_DOWN, "out_in", requires=(Requirement(role="editor"),))
    with pytest.raises(RequirementError, match="--with editor=PATH"):
        apply_to_folder(base, patch, tmp_path / "out")
    apply_to_folder(base, patch, tmp_path / "out", resources={"editor": base / "config.json"})


def test_force_lets_another_model_class_pass_but_no_other_shape(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, base = llama
    patch = rank_one(tiny_model("mistral"), LLAMA_DOWN, "out_in")
    apply_to_folder(base, patch, tmp_path / "out", force=True)
    same(load(tmp_path / "out", model).state_dict(), expected(model, patch))
    wide = rank_one(tiny_model("llama", intermediate_size=64), LLAMA_DOWN, "out_in")
    with pytest.raises(BaseMismatchError, match="shape"):
        apply_to_folder(base, wide, tmp_path / "wide", force=True)


def test_progress_counts_the_bytes(llama: tuple[Any, Path], tmp_path: Path) -> None:
    from contextlib import contextmanager

    model, base = llama
    seen: list[float] = []

    class Step:
        def advance(self, amount: float = 1) -> None:
            seen.append(amount)

        def describe(self, text: str) -> None:
            raise AssertionError

    @contextmanager
    def progress(description: str, total: float | None = None) -> Any:
        yield Step()
        assert sum(seen) == total

    apply_to_folder(base, rank_one(model, LLAMA_DOWN, "out_in"), tmp_path / "out", progress=progress)
    assert seen


def test_a_folder_loaded_in_another_dtype_than_stored_is_said(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = llama
    patch = rank_one(model, LLAMA_DOWN, "out_in")
    assert apply_to_folder(folder, patch, tmp_path / "same").rounded_to is None
    config = json.loads((folder / "config.json").read_text())
    other = "bfloat16" if config["dtype"] == "float32" else "float32"
    (folder / "config.json").write_text(json.dumps({**config, "dtype": other}))
    assert apply_to_folder(folder, patch, tmp_path / "other", force=True).rounded_to == config["dtype"]


def test_a_pipe_where_the_settings_should_be_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="not an ordinary file"):
        FolderBase.open(tmp_path)
