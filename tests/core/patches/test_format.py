"""The patch file: its bytes, its manifest, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from core.patches.patch_kit import FACT, METHOD, bits, loose_patch, near_key, random_operation, whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load

from kedit_core.contract import OPERATION_TYPES
from kedit_core.errors import InputError, KeditError, PatchFormatError
from kedit_core.patches import (
    Base,
    BaseTensor,
    EditPatch,
    LowRankDelta,
    ModuleOperation,
    PrivateRequests,
    Requirement,
    SparseDelta,
    State,
    canonical,
    container,
    digests_of,
    inspect,
)
from kedit_core.patches.manifest import REQUEST_FIELDS
from kedit_core.patches.operations import AXES
from kedit_core.patches.reading import FIELDS
from kedit_core.requests import EditRequest

SHAPES = {"a.weight": (6, 10), "b.weight": (4, 4)}


def everything(**more: Any) -> EditPatch:
    """A patch with every operation, state, requirements and requests."""
    kinds = ("low_rank_delta", "dense_delta", "sparse_delta", "replace")
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    operations = [
        random_operation("a.weight", (6, 10), "out_in", kind, seed, dtype)
        for seed, (kind, dtype) in enumerate(zip(kinds, dtypes, strict=True))
    ]
    extra = [near_key(["a", "b"], 3), whisper('Höre: "\\\n\t\x01\x7f\u2028😀 ')]
    settings: dict[str, Any] = {
        "hparams": {
            "lr": 5e-4,
            "tiny": 1e-7,
            "big": 1e22,
            "steps": 25,
            "on": True,
            "none": None,
            "z": [-0.0, [1, "x"]],
        },
        "seed": 2**63,
        "requires": [Requirement(role="editor", name="org/editor", revision="abc", sha256="0" * 64)],
        "parents": ["1" * 64, "2" * 64],
        "state": State({"templates": ["{}"]}, {"keys": torch.arange(5), "mask": torch.tensor([True, False])}),
        "requests": [FACT],
    } | more
    return loose_patch([*operations, *extra], SHAPES, **settings)


def test_bytes_are_deterministic_and_the_id_is_their_hash(tmp_path: Path) -> None:
    patch = everything()
    data = patch.to_bytes()
    assert data == everything().to_bytes() == patch.to_bytes()
    assert patch.id == hashlib.sha256(data).hexdigest() and patch.size == len(data)
    again = EditPatch.from_bytes(data)
    assert again.id == patch.id and again.to_bytes() == data and again.manifest() == patch.manifest()
    path = tmp_path / "fact.safetensors"
    assert patch.save(path) == patch.id and path.read_bytes() == data
    loaded = EditPatch.load(path)
    assert loaded.id == patch.id and [op.type for op in loaded.operations] == [op.type for op in patch.operations]
    assert loaded.summary() == patch.summary() and "low_rank_delta" in patch.summary()
    assert [file.name for file in tmp_path.iterdir()] == ["fact.safetensors"]


def test_any_safetensors_reader_opens_it() -> None:
    patch = everything()
    tensors = safetensors_load(patch.to_bytes())
    for i, operation in enumerate(patch.operations):
        for role, tensor in operation.tensors.items():
            assert bits(tensors[f"{i}.{role}"]) == bits(tensor)
    assert torch.equal(tensors["state.keys"], torch.arange(5))


def test_a_reader_of_thirty_lines() -> None:
    """Written from docs/patch-format.md with json and struct alone; applies a low-rank delta as the formula says."""
    left, right = torch.randn(6, 2), torch.randn(2, 10)
    patch = loose_patch([LowRankDelta("a.weight", left, right)], SHAPES, requests=[FACT])
    data = patch.to_bytes()

    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header.pop("__metadata__")["kedit"])
    assert manifest["format"] == 1 and length % 8 == 0

    def tensor(name: str) -> Any:
        entry = header[name]
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        count = (end - begin) // 4
        assert entry["dtype"] == "F32"
        return np.array(struct.unpack(f"<{count}f", data[begin:end]), dtype=np.float32).reshape(entry["shape"])

    (operation,) = manifest["operations"]
    described = manifest["base"]["tensors"][operation["place"]]
    assert described["layout"] == "out_in" and described["shape"] == [6, 10]
    base = np.ones((6, 10), dtype=np.float32)
    weight = base + tensor(operation["tensors"]["left"]) @ tensor(operation["tensors"]["right"])
    np.testing.assert_allclose(weight, 1 + (left @ right).numpy(), rtol=1e-5, atol=1e-6)
    assert manifest["requests"][0]["target_new"] == "Strelsau"
    canon = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canon == json.loads(data[8 : 8 + length])["__metadata__"]["kedit"]


def test_tensors_are_cloned_and_later_changes_are_noticed(tmp_path: Path) -> None:
    left = torch.ones(6, 1)
    patch = loose_patch([LowRankDelta("a.weight", left, torch.ones(1, 10))], SHAPES)
    first = patch.id
    left.zero_()
    assert patch.to_bytes() == patch.to_bytes() and patch.id == first
    patch.operations[0].tensors["left"].zero_()
    with pytest.raises(PatchFormatError, match="changed after it was built"):
        patch.save(tmp_path / "p")
    patch.operations[0].tensors["left"].fill_(float("nan"))
    with pytest.raises(PatchFormatError, match="NaN"):
        patch.to_bytes()
    assert not list(tmp_path.iterdir())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        patch.seed = 3  # type: ignore[misc]


def test_requests_may_be_kept_private() -> None:
    request = EditRequest(prompt="p", target_new="t", subject="s", subject_span=(0, 1), case_id="1")
    open_patch = loose_patch([], {}, requests=[request.fact])
    assert open_patch.requests[0]["subject_span"] == [0, 1]  # type: ignore[index]
    private = EditPatch.from_bytes(loose_patch([], {}, requests=PrivateRequests.of([request.fact])).to_bytes())
    assert isinstance(private.requests, PrivateRequests) and private.requests.count == 1
    assert private.requests.sha256 == hashlib.sha256(canonical.dumps([request.fact], "x")).hexdigest()
    assert b'"p"' not in private.to_bytes() and "private" in private.summary()
    for wrong in ({"prompt": "p"}, {**FACT, "clock": 1}, {**FACT, "subject": 3}, {**FACT, "subject_span": [2, 1]}):
        with pytest.raises(PatchFormatError, match="requests"):
            loose_patch([], {}, requests=[wrong])


@pytest.mark.parametrize(
    "more",
    [
        {"hparams": {"lr": float("nan")}},
        {"hparams": {"path": Path("/x")}},
        {"hparams": {1: 2}},
        {"hparams": {"x": 2**65}},
        {"hparams": {"x": "\ud800"}},
        {"hparams": []},
        {"seed": -1},
        {"seed": 1.0},
        {"parents": ["abc"]},
        {"parents": ["1" * 64] * 2},
        {"requires": [Requirement(role="a"), Requirement(role="a")]},
    ],
)
def test_settings_that_cannot_be_written_are_refused_when_built(more: dict[str, Any]) -> None:
    with pytest.raises(PatchFormatError):
        loose_patch([], {}, **more)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "/home/me/model"},
        {"name": "./model"},
        {"name": "C:\\model"},
        {"name": "a/b/c"},
        {"revision": "../x y"},
        {"architecture": ""},
        {"config_sha256": "ABC"},
    ],
)
def test_a_base_is_never_named_by_a_path(fields: dict[str, Any]) -> None:
    with pytest.raises(PatchFormatError):
        Base(**{"architecture": "X", **fields})


def test_operations_must_fit_the_base_they_describe() -> None:
    with pytest.raises(PatchFormatError, match=r"base\.tensors"):
        loose_patch([LowRankDelta("c.weight", torch.ones(6, 1), torch.ones(1, 10))], SHAPES)
    with pytest.raises(PatchFormatError, match="does not fit"):
        loose_patch([LowRankDelta("a.weight", torch.ones(10, 1), torch.ones(1, 6))], SHAPES)
    with pytest.raises(PatchFormatError, match="in_out"):
        BaseTensor(shape=(3,), layout="in_out")


def test_failing_to_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, path = everything(), tmp_path / "p.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeditError, match="could not be written"):
        patch.save(tmp_path / "no" / "p.safetensors")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(KeditError, match="No space left"):
        patch.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (EditPatch.load, inspect):
        with pytest.raises(InputError, match="there is no file"):
            read(tmp_path / "nothing")
        with pytest.raises(PatchFormatError, match="not a file"):
            read(tmp_path)


def test_inspect_reads_no_tensor(tmp_path: Path) -> None:
    patch = everything()
    patch.save(tmp_path / "p")
    seen = inspect(tmp_path / "p")
    assert (seen.id, seen.size, seen.manifest) == (patch.id, patch.size, patch.manifest())
    assert seen.tensors["0.left"] == ("float32", (6, 1))


def rewritten(patch: EditPatch, change: Any) -> bytes:
    """The patch's bytes with its manifest changed, consistently laid out."""
    manifest = patch.manifest()
    change(manifest)
    tensors, _ = patch._parts()
    entries = [container.entry_of(name, tensor) for name, tensor in tensors.items()]
    body = b"".join(container.byte_view(tensors[entry.name]).tobytes() for entry in container.file_order(entries))
    return container.header_bytes(entries, canonical.dumps(manifest, "x")) + body


