"""``kedit stack`` and ``kedit patch conflicts``, and stack files where commands take a MODEL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner, Result
from core.cli.test_cli_patch import FACT, PLACE, files, make_patch
from core.patches.patch_kit import near_key
from safetensors.torch import load_file
from warm_processes import run_warm

from kedit_core.cli.root import kedit
from kedit_core.comparing.conflicting import conflicts
from kedit_core.patches import BaseTensor, EditPatch, PrivateRequests, digests_of
from kedit_core.patches.digests import model_digest
from kedit_core.stacks.file import HEADER, StackFile
from kedit_core.testing.tiny import tiny

OTHER = {**FACT, "target_new": "Cairo"}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(kedit, [str(arg) for arg in args])


def done(*args: str | Path) -> Result:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder ``base``; patches ``oslo``, ``cairo`` (same prompt), ``above`` (made on oslo), ``beside``."""
    home = tmp_path_factory.mktemp("stack")
    model, tokenizer = tiny("llama")
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    oslo = make_patch(model, 0)
    base = evolve(oslo.base, name=None)
    every = {
        "oslo": evolve(oslo, base=base),
        "cairo": make_patch(model, 1, base=base, requests=(OTHER,)),
        "beside": make_patch(model, 2, base=base, requests=(), operations=(near_key(["model.layers.1.mlp"], 32),)),
    }
    every["above"] = make_patch(model, 3, base=base, requests=(), parents=(every["oslo"].id,))
    for name, patch in every.items():
        patch.save(home / f"{name}.safetensors")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def identity(name: str) -> str:
    return EditPatch.load(f"{name}.safetensors").id


def test_new_show_verify(home: Path) -> None:
    result = done(
        "stack", "new", "base", "oslo.safetensors", "above.safetensors:attached", "-o", "stack.yaml", "--json"
    )
    stack = StackFile.load("stack.yaml")
    assert json.loads(result.stdout) == {"stack": "stack.yaml", **stack.to_dict()}
    assert stack.base == "./base" and stack.dtype == "float32" and stack.weights_sha256 is not None
    assert [(each.file, each.way) for each in stack.patches] == [
        ("oslo.safetensors", "merged"),
        ("above.safetensors", "attached"),
    ]
    shown = done("stack", "show", "stack.yaml").stdout
    assert all(
        text in shown for text in ("./base, float32", identity("oslo")[:12], "attached", "The capital of France")
    )
    verified = done("stack", "verify", "stack.yaml")
    assert f"gives the weights it records: {stack.weights_sha256}" in verified.stdout
    data = json.loads(done("stack", "verify", "stack.yaml", "--json").stdout)
    assert data["passed"] and data["weights"]["found"] == stack.weights_sha256 and data["order"] is None


def test_add_and_remove(home: Path) -> None:
    done("stack", "new", "base", "-o", "s.yaml")
    assert StackFile.load("s.yaml").patches == ()
    assert run("stack", "add", "s.yaml", "above.safetensors").exit_code == 1  # its parent is not there
    assert StackFile.load("s.yaml").patches == ()
    done("stack", "add", "s.yaml", "oslo.safetensors")
    alone = StackFile.load("s.yaml")
    done("stack", "add", "s.yaml", "above.safetensors", "--way", "attached", "--source", "hub:org/above")
    above = StackFile.load("s.yaml").patches[1]
    assert (above.id, above.way, above.source) == (identity("above"), "attached", "hub:org/above")
    done("stack", "add", "s.yaml", "beside.safetensors", "--at", "1")
    assert StackFile.load("s.yaml").patches[0].id == identity("beside")
    refused = run("stack", "remove", "s.yaml", identity("oslo"))
    assert (
        refused.exit_code == 1 and "was made on top of" in refused.stderr and len(StackFile.load("s.yaml").patches) == 3
    )
    done("stack", "remove", "s.yaml", identity("above")[:12], identity("beside"))
    assert StackFile.load("s.yaml") == alone
    assert (home / "above.safetensors").exists()


