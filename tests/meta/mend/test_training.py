"""Training MEND: a step against a plain one, separate tries in one batch, what moves and what does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from meta_tools import catalogue, editor_on, records, trained, trainer_on
from torch import Tensor

from kedit_core.errors import HyperParamsError, InputError, RequestError
from kedit_core.requests import Probe
from kedit_core.testing.snapshot import weights
from kedit_core.training import EditorFolder, train
from kedit_core.training.records import EditExample
from kedit_methods_meta.hparams.mend import MendTrainingHyperParams
from kedit_methods_meta.mend import MendTrainer
from kedit_methods_meta.pairs import Relabelled
from kedit_methods_meta.questions import questions

FEW = {"layers": [-2, -1], "edit_lr": 1e-2, "c_edit": 0.7, "c_loc": 0.3}


def a_trainer(family: str = "gpt2", **settings: Any) -> MendTrainer:
    """In float64, with no parameter at its first value."""
    made: MendTrainer = trainer_on(family, "mend", {**FEW, **settings})
    made.module.double()
    with torch.no_grad():
        for number, parameter in enumerate(made.module.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            parameter += 0.05 * noise if parameter.dim() > 1 else 0.01 * noise
    return made


def drawn(trainer: MendTrainer, count: int, first: int = 0) -> tuple[EditExample, ...]:
    return trainer.draw(range(first, first + count), torch.Generator().manual_seed(first))


def gradients(trainer: MendTrainer, batch: tuple[EditExample, ...]) -> tuple[Tensor, list[Tensor]]:
    total = trainer.run_step(batch).total
    return total.detach(), list(torch.autograd.grad(total, list(trainer.parameters().values())))


def plain_loss(trainer: MendTrainer, example: EditExample) -> Tensor:
    """One edit as the paper has it: a gradient per token by autograd, weights formed whole, one row at a time."""
    context, hparams, model = trainer.context, trainer.hparams, trainer.context.model
    view, tensors = context.adapter, dict(trainer.module.named_parameters())
    inner, outer, locality = (context.tokens.pair(*each) for each in (example.inner, example.outer, example.locality))

    def logits(pair: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
        ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
        call = {"input_ids": ids}
        whole = model(**call) if parameters is None else torch.func.functional_call(model, parameters, (), call)
        return whole.logits[0]

    def nll(found: Tensor, pair: Any) -> Tensor:
        asked = found[len(pair.prompt_ids) - 1 : -1]
        return torch.nn.functional.cross_entropy(asked, torch.tensor(pair.target_ids))

    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for place in trainer.places:

        def keep(module: Any, args: Any, output: Tensor, name: str = place.name) -> Tensor:
            leaf = output.detach().requires_grad_(True) if not output.requires_grad else output
            leaf.retain_grad() if not leaf.is_leaf else None
            seen[name] = (args[0].detach()[0], leaf)
            return leaf

        hooks.append(model.get_submodule(place.module).register_forward_hook(keep))
    # the graph begins at the lowest edited module
    nll(logits(inner), inner).backward()
    for hook in hooks:
        hook.remove()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    for number, place in enumerate(trainer.places):
        x, leaf = seen[place.name]
        net = trainer.module.nets[f"{place.width}x{place.out}"]
        modes = [each.name for each in trainer.places if each.shape == place.shape]
        mean, spread = net.normaliser.mean, (net.normaliser.m2 / (net.normaliser.count - 1)).sqrt()
        change = torch.zeros(place.out, place.width, dtype=torch.float64)
        for row, delta in zip(x, leaf.grad[0], strict=True):
            if not bool(delta.any()) or not bool(row.any()):
                continue
            h = (torch.cat([row, delta]) - mean) / (spread + 1e-7)
            for layer in net.nets["both"].layers:
                before = layer.U @ (layer.V @ h) + layer.bias
                m = modes.index(place.name)
                h = h + torch.clamp(before * layer.scale[m] + layer.shift[m], min=0)
            change = change - tensors["alpha"][number] * torch.outer(h[place.width :], h[: place.width])
        edited = change.T if view.layout(place.name) == "in_out" else change
        parameters[place.name] = parameters[place.name] + edited
    with torch.no_grad():
        base = logits(locality).log_softmax(-1)
    after = logits(locality, parameters).log_softmax(-1)
    divergence = (base.exp() * (base - after)).sum(-1).mean()
    return hparams.c_edit * nll(logits(outer, parameters), outer) + hparams.c_loc * divergence


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_step_is_what_the_paper_says(family: str) -> None:
    """Loss and the gradient of every parameter, against whole weights and one row at a time."""
    trainer = a_trainer(family, batch_size=1)
    trainer.run_step(drawn(trainer, 1, 5))  # statistics of two batches
    batch = drawn(trainer, 1)
    total, found = gradients(trainer, batch)  # counts the batch before it is used
    wanted = plain_loss(trainer, batch[0])
    torch.testing.assert_close(total, wanted.detach(), rtol=1e-8, atol=1e-12)
    plain = torch.autograd.grad(wanted, list(trainer.parameters().values()))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * float(other.abs().max()) + 1e-14)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_separate_tries_in_one_batch_are_their_mean(family: str) -> None:
    """What accumulating micro-batches of one try each gives; with two edits a try, too."""
    for n in (1, 2):
        trainer = a_trainer(family, batch_size=4, n_edits=n)
        batch = drawn(trainer, 4)
        trainer.run_step(batch)
        frozen = {name: value.clone() for name, value in trainer.buffers().items()}
        trainer.module.observed = lambda factors: []  # type: ignore[method-assign]
        total, found = gradients(trainer, batch)
        parts = [gradients(trainer, batch[start : start + n]) for start in range(0, 4, n)]
        torch.testing.assert_close(total, torch.stack([each for each, _ in parts]).mean(), rtol=1e-9, atol=0)
        for number, one in enumerate(found):
            other = torch.stack([each[number] for _, each in parts]).mean(0)
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)
        assert all(torch.equal(frozen[name], value) for name, value in trainer.buffers().items())


def test_edits_of_one_try_are_one_update() -> None:
    """Two edits of a try both act on both prompts, so the loss is not that of each alone."""
    together, apart = a_trainer(batch_size=2, n_edits=2), a_trainer(batch_size=2, n_edits=1)
    batch = drawn(together, 2)
    one, other = together.run_step(batch).total.detach(), apart.run_step(batch).total.detach()
    assert abs(float(one - other)) > 1e-6


def test_the_published_mean_over_tokens() -> None:
    """With ``batch_mean`` a try of two edits has the gradient of the mean over the tokens of both."""
    usual, published = (a_trainer(batch_size=2, n_edits=2, reduction=each) for each in ("edit_mean", "batch_mean"))
    seen = []
    for trainer in (usual, published):
        batch = drawn(trainer, 2)
        pairs = [trainer.pair(*each.inner) for each in batch]
        factors, _ = trainer._base_pass(pairs, [trainer.pair(*each.locality) for each in batch], torch.tensor([0, 0]))
        seen.append((factors[trainer.places[0].name], [len(pair.target_ids) for pair in pairs]))
    (one, lengths), (other, _) = seen
    scale = torch.tensor([length / sum(lengths) for length in lengths], dtype=torch.float64)
    torch.testing.assert_close(other.gradients, one.gradients * scale[one.edit].unsqueeze(1), rtol=1e-8, atol=1e-15)


def test_8_validating_counts_nothing() -> None:
    """Acceptance check 8: statistics are those of training alone."""
    trainer = a_trainer()
    trainer.run_step(drawn(trainer, 1))
    before = {name: value.clone() for name, value in trainer.buffers().items()}
    parameters = {name: value.detach().clone() for name, value in trainer.parameters().items()}
    with torch.no_grad():
        for batch in trainer.validation():
            stepped = trainer.validate_step(batch)
            assert set(stepped.losses) == {"edit", "loc"}
            assert {"edit/acc", "acc/pre", "acc/post", "loss/total", "nll/edit"} <= set(stepped.values)
    assert all(torch.equal(before[name], value) for name, value in trainer.buffers().items())
    assert all(torch.equal(parameters[name], value) for name, value in trainer.parameters().items())
    trainer.run_step(drawn(trainer, 1))
    assert any(not torch.equal(before[name], value) for name, value in trainer.buffers().items())


def test_8_resuming_goes_on_with_the_statistics(tmp_path: Path) -> None:
    """Acceptance check 8: two steps, and two more on resuming, end where four steps end."""
    settings = {"layers": [-1], "iterations": 4, "accumulate": 1, "val_interval": 2, "lr": 1e-3, "save_interval": 1}

    def run(folder: Path, count: int, resume: bool = False) -> EditorFolder:
        train(
            editor_on("gpt2", "mend"), records(8), folder, {**settings, "iterations": count},
            validation=records(3, 20), resume=resume,
        )  # fmt: skip
        return EditorFolder.read(folder)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, resume=True)
    assert whole.tensors.keys() == parts.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name]), name
    count = next(value for name, value in whole.tensors.items() if name.endswith("normaliser.count"))
    assert float(count) > 4


def test_10_step_sizes_have_their_own_rate(tmp_path: Path) -> None:
    """Acceptance check 10: the first step of Adam moves alpha by ``lr_lr``; without it, by ``lr``."""
    for more, wanted in (({"lr_lr": 3e-2}, 3e-2), ({}, 1e-3), ({"compat": "mend"}, 1e-3)):
        trainer = a_trainer(lr=1e-3, **more)
        rates = trainer.rates()
        groups = [
            {"params": [value], "lr": rates.get(name, trainer.hparams.lr), "name": name}
            for name, value in trainer.parameters().items()
        ]
        optimizer = trainer.optimizer(groups)
        before = trainer.module.alpha.detach().clone()
        for value, gradient in zip(
            trainer.parameters().values(), gradients(trainer, drawn(trainer, 1))[1], strict=True
        ):
            value.grad = gradient
        optimizer.step()
        torch.testing.assert_close(
            (trainer.module.alpha - before).detach().abs(), torch.full_like(before, wanted), rtol=1e-3, atol=0
        )
    with pytest.raises(HyperParamsError, match="no effect"):
        MendTrainingHyperParams.from_dict({"compat": "mend", "lr_lr": 1.0})


def test_easyedit_labels_the_rows_last_tokens_and_compares_answers_alone() -> None:
    """As in EasyEdit's trainer: the first label of a tokenizer that begins every text with a token is that token."""
    trainer = a_trainer("llama", compat="easyedit", outer="original", batch_size=1)
    tokens = trainer.context.tokens
    usual, pair = tokens.pair("Bob lives in", "Lima"), trainer.pair("Bob lives in", "Lima")
    assert isinstance(pair, Relabelled)
    assert pair.prompt_ids + pair.target_ids == usual.prompt_ids + usual.target_ids
    assert pair.labels == tuple(tokens.tokenizer(" Lima")["input_ids"]) and len(pair.labels) == len(pair.target_ids)
    batch = drawn(trainer, 1)
    assert batch[0].inner == batch[0].outer
    asked = questions(trainer.context.forward, [pair, usual], [False, True])
    assert tuple(asked.tokens[asked.row == 0].tolist()) == pair.labels
    answer = asked.batch.input_ids[1][asked.cells[(asked.row == 1) & asked.fed][:, 1]]
    assert tuple(answer.tolist()) == usual.target_ids
    # with the true answers as labels and all positions compared, the losses are others
    other = a_trainer("llama", outer="original", batch_size=1)
    one, two = trainer.run_step(batch).losses, other.run_step(batch).losses
    assert float(one["loc"]) != pytest.approx(float(two["loc"]), rel=1e-3)
    with pytest.raises(HyperParamsError, match="outer to original"):
        MendTrainingHyperParams.from_dict({"compat": "easyedit"})
    with pytest.raises(HyperParamsError, match="known: mend, easyedit"):
        MendTrainingHyperParams.from_dict({"compat": "rome"})


