"""Each distribution beside kedit-core alone: it imports, lists what it has, and does its work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from places import Bare, projects

OTHERS = [name for name in projects() if name not in ("kedit", "kedit-core")]
FACT = ("--prompt", "The capital of France is", "--subject", "France", "--target", "Rome")
Environments = Callable[..., Bare]

# Every module but those whose extra is not meant to be there: a library may be missing, one of ours may not be.
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [package.__name__, *(each.name for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
SAME_BYTES = """
import sys
from safetensors.torch import load_file
one, other = (load_file(f"{folder}/model.safetensors") for folder in sys.argv[1:])
same = one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
print("the same" if same else "not the same")
"""


def listed(environment: Bare, what: str) -> list[str]:
    """Names that a listing has."""
    told = environment.scratch / f"{what}.json"
    environment.kedit(what, "--json", str(told))
    return [each["name"] for each in json.loads(told.read_text())[what]]


# --- kedit-core alone ------------------------------------------------------------------------------------------------


def test_the_core_tells_what_to_install(bare: Environments, model: str) -> None:
    told = bare().kedit("--help")
    assert "edit" in told and "Commands of plugins" not in told
    assert "pip install kedit" in bare().kedit("methods")
    told = bare().kedit("edit", model, "-m", "rome", *FACT, code=2)
    assert "'rome'" in told and "pip install kedit" in told and "Traceback" not in told
    assert "No such command 'demo'" in bare().kedit("demo", code=2)
    assert "0.1.0" in bare().kedit("--version")


def test_the_core_handles_patches_of_methods_it_does_not_have(
    bare: Environments, model: str, rome_patch: Path, tmp_path: Path
) -> None:
    core = bare()
    told = core.kedit("patch", "show", str(rome_patch))
    assert "rome" in told and "kedit-methods-locate" in told and "Rome" in told
    core.kedit("patch", "verify", str(rome_patch), "--base", model)
    edited, back = str(tmp_path / "edited"), str(tmp_path / "back")
    core.kedit("patch", "apply", model, str(rome_patch), "-o", edited)
    core.kedit("patch", "revert", edited, "-o", back)
    assert "not the same" in core.run("-c", SAME_BYTES, model, edited)
    assert core.run("-c", SAME_BYTES, model, back).strip() == "the same"
    prompt = ("--prompt", "The capital of France is")
    on_disk, live = (
        core.kedit("generate", edited, *prompt),
        core.kedit("generate", model, *prompt, "--patch", str(rome_patch)),
    )
    assert on_disk == live


def test_a_kind_of_operation_that_is_not_there_is_named(bare: Environments, model: str, tmp_path: Path) -> None:
    patch = tmp_path / "grace.safetensors"
    memory = bare("kedit-methods-memory")
    settings = ("-p", "layer=1", "-p", "n_iter=3", "--no-evaluate")
    memory.kedit("edit", model, "-m", "grace", *FACT, *settings, "-o", str(patch))
    memory.kedit("generate", model, "--prompt", FACT[1], "--patch", str(patch))
    assert "grace.codebook" in bare().kedit("patch", "show", str(patch))
    told = bare().kedit("generate", model, "--prompt", FACT[1], "--patch", str(patch), code=2)
    assert "grace.codebook" in told and "kedit-methods-memory" in told and "Traceback" not in told


# --- one other distribution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_it_imports_and_registers_beside_the_core_alone(bare: Environments, name: str) -> None:
    environment = bare(name)
    environment.kedit("plugins", "--check")
    entries = environment.kedit("plugins")
    assert name in entries and not [other for other in OTHERS if other != name and f" {other} " in entries]
    assert int(environment.run("-c", IMPORT_ALL, name.replace("-", "_")).split()[-1]) > 1


def test_locate_edits(rome_patch: Path, bare: Environments) -> None:
    assert {"rome", "memit", "alphaedit"} <= set(listed(bare("kedit-methods-locate"), "methods"))


def test_memory_has_its_methods_only(bare: Environments) -> None:
    methods = listed(bare("kedit-methods-memory"), "methods")
    assert {"grace", "wise", "melo"} <= set(methods) and "rome" not in methods


def test_finetune_edits(bare: Environments, model: str, tmp_path: Path) -> None:
    patch = tmp_path / "ft.safetensors"
    settings = ("-p", "layers=[1]", "-p", "num_steps=2", "--no-evaluate")
    bare("kedit-methods-finetune").kedit("edit", model, "-m", "ft_m", *FACT, *settings, "-o", str(patch))
    bare().kedit("patch", "verify", str(patch), "--base", model)


def test_meta_says_what_its_methods_need(bare: Environments, model: str) -> None:
    environment = bare("kedit-methods-meta")
    assert set(listed(environment, "methods")) == {"ke", "malmen", "mend"}
    assert "editor" in environment.kedit("edit", model, "-m", "mend", *FACT, code=2)


def test_factworld_brings_models_that_know_facts(bare: Environments) -> None:
    environment = bare("kedit-factworld")
    assert "factworld:llama" in listed(environment, "models") and "factworld" in listed(environment, "datasets")
    assert environment.kedit("generate", "factworld:llama", "--prompt", "The capital of France is").strip()
    assert "pip install" in environment.kedit("demo", code=2)


def test_datasets_read(bare: Environments) -> None:
    assert {"zsre", "counterfact"} <= set(listed(bare("kedit-datasets"), "datasets"))


def test_bench_runs_without_methods(bare: Environments) -> None:
    assert "Usage: kedit bench" in bare("kedit-bench").kedit("bench", "--help")


# --- all of them -----------------------------------------------------------------------------------------------------

CONFORMANCE = """
from kedit_core.testing import MethodContract


class TestRome(MethodContract):
    method = "rome"
    hparams = {"layer": 1, "mom2_adjustment": False, "v_num_grad_steps": 3}
    families = ("gpt2",)
"""


@pytest.fixture(scope="session")
def whole(bare: Environments) -> Bare:
    return bare("kedit", *OTHERS)


def test_all_of_them_go_together(whole: Bare) -> None:
    told = whole.kedit("plugins", "--check")
    assert all(name in told for name in OTHERS if name != "kedit-core") and "Left out" not in told


def test_their_requirements_are_met_by_what_they_are_tested_with(whole: Bare) -> None:
    assert "No broken requirements found" in whole.pip("check")


def test_the_demo_runs(whole: Bare) -> None:
    assert "same as before the edit" in whole.kedit("demo")  # and it ends with 1 if anything it claims does not hold


def test_the_conformance_kit_runs(whole: Bare) -> None:
    (whole.scratch / "test_rome.py").write_text(CONFORMANCE)
    told = whole.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_rome.py")
    assert " passed" in told and "failed" not in told
