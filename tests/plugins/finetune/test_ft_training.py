"""The training loop against one written straight from the sheet, and each speed-up against the plain path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ft_tools import ALICE, BOB, FRANCE, REQUESTS, editor_on, plain_ft

from kedit_core import Editor, EditRequest
from kedit_core.errors import MethodError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import FAMILIES
from kedit_methods_finetune.ft import Trained, train
from kedit_methods_finetune.ft.batches import minibatches
from kedit_methods_finetune.ft.paths import Whole
from kedit_methods_finetune.ft.places import places_of
from kedit_methods_finetune.questions import facts_of

pytestmark = pytest.mark.slow

# exact in float64: these compute norms in the model's dtype; the others round to float32 inside
EXACT = ("gpt2", "gpt_neox", "t5")
PATHS = {
    "gpt2": "the projection and what is behind it",
    "gemma3": "the block and what is behind it",
    "t5": "the decoder",
}


def trained(editor: Editor, requests: Sequence[EditRequest] = REQUESTS, **settings: Any) -> Trained:
    context = editor.context()
    assert context.hparams is not None
    hparams: Any = context.hparams
    facts = facts_of(context.tokens, requests)
    return train(context, places_of(context.adapter, hparams), facts, hparams, **settings)


def same(found: Trained, wanted: Trained, tolerance: float) -> None:
    for name, delta in wanted.deltas.items():
        assert float((found.deltas[name] - delta).abs().max()) <= tolerance, name
    assert found.epochs == pytest.approx(wanted.epochs, rel=max(tolerance, 1e-9))
    assert found.steps == wanted.steps
    mine, theirs = found.optimizer["state"], wanted.optimizer["state"]
    assert mine.keys() == theirs.keys() and theirs
    for key, moments in theirs.items():
        assert float(mine[key]["step"]) == float(moments["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert float((mine[key][moment] - moments[moment]).abs().max()) <= tolerance, moment


# ------------------------------------------------------------------ by the letter
@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
def test_training_is_the_plain_one(family: str, objective: str) -> None:
    editor = editor_on(family, objective=objective, batch_size=2, weight_decay=0.01)
    found = trained(editor)
    wanted = plain_ft(editor, list(found.deltas))
    assert len(wanted.deltas) == (2 if family != "t5" else 1)
    for name, delta in wanted.deltas.items():
        assert bool(delta.any())
        assert float((found.deltas[name] - delta).abs().max()) <= 1e-8, name
    assert found.epochs == pytest.approx(wanted.epochs, rel=1e-8)
    assert found.steps == wanted.steps == 8
    for mine, theirs in zip(found.optimizer["state"].values(), wanted.moments, strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            assert float((mine[moment] - theirs[moment]).abs().max()) <= 1e-8


def test_bound_is_that_of_the_plain_one() -> None:
    editor = editor_on("gpt2", "ft_l", norm_constraint=0.015, batch_size=2)
    found = trained(editor)
    wanted = plain_ft(editor, list(found.deltas))
    for name, delta in wanted.deltas.items():
        assert float((found.deltas[name] - delta).abs().max()) <= 1e-8
        assert float(delta.abs().max()) == pytest.approx(0.015)


# ------------------------------------------------------------------ acceptance check 5
def test_low_loss_at_the_start_changes_nothing() -> None:
    found = trained(editor_on("gpt2", stop_loss=100.0))
    assert found.steps == 0
    assert len(found.epochs) == 1
    assert not any(bool(delta.any()) for delta in found.deltas.values())


def test_stop_is_by_losses_before_the_steps() -> None:
    losses = trained(editor_on("gpt2", num_steps=8)).epochs
    limit = (losses[4] + losses[5]) / 2
    assert min(losses[:5]) > limit > losses[5]
    stopped = trained(editor_on("gpt2", num_steps=8, stop_loss=limit))
    assert stopped.epochs == pytest.approx(losses[:6])
    # the epoch that finds the loss low makes no step
    assert stopped.steps == 5


def test_a_batch_that_is_low_enough_makes_no_step() -> None:
    losses = [trained(editor_on("gpt2"), [each]).epochs[0] for each in REQUESTS]
    between = (sorted(losses)[0] + sorted(losses)[1]) / 2
    found = trained(editor_on("gpt2", batch_size=1, num_steps=1, stop_loss=between, lr=1e-6))
    assert found.steps == 2


# ------------------------------------------------------------------ acceptance check 6: section 8's speed-ups
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_cached_equals_plain(family: str, layers: list[int]) -> None:
    # gemma2's softmax overflows in float64; RMS norms and some attentions round to float32 whatever the dtype
    dtype = torch.float32 if family == "gemma2" else torch.float64
    tolerance = 1e-9 if family in (*EXACT, "opt", "llama") else 1e-5
    fast = trained(editor_on(family, dtype=dtype, layers=layers, batch_size=2))
    plain = trained(editor_on(family, dtype=dtype, layers=layers, batch_size=2, fast=False))
    same(fast, plain, tolerance)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("settings", [{"layers": [2]}, {"part": "block"}, {"part": "attn_out"}, {"part": "mlp"}])
def test_cached_equals_plain_elsewhere(family: str, settings: dict[str, Any]) -> None:
    """The last block, where only the cells that are read are kept, and parts that need their block run again."""
    same(trained(editor_on(family, **settings)), trained(editor_on(family, fast=False, **settings)), 1e-9)


def paths_of(editor: Editor, requests: Sequence[EditRequest] = REQUESTS) -> list[Any]:
    context = editor.context()
    hparams: Any = context.hparams
    facts = facts_of(context.tokens, requests)
    with context.trainable(places_of(context.adapter, hparams)) as masters:
        made = minibatches(context, masters, facts, range(len(facts)), hparams)
    return [part.path for batch in made for part in batch.parts]


@pytest.mark.parametrize(("family", "told"), PATHS.items())
def test_the_path_is_the_short_one(family: str, told: str) -> None:
    assert [path.told for path in paths_of(editor_on(family))] == [told]
    assert [path.told for path in paths_of(editor_on(family, fast=False))] == ["the whole model"]


def test_an_encoder_is_trained_with_whole_passes() -> None:
    editor = editor_on("t5", stack="encoder")
    assert isinstance(paths_of(editor)[0], Whole)
    found = trained(editor)
    wanted = plain_ft(editor, list(found.deltas))
    (name,) = found.deltas
    assert name == "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert float((found.deltas[name] - wanted.deltas[name]).abs().max()) <= 1e-8


def test_a_step_runs_only_what_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 and 3: one pass for what is kept, one to learn how blocks are called, none of the model in the steps."""
    editor = editor_on("gpt2", num_steps=6)
    trained(editor)  # the one comparison with the plain path is made here
    calls: list[int] = []
    passes: list[int] = []
    heads: list[int] = []
    handles = [
        editor.adapter.block(0).register_forward_pre_hook(lambda *_: passes.append(1)),
        editor.adapter.block(2).register_forward_pre_hook(lambda *_: calls.append(1)),
        editor.adapter.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape[0])),
    ]
    trained(editor)
    for handle in handles:
        handle.remove()
    assert len(passes) == 2
    assert len(calls) == 1 + 6 + 1  # learning, steps, the losses at the end
    cells = sum(len(fact.target) for fact in facts_of(editor.tokens, REQUESTS))
    assert heads == [cells] * 7


