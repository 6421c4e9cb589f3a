"""The patch: rounds that extend it, single facts taken out, other patches below it, files, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory.wise.wise_tools import ALICE, BOB, CAROL, FRANCE, REQUESTS, bank_of, editor_on, logits_of, without_texts
from warm_processes import run_warm

from kedit_core import Editor, EditPatch, EditRequest, LowRankDelta
from kedit_core.cli.root import kedit
from kedit_core.errors import InputError, KeditError, PatchFormatError, RequestError, UnsupportedModelError
from kedit_core.patches import Base, MethodRef
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.wise import activation
from kedit_methods_memory.wise.memories import Bank

SHARDED: dict[str, Any] = {"n_iter": 3, "save_freq": 1, "merge_freq": 2}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file of texts of several sentences."""
    file = tmp_path / "texts.txt"
    lines = [f"Number {i} is far. {name} saw number {i} on a long day." for i in range(40) for name in ("Bob", "Eve")]
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("own", [True, False])
def test_the_same_seed_gives_the_same_bytes(own: bool, corpus: Path) -> None:
    """Acceptance check 8; also where irrelevant texts are drawn."""
    requests = REQUESTS[:2] if own else [without_texts(each) for each in REQUESTS[:2]]
    made: dict[int, list[bytes]] = {}
    for seed in (0, 0, 1):
        editor = editor_on("gpt2", n_iter=2, options={"corpus": corpus})
        editor.seed = seed
        made.setdefault(seed, []).append(editor.compute(requests).to_bytes())
    assert made[0][0] == made[0][1] != made[1][0]


def test_a_round_is_trained_on_the_model_beneath_the_round_before() -> None:
    """The patch of the first round is on the model while the second is computed, and changes nothing of it."""
    editor = editor_on("llama", torch.float64, **{**SHARDED, "merge_freq": 4})
    both = bank_of(editor.edit([FRANCE, ALICE], scenario="sequential", evaluate=False).patch)
    alone = editor_on("llama", torch.float64, **{**SHARDED, "merge_freq": 4})
    learnt = alone.edit([BOB, ALICE], scenario="sequential", evaluate=False).patch
    # both are the second shard, trained from the same start in the same subspace on the same edit
    assert torch.equal(both.pending[1].delta(), bank_of(learnt).pending[1].delta())


@pytest.mark.parametrize(
    ("batch_size", "hparams"),
    [(1, SHARDED), (1, {"n_iter": 3, "save_freq": 2, "merge_freq": 2, "retrieve": False}), (9, {"n_iter": 4})],
)
def test_dropping_an_edit_is_editing_the_others_only(batch_size: int, hparams: dict[str, Any], corpus: Path) -> None:
    """What the other requests were trained against is in the patch: the corpus is not needed again."""
    requests = [FRANCE, ALICE, without_texts(BOB), CAROL]
    editor = editor_on("gpt2", options={"corpus": corpus}, **hparams)
    patch = editor.edit(requests, scenario="sequential", batch_size=batch_size, evaluate=False).patch
    editor.restore()
    others = editor_on("gpt2", options={"corpus": corpus}, **hparams)
    left = others.edit([FRANCE, requests[2], CAROL], scenario="sequential", batch_size=batch_size, evaluate=False).patch
    corpus.unlink()
    dropped = editor_on("gpt2", **hparams).drop(patch, "b")
    assert dropped.to_bytes() == left.to_bytes()
    assert dropped.id != patch.id and bank_of(dropped).edits == 3


def test_single_facts_are_not_taken_out_of_a_patch_that_was_joined() -> None:
    editor = editor_on("gpt2", n_iter=1)
    joined = EditPatch.join([editor.compute([FRANCE]), editor.compute([ALICE])])
    with pytest.raises(InputError, match="joined from several, each with side memories of its own"):
        editor.drop(joined, "a")


