"""Which memory answers: the rule, and that rows are decided one by one, on their prompts, and stay decided."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from memory.wise.wise_tools import ALICE, BOB, FRANCE, bank_of, editor_on, logits_of
from torch import Tensor

from kedit_core import EditRequest
from kedit_core.errors import ScopeError
from kedit_core.forward import score_pairs
from kedit_core.models.parameters import features
from kedit_core.testing.tiny import FAMILIES
from kedit_methods_memory.wise.activation import pooled
from kedit_methods_memory.wise.kind import WiseMemory
from kedit_methods_memory.wise.memories import Bank, Memory
from kedit_methods_memory.wise.routing import retrieved, strongest

OTHER = "Norway and Peru are far from one another, and the oboe plays."


def test_the_rule_of_retrieval() -> None:
    rows = [
        # merged, pending, in the making -> who answers
        ((1.0, 1.0, 1.0), -1),
        ((1.0, 1.0, 6.0), 2),
        ((7.0, 1.0, 6.0), 0),
        ((7.0, 8.0, 6.0), 1),
        ((6.0, 5.0, 7.0), 2),
        ((4.0, 3.5, 4.5), -1),  # the second fires, but the one in the making reacts more strongly, and does not fire
        ((0.0, 0.0, 0.0), -1),
        ((5.0, 0.0, 0.0), 0),  # at its threshold it fires
    ]
    found = retrieved([torch.tensor(each) for each in zip(*(row for row, _ in rows), strict=True)], [5, 3, 5], True)
    assert found.tolist() == [answer for _, answer in rows]
    without = retrieved([torch.tensor([4.0, 6.0, 6.0]), torch.tensor([3.5, 3.5, 6.0])], [5, 3], False)
    assert without.tolist() == [1, 0, 0]
    assert retrieved([torch.tensor([9.0])], [float("inf")], True).tolist() == [-1]


def test_the_rule_of_one_merged_memory() -> None:
    merged, open_ = torch.tensor([1.0, 6.0, 6.0, 7.0, 4.0]), torch.tensor([1.0, 4.0, 6.0, 6.0, 5.0])
    assert strongest([merged, open_], 5.0).tolist() == [-1, 0, 1, 0, 1]
    assert strongest([torch.zeros(1)], 0.0).tolist() == [-1]


def test_activations_are_means_of_the_prompt_and_maxima_where_asked() -> None:
    norms = torch.arange(1.0, 121.0).repeat(2, 1)
    mask = torch.ones(2, 120, dtype=torch.bool)
    mask[0, 100:] = False
    norms = norms.masked_fill(~mask, float("nan"))  # padding may hold anything
    assert pooled(norms, mask).tolist() == [50.5, 60.5]
    assert pooled(norms, mask, long_max=True).tolist() == [50.5, 120.0]
    assert pooled(norms, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


def reactions(editor: Any, delta: Tensor, texts: list[str]) -> list[float]:
    """How far ``delta`` moves the projection's output, mean over each text's tokens: one text at a time, by hooks."""
    found: list[float] = []

    def note(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        value = args[0].reshape(-1, args[0].shape[-1]).to(delta.dtype)
        found.append(float((value @ delta.T).norm(dim=-1).mean()))

    handle = editor.adapter.mlp_out(1).register_forward_hook(note)
    try:
        for text in texts:
            logits_of(editor, [text])
    finally:
        handle.remove()
    return found


def edited(family: str, dtype: torch.dtype = torch.float32) -> tuple[Any, str, str]:
    """An Editor with a random side memory on its model, a text that it answers, and one that it does not.

    Its threshold is in the middle of both texts' activations.
    """
    editor = editor_on(family, dtype, act="none", act_ratio=0.5)
    place = editor.adapter.mlp_out(1)
    delta = torch.randn(features(place), generator=torch.Generator().manual_seed(0))
    texts = [FRANCE.prompt, OTHER]
    strong = reactions(editor, delta, texts)
    first, last = sorted(range(2), key=lambda i: -strong[i])
    assert strong[first] > 1.002 * strong[last]
    bank = Bank(open=Memory.of(delta, sum(strong), 1), shards=1, edits=1)
    made = editor.compute([FRANCE])
    (operation,) = made.operations
    operation = evolve(operation, config={**operation.config, "bank": bank.config()}, tensors=bank.tensors())
    editor.apply(evolve(made, operations=(operation,)))
    return editor, texts[first], texts[last]


def answers(editor: Any, texts: list[str], side: str = "right") -> list[bool]:
    """Whether each text's logits are others than the base's."""
    now = logits_of(editor, texts, side)
    with editor.stack.suspended():
        base = logits_of(editor, texts, side)
    return [not torch.equal(a, b) for a, b in zip(now, base, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_decided_one_by_one(family: str) -> None:
    """Acceptance checks 1 and 6: whatever stands beside it, padded on either side; others are bit-identical."""
    editor, inside, outside = edited(family)
    alone = answers(editor, [inside]), answers(editor, [outside])
    assert alone == ([True], [False])
    together = [inside, outside, inside, "Bob"]
    for side in ("right", "left"):
        found = answers(editor, together, side)
        assert (found[0], found[1], found[2]) == (True, False, True), side
    first, _, third, _ = logits_of(editor, together)
    assert torch.equal(first, third)
    torch.testing.assert_close(logits_of(editor, together, "left")[0], first, rtol=0, atol=2e-3)


def test_what_follows_the_prompt_decides_nothing() -> None:
    """Acceptance check 6: the same answer for each target, and as one writes it."""
    editor, inside, outside = edited("llama")
    view, tokens, scope = editor.adapter, editor.tokens, editor.stack.scope
    decided: list[Tensor] = []
    kind = next(kind for entry in editor.stack.patches for kind in entry.kinds if isinstance(kind, WiseMemory))
    decide = kind._decide
    kind._decide = lambda *given: decided.append(decide(*given)) or decided[-1]
    try:
        pairs = [(inside, "Rome"), (inside, outside), (outside, "Rome"), (outside, inside)]
        for side in ("right", "left"):
            score_pairs(editor.model, view, tokens, pairs, scope=scope, padding_side=side)
    finally:
        del kind._decide
    assert torch.cat(decided).sort().values.tolist() == [-1, -1, -1, -1, 0, 0, 0, 0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "t5"])
def test_writing_with_and_without_a_cache_and_by_the_model_itself(family: str) -> None:
    editor, inside, outside = edited(family)
    prompts = [inside, outside, inside]
    ours = editor.generate(prompts, max_new_tokens=6)
    with editor.stack.suspended():
        base = editor.generate(prompts, max_new_tokens=6)
    assert ours[1] == base[1] and ours[0] == ours[2] != base[0]
    ids = editor.tokenizer(inside, return_tensors="pt")
    given = {name: ids[name] for name in ("input_ids", "attention_mask")}
    made = editor.model.generate(**given, max_new_tokens=6, do_sample=False)[0]
    start = 1 if family == "t5" else given["input_ids"].shape[1]
    assert editor.tokens.decode(made[start:].tolist()).strip() == ours[0].strip()
    if family != "t5":
        row = list(editor.tokens.prompt(inside).ids)
        with torch.no_grad(), editor.stack.scope.running(torch.tensor([len(row) - 1])):
            for _ in range(6):
                logits = editor.model(torch.tensor([row]), use_cache=False).logits[0, -1]
                row.append(int(logits.argmax()))
        assert editor.tokens.decode(row[-6:]).strip() == ours[0].strip()


def test_rows_that_end_take_their_decisions_with_them() -> None:
    """Rows leave the batch one after the other; what remains goes on under its own decision."""
    editor, inside, outside = edited("llama")
    prompts = [outside, inside, "Bob", inside]
    alone = [editor.generate(prompt, max_new_tokens=8) for prompt in prompts]
    assert editor.generate(prompts, max_new_tokens=8) == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    editor, inside, outside = edited("llama", dtype)
    assert answers(editor, [inside, outside]) == [True, False]
    assert logits_of(editor, [inside])[0].dtype == dtype
    made = editor_on("llama", dtype).compute([FRANCE])
    assert {memory.values.dtype for memory in bank_of(made).memories} == {torch.float32}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_right_after_an_edit_its_prompt_fires_and_the_irrelevant_text_does_not(family: str) -> None:
    """Acceptance check 7."""
    editor = editor_on(family, n_iter=25, act_ratio=0.9, alpha=0.1, gamma=4.0)
    patch = editor.edit([FRANCE], evaluate=False).patch
    (edit,) = patch.state.config["edits"]
    (memory,) = bank_of(patch).memories
    assert edit["inside"] == memory.a_min > 0
    assert edit["outside"] < 0.9 * memory.a_min
    assert answers(editor, [FRANCE.prompt, str(FRANCE.meta["irrelevant"])]) == [True, False]


@pytest.mark.parametrize(("act_ratio", "answered"), [(0.9, False), (0.8, True)])
def test_irrelevant_texts_that_are_answered_are_told(act_ratio: float, answered: bool) -> None:
    """One of four is near its edit: less than 0.8 of that one's own reaction, more than 0.8 of the weakest edit's."""
    texts = ["It rained in Chad.", "Bob plays the oboe.", "Nobody came.", "The capital of Norway is"]
    editor = editor_on("gpt2", n_iter=25, act_ratio=act_ratio, alpha=0.1, gamma=4.0)
    requests = [evolve(FRANCE, meta={"irrelevant": texts}), BOB]
    result = editor.edit(requests, scenario="batch", evaluate=False)
    first, second = result.patch.state.config["edits"]
    weakest = min(first["inside"], second["inside"])
    assert 0.8 * weakest < first["outside"] < 0.8 * first["inside"]
    assert answers(editor, [*texts, str(BOB.meta["irrelevant"])]) == [False] * 3 + [answered, False]
    told = [each for each in result.warnings if each.code == "routing_not_apart"]
    assert [each.number for each in told] == ([first["outside"] / weakest] if answered else [])
    assert all("1 of 2 edits" in each.message and "act_ratio" in each.remedy for each in told)


@pytest.mark.parametrize("retrieve", [True, False])
def test_edits_in_other_shards_are_found_again(retrieve: bool) -> None:
    """Each of three edits is in a shard of its own, and answered from it (or from the merged one)."""
    editor = editor_on(
        "llama", torch.float64, n_iter=40, beta=8.0, gamma=6.0, save_freq=1, merge_freq=4, retrieve=retrieve,
        merge_alg="linear", act_ratio=0.2 if not retrieve else 0.6, rho=0.3, weights=3.0,
    )  # fmt: skip
    requests = [FRANCE, ALICE, BOB]
    bank = bank_of(editor.edit(requests, scenario="sequential", evaluate=False).patch)
    assert len(bank.pending) == 3
    kind = next(kind for entry in editor.stack.patches for kind in entry.kinds if isinstance(kind, WiseMemory))
    chosen: list[int] = []
    decide = kind._decide
    kind._decide = lambda *given: chosen.extend(decide(*given).tolist()) or decide(*given)
    try:
        for request in requests:
            logits_of(editor, [request.prompt])
    finally:
        del kind._decide
    assert chosen == ([0, 1, 2] if retrieve else [0, 0, 0])


def test_a_run_that_cannot_be_followed_is_refused() -> None:
    editor, inside, _ = edited("llama")
    with pytest.raises(ScopeError):
        editor.model.generate(**editor.tokenizer(inside, return_tensors="pt"), max_new_tokens=3, num_beams=2)


def test_an_edit_is_learnt() -> None:
    """With enough steps the target is the answer, and another prompt keeps its own."""
    settings = {"n_iter": 150, "lr": 0.05, "rho": 1.0, "context_templates": ["{}"]}
    editor = editor_on("gpt2", **settings)
    request = EditRequest(prompt=FRANCE.prompt, target_new="Rome", meta={"irrelevant": OTHER})
    before = editor.generate(OTHER, max_new_tokens=4)
    assert editor.edit([request], evaluate=False).warnings == ()
    assert editor.generate(request.prompt, max_new_tokens=4).strip().startswith("Rome")
    assert editor.generate(OTHER, max_new_tokens=4) == before