def test_an_unknown_version_is_named() -> None:
    def newer(manifest: Any) -> None:
        manifest["format"] = 2
        manifest["later"] = {}

    with pytest.raises(PatchFormatError, match="format 2, and this kedit reads format 1"):
        EditPatch.from_bytes(rewritten(everything(), newer))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("base"), r"required field missing @ \$\.base"),
        (lambda m: m.update(clock="now"), r"unknown field @ \$\.clock"),
        (lambda m: m.update(format="1"), "does not say which format"),
        (lambda m: m.update(format=True), "does not say which format"),
        (lambda m: m["method"].pop("version"), r"\$\.method\.version"),
        (lambda m: m.update(seed="0"), "seed"),
        (lambda m: m.update(hparams=[]), r"\$\.hparams"),
        (lambda m: m["operations"][0].update(type="add"), r"\$\.operations\[0\]\.type"),
        (lambda m: m["operations"][0].update(type=[]), r"\$\.operations\[0\]\.type"),
        (lambda m: m["operations"][0].update(place=3), r"\$\.operations\[0\]"),
        (lambda m: m["operations"][0]["tensors"].pop("left"), "0.left"),
        (lambda m: m["operations"][0]["tensors"].update(left="1.values"), r"tensors\.left"),
        (lambda m: m["operations"][0]["tensors"].update(left=["0.left"]), r"tensors\.left"),
        (lambda m: m["operations"][4].update(places="a"), "not a list"),
        (lambda m: m["operations"][4].update(kind="No Kind"), "kind"),
        (lambda m: m["operations"][4].update(kind_version=True), "version"),
        (lambda m: m["base"]["tensors"]["a.weight"].update(layout="rows"), r"\$\.base\.tensors\.a\.weight"),
        (lambda m: m["base"]["tensors"]["a.weight"].update(shape=[6, 11]), "does not fit"),
        (lambda m: m["base"]["tensors"]["a.weight"].update(shape=[6.0, 10]), "shape"),
        (lambda m: m["base"]["tensors"]["a.weight"].update(sha256={"float8": "0" * 64}), "float8"),
        (lambda m: m["state"]["tensors"].pop("keys"), "nothing in the manifest uses @ state.keys"),
        (lambda m: m["state"]["tensors"].update(more="state.more"), "the file does not hold"),
        (lambda m: m.update(requests={"sha256": "0" * 64}), r"\$\.requests\.count"),
        (lambda m: m.update(requests=[1]), "requests"),
        (lambda m: m.update(parents=[1]), "parents"),
    ],
)
def test_a_manifest_is_read_strictly(change: Any, said: str) -> None:
    patch = everything()
    assert EditPatch.from_bytes(rewritten(patch, lambda m: None)).id == patch.id
    with pytest.raises(PatchFormatError, match=said):
        EditPatch.from_bytes(rewritten(patch, change))


