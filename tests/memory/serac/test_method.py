"""What SERAC keeps, replaces and refuses, and its two forms against plain maths."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from serac_tools import ALICE, BOB, EDITS, FRANCE, OUTSIDE, a_checkpoint, an_editor, editor_on, random_texts, read, same

from kedit_core import Editor, EditRequest
from kedit_core.errors import HyperParamsError, InputError, KeditError, PatchFormatError, RequirementError
from kedit_core.patches import RouterOperation, path_digest
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.serac.checkpoint import SeracEditor
from kedit_methods_memory.serac.memory import KIND, Memory
from kedit_methods_memory.serac.similarity import Metric

OSLO = evolve(FRANCE, target_new="Oslo", case_id="d")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_checkpoint(tmp_path_factory.mktemp("checkpoints") / "gpt2", "gpt2")


def contexts(editor: Any, *prompts: str) -> list[str]:
    return [route.context for route in editor.stack.route(prompts)]


# ---------------------------------------------------------------- memory
def test_rounds_make_one_memory_in_one_patch(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint)
    result = editor.edit(EDITS, scenario="sequential", evaluate=False)
    together = editor_on("gpt2", checkpoint).edit(EDITS, evaluate=False).patch
    assert len(editor.stack.patches) == 1
    assert result.patch.to_bytes() == together.to_bytes()
    editor.edit(OSLO, evaluate=False)
    assert len(editor.stack.patches) == 1
    assert len(editor.stack.patches[0].patch.requests) == 4


def test_a_repeated_prompt_is_replaced_and_comes_back_when_dropped(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint)
    editor.edit([FRANCE, ALICE, OSLO], evaluate=False)
    assert contexts(editor, FRANCE.prompt) == ["The capital of France is Oslo "]
    patch = editor.stack.patches[0].patch
    editor.restore()
    editor.apply(editor.drop(patch, "d"))
    assert contexts(editor, FRANCE.prompt, ALICE.prompt) == [
        "The capital of France is Rome ",
        "Alice works in the city of Paris ",
    ]


def test_keeping_both_entries_of_a_prompt(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint, hparams={"on_repeat": "keep"})
    editor.edit([FRANCE, OSLO], evaluate=False)
    memory = Memory.of(editor.stack.patches[0].patch.operations[0])
    assert memory.live == [0, 1]
    assert contexts(editor, FRANCE.prompt) == ["The capital of France is Rome "]  # equally near: the first


def test_a_patch_of_one_editor_is_not_read_with_another(checkpoint: Path, tmp_path: Path) -> None:
    patch = editor_on("gpt2", checkpoint).compute(EDITS)
    other = editor_on("gpt2", a_checkpoint(tmp_path / "other", "gpt2", seed=5))
    with pytest.raises(RequirementError, match="editor"):
        other.apply(patch)


def test_a_checkpoint_that_changed_reads_the_earlier_edits_anew(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path / "editor", "gpt2")
    editor = editor_on("gpt2", path)
    editor.edit(FRANCE, evaluate=False)
    shutil.rmtree(path)
    a_checkpoint(path, "gpt2", seed=4)
    editor.edit(ALICE, evaluate=False)
    afresh = editor_on("gpt2", path).compute([FRANCE, ALICE])
    assert editor.stack.patches[0].patch.to_bytes() == afresh.to_bytes()


def test_a_copied_model_holds_no_editor(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint)
    editor.edit(FRANCE, evaluate=False)
    contexts(editor, FRANCE.prompt)
    kept = editor.model.__dict__["_kedit_serac_editors"]
    assert len(kept.editors) == 1
    assert len(copy.deepcopy(editor.model).__dict__["_kedit_serac_editors"].editors) == 0


def test_one_editor_is_loaded_for_many_patches(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    load = SeracEditor.load.__func__  # type: ignore[attr-defined]

    def counted(cls: type[SeracEditor], folder: Path, *rest: Any) -> SeracEditor:
        loads.append(folder)
        return load(cls, folder, *rest)

    monkeypatch.setattr(SeracEditor, "load", classmethod(counted))
    editor = editor_on("gpt2", checkpoint)
    editor.edit(EDITS, scenario="single", protocols=["generate"])
    assert loads == [checkpoint]


def test_a_plan_tells_what_it_takes(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint)
    plan = editor.plan(EDITS)
    size = editor.compute(EDITS).size
    assert size / 3 < plan["patch_bytes"] < size * 3
    assert plan["memory_bytes"] > 0
    assert editor.stack.patches == ()


# ---------------------------------------------------------------- refusals
def test_soft_weighting_is_refused_with_its_reason(checkpoint: Path) -> None:
    with pytest.raises(HyperParamsError, match="no route"):
        editor_on("gpt2", checkpoint, hparams={"soft_weighting": True})


def test_a_missing_or_broken_editor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="editor"):
        editor_on("gpt2", tmp_path / "nowhere").edit(FRANCE, evaluate=False)
    with pytest.raises(InputError, match="is no editor"):
        editor_on("gpt2", tmp_path).edit(FRANCE, evaluate=False)
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    state = json.loads((broken / "state.json").read_text())
    state["config"]["scope"]["heads"] = 0
    (broken / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="does not describe"):
        editor_on("gpt2", broken).edit(FRANCE, evaluate=False)
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    (cut / "classifier" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(KeditError):
        editor_on("gpt2", cut).edit(FRANCE, evaluate=False)


def test_an_edit_that_the_classifier_would_cut_is_refused(checkpoint: Path) -> None:
    long = evolve(FRANCE, prompt="France " * 600)
    with pytest.raises(InputError, match="shorten it"):
        editor_on("gpt2", checkpoint).edit(long, evaluate=False)


@pytest.mark.parametrize(
    "broken",
    [
        lambda c, t: ({k: v for k, v in c.items() if k != "memory"}, t),
        lambda c, t: ({**c, "memory": c["memory"][:1]}, t),
        lambda c, t: ({**c, "scope": {**c["scope"], "measure": "?"}}, t),
        lambda c, t: ({**c, "threshold": "much"}, t),
        lambda c, t: (c, {}),
        lambda c, t: (c, {"embeddings": t["embeddings"].double()}),
        lambda c, t: (c, {"embeddings": torch.cat([t["embeddings"]] * 2, dim=1)}),
        *[
            lambda c, t, name=name, value=value: ({**c, name: value}, t)
            for name, value in [("threshold", True), ("keep_all", None), ("keep_all", 1)]
        ],
        *[lambda c, t, value=value: ({**c, "editor": value}, t) for value in (None, [], {"sha256": 3})],
        *[
            lambda c, t, name=name, value=value: ({**c, "memory": [{**each, name: value} for each in c["memory"]]}, t)
            for name in ("id", "prompt", "target", "classifier_text", "context_text", "more")
            for value in (None, 3, [])
        ],
    ],
)
def test_an_operation_that_is_not_whole_is_refused(checkpoint: Path, broken: Any) -> None:
    operation = editor_on("gpt2", checkpoint).compute(EDITS).operations[0]
    assert isinstance(operation, RouterOperation)
    config, tensors = broken(dict(operation.config), dict(operation.tensors))
    with pytest.raises((PatchFormatError, InputError)):
        Memory.of(RouterOperation(kind=KIND, config=config, tensors=tensors))


def test_vectors_of_another_width_are_no_crash(checkpoint: Path) -> None:
    editor = editor_on("gpt2", checkpoint)
    patch = editor.compute(EDITS)
    (operation,) = patch.operations
    cut = {"embeddings": operation.tensors["embeddings"][..., 1:].contiguous()}
    editor.apply(evolve(patch, operations=[RouterOperation(kind=KIND, config=operation.config, tensors=cut)]))
    with pytest.raises(PatchFormatError, match="its editor makes"):
        contexts(editor, FRANCE.prompt)


def test_a_missing_editor_is_asked_for_by_its_role() -> None:
    with pytest.raises(RequirementError, match=r"the role 'editor'.*--with editor=PATH.*benchmark's spec"):
        Editor(*tiny("gpt2"), "serac").edit(FRANCE, evaluate=False)


def test_an_editor_folder_is_replaced_and_nothing_else_is(checkpoint: Path, tmp_path: Path) -> None:
    made = SeracEditor.load(checkpoint)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="not replaced"):
        made.save(tmp_path / "mine")
    made.save(tmp_path / "editor")
    made.save(tmp_path / "editor")
    assert path_digest(tmp_path / "editor") == path_digest(checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["editor", "mine"]


# ---------------------------------------------------------------- plain maths
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("measure", ["l2", "cos"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
def test_similarities_are_those_of_the_sheet(heads: int, measure: str, square: bool, bounded: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    metric = Metric(heads=heads, measure=measure, square=square, bounded=bounded, scale=0.7)
    left, right = (torch.randn(n, 16, generator=generator) for n in (5, 90))
    plain = torch.zeros(5, 90, dtype=torch.float64)
    for b in range(5):
        for n in range(90):
            distances = []
            for h in range(heads):
                u, v = (x[h * 16 // heads : (h + 1) * 16 // heads].double() for x in (left[b], right[n]))
                if bounded:
                    u, v = u.tanh(), v.tanh()
                if measure == "cos":
                    distances.append(1 - torch.dot(u, v) / (u.norm() * v.norm()))
                else:
                    distances.append(((u - v) ** 2).sum() if square else ((u - v) ** 2).sum().sqrt())
            plain[b, n] = -0.7 * min(distances)
    found = metric.log_similarities(metric.split(left), metric.split(right))
    torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=1e-5)
    index, best = metric.best(metric.split(left), metric.split(right))
    torch.testing.assert_close(best.double(), plain.max(dim=1).values, atol=1e-5, rtol=1e-5)
    assert index.tolist() == plain.argmax(dim=1).tolist()
    assert (metric.best(metric.split(left), metric.split(left))[1] == 0).all()


def test_the_cross_attention_form(tmp_path: Path) -> None:
    """Each prompt with each entry through the classifier, one pair at a time, gives the same decisions."""
    path = a_checkpoint(tmp_path / "cross", "gpt2", cross_attend=True, labelled=True)
    loaded = SeracEditor.load(path)
    model, tokenizer = loaded.classifier.model, loaded.classifier.tokenizer
    prompts, found = [*(edit.prompt for edit in EDITS), *random_texts(20)], []
    for prompt in prompts:
        shares = []
        for edit in EDITS:
            text = f"{edit.prompt} [SEP] {edit.target_new} [SEP] [SEP] {prompt}"
            with torch.no_grad():
                logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
            shares.append(float(torch.softmax(logits, -1)[0]))
        best = max(range(3), key=lambda i: shares[i])
        found.append((shares[best], f"{EDITS[best].prompt} {EDITS[best].target_new} "))
    ordered = sorted(share for share, _ in found)
    threshold = (ordered[11] + ordered[12]) / 2
    editor = editor_on("gpt2", path, hparams={"threshold": threshold})
    unedited = read(editor, OUTSIDE)
    editor.edit(EDITS, evaluate=False)
    assert Memory.of(editor.stack.patches[0].patch.operations[0]).embeddings is None
    assert contexts(editor, *prompts) == [text if share > threshold else "" for share, text in found]
    outside = [text for text, said in zip(OUTSIDE, contexts(editor, *OUTSIDE), strict=True) if not said]
    assert same(read(editor, outside), [unedited[OUTSIDE.index(text)] for text in outside])


def test_a_labelled_key_and_the_context_template() -> None:
    made = an_editor("gpt2", labelled=True, context="New Fact: {prompt} {target}\nPrompt: ")
    odd = EditRequest(prompt="The {target} of", target_new="{prompt}")
    assert made.scope.key(odd.prompt, odd.target_new) == "The {target} of [SEP] {prompt} [SEP]"
    assert made.scope.before(odd.prompt, odd.target_new) == "New Fact: The {target} of {prompt}\nPrompt: "


def test_a_long_query_is_read_from_its_end(checkpoint: Path) -> None:
    loaded = SeracEditor.load(checkpoint).classifier
    ids = loaded._inputs(["sea " * 700 + "Alice works"])["input_ids"][0].tolist()
    alone = loaded.tokenizer(" Alice works")["input_ids"]
    assert len(ids) == loaded.limit
    assert ids[-3:] == alone[-3:]
    assert BOB.prompt  # the edits themselves are short


@pytest.mark.parametrize("fast", [True, False])
def test_beside_a_long_query_the_key_is_read_whole(fast: bool) -> None:
    made = an_editor("gpt2", cross_attend=True, labelled=True)
    classifier = made.classifier
    if not fast:
        classifier.tokenizer = WithoutOffsets(classifier.tokenizer)
    keys = [made.scope.key(edit.prompt, edit.target_new) for edit in EDITS]
    query = "the town " * 700 + "Alice works"
    read_as = [classifier._pair_ids(key, query) for key in keys]
    for key, ids in zip(keys, read_as, strict=True):
        whole = classifier.tokenizer(f"{key} [SEP] {query}", verbose=False)["input_ids"]
        begins = classifier.tokenizer(f"{key} [SEP]")["input_ids"][:-1]
        assert len(ids) == classifier.limit == 512
        assert ids == begins + whole[len(whole) - 512 + len(begins) :]
        short = classifier.tokenizer(f"{key} [SEP] Alice works")["input_ids"]
        assert classifier._pair_ids(key, "Alice works") == short
    shares = classifier.pair_log_similarities(keys, [query] * len(keys)).tolist()
    assert len(set(shares)) == len(keys)


class WithoutOffsets:
    """A tokenizer as those written in Python are: it tells no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, return_offsets_mapping: bool = False, **settings: Any) -> Any:
        assert not return_offsets_mapping
        return self.tokenizer(text, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_an_edit_whose_own_prompt_does_not_fit_beside_its_key_is_refused(tmp_path: Path) -> None:
    cross = a_checkpoint(tmp_path / "cross", "gpt2", cross_attend=True, labelled=True)
    alone = a_checkpoint(tmp_path / "alone", "gpt2", labelled=True)
    longer = evolve(FRANCE, prompt="France " * 60)
    count = len(SeracEditor.load(cross).classifier.tokenizer(longer.prompt)["input_ids"])
    assert 256 < count < 500
    editor_on("gpt2", alone).edit(longer, evaluate=False)
    with pytest.raises(InputError, match="shorten it"):
        editor_on("gpt2", cross).edit(longer, evaluate=False)


# ---------------------------------------------------------------- presets
@pytest.mark.parametrize("name", ["factworld:gpt2", "factworld:llama"])
def test_factworld_has_presets_for_editing_and_for_training(name: str, checkpoint: Path) -> None:
    from kedit_core import Editor
    from kedit_core.hparams import resolve
    from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams

    editor = Editor.from_pretrained(name, "serac", resources={"editor": checkpoint})
    assert editor.settings is not None and editor.settings.sources["threshold"].startswith("preset")
    found = resolve(
        SeracTrainingHyperParams, editor.adapter.shape, presets="kedit_methods_memory:presets/serac_training"
    )
    assert found.sources["key"].startswith("preset")
    assert found.hparams.key == "label_free"
