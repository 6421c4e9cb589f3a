"""Irrelevant texts and contexts: where they come from, and what they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from memory.wise.wise_tools import ALICE, BOB, CAROL, FRANCE, TEMPLATES, editor_on, without_texts

from kedit_core import EditRequest
from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.forward import generate_ids
from kedit_core.requests import Probe
from kedit_methods_memory.projections import projection
from kedit_methods_memory.wise.irrelevant import irrelevant_texts
from kedit_methods_memory.wise.lesson import lesson_of
from kedit_methods_memory.wise.templates import templates_for

LINES = [f"{name} is number {i} in the list of towns. It rains." for i in range(30) for name in ("France", "Norway")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Texts, half of which name France."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(LINES))
    return file


def drawn(
    requests: Sequence[EditRequest], corpus: Path | None = None, seed: int = 0, **hparams: Any
) -> tuple[list[tuple[str, ...]], EditContext]:
    """The irrelevant texts of an edit of these requests, and its context."""
    editor = editor_on("gpt2", options=None if corpus is None else {"corpus": corpus}, **hparams)
    editor.seed = seed
    context = editor.context()
    context.requests = tuple(requests)
    assert editor.settings is not None
    return irrelevant_texts(context, requests, editor.settings.hparams), context


def test_a_request_brings_its_own() -> None:
    found, context = drawn([FRANCE, ALICE])
    assert found == [("Alice plays the oboe in the evening.",), tuple(ALICE.meta["irrelevant"])]
    assert not context.warnings


def test_sentences_of_the_corpus_that_do_not_name_the_subject(corpus: Path) -> None:
    requests = [without_texts(each) for each in (FRANCE, ALICE, BOB)]
    found, context = drawn(requests, corpus, irrelevant_texts=3)
    assert all(len(set(texts)) == 3 for texts in found)
    pool = {f"{line.partition('. ')[0]}." for line in LINES}
    assert all(text in pool for texts in found for text in texts)  # "It rains." is too short to say anything
    assert not any("France" in text for text in found[0])
    assert any("France" in text for text in found[1] + found[2])
    assert not context.warnings


def test_what_stands_in_the_prompt_is_not_drawn(tmp_path: Path) -> None:
    """A text in the prompt would be taken for what is to be reacted to in it."""
    (tmp_path / "texts.txt").write_text("Norway is number 1 in the list. Peru is number 2 in the list.")
    asked = EditRequest(prompt="Norway is number 1 in the list. The capital is", target_new="Oslo")
    for seed in range(3):
        ((text,),), _ = drawn([asked], tmp_path / "texts.txt", seed)
        assert text == "Peru is number 2 in the list."


def test_they_follow_from_the_request_and_the_seed_alone(corpus: Path) -> None:
    requests = [without_texts(each) for each in (FRANCE, ALICE, BOB)]
    all_three, _ = drawn(requests, corpus)
    alone, _ = drawn(requests[2:], corpus)
    other, _ = drawn(requests, corpus, seed=1)
    assert alone[0] == all_three[2] and other != all_three


def test_probes_are_never_trained_on(corpus: Path) -> None:
    """What judges an edit has no part in making it."""
    plain = without_texts(FRANCE)
    probed = evolve(plain, locality={"n": (Probe(prompt="The capital of Spain is", answers=("Madrid",)),)})
    assert drawn([plain], corpus)[0] == drawn([probed], corpus)[0]


def test_for_want_of_text_the_model_writes_some_and_the_user_is_told() -> None:
    found, context = drawn([without_texts(FRANCE), ALICE])
    assert found[0][0] and "France" not in found[0][0]
    (warning,) = context.warnings
    assert warning.code == "irrelevant_texts_written" and warning.number == 1.0 and "--corpus" in warning.remedy


def test_a_later_request_without_texts_is_seen_to_in_time() -> None:
    """The model writes before a side memory is on it."""
    editor = editor_on("gpt2", n_iter=1)
    result = editor.edit([FRANCE, without_texts(BOB)], scenario="sequential", evaluate=False)
    assert [warning.code for warning in result.warnings if warning.code.startswith("irrelevant")] == [
        "irrelevant_texts_written"
    ]


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        drawn([without_texts(FRANCE)], tmp_path / "none.txt")


def test_the_models_own_contexts() -> None:
    """Greedy, from each opening in turn; five of five new tokens and five of ten."""
    editor = editor_on("llama", context_templates=None)
    context = editor.context()
    assert editor.settings is not None
    found = templates_for(context, editor.forward, editor.settings.hparams)
    assert len(found) == 11 and found[0] == "{}" and all(each.count("{}") == 1 for each in found)
    tokens = editor.tokens
    for start, short, long in zip(("I", "You", "Because", "Yes", "Q:"), found[1:6], found[6:], strict=True):
        ids = tokens.prompt(start).ids
        for template, new in ((short, 5), (long, 10)):
            (row,) = generate_ids(editor.model, editor.adapter, tokens, [ids], new, ignore_eos=True)
            text = " ".join(tokens.decode([*ids, *row]).replace("{", " ").replace("}", " ").split())
            assert template == f"{text} {{}}"
    assert templates_for(context, editor.forward, editor.settings.hparams) is found


def test_an_encoder_decoder_gets_openings() -> None:
    editor = editor_on("t5", context_templates=None)
    assert editor.settings is not None
    found = templates_for(editor.context(), editor.forward, editor.settings.hparams)
    assert len(found) == 11 and found[0] == "{}" and len(set(found)) == 11


def test_a_context_that_leaves_no_room_is_left_out() -> None:
    """The tiny models have 128 positions."""
    editor = editor_on("gpt2")
    limit = editor.adapter.row_limit
    assert limit is not None
    prompt = CAROL.prompt

    def length(template: str) -> int:
        pair = editor.tokens.pair(template.replace("{}", prompt), CAROL.target_new)
        return len(pair.prompt_ids) + len(pair.target_ids) - 1

    while length(TEMPLATES[1]) <= limit:
        prompt += " a"
    assert max(length(TEMPLATES[0]), length(TEMPLATES[2])) <= limit
    request = evolve(CAROL, prompt=prompt)
    place = projection(editor.adapter, 1, "mlp_out")
    lesson = lesson_of(editor.forward, place, [request, CAROL], TEMPLATES, [("The day.",)] * 2, None)
    assert lesson.edit.tolist() == [0, 0, 1, 1, 1]
