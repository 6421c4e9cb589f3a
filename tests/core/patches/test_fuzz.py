"""Whatever the bytes, reading a patch gives a patch or a KeditError, and nothing else."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from core.patches.patch_kit import FACT, loose_patch, near_key, random_operation, whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_save

from kedit_core.errors import KeditError, PatchFormatError
from kedit_core.patches import EditPatch, State, inspect

SHAPES = {"a.weight": (3, 5)}
OPERATIONS = [
    random_operation("a.weight", (3, 5), "out_in", kind, seed, torch.float32)
    for seed, kind in enumerate(("low_rank_delta", "sparse_delta", "replace"))
]
PATCH = loose_patch(
    [*OPERATIONS, near_key(["a"], 3), whisper()],
    SHAPES,
    requests=[FACT],
    state=State({"x": 1.5}, {"mask": torch.tensor([True, False, True])}),
)
WHOLE = PATCH.to_bytes()


def read(data: bytes) -> bool:
    """Whether the bytes are a patch; anything but a KeditError comes through."""
    try:
        patch = EditPatch.from_bytes(data)
    except KeditError:
        return False
    assert patch.to_bytes() == data
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    assert not read(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_random_headers(data: bytes, length: int) -> None:
    assert not read(struct.pack("<Q", length) + data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_truncations(length: int) -> None:
    assert not read(WHOLE[:length])


@settings(max_examples=600, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 7))
def test_bit_flips(position: int, bit: int) -> None:
    flipped = bytearray(WHOLE)
    flipped[position] ^= 1 << bit
    # a flip inside a tensor or a text gives another patch with another id; never the same one
    if read(bytes(flipped)):
        assert EditPatch.from_bytes(bytes(flipped)).id != PATCH.id


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=40))
def test_splices(start: int, cut: int, data: bytes) -> None:
    spliced = WHOLE[:start] + data + WHOLE[start + cut :]
    if spliced != WHOLE:
        read(spliced)


@pytest.mark.parametrize("more", [b"\0", b"x" * 8])
def test_bytes_after_the_end(more: bytes) -> None:
    assert not read(WHOLE + more)


HEADER = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([name for name in HEADER if name != "__metadata__"]),
    st.sampled_from(["dtype", "shape", "data_offsets"]),
    st.one_of(
        st.sampled_from(["F32", "F16", "I64", "F8_E4M3", "C64", "BOOL", None, 3]),
        st.lists(st.integers(-3, 2**64 - 1) | st.floats(0, 9) | st.booleans(), max_size=10),
        st.lists(st.integers(0, 200), min_size=2, max_size=2),
    ),
)
def test_tampered_entries(name: str, field: str, value: object) -> None:
    header = {**HEADER, name: {**HEADER[name], field: value}}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = WHOLE[8 + struct.unpack("<Q", WHOLE[:8])[0] :]
    data = struct.pack("<Q", len(text)) + text + body
    if data != WHOLE:
        assert not read(data)


def test_other_safetensors_files_are_refused() -> None:
    tensors = {"x": torch.ones(2)}
    for metadata in (None, {"kedit": "{}"}, {"kedit": "[]"}, {"kedit": '{"format":1}'}, {"format": "pt"}):
        with pytest.raises(PatchFormatError):
            EditPatch.from_bytes(safetensors_save(tensors, metadata))


def test_a_huge_claim_allocates_nothing(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, 100_000_001, len(WHOLE)):
        path = tmp_path / "p"
        path.write_bytes(struct.pack("<Q", length) + WHOLE[8:])
        for reader in (EditPatch.load, inspect):
            with pytest.raises(PatchFormatError, match="header claims"):
                reader(path)


def test_nan_in_a_file_is_refused() -> None:
    data = bytearray(WHOLE)
    start = 8 + struct.unpack("<Q", WHOLE[:8])[0]
    begin = start + HEADER["0.left"]["data_offsets"][0]
    data[begin : begin + 4] = struct.pack("<f", float("nan"))
    with pytest.raises(PatchFormatError, match="NaN"):
        EditPatch.from_bytes(bytes(data))
    mask = start + HEADER["state.mask"]["data_offsets"][0]
    data = bytearray(WHOLE)
    data[mask] = 2
    with pytest.raises(PatchFormatError, match="true nor false"):
        EditPatch.from_bytes(bytes(data))


def test_a_short_run_of_the_fuzzer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """benchmarks/fuzz_loader.py makes a million such inputs; docs/security.md says how often it has been run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    fuzz_loader: Any = importlib.import_module("fuzz_loader")
    for data in fuzz_loader.corpus():
        assert fuzz_loader.examine(data).startswith("loaded")
    outcomes = fuzz_loader.fuzz(2500, seed=2026)
    assert sum(outcomes.values()) == 2500 and outcomes["refused"] > 1000 and outcomes["loaded"] > 100
    # what breaks is kept, and told
    monkeypatch.setattr(fuzz_loader, "examine", lambda data: 1 // 0)
    broken = fuzz_loader.fuzz(3, seed=1, crashes=tmp_path / "crashes")
    assert broken == {"BROKEN: ZeroDivisionError": 3} and len(list((tmp_path / "crashes").iterdir())) == 3
