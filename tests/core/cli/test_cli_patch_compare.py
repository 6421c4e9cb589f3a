"""``kedit patch compare``: the table, the JSON, the picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner, Result
from core.cli.test_cli_patch import PLACE, make_patch
from core.patches.patch_kit import near_key

from kedit_core.cli.root import kedit
from kedit_core.comparing.overlaps import compare
from kedit_core.patches import BaseTensor, DenseDelta, EditPatch, LowRankDelta, digests_of
from kedit_core.testing.tiny import tiny_model


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, ["patch", "compare", *map(str, args)])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def patches(model: Any, tmp_path: Path) -> list[Path]:
    for seed, name in enumerate(("one", "two", "three")):
        made = make_patch(model, seed)
        if name == "three":
            made = make_patch(model, seed, operations=(near_key(["model.layers.1.mlp"], 32), made.operations[0]))
        made.save(tmp_path / f"{name}.safetensors")
    return [tmp_path / f"{name}.safetensors" for name in ("one", "two", "three")]


def test_the_table(patches: list[Path]) -> None:
    result = run(*patches)
    assert result.exit_code == 0, result.output
    loaded = [EditPatch.load(path) for path in patches]
    comparison = compare(loaded, names=[path.name for path in patches])
    (row,) = (line for line in result.stdout.splitlines() if line.startswith(PLACE) and "rank" in line)
    for change in comparison.places[0].changes:
        assert change is not None and f"{change.norm:.4g}, rank 2" in row
    for pair in comparison.places[0].pairs:
        names = f"{patches[pair.first].name}, {patches[pair.second].name}"
        (row,) = (line for line in result.stdout.splitlines() if names in line)
        assert pair.columns is not None and pair.rows is not None and pair.cosine is not None
        for number in (pair.cosine, pair.columns.value, pair.columns.by_chance, pair.rows.value, pair.rows.weighted):
            assert f"{number:.3f}" in row
    assert all(patch.id[:12] in result.stdout for patch in loaded)
    assert "not compared: module test.near_key at model.layers.1.mlp of three.safetensors" in result.stderr


def test_with_the_base_and_as_json(patches: list[Path], model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "base")
    result = run(*patches[:2], "--base", tmp_path / "base", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    loaded = [EditPatch.load(path) for path in patches[:2]]
    base = {PLACE: model.get_parameter(PLACE)}.__getitem__
    assert data == compare(loaded, base, names=["one.safetensors", "two.safetensors"]).to_dict()
    (place,) = data["places"]
    delta: Any = loaded[0].operations[0]
    size = float(model.get_parameter(PLACE).detach().norm())
    assert place["changes"][0]["relative"] == pytest.approx(float((delta.left @ delta.right).norm()) / size, rel=1e-5)
    assert "x the weight)" in run(*patches[:2], "--base", tmp_path / "base").stdout


def test_a_picture(patches: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "compared.png"
    result = run(*patches, "--plot", picture)
    assert result.exit_code == 0 and f"the picture is in {picture}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_files_of_one_name_are_called_by_their_paths(model: Any, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        paths.append(tmp_path / str(seed) / "fact.safetensors")
        make_patch(model, seed).save(paths[-1])
    data = json.loads(run(*paths, "--json").stdout)
    assert [each["name"] for each in data["patches"]] == list(map(str, paths))


def test_quick(patches: list[Path], model: Any, tmp_path: Path) -> None:
    delta: Any = EditPatch.load(patches[0]).operations[0]
    dense = make_patch(model, 9, operations=(DenseDelta(PLACE, delta.left @ delta.right),))
    dense.save(tmp_path / "dense.safetensors")
    both = (tmp_path / "dense.safetensors", patches[0], "--json")
    slow, fast = (json.loads(run(*both, *more).stdout) for more in ((), ("--quick",)))
    assert [each["rank"] for each in slow["places"][0]["changes"]] == [2, 2]
    assert [each["rank"] for each in fast["places"][0]["changes"]] == [None, 2]
    (full,), (cheap,) = (each["places"][0]["pairs"] for each in (slow, fast))
    assert full["columns"]["value"] == pytest.approx(1) and cheap["columns"] is None
    assert cheap["cosine"] == pytest.approx(1)


def test_what_is_refused(patches: list[Path], model: Any, tmp_path: Path) -> None:
    def refusal(code: int, *args: str | Path) -> str:
        result = run(*args)
        assert result.exit_code == code, result.output
        return result.stderr

    assert "two patches or more, and got 1" in refusal(2, patches[0])
    assert "each patch once" in refusal(2, patches[0], patches[0])
    assert "Missing argument" in refusal(2)
    assert "there is no file" in refusal(2, patches[0], tmp_path / "nothing")
    assert "ends with one of" in refusal(2, *patches, "--plot", tmp_path / "picture.txt")
    assert "does not exist; make it first" in refusal(2, *patches, "--plot", tmp_path / "no" / "picture.png")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    assert "than in the one that one.safetensors was made for" in refusal(1, *patches, "--base", tmp_path / "other")
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    told = refusal(1, *patches, "--base", tmp_path / "gpt2")
    assert "another architecture than the LlamaForCausalLM that" in told and "leave --base out" in told
    assert "changed" not in told  # comparing changes nothing


def test_patches_with_nothing_in_common(model: Any, tmp_path: Path) -> None:
    place = PLACE.replace("layers.1", "layers.0")
    first = make_patch(model, 1)
    delta: Any = first.operations[0]
    weight = model.get_parameter(place)
    tensor = BaseTensor(shape=tuple(weight.shape), layout="out_in", sha256=digests_of(weight))
    second = make_patch(
        model,
        2,
        base=evolve(first.base, tensors={place: tensor}),
        operations=(LowRankDelta(place, delta.left, delta.right),),
    )
    third = make_patch(model, 3, operations=(near_key(["model.layers.1.mlp"], 32),))
    for name, made in (("a", first), ("b", second), ("c", third)):
        made.save(tmp_path / name)
    text = run(tmp_path / "a", tmp_path / "b").stdout
    assert "all weights" in text and "0.000" in text
    assert "None of them changes a weight" not in text
    only = run(tmp_path / "c", tmp_path / "a")
    assert only.exit_code == 0 and "No two of them change the same weight." in only.stdout
