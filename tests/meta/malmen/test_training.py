"""Training MALMEN: the two phases against one graph through everything, and what memory and order do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from meta_tools import editor_on, records, trained, trainer_on
from torch import Tensor

from kedit_core.errors import HyperParamsError, InputError
from kedit_core.testing.snapshot import weights
from kedit_core.training import EditorFolder, train
from kedit_core.training.losses import kl
from kedit_core.training.records import EditExample
from kedit_methods_meta.hparams.malmen import MalmenTrainingHyperParams
from kedit_methods_meta.malmen import MalmenTrainer
from kedit_methods_meta.malmen.reading import read
from kedit_methods_meta.malmen.solve import ridge_of

FEW = {"layers": [-2, -1], "batch_size": 5, "micro_batch": 2, "eta": 1e-2, "c_edit": 0.7, "c_loc": 0.3}


def a_trainer(family: str = "gpt2", count: int = 8, **settings: Any) -> MalmenTrainer:
    """In float64, with no parameter at its first value."""
    made: MalmenTrainer = trainer_on(family, "malmen", {**FEW, **settings}, train_on=records(count))
    made.module.double()
    with torch.no_grad():
        for number, parameter in enumerate(made.module.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            parameter += 0.05 * noise if parameter.dim() > 1 else 0.01 * noise
    return made


def drawn(trainer: MalmenTrainer, count: int) -> tuple[EditExample, ...]:
    return trainer.draw(range(count), torch.Generator().manual_seed(3))


def whole_loss(trainer: MalmenTrainer, batch: tuple[EditExample, ...]) -> Tensor:
    """One graph from the nets' parameters through the solve and written weights to the losses, pair by pair."""
    context, hparams, model = trainer.context, trainer.hparams, trainer.context.model
    view, tokens = context.adapter, context.tokens
    with torch.no_grad():
        factors = read(context.forward, [tokens.pair(*each.inner) for each in batch], trainer.places, hparams.editor)
    values: dict[str, list[Tensor]] = {}
    for chunk in trainer.module.chunks(factors):
        values.setdefault(chunk.name, []).append(chunk.values)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    for number, place in enumerate(trainer.places):
        keys, wanted = factors[place.name].inputs, torch.cat(values[place.name])
        ridge = ridge_of(trainer.module.log_ridge[number])
        gram = keys.T @ keys + ridge * torch.eye(place.width, dtype=keys.dtype)
        shift = torch.linalg.solve(gram, keys.T @ wanted)
        stored = shift if view.layout(place.name) == "in_out" else shift.T
        parameters[place.name] = parameters[place.name] + stored

    def logits(asked: tuple[str, str], edited: bool) -> tuple[Tensor, Tensor]:
        pair = tokens.pair(*asked)
        call = {"input_ids": torch.tensor([[*pair.prompt_ids, *pair.target_ids]])}
        found = torch.func.functional_call(model, parameters, (), call) if edited else model(**call)
        return found.logits[0, len(pair.prompt_ids) - 1 : -1], torch.tensor(pair.target_ids)

    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(batch), hparams.micro_batch):
        part = batch[start : start + hparams.micro_batch]
        outer = [logits(each.outer, True) for each in part]
        joined = torch.cat([found for found, _ in outer]), torch.cat([ids for _, ids in outer])
        total = total + hparams.c_edit * torch.nn.functional.cross_entropy(*joined)
        base = torch.cat([logits(each.locality, False)[0] for each in part]).detach()
        now = torch.cat([logits(each.locality, True)[0] for each in part])
        total = total + hparams.c_loc * kl(base, now)
    return total


@pytest.mark.parametrize("settings", [{}, {"token": "mask", "chunk": 7}, {"family": "gpt_neox", "log_ridge": 2.0}])
def test_4_two_phases_are_one_graph(settings: dict[str, Any]) -> None:
    """Acceptance check 4, through a whole model: the loss and every parameter's gradient."""
    trainer = a_trainer(**settings)
    trainer.run_step(drawn(trainer, 5))
    batch = drawn(trainer, 5)
    stepped = trainer.run_step(batch)
    wanted = whole_loss(trainer, batch)
    torch.testing.assert_close(stepped.total.double(), wanted.detach(), rtol=1e-6, atol=1e-7)
    plain = torch.autograd.grad(wanted, list(trainer.parameters().values()))
    assert stepped.gradients is not None
    for name, gradient in zip(trainer.parameters(), plain, strict=True):
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(stepped.gradients[name], gradient, rtol=1e-6, atol=1e-8 * scale)


def test_chunks_change_nothing() -> None:
    found = []
    for chunk in (1, 4, 1024):
        trainer = a_trainer(chunk=chunk)
        found.append(trainer.run_step(drawn(trainer, 5)).gradients)
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, rtol=1e-8, atol=1e-12)


def test_7_a_step_leaves_the_base_alone_and_validating_the_statistics() -> None:
    """Acceptance check 7, first half; normalisers are frozen outside training."""
    trainer = a_trainer()
    before = weights(trainer.context.model)
    trainer.run_step(drawn(trainer, 5))
    statistics = {name: value.clone() for name, value in trainer.buffers().items()}
    with torch.no_grad():
        for batch in trainer.validation():
            stepped = trainer.validate_step(batch)
            assert stepped.gradients is None
            assert {"loss/total", "edit/acc", "acc/pre", "acc/post", "nll/edit"} <= set(stepped.values)
    assert all(torch.equal(statistics[name], value) for name, value in trainer.buffers().items())
    assert weights(trainer.context.model) == before


def test_validating_is_training_without_gradients() -> None:
    trainer = a_trainer()
    trainer.run_step(drawn(trainer, 5))
    trainer.module.observed = lambda factors: []  # type: ignore[method-assign]
    one, other = trainer.run_step(drawn(trainer, 5)), trainer.validate_step(drawn(trainer, 5))
    assert float(one.total) == pytest.approx(float(other.total), rel=1e-6)


