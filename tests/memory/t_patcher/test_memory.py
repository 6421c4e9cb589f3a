"""The memory: which inputs of the last MLP it holds, from which texts, and when it is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from t_patcher_tools import ALICE, FRANCE, REQUESTS, TEXTS, corpus_file, editor_on, ids_of, neurons_of
from torch import Tensor

from kedit_core import Editor, hookimpl
from kedit_core.contract import DatasetInfo
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch, LowRankDelta
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.corpus import texts_for
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams
from kedit_methods_memory.t_patcher.memory import Memories, edited_before, memories_for
from kedit_methods_memory.t_patcher.method import _memories
from kedit_methods_memory.t_patcher.place import LastMlp

READ = {
    "gpt2": "transformer.h.2.mlp",
    "gpt_neo": "transformer.h.3.mlp",
    "opt": "model.decoder.layers.2.fc1",
    "llama": "model.layers.2.mlp",
    "t5": "decoder.block.2.layer.2.DenseReluDense",
}


def memories_on(editor: Editor, **more: Any) -> Memories:
    assert editor.settings is not None
    hparams = evolve(editor.settings.hparams, **more)
    return memories_for(editor.context(), LastMlp.of(editor.adapter), hparams)


def queries_of(editor: Editor, read: str, ids: list[int]) -> Tensor:
    """By a pass of one text alone: all positions but the first; with an encoder all of the text's second half."""
    seen: list[Tensor] = []
    hook = editor.model.get_submodule(read).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        if editor.adapter.is_encoder_decoder:
            half = (len(ids) + 1) // 2
            fed = torch.tensor([[0, *ids[half:-1]]])
            editor.model(input_ids=torch.tensor([ids[:half]]), decoder_input_ids=fed)
        else:
            editor.model(torch.tensor([ids]))
    hook.remove()
    rows = seen[0].view(-1, seen[0].shape[-1])
    return rows if editor.adapter.is_encoder_decoder else rows[1:]


@pytest.mark.parametrize("family", sorted(READ))
def test_it_holds_every_position_of_every_text_once(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path)
    memories = memories_on(editor)
    wanted = {text.lower(): queries_of(editor, READ[family], editor.tokenizer(text)["input_ids"]) for text in TEXTS}
    held = [*memories.train.texts, *memories.validation.texts]
    assert sorted(held) == sorted(wanted) and len(memories.validation.texts) == round(0.2 * len(TEXTS))
    for memory in (memories.train, memories.validation):
        assert len(memory.vectors) == sum(len(wanted[text]) for text in memory.texts)
        for row, text in enumerate(memory.texts):
            found = memory.vectors[memory.where[:, 0] == row]
            assert torch.allclose(found, wanted[text], rtol=0, atol=1e-5 if family in ("llama", "t5") else 1e-10)


