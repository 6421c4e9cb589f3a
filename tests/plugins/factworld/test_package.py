"""What the plugin registers, what the package holds, and that describing it costs no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch_blocked import run_without_torch

from kedit_core.errors import UnknownNameError
from kedit_core.requests import EditRequest, load_requests
from kedit_factworld import corpus, files
from kedit_factworld.plugin import plugin
from kedit_factworld.world import Statement, World, build_world

REPOSITORY = Path(__file__).parents[3]
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ASK = """
from kedit_factworld.plugin import plugin
from kedit_factworld.demo import demo
sources = plugin.register_model_sources()
assert all(source.folder(name).is_dir() for source in sources for name in source.names)
dataset, demonstrations, training = plugin.register_datasets()
assert len(dataset.requests()) == 300
assert len(demonstrations.requests()) == 200
assert len(training.read(None, count=5)) == 5
assert next(iter(dataset.corpus()))
assert plugin.find_resource("statistics", "0" * 64) is None
"""
NAMES = ("factworld:gpt2", "factworld:llama")
READERS = ("factworld:gpt2-reader", "factworld:llama-reader")


def probes(case: EditRequest) -> Iterator[tuple[str, tuple[str, ...]]]:
    for group in (*case.locality.values(), *case.portability.values()):
        yield from ((probe.prompt, probe.answers) for probe in group)


def test_importing_and_asking_the_plugin_needs_no_torch() -> None:
    run_without_torch(ASK)


def test_all_models_are_registered_and_there() -> None:
    sources = plugin.register_model_sources()
    assert [source.names for source in sources] == [NAMES, READERS]
    for name in NAMES + READERS:
        folder = files.model_folder(name)
        assert all((folder / file).is_file() for file in MODEL_FILES)
        assert (folder / "training_report.json").is_file()


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match=r"factworld:t5.*factworld:gpt2, factworld:llama, factworld:gpt2-reader"):
        files.model_folder("factworld:t5")


def test_the_dataset_is_complete() -> None:
    dataset, *_ = plugin.register_datasets()
    assert (dataset.name, dataset.models) == ("factworld", NAMES + READERS)
    assert dataset.corpus_revision == corpus.REVISION
    assert dataset.requests is not None
    cases = list(dataset.requests())
    assert cases == load_requests(files.cases_file())
    assert [case.case_id for case in cases] == [f"fw-{number:04d}" for number in range(1, 301)]
    assert len({case.subject for case in cases}) == 266


def test_demonstrations_are_false_facts_about_subjects_that_no_case_edits() -> None:
    _, dataset, _ = plugin.register_datasets()
    assert dataset.name == "factworld_demonstrations" and dataset.requests is not None
    shown, world = list(dataset.requests()), build_world()
    subjects = {case.subject for case in load_requests(files.cases_file())}
    assert len({(each.subject, each.prompt) for each in shown}) == len(shown) == 200
    for each in shown:
        assert each.subject is not None and each.subject not in subjects and each.subject in each.prompt
        assert each.target_new != each.ground_truth
        assert len(each.rephrase_prompts) >= 2 and each.locality["neighborhood"]
        told = {statement.object for statement in statements_of(world, each.subject, each.prompt)}
        assert told == {each.ground_truth}


def statements_of(world: World, subject: str, prompt: str) -> Iterator[Statement]:
    for key in (fact for fact in world.facts if fact[0] == subject):
        yield from (each for each in world.wordings(*key, held_out=False) if each.prompt == prompt)


def test_every_case_is_well_formed() -> None:
    for case in load_requests(files.cases_file()):
        assert case.subject is not None and case.subject in case.prompt
        assert case.ground_truth is not None and case.target_new != case.ground_truth
        assert 2 <= len(case.rephrase_prompts) <= 3
        assert all(case.subject in prompt for prompt in case.rephrase_prompts)
        assert set(case.locality) == {"neighborhood", "same_relation", "relation_specificity", "distracting"}
        assert case.locality["same_relation"] and len(case.locality["distracting"]) >= 2
        assert all(len(answers) == 1 and answers[0] for _, answers in probes(case))


def test_statistics_are_looked_up_by_their_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statistics").mkdir()
    (tmp_path / "statistics" / "abc.safetensors").touch()
    (tmp_path / "secret.safetensors").touch()
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path)
    assert plugin.find_resource("statistics", "abc") == tmp_path / "statistics" / "abc.safetensors"
    assert plugin.find_resource("statistics", "abd") is None
    assert plugin.find_resource("editor", "abc") is None
    assert plugin.find_resource("statistics", "../secret") is None


@pytest.mark.slow
def test_the_wheel_holds_the_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        REPOSITORY / "plugins" / "kedit-factworld", source, ignore=shutil.ignore_patterns("*.egg-info", "build")
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    here = files.data_folder()
    wanted = {f"kedit_factworld/data/{path.relative_to(here).as_posix()}" for path in here.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert wanted <= packed
    assert "kedit_factworld/py.typed" in packed
    assert len([name for name in wanted if name.endswith("model.safetensors")]) == 4
    assert wheel.stat().st_size < 35_000_000
