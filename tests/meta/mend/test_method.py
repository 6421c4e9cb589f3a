"""Edits with MEND: what they change, what they do not depend on, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from meta_tools import editor_on, records, stacked, trained
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.errors import BaseMismatchError, InputError, MethodError, RequestError, RequirementError
from kedit_core.patches import EditPatch, LowRankDelta
from kedit_core.plugins import Catalogue
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_core.training import EditorFolder
from kedit_core.training.writing import write_editor
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.mend import MendEditor

FRANCE = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a")
ALICE = EditRequest(prompt="Alice works in the old city of", subject="Alice", target_new="Paris and Oslo", case_id="b")
BOB = EditRequest(prompt="Bob is", subject="Bob", target_new="French", case_id="c")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mend")


def an_editor(folders: Path, family: str = "gpt2", dtype: torch.dtype = torch.float32, **settings: Any) -> Editor:
    name = f"{family}-{str(dtype)[6:]}"
    return editor_on(family, "mend", trained(folders / name, family, "mend", dtype), dtype, **settings)


def rewritten(folder: Path, source: Path, config: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A copy of an editor's folder with other tensors and settings."""
    read = EditorFolder.read(source)
    settings = {**read.config["settings"], **(config or {})}
    write_editor(folder, {**read.tensors, **tensors}, {**read.state, "config": {**read.config, "settings": settings}})
    return folder


def change(editor: Editor, patch: EditPatch) -> dict[str, Tensor]:
    """``[out, in]`` by weight."""
    return stacked(patch.operations, {name: (each.shape[::-1] if each.layout == "in_out" else each.shape)
                                      for name, each in patch.base.tensors.items()})  # fmt: skip


def test_1_a_step_size_of_zero_changes_no_bit(folders: Path, tmp_path: Path) -> None:
    """Acceptance check 1."""
    source = trained(folders / "gpt2-float32", "gpt2", "mend")
    still = rewritten(tmp_path / "still", source, alpha=torch.zeros(4))
    editor = editor_on("gpt2", "mend", still)
    ids = editor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    before = editor.model(ids).logits
    editor.edit([FRANCE, ALICE], evaluate=False)
    assert torch.equal(editor.model(ids).logits, before)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_an_edit_is_the_editors_update_of_the_factors(folders: Path, family: str) -> None:
    """The patch holds what the editor makes of the factors on the weights as they are."""
    editor = an_editor(folders, family)
    context = editor.context()
    folder = EditorFolder.load(context)
    module = MendEditor.of(context.adapter, folder.config, folder.tensors)
    ends = (editor.tokenizer.eos_token_id,) if family == "t5" else ()
    pairs = [context.tokens.pair(each.prompt, each.target_new) for each in (FRANCE, ALICE)]
    pairs = [evolve(pair, target_ids=(*pair.target_ids, *ends)) for pair in pairs]
    factors = gradient_factors(context.forward, pairs, module.places)
    wanted = {name: each.outputs.T @ each.inputs for name, each in module(factors).items()}
    found = change(editor, editor.compute([FRANCE, ALICE]))
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each.detach().double(), rtol=1e-5, atol=1e-8)


def test_4_the_rank_is_at_most_the_tokens(folders: Path) -> None:
    """Acceptance check 4."""
    editor = an_editor(folders, dtype=torch.float64)
    patch = editor.compute([BOB])
    pair = editor.context().tokens.pair(BOB.prompt, BOB.target_new)
    tokens = len(pair.prompt_ids) + len(pair.target_ids) - 1
    for operation in patch.operations:
        assert isinstance(operation, LowRankDelta)
        assert operation.rank == patch.state.config["rows"][operation.place] <= tokens
        assert torch.linalg.matrix_rank(operation.delta((32, 80), torch.float64)
                                        if "c_proj" in operation.place
                                        else operation.delta((80, 32), torch.float64)) <= operation.rank  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_5_company_and_padding_change_nothing(folders: Path, family: str) -> None:
    """Acceptance check 5: a short request in a batch with a long one; portions; whatever the order."""
    editor = an_editor(folders, family, torch.float64)
    together = change(editor, editor.compute([FRANCE, ALICE, BOB]))
    alone = [change(editor, editor.compute([each])) for each in (FRANCE, ALICE, BOB)]
    turned = change(editor, editor.compute([BOB, FRANCE, ALICE]))
    parts = an_editor(folders, family, torch.float64, hparams={"portion": 1})
    portioned = change(parts, parts.compute([FRANCE, ALICE, BOB]))
    for name, each in together.items():
        scale = float(each.abs().max())
        assert scale > 0
        for other in (sum(one[name] for one in alone), turned[name], portioned[name]):
            torch.testing.assert_close(each, other, rtol=1e-6, atol=1e-6 * scale)


def test_9_what_is_removed_leaves_every_bit(folders: Path) -> None:
    """Acceptance check 9, in half precision too."""
    for dtype in (torch.float32, torch.bfloat16):
        source = trained(folders / "llama-float32", "llama", "mend")
        editor = editor_on("llama", "mend", source, dtype)
        before = Snapshot(editor.model)
        result = editor.edit([FRANCE, ALICE], scenario="sequential", evaluate=False)
        assert before.differences(editor.model)
        editor.restore()
        assert not before.differences(editor.model)
        assert len(result.patches) == 2