def test_patches_from_elsewhere_are_copied(home: Path) -> None:
    (home / "stacks").mkdir()
    done("stack", "new", "base", "oslo.safetensors", "-o", "stacks/s.yaml")
    stack = StackFile.load("stacks/s.yaml")
    assert stack.base == "../base" and stack.patches[0].file == f"patches/{identity('oslo')}.safetensors"
    assert stack.path(stack.patches[0]).read_bytes() == (home / "oslo.safetensors").read_bytes()
    done("stack", "verify", "stacks/s.yaml")


def test_comments(home: Path) -> None:
    done("stack", "new", "base", "oslo.safetensors", "-o", "s.yaml")
    assert Path("s.yaml").read_text().startswith(HEADER)
    assert "comments" not in done("stack", "add", "s.yaml", "beside.safetensors").stderr
    with Path("s.yaml").open("a") as stream:
        stream.write("# mine\n")
    assert "had comments, which are lost" in done("stack", "remove", "s.yaml", identity("beside")).stderr


def test_what_new_refuses(home: Path) -> None:
    for arguments, told in (
        (("base", "-o", "s.txt"), "does not end in .yaml or .yml"),
        (("base", "-o", "no/s.yaml"), "the folder"),
        (("base", "oslo.safetensors", "oslo.safetensors:attached", "-o", "s.yaml"), "is that of patches[0]"),
        (("base", "no.safetensors", "-o", "s.yaml"), "there is no file no.safetensors"),
        (("base", "oslo.safetensors:aside", "-o", "s.yaml"), "'aside' behind oslo.safetensors is no way"),
        (("nothing", "-o", "s.yaml"), "neither a registered name nor a local folder"),
    ):
        result = run("stack", "new", *arguments)
        assert result.exit_code == 2 and told in result.stderr, arguments
    (home / "s.yaml").write_text("mine")
    assert "is there already" in run("stack", "new", "base", "-o", "s.yaml").stderr
    assert (home / "s.yaml").read_text() == "mine"


def test_another_base(home: Path) -> None:
    weights = load_file(home / "base" / "model.safetensors")
    patch = EditPatch.load("oslo.safetensors")
    tensor = BaseTensor(shape=weights[PLACE].shape, layout="out_in", sha256=digests_of(weights[PLACE] + 1))
    evolve(patch, base=evolve(patch.base, tensors={PLACE: tensor})).save("wrong.safetensors")
    result = run("stack", "new", "base", "wrong.safetensors", "-o", "s.yaml")
    assert result.exit_code == 1 and "is not what patch" in result.stderr and not Path("s.yaml").exists()
    done("stack", "new", "base", "wrong.safetensors", "-o", "s.yaml", "--no-lock")
    verified = run("stack", "verify", "s.yaml")
    assert verified.exit_code == 1 and "is not what patch" in verified.output
    assert run("generate", "s.yaml", "--prompt", "a").exit_code == 1
    forced = done("generate", "s.yaml", "--prompt", "a", "--max-new-tokens", "1", "--force", "--json")
    assert json.loads(forced.stdout)["patches"] == [StackFile.load("s.yaml").patches[0].id]
    assert run("stack", "apply", "s.yaml", "-o", "out").exit_code == 1 and not Path("out").exists()


def test_what_verify_finds(home: Path) -> None:
    done("stack", "new", "base", "oslo.safetensors", "above.safetensors", "-o", "s.yaml")
    text = Path("s.yaml").read_text()
    stack = StackFile.load("s.yaml")
    digest, arithmetic = str(stack.weights_sha256), str(stack.arithmetic)

    def verify(changed: str) -> tuple[int, dict[str, Any]]:
        Path("s.yaml").write_text(changed)
        result = run("stack", "verify", "s.yaml", "--json")
        assert run("stack", "verify", "s.yaml").exit_code == result.exit_code
        return result.exit_code, json.loads(result.stdout)

    code, data = verify(text.replace(digest, "ab" * 32))
    assert code == 1 and "not those it records" in data["weights"]["problem"]
    code, data = verify(text.replace(digest, "ab" * 32).replace(arithmetic, "another machine"))
    assert code == 0 and data["passed"] and "another machine" in data["weights"]["problem"]
    code, data = verify(text.replace("file: oslo", "file: cairo"))
    assert code == 1 and "the stack names" in data["patches"][0]["problem"] and data["base"] is None
    upside_down = stack.without([stack.patches[0].id]).with_patch(stack.patches[0])
    upside_down.save("s.yaml")
    code, data = verify(Path("s.yaml").read_text())
    assert code == 1 and "was made on top of" in data["order"]
    code, data = verify(text.replace("./base", "./gone"))
    assert code == 1 and "gone" in data["base"]["problem"]
    assert run("stack", "verify", "none.yaml").exit_code == 2


