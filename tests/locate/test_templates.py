"""Context templates: sampled once from the unedited model with a seed of their own, cleaned, kept with the patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from locate_tools import MIRA, PARIS, TEMPLATES, editor_on

from kedit_core import Editor
from kedit_core.errors import HyperParamsError, InputError
from kedit_core.forward import generate_ids
from kedit_core.testing.tiny import tiny
from kedit_methods_locate import templates as templates_module
from kedit_methods_locate.hparams import RomeHyperParams
from kedit_methods_locate.rows import in_context
from kedit_methods_locate.templates import OPENINGS, clean, context_templates, sampled_templates


def sampling(family: str, folder: Path, **settings: object) -> Editor:
    """An Editor whose templates are sampled."""
    return editor_on(family, folder, context_templates=None, v_lr=0.1, v_num_grad_steps=2, **settings)  # type: ignore[arg-type]


def templates_of(editor: Editor, **settings: object) -> tuple[str, ...]:
    context = editor.context()
    return context_templates(context, RomeHyperParams(layer=1, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_twenty_one_by_default_bare_first(family: str, tmp_path: Path) -> None:
    templates = templates_of(sampling(family, tmp_path))
    assert len(templates) == 21
    assert templates[0] == "{}"
    assert all(t.count("{}") == 1 and t.count("{") == t.count("}") == 1 for t in templates)
    assert all(t.endswith(". {}") for t in templates[1:])
    starts = ("The", "Therefore", "Because", "I", "You")
    assert all(t.startswith(starts[i % 5]) for i, t in enumerate(templates[1:11]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lengths_count_all_tokens(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start words and BOS count too: 5 means 4 new tokens after a start of one token, 3 with BOS before it."""
    rows: list[int] = []

    def counted(*arguments: Any, **more: Any) -> list[list[int]]:
        written, prompts = generate_ids(*arguments, **more), arguments[3]
        rows.extend(len(prompt) + min(len(row), 10 - len(prompt)) for prompt, row in zip(prompts, written, strict=True))
        return written

    monkeypatch.setattr(templates_module, "generate_ids", counted)
    editor = sampling(family, tmp_path)
    sampled_templates(editor.context(), [(10, 5)], ("The", "I"))
    assert rows == [10] * 5


def test_same_seed_same_templates_and_no_global_randomness(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = templates_of(sampling("llama", tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert templates_of(sampling("llama", tmp_path)) == first
    other = sampling("llama", tmp_path)
    other.seed = 1
    assert templates_of(other) != first


def test_two_models_in_one_process_have_their_own(tmp_path: Path) -> None:
    """The papers' code gives the second model the first one's templates."""
    model, tokenizer = tiny("gpt2", seed=1)
    other = Editor(model, tokenizer, "rome", {"layer": 1}, cache=tmp_path)
    assert templates_of(sampling("gpt2", tmp_path)) != templates_of(other)


def test_later_rounds_take_those_of_the_unedited_model(tmp_path: Path) -> None:
    editor = sampling("gpt2", tmp_path, dtype=torch.float32)
    result = editor.edit([PARIS, MIRA], evaluate=False)
    first, second = (patch.state.config["context_templates"] for patch in result.patches)
    assert first == second
    # an Editor that finds the model already edited samples from its base all the same
    fresh = Editor(editor.model, editor.tokenizer, "rome", {"layer": 1}, cache=tmp_path / "other")
    assert editor.stack.patches
    assert list(templates_of(fresh)) == first


def test_templates_as_data(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    assert templates_of(editor, context_templates=("{}", "I say {}")) == ("{}", "I say {}")
    assert editor.compute(PARIS).state.config["context_templates"] == list(TEMPLATES)
    for wrong in (["no slot"], ["{} and {}"], ["text {}"], []):
        with pytest.raises(HyperParamsError):
            editor_on("gpt2", tmp_path, context_templates=wrong)


def test_an_encoder_decoder_gets_fixed_openings(tmp_path: Path) -> None:
    templates = templates_of(sampling("t5", tmp_path))
    assert templates == ("{}", *(f"{opening} {{}}" for opening in OPENINGS))
    assert len(templates) == 21


def test_clean_up() -> None:
    assert clean("a{b}c") == "a b c"
    assert clean("one\n\ntwo") == "one two"
    assert clean("ﬁne ①") == "fine 1", "NFKD"


def test_filling_moves_the_span() -> None:
    text, span = in_context("He said: {}!", "Paris is big", (0, 5))
    assert text == "He said: Paris is big!"
    assert text[slice(*span)] == "Paris"
    with pytest.raises(InputError, match="slots"):
        in_context("none", "Paris", (0, 5))
