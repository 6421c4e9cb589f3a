"""``kedit patch``: show, verify, apply and revert, on folders made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kedit_core.cli.root import kedit
from kedit_core.patches import (
    Base,
    BaseTensor,
    DenseDelta,
    EditPatch,
    LowRankDelta,
    MethodRef,
    ModuleOperation,
    PrivateRequests,
    digests_of,
)
from kedit_core.testing.tiny import tiny_model

PLACE = "model.layers.1.mlp.down_proj.weight"
FACT = {
    "prompt": "The capital of France is",
    "subject": "France",
    "subject_span": None,
    "target_new": "Oslo",
    "ground_truth": "Paris",
    "case_id": None,
}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, [str(arg) for arg in args])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_patch(model: Any, seed: int = 0, **more: Any) -> EditPatch:
    weight = model.get_parameter(PLACE)
    out, inner = weight.shape
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(out, 2, generator=generator), torch.randn(2, inner, generator=generator)
    tensor = BaseTensor(shape=(out, inner), layout="out_in", sha256=digests_of(weight))
    return EditPatch(
        **{
            "method": MethodRef(name="by_hand", distribution="kedit-tests", version="0.1"),
            "hparams": {"layer": 1},
            "seed": seed,
            "base": Base(architecture="LlamaForCausalLM", name="org/tiny", tensors={PLACE: tensor}),
            "operations": (LowRankDelta(PLACE, left, right),),
            "requests": (FACT,),
            **more,
        }
    )


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def base(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def patch(model: Any, tmp_path: Path) -> Path:
    make_patch(model).save(tmp_path / "fact.safetensors")
    return tmp_path / "fact.safetensors"


def test_show(patch: Path) -> None:
    loaded = EditPatch.load(patch)
    result = run("patch", "show", patch)
    assert result.exit_code == 0
    for text in (loaded.id, "by_hand (kedit-tests 0.1)", "org/tiny", "low_rank_delta", PLACE, "rank 2", "layer = 1"):
        assert text in result.output
    fact = "The capital of France is -> Oslo"
    order = [
        result.output.index(text) for text in (loaded.id, fact, "low_rank_delta", "base", "method", "seed", "setting")
    ]
    assert order == sorted(order)
    data = json.loads(run("patch", "show", patch, "--json").stdout)
    (operation,) = data["operations"]
    whole = loaded.operations[0].delta((32, 80), torch.float64)  # type: ignore[union-attr]
    assert operation["norm"] == pytest.approx(float(whole.norm()))
    assert (operation["rank"], operation["shape"]) == (2, [32, 80])
    assert (data["id"], data["bytes"]) == (loaded.id, patch.stat().st_size)
    assert data["requests"] == [FACT]


def test_show_keeps_private_facts_private(model: Any, tmp_path: Path) -> None:
    values = torch.ones(32, 80)
    module = ModuleOperation(places=("model.layers.1.mlp",), kind="test.echo", tensors={"keys": torch.ones(3)})
    make_patch(
        model,
        requests=PrivateRequests.of([FACT]),
        operations=(DenseDelta(PLACE, values), module),
        seed=0,
        parents=("0" * 64,),
    ).save(tmp_path / "private.safetensors")
    result = run("patch", "show", tmp_path / "private.safetensors")
    assert "kept private" in result.output and "Oslo" not in result.output
    assert "test.echo" in result.output and "0" * 64 in result.output


def test_show_says_that_no_facts_are_recorded(model: Any, tmp_path: Path) -> None:
    make_patch(model, requests=()).save(tmp_path / "none.safetensors")
    assert "\n\nIt records no facts.\n\n" in run("patch", "show", tmp_path / "none.safetensors").output


@pytest.mark.parametrize("resources", [{"editor": "ab" * 32}, ["editor"], None])
def test_show_tells_what_an_edit_was_made_with(resources: Any, model: Any, tmp_path: Path) -> None:
    from kedit_core.patches import State

    make_patch(model, state=State(config={"resources": resources})).save(tmp_path / "made.safetensors")
    result = run("patch", "show", tmp_path / "made.safetensors")
    assert result.exit_code == 0, result.output
    assert ("made with" in result.output and f"editor {'ab' * 6}" in result.output) == isinstance(resources, dict)


def test_verify(base: Path, patch: Path, model: Any, tmp_path: Path) -> None:
    assert run("patch", "verify", patch).exit_code == 0
    result = run("patch", "verify", patch, "--base", base)
    assert result.exit_code == 0 and "as recorded" in result.output and "It fits" in result.output
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    result = run("patch", "verify", patch, "--base", tmp_path / "other", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert not data["passed"] and data["whole"] and "digest" in data["base"]["tensors"][0]["problem"]
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    result = run("patch", "verify", patch, "--base", tmp_path / "gpt2")
    assert result.exit_code == 1 and "LlamaForCausalLM" in result.stderr


def test_verify_and_apply_refuse_another_id(base: Path, patch: Path, tmp_path: Path) -> None:
    known, other, out = EditPatch.load(patch).id, "0" * 12, tmp_path / "out"
    for told in (known, known[:8], known[:20].upper()):
        result = run("patch", "verify", patch, "--id", told)
        assert result.exit_code == 0 and f"well-formed: patch {known}" in result.output
    for command in (("verify", patch), ("apply", base, patch, "-o", out)):
        result = run("patch", *command, "--id", other)
        assert result.exit_code == 1 and f"is patch {known} and not {other}; " in result.stderr
        result = run("patch", *command, "--id", known[:7])
        assert result.exit_code == 2 and "at least the first 8" in result.stderr
    data = json.loads(run("patch", "verify", patch, "--base", base, "--id", other, "--json").stdout)
    assert data["whole"] and not data["passed"] and other in data["problem"]
    assert not out.exists()
    assert run("patch", "apply", base, patch, "-o", out, "--id", known).exit_code == 0


def test_verify_tells_a_broken_file(patch: Path) -> None:
    data = bytearray(patch.read_bytes())
    patch.write_bytes(data[:-1])
    result = run("patch", "verify", patch)
    assert result.exit_code == 1 and "Not a whole patch" in result.stderr
    data[-1] ^= 255
    patch.write_bytes(data)
    assert run("patch", "show", patch.with_name("nothing")).exit_code == 2


def test_apply_and_revert(base: Path, patch: Path, model: Any, tmp_path: Path) -> None:
    before, out = files(base), tmp_path / "out"
    result = run("patch", "apply", base, patch, "-o", out)
    assert result.exit_code == 0 and f"kedit patch revert {out} -o " in result.output
    make_patch(model, seed=1).save(tmp_path / "second.safetensors")
    result = run("patch", "apply", out, tmp_path / "second.safetensors", "-o", out, "--json")
    change = json.loads(result.stdout)
    assert change["tensors"] == [PLACE] and len(change["patches"]) == 2
    assert run("patch", "verify", patch, "--base", out).exit_code == 0

    result = run("patch", "revert", out, "--patch", change["patches"][0][:8], "-o", tmp_path / "one", "--json")
    assert json.loads(result.stdout)["patches"] == change["patches"][1:]
    result = run("patch", "revert", out, "-o", tmp_path / "back")
    assert result.exit_code == 0 and "original" in result.output
    assert files(tmp_path / "back") == before == files(base)


def test_apply_refuses(base: Path, patch: Path, tmp_path: Path) -> None:
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    result = run("patch", "apply", tmp_path / "other", patch, "-o", tmp_path / "out")
    assert result.exit_code == 1 and PLACE in result.stderr and not (tmp_path / "out").exists()
    assert run("patch", "apply", tmp_path / "other", patch, "-o", tmp_path / "out", "--force").exit_code == 0
    assert run("patch", "apply", base, patch).exit_code == 2
    assert run("patch", "apply", base, patch, "-o", base).exit_code == 2
    assert run("patch", "apply", tmp_path, patch, "-o", tmp_path / "out").exit_code == 2
    result = run("patch", "apply", base, patch, "-o", tmp_path / "new", "--with", "encoder")
    assert result.exit_code == 2 and "ROLE=PATH" in result.stderr
    assert run("patch", "revert", base, "-o", tmp_path / "back").exit_code == 2
    result = run("patch", "apply", "nobody/has-this", patch, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "nobody/has-this" in result.stderr