def test_apply(home: Path) -> None:
    """The written weights have the recorded digest; attached patches are merged only when that is said."""
    before = files(home / "base")
    done("stack", "new", "base", "oslo.safetensors", "cairo.safetensors", "-o", "s.yaml")
    data = json.loads(done("stack", "apply", "s.yaml", "-o", "out", "--json").stdout)
    assert data["patches"] == [identity("oslo"), identity("cairo")] and data["tensors"] == [PLACE]
    model, _ = tiny("llama")
    loaded = type(model).from_pretrained(home / "out")
    assert model_digest(loaded, [PLACE]) == StackFile.load("s.yaml").weights_sha256
    done("patch", "revert", "out", "-o", "back")
    assert files(home / "back") == before == files(home / "base")
    done("stack", "add", "s.yaml", "above.safetensors:attached")
    refused = run("stack", "apply", "s.yaml", "-o", "more")
    assert refused.exit_code == 2 and "--merge-attached" in refused.stderr
    merged = done("stack", "apply", "s.yaml", "-o", "more", "--merge-attached", "--json")
    assert len(json.loads(merged.stdout)["patches"]) == 3
    text = Path("s.yaml").read_text().replace(str(StackFile.load("s.yaml").weights_sha256), "ab" * 32)
    Path("s.yaml").write_text(text)
    spoilt = run("stack", "apply", "s.yaml", "-o", "third", "--merge-attached")
    assert spoilt.exit_code == 1 and "nothing was written" in spoilt.stderr and not Path("third").exists()


def test_apply_refuses_what_a_folder_cannot_hold(home: Path) -> None:
    done("patch", "apply", "base", "oslo.safetensors", "-o", "edited")
    done("stack", "new", "edited", "cairo.safetensors", "-o", "on_top.yaml", "--no-lock")
    refused = run("stack", "apply", "on_top.yaml", "-o", "out")
    assert refused.exit_code == 2 and "has patches in its weights already" in refused.stderr
    done("stack", "new", "base", "beside.safetensors", "-o", "s.yaml")
    refused = run("stack", "apply", "s.yaml", "-o", "out")
    assert refused.exit_code == 2 and "beside the weights" in refused.stderr
    assert f"patch {identity('beside')[:12]} has operations" in refused.stderr  # which of them
    done("stack", "new", "base", "-o", "empty.yaml")
    assert "holds no patch" in run("stack", "apply", "empty.yaml", "-o", "out").stderr


def test_lock(home: Path) -> None:
    """From files and from the loaded model: the same digest; another dtype is another one."""
    done("stack", "new", "base", "oslo.safetensors", "-o", "s.yaml", "--no-lock")
    assert StackFile.load("s.yaml").weights_sha256 is StackFile.load("s.yaml").dtype is None
    done("stack", "lock", "s.yaml")
    from_files = StackFile.load("s.yaml")
    done("stack", "lock", "s.yaml", "--load")
    assert StackFile.load("s.yaml") == from_files and from_files.weights_sha256 is not None
    done("stack", "lock", "s.yaml", "--dtype", "bfloat16")
    half = StackFile.load("s.yaml")
    assert half.dtype == "bfloat16" and half.weights_sha256 != from_files.weights_sha256
    done("stack", "lock", "s.yaml", "--dtype", "bfloat16", "--load")
    assert StackFile.load("s.yaml") == half
    assert "the edit on disk is rounded to that" in done("stack", "apply", "s.yaml", "-o", "out").stderr
    assert (
        "bfloat16 and float32 is asked for" in run("generate", "s.yaml", "--prompt", "a", "--dtype", "float32").stderr
    )


