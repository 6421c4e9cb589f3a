"""Reading an untrusted patch costs what its size allows and no more: memory, time, messages, terminals.

Time is counted, not clocked, where it can be: an input made twice as large must not take four times the steps.
"""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from core.patches.patch_kit import FACT, loose_patch, near_key, whisper

from kedit_core.cli import root
from kedit_core.cli.common import as_json, harmless, one_line
from kedit_core.cli.describe import description
from kedit_core.errors import InputError, KeditError, PatchFormatError
from kedit_core.patches import (
    BaseTensor,
    EditPatch,
    LowRankDelta,
    SparseDelta,
    State,
    canonical,
    container,
    inspect,
)

BASE = {"architecture": "X", "config_sha256": None, "name": None, "revision": None, "tensors": {}}


def manifest(**parts: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "method": {"name": "m", "distribution": "d", "version": "1"},
        "hparams": {},
        "seed": None,
        "parents": [],
        "requires": [],
        "base": BASE,
        "operations": [],
        "state": {"config": {}, "tensors": {}},
        "requests": [],
        **parts,
    }


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def packed(text: bytes, body: bytes = b"") -> bytes:
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def file_of(content: Any, entries: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    text = content if isinstance(content, str) else dumps(content)
    return packed(dumps({**(entries or {}), "__metadata__": {"kedit": text}}).encode(), body)


def tensor(name: str, dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {name: {"data_offsets": [0, end], "dtype": dtype, "shape": shape}}


# ---------------------------------------------------------------------- numbers, names, sizes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1" * 100_000, "a number has 100000 characters"),
        ("0." + "1" * 100_000, "a number has 100002 characters"),
        ("1e999", "no number for"),
        ("-1e999", "no number for"),
        ("1E400000000", "no number for"),
        (str(2**64), "does not fit in 64 bits"),
        (str(-(2**63) - 1), "does not fit in 64 bits"),
        ("NaN", "not a JSON number"),
        ("Infinity", "not a JSON number"),
        ("00", "not JSON"),
        ("1.0e5", "not canonical"),
        ("1E5", "not canonical"),
        ("-0", "not canonical"),
        ("1.10", "not canonical"),
        ('"\\u0041"', "not canonical"),
        ('"\\ud800"', "not valid Unicode"),
        ('"\\/"', "not canonical"),
        (" 1", "not canonical"),
        ("[1,]", "not JSON"),
        ('{"b":1,"a":1}', "not canonical"),
        ('{"a":1,"a":1}', "the key 'a' is given twice"),
        ('{"a":{"b":1,"b":2}}', "the key 'b' is given twice"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 100_000, "not JSON"),
        ('{"":' * 100_000, "not JSON"),
        ("[" * 4_000_001, "more than 4000000 JSON values"),
    ],
)
def test_json_that_is_refused(text: str, told: str) -> None:
    with pytest.raises(PatchFormatError, match=told) as caught:
        canonical.loads(text.encode(), "the header")
    assert len(str(caught.value)) < 500


def test_text_that_is_no_utf_8_or_begins_with_a_mark_is_refused() -> None:
    for data in (b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf1", "1".encode("utf-16")):
        with pytest.raises(PatchFormatError):
            canonical.loads(data, "the header")


@pytest.mark.parametrize(
    "shape", [[2**48, 2], [2**63], [2**64 - 1], [0, 2**63], [1] * 9, [-1], [True], [1.0], "22", None]
)
def test_shapes_that_are_refused(shape: Any) -> None:
    data = file_of(manifest(state={"config": {}, "tensors": {"a": "state.a"}}), tensor("state.a", "U8", shape, 0))
    with pytest.raises(PatchFormatError, match="no valid shape"):
        EditPatch.from_bytes(data)


@pytest.mark.parametrize("shape", [(2**63,), (2**64 - 1, 2), (2**48, 2), (0, 2**49), (1,) * 9, (-1,)])
def test_shapes_of_a_base_that_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PatchFormatError, match="a base tensor's shape"):
        BaseTensor(shape=shape, layout="out_in")