def test_the_base_comes_out_untouched(tmp_path: Path) -> None:
    editor = editor_on("llama", "mend")
    before = weights(editor.model)
    train(editor, records(8), tmp_path / "e", {"iterations": 3, "accumulate": 1, "val_interval": 3, "layers": [-1]},
          validation=records(3, 20))  # fmt: skip
    assert weights(editor.model) == before


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_training_lowers_the_loss(family: str) -> None:
    """On the same few records again and again."""
    trainer = a_trainer(family, batch_size=4, edit_lr=1e-3, c_edit=1.0, c_loc=1.0)
    optimizer = torch.optim.Adam(trainer.parameters().values(), lr=3e-3)
    losses = []
    for _ in range(25):
        total, found = gradients(trainer, drawn(trainer, 4))
        for value, gradient in zip(trainer.parameters().values(), found, strict=True):
            value.grad = gradient
        optimizer.step()
        losses.append(float(total))
    assert min(losses[-5:]) < 0.8 * losses[0]


def test_an_instruction_stands_before_the_edit_alone() -> None:
    """InstructEdit: what the editor sees begins with the record's task; the edited model is asked plainly."""
    trainer = a_trainer(instruction="Task {task} : ")
    batch = drawn(trainer, 1)
    ids = trainer._pairs(batch, "inner")[0].prompt_ids
    text = f"Task question answering : {batch[0].inner[0]}"
    assert ids == trainer.context.tokens.prompt(text).ids
    assert trainer._pairs(batch, "outer")[0].prompt_ids == trainer.context.tokens.prompt(batch[0].outer[0]).ids
    lacking = [evolve(record, meta={}) for record in records(8)]
    with pytest.raises(RequestError, match="no 'task' for the instruction"):
        trainer_on("gpt2", "mend", {**FEW, "instruction": "{task} "}, train_on=lacking)