def test_the_command_line_drops_a_case(tmp_path: Path) -> None:
    model, tokenizer = tiny("gpt2")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    editor = Editor.from_pretrained(tmp_path / "model", "wise", {"layer": 1, "n_iter": 2, "context_templates": ["{}"]})
    patch = editor.edit([FRANCE, ALICE], evaluate=False).patch
    patch.save(tmp_path / "two.safetensors")
    given = ["patch", "drop", str(tmp_path / "two.safetensors"), "--case", "a", "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(kedit, [*given, "-o", str(tmp_path / "one.safetensors")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    left = EditPatch.load(tmp_path / "one.safetensors")
    assert [fact["case_id"] for fact in left.requests] == ["b"]  # type: ignore[union-attr, index]


@pytest.mark.slow
def test_in_another_process_it_is_the_same(tmp_path: Path) -> None:
    editor = editor_on("llama", **SHARDED)
    patch = editor.edit([FRANCE, ALICE, BOB], scenario="sequential", evaluate=False).patch
    patch.save(tmp_path / "patch.safetensors")
    torch.save(logits_of(editor, [each.prompt for each in REQUESTS]), tmp_path / "logits.pt")
    code = f"""
import sys; sys.path[:] = {sys.path!r}
import torch; torch.set_num_threads(1)
from memory.wise.wise_tools import *
editor = Editor(*tiny("llama"))
editor.apply(EditPatch.load({str(tmp_path / "patch.safetensors")!r}))
wanted = torch.load({str(tmp_path / "logits.pt")!r})
found = logits_of(editor, [each.prompt for each in REQUESTS])
assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
print("equal")
"""
    done = run_warm(code)
    assert done.stdout.strip() == "equal", done.stderr


def _weight_patch(editor: Editor, name: str, seed: int) -> EditPatch:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = editor.stack.base_of([name]).tensors[name].shape
    delta = LowRankDelta(name, torch.randn(columns, 1, generator=generator), torch.randn(1, rows, generator=generator))
    base: Base = editor.stack.base_of([name])
    method = MethodRef(name="test", distribution="kedit-test", version="1.0")
    return EditPatch(method=method, base=base, operations=[delta], requests=[FRANCE.fact])


@pytest.mark.slow
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_any_history_gives_what_remains(history: list[int]) -> None:
    """Weight patches on the very matrix, below and above a side memory, put on and taken off in any order."""
    editor, pool, texts = _world()
    on: list[int] = []
    for number in history:
        if number in on:
            editor.remove(pool[number])
            on.remove(number)
        else:
            editor.apply(pool[number])
            on.append(number)
    found = logits_of(editor, texts)
    editor.restore()
    for number in on:
        editor.apply(pool[number])
    again = logits_of(editor, texts)
    editor.restore()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert editor.stack.weights_digest() == _world_digest(editor)


_WORLD: dict[str, Any] = {}


def _world() -> tuple[Editor, list[EditPatch], list[str]]:
    if not _WORLD:
        editor = editor_on("gpt2", act_ratio=0.3, n_iter=4)
        name = "transformer.h.1.mlp.c_proj.weight"
        _WORLD["digest"] = editor.stack.weights_digest()
        pool = [_weight_patch(editor, name, 0), editor.compute([FRANCE]), _weight_patch(editor, name, 1)]
        pool.append(editor.compute([ALICE, BOB]))
        texts = [FRANCE.prompt, ALICE.prompt, "The day was long."]
        plain = logits_of(editor, texts)
        for number, text in ((1, 0), (3, 1)):
            editor.apply(pool[number])
            assert not torch.equal(logits_of(editor, texts)[text], plain[text])  # its memory answers
            editor.remove(pool[number])
        _WORLD["all"] = (editor, pool, texts)
    found: tuple[Editor, list[EditPatch], list[str]] = _WORLD["all"]
    return found


def _world_digest(editor: Editor) -> str:
    return str(_WORLD["digest"])


def test_weight_patches_below_count_as_the_model() -> None:
    """A side memory made on top of a changed matrix is a difference from that one, and goes on without it too."""
    editor = editor_on("gpt2", torch.float64)
    below = _weight_patch(editor, "transformer.h.1.mlp.c_proj.weight", 0)
    editor.apply(below)
    patch = editor.compute([FRANCE])
    assert patch.parents == (below.id,)
    changed = editor_on("gpt2", torch.float64)
    with torch.no_grad():
        left, right = below.operations[0].left, below.operations[0].right  # type: ignore[union-attr]
        changed.adapter.down_weight(1).add_(left.double() @ right.double())
    torch.testing.assert_close(
        bank_of(patch).memories[0].delta(), bank_of(changed.compute([FRANCE])).memories[0].delta(), rtol=0, atol=1e-9
    )


def test_only_the_projection_is_described() -> None:
    """The hook on the stack reads a mask, so the weights of other layers may be any."""
    patch = editor_on("llama", n_iter=1).compute([FRANCE])
    assert list(patch.base.tensors) == ["model.layers.1.mlp.down_proj.weight"]
    assert patch.operations[0].places == ("model", "model.layers.1.mlp.down_proj")  # type: ignore[union-attr]


def test_a_small_file() -> None:
    """A bit for each entry, and four bytes for each that moved."""
    editor = editor_on("gpt2", n_iter=2, rho=0.1)
    (memory,) = bank_of(editor.compute([FRANCE])).memories
    assert memory.support.numel() == 32 * 80 // 8
    assert memory.values.numel() < 0.13 * 32 * 80


@pytest.mark.parametrize(
    ("request_", "hparams", "error", "said"),
    [
        (FRANCE, {"layer": 7}, InputError, "layer 7"),
        (FRANCE, {"layer": 1, "part": "mlp_in"}, InputError, "choose mlp_out"),
        (evolve(FRANCE, target_new=" "), {}, RequestError, "target"),
        (evolve(FRANCE, meta={"irrelevant": 3}), {}, RequestError, "irrelevant"),
        (evolve(FRANCE, meta={"irrelevant": [" "]}), {}, RequestError, "irrelevant"),
        (evolve(FRANCE, meta={"irrelevant": ["France", "It rains.", "The"]}), {}, RequestError, "keep one of them"),
        (evolve(FRANCE, prompt="France " * 80), {}, RequestError, "positions"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    request_: EditRequest, hparams: dict[str, Any], error: type[KeditError], said: str
) -> None:
    editor = editor_on("llama", **hparams)
    calls: list[int] = []
    editor.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=said):
        editor.edit([request_], evaluate=False)
    assert not calls


def test_a_model_whose_activation_function_is_not_known_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_NAMES", ("no_such_setting",))
    with pytest.raises(UnsupportedModelError, match="act to 'none'"):
        editor_on("llama").edit([FRANCE], evaluate=False)
    patch = editor_on("llama", act="none", n_iter=1).compute([FRANCE])
    assert patch.operations[0].config["act"] is None  # type: ignore[union-attr]


def test_broken_patches_are_refused_when_they_are_put_on() -> None:
    editor = editor_on("gpt2", n_iter=1)
    patch = editor.compute([FRANCE])
    (operation,) = patch.operations
    config, tensors = dict(operation.config), dict(operation.tensors)  # type: ignore[union-attr]
    broken: list[dict[str, Any]] = [
        {"tensors": {**tensors, "0.values": tensors["0.values"][:-1]}},
        {"tensors": {**tensors, "0.support": tensors["0.support"][:-1]}},
        {"tensors": {name: each for name, each in tensors.items() if name != "a_min"}},
        {"config": {**config, "bank": {**config["bank"], "pending": 1}}},
        {"config": {**config, "bank": {**config["bank"], "shape": [80, 33]}}},
        {"config": {**config, "bank": 3}},
        {"config": {**config, "act": "no such function"}},
        {"config": {**config, "merge": {"algorithm": "none", "density": 0.5, "weights": 1.0}}},
        {"config": {name: each for name, each in config.items() if name != "act_ratio"}},
        {"places": operation.places[1:]},  # type: ignore[union-attr]
    ]
    for change in broken:
        with pytest.raises(PatchFormatError):
            editor.apply(evolve(patch, operations=(evolve(operation, **change),)))
    assert not editor.stack.patches


def test_a_bank_comes_back_from_its_config_and_tensors() -> None:
    editor = editor_on("gpt2", **SHARDED)
    bank = bank_of(editor.edit(REQUESTS[:4], scenario="sequential", evaluate=False).patch)
    again = Bank.read(bank.config(), bank.tensors())
    assert (again.shards, again.merges, again.edits, again.a_min) == (bank.shards, bank.merges, bank.edits, bank.a_min)
    assert all(torch.equal(a.delta(), b.delta()) for a, b in zip(again.memories, bank.memories, strict=True))


def test_a_plan_of_many() -> None:
    editor = editor_on("gpt2", save_freq=2, merge_freq=4)
    plan = editor.plan(REQUESTS, scenario="sequential")
    assert plan["places"] == ["transformer.h.1.mlp.c_proj"] and plan["rounds"] == 4 and plan["seconds"] > 0
    made = editor.edit(REQUESTS, scenario="sequential", evaluate=False).patch
    assert 0.5 < plan["patch_bytes"] / sum(each.nbytes for each in made.operations[0].tensors.values()) < 2.0
