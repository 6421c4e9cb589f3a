"""Stack files: what is read and what is refused, and that a file is the live stack it was written from."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from core.patches.patch_kit import FACT, METHOD, random_operation
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_core.editing import Editor
from kedit_core.editing.stacks import live_digest
from kedit_core.errors import BaseMismatchError, FaultsError, InputError, KeditError, StackOrderError
from kedit_core.folders import apply_to_folder
from kedit_core.folders.base import FolderBase
from kedit_core.patches import EditPatch
from kedit_core.stacks.digest import folder_digest, stored_dtype, touched
from kedit_core.stacks.file import StackedPatch, StackFile, base_reference, is_stack_file
from kedit_core.stacks.text import LARGEST, read_yaml, write_yaml
from kedit_core.testing.tiny import tiny

ID = "ab" * 32
WHOLE = f"format: 1\nbase: org/model\npatches:\n  - id: '{ID}'\n    file: a.safetensors\n"


def editor_on(folder: Path) -> Editor:
    return Editor.from_pretrained(folder)


def made(editor: Editor, place: str, seed: int, kind: str = "low_rank_delta", **more: Any) -> EditPatch:
    parameter = editor.model.get_parameter(place)
    base = editor.stack.base_of([place])
    layout = base.tensors[place].layout
    operation = random_operation(place, tuple(parameter.shape), layout, kind, seed, torch.float32)
    return EditPatch(method=METHOD, seed=seed, base=base, operations=(operation,), requests=(FACT,), **more)


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    model, tokenizer = tiny(family, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama") / "base", "llama")


UP, DOWN = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down"))


@pytest.fixture
def home(base: Path, tmp_path: Path) -> Path:
    """A stack file of three patches: merged, attached, and one made on top of the first; its base is beside it."""
    shutil.copytree(base, tmp_path / "base")
    editor = editor_on(tmp_path / "base")
    first, second = made(editor, DOWN, 1), made(editor, UP, 2)
    third = made(editor, DOWN, 3, "dense_delta", parents=(first.id,))
    editor.apply(first)
    editor.apply(second, way="attached")
    editor.apply(third)
    editor.save_stack(tmp_path / "stack.yaml", base=str(tmp_path / "base"))
    text = (tmp_path / "stack.yaml").read_text().replace(str(tmp_path / "base"), "./base")
    (tmp_path / "stack.yaml").write_text(text)
    return tmp_path


# ---------------------------------------------------------------------- reading and writing


@given(st.dictionaries(st.sampled_from(["a", "b", "long_key"]), st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_is_read_as_it_was_written(fields: dict[str, str]) -> None:
    both = {**fields, "items": [fields, {"number": "5e3"}] if fields else [], "format": 1}
    assert read_yaml(write_yaml(both).encode()) == both


@pytest.mark.parametrize(
    "text", ["5e-4", "12345e67890", "null", "~", "true", "0o17", "- a", "a: b", "a #b", " a", "é", ""]
)
def test_text_that_yaml_would_take_for_something_else(text: str) -> None:
    assert read_yaml(write_yaml({"key": text}).encode()) == {"key": text}


def test_the_same_stack_gives_the_same_bytes(home: Path) -> None:
    stack = StackFile.load(home / "stack.yaml")
    before = (home / "stack.yaml").read_bytes()
    stack.save(home / "stack.yaml")
    assert (home / "stack.yaml").read_bytes() == before
    assert StackFile.load(home / "stack.yaml") == stack


def test_by_hand(tmp_path: Path) -> None:
    """Comments, quotes, flow style and any order of keys; what may be left out is."""
    text = f"# mine\npatches: [{{file: sub/a.safetensors, id: '{ID}', way: attached}}]\nformat: 1 # one\nbase: ./m\n"
    (tmp_path / "s.yaml").write_text(text)
    stack = StackFile.load(tmp_path / "s.yaml")
    assert stack.patches == (StackedPatch(id=ID, file="sub/a.safetensors", way="attached"),)
    assert stack.model == str(tmp_path / "m") and stack.weights_sha256 is stack.dtype is None
    assert stack.path(stack.patches[0]) == tmp_path / "sub" / "a.safetensors"


BOMB = "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
ENTRY = WHOLE.split("\n", 3)[3]
REFUSED = {
    "aliases": (BOMB, "line 1: anchors and aliases"),
    "a tag": ("!!python/object/apply:os.system ['true']", "tag 'tag:yaml.org,2002:python"),
    "nested deeply": ("[" * 100_000, "nested too deeply"),
    "nested deeply, in blocks": ("".join(f"{' ' * i}a:\n" for i in range(500)), "nested too deeply"),
    "too large": ("#" * (LARGEST + 1), f"at most {LARGEST}"),
    "a key twice": ("format: 1\nformat: 1\n", "line 2: the key 'format' is given twice"),
    "two documents": ("format: 1\n---\nformat: 1\n", "a second document"),
    "no YAML": ("a: [", "line 1"),
    "a key that is no text": ("1: 2", "a key must be text"),
    "a long number": (f"format: {'9' * 5000}", "too many digits"),
    "a character beyond the last": ('a: "\\U00110000"', "an escape or a number in it is beyond"),
    "a character far beyond the last": ('a: "\\UFFFFFFFF"', "an escape or a number in it is beyond"),
    "a version of YAML with many digits": (f"%YAML {'9' * 5000}.1\n---\na: 1\n", "a number in it is beyond"),
    "control characters": ("a: \x00", "special characters"),
    "nothing": ("", "the file: is no mapping"),
    "a list": ("- a", "the file: is no mapping"),
    "nothing in it": ("{}", "format: is missing"),
    "another format": (WHOLE.replace("1", "2", 1), "format: is 2, and this kedit reads format 1"),
    "a truth for the format": (WHOLE.replace("format: 1", "format: true"), "format: is True"),
    "an unknown key": (WHOLE + "wieghts_sha256: x\n", "'wieghts_sha256': is no key of a stack file; did you mean"),
    "force": (WHOLE + "force: true\n", "'force': is no key"),
    "a base that is a bare path": (WHOLE.replace("org/model", "a/b/c"), "base: is 'a/b/c'"),
    "a number for a base": (WHOLE.replace("org/model", "7"), "base: is 7"),
    "a base that is a stack": (WHOLE.replace("org/model", "./x/stack.yaml/."), "base: is './x/stack.yaml/.', a stac"),
    "a revision": (WHOLE + "revision: ../x\n", "revision: is '../x'"),
    "a revision of a folder": (WHOLE.replace("org/model", "./m") + "revision: main\n", "and the base is a folder"),
    "a dtype": (WHOLE + "dtype: int8\n", "dtype: is 'int8'; give one of float32"),
    "a digest alone": (WHOLE + f"weights_sha256: '{ID}'\n", "dtype: is missing"),
    "no digest": (WHOLE + "weights_sha256: abc\n", "weights_sha256: is 'abc'"),
    "patches that are none": ("format: 1\nbase: a\npatches: 3\n", "patches: is no list"),
    "a patch that is none": (WHOLE + "  - hello\n", "patches[1]: is no mapping"),
    "no file": (WHOLE + f"  - id: '{'cd' * 32}'\n", "patches[1].file: is missing"),
    "an id in capitals": (WHOLE.replace(ID, ID.upper()), "patches[0].id: is 'ABAB"),
    "an id that YAML takes for a number": (WHOLE.replace(f"'{ID}'", "1" * 64), "patches[0].id: is 1111"),
    "an id twice": (WHOLE + ENTRY, "patches[1].id: is that of patches[0]"),
    "an absolute file": (WHOLE.replace("a.saf", "/etc/a.saf"), "patches[0].file: is '/etc/a.safetensors'; give it rel"),
    "a file of the user's": (WHOLE.replace("a.saf", "~/a.saf"), "patches[0].file: is '~/a.safetensors'; give it rel"),
    "a file above": (WHOLE.replace("a.saf", "x/../../a.saf"), "it must lie in the stack file's folder"),
    "a drive": (WHOLE.replace("a.saf", "C:a.saf"), "patches[0].file: is 'C:a.safetensors'; give it relative"),
    "a back slash": (WHOLE.replace("a.saf", "x\\a.saf"), "give it relative"),
    "a folder for a file": (WHOLE.replace("a.safetensors", "x/"), "give the name of a file"),
    "a way": (WHOLE + "    way: glued\n", "patches[0].way: is 'glued'; give merged or attached"),
    "a source of two lines": (WHOLE + '    source: "a\\nb"\n', "patches[0].source: is 'a\\nb'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    text, told = REFUSED[case]
    (tmp_path / "stack.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(FaultsError) as error:
        StackFile.load(tmp_path / "stack.yaml")
    assert told in "\n".join(error.value.faults) and error.value.source == str(tmp_path / "stack.yaml")
    assert time.perf_counter() - started < 5  # a bomb would take for ever


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = "format: 3\nbase: ''\npatches:\n  - id: x\n    file: /a\n  - way: x\n"
    (tmp_path / "stack.yaml").write_text(text)
    with pytest.raises(FaultsError) as error:
        StackFile.load(tmp_path / "stack.yaml")
    paths = [fault.split(":")[0] for fault in error.value.faults]
    entry = [f"patches[{number}].{key}" for number in (0, 1) for key in ("id", "file")]
    assert paths == ["format", "base", *entry, "patches[1].way"]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(), st.text().map(str.encode), st.text(":-[]{}&*!|>'\"#\n ab1", max_size=60).map(str.encode)))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError):
        StackFile.load(path)  # none of these has a base and patches


def test_a_stack_is_checked_when_it_is_built() -> None:
    with pytest.raises(FaultsError, match=r"patches\[0\].file"):
        StackFile(base="org/model", patches=[StackedPatch(id=ID, file="../a")])


def test_not_bytes_of_utf_8(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"format: 1\nbase: \xff\n")
    with pytest.raises(FaultsError, match="line 2: is not UTF-8"):
        StackFile.load(tmp_path / "s.yaml")


def test_no_file_and_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no stack file"):
        StackFile.load(tmp_path / "s.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with monkeypatch.context() as patched, pytest.raises(InputError, match="could not be read"):
        patched.setattr(Path, "is_file", lambda path: True)  # it became a pipe after somebody looked
        StackFile.load(tmp_path / "pipe.yaml")
    stack = StackFile(base="org/model", patches=[StackedPatch(id=ID, file="a")], folder=tmp_path)
    with pytest.raises(InputError, match="files lie beside"):
        stack.save(tmp_path.parent / "s.yaml")
    with pytest.raises(InputError, match=r"a is not there, the patch abab.*\(it comes from hub:x\)"):
        stack.read_one(StackedPatch(id=ID, file="a", source="hub:x"))
    (tmp_path / "dir.yaml").mkdir()
    assert is_stack_file("x/stack.yaml") and not is_stack_file(tmp_path / "dir.yaml") and not is_stack_file("a/b")


def test_how_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert base_reference("models/m", Path("stacks")) == "../models/m"
    assert base_reference("models/m", Path()) == "./models/m"
    assert base_reference("/models/m", Path()) == "/models/m"
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match="there is a folder org/model here"):
        _ = StackFile(base="org/model").model
    assert StackFile(base="./org/model", folder=tmp_path).model == str(tmp_path / "org" / "model")


# ---------------------------------------------------------------------- on a model


def test_from_a_file(home: Path) -> None:
    """The stack is there with its ways and gives the recorded weights, which are those of the folder's digest."""
    stack = StackFile.load(home / "stack.yaml")
    editor = Editor.from_pretrained(home / "stack.yaml")
    assert [(each.patch.id, each.way) for each in editor.stack.patches] == [(p.id, p.way) for p in stack.patches]
    assert [each.way for each in stack.patches] == ["merged", "attached", "merged"]
    patches = stack.read()
    assert editor.stack.weights_digest(touched(patches)) == stack.weights_sha256
    ways = [(patch, each.way) for patch, each in zip(patches, stack.patches, strict=True)]
    assert folder_digest(FolderBase.open(home / "base"), ways, "float32") == stack.weights_sha256
    merged = [(patch, "merged") for patch in patches]
    assert folder_digest(FolderBase.open(home / "base"), merged, "float32") != stack.weights_sha256
    editor.restore()
    assert editor.apply_stack(home / "stack.yaml")[1].way == "attached"