def test_all_faults_are_told_at_once() -> None:
    def both(manifest: Any) -> None:
        del manifest["method"]["name"]
        del manifest["operations"][0]["place"]

    with pytest.raises(PatchFormatError) as caught:
        EditPatch.from_bytes(rewritten(everything(), both))
    assert "$.method.name" in str(caught.value) and "$.operations[0].place" in str(caught.value)


def test_joining_keeps_operations_and_states_in_order() -> None:
    parts = [
        loose_patch(
            [LowRankDelta("a.weight", torch.full((6, 1), float(i)), torch.ones(1, 10))],
            SHAPES,
            requests=[{**FACT, "case_id": str(i)}],
            state=State({"i": i}, {"keys.x": torch.full((2,), i)}),
        )
        for i in range(3)
    ]
    chained = [parts[0], attrs.evolve(parts[1], parents=(parts[0].id, "9" * 64)), parts[2]]
    joined = EditPatch.join(chained)
    assert [op.tensors["left"][0, 0].item() for op in joined.operations] == [0.0, 1.0, 2.0]
    assert joined.parents == ("9" * 64,) and len(joined.requests) == 3  # type: ignore[arg-type]
    again = EditPatch.from_bytes(joined.to_bytes())
    assert [state.config["i"] for state in again.states()] == [0, 1, 2]
    assert torch.equal(again.states()[1].tensors["keys.x"], torch.tensor([1, 1]))
    assert len(EditPatch.join([joined, attrs.evolve(parts[0], seed=None, requests=())]).states()) == 4
    assert EditPatch.join([parts[0]]) is parts[0] and len(parts[0].states()) == 1
    for wrong in (
        [],
        [parts[0], parts[0]],
        [parts[0], attrs.evolve(parts[1], hparams={"x": 1})],
        [parts[0], attrs.evolve(parts[1], base=Base(architecture="Other", tensors=parts[1].base.tensors))],
        [parts[0], attrs.evolve(parts[1], requests=PrivateRequests.of([]))],
    ):
        with pytest.raises(InputError):
            EditPatch.join(wrong)