def test_more_tensors_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert container.MAX_TENSORS == 65_536
    monkeypatch.setattr(container, "MAX_TENSORS", 99)
    entries = {f"state.{i}": {"data_offsets": [0, 0], "dtype": "U8", "shape": [0]} for i in range(100)}
    with pytest.raises(PatchFormatError, match="claims 100 tensors; the limit is 99"):
        EditPatch.from_bytes(file_of("{}", entries))


@pytest.mark.parametrize(
    "offsets", [[0, 4], [8, 16], [0, 16], [-8, 0], [8, 0], [0.0, 8], [False, 8], [0, 8, 8], [2**64 - 8, 2**64]]
)
def test_offsets_that_lie_are_refused(offsets: list[Any]) -> None:
    entry = {"state.a": {"data_offsets": offsets, "dtype": "F32", "shape": [2]}}
    with pytest.raises(PatchFormatError):
        EditPatch.from_bytes(file_of(manifest(state={"config": {}, "tensors": {"a": "state.a"}}), entry, bytes(8)))


def test_a_header_padded_by_more_than_it_needs_is_refused() -> None:
    good = file_of(manifest())
    assert EditPatch.from_bytes(good).id
    (length,) = struct.unpack("<Q", good[:8])
    with pytest.raises(PatchFormatError, match="does not end as format 1 says"):
        EditPatch.from_bytes(struct.pack("<Q", length + 8) + good[8:] + b" " * 8)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x", "..", "a/../../b", "~/.ssh/id"])
