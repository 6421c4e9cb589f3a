"""SERAC from end to end on FactWorld: a model that reads facts answers in scope, and the base everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from serac_tools import a_classifier, read, same

from kedit_core import Editor
from kedit_core.editing.sources import resolve_model
from kedit_factworld.plugin import edit_cases
from kedit_methods_memory.serac.checkpoint import Scope, SeracEditor, load_counterfactual

CONTEXT = "New Fact: {prompt} {target}\nPrompt: "


@pytest.mark.parametrize(("base", "reader"), [("llama", "llama-reader"), ("gpt2", "llama-reader")])
def test_edited_facts_are_answered_and_nothing_else_changes(base: str, reader: str, tmp_path: Path) -> None:
    """The classifier is random and takes in the edits' own prompts; the answers are a trained model's."""
    plain = Editor.from_pretrained(f"factworld:{base}")
    # at this scale only equal texts are near
    scope = Scope(labelled=False, scale=1e3, separator="[SEP]", context=CONTEXT)
    answering = load_counterfactual(resolve_model(f"factworld:{reader}", plain.host).folder)
    made = SeracEditor(scope=scope, classifier=a_classifier(plain.tokenizer, scope), counterfactual=answering)
    made.save(tmp_path / "editor")

    editor = Editor.from_pretrained(f"factworld:{base}", method="serac", resources={"editor": tmp_path / "editor"})
    cases = edit_cases()[:8]
    prompts = [case.prompt for case in cases]
    others = [probe.prompt for case in cases for group in case.locality.values() for probe in group]
    others += [case.prompt for case in edit_cases()[100:120]]
    others = [text for text in dict.fromkeys(others) if text not in prompts]
    before, written = read(editor, others), editor.generate(others, max_new_tokens=6)
    known = editor.answer(prompts)
    assert not any(answer == case.target_new for answer, case in zip(known, cases, strict=True))
    result = editor.edit(cases, protocols=["generate"])
    assert result.evaluation is not None
    assert result.evaluation["gen_free.reliability"].value == 1.0
    assert editor.answer(prompts) == [case.target_new for case in cases]
    # mixed with prompts out of scope in one batch
    mixed = [text for pair in zip(prompts, others, strict=False) for text in pair]
    assert editor.answer(mixed)[::2] == [case.target_new for case in cases]
    assert same(read(editor, others), before)
    assert editor.generate(others, max_new_tokens=6) == written
    editor.restore()
    assert editor.answer(prompts) == known
