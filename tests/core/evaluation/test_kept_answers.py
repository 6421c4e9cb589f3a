"""Base answers on disk: the same whether read or kept, and never trusted when something does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_core import Editor, EditRequest
from kedit_core.evaluation import Answers
from kedit_core.evaluation.kept_answers import KeptAnswers, base_key
from kedit_core.evaluation.model_reading import ModelReading
from kedit_core.patches import PatchStack
from kedit_core.requests import Probe
from kedit_core.testing.tiny import tiny

REQUESTS = [
    EditRequest(
        prompt=f"The capital of {land} is",
        subject=land,
        target_new=town,
        case_id=land,
        rephrase_prompts=(f"{land} is ruled from",),
        locality={"near": (Probe(prompt=f"The river of {land} is the", answers=("Rhine",)),)},
    )
    for land, town in (("France", "Rome"), ("Chad", "Oslo"))
]
PROTOCOLS = ("generate", "teacher_forced", "gen_len")


def editor(cache: Path, **settings: Any) -> Editor:
    return Editor(*tiny("llama"), cache=cache, keep_base_answers=True, **settings)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions are read from a model from now on, call by call."""
    read: list[int] = []
    for name in ("continued", "scored", "written"):
        original = getattr(ModelReading, name)

        def counted(self: ModelReading, asked: Any, *args: Any, _original: Any = original, **more: Any) -> Any:
            read.append(len(asked))
            return _original(self, asked, *args, **more)

        monkeypatch.setattr(ModelReading, name, counted)
    at_once = ModelReading.prompts

    def counted_at_once(self: ModelReading, kind: Any, asked: Any) -> Any:
        read.append(len(asked))
        return at_once(self, kind, asked)

    monkeypatch.setattr(ModelReading, "prompts", counted_at_once)
    return read


def files(cache: Path) -> list[Path]:
    return sorted((cache / "base-answers").rglob("*.json"))


def values(editor: Editor) -> Any:
    editor.read_base(REQUESTS, protocols=PROTOCOLS)
    return editor.evaluate(REQUESTS, protocols=PROTOCOLS).to_dict()["metrics"]


def test_kept_answers_are_those_that_were_read(tmp_path: Path) -> None:
    plain = Editor(*tiny("llama"), cache=tmp_path / "none")
    expected = values(plain)
    assert not (tmp_path / "none").exists()
    first = values(editor(tmp_path))
    kept = {file.name: file.read_bytes() for file in files(tmp_path)}
    assert len(kept) == 3  # one for each kind of question: answers, scores, written tokens
    again = values(editor(tmp_path))
    assert first == again == expected
    assert {file.name: file.read_bytes() for file in files(tmp_path)} == kept


def test_nothing_is_read_of_the_base_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor(tmp_path).read_base(REQUESTS, protocols=("generate",))
    read = count_reads(monkeypatch)
    other = editor(tmp_path)
    other.read_base(REQUESTS, protocols=("generate",))
    other.read_base(REQUESTS[:1], protocols=("generate",))
    assert read == []
    other.read_base([*REQUESTS, EditRequest(prompt="One more", target_new="now")], protocols=("generate",))
    assert read == [1]  # only what is new


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"format": 1}', None])
def test_a_broken_file_counts_as_not_there(tmp_path: Path, broken: str | None) -> None:
    expected = values(editor(tmp_path))
    for file in files(tmp_path):
        if broken is None:  # one answer changed, its digest not
            data = json.loads(file.read_text())
            data["answers"][0] = "a lie"
            file.write_text(json.dumps(data))
        else:
            file.write_text(broken)
    assert values(editor(tmp_path)) == expected


def test_other_weights_have_other_answers(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    Editor(model, tokenizer, cache=tmp_path, keep_base_answers=True).read_base(REQUESTS)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    changed = Editor(model, tokenizer, cache=tmp_path, keep_base_answers=True)
    changed.read_base(REQUESTS)
    assert len(files(tmp_path)) == 2
    prompts = [request.prompt for request in REQUESTS]
    assert changed.evaluate(REQUESTS)["gen_free.locality"].value == 1.0
    fresh = Editor(model, tokenizer, cache=tmp_path / "none")
    said = [o["base"] for o in changed.evaluate(REQUESTS)["gen_free.reliability"].outputs]
    assert said == fresh.answer(prompts)


def test_weights_written_to_between_two_readings_are_read_anew(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    one = Editor(model, tokenizer, cache=tmp_path, keep_base_answers=True)
    one.read_base(REQUESTS)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    one.read_base(REQUESTS)
    said = [o["base"] for o in one.evaluate(REQUESTS)["gen_free.reliability"].outputs]
    assert said == Editor(model, tokenizer).answer([request.prompt for request in REQUESTS])


def test_what_the_answers_follow_from() -> None:
    model, tokenizer = tiny("llama")
    key = base_key(model, tokenizer, "weights")
    assert key == base_key(*tiny("llama"), "weights") != base_key(model, tokenizer, "others")
    assert key != base_key(*tiny("gpt2"), "weights")
    model.config.rms_norm_eps *= 2
    assert key != base_key(model, tokenizer, "weights")


def test_logprobs_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = Editor(*tiny("llama"))
    found = []
    for _ in range(2):
        answers = Answers(base.model, base.adapter, base.tokens, stack=PatchStack.of(base.model), base=True)
        pairs = [("The capital of France is", "Rome"), ("It is", "1/3")]
        with answers.noting() as questions:
            answers.target_logprobs(pairs)
        KeptAnswers(tmp_path, "0" * 64).supply(answers, questions)
        found.append(answers.target_logprobs(pairs))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][0].numel() > 0


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "base-answers").write_text("a file is in the way")
    assert values(editor(tmp_path)) == values(Editor(*tiny("llama")))
