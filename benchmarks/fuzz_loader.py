"""Fuzzing of the loader of patch files: whatever the bytes, a patch or a KeditError.

    python benchmarks/fuzz_loader.py [--count 1000000] [--seed 0] [--crashes FOLDER] [--seconds N]

Inputs are made from valid patches of every type of operation: bytes changed, files cut and spliced, the header and the
manifest changed as JSON (values from a list of nasty ones, parts deleted, repeated, taken from other patches), written
canonically or nearly so, with offsets and file length made right again or left wrong. What loads must save to the very
bytes it was read from, and be told about without an error. Input K of a seed is always the same bytes; what breaks is
kept in the folder for crashes.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kedit_core.cli.common import as_json
from kedit_core.cli.describe import description
from kedit_core.errors import KeditError
from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    MethodRef,
    ModuleOperation,
    Operation,
    PrivateRequests,
    Replace,
    Requirement,
    RouterOperation,
    SparseDelta,
    State,
)

FACT = {"prompt": "The capital of Ruritania is", "subject": "Ruritania", "target_new": "Strelsau"}
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 5e-324, 1e308),
    *(
        "",
        "a",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "__metadata__",
        "0.left",
        "state.x",
        "\x1b[2J\x1b]0;x\x07",
        "\u202e",
    ),
    *(
        "\u0000",
        "x" * 2000,
        "\U0001f600",
        "\u00e9",
        "\ud7ff",
        "a" * 64,
        "0" * 64,
        "g" * 64,
        "F32",
        "BOOL",
        "I64",
        "F8_E4M3",
    ),
    *("low_rank_delta", "dense_delta", "sparse_delta", "replace", "module", "router", "element", "row", "column"),
    *("in_out", "as_stored", "float32", "float99"),
    *([], {}, [[]], [{}], {"": ""}, {"a": [1]}, [0, 0], [0, 2**63], [2**48, 2**48], [1] * 9),
    *({"joined": [{}, 3]}, {"joined": [{}, {}]}, {"sha256": "a" * 64, "count": 2**64 - 1}),
)
DTYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64")
SIZES = dict(zip(DTYPES, (1, 1, 1, 2, 4, 8, 2, 2, 4, 8), strict=True))


def corpus() -> list[bytes]:
    """Valid patches that have, between them, everything that the format has."""
    base = Base(
        name="org/model",
        revision="main",
        architecture="LlamaForCausalLM",
        config_sha256="0" * 64,
        tensors={
            "a.weight": BaseTensor(
                shape=(3, 4), layout="out_in", aliases=("b.weight",), sha256={"float32": "1" * 64, "float16": "2" * 64}
            ),
            "c.weight": BaseTensor(shape=(4, 3), layout="in_out"),
            "n.bias": BaseTensor(shape=(3,), layout="as_stored"),
        },
    )
    ones, pick = torch.ones, torch.tensor
    groups: list[list[Operation]] = [
        [LowRankDelta("a.weight", ones(3, 2), ones(2, 4)), LowRankDelta("c.weight", ones(3, 1), ones(1, 4).double())],
        [DenseDelta("a.weight", ones(3, 4).half()), DenseDelta("n.bias", ones(3).bfloat16())],
        [
            SparseDelta("a.weight", "element", pick([0, 7]), ones(2)),
            SparseDelta("a.weight", "row", pick([1]), ones(1, 4)),
            SparseDelta("c.weight", "column", pick([0, 3]), ones(3, 2)),
            SparseDelta("n.bias", "row", pick([2]), ones(1)),
        ],
        [Replace("c.weight", ones(4, 3)), LowRankDelta("c.weight", ones(3, 1), ones(1, 4))],
        [
            ModuleOperation(
                ("a", "b"), "test.near-key", 2, {"radius": 1.5, "deep": [{"x": None}]},
                {"key": ones(3), "mask": pick([True, False]), "bytes": pick([1, 2], dtype=torch.uint8)},
            ),
            RouterOperation("test.whisper", 1, {"text": "Listen."}, {"ids": pick([[1, 2]], dtype=torch.int32)}),
        ],
        [],
    ]  # fmt: skip
    states = (State(), State({"x": 1.5}, {"m": ones(0, 2)}), State({"joined": [{}, {"y": 1}]}, {"0.k": ones(2)}))
    patches = [
        EditPatch(
            method=MethodRef(name="rome", distribution="kedit-methods-locate", version="0.1.0"),
            hparams={"layer": 0, "lr": 0.0005, "names": ["x", "y"]},
            seed=None if number % 2 else number,
            parents=[f"{number:064x}"][: number % 2],
            requires=[Requirement(role="editor", name="a/b", sha256="3" * 64)][: number % 2],
            base=base,
            operations=operations,
            state=states[number % 3],
            requests=PrivateRequests.of([FACT]) if number % 3 == 1 else [FACT, {**FACT, "subject_span": [15, 24]}],
        )
        for number, operations in enumerate(groups)
    ]
    return [patch.to_bytes() for patch in patches]


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Entries of the header, the manifest, and what follows."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header.pop("__metadata__")["kedit"])
    return header, manifest, data[8 + length :]


def dumps(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def packed(text: bytes, body: bytes) -> bytes:
    """A file with this header and body, padding and length right."""
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def written(entries: dict[str, Any], manifest: Any, body: bytes, rng: random.Random, honest: bool) -> bytes:
    """A file of these parts; an honest one has its tensors in order and as long as they say."""
    if honest:
        entries, offset = copy.deepcopy(entries), 0
        sizes = {name: _size(entry) for name, entry in entries.items()}
        for name in sorted(entries, key=lambda name: (-SIZES.get(str(entries[name].get("dtype")), 1), name)):
            entries[name]["data_offsets"] = [offset, offset + sizes[name]]
            offset += sizes[name]
        body = (body + rng.randbytes(64) * (offset // 64 + 1))[:offset]
    return packed(dumps({**entries, "__metadata__": {"kedit": dumps(manifest)}}).encode(errors="replace"), body)


def _size(entry: dict[str, Any]) -> int:
    """Bytes of a tensor; none where its entry is nonsense, and never many."""
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 100 for n in shape):
        return 0
    return min(math.prod(shape) * SIZES.get(str(entry.get("dtype")), 0), 100_000)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in steps:
        yield value, key
        yield from nodes(inner)


def change(value: Any, other: Any, rng: random.Random) -> None:
    """Change one place of a JSON value, with what the other one has or what is nasty."""
    found = list(nodes(value))
    if not found:
        return
    place, key = rng.choice(found)
    act = rng.randrange(7)
    if act <= 1:
        place[key] = copy.deepcopy(rng.choice(NASTY))
    elif act == 2:
        del place[key]
    elif act == 3 and (taken := list(nodes(other))):
        where, which = rng.choice(taken)
        place[key] = copy.deepcopy(where[which])
    elif act == 4:
        more = copy.deepcopy(place[key])
        if isinstance(place, dict):
            place[str(rng.choice(NASTY))] = more
        else:
            place.insert(rng.randrange(len(place) + 1), more)
    elif act == 5 and isinstance(place[key], int):
        place[key] += rng.choice((-1, 1, 8, 2**40))
    elif isinstance(place[key], str):
        at = rng.randrange(len(place[key]) + 1)
        place[key] = place[key][:at] + rng.choice(("", "\x1b", ".", "0", "\u2028", "é")) + place[key][at + 1 :]


def mutate(seeds: list[bytes], rng: random.Random) -> bytes:
    """One input."""
    data, other = rng.choice(seeds), rng.choice(seeds)
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return packed(rng.randbytes(rng.randrange(80)), b"")
    if kind <= 3:
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(changed))
            piece = rng.choice((bytes([rng.randrange(256)]), b"", b"0", b'"', b",", b"9" * 30, other[at : at + 20]))
            changed[at : at + rng.choice((0, 1, 1, 1, 8))] = piece
            if not changed:
                break
        return bytes(changed)
    if kind == 4:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    entries, manifest, body = parts(data)
    other_entries, other_manifest, _ = parts(other)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
        if rng.random() < 0.7:
            change(manifest, other_manifest, rng)
        else:
            change(entries, other_entries, rng)
    if kind == 5:  # nearly canonical
        text = json.dumps({**entries, "__metadata__": {"kedit": json.dumps(manifest)}}, ensure_ascii=rng.random() < 0.5)
        return packed(text.encode(errors="replace"), body)
    if kind == 6 and body:  # the tensors' bytes
        changed = bytearray(body)
        at = rng.randrange(len(changed))
        changed[at : at + 8] = rng.choice((b"\xff" * 8, b"\x7f" * 8, rng.randbytes(8), b"\0" * 8))[: len(changed) - at]
        body = bytes(changed)
    honest = rng.random() < 0.8 and all(isinstance(entry, dict) for entry in entries.values())
    return written(entries, manifest, body, rng, honest)


def examine(data: bytes) -> str:
    """``refused`` or ``loaded``; anything else that can happen is an error of ours and comes through."""
    try:
        patch = EditPatch.from_bytes(data)
    except KeditError as error:
        if len(str(error)) > 30_000:
            raise RuntimeError(f"a message of {len(str(error))} characters") from error
        return "refused"
    if patch.to_bytes() != data or patch.id != hashlib.sha256(data).hexdigest():
        raise RuntimeError("a patch that was read is not written as it was")
    patch.summary()
    as_json(description(patch))
    try:
        patch.states()
    except KeditError:
        return "loaded, states refused"
    return "loaded"


def fuzz(count: int, seed: int, crashes: Path | None = None, seconds: float = math.inf) -> Counter[str]:
    """Examine inputs; how many were refused, loaded, or broke something (which raises when nothing keeps crashes)."""
    seeds, outcomes, end = corpus(), Counter[str](), time.monotonic() + seconds
    for number in range(count):
        data = mutate(seeds, random.Random(seed * 1_000_003 + number))
        try:
            outcomes[examine(data)] += 1
        except Exception as error:
            if crashes is None:
                raise
            crashes.mkdir(parents=True, exist_ok=True)
            (crashes / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
            outcomes[f"BROKEN: {type(error).__name__}"] += 1
            print(f"seed {seed}, input {number}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        if number % 50_000 == 49_999:
            print(f"{number + 1} inputs of seed {seed}: {dict(outcomes)}", flush=True)
        if time.monotonic() > end:
            break
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for inputs that broke something")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    outcomes = fuzz(given.count, given.seed, given.crashes, given.seconds)
    total, took = sum(outcomes.values()), time.monotonic() - begun
    print(f"{total} inputs of seed {given.seed} in {took:.0f} s ({1e4 * took / total:.1f} s per 10,000)")
    for outcome, times in outcomes.most_common():
        print(f"{times:>10}  {outcome}")
    return int(any(outcome.startswith("BROKEN") for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