def test_of_too_many_positions_some_are_drawn_from_all_texts(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    memories = memories_on(editor, memory_size=40, validation_share=0.2)
    assert len(memories.train.vectors) == 40 and len(memories.validation.vectors) == 10
    assert len(set(memories.train.where[:, 0].tolist())) > 5
    other = memories_on(editor, memory_size=40, memory_seed=2)
    assert not torch.equal(memories.train.vectors, other.train.vectors)
    again = memories_on(editor_on("gpt2", tmp_path), memory_size=40)
    assert torch.equal(memories.train.vectors, again.train.vectors)
    whole = memories_on(editor).train
    assert len(whole.vectors) > 60, "the limit cut nothing"


def test_texts_are_cut_and_chosen(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    found = texts_for(editor.context(), 4, 5, 7, 100)
    assert len(found.rows) == 4 and all(len(row) <= 5 for row in found.rows) and set(found.texts) <= set(TEXTS)
    assert texts_for(editor.context(), 4, 5, 7, 100).digest == found.digest
    assert texts_for(editor.context(), 4, 5, 8, 100).digest != found.digest


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("given", [True, False])
def test_texts_are_no_longer_than_the_model_has_positions(family: str, given: bool, tmp_path: Path) -> None:
    name = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model, _ = tiny(family, dtype=torch.float64, **{name: 32})
    texts = [" ".join([text] * 20) for text in TEXTS]
    options = {"corpus": corpus_file(tmp_path, texts)} if given else {}
    editor = editor_on(family, tmp_path, model=model, options=options, max_epochs=2, memory_size=300)
    assert editor.adapter.max_positions == 32
    found = texts_for(editor.context(), 12, 128, 0, 500)
    assert max(map(len, found.rows)) == 32
    editor.edit(ALICE, evaluate=False)
    assert all(row.columns <= 32 for row in memories_on(editor).train.rows)


def test_texts_about_the_subject_are_spared(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    context, place = editor.context(), LastMlp.of(editor.adapter)
    assert editor.settings is not None
    hparams: TPatcherHyperParams = editor.settings.hparams
    whole = memories_for(context, place, hparams)

    def count(request: Any, **more: Any) -> int:
        found = _memories(context, place, request, [], evolve(hparams, **more))
        return len(found.train.vectors) + len(found.validation.vectors)

    total = len(whole.train.vectors) + len(whole.validation.vectors)
    naming = sum(len(editor.tokenizer(text)["input_ids"]) - 1 for text in TEXTS if "Alice" in text)
    assert count(ALICE) == total - naming < total
    assert count(ALICE, spare_subject=False) == count(evolve(ALICE, subject=None)) == total
    everywhere = evolve(ALICE, subject="e")
    assert count(everywhere) == total  # nothing would be left


def test_edited_examples_join_the_memory(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    editor.edit(REQUESTS[1:], evaluate=False)
    context, place = editor.context(), LastMlp.of(editor.adapter)
    assert editor.settings is not None
    assert [each.prompt for each in edited_before(context)] == [each.prompt for each in REQUESTS[1:]]
    plain = memories_for(context, place, editor.settings.hparams)
    found = _memories(context, place, evolve(FRANCE, subject=None), [], editor.settings.hparams)
    wanted = []
    for request in REQUESTS[1:]:
        prompt, target = ids_of(editor, request)
        wanted.append(queries_of(editor, READ["gpt2"], [*prompt, *target[:-1]]))
    for with_edits, without in ((found.train, plain.train), (found.validation, plain.validation)):
        assert torch.allclose(with_edits.vectors[len(without.vectors) :], torch.cat(wanted), rtol=0, atol=1e-10)
    same = _memories(context, place, evolve(REQUESTS[1], subject=None), [], editor.settings.hparams)
    assert len(same.train.vectors) == len(plain.train.vectors) + len(wanted[1])
    off = _memories(
        context, place, FRANCE, [], evolve(editor.settings.hparams, update_memory=False, spare_subject=False)
    )
    assert len(off.train.vectors) == len(plain.train.vectors)
    assert "vectors" not in str(editor.stack.patches[0].patch.state.tensors)


def test_it_is_read_again_when_other_patches_come_and_go(tmp_path: Path) -> None:
    editor = editor_on("gpt2", tmp_path)
    before = memories_on(editor)
    first = editor.edit(ALICE, evaluate=False)
    assert memories_on(editor) is before, "neurons lie behind the memory"
    place = editor.adapter.mlp_out_weight(0)
    rows, columns = editor.adapter.down_weight(0).shape
    delta = LowRankDelta(place, torch.linspace(-1, 1, rows)[:, None], torch.ones(1, columns))
    other = editor.context().new_patch([delta], [FRANCE])
    editor.apply(other)
    changed = memories_on(editor)
    assert changed is not before and not torch.allclose(changed.train.vectors, before.train.vectors)
    editor.remove(other)
    again = memories_on(editor)
    assert again is not changed and torch.equal(again.train.vectors, before.train.vectors)
    assert isinstance(first.patch, EditPatch)


def test_the_edit_depends_on_the_memory(tmp_path: Path) -> None:
    first = editor_on("gpt2", tmp_path).compute(FRANCE)
    other = tmp_path / "other"
    other.mkdir()
    path = corpus_file(other, [*TEXTS[:5], "A wholly different text, and one more of them."])
    second = editor_on("gpt2", tmp_path, options={"corpus": path}).compute(FRANCE)
    assert not torch.equal(neurons_of(first).keys, neurons_of(second).keys)
    assert first.state.config["resources"]["memory"] != second.state.config["resources"]["memory"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_without_a_corpus_the_model_writes_one(family: str, tmp_path: Path) -> None:
    editor = editor_on(family, tmp_path, torch.float32, options={}, memory_size=120)
    state = torch.get_rng_state()
    result = editor.edit(FRANCE, evaluate=False)
    assert torch.equal(torch.get_rng_state(), state)
    (warning,) = [each for each in result.warnings if each.code == "memory_written_by_model"]
    assert warning.number is not None and 30 <= warning.number <= 120
    again = editor_on(family, tmp_path, torch.float32, options={}, memory_size=120).compute(FRANCE)
    assert again.id == result.patch.id


class Towns:
    """A dataset with a corpus, meant for the model of this name."""

    @hookimpl
    def register_datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(name="towns", summary="towns", corpus=lambda: iter(TEXTS[:6]), models=("lab:small",)),
            DatasetInfo(name="questions", summary="no corpus", requests=lambda: [FRANCE]),
        ]


def test_the_corpus_of_a_dataset(tmp_path: Path) -> None:
    from kedit_core.testing.tiny import tiny

    def source(name: str | None, options: dict[str, Any]) -> Any:
        model, tokenizer = tiny("gpt2")
        editor = Editor(model, tokenizer, "t_patcher", name=name, options=options, plugins=[Towns()], cache=tmp_path)
        return texts_for(editor.context(), 100, 20, 1, 50)

    assert set(source("lab:small", {}).texts) == set(TEXTS[:6])
    assert set(source(None, {"corpus": "towns"}).texts) == set(TEXTS[:6])
    assert source("lab:other", {}).written
    with pytest.raises(InputError, match="has no corpus"):
        source(None, {"corpus": "questions"})


def test_files_of_text(tmp_path: Path) -> None:
    def found(corpus: Path) -> set[str]:
        editor = editor_on("gpt2", tmp_path, options={"corpus": corpus})
        return set(texts_for(editor.context(), 100, 20, 1, 50).texts)

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("One text.\n\nTwo texts.\n", encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": "Three texts."}) + "\n", encoding="utf-8")
    assert found(folder) == {"One text.", "Two texts.", "Three texts."}
    for name, content, wrong in (
        ("c.jsonl", b'{"words": "none"}\n', "after line 1"),
        ("d.jsonl", b'{"text": 3}\n', "holds no text"),
        ("e.txt", b"fine\n\xff\xfe\n", "UTF-8"),
        ("f.txt", b"\n\n", "holds no text"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=wrong):
            found(tmp_path / name)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="there is no text"):
        found(empty)
    with pytest.raises(InputError, match="fewer than two texts"):
        editor_on("gpt2", tmp_path, options={"corpus": corpus_file(empty, ["One text alone."])}).compute(FRANCE)
