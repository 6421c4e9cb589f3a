"""The acceptance checks of SERAC's sheet, in its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import serac_tools
import torch
from attrs import evolve
from serac_tools import ALICE, BOB, EDITS, FRANCE, OUTSIDE, a_checkpoint, an_editor, editor_on, random_texts, read, same
from warm_processes import run_warm

from kedit_core import EditPatch
from kedit_core.forward import TokenBoundary, generate_ids, score_pairs
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.patches import LiveContext, PatchStack
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.serac.checkpoint import SeracEditor
from kedit_methods_memory.serac.memory import Memory
from kedit_methods_memory.serac.router import ScopeRouter
from kedit_methods_memory.serac.training.losses import EPS, log1mexp, scope_loss

FAMILIES = ("gpt2", "llama", "t5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("family", FAMILIES)
def test_1_an_empty_memory_asks_nobody(family: str, folder: Path) -> None:
    """Nothing is routed, and the classifier is not even loaded."""
    editor = editor_on(family, folder / "nowhere")
    made = an_editor(family)
    operation = Memory.empty(evolve(made, digest="0" * 64), 0.5, False).operation()
    live = LiveContext(model=editor.model, scope=editor.stack.scope, resources={"editor": folder / "nowhere"})
    routes = ScopeRouter(operation, live).route(["anything", FRANCE.prompt])
    assert [(route.context, route.model) for route in routes] == [("", None)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_1_out_of_scope_is_bit_identical(family: str, dtype: torch.dtype, folder: Path) -> None:
    editor = editor_on(family, a_checkpoint(folder / family, family), dtype)
    before, texts = read(editor, OUTSIDE), editor.generate(OUTSIDE, max_new_tokens=8)
    inside = read(editor, [FRANCE.prompt])
    editor.edit(EDITS, evaluate=False)
    assert same(read(editor, OUTSIDE), before)
    assert editor.generate(OUTSIDE, max_new_tokens=8) == texts
    assert not same(read(editor, [FRANCE.prompt]), inside)


@pytest.mark.parametrize("changes", [{}, {"heads": 4}, {"measure": "cos"}, {"bounded": True}, {"square": False}])
def test_2_a_prompt_equal_to_its_key_has_similarity_one(changes: dict[str, Any], folder: Path) -> None:
    made = evolve(an_editor("gpt2", **changes), digest="0" * 64)
    memory = Memory.empty(made, 0.5, False).adding(EDITS, made)
    index, similarity = memory.nearest([edit.prompt for edit in reversed(EDITS)], made)
    assert index.tolist() == [2, 1, 0]
    assert similarity.exp().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_3_in_scope_is_the_counterfactual_model_alone(family: str, folder: Path) -> None:
    checkpoint = a_checkpoint(folder / family, family)
    editor = editor_on(family, checkpoint)
    editor.edit(EDITS, evaluate=False)
    other = SeracEditor.load(checkpoint).counterfactual
    assert other is not None
    view = AdapterRegistry(ADAPTERS).for_model(other.model)
    boundary = TokenBoundary(other.tokenizer, encoder_decoder=view.is_encoder_decoder)
    text = "The capital of France is Rome The capital of France is"
    alone = score_pairs(view.model, view, boundary, [(text, "Paris")], padding_side="left")[0]
    assert same(read(editor, [FRANCE.prompt]), [alone.logprobs])
    (ids,) = generate_ids(view.model, view, boundary, [boundary.prompt(text).ids], 8)
    written = boundary.continuation(boundary.prompt(text).ids, ids)
    assert editor.generate(FRANCE.prompt, max_new_tokens=8) == written


@pytest.mark.parametrize("family", FAMILIES)
def test_4_a_mixed_batch_is_its_rows(family: str, folder: Path) -> None:
    editor = editor_on(family, a_checkpoint(folder / family, family))
    editor.edit(EDITS, evaluate=False)
    prompts = [OUTSIDE[0], FRANCE.prompt, OUTSIDE[1], BOB.prompt, ALICE.prompt, OUTSIDE[2]]
    together, texts = read(editor, prompts), editor.generate(prompts, max_new_tokens=6)
    for prompt, row, text in zip(prompts, together, texts, strict=True):
        torch.testing.assert_close(read(editor, [prompt])[0], row, atol=1e-5, rtol=1e-5)
        assert editor.generate(prompt, max_new_tokens=6) == text
    routes = editor.stack.route(prompts)
    assert [bool(route.context) for route in routes] == [False, True, False, True, True, False]
    for prompt, route in zip(prompts, routes, strict=True):
        assert editor.stack.route([prompt])[0].context == route.context


def test_6_order_does_not_matter_and_dropping_restores(folder: Path) -> None:
    editor = editor_on("gpt2", a_checkpoint(folder / "gpt2", "gpt2"))
    prompts = [*(edit.prompt for edit in EDITS), *OUTSIDE]
    with editor.applied(editor.compute(EDITS)):
        forward = read(editor, prompts)
    with editor.applied(editor.compute(EDITS[::-1])):
        assert same(read(editor, prompts), forward)
    without, all_three = editor.compute([FRANCE, BOB]), editor.compute(EDITS)
    dropped = editor.drop(all_three, "b")
    assert dropped.to_bytes() == without.to_bytes()


_READ_ROUTES = """
import json, sys
import serac_tools
from kedit_core import EditPatch
editor = serac_tools.editor_on("gpt2", sys.argv[1])
editor.apply(EditPatch.load(sys.argv[2]))
routes = editor.stack.route(serac_tools.random_texts(1000))
print(json.dumps([route.context for route in routes]))
"""


@pytest.mark.slow
def test_7_saved_and_loaded_in_another_process_it_decides_alike(folder: Path, tmp_path: Path) -> None:
    # a scale at which random texts are near the threshold
    checkpoint = a_checkpoint(folder / "near", "gpt2", scale=0.04)
    editor = editor_on("gpt2", checkpoint)
    patch = editor.edit(EDITS, evaluate=False).patch
    patch.save(tmp_path / "p.safetensors")
    here = [route.context for route in editor.stack.route(random_texts(1000))]
    assert 100 < sum(map(bool, here)) < 900
    tests = Path(serac_tools.__file__).parent
    done = run_warm(_READ_ROUTES, checkpoint, tmp_path / "p.safetensors", cwd=tests)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == here


def test_8_the_balanced_loss() -> None:
    loss = scope_loss(torch.tensor([-0.1]), torch.tensor([-2.0]))
    assert abs(float(loss) - (0.1 + 0.1454134)) < 1e-6
    logs = torch.tensor([-1e-20, -1e-6, -1e-4, -1e-3, -1.0, -80.0])
    exact = torch.log(-torch.expm1(logs.double()))
    torch.testing.assert_close(log1mexp(logs).double(), exact, atol=2e-6, rtol=1e-7)
    # the smallest subnormal number and 0 itself: finite, and so is the slope
    ends = torch.tensor([-1e-45, -1.2e-38, 0.0], requires_grad=True)
    log1mexp(ends).sum().backward()
    assert torch.isfinite(log1mexp(ends)).all() and ends.grad is not None and torch.isfinite(ends.grad).all()
    assert log1mexp(torch.zeros(1)).item() == pytest.approx(torch.log(torch.tensor(EPS)).item())


def test_the_threshold_is_strict() -> None:
    """A similarity equal to the threshold is out of scope."""
    made = evolve(an_editor("gpt2"), digest="0" * 64)
    memory = Memory.empty(made, 0.5, False).adding([FRANCE], made)
    assert memory.decide([FRANCE.prompt], made) == list(memory.entries)
    assert evolve(memory, threshold=1.0).decide([FRANCE.prompt], made) == [None]


def test_weight_patches_beneath_and_any_history(folder: Path) -> None:
    """Routers and weight patches come and go in any order, and weights are bit for bit what remains."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    editor = editor_on("gpt2", a_checkpoint(folder / "gpt2", "gpt2"))
    place = editor.adapter.mlp_out_weight(1)
    rows, columns = editor.adapter.down_weight(1).shape
    pure = PatchStack.of(editor.model).weights_digest()
    patches: dict[str, EditPatch] = {
        "facts": editor.compute(EDITS),
        "one": editor.compute([ALICE]),
        **{name: _delta(editor, place, rows, columns, seed) for seed, name in enumerate(("up", "down"))},
    }
    digests: dict[tuple[str, ...], str] = {}
    readings: dict[tuple[str, ...], Any] = {}

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.sampled_from(sorted(patches)), min_size=1, max_size=10))
    def play(moves: list[str]) -> None:
        on: list[str] = []
        try:
            for name in moves:
                if name in on:
                    editor.remove(patches[name])
                    on.remove(name)
                else:
                    editor.apply(patches[name])
                    on.append(name)
                deltas = tuple(each for each in on if each in ("up", "down"))
                digest = editor.stack.weights_digest()
                assert digests.setdefault(deltas, digest) == digest
                found = read(editor, [FRANCE.prompt, ALICE.prompt, OUTSIDE[0]])
                assert same(readings.setdefault(tuple(on), found), found)
        finally:
            editor.restore()
        assert editor.stack.weights_digest() == pure

    play()


