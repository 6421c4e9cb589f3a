"""Patches of all six methods and of weight methods on one model: put on and taken off in any order, exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ike_tools import demonstrations
from serac_tools import EDITS, a_checkpoint
from torch import Tensor

from kedit_core import Editor, EditPatch
from kedit_core.errors import BaseMismatchError, PatchFormatError, ScopeError, StackDisturbedError
from kedit_core.evaluation import Answers
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

METHODS: dict[str, dict[str, Any]] = {
    "ft_m": {"layers": [1], "num_steps": 5, "lr": 1e-2},
    "lora": {"rank": 2, "num_steps": 5},
    "grace": {"layer": 1, "n_iter": 4, "eps0": 0.5},
    "melo": {"scope_layer": 0, "layers": [1, 2], "radius": 0.5, "num_iter": 4, "blocks": 8},
    "wise": {"layer": 1, "lr": 0.3, "n_iter": 4, "alpha": 0.5, "beta": 3.0, "gamma": 2.0, "context_templates": ["{}"]},
    "t_patcher": {"lr": 0.05, "max_epochs": 20, "validate_every": 10, "min_epochs": 10, "memory_size": 50},
    "ike": {"encoder": "ngrams", "k": 1, "answer_tokens": 4, "tau": 0.5, "window": 80},
    "serac": {},
}
WEIGHTS = ("ft_m", "lora")
PROMPTS = (EDITS[0].prompt, EDITS[1].prompt, "Edda Quill is a citizen of", "I think")


class Prepared:
    """One patch of each method for the same tiny model, and of each memory method over a weight patch below it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.checkpoint = a_checkpoint(folder / family, family)
        self.patches = {name: self._edit(name, None) for name in METHODS}
        self.below = self.patches["ft_m"]
        self.over = {name: self._edit(name, self.below) for name in METHODS if name not in WEIGHTS}

    def editor(self, method: str | None = None) -> Editor:
        more = {"options": {"demonstrations": demonstrations(6)}} if method == "ike" else {}
        model, tokenizer = tiny(self.family)
        hparams = METHODS[method] if method else None
        return Editor(model, tokenizer, method, hparams, resources={"editor": self.checkpoint}, **more)

    def _edit(self, method: str, below: EditPatch | None) -> EditPatch:
        editor = self.editor(method)
        if below is not None:
            editor.apply(below)
        return editor.edit(EDITS[:2], scenario="batch", evaluate=False).patch


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(request.param, tmp_path_factory.mktemp("stacking"))


def read(editor: Editor) -> list[Tensor]:
    """Log-probabilities of an answer after each prompt, routes and all."""
    answers = Answers(editor.model, editor.adapter, editor.tokens, stack=editor.stack)
    return answers.target_logprobs([(prompt, "Paris") for prompt in PROMPTS])


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_patch_changes_an_answer_alone_and_over_a_weight_patch(prepared: Prepared) -> None:
    for name, patch in prepared.patches.items():
        editor = prepared.editor()
        unedited = read(editor)
        with editor.applied(patch):
            assert not same(read(editor), unedited), name
        assert same(read(editor), unedited), name
    for name, patch in prepared.over.items():
        editor = prepared.editor()
        before = Snapshot(editor.model)
        editor.apply(prepared.below)
        below = read(editor)
        editor.apply(patch)
        assert not same(read(editor), below), name
        editor.remove(prepared.below)  # from under it
        editor.remove(patch)
        assert before.differences(editor.model) == [], name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_leaves_what_the_patches_left_say(prepared: Prepared, data: st.DataObject) -> None:
    """After any puts and takes, the model answers as one on which only what is left was put, in the same order."""
    editor, fresh = prepared.editor(), prepared.editor()
    before, unedited = Snapshot(editor.model), read(editor)
    names = sorted(METHODS)
    for _ in range(data.draw(st.integers(2, 6), label="steps")):
        name = data.draw(st.sampled_from(names), label="method")
        patch = prepared.patches[name]
        if patch.id in [entry.patch.id for entry in editor.stack.patches]:
            editor.remove(patch)
        else:
            editor.apply(patch)
    left = [entry.patch for entry in editor.stack.patches]
    for patch in left:
        fresh.apply(patch)
    assert same(read(editor), read(fresh))
    for patch in data.draw(st.permutations(left), label="taken off"):
        editor.remove(patch)
    assert before.differences(editor.model) == []
    assert same(read(editor), unedited)