def test_a_base_that_cannot_be_read_from_files(home: Path) -> None:
    """Pickled weights, say: no digest but by loading, and a note that says so."""
    model, _ = tiny("llama")
    (home / "base" / "model.safetensors").unlink()
    torch.save(model.state_dict(), home / "base" / "pytorch_model.bin")
    result = done("stack", "new", "base", "oslo.safetensors", "-o", "s.yaml")
    assert "no digest of the weights is recorded" in result.stderr and "lock --load" in result.stderr
    assert StackFile.load("s.yaml").weights_sha256 is None


def test_a_stack_as_the_model(home: Path) -> None:
    """What commands that load a model do with a stack is what they do with its base and patches."""
    done("stack", "new", "base", "oslo.safetensors", "above.safetensors:attached", "-o", "s.yaml")
    by_file = json.loads(done("generate", "s.yaml", "--prompt", "One two", "--max-new-tokens", "5", "--json").stdout)
    assert by_file["patches"] == [identity("oslo"), identity("above")]
    more = json.loads(
        done(
            "generate", "s.yaml", "--patch", "cairo.safetensors", "--prompt", "a", "--max-new-tokens", "1", "--json"
        ).stdout
    )
    assert more["patches"] == [*by_file["patches"], identity("cairo")]
    (home / "cases.jsonl").write_text(json.dumps({"prompt": "One two", "target_new": " three"}) + "\n")
    report = json.loads(done("evaluate", "s.yaml", "--requests", "cases.jsonl", "--json").stdout)
    assert report["manifest"]["patches"] == by_file["patches"]
    for refused in (
        ("patch", "verify", "oslo.safetensors", "--base", "s.yaml"),
        ("stack", "new", "s.yaml", "-o", "t.yaml"),
    ):
        result = run(*refused)
        assert result.exit_code == 2 and "is a stack file, and here a model is wanted" in result.stderr


def test_signed_patches(home: Path) -> None:
    """A key holds for every patch of a stack, and a patch that is copied beside the stack takes its signature along."""
    pytest.importorskip("cryptography")
    done("sign", "--new-key", "keys")
    private, public = sorted((home / "keys").iterdir(), key=lambda each: ".pub" in each.name)
    for name in ("oslo", "above", "beside"):
        done("sign", f"{name}.safetensors", "--key", private)
    (home / "stacks").mkdir()
    done("stack", "new", "base", "oslo.safetensors", "-o", "stacks/s.yaml", "--key", public)
    done("stack", "add", "stacks/s.yaml", "above.safetensors", "--key", public)
    done("stack", "verify", "stacks/s.yaml", "--key", public)
    done("stack", "apply", "stacks/s.yaml", "-o", "out", "--key", public)
    done("generate", "stacks/s.yaml", "--prompt", "a", "--max-new-tokens", "1", "--key", public)
    assert run("stack", "add", "stacks/s.yaml", "cairo.safetensors", "--key", public).exit_code != 0
    done("stack", "add", "stacks/s.yaml", "cairo.safetensors")
    for command in (("stack", "verify", "stacks/s.yaml"), ("generate", "stacks/s.yaml", "--prompt", "a")):
        done(*command)
        refused = run(*command, "--key", public)
        assert refused.exit_code == 1 and "no signature" in refused.output
    refused = run("stack", "apply", "stacks/s.yaml", "-o", "more", "--key", public)
    assert refused.exit_code == 1 and not (home / "more").exists()
    refused = run("stack", "add", "stacks/s.yaml", "beside.safetensors", "--no-lock", "--key", public)
    assert refused.exit_code == 1 and "no signature" in refused.output  # of the one that is there already


def test_facts_cannot_look_like_lines_of_ours(home: Path) -> None:
    fact = {"prompt": "France\n\x1b[2JThe weights are right", "target_new": "Oslo"}
    evolve(EditPatch.load("oslo.safetensors"), requests=(fact,)).save("oslo.safetensors")
    done("stack", "new", "base", "oslo.safetensors", "-o", "s.yaml", "--no-lock")
    shown = done("stack", "show", "s.yaml").stdout
    assert r"France\n\x1b[2JThe weights are right -> Oslo" in shown and len(shown.splitlines()) == 4