def test_a_path_that_gives_other_logits_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """A block that adds half of what its MLP gives, which the adapter does not know of."""
    editor = editor_on("gpt2")
    editor.adapter.mlp(1).register_forward_hook(lambda _, __, output: output * 0.5)
    (path,) = paths_of(editor)
    assert isinstance(path, Whole)
    assert "other logits" in caplog.text
    wanted = plain_ft(editor, list(trained(editor).deltas))
    found = trained(editor)
    for name, delta in wanted.deltas.items():
        assert float((found.deltas[name] - delta).abs().max()) <= 1e-8


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_in_parts_that_fit_the_memory_change_nothing(family: str) -> None:
    whole, parts = editor_on(family), editor_on(family)
    parts.memory_budget = 1
    assert len(paths_of(parts)) == 3
    assert all(isinstance(path, Whole) for path in paths_of(parts))
    same(trained(parts), trained(whole), 1e-9)


# ------------------------------------------------------------------ order, dtypes, failures
def test_shuffled_epochs_see_every_fact_once_and_follow_the_seed() -> None:
    def run(seed: int) -> Trained:
        editor = editor_on("gpt2", "ft_bf", batch_size=1, append_eos=False, lr=1e-3)
        editor.seed = seed
        return trained(editor, shuffle=True)

    assert all(torch.equal(a, b) for a, b in zip(run(0).deltas.values(), run(0).deltas.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(run(0).deltas.values(), run(1).deltas.values(), strict=True))
    assert run(0).steps == 3 * 4


def test_losses_after_are_each_facts_own_whatever_the_order() -> None:
    found = trained(editor_on("gpt2", "ft_bf", batch_size=1, append_eos=False, lr=1e-9), shuffle=True)
    untrained = [trained(editor_on("gpt2", lr=1e-9), [each]).losses[0] for each in REQUESTS]
    assert found.losses == pytest.approx(untrained, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_too_small_for_half_precision_add_up(dtype: torch.dtype) -> None:
    """Sixty steps of 1e-5, each far below the spacing of the stored weights."""
    found = trained(editor_on("llama", dtype=dtype, lr=1e-5, num_steps=60), [FRANCE])
    (delta,) = found.deltas.values()
    assert delta.dtype == torch.float32
    assert float(delta.abs().max()) > 3e-4


@pytest.mark.parametrize("method", ["ft_l", "ft_m", "ft_bf"])
def test_a_loss_that_is_not_finite_after_the_last_step_is_refused(method: str) -> None:
    """The only step starts from a finite loss, so nothing but the last look can tell."""
    editor = editor_on("gpt2", method, dtype=torch.float32, num_steps=1, lr=1e30, norm_constraint=None)
    before = Snapshot(editor.model)
    with pytest.raises(MethodError, match="the loss is nan after 1 steps; lower lr"):
        editor.compute([ALICE, BOB])
    assert before.differences(editor.model) == []


def test_a_loss_that_is_not_finite_is_refused() -> None:
    editor = editor_on("gpt2")
    with torch.no_grad():
        editor.adapter.mlp_out(1).bias[0] = float("inf")
    with pytest.raises(MethodError, match="loss is nan"):
        editor.compute([ALICE, BOB])
