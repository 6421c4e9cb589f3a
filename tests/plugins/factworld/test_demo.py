"""``kedit demo`` does what it says, in text and in JSON, and fails when a claim does not hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import torch
from click.testing import CliRunner

from kedit_core import EditPatch
from kedit_core.errors import InputError, KeditError, UnknownNameError
from kedit_core.patches.keys import new_pair
from kedit_core.patches.trust import ANYONE
from kedit_factworld import demo_run, demo_view, files
from kedit_factworld.demo import DEFAULT_CASE, demo, find_case
from kedit_factworld.demo_run import Claim, DemoReport, Digests, Elsewhere, Reading, claims_of, prompts_of, same_answer

GOOD = Digests(start="a", edited="b", elsewhere_patched="b", elsewhere_removed="a", restored="a")


def fact(before: str = "Nairobi", after: str = "Tokyo") -> Reading:
    return Reading(role="the fact", prompt="...", before=before, after=after, wanted="Tokyo")


def elsewhere(patched: str = "Tokyo", removed: str = "Nairobi") -> Elsewhere:
    return Elsewhere(loaded="Nairobi", patched=patched, removed=removed)


def failed(*claims: Claim) -> list[str]:
    return [claim.text for claim in claims if not claim.holds]


def test_the_default_case_shows_a_rephrase_and_neighbours() -> None:
    roles = [role for role, _, _ in prompts_of(find_case(DEFAULT_CASE))]
    assert roles == ["the fact", "rephrased", "same answer", "same relation", "same subject"]


def test_an_unknown_case_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'fw-0999'.*fw-0"):
        find_case("fw-0999")
    with pytest.raises(UnknownNameError, match=r"ids run from fw-0001 to fw-0300"):
        find_case("zzz")


def test_a_folder_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo, ["-o", str(tmp_path / "nowhere" / "patch.safetensors")])
    assert isinstance(result.exception, InputError)
    assert "nowhere does not exist" in str(result.exception)


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), demo_run.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_answers_are_compared_without_case_and_full_stop() -> None:
    assert same_answer(" tokyo.", "Tokyo")
    assert not same_answer("Tokyo Bay", "Tokyo")


def test_the_claims_hold_when_everything_went_well() -> None:
    assert failed(*claims_of(find_case(DEFAULT_CASE), fact(), elsewhere(), GOOD)) == []


@pytest.mark.parametrize(
    ("reading", "there", "digests", "word"),
    [
        (fact(before="Oslo"), elsewhere(), GOOD, "before the edit"),
        (fact(after="Nairobi"), elsewhere(patched="Nairobi"), GOOD, "after it"),
        (fact(), elsewhere(patched="Oslo"), GOOD, "with the patch from the file"),
        (fact(), elsewhere(removed="Tokyo"), GOOD, "once the patch is off"),
        (fact(), elsewhere(), attrs.evolve(GOOD, elsewhere_patched="c"), "edited model"),
        (fact(), elsewhere(), attrs.evolve(GOOD, restored="c"), "byte-identical"),
        (fact(), elsewhere(), attrs.evolve(GOOD, elsewhere_removed="c"), "byte-identical"),
    ],
)
def test_each_broken_promise_is_told(reading: Reading, there: Elsewhere, digests: Digests, word: str) -> None:
    [text] = failed(*claims_of(find_case(DEFAULT_CASE), reading, there, digests))
    assert word in text


def test_what_to_try_next_can_be_run_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = SimpleNamespace(patch=Path("a.safetensors"), model="factworld:llama", case=find_case(DEFAULT_CASE))
    monkeypatch.setattr("sys.argv", [str(tmp_path / "kedit")])
    for found, program in (("kedit", "kedit"), (None, str(tmp_path / "kedit"))):
        monkeypatch.setattr("shutil.which", lambda _, found=found: found)
        commands = demo_view._next_commands(cast(DemoReport, report))
        assert all(command.startswith(f"{program} ") for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize("kind", files.MODELS)
def test_the_demo_holds_for_both_models(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only signed patches are read: its own is not one that somebody sent."""
    monkeypatch.setenv("KEDIT_TRUSTED_KEYS", str(new_pair(tmp_path / "keys")[1]))
    patch, report = tmp_path / "patch.safetensors", tmp_path / "report.json"
    arguments = ["--model", f"factworld:{kind}", "-o", str(patch), "--json", str(report)]
    result = CliRunner().invoke(demo, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for text in ("Nairobi", "Tokyo", "gen_free.reliability", "same as before the edit", str(patch)):
        assert text in result.stdout
    assert " NO " not in result.stdout
    shown = result.stdout.replace(str(patch), "patch").replace(str(Path(sys.executable).parent), "bin")
    assert max(map(len, shown.splitlines())) < 200

    told = json.loads(report.read_text())
    assert told["holds"] and all(claim["holds"] for claim in told["claims"])
    assert told["patch"]["bytes"] == patch.stat().st_size < 20_000
    assert told["patch"]["id"] == EditPatch.load(patch, trust=ANYONE).id
    assert told["digests"]["start"] == told["digests"]["restored"] != told["digests"]["edited"]
    assert told["evaluation"]["metrics"]["gen_free.reliability"]["value"] == 1.0


@pytest.mark.slow
def test_a_claim_that_does_not_hold_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "claims_of", lambda *_: (Claim("pigs fly", False),))
    result = CliRunner().invoke(demo, ["-o", str(tmp_path / "patch.safetensors"), "--json", "-"])
    assert isinstance(result.exception, KeditError)
    assert result.exception.exit_code == 1
    assert "pigs fly" in str(result.exception)
    assert json.loads(result.stdout)["holds"] is False
