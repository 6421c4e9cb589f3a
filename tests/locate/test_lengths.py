"""Requests longer than the model's positions: refused before any work, with their numbers, by every locate method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, PARIS, TEMPLATES, a_statistic

from kedit_core import Editor, EditRequest
from kedit_core.errors import RequestError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import save_statistics

pytestmark = pytest.mark.slow

SPREAD = ("memit", "emmet", "pmet", "alphaedit")
METHODS = ("rome", "r_rome", *SPREAD, "kn")
POSITIONS = 128
SHORT: dict[str, Any] = {"context_templates": ["{}"]}


def editor_of(method: str, folder: Path, family: str = "gpt2", **hparams: Any) -> Editor:
    """On a tiny model, with a made-up statistic, a search of one step, and the bare context unless others are asked."""
    model, tokenizer = tiny(family, dtype=torch.float64)
    own = {"nullspace_rule": "absolute", "nullspace_threshold": 5.0, "l2_unit": "absolute"}
    settings: dict[str, Any] = {"steps": 2}
    if method != "kn":
        layers = {"layers": [1]} if method in SPREAD else {"layer": 1}
        settings = {"v_num_grad_steps": 2, **layers, **SHORT, **(own if method == "alphaedit" else {}), **hparams}
    editor = Editor(model, tokenizer, method, settings, cache=folder / "cache")
    save_statistics(folder / "statistic.safetensors", [a_statistic(1, editor.adapter.mlp_size(1))])
    editor.options["stats"] = folder / "statistic.safetensors"
    return editor


def of_length(editor: Editor, length: int, request: EditRequest = PARIS) -> EditRequest:
    """A request that has the model read so many tokens: its prompt, and its target but the last."""
    for filler in range(length):
        made = evolve(request, prompt=f"{request.subject} {'x' * filler}-")
        pair = editor.tokens.pair(made.prompt, made.target_new)
        if len(pair.prompt_ids) + len(pair.target_ids) - 1 == length:
            return made
    raise AssertionError(f"no prompt of {length} tokens")


def refused(editor: Editor, requests: list[EditRequest], **settings: Any) -> str:
    """What is said; nothing was run on the model, and it is as it was."""
    before, calls = Snapshot(editor.model), list[int]()
    with editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1)):
        with pytest.raises(RequestError) as caught:
            editor.edit(requests, evaluate=False, **settings)
        if not settings:
            with pytest.raises(RequestError):
                editor.plan(requests)
    assert calls == []
    assert before.differences(editor.model) == [] and not editor.stack.patches
    return str(caught.value)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_refused_before_any_pass_with_the_numbers(method: str, family: str, tmp_path: Path) -> None:
    """Learned and rotary positions; the prompt is named by its beginning."""
    editor = editor_of(method, tmp_path, family)
    long, longer = of_length(editor, POSITIONS + 1), of_length(editor, 300, MIRA)
    said = refused(editor, [long, PARIS, longer])
    assert f"2 faults in the requests for method '{method}'" in said
    assert "129 tokens long" in said and "300 tokens long" in said and said.count("128 positions") == 2
    assert long.prompt[:60] in said and long.prompt[:61] not in said and len(said) < 600


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_what_just_fits_is_edited(method: str, family: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path, family)
    request = of_length(editor, POSITIONS)
    patch = editor.compute(request)
    assert len(patch.requests) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_subject_too_long_for_its_essence(method: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path)
    name = f"France{'x' * (POSITIONS - 1 - len(editor.tokens.prompt('France').ids))}"
    request = EditRequest(prompt=name, subject=name, target_new="x")
    pair = editor.tokens.pair(name, "x")
    assert len(pair.prompt_ids) + len(pair.target_ids) - 1 == POSITIONS
    length = len(editor.tokens.prompt(f"{name} is a").ids)
    assert length > POSITIONS
    said = refused(editor, [request])
    assert f"its subject followed by 'is a' is {length} tokens long" in said and "128 positions" in said


@pytest.mark.parametrize("method", ["rome", "memit", "pmet"])
def test_given_contexts_that_make_it_too_long(method: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path, context_templates=list(TEMPLATES))
    request = of_length(editor, POSITIONS)
    said = refused(editor, [request], scenario=None)
    alone = len(editor.tokens.prompt(request.prompt).ids)
    more = max(len(editor.tokens.prompt(each.replace("{}", request.prompt)).ids) for each in TEMPLATES) - alone
    assert more > 2
    assert f"128 tokens long, {128 + more} behind the longest of its contexts" in said
    assert "context_lengths, context_templates" in said
    roomy = of_length(editor, POSITIONS - more)
    assert editor.compute(roomy).operations


@pytest.mark.parametrize("method", ["r_rome", "memit"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampled_contexts_that_make_it_too_long(method: str, family: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path, family, context_templates=None, context_lengths=[[60, 2]])
    searches: list[int] = []
    original = editor.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        searches.append(int(torch.is_grad_enabled()))
        return original(*args, **kwargs)

    editor.model.forward = forward
    with pytest.raises(RequestError, match=r"behind the longest of its contexts.*shorten it, or the contexts"):
        editor.compute(of_length(editor, 120))
    assert 1 not in searches  # only the contexts were written


def test_a_context_longer_than_the_model(tmp_path: Path) -> None:
    editor = editor_of("memit", tmp_path, context_templates=None, context_lengths=[[500, 1]])
    with pytest.raises(RequestError, match="behind the longest of its contexts"):
        editor.compute(PARIS)


@pytest.mark.parametrize("method", ["rome", "memit"])
@pytest.mark.parametrize("scenario", ["sequential", "single"])
def test_a_later_round_is_looked_at_before_the_first(method: str, scenario: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path, context_templates=list(TEMPLATES))
    made: list[Any] = []
    requests = [PARIS, MIRA, of_length(editor, POSITIONS)]
    said = refused(editor, requests, scenario=scenario, on_patch=lambda patch, _: made.append(patch))
    assert made == [] and "1 fault in" in said


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_relative_positions_have_no_limit(method: str, tmp_path: Path) -> None:
    editor = editor_of(method, tmp_path, "t5", context_templates=["{}", "So. {}"])
    assert editor.adapter.max_positions is None
    assert editor.compute(evolve(PARIS, prompt=f"France{' x' * 200}")).operations
