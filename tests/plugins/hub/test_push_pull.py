"""Push to a Hub and pull from it: the same bytes, one commit, a card, and nothing that is not verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from plugins.hub.hub_kit import made
from plugins.hub.hub_server import TOKEN, Hub, Repo

import kedit_hub
from kedit_core.errors import InputError, KeditError, PatchFormatError, UnknownNameError
from kedit_hub.cache import Cache

REPO = "owner/fact"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fact.safetensors"
    made().save(path)
    return path


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name == "patches"]


@pytest.mark.parametrize("lfs_from", [1, 10**9])
def test_pushed_and_pulled_bytes_are_the_same(hub: Hub, file: Path, tmp_path: Path, lfs_from: int) -> None:
    hub.lfs_from = lfs_from
    patch_id = hashlib.sha256(file.read_bytes()).hexdigest()
    pushed = kedit_hub.push(file, REPO)
    assert pushed.id == patch_id and pushed.changed and pushed.commit == hub.repos[REPO].heads["main"]
    assert hub.files(REPO)[f"{patch_id}.safetensors"] == file.read_bytes()
    assert ("lfs" in hub.kinds()) == (lfs_from == 1)

    pulled = kedit_hub.pull(REPO)
    assert pulled.save(tmp_path / "back.safetensors") is None
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()
    assert (pulled.id, pulled.commit, pulled.cached) == (patch_id, pushed.commit, False)
    assert pulled.pinned == pushed.pinned == f"{REPO}@{pushed.commit}#{patch_id}"
    assert kedit_hub.pull(pulled.pinned).cached
    # nobody is asked for a patch that is pinned and here
    asked = len(hub.asked)
    assert kedit_hub.from_pretrained(REPO, id=patch_id).id == patch_id and len(hub.asked) == asked


def test_an_endpoint_that_is_given(online: None, tmp_path: Path) -> None:
    with Hub().running() as hub:
        kedit_hub.push_to_hub(made(), REPO, endpoint=hub.url)
        assert kedit_hub.from_pretrained(REPO, endpoint=hub.url).id == made().id
        assert kedit_hub.search("fact", endpoint=hub.url)[0].source == REPO


def test_one_commit_with_a_card_that_the_library_reads(hub: Hub, file: Path) -> None:
    kedit_hub.push(file, REPO, title="Strelsau", license="mit", tags=("geo",), commit_message="As agreed")
    assert hub.kinds().count("commit") == 1
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "kedit",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "tags": ["kedit", "knowledge-editing", "rome", "geo"],
        "license": "mit",
    }
    assert f"kedit pull {REPO} --id {made().id}" in card.text


def test_the_same_again_changes_nothing(hub: Hub, file: Path) -> None:
    first = kedit_hub.push(file, REPO, title="Strelsau", tags=("geo",))
    again = kedit_hub.push(file, REPO)
    assert not again.changed and again.commit == first.commit and again.url is None
    assert hub.kinds().count("commit") == 1 and hub.kinds().count("upload") == 1
    described = kedit_hub.push(file, REPO, title="The capital of Ruritania")
    assert described.changed and hub.kinds().count("upload") == 1
    readme = hub.files(REPO)["README.md"].decode()
    assert readme.count("kedit:patch") == 1 and "## The capital of Ruritania" in readme


def test_several_patches_in_one_repository_and_words_of_the_owner(hub: Hub) -> None:
    hub.put(
        REPO, **{"README.md": b"---\nlanguage: en\nbase_model: other/base\ntags: [mine]\n---\n# Mine\n\nBy hand.\n"}
    )
    first, second = made(1), made(2)
    for patch in (first, second):
        kedit_hub.push_to_hub(patch, REPO)
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert card.data.base_model == ["other/base", "org/model"] and card.data.tags[:2] == ["mine", "kedit"]
    assert card.data.to_dict()["language"] == "en" and "# Mine\n\nBy hand." in card.text
    assert card.text.count("<!-- kedit:patch") == card.text.count("<!-- kedit:end") == 2

    with pytest.raises(InputError, match="holds 2 patches; choose one with --id") as several:
        kedit_hub.pull(REPO)
    assert first.id in str(several.value) and second.id in str(several.value)
    for wanted in (second.id, second.id[:8], second.id.upper()):
        assert kedit_hub.pull(REPO, id=wanted).id == second.id
    assert kedit_hub.pull(f"{REPO}#{first.id[:10]}").id == first.id
    with pytest.raises(UnknownNameError, match="holds no patch 00000000"):
        kedit_hub.pull(REPO, id="00000000")


def test_a_signature_goes_along_and_comes_back(hub: Hub, file: Path, tmp_path: Path) -> None:
    signature = tmp_path / "fact.safetensors.sig"
    signature.write_bytes(b"signed")
    pushed = kedit_hub.push(file, REPO)
    assert pushed.signature == f"{pushed.id}.safetensors.sig"
    assert "--key AUTHORS_PUBLIC_KEY.pem" in hub.files(REPO)["README.md"].decode()
    pulled = kedit_hub.pull(REPO)
    assert pulled.save(tmp_path / "p.safetensors") == tmp_path / "p.safetensors.sig"
    assert (tmp_path / "p.safetensors.sig").read_bytes() == b"signed"
    signature.write_bytes(b"signed anew")  # one that is given later is added, the patch is not sent again
    assert kedit_hub.push(file, REPO).changed and hub.kinds().count("upload") == 1
    assert kedit_hub.pull(REPO).signature == b"signed anew"
    with pytest.raises(InputError, match="is no signature, so it is not replaced"):
        kedit_hub.pull(REPO).save(tmp_path / "p.safetensors")  # b"signed" is nobody's


def test_a_signature_of_another_patch_is_not_left_beside(hub: Hub, file: Path, tmp_path: Path) -> None:
    kedit_hub.push(file, REPO)
    target = tmp_path / "p.safetensors"
    target.with_name("p.safetensors.sig").write_bytes(b"of another")
    with pytest.raises(InputError, match="is there already and is not of this patch"):
        kedit_hub.pull(REPO).save(target)
    assert not target.exists()


def test_branches_and_pull_requests(hub: Hub, file: Path) -> None:
    with pytest.raises(UnknownNameError, match="no such branch, tag or commit"):
        kedit_hub.push(file, REPO, revision="next")
    repo = hub.repos[REPO]
    repo.heads["next"] = repo.heads["main"]
    kedit_hub.push(file, f"{REPO}@next")
    assert kedit_hub.pull(REPO, revision="next").id == made().id
    with pytest.raises(UnknownNameError, match="holds no patch"):
        kedit_hub.pull(REPO)
    proposed = kedit_hub.push(made(3), REPO, create_pr=True)
    assert proposed.url is not None and proposed.url.endswith("/discussions/1")
    assert kedit_hub.pull(f"{REPO}@{proposed.commit}").id == made(3).id


def test_somebody_else_commits_at_the_same_time(hub: Hub) -> None:
    kedit_hub.push(made(1), REPO)
    hub.before_commit = lambda: kedit_hub.push(made(2), REPO)  # type: ignore[assignment,return-value]
    kedit_hub.push(made(3), REPO)
    assert hub.files(REPO)["README.md"].decode().count("<!-- kedit:patch") == 3
    assert {f"{made(seed).id}.safetensors" for seed in (1, 2, 3)} <= hub.files(REPO).keys()


def test_private_means_private(hub: Hub, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kedit_hub.push(file, "owner/secret", private=True)
    assert hub.repos["owner/secret"].private
    assert kedit_hub.pull("owner/secret").id == made().id
    with pytest.raises(UnknownNameError, match="no such repository, or it is not open to you"):
        kedit_hub.pull("owner/secret", token=False)
    kedit_hub.push(file, REPO)
    with pytest.raises(InputError, match="is there already and is public; nothing was sent"):
        kedit_hub.push(made(5), REPO, private=True)
    assert f"{made(5).id}.safetensors" not in hub.files(REPO)


def test_the_token_is_sent_to_the_hub_only(hub: Hub, file: Path) -> None:
    hub.lfs_from = 1
    kedit_hub.push(file, REPO, token=TOKEN)
    with Hub().running() as elsewhere:
        elsewhere.blobs = hub.blobs
        oid = made().id
        hub.faults["resolve"] = lambda handler: handler.answer(302, Location=f"{elsewhere.url}/cdn/{oid}")
        assert kedit_hub.pull(REPO).id == oid
        assert "authorization" not in elsewhere.asked[0][2]
    assert next(headers for kind, _, headers in hub.asked if kind == "resolve")["authorization"] == f"Bearer {TOKEN}"


def test_a_tampered_file_is_refused_and_not_kept(hub: Hub, file: Path, tmp_path: Path) -> None:
    hub.lfs_from = 1
    kedit_hub.push(file, REPO)
    other = made(9).to_bytes()
    assert len(other) == len(file.read_bytes())
    hub.faults["cdn"] = lambda handler: handler.answer(200, other)
    with pytest.raises(KeditError, match=f"not what is announced: its SHA-256 is {made(9).id}, not {made().id}"):
        kedit_hub.pull(REPO)
    assert cached(tmp_path) == []
    # the Hub itself telling of another file: the id that was asked for decides
    hub.faults.clear()
    hub.repos[REPO] = Repo()
    hub.put(REPO, **{f"{made().id}.safetensors": other})
    with pytest.raises(UnknownNameError, match="holds no patch"):
        kedit_hub.pull(REPO, id=made().id)
    hub.lfs_from = 10**9  # now only the file's name tells the id
    with pytest.raises(KeditError, match="is not what is announced"):
        kedit_hub.pull(REPO)
    assert cached(tmp_path) == []


def test_files_that_do_not_tell_their_ids_are_tried(hub: Hub, tmp_path: Path) -> None:
    hub.lfs_from = 10**9
    hub.put(REPO, **{f"{name}.safetensors": made(seed).to_bytes() for seed, name in enumerate("abc")})
    assert kedit_hub.pull(REPO, id=made(2).id[:12]).file == "c.safetensors"
    with pytest.raises(UnknownNameError, match="holds no patch 0123456789"):
        kedit_hub.pull(REPO, id="0123456789")
    assert cached(tmp_path) == [f"{made(2).id}.safetensors"]  # the others came, and were not what was asked for
    with pytest.raises(KeditError, match=r"c.safetensors of owner/fact is larger than"):
        kedit_hub.pull(REPO, id="0123456789", max_bytes=3 * made().size - 1)  # of all together


def test_what_a_repository_is_called_by_its_server_cannot_look_like_a_line_of_ours(hub: Hub) -> None:
    names = ("a\nError: all is well.safetensors", "b.safetensors", "c.safetensors")
    hub.put(REPO, **{name: made(seed).to_bytes() for seed, name in enumerate(names)})
    with pytest.raises(InputError, match="holds 2 patches") as told:
        kedit_hub.pull(REPO)
    assert "\n" not in str(told.value)
    hub.faults["info"] = lambda handler: handler.json({"id": REPO, "sha": "main\x1b[2J", "siblings": []})  # type: ignore[attr-defined]
    with pytest.raises(KeditError, match="does not tell which commit that is"):
        kedit_hub.pull(REPO)


def test_a_cache_that_changes_after_the_digest_was_looked_at_is_not_believed(
    hub: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kedit_hub.push(file, REPO)
    path = kedit_hub.pull(REPO).path
    find = Cache.find

    def swapped(cache: Cache, patch_id: str) -> Path | None:
        found = find(cache, patch_id)
        path.write_bytes(made(9).to_bytes())
        return found

    monkeypatch.setattr(Cache, "find", swapped)
    for pull in (kedit_hub.pull, kedit_hub.from_pretrained):
        path.write_bytes(file.read_bytes())
        with pytest.raises(KeditError, match="was changed while it was read"):
            pull(f"{REPO}#{made().id}")  # type: ignore[operator]


def test_what_is_no_patch_is_refused_before_it_is_fetched_whole(hub: Hub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    model = save({"weight": torch.zeros(4_000_000)}, metadata={"format": "pt"})
    read: list[int] = []

    def slowly(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("Content-Length", str(len(model)))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        try:
            for start in range(0, len(model), 1 << 20):
                handler.wfile.write(model[start : start + (1 << 20)])  # type: ignore[attr-defined]
                read.append(start)
        except OSError:
            pass

    hub.put(REPO, **{"model.safetensors": model})
    hub.faults["cdn"] = slowly
    with pytest.raises(PatchFormatError, match=r"model.safetensors of owner/fact is not a kedit patch"):
        kedit_hub.pull(REPO)
    assert len(read) < len(model) >> 20 and cached(tmp_path) == []
    hub.put(REPO, **{"short.safetensors": b"abc"})
    with pytest.raises(PatchFormatError, match="is not a kedit patch"):
        kedit_hub.pull(REPO)
    damaged = made().to_bytes()[:-4] + b"\xff\xff\xff\x7f"  # NaN
    hub.put(REPO, **{"nan.safetensors": damaged})
    with pytest.raises(PatchFormatError, match=r"nan.safetensors of owner/fact"):
        kedit_hub.pull(REPO)
    assert cached(tmp_path) == []
    hub.put(REPO, **{"README.md": b"x"})
    with pytest.raises(UnknownNameError, match="holds no patch"):
        kedit_hub.pull(REPO)


def test_the_cache_is_checked_and_mended(hub: Hub, file: Path, tmp_path: Path) -> None:
    kedit_hub.push(file, REPO)
    path = kedit_hub.pull(REPO).path
    path.write_bytes(path.read_bytes()[:-1])
    again = kedit_hub.pull(REPO)
    assert not again.cached and again.path.read_bytes() == file.read_bytes()
    assert not kedit_hub.pull(REPO, force_download=True).cached
    assert kedit_hub.pull(REPO, cache_dir=tmp_path / "own").path.is_relative_to(tmp_path / "own")


def test_offline_takes_what_was_pulled_before(hub: Hub, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (file.with_name("fact.safetensors.sig")).write_bytes(b"signed")
    pushed = kedit_hub.push(file, REPO)
    with pytest.raises(KeditError, match="was not pulled before, and nobody may be asked"):
        kedit_hub.pull(REPO, local_files_only=True)
    kedit_hub.pull(REPO)
    asked = len(hub.asked)
    for again in (
        kedit_hub.pull(REPO, local_files_only=True),
        kedit_hub.pull(f"{REPO}#{pushed.id}", local_files_only=True),
    ):
        assert (again.id, again.commit, again.signature) == (pushed.id, pushed.commit, b"signed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert kedit_hub.from_pretrained(REPO).id == pushed.id
    with pytest.raises(KeditError, match="HF_HUB_OFFLINE is set"):
        kedit_hub.from_pretrained("owner/other")
    with pytest.raises(KeditError, match="HF_HUB_OFFLINE is set"):
        kedit_hub.push(file, REPO)
    assert len(hub.asked) == asked