def test_routers_and_modules_of_several_methods_act_together(prepared: Prepared) -> None:
    """IKE puts its fact before the prompt that the codebook below then sees, as routes and modules are documented."""
    editor = prepared.editor()
    editor.apply(prepared.patches["ike"])
    (inside, outside) = editor.stack.route([PROMPTS[0], "Zebras graze at noon"])
    assert inside.context and not outside.context
    editor.apply(prepared.patches["serac"])
    (both,) = editor.stack.route([PROMPTS[0]])
    assert both.context.startswith(inside.context[:4]) and both.model is not None
    editor.remove(prepared.patches["ike"])
    (left,) = editor.stack.route([PROMPTS[0]])
    assert left.model is not None and len(left.context) < len(both.context)


def test_a_copy_of_the_model_has_none_of_them(prepared: Prepared) -> None:
    editor = prepared.editor()
    unedited = read(editor)
    for name in ("grace", "wise", "ike"):
        editor.apply(prepared.patches[name])
    with editor.stack.suspended():
        copied = copy.deepcopy(editor.model)
    other = Editor(copied, editor.tokenizer)
    assert not other.stack.patches and same(read(other), unedited)


OVER = ("grace", "melo", "wise", "t_patcher")


@pytest.mark.parametrize("below", OVER)
def test_an_edit_over_a_module_patch_is_made_and_leaves_it_acting(prepared: Prepared, below: str) -> None:
    """Methods that look at the base set the stack aside for it; the hooks that follow calls come back with it."""
    for method in (*OVER, "lora"):
        editor = prepared.editor(method)
        editor.apply(prepared.patches[below])
        ids = editor.tokenizer(PROMPTS[0], return_tensors="pt")
        with torch.no_grad():
            before = editor.model(**ids).logits
            editor.compute([EDITS[2]])
            assert torch.equal(editor.model(**ids).logits, before), method
        editor.stack.check()
        editor.edit([EDITS[2]], scenario="batch", evaluate=False)
        editor.restore()


def test_hooks_that_others_take_off_are_noticed(prepared: Prepared) -> None:
    editor = prepared.editor()
    editor.apply(prepared.patches["grace"])
    editor.stack.scope.detach()
    with pytest.raises(StackDisturbedError, match="where prompts end were removed"):
        editor.stack.check()


def test_neurons_act_under_beams_and_what_is_decided_by_prompt_refuses(prepared: Prepared) -> None:
    for name in ("t_patcher", "grace"):
        editor = prepared.editor()
        editor.apply(prepared.patches[name])
        ids = editor.tokenizer(PROMPTS[0], return_tensors="pt")
        if name == "grace":
            with pytest.raises(ScopeError, match="without beams"):
                editor.model.generate(**ids, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
        else:
            written = editor.model.generate(**ids, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
            assert written.shape[1] > ids["input_ids"].shape[1]


def test_recomputed_activations_pass_through_module_patches(prepared: Prepared) -> None:
    if prepared.family != "llama":
        pytest.skip("checkpointing is turned on in the same way for every family")
    for name in OVER:
        editor = prepared.editor()
        editor.apply(prepared.patches[name])
        model, ids = editor.model, editor.tokenizer(PROMPTS[0], return_tensors="pt")
        model.train()
        gradients = []
        for recompute in (False, True):
            if recompute:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            model(**ids, labels=ids["input_ids"], use_cache=False).loss.backward()
            gradients.append(model.get_input_embeddings().weight.grad.clone())
        assert torch.equal(*gradients), name


def test_an_encoder_called_with_a_positional_mask_reads_it() -> None:
    """generate() names the mask; who calls the encoder by hand may not."""
    editor = Editor(*tiny("t5"), "wise", METHODS["wise"])
    editor.edit([EDITS[0]], evaluate=False)
    ids = torch.tensor(editor.tokenizer([PROMPTS[0]])["input_ids"])
    padded = torch.cat([torch.full((1, 4), editor.tokenizer.pad_token_id or 0), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    encoder = editor.model.get_encoder()
    with torch.no_grad():
        named = encoder(input_ids=padded, attention_mask=mask).last_hidden_state
        assert torch.equal(encoder(padded, mask).last_hidden_state, named)


@pytest.mark.parametrize(
    ("method", "role"), [("grace", "keys"), ("grace", "values"), ("melo", "centres"), ("melo", "a.0")]
)
def test_tensors_that_do_not_fit_the_model_are_refused_when_applied(prepared: Prepared, method: str, role: str) -> None:
    patch = prepared.patches[method]
    (operation,) = patch.operations
    cut = {name: t[:, :-1].contiguous() if name == role else t for name, t in operation.tensors.items()}
    if role == "centres":
        cut["points"] = cut["points"][:, :-1].contiguous()
    broken = evolve(patch, operations=[evolve(operation, tensors=cut)])
    editor = prepared.editor(method)
    before = Snapshot(editor.model)
    with pytest.raises((BaseMismatchError, PatchFormatError)):
        editor.apply(broken)
    assert before.differences(editor.model) == []