@pytest.mark.parametrize("method", ["mend", "malmen"])
def test_a_training_may_begin_with_one_token(tmp_path: Path, method: str) -> None:
    """One place of the last block is read where the answer is asked for: of an answer of one token, one row."""
    one = [evolve(each, target_new="a", ground_truth="b") for each in records(4)]
    settings = {"layers": [-1], "parts": ["mlp_out"], "batch_size": 1, "iterations": 3, "accumulate": 1}
    training = train(editor_on("gpt2", method), one, tmp_path / "e", settings, validation=records(2, 20))
    assert (training.outcome.updates, training.outcome.skipped) == (3, 0)
    count = next(v for k, v in EditorFolder.read(tmp_path / "e").tensors.items() if k.endswith("normaliser.count"))
    assert float(count) == 3


def test_float16_is_warned_of() -> None:
    told = trainer_on("gpt2", "mend", FEW, torch.float16).context.warnings
    assert [each.code for each in told] == ["half_precision_gradients"]


def test_a_batch_that_is_certain_already_is_a_step(tmp_path: Path) -> None:
    """Without any gradient to edit with, nothing is edited, and nothing breaks."""
    trainer = a_trainer(batch_size=1)
    trainer.run_step(drawn(trainer, 1, 3))
    batch = drawn(trainer, 1)
    asked = torch.tensor(trainer.pair(*batch[0].inner).target_ids)

    def certain(module: Any, args: Any, output: Tensor) -> Tensor:
        sure = torch.zeros_like(output[:, : len(asked)]).scatter(-1, asked.view(1, -1, 1), 1e5)
        return torch.cat([sure, output[:, len(asked) :]], dim=1)

    handle = trainer.context.model.lm_head.register_forward_hook(certain)
    total, found = gradients(trainer, batch)
    handle.remove()
    assert torch.isfinite(total)
    assert all(not bool(each.any()) for each in found)


