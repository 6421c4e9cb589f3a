"""A training from requests to a folder that edits: what is refused, what is written, and that the base stays."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from core.training.toy_method import catalogue, editor_of, facts
from safetensors.torch import load_file, save_file

from kedit_core.errors import (
    BaseMismatchError,
    HyperParamsError,
    InputError,
    KeditError,
    MethodError,
    RequestError,
    RequirementError,
)
from kedit_core.patches import model_digest
from kedit_core.testing.snapshot import Snapshot
from kedit_core.training import EditorFolder, train
from kedit_core.training.folder import content_digest, read_state
from kedit_core.training.run import training_context, training_settings


def a_training(folder: Path, **more: Any) -> Any:
    editor = more.pop("editor", None) or editor_of()
    return train(editor, more.pop("requests", facts()), folder, **more)


def test_1_the_base_is_left_as_it_was(tmp_path: Path) -> None:
    """Acceptance check 1, after 100 steps; flags, modes and hooks too, whatever they were."""
    editor = editor_of()
    editor.model.train()
    next(editor.model.parameters()).requires_grad_(False)
    before, digest = Snapshot(editor.model), model_digest(editor.model)
    training = a_training(tmp_path / "e", editor=editor, overrides={"iterations": 100, "val_interval": 50})
    assert before.differences(editor.model) == [] and model_digest(editor.model) == digest
    assert training.outcome.updates == 100
    assert training.outcome.history[0]["loss/total"] > training.outcome.best


def test_an_editor_edits(tmp_path: Path) -> None:
    training = a_training(tmp_path / "e")
    user = editor_of(resources={"editor": tmp_path / "e"})
    result = user.edit(facts()[:2], evaluate=False)
    found = EditorFolder.read(tmp_path / "e")
    assert result.patch.state.config["resources"] == {"editor": found.digest}
    assert torch.equal(found.tensors["strength"], load_file(tmp_path / "e" / "editor.safetensors")["strength"])
    assert found.method == "strength" and found.config == {"layer": 1} and found.hparams["lr"] == 0.1
    assert (tmp_path / "e" / "notes.txt").is_file()
    assert training.state == read_state(tmp_path / "e")


def test_what_the_state_says(tmp_path: Path) -> None:
    training = a_training(tmp_path / "e", held_out=0.25, options={"greeting": "hello"})
    state = read_state(tmp_path / "e")
    assert state["method"]["name"] == "strength" and state["kind"] == "kedit-editor"
    assert state["data"]["training"]["records"] == training.records == 9
    assert state["data"]["validation"]["records"] == training.validation == 3
    assert state["trained"]["iterations"] == 8 and state["trained"]["values"]["loss/total"] == training.outcome.best
    assert state["origin"] == {"greeting": "hello"}
    cost = state["cost"]
    size = (tmp_path / "e" / "editor.safetensors").stat().st_size + (tmp_path / "e" / "notes.txt").stat().st_size
    assert cost["editor_bytes"] == size and cost["parameters"] == 1 and cost["processes"] == 1
    assert 0 < cost["seconds_per_iteration"] < cost["seconds"] and cost["peak_memory_bytes"] >= 0
    text = (tmp_path / "e" / "README.md").read_text()
    assert all(digest in text for digest in state["base"]["weights_sha256"].values())
    assert str(tmp_path) not in (tmp_path / "e" / "state.json").read_text()
    assert json.loads(json.dumps(training.to_dict()))["state"] == state


def test_equal_trainings_make_equal_editors_also_when_resumed(tmp_path: Path) -> None:
    """What an editor took is no part of what it is."""
    a_training(tmp_path / "one")
    a_training(tmp_path / "two", overrides={"iterations": 4})
    a_training(tmp_path / "two", resume=True)
    one, two = (EditorFolder.read(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    assert (tmp_path / "one" / "editor.safetensors").read_bytes() == (
        tmp_path / "two" / "editor.safetensors"
    ).read_bytes()
    a_training(tmp_path / "other", editor=editor_of(seed=1))
    assert EditorFolder.read(tmp_path / "other").digest != one.digest
    with pytest.raises(InputError, match="differs in data, seed"):
        a_training(tmp_path / "two", editor=editor_of(seed=1), resume=True)
    with pytest.raises(InputError, match="differs in data"):
        a_training(tmp_path / "two", requests=facts(11), resume=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_mixed_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """A base in half precision: the editor and its losses are in float32, and it fits the base as float32 too."""
    training = a_training(tmp_path / "e", editor=editor_of(dtype=dtype))
    assert training.outcome.best < training.outcome.history[0]["loss/total"] or len(training.outcome.history) == 1
    found = EditorFolder.read(tmp_path / "e")
    assert found.tensors["strength"].dtype == torch.float32
    users = {dtype, torch.float32} if dtype != torch.float64 else {dtype}
    for each in users:
        user = editor_of(dtype=dtype, resources={"editor": tmp_path / "e"})
        user.model.to(each)
        user.edit(facts()[0], evaluate=False)


def test_an_editor_of_a_float32_base_fits_it_rounded(tmp_path: Path) -> None:
    a_training(tmp_path / "e")
    editor_of(dtype=torch.bfloat16, resources={"editor": tmp_path / "e"}).edit(facts()[0], evaluate=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_editor_of_a_rounded_base_fits_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    """Trained with --dtype on a base stored in float32: used in either, and on no other base."""
    a_training(tmp_path / "e", editor=editor_of(dtype=dtype))
    assert read_state(tmp_path / "e")["base"]["dtype"] == str(dtype).removeprefix("torch.")
    for each in (None, dtype):
        user = editor_of(dtype=each, resources={"editor": tmp_path / "e"})
        assert user.edit(facts()[0], evaluate=False).patch
    other = editor_of(resources={"editor": tmp_path / "e"})
    with torch.no_grad():
        other.model.get_parameter("model.norm.weight")[0] += 0.1
    with pytest.raises(BaseMismatchError, match="other weights"):
        other.edit(facts()[0], evaluate=False)
    with pytest.raises(InputError, match="differs in base"):
        a_training(tmp_path / "e", resume=True)


def test_a_wrong_base_is_refused(tmp_path: Path) -> None:
    a_training(tmp_path / "e")
    user = editor_of(resources={"editor": tmp_path / "e"})
    user.edit(facts()[0], evaluate=False)  # with a patch on it, it is still that base
    user.edit(facts()[1], evaluate=False)
    user.restore()
    with torch.no_grad():
        user.model.get_parameter("model.norm.weight")[0] += 1
    with pytest.raises(BaseMismatchError, match="other weights"):
        user.edit(facts()[0], evaluate=False)
    with pytest.raises(BaseMismatchError, match="architecture"):
        editor_of(family="gpt2", resources={"editor": tmp_path / "e"}).edit(facts()[0], evaluate=False)
    with pytest.raises(InputError, match="was trained for the method 'strength'"):
        editor_of("stronger", resources={"editor": tmp_path / "e"}).edit(facts()[0], evaluate=False)


def test_other_tokens_are_told(tmp_path: Path) -> None:
    a_training(tmp_path / "e")
    user = editor_of(resources={"editor": tmp_path / "e"})
    user.tokenizer.add_tokens(["Zzyzx"])
    result = user.edit(facts()[0], evaluate=False)
    assert [warning.code for warning in result.warnings] == ["editor_tokens"]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="no editor at"):
        EditorFolder.read(tmp_path / "none")
    with pytest.raises(RequirementError, match="--with editor"):
        editor_of().edit(facts()[0], evaluate=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no editor"):
        EditorFolder.read(tmp_path / "empty")
    folder = tmp_path / "e"
    a_training(folder)
    state = (folder / "state.json").read_text()
    for change, match in (
        ({"kind": "other"}, "something else"),
        ({"format": 2}, "format 2"),
        ({"base": None}, "lacks base"),
        ({"method": {}}, "name of its method"),
        ({"tensors_sha256": 3}, "lacks tensors_sha256"),
    ):
        (folder / "state.json").write_text(json.dumps({**json.loads(state), **change}))
        with pytest.raises(InputError, match=match):
            EditorFolder.read(folder)
    (folder / "state.json").write_text(state)
    save_file({"strength": torch.ones(1)}, folder / "editor.safetensors")
    with pytest.raises(InputError, match="SHA-256 differs"):
        EditorFolder.read(folder)
    (folder / "editor.safetensors").unlink()
    with pytest.raises(InputError, match=r"no editor\.safetensors"):
        EditorFolder.read(folder)


def test_a_readme_is_no_part_of_an_editor(tmp_path: Path) -> None:
    a_training(tmp_path / "e")
    digest = EditorFolder.read(tmp_path / "e").digest
    (tmp_path / "e" / "README.md").write_text("My editor.")
    assert EditorFolder.read(tmp_path / "e").digest == digest
    state = read_state(tmp_path / "e")
    assert content_digest({**state, "cost": {}}) == digest != content_digest({**state, "config": {}})


def test_what_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    for match, kind, more in (
        ("split", InputError, {"requests": facts(1)}),
        ("in the training set and in the validation", InputError, {"validation": facts(2)}),
        ("is empty", RequestError, {"requests": [*facts(), evolve(facts()[0], prompt=" ", case_id="x")]}),
        ("no option 'greting'.*greeting", InputError, {"options": {"greting": "x"}}),
        ("layers", HyperParamsError, {"overrides": {"layers": 3}}),
        ("no layer 99", InputError, {"overrides": {"layer": 99}}),
        ("no training to resume", InputError, {"resume": True}),
        ("none of", InputError, {"requests": [evolve(each, rephrase_prompts=()) for each in facts()]}),
        ("needs no training", InputError, {"editor": editor_of("untrained")}),
        ("no TrainingHyperParams", InputError, {"editor": editor_of("odd")}),
        ("gave no trainer", MethodError, {"editor": editor_of("silent_trainer")}),
    ):
        with pytest.raises(kind, match=match):
            a_training(tmp_path / "e", **more)
        assert not list(tmp_path.iterdir())  # no folder of checkpoints either
    editor = editor_of()
    editor.info = None
    with pytest.raises(InputError, match="no method"):
        a_training(tmp_path / "e", editor=editor)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no editor, so it is not replaced"):
        a_training(tmp_path / "taken")
    a_training(tmp_path / "e")
    patched = editor_of(resources={"editor": tmp_path / "e"})
    patched.edit(facts()[0], evaluate=False)
    with pytest.raises(InputError, match="take them off"):
        a_training(tmp_path / "f", editor=patched)


@pytest.mark.parametrize(("what", "match"), [("writes", "the weights of"), ("unfreezes", "requires_grad of")])
def test_a_trainer_that_changes_the_base_is_told(what: str, match: str, tmp_path: Path) -> None:
    editor = editor_of()
    before = Snapshot(editor.model)
    if what == "unfreezes":
        for parameter in editor.model.parameters():
            parameter.requires_grad_(False)
    with pytest.raises(MethodError, match=match):
        a_training(tmp_path / "e", editor=editor, overrides={"misbehaves": what})
    assert not (tmp_path / "e").exists()
    if what == "writes":
        assert all("requires_grad" not in text for text in before.differences(editor.model))


def test_an_interrupted_training_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training.toy_method import StrengthTrainer

    steps, run_step = [0], StrengthTrainer.run_step

    def dying(self: Any, batch: Any) -> Any:
        steps[0] += torch.is_grad_enabled()
        if steps[0] == 6:
            raise KeyboardInterrupt
        return run_step(self, batch)

    monkeypatch.setattr(StrengthTrainer, "run_step", dying)
    editor = editor_of()
    before = Snapshot(editor.model)
    with pytest.raises(KeyboardInterrupt):
        a_training(tmp_path / "e", editor=editor)
    assert before.differences(editor.model) == []
    monkeypatch.setattr(StrengthTrainer, "run_step", run_step)
    with pytest.raises(InputError, match="interrupted at iteration 4; go on with it"):
        a_training(tmp_path / "e")
    a_training(tmp_path / "e", resume=True)
    a_training(tmp_path / "e")  # a finished one is replaced
    a_training(tmp_path / "whole")
    assert EditorFolder.read(tmp_path / "e").digest == EditorFolder.read(tmp_path / "whole").digest


def test_a_training_whose_editor_could_not_be_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the very end: what stood there stays, nothing half written does, and --resume writes it."""
    from core.training.toy_method import StrengthTrainer

    a_training(tmp_path / "e", editor=editor_of(seed=1))
    (tmp_path / "e" / "README.md").write_text("mine")
    old, others = EditorFolder.read(tmp_path / "e").digest, sorted(path.name for path in tmp_path.iterdir())

    def full(self: Any, folder: Path) -> None:
        (folder / "half").write_text("of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_files = StrengthTrainer.write_files
    monkeypatch.setattr(StrengthTrainer, "write_files", full)
    with pytest.raises(KeditError, match=r"could not be written to .*No space left.*write it with --resume"):
        a_training(tmp_path / "e")
    assert EditorFolder.read(tmp_path / "e").digest == old
    assert sorted(path.name for path in tmp_path.iterdir()) == others
    monkeypatch.setattr(StrengthTrainer, "write_files", write_files)
    with pytest.raises(InputError, match="8 iterations whose editor was never written"):
        a_training(tmp_path / "e")
    leftover = tmp_path / ".kedit-e-0123abcd.editor"
    leftover.mkdir()
    (tmp_path / ".kedit-e-mine-0123abcd.editor").mkdir()
    rename = Path.rename

    def failing(self: Path, target: Any) -> Path:
        if target == tmp_path / "e" and self.name.endswith(".editor"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeditError, match="Input/output error"):
        a_training(tmp_path / "e", resume=True)
    assert EditorFolder.read(tmp_path / "e").digest == old
    monkeypatch.setattr(Path, "rename", rename)
    a_training(tmp_path / "e", resume=True)
    a_training(tmp_path / "whole")
    assert EditorFolder.read(tmp_path / "e").digest == EditorFolder.read(tmp_path / "whole").digest != old
    assert not leftover.exists() and (tmp_path / ".kedit-e-mine-0123abcd.editor").is_dir()


def test_a_linked_folder_is_written_through(tmp_path: Path) -> None:
    a_training(tmp_path / "there")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "later").symlink_to(tmp_path / "then")
    a_training(tmp_path / "link", editor=editor_of(seed=1))
    a_training(tmp_path / "later", editor=editor_of(seed=1))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later").is_symlink()
    assert EditorFolder.read(tmp_path / "then").digest == EditorFolder.read(tmp_path / "there").digest


