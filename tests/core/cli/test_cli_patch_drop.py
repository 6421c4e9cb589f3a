"""``kedit patch drop``: a new patch file, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_methods
from attrs import evolve
from click.testing import CliRunner, Result

from kedit_core import Editor, EditPatch, EditRequest, hookimpl
from kedit_core.cli.root import kedit
from kedit_core.editing.sources import ModelFolder
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)
FACTS = [
    EditRequest(prompt=f"The capital of {land} is", target_new="Rome", case_id=case)
    for case, land in (("a", "France"), ("b", "Alice"), ("c", "Bob"))
]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: CATALOGUE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, parent.safetensors, and child.safetensors on top of it, made with settings of their own."""
    folder = tmp_path_factory.mktemp("drop")
    model, tokenizer = tiny("llama")
    for each in (model, tokenizer):
        each.save_pretrained(folder / "base")
    editor = Editor(model, tokenizer, "droppable", {"layer": 2}, seed=3, catalogue=CATALOGUE)
    editor.edit(FACTS, evaluate=False).patch.save(folder / "alone.safetensors")
    editor.restore()
    editor.edit(EditRequest(prompt="The mayor of Bob is", target_new="Rome"), evaluate=False).patch.save(
        folder / "parent.safetensors"
    )
    editor.edit(FACTS, evaluate=False).patch.save(folder / "child.safetensors")
    return folder


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, ["patch", "drop", *map(str, args)])


def refusal(code: int, *args: str | Path) -> str:
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stderr.count("Error") == 1
    return result.stderr


def test_a_fact_is_dropped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "less.safetensors"
    result = run(folder / "alone.safetensors", "--case", "b", "--model", folder / "base", "-o", out)
    assert result.exit_code == 0, result.output
    made = EditPatch.load(out)
    assert [fact["case_id"] for fact in made.requests] == ["a", "c"]  # type: ignore[union-attr]
    assert (made.hparams["layer"], made.seed) == (2, 3)
    assert "dropped: The capital of Alice is -> Rome" in result.stdout
    assert f"patch {made.id[:12]} is in {out}" in result.stdout and "2 facts left" in result.stdout
    data = json.loads(run(out, "--case", "#1", "--model", folder / "base", "-o", tmp_path / "one", "--json").stdout)
    last = EditPatch.load(tmp_path / "one")
    assert (data["patch"], data["made_from"], data["requests"]) == (last.id, made.id, 1)
    assert data["dropped"] == [FACTS[0].fact] and data["warnings"] == [] and data["output"] == str(tmp_path / "one")


def test_parents_are_put_beneath(folder: Path, tmp_path: Path) -> None:
    child, parent, out = folder / "child.safetensors", folder / "parent.safetensors", tmp_path / "less"
    model = ("--model", folder / "base")
    parent_id = EditPatch.load(parent).id
    assert f"on top of {parent_id}, not on the model now" in refusal(1, child, "--case", "a", *model, "-o", out)
    assert not out.exists()
    result = run(child, "--case", "a", *model, "--patch", parent, "-o", out)
    assert result.exit_code == 0, result.output
    assert EditPatch.load(out).parents == (parent_id,)


def test_the_model_is_the_one_the_patch_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def resolve(model: str, host: Any, revision: str | None = None) -> ModelFolder:
        asked.append((model, revision))
        return ModelFolder(folder=folder / "base", name=model, revision=revision)

    monkeypatch.setattr("kedit_core.editing.editor.resolve_model", resolve)
    patch = EditPatch.load(folder / "alone.safetensors")
    named = evolve(patch, base=evolve(patch.base, name="lab/tiny", revision="abc"))
    named.save(tmp_path / "named")
    for more in ((), ("--revision", "main"), ("--model", "lab/copy")):
        result = run(tmp_path / "named", "--case", "a", "-o", tmp_path / "less", *more)
        assert result.exit_code == 0, result.output
        base = EditPatch.load(tmp_path / "less").base
        assert (base.name, base.revision) == ("lab/tiny", "abc")
    assert asked == [("lab/tiny", "abc"), ("lab/tiny", "main"), ("lab/copy", None)]


def test_what_is_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedit_core.editing.editor.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    alone, out = folder / "alone.safetensors", ("-o", tmp_path / "less")
    assert "does not name the LlamaForCausalLM it is for" in refusal(2, alone, "--case", "a", *out)
    model = ("--model", folder / "base")
    assert "has no case 'z'; it has a, b, c" in refusal(2, alone, "--case", "z", *model, *out)
    assert "is a folder; give the name of a file" in refusal(2, alone, "--case", "a", *model, "-o", tmp_path)
    assert "make it first" in refusal(2, alone, "--case", "a", *model, "-o", tmp_path / "no" / "less")
    assert "Missing option '--case'" in refusal(2, alone, *model, *out)
    assert "takes no option 'stats'" in refusal_with_model(alone, "--case", "a", *model, *out, "--stats", folder)
    patch = EditPatch.load(alone)
    evolve(patch, method=evolve(patch.method, name="elsewhere")).save(tmp_path / "foreign")
    text = refusal(2, tmp_path / "foreign", "--case", "a", *model, *out)
    assert "'elsewhere'" in text and f"the patch was made by {patch.method.distribution}" in text
    assert not (tmp_path / "less").exists()


def refusal_with_model(*args: str | Path) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kedit_core.editing.editor.load_model", lambda *_, **__: tiny("llama"))
        return refusal(2, *args)


def test_warnings_and_another_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_implementations

    class Warns(toy_implementations.Droppable):
        @hookimpl
        def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> EditPatch | None:
            context.warn("large_residual", 2.0, "look at it", "the rest moved")
            return super().drop_request(context, patch, request_id)

    monkeypatch.setattr(toy_implementations, "Droppable", Warns)
    alone, out = folder / "alone.safetensors", ("-o", tmp_path / "less")
    result = run(alone, "--case", "a", "--model", folder / "base", *out)
    assert result.exit_code == 0 and "warning: the rest moved; look at it" in result.stderr
    model, tokenizer = tiny("llama", seed=1)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "other")
    assert "load the right base" in refusal(1, alone, "--case", "a", "--model", tmp_path / "other", *out)