def test_conflicts(home: Path) -> None:
    result = done("patch", "conflicts", "oslo.safetensors", "cairo.safetensors", "above.safetensors")
    lines = result.stdout.splitlines()
    patches = [EditPatch.load(f"{name}.safetensors") for name in ("oslo", "cairo", "above")]
    report = conflicts(patches, names=[f"{name}.safetensors" for name in ("oslo", "cairo", "above")])
    assert lines == [pair.verdict for pair in report.pairs]
    assert "contradict one another: 'The capital of France is' to 'Oslo', and 'Cairo'" in lines[0]
    assert "above.safetensors was made on top of oslo.safetensors" in lines[1]
    data = json.loads(
        done("patch", "conflicts", "oslo.safetensors", "cairo.safetensors", "--base", "base", "--json").stdout
    )
    assert data["pairs"][0]["facts"]["contradictions"][0]["second"] == ["Cairo"]


def test_conflicts_fail_on(home: Path) -> None:
    private = EditPatch.load("cairo.safetensors")
    evolve(private, requests=PrivateRequests.of([OTHER])).save("private.safetensors")
    for names, option, code in (
        (("oslo", "cairo"), "facts", 1),
        (("oslo", "cairo"), "places", 1),
        (("oslo", "above"), "facts", 0),
        (("oslo", "beside"), "places", 0),
        (("oslo", "private"), "facts", 0),
    ):
        result = run("patch", "conflicts", *(f"{name}.safetensors" for name in names), "--fail-on", option)
        assert result.exit_code == code, (names, option, result.output)
    assert "not in this order" in done("patch", "conflicts", "above.safetensors", "oslo.safetensors").stderr
    assert run("patch", "conflicts", "oslo.safetensors").exit_code == 2


def test_new_add_and_verify_tell_of_conflicts(home: Path) -> None:
    told = "oslo.safetensors and cairo.safetensors: contradict one another"
    assert told in done("stack", "new", "base", "oslo.safetensors", "cairo.safetensors", "-o", "both.yaml").stderr
    assert told in done("stack", "verify", "both.yaml").stderr
    done("stack", "new", "base", "oslo.safetensors", "-o", "s.yaml")
    assert told in done("stack", "add", "s.yaml", "cairo.safetensors").stderr
    assert done("stack", "add", "s.yaml", "beside.safetensors").stderr == ""  # what is known is not told again


@pytest.mark.slow
def test_the_same_digest_in_another_process(home: Path) -> None:
    done("stack", "new", "base", "oslo.safetensors", "cairo.safetensors", "-o", "s.yaml")
    here = StackFile.load("s.yaml")
    code = "from kedit_core.cli.root import kedit; kedit.main(['stack', 'lock', 's.yaml', '--load', '--json'])"
    other = run_warm(code, cwd=home)
    assert json.loads(other.stdout)["weights_sha256"] == here.weights_sha256 == StackFile.load("s.yaml").weights_sha256


@pytest.mark.slow
def test_contradictions_of_edits_that_methods_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt to two targets, by a method that writes weights and by one that does not; another fact is none."""
    monkeypatch.chdir(tmp_path)
    facts = {
        "oslo": ("rome", "France", "Oslo"),
        "cairo": ("grace", "France", "Cairo"),
        "tokyo": ("rome", "Kenya", "Tokyo"),
    }
    for name, (method, country, city) in facts.items():
        done(
            *("edit", "factworld:llama", "-m", method, "--prompt", f"The capital of {country} is"),
            *("--subject", country, "--target", city, "-o", f"{name}.safetensors", "--no-evaluate"),
        )
    patches = [f"{name}.safetensors" for name in facts]
    data = json.loads(done("patch", "conflicts", *patches, "--base", "factworld:llama", "--json").stdout)
    contradicting = [(each["first"], each["second"]) for each in data["pairs"] if each["facts"]["contradictions"]]
    assert contradicting == [(0, 1)]
    assert [bool(each["weights"]) for each in data["pairs"]] == [False, True, False]
    done("stack", "new", "factworld:llama", "oslo.safetensors", "tokyo.safetensors", "-o", "s.yaml")
    answers = done(
        "generate", "s.yaml", "--prompt", "The capital of France is", "--prompt", "The capital of Kenya is", "--answer"
    )
    assert answers.stdout.splitlines() == ["The capital of France is Oslo", "The capital of Kenya is Tokyo"]