def test_records_and_settings_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    record = records(1, 7)[0]
    for long in (
        evolve(record, prompt="word " * 200),
        evolve(record, rephrase_prompts=("word " * 200,)),
        evolve(record, ground_truth="word " * 200),
        evolve(record, locality={"near": (Probe(prompt="word " * 200, answers=("Latin",)),)}),
    ):
        with pytest.raises(RequestError, match="the model has 128 positions"):
            trainer_on("gpt2", "mend", FEW, train_on=[*records(7), long])
    with pytest.raises(InputError, match="block 7"):
        trainer_on("gpt2", "mend", {"layers": [7]})
    for wrong in ({"n_edits": 2}, {"parts": []}, {"instruction": "{a.b}"}, {"sign": 0}, {"no_such": 1}):
        with pytest.raises(HyperParamsError):
            MendTrainingHyperParams.from_dict(wrong)


def test_an_answer_ends_with_the_end_token_in_encoder_decoders() -> None:
    for family, ends in (("gpt2", False), ("t5", True)):
        trainer = a_trainer(family)
        last = trainer.pair("Alice lives in", "Rome").target_ids[-1]
        assert (last == trainer.context.tokenizer.eos_token_id) is ends
    assert a_trainer("gpt2", append_eos=True).pair("Alice", "Rome").target_ids[-1] == (
        a_trainer("gpt2").context.tokenizer.eos_token_id
    )


def test_the_editor_describes_itself(tmp_path: Path) -> None:
    folder = EditorFolder.read(trained(tmp_path / "e", "gpt2", "mend", sd_floor=True))
    assert folder.config["settings"]["sd_floor"] is True
    assert folder.config["settings"]["sign"] == -1
    assert folder.config["places"][0]["name"] == "transformer.h.1.mlp.c_fc.weight"
    assert "alpha" in folder.tensors
    assert catalogue().method("mend").training is not None


def test_an_editor_in_a_pipe_or_of_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    tensors = trained(tmp_path / "e", "gpt2", "mend") / "editor.safetensors"
    os.truncate(tensors, 1 << 43)
    with pytest.raises(InputError, match="cannot be read: its tensors take"):
        EditorFolder.read(tmp_path / "e")
    tensors.unlink()
    os.mkfifo(tensors)
    with pytest.raises(InputError, match="not an ordinary file"):
        EditorFolder.read(tmp_path / "e")