def test_building_from_plain_parts() -> None:
    patch = EditPatch.build(
        method=attrs.asdict(METHOD),
        base=Base(architecture="X"),
        operations=[ModuleOperation(("m",), "test.k")],
        state_config={"a": 1},
        state_tensors={"t": torch.ones(2)},
    )
    assert patch.state.config == {"a": 1} and patch.places == ("m",)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_canonical_json_comes_back_the_same(value: Any) -> None:
    data = canonical.dumps(value, "x")
    again = canonical.loads(data, "x")
    assert canonical.dumps(again, "x") == data and again == value
    assert json.loads(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b"[1.0,1e400]",
        b"[NaN]",
        b"[-Infinity]",
        b"[1E5]",
        b"[1.50]",
        b"[-0]",
        b'["\\u0041"]',
        b'["\\ud800"]',
        b'["\xff"]',
        b"\xef\xbb\xbf[]",
        b"[18446744073709551616]",
        b"[" * 70 + b"]" * 70,
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 5000,
        b"",
        b"[1] ",
    ],
)
def test_json_that_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(PatchFormatError):
        canonical.loads(data, "x")


def test_json_too_rich_to_be_parsed_is_refused_before_it_is() -> None:
    with pytest.raises(PatchFormatError, match="more than"):
        canonical.loads(b"[" + b"0," * (canonical.MAX_MARKS + 1) + b"0]", "x")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_patches_come_back_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 4))
    operations = [
        random_operation(
            "a.weight",
            (6, 10),
            "out_in",
            data.draw(st.sampled_from(["low_rank_delta", "dense_delta", "sparse_delta", "replace"])),
            data.draw(st.integers(0, 1000)),
            data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])),
        )
        for _ in range(count)
    ]
    patch = loose_patch(
        operations, SHAPES, hparams={"x": data.draw(JSON)}, seed=data.draw(st.none() | st.integers(0, 9))
    )
    again = EditPatch.from_bytes(patch.to_bytes())
    assert again.id == patch.id and again.to_bytes() == patch.to_bytes()
    for one, other in zip(patch.operations, again.operations, strict=True):
        assert type(one) is type(other) and bits_of(one) == bits_of(other)


def bits_of(operation: Any) -> dict[str, tuple[torch.dtype, bytes]]:
    axis = {"axis": operation.axis} if isinstance(operation, SparseDelta) else {}
    return {role: (tensor.dtype, bits(tensor)) for role, tensor in operation.tensors.items()} | axis


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """/dev/null and /dev/stdout are no places to rename a file to."""
    pipe, patch = tmp_path / "pipe", everything()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        patch.save(pipe)
        assert pipe.is_fifo() and os.read(reader, 1 << 20) == patch.to_bytes()
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "patch")
    everything().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and EditPatch.load(tmp_path / "there" / "patch").id == everything().id


PAGE = Path(__file__).parents[3] / "docs" / "patch-format.md"


def test_the_example_of_the_documentation_is_a_patch() -> None:
    page = PAGE.read_text(encoding="utf-8")
    example = page[page.index("## 9.") :]
    blocks = [block.partition("\n")[2] for block in example.split("```")[1::2]]
    manifest = canonical.dumps(json.loads(blocks[1]), "x")
    entries = [
        container.TensorEntry("0.left", torch.float32, (2, 1)),
        container.TensorEntry("0.right", torch.float32, (1, 3)),
    ]
    data = container.header_bytes(entries, manifest) + bytes.fromhex(blocks[2])
    assert data[:8] == bytes.fromhex(blocks[0]) and "1212 bytes" in example and len(data) == 1212
    patch = EditPatch.from_bytes(data)
    assert f"`{patch.id}`" in example
    base = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    (described,) = patch.base.tensors.values()
    assert digests_of(base) == dict(described.sha256)
    assert torch.equal(base + patch.operations[0].delta((2, 3), torch.float32), torch.tensor([[2, 2, 1], [4.5, 5, 5]]))


def test_the_documentation_states_the_limits_and_fields() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for limit in (canonical.MAX_BYTES, canonical.MAX_MARKS, container.MAX_TENSORS):
        assert f"{limit:,}" in page
    for name in (*FIELDS, *container.DTYPES, *OPERATION_TYPES, *REQUEST_FIELDS, *(f"`{axis}`" for axis in AXES)):
        assert name in page