FAMILIES = [("gpt2", torch.float32), ("llama", torch.bfloat16), ("t5", torch.float16)]


@pytest.mark.parametrize(("family", "dtype"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_the_digest_from_files_is_that_of_the_loaded_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where weights are stored transposed (gpt2), and where some stay in float32 whatever is asked for (t5)."""
    folder = save(tmp_path / "base", family, dtype)
    editor = editor_on(folder)
    matrices = [
        name for name, each in editor.model.named_parameters() if (each.ndim == 2 and "mlp" in name) or ".wo." in name
    ]
    stack = []
    for seed, name in enumerate(matrices[:4]):
        patch = made(editor, name, seed, "low_rank_delta" if seed % 2 else "sparse_delta")
        editor.apply(patch, way="merged")
        stack.append((patch, "merged"))
    assert len(stack) >= 2
    opened = FolderBase.open(folder)
    assert f"torch.{stored_dtype(opened)}" == str(dtype)
    assert folder_digest(opened, stack, stored_dtype(opened)) == live_digest(editor)


def test_all_or_nothing(home: Path) -> None:
    """A stack whose last patch does not fit leaves the model as it was."""
    stack = StackFile.load(home / "stack.yaml")
    editor = editor_on(home / "base")
    other = made(editor, UP, 9)
    tensors = {UP: evolve(other.base.tensors[UP], sha256={"float32": ID})}
    other = evolve(other, base=evolve(other.base, tensors=tensors))
    other.save(home / "other.safetensors")
    before = editor.stack.weights_digest()
    with pytest.raises(BaseMismatchError):
        editor.apply_stack(stack.with_patch(StackedPatch(id=other.id, file="other.safetensors")))
    assert editor.stack.patches == () and editor.stack.weights_digest() == before


def test_weights_that_are_not_the_recorded_ones(home: Path) -> None:
    stack = evolve(StackFile.load(home / "stack.yaml"), weights_sha256=ID)
    editor = editor_on(home / "base")
    before = editor.stack.weights_digest()
    with pytest.raises(BaseMismatchError, match="not those it records"):
        editor.apply_stack(stack)
    assert editor.stack.patches == () and editor.stack.weights_digest() == before
    told: list[str] = []
    editor.apply_stack(evolve(stack, arithmetic="torch 1.0 on another"), on_note=told.append)
    assert len(editor.stack.patches) == 3 and "torch 1.0 on another" in told[0]
    editor.restore()
    editor.apply_stack(stack, force=True, on_note=told.append)
    assert len(told) == 2 and len(editor.stack.patches) == 3
    with pytest.raises(StackOrderError, match="begins at the base"):
        editor.apply_stack(stack)


def test_another_dtype_than_the_recorded_one(home: Path) -> None:
    with pytest.raises(InputError, match="recorded in float32 and bfloat16 is asked for"):
        Editor.from_stack(home / "stack.yaml", dtype=torch.bfloat16)
    evolve(StackFile.load(home / "stack.yaml"), weights_sha256=None).save(home / "stack.yaml")
    assert Editor.from_stack(home / "stack.yaml", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="leave the revision out"):
        Editor.from_pretrained(home / "stack.yaml", revision="main")


def test_a_patch_that_is_another_one(home: Path) -> None:
    stack = StackFile.load(home / "stack.yaml")
    first, second = stack.path(stack.patches[0]), stack.path(stack.patches[1])
    shutil.copy(second, first)
    with pytest.raises(InputError, match=f"is patch {stack.patches[1].id[:12]} and the stack names"):
        Editor.from_stack(home / "stack.yaml")
    first.unlink()
    with pytest.raises(InputError, match="is not there"):
        stack.read()


def test_parents(home: Path) -> None:
    stack = StackFile.load(home / "stack.yaml")
    first, _, third = stack.patches
    with pytest.raises(StackOrderError, match="which is not on this model"):
        stack.without([first.id[:12]]).read()
    moved = stack.without([third.id]).with_patch(third, at=1)
    assert moved.patches[0] == third and moved.weights_sha256 is None
    with pytest.raises(StackOrderError):
        moved.read()
    with pytest.raises(StackOrderError, match="no patch whose id begins with 'zz'"):
        stack.without(["zz"])
    with pytest.raises(InputError, match="give a number from 1 to 3"):
        stack.without([third.id]).with_patch(third, at=4)
    editor = Editor.from_stack(home / "stack.yaml")
    editor.remove(editor.stack.patches[0].patch)
    with pytest.raises(StackOrderError, match="no longer on the model"):
        editor.save_stack(home / "orphans.yaml", base="org/model")
    assert not (home / "orphans.yaml").exists()


def test_a_model_without_a_name(home: Path) -> None:
    editor = editor_on(home / "base")
    with pytest.raises(InputError, match="has no name"):
        editor.save_stack(home / "none.yaml")
    saved = editor.save_stack(home / "none.yaml", base="org/model")
    assert saved == StackFile.load(home / "none.yaml") and saved.patches == () and saved.weights_sha256 is None


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Editor, list[EditPatch], Path]:
    editor = editor_on(base)
    patches = [made(editor, place, seed) for seed, place in enumerate((DOWN, DOWN, UP, UP))]
    patches.append(made(editor, DOWN, 7, parents=(patches[0].id, patches[2].id)))
    folder = tmp_path_factory.mktemp("live")
    for patch in patches:
        patch.save(folder / f"{patch.id}.safetensors")
    return editor, patches, folder


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["merged", "attached"])), min_size=1, max_size=8))
def test_file_and_live_stack_go_together(
    live: tuple[Editor, list[EditPatch], Path], steps: list[tuple[int, Any]]
) -> None:
    """Patches put on and taken off at random, on the model and in the file: both allow the same and say the same."""
    editor, patches, folder = live
    editor.restore()
    stack = StackFile(base="org/model", folder=folder)
    for number, way in steps:
        patch = patches[number]
        on = [entry.patch.id for entry in editor.stack.patches]
        if patch.id in on:
            after = stack.without([patch.id])
            try:
                after.read()
            except StackOrderError:
                assert any(patch.id in entry.patch.parents for entry in editor.stack.patches)
                continue
            editor.remove(patch)
        else:
            after = stack.with_patch(StackedPatch(id=patch.id, file=f"{patch.id}.safetensors", way=way))
            try:
                after.read()
            except StackOrderError as error:
                with pytest.raises(StackOrderError, match=str(error)[:20]):
                    editor.apply(patch, way=way)
                continue
            editor.apply(patch, way=way)
        stack = after
        stack.save(folder / "stack.yaml")
        assert StackFile.load(folder / "stack.yaml") == stack
    expected, entries = editor.stack.weights_digest(), [(each.id, each.way) for each in editor.stack.patches]
    editor.restore()
    editor.apply_stack(folder / "stack.yaml") if stack.patches else None
    assert editor.stack.weights_digest() == expected
    assert [(each.id, each.way) for each in editor.stack.patches] == entries


# ---------------------------------------------------------------------- on a folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def test_several_patches_in_one_pass(home: Path) -> None:
    """The folder is byte for byte that of one pass a patch; when the last cannot go on, nothing is written."""
    patches = StackFile.load(home / "stack.yaml").read()
    apply_to_folder(home / "base", patches, home / "at_once")
    apply_to_folder(home / "base", patches[0], home / "in_turn")
    for patch in patches[1:]:
        apply_to_folder(home / "in_turn", patch, home / "in_turn", overwrite=True)
    assert contents(home / "at_once") == contents(home / "in_turn")
    with pytest.raises(StackOrderError):
        apply_to_folder(home / "base", patches[::-1], home / "other")
    with pytest.raises(InputError, match="no patch was given"):
        apply_to_folder(home / "base", (), home / "other")
    assert not (home / "other").exists()


def test_tied_names_are_refused(tmp_path: Path) -> None:
    """A parameter that two patches call by its two names has no digest: each line would lack the other's change."""
    folder = save(tmp_path / "base", "gpt2")
    editor = editor_on(folder)
    name = "transformer.wte.weight"
    patch = made(editor, name, 0, "sparse_delta")
    described = patch.base.tensors[name]
    assert described.aliases == ("lm_head.weight",)
    alias = evolve(
        patch,
        base=evolve(patch.base, tensors={"lm_head.weight": evolve(described, aliases=(name,))}),
        operations=(evolve(patch.operations[0], place="lm_head.weight"),),
    )
    with pytest.raises(KeditError, match="one tied parameter"):
        folder_digest(FolderBase.open(folder), [(patch, "merged"), (alias, "merged")], "float32")