def test_9_phase_b_needs_memory_for_one_chunk_only() -> None:
    """Acceptance check 9: the largest graph of the nets is that of one chunk, whatever the number of edits."""
    sizes: dict[int, int] = {}
    seen: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        seen.append(tensor.numel())
        return tensor

    for count in (4, 12):
        trainer = a_trainer(count=19, chunk=4, micro_batch=4, token="mask")
        batch = drawn(trainer, count)
        trainer.run_step(batch)
        factors = trainer._factors(batch)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            for chunk in trainer.module.chunks(factors):
                kept, seen[:] = sum(seen), []
                sizes[count] = max(sizes.get(count, 0), kept)
                del chunk
    assert sizes[4] == sizes[12] > 0


def test_a_batch_with_numbers_that_are_none_is_left_out(tmp_path: Path) -> None:
    """Whether keys and gradients are not finite, or what the edited model says; the training goes on without it."""
    few = {**FEW, "batch_size": 4, "micro_batch": 4, "iterations": 4, "val_interval": 4}
    for call in (1, 3):  # a step reads the edits, then the unrelated, then both on the edited model
        editor, calls = editor_on("gpt2", "malmen"), []

        def spoil(module: Any, args: Any, output: Tensor, last: int = call, seen: list[int] = calls) -> Tensor:
            seen.append(1)
            return output * torch.nan if len(seen) == last else output

        editor.model.lm_head.register_forward_hook(spoil)
        training = train(editor, records(8), tmp_path / str(call), few, validation=records(3, 20))
        assert (training.outcome.skipped, training.outcome.updates) == (1, 3)
        assert all(bool(torch.isfinite(each).all()) for each in EditorFolder.read(training.folder).tensors.values())


def test_ridges_stay_where_they_have_an_effect(tmp_path: Path) -> None:
    """A step that would carry one's logarithm beyond 20 leaves it there."""
    editor = editor_on("gpt2", "malmen")
    settings = {**FEW, "log_ridge": 19.9, "lr": 0.5, "clip": 1e9, "iterations": 2, "val_interval": 1}
    training = train(editor, records(8), tmp_path / "e", settings, validation=records(3, 20))
    found = EditorFolder.read(training.folder).tensors["log_ridge"]
    assert bool((found.abs() <= 20).all())
    trainer = a_trainer()
    with torch.no_grad():
        trainer.module.log_ridge.copy_(torch.tensor([-21.0, 3.0]))
    trainer.after_update()
    assert trainer.module.log_ridge.tolist() == [-20.0, 3.0]


def test_spilling_changes_nothing(tmp_path: Path) -> None:
    """Keys and gradients in files of the folder it names, which are gone afterwards."""
    editors = []
    for name, options in (("memory", {}), ("files", {"spill": str(tmp_path)})):
        training = train(
            editor_on("gpt2", "malmen"), records(8), tmp_path / name, {**FEW, "iterations": 3, "val_interval": 3},
            validation=records(3, 20), options=options,
        )  # fmt: skip
        editors.append(EditorFolder.read(training.folder))
    assert editors[0].digest == editors[1].digest
    assert not [each for each in tmp_path.iterdir() if each.is_file()]
    with pytest.raises(InputError, match="no folder"):
        train(editor_on("gpt2", "malmen"), records(8), tmp_path / "no", FEW, options={"spill": str(tmp_path / "x")})


def test_the_last_few_records_make_a_step_too(tmp_path: Path) -> None:
    """8 records by 5: a pass over them is two steps, the second of three edits."""
    editor = editor_on("gpt2", "malmen")
    training = train(
        editor, records(8), tmp_path / "e", {**FEW, "iterations": 2, "val_interval": 2}, validation=records(3, 20)
    )
    read_back = EditorFolder.read(training.folder)
    count = next(value for name, value in read_back.tensors.items() if name.endswith("normaliser.count"))
    lengths = [len(editor.context().tokens.pair(each.prompt, each.target_new).target_ids) for each in records(8)]
    assert float(count) == 2 * sum(lengths)  # every record once, in two weights
    assert training.outcome.updates == 2


def test_training_lowers_the_loss() -> None:
    trainer = a_trainer(eta=1e-2, c_edit=1.0, c_loc=1.0)
    optimizer = torch.optim.Adam(trainer.parameters().values(), lr=3e-3)
    losses = []
    for _ in range(15):
        stepped = trainer.run_step(drawn(trainer, 5))
        for name, value in trainer.parameters().items():
            value.grad = stepped.gradients[name]  # type: ignore[index]
        optimizer.step()
        losses.append(float(stepped.total))
    assert min(losses[-4:]) < 0.8 * losses[0]


def test_settings_are_those_of_the_paper() -> None:
    usual = MalmenTrainingHyperParams()
    assert (usual.rank, usual.n_blocks, usual.eta, usual.log_ridge, usual.token) == (1920, 2, 1e-6, 0.0, "ans")
    assert (usual.lr, usual.clip, usual.chunk, usual.micro_batch, usual.batch_size) == (1e-5, 1.0, 1024, 32, 512)
    assert usual.parts == ("mlp_out",)
    for wrong in ({"token": "all"}, {"chunk": 0}, {"n_edits": 3}):
        with pytest.raises(HyperParamsError):
            MalmenTrainingHyperParams.from_dict(wrong)


def test_equal_trainings_make_equal_editors(tmp_path: Path) -> None:
    one, other = (EditorFolder.read(trained(tmp_path / each, "gpt2", "malmen", batch_size=4)) for each in "ab")
    assert one.digest == other.digest
