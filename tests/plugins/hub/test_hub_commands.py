"""``kedit push``, ``kedit pull`` and ``kedit search`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from plugins.hub.hub_kit import made
from plugins.hub.hub_server import Hub
from torch_blocked import run_without_torch

import kedit_hub
from kedit_core.cli.root import kedit

REPO = "owner/fact"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made().save("fact.safetensors")


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(kedit, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_push_and_pull(hub: Hub, tmp_path: Path) -> None:
    pushed = run("push", "fact.safetensors", REPO, "--title", "Ruritania", "--tag", "geo", "--license", "mit")
    assert pushed.stderr == ""  # no bars of the library
    commit = hub.repos[REPO].heads["main"]
    pinned = f"{REPO}@{commit}#{made().id}"
    assert pushed.stdout.endswith(f"kedit pull {pinned}\n")
    pulled = run("pull", REPO)
    name = f"{made().id[:12]}.safetensors"
    assert f"patch {made().id} is in {name}" in pulled.stdout and f"at commit {commit}" in pulled.stdout
    assert f"no id was asked for, so this is whatever {REPO} gives; pin it: kedit pull {pinned}" in pulled.stderr
    assert Path(name).read_bytes() == Path("fact.safetensors").read_bytes()

    as_json = json.loads(run("pull", pinned, "-o", "out.safetensors", "--json").stdout)
    assert as_json == {
        "patch": made().id,
        "output": "out.safetensors",
        "signature": None,
        "source": REPO,
        "file": f"{made().id}.safetensors",
        "commit": commit,
        "bytes": made().size,
        "cached": True,
        "pull": pinned,
    }
    assert not run("pull", REPO, "--id", made().id[:8], "--offline").stderr
    again = json.loads(run("push", "fact.safetensors", REPO, "--json").stdout)
    assert again["changed"] is False and again["pull"] == pinned and again["url"] is None


def test_help_waits_for_no_library() -> None:
    modules = ", ".join(f"kedit_hub.commands.{name}" for name in ("push", "pull", "search"))
    run_without_torch(f"import kedit_hub, {modules}\nassert 'huggingface_hub' not in sys.modules")


def test_outputs_are_looked_at_first(hub: Hub) -> None:
    kedit_hub.push("fact.safetensors", REPO)
    hub.asked.clear()
    Path("letter.txt").write_text("Dear")
    assert "is no patch, so it is not replaced" in run("pull", REPO, "-o", "letter.txt", code=2).output
    assert "does not exist" in run("pull", REPO, "-o", "none/p.safetensors", code=2).output
    assert hub.asked == [] and Path("letter.txt").read_text() == "Dear"
    Path("folder").mkdir()
    run("pull", REPO, "-o", "folder")
    assert [path.name for path in Path("folder").iterdir()] == [f"{made().id[:12]}.safetensors"]


def test_errors_are_one_sentence(hub: Hub) -> None:
    assert run("pull", "owner/none", code=2).stderr.startswith("Error: owner/none on http://127.0.0.1")
    assert "is no place of patches" in run("pull", "nowhere", code=2).stderr
    assert "there is no file" in run("push", "none.safetensors", REPO, code=2).stderr
    kedit_hub.push("fact.safetensors", REPO)
    assert "is larger than" in run("pull", REPO, "--max-size", "0.000000001", code=1).stderr
    hub.faults["info"] = 503
    assert run("pull", REPO, code=1).stderr.count("\n") == 1


def test_hidden_facts(hub: Hub) -> None:
    noted = run("push", "fact.safetensors", REPO, "--hide-requests").stderr
    assert "the patch file still holds them" in noted
    assert b"Ruritania" not in hub.files(REPO)["README.md"]


def test_search_on_the_hub(hub: Hub) -> None:
    kedit_hub.push_to_hub(made(1), "owner/ruritania", tags=("geo",))
    kedit_hub.push_to_hub(made(2, name="gpt2"), "owner/other")
    hub.put("owner/no-patch", **{"README.md": b"---\nlibrary_name: peft\n---\n"})
    found = json.loads(run("search", "--json").stdout)
    assert {each["source"]: each["base"] for each in found} == {"owner/ruritania": "org/model", "owner/other": "gpt2"}
    assert found[0]["tags"] == ["knowledge-editing", "rome", "geo"]
    assert "owner/ruritania" in run("search", "ruri", "--base", "org/model").stdout
    assert run("search", "--base", "org/none").stdout == "Nothing was found.\n"


def test_search_in_an_index() -> None:
    kedit_hub.push(made(1), "./shelf", title="Capital of Ruritania", tags=("geo",))
    kedit_hub.push(made(2, name="factworld:llama"), "./shelf", title="A river")
    found = json.loads(run("search", "--index", "shelf", "--json").stdout)
    assert len(found) == 2
    first = json.loads(run("search", "GEO", "capital", "--index", "shelf", "--json").stdout)
    assert [each["source"] for each in first] == [f"./shelf#{made(1).id}"]
    assert kedit_hub.pull(first[0]["source"]).id == made(1).id
    assert run("search", "capital", "--index", "shelf", "--base", "gpt2").stdout == "Nothing was found.\n"
    assert "there is no folder" in run("search", "--index", "none", code=2).stderr


def test_keys(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("model_signing")
    from kedit_core.errors import UntrustedPatchError
    from kedit_core.patches import keys, signing, trust

    private, public = keys.new_pair(tmp_path / "author")
    _, other = keys.new_pair(tmp_path / "other")
    kedit_hub.push("fact.safetensors", REPO)
    with pytest.raises(UntrustedPatchError, match=r"has no signature.*KEDIT_TRUSTED_KEYS\); get its signature"):
        kedit_hub.pull(REPO, trust=trust.TrustPolicy((public,)))
    signing.sign("fact.safetensors", private)
    run("push", "fact.safetensors", REPO)
    run("pull", REPO, "--key", str(public), "-o", "signed.safetensors")
    assert Path("signed.safetensors.sig").read_bytes() == Path("fact.safetensors.sig").read_bytes()
    run("pull", REPO, "--key", str(other), "-o", "not.safetensors", code=1)
    assert not Path("not.safetensors").exists()
    monkeypatch.setenv(trust.ENVIRONMENT, str(other))
    for arguments in ({}, {"id": made().id}, {"local_files_only": True}):
        with pytest.raises(UntrustedPatchError):
            kedit_hub.from_pretrained(REPO, **arguments)  # type: ignore[arg-type]
    monkeypatch.setenv(trust.ENVIRONMENT, str(public))
    assert kedit_hub.from_pretrained(REPO, local_files_only=True).id == made().id
