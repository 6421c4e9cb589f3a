"""Losses by hand: which tokens are asked for and where, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from ft_tools import ALICE, BOB, FRANCE, REQUESTS, editor_on, ids_of, row_loss
from torch import Tensor

from kedit_core import Editor
from kedit_core.errors import HyperParamsError, InputError
from kedit_methods_finetune.hparams import FtMHyperParams
from kedit_methods_finetune.questions import Questions, facts_of


def losses(editor: Editor, objective: Any, side: Any = "right", requests: Any = REQUESTS, eos: bool = False) -> Tensor:
    forward = editor.forward
    questions = Questions.of(forward, facts_of(editor.tokens, requests, eos), objective, side)
    logits = forward.run(questions.batch, logits_at=questions.cells).logits
    assert logits is not None
    return questions.losses(logits)


# ------------------------------------------------------------------ acceptance check 4
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5", "llama"])
@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_have_the_loss_of_rows_alone(family: str, objective: str, side: str) -> None:
    editor = editor_on(family)
    with torch.no_grad():
        alone = [float(row_loss(editor, editor.model, each, objective)) for each in REQUESTS]
    tolerance = 1e-5 if family == "llama" else 1e-9
    assert losses(editor, objective, side).tolist() == pytest.approx(alone, rel=tolerance)


def test_two_rows_by_hand() -> None:
    """Logits made up so that the loss can be written down: of the first row's two tokens one is certain."""
    editor = editor_on("gpt2")
    questions = Questions.of(editor.forward, facts_of(editor.tokens, [FRANCE, ALICE]), "target_new", "left")
    (france, ends), (alice, end) = ids_of(editor, FRANCE), ids_of(editor, ALICE)
    assert questions.token.tolist() == [*ends, *end]
    width = questions.batch.width
    lengths = [len(france) + len(ends) - 1, len(alice) + len(end) - 1]
    starts = [width - length for length in lengths]
    first = [(0, starts[0] + len(france) - 1 + t) for t in range(len(ends))]
    second = [(1, starts[1] + len(alice) - 1 + t) for t in range(len(end))]
    assert [tuple(cell) for cell in questions.cells.tolist()] == first + second
    logits = torch.zeros(len(ends) + len(end), 10 * editor.adapter.vocab_size, dtype=torch.float64)
    logits[0, ends[0]] = 1000.0
    flat = float(torch.tensor(logits.shape[1]).double().log())
    wanted = [flat * (len(ends) - 1) / len(ends), flat]
    assert questions.losses(logits).tolist() == pytest.approx(wanted, rel=1e-12)


# ------------------------------------------------------------------ acceptance check 3
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_objectives_agree_on_one_token_only(family: str) -> None:
    editor = editor_on(family)
    words = [evolve(ALICE, target_new=word) for word in ("the", "is", "a", "of", "Paris", "in", "city")]
    short = next(each for each in words if len(ids_of(editor, each)[1]) == 1)
    one, bag = (losses(editor, each, requests=[short]) for each in ("target_new", "prompt_last"))
    assert float(one[0]) == pytest.approx(float(bag[0]), rel=1e-6)
    assert len(ids_of(editor, BOB)[1]) > 1
    several, bag = (losses(editor, each, requests=[BOB]) for each in ("target_new", "prompt_last"))
    assert abs(float(several[0]) - float(bag[0])) > 1e-2


# ------------------------------------------------------------------ encoder-decoders, and the end of the answer
def test_labels_are_shifted_and_pads_left_out() -> None:
    """transformers' own loss, which shifts labels and leaves out -100: token-weighted, so one row at a time."""
    editor = editor_on("t5")
    for row, request in enumerate(REQUESTS):
        prompt, target = ids_of(editor, request)
        with torch.no_grad():
            labels = torch.tensor([[*target, -100, -100]])
            wanted = float(editor.model(input_ids=torch.tensor([prompt]), labels=labels).loss)
        assert float(losses(editor, "target_new")[row]) == pytest.approx(wanted, rel=1e-6)


def test_end_of_sequence_is_asked_for_behind_the_target() -> None:
    editor = editor_on("gpt2")
    end = editor.tokenizer.eos_token_id
    (fact,) = facts_of(editor.tokens, [FRANCE], append_eos=True)
    prompt, target = ids_of(editor, FRANCE)
    assert fact.target == (*target, end)
    with torch.no_grad():
        logs = editor.model(input_ids=torch.tensor([[*prompt, *target]])).logits[0].log_softmax(-1)
    asked = [float(logs[len(prompt) - 1 + t, token]) for t, token in enumerate(fact.target)]
    found = losses(editor, "target_new", requests=[FRANCE], eos=True)
    assert float(found[0]) == pytest.approx(-sum(asked) / len(asked), rel=1e-9)


def test_no_end_without_such_a_token_or_a_place_for_it() -> None:
    editor = editor_on("gpt2", append_eos=True)
    editor.tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        editor.compute(FRANCE)
    with pytest.raises(HyperParamsError, match="append_eos goes with"):
        FtMHyperParams.from_dict({"layers": [0], "objective": "prompt_last", "append_eos": True})
