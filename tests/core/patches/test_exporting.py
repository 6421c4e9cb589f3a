"""Patches written by exporters: what the core does around them, and ``kedit patch export``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner

from kedit_core.cli.root import kedit
from kedit_core.contract import ExporterInfo, ExportReport, hookimpl
from kedit_core.errors import InputError, KeditError
from kedit_core.patches import Base, BaseTensor, EditPatch, LowRankDelta
from kedit_core.patches.exporting import export_patches
from kedit_core.plugins import PLUGINS, Catalogue, Found

PLACE = "layer.weight"


def a_patch(seed: int = 0, place: str = PLACE, digest: str = "a" * 64, **more: Any) -> EditPatch:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(3, 1, generator=generator), torch.randn(1, 2, generator=generator)
    tensor = BaseTensor(shape=(3, 2), layout="out_in", sha256={"float32": digest})
    base = Base(architecture="LlamaForCausalLM", name="org/a", tensors={place: tensor})
    return EditPatch.build(
        method={"name": "by_hand", "distribution": "kedit-tests", "version": "0"},
        **{"base": base, "operations": [LowRankDelta(place, left, right)], **more},
    )


def write_ids(patches: Sequence[EditPatch], out: Path, end: str = "") -> ExportReport:
    out.mkdir(exist_ok=True)
    (out / "ids.txt").write_text("\n".join(patch.id for patch in patches) + end)
    return ExportReport(errors={PLACE: 0.25}, details={"count": len(patches)}, notes=("short",))


def write_one(patches: Sequence[EditPatch], out: Path) -> ExportReport:
    assert not out.exists()
    out.write_bytes(patches[0].to_bytes())
    return ExportReport()


def exporter(export: Callable[..., Any] = write_ids, **more: Any) -> ExporterInfo:
    return ExporterInfo(**{"name": "ids", "summary": "ids", "export": export, "options": {"end": "at the end"}, **more})


def test_folders_and_files_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    first, second = a_patch(), a_patch(1)
    report = export_patches([first, second], exporter(), tmp_path / "new", {"end": "!"})
    assert (tmp_path / "new" / "ids.txt").read_text() == f"{first.id}\n{second.id}!"
    assert report.details == {"count": 2} and report.notes == ("short",)
    (tmp_path / "empty").mkdir()
    export_patches([first], exporter(), tmp_path / "empty")
    export_patches([first], exporter(write_one, writes="file"), tmp_path / "one")
    (tmp_path / "zero").touch()
    export_patches([first], exporter(write_one, writes="file"), tmp_path / "zero")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "zero").read_bytes() == first.to_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "one", "zero"]


def failing(error: Exception) -> Callable[..., ExportReport]:
    def export(patches: Sequence[EditPatch], out: Path) -> ExportReport:
        (out / "half").write_text("half")
        raise error

    return export


@pytest.mark.parametrize(
    ("export", "told"),
    [
        (failing(InputError("a place: a reason")), "^a place: a reason$"),
        (failing(OSError(28, "No space left on device")), "could not be written: No space left"),
        (failing(RuntimeError("oh")), r"exporter 'ids' failed with RuntimeError \(oh\)"),
        (lambda patches, out: None, "exporter 'ids' returned NoneType, not ExportReport"),
    ],
)
def test_a_failure_leaves_nothing_and_is_one_sentence(export: Callable[..., Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=told):
        export_patches([a_patch()], exporter(export), tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("writes", ["folder", "file"])
def test_nothing_is_replaced(writes: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(InputError, match=f"{name} is there already and is not an empty {writes}"):
            export_patches([a_patch()], exporter(writes=writes), tmp_path / name)
    with pytest.raises(InputError, match="no does not exist; make it first"):
        export_patches([a_patch()], exporter(writes=writes), tmp_path / "no" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def with_base(patch: EditPatch, **changes: Any) -> EditPatch:
    return evolve(patch, base=evolve(patch.base, **changes))


@pytest.mark.parametrize(
    ("patches", "told"),
    [
        ([], "nothing to export"),
        ([a_patch(), a_patch()], "give each patch once"),
        ([a_patch(), with_base(a_patch(1), architecture="GPT2LMHeadModel")], "are for LlamaForCausalLM and GPT2LMHead"),
        ([a_patch(), with_base(a_patch(1), name="org/b")], "are for org/a and org/b; export them one by one"),
        ([a_patch(), a_patch(1, digest="b" * 64)], f"made for different values of '{PLACE}'"),
    ],
)
def test_patches_that_do_not_belong_together_are_refused(patches: list[EditPatch], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        export_patches(patches, exporter(), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_base_without_a_name_goes_with_any_and_missing_parents_are_told(tmp_path: Path) -> None:
    parent = a_patch()
    child = with_base(a_patch(1, place="other.weight", parents=[parent.id]), name=None)
    assert export_patches([parent, child], exporter(), tmp_path / "a").notes == ("short",)
    told, _ = export_patches([child], exporter(), tmp_path / "b").notes
    assert child.id[:12] in told and parent.id[:12] in told and "serve the result on a model that has" in told


def test_options_are_those_that_the_exporter_declares(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ids has no option 'start'; it has end"):
        export_patches([a_patch()], exporter(), tmp_path / "out", {"start": 1})
    with pytest.raises(InputError, match="ids has no option 'end'; it has none"):
        export_patches([a_patch()], exporter(options={}), tmp_path / "out", {"end": 1})


class Plugin:
    @hookimpl
    def register_exporters(self) -> list[ExporterInfo]:
        return [exporter(), exporter(write_one, name="one", writes="file", options={})]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    entries = [Found.of(PLUGINS, "ids", Plugin)] if getattr(request, "param", True) else []
    monkeypatch.setattr(Catalogue, "installed", classmethod(lambda cls: Catalogue(entries)))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(kedit, ["patch", "export", *map(str, arguments)])


def test_the_command_writes_and_tells(installed: None, tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    ids = [a_patch(i).save(file) for i, file in enumerate(files)]
    done = run(*files, "--to", "ids", "-o", tmp_path / "out", "-p", "end=.")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "ids.txt").read_text() == "\n".join(ids) + "."
    assert "(ids, count 2)" in done.stdout and "2.50e-01 at layer.weight" in done.stdout
    assert done.stderr == "note: short\n"
    done = run(*files, "--to", "ids", "-o", tmp_path / "again", "--json")
    assert json.loads(done.stdout) == {
        "format": "ids",
        "output": str(tmp_path / "again"),
        "patches": ids,
        "errors": {PLACE: 0.25},
        "largest_error": 0.25,
        "details": {"count": 2},
        "notes": ["short"],
    }
    done = run("--formats")
    assert done.exit_code == 0 and "ids (a folder): ids" in done.stdout and "-p end=...  at the end" in done.stdout


def test_the_command_refuses(installed: None, tmp_path: Path) -> None:
    a_patch().save(tmp_path / "a.safetensors")
    told = {
        ("--to", "isd", "-o", str(tmp_path / "out")): "; formats come with plugins: pip install",
        ("--to", "ids", "-o", str(tmp_path / "out"), "-p", "end"): "is not of the form key=value",
        ("--to", "ids", "-o", str(tmp_path / "out"), "-p", "end=1", "-p", "end=2"): "-p end is given twice",
        ("--to", "one", "-o", str(tmp_path / "a.safetensors")): "is what PATCH... names, and would be replaced",
    }
    for arguments, message in told.items():
        done = run(tmp_path / "a.safetensors", *arguments)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
    key = tmp_path / "key.pem"
    done = run(tmp_path / "a.safetensors", "--to", "ids", "-o", tmp_path / "out", "--key", key)
    assert done.exit_code != 0 and "key" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


@pytest.mark.parametrize("installed", [False], indirect=True)
def test_without_a_format_it_says_what_to_install(installed: None, tmp_path: Path) -> None:
    a_patch().save(tmp_path / "a.safetensors")
    for done in (run("--formats"), run(tmp_path / "a.safetensors", "--to", "peft", "-o", tmp_path / "out")):
        assert done.exit_code == 2 and "pip install kedit-peft" in done.stderr