def test_a_path_in_a_name_is_only_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of tensors and of places may look like paths; nothing ever opens one."""
    made = loose_patch(
        [LowRankDelta(name, torch.ones(2, 1), torch.ones(1, 2))],
        {name: (2, 2)},
        state=State({name: name}, {name: torch.ones(1)}),
    )
    made.save(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert CliRunner().invoke(root.kedit, ["patch", "show", "p"]).exit_code == 0
    assert EditPatch.load("p").places == (name,)
    assert sorted(tmp_path.rglob("*")) == before
    for field in ("base", "method"):
        parts = {**manifest()[field], "name": name}
        with pytest.raises(PatchFormatError, match="never a path"):
            EditPatch.from_bytes(file_of(manifest(**{field: parts})))


@pytest.mark.slow
def test_loading_runs_and_opens_nothing(tmp_path: Path) -> None:
    """The interpreter tells of every file opened, module imported, code run and socket made while a patch is read."""
    made = loose_patch(
        [near_key(["os.system"], 3), whisper("__import__('os').system('true')")],
        {},
        state=State({"kind": "os:system"}, {"a": torch.ones(2)}),
    )
    made.save(tmp_path / "p")
    done = limited(f"""
        import sys
        EditPatch.load({str(tmp_path / "p")!r})  # what is imported once for all patches is imported now
        seen = []
        quiet = {{"object.__getattr__", "object.__setattr__", "code.__new__", "sys._getframe"}}
        sys.addaudithook(lambda event, args: seen.append((event, str(args[:1]))) if event not in quiet else None)
        EditPatch.load({str(tmp_path / "p")!r})
        inspect({str(tmp_path / "p")!r})
        print(sorted(set(seen)))  # "open" of 3 is the stream made of the open file
        """, seconds=60)  # fmt: skip
    seen = ast.literal_eval(done.stdout)
    assert [name for event, name in seen if event != "open" or not name.startswith("(3")] == [f"('{tmp_path / 'p'}',)"]


def test_indices_outside_a_parameter_are_refused() -> None:
    for indices in ([5], [-1], [1, 1], [3, 2], [2**62]):
        with pytest.raises(PatchFormatError):
            loose_patch([SparseDelta("w", "element", torch.tensor(indices), torch.ones(len(indices)))], {"w": (1, 5)})


# ---------------------------------------------------------------------- time


def steps(work: Any) -> int:
    """Python function calls of some work: a clock that other programs on this machine do not move."""
    count = 0

    def tick(*_: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def repeated(count: int) -> bytes:
    keys = [f'"{i:06}":0' for i in range(count)]
    return ("{" + ",".join([*keys, keys[-1]]) + "}").encode()


def wide(count: int) -> dict[str, Any]:
    return {"k" * count: [0] * count}


BOMBS: dict[str, Any] = {
    "a key given twice, at the end of many": lambda n: packed(repeated(n)),
    "many values under a long name": lambda n: file_of(manifest(hparams=wide(n))),
    "many fields that are unknown": lambda n: file_of(manifest(**{f"x{i}": 0 for i in range(n)})),
    "many operations": lambda n: file_of(
        manifest(operations=[{"type": "router", "kind": "k", "kind_version": 1, "config": {}, "tensors": {}}] * n)
    ),
    "many operations of no type": lambda n: file_of(manifest(operations=[{"type": "x" * 200}] * n)),
    "many tensors and parts of a state": lambda n: file_of(
        manifest(
            state={
                "config": {"joined": [{}] * n},
                "tensors": {f"{i}.x": f"state.{i}.x" for i in range(n)},
            }
        ),
        {f"state.{i}.x": {"data_offsets": [0, 0], "dtype": "F32", "shape": [0]} for i in range(n)},
    ),
    "many truths": lambda n: file_of(
        manifest(state={"config": {}, "tensors": {"a": "state.a"}}), tensor("state.a", "BOOL", [n], n), b"\1" * n
    ),
    "a long word": lambda n: file_of(manifest(method={"name": "a" * n + "!", "distribution": "d", "version": "1"})),
}


def examine(data: bytes) -> None:
    try:
        patch = EditPatch.from_bytes(data)
        patch.states()
        patch.summary()
        as_json(description(patch))
    except KeditError as error:
        assert len(str(error)) < 30_000


@pytest.mark.parametrize("name", BOMBS)
def test_twice_the_input_takes_about_twice_the_steps(name: str) -> None:
    counts = [steps(lambda data=data: examine(data)) for data in (BOMBS[name](400), BOMBS[name](1600))]  # type: ignore[misc]
    assert counts[1] < 5 * counts[0] + 1000


@pytest.mark.slow
def test_the_worst_megabytes_are_read_in_seconds(tmp_path: Path) -> None:
    """In one program with a limit of memory; processor time is counted. Each of these took far longer once."""
    for name in BOMBS:
        size = 20_000 if "tensors" in name or "operations" in name else 500_000 if "long name" in name else 120_000
        (tmp_path / name.replace(" ", "_")).write_bytes(BOMBS[name](size))
    inside = 4_000_000
    entries = tensor("0.left", "F32", [1, inside // 8], inside // 2)
    entries |= {"0.right": {"data_offsets": [inside // 2, inside], "dtype": "F32", "shape": [inside // 8, 1]}}
    operation = {"type": "low_rank_delta", "place": "w", "tensors": {"left": "0.left", "right": "0.right"}}
    weight = {"w": {"shape": [1, 1], "layout": "out_in", "aliases": [], "sha256": {}}}
    long = file_of(manifest(base={**BASE, "tensors": weight}, operations=[operation]), entries, bytes(inside))
    (tmp_path / "a_rank_above_its_matrix").write_bytes(long)
    done = limited(f"""
        import pathlib, time
        from kedit_core.cli.common import as_json
        from kedit_core.cli.describe import description
        for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
            begun = time.process_time()
            try:
                patch = EditPatch.load(path)
                patch.states()
                as_json(description(patch))
            except KeditError:
                pass
            print(path.name, time.process_time() - begun)
        """, seconds=60)  # fmt: skip
    took = {name: float(seconds) for name, seconds in map(str.split, done.stdout.splitlines())}
    assert done.returncode == 0 and len(took) == len(BOMBS) + 1, done.stderr[-2000:]
    assert max(took.values()) < 6, took


# ---------------------------------------------------------------------- memory, and files that are none


def limited(code: str, seconds: int, more_memory: int = 1 << 30) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that may take this much processor time, and memory beside what torch takes."""
    lines = f"""
        import resource
        import torch
        torch.set_num_threads(1)
        from kedit_core.errors import KeditError, PatchFormatError
        from kedit_core.patches import EditPatch, inspect
        have = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + {more_memory},) * 2)
        used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
        resource.setrlimit(resource.RLIMIT_CPU, (used + {seconds},) * 2)
        """
    program = textwrap.dedent(lines) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)


