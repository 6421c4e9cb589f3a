"""Facts longer than the model's positions: refused before any work by every fine-tuning method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from ft_tools import ALICE, FRANCE

from kedit_core import Editor, EditRequest
from kedit_core.errors import RequestError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

METHODS = ("ft_l", "ft_m", "ft_bf", "lora", "adalora")


def editor_of(method: str, family: str, **hparams: Any) -> Editor:
    model, tokenizer = tiny(family, dtype=torch.float32)
    quick = {"num_steps": 2, **({"tinit": 0, "tfinal": 1} if method == "adalora" else {})}
    return Editor(model, tokenizer, method, {"layers": [1], "append_eos": False, **quick, **hparams})


def of_length(editor: Editor, length: int, request: EditRequest = FRANCE) -> EditRequest:
    """A request that has a decoder read so many tokens: its prompt, and its target but the last."""
    for filler in range(length):
        made = evolve(request, prompt=f"{request.subject} {'x' * filler}-")
        pair = editor.tokens.pair(made.prompt, made.target_new)
        if len(pair.prompt_ids) + len(pair.target_ids) - 1 == length:
            return made
    raise AssertionError(f"no prompt of {length} tokens")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_refused_before_any_pass_with_the_numbers(method: str, family: str) -> None:
    editor = editor_of(method, family)
    fits, long, longer = (of_length(editor, length) for length in (128, 129, 300))
    before, calls = Snapshot(editor.model), list[int]()
    with editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1)):
        for run in (editor.edit, editor.compute, editor.plan):
            with pytest.raises(RequestError) as caught:
                run([fits, long, ALICE, longer])
            said = str(caught.value)
            assert f"2 faults in the requests for method '{method}'" in said
            assert "129 tokens long" in said and "300 tokens long" in said and said.count("128 positions") == 2
            assert long.prompt[:60] in said and long.prompt[:61] not in said and len(said) < 600
        assert calls == []
    assert before.differences(editor.model) == []
    assert editor.compute(fits).operations


@pytest.mark.parametrize("method", ["ft_m", "lora"])
def test_the_token_that_ends_the_answer_counts(method: str) -> None:
    editor = editor_of(method, "gpt2", append_eos=True)
    with pytest.raises(RequestError, match="129 tokens long"):
        editor.compute(of_length(editor, 128))
    assert editor.compute(of_length(editor, 127)).operations


@pytest.mark.parametrize("method", ["ft_m", "lora"])
def test_relative_positions_have_no_limit(method: str) -> None:
    editor = editor_of(method, "t5")
    assert editor.compute(evolve(FRANCE, prompt=f"France{' x' * 200}")).operations
