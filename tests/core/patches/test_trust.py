"""The gate that patch files are read through: whose patches are believed, and that nothing is parsed before."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import click
import pytest
import torch
from click.testing import CliRunner
from core.patches.patch_kit import FACT, loose_patch, patch_of, random_operation

from kedit_core.cli import root
from kedit_core.errors import InputError, PatchFormatError, UntrustedPatchError
from kedit_core.folders import apply_to_folder, revert_folder
from kedit_core.patches import EditPatch, PatchStack, container, inspect
from kedit_core.patches.signing import sign
from kedit_core.patches.trust import ANYONE, ENVIRONMENT, TrustPolicy, from_environment, policy_for
from kedit_core.stacks.file import StackedPatch, StackFile
from kedit_core.testing.tiny import tiny

pytest.importorskip("model_signing")

PATCH = loose_patch([], {}, requests=[FACT])


@pytest.fixture
def patch(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    PATCH.save(tmp_path / "p.safetensors")
    sign(tmp_path / "p.safetensors", keys[0])
    return tmp_path / "p.safetensors"


def test_a_policy_lets_signed_patches_in_and_no_others(
    patch: Path, keys: tuple[Path, Path], strangers: tuple[Path, Path]
) -> None:
    assert EditPatch.load(patch, trust=TrustPolicy(keys=(strangers[1], keys[1]))).id == PATCH.id
    assert inspect(patch, trust=TrustPolicy([keys[1]])).id == PATCH.id
    for read in (EditPatch.load, inspect):
        with pytest.raises(UntrustedPatchError, match="not made with the key"):
            read(patch, trust=TrustPolicy(keys=(strangers[1],)))  # type: ignore[operator]
    data, signature = patch.read_bytes(), patch.with_name("p.safetensors.sig").read_bytes()
    policy = TrustPolicy(keys=(keys[1],))
    assert EditPatch.from_bytes(data, trust=policy, signature=signature).id == PATCH.id
    with pytest.raises(UntrustedPatchError, match="has no signature"):
        EditPatch.from_bytes(data, trust=policy)


def test_nothing_of_an_untrusted_file_is_parsed(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"not a patch at all, and longer than eight bytes")
    with pytest.raises(PatchFormatError):
        EditPatch.load(path)

    def parsed(*_: object) -> None:
        raise AssertionError("the file was parsed")

    monkeypatch.setattr(container, "read_header", parsed)
    PATCH.save(tmp_path / "q")
    shutil.copy(tmp_path / "q", tmp_path / "q.sig")
    for name in ("p", "q"):
        for read in (EditPatch.load, inspect):
            with pytest.raises(UntrustedPatchError):
                read(tmp_path / name, trust=TrustPolicy([keys[1]]))  # type: ignore[operator]


def test_terabytes_that_take_no_room_are_not_hashed_for_their_signature(patch: Path, keys: tuple[Path, Path]) -> None:
    try:
        os.truncate(patch, 8 << 40)
    except OSError:
        pytest.skip("this file system has no files of 8 TB")
    with pytest.raises(PatchFormatError, match="cannot be read: its tensors take 8796093022208 bytes of memory"):
        EditPatch.load(patch, trust=TrustPolicy([keys[1]]))


def test_a_file_swapped_after_its_signature_was_checked_is_not_believed(
    patch: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = loose_patch([], {}, requests=[{**FACT, "target_new": "Zenda"}]).to_bytes()
    read_header = container.read_header

    def swapped(stream: BinaryIO, size: int) -> container.Header:
        stream.seek(0, io.SEEK_END)  # as if the file held the other patch by now
        return read_header(io.BytesIO(other), len(other))

    monkeypatch.setattr(container, "read_header", swapped)
    with pytest.raises(UntrustedPatchError, match="changed while it was read"):
        EditPatch.load(patch, trust=TrustPolicy([keys[1]]))
    assert EditPatch.load(patch).id != PATCH.id  # nobody asked for a signature


def test_the_environment_asks_for_signatures_everywhere(
    patch: Path, keys: tuple[Path, Path], strangers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert from_environment() is None
    unsigned = patch.with_name("unsigned")
    PATCH.save(unsigned)
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join([str(strangers[1]), str(keys[1])]))
    assert EditPatch.load(patch).id == PATCH.id
    readers: tuple[Callable[[], object], ...] = (
        lambda: EditPatch.load(unsigned),
        lambda: inspect(unsigned),
        lambda: EditPatch.from_bytes(PATCH.to_bytes()),
    )
    for read in readers:
        with pytest.raises(UntrustedPatchError):
            read()
    assert EditPatch.load(unsigned, trust=ANYONE).id == PATCH.id
    monkeypatch.setenv(ENVIRONMENT, "")
    with pytest.raises(InputError, match="names no key"):
        EditPatch.load(patch)
    monkeypatch.setenv(ENVIRONMENT, str(patch))
    with pytest.raises(InputError, match="no public key"):
        EditPatch.load(patch)


def test_keys_on_the_command_line_narrow_the_environment_and_never_widen_it(
    keys: tuple[Path, Path], strangers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policy_for([]) is None
    monkeypatch.setenv(ENVIRONMENT, f"{keys[1]}{os.pathsep}")
    assert policy_for([]) == TrustPolicy([keys[1]]) == policy_for([keys[1]])
    with pytest.raises(InputError, match="is not one of those in KEDIT_TRUSTED_KEYS"):
        policy_for([keys[1], strangers[1]])
    with pytest.raises(InputError, match="believes nobody"):
        TrustPolicy(keys=())
    with pytest.raises(InputError, match="are a sequence"):
        TrustPolicy(str(keys[1]))


def test_commands_read_no_patch_without_the_signature_asked_for(
    patch: Path, keys: tuple[Path, Path], strangers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Every command there is: one that is new and takes a patch must be told of here."""
    fact, requests = ("--prompt", "a", "--subject", "a", "--target", "b"), _requests(tmp_path)
    stack = tmp_path / "s.yaml"
    StackFile(base="org/none", patches=[StackedPatch(id=PATCH.id, file=patch.name)], folder=tmp_path).save(stack)
    out = tmp_path / "out"
    calls: dict[str, tuple[object, ...]] = {
        "ask": ("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--patch", patch, "--prompt", "a"),
        "edit": ("no:model", "-m", "rome", "--patch", patch, *fact),
        "evaluate": ("no:model", "--patch", patch, "--requests", requests),
        "generate": ("no:model", "--patch", patch, "--prompt", "x"),
        "locate": ("no:model", "--patch", patch, "--prompt", "a", "--subject", "a"),
        "patch apply": ("no:model", patch, "-o", out),
        "patch audit": ("no:model", "no:other", "--patch", patch),
        "patch compare": (patch,),
        "patch conflicts": (patch, patch),
        "patch drop": (patch, "--case", "#1", "-o", out),
        "patch export": (patch, "--to", "peft", "-o", out),
        "patch show": (patch,),
        "patch verify": (patch,),
        "push": (patch, tmp_path / "shelf"),
        "stack add": (stack, patch),
        "stack apply": (stack, "-o", out),
        "stack lock": (stack,),
        "stack new": ("no:model", patch, "-o", tmp_path / "new.yaml"),
        "stack show": (stack,),
        "stack verify": (stack,),
        "tune": ("no:model", "-m", "rome", "--patch", patch, "--requests", requests, "-o", tmp_path / "preset.yaml"),
    }
    reading = {name: keyed for name, keyed in _commands_with_patches().items() if name not in _READ_NONE}
    assert set(reading) <= set(calls)
    before = sorted(tmp_path.iterdir())
    for name, keyed in reading.items():
        for key, environment in [([], {ENVIRONMENT: str(strangers[1])})] + [(["--key", strangers[1]], {})] * keyed:
            words = [str(word) for word in (*name.split(), *calls[name], *key)]
            done = CliRunner().invoke(root.kedit, words, env=environment)
            assert "not made with the key" in done.output, (name, key, done.output)  # before a model is looked for
            assert done.exit_code == (name != "stack show")
    for words in (("generate", stack, "--prompt", "x"), ("stats", stack, "--layers", "0")):
        done = CliRunner().invoke(root.kedit, [str(word) for word in words], env={ENVIRONMENT: str(strangers[1])})
        assert done.exit_code == 1 and "not made with the key" in done.output, (words, done.output)
    assert sorted(tmp_path.iterdir()) == before
    done = CliRunner().invoke(root.kedit, ["patch", "show", str(patch)], env={ENVIRONMENT: str(keys[1])})
    assert done.exit_code == 0, done.output