def test_a_sparse_file_of_terabytes_is_refused_and_not_read(tmp_path: Path) -> None:
    count = 2**40
    data = file_of(
        manifest(state={"config": {}, "tensors": {"a": "state.a"}}), tensor("state.a", "F32", [count], 4 * count)
    )
    path = tmp_path / "sparse"
    path.write_bytes(data)
    try:
        os.truncate(path, len(data) + 4 * count)
    except OSError:
        pytest.skip("this file system has no files of 4 TB")
    with pytest.raises(PatchFormatError, match=r"bytes of memory, and \d+ can be had here"):
        EditPatch.load(path)


@pytest.mark.slow
def test_a_patch_that_does_not_fit_the_memory_left_is_refused_in_a_sentence(tmp_path: Path) -> None:
    size = 3 << 30
    data = file_of(manifest(state={"config": {}, "tensors": {"a": "state.a"}}), tensor("state.a", "U8", [size], size))
    (tmp_path / "p").write_bytes(data)
    os.truncate(tmp_path / "p", len(data) + size)
    (tmp_path / "many").write_bytes(file_of(manifest(hparams={"a": [{"": 0}] * 900_000})))
    done = limited(f"""
        for name in ("p", "many"):
            try:
                EditPatch.load({str(tmp_path)!r} + "/" + name)
            except PatchFormatError as error:
                print(str(error))
        """, seconds=60, more_memory=200 << 20)  # fmt: skip
    told = done.stdout.splitlines()
    assert done.returncode == 0 and len(told) == 2 and all("memory" in line for line in told), (told, done.stderr)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in (
        "pipe",
        "link",
        "loop",
        "zero",
        ".",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/version",
        "a\0b",
        "x" * 5000,
    ):
        for read in (EditPatch.load, inspect):
            with pytest.raises((InputError, PatchFormatError)):
                read(tmp_path / name)  # type: ignore[operator]


def test_a_file_that_becomes_a_pipe_after_somebody_looked_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "p")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(PatchFormatError, match="not an ordinary file"):
        EditPatch.load(tmp_path / "p")


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p"
    loose_patch([], {}, state=State({}, {"a": torch.ones(100_000)})).save(path)
    whole = path.read_bytes()
    read_tensors = container.read_tensors

    def meanwhile(size: int) -> Any:
        def read(*args: Any) -> Any:
            os.truncate(path, size)
            return read_tensors(*args)

        return read

    for size, told in ((len(whole) + 1, "grew while it was read"), (len(whole) - 1, "ended early")):
        path.write_bytes(whole)
        monkeypatch.setattr(container, "read_tensors", meanwhile(size))
        with pytest.raises(PatchFormatError, match=told):
            EditPatch.load(path)


# ---------------------------------------------------------------------- terminals

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\r\x00\x7f"
OBEYED = {letter for letter in ESCAPES if not letter.isprintable()}


def test_what_a_patch_says_cannot_steer_the_terminal_it_is_shown_on(tmp_path: Path) -> None:
    fact = {**FACT, "prompt": f"The capital{ESCAPES}\npatch 0000 signed by you", "target_new": ESCAPES}
    loose_patch([], {}, requests=[fact], hparams={f"k{ESCAPES}": ESCAPES}).save(tmp_path / "p")
    for words in ([], ["--json"]):
        done = CliRunner().invoke(root.kedit, ["patch", "show", str(tmp_path / "p"), *words])
        assert done.exit_code == 0
        assert not set(done.output) & OBEYED
        assert "\npatch 0000" not in done.output
    shown = json.loads(CliRunner().invoke(root.kedit, ["patch", "show", str(tmp_path / "p"), "--json"]).output)
    assert shown["requests"][0]["target_new"] == ESCAPES  # as JSON it is all there


def test_a_refused_patch_s_names_cannot_either(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(file_of(manifest(**{f"field{ESCAPES}": 1})))
    done = CliRunner().invoke(root.kedit, ["patch", "show", str(tmp_path / "p")])
    assert done.exit_code == 2 and "unknown field" in done.output and not set(done.output) & OBEYED


def test_text_that_steers_nothing_is_shown_as_it_is() -> None:
    text = "Ünïcode, 日本語, עברית,\n\ttabs and 🙂"
    assert harmless(text) == text
    assert one_line(text).count("\n") == 0 and harmless("\x1b\x9b") == "\\x1b\\x9b" and harmless("\u202e") == "\\u202e"
