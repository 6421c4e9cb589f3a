"""Training: steps against the loss written out with whole weights, the base untouched, exact resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from ke_tools import FEW, answer_logits, editor_on, gradients, plain_update, trainer_on
from meta_tools import records
from torch import Tensor

from kedit_core.errors import InputError, RequestError
from kedit_core.forward import Pair
from kedit_core.testing.snapshot import weights
from kedit_core.training import EditorFolder, train
from kedit_methods_meta.ke import KeTrainer
from kedit_methods_meta.ke.condition import condition_ids, condition_text
from kedit_methods_meta.ke.training import KeBatch

EXACT = ("gpt2", "gpt_neox", "t5")


@contextmanager
def added(model: Any, view: Any, update: Mapping[str, Tensor]) -> Iterator[None]:
    """A model whose weights are really changed; for the slow reference."""
    kept = {name: parameter.data for name, parameter in model.named_parameters() if name in update}
    try:
        for name, parameter in model.named_parameters():
            if name in update:
                change = update[name].detach()
                parameter.data = kept[name] + (change.T if view.layout(name) == "in_out" else change)
        yield
    finally:
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]


def slow_losses(trainer: KeTrainer, batch: KeBatch) -> dict[str, Tensor]:
    """Losses of a micro-batch: one edit, one row, one whole set of weights at a time."""
    context, hparams = trainer.context, trainer.hparams
    names = [place.name for place in trainer.module.places]
    edit_losses, divergences, changes = [], [], []
    for example, unrelated in zip(batch.examples, batch.unrelated, strict=True):
        inner, outer = pair_of(trainer, *example.inner), pair_of(trainer, *example.outer)
        text = condition_text(trainer.sayings.of([inner])[0], example.inner[1], example.inner[0])
        with torch.enable_grad():
            gradient = gradients(context, inner, names)
        with torch.no_grad():
            update = plain_update(trainer.module, condition_ids(context, text, 32), gradient)
            changes += [change.pow(2).mean().sqrt() for change in update.values()]
            kept = [compared(trainer, *asked) for asked in unrelated]
            base = [answer_logits(context, pair) for pair in kept]
            with added(context.model, context.adapter, update):
                told = [outer] if hparams.loss == "mend" else [inner, outer]
                tokens = []
                for pair in told:
                    logs = answer_logits(context, pair).log_softmax(-1)
                    for row, token in zip(logs, pair.target_ids, strict=True):
                        label = torch.full_like(row, hparams.smoothing / (len(row) - 1))
                        label[token] = 1 - hparams.smoothing
                        if hparams.loss == "mend":
                            label = torch.zeros_like(row)
                            label[token] = 1.0
                        tokens.append(-(label * row).sum())
                edit_losses.append(torch.stack(tokens).mean())
                moved = []
                for pair, before in zip(kept, base, strict=True):
                    after = answer_logits(context, pair).log_softmax(-1)
                    moved.append((before.softmax(-1) * (before.log_softmax(-1) - after)).sum(-1))
                divergences.append(torch.cat(moved).mean())
    return {
        "edit": torch.stack(edit_losses).mean(),
        "kl": torch.stack(divergences).mean(),
        "weights": torch.stack(changes).mean(),
    }


def pair_of(trainer: KeTrainer, prompt: str, answer: str) -> Pair:
    pair = trainer.context.tokens.pair(prompt, answer)
    ends = (trainer.context.tokenizer.eos_token_id,) if trainer.context.adapter.is_encoder_decoder else ()
    return Pair(pair.prompt_ids, (*pair.target_ids, *ends))


def compared(trainer: KeTrainer, prompt: str, given: str) -> Pair:
    """An unrelated prompt with the answer at which it is compared: what the model says by itself."""
    pair = pair_of(trainer, prompt, given)
    if trainer.hparams.loss == "mend" or trainer.hparams.unrelated_answers == "given":
        return pair
    model: Any = trainer.context.model
    two = trainer.context.adapter.is_encoder_decoder
    ids = torch.tensor([pair.prompt_ids])
    said = model.generate(ids, max_new_tokens=len(pair.target_ids) - two, do_sample=False, pad_token_id=0)[0].tolist()
    return Pair(
        pair.prompt_ids,
        (*said[1:], trainer.context.tokenizer.eos_token_id) if two else tuple(said[len(pair.prompt_ids) :]),
    )


@pytest.mark.parametrize("family", EXACT)
def test_a_step_is_the_lagrangian_of_edits_really_made(family: str) -> None:
    trainer = trainer_on(family, batch_size=2, unrelated=3, weight_margin=0.01, margin=0.02, max_scale=4.0)
    with torch.no_grad():
        trainer.alphas["alpha.kl"].fill_(3.0)
        trainer.alphas["alpha.weights"].fill_(5.0)
    batch = trainer.draw([0, 3], torch.Generator().manual_seed(1))
    stepped, slow = trainer.run_step(batch), slow_losses(trainer, batch)
    assert slow["kl"] > 1e-4
    for name, wanted in slow.items():
        torch.testing.assert_close(stepped.losses[name], wanted, rtol=1e-8, atol=1e-10)
    total = slow["edit"] + 3 * (slow["kl"] - 0.02) + 5 * (slow["weights"] - 0.01)
    torch.testing.assert_close(stepped.total.detach(), total, rtol=1e-8, atol=1e-10)
    grads = torch.autograd.grad(stepped.total, list(trainer.parameters().values()))
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    for name, grad in zip(trainer.parameters(), grads, strict=True):
        assert bool(grad.any()), f"{name} learns nothing"


@pytest.mark.parametrize("family", ["gpt2"])
def test_gradients_are_those_of_finite_differences(family: str) -> None:
    trainer = trainer_on(family, batch_size=1, unrelated=2, editable="chosen", layers=[-1], max_scale=4.0)
    batch = trainer.draw([0], torch.Generator().manual_seed(1))
    total = trainer.run_step(batch).total
    head = trainer.module.heads[0]
    for parameter in (head.second.bias, head.first.v, trainer.module.encoder.lstm.weight_ih_l0):
        [grad] = torch.autograd.grad(total, [parameter], retain_graph=True)
        at = int(grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[at] += step
                values.append(float(trainer.run_step(batch).total))
                parameter.view(-1)[at] -= step
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(grad.view(-1)[at]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_port_has_the_loss_of_mend(family: str) -> None:
    trainer = trainer_on(family, loss="mend", batch_size=2, unrelated=1, c_edit=0.3, c_loc=2.0, max_scale=4.0)
    assert not trainer.alphas and trainer.state() == {}
    batch = trainer.draw([0, 3], torch.Generator().manual_seed(1))
    stepped, slow = trainer.run_step(batch), slow_losses(trainer, batch)
    torch.testing.assert_close(stepped.losses["edit"], slow["edit"], rtol=1e-8, atol=1e-10)
    total = 0.3 * stepped.losses["edit"] + 2.0 * stepped.losses["kl"]
    torch.testing.assert_close(stepped.total.detach(), total)
    if family == "t5":  # its decoder reads the answer only, so all positions are those of the answer
        torch.testing.assert_close(stepped.losses["kl"], slow["kl"], rtol=1e-8, atol=1e-10)
    else:  # tokens of the prompt count, too
        assert abs(float(stepped.losses["kl"] - slow["kl"])) > 1e-6
    assert isinstance(trainer.optimizer([{"params": [torch.zeros(1)]}]), torch.optim.Adam)
    assert trainer.editor()[1]["trained_as"] == "ke-efk"


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_unrelated_prompts_are_compared_after_the_models_own_answers_or_the_given_ones(family: str) -> None:
    own, given = (trainer_on(family, unrelated=3, max_scale=4.0, unrelated_answers=way) for way in ("own", "given"))
    batches = [each.draw([0], torch.Generator().manual_seed(1)) for each in (own, given)]
    rows = [t._rows(b, [t.pair(*b.examples[0].inner)]) for t, b in zip((own, given), batches, strict=True)]
    for (prompt, answer), said, told in zip(
        batches[0].unrelated[0], rows[0].pairs[rows[0].told :], rows[1].pairs[rows[1].told :], strict=True
    ):
        assert told == pair_of(given, prompt, answer)
        assert said.prompt_ids == told.prompt_ids and said.target_ids != told.target_ids
        assert said == compared(own, prompt, answer)
    steps = [each.run_step(batch) for each, batch in zip((own, given), batches, strict=True)]
    assert steps[0].losses["edit"] == steps[1].losses["edit"] and steps[0].losses["kl"] != steps[1].losses["kl"]


def test_the_port_asks_the_edits_own_prompt_where_there_is_no_other_wording() -> None:
    trainer = trainer_on("gpt2", loss="mend", batch_size=3, unrelated=1, max_scale=4.0)
    batch = trainer.draw([0, 3, 5], torch.Generator().manual_seed(1))
    bare = evolve(batch.examples[1], outer=batch.examples[1].inner)
    mixed = KeBatch((batch.examples[0], bare, batch.examples[2]), batch.unrelated)
    stepped = trainer.run_step(mixed)
    torch.testing.assert_close(stepped.losses["edit"], slow_losses(trainer, mixed)["edit"], rtol=1e-8, atol=1e-10)


OPTIONS: tuple[dict[str, Any], ...] = (
    {"editable": "chosen", "layers": [0], "parts": ["mlp_out"]},
    {"editable": "chosen", "layers": [-1], "parts": ["mlp_gate"]},
    {"append_eos": True},
    {"append_eos": False},
    {"condition_tokens": 3},
    {"smoothing": 0.0},
    {"margin": 0.5},
    {"weight_margin": 0.01},
    {"loss": "mend", "smoothing": 0.0},
    {"outer": "original"},
    {"outer": "either"},
    {"locality": "own"},
    {"locality": "both"},
    {"alternatives_from": "relation"},
    {"unrelated": 1},
)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_every_option_trains_on_both_kinds_of_model(family: str) -> None:
    plain = trainer_on(family, batch_size=2, max_scale=4.0)
    usual = plain.run_step(plain.draw([0, 3], torch.Generator().manual_seed(2))).total.detach()
    for options in OPTIONS:
        trainer = trainer_on(family, batch_size=2, max_scale=4.0, **options)
        total = trainer.run_step(trainer.draw([0, 3], torch.Generator().manual_seed(2))).total
        grads = torch.autograd.grad(total, list(trainer.parameters().values()))
        assert all(bool(torch.isfinite(grad).all()) and bool(grad.any()) for grad in grads), options
        default = options == {"append_eos": family == "t5"}  # what is so unless told otherwise
        assert bool(total.detach() == usual) == default, options


def test_an_encoder_decoder_is_edited_in_the_blocks_that_are_named() -> None:
    trainer = trainer_on("t5", editable="chosen", layers=[0], decoder_layers=[1], parts=["mlp_out"])
    assert [place.name for place in trainer.module.places] == [
        "encoder.block.0.layer.1.DenseReluDense.wo.weight", "decoder.block.1.layer.2.DenseReluDense.wo.weight",
    ]  # fmt: skip
    assert bool(torch.isfinite(trainer.run_step(trainer.draw([0], torch.Generator().manual_seed(1))).total))


def test_edits_of_a_micro_batch_count_as_accumulated_ones_do() -> None:
    trainer = trainer_on("gpt2", batch_size=2, unrelated=2)
    batch = trainer.draw([0, 3], torch.Generator().manual_seed(1))
    names = [name for name in trainer.parameters() if name.startswith("heads.")]

    def grads(some: KeBatch) -> list[Tensor]:
        return list(torch.autograd.grad(trainer.run_step(some).total, [trainer.parameters()[name] for name in names]))

    apart = [grads(KeBatch(batch.examples[i : i + 1], batch.unrelated[i : i + 1])) for i in (0, 1)]
    for both, first, second in zip(grads(batch), *apart, strict=True):
        torch.testing.assert_close(both, (first + second) / 2, rtol=1e-8, atol=1e-12)


def test_a_rephrase_that_is_the_prompt_itself_counts_once() -> None:
    trainer = trainer_on("gpt2", outer="original", unrelated=2)
    batch = trainer.draw([0], torch.Generator().manual_seed(1))
    inner = [trainer.pair(*batch.examples[0].inner)]
    rows = trainer._rows(batch, inner)
    assert (rows.edits, rows.told, len(rows.pairs)) == (1, 1, 3)
    values = trainer.run_step(batch).values
    assert values["rephrase/acc"] == (0.0, 0.0) and values["edit/acc"][1] == 1.0


def test_every_edit_has_its_own_unrelated_prompts_of_other_cases() -> None:
    trainer = trainer_on("gpt2", unrelated=4, batch_size=3)
    batch = trainer.draw([0, 1, 2], torch.Generator().manual_seed(5))
    assert [len(some) for some in batch.unrelated] == [4, 4, 4]
    asked = [prompt for some in batch.unrelated for prompt, _ in some]
    assert not any(f"number {number} " in prompt for prompt in asked for number in (0, 1, 2))
    again = trainer.draw([0, 1, 2], torch.Generator().manual_seed(5))
    assert again.unrelated == batch.unrelated


def test_validation_says_how_many_edits_succeed() -> None:
    trainer = trainer_on("gpt2", unrelated=2, max_scale=0.0)
    for batch in trainer.validation():
        with torch.no_grad():
            values = trainer.validate_step(batch).values
        told = [each.inner[1] == trainer.sayings.of([trainer.pair(*each.inner)])[0] for each in batch.examples]
        assert values["edit/acc"] == (float(sum(told)), float(len(told)))
        assert values["kept"] == (2.0 * len(told), 2.0 * len(told))  # nothing is edited


# ------------------------------------------------------------------ the whole training


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_base_comes_out_as_it_was(family: str, tmp_path: Path) -> None:
    editor = editor_on(family)
    before = weights(editor.model)
    found = train(editor, records(8), tmp_path / "e", {**FEW, "lr": 1e-2}, validation=records(3, 20))
    assert weights(editor.model) == before
    folder = EditorFolder.read(found.folder)
    own = folder.tensors["encoder.embedding.weight"]
    embeddings = editor.adapter.embeddings.weight
    assert isinstance(embeddings, Tensor) and own.shape == embeddings.shape
    assert not torch.equal(own, embeddings), "embeddings are trained, as the editor's own"
    assert folder.config["trained_as"] == "ke"


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    # margin_at is below any success, so that margins move, too
    settings = {**FEW, "val_interval": 3, "save_interval": 3, "margin_at": 0.0, "lr": 1e-2, "batch_size": 2}
    data = {"validation": records(3, 20)}
    whole = train(easy(), records(8), tmp_path / "a", {**settings, "iterations": 6}, **data)
    half = train(easy(), records(8), tmp_path / "b", {**settings, "iterations": 3}, **data)
    rest = train(easy(), records(8), tmp_path / "b", {**settings, "iterations": 6}, resume=True, **data)
    assert half.outcome.iterations == 3 and rest.outcome.iterations == whole.outcome.iterations == 6
    assert rest.outcome.history == whole.outcome.history
    states = [EditorFolder.read(each.folder) for each in (whole, rest)]
    assert all(torch.equal(states[0].tensors[name], states[1].tensors[name]) for name in states[0].tensors)
    assert states[0].digest == states[1].digest


def easy() -> Any:
    return editor_on("gpt2")


def test_a_short_training_learns_its_edits(tmp_path: Path) -> None:
    settings = {
        **FEW, "iterations": 30, "batch_size": 4, "val_interval": 10, "lr": 1e-2, "margin": 0.5, "updates": 200,
        "val_items": 4, "condition_size": 48,
    }  # fmt: skip
    shown = records(8)
    held = [evolve(each, case_id=f"again-{each.case_id}") for each in shown[:4]]
    history = train(editor_on("gpt2"), shown, tmp_path / "e", settings, validation=held).outcome.history
    assert history[-1]["nll/edit"] < 0.6 * history[0]["nll/edit"]
    assert history[-1]["edit/acc"] > history[0]["edit/acc"]


def test_records_that_do_not_fit_the_model_are_refused() -> None:
    long = evolve(records(1, 30)[0], prompt="word " * 200, subject=None)
    with pytest.raises(RequestError, match="positions"):
        trainer_on("gpt2", train_on=[*records(4), long])
    with pytest.raises(InputError, match="rephrase"):
        trainer_on("gpt2", train_on=[evolve(each, rephrase_prompts=()) for each in records(4)])