def test_sequences_start_from_the_weights_as_they_are(folders: Path) -> None:
    """The second round's factors are those of the edited model."""
    editor = an_editor(folders, dtype=torch.float64)
    fresh = change(editor, editor.compute([ALICE]))
    editor.edit([FRANCE], evaluate=False)
    second = editor.compute([ALICE])
    assert second.parents
    later = change(editor, second)
    assert any(not torch.allclose(fresh[name], later[name], rtol=1e-3) for name in fresh)


def test_strength_scales_and_the_sign_is_the_editors(folders: Path, tmp_path: Path) -> None:
    editor = an_editor(folders, dtype=torch.float64)
    usual = change(editor, editor.compute([BOB]))
    double = an_editor(folders, dtype=torch.float64, hparams={"strength": 2.0})
    source = folders / "gpt2-float64"
    turned = editor_on("gpt2", "mend", rewritten(tmp_path / "up", source, {"sign": 1}), torch.float64)
    for name, each in usual.items():
        torch.testing.assert_close(change(double, double.compute([BOB]))[name], 2 * each, rtol=1e-6, atol=1e-15)
        torch.testing.assert_close(change(turned, turned.compute([BOB]))[name], -each, rtol=1e-6, atol=1e-15)


def test_many_tokens_are_one_dense_delta(folders: Path) -> None:
    """From in * out / (in + out) rows on the whole change is smaller than its factors."""
    editor = an_editor(folders)
    few, many = editor.compute([BOB]), editor.compute(records(6))
    assert {each.type for each in few.operations} == {"low_rank_delta"}
    assert {each.type for each in many.operations} == {"dense_delta"}
    assert len(many.to_bytes()) < 4 * 80 * 32 * 4 + 20_000


def test_an_instruction_is_read_from_the_request(folders: Path, tmp_path: Path) -> None:
    """What the editor sees begins with it; a request without the key is refused."""
    source = trained(folders / "gpt2-float32", "gpt2", "mend")
    told = editor_on("gpt2", "mend", rewritten(tmp_path / "told", source, {"instruction": "Task {task} : "}))
    with pytest.raises(RequestError, match="no 'task'"):
        told.edit([FRANCE], evaluate=False)
    asked = change(told, told.compute([evolve(FRANCE, meta={"task": "answer"})]))
    plain = an_editor(folders)
    spelled = change(plain, plain.compute([evolve(FRANCE, prompt="Task answer : The capital of France is")]))
    for name, each in asked.items():
        torch.testing.assert_close(each, spelled[name], rtol=1e-6, atol=1e-9)


def test_what_does_not_fit_is_refused_before_any_work(folders: Path, tmp_path: Path) -> None:
    source = trained(folders / "gpt2-float32", "gpt2", "mend")
    with pytest.raises(RequirementError, match="for the role 'editor', and none was given"):
        editor_on("gpt2", "mend").edit([FRANCE], evaluate=False)
    with pytest.raises(RequirementError, match="does not exist"):
        editor_on("gpt2", "mend", tmp_path / "nowhere").edit([FRANCE], evaluate=False)
    with pytest.raises(BaseMismatchError, match="architecture"):
        editor_on("llama", "mend", source).edit([FRANCE], evaluate=False)
    other = editor_on("gpt2", "mend", source)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    with pytest.raises(BaseMismatchError, match="other weights"):
        other.edit([FRANCE], evaluate=False)
    with pytest.raises(RequestError, match="128 positions"):
        an_editor(folders).edit([evolve(FRANCE, prompt="word " * 200, subject=None)], evaluate=False)
    damaged = rewritten(tmp_path / "damaged", source, {"layers": [0]})
    with pytest.raises(InputError, match="weights are not those"):
        editor_on("gpt2", "mend", damaged).edit([FRANCE], evaluate=False)
    tensors = EditorFolder.read(source).tensors
    count = next(name for name in tensors if name.endswith("normaliser.count"))
    for name, wrong, fault in (
        ("short", {"alpha": torch.zeros(1)}, "do not go with its settings"),
        ("broken", {"alpha": torch.full((4,), torch.nan)}, "'alpha' is not of finite numbers"),
        ("untrained", {count: torch.zeros_like(tensors[count])}, "after 0 rows; train it"),
    ):
        editor = editor_on("gpt2", "mend", rewritten(tmp_path / name, source, **wrong))
        editor.model.register_forward_pre_hook(_never)
        with pytest.raises(InputError, match=fault):
            editor.edit([FRANCE], evaluate=False)
    # what an editor without normaliser has counted does not matter
    plain = rewritten(tmp_path / "plain", source, {"norm": False}, **{count: torch.zeros_like(tensors[count])})
    editor_on("gpt2", "mend", plain).edit([FRANCE], evaluate=False)