def _delta(editor: Any, place: str, rows: int, columns: int, seed: int) -> EditPatch:
    from kedit_core import LowRankDelta

    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, 1, generator=generator)
    delta = LowRankDelta(place, left, torch.randn(1, columns, generator=generator))
    return EditPatch.build(
        method={"name": "test", "distribution": "tests", "version": "0"},
        base=editor.stack.base_of([delta]),
        operations=[delta],
    )


def test_a_frozen_counterfactual_is_the_live_model_itself(folder: Path) -> None:
    """With freeze_cntr the base reads the edit's text, and weight patches beneath count."""
    editor = editor_on("gpt2", a_checkpoint(folder / "frozen", "gpt2", freeze_cntr=True))
    before = read(editor, [f"{FRANCE.prompt} Rome {FRANCE.prompt}"])
    editor.edit(EDITS, evaluate=False)
    assert same(read(editor, [FRANCE.prompt]), before)
    place = editor.adapter.mlp_out_weight(1)
    rows, columns = editor.adapter.down_weight(1).shape
    editor.apply(_delta(editor, place, rows, columns, 3))
    assert not same(read(editor, [FRANCE.prompt]), before)


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_padding(side: Any, folder: Path) -> None:
    from kedit_core.evaluation import Answers

    editor = editor_on("llama", a_checkpoint(folder / "llama", "llama"))
    editor.edit(EDITS, evaluate=False)
    answers = Answers(editor.model, editor.adapter, editor.tokens, stack=editor.stack, padding_side=side)
    prompts = [FRANCE.prompt, OUTSIDE[0], BOB.prompt, "I think"]
    assert answers.raw_generate(prompts, 6) == [editor.generate(prompt, max_new_tokens=6) for prompt in prompts]


def test_a_tiny_model_is_left_alone() -> None:
    """The tools of these tests make other weights than the base's, so that in-scope answers can differ."""
    base, _ = tiny("gpt2")
    other = an_editor("gpt2").counterfactual
    assert other is not None
    assert not torch.equal(next(base.parameters()), next(other.model.parameters()))