_READ_NONE = {"sign", "stack remove"}  # what they read is put on no model: it is signed, or taken out of the file


def _commands_with_patches() -> dict[str, bool]:
    """Every command that is given a patch or a stack file, and whether it has --key."""
    found: dict[str, bool] = {}

    def look(command: click.Command, context: click.Context, name: str) -> None:
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                inner = command.get_command(context, each)
                assert inner is not None
                look(inner, click.Context(inner, parent=context), f"{name} {each}".strip())
            return
        shown = {(each.metavar or each.human_readable_name).upper() for each in command.params}
        names = {each.name for each in command.params}
        if "patches" in names or any("PATCH" in text or text == "STACK" for text in shown) or name == "patch audit":
            found[name] = "keys" in names

    look(root.kedit, click.Context(root.kedit), "")
    return found


def _requests(folder: Path) -> Path:
    (folder / "r.jsonl").write_text('{"prompt": "a", "subject": "a", "target_new": "b"}\n')
    return folder / "r.jsonl"


def test_an_edited_folder_is_taken_back_whoever_is_trusted(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny("gpt2")
    model.save_pretrained(tmp_path / "base")
    name = "transformer.h.0.mlp.c_proj.weight"
    shape = tuple(model.get_parameter(name).shape)
    operation = random_operation(name, shape, "in_out", "low_rank_delta", 0, torch.float32)
    made = patch_of(PatchStack.of(model), [operation])
    made.save(tmp_path / "p")
    sign(tmp_path / "p", keys[0])
    monkeypatch.setenv(ENVIRONMENT, str(keys[1]))
    apply_to_folder(tmp_path / "base", EditPatch.load(tmp_path / "p"), tmp_path / "edited")
    # the copy in .kedit has no signature: who can write there can write the weights
    revert_folder(tmp_path / "edited", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "base/model.safetensors").read_bytes()