def test_everybody_may_read_an_editor_as_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training.toy_method import StrengthTrainer

    def private(self: Any, folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "secret.txt").touch(mode=0o600)

    monkeypatch.setattr(StrengthTrainer, "write_files", private)
    a_training(tmp_path / "e")
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "e").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_where_checkpoints_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "e.training").write_text("a file")
    with pytest.raises(InputError, match=r"checkpoints cannot be written to the folder .*e\.training \(File exists\)"):
        a_training(tmp_path / "e")


def test_what_a_training_took_is_counted_over_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_core.training import run

    monkeypatch.setattr(run, "_memory", lambda model, peak: lambda: 5_000_000)
    a_training(tmp_path / "e", overrides={"iterations": 4})
    monkeypatch.setattr(run, "_memory", lambda model, peak: lambda: 1_000)
    training = a_training(tmp_path / "e", resume=True)
    assert training.cost["peak_memory_bytes"] == 5_000_000
    lines = [json.loads(line) for line in (tmp_path / "e.training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["memory"] for line in lines if line["kind"] == "training"] == [5_000_000, 5_000_000]


def test_measurements_that_are_no_numbers_do_not_keep_an_editor_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.toy_method import StrengthTrainer

    run_step = StrengthTrainer.run_step

    def odd(self: Any, batch: Any) -> Any:
        stepped = run_step(self, batch)
        return evolve(stepped, values={**stepped.values, "odd": (math.nan, 1.0)})

    monkeypatch.setattr(StrengthTrainer, "run_step", odd)
    training = a_training(tmp_path / "e")
    assert training.state["trained"]["values"]["odd"] is None
    assert "| odd | none |" in (tmp_path / "e" / "README.md").read_text()
    assert json.loads(json.dumps(training.to_dict(), allow_nan=False))["outcome"]["history"][0]["odd"] is None


def test_what_the_user_should_know_is_told(tmp_path: Path) -> None:
    """By the trainer; records that cannot be used, in either set; and a training too short for any step."""
    requests = [*facts(), *(evolve(each, rephrase_prompts=()) for each in facts(2, prefix="x "))]
    held = [*facts(3, prefix="y "), evolve(facts(1, prefix="z ")[0], rephrase_prompts=())]
    training = a_training(tmp_path / "e", requests=requests, validation=held, options={"greeting": "bye"})
    assert [(warning.code, warning.number) for warning in training.warnings] == [("left_out", 3.0), ("farewell", None)]
    assert "3 of 18 requests" in training.warnings[0].message
    training = a_training(tmp_path / "f", overrides={"iterations": 3, "accumulate": 4})
    assert training.outcome.updates == 0
    assert [warning.code for warning in training.warnings] == ["no_update"]
    # what is held out can be validated on
    requests = [*(evolve(each, rephrase_prompts=()) for each in facts(11, prefix="x ")), *facts(2)]
    training = a_training(tmp_path / "g", requests=requests, held_out=0.5)
    assert training.records == 12 and training.validation == 1
    with pytest.raises(InputError, match="none of 1 requests can be validated on with outer=rephrase"):
        a_training(tmp_path / "h", validation=held[3:])


def test_settings_come_from_presets_too(tmp_path: Path) -> None:
    preset = tmp_path / "small.yaml"
    preset.write_text(
        "match: {architecture: LlamaForCausalLM, num_layers: 3, hidden_size: 32}\nhparams: {lr: 0.5, accumulate: 2}\n"
    )
    settings = training_settings(editor_of(), {"iterations": 3}, ["accumulate=4"], preset).hparams
    assert (settings.iterations, settings.lr, settings.accumulate, settings.batch_size) == (3, 0.5, 4, 2)


def test_a_context_for_trying_out(tmp_path: Path) -> None:
    editor = editor_of(seed=5)
    hparams = training_settings(editor).hparams
    context = training_context(editor, hparams, facts(), facts(2, prefix="z "))
    assert context.seed == 5 and len(context.requests) == 12 and len(context.validation) == 2
    trainer = editor.host.make_trainer(context, hparams)
    assert trainer.count == 12 and trainer.gather(torch.ones(2))[0].tolist() == [1, 1] and not trainer.agree(False)
    assert catalogue().method("strength").training is not None