def _never(*_: Any) -> None:
    raise AssertionError("the model was run")


def test_a_row_may_be_as_long_as_the_model(folders: Path) -> None:
    """The last token of an answer is not read."""
    editor = an_editor(folders)
    context = editor.context()
    texts = [f"{'word ' * words}{'a' * letters} is" for words in range(30, 60) for letters in (1, 2, 3)]
    pairs = [context.tokens.pair(text, "Rome") for text in texts]
    lengths = [len(pair.prompt_ids) + len(pair.target_ids) for pair in pairs]
    editor.compute([evolve(FRANCE, prompt=texts[lengths.index(129)], subject=None)])
    with pytest.raises(RequestError, match="128 positions"):
        editor.compute([evolve(FRANCE, prompt=texts[lengths.index(130)], subject=None)])


def test_certain_answers_have_no_gradient(folders: Path) -> None:
    """Alone they are refused; in company they change nothing."""
    editor = an_editor(folders, dtype=torch.float64, hparams={"portion": 2})  # which keeps their order
    usual = change(editor, editor.compute([FRANCE]))
    known = evolve(BOB, target_new="a")
    (token,) = editor.context().tokens.pair(known.prompt, known.target_new).target_ids

    def certain(module: Any, args: Any, output: Tensor) -> Tensor:
        """The last of the asked tokens."""
        return torch.cat([output[:, :-1], 1e5 * torch.eye(output.shape[-1]).to(output)[token].view(1, 1, -1)], dim=1)

    editor.model.lm_head.register_forward_hook(certain)
    with pytest.raises(MethodError, match="certainty already"):
        editor.compute([known])
    both = change(editor, editor.compute([FRANCE, known]))
    for name, each in usual.items():
        torch.testing.assert_close(both[name], each, rtol=1e-6, atol=1e-12)


def test_float16_is_warned_of(folders: Path) -> None:
    source = trained(folders / "gpt2-float32", "gpt2", "mend")
    for dtype, told in ((torch.float16, ["half_precision_gradients"]), (torch.bfloat16, [])):
        result = editor_on("gpt2", "mend", source, dtype).edit([FRANCE], evaluate=False)
        assert [each.code for each in result.warnings] == told


def test_a_fact_is_dropped_by_editing_again(folders: Path, tmp_path: Path) -> None:
    """Also a case of several facts; not with another editor."""
    editor = an_editor(folders, dtype=torch.float64)
    two = evolve(BOB, case_id="a")
    patch = editor.compute([FRANCE, ALICE, two])
    for case, left in (("b", [FRANCE, two]), ("a", [ALICE])):
        made, wanted = change(editor, editor.drop(patch, case)), change(editor, editor.compute(left))
        for name, each in made.items():
            torch.testing.assert_close(each, wanted[name], rtol=1e-6, atol=1e-12)
    other = rewritten(tmp_path / "other", folders / "gpt2-float64", alpha=torch.full((4,), 0.5))
    with pytest.raises(InputError, match="made with another editor"):
        editor_on("gpt2", "mend", other, torch.float64).drop(patch, "b")


def test_a_patch_needs_neither_editor_nor_this_package(folders: Path, tmp_path: Path) -> None:
    editor = an_editor(folders)
    editor.edit([FRANCE], evaluate=False).patch.save(tmp_path / "patch.safetensors")
    ids = editor.tokenizer(FRANCE.prompt, return_tensors="pt")["input_ids"]
    bare = Editor(*tiny("gpt2"), None, catalogue=Catalogue([]))
    bare.apply(EditPatch.load(tmp_path / "patch.safetensors"))
    assert torch.equal(bare.model(ids).logits, editor.model(ids).logits)


def test_hundreds_of_edits_are_one_update(folders: Path) -> None:
    """As many in one batch as one at a time on the same weights, and a patch no larger than the weights."""
    editor = an_editor(folders, dtype=torch.float64)
    patch = editor.compute(records(300))
    assert len(patch.requests) == 300
    assert all(operation.type == "dense_delta" for operation in patch.operations)
    some = change(editor, editor.compute(records(150))), change(editor, editor.compute(records(150, 150)))
    for name, each in change(editor, patch).items():
        torch.testing.assert_close(each, some[0][name] + some[1][name], rtol=0, atol=1e-6 * float(each.abs().max()))


def test_the_patch_names_its_editor(folders: Path) -> None:
    editor = an_editor(folders)
    patch = editor.compute([FRANCE])
    assert patch.state.config["resources"]["editor"] == EditorFolder.read(folders / "gpt2-float32").digest
    assert patch.state.config["sign"] == -1
    assert not patch.requires  # what is edited is in the patch, whole


def test_a_plan_tells_size_and_memory(folders: Path) -> None:
    plan = an_editor(folders).plan([FRANCE, BOB])
    made = an_editor(folders).compute([FRANCE, BOB])
    assert plan["places"] == list(made.base.tensors)
    assert 0.5 * len(made.to_bytes()) < plan["patch_bytes"] < 2 * len(made.to_bytes())
    assert plan["seconds"] > 0
